"""The run directory of a monitor: rows, events and status of a loop that is not ours.

It knows neither the model nor the optimizer, so that it can wait for the end of the process without keeping them in memory.
"""

import atexit
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from record.environment import environment, peak_memory_bytes
from record.recorder import Recorder
from record.rows import Row, last_row, rows_up_to
from stability.detect.catalogue import DEFAULT, judged_from
from stability.detect.events import Spike
from stability.detect.precursors import LOOK_BACK
from stability.watch import Watch

SIGNALS = ("loss/nll", "grad_norm/total")
"""Watched for spikes, as in train_lm.py's recipes."""
SECTION = "monitor"
"""The section of config.yaml by which such a directory is known."""
STEPS_TOLD = 20
"""Most steps of a spike whose batches its event names."""
RELEARNT = 2 * LOOK_BACK
"""Rows from which the detectors learn anew what is usual when a run continues."""


class MonitorWatch(Watch):
    """Leads back to a spike by the data of its steps: there is no checkpoint to replay it from."""

    def __init__(self, recorder: Recorder, say: Callable[[str], None], warmup_steps: int) -> None:
        self.batches: dict[int, Any] = {}
        """What names the data of each step, as far as it was given."""
        super().__init__(recorder, say, DEFAULT, SIGNALS, warmup_steps)

    def way_back(self, spike: Spike, drew: Callable[[int], int]) -> tuple[dict[str, Any], str]:
        """The batches of the spike's steps and of the one before, whose update began it, and the command that draws it."""
        steps = range(spike.start_step - 1, spike.end_step + 1)
        known = [[step, _plain(self.batches[step])] for step in steps if step in self.batches]
        return {"batches": known[:STEPS_TOLD]} if known else {}, look_command(self.recorder.directory)

    def relearn(self, step: int) -> None:
        """Show the detectors the rows before ``step``, whose events are on record."""
        for row in rows_up_to(self.recorder.directory / "metrics.jsonl", step, RELEARNT):
            for detector in self.detectors:
                if row["step"] >= judged_from(detector, self.warmup_steps):
                    detector.update(row)


