"""A24: early in training the gradient of the embedding dominates, and shrinking it helps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from record.finished import Run

from .base import Finding, Outcome, Seed, Verdict, finding
from .numbers import NLL, over_seeds, spikes_of, validation_nll
from .numbers import above as surely_above
from .numbers import below as surely_below

EARLY, LATE = 20, 20
"""First and last steps whose median share is compared."""
NORM = "grad_norm/total"
COMMON = ["train.steps=120", "train.batch_size=8", "train.eval_every=1000", "optimizer.lr=1.0e-2"]
SHRINK = 'interventions=[{"kind": "shrink_embedding_gradient", "factor": 0.1}]'
ARMS: Mapping[str, Sequence[str]] = {
    "untied": ["head.tied=false"],
    "untied_shrunk": ["head.tied=false", SHRINK],
    "tied": [],
    "tied_shrunk": [SHRINK],
}


@dataclass(frozen=True)
class Arm:
    """What is read from a run."""

    early: float
    """The embedding's share of the squared gradient norm, median of the first steps."""
    late: float
    """The same of the last steps."""
    spikes: int
    """Spike events in loss and gradient norm after the warm-up."""
    validation: float


@finding
class EmbeddingGradient(Finding):
    """A rate of 0.01, warmed up over 20 steps; the head untied from the embedding, and tied to it; with and without a factor of
    0.1 on the gradient that reaches the looked-up embedding.

    Reproduced if, over the seeds, (1) in the untied run without the factor the embedding has more than half of the squared
    gradient norm in the first 20 steps, and less in the last 20, and (2) the factor makes spike events fewer or the validation
    NLL at the end lower, untied; each by the 95% interval. Not at this scale if (1) fails, or if no untied run without the factor
    has a spike event and the NLL does not fall: there is then nothing to be helped.

    Tied, the norm is that of the shared matrix, lookup and head together, so it is told and not judged; the factor then shrinks
    the lookup's part alone.
    """

    key = "A24"
    title = "The gradient of the embedding dominates early, and shrinking it to a tenth helps"
    source = "THUDM/GLM-130B, logs/main-log-en.md; arXiv 2210.02414"
    claim = "the embedding has most of the gradient early on; with a factor of 0.1 on it there are fewer spikes"

    def runs(self) -> Mapping[str, Sequence[str]]:
        return {name: [*COMMON, *own] for name, own in ARMS.items()}

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        return judged([{name: arm(seed.runs[name]) for name in ARMS} for seed in seeds])


def arm(run: Run) -> Arm:
    """Read a run."""
    total, own = run.series(NORM), run.series("grad_norm/embedding")
    share = (own / total).to_numpy() ** 2
    first = run.config["optimizer"]["warmup_steps"] + 1
    return Arm(
        early=float(np.median(share[:EARLY])),
        late=float(np.median(share[-LATE:])),
        spikes=sum(len(spikes_of(run, signal, first)) for signal in (NLL, NORM)),
        validation=validation_nll(run),
    )


def judged(found: Sequence[Mapping[str, Arm]]) -> Outcome:
    """The outcome, from the arms of each seed."""
    plain, shrunk = [one["untied"] for one in found], [one["untied_shrunk"] for one in found]
    pairs = list(zip(plain, shrunk, strict=True))
    over_half = over_seeds([one.early - 0.5 for one in plain])
    falling = over_seeds([one.early - one.late for one in plain])
    fewer = over_seeds([float(s.spikes - p.spikes) for p, s in pairs])
    lower = over_seeds([s.validation - p.validation for p, s in pairs])
    dominates = surely_above(over_half) and surely_above(falling)
    helped, spikes = surely_below(fewer) or surely_below(lower), sum(one.spikes for one in plain)
    verdict = Verdict.REPRODUCED if dominates and helped else Verdict.NOT_REPRODUCED
    if not dominates or (spikes == 0 and not helped):
        verdict = Verdict.NOT_AT_THIS_SCALE
    told = (
        f"Untied, the embedding has {_mean(plain, 'early'):.0%} of the squared gradient norm in the first {EARLY} steps and "
        f"{_mean(plain, 'late'):.0%} in the last {LATE}. {spikes} spike events in {len(found)} runs, "
        f"{sum(one.spikes for one in shrunk)} with the factor 0.1; validation NLL {lower.format('+.3f')} nats."
    )
    table = [
        {"arm": name, "embedding's share, early": f"{_mean([one[name] for one in found], 'early'):.2f}"}
        | {"late": f"{_mean([one[name] for one in found], 'late'):.2f}"}
        | {"spike events, by seed": ", ".join(f"{one[name].spikes}" for one in found)}
        | {"validation NLL": over_seeds([one[name].validation for one in found]).format(".3f")}
        for name in ARMS
    ]
    return Outcome(verdict, told, table)


def _mean(arms: Sequence[Arm], what: str) -> float:
    return float(np.mean([getattr(one, what) for one in arms]))
