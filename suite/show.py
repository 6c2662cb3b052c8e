"""What a suite shows while it runs: a live table on a terminal, else a line for each run that has ended."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from record.rows import Row, last_row, status_of

from .child import Child
from .expand import SuiteRun

PERIOD = 1.0
"""Seconds between two looks at the runs' files."""
MOST_ROWS = 16
"""Runs in the live table; where more are under way, it says how many."""
LAST_LINES = 5
"""Of a run's output, among which it says how it ended."""


@dataclass
class Progress:
    """How far a suite is. Time left is by the steps that are left, at the speed since it was started."""

    steps: Mapping[str, int]
    """Last step of every run."""
    begin: Mapping[str, int]
    """For a branch, the step at which it begins."""
    done: set[str]
    """Runs that had ended before."""
    out: Path
    clock: float = field(default_factory=time.monotonic)
    before: dict[str, int] = field(default_factory=dict)
    """The step at which each run that was started went on."""
    ended: dict[str, Child] = field(default_factory=dict)

    at: dict[str, int] = field(init=False)
    """The last step of each run that is not done, as far as is known."""

    def __post_init__(self) -> None:
        self.at = {name: self.step(name) for name in self.steps if name not in self.done}

    def row(self, name: str) -> Row:
        """The last row that a run has written; empty if there is none."""
        try:
            return last_row(self.out / name / "metrics.jsonl") or {}
        except (ValueError, OSError):
            return {}  # the analysis of the run will say what is wrong with it

    def step(self, name: str) -> int:
        """The last step of a run on record."""
        return int(self.row(name).get("step") or self.begin.get(name, 0))

    def start(self, name: str) -> None:
        """Note where a run goes on."""
        self.before[name] = self.at[name] = self.step(name)

    def end(self, name: str, child: Child) -> None:
        """Note how a run has ended."""
        self.ended[name], self.at[name] = child, self.step(name)

    def preparing(self, name: str) -> bool:
        """Whether a run that was started has still to tokenise text or to build its model."""
        return self.at[name] == self.before[name] and status_of(self.out / name) != "running"

    def seconds_left(self) -> float | None:
        """By the steps taken since the start; None before there are any."""
        taken = sum(self.at[name] - before for name, before in self.before.items())
        left = sum(self.steps[name] - step for name, step in self.at.items() if name not in self.ended)
        return left * (time.monotonic() - self.clock) / taken if taken else None

    def line(self) -> str:
        """How many have ended, how many an hour, and the time left."""
        regular = sum(child.completed for child in self.ended.values())
        irregular = len(self.ended) - regular
        parts = [f"{len(self.done) + regular} of {len(self.steps)} runs done"]
        parts += [f"{irregular} failed or stopped"] if irregular else []
        hours = (time.monotonic() - self.clock) / 3600
        parts += [f"{regular / hours:.0f} runs an hour"] if regular else []
        left = self.seconds_left()
        parts += [f"{duration(left)} left"] if left is not None else []
        return ", ".join(parts)


def duration(seconds: float) -> str:
    """In words: 40 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(checked: int, of: int) -> None:
    """How many configurations are checked: a line of a terminal that is written anew each time."""
    if sys.stdout.isatty():
        print(f"\rchecked {checked} of {of}", end="\n" if checked == of else "", flush=True)


class Lines:
    """A line when a run has ended."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def started(self, run: SuiteRun) -> None:
        """Note where a run goes on."""
        self.progress.start(run.name)

    def ended(self, name: str, child: Child) -> None:
        """Say how a run has ended, and how far the suite is."""
        self.progress.end(name, child)
        print(f"{_ending(name, child)}; {self.progress.line()}", flush=True)

    def refresh(self, under_way: Mapping[str, Child]) -> None:
        """Nothing is shown in between."""

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None: ...


class LiveTable(Lines):
    """The runs that are under way as a table that is drawn anew every second, below the lines of those that have ended."""

    def __init__(self, progress: Progress, console: Console) -> None:
        super().__init__(progress)
        self.live = Live(console=console, auto_refresh=False, transient=True)
        self.drawn = 0.0

    def __enter__(self) -> LiveTable:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def ended(self, name: str, child: Child) -> None:
        """Say how a run has ended, above the table."""
        self.progress.end(name, child)
        self.live.console.print(Text(_ending(name, child)))
        self.drawn = 0.0

    def refresh(self, under_way: Mapping[str, Child]) -> None:
        """Draw the table anew if it is time."""
        if time.monotonic() - self.drawn < PERIOD:
            return
        self.drawn = time.monotonic()
        self.live.update(Group(table(self.progress, under_way), Text(self.progress.line())), refresh=True)


def _ending(name: str, child: Child) -> str:
    """How a run has ended: in its own words if it was regularly, otherwise with the place of its log."""
    if not child.completed:
        return f"{name}: {child} ({child.log})"
    own = (line for line in child.last_lines(LAST_LINES) if line.startswith(f"{child}: "))
    return f"{name}: {next(own, str(child))}"


def table(progress: Progress, under_way: Mapping[str, Child]) -> Table:
    """The runs that are under way."""
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("under way")
    for heading in ("step", "of", "NLL", "gradient norm", "steps/s"):
        drawn.add_column(heading, justify="right")
    for name in [*under_way][:MOST_ROWS]:
        row = progress.row(name)
        progress.at[name] = int(row.get("step") or progress.at[name])
        speed, tokens = row.get("throughput/tokens_per_second"), row.get("tokens")
        each = tokens / row["step"] if tokens and row.get("step") else None
        drawn.add_row(
            Text(name),
            "preparing" if progress.preparing(name) else f"{progress.at[name]}",
            f"{progress.steps[name]}",
            _number(row.get("loss/nll"), ".3f"),
            _number(row.get("grad_norm/total"), ".3g"),
            _number(speed / each if isinstance(speed, float) and each else None, ".1f"),
        )
    if len(under_way) > MOST_ROWS:
        drawn.add_row(f"and {len(under_way) - MOST_ROWS} more")
    return drawn


def view(progress: Progress) -> Lines:
    """A live table if standard output is a terminal, else lines."""
    console = Console(file=sys.stdout, highlight=False, markup=False)
    return LiveTable(progress, console) if console.is_terminal else Lines(progress)


def _number(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, float) else "" if value is None else str(value)
