"""A14: the entropy of attention collapses before a run diverges, and sigmaReparam prevents both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from record.finished import Run

from .a1_qk_norm import HEADS
from .a2_silent_stall import uniform_entropy
from .base import Finding, Outcome, Seed, Verdict, finding
from .numbers import NLL, below, over_seeds, validation_nll

COLLAPSED = 0.1
"""Share of uniform attention's entropy below which a layer's has collapsed: a token then attends to about one other."""
DIVERGED = 0.5
"""Nats by which the loss must rise above the lowest it has been; means over SPAN steps."""
SPAN = 20
COMMON = [*HEADS, "train.steps=120", "train.batch_size=8", "train.eval_every=1000", "optimizer.lr=3.0e-2"]
COMMON += ["optimizer.warmup_steps=0", "telemetry.attention_every=5"]
ARMS: Mapping[str, Sequence[str]] = {"plain": [], "sigma_reparam": ["body.sigma_reparam=true"]}


@dataclass(frozen=True)
class Arm:
    """What is read from a run."""

    entropy: float
    """Lowest entropy of a layer's attention, as a share of uniform attention's."""
    collapsed: int | None
    """First step at which a layer's was below COLLAPSED."""
    diverged: int | None
    """First step of the span whose mean loss was DIVERGED above an earlier one's; the last step of a run that ended early."""
    validation: float


@finding
class EntropyCollapse(Finding):
    """A rate of 0.03, constant and without warm-up, with and without sigmaReparam. The body normalises before its sub-layers, as
    all of today; the published failure is most pronounced in those that normalise after them.

    Reproduced if, over the seeds, (1) in every plain run the entropy of some layer's attention falls below 10% of that of uniform
    attention, and later the mean loss of 20 steps is half a nat above the lowest one before; (2) with sigmaReparam neither
    happens in any run; and (3) the validation NLL at the end is lower with it, by the 95% interval of the paired difference. Not
    at this scale if no plain run diverges, whether or not the entropy collapses.
    """

    key = "A14"
    title = "Attention entropy collapses before a run diverges; sigmaReparam prevents it without warm-up"
    source = "arXiv 2303.06296"
    claim = (
        "without warm-up the attention entropy falls towards 0, then the loss rises; with sigmaReparam the run trains"
    )

    def runs(self) -> Mapping[str, Sequence[str]]:
        return {name: [*COMMON, *own] for name, own in ARMS.items()}

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        return judged([{name: arm(seed.runs[name]) for name in ARMS} for seed in seeds])


def arm(run: Run) -> Arm:
    """Read a run."""
    layers = [
        run.series(name) for name in run.metrics if name.startswith("attention/layer_") and name.endswith("/entropy")
    ]
    lowest = [min(values) for values in zip(*layers, strict=True)]
    shares = [value / uniform_entropy(run.config["data"]["sequence_length"]) for value in lowest]
    steps = [int(step) for step in layers[0].index]
    ended = len(run.metrics) < run.config["train"]["steps"]
    rise = first_rise([float(value) for value in run.series(NLL)])
    return Arm(
        entropy=min(shares),
        collapsed=next((step for step, share in zip(steps, shares, strict=True) if share < COLLAPSED), None),
        diverged=int(run.metrics.index[-1]) if rise is None and ended else rise,
        validation=validation_nll(run),
    )


def first_rise(losses: Sequence[float], span: int = SPAN, height: float = DIVERGED) -> int | None:
    """First step, from 1, of the first of the successive spans whose mean is ``height`` above that of an earlier one."""
    means = [sum(losses[i : i + span]) / span for i in range(0, len(losses) - span + 1, span)]
    rises = (i for i in range(1, len(means)) if not means[i] < min(means[:i]) + height)
    return next((i * span + 1 for i in rises), None)


def judged(found: Sequence[Mapping[str, Arm]]) -> Outcome:
    """The outcome, from the arms of each seed."""
    plain, held = [one["plain"] for one in found], [one["sigma_reparam"] for one in found]
    lower = over_seeds([h.validation - p.validation for p, h in zip(plain, held, strict=True)])
    followed = [p.collapsed is not None and p.diverged is not None and p.collapsed < p.diverged for p in plain]
    spared = [h.collapsed is None and h.diverged is None for h in held]
    verdict = Verdict.REPRODUCED if all(followed) and all(spared) and below(lower) else Verdict.NOT_REPRODUCED
    diverged = sum(p.diverged is not None for p in plain)
    if diverged == 0:
        verdict = Verdict.NOT_AT_THIS_SCALE
    told = (
        f"{diverged} of {len(found)} plain runs diverge; attention entropy collapses in "
        f"{sum(p.collapsed is not None for p in plain)} of them and in {sum(h.collapsed is not None for h in held)} with "
        f"sigmaReparam, whose validation NLL is {lower.format('+.2f')} nats against the plain run's."
    )
    table = [
        {"arm": name, "lowest entropy, share of uniform": ", ".join(f"{one[name].entropy:.2f}" for one in found)}
        | {"collapsed at step": ", ".join(_step(one[name].collapsed) for one in found)}
        | {"diverged at step": ", ".join(_step(one[name].diverged) for one in found)}
        | {"validation NLL": over_seeds([one[name].validation for one in found]).format(".3f")}
        for name in ARMS
    ]
    return Outcome(verdict, told, table)


def _step(step: int | None) -> str:
    return "never" if step is None else f"{step}"
