"""Run a set of runs that belong together, then compare them.

    python run_suite.py configs/suites/demo.yaml [--out DIR] [--jobs N] [--check]

The configurations of all runs are checked before the first one starts. Each run is a process of its own: one that diverges,
fails or is killed leaves the others alone, and the table at the end says what became of each. An analysis is made if all runs
that it names have finished or diverged. What a run or an analysis prints is in <out>/logs/, too. Interrupted and started again,
the suite goes on where it was: finished runs are not repeated, the others resume from their last checkpoint.

With --jobs, N runs at a time share the cores, each on its part of them: small models leave cores waiting for each other, so
that two runs on a core each are done sooner than one after the other on both (RESULTS.md). The number of threads is part of
what makes a run repeatable to the bit.

Exit status: 0 all runs finished or diverged, and all analyses were made; 2 bad input; 75 interrupted, or a run was; otherwise
the highest status of any run or analysis, where one that was killed by a signal counts as 128 plus its number (137: SIGKILL).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pydantic
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from analysis.show.tables import terminal_table
from common.command import EXIT_DIVERGED, EXIT_FINISHED, EXIT_INTERRUPTED, EXIT_PREEMPTED, ArgumentParser, exit_status
from common.errors import InputError
from common.processes import ending, last_lines
from common.section import Place, Section
from record.rows import last_row

ROOT = Path(__file__).parent
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""What interrupts a suite: the same as interrupts a run."""
ENDS = {EXIT_FINISHED: "finished", EXIT_DIVERGED: "diverged", EXIT_PREEMPTED: "stopped"}
"""The ends of a run that are no accident."""
STOPPED = (EXIT_PREEMPTED, EXIT_INTERRUPTED, *(-number for number in SIGNALS))
"""How a run may end that was asked to stop: before its first step it writes no checkpoint."""
LAST_LINES = 5
"""Of a run that did not finish, told at the end."""


class Suite(Section):
    """A suite file."""

    recipe: Place
    """The recipe of all runs, relative to the suite file."""
    out: Place
    """Directory of the runs and of what is made from them."""
    runs: dict[str, list[str]] = Field(min_length=1)
    """Name of each run, and its overrides of the recipe."""
    seeds: list[int] = Field(default=[])
    """Every run once with each of these seeds, as <name>_seed<seed>; all runs of a seed before those of the next."""
    analyses: list[str] = Field(default=[])
    """Commands of analysis/ to run afterwards; {out} is the suite's directory, {runs} all runs, {name} one of them (with
    seeds: all of that name)."""
    next: list[str] = Field(default=[])
    """Lines that tell what to look at when all is done; {out} is the suite's directory."""

    @property
    def arms(self) -> dict[str, list[str]]:
        """The names of the runs that each entry of ``runs`` stands for."""
        return {name: [f"{name}_seed{seed}" for seed in self.seeds] or [name] for name in self.runs}

    @property
    def overrides(self) -> dict[str, list[str]]:
        """The overrides of each run, in the order in which they are started."""
        if not self.seeds:
            return self.runs
        return {
            f"{name}_seed{seed}": [*overrides, f"seed={seed}"]
            for seed in self.seeds
            for name, overrides in self.runs.items()
        }


@dataclass(frozen=True)
class Analysis:
    """A command of analysis/, and the runs that it names."""

    name: str
    arguments: list[str]
    runs: set[str]


