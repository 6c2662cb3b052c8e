"""What a stress did to a run, held against the calm run of the same arm, rate and seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.show.stresses import ACTING
from record.finished import Run

from .curve import capped, moving_median, noise
from .measure import Measure, Measured

WITHIN = 2.0
"""Noise of the calm run's single value within which the stressed run is back at it."""
NOISE_OF = 64
"""Steps of the calm run before the stress from which its noise is known; all of it, if there are fewer before the stress."""

DAMAGES = (
    Measure("damage_nll", "final NLL - calm", "+.4f", "nats/token", "lower", "final NLL minus that of the calm run"),
    Measure("damage_excess", "nat-steps lost", "+.3g", "nat-steps", "lower",
            "sum of the training NLL minus the calm run's, from the stress on"),
    Measure("damage_height", "height", "+.3g", "nats/token", "lower", "highest smoothed difference from the calm run"),
    Measure("back", "back", "d", "", "higher", "1 if the run was back at the calm run's NLL, for good, before its end"),
    Measure("back_steps", "steps until back", "d", "steps", "lower", "steps from the stress until then; or until the end"),
)  # fmt: skip


def onset(run: Run) -> int:
    """The first step at which a stress acted; the run's first step if none did."""
    acting = run.series(ACTING)
    acted = acting.index[acting > 0]
    return int(acted[0] if len(acted) else run.metrics.index[0])


def damage(run: Run, measured: Measured, calm: Measured) -> Mapping[str, Any]:
    """The values of DAMAGES.

    A run is back at the first step from which the moving median of the differences stays within WITHIN noise of the calm run to
    the end. A run that diverged is not back, and its missing steps count as the initial loss; where the calm run had diverged
    before the stress, there is nothing that they could be held against. ``run`` is the measured one or, of a branch that did not
    begin, one that says when the stress acts.
    """
    finals = measured.values["final_nll"], calm.values["final_nll"]
    found: dict[str, Any] = {"damage_nll": None if None in finals else finals[0] - finals[1]}
    initial, first, diverged = measured.values["initial_nll"], onset(run), bool(measured.values["diverged"])
    if initial is None or calm.values["initial_nll"] is None or not (len(measured.steps) or diverged):
        return found
    steps, nll = capped(measured.steps, measured.nll, int(calm.steps[-1]), initial)
    calm_nll = capped(calm.steps, calm.nll, int(calm.steps[-1]), calm.values["initial_nll"])[1]
    common, own, other = np.intersect1d(steps, calm.steps, return_indices=True)
    after = common >= first
    if not after.any():
        last = int(run.setting("train", "steps") or first)
        return found | ({"back": 0, "back_steps": last - first + 1} if diverged else {})
    difference = nll[own][after] - calm_nll[other][after]
    smooth = moving_median(difference)
    before = calm_nll[calm.steps < first][-NOISE_OF:]
    sigma = noise(before if len(before) == NOISE_OF else calm_nll)
    out = np.flatnonzero(smooth > WITHIN * sigma)
    back = int(out[-1]) + 1 if len(out) else 0
    seen = back < len(difference) and not diverged
    return found | {
        "damage_excess": float(difference.sum()),
        "damage_height": float(smooth.max()),
        "back": int(seen),
        "back_steps": back if seen else len(difference),
    }
