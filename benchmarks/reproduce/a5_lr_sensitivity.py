"""A5: a longer warm-up and a weight decay that does not grow with the rate make the loss less sensitive to the rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .a1_qk_norm import sensitivity
from .base import Finding, Outcome, Seed, Verdict, finding
from .numbers import below, over_seeds, validation_nll

RATES = (3e-3, 1e-2, 3e-2)
COUPLED, INDEPENDENT = 0.1, 1e-4
"""Weight decay that is multiplied by the rate, and decay per step; equal at a rate of 0.001."""
COMMON = ["train.steps=150", "train.batch_size=8", "train.eval_every=1000", "optimizer.schedule={kind: cosine}"]
WARMUP: Mapping[str, int] = {"no_warmup": 0, "warmup": 50, "independent_decay": 50}


@finding
class LrSensitivity(Finding):
    """Three rates, with a warm-up of 0 or 50 of 150 steps. With 50 also independent weight decay: 1e-4 times the schedule's
    factor at every rate, which is a weight_decay of 1e-4 / lr here, where the usual decay is multiplied by the rate.

    Reproduced if, over the seeds, the learning-rate sensitivity is lower (1) with the warm-up than without, and (2) with
    independent decay than with the usual one; each by the 95% interval of the paired difference. Not reproduced if one of them is
    higher or not shown to be lower.
    """

    key = "A5"
    title = "Longer warm-up and independent weight decay make training less sensitive to the rate"
    source = "arXiv 2309.14322"
    claim = "learning-rate sensitivity falls with a longer warm-up, and with a decay that is not multiplied by the rate"

    def runs(self) -> Mapping[str, Sequence[str]]:
        return {f"{arm}_{rate:g}": overrides(arm, rate) for arm in WARMUP for rate in RATES}

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        return judged(
            {
                arm: [[validation_nll(seed.runs[f"{arm}_{rate:g}"]) for rate in RATES] for seed in seeds]
                for arm in WARMUP
            }
        )


def overrides(arm: str, rate: float) -> list[str]:
    """The settings of an arm at a rate."""
    decay = INDEPENDENT / rate if arm == "independent_decay" else COUPLED
    own = [f"optimizer.warmup_steps={WARMUP[arm]}", f"optimizer.weight_decay={decay!r}", f"optimizer.lr={rate}"]
    return [*COMMON, *own]


def judged(losses: Mapping[str, Sequence[Sequence[float]]]) -> Outcome:
    """The outcome from the losses of each arm, seed and rate."""
    spread = {arm: [sensitivity(seed) for seed in values] for arm, values in losses.items()}
    by_warmup = over_seeds([b - a for a, b in zip(spread["no_warmup"], spread["warmup"], strict=True)])
    by_decay = over_seeds([b - a for a, b in zip(spread["warmup"], spread["independent_decay"], strict=True)])
    verdict = Verdict.REPRODUCED if below(by_warmup) and below(by_decay) else Verdict.NOT_REPRODUCED
    told = (
        f"Learning-rate sensitivity changes by {by_warmup.format('+.3f')} nats with 50 steps of warm-up and by "
        f"{by_decay.format('+.3f')} with independent decay."
    )
    table = [
        {"arm": arm, "sensitivity": over_seeds(spread[arm]).format(".3f")}
        | {f"NLL at {rate:g}": over_seeds([seed[i] for seed in values]).format(".3f") for i, rate in enumerate(RATES)}
        for arm, values in losses.items()
    ]
    return Outcome(verdict, told, table)