def main() -> int:
    """Run the suite named on the command line."""
    parser = ArgumentParser(description="Run a set of runs that belong together, then compare them.")
    parser.add_argument("suite", type=Path, help="a YAML file, see configs/suites/")
    parser.add_argument("--out", help="directory of the runs (default: the suite's own)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--check", action="store_true", help="only check the suite and the configurations of its runs")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        raise InputError(f"--jobs: must be at least 1, but is {arguments.jobs}")
    suite = load_suite(arguments.suite)
    out = Path(arguments.out or suite.out)
    recipe = arguments.suite.parent / suite.recipe
    analyses = [filled_analysis(command, suite, out) for command in suite.analyses]
    following = [filled(line, "next", out) for line in suite.next]
    overrides = {
        name: [f"output_dir={json.dumps(str(out))}", f"name={json.dumps(name)}", *own]
        for name, own in suite.overrides.items()
    }
    if arguments.check:
        return check(recipe, overrides, out)
    # In a process of its own: what it imports (torch, plugins) would stay in the memory that the runs need.
    checking = [sys.executable, __file__, str(arguments.suite), "--out", str(out), "--check"]
    checked = subprocess.run(checking, check=False).returncode  # noqa: S603  (this project's own command)
    if checked < 0:
        raise InputError(f"the check of the configurations was {ending(checked)}")
    return checked or run(overrides, recipe, analyses, following, arguments.jobs, out)


def run(
    overrides: dict[str, list[str]],
    recipe: Path,
    analyses: list[Analysis],
    following: list[str],
    jobs: int,
    out: Path,
) -> int:
    """All runs, then the analyses of those that came through; returns the exit status."""
    processes = Processes(out / "logs")
    with processes.interruptible():
        train = [str(ROOT / "train_lm.py"), "--config", str(recipe)]
        ended = processes.run({name: [*train, *own] for name, own in overrides.items()}, jobs)
        through = {name for name, end in ended.items() if end.through}
        possible = [a for a in analyses if a.runs <= through]
        made: dict[str, Ended] = {}
        for number, analysis in enumerate(possible, start=1):
            name = f"analysis_{number}_{analysis.name}"
            made |= processes.run({name: ["-m", f"analysis.{analysis.name}", *analysis.arguments]}, jobs=1)
    print(f"\n{results(list(overrides), ended, out)}\n")
    for analysis in analyses:
        if analysis not in possible:
            lacking = ", ".join(name for name in overrides if name in analysis.runs - through)
            print(f"analysis.{analysis.name}: not made, without {lacking}")
    for name, end in (ended | made).items():
        print("".join(f"{line}\n" for line in end.last_words(name)), end="")
    print(f"All of it is in {out}/")
    status = suite_status([*ended.values(), *made.values()], processes.interrupted)
    if status == EXIT_FINISHED and following:
        print("\n".join(["\nWhat to look at next:", *(f"  {line}" for line in following)]))
    if status == EXIT_PREEMPTED:
        print("interrupted; the same command goes on from here")
    return status


# ----------------------------------------------------------------------------------------------------- what is asked for


def load_suite(path: Path) -> Suite:
    """The checked suite file. Raises InputError naming each mistake."""
    try:
        return Suite.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except pydantic.ValidationError as error:
        raise InputError(*(": ".join([str(path), *_key(e["loc"]), e["msg"]]) for e in error.errors())) from None
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def _key(loc: tuple[int | str, ...]) -> list[str]:
    """The dotted name of a key that pydantic speaks of; nothing if it speaks of the whole file."""
    return [".".join(map(str, loc))] if loc else []


def check(recipe: Path, overrides: Mapping[str, list[str]], out: Path) -> int:
    """Check the configurations of all runs. Raises InputError with all mistakes, and the runs that each of them is in."""
    from configs.load import load_config

    found: dict[str, list[str]] = {}
    for name, own in overrides.items():
        try:
            config = load_config(recipe, own)
            problems = [
                f"{key}: a suite sets it itself; leave it out"
                for key, kept in (("name", config.name == name), ("output_dir", Path(config.output_dir) == out))
                if not kept
            ]
        except InputError as error:
            problems = [*error.problems]
        for problem in problems:
            found.setdefault(problem, []).append(name)
    if found:
        raise InputError(*(f"{', '.join(runs)}: {problem}" for problem, runs in found.items()))
    print(f"checked the configurations of {len(overrides)} runs")
    return EXIT_FINISHED


