"""Run a set of runs that belong together, then compare them.

    python run_suite.py configs/suites/demo.yaml [--out DIR]

Each run is a process of its own, so that one which diverges leaves the others alone. Interrupted and started again, the
suite goes on where it was: finished runs are not repeated, unfinished ones resume from their last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pydantic
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from configs.errors import EXIT_DIVERGED, EXIT_FINISHED, EXIT_PREEMPTED, InputError, exit_status
from configs.schema import Section

ROOT = Path(__file__).parent


class Suite(Section):
    """A suite file."""

    recipe: str
    """The recipe of all runs, relative to the suite file."""
    out: str
    """Directory of the runs and of what is made from them."""
    runs: dict[str, list[str]]
    """Name of each run, and its overrides of the recipe."""
    analyses: list[str] = Field(default=[])
    """Commands of analysis/ to run afterwards; {out} is the suite's directory, {runs} all runs, {name} one of them."""


def main() -> int:
    """Run the suite named on the command line."""
    parser = argparse.ArgumentParser(description="Run a set of runs that belong together, then compare them.")
    parser.add_argument("suite", type=Path, help="a YAML file, see configs/suites/")
    parser.add_argument("--out", help="directory of the runs (default: the suite's own)")
    arguments = parser.parse_args()
    suite = load_suite(arguments.suite)
    out = Path(arguments.out or suite.out)
    recipe = arguments.suite.parent / suite.recipe
    for name, overrides in suite.runs.items():
        command = [str(ROOT / "train_lm.py"), "--config", str(recipe), f"name={name}", f"output_dir={out}", *overrides]
        status = run(command)
        if status not in (EXIT_FINISHED, EXIT_DIVERGED):  # a run that diverges is a result
            if status == EXIT_PREEMPTED:
                print("interrupted; the same command goes on from here")
            return status
    paths = {name: str(out / name) for name in suite.runs}
    for analysis in suite.analyses:
        words = [w for word in shlex.split(analysis) for w in expand(word, paths, out)]
        status = run(["-m", f"analysis.{words[0]}", *words[1:]])
        if status != EXIT_FINISHED:
            return status
    print_results(out, list(suite.runs))
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


def expand(word: str, paths: dict[str, str], out: Path) -> list[str]:
    """A word of an analysis command with its placeholders filled in; {runs} becomes several words."""
    if word == "{runs}":
        return list(paths.values())
    try:
        return [word.format(out=out, **paths)]
    except (KeyError, IndexError, ValueError):
        raise InputError(
            f"analyses: {word}: unknown placeholder; there are {{out}}, {{runs}} and the runs' names"
        ) from None


def run(command: list[str]) -> int:
    """Run Python with this command line, pass SIGTERM on to it, and return its exit status."""
    print(f"\n$ python {shlex.join(command)}", flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # for -m analysis.<name> from any directory
    process = subprocess.Popen([sys.executable, *command], env=environment)  # noqa: S603  (this project's own commands)
    # Ctrl-C reaches the child by itself, which then writes its checkpoint; this process has to wait for that.
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    try:
        return process.wait()
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def print_results(out: Path, runs: list[str]) -> None:
    """Say where everything is."""
    made = [p for p in sorted(out.rglob("*")) if p.is_file() and p.relative_to(out).parts[0] not in runs]
    print("\nWritten:")
    for path in [*(out / name for name in runs), *made]:
        print(f"  {path}{'/' if path.is_dir() else ''}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
