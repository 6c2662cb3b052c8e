from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from analysis.curves import __main__ as curves
from analysis.curves.palette import median_curve
from analysis.show import style
from common.errors import InputError
from record.finished import Run, load_runs
from tests.analysis.written import spike, training_rows, write_run
from tests.conftest import python


@pytest.fixture
def eventful(tmp_path: Path) -> Path:
    """A run with a spike far above the rest, a NaN and an infinity."""
    rows = training_rows(200, tfsd=True)
    rows[119]["loss/nll"] = 40.0
    rows[149] |= {"loss/nll": "NaN", "grad_norm/total": "Infinity"}
    return write_run(tmp_path / "eventful", rows, events=[spike("loss/nll", 120), spike("grad_norm/total", 121)])


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A run without any of the optional metrics."""
    rows = [{"step": row["step"], "loss/nll": row["loss/nll"]} for row in training_rows(100, seed=1)]
    return write_run(tmp_path / "plain", rows)


def draw(runs: dict[str, Run]) -> list[str]:
    with style.look():
        return [axes.get_title(loc="left") for axes in curves.draw_curves(runs).axes]


def test_the_command_writes_a_png_of_the_stated_size(eventful: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "c.png"
    arguments = [str(eventful), str(plain), "--smooth", "7", "--out"]
    mine = tmp_path / "matplotlibrc"  # LaTeX is not even there
    mine.write_text("text.usetex: true\nfont.size: 30\nsavefig.bbox: tight\nfigure.autolayout: true\n")
    done = python("-m", "analysis.curves", *arguments, out, MATPLOTLIBRC=str(mine), MPLBACKEND="no_such_backend")
    assert done.returncode == 0, done.stderr
    data = out.read_bytes()
    curves.main([*arguments, str(tmp_path / "plain.png")])
    assert data == (tmp_path / "plain.png").read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert width == round(10.5 * style.DPI)
    assert height > 500
    assert [path.name for path in out.parent.iterdir()] == ["c.png"]  # no temporary file stays


def test_the_svg_says_what_it_shows(eventful: Path, plain: Path, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        curves.main([str(eventful), str(plain), "--out", str(tmp_path / name)])
    svg = (tmp_path / "a.svg").read_text()
    assert svg == (tmp_path / "b.svg").read_text()
    text = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", svg))
    for label in ("eventful", "plain", "nats per token", "steps", "Gradient norm", "TFSD weight c", "spike (event)"):
        assert label in text
    assert "NaN or infinite" in text
    assert "mathdefault" not in text and not re.search(r"\de[^ a-z]", text)  # numbers of log axes, too, are plain
    assert "values reach 40" in text  # the spike is above the axis, and told
    assert "1 values of 0" in text  # the first 10th percentile is 0 on a log axis


def test_panels_without_data_are_left_out(eventful: Path, plain: Path) -> None:
    assert draw(load_runs([plain])) == ["Training NLL (lines) and validation NLL (markers)"]
    titles = draw(load_runs([eventful]))
    assert any("TFSD" in title for title in titles)
    assert not any("Entropy" in title for title in titles)


def test_the_axis_is_tokens_only_if_every_run_has_them(eventful: Path, plain: Path) -> None:
    with style.look():
        assert {axes.get_xlabel() for axes in curves.draw_curves(load_runs([eventful])).axes} == {"tokens"}
        assert {axes.get_xlabel() for axes in curves.draw_curves(load_runs([eventful, plain])).axes} == {"steps"}
    with pytest.raises(InputError, match="--x tokens: plain"):
        curves.draw_curves(load_runs([eventful, plain]), axis="tokens")


def test_the_loss_axis_shows_late_training_and_marks_what_is_above(tmp_path: Path) -> None:
    rows = training_rows(500)
    quiet = load_runs([write_run(tmp_path / "quiet", rows)])
    low, high = curves.nll_limits(quiet)
    late = np.array([row["loss/nll"] for row in rows[50:]])
    assert low < late.min() < late.max() < high < 9.0  # the first steps do not set it
    rows[300]["loss/nll"] = 1000.0
    wild = load_runs([write_run(tmp_path / "wild", rows)])
    assert curves.nll_limits(wild)[1] < 12.0
    with style.look():
        axes = curves.draw_curves(wild).axes[0]
    marked = [line for line in axes.lines if line.get_marker() == "^"]
    assert [line.get_xdata()[0] for line in marked] == [301 * 64]
    assert any("1000" in text.get_text() for text in axes.texts)


def test_a_norm_that_explodes_in_one_arm_gets_a_log_axis(tmp_path: Path) -> None:
    rows = training_rows(100)
    tame = write_run(tmp_path / "tame", rows)
    for row in rows[90:]:
        row["hidden_norm/pre_final/mean"] = 1e5
    wild = write_run(tmp_path / "wild", rows)

    def scale(paths: list[Path]) -> str:
        with style.look():
            figure = curves.draw_curves(load_runs(paths))
        (axes,) = [axes for axes in figure.axes if axes.get_title(loc="left").startswith("Residual")]
        return axes.get_yscale()

    assert scale([tame]) == "linear"
    assert scale([tame, wild]) == "log"


@pytest.mark.parametrize(("weights", "expected"), [((0.9988, 1.0), "linear"), ((1e-4, 0.5), "log")])
def test_the_weight_has_a_log_axis_only_if_it_spreads(
    tmp_path: Path, weights: tuple[float, float], expected: str
) -> None:
    rows = [{"step": s, "loss/nll": 3.0, "tfsd/weight_p10": weights[0], "tfsd/weight_mean": weights[1]} for s in (1, 2)]
    with style.look():
        figure = curves.draw_curves(load_runs([write_run(tmp_path / "r", rows)]))
    assert figure.axes[1].get_title(loc="left").startswith("TFSD")
    assert figure.axes[1].get_yscale() == expected


def test_a_run_that_is_nan_throughout_can_be_drawn(tmp_path: Path) -> None:
    rows = [{"step": step, "loss/nll": "NaN", "validation/nll": "NaN"} for step in range(1, 4)]
    assert len(draw(load_runs([write_run(tmp_path / "r", rows, status="diverged")]))) == 1


@pytest.mark.parametrize("arguments", [["--out", "c.pdf"], ["--out", "c.png", "--smooth", "0"]])
def test_bad_options_are_refused_before_any_work(plain: Path, arguments: list[str]) -> None:
    with pytest.raises(InputError):
        curves.main([str(plain), *arguments])


def test_runs_without_a_loss_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path / "r", [{"step": 1, "lr": 0.1}])
    with pytest.raises(InputError, match="loss/nll"):
        curves.draw_curves(load_runs([path]))


def write_runs(folder: Path, configs: dict[str, dict[str, Any]], steps: int = 12) -> dict[str, Run]:
    keys = ("step", "tokens", "loss/nll", "validation/nll", "grad_norm/total")
    rows = [
        [{k: row[k] for k in keys if k in row} for row in training_rows(steps, seed=s)] for s in range(len(configs))
    ]
    return load_runs(
        [write_run(folder / name, own, config=c) for own, (name, c) in zip(rows, configs.items(), strict=True)]
    )


def drawn(runs: dict[str, Run], span: int = 1) -> Figure:
    """The figure, laid out."""
    with style.look():
        figure = curves.draw_curves(runs, span=span)
        FigureCanvasAgg(figure).draw()
    return figure


def legend_words(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert not any(axes.get_window_extent().overlaps(box) for axes in figure.axes)
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
    assert min(axes.get_window_extent().height for axes in figure.axes) > 100
    return [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts())]


def test_nine_runs_are_drawn_each_for_itself_and_ten_as_families(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {f"arm_seed{i}": {"seed": i} for i in range(10)})
    nine = drawn(dict(list(runs.items())[:9]))
    assert legend_words(nine)[1:] == [f"arm_seed{i}" for i in range(9)]
    assert len({line.get_color() for line in nine.axes[0].lines}) == 9
    words = legend_words(drawn(runs))
    assert words == ["10 runs; thin: each run, thick: median of runs that differ in the seed alone", "arm (10 runs)"]


def test_the_strong_line_of_a_family_is_the_median_of_its_runs(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {f"arm_seed{i}": {"seed": i} for i in range(11)})
    axes = drawn(runs).axes[0]
    (strong,) = [line for line in axes.lines if line.get_linewidth() == 1.7]
    thin = [line for line in axes.lines if line.get_linewidth() == 0.5]
    values = [[row["loss/nll"] for row in training_rows(12, seed=seed)] for seed in range(11)]
    np.testing.assert_allclose(strong.get_ydata(), np.median(values, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(strong.get_xdata(), [64 * step for step in range(1, 13)])
    np.testing.assert_allclose([line.get_ydata() for line in thin], values, rtol=1e-12)


def test_the_median_is_of_half_of_the_runs_at_least() -> None:
    x = np.arange(4.0)
    nan = np.nan
    found = median_curve(
        [(x, np.array([1.0, nan, 3.0, nan])), (x[:3], np.array([2.0, 3.0, nan])), (x[:2], np.array([9.0, 4.0]))]
    )
    np.testing.assert_array_equal(found, [x, [2.0, 3.0, nan, nan]])  # 2.0 of the first run at 1 is on its line


def test_a_number_in_which_families_differ_is_a_scale(tmp_path: Path) -> None:
    rates = [float(f"{10 ** (-4 + i / 3):.3g}") for i in range(8)]
    configs = {
        f"{kind}{i}_seed{s}": {"seed": s, "optimizer": {"lr": lr}, "head": {"kind": kind}}
        for kind in ("linear", "metric")
        for i, lr in enumerate(rates)
        for s in range(2)
    }
    figure = drawn(write_runs(tmp_path, configs))
    *panels, bar = figure.axes
    assert bar.get_ylabel() == "optimizer.lr"
    assert bar.get_yscale() == "log"
    assert [float(text.get_text()) for text in bar.get_yticklabels()] == rates
    title, *words = legend_words(figure)
    assert "32 runs in 16 families of 2 runs that differ in head.kind, optimizer.lr" in title
    assert words == ["head.kind=linear", "head.kind=metric"]
    strong = [line for line in panels[0].lines if line.get_linewidth() == 1.7]
    colours = [line.get_color() for line in strong]
    assert colours[:8] == colours[8:]
    even = [to_rgb(style.shade(i / 7)) for i in range(8)]  # the rates are, on a log scale
    np.testing.assert_allclose([to_rgb(colour) for colour in colours[:8]], even, atol=0.02)
    assert [line.get_linestyle() for line in strong] == ["-"] * 8 + ["--"] * 8


def test_families_of_kinds_have_a_colour_and_an_entry_each(tmp_path: Path) -> None:
    figure = drawn(write_runs(tmp_path, {f"name_{i:02}": {"data": {"kind": f"k{i}"}} for i in range(20)}))
    title, *words = legend_words(figure)
    assert title == "20 runs that differ in data.kind"
    assert words == [f"name_{i:02}" for i in range(20)]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 20


def test_of_more_kinds_than_colours_the_ends_are_named(tmp_path: Path) -> None:
    runs = write_runs(tmp_path, {f"name_{i:03}": {"data": {"kind": f"k{i}"}} for i in range(25)}, steps=4)
    figure = drawn(runs)
    title, *words = legend_words(figure)
    assert title == "25 runs that differ in data.kind; the lowest and the highest 3 of 25 at the end are named"
    ends = {label: run.metrics["loss/nll"].iloc[-1] for label, run in runs.items()}
    order = sorted(ends, key=lambda label: ends[label])
    assert [word.partition(" ")[0] for word in words] == [*order[:3], *order[-3:]]
    assert figure.axes[-1].get_ylabel() == "loss/nll at the end"


def stressed_runs(folder: Path, acting: dict[str, set[int]], seeds: bool = False) -> dict[str, Run]:
    paths = []
    for number, (name, steps) in enumerate(acting.items()):
        rows = training_rows(300, seed=number)
        for row in rows:
            row["stress/acting"] = 2 * (row["step"] in steps)
        paths.append(write_run(folder / name, rows, config={"seed": number} if seeds else None))
    return load_runs(paths)


def bars(figure: Figure) -> list[list[tuple[str, float, float, float]]]:
    """By panel: colour, start and end on the axis, and height above the panel, of each bar."""
    found = []
    for axes in figure.axes:
        lines = [line for line in axes.lines if not line.get_clip_on() and line.get_linewidth() == 3.0]
        top = axes.get_window_extent().y1
        ends = [line.get_window_extent() for line in lines]
        box = [(line.get_xdata(), (end.y0 - top) * 72 / figure.dpi) for line, end in zip(lines, ends, strict=True)]
        found.append([(str(line.get_color()), *x, y) for line, (x, y) in zip(lines, box, strict=True)])
    return found


def test_bars_above_every_panel_show_where_a_stress_acted(tmp_path: Path) -> None:
    figure = drawn(stressed_runs(tmp_path, {"calm": set(), "hit": {80, 81, 150}, "long": set(range(201, 301))}))
    assert "stress acts (bar above)" in legend_words(figure)
    assert len(bars(figure)) == len(figure.axes) > 2
    for axes, found in zip(figure.axes, bars(figure), strict=True):
        assert [colour for colour, *_ in found] == [style._COLOURS[1]] * 2 + [style._COLOURS[2]]
        (_, begins, ends, low), _, (_, first, last, high) = found
        assert begins == pytest.approx(79.5 * 64) and ends == pytest.approx(81.5 * 64)
        assert first == pytest.approx(200.5 * 64) and last == pytest.approx(300 * 64)
        assert 0 < low < high, "a lane each, and above the curves"
        assert axes.get_tightbbox().y1 < figure.legends[0].get_window_extent().y0
    (_, alone, end, _) = bars(figure)[0][1]
    assert end - alone == pytest.approx(64), "one step"


def test_runs_without_a_stress_have_no_bars(tmp_path: Path) -> None:
    figure = drawn(stressed_runs(tmp_path, {"calm": set()}))
    assert not any(bars(figure))
    assert "stress acts (bar above)" not in legend_words(figure)


def test_a_family_shares_its_bars(tmp_path: Path) -> None:
    figure = drawn(stressed_runs(tmp_path, {f"arm_seed{i}": {50} for i in range(10)}, seeds=True))
    assert [len(found) for found in bars(figure)] == [1] * len(figure.axes)
