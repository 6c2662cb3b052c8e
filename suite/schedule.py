"""Starting a suite's runs, each when what it begins at is there, and waiting for them."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import BinaryIO, Protocol

from common.errors import note

from .child import SIGNALS, Child
from .expand import SuiteRun

PAUSE = 0.05
"""Seconds between looks at what is running."""


class Starter(Protocol):
    """Where runs are started."""

    @property
    def places(self) -> int:
        """How many may be under way at a time."""

    def start(self, runs: Sequence[SuiteRun]) -> Mapping[str, Child]:
        """Start these runs, at most as many as there are places left."""


class Interrupted:
    """Whether one of SIGNALS has been received, and what is to be stopped then."""

    def __init__(self) -> None:
        self.received = False
        self.under_way: dict[str, Child] = {}

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGNALS stop what is under way. A SIGINT that was ignored stays ignored."""
        usual = {number: signal.getsignal(number) for number in SIGNALS}
        if usual[signal.SIGINT] is signal.SIG_IGN:
            del usual[signal.SIGINT]

        def interrupt(*_: object) -> None:
            if not self.received:
                note("stopping: what is running writes a checkpoint first; the same command goes on from there")
            self.received = True
            self.stop_all()

        for number in usual:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            self.stop_all()
            for number, handler in usual.items():
                signal.signal(number, handler)

    def stop_all(self) -> None:
        """Stop what is under way."""
        for child in [*self.under_way.values()]:
            child.stop()


class View(Protocol):
    """What is shown while a suite runs."""

    def started(self, run: SuiteRun) -> None:
        """A run is about to be started."""

    def ended(self, name: str, child: Child) -> None:
        """A run has ended."""

    def refresh(self, under_way: Mapping[str, Child]) -> None:
        """Called between two looks at what is running."""


def run_all(
    runs: Sequence[SuiteRun],
    done: Mapping[str, str],
    starter: Starter,
    interrupted: Interrupted,
    view: View,
    begins: Callable[[SuiteRun], bool],
) -> tuple[dict[str, Child], dict[str, str]]:
    """Start all runs that are not ``done``, in their order, a branch when the run that it begins at has ended.

    ``begins``: whether the checkpoint that a branch begins at is there. Returns the runs that were started, all of them ended,
    and those that could not be, with the reason. After an interruption nothing is started.
    """
    waiting, ended, under_way = [run for run in runs if run.name not in done], dict[str, Child](), interrupted.under_way
    lost: dict[str, str] = {}
    while under_way or (waiting and not interrupted.received):
        ready: list[SuiteRun] = []
        still: list[SuiteRun] = []
        for run in waiting:
            full = interrupted.received or len(ready) == starter.places - len(under_way)
            pending = run.parent is not None and not any(run.parent in over for over in (done, ended, lost))
            if full or pending:
                still.append(run)
            elif run.parent is None or (run.parent not in lost and begins(run)):
                ready.append(run)
            else:
                lost[run.name] = f"not started: {run.parent} has no step {run.parent_step}"
        waiting = still
        if ready:
            for run in ready:
                view.started(run)
            under_way |= starter.start(ready)
        if interrupted.received:  # perhaps while one was being started
            interrupted.stop_all()
        time.sleep(PAUSE)
        for name in [name for name, child in under_way.items() if child.ended()]:
            ended[name] = under_way.pop(name)
            view.ended(name, ended[name])
        view.refresh(under_way)
    return ended, lost


def wait_for(name: str, child: Child, interrupted: Interrupted) -> Child:
    """Wait for one child, showing what it prints."""
    interrupted.under_way[name] = child
    if interrupted.received:  # while it was being started
        child.stop()
    with child.log.open("rb") as log:
        log.seek(child.start)
        while not child.ended():
            _copy(log)
            time.sleep(PAUSE)
        _copy(log)
    return interrupted.under_way.pop(name)


def _copy(log: BinaryIO) -> None:
    sys.stdout.buffer.write(log.read())
    sys.stdout.flush()
