from __future__ import annotations

import math
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.replay.explanation import Explanation, TokenTable
from analysis.replay.figure import draw_counterfactuals, draw_explanation
from analysis.show import style

from .explained import STEP, changed, explained


def figure_of(e: Explanation, tokens: TokenTable) -> Any:
    with style.look():
        return draw_explanation(e, tokens)


def words_of(figure: Any, folder: Path) -> str:
    """What a reader can read in the figure; a layout that had to be given up is an error."""
    with style.look(), warnings.catch_warnings():
        warnings.simplefilter("error")
        style.save_figure(figure, folder / "f.svg")
    svg = (folder / "f.svg").read_text()
    return " ".join(re.findall(r"<(?:text|tspan)[^>]*>([^<]*)</", svg))


def panel(figure: Any, title: str) -> Any:
    (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    return axes


def test_every_panel_says_what_it_shows(tmp_path: Path) -> None:
    words = words_of(figure_of(*explained()), tmp_path)
    for part in ("demo_tfsd, step 312, replayed from the checkpoint of step 300", "NLL of the batch", "usual 4.931",
                 "Gradient norm", "NLL of every token, by sequence", "position", "nats; highest 17.92",
                 "Its gradient norm and share", "Gradient by group", "this step", "embedding", "L03", "Residual norm",
                 "before", "after", "largest change of a mean: final", "weight c on the gradient of CE",
                 "c; mean 0.9"):  # fmt: skip
        assert part in words
    assert "NaN" not in words and "mathdefault" not in words
    assert "REPRODUCED" not in words


def test_the_same_input_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        with style.look():
            style.save_figure(draw_explanation(*explained(2, 4, bad=1, weights=False)), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (16, 128), (40, 300)])
