"""A few lines as each tool writes them: recognised by content, whatever the file is called, and read exactly."""

from __future__ import annotations

import builtins
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from common.errors import InputError
from record.logs.base import Log
from record.logs.read import read_logs


def read(path: Path, **columns: str) -> Log:
    (log,) = read_logs(path, columns).logs
    return log


def written(log: Log, role: str) -> dict[int, float]:
    """Values by step of the column with a role."""
    name = log.roles[role]
    there = log.table.written(name)
    return dict(zip(log.table.steps[there].tolist(), log.table.columns[name][there].tolist(), strict=True))


RANKS = "".join(
    f"[rank{rank}]:[titan] 2025-01-01 12:00:00,123 - root - INFO - \x1b[31mstep: {step:2d}  \x1b[32mloss: "
    f"{9 - step + rank / 10:7.4f}  "
    f"\x1b[38;2;180;60;0mgrad_norm:  2.{step}\x1b[36m  memory:  0.97GiB(1.2%)  tps: 7,500\x1b[39m\n"
    for step in (1, 2, 3)
    for rank in (0, 1)
)
CONSOLES: dict[str, tuple[str, str, dict[str, dict[int, float]]]] = {
    "nanoGPT": (
        "tokens per iteration will be: 491,520\nstep 0: train loss 10.9, val loss 10.95\niter 0: loss 10.97, "
        "time 22640.22ms, "
        "mfu -100.00%\niter 10: loss nan, time 300.1ms, mfu 30.00%\n",
        "console log of nanoGPT",
        {"loss": {0: 10.97, 10: float("nan")}, "val_loss": {0: 10.95}},
    ),
    "build-nanogpt log.txt": (
        "0 val 10.9\n0 hella 0.25\n0 train 10.8\n1 train 10.7\n",
        "console log of build-nanogpt",
        {"loss": {0: 10.8, 1: 10.7}, "val_loss": {0: 10.9}},
    ),
    "build-nanogpt console": (
        "using device: cuda\nvalidation loss: 10.9\nstep     0 | loss: 10.8 | lr 8.5e-07 | norm: 15.3 | dt: "
        "330.0ms | tok/sec: 1,540,000.5\n"
        "step     1 | loss: 10.7 | lr 1.7e-06 | norm: 14.3 | dt: 330.0ms | tok/sec: 1540000\nvalidation loss: 9.9\n",
        "console log of build-nanogpt",
        {"loss": {0: 10.8, 1: 10.7}, "grad_norm": {0: 15.3, 1: 14.3}, "lr": {0: 8.5e-7, 1: 1.7e-6}, "val_loss": {0: 10.9, 1: 9.9}}
    ),
    "modded-nanogpt": (
        "print0(f'step:{step}/{args.steps} val_loss:{val_loss:.4f}')\n====\nstep:0/60 val_loss:11.01 "
        "train_time:305ms step_avg:nanms\n"
        "step:1/60 train_loss:11.0 train_time:24179ms step_avg:nanms\nstep:2/60 train_loss:10.5 "
        "train_time:24523ms step_avg:25.5ms\n",
        "console log of modded-nanogpt",
        {"loss": {1: 11.0, 2: 10.5}, "val_loss": {0: 11.01}},
    ),
    "llm.c main.log": (
        "s:0 tel:11.5\ns:0 trl:11.4 lr:0.000001 norm:15.37\ns:1 trl:11.3 lr:0.000002 norm:-nan\ns:1 eval:0.25\n",
        "console log of llm.c main.log",
        {"loss": {0: 11.4, 1: 11.3}, "grad_norm": {0: 15.37, 1: float("nan")}, "lr": {0: 1e-6, 1: 2e-6}, "val_loss": {0: 11.5}},
    ),
    "llm.c console": (
        "| Parameter | Value |\nval loss 10.9\nstep    1/1956 | loss 10.8 (+nanz)| norm 15.37 (+nanz)| lr "
        "8.5e-07 | 3000.52 ms | 50.2% bf16 "
        "MFU | 174000 tok/s\nstep    2/1956 | loss 10.7 (-1.20z)| norm 14.3 (+0.5z)| lr 1.7e-06 | 3000.52 ms "
        "| 50.2% bf16 MFU\nval loss 9.5\n",
        "console log of llm.c",
        {"loss": {1: 10.8, 2: 10.7}, "grad_norm": {1: 15.37, 2: 14.3}, "val_loss": {0: 10.9, 2: 9.5}},
    ),
    "Megatron-LM": (
        " [2024-05-01 10:00:00] iteration    10/  500000 | consumed samples:  10240 | elapsed time per "
        "iteration (ms): 1234.5 | learning rate:"
        " 1.200E-06 | lm loss: 1.100000E+01 | loss scale: 8192.0 | grad norm: 0.000 | number of nan iterations:   0 |\n"
        " validation loss at iteration 10 | lm loss value: 1.2E+01 | lm loss PPL: 3.6E+04 | \n"
        " iteration    20/  500000 | consumed samples:  20480 | lm loss: 1.050000E+01 | learning rate: "
        "2.4E-06 | grad norm: 12.5 |\n",
        "console log of Megatron-LM or GPT-NeoX",
        {"loss": {10: 11.0, 20: 10.5}, "grad_norm": {10: 0.0, 20: 12.5}, "lr": {10: 1.2e-6, 20: 2.4e-6}, "val_loss": {10: 12.0}},
    ),
    "GPT-NeoX": (
        "[2023-01-01] [INFO] [Rank 0] step=10, skipped=0, lr=[1e-06], mom=[[0.9, 0.95]]\nsteps: 10 loss: "
        "10.9 iter time (s): 1.2\n"
        " samples/sec: 850.1 | iteration       10/  143000 | learning rate: 1.0E-06 | lm_loss: 1.09E+01 | "
        "loss scale: 65536.0 |\n",
        "console log of Megatron-LM or GPT-NeoX",
        {"loss": {10: 10.9}, "lr": {10: 1e-6}},
    ),
    "torchtitan": (
        f"{RANKS}[rank0]:[titan] 2025-01-01 - root - INFO - validate step:  3  loss:  6.5  memory: 1GiB\n",
        "console log of torchtitan",
        {"loss": {1: 8.0, 2: 7.0, 3: 6.0}, "grad_norm": {1: 2.1, 2: 2.2, 3: 2.3}, "val_loss": {3: 6.5}},
    ),
    "OLMo-core": (
        "2025-01-01T00:00:00Z host:0 olmo_core.train:87 INFO [step=1/1,000,epoch=1]\n    optim/LR (group 0)=4.0E-6\n"
        "    optim/total grad norm=5.044\n    train/CE loss=10.96\n    train/PPL=57,512\nsaving "
        "checkpoint\n[step=2/1,000,epoch=1]\n"
        "    train/CE loss=10.5\n    optim/total grad norm=0.0044\n",
        "console log of OLMo",
        {"loss": {1: 10.96, 2: 10.5}, "grad_norm": {1: 5.044, 2: 0.0044}, "lr": {1: 4e-6}},
    ),
    "OLMo": (
        "INFO [step=1/739328]\n    train/CrossEntropyLoss=11.37\n    optim/total_grad_norm=5.1\n",
        "console log of OLMo",
        {"loss": {1: 11.37}, "grad_norm": {1: 5.1}},
    ),
    "another script": (
        "2024-01-01 INFO Step 1,000/5,000 | Loss: 3.21 | LR: 1.0e-4 | Grad Norm: 0.5\nStep 2000/5000, Loss = 3.1\n",
        "console log",
        {"loss": {1000: 3.21, 2000: 3.1}, "grad_norm": {1000: 0.5}, "lr": {1000: 1e-4}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("tool", CONSOLES)
@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_what_a_tool_prints(tmp_path: Path, tool: str, ends: str) -> None:
    text, title, expected = CONSOLES[tool]
    path = tmp_path / "x.bin"
    path.write_bytes(text.replace("\n", ends).encode())
    log = read(path)
    assert log.format == title
    for role, values in expected.items():
        assert written(log, role) == pytest.approx(values, nan_ok=True), role
    assert log.abandoned == ()


ROWS = [
    {"step": 10, "loss": 2.5, "grad_norm": 1.5, "learning_rate": 1e-4, "epoch": 0.1},
    {"step": 10, "eval_loss": 2.6, "eval_runtime": 3.0, "epoch": 0.1},
    {"step": 20, "loss": 2.25, "grad_norm": float("nan"), "learning_rate": 9e-5, "epoch": 0.2},
    {"step": 20, "train_loss": 2.4, "train_runtime": 9.0, "epoch": 0.2},
]


def check(log: Log) -> None:
    assert written(log, "loss") == {10: 2.5, 20: 2.25}
    assert written(log, "val_loss") == {10: 2.6}
    assert written(log, "grad_norm") == pytest.approx({10: 1.5, 20: float("nan")}, nan_ok=True)
    assert written(log, "lr") == {10: 1e-4, 20: 9e-5}


@pytest.mark.parametrize("indent", [None, 2])
def test_the_state_of_a_trainer_its_checkpoint_and_its_output_folder(tmp_path: Path, indent: int | None) -> None:
    for step, rows in ((10, ROWS[:2]), (20, ROWS), (9, ROWS[:1])):
        folder = tmp_path / "my_run" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        state = {"best_metric": None, "global_step": step, "log_history": rows, "max_steps": 20}
        (folder / "trainer_state.json").write_text(json.dumps(state, indent=indent))
    out = tmp_path / "my_run"
    for path, label in (
        (out, "my_run"),
        (out / "checkpoint-20", "checkpoint-20"),
        (out / "checkpoint-20" / "trainer_state.json", "checkpoint-20"),
    ):
        log = read(path)
        assert (log.label, log.format) == (label, "transformers trainer_state")
        check(log)


def test_an_output_folder_whose_own_state_is_older_than_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": ROWS[:1]}))
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text(json.dumps({"log_history": ROWS}))
    check(read(tmp_path))


@pytest.mark.parametrize("document", [ROWS, {"history": ROWS, "config": {"lr": 1e-4}}], ids=["list", "object"])
def test_a_json_document_with_rows(tmp_path: Path, document: Any) -> None:
    (tmp_path / "x").write_text(json.dumps(document, indent=1))
    check(read(tmp_path / "x"))


def test_a_json_document_with_columns(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(json.dumps({"iter": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "name": "run"}))
    assert written(read(tmp_path / "x"), "loss") == {1: 3.0, 2: 2.0, 3: 1.0}


def test_jsonl_with_text_around_nested_objects_numbers_in_quotes_and_rows_of_validation(tmp_path: Path) -> None:
    lines = [
        "starting",
        '{"config": {"lr": 0.001, "layers": 2}}',
        '{"type": "train", "global_step": 1, "train": {"loss": "3.5"}, "ok": true, "note": null}',
        '{"type": "val", "global_step": 1, "loss": 3.75}',
        '{"type": "train", "global_step": 2.0, "train": {"loss": NaN, "gnorm": 1}}',
        '{"type": "train", "global_step": 3, "train": {"lo',
    ]
    (tmp_path / "x.txt").write_text("\n".join(lines))
    log = read(tmp_path / "x.txt")
    assert written(log, "loss") == pytest.approx({1: 3.5, 2: float("nan")}, nan_ok=True)
    assert (written(log, "val_loss"), written(log, "grad_norm")) == ({1: 3.75}, {2: 1.0})
    assert log.remarks == ("2 lines of no JSON object passed over", "1 row without global_step passed over")


def test_a_table_of_text_with_any_delimiter_comments_and_thousands(tmp_path: Path) -> None:
    for text in (
        '# exported\n\nStep,Training Loss,note\n"1,000",2.5,a\n"2,000","1,234.5",\n3000,inf,b\n',
        "Step\tTraining Loss\n1000\t2.5\n2000\t1234.5\n3000\tInfinity\n",
        "\ufeffStep;Training Loss\r\n1000; 2.5\r\n2000;1234.5\r\n3000;+inf\r\n4000\r\n",
    ):
        (tmp_path / "x").write_text(text, newline="")
        assert written(read(tmp_path / "x"), "loss") == {1000: 2.5, 2000: 1234.5, 3000: float("inf")}


def test_lightning_metrics_have_gaps_and_a_step_for_training_and_for_validation(tmp_path: Path) -> None:
    folder = tmp_path / "lightning_logs" / "version_3"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(
        "epoch,lr-AdamW,step,train_loss_epoch,train_loss_step,val_loss\n0,,49,,9.5,\n,0.001,49,,,\n0,,99,,8.5,\n0,,99,,,8.75\n0,,99,9.0,,\n"
    )
    for path in (folder, folder / "metrics.csv"):
        log = read(path)
        assert (log.label, log.format) == ("version_3", "Lightning metrics.csv")
        assert (written(log, "loss"), written(log, "val_loss")) == ({49: 9.5, 99: 8.5}, {99: 8.75})
        assert written(log, "lr") == {49: 0.001}


def test_an_export_of_wandb_has_several_runs(tmp_path: Path) -> None:
    names = [f"{run} - {metric}" for run in ("a", "b - 2") for metric in ("train/loss", "train/grad_norm")]
    header = ["Step", *(f"{name}{end}" for name in names for end in ("", "__MIN", "__MAX"))]
    rows = [
        ["1", *("1.5", "0", "9") * 4],
        ["2", *("2.5", "0", "9") * 2, *("", "", "") * 2],
        ["3", *("",) * 6, *("3.5", "0", "9") * 2],
    ]
    (tmp_path / "x").write_text("\n".join(",".join(f'"{cell}"' for cell in row) for row in [header, *rows]))
    source = read_logs(tmp_path / "x", {})
    assert [log.label for log in source.logs] == ["a", "b - 2"]
    assert [written(log, "loss") for log in source.logs] == [{1: 1.5, 2: 2.5}, {1: 1.5, 3: 3.5}]
    assert [set(log.table.columns) for log in source.logs] == [{"train/loss", "train/grad_norm"}] * 2
    assert (
        source.told == "x: W&B CSV export of 2 runs; loss = train/loss, gradient norm = train/grad_norm; steps 1 to 3"
    )


def test_a_history_of_wandb_counts_training_steps_rather_than_logs(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(
        "_step,_runtime,train/global_step,train/loss,eval/loss\n0,1.5,10,2.5,\n1,2.5,20,2.25,\n2,3.5,20,,2.5\n"
    )
    log = read(tmp_path / "x")
    assert log.format == "W&B history CSV"
    assert (written(log, "loss"), written(log, "val_loss")) == ({10: 2.5, 20: 2.25}, {20: 2.5})


def test_parquet_in_which_nan_fills_what_was_not_logged(tmp_path: Path) -> None:
    steps = np.arange(40, dtype=np.int32)
    loss = np.linspace(3, 2, 40, dtype=np.float32)
    loss[7] = np.nan
    evaluated = np.where(steps % 10 == 0, loss, np.nan)
    pd.DataFrame({"iteration": steps, "loss": loss, "val_loss": evaluated, "split": "train"}).to_parquet(tmp_path / "x")
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"iteration": steps, "loss": loss, "val_loss": evaluated}), tmp_path / "y")
    told = read(tmp_path / "y")
    np.testing.assert_array_equal(told.table.columns["loss"], loss.astype(np.float64))
    assert told.table.non_finite["loss"].tolist() == [7]
    for log in (read(tmp_path / "x"), told):
        assert set(written(log, "val_loss")) == {0, 10, 20, 30}


def write_events(path: Path, rows: list[tuple[int, dict[str, float]]], wall_time: float, tensors: bool = False) -> None:
    """An event file as TensorBoard writes it, without checksums, which no reader here looks at."""
    Event = pytest.importorskip("tensorboard.compat.proto.event_pb2").Event

    events = [Event(wall_time=wall_time, file_version="brain.Event:2")]
    for step, numbers in rows:
        events.append(Event(wall_time=wall_time, step=step))
        for tag, value in numbers.items():
            one = events[-1].summary.value.add(tag=tag)
            if tensors:
                one.tensor.dtype = 1
                one.tensor.tensor_content = struct.pack("<f", value)
            else:
                one.simple_value = value
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [event.SerializeToString() for event in events]
    path.write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + struct.pack("<I", 0) for r in records))


