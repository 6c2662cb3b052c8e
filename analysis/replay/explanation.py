"""What the replay of one training step found: plain data, written as explanation.json.

Shapes: B sequences of the step, T positions. NLL in nats per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class MetricCheck:
    """One metric of the step: what the run logged, what the replay got, and what was usual just before."""

    logged: float | None
    """None where the run's row has no such metric."""
    replayed: float
    agrees: bool
    """Equal to the bit, or within the stated tolerance where bits cannot be expected."""
    usual: float | None
    """Median of the logged values in the steps before (``Explanation.usual_window``)."""
    sigmas: float | None
    """How far the replayed value stands from ``usual``, in 1.4826 x MAD of those steps; None where they do not vary."""


@dataclass(frozen=True)
class Token:
    """One target token of a sequence."""

    position: int
    """0 to T - 1: this token is the target of input position ``position``."""
    token_id: int
    text: str
    """As the tokenizer decodes this token alone."""
    nll: float
    objective: float
    weight: float | None
    """TFSD's c; None for a head or objective without it."""
    top: list[tuple[str, float]]
    """The tokens the model held most probable, and their probabilities, best first."""


@dataclass(frozen=True)
class Sequence:
    """One sequence of the batch, as the model saw it."""

    row: int
    """Its place in the batch."""
    index: int
    """Its number in the training split: tokens ``index`` x T to ``index`` x T + T of the store."""
    nll: float
    worst_nll: float
    objective: float
    weight_mean: float | None
    grad_norm: float
    """L2 norm of this sequence's own term of the step's gradient (before clipping)."""
    alignment: float
    """Cosine between that term and the whole gradient."""
    group_grad_norms: dict[str, float]
    text: str
    """All of it, decoded."""
    tokens: list[Token]
    """Every target of the sequence; empty but for those with the largest gradients and the one with the worst token."""


@dataclass(frozen=True)
class Group:
    """One group of parameters (embedding, layer_NN, norm, head)."""

    name: str
    grad_norm: float
    usual_grad_norm: float | None
    update_rms: float
    usual_update_rms: float | None
    param_norm: float


@dataclass(frozen=True)
class MovedEmbedding:
    """One row of the input embedding and how far the step moved it."""

    token_id: int
    text: str
    distance: float
    """L2 norm of the change."""
    norm_before: float
    norm_after: float
    inputs: int
    """How often the token is an input of this batch."""
    targets: int


@dataclass(frozen=True)
class Layer:
    """L2 norm of the residual stream on this batch at one place, before and after the step's update."""

    name: str
    """layer_00, ..., pre_final (before the last normalisation), final (after it)."""
    mean_before: float
    max_before: float
    mean_after: float
    max_after: float


@dataclass(frozen=True)
class Explanation:
    """Everything about one step."""

    run: str
    run_directory: str
    step: int
    checkpoint: int
    """Step of the checkpoint the replay began at; 0: the initial weights."""
    batch: int
    """The place in the order of batches that the step drew; differs from ``step`` where batches were skipped."""
    device: str
    tolerance: float
    """Relative; 0 means to the bit."""
    tolerance_reason: str
    """Why bits cannot be expected, or empty."""
    disagreements: list[str]
    """Metrics of any replayed step, as "step N: name", that do not agree with the log."""
    steps_compared: int
    stress: list[str]
    """Faults that the run's configuration plants at this step."""
    spike: dict[str, Any] | None
    """The event of the spike that this step belongs to."""
    usual_window: tuple[int, int]
    """First and last step of the rows behind ``usual``."""
    metrics: dict[str, MetricCheck]
    clipped_by: float | None
    """Factor that clipping multiplied the gradient by (1: not clipped; NaN: not finite); None without clipping."""
    nll_before: float
    nll_after: float
    """NLL of the step's own batch before and after its update."""
    sequences: list[Sequence]
    """All sequences, largest gradient first."""
    groups: list[Group]
    embeddings: list[MovedEmbedding]
    """The rows that moved most, farthest first."""
    layers: list[Layer]
    history: dict[str, list[float | None]]
    """Logged rows around the step: "step", "loss/nll", "grad_norm/total"; None where not logged."""

    @property
    def reproduced(self) -> bool:
        """Whether the replay gave what the run logged."""
        return not self.disagreements


@dataclass(frozen=True)
class TokenTable:
    """Per-token values of the whole batch, (B, T), in the order of the batch's rows."""

    token_id_BT: npt.NDArray[np.int64]
    nll_BT: npt.NDArray[np.float64]
    objective_BT: npt.NDArray[np.float64]
    weight_BT: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Counterfactual:
    """The same steps twice: as they were, and with one thing changed."""

    run: str
    change: str
    """As given: skip, clip=0.1, lr=0.5, objective=ce."""
    meaning: str
    """The same in a sentence."""
    checkpoint: int
    """Step of the checkpoint the replay began at; 0: the initial weights."""
    first_step: int
    """First step at which anything differs."""
    last_step: int
    steps: list[int]
    factual: dict[str, list[float | None]]
    """As the run logged them, by metric name; None where it logged none. Some steps before ``first_step`` come first."""
    changed: dict[str, list[float | None]]
    """With the change. Put beside the logged step that drew the same batch; None for a batch that was skipped."""
