"""Runs of a suite that another process is writing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import InputError
from record.lock import lock_holder

PATIENCE = 60.0
"""Seconds in which the runs of a suite that was killed have written their checkpoints."""
PAUSE = 0.1


def wait_until_free(out: Path, names: Sequence[str], patience: float = PATIENCE) -> None:
    """Wait for runs that another process is writing: those of a suite that was killed end by themselves. Raises InputError,
    naming the processes, if they do not."""
    held = _held(out, names)
    if held:
        runs = "1 run that was" if len(held) == 1 else f"{len(held)} runs that were"
        print(f"waiting for {runs} started before to end: {', '.join(held.values())}", flush=True)
    ends = time.monotonic() + patience
    while held and time.monotonic() < ends:
        time.sleep(PAUSE)
        held = _held(out, [*held])
    if held:
        raise InputError(
            *(f"{out / name}: {holder} is writing this run; wait for it, or stop it" for name, holder in held.items())
        )


def _held(out: Path, names: Sequence[str]) -> dict[str, str]:
    """The runs whose lock is held, and by which process."""
    return {name: holder for name in names if (holder := lock_holder(out / name)) is not None}
