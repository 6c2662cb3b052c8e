"""Faults of the monitor's own: one warning, one event, and training that goes on as if it had not been there."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from stability.monitor import Monitor

from .loops import bigram, events_of, mlp, regression_loss, rows_of, status_of, token_loss

FAULT_AT, STEPS = 25, 50


def another_parameter(model, optimizer, run):
    model.extra = nn.Linear(2, 2)
    optimizer.add_param_group({"params": model.extra.parameters()})


def a_wider_parameter(model, optimizer, run):
    model.wte.weight = nn.Parameter(torch.cat([model.wte.weight.data, model.wte.weight.data[:2]]))
    optimizer.param_groups[0]["params"][0] = model.wte.weight


def rows_deleted(model, optimizer, run):
    (run / "metrics.jsonl").unlink()


def rows_edited(model, optimizer, run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write("something else\n")


def directory_is_gone(model, optimizer, run):
    for path in run.iterdir():
        path.unlink()
    run.rmdir()


def disk_full(model, optimizer, run):
    (run / "metrics.jsonl").symlink_to("/dev/full")


FAULTS = {f.__name__: f for f in (another_parameter, a_wider_parameter, rows_deleted, rows_edited)}


def run_with_fault(run, fault, loss_given=lambda step, loss: loss, every=10):
    model = bigram()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    watch = Monitor(run, model, optimizer, flush_every=every) if run else None
    for step in range(1, STEPS + 1):
        if step == FAULT_AT and fault:
            torch.manual_seed(7)
            fault(model, optimizer, run)
        loss = token_loss(model, step)
        loss.backward()
        if watch:
            watch.step(loss_given(step, loss))
        optimizer.step()
        optimizer.zero_grad()
    if watch:
        watch.close()
    return model


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_told_once_and_training_goes_on(tmp_path, fault):
    run = tmp_path / "run"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        watched = run_with_fault(run, fault)
    told = [str(w.message) for w in told if "monitoring ended" in str(w.message)]
    assert len(told) == 1
    assert str(run) in told[0]
    (event,) = [e for e in events_of(run) if e["event"] == "monitor_failed"]
    assert FAULT_AT - 1 <= event["step"] < FAULT_AT + 10
    assert status_of(run)["status"] == "failed"
    assert "training went on" in status_of(run)["reason"]
    if fault in (another_parameter, a_wider_parameter):
        alone = run_with_fault(None, fault)
        assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), watched.parameters(), strict=True))
        assert [row["step"] for row in rows_of(run)] == list(range(1, FAULT_AT))


def test_a_full_disk_ends_the_monitoring(tmp_path):
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match="monitoring ended after step 30, training goes on: OSError: .*No space left"):
        run_with_fault(run, disk_full, every=30)  # full when the first rows are written
    assert [(e["event"], e["step"]) for e in events_of(run)] == [("monitor_failed", 30)]


def test_a_directory_that_is_gone_can_take_no_event(tmp_path):
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match="monitoring ended after step 30"):
        run_with_fault(run, directory_is_gone)


def test_a_loss_that_is_none_ends_the_monitoring_and_keeps_the_rows_before_it(tmp_path):
    run = tmp_path / "run"
    with pytest.warns(UserWarning, match="step\\(\\) was given no loss"):
        run_with_fault(run, None, lambda step, loss: None if step == FAULT_AT else loss)
    assert [row["step"] for row in rows_of(run)] == list(range(1, FAULT_AT))


def test_a_fault_raises_nothing_even_where_warnings_are_errors(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*monitoring ended")
        run_with_fault(tmp_path / "run", None, lambda step, loss: None)
    assert "monitoring ended after step 0" in capsys.readouterr().err


def test_an_interrupt_is_not_the_monitors_to_take(tmp_path):
    class Interrupting(list):
        def __iter__(self):
            raise KeyboardInterrupt

    model = mlp()
    watch = Monitor(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(KeyboardInterrupt):
        watch.step(Interrupting())


def test_steps_in_the_wrong_order_are_told_once(tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Monitor(tmp_path / "run", model, optimizer) as watch:
            for step in range(1, 4):
                loss = regression_loss(model, step)
                loss.backward()
                optimizer.step()
                if step < 3:
                    optimizer.step()
                watch.step(loss)
    assert len([w for w in told if "without watch.step(loss)" in str(w.message)]) == 1
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3]
