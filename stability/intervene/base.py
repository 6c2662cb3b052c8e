"""Interventions: what a run does about instability, on the device within a step and on the host between steps.

A new intervention is a class in one file, here or in a plug-in, registered with :data:`INTERVENTIONS`. Its ``state`` is restored
when a run resumes, rewinds or is replayed. stages.py calls the methods that act within a step in the order in which they
stand here, all interventions at one stage before any at the next. Shapes: P parameters (tensors).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.errors import InputError
from common.registry import Registry, checked_options
from common.section import Choice
from model.objectives import TokenLogits
from model.teaching import Teacher
from record.metrics import Metric, declare
from stability.detect.events import Alarm

INTERVENTIONS = Registry("interventions")


@dataclass(frozen=True)
class Seen:
    """What a step has measured before its update: 0-d device tensors, equal on all ranks, and the parameters."""

    step: int
    loss: Tensor
    """loss/nll of the step."""
    gradient_norm: Tensor
    """Of the whole gradient before it is scaled, by whichever intervention. If it is not finite, there is no update, but
    ``state`` lasts."""
    gradient_norm_P: Tensor
    """The same of each parameter."""
    parameter_norm_P: Tensor
    parameters: Sequence[Tensor]
    """With their gradients in ``grad``, None where there is none."""


class UpdateEdge(Protocol):
    """Measures what the update, as it is at the time of the call, does to loss and logits, without dropout. Device tensors, equal
    on all ranks; every rank must make the same calls. ``edge_reads`` says beforehand which ones."""

    def losses(self) -> tuple[Tensor, Tensor, Tensor]:
        """The objective of the step's own batch before the update and after it, and what the slope promised: g . d, with g the
        gradient as it was before anything changed it. () each, float64. A forward pass of the batch."""

    def logit_changes(self) -> dict[str, Tensor]:
        """stability.measure.edge.ghost_radius of a sample of tokens. A forward pass of one sequence."""


@dataclass(frozen=True)
class Update:
    """What the optimizer has just done."""

    taken: Tensor
    """() boolean: false if the step was skipped or something was not finite; then nothing has changed and nothing may."""
    norm_P: Tensor
    """L2 norm of each parameter's change, weight decay included."""
    before: Sequence[Tensor]
    """The parameters before the step."""
    edge: UpdateEdge | None = None
    """Not None where an intervention has ``edge_reads``."""


@dataclass(frozen=True)
class Action:
    """What is done to the gradient or to the update of a step."""

    scale: Tensor | None = None
    """() by which the gradient is multiplied: the smallest scale of all interventions counts, so that each of two limits
    holds and neither is applied to what the other has left. Of an update: () or (P,), one after the other. Exactly 1 changes
    nothing."""
    skip: Tensor | None = None
    """() boolean, of a gradient: parameters and optimizer state stay as they are. One intervention that skips is enough."""
    said: Mapping[str, Tensor] = field(default_factory=dict)
    """Values to log, by the names in ``metrics``."""


@dataclass(frozen=True)
class Rewind:
    """Go back to before ``alarm`` and skip its batches, with ``margin`` more on either side."""

    alarm: Alarm
    margin: int = 0
    most: int = 1 << 30
    """Rewinds of the run, at most."""


