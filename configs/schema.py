"""The typed configuration of a run: every key, its type, its default and what it means.

A field without a default must be stated by the recipe. Unknown keys are errors. Where a ``kind`` decides about the further keys
of a section, they are the ``Options`` of the class that is registered under that kind (kinds.py), so that an option which would
have no effect is an unknown key too.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.section import MOST, Choice, Place, Section, Text
from data.corpora import DataConfig
from optim.optimizers import OptimizerConfig

MOST_TOKENS_PER_STEP = 1 << 30
"""Ten times the largest batches in use; a batch's token ids are in memory at once."""


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


# ------------------------------------------------------------------------------------------------------------- training


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
    """Of matrix products, by autocast; parameters and optimizer state are float32."""
    compile: bool = False
    """Compile the body with torch.compile."""
    stall_seconds: float = Field(default=1800, ge=1, le=1e6)
    """Several ranks that wait for one of them so long name it and end: longer than a checkpoint or a compilation takes."""
    gradient_checkpointing: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, a third more time."""


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
    """One of stability/detect/, or of a plug-in."""
    signals: list[Text] = ["loss/nll", "grad_norm/total"]
    """Metrics that are logged at every step."""


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
    """Folder of the run directories."""
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
    stress: list[Choice] = []
    """Faults planted on purpose: the kinds in stability/stress/, or of a plug-in."""
    interventions: list[Choice] = []
    """What the run does about what it sees: the kinds in stability/intervene/, or of a plug-in."""
    trackers: list[Text] = []
    """Experiment trackers of Accelerate to report to as well: tensorboard, wandb, trackio, ..."""
    tracking: TrackingConfig = TrackingConfig()
    plugins: list[Place] = []
    """Python files that are imported first; they register kinds of their own: heads, objectives, stresses, interventions, ..."""

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
        if self.interventions and self.train.precision == "fp16":
            raise ValueError("interventions: not with train.precision=fp16, whose gradient scale is not kept; use bf16")
        return self


if __name__ == "__main__":
    import json

    from .describe import json_schema

    print(json.dumps(json_schema(), indent=1))
