from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.results import markdown_tables
from benchmarks.stresses.__main__ import run_part
from benchmarks.stresses.arms import REMEDIES, Plan, directory
from benchmarks.stresses.measure import Found, damage, found
from tests.conftest import rows_of

CALM = np.linspace(5.0, 4.8, 40)


def spike(*, height: float, rise: int = 4, fall: int = 10) -> np.ndarray:
    """CALM with a spike from the first step on that is ``rise`` steps high and then falls in a line for ``fall`` steps."""
    above = np.zeros(len(CALM))
    above[:rise] = height
    above[rise : rise + fall] = np.linspace(height, 0, fall + 1)[1:]
    return CALM + above


def test_a_spike_has_its_height_its_length_and_its_area() -> None:
    did = damage(spike(height=2.0), CALM, acting=4, sigma=0.1)
    assert did.height == pytest.approx(2.0)
    assert did.height_after == pytest.approx(1.8)
    assert did.back == 4 + 9  # two noises are 0.2 nats, which the line has come down to at its ninth step
    assert did.excess == pytest.approx(4 * 2.0 + 9.0)
    assert did.excess_after == pytest.approx(9.0)


def test_what_only_the_stressed_text_has_is_not_after_it() -> None:
    nll = CALM.copy()
    nll[:4] += 3.0
    did = damage(nll, CALM, acting=4, sigma=0.1)
    assert (did.height, did.height_after) == (pytest.approx(3.0), pytest.approx(0.0))
    assert did.back == 4


def test_the_calm_curve_itself_is_always_back() -> None:
    did = damage(CALM, CALM, acting=1, sigma=0.1)
    assert (did.height, did.height_after, did.back, did.excess) == (0, 0, 0, 0)


def test_what_comes_up_again_is_not_back_and_what_stays_up_never() -> None:
    again = spike(height=2.0)
    again[30:36] += 1.0
    assert damage(again, CALM, acting=4, sigma=0.1).back == 36
    assert damage(CALM + 0.5, CALM, acting=4, sigma=0.1).back is None


def test_a_run_that_ended_is_never_back_and_what_is_not_finite_is_infinitely_high() -> None:
    did = damage(np.array([5.1, math.nan]), CALM, acting=1, sigma=0.1)
    assert (did.height, did.height_after, did.back, did.ended) == (math.inf, math.inf, None, True)
    assert math.isnan(damage(CALM[:1], CALM, acting=1, sigma=0.1).height_after)


def event(kind: str, signal: str, start: int, opened: int, end: int) -> dict[str, Any]:
    return {"event": kind, "signal": signal, "start_step": start, "opened_step": opened, "end_step": end}


def test_the_first_event_of_each_signal_that_opens_in_a_stress_or_soon_after_has_found_it() -> None:
    events = [
        event("spike", "loss/nll", 90, 92, 120),  # was open before
        event("spike_opened", "grad_norm/total", 100, 101, 101),
        event("spike", "grad_norm/total", 100, 101, 106),
        event("rise", "loss/nll", 99, 110, 110),
        event("spike", "grad_norm/total", 130, 131, 131),  # too late
        {"event": "stress_began", "step": 100},
    ]
    assert found(events, [], fault=100, last=103) == [
        Found("grad_norm/total", "spike", 1),
        Found("loss/nll", "rise", 10),
    ]


def test_what_the_calm_run_has_too_is_no_finding_and_the_end_of_a_run_is_one() -> None:
    shared = event("spike", "loss/nll", 101, 102, 103)
    end = {"event": "non_finite", "step": 100, "signals": ["grad_norm/total"]}
    assert found([shared, end], [shared], fault=100, last=100) == [Found("grad_norm/total", "non_finite", 0)]


def test_a_stall_is_found_where_it_ends() -> None:
    stall = {"event": "stall", "signal": "loss/nll", "start_step": 30, "end_step": 129}
    assert found([stall], [], fault=100, last=100) == [Found("loss/nll", "stall", 29)]
    assert found([stall], [], fault=130, last=130) == []


def test_a_rewind_tells_of_the_spike_that_it_took_back() -> None:
    cause = {"signal": "loss/nll", "start_step": 100, "end_step": 103, "sigmas": 12.0}
    rewind = {"event": "rewind", "from_step": 120, "to_step": 90, "cause": cause}
    assert found([rewind], [], fault=100, last=103) == [Found("loss/nll", "rewind", 0)]


def test_arms_have_directories_of_their_own(tmp_path: Path) -> None:
    plan = Plan(tmp_path)
    assert set(plan.treated) <= plan.stresses.keys()
    arms = [(remedy, stress) for remedy in (None, *plan.remedies) for stress in (None, *plan.stresses)]
    assert len({directory(plan, *arm) for arm in arms}) == len(arms)


def test_a_tiny_run_gives_both_tables_and_is_not_repeated(workspace: Path, tmp_path: Path) -> None:
    plan = Plan(
        tmp_path,
        recipe=workspace / "tiny.yaml",
        overrides=[],
        treated_from=6,
        branch=12,
        fault=14,
        last=17,
        stresses={"embedding x30": {"kind": "scale_weights", "parameters": "embedding", "factor": 30.0}},
        remedies={"agc": REMEDIES["agc"]},
        treated=["embedding x30"],
    )
    report = markdown_tables(run_part(plan, "stresses"))
    stresses = report["stress"]
    assert [row["stress"] for row in stresses] == ["calm", "embedding x30"]
    calm, hit = stresses
    assert (calm["height"], calm["steps until back"], calm["nat-steps"]) == ("+0.00", "0", "+0.0")
    assert rows_of(directory(plan, None, None)) == rows_of(plan.runs / "parent")[12:]
    assert report["calm"][-1]["value"] == "5 of 5"
    assert float(hit["height"]) > 1
    status = directory(plan, None, "embedding x30") / "status.json"
    written = status.stat().st_mtime_ns
    tables = markdown_tables(run_part(plan, "remedies"))
    assert [row["remedy"] for row in tables["remedy"]] == ["none", "agc"]
    assert {row["calm"] for row in tables["remedy"][:1]} == {"+0.000"}
    assert [row["embedding x30"] for row in tables["embedding x30"]] == ["none", "agc"]
    assert tables["embedding x30"][0]["height"] == hit["height"]
    assert status.stat().st_mtime_ns == written
    assert (tmp_path / "remedies.md").read_text(encoding="utf-8").startswith("| remedy |")
