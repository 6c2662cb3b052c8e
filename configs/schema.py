"""The typed configuration of a run: every key, its type, its default and what it means.

A field without a default must be stated by the recipe. Unknown keys are errors. Where a section has a ``kind``, its
other keys are the ``Options`` of the class registered under that kind (kinds.py), so an option without effect is an unknown
key too.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from common.section import MOST, Choice, Place, Section, Text
from data.corpora import DataConfig
from data.negatives import NegativeKind, negative_count
from optim.optimizers import OptimizerConfig
from record.metrics import Family

MOST_TOKENS_PER_STEP = 1 << 30
"""Ten times the largest batches in use. The token ids of a whole batch are held in memory."""


# --------------------------------------------------------------------------------------------- model, head and objective


class BodyConfig(BaseModel):
    """The transformer below the head: built from a transformers configuration, or taken from a checkpoint.

    All other keys are fields of the transformers configuration of ``model_type`` and are checked against it. Vocabulary size,
    special tokens and number of positions follow from the data and are not given here.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    model_type: Text | None = None
    """A decoder known to transformers: gpt2, llama, qwen3, ..."""
    checkpoint: Place | None = None
    """A local checkpoint (or hub name) whose body and weights are used instead; ``data.tokenizer`` must match it."""
    pad_vocab_to_multiple_of: int = Field(default=1, ge=1, le=1 << 20)
    """Pad the embedding to a multiple of this many rows; padding is never predicted. 64 suits matrix products on GPUs."""
    sigma_reparam: bool = False
    """Train each matrix of the blocks as (s / sigma) times itself, with a learned s and sigma its spectral norm (sigmaReparam,
    arXiv 2303.06296). Checkpoints hold the product, as a plain model; not with FSDP2."""

    @model_validator(mode="after")
    def _one_source(self) -> BodyConfig:
        if (self.model_type is None) == (self.checkpoint is None):
            raise ValueError("give exactly one of model_type (a new body) and checkpoint (an existing one)")
        if self.checkpoint is not None and self.fields:
            raise ValueError(f"a body from a checkpoint takes no further keys, but found {', '.join(self.fields)}")
        if self.checkpoint is not None and self.pad_vocab_to_multiple_of != 1:
            raise ValueError("pad_vocab_to_multiple_of is for a new body; a checkpoint has its own vocabulary size")
        return self

    @property
    def fields(self) -> dict[str, Any]:
        """The keys that belong to the transformers configuration."""
        return dict(self.model_extra or {})


# ------------------------------------------------------------------------------------------------------------- training


class TrainConfig(Section):
    """Length, batch and numerical format of the run."""

    steps: int = Field(ge=1, le=MOST)
    """Optimizer steps."""
    batch_size: int = Field(ge=1, le=1 << 20)
    """Sequences per optimizer step, over all ranks and micro-batches."""
    micro_batch_size: int | None = Field(default=None, ge=1, le=1 << 20)
    """Sequences per forward pass on each rank, at most; the rest is gradient accumulation. null: the rank's whole share."""
    eval_every: int = Field(default=100, ge=1, le=MOST)
    """Steps between evaluations; the last step is always evaluated."""
    eval_sequences: int = Field(default=64, ge=1, le=MOST)
    """Size of the fixed validation set, at most the whole validation split."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of matrix products, by autocast; parameters and optimizer state stay float32."""
    compile: bool = False
    """Compile the body with torch.compile, for training's own passes. What it gains and costs: docs/running.md."""
    kernel: Literal["auto", "triton", "torch"] = "auto"
    """What evaluates the loss's softmax over the vocabulary on a GPU: triton, a kernel of this project; torch, its own
    operations; auto, the kernel if it compiles and agrees with float64 there, else torch, which the run then reports."""
    stall_seconds: float = Field(default=1800, ge=1, le=1e6)
    """If one rank keeps the others waiting this long, they name it and exit. Longer than a checkpoint or compilation takes."""
    gradient_checkpointing: bool = False
    """Keep only each block's input for the backward pass and recompute the rest: less memory, a third more time."""


