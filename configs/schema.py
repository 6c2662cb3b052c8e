"""The typed configuration of a run: every key, its type, its default and what it means.

A field without a default must be stated by the recipe. Unknown keys are errors. Sections whose keys depend on a ``kind``
are unions over that kind, so that an option which would have no effect is an unknown key too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from common.files import at_home


class Section(BaseModel):
    """Base of all sections: immutable, strict about unknown keys, no number read out of a string or out of a boolean."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


MOST = 1 << 40
"""No count is larger: a step times the largest batch is still a 64-bit number, and no run takes so many steps."""
FLOAT32_MAX = 3.4e38
"""The largest number that an optimizer in float32 can be given."""
MOST_TOKENS_PER_STEP = 1 << 30
"""Ten times the largest batches in use; a batch's token ids are in memory at once."""
LONGEST_FILE_NAME = 255
"""Bytes of a file's or folder's name on the usual file systems."""
LONGEST_PATH = 4095


def _plain(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    unprintable = [character for character in text if not character.isprintable()]
    if unprintable:
        raise ValueError(f"holds {unprintable[0]!r}, which does not print")
    return text


def _path(text: str) -> str:
    if len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_FILE_NAME for part in text.split("/")):
        raise ValueError(
            f"is longer than a path may be ({LONGEST_PATH} bytes, {LONGEST_FILE_NAME} for each name in it)"
        )
    return text


Text = Annotated[str, AfterValidator(_plain)]
"""Text of at least one character, all of which print: names, patterns, keys."""
Place = Annotated[Text, AfterValidator(at_home), AfterValidator(_path)]
"""A file, a folder or a name on the hub; a leading ``~`` becomes the home directory."""


# ---------------------------------------------------------------------------------------------------------------- data


def _ordered(steps: list[int]) -> list[int]:
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1] <= MOST:
        raise ValueError(f"a range of steps is [first, last] with 1 <= first <= last, at most {MOST}, not {steps}")
    return steps


StepRange = Annotated[list[int], AfterValidator(_ordered)]


class _Data(Section):
    """What all kinds of corpora share."""

    sequence_length: int = Field(ge=2, le=1 << 20)
    """Tokens a sequence feeds to the model; each predicts the next one."""
    validation_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share held out for validation: of the tokens for text and hub, where a document may be cut; of the documents, which
    stay whole, for pydoc and grammar (data/split.py). A share that is off by a quarter or more is told."""
    cache_dir: Place = "data_cache"
    """Where token stores are kept; one subdirectory for each (corpus, tokenizer) pair."""
    skip_steps: list[StepRange] = []
    """Batches left out, as [first, last] in the order of batches: [[312, 320]] goes on with batch 321 at step 312."""


class _ProseData(_Data):
    """What the corpora of prose share: the tokenizer is a choice."""

    vocab_size: int | None = Field(default=None, ge=300, le=1 << 24)
    """Size of the byte-level BPE trained on the corpus. Exactly one of ``vocab_size`` and ``tokenizer`` is given."""
    tokenizer: Place | None = None
    """A tokenizer to use as it is: a local directory, a tokenizer.json, or a name on the hub."""

    @model_validator(mode="after")
    def _one_tokenizer(self) -> _ProseData:
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError("give exactly one of vocab_size (train a BPE) and tokenizer (use one as it is)")
        return self


class PydocData(_ProseData):
    """Docstrings of the Python standard library and of the installed packages of requirements.txt, read in place."""

    kind: Literal["pydoc"]
    max_documents: int | None = Field(default=None, ge=10, le=MOST)
    """Use only this many documents (small runs and tests); all of them if not given."""


class TextData(_ProseData):
    """Local files: .txt, .json, .jsonl, .parquet, each also gzipped. A document over 64 Ki characters is cut into pieces."""

    kind: Literal["text"]
    paths: list[Place] = Field(min_length=1)
    """Files, folders (searched recursively, links followed) and globs. What is found and not read is told."""
    text_field: Text = "text"
    """The column or key that holds the text, for .json, .jsonl and .parquet."""


class HubData(_ProseData):
    """A dataset on the Hugging Face hub, streamed into the store up to a token budget."""

    kind: Literal["hub"]
    dataset: Place
    """Name on the hub, for example roneneldan/TinyStories, or a folder with a copy."""
    config: Text | None = None
    """Configuration of the dataset, for example sample-10BT."""
    split: Text = "train"
    revision: Text | None = None
    text_field: Text = "text"
    max_tokens: int = Field(ge=1000, le=MOST)
    """Stop reading after this many tokens."""
    tokenizer_documents: int = Field(default=50_000, ge=1, le=MOST)
    """How many documents the BPE is trained on when ``vocab_size`` is given."""


class GrammarData(_Data):
    """Text of the synonym grammar, in which the probability of every word is known; a token for each of its words."""

    kind: Literal["grammar"]
    documents: int = Field(ge=10, le=1 << 32)
    """How many documents to write; they have some 80 tokens on average."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Draws the grammar's free probabilities, and the text."""


