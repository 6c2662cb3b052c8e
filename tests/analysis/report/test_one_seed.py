"""Arms of one seed: what is said of them is what went wrong in them, a divergence before all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from analysis.report.charts import sections
from analysis.report.happened import what_happened
from analysis.report.material import Material, read_material
from analysis.report.one_seed import gravest_first, one_seed_headline, one_seed_said
from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.stability.made import config, curve
from tests.analysis.written import Row, spike, write_run

LOSS = "loss/nll"
RISE: Row = {"event": "rise", "signal": LOSS, "start_step": 40, "opened_step": 45, "height": 2.0, "sigmas": 10.0}
BROKEN: Row = {"event": "non_finite", "step": 41, "signals": [LOSS]}


def suite(folder: Path, events: Mapping[tuple[str, str | None], Sequence[Row] | None]) -> Material:
    """A suite of one seed, from the events by arm and scenario; None: that run has not begun. A run with BROKEN has diverged."""
    plan = []
    for (arm, scenario), own in events.items():
        plan.append(PlannedRun(f"{arm}_{scenario}", arm, scenario, 0.01, 0))
        if own is not None:
            diverged = BROKEN in own
            rows = curve(0)[: 42 if diverged else None]
            status = "diverged" if diverged else "finished"
            write_run(folder / plan[-1].name, rows, events=own, config=config(0, head={"kind": arm}), status=status)
    write_plan(folder, SuitePlan(plan[0].arm, None, tuple(plan)))
    return read_material([str(folder)])


def said(material: Material) -> list[str]:
    """The headline, and the sentences with their tones."""
    found, happened = material.study, what_happened(material)
    assert found is not None
    sentences = [f"{one.tone}: {one.text}" for one in one_seed_said(material, found, happened)]
    return [one_seed_headline(material, found, happened), *sentences[:-1]]


def test_an_arm_that_diverged_is_not_praised_for_having_no_spike(tmp_path: Path) -> None:
    high = [spike(LOSS, 40)]
    assert said(suite(tmp_path / "one", {("base", None): high, ("lost", None): [BROKEN], ("still", None): []})) == [
        "One seed each: lost diverged; the loss of base spiked, that of still did not",
        "bad: base: spike of the loss: 2.00 above what was expected (9.00 times the noise), recovered, steps 40 to 44. "
        "Validation loss at the end: 4.000.",
        "bad: lost: diverged at step 42; the loss became NaN or infinite, step 41. Validation loss at the end: not measured.",
        "good: still: no spike of the loss. Validation loss at the end: 4.000.",
    ]
    headline, *sentences = said(suite(tmp_path / "two", {("base", None): [], ("lost", None): [BROKEN]}))
    assert headline == "One seed each: lost diverged; in no other arm did the loss spike"
    assert [one.partition(": ")[0] for one in sentences] == ["good", "bad"]


def test_a_loss_that_rose_and_stayed_up_is_told_where_nothing_spiked(tmp_path: Path) -> None:
    headline, _, rose = said(suite(tmp_path, {("base", None): [], ("high", None): [RISE]}))
    assert headline == "One seed each: in no arm did the loss spike"
    assert rose.startswith("bad: high: no spike of the loss, but the loss rose by 2.00 and stayed up, from step 40")


def test_spikes_in_several_scenarios_are_told_with_theirs(tmp_path: Path) -> None:
    high = [spike(LOSS, 40)]
    events = {
        ("base", "calm"): [],
        ("odd", "calm"): high,
        ("base", "jump"): high,
        ("odd", "jump"): high,
        ("fit", "jump"): [],
    }
    headline = said(suite(tmp_path, events))[0]
    assert headline == "One seed each: the loss of base (jump), odd (calm, jump) spiked, that of fit did not"


def test_arms_without_a_run_are_not_named_and_unknown_heights_are_below_others(tmp_path: Path) -> None:
    unknown = {**spike(LOSS, 20), "height": "NaN"}
    places = [("base", "calm"), ("base", "jump"), ("only", "calm"), ("waits", "jump")]
    events = [[unknown], [unknown, spike(LOSS, 40)], [], None]
    material = suite(tmp_path, dict(zip(places, events, strict=True)))
    headline, *sentences = said(material)
    assert headline == "One seed each: the loss of base (calm, jump) spiked, that of only did not"
    assert [one[: one.index(":", 6)] for one in sentences] == ["bad: calm, base", "good: calm, only", "bad: jump, base"]
    assert "2.00 above what was expected" in sentences[2]
    first = gravest_first(sections(material), what_happened(material))[0]
    assert {run for group in first.groups for run in group.runs} == {"base_jump"}