@pytest.mark.parametrize("tensors", [False, True])
def test_event_files_of_tensorboard_and_folders_of_them(tmp_path: Path, tensors: bool) -> None:
    rows = [(step, {"train/loss": 3.0 - step / 8}) for step in range(1, 9)]
    write_events(tmp_path / "runs" / "b" / "events.out.tfevents.2", [(8, {"eval/loss": 2.5})], 2.0, tensors)
    write_events(tmp_path / "runs" / "b" / "events.out.tfevents.1", rows, 1.0, tensors)
    write_events(tmp_path / "runs" / "a" / "events.out.tfevents.3", rows[:3], 1.0, tensors)
    write_events(tmp_path / "runs" / "c" / "any name", rows, 1.0, tensors)  # not opened, unless it is named
    whole = {step: numbers["train/loss"] for step, numbers in rows}
    logs = read_logs(tmp_path / "runs", {}).logs
    assert [log.label for log in logs] == ["runs/a", "runs/b"]
    assert written(logs[1], "loss") == whole and written(logs[1], "val_loss") == {8: 2.5}
    for named in ("b/events.out.tfevents.1", "c/any name"):
        one = read(tmp_path / "runs" / named)
        assert one.format == "TensorBoard events" and written(one, "loss") == whole


def test_event_files_that_torch_writes(tmp_path: Path) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(tmp_path / "tb")
    for step in range(5):
        writer.add_scalar("Loss/train", 2.0 - step / 4, step)
        writer.add_text("note", "words", step)
    writer.close()
    assert written(read(tmp_path / "tb"), "loss") == {step: 2.0 - step / 4 for step in range(5)}


