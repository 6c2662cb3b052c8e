"""Interventions: what a run does about instability, on the device within a step and on the host between steps.

A new intervention is a class in one file, here or in a plug-in, registered with :data:`INTERVENTIONS`. Its ``state`` is restored
when a run resumes, rewinds or is replayed. Shapes: P parameters (tensors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from common.errors import InputError
from common.registry import Registry, checked_options
from common.section import Choice
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
    """grad_norm/total, before any intervention."""
    gradient_norm_P: Tensor
    """The same of each parameter."""
    parameter_norm_P: Tensor
    parameters: Sequence[Tensor]


@dataclass(frozen=True)
class Action:
    """What is done to the update of a step. Scales of several interventions multiply; one that skips is enough."""

    scale: Tensor | None = None
    """() by which the gradient is multiplied."""
    skip: Tensor | None = None
    """() boolean: parameters and optimizer state stay as they are."""
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

    def on_gradient(self, seen: Seen) -> Action | None:
        """After the backward pass, before the update. Device tensors only: nothing here may wait for the device."""
        return None

    def on_update(self, seen: Seen) -> None:
        """After the optimizer has changed the parameters."""

    def on_alarms(self, alarms: Sequence[Alarm]) -> Rewind | None:
        """On the host, when rows have arrived: whether to go back because of one of their alarms.

        A pure function of the alarms, called on the main process only and never in a replay.
        """
        return None

    @classmethod
    def declare_metrics(cls) -> None:
        """Make what is logged known by its full names. Raises InputError for a name that is taken or has a slash."""
        if taken := [m.name for m in cls.metrics if m.name in ("scale", "skipped") or "/" in m.name]:
            raise InputError(
                f"interventions: {cls.kind}: {', '.join(taken)} cannot be the name of a metric of its own; it is logged as "
                f"intervention/{cls.kind}/<name>, beside scale and skipped"
            )
        declare(*(replace(metric, name=f"intervention/{cls.kind}/{metric.name}") for metric in cls.metrics))

    @classmethod
    def decides(cls) -> bool:
        """Whether it can ask for a rewind."""
        return cls.on_alarms is not Intervention.on_alarms

    def state(self) -> dict[str, Tensor]:
        """What later steps depend on; saved in checkpoints."""
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


def act(
    interventions: Mapping[str, Intervention], seen: Seen
) -> tuple[Tensor | None, Tensor | None, dict[str, Tensor]]:
    """The product of all scales, whether any skips (each None if no intervention says), and what is logged. Does not wait."""
    scale: Tensor | None = None
    skip: Tensor | None = None
    logged: dict[str, Tensor] = {}
    for name, intervention in interventions.items():
        action = intervention.on_gradient(seen)
        if action is None:
            continue
        if unknown := action.said.keys() - {metric.name for metric in intervention.metrics}:
            raise InputError(
                f"interventions: {name} says {', '.join(sorted(unknown))}, which its metrics do not declare"
            )
        logged |= {f"intervention/{name}/{key}": value for key, value in action.said.items()}
        if action.scale is not None:
            logged[f"intervention/{name}/scale"] = action.scale
            scale = action.scale if scale is None else scale * action.scale
        if action.skip is not None:
            logged[f"intervention/{name}/skipped"] = action.skip.float()
            skip = action.skip if skip is None else skip | action.skip
    return scale, skip, logged


def scale_gradients(parameters: Sequence[Tensor], scale: Tensor) -> None:
    """Multiply all gradients in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients:
        torch._foreach_mul_(gradients, scale)
