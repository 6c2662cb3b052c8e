"""What the replay of one training step found: plain data, written as explanation.json, and what stands out in it.

Shapes: B sequences of the step, T positions. NLL in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T")
OUTLIER = 2.0
"""A gradient norm is an outlier above this many medians of the batch, or times its usual value."""
_FEWEST, _SIGMAS, _FLOOR = 8, 6.0, 0.25
"""An NLL is an outlier in a batch of at least ``_FEWEST``, by ``_SIGMAS`` x 1.4826 x MAD and by ``_FLOOR`` of the median."""


@dataclass(frozen=True)
class MetricCheck:
    """One metric of the step: as logged, as replayed, and as usual just before."""

    logged: float | None
    """None if the run's row lacks the metric."""
    replayed: float
    agrees: bool
    """To the bit, or within the stated tolerance."""
    usual: float | None
    """Median of the logged values in the steps before (``Explanation.usual_window``)."""
    sigmas: float | None
    """Distance of the replayed value from ``usual``, in 1.4826 x MAD of those steps; None if they do not vary."""


@dataclass(frozen=True)
class Token:
    """One target token of a sequence."""

    position: int
    """0 to T - 1: the input position that this token is the target of."""
    token_id: int
    text: str
    """This token decoded alone."""
    nll: float
    objective: float
    weight: float | None
    """TFSD's c; None for a head or objective without it."""
    top: list[tuple[str, float]]
    """The most probable tokens and their probabilities."""


@dataclass(frozen=True)
class BatchSequence:
    """One sequence of the batch, as the model saw it."""

    row: int
    """Its row in the batch."""
    index: int
    """Its number in the training split: tokens ``index`` x T to ``index`` x T + T of the store."""
    targets: int
    """How many count; none of a negative, of which the next four are 0."""
    nll: float
    worst_nll: float
    objective: float
    weight_mean: float | None
    grad_norm: float
    """L2 norm of this sequence's term of the step's gradient, before clipping."""
    alignment: float
    """Cosine of that term with the whole gradient."""
    group_grad_norms: dict[str, float]
    text: str
    tokens: list[Token]
    """All targets, for the sequences with the largest gradients and the one with the worst token; otherwise empty."""


@dataclass(frozen=True)
class Group:
    """One parameter group: embedding, layer_NN, norm or head."""

    name: str
    grad_norm: float
    usual_grad_norm: float | None
    update_rms: float
    usual_update_rms: float | None
    param_norm: float


@dataclass(frozen=True)
class MovedEmbedding:
    """A row of the input embedding, and how far the step moved it."""

    token_id: int
    text: str
    distance: float
    """L2 norm of the change."""
    norm_before: float
    norm_after: float
    inputs: int
    """How often the token is an input in this batch; ``targets``: a target."""
    targets: int


@dataclass(frozen=True)
class Layer:
    """L2 norm of the residual stream on this batch at one layer, before and after the update."""

    name: str
    """layer_NN, pre_final (before the last normalisation) or final (after it)."""
    mean_before: float
    max_before: float
    mean_after: float
    max_after: float