_OPTIONS_OF_NEGATIVES = (
    ("margin", "loss", "hinge"),
    ("nearest", "loss", "hinge"),
    ("paths", "kind", "corpus"),
    ("text_field", "kind", "corpus"),
)
"""Keys that only one value of another key makes use of."""


class NegativesConfig(Section):
    """Sequences in which nothing is to be predicted, in the place of a share of each batch; null: none.

    The objective, and all that is measured of the loss and the logits, is of the other sequences alone: a step has fewer targets,
    by the share. A position of a negative counts ``weight`` times what a target does.
    """

    kind: NegativeKind
    """shuffled: the tokens of the sequence that it replaces, in random order; random: tokens drawn uniformly from the
    vocabulary; corpus: another text."""
    share: float = Field(gt=0, lt=1)
    """Share of the sequences of each batch, rounded to a whole number of them."""
    loss: Literal["hinge", "uniform", "others"]  # model.negatives has them; its import would load transformers
    """hinge: the sum over the ``nearest`` classes of max(0, ``margin`` - d_k), where d_k = -z_k is the squared distance in the
    head's own unit, so only for the metric head; uniform: cross-entropy towards the same probability of every class; others: the
    NLL of the class that head.abstain adds."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on this loss."""
    margin: float | None = Field(default=None, gt=0, le=1e6)
    """With loss=hinge: distance from which on a class is far enough, in nats, as logits are."""
    nearest: int = Field(default=8, ge=1, le=1 << 20)
    """With loss=hinge: how many of the nearest classes count."""
    paths: list[Place] = []
    """With kind=corpus: files, folders and globs, as for data.paths; read are at most the first 4 Mi tokens. Keep the files: a
    run is resumed and replayed with what they hold then."""
    text_field: Text = "text"
    """With kind=corpus: the column or key that holds the text, for .json, .jsonl and .parquet."""

    @model_validator(mode="after")
    def _with_effect(self) -> NegativesConfig:
        for key, of, value in _OPTIONS_OF_NEGATIVES:
            chosen, default = getattr(self, of), type(self).model_fields[key].default
            if chosen != value and getattr(self, key) != default:
                raise ValueError(f"{key} has no effect with {of}={chosen}; leave it out")
        if self.loss == "hinge" and self.margin is None:
            raise ValueError("loss=hinge needs a margin; set negatives.margin")
        if self.kind == "corpus" and not self.paths:
            raise ValueError("kind=corpus needs a text; set negatives.paths")
        return self


class CheckpointConfig(Section):
    """When checkpoints are written and how many are kept."""

    every: int = Field(default=500, ge=1, le=MOST)
    """Steps between checkpoints; there is always one of the last step. Every checkpointed step is also evaluated."""
    keep: int = Field(default=2, ge=1, le=MOST)
    """Newest checkpoints to keep, besides the one with the lowest validation NLL and, until the next one, that of a stop."""
    keep_before_spikes: int = Field(default=2, ge=0, le=MOST)
    """Also keep the last checkpoint before each of this many highest spikes, for replays to start from."""
    unknown_fpr: float | None = Field(default=None, gt=0, lt=1)
    """Calibrate each checkpoint's threshold of what the model knows: the distance to the nearest class that this share of the
    validation positions exceeds (its false positives). Only for the metric head; null: no threshold."""


