"""What is on the axes of the figures."""

from __future__ import annotations

import pytest

from analysis.show import style
from analysis.stability.compare import COMMON, OWN_BEST, Study, study
from analysis.stability.figures import draw_curves, draw_differences, draw_rates, draw_survival
from analysis.stability.runs import find_runs
from record.suite import PlannedRun, SuitePlan, write_plan
from tests.analysis.written import write_run

from .made import config, curve

ARMS = [f"arm {number}" for number in range(12)]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Twelve arms: calm and warm at two rates, with other final losses; hit at another rate alone, without the last arm."""
    folder, plan = tmp_path_factory.mktemp("suite"), []
    for number, arm in enumerate(ARMS):
        for scenario, rates, level in (("calm", (0.01, 0.1), 4.0), ("warm", (0.01, 0.3), 5.0), ("hit", (0.1,), 4.0)):
            for rate in rates if (arm, scenario) != (ARMS[-1], "hit") else ():
                for seed in (0, 1):
                    name = f"{number}_{scenario}_{rate}_s{seed}"
                    more = {"stress": [{"kind": "x"}]} if scenario == "hit" else {}
                    rows = curve(seed, level + 0.1 * number + rate, bump=float(scenario == "hit"))
                    write_run(folder / name, rows, config=config(seed, rate, head={"kind": arm}, **more))
                    plan.append(PlannedRun(name, arm, scenario, rate, seed))
    write_plan(folder, SuitePlan(ARMS[0], None, tuple(plan)))
    return study(find_runs([str(folder)]))


def test_panels_of_rates_share_axes_and_have_a_tick_at_every_rate(found: Study) -> None:
    with style.look():
        figure = draw_rates(found)
        assert figure is not None
        figure.canvas.draw()
    calm, warm = figure.axes
    assert (calm.get_xlim(), calm.get_ylim()) == (warm.get_xlim(), warm.get_ylim())
    for axes in (calm, warm):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["0.01", "0.1", "0.3"]
        assert not len(axes.get_xticks(minor=True))
        assert axes.get_ylabel() == "final validation NLL, nats per token"


def test_a_scenario_with_one_rate_is_named_by_it(found: Study) -> None:
    with style.look():
        curves, differences = draw_curves(found), draw_differences(found)
    assert curves is not None
    assert differences is not None
    titles = ["calm, each at its best rate", "warm, each at its best rate", "hit, rate 0.1"]
    assert [axes.get_title(loc="left") for axes in curves.axes] == titles
    titles = [axes.get_title(loc="left") for axes in differences.axes]
    assert titles[-1] == "hit, rate 0.1"
    assert titles[:2] == ["calm, own best rate", "calm, baseline's best rate"]
    assert len({axes.get_xlim() for axes in differences.axes}) == 1
    names = [label.get_text() for label in differences.axes[-1].get_yticklabels()]
    assert names == [f"{arm}, n=2" for arm in ARMS[1:-1]]  # without an arm that has no such runs


def test_twelve_arms_have_colours_and_marks_of_their_own_and_are_all_in_the_legend(found: Study) -> None:
    styles = style.arm_styles(ARMS)
    assert len({one.colour for one in styles.values()}) == len({one.marker for one in styles.values()}) == 12
    with style.look():
        figure = draw_survival(found)
        assert figure is not None
        figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ARMS
    edges, inside = legend.get_window_extent(), figure.bbox
    assert edges.x0 >= 0
    assert edges.x1 <= inside.x1
    assert edges.y1 <= inside.y1


def test_the_axis_of_differences_is_that_of_the_means_where_two_seeds_leave_wide_intervals(found: Study) -> None:
    """Means of up to 1.1 nats, to be seen beside what two seeds could show, which is cut off."""
    rows = [row for basis in (OWN_BEST, COMMON) for row in found.rows("calm", basis, "final_nll")]
    largest = max(abs(row.difference.effect.mean) for row in rows)
    assert largest == pytest.approx(1.1, abs=0.01)
    figure = draw_differences(found)
    assert figure is not None
    low, high = figure.axes[0].get_xlim()
    assert low == -high
    assert largest < high <= 1.08 * 3 * largest
