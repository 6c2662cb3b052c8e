"""Naming the rank that is missing when several ranks wait for each other.

Each rank tells the others now and then that it lives and how far it has come, through a store in rank 0's memory. When a rank
falls silent, or nobody gets on, for longer than the limit, every rank that can still speak says at which step it waits and for
whom, and ends: a launcher or a scheduler then sees a failed job instead of one that hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from common.command import EXIT_RANK_LOST
from common.errors import InputError

from .collectives import from_main, rank, world_size

CONNECT_SECONDS = 60
MOST_SECONDS_BETWEEN_SIGNS = 5.0
MOST_SECONDS_OF_SILENCE = 120.0
"""A rank that lives gives signs also while it works long, so silence is judged sooner than standing still."""
WRITING_SECONDS = 30
"""For the last words on a disk that may be what hangs."""
SIGNS_WITHIN_LIMIT = 20
"""Signs of life that a rank gives within the limit, at least."""
SIGNS_OF_A_DEAD_RANK = 3
"""So many signs missed, after an error of the connection, say that the rank is gone."""


class RankLostError(Exception):
    """Other ranks are gone; the message is for a person and names them."""


@dataclass
class Place:
    """How far a rank has come, as this rank knows it. Times are of this process's own clock, which nobody can set."""

    signs: int = 0
    """Signs of life it has given."""
    moves: int = 0
    step: int = 0
    phase: str = "start"
    heard_at: float = 0.0
    """When its last sign came."""
    moved_at: float = 0.0
    """When it was last seen to get on."""


