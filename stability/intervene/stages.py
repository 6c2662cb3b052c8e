"""The stages at which the interventions of a run act within a step, in their order. Nothing here waits for the device.

Shapes: P parameters (tensors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from common.errors import InputError
from model.objectives import Penalty
from stability.measure.norms import tensor_norms, total_norm

from .base import Action, Intervention, Seen, Update, UpdateEdge

Interventions = Mapping[str, Intervention]


@dataclass
class Decisions:
    """What the interventions have decided about a step, and what they say."""

    skip: Tensor | None = None
    """() boolean; None if no intervention ever skips."""
    scale: Tensor | None = None
    """() by which the whole gradient was multiplied; None if it was not."""
    logged: dict[str, Tensor] = field(default_factory=dict)

    def log(self, name: str, intervention: Intervention, said: Mapping[str, Tensor]) -> None:
        """Keep what an intervention says, under its full names."""
        if unknown := said.keys() - {metric.name for metric in intervention.metrics}:
            raise InputError(
                f"interventions: {name} says {', '.join(sorted(unknown))}, which its metrics do not declare"
            )
        self.logged |= {f"intervention/{name}/{key}": value for key, value in said.items()}


def penalties(interventions: Interventions) -> list[Penalty]:
    """What the interventions add to the objective."""
    return [
        Penalty(
            f"intervention/{name}/penalty",
            i.penalty,
            uses_mean="mean" in i.penalty_reads,
            uses_largest="largest" in i.penalty_reads,
            uses_rows="rows" in i.penalty_reads,
            shift_invariant=i.penalty_shift_invariant,
            teacher=i.teacher,
        )
        for name, i in interventions.items()
        if i.has("penalty")
    ]


def on_gradient(interventions: Interventions, seen: Seen) -> tuple[Seen, Decisions]:
    """Change the gradients: first one by one, then as a whole by the smallest scale. Returns what was seen before the whole was
    scaled, and the decisions."""
    decisions = Decisions()
    for name, intervention in interventions.items():
        if intervention.has("on_tensors"):
            decisions.log(name, intervention, intervention.on_tensors(seen) or {})
            gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in seen.parameters]
            norm_P = tensor_norms(gradients)
            seen = replace(seen, gradient_norm_P=norm_P, gradient_norm=total_norm(norm_P))
    for name, intervention in interventions.items():
        action = intervention.on_gradient(seen)
        if action is None:
            continue
        decisions.log(name, intervention, action.said)
        if action.scale is not None:
            decisions.logged[f"intervention/{name}/scale"] = action.scale
            others = decisions.scale
            decisions.scale = action.scale if others is None else torch.minimum(others, action.scale)
        if action.skip is not None:
            decisions.logged[f"intervention/{name}/skipped"] = action.skip.float()
            decisions.skip = action.skip if decisions.skip is None else decisions.skip | action.skip
    gradients = [p.grad for p in seen.parameters if p.grad is not None]
    if decisions.scale is not None and gradients:
        torch._foreach_mul_(gradients, decisions.scale)
    return seen, decisions


def changes_updates(interventions: Interventions) -> bool:
    """Whether any intervention acts after the optimizer, so that the parameters before its step must be kept."""
    return any(i.has("on_update") or i.has("on_weights") for i in interventions.values())


def edge_reads(interventions: Interventions) -> set[str]:
    """What interventions want measured around every update."""
    return {what for i in interventions.values() for what in i.edge_reads}


@torch.no_grad()
def on_update(
    interventions: Interventions,
    seen: Seen,
    before: Sequence[Tensor],
    taken: Tensor,
    decisions: Decisions,
    edge: UpdateEdge | None = None,
) -> None:
    """Scale the update that the optimizer has made, then change the weights."""
    if not changes_updates(interventions):
        return
    norm_P = tensor_norms(torch._foreach_sub(list(seen.parameters), list(before)))
    update = Update(taken, norm_P, before, edge)
    for name, intervention in interventions.items():
        action = intervention.on_update(seen, update) if intervention.has("on_update") else None
        if action is None:
            continue
        decisions.log(name, intervention, action.said)
        if action.scale is not None:
            update = _scaled(seen, update, action)
            logged = action.scale if action.scale.dim() == 0 else action.scale.mean()
            decisions.logged[f"intervention/{name}/update_scale"] = logged
    for name, intervention in interventions.items():
        if intervention.has("on_weights"):
            decisions.log(name, intervention, intervention.on_weights(seen, update) or {})


def _scaled(seen: Seen, update: Update, action: Action) -> Update:
    """Shrink or stretch the update; where the scale is exactly 1, not a bit changes."""
    assert action.scale is not None
    scale_P = action.scale.expand(len(seen.parameters))
    for parameter, before, scale in zip(seen.parameters, update.before, scale_P.unbind(), strict=True):
        parameter.copy_(torch.where(scale == 1, parameter, before + scale * (parameter - before)))
    return replace(update, norm_P=update.norm_P * scale_P)
