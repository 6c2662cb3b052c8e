"""Runs on this machine, some at a time."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from .child import Child
from .expand import SuiteRun
from .warm import WarmChild


class Local:
    """Up to ``places`` runs at a time, as forks of one process that has imported everything."""

    def __init__(self, context: ForkServerContext, recipe: Path, logs: Path, places: int) -> None:
        self.context, self.recipe, self.logs = context, recipe, logs
        self._places = places

    @property
    def places(self) -> int:
        """How many runs may be under way at a time."""
        return self._places

    def start(self, runs: Sequence[SuiteRun]) -> Mapping[str, Child]:
        """Start these runs."""
        return {run.name: self._start(run) for run in runs}

    def _start(self, run: SuiteRun) -> Child:
        arguments = ["--config", str(self.recipe), *run.overrides]
        log = self.logs / f"{run.name}.log"
        write_command(log, ["train_lm.py", *arguments])
        return WarmChild(self.context, arguments, log)


class CommandChild(Child):
    """A command of this project in a process of its own, which starts Python anew."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        write_command(log, command)
        super().__init__(log)
        with log.open("ab") as file:  # not a pipe: it must not end because its suite does
            self.process = subprocess.Popen(  # noqa: S603  (this project's own commands)
                [sys.executable, *command], env=environment, stdout=file, stderr=subprocess.STDOUT
            )

    def look(self) -> int | None:
        return self.process.poll()

    def tell_to_stop(self) -> None:
        self.process.terminate()


def write_command(log: Path, command: Sequence[str]) -> None:
    """Begin a part of a log with what is run."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ python {shlex.join(command)}\n")


def threads_each(places: int) -> int | None:
    """Threads of each of ``places`` runs that share the cores; None leaves one run alone to torch."""
    return None if places == 1 else max(1, len(os.sched_getaffinity(0)) // places)