def test_every_size_has_a_layout(tmp_path: Path, shape: tuple[int, int]) -> None:
    e, tokens = explained(*shape, layers=shape[0], bad=shape[0] // 4, weights=False)
    figure = figure_of(e, tokens)
    words_of(figure, tmp_path)
    assert not any(axes.get_title(loc="left").startswith("TFSD") for axes in figure.axes)


def test_rows_are_in_the_order_of_the_gradient_and_bars_beside_them() -> None:
    e, tokens = explained()
    figure = figure_of(e, tokens)
    heat, bars = panel(figure, "NLL of every token"), panel(figure, "Its gradient norm")
    order = [s.row for s in e.by_gradient]
    assert [int(label.get_text()) for label in heat.get_yticklabels()] == order
    np.testing.assert_array_equal(heat.collections[0].get_array(), tokens.nll_BT[order])
    assert [bar.get_width() for bar in bars.patches] == [s.grad_norm for s in e.by_gradient]
    assert bars.get_ylim() == heat.get_ylim()


def test_a_large_batch_is_cut_by_a_stated_rule(tmp_path: Path) -> None:
    e, tokens = explained(70, 600, bad=2)
    figure = figure_of(e, tokens)
    heat = panel(figure, "NLL, the highest of every 3 positions")
    order = [s.row for s in e.by_gradient]
    expected = tokens.nll_BT[order[:32]].reshape(32, 200, 3).max(axis=2)
    np.testing.assert_array_equal(heat.collections[0].get_array(), expected)
    words = words_of(figure, tmp_path)
    hidden = e.by_gradient[32]
    assert f"32 of 70 sequences; highest NLL of the others: {tokens.nll_BT[order[32:]].max():.2f}" in words
    assert f"the other 38: at most {hidden.grad_norm:.3g}"[:30] in words


def test_what_is_not_finite_is_marked_counted_and_hatched(tmp_path: Path) -> None:
    e, tokens = explained()
    nll, weight = tokens.nll_BT.copy(), tokens.weight_BT
    assert weight is not None
    weight = weight.copy()
    nll[2, 40:], nll[9, 7], weight[2, 40:] = math.nan, math.inf, math.nan
    history = {name: list(values) for name, values in e.history.items()}
    at = history["step"].index(STEP)
    history["loss/nll"][at:] = [math.nan] * (len(history["step"]) - at)
    history["loss/nll"][3] = None
    check = replace(e.metrics["loss/nll"], logged=math.nan, replayed=math.nan, sigmas=None)
    wrong = replace(e.metrics["grad_norm/total"], replayed=math.inf, agrees=False)
    e = replace(
        e, history=history, disagreements=["step 312: grad_norm/total"],
        metrics=e.metrics | {"loss/nll": check, "grad_norm/total": wrong},
        sequences=[replace(s, grad_norm=math.nan) if s.row in (2, 9) else s for s in e.sequences],
        groups=[replace(g, grad_norm=math.inf) if g.name == "layer_01" else g for g in e.groups],
        layers=[replace(x, mean_after=math.nan) if x.name == "final" else x for x in e.layers],
    )  # fmt: skip
    figure = figure_of(e, replace(tokens, nll_BT=nll, weight_BT=weight))
    heat = panel(figure, "NLL of every token")
    assert [label.get_text() for label in heat.get_yticklabels()][:2] == ["2", "9"]
    assert np.ma.getmaskarray(heat.collections[0].get_array()).sum() == 89
    assert any(patch.get_hatch() for patch in heat.patches)
    assert {tuple(point) for line in heat.lines for point in line.get_xydata()} == {(40.0, 0.0), (7.0, 1.0)}
    marks = {
        title: [x for line in panel(figure, title).lines if line.get_marker() == "x" for x in line.get_xdata()]
        for title in ("NLL of the batch", "Gradient norm", "Gradient by group", "Residual norm")
    }
    assert [x for x in marks["NLL of the batch"] if x > STEP] == list(range(STEP + 1, STEP + 21))
    assert STEP in marks["Gradient norm"]
    assert marks["Gradient by group"] == [2.0]
    assert marks["Residual norm"] == [5.0]
    words = words_of(figure, tmp_path)
    for part in ("NOT REPRODUCED: 1 value disagrees with the log", "step 312: NaN", "replayed: ∞", "88 NaN or infinite",
                 "89 values are NaN or infinite (hatched or crossed)", "crosses: NaN or infinite"):  # fmt: skip
        assert part in words


def test_a_replayed_value_that_was_not_logged_is_shown_and_a_name_is_no_formula(tmp_path: Path) -> None:
    e, tokens = explained(4, 16)
    check = replace(e.metrics["loss/nll"], logged=None, replayed=6.5)
    e = replace(e, run="a$_{b$ \\frac", metrics={"loss/nll": check}, history={}, steps_compared=0, groups=[], layers=[])
    words = words_of(figure_of(e, tokens), tmp_path)
    assert "a$_{b$ \\frac, step 312" in words
    assert "replayed: 6.500" in words
    assert "Not checked: the log has no row to compare with" in words


def test_one_extreme_token_does_not_fade_the_rest_and_even_losses_look_even() -> None:
    e, tokens = explained(bad=0)
    nll = tokens.nll_BT.copy()
    nll[0, 0] = 500.0
    image = panel(figure_of(e, replace(tokens, nll_BT=nll)), "NLL of every token").collections[0]
    assert image.get_clim()[1] < 40
    flat = replace(tokens, nll_BT=np.full((16, 128), 6.2))
    level = replace(e.metrics["loss/nll"], usual=6.2)
    figure = figure_of(replace(e, metrics={"loss/nll": level}), flat)
    assert panel(figure, "NLL of every token").collections[0].get_clim() == (0.0, 12.4)


# -------------------------------------------------------------------------------------------------------- counterfactual


def test_the_counterfactual_states_its_change_and_the_difference(tmp_path: Path) -> None:
    case = changed("clip=1", "gradient norm clipped, $5 & more.", factor=0.05)
    with style.look():
        figure: Any = draw_counterfactuals([case])
    loss, gradient = figure.axes
    assert (loss.get_yscale(), gradient.get_yscale()) == ("linear", "log")
    assert all(any(line.get_xdata()[0] == STEP == line.get_xdata()[-1] for line in axes.lines) for axes in figure.axes)
    words = " ".join(words_of(figure, tmp_path).split())
    assert "clip=1: gradient norm clipped, $5 &amp; more." in words
    curves = (case.changed, case.factual)
    last = [np.mean(curve["loss/nll"][-10:]) for curve in curves]
    assert f"NLL of the last 10 steps {last[0]:.3f} instead of {last[1]:.3f}" in words
    after = case.steps.index(STEP)
    highest = [max(curve["grad_norm/total"][after:]) for curve in curves]
    assert f"highest gradient {highest[0]:.3f} instead of {highest[1]:.2f}" in words
    assert "dotted: change from 312 on" in words


def test_a_skipped_batch_is_a_gap_and_counts_on_neither_side(tmp_path: Path) -> None:
    case = changed("skip", "without the batch of step 312", factor=0.05)
    with style.look():
        figure: Any = draw_counterfactuals([case])
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    after = case.steps.index(STEP) + 1
    highest = [max(curve["loss/nll"][after:]) for curve in (case.changed, case.factual)]
    words = " ".join(words_of(figure, tmp_path).split())
    assert f"highest NLL {highest[0]:.3f} instead of {highest[1]:.3f}" in words
    assert "NaN" not in words


def test_several_changes_share_the_logged_curve_and_nan_is_marked(tmp_path: Path) -> None:
    cases = [changed(name, "so.", factor=factor) for name, factor in (("skip", 0.0), ("lr=4", 3.0))]
    cases[1].changed["loss/nll"][30:] = [math.nan] * 10
    with style.look():
        figure: Any = draw_counterfactuals(cases)
    marked = [line.get_xdata().tolist() for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert marked == [[float(step) for step in cases[1].steps[30:]]]
    words = words_of(figure, tmp_path)
    assert "highest NLL NaN instead of" in words
    assert words.count("as logged") == 1
    assert "crosses: NaN or infinite" in words


def test_changes_of_different_runs_are_refused() -> None:
    case = changed("skip", "so.", factor=0.0)
    with pytest.raises(ValueError, match="one run"):
        draw_counterfactuals([case, replace(case, run="other")])
    with pytest.raises(ValueError, match="one run"):
        draw_counterfactuals([])
