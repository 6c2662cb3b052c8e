"""Run a set of runs that belong together, then compare them.

    python run_suite.py configs/suites/demo.yaml [--out DIR] [--jobs N]

Each run is a process of its own, so that one which diverges leaves the others alone. Interrupted and started again, the
suite goes on where it was: finished runs are not repeated, unfinished ones resume from their last checkpoint.

With --jobs, N runs at a time share the cores, each on its part of them: small models leave cores waiting for each other, so
that two runs on a core each are done sooner than one after the other on both (RESULTS.md). What a run prints is then in
<out>/logs/. The number of threads is part of what makes a run repeatable to the bit.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pydantic
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from configs.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_PREEMPTED, ArgumentParser, InputError, exit_status
from configs.schema import Place, Section

ROOT = Path(__file__).parent


class Suite(Section):
    """A suite file."""

    recipe: Place
    """The recipe of all runs, relative to the suite file."""
    out: Place
    """Directory of the runs and of what is made from them."""
    runs: dict[str, list[str]]
    """Name of each run, and its overrides of the recipe."""
    seeds: list[int] = Field(default=[])
    """Every run once with each of these seeds, as <name>_seed<seed>; all runs of a seed before those of the next."""
    analyses: list[str] = Field(default=[])
    """Commands of analysis/ to run afterwards; {out} is the suite's directory, {runs} all runs, {name} one of them (with
    seeds: all of that name)."""

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


def main() -> int:
    """Run the suite named on the command line."""
    parser = ArgumentParser(description="Run a set of runs that belong together, then compare them.")
    parser.add_argument("suite", type=Path, help="a YAML file, see configs/suites/")
    parser.add_argument("--out", help="directory of the runs (default: the suite's own)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        raise InputError(f"--jobs: must be at least 1, but is {arguments.jobs}")
    suite = load_suite(arguments.suite)
    out = Path(arguments.out or suite.out)
    recipe = arguments.suite.parent / suite.recipe
    train = [str(ROOT / "train_lm.py"), "--config", str(recipe), f"output_dir={out}"]
    commands = {name: [*train, f"name={name}", *overrides] for name, overrides in suite.overrides.items()}
    status = run_all(commands, arguments.jobs, out / "logs")
    if status == EXIT_PREEMPTED:
        print("interrupted; the same command goes on from here")
    if status != EXIT_FINISHED:
        return status
    paths = {name: [str(out / run) for run in runs] for name, runs in suite.arms.items()}
    for analysis in suite.analyses:
        words = [w for word in shlex.split(analysis) for w in expand(word, paths, out)]
        status = run_all({"": ["-m", f"analysis.{words[0]}", *words[1:]]}, 1, out)
        if status != EXIT_FINISHED:
            return status
    print_results(out, list(suite.overrides))
    return EXIT_FINISHED


def load_suite(path: Path) -> Suite:
    """The checked suite file. Raises InputError naming each mistake."""
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path))
        return Suite.model_validate_json(json.dumps(raw))
    except pydantic.ValidationError as error:
        raise InputError(*(f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None


def expand(word: str, paths: dict[str, list[str]], out: Path) -> list[str]:
    """A word of an analysis command with its placeholders filled in; what stands for several runs becomes several words."""
    if word == "{runs}":
        return [path for several in paths.values() for path in several]
    if word[:1] + word[-1:] == "{}" and word[1:-1] in paths:
        return paths[word[1:-1]]
    try:
        return [word.format(out=out)]
    except (KeyError, IndexError, ValueError):
        raise InputError(
            f"analyses: {word}: unknown placeholder; there are {{out}}, {{runs}} and the runs' names"
        ) from None


def run_all(commands: dict[str, list[str]], jobs: int, logs: Path) -> int:
    """Run Python with each of these command lines, ``jobs`` at a time; returns the first bad exit status, or that of success.

    After a bad one no more are started, and those that run are asked to stop. SIGTERM is passed on. Beside others, a command
    writes to a file in ``logs`` that is named like it.
    """
    running: dict[str, subprocess.Popen[bytes]] = {}
    waiting, bad, asked = dict(commands), EXIT_FINISHED, set[str]()

    def stop(status: int, ask: bool) -> None:
        nonlocal bad
        bad = bad or status
        # Once: a second signal ends a run in the middle of its checkpoint.
        for name, process in running.items():
            if ask and name not in asked:
                process.send_signal(signal.SIGTERM)
            asked.add(name)

    # Ctrl-C reaches the children by itself, which then write their checkpoints; this process has to wait for that. Handlers,
    # and not SIG_IGN, which the children would inherit.
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, lambda *_: stop(EXIT_PREEMPTED, ask=False))
    signal.signal(signal.SIGTERM, lambda *_: stop(EXIT_PREEMPTED, ask=True))
    try:
        while running or (waiting and bad == EXIT_FINISHED):
            while waiting and bad == EXIT_FINISHED and len(running) < jobs:
                name = next(iter(waiting))
                running[name] = start(waiting.pop(name), jobs, logs / f"{name}.log")
                if bad != EXIT_FINISHED:  # the signal came while it was being started
                    stop(bad, ask=True)
            time.sleep(0.05)
            for name, process in [*running.items()]:
                status = process.poll()
                if status is None:
                    continue
                del running[name]
                if jobs > 1:
                    print(f"{name}: {last_line(logs / f'{name}.log')}", flush=True)
                if status not in (EXIT_FINISHED, EXIT_DIVERGED):  # a run that diverges is a result
                    stop(status, ask=True)
        return bad
    finally:
        stop(bad, ask=True)
        for number, handler in usual.items():
            signal.signal(number, handler)


def start(command: list[str], jobs: int, log: Path) -> subprocess.Popen[bytes]:
    """Start Python with this command line; as one of several ``jobs`` on its part of the cores, writing to ``log``."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # for -m analysis.<name> from any directory
    line = [sys.executable, *command]
    if jobs == 1:
        return subprocess.Popen(line, env=environment)  # noqa: S603  (this project's own commands)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(line, env=environment, stdout=file, stderr=subprocess.STDOUT)  # noqa: S603


def last_line(log: Path) -> str:
    """What a run said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "said nothing")


def print_results(out: Path, runs: list[str]) -> None:
    """Say where everything is."""
    made = [p for p in sorted(out.rglob("*")) if p.is_file() and p.relative_to(out).parts[0] not in runs]
    print("\nWritten:")
    for path in [*(out / name for name in runs), *made]:
        print(f"  {path}{'/' if path.is_dir() else ''}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
