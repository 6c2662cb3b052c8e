from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stability.detect.catalogue import detect_columns, detect_rows, make_detector
from stability.detect.events import Event
from stability.detect.finished_rows import Column, rows_between

LAYERS = ("attention/layer_00/logit_max", "attention/layer_01/logit_max")


@st.composite
def runs(draw: st.DrawFn) -> tuple[np.ndarray, dict[str, Column]]:
    """A loss that falls or stands still, and logits that are low, high or growing by stretches; some missing, some not finite."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    parts = draw(st.lists(st.sampled_from([0.3, 1.0, 1.4, 2.0, 5.0]), min_size=1, max_size=6))
    count = draw(st.integers(1, 150)) * len(parts)
    steps = np.cumsum(random.integers(1, 4, count))
    level = (
        80
        * np.repeat(parts, count // len(parts))
        * np.exp(draw(st.sampled_from([0.02, 0.5])) * random.normal(size=count))
    )
    loss = 5 + np.repeat(random.choice([0.0, 0.0, 0.3], len(parts)).cumsum(), count // len(parts))
    loss += 0.01 * random.normal(size=count) - draw(st.sampled_from([0.0, 0.01])) * np.arange(count)
    columns = {"loss/nll": loss, "attention/logit_max": level, "attention/entropy": 16 / level}
    columns |= {"logit/max": level - 60, "logit/std": level / 4}
    columns |= {name: level * random.uniform(0.5, 1.5, count) for name in LAYERS}
    every = draw(st.sampled_from([1, 1, 20]))
    found: dict[str, Column] = {}
    for name, values in columns.items():
        there = (np.arange(count) % every == 0) | (not name.startswith("attention"))
        there &= random.random(count) < draw(st.sampled_from([1.0, 0.97]))
        odd = random.random(count) < draw(st.sampled_from([0.0, 0.02]))
        wrong = np.where(odd, random.choice([math.nan, math.inf, -math.inf], count), values)
        found[name] = np.where(there, wrong, math.nan), there
    return steps, found


def both(rule: str, signal: str, steps: np.ndarray, columns: dict[str, Column]) -> tuple[list[Event], list[Event]]:
    """What is found all at once, and row by row."""
    detector = make_detector(rule, signal)
    own = {name: columns[name] for name in (signal, *detector.reads(columns))}
    return detect_columns(detector, steps, own), detect_rows(
        make_detector(rule, signal), rows_between(steps, own, 0, len(steps))
    )


CASES = [("level", "loss/nll"), ("stall", "loss/nll")]
CASES += [("saturated", f"{name}") for name in ("attention/logit_max", "attention/entropy", "logit/max", "logit/std")]


@pytest.mark.parametrize(("rule", "signal"), CASES)
@given(run=runs())
def test_the_events_are_those_of_the_rule_row_by_row(
    rule: str, signal: str, run: tuple[np.ndarray, dict[str, Column]]
) -> None:
    at_once, one_by_one = both(rule, signal, *run)
    assert at_once == one_by_one


def long_run(logits: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, dict[str, Column]]:
    steps = np.arange(1, 4001)
    values = {"loss/nll": 3 + (steps > 2500) * 0.4 + 0.001 * np.sin(steps * 7.0), "attention/logit_max": logits(steps)}
    return steps, {name: (each, np.ones(len(steps), dtype=bool)) for name, each in values.items()}


def test_there_are_events_to_find() -> None:
    """Growth and saturation come and go, and each is found as often as it comes."""
    run = long_run(lambda steps: np.where(steps % 1300 < 300, 600.0, 20.0))
    for (rule, signal), count in zip([*CASES[:2], ("saturated", "attention/logit_max")], (1, 4, 4), strict=True):
        at_once, one_by_one = both(rule, signal, *run)
        assert at_once == one_by_one
        assert len(at_once) == count, rule
