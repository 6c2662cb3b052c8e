from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.show import style
from common.errors import InputError


def test_smoothing_is_the_debiased_average_of_its_definition() -> None:
    values = np.array([3.0, np.nan, -1.0, 4.0, np.inf, 1.5, 9.0])
    span = 4
    decay = 1 - 2 / (span + 1)
    expected, total, weight = [], 0.0, 0.0
    for value in values:
        if np.isfinite(value):
            total = decay * total + (1 - decay) * value
            weight = decay * weight + (1 - decay)
        expected.append(total / weight if np.isfinite(value) else np.nan)
    np.testing.assert_allclose(style.smooth_mean(values, span), expected, rtol=1e-13)


def test_a_span_of_one_changes_nothing_and_a_constant_stays_constant() -> None:
    values = np.array([1.0, 5.0, 2.0])
    np.testing.assert_array_equal(style.smooth_mean(values, 1), values)
    np.testing.assert_allclose(style.smooth_mean(np.full(50, 7.0), 20), 7.0)


def test_the_running_median_is_centred_and_skips_what_is_not_finite() -> None:
    values = np.array([1.0, 100.0, 2.0, np.inf, 3.0])
    np.testing.assert_array_equal(style.smooth_median(values, 3), [50.5, 2.0, 51.0, np.nan, 3.0])


@pytest.mark.parametrize("span", [1, 4, 7, 60])
def test_the_running_median_at_some_places_is_the_running_median_there(span: int) -> None:
    values = np.random.default_rng(0).normal(size=200)
    values[[3, 50, 51, 199]] = np.nan
    places = np.arange(0, 200, 3)
    np.testing.assert_array_equal(
        style.smooth_median_at(values, span, places), style.smooth_median(values, span)[places]
    )


def test_a_long_series_is_drawn_with_its_spike_and_its_gap() -> None:
    from matplotlib.figure import Figure

    x, y = np.arange(200_000.0), 2 + np.random.default_rng(0).random(200_000)
    y[123_456], y[77_777], y[88_888] = 1e3, np.nan, np.inf
    for scale in ("linear", "log"):
        axes = Figure().add_subplot()
        axes.set_yscale(scale)
        style.draw_series(axes, x, y, style.arm_styles(["a"])["a"], span=3000)
        raw, strong, crosses = axes.lines
        assert max(len(line.get_xdata()) for line in axes.lines) < 10_000
        assert raw.get_ydata()[raw.get_xdata() == 123_456] == 1e3
        assert np.isnan(raw.get_ydata()[np.isin(raw.get_xdata(), [77_777, 88_888])]).tolist() == [True, True]
        assert crosses.get_xdata().tolist() == [77_777, 88_888]
        assert 2.4 < np.nanmedian(strong.get_ydata()) < 2.6


def test_arms_differ_without_colour() -> None:
    styles = style.arm_styles([f"arm {i}" for i in range(9)])
    assert len({arm.colour for arm in styles.values()}) == 9
    assert len({arm.marker for arm in styles.values()}) == 9
    assert style.arm_styles(list(styles)) == styles


@pytest.mark.parametrize("count", [1, 8, 10, 35, 100])
def test_no_two_arms_have_the_same_colour(count: int) -> None:
    assert len({arm.colour for arm in style.arm_styles([str(i) for i in range(count)]).values()}) == count


def test_the_settings_of_the_user_change_nothing(tmp_path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    def drawn(name: str) -> bytes:
        with style.look():
            figure = Figure()
            figure.subplots(2).flat[0].plot([-3, 2, 1], label="a_b")
            figure.legend()
            style.save_figure(figure, tmp_path / name)
        return (tmp_path / name).read_bytes()

    mine: dict[str, Any] = {
        "text.usetex": True,
        "axes.unicode_minus": False,
        "axes.prop_cycle": mpl.cycler(color=["r"]),
        "axes.linewidth": 5,
        "lines.linewidth": 7,
        "lines.marker": "x",
        "figure.autolayout": True,
        "figure.facecolor": "black",
        "figure.figsize": (2, 2),
        "font.size": 30,
        "legend.fontsize": 4,
        "savefig.bbox": "tight",
        "savefig.transparent": True,
        "svg.fonttype": "path",
        "xtick.labelsize": 3,
    }
    for suffix in ("svg", "png"):
        plain = drawn(f"plain.{suffix}")
        with mpl.rc_context(mine):
            assert drawn(f"mine.{suffix}") == plain
            assert mpl.rcParams["lines.linewidth"] == 7


@pytest.mark.parametrize("length", [20, 300])
@pytest.mark.parametrize("count", [9, 30])
def test_a_legend_covers_no_panel_and_is_not_cut_off(count: int, length: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    with style.look():
        figure = Figure(figsize=(8, 5), layout="constrained")
        panels = list(figure.subplots(2, 2).flat)
        handles = [Line2D([], []) for _ in range(count)]
        legend = style.legend_outside(figure, handles, [f"{i:02}{'x' * length}" for i in range(count)])
        FigureCanvasAgg(figure).draw()
        box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1
    assert box.y0 >= 0 and box.y1 <= figure.bbox.y1
    assert not any(axes.get_window_extent().overlaps(box) for axes in panels)
    assert min(axes.get_window_extent().height for axes in panels) > 100


def test_a_name_with_dollars_is_written_as_it_is(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    with style.look():
        axes = Figure().add_subplot()
        axes.plot([0, 1], label="a$b$c")
        axes.set_title("x$_{y$ \\frac")
        axes.legend()
        style.save_figure(axes.figure, tmp_path / "f.svg")
    svg = (tmp_path / "f.svg").read_text()
    assert ">a$b$c<" in svg and ">x$_{y$ \\frac<" in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.5, 8.0, {"0.5", "1", "2", "5"}), (0.06, 0.9, {"0.1", "0.2", "0.5"}), (1e-4, 40.0, {"0.0001", "0.01", "1"})],
)
def test_a_log_axis_has_plain_numbers(low: float, high: float, expected: set[str], tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    with style.look():
        axes = Figure(figsize=(4, 3)).add_subplot()
        axes.plot([low, high])
        style.log_if_spread(axes, np.array([low, high]))
        style.save_figure(axes.figure, tmp_path / "f.svg")
        bottom, top = axes.get_ylim()
        labels = axes.yaxis.get_ticklabels(which="both")
        ticks = {label.get_text() for label in labels if bottom <= label.get_position()[1] <= top} - {""}
    assert expected <= ticks
    assert not any(set(tick) - set("0123456789.") for tick in ticks)


def test_other_suffixes_are_refused() -> None:
    with pytest.raises(InputError, match=r"\.png or \.svg"):
        style.check_figure_path(Path("curves.pdf"))
