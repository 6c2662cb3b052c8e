"""Run several training runs, then compare them.

    python run_suite.py configs/suites/demo.yaml [--out DIR] [--jobs N] [--check]

The configurations of all runs are checked before the first one starts. Each run is its own process: one that diverges, fails or
is killed does not affect the others, and the table at the end says how each ended. An analysis is made if all runs that it names
have finished or diverged. The output of runs and analyses is also in <out>/logs/. The same command continues an interrupted
suite: finished runs are not repeated, the others resume from their last checkpoint.

With --jobs, N runs at a time share the cores: a small model does not keep several cores busy, so two runs on one core each are
done sooner than one after the other on both (RESULTS.md). The number of threads affects bitwise reproducibility.

Exit status: 0 all runs finished or diverged and all analyses were made; 2 bad input; 75 the suite or a run was interrupted;
otherwise the highest status of any run or analysis, where a signal counts as 128 plus its number (137: SIGKILL).
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
"""Signals that interrupt a suite, as they do a run."""
ENDS = {EXIT_FINISHED: "finished", EXIT_DIVERGED: "diverged", EXIT_PREEMPTED: "stopped"}
"""Regular ends of a run."""
STOPPED = (EXIT_PREEMPTED, EXIT_INTERRUPTED, *(-number for number in SIGNALS))
"""How a run may end after a stop signal: before its first step it writes no checkpoint."""
LAST_LINES = 5
"""Lines printed of the log of a run that failed."""


class Suite(Section):
    """A suite file."""

    recipe: Place
    """The recipe of all runs, relative to the suite file."""
    out: Place
    """Directory of the runs, analyses and logs."""
    runs: dict[str, list[str]] = Field(min_length=1)
    """Overrides of the recipe, by the name of the run."""
    seeds: list[int] = Field(default=[])
    """Repeat every run with each of these seeds, as <name>_seed<seed>; all runs of a seed before those of the next."""
    analyses: list[str] = Field(default=[])
    """Commands of analysis/ to run afterwards; {out} is the suite's directory, {runs} all runs, {name} one of them (with
    seeds: all of that name)."""
    next: list[str] = Field(default=[])
    """Lines to print when everything is done, saying what to look at; {out} is the suite's directory."""

    @property
    def arms(self) -> dict[str, list[str]]:
        """The names of the runs of each entry of ``runs``."""
        return {name: [f"{name}_seed{seed}" for seed in self.seeds] or [name] for name in self.runs}

    @property
    def overrides(self) -> dict[str, list[str]]:
        """The overrides of each run, in the order in which they are started."""
        repeated = [(f"{n}_seed{s}", [*own, f"seed={s}"]) for s in self.seeds for n, own in self.runs.items()]
        return dict(repeated) or self.runs


@dataclass(frozen=True)
class Analysis:
    """A command of analysis/ and the runs that it names."""

    name: str
    arguments: list[str]
    runs: set[str]


def main() -> int:
    """Run the suite named on the command line."""
    parser = ArgumentParser(description="Run several training runs, then compare them.")
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
    # In its own process: what it imports (torch, plugins) would stay in the memory that the runs need.
    checking = [sys.executable, __file__, str(arguments.suite), "--out", str(out), "--check"]
    checked = subprocess.run(checking, check=False).returncode  # noqa: S603  (this project's own command)
    if checked < 0:
        raise InputError(f"the check of the configurations was {ending(checked)}")
    return checked or run(overrides, recipe, analyses, following, arguments.jobs, out)