DataConfig = Annotated[PydocData | TextData | HubData | GrammarData, Field(discriminator="kind")]


# --------------------------------------------------------------------------------------------- model, head and objective


class BodyConfig(BaseModel):
    """The transformer under the head: built from a transformers configuration, or taken from a checkpoint.

    Every further key is a field of that ``model_type``'s transformers configuration and is checked against it. The
    vocabulary, the special tokens and the number of positions follow from the data and are not stated here.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    model_type: Text | None = None
    """A decoder known to transformers: gpt2, llama, qwen3, ..."""
    checkpoint: Place | None = None
    """A local checkpoint (or hub name) whose body and weights are taken instead; ``data.tokenizer`` must fit it."""
    pad_vocab_to_multiple_of: int = Field(default=1, ge=1, le=1 << 20)
    """Rows are added to the embedding up to a multiple of this; they are never predicted. 64 suits a GPU's matrix products."""

    @model_validator(mode="after")
    def _one_source(self) -> BodyConfig:
        if (self.model_type is None) == (self.checkpoint is None):
            raise ValueError("give exactly one of model_type (a new body) and checkpoint (an existing one)")
        if self.checkpoint is not None and self.fields:
            raise ValueError(f"a body from a checkpoint takes no further keys, but found {', '.join(self.fields)}")
        if self.checkpoint is not None and self.pad_vocab_to_multiple_of != 1:
            raise ValueError("pad_vocab_to_multiple_of is for a new body; that of a checkpoint has its own vocabulary")
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

    lr: float = Field(gt=0, le=FLOAT32_MAX)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0, le=MOST)
    """Steps of linear warm-up from 0 to the peak."""
    schedule: Cosine | WarmupStableDecay | Constant = Field(default=Cosine(kind="cosine"), discriminator="kind")
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0, le=FLOAT32_MAX)
    weight_decay: float = Field(default=0.1, ge=0, le=FLOAT32_MAX)
    clip_norm: float | None = Field(default=1.0, gt=0, le=FLOAT32_MAX)
    """Largest global gradient norm; null switches clipping off."""


class TrainConfig(Section):
    """Length, batch and numerical format of the run."""

    steps: int = Field(ge=1, le=MOST)
    """Optimizer steps."""
    batch_size: int = Field(ge=1, le=1 << 20)
    """Sequences per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=1 << 20)
    """Most sequences per forward pass and rank; the rest is gradient accumulation. All of a rank's share if null."""
    eval_every: int = Field(default=100, ge=1, le=MOST)
    """Steps between evaluations; the last step is always evaluated."""
    eval_sequences: int = Field(default=64, ge=1, le=MOST)
    """Sequences of the fixed validation set; at most what the validation split holds."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    """Compile the body with torch.compile."""
    stall_seconds: float = Field(default=1800, ge=1, le=1e6)
    """Several ranks that wait for one of them so long name it and end: longer than a checkpoint or a compilation takes."""
    gradient_checkpointing: bool = False


class CheckpointConfig(Section):
    """When checkpoints are written, and how many stay."""

    every: int = Field(default=500, ge=1, le=MOST)
    """Steps between checkpoints; the last step always writes one. Each checkpoint's step is evaluated too."""
    keep: int = Field(default=2, ge=1, le=MOST)
    """The newest checkpoints that stay; beside them the one with the lowest validation NLL and, until the next, a stop's."""
    keep_before_spikes: int = Field(default=2, ge=0, le=MOST)
    """Beside those, the last checkpoint before each of the so many highest spikes stays, for replays to begin at."""


class TelemetryConfig(Section):
    """What is measured at every step, and how often it leaves the device."""

    enabled: bool = True
    """Off: only loss, learning rate and total gradient norm (for timing the telemetry itself)."""
    flush_every: int = Field(default=20, ge=1, le=MOST)
    """Steps between transfers from the device to metrics.jsonl; every step's row arrives all the same."""
    attention_every: int | None = Field(default=20, ge=1, le=MOST)
    """Steps between probes of the attention logits; null switches them off."""
    attention_sequences: int = Field(default=2, ge=1, le=MOST)
    """Validation sequences that are probed; always the same ones, on every rank."""


class DetectionConfig(Section):
    """What is watched for spikes while the run goes on. Any detector can be run afterwards: python -m analysis.spikes.

    Spikes of norms and of sizes of updates are looked for after ``optimizer.warmup_steps`` only; those of losses, and values
    that are not finite, from the start."""

    detector: Text = "median_mad"
    """A detector of stability/detect/published.py."""
    signals: list[Text] = ["loss/nll", "grad_norm/total"]
    """Metrics that are logged at every step."""


