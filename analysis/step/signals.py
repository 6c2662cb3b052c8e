"""The signals of a step by name, and the safe multiple that each predicts.

What a run logs itself has the name that it has there (docs/metrics.md); of a metric with a value per group of parameters the
largest is taken, as adam_rms/max and update_ratio/max.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Signals = dict[str, float | None]

LOGGED = (
    *("edge/kappa", "edge/logit_change_p50", "edge/logit_change_p99", "edge/logit_change_max"),
    *("adam/sign_like", "adam/root_v_max", "adam/momentum_cosine", "grad_norm/total"),
)
GROUPS = ("adam_rms/", "update_ratio/")
ALONG_STEP, ALONG_GRADIENT = "curvature/along_step", "curvature/along_gradient"
SHARPNESS, SHARPNESS_OF_NLL = "curvature/sharpness", "curvature/sharpness_of_nll"
GRADIENT_CHANGE = "gradient/change"
GRADIENT_TURN, UPDATE_TURN = "gradient/cosine_with_last", "update/cosine_with_last"
FALLING = ("edge/kappa", "adam/momentum_cosine", GRADIENT_TURN, UPDATE_TURN)
"""Signals of which the smaller value is nearer to the edge; of every other it is the larger."""
PREDICT = (
    *("edge/kappa", ALONG_STEP, ALONG_GRADIENT, SHARPNESS, SHARPNESS_OF_NLL),
    *("edge/logit_change_p50", "edge/logit_change_p99", "edge/logit_change_max"),
)
"""Signals that say where the edge is: at 1 after as many steps as their value, or 1 - kappa, goes into 1."""


def logged_signals(row: Mapping[str, Any]) -> Signals:
    """The signals in a step's row; None for what the run did not measure or is not finite."""
    found = {name: row[name] for name in LOGGED if name in row}
    for group in GROUPS:
        values = [value for name, value in row.items() if name.startswith(group)]
        if values:
            found[f"{group}max"] = max(values)
    return finite(found)


def finite(signals: Mapping[str, float | None]) -> Signals:
    """The signals with None for what is not finite."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in signals.items()}


def nearness(name: str, value: float) -> float:
    """A signal's value, turned such that larger is nearer to the edge."""
    return -value if name in FALLING else value


def predictions(signals: Mapping[str, float | None]) -> Signals:
    """The safe multiple that each signal of PREDICT predicts: infinite where it sees no curvature at all, None if it says
    nothing."""
    found: Signals = {}
    for name in PREDICT:
        if name in signals:
            value = signals[name]
            bend = value if value is None or name != "edge/kappa" else 1 - value
            found[name] = None if bend is None else (1 / bend if bend > 0 else math.inf)
    return found
