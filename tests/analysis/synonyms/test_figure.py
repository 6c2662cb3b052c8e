from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from matplotlib.textpath import TextPath

from analysis.compare.arms import find_arms, untrained_arm
from analysis.compare.statistics import crossed_bootstrap
from analysis.compare.temperature import VIEWS
from analysis.show import style
from analysis.synonyms.build_study import build_study
from analysis.synonyms.compare import Comparison, compare
from analysis.synonyms.figure import draw_synonyms
from analysis.synonyms.measure_models import evaluate_arms, open_data
from analysis.synonyms.options import Settings
from analysis.words.pair_lists import MIN_SIMILARITY
from tests.analysis.trained import write_pairs, write_training


@pytest.fixture(scope="module")
def found(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two seeds of a linear head against two of a metric one, and the untrained model."""
    folder = tmp_path_factory.mktemp("figure")
    runs = [
        write_training(corpus, folder, arm, seed=seed, steps=[1], head=head)
        for arm, head in (("plain", "linear"), ("bent", "metric"))
        for seed in (0, 1)
    ]
    arms = find_arms([str(run) for run in runs])
    arms.append(untrained_arm(arms[0]))
    settings = Settings(str(write_pairs(folder)), MIN_SIMILARITY, None, contexts_per_word=6, min_contexts=5, seed=0)
    data = open_data(arms)
    study = build_study(data, settings)
    return compare(study, arms, evaluate_arms(arms, data, study, seed=0), seed=0)


@pytest.fixture(scope="module")
def figure(found: Comparison) -> Any:
    with style.look():
        return draw_synonyms(found)


def panel(figure: Any, title: str) -> Any:
    (axes,) = [axes for axes in figure.axes if " ".join(axes.get_title(loc="center").split()).startswith(title)]
    return axes


def points_below(figure: Any, arm: str) -> tuple[Any, Any]:
    """The two panels of an arm: log-odds, and under it rank AUC."""
    (above,) = [index for index, axes in enumerate(figure.axes) if axes.get_title(loc="left") == arm]
    arms = sum(bool(axes.get_title(loc="left")) for axes in figure.axes)
    return figure.axes[above], figure.axes[above + arms]


def marks(axes: Any) -> list[Any]:
    return [line for line in axes.lines if line.get_linestyle() == "None" and len(line.get_xdata())]


@pytest.mark.parametrize(
    ("title", "key"), [("Rank AUC, synonym against controls", "auc"), ("Log-odds", "log_odds"), ("Beside them: NLL", "nll_word")]
)  # fmt: skip
def test_every_view_of_an_arm_has_its_mean_its_interval_and_its_band(
    found: Comparison, figure: Any, title: str, key: str
) -> None:
    axes = panel(figure, title)
    drawn = {(round(float(line.get_ydata()[0]), 6), float(line.get_xdata()[0])) for line in marks(axes)}
    intervals = [tuple(map(float, line.get_xdata())) for line in axes.lines if len(line.get_xdata()) == 2]
    bands = [path.get_extents() for fill in axes.collections for path in fill.get_paths()]
    low, high = axes.get_xlim()
    for offset, view in zip((-0.26, 0.0, 0.26), VIEWS, strict=True):
        effect = found.differences["bent"]["all"][view][key]
        assert (offset, effect.mean) in drawn
        assert (effect.low, effect.high) in intervals
        assert low < effect.low < effect.high < high
        assert any(
            abs((band.y0 + band.y1) / 2 - offset) < 1e-6
            and band.x0 == pytest.approx(max(-effect.smallest, low))
            and band.x1 == pytest.approx(min(effect.smallest, high))
            for band in bands
        )


def test_views_are_told_apart_without_colour(figure: Any) -> None:
    by_row = {round(float(line.get_ydata()[0]), 6): line for line in marks(panel(figure, "Log-odds"))}
    assert len({by_row[offset].get_marker() for offset in (-0.26, 0.0, 0.26)}) == 3


def test_an_untrained_model_does_not_set_the_axes_and_its_mean_is_written_where_it_lies_outside(
    found: Comparison,
) -> None:
    far = {
        view: {key: replace(effect, mean=1e3, low=9e2, high=1.1e3) for key, effect in row.items()}
        for view, row in found.differences["untrained"]["all"].items()
    }
    moved = replace(found, differences=found.differences | {"untrained": {"all": far}})
    with style.look():
        axes = panel(draw_synonyms(moved), "Log-odds")
    high = axes.get_xlim()[1]
    assert high < 1e3
    assert [text.get_text() for text in axes.texts] == ["+1e+03"] * 3
    arrows = [line for line in marks(axes) if line.get_marker() == ">"]
    assert [float(line.get_xdata()[0]) for line in arrows] == [high] * 3


def test_a_number_beyond_the_axis_overlaps_no_interval(found: Comparison) -> None:
    def moved(view: str, row: dict[str, Any]) -> dict[str, Any]:
        side = -1e3 if view == "fitted" else 1e3
        low, high = sorted((-side, 2 * side))
        return {key: replace(effect, mean=side, low=low, high=high) for key, effect in row.items()}

    far = {view: moved(view, row) for view, row in found.differences["untrained"]["all"].items()}
    with style.look():
        figure = draw_synonyms(replace(found, differences=found.differences | {"untrained": {"all": far}}))
        figure.canvas.draw()
    for title in ("Log-odds", "Rank AUC, synonym against controls"):
        axes = panel(figure, title)
        points = 72 / figure.dpi
        intervals = [line for line in axes.lines if line.get_linewidth() == 1.7]
        assert len(axes.texts) == 3 and len(intervals) >= 6
        at = [(points * axes.transData.transform((0, y.get_ydata()[0]))[1], y.get_linewidth() / 2) for y in intervals]
        for text in axes.texts:
            ink = TextPath((0, 0), text.get_text(), size=text.get_fontsize()).get_extents()
            baseline = points * axes.transData.transform(text.xy)[1] + text.xyann[1]
            assert text.get_verticalalignment() == "baseline"
            assert not any(baseline + ink.y0 < y + half and y - half < baseline + ink.y1 for y, half in at)


def test_a_point_is_an_items_mean_over_contexts_and_seeds_and_filled_where_it_differs(found: Comparison) -> None:
    holm_P = np.array([0.01, 0.06, math.nan])
    tests = found.item_tests | {"bent": replace(found.item_tests["bent"], holm_P=holm_P)}
    with style.look():
        figure = draw_synonyms(replace(found, item_tests=tests))
    item_M, own_M = found.study.item_M, found.study.own_M
    for axes, key, view in zip(points_below(figure, "bent"), ("log_odds", "auc"), ("matched", "raw"), strict=True):
        expected = []
        for item in range(len(found.study.items)):
            chosen = own_M & (item_M == item)
            of_arms = [
                [found.results[f"{arm}_seed{seed}"].metrics[key][VIEWS.index(view)][chosen] for seed in (0, 1)]
                for arm in ("plain", "bent")
            ]
            expected.append((*(np.mean(values, dtype=float) for values in of_arms), item == 0))
        drawn = [
            (x, y, line.get_markerfacecolor() != "none")
            for line in marks(axes)
            for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
        ]
        np.testing.assert_allclose(sorted(drawn), sorted(expected), rtol=1e-6)


def test_all_arms_share_the_limits_of_a_row(figure: Any) -> None:
    for bent, fresh in zip(points_below(figure, "bent"), points_below(figure, "untrained"), strict=True):
        assert bent.get_xlim() == fresh.get_xlim() == bent.get_ylim() == fresh.get_ylim()


def test_what_was_counted_is_said(found: Comparison, figure: Any) -> None:
    words = " ".join(text.get_text() for text in figure.findobj(Text))
    contexts = int(found.study.own_M.sum())
    for part in ("Difference to plain (2 seeds)", "3 items,", "n = 3 items", f"{contexts} contexts", "6 lemmas", "documents",
                 "bent\n2 seeds", "untrained\n1 seed", "95% interval", "80% power", "matched: at the temperature"):  # fmt: skip
        assert part in words
    assert "antonyms" not in words  # the pairs have none
    assert "nan" not in words


def test_a_model_without_a_matched_view_gets_a_remark_and_the_other_views(found: Comparison) -> None:
    matched = np.arange(len(VIEWS))[:, None] == VIEWS.index("matched")
    results = {
        label: replace(one, metrics={key: np.where(matched, np.nan, value_XM) for key, value_XM in one.metrics.items()})
        if label.startswith("bent")
        else one
        for label, one in found.results.items()
    }
    nothing = crossed_bootstrap([], {"lemma": []}, seed=0)
    views = found.differences["bent"]["all"] | {
        "matched": dict.fromkeys(found.differences["bent"]["all"]["raw"], nothing)
    }
    differences = found.differences | {"bent": {"all": views}}
    with style.look():
        figure = draw_synonyms(replace(found, results=results, differences=differences))
    odds, auc = points_below(figure, "bent")
    assert [text.get_text() for text in odds.texts] == ["no temperature gives\nthe baseline's entropy"]
    assert sum(len(line.get_xdata()) for line in marks(auc)) == 3
    rows = [round(float(line.get_ydata()[0]), 6) for line in marks(panel(figure, "Log-odds"))]
    assert -0.26 in rows and 0.0 in rows and 0.26 not in rows