def filled_analysis(command: str, suite: Suite, out: Path) -> Analysis:
    """The command with its placeholders filled in; what stands for several runs becomes several words."""
    try:
        name, *words = shlex.split(command)
    except ValueError as error:  # a quotation that does not end, or nothing at all
        raise InputError(f"analyses: {command!r} cannot be read: {error}") from None
    if not name.isidentifier() or importlib.util.find_spec(f"analysis.{name}") is None:
        raise InputError(f"analyses: {command}: there is no analysis.{name}")
    arguments, named = [], set[str]()
    for word in words:
        if word == "{runs}":
            runs = list(suite.overrides)
        elif word[:1] + word[-1:] == "{}" and word[1:-1] in suite.arms:
            runs = suite.arms[word[1:-1]]
        else:
            arguments.append(filled(word, "analyses", out))
            continue
        arguments += [str(out / run) for run in runs]
        named |= set(runs)
    return Analysis(name, arguments, named)


def filled(text: str, key: str, out: Path) -> str:
    """``text`` of the suite's ``key`` with the suite's directory for {out}."""
    try:
        return text.format(out=out)
    except (KeyError, IndexError, ValueError, AttributeError):
        known = "{out}, {runs} and the runs' names, as words of their own" if key == "analyses" else "{out}"
        raise InputError(f"{key}: {text}: unknown placeholder; there are {known}") from None


# ------------------------------------------------------------------------------------------------------------- processes


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    returncode: int
    asked: bool
    """Whether the suite, being interrupted, had asked it to stop."""
    log: Path
    start: int
    """Where in the log begins what it said."""

    @property
    def through(self) -> bool:
        """Whether it came to its own end. A run that diverges is a result."""
        return self.returncode in (EXIT_FINISHED, EXIT_DIVERGED)

    @property
    def status(self) -> int:
        """Its exit status as a shell would give it; 75 also if it was stopped before it could write a checkpoint."""
        if self.asked and self.returncode in STOPPED:
            return EXIT_PREEMPTED
        return self.returncode if self.returncode >= 0 else 128 - self.returncode

    def __str__(self) -> str:
        return ENDS.get(self.status) or ending(self.returncode)

    def last_words(self, name: str) -> list[str]:
        """Lines that tell how it ended and what it said last, unless it finished or was stopped."""
        if self.status in (EXIT_FINISHED, EXIT_PREEMPTED):
            return []
        said = last_lines(self.log, LAST_LINES, self.start)
        return [f"{name}: {self}; the end of {self.log}:", *(f"  | {line}" for line in said or ["(nothing)"])]


