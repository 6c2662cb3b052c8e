"""Stop a run on request at a step boundary, the same one on all ranks; what else they agree on at every step."""

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
"""What a scheduler sends before it kills a job, what it can be told to send earlier, and Ctrl-C."""


@dataclass
class StopFlag:
    """Name of the signal that requested a stop; None so far."""

    signal: str | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[StopFlag]:
    """Within the block, the first of :data:`SIGNALS` sets the yielded flag; a second one of the same kind acts as usual.

    A SIGINT that was ignored before stays ignored: a shell starts background jobs of a script that way, so that Ctrl-C for
    the script does not end them. The other signals are always meant for this run.
    """
    flag = StopFlag()
    usual = {number: signal.getsignal(number) for number in SIGNALS}
    if usual[signal.SIGINT] is signal.SIG_IGN:
        del usual[signal.SIGINT]

    def request(number: int, frame: FrameType | None) -> None:
        flag.signal = signal.Signals(number).name
        signal.signal(number, usual[signal.Signals(number)])

    for number in usual:
        signal.signal(number, request)
    try:
        yield flag
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class Vote:
    """Agreement of all ranks on a few numbers, whether to stop among them, at every step, without waiting for it.

    Each step starts a tiny reduction on the CPU and reads the result of the one before, so several ranks stop one step
    after the signal; a single process stops at once. All ranks must call it equally often, with equally many numbers.
    """

    def __init__(self, timeout: timedelta) -> None:
        # gloo on GPUs too: the vote must not wait for the devices.
        self._group = dist.new_group(backend="gloo", timeout=timeout) if world_size() > 1 else None
        self._cast: tuple[dist.Work, torch.Tensor] | None = None

    def __call__(self, *numbers: float) -> list[float]:
        """Vote at the end of a step. Returns the greatest of each number over all ranks at the step before; at first zeros."""
        if self._group is None:
            return list(numbers)
        greatest = [0.0] * len(numbers)
        if self._cast is not None:
            work, values = self._cast
            work.wait()
            greatest = values.tolist()
        values = torch.tensor(numbers, dtype=torch.float64)
        work = dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None, "an asynchronous reduction returns a handle"
        self._cast = (work, values)
        return greatest

    def close(self) -> None:
        """Wait for the last reduction, once all ranks have voted equally often."""
        if self._cast is not None:
            self._cast[0].wait()
            self._cast = None