class Watchdog:
    """One rank's part. ``tell(step, line, missing)`` is called once before the process ends."""

    def __init__(
        self, limit: float, tell: Callable[[int, str, list[int]], None], stacks: Path, device: torch.device
    ) -> None:
        self._limit, self._tell, self._stacks = limit, tell, stacks
        self._period = min(MOST_SECONDS_BETWEEN_SIGNS, limit / SIGNS_WITHIN_LIMIT)
        self._rank = rank()
        now = time.monotonic()
        self._places = [Place(heard_at=now, moved_at=now) for _ in range(world_size())]
        self._mine = self._places[self._rank]
        self._store = _connect(device, self._period) if world_size() > 1 else None
        self._exchanged_at = now
        """When this rank last gave and heard signs."""
        self._done = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Give signs of life and listen for those of the others while inside."""
        if self._store is None:
            yield
            return
        now = time.monotonic()
        for place in self._places:  # loading may have taken longer than the limit
            place.heard_at = place.moved_at = now
        self._exchanged_at = now
        # Two threads: an exchange may hang for as long as rank 0 stands still, and that must be noticed.
        exchange = threading.Thread(target=self._exchange, name="watchdog's signs", daemon=True)
        judge = threading.Thread(target=self._judge, name="watchdog", daemon=True)
        for thread in (exchange, judge):
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            judge.join()
            exchange.join(timeout=SIGNS_OF_A_DEAD_RANK * self._period)

    def moved(self, step: int, phase: str) -> None:
        """This rank gets on: it is at ``phase`` of ``step`` now. All ranks must pass the same places."""
        mine = self._mine
        mine.moves, mine.step, mine.phase, mine.moved_at = mine.moves + 1, step, phase, time.monotonic()

    def name_lost(self) -> None:
        """Raise :class:`RankLostError` if another rank has fallen silent, as an error of the connection suggests."""
        patience = SIGNS_OF_A_DEAD_RANK * self._period
        ends = time.monotonic() + 2 * patience
        while self._store is not None and time.monotonic() < ends:
            if silent := self._silent(patience):
                line = self._line(silent)
                self._tell(self._mine.step, line, silent)
                raise RankLostError(line)
            time.sleep(self._period / 2)

    def _exchange(self) -> None:
        while not self._done.wait(self._period):
            with contextlib.suppress(dist.DistError):  # rank 0, which holds the store, is gone: judged by its silence
                self._give_sign()
                self._listen()
                self._exchanged_at = time.monotonic()

    def _judge(self) -> None:
        looked_at = time.monotonic()
        while not self._done.wait(self._period):
            now = time.monotonic()
            if now - looked_at > SIGNS_OF_A_DEAD_RANK * self._period:  # the whole job was suspended: no time has passed
                for place in self._places:
                    place.heard_at = place.moved_at = now
                self._exchanged_at = now
            looked_at = now
            if missing := self._silent(min(self._limit, MOST_SECONDS_OF_SILENCE)) or self._behind():
                self._end(missing)

    def _give_sign(self) -> None:
        mine = self._mine
        mine.signs += 1
        assert self._store is not None, "only several ranks give signs"
        self._store.set(str(self._rank), json.dumps([mine.signs, mine.moves, mine.step, mine.phase]))

    def _listen(self) -> None:
        assert self._store is not None, "only several ranks listen"
        signs_of_all = self._store.multi_get([str(r) for r in range(len(self._places))])
        now = time.monotonic()
        for place, told in zip(self._places, signs_of_all, strict=True):
            if place is self._mine:
                continue
            signs, moves, step, phase = json.loads(told)
            if signs != place.signs:
                place.heard_at = now
            if moves != place.moves:
                place.moved_at = now
            place.signs, place.moves, place.step, place.phase = signs, moves, step, phase

    def _silent(self, patience: float) -> list[int]:
        """Ranks that gave no sign for so many seconds."""
        if self._rank and time.monotonic() - self._exchanged_at > patience:
            return [0]  # it holds the store; of the others nothing is known
        heard = self._exchanged_at
        return [r for r, place in enumerate(self._places) if r != self._rank and heard - place.heard_at > patience]

    def _behind(self) -> list[int]:
        """If this rank has not got on within the limit: the ranks that have come least far."""
        if time.monotonic() - self._mine.moved_at <= self._limit:
            return []
        least = min(place.moves for place in self._places)
        return [r for r, place in enumerate(self._places) if place.moves == least]

    def _line(self, missing: Sequence[int]) -> str:
        now = time.monotonic()
        mine = self._mine
        waited = f"rank {self._rank} has been at step {mine.step} ({mine.phase}) for {now - mine.moved_at:.0f} s"
        if len(missing) == len(self._places):
            return f"{waited}, and all ranks are there"
        if self._rank in missing:
            return f"{waited}; the other ranks wait for it"
        told = [
            f"rank {r}, last heard of {now - self._places[r].heard_at:.0f} s ago at step {self._places[r].step} "
            f"({self._places[r].phase})"
            for r in missing
        ]
        return f"{waited}; missing: {'; '.join(told)}"

    def _end(self, missing: list[int]) -> None:
        """Say what is known and end the process: its main thread waits and cannot be called back."""
        try:
            line = self._line(missing)
            # On a line of its own, after what there is of a progress bar; and before a disk that may hang is touched.
            print(f"\nerror: {line}; where this rank was: {self._stacks}", file=sys.stderr, flush=True)
            writer = threading.Thread(target=self._write_down, args=(line, missing), daemon=True)
            writer.start()
            writer.join(WRITING_SECONDS)
        finally:
            os._exit(EXIT_RANK_LOST)

    def _write_down(self, line: str, missing: list[int]) -> None:
        with contextlib.suppress(OSError):
            with self._stacks.open("w", encoding="utf-8") as file:
                faulthandler.dump_traceback(file)
            self._tell(self._mine.step, line, missing)


def _connect(device: torch.device, period: float) -> dist.Store:
    """The store that rank 0 holds."""
    wait = timedelta(seconds=CONNECT_SECONDS)
    store = None
    if rank() == 0:
        store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=wait)
        for number in range(world_size()):  # so that nobody waits for a sign that has not been given yet
            store.set(str(number), json.dumps([0, 0, 0, "start"]))
    port = from_main(lambda: store.port if store else None, device)
    host = os.environ["MASTER_ADDR"]
    if store is None:
        try:
            store = dist.TCPStore(host, port, is_master=False, timeout=wait)
        except dist.DistError as error:
            raise InputError(
                f"launch: rank {rank()} cannot reach rank 0 at {host}, port {port}; let the machines reach each other"
            ) from error
    store.set_timeout(timedelta(seconds=max(1.0, SIGNS_OF_A_DEAD_RANK * period)))
    return store
