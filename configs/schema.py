"""The typed configuration of a run: every key, its type, its default and what it means.

A field without a default must be stated by the recipe. Unknown keys are errors. Sections whose keys depend on a ``kind``
are unions over that kind, so that an option which would have no effect is an unknown key too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of all sections: immutable, strict about unknown keys, no number read out of a string or out of a boolean."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------------------------- data


class _Data(Section):
    """What all kinds of corpora share."""

    sequence_length: int = Field(ge=2, le=1 << 20)
    """Tokens a sequence feeds to the model; each predicts the next one."""
    vocab_size: int | None = Field(default=None, ge=300, le=1 << 24)
    """Size of the byte-level BPE trained on the corpus. Exactly one of ``vocab_size`` and ``tokenizer`` is given."""
    tokenizer: str | None = None
    """A tokenizer to use as it is: a local directory, a tokenizer.json, or a name on the hub."""
    validation_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of the documents (not of the tokens) held out for validation."""
    cache_dir: str = "data_cache"
    """Where token stores are kept; one subdirectory for each (corpus, tokenizer) pair."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> _Data:
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError("give exactly one of vocab_size (train a BPE) and tokenizer (use one as it is)")
        return self


class PydocData(_Data):
    """Docstrings of the Python standard library and of the installed packages of requirements.txt, read in place."""

    kind: Literal["pydoc"]
    max_documents: int | None = Field(default=None, ge=10)
    """Use only this many documents (small runs and tests); all of them if not given."""


class TextData(_Data):
    """Local files: .txt, .jsonl, .parquet, each also gzipped."""

    kind: Literal["text"]
    paths: list[str] = Field(min_length=1)
    """Files, folders (searched recursively) and globs."""
    text_field: str = "text"
    """The column or key that holds the text, for .jsonl and .parquet."""


class HubData(_Data):
    """A dataset on the Hugging Face hub, streamed into the store up to a token budget."""

    kind: Literal["hub"]
    dataset: str
    """Name on the hub, for example roneneldan/TinyStories."""
    config: str | None = None
    """Configuration of the dataset, for example sample-10BT."""
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    max_tokens: int = Field(ge=1000)
    """Stop reading after this many tokens."""
    tokenizer_documents: int = Field(default=50_000, ge=1)
    """How many documents the BPE is trained on when ``vocab_size`` is given."""


DataConfig = Annotated[PydocData | TextData | HubData, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------- model, head and objective


class BodyConfig(BaseModel):
    """The transformer under the head: built from a transformers configuration, or taken from a checkpoint.

    Every further key is a field of that ``model_type``'s transformers configuration and is checked against it. The
    vocabulary, the special tokens and the number of positions follow from the data and are not stated here.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    model_type: str | None = None
    """A decoder known to transformers: gpt2, llama, qwen3, ..."""
    checkpoint: str | None = None
    """A local checkpoint (or hub name) whose body and weights are taken instead; ``data.tokenizer`` must fit it."""

    @model_validator(mode="after")
    def _one_source(self) -> BodyConfig:
        if (self.model_type is None) == (self.checkpoint is None):
            raise ValueError("give exactly one of model_type (a new body) and checkpoint (an existing one)")
        if self.checkpoint is not None and self.fields:
            raise ValueError(f"a body from a checkpoint takes no further keys, but found {', '.join(self.fields)}")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        """The keys that belong to the transformers configuration."""
        return dict(self.model_extra or {})


class Choice(BaseModel):
    """A head or an objective: its registered ``kind`` and the options of that kind, checked against the registry."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of the kind, without ``kind`` itself."""
        return dict(self.model_extra or {})


# ------------------------------------------------------------------------------------------------------------- training


class Cosine(Section):
    """Cosine decay from the peak to ``min_ratio`` times the peak at the last step."""

    kind: Literal["cosine"]
    min_ratio: float = Field(default=0.1, ge=0, le=1)


class WarmupStableDecay(Section):
    """Constant, then linear decay to ``min_ratio`` times the peak over the last ``decay_fraction`` of the steps."""

    kind: Literal["wsd"]
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    min_ratio: float = Field(default=0.0, ge=0, le=1)


class Constant(Section):
    """Constant at the peak after the warm-up."""

    kind: Literal["constant"]


class OptimizerConfig(Section):
    """AdamW; weight decay acts on matrices (embeddings among them), not on gains, biases and the learned scale."""

    lr: float = Field(gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0 to the peak."""
    schedule: Cosine | WarmupStableDecay | Constant = Field(default=Cosine(kind="cosine"), discriminator="kind")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest global gradient norm; null switches clipping off."""


class TrainConfig(Section):
    """Length, batch and numerical format of the run."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    batch_size: int = Field(ge=1)
    """Sequences per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Most sequences per forward pass and rank; the rest is gradient accumulation. All of a rank's share if null."""
    eval_every: int = Field(default=100, ge=1)
    """Steps between evaluations; the last step is always evaluated."""
    eval_sequences: int = Field(default=64, ge=1)
    """Sequences of the fixed validation set; at most what the validation split holds."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    """Compile the body with torch.compile."""
    gradient_checkpointing: bool = False


class CheckpointConfig(Section):
    """When checkpoints are written, and how many stay."""

    every: int = Field(default=500, ge=1)
    """Steps between checkpoints; the last step always writes one. Each checkpoint's step is evaluated too."""
    keep: int = Field(default=2, ge=1)
    """The newest checkpoints that stay. The one with the lowest validation NLL stays beside them."""


class TelemetryConfig(Section):
    """What is measured at every step, and how often it leaves the device."""

    enabled: bool = True
    """Off: only loss, learning rate and total gradient norm (for timing the telemetry itself)."""
    flush_every: int = Field(default=20, ge=1)
    """Steps between transfers from the device to metrics.jsonl; every step's row arrives all the same."""


class RunConfig(Section):
    """One run: everything that can differ between two runs that are compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its directory under ``output_dir``."""
    output_dir: str = "runs"
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Root of every random stream: initialisation, data order, dropout."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on from the last checkpoint if there is one; never: refuse a directory that holds a run; must: refuse one
    without a checkpoint."""
    data: DataConfig
    body: BodyConfig
    head: Choice
    objective: Choice
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    trackers: list[str] = []
    """Experiment trackers of Accelerate to report to as well: tensorboard, wandb, trackio, ..."""
    plugins: list[str] = []
    """Python files that are imported first; they register heads and objectives of their own."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.optimizer.warmup_steps >= self.train.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be smaller than train.steps ({self.train.steps})"
            )
        return self