class TelemetryConfig(Section):
    """What is measured at every step, and how often it is transferred from the device."""

    enabled: bool = True
    """false: log only loss, learning rate and total gradient norm (to time the telemetry itself)."""
    families: list[Family] = Field(default=list(get_args(Family)), min_length=1)
    """What is measured at every step. norms: gradients, parameters and output embeddings, by group; updates: how far they moved
    (without it, edge/ is not measured either); hidden: hidden states; logits: statistics of the logits, of the objective's
    weights and of penalties. What each costs: docs/metrics.md."""
    flush_every: int = Field(default=20, ge=1, le=MOST)
    """Steps between transfers from the device to metrics.jsonl, which has a row for every step regardless."""
    attention_every: int | None = Field(default=20, ge=1, le=MOST)
    """Steps between measurements of the attention logits and of the residual stream's kurtosis; null: never."""
    edge_every: int | None = Field(default=100, ge=1, le=MOST)
    """Steps between measurements of how near the edge of stability a step came (edge/ and adam/ in docs/metrics.md), which take
    another forward pass of its batch; null: never."""
    attention_sequences: int = Field(default=2, ge=1, le=MOST)
    """Validation sequences that this measurement uses; always the same ones, on every rank."""

    @field_validator("families", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        if value == []:
            raise ValueError("is empty; telemetry.enabled=false measures none of them")
        return value

    def measures(self, family: Family) -> bool:
        """Whether a family is measured."""
        return family in self.measured

    @property
    def measured(self) -> frozenset[Family]:
        """All families that are."""
        return frozenset(self.families if self.enabled else ())


class DetectionConfig(Section):
    """What is watched for spikes during the run. Any detector can also be run afterwards: python -m analysis.spikes.

    In norms and update sizes, spikes are detected only after ``optimizer.warmup_steps``; in losses from the first step. Values
    that are not finite are always detected."""

    detector: Text = "median_mad"
    """A detector of stability/detect/ or of a plug-in."""
    signals: list[Text] = ["loss/nll", "grad_norm/total"]
    """Metrics to watch; they must be logged at every step."""


class TrackingConfig(Section):
    """Project and name under which trackers show the run. TensorBoard has neither and goes by the run directory."""

    project: Text = "stability-testbed"
    """Project in W&B and Comet, experiment in MLflow and Aim."""
    run_name: Text | None = None
    """Name of the run there; null: its ``name``."""


class RunConfig(Section):
    """One run: everything that can differ between two runs that are compared."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)
    """Name of the run, and of its directory in ``output_dir``."""
    output_dir: Place = "runs"
    """Folder of the run directories."""
    seed: int = Field(default=0, ge=0, lt=1 << 32)
    """Seed of every random stream: initialisation, data order, dropout."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: continue from the last checkpoint if there is one; never: refuse a directory that holds a run; must: refuse one
    without a checkpoint."""
    branch_from: Place | None = None
    """RUN@STEP: begin at this checkpoint of another run, with its weights, optimizer state and detectors, and its place in the
    data; null: begin with a new model. Data, body, head, batch size and the kind of optimizer must be the same; objective, rate,
    schedule, stress and interventions may differ, and so may the seed, which gives other batches."""
    data: DataConfig
    body: BodyConfig
    head: Choice
    objective: Choice
    optimizer: OptimizerConfig
    train: TrainConfig
    negatives: NegativesConfig | None = None
    """Sequences in the place of a share of each batch in which nothing is to be predicted; null: none."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    telemetry: TelemetryConfig = TelemetryConfig()
    detection: DetectionConfig = DetectionConfig()
    stress: list[Choice] = []
    """Faults injected on purpose: the kinds in stability/stress/, or of a plug-in."""
    interventions: list[Choice] = []
    """What the run does about instability: the kinds in stability/intervene/, or of a plug-in."""
    trackers: list[Text] = []
    """Experiment trackers of Accelerate to report to as well: tensorboard, wandb, trackio, ..."""
    tracking: TrackingConfig = TrackingConfig()
    plugins: list[Place] = []
    """Python files, relative to the working directory, imported first; they register further kinds."""

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
                f"are {tokens} tokens a step; at most {MOST_TOKENS_PER_STEP} are possible"
            )
        if self.negatives is not None:
            count = negative_count(self.negatives.share, self.train.batch_size)
            if not 0 < count < self.train.batch_size:
                raise ValueError(
                    f"negatives.share: {self.negatives.share:g} of train.batch_size={self.train.batch_size} sequences is "
                    f"{'none' if count == 0 else 'all of them'}; choose another share or a larger batch"
                )
        if self.interventions and self.train.precision == "fp16":
            raise ValueError(
                "interventions: not with train.precision=fp16, whose loss scale is not checkpointed; use bf16"
            )
        return self


if __name__ == "__main__":
    import json

    from .describe import json_schema

    print(json.dumps(json_schema(), indent=1))
