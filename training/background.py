"""Work that every rank does beside training, and that all of them finish before it counts.

The ranks agree on how far they are by the vote that each of them casts at every step anyway (:mod:`ranks.stop`), and where all
have to wait for it, by a reduction that the training thread makes. The threads here make no collective calls, so that none can
come in another order on another rank.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Sequence

import torch

from ranks.collectives import all_reduce, from_rank, rank

SALVAGE_SECONDS = 60
"""Time to write what is under way when the run has failed: to a disk that may be what hangs."""


class Background:
    """One piece of work after the other: a piece begins on every rank once all have done the one before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pieces: list[Callable[[], None]] = []
        """The one under way, and those after it."""
        self._abandon: Callable[[], None] = lambda: None
        self._done = self._agreed = 0
        """Pieces that this rank has done, and that all are known to have done."""
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None

    @property
    def pending(self) -> bool:
        """Whether there is work that not all ranks are known to have done: the same on all of them."""
        return bool(self._pieces)

    def begin(self, pieces: Sequence[Callable[[], None]], abandon: Callable[[], None] = lambda: None) -> None:
        """Begin new work, with nothing pending. ``abandon``: what clears away after a failure. All ranks call it."""
        assert not self._pieces, "one work after the other"
        self._pieces, self._abandon = list(pieces), abandon
        self._start()

    def _start(self) -> None:
        # A daemon: a process that ends at once must not wait for a slow disk.
        self._thread = threading.Thread(target=self._do, args=(self._pieces[0],), name="background", daemon=True)
        self._thread.start()

    def _do(self, piece: Callable[[], None]) -> None:
        try:
            piece()
            self._done += 1
        except Exception as error:  # noqa: BLE001 - raised in the training thread, on every rank
            self._error = error

    def votes(self) -> tuple[float, float]:
        """What this rank tells the others: minus the pieces it has done, and 1 + its number if one has failed."""
        return -float(self._done), 0.0 if self._error is None else 1.0 + rank()

    def go_on(self, done: float, failed: float) -> None:
        """Act on the greatest votes of all ranks, also older ones. All ranks call it with the same ones. Raises what a piece has
        raised on any of them."""
        if failed:
            self._give_up(int(failed) - 1)
        if self._pieces and -done == self._agreed + 1:
            self._agreed += 1
            del self._pieces[0]
            if self._pieces:
                self._start()

    def finish(self) -> None:
        """Wait until nothing is pending. All ranks call it. Raises what a piece has raised on any of them."""
        while self._pieces:
            self._join()
            votes = torch.tensor(self.votes(), device=self._device)
            all_reduce(votes, "max")
            self.go_on(*votes.tolist())

    def salvage(self) -> None:
        """After a failure, when the ranks can no longer agree: wait for what is under way here, and try what comes after it. That
        succeeds if all ranks have done theirs."""
        self._join(SALVAGE_SECONDS)
        if self._error is None:
            with contextlib.suppress(Exception):
                for piece in self._pieces[1:]:
                    piece()
        self._pieces = []

    def _join(self, most_seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(most_seconds)

    def _give_up(self, culprit: int) -> None:
        self._join()
        error, self._pieces = self._error, []
        all_reduce(torch.zeros((), device=self._device), "max")  # no rank writes any more
        self._abandon()
        told = from_rank(culprit, lambda: _words(error), self._device)
        if error is not None:
            raise error
        number, name, text = told
        raise OSError(number, os.strerror(number), name) if number else RuntimeError(f"rank {culprit}: {text}")


def _words(error: Exception | None) -> tuple[int | None, str, str]:
    """An error as JSON: the system's number and file if it has them, and its text."""
    text = f"{type(error).__name__}: {error}"
    return (error.errno, str(error.filename), text) if isinstance(error, OSError) else (None, "", text)
