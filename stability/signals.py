"""Stopping a run at a step boundary when the scheduler or a person asks for it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass
class StopFlag:
    """Whether a signal asked the run to stop."""

    is_set: bool = False


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """While inside, SIGTERM and SIGINT set the flag that is yielded; a second one acts as it usually does."""
    flag = StopFlag()
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(number: int, frame: FrameType | None) -> None:
        flag.is_set = True
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, ask)
    try:
        yield flag
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