@dataclass(frozen=True)
class Explanation:
    """Everything known about one step."""

    run: str
    run_directory: str
    step: int
    checkpoint: int
    """Step of the checkpoint that the replay started from; 0: the initial weights."""
    batch: int
    """Number of the batch that the step drew; differs from ``step`` if batches were skipped."""
    device: str
    tolerance: float
    """Relative; 0: to the bit."""
    tolerance_reason: str
    """Why the tolerance is not 0."""
    disagreements: list[str]
    """Metrics of any replayed step, as "step N: name", that do not agree with the log."""
    steps_compared: int
    stress: list[str]
    """Faults that the configuration injects at this step."""
    spike: dict[str, Any] | None
    """Event of the spike that this step belongs to."""
    usual_window: tuple[int, int]
    """First and last of the steps that define ``usual``."""
    metrics: dict[str, MetricCheck]
    clipped_by: float | None
    """Factor by which clipping scaled the gradient (1: not clipped; NaN: not finite); None without clipping."""
    nll_before: float
    nll_after: float
    """NLL of the step's own batch, before and after its update."""
    sequences: list[BatchSequence]
    """Largest gradient first."""
    groups: list[Group]
    embeddings: list[MovedEmbedding]
    """The rows that moved farthest."""
    layers: list[Layer]
    history: dict[str, list[float | None]]
    """Logged values around the step: "step", "loss/nll", "grad_norm/total"; None where not logged."""

    @property
    def reproduced(self) -> bool:
        """Whether the replay agrees with the log."""
        return not self.disagreements

    @property
    def usual_nll(self) -> float:
        """The usual NLL before the step, else that of its batch; 0 if neither is finite. Colours are scaled by it."""
        check = self.metrics.get("loss/nll")
        known = [self.nll_before] if check is None or check.usual is None else [check.usual, self.nll_before]
        return next(filter(math.isfinite, known), 0.0)

    @property
    def by_gradient(self) -> list[BatchSequence]:
        """All sequences, largest gradient norm first, those that are not finite before all others."""
        return _descending(self.sequences, lambda s: s.grad_norm)

    @property
    def gradient_shares(self) -> dict[int, float]:
        """By row, the projection of the sequence's term on the whole gradient, as a share; the shares add up to 1.

        A share is negative if the sequence pulls against the sum, and others may then exceed 1. Empty if a term is not finite
        or all terms cancel.
        """
        along = {s.row: s.grad_norm * s.alignment for s in self.sequences}
        total = math.fsum(along.values()) if all(map(math.isfinite, along.values())) else 0.0
        return {row: value / total for row, value in along.items()} if total > 0 else {}

    @property
    def gradient_outliers(self) -> list[BatchSequence]:
        """The sequences, largest gradient first, whose gradient is not finite or above ``OUTLIER`` medians of the batch.

        The median is the lower one, so that one sequence of two can be an outlier.
        """
        finite = [s.grad_norm for s in self.by_gradient if math.isfinite(s.grad_norm)]
        median = finite[len(finite) // 2] if finite else 0.0
        return [s for s in self.by_gradient if not s.grad_norm <= OUTLIER * median]

    @property
    def nll_outliers(self) -> list[BatchSequence]:
        """The sequences, highest first, whose NLL is not finite or, in a large enough batch, far above the others."""
        finite = np.array([s.nll for s in self.sequences if s.targets and math.isfinite(s.nll)])
        limit = math.inf
        if finite.size >= _FEWEST:
            median = float(np.median(finite))
            sigma = 1.4826 * float(np.median(np.abs(finite - median)))
            limit = median + max(_SIGMAS * sigma, _FLOOR * median)
        found = [s for s in self.sequences if not (math.isfinite(s.nll) and s.nll <= limit)]
        return _descending(found, lambda s: s.nll)

    def worst_tokens(self, count: int) -> list[tuple[BatchSequence, Token]]:
        """The ``count`` recorded tokens of highest NLL."""
        pairs = [(s, token) for s in self.sequences for token in s.tokens]
        return _descending(pairs, lambda pair: pair[1].nll)[:count]


def _descending(items: list[_T], key: Callable[[_T], float]) -> list[_T]:
    """The items sorted by ``key`` from the largest down, those that are not finite first."""
    return sorted(items, key=lambda item: (math.isfinite(key(item)), -key(item)))


@dataclass(frozen=True)
class TokenTable:
    """Per-token values of the whole batch, (B, T)."""

    token_id_BT: npt.NDArray[np.int64]
    nll_BT: npt.NDArray[np.float64]
    objective_BT: npt.NDArray[np.float64]
    weight_BT: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class Counterfactual:
    """The same steps twice: as logged, and with one thing changed."""

    run: str
    change: str
    """As given: skip, clip=0.1, lr=0.5, objective=ce."""
    meaning: str
    """The change in words."""
    checkpoint: int
    """As in :class:`Explanation`."""
    first_step: int
    """First changed step."""
    last_step: int
    steps: list[int]
    factual: dict[str, list[float | None]]
    """Logged values by metric name, from some steps before ``first_step`` on; None where not logged."""
    changed: dict[str, list[float | None]]
    """With the change, aligned with the logged step that drew the same batch; None for a skipped batch."""