def run(
    overrides: dict[str, list[str]], recipe: Path, analyses: list[Analysis], following: list[str], jobs: int, out: Path
) -> int:
    """All runs, then the analyses whose runs have all finished or diverged; returns the exit status."""
    processes = Processes(out / "logs")
    with processes.interruptible():
        train = [str(ROOT / "train_lm.py"), "--config", str(recipe)]
        ended = processes.run({name: [*train, *own] for name, own in overrides.items()}, jobs)
        completed = {name for name, child in ended.items() if child.completed}
        possible = [a for a in analyses if a.runs <= completed]
        commands = {
            f"analysis_{i}_{a.name}": ["-m", f"analysis.{a.name}", *a.arguments]
            for i, a in enumerate(possible, start=1)
        }
        made = processes.run(commands, jobs=1)
    print(f"\n{results(list(overrides), ended, out)}\n")
    for analysis in analyses:
        if analysis not in possible:
            lacking = ", ".join(name for name in overrides if name in analysis.runs - completed)
            print(f"analysis.{analysis.name}: not made, without {lacking}")
    for name, child in (ended | made).items():
        if child.status not in (EXIT_FINISHED, EXIT_PREEMPTED):
            print(f"{name}: {child}; the end of {child.log}:")
            print("\n".join(f"  | {line}" for line in child.last_lines(LAST_LINES) or ["(nothing)"]))
    print(f"All of it is in {out}/")
    failed = [child.status for child in (ended | made).values() if not child.completed]
    status = max(failed, default=EXIT_FINISHED)
    if processes.interrupted or EXIT_PREEMPTED in failed:
        status = EXIT_PREEMPTED
    if status == EXIT_FINISHED and following:
        print("\n".join(["\nWhat to look at next:", *(f"  {line}" for line in following)]))
    if status == EXIT_PREEMPTED:
        print("interrupted; the same command goes on from here")
    return status


# -------------------------------------------------------------------------------------------------------- the suite file


