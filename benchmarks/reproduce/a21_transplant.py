"""A21: QK-norm put into a stalled run costs its loss once, and then the run overtakes the one that goes on without it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from record.finished import load_run

from .a1_qk_norm import HEADS
from .base import Finding, Outcome, Seed, Verdict, finding
from .numbers import AMONG_LAST, NLL, above, below, over_seeds, validation_nll
from .train import RECIPE, train_runs

BRANCH, LAST, REWARM = 100, 200, 50
"""Step of the operation, last step, and steps over which the rate is warmed up again after it."""
STALLED = [*HEADS, "optimizer.lr=1.0e-1", "train.eval_every=1000"]
ARMS = ("untouched", "rewarmed", "transplanted")


def train_arms(seed: int, own: Sequence[str], out: Path, branch: int = BRANCH, last: int = LAST) -> dict[str, Any]:
    """Train the run and its three branches in ``out``; returns each branch's loss by step and its validation NLL at the end."""
    from .transplant import overrides, transplant  # torch and transformers take seconds to import

    common = [*own, f"seed={seed}", f"train.steps={last}"]
    train_runs({"parent": [*common, f"train.steps={branch}"]}, RECIPE, out)
    parent = out / "parent"
    other = transplant(parent, branch, out / "operated")
    rewarm = f"interventions={json.dumps([{'kind': 'rewarm', 'at': [branch + 1], 'steps': REWARM}])}"
    arms = {
        "untouched": [f"branch_from={json.dumps(f'{parent}@{branch}')}"],
        "rewarmed": [f"branch_from={json.dumps(f'{parent}@{branch}')}", rewarm],
        "transplanted": [f"branch_from={json.dumps(f'{other}@{branch}')}", rewarm, *overrides(_config(parent))],
    }
    train_runs({name: [*common, *arm] for name, arm in arms.items()}, RECIPE, out)
    runs = {name: load_run(out / name) for name in arms}
    losses = {name: [float(value) for value in run.series(NLL)] for name, run in runs.items()}
    return {"losses": losses, "validation": {name: validation_nll(run) for name, run in runs.items()}}


def _config(run: Path) -> Any:
    from configs.load import load_config

    return load_config(run / "config.yaml", recorded=True)


@finding
class Transplant(Finding):
    """A run without QK-norm at rate 0.1, constant, to step 100. From there to step 200: as it is; with the rate warmed up again
    over 50 steps; and with QK-norm, all other weights and the moments as they were, and the rate warmed up again.

    Reproduced if, over the seeds, (1) the loss of the first batch after the operation is higher with QK-norm than without it, and
    (2) the validation NLL at the end is lower with QK-norm than in the untouched run and than in the one that was only warmed up
    again; each by the 95% interval of the paired difference. Not at this scale if the loss at the end of the untouched run is
    lower than that of the first 20 steps after the operation by half a nat: then it had not stalled.
    """

    key = "A21"
    title = "QK-norm put into a stalled run in mid-training costs the loss once, and then cures it"
    source = "marin-community/marin, docs/reports/marin-32b-retro.md"
    claim = "the loss steps up once when QK-norm is put in, then falls below that of the untouched branch"

    def measure(self, seed: int, overrides: Sequence[str]) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return train_arms(seed, [*STALLED, *overrides], Path(folder))

    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        return judged([seed.measured for seed in seeds])


def judged(found: Sequence[Any]) -> Outcome:
    """The outcome from what :func:`train_arms` returned for each seed."""
    step = over_seeds([one["losses"]["transplanted"][0] - one["losses"]["untouched"][0] for one in found])
    gains = {
        arm: over_seeds([one["validation"]["transplanted"] - one["validation"][arm] for one in found])
        for arm in ARMS[:2]
    }
    fell = over_seeds([_mean(one["losses"]["untouched"][:AMONG_LAST]) - _last(one, "untouched") for one in found])
    cured = all(below(gain) for gain in gains.values())
    verdict = Verdict.REPRODUCED if above(step) and cured else Verdict.NOT_REPRODUCED
    if fell.mean >= 0.5:
        verdict = Verdict.NOT_AT_THIS_SCALE
    told = (
        f"With QK-norm the loss of the first batch changes by {step.format('+.2f')} nats; at the end the validation NLL is "
        f"{gains['untouched'].format('+.2f')} against the untouched run and {gains['rewarmed'].format('+.2f')} against the one "
        f"that was only warmed up again."
    )
    table = [
        {"arm": arm, "loss of the first batch": over_seeds([one["losses"][arm][0] for one in found]).format(".3f")}
        | {f"loss of the last {AMONG_LAST} steps": over_seeds([_last(one, arm) for one in found]).format(".3f")}
        | {"validation NLL": over_seeds([one["validation"][arm] for one in found]).format(".3f")}
        for arm in ARMS
    ]
    return Outcome(verdict, told, table)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _last(one: Any, arm: str) -> float:
    return _mean(one["losses"][arm][-AMONG_LAST:])
