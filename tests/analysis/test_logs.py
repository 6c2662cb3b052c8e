"""analysis.spikes, analysis.curves and analysis.summary on logs of other tools, as they are called."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import summary
from analysis.curves import __main__ as curves
from analysis.spikes import __main__ as spikes
from common.command import exit_status

from .written import training_rows, write_run

Row = dict[str, Any]


def loss_at(step: int, seed: int = 0, add: float = 0.0) -> float:
    return 3 + 2 * math.exp(-step / 60) + 0.02 * math.sin(12.9898 * (step + 7919 * seed)) + add


def norm_at(step: int) -> float:
    return (9.0 if step == 300 else 1.0) * (1 + step % 7 / 50)


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    """What Megatron prints: a loss spike and a spike of the gradient norm at iteration 300."""
    lines = [
        f" iteration {step:6d}/ 400 | learning rate: {3e-4 * min(1, step / 50):.3E} | lm loss: "
        f"{loss_at(step, add=1.0 if 300 <= step < 306 else 0.0):.6E} | grad norm: {norm_at(step):.3f} |"
        for step in range(1, 401)
    ]
    path = tmp_path / "megatron.out"
    path.write_text(
        "starting\n" + "\n".join(lines) + "\n validation loss at iteration 400 | lm loss value: 3.2E+00 | \n"
    )
    return path


@pytest.fixture
def rolled_back(tmp_path: Path) -> Path:
    """A log that goes back from 400, soon after a spike at 380, to 301, and is quiet there."""
    rows: list[Row] = [{"iter": i, "train/loss": loss_at(i, 0, 2.0 if 380 <= i < 388 else 0.0)} for i in range(1, 401)]
    rows += [{"iter": i, "train/loss": loss_at(i, 1)} for i in range(301, 501)]
    path = tmp_path / "back.log"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def events(folder: Path) -> list[Row]:
    return json.loads((folder / "events.json").read_text())


def test_the_three_commands_on_a_console_log(
    megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = (
        "megatron.out: console log of Megatron-LM or GPT-NeoX; loss = lm loss, gradient norm = grad norm, "
        "learning rate = learning rate, "
        "validation loss = validation lm loss value; 400 steps from 1 to 400\n"
    )
    spikes.main([str(megatron), "--out", str(tmp_path / "spikes")])
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(told)
    found = {event["signal"]: event for event in events(tmp_path / "spikes")}
    assert (found["lm loss"]["start_step"], found["lm loss"]["end_step"]) == (300, 305)
    assert found["grad norm"]["start_step"] == 300
    assert [p["signal"] for p in found["lm loss"]["precursors"]] == ["grad norm"]
    curves.main([str(megatron), "--out", str(tmp_path / "curves.svg")])
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith(told) and "not logged" not in said.out
    svg = (tmp_path / "curves.svg").read_text()
    assert all(text in svg for text in ("Training loss (lines)", "Gradient norm", "Learning rate", "spike (event)"))
    summary.main([str(megatron), "--out", str(tmp_path / "summary")])
    assert capsys.readouterr().err == ""
    (row,) = json.loads((tmp_path / "summary" / "summary.json").read_text())["runs"]
    assert (row["arm"], row["steps"], row["nll_spikes"], row["gradient_spikes"]) == ("megatron", 400, 1, 1)
    assert row["last_loss"] == pytest.approx(loss_at(400), abs=1e-5)
    assert row["best_loss"] == pytest.approx(min(map(loss_at, range(1, 401))), abs=1e-5)
    assert (row["validation_nll"], row["best_validation_nll"]) == (3.2, 3.2)


def test_an_abandoned_branch_is_searched_and_the_return_is_an_event(
    rolled_back: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spikes.main([str(rolled_back), "--out", str(tmp_path / "out")])
    back, spike = events(tmp_path / "out")
    assert (back["run"], back["kind"], back["from_step"], back["to_step"]) == ("back", "rollback", 400, 301)
    assert (spike["signal"], spike["start_step"], spike["end_step"]) == ("train/loss", 380, 387)
    assert spike["abandoned"] == {"from_step": 400, "to_step": 301}
    said = capsys.readouterr().out
    assert "400 steps" not in said and "500 steps from 1 to 500; the step goes back once" in said
    assert "400 back to 301" in said and "spike, abandoned" in said


def test_a_spike_before_the_return_is_one_event_and_one_after_it_is_not_abandoned(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": loss_at(i, 0, 2.0 if i in (200, 201) else 0.0)} for i in range(1, 401)]
    rows += [{"step": i, "loss": loss_at(i, 1, 2.0 if i in (450, 451) else 0.0)} for i in range(301, 501)]
    (tmp_path / "x").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spikes.main([str(tmp_path / "x"), "--out", str(tmp_path / "out")])
    assert [(e["kind"], e["start_step"], "abandoned" in e) for e in events(tmp_path / "out")] == [
        ("rollback", 301, False),
        ("spike", 200, False),
        ("spike", 450, False),
    ]


def test_curves_draw_abandoned_rows_and_say_which_panels_are_missing(
    rolled_back: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves.main([str(rolled_back), "--out", str(tmp_path / "x.svg")])
    assert (
        "no panel or no curve, since not logged: gradient norm; learning rate; validation loss\n"
        in capsys.readouterr().out
    )
    svg = (tmp_path / "x.svg").read_text()
    assert "abandoned rows" in svg and "Gradient norm" not in svg


def test_runs_and_logs_side_by_side(megatron: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "mine", training_rows(60))
    summary.main([str(run), str(megatron), "--out", str(tmp_path / "summary")])
    said = capsys.readouterr().out
    assert "megatron.out: console log" in said and "mine: " not in said
    assert [row["arm"] for row in json.loads((tmp_path / "summary" / "summary.json").read_text())["runs"]] == [
        "mine",
        "megatron",
    ]
    curves.main([str(run), str(megatron), "--out", str(tmp_path / "x.svg")])
    spikes.main([str(run), str(megatron), "--out", str(tmp_path / "spikes")])
    assert {event["run"] for event in events(tmp_path / "spikes")} >= {"megatron"}


def test_ten_runs_of_an_export_are_drawn_each_for_itself(tmp_path: Path) -> None:
    header = ["Step", *(f"run{i} - loss" for i in range(10))]
    rows = [[str(step), *(str(loss_at(step, i)) for i in range(10))] for step in range(60)]
    (tmp_path / "export.csv").write_text("\n".join(",".join(row) for row in [header, *rows]))
    curves.main([str(tmp_path / "export.csv"), "--out", str(tmp_path / "x.svg")])
    svg = (tmp_path / "x.svg").read_text()
    assert all(f">run{i}<" in svg for i in range(10)) and "median" not in svg.partition("Strong")[0]


def test_columns_are_named_where_the_table_does_not_know_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("n,objective,size\n" + "".join(f"{i},{loss_at(i, add=float(i == 150))},1.0\n" for i in range(200)))
    given = ["--columns", "step=n", "loss=objective", "grad_norm=size"]
    spikes.main([str(path), *given, "--out", str(tmp_path / "out")])
    assert "x.csv: CSV; loss = objective, gradient norm = size; 200 steps from 0 to 199" in capsys.readouterr().out
    (event,) = events(tmp_path / "out")
    assert (event["signal"], event["start_step"]) == ("objective", 150)
    summary.main([str(path), *given])
    assert "x" in capsys.readouterr().out
    curves.main([str(path), *given, "--out", str(tmp_path / "x.png")])


@pytest.mark.parametrize("command", [spikes.main, curves.main, summary.main])
@pytest.mark.parametrize(
    ("text", "options", "told"),
    [
        ("once upon a time\n", [], "is no log that can be read; tried: "),
        ("a,b\n1,2\n", [], "none of its columns counts steps; name it with --columns step=COLUMN, of a, b"),
        ("step,loss\n1,2\n", ["--columns", "loss=los"], "--columns loss=los: no log has a column of this name"),
        ("step,loss\n1,2\n", ["--columns", "los=loss"], "--columns los=loss: give ROLE=COLUMN"),
    ],
)
def test_mistakes_are_told_in_one_line(
    command: Any, text: str, options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    place = tmp_path / ("x.png" if command is curves.main else "out")
    assert exit_status(lambda: command([str(path), "--out", str(place), *options])) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and told in said.err
    assert not place.exists()


def test_a_column_is_judged_as_its_role_whatever_it_is_called(tmp_path: Path) -> None:
    """The events of a column called quantity are those of this project's own metric in the same rows."""
    values = np.exp(0.2 * np.random.default_rng(0).standard_normal(400))
    values[200:203] *= 4
    numbers = ("start_step", "peak_step", "end_step", "height", "sigmas")
    found = {}
    for role, metric in (("loss", "loss/nll"), ("grad_norm", "grad_norm/total")):
        for name, options in ((metric, []), ("quantity", ["--columns", f"{role}=quantity"])):
            rows = "".join(f"{i},{value}\n" for i, value in enumerate(values.tolist()))
            (tmp_path / "x.csv").write_text(f"step,{name}\n{rows}")
            spikes.main([str(tmp_path / "x.csv"), *options, "--out", str(tmp_path / "out")])
            found[name] = [[event[key] for key in numbers] for event in events(tmp_path / "out")]
        assert found[metric] and found["quantity"] == found[metric]
    assert found["loss/nll"] != found["grad_norm/total"]


def test_a_log_of_validation_losses_alone_is_searched_too(tmp_path: Path) -> None:
    text = "".join(f"{i},{loss_at(i, add=float(i == 150))}\n" for i in range(200))
    (tmp_path / "x.csv").write_text(f"step,val_loss\n{text}")
    spikes.main([str(tmp_path / "x.csv"), "--out", str(tmp_path / "out")])
    assert [(e["signal"], e["start_step"]) for e in events(tmp_path / "out")] == [("val_loss", 150)]
    curves.main([str(tmp_path / "x.csv"), "--out", str(tmp_path / "x.png")])
