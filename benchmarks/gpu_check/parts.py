"""The parts of the check, and how each runs: in a process of its own, so that none can end the others."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.processes import ending, last_lines

ROOT = Path(__file__).parents[2]
WORKERS = 6
"""Test processes that share the GPU; a test waits for the host most of the time."""
POLL = 2.0
"""Seconds between two looks at a part's progress."""
GRACE = 10.0
"""Most seconds that a part gets to end by itself after its time is up."""

Device = Literal["cuda", "cpu"]


@dataclass(frozen=True)
class Part:
    """A part of the check: the module of this package that runs it with --lines, --seconds and --device, or pytest."""

    name: str
    weight: float
    """Its share of the time left when it starts, relative to the parts after it."""

    def command(self, lines: Path, seconds: float, device: Device, environment: Mapping[str, str]) -> list[str]:
        """The process that runs the part in this environment."""
        if self.name != "tests":
            own = ["--lines", str(lines), "--seconds", f"{seconds:.1f}", "--device", device]
            return [sys.executable, "-m", f"benchmarks.gpu_check.{self.name}", *own]
        # In the environment of the part: the plug-in may be among the unpacked packages.
        path = [*environment.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
        side_by_side = device == "cuda" and importlib.machinery.PathFinder.find_spec("xdist", path) is not None
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "benchmarks.gpu_check.pytest_lines"]
        # One at a time, so that no worker holds back tests while it takes a long one.
        workers = ["-n", str(WORKERS), "--maxschedchunk", "1"] if side_by_side else []
        return [sys.executable, "-m", "pytest", "tests/gpu", *options, *workers]


PARTS = (
    Part("machine", 150),  # a few seconds, but the first import of torch from a cold disk may take minutes
    Part("tests", 130),
    Part("loss_table", 90),
    Part("training_table", 240),
    Part("profile_step", 25),
)


@dataclass(frozen=True)
class Outcome:
    """How a part ended."""

    name: str
    seconds: float
    problem: str | None = None
    """Why it is incomplete; None if it ran to its end."""


def run_part(
    part: Part,
    lines: Path,
    log: Path,
    seconds: float,
    device: Device,
    environment: dict[str, str],
    watch: Callable[[], None],
) -> Outcome:
    """Run a part for at most ``seconds``, with ``watch`` called now and then. Its output is added to ``log``."""
    grace = min(GRACE, seconds / 5)
    own = environment | {"GPU_CHECK_DEVICE": device, "GPU_CHECK_LINES": str(lines)}
    began = time.monotonic()
    with log.open("a", encoding="utf-8") as output:
        print(f"==== {part.name}", file=output, flush=True)
        start = output.tell()
        process = subprocess.Popen(  # noqa: S603  (this project's own modules)
            part.command(lines, seconds - grace, device, own),
            cwd=ROOT,
            env=own,
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,  # so that its children can be ended too; not a session, which would outlive a killed check
        )
        try:
            status = _wait(process, began + seconds, watch)
        finally:
            _end(process)
    took = time.monotonic() - began
    if status is None:
        return Outcome(part.name, took, f"ended after its {seconds:.0f} s")
    # pytest's 1: a test failed. The report names it.
    if status == 0 or (part.name == "tests" and status == 1):
        return Outcome(part.name, took)
    last = last_lines(log, 1, start)
    return Outcome(part.name, took, f"{ending(status)}: {last[0] if last else 'no output'}")


def _wait(process: subprocess.Popen[bytes], deadline: float, watch: Callable[[], None]) -> int | None:
    """The exit status of the process, or None if it is not done by the deadline."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            return process.wait(min(POLL, left))
        except subprocess.TimeoutExpired:
            watch()
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