class MonitorLog:
    """Writer of one directory, from its first file to its last status."""

    def __init__(self, directory: Path, resume: bool, start_step: int | None, warmup_steps: int, every: int) -> None:
        """Raises ValueError for a directory that holds a run, unless ``resume``."""
        self.recorder = Recorder(directory, writes=True)
        self.warmup_steps, self.every = warmup_steps, every
        self.step = start_step or 0
        if holds_run(directory):
            if not resume:
                raise ValueError(
                    f"{directory} holds a run already; name another directory, or continue it with resume=True"
                )
            last = last_row(directory / "metrics.jsonl")
            self.step = start_step if start_step is not None else last["step"] if last else 0
        self.watch = MonitorWatch(self.recorder, print, warmup_steps)
        self.open: tuple[Row, list[str], list[Tensor]] | None = None
        """The last step, whose update is still to come: host's values, names and vectors of the device's."""
        self.alarmed = False
        """Whether the last row seen had something that was not finite."""
        self.closed = False
        self.process = os.getpid()

    def start(self, facts: Mapping[str, Any], config: Mapping[str, Any], device: torch.device, precision: str) -> None:
        """Write the files that describe the run, and drop the rows and events after the step from which it continues. Raises
        OSError for a directory that cannot be written."""
        described = {SECTION: dict(facts), "optimizer": {"warmup_steps": self.warmup_steps}, "config": dict(config)}
        plain = json.loads(json.dumps(described, default=str))
        self.recorder.write_text("config.yaml", yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        self.recorder.write_text("environment.json", json.dumps(environment(1, device, precision), indent=1) + "\n")
        self.device = device
        self.recorder.rewind(self.step)
        self.recorder.status("running", self.step)
        if self.step:
            self.watch.restore(None, self.step)
            self.watch.relearn(self.step)
            self.recorder.event("resume", self.step, step=self.step)
        atexit.register(self.at_exit)

    def begin(self, host: Row, names: list[str], vectors: list[Tensor], batch: Any) -> None:
        """Take a step's values before its update."""
        self.settle()
        self.step = host["step"]
        self.open = (host, names, vectors)
        if batch is not None:
            self.watch.batches[self.step] = batch
            self.watch.batches.pop(self.step - LOOK_BACK - self.every, None)

    def complete(self, names: list[str], vector: Tensor) -> None:
        """Add the values of the step's update."""
        assert self.open is not None
        host, known, vectors = self.open
        self.open = (host, known + names, [*vectors, vector])
        self.settle()

    def settle(self) -> None:
        """Buffer the last step as it is, and write what is buffered if that is due. Waits for the device only then."""
        if self.open is not None:
            host, names, vectors = self.open
            self.open = None
            self.recorder.add_vector(host, names, torch.cat([vector.float() for vector in vectors]))
        if len(self.recorder.buffer) >= self.every:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows, and have the detectors look at them."""
        rows, _ = self.recorder.transfer()
        if not rows:
            return
        for row in rows:
            row["memory/peak_bytes"] = peak_memory_bytes(self.device)
        self.recorder.write_rows(rows)
        for row in rows:
            self._report_non_finite(row)
        self.watch.look(rows, drew=lambda step: step)

    def _report_non_finite(self, row: Row) -> None:
        signals = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        bad = any(signal in SIGNALS for signal in signals)
        if bad and not self.alarmed:
            step = row["step"]
            batch = {"batches": [[step, _plain(self.watch.batches[step])]]} if step in self.watch.batches else {}
            self.recorder.event("non_finite", step, step=step, signals=signals, **batch)
            others = f" (nor are {len(signals) - 1} other values)" if len(signals) > 1 else ""
            print(
                f"{signals[0]} is not finite at step {step}{others}; training goes on\n"
                f"  what happened? {look_command(self.recorder.directory)}"
            )
        self.alarmed = bad

    def close(self, status: str, reason: str = "") -> None:
        """Write what is left, and how the run ended."""
        if self.closed:
            return
        self.closed = True
        atexit.unregister(self.at_exit)
        self.settle()
        self.flush()
        self.watch.finish(self.step, drew=lambda step: step)
        self.recorder.status(status, self.step, reason)

    def give_up(self, reason: str) -> None:
        """Write, as far as that is possible, the steps so far, and why nothing more will be written."""
        self.closed = True
        atexit.unregister(self.at_exit)
        with contextlib.suppress(Exception):  # ``reason`` is told in any case
            self.settle()
            self.flush()
        self.recorder.event("monitor_failed", self.step, step=self.step, reason=reason)
        self.recorder.status("failed", self.step, f"monitoring ended, training went on: {reason}")

    def at_exit(self) -> None:
        """The end of a process that did not close its monitor: after an exception, the run has failed."""
        if os.getpid() != self.process:  # a fork, whose rows the process itself writes
            return
        error = getattr(sys, "last_value", None)
        try:
            if error is None:
                self.close("finished")
            else:
                self.close("failed", f"{type(error).__name__}: {error}")
        except OSError as problem:
            print(f"{self.recorder.directory}: the last steps could not be written: {problem}", file=sys.stderr)


def holds_run(directory: Path) -> bool:
    """Whether a directory has the files of a run."""
    return any((directory / name).exists() for name in ("metrics.jsonl", "config.yaml", "status.json"))


def look_command(run: Path) -> str:
    """The command that draws a run's events with their precursors."""
    return f"python -m analysis.spikes {run} --out {run}/spikes"


def _plain(batch: Any) -> Any:
    """What names a batch, as JSON."""
    if hasattr(batch, "tolist"):
        return batch.tolist()
    if isinstance(batch, list | tuple):
        return [_plain(item) for item in batch]
    return batch if isinstance(batch, int | float | str) else str(batch)
