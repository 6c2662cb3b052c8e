"""Name the missing rank when several ranks wait for each other.

Each rank regularly reports a heartbeat and its progress to a store in rank 0's memory. When a rank falls silent, or nobody
makes progress, for longer than the limit, every rank that still can prints its step and whom it waits for, and exits: a
launcher or scheduler then sees a failed job instead of one that hangs.
"""

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
MAX_SECONDS_BETWEEN_BEATS = 5.0
MAX_SILENCE_SECONDS = 120.0
"""A live rank sends heartbeats even while it works for long, so silence is judged sooner than lack of progress."""
WRITING_SECONDS = 30
"""Time to write the report to a disk that may be what hangs."""
BEATS_WITHIN_LIMIT = 20
"""Heartbeats that a rank sends within the limit, at least."""
MISSED_BEATS = 3
"""After a connection error, a rank that misses this many heartbeats is gone."""


class RankLostError(Exception):
    """Other ranks are gone; the message names them."""


@dataclass
class Progress:
    """How far a rank has come, as far as this rank knows. Times are of this process's monotonic clock."""

    heard_at: float
    """When its last heartbeat was seen."""
    moved_at: float
    """When it was last seen to make progress."""
    beats: int = 0
    moves: int = 0
    step: int = 0
    phase: str = "start"


class Watchdog:
    """One rank's part. ``report(step, line, missing)`` is called once before the process ends."""

    def __init__(
        self, limit: float, report: Callable[[int, str, list[int]], None], stacks: Path, device: torch.device
    ) -> None:
        self._limit, self._report, self._stacks = limit, report, stacks
        self._period = min(MAX_SECONDS_BETWEEN_BEATS, limit / BEATS_WITHIN_LIMIT)
        self._rank = rank()
        now = time.monotonic()
        self._ranks = [Progress(heard_at=now, moved_at=now) for _ in range(world_size())]
        self._mine = self._ranks[self._rank]
        self._store = _connect(device, self._period) if world_size() > 1 else None
        self._exchanged_at = now
        """When this rank last exchanged heartbeats."""
        self._done = threading.Event()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Send heartbeats and watch those of the other ranks within the block."""
        if self._store is None:
            yield
            return
        self._reset(time.monotonic())  # loading may have taken longer than the limit
        # Two threads: an exchange hangs while rank 0 stands still, which must be noticed.
        exchange = threading.Thread(target=self._exchange, name="watchdog's heartbeats", daemon=True)
        judge = threading.Thread(target=self._judge, name="watchdog", daemon=True)
        for thread in (exchange, judge):
            thread.start()
        try:
            yield
        finally:
            self._done.set()
            judge.join()
            exchange.join(timeout=MISSED_BEATS * self._period)

    def moved(self, step: int, phase: str) -> None:
        """Report progress: this rank has reached ``phase`` of ``step``. All ranks must report the same phases in the same
        order."""
        mine = self._mine
        mine.moves, mine.step, mine.phase, mine.moved_at = mine.moves + 1, step, phase, time.monotonic()

    def name_lost(self) -> None:
        """Raise :class:`RankLostError` if another rank has fallen silent, which would explain a connection error."""
        patience = MISSED_BEATS * self._period
        ends = time.monotonic() + 2 * patience
        while self._store is not None and time.monotonic() < ends:
            if silent := self._silent(patience):
                line = self._line(silent)
                self._report(self._mine.step, line, silent)
                raise RankLostError(line)
            time.sleep(self._period / 2)

    def _exchange(self) -> None:
        assert self._store is not None, "only several ranks exchange heartbeats"
        mine, everyone = self._mine, [str(r) for r in range(len(self._ranks))]
        while not self._done.wait(self._period):
            with contextlib.suppress(dist.DistError):  # rank 0, which holds the store, is gone: judged by its silence
                mine.beats += 1
                self._store.set(str(self._rank), json.dumps([mine.beats, mine.moves, mine.step, mine.phase]))
                self._read(self._store.multi_get(everyone))
                self._exchanged_at = time.monotonic()

    def _read(self, heartbeats: Sequence[bytes]) -> None:
        now = time.monotonic()
        for other, heartbeat in zip(self._ranks, heartbeats, strict=True):
            if other is self._mine:
                continue
            beats, moves, step, phase = json.loads(heartbeat)
            if beats != other.beats:
                other.heard_at = now
            if moves != other.moves:
                other.moved_at = now
            other.beats, other.moves, other.step, other.phase = beats, moves, step, phase

    def _judge(self) -> None:
        looked_at = time.monotonic()
        while not self._done.wait(self._period):
            now = time.monotonic()
            if now - looked_at > MISSED_BEATS * self._period:  # the whole job was suspended: start counting again
                self._reset(now)
            looked_at = now
            if missing := self._silent(min(self._limit, MAX_SILENCE_SECONDS)) or self._behind():
                self._end(missing)

    def _reset(self, now: float) -> None:
        """Count silence and standstill from ``now`` on."""
        for each in self._ranks:
            each.heard_at = each.moved_at = now
        self._exchanged_at = now

    def _silent(self, patience: float) -> list[int]:
        """Ranks without a heartbeat for ``patience`` seconds."""
        if self._rank and time.monotonic() - self._exchanged_at > patience:
            return [0]  # it holds the store; nothing is known about the others
        heard = self._exchanged_at
        return [r for r, other in enumerate(self._ranks) if r != self._rank and heard - other.heard_at > patience]

    def _behind(self) -> list[int]:
        """The ranks that have come least far, if this rank has made no progress within the limit."""
        if time.monotonic() - self._mine.moved_at <= self._limit:
            return []
        least = min(each.moves for each in self._ranks)
        return [r for r, each in enumerate(self._ranks) if each.moves == least]

    def _line(self, missing: Sequence[int]) -> str:
        now = time.monotonic()
        mine = self._mine
        waited = f"rank {self._rank} has been at step {mine.step} ({mine.phase}) for {now - mine.moved_at:.0f} s"
        if len(missing) == len(self._ranks):
            return f"{waited}, and all ranks are there"
        if self._rank in missing:
            return f"{waited}; the other ranks wait for it"
        lost = [
            f"rank {r}, last heard of {now - self._ranks[r].heard_at:.0f} s ago at step {self._ranks[r].step} "
            f"({self._ranks[r].phase})"
            for r in missing
        ]
        return f"{waited}; missing: {'; '.join(lost)}"

    def _end(self, missing: list[int]) -> None:
        """Report and end the process: its main thread is blocked and cannot be called back."""
        try:
            line = self._line(missing)
            # On a new line, after a progress bar; and before touching the disk, which may be what hangs.
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
            self._report(self._mine.step, line, missing)


def _connect(device: torch.device, period: float) -> dist.Store:
    """Connect to the store that rank 0 holds."""
    wait = timedelta(seconds=CONNECT_SECONDS)
    store = None
    if rank() == 0:
        store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=wait)
        for number in range(world_size()):  # so that nobody waits for a first heartbeat
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
    store.set_timeout(timedelta(seconds=max(1.0, MISSED_BEATS * period)))
    return store