# ------------------------------------------------------------------------------------------------- faults and interventions


class _Fault(Section):
    """What all planted faults share: when."""

    step: int = Field(ge=1, le=MOST)
    """First step at which the fault acts."""
    steps: int = Field(default=1, ge=1, le=MOST)
    """How many steps it lasts."""


class CorruptSequences(_Fault):
    """Spoils the first sequences of a batch: tokens that are no language, or targets that do not count.

    ``step`` counts in the order of batches, so that a batch that is skipped takes its fault with it.
    """

    kind: Literal["corrupt_sequences"]
    sequences: int = Field(ge=1, le=1 << 20)
    """How many, counted over all ranks."""
    pattern: Literal["random", "repeated", "ignored"]
    """random: drawn uniformly from the vocabulary; repeated: a few random tokens over and over; ignored: the text stays, and
    no token of it is a target."""
    period: int = Field(default=4, ge=1, le=1 << 20)
    """Length of what is repeated, in tokens."""


class ScaleLearningRate(_Fault):
    """Multiplies the learning rate."""

    kind: Literal["scale_lr"]
    factor: float = Field(gt=0, le=FLOAT32_MAX)


StressConfig = Annotated[CorruptSequences | ScaleLearningRate, Field(discriminator="kind")]


class Rewind(Section):
    """On a spike, go back to the last checkpoint before it and go on without the batches it was met at (PaLM, section 5.1).

    Checkpoints of a stop do not count: a run that was stopped goes back to where it would have gone back without."""

    kind: Literal["rewind"]
    signal: Text = "loss/nll"
    """One of ``detection.signals``. A value that is not finite, of any signal that ends a run, counts as well."""
    min_sigmas: float = Field(default=10.0, gt=0)
    """Spikes lower than this are let pass."""
    margin: int = Field(default=0, ge=0, le=MOST)
    """Batches left out on either side of the spike's own."""
    most: int = Field(default=3, ge=1, le=MOST)
    """After so many rewinds the run goes on whatever comes."""


class TrackingConfig(Section):
    """Under which project and name trackers show the run. TensorBoard knows neither: it goes by the run directory."""

    project: Text = "stability-testbed"
    """Runs that are looked at together: W&B's and Comet's project, MLflow's and Aim's experiment."""
    run_name: Text | None = None
    """What the run is called there; its ``name`` if null."""


class RunConfig(Section):
    """One run: everything that can differ between two runs that are compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run and of its directory under ``output_dir``."""
    output_dir: Place = "runs"
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
    detection: DetectionConfig = DetectionConfig()
    stress: list[StressConfig] = []
    """Faults planted on purpose (stability/stress/batch.py)."""
    interventions: list[Rewind] = []
    """What the run does about what it detects."""
    trackers: list[Text] = []
    """Experiment trackers of Accelerate to report to as well: tensorboard, wandb, trackio, ..."""
    tracking: TrackingConfig = TrackingConfig()
    plugins: list[Place] = []
    """Python files that are imported first; they register heads and objectives of their own."""

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        if self.optimizer.warmup_steps >= self.train.steps:
            raise ValueError(
                f"optimizer.warmup_steps ({self.optimizer.warmup_steps}) must be smaller than train.steps ({self.train.steps})"
            )
        tokens = self.train.batch_size * self.data.sequence_length
        if tokens > MOST_TOKENS_PER_STEP:
            raise ValueError(
                f"train.batch_size: {self.train.batch_size} sequences of data.sequence_length={self.data.sequence_length} "
                f"are {tokens} tokens a step; {MOST_TOKENS_PER_STEP} are the most"
            )
        for number, fault in enumerate(self.stress):
            if fault.step > self.train.steps:
                raise ValueError(
                    f"stress.{number}.step: {fault.step} comes after the last step, train.steps={self.train.steps}"
                )
            if isinstance(fault, CorruptSequences) and fault.sequences > self.train.batch_size:
                raise ValueError(
                    f"stress.{number}.sequences: {fault.sequences} is more than train.batch_size={self.train.batch_size}"
                )
            if (
                isinstance(fault, CorruptSequences)
                and fault.pattern == "ignored"
                and fault.sequences == self.train.batch_size
            ):
                raise ValueError(
                    f"stress.{number}.sequences: all {fault.sequences} sequences of a batch without targets leave no loss"
                )
        if self.interventions and self.train.precision == "fp16":
            raise ValueError("interventions: not with train.precision=fp16, whose gradient scale is not kept; use bf16")
        for number, rewind in enumerate(self.interventions):
            if rewind.signal not in self.detection.signals:
                watched = ", ".join(self.detection.signals)
                raise ValueError(
                    f"interventions.{number}.signal: {rewind.signal} is not among detection.signals ({watched})"
                )
        return self