def test_a_missing_tensorboard_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<QIBd", 24, 0, 9, 1.0) + b"\x1a\x0dbrain.Event:2" + bytes(4))
    original = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="TensorBoard events need the package tensorboard: pip install tensorboard"):
        read_logs(tmp_path / "x", {})


def test_our_own_rows_keep_their_names(tmp_path: Path) -> None:
    row = {
        "step": 1,
        "lr": 0.1,
        "loss/nll": 2.0,
        "loss/objective": 3.0,
        "grad_norm/total": 1.0,
        "grad_norm/head": 0.5,
        "validation/nll": 2.5,
    }
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    roles = {
        "step": "step",
        "loss": "loss/nll",
        "grad_norm": "grad_norm/total",
        "lr": "lr",
        "val_loss": "validation/nll",
    }
    assert read(tmp_path / "metrics.jsonl").roles == roles


NO_LOGS: dict[str, tuple[bytes, str]] = {
    "prose": (b"One step at a time.\nIt was no loss.\n", "console log (no line of modded-nanogpt"),
    "nothing": (b"", "is empty"),
    "zeros": (b"\0" * 99, "CSV or TSV (it is no text)"),
    "a list of numbers": (b"[1, 2, 3]", "JSON document (it has neither a list of objects nor lists of numbers)"),
    "no step": (b"epoch,loss\n1,2.5\n2,2.25\n", "none of its columns counts steps; name it with --columns step="),
    "half steps": (b"step,loss\n0.5,2.5\n1,2.25\n", "whose column step holds 0.5, which is no number of a step"),
    "torn parquet": (b"PAR1" + b"x" * 50, "parquet, but it cannot be read"),
    "a trainer's console": (b"{'loss': 2.5, 'epoch': 0.1}\n{'loss': 2.4}\n", "name the trainer_state.json of its last"),
    "an empty history": (b'{"log_history": []}', "but no row of it has a number"),
    "a history of another shape": (b'{"log_history": 5}', "its log_history is no list of rows"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LOGS)
def test_what_is_no_log_says_in_one_line_what_was_looked_for(tmp_path: Path, name: str) -> None:
    data, told = NO_LOGS[name]
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(InputError) as error:
        read_logs(tmp_path / "x", {})
    (problem,) = error.value.problems
    assert str(tmp_path / "x") in problem and told in problem
    assert "remove" not in problem


def test_a_file_of_the_kernel_is_empty_and_is_not_read() -> None:
    """It has no size, whatever it says; some of them answer only once something happens."""
    file = Path("/proc/self/stat")
    assert file.read_bytes()
    with pytest.raises(InputError, match="is empty"):
        read_logs(file, {})


def test_a_folder_without_a_log_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no log was found in it \(trainer_state.json of transformers"):
        read_logs(tmp_path, {})