def load_suite(path: Path) -> Suite:
    """The checked suite file. Raises InputError naming each mistake."""
    try:
        return Suite.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except pydantic.ValidationError as error:
        problems = ((".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())  # no key: about the whole file
        raise InputError(*(": ".join(filter(None, [str(path), *problem])) for problem in problems)) from None
    except (OSError, yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def check(recipe: Path, overrides: Mapping[str, list[str]], out: Path) -> int:
    """Check the configurations of all runs. Raises InputError with all mistakes, and the runs that each of them is in."""
    from configs.load import load_config

    runs_with: dict[str, list[str]] = {}
    for name, own in overrides.items():
        problems: list[str] = []
        try:
            config = load_config(recipe, own)
            kept = {"name": config.name == name, "output_dir": Path(config.output_dir) == out}
            problems = [f"{key}: a suite sets it itself; leave it out" for key, same in kept.items() if not same]
        except InputError as error:
            problems += error.problems
        for problem in problems:
            runs_with.setdefault(problem, []).append(name)
    if runs_with:
        raise InputError(*(f"{', '.join(runs)}: {problem}" for problem, runs in runs_with.items()))
    print(f"checked the configurations of {len(overrides)} runs")
    return EXIT_FINISHED


def filled_analysis(command: str, suite: Suite, out: Path) -> Analysis:
    """The command with its placeholders filled in; one for several runs becomes several arguments."""
    try:
        name, *words = shlex.split(command)
    except ValueError as error:  # an unclosed quotation, or nothing at all
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
    """``text``, from the suite's ``key``, with the suite's directory for {out}."""
    try:
        return text.format(out=out)
    except (KeyError, IndexError, ValueError, AttributeError):
        known = "{out}, {runs} and the runs' names, as words of their own" if key == "analyses" else "{out}"
        raise InputError(f"{key}: {text}: unknown placeholder; there are {known}") from None


# ------------------------------------------------------------------------------------------------------------- processes


class Child:
    """One of ``jobs`` processes at a time; it writes to a log and, if it is the only one, to the terminal."""

    def __init__(self, command: list[str], log: Path, jobs: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered, so that the log of a killed process is complete. The policy is that of train_lm.py.
        own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        environment = {"OMP_WAIT_POLICY": "PASSIVE"} | environment_for(jobs) | os.environ | own
        with log.open("ab") as file:  # not a pipe: a run must not end because its suite does
            self.start = self.shown = file.tell()
            self.process = subprocess.Popen(  # noqa: S603  (this project's own commands)
                [sys.executable, *command], env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        self.log, self.shows = log, jobs == 1
        self.stopped = False
        """Whether the suite, being interrupted, has sent it a signal."""

    def stop(self) -> None:
        """Signal it to stop, once: a second signal of a kind ends a run in the middle of its checkpoint.

        SIGUSR1, because it may have received the suite's own signal already: Ctrl-C and schedulers reach all processes.
        """
        if not self.stopped:
            self.stopped = True
            self.process.send_signal(signal.SIGUSR1)

    def ended(self) -> bool:
        """Whether it has ended; also copies its new output to the terminal."""
        returncode = self.process.poll()
        if self.shows:
            with self.log.open("rb") as file:
                file.seek(self.shown)
                sys.stdout.buffer.write(file.read())
                self.shown = file.tell()
            sys.stdout.flush()
        return returncode is not None

    @property
    def completed(self) -> bool:
        """Whether it reached its own end. A run that diverges is a result."""
        return self.process.returncode in (EXIT_FINISHED, EXIT_DIVERGED)

    @property
    def status(self) -> int:
        """Its exit status as a shell would give it; 75 also if it was stopped before it could write a checkpoint."""
        returncode: int = self.process.returncode
        if self.stopped and returncode in STOPPED:
            return EXIT_PREEMPTED
        return returncode if returncode >= 0 else 128 - returncode

    def __str__(self) -> str:
        return ENDS.get(self.status) or ending(self.process.returncode)

    def last_lines(self, count: int) -> list[str]:
        """The last lines of its output."""
        return last_lines(self.log, count, self.start)


class Processes:
    """Runs commands in their own processes, some at a time, until all have ended or a signal interrupts."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.interrupted = False
        self._running: dict[str, Child] = {}

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, SIGNALS stop what is running and start nothing new. A SIGINT that was ignored stays ignored."""
        usual = {number: signal.getsignal(number) for number in SIGNALS}
        if usual[signal.SIGINT] is signal.SIG_IGN:
            del usual[signal.SIGINT]

        def interrupt(*_: object) -> None:
            self.interrupted = True
            self._stop_all()

        for number in usual:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            self._stop_all()
            for number, handler in usual.items():
                signal.signal(number, handler)

    def run(self, commands: Mapping[str, list[str]], jobs: int) -> dict[str, Child]:
        """Run Python with each of these command lines, ``jobs`` at a time; returns those that were started, all ended."""
        waiting, ended = list(commands), dict[str, Child]()
        while self._running or (waiting and not self.interrupted):
            while waiting and not self.interrupted and len(self._running) < jobs:
                name = waiting.pop(0)
                print(f"\n$ python {shlex.join(commands[name])}", flush=True)
                self._running[name] = Child(commands[name], self.logs / f"{name}.log", jobs)
            if self.interrupted:  # perhaps while one was being started
                self._stop_all()
            time.sleep(0.05)
            for name in [name for name, child in self._running.items() if child.ended()]:
                ended[name] = child = self._running.pop(name)
                if not child.completed:  # a progress bar may be half drawn
                    print(f"{chr(10) * (jobs == 1)}{name}: {child} ({child.log})", flush=True)
                elif jobs > 1:
                    print(f"{name}: {''.join(child.last_lines(1)) or child}", flush=True)
        return ended

    def _stop_all(self) -> None:
        for child in [*self._running.values()]:
            child.stop()


def environment_for(jobs: int) -> dict[str, str]:
    """Default variables: its share of the cores for one of several processes, else the terminal's size for progress bars."""
    if jobs > 1:
        return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    size = shutil.get_terminal_size()
    return {"COLUMNS": str(size.columns), "LINES": str(size.lines)} if sys.stdout.isatty() else {}


# --------------------------------------------------------------------------------------------------------------- results


def results(names: list[str], ended: Mapping[str, Child], out: Path) -> str:
    """A table of all runs: how each ended, its last step, and its validation NLL, also relative to the first run's."""
    nll: dict[str, float] = {}
    rows = []
    for name in names:
        child = ended.get(name)
        cells = [name, str(child or "not started"), "", "", ""]
        try:
            row = last_row(out / name / "metrics.jsonl") if child else None
            cells[2] = str(row["step"]) if row else ""
        except (ValueError, TypeError, KeyError, OSError):  # a damaged file must not hide the other runs
            row, cells[2] = None, "unreadable"
        if child and row and child.status == EXIT_FINISHED and "validation/nll" in row:
            nll[name] = float(row["validation/nll"])
            cells[3] = f"{nll[name]:.4f}"
            if name != names[0] and names[0] in nll:
                cells[4] = f"{nll[name] - nll[names[0]]:+.4f}"
        rows.append(cells)
    return terminal_table(["run", "end", "last step", "validation NLL", f"minus {names[0]}"], rows)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