class Child:
    """A process that writes to a log; ``shows``: what it writes is copied to the terminal."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str], *, shows: bool) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        # A file, and not a pipe: a run must not end because its suite does. Unbuffered: one that is killed has said all.
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment
        environment.setdefault(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # as train_lm.py: beside other load, spinning costs minutes
        with log.open("ab") as file:
            self.start = file.tell()
            self.process = subprocess.Popen(  # noqa: S603  (this project's own commands)
                [sys.executable, *command], env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        self.log, self.shows, self.shown = log, shows, self.start
        self.asked = False

    def stop(self) -> None:
        """Ask it to stop, once: a second signal of a kind ends a run in the middle of its checkpoint.

        SIGUSR1, because it may have had the suite's own signal already: Ctrl-C and schedulers reach all processes.
        """
        if not self.asked:
            self.asked = True
            self.process.send_signal(signal.SIGUSR1)

    def ended(self) -> Ended | None:
        """How it ended; None while it runs. Copies what it has said since the last call."""
        returncode = self.process.poll()
        if self.shows:
            with self.log.open("rb") as file:
                file.seek(self.shown)
                sys.stdout.buffer.write(file.read())
                self.shown = file.tell()
            sys.stdout.flush()
        return None if returncode is None else Ended(returncode, self.asked, self.log, self.start)


class Processes:
    """Runs commands in processes of their own, some at a time, until all have ended or a signal interrupts."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.interrupted = False
        self._running: dict[str, Child] = {}

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """While inside, SIGNALS stop what runs and keep back what waits. A SIGINT that was ignored stays so."""
        usual = {number: signal.getsignal(number) for number in SIGNALS}
        if usual[signal.SIGINT] is signal.SIG_IGN:
            del usual[signal.SIGINT]
        for number in usual:
            signal.signal(number, lambda *_: self._interrupt())
        try:
            yield
        finally:
            self._stop_all()
            for number, handler in usual.items():
                signal.signal(number, handler)

    def run(self, commands: Mapping[str, list[str]], jobs: int) -> dict[str, Ended]:
        """Run Python with each of these command lines, ``jobs`` at a time; how each of those that were started ended."""
        waiting, ended = list(commands), dict[str, Ended]()
        while self._running or (waiting and not self.interrupted):
            while waiting and not self.interrupted and len(self._running) < jobs:
                name = waiting.pop(0)
                print(f"\n$ python {shlex.join(commands[name])}", flush=True)
                environment = shared_cores(jobs) if jobs > 1 else terminal_size()
                self._running[name] = Child(commands[name], self.logs / f"{name}.log", environment, shows=jobs == 1)
            if self.interrupted:  # perhaps while one was being started
                self._stop_all()
            time.sleep(0.05)
            for name, child in [*self._running.items()]:
                end = child.ended()
                if end is None:
                    continue
                del self._running[name]
                ended[name] = end
                if not end.through:  # a progress bar may be half drawn
                    print(f"{chr(10) * (jobs == 1)}{name}: {end} ({end.log})", flush=True)
                elif jobs > 1:
                    print(f"{name}: {''.join(last_lines(end.log, 1, end.start)) or end}", flush=True)
        return ended

    def _interrupt(self) -> None:
        self.interrupted = True
        self._stop_all()

    def _stop_all(self) -> None:
        for child in [*self._running.values()]:
            child.stop()


def shared_cores(jobs: int) -> dict[str, str]:
    """The environment of one of several runs at a time: its part of the cores, unless the user has decided."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))}


def terminal_size() -> dict[str, str]:
    """The environment of a process whose progress bars reach the terminal by way of a file."""
    if not sys.stdout.isatty():
        return {}
    size = shutil.get_terminal_size()
    return {"COLUMNS": str(size.columns), "LINES": str(size.lines)}


# --------------------------------------------------------------------------------------------------------------- results


def suite_status(ends: list[Ended], interrupted: bool) -> int:
    """The exit status of a suite; see the module's docstring."""
    statuses = [end.status for end in ends if not end.through]
    return EXIT_PREEMPTED if interrupted or EXIT_PREEMPTED in statuses else max(statuses, default=EXIT_FINISHED)


def results(names: list[str], ended: Mapping[str, Ended], out: Path) -> str:
    """A table of all runs: what became of each, how far it came, and how well it did beside the first."""
    nll: dict[str, float] = {}
    rows = []
    for name in names:
        end = ended.get(name)
        cells = [name, str(end or "not started"), "", "", ""]
        try:
            row = last_row(out / name / "metrics.jsonl") if end else None
            cells[2] = str(row["step"]) if row else ""
        except (ValueError, TypeError, KeyError, OSError):  # whatever has become of the file, the others' rows are told
            row, cells[2] = None, "unreadable"
        if end and row and end.returncode == EXIT_FINISHED and "validation/nll" in row:
            nll[name] = float(row["validation/nll"])
            cells[3] = f"{nll[name]:.4f}"
            if name != names[0] and names[0] in nll:
                cells[4] = f"{nll[name] - nll[names[0]]:+.4f}"
        rows.append(cells)
    return terminal_table(["run", "end", "last step", "validation NLL", f"minus {names[0]}"], rows)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
