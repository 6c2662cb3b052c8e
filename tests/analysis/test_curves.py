from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from analysis import curves, style
from analysis.runs import Run, load_runs
from configs.errors import InputError
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
    done = python("-m", "analysis.curves", eventful, plain, "--out", out, "--smooth", "7")
    assert done.returncode == 0, done.stderr
    data = out.read_bytes()
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
