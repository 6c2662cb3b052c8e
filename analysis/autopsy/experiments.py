"""What is changed, one thing at a time, when the steps of a spike are taken again.

An experiment starts from the state before the spike. Its changes are overrides of the run's configuration, and what no key of a
configuration says: a rate held at what it was, moments forgotten before each step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch.optim import Optimizer

from common.seeds import stream_seed
from configs.schema import RunConfig
from stability.intervene.base import Action, Intervention, Seen, Update
from stability.measure.norms import total_norm

DATA, STATE, RATE = "data", "optimizer state", "rate too high"
ATTENTION, OUTPUT = "attention logits", "output logits"
AS_BEFORE = "the rate as before"
LOWER_BETA2, HIGHER_BETA2 = "lower beta2", "higher beta2"
WITHOUT, OTHERS = "without its batches", "with still other batches"
IN_FP32 = "in fp32"
HELD = "weights held still"
"""A spike that comes all the same is in the batches; one that does not is made by the updates."""
CONTROL = "weights moved at random"
"""An innocent change: where it removes the spike, so may any other, and what they remove says little."""
NUMERICS, HARDWARE, UNDECIDED = "numerics", "hardware", "not decided"


JUMP = 2.0
"""A rate of less than so many times that of the step before is no jump: during a warm-up it always rises."""


@dataclass(frozen=True)
class Window:
    """The steps that are taken again: from ``first``, some steps before the spike's ``start``, to ``last``, when it is over."""

    first: int
    start: int
    peak: int
    last: int
    batches: tuple[int, int]
    """The batches of ``first`` to the end of the spike."""
    rates: Mapping[int, float]
    """The logged rate of each step."""
    rate_before: float
    """That of the last step before them."""
    usual_update: float | None
    """The median norm of their updates; None if it was not logged."""


@dataclass(frozen=True)
class Experiment:
    """One change."""

    name: str
    cause: str
    """What it speaks for if it removes the spike; empty if for nothing in particular."""
    overrides: Sequence[str] = ()
    """Of the configuration."""
    rate_factors: Mapping[int, float] = field(default_factory=dict)
    """By step, on the logged rate; 1 where it is not given."""
    forget_until: int = 0
    """Both moments are set to zero before each step up to this one."""
    longest_update: float | None = None
    """Limit of the norm of each update."""
    nudge: float = 0.0
    """Length of a random move of all weights before the first step."""


class Conditions(Intervention):
    """What an experiment changes besides the configuration."""

    def __init__(self, experiment: Experiment) -> None:
        super().__init__(None)
        self.experiment = experiment
        self.optimizer: Optimizer | None = None
        self.nudged = False

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[Any]:
        self.optimizer = optimizer
        return ()

    def begin(self, step: int) -> None:
        assert self.optimizer is not None
        if step <= self.experiment.forget_until:
            forget_moments(self.optimizer)
        if self.experiment.nudge and not self.nudged:
            move_at_random(self.optimizer, self.experiment.nudge)
            self.nudged = True

    def rate(self, step: int) -> float:
        return self.experiment.rate_factors.get(step, 1.0)

    def on_update(self, seen: Seen, update: Update) -> Action | None:
        limit = self.experiment.longest_update
        return None if limit is None else Action(scale=(limit / total_norm(update.norm_P)).clamp(max=1.0))


def forget_moments(optimizer: Optimizer) -> None:
    """Set Adam's moments to zero; its step count stays, so that the next steps are small."""
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            if isinstance(state.get(name), torch.Tensor):
                state[name].zero_()


@torch.no_grad()
def move_at_random(optimizer: Optimizer, length: float) -> None:
    """Add a random direction of this length to all parameters together."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    generator = torch.Generator().manual_seed(stream_seed(0, "autopsy's control"))
    moves = [torch.randn(p.shape, generator=generator).to(p) for p in parameters]
    scale = length / float(total_norm(torch.stack([torch.linalg.vector_norm(move) for move in moves])))
    for parameter, move in zip(parameters, moves, strict=True):
        parameter.add_(move, alpha=scale)


def experiments(config: RunConfig, window: Window) -> list[Experiment]:
    """The experiments that make sense for a run of this configuration."""
    o = config.optimizer.options
    first, last = window.batches
    skipped = config.data.skip_steps
    tried = [
        Experiment(name, DATA, [f"data.skip_steps={[*skipped, [first, last + further]]}"])
        for name, further in ((WITHOUT, 0), (OTHERS, last - first + 1))
    ]
    tried += [
        Experiment(HELD, "", rate_factors=dict.fromkeys(window.rates, 0.0)),
        Experiment("half the rate", RATE, rate_factors=dict.fromkeys(window.rates, 0.5)),
    ]
    rates = [window.rate_before, *window.rates.values()]
    if any(rate >= JUMP * before > 0 for before, rate in pairwise(rates)):
        held = {step: min(1.0, window.rate_before / rate) for step, rate in window.rates.items() if rate > 0}
        tried.append(Experiment(AS_BEFORE, RATE, rate_factors=held))
    if {"beta1", "beta2"} <= o.keys():
        tried.append(Experiment("moments forgotten", STATE, forget_until=window.start))
        beta2 = float(o["beta2"])
        # A higher one divides v, which stays, by less of a correction: it makes steps shorter, as a lower rate does.
        changed = {LOWER_BETA2: (STATE, 1 - 4 * (1 - beta2)), HIGHER_BETA2: ("", 1 - (1 - beta2) / 4)}
        tried += [
            Experiment(name, cause, [f"optimizer.beta2={b:.6g}"]) for name, (cause, b) in changed.items() if 0 < b < 1
        ]
    added = {
        "QK-clip": (ATTENTION, {"kind": "qk_clip", "threshold": 50.0, "every": 1}),
        "z-loss": (OUTPUT, {"kind": "z_loss", "weight": 1e-2, "gauge": "relative"}),
    }
    for name, (cause, choice) in added.items():
        others = [{"kind": i.kind, **i.options} for i in config.interventions if i.kind != choice["kind"]]
        tried.append(Experiment(name, cause, [f"interventions={[*others, choice]}"]))
    if window.usual_update is not None:
        tried.append(Experiment("updates as long as before", "", longest_update=window.usual_update))
        tried.append(Experiment(CONTROL, "", nudge=window.usual_update))
    if config.train.precision != "fp32":
        tried.append(Experiment(IN_FP32, NUMERICS))
    return tried