class Intervention:
    """Base of all interventions. Methods that a subclass does not override do nothing and cost nothing."""

    kind: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]] = ()
    """What ``Action.said`` may hold; ``name`` is logged as ``intervention/<kind>/<name>``."""

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.began = 0
        """The step after which it began: 0, or where the run branched from one without it. Kept in checkpoints."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        """Get to know the model, without the launch's wrappers, and its optimizer. Returns the handles of hooks, which must act
        in training mode only."""
        return ()

    def first_steps(self) -> Iterable[tuple[int, str]]:
        """What it does only from a later step than its first on: the step, and in words that follow its name what it does not do
        before. For one that compares with earlier steps: ``(self.began + 64, "skips nothing")``."""
        return ()

    def notes(self, last: int) -> Iterator[str]:
        """What may not be expected of it in a run that ends at step ``last``, in words that follow its name. A run prints them
        as it begins, after ``attach`` and ``load``."""
        for first, what in self.first_steps():
            if first > last:
                yield f"{what} before step {first}, and the run ends at step {last}"

    def begin(self, step: int) -> None:
        """On the host, before the forward passes of ``step``."""

    def rate(self, step: int) -> float:
        """Factor on the learning rate: a function of the step and of ``began`` alone, on the host."""
        return 1.0

    def penalty(self, t: TokenLogits) -> Tensor:
        """A loss of each token (N,) in addition to the objective, in training only; differentiable by autograd.
        ``penalty_reads`` names the logits that it uses beyond true and negatives. Its mean is logged as
        ``intervention/<kind>/penalty`` with the statistics of the logits (``telemetry.enabled``)."""
        raise NotImplementedError

    penalty_reads: ClassVar[tuple[str, ...]] = ()
    """Of ``mean``, ``largest``, ``rows``."""
    teacher: Teacher | None = None
    """Whose logits ``penalty`` reads as ``TokenLogits.taught``, with ``rows``; an objective with a teacher has its own."""
    penalty_shift_invariant: bool = False
    """Whether the penalty stays the same if a constant is added to all logits of a token and to ``TokenLogits.shift``."""

    def on_tensors(self, seen: Seen) -> Mapping[str, Tensor] | None:
        """After the backward pass: change the gradients one by one, in place; the norms that later interventions see are measured
        anew. Returns values to log, by the names in ``metrics``. From here on device tensors only: nothing may wait for the
        device."""
        return None

    def on_gradient(self, seen: Seen) -> Action | None:
        """Scale the whole gradient, or skip the step."""
        return None

    update_copies: ClassVar[int] = 0
    """Tensors of the size of all parameters that ``on_update`` makes at once: counted before the run begins."""

    edge_reads: tuple[str, ...] = ()
    """What ``on_update`` may call of ``Update.edge``: of ``losses``, ``logit_changes``."""

    def on_update(self, seen: Seen, update: Update) -> Action | None:
        """After the optimizer's step: scale the change it has made, decay included, of all parameters or of each."""
        return None

    def on_weights(self, seen: Seen, update: Update) -> Mapping[str, Tensor] | None:
        """Last, change the parameters in place, unless ``update.taken`` is false. Returns values to log."""
        return None

    def on_alarms(self, alarms: Sequence[Alarm]) -> Rewind | None:
        """On the host, when rows have arrived: whether to go back because of one of their alarms.

        A pure function of the alarms, called on the main process only and never in a replay.
        """
        return None

    @classmethod
    def declare_metrics(cls) -> None:
        """Make what is logged known by its full names. Raises InputError for a name that is taken or has a slash."""
        if taken := [
            m.name for m in cls.metrics if m.name in ("scale", "skipped", "update_scale", "penalty") or "/" in m.name
        ]:
            raise InputError(
                f"interventions: {cls.kind}: {', '.join(taken)} cannot be the name of a metric of its own; it is logged as "
                f"intervention/{cls.kind}/<name>, beside scale, skipped, update_scale and penalty"
            )
        declare(*(replace(metric, name=f"intervention/{cls.kind}/{metric.name}") for metric in cls.metrics))

    @classmethod
    def has(cls, method: str) -> bool:
        """Whether it overrides a method of the base."""
        return getattr(cls, method) is not getattr(Intervention, method)

    @classmethod
    def decides(cls) -> bool:
        """Whether it can ask for a rewind."""
        return cls.has("on_alarms")

    def state(self) -> dict[str, Tensor]:
        """What later steps depend on; saved in checkpoints, beside ``began``."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""

    @classmethod
    def problems(cls, options: Any, *, signals: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Problems of the options in a run whose detectors watch ``signals``: key and text."""
        return ()


def make_interventions(choices: Sequence[Choice]) -> dict[str, Intervention]:
    """The interventions of a checked configuration, in its order, by name: the kind, numbered from the second of a kind on."""
    made: dict[str, Intervention] = {}
    for choice in choices:
        cls = INTERVENTIONS[choice.kind]
        cls.declare_metrics()
        number = sum(type(other) is cls for other in made.values())
        made[f"{choice.kind}-{number + 1}" if number else choice.kind] = cls(checked_options(cls, choice.options))
    return made
