"""Stopping a run at a step boundary, on all ranks at the same one, when a scheduler or a person asks for it."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from .collectives import world_size

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What a scheduler sends before it kills, what it can be asked to send earlier, and a person's Ctrl-C."""


@dataclass
class StopFlag:
    """The name of the signal that asked this process to stop, if any has."""

    signal: str | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """While inside, one of :data:`SIGNALS` sets the flag that is yielded; a second one of its kind acts as usual.

    A SIGINT that was ignored stays so: a shell starts what runs in the background of a script like that, so that the Ctrl-C
    which ends the script, or another job, does not end it. Who sends one of the others means this run.
    """
    flag = StopFlag()
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    if usual[signal.SIGINT] is signal.SIG_IGN:
        del usual[signal.SIGINT]

    def ask(number: int, frame: FrameType | None) -> None:
        flag.signal = signal.Signals(number).name
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, ask)
    try:
        yield flag
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class StopVote:
    """Whether any rank was asked to stop: agreed upon at every step without waiting for it.

    Each step starts a tiny reduction on the processors and reads the one that the step before started, so that several ranks
    stop one step after the signal. One process needs no agreement and stops at once. All ranks make and ask it alike.
    """

    def __init__(self, timeout: timedelta) -> None:
        # On the processors also where the work is on GPUs: asking must not wait for these.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world_size() > 1 else None
        self._cast: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, asked: bool) -> bool:
        """Take in whether this rank was asked, at the end of a step; whether all ranks stop now."""
        if self._group is None:
            return asked
        stops = False
        if self._cast is not None:
            work, value = self._cast
            work.wait()
            stops = bool(value.item())
        value = torch.tensor(float(asked))
        work = dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None, "an asynchronous reduction gives a handle"
        self._cast = (work, value)
        return stops

    def close(self) -> None:
        """Wait for what is on its way: at the end, when all ranks have voted equally often."""
        if self._cast is not None:
            self._cast[0].wait()
            self._cast = None
