"""Something that a suite has started: a run, or an analysis."""

from __future__ import annotations

import signal
from abc import ABC, abstractmethod
from pathlib import Path

from common.command import EXIT_DIVERGED, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_PREEMPTED
from common.processes import ending, last_lines

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that interrupt a suite, as they do a run."""
ENDS = {EXIT_FINISHED: "finished", EXIT_DIVERGED: "diverged", EXIT_PREEMPTED: "stopped"}
"""Regular ends of a run."""
STOPPED = (EXIT_PREEMPTED, EXIT_INTERRUPTED, *(-number for number in SIGNALS))
"""How a run may end after a stop signal: before its first step it writes no checkpoint."""


class Child(ABC):
    """It writes to a log, from byte ``start`` on."""

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.start = log.stat().st_size if log.exists() else 0
        self.stopped = False
        """Whether the suite, being interrupted, has told it to stop."""
        self.returncode: int | None = None
        """As :mod:`subprocess` has it; None until it has ended."""

    @abstractmethod
    def look(self) -> int | None:
        """The return code now, None while it is under way."""

    @abstractmethod
    def tell_to_stop(self) -> None:
        """Make it write a checkpoint and end."""

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.returncode is None:
            self.returncode = self.look()
        return self.returncode is not None

    def stop(self) -> None:
        """Stop it, once: a second signal of a kind ends a run in the middle of its checkpoint."""
        if not self.stopped:
            self.stopped = True
            self.tell_to_stop()

    @property
    def completed(self) -> bool:
        """Whether it reached its own end. A run that diverges is a result."""
        return self.returncode in (EXIT_FINISHED, EXIT_DIVERGED)

    @property
    def status(self) -> int:
        """Its exit status as a shell would give it; 75 also if it was stopped before it could write a checkpoint."""
        assert self.returncode is not None
        if self.stopped and self.returncode in STOPPED:
            return EXIT_PREEMPTED
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    def __str__(self) -> str:
        assert self.returncode is not None
        return ENDS.get(self.status) or ending(self.returncode)

    def last_lines(self, count: int) -> list[str]:
        """The last lines of its output."""
        return last_lines(self.log, count, self.start)
