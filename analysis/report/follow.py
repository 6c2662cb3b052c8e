"""A page that is kept up to date while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common.errors import InputError, one_line
from record.lock import lock_holder

from .material import Material

Write = Callable[[Material, int | None], None]
"""Writes the page; the second argument: after how many seconds it is to load itself again, if at all."""


def await_rows(paths: Sequence[str], every: int) -> None:
    """Wait until each path is there, and each of the runs that are being trained has logged something: a run makes its tokens
    before its first row."""
    for path in map(Path, paths):
        told = False
        while not path.exists() or (not (path / "metrics.jsonl").exists() and lock_holder(path) is not None):
            if not told:
                what = "has no rows yet; waiting for the first" if path.exists() else "is not there yet; waiting for it"
                print(f"{one_line(str(path))} {what} (Ctrl-C ends this)", flush=True)
            told = True
            time.sleep(every)


def follow(first: Material, read: Callable[[], Material], write: Write, every: int) -> None:
    """Write the page now and every so many seconds, until nothing more can come or Ctrl-C is pressed; then once more, as a page
    that stays. What cannot be read for a moment, since it is being written, leaves the page as it is."""
    material = first
    try:
        while material.goes_on:
            write(material, every)
            time.sleep(every)
            try:
                material = read()
            except InputError as error:
                print(f"the page stays as it was: {error.problems[0]}")
    except KeyboardInterrupt:
        print("no longer followed")
    write(material, None)
