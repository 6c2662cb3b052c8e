"""Run several training runs, then compare them.

    python run_suite.py configs/suites/demo.yaml [--out DIR] [--jobs N] [--on slurm] [--check | --watch]

A suite is arms x scenarios x rates x seeds (docs/comparing-arms.md). The configurations of all runs are checked before the first
one starts. Each run is its own process: one that diverges, fails or is killed does not affect the others, and the table at the
end says how each ended. An analysis is made if all runs that it names have finished or diverged. The output of runs and
analyses is also in <out>/logs/. The same command continues an interrupted suite: runs that have ended are not repeated, the
others resume from their last checkpoint. Seeds and arms that the file has gained since are added.

With --jobs, N runs at a time share the cores: a small model does not keep several cores busy, so two runs on one core each are
done sooner than one after the other on both (RESULTS.md). The number of threads affects bitwise reproducibility.

Exit status: 0 all runs finished or diverged and all analyses were made; 2 bad input; 75 the suite or a run was interrupted;
otherwise the highest status of any run or analysis, where a signal counts as 128 plus its number (137: SIGKILL).
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command import EXIT_FINISHED, EXIT_PREEMPTED, ArgumentParser, exit_status
from common.errors import InputError, note
from record.suite import SuitePlan, read_plan, write_plan
from suite.analyses import Analysis, filled, read_analysis
from suite.child import Child
from suite.cluster import CLUSTERS, Cluster
from suite.cluster import executor as cluster_executor
from suite.expand import SuiteRun, expand, plan
from suite.file import load_suite
from suite.held import wait_until_free
from suite.local import CommandChild, Local, threads_each
from suite.report import results
from suite.schedule import Interrupted, Starter, run_all, wait_for
from suite.show import Progress, view
from suite.warm import checked, environment, fork_server, may_compile
from suite.watch import watch

LAST_LINES = 5
"""Lines printed of the log of a run that failed."""


@dataclass(frozen=True)
class Job:
    """All that a suite is to do."""

    recipe: Path
    out: Path
    runs: list[SuiteRun]
    plan: SuitePlan
    analyses: list[Analysis]
    following: list[str]

    @property
    def logs(self) -> Path:
        """Folder of the output of runs and analyses."""
        return self.out / "logs"


def main() -> int:
    """Run the suite named on the command line."""
    options = _parser().parse_args()
    if options.jobs is not None and options.jobs < 1:
        raise InputError(f"--jobs: must be at least 1, but is {options.jobs}")
    if options.job and not options.on:
        raise InputError("--job: describes the jobs of a cluster; say which with --on")
    job = read_job(options.suite, options.out)
    if options.watch:
        return watch(job.plan, job.out)
    executor = cluster_executor(options.on, job.logs / "jobs", options.jobs, options.job) if options.on else None
    places = options.jobs or 1
    _refuse_unwritable(job.out)
    of_analyses = environment()  # with all cores
    compiles = may_compile(job.recipe, [override for run in job.runs for override in run.overrides])
    context = fork_server(threads_each(places) if executor is None else None, compiles)
    if not options.check:
        wait_until_free(job.out, [one.name for one in job.runs])
    print(f"checking the configurations of {len(job.runs)} runs", flush=True)
    found = checked(context, job.recipe, job.runs, job.out)
    for line in found["notes"]:
        print(line, file=sys.stderr)
    if found["problems"]:
        raise InputError(*(f"{_some(names)}: {problem}" for problem, names in found["problems"].items()))
    if options.check:
        print("they can all be run")
        return EXIT_FINISHED
    try:
        job.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{job.out}: cannot be made ({error.strerror}); choose another with --out") from None
    _note_dropped(job)
    write_plan(job.out, job.plan)
    starter: Starter = Local(context, job.recipe, job.logs, places)
    if executor is not None:
        starter = Cluster(executor, job.recipe, job.logs, options.jobs)
    return run(job, found["prospects"], starter, of_analyses)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description="Run several training runs, then compare them.")
    parser.add_argument("suite", type=Path, help="a YAML file, see configs/suites/ and docs/comparing-arms.md")
    parser.add_argument("--out", help="directory of the runs (default: the suite's own)")
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (default: 1; with --on as many as there are places)"
    )
    parser.add_argument(
        "--on", choices=CLUSTERS, help="start the runs as jobs of a cluster, by submitit; local: of this machine"
    )
    parser.add_argument(
        "--job", action="append", default=[], metavar="KEY=VALUE",
        help="what each job needs, in submitit's words: timeout_min=120, gpus_per_node=1, slurm_partition=gpu",
    )  # fmt: skip
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true", help="only check the suite and the configurations of its runs")
    action.add_argument("--watch", action="store_true", help="only show how far the suite is, started elsewhere")
    return parser


def read_job(file: Path, out: str | None) -> Job:
    """What the suite file asks for. Raises InputError for mistakes in it, those in the runs' configurations aside."""
    suite = load_suite(file)
    directory = Path(out or suite.out)
    runs = expand(suite, directory)
    analyses = [read_analysis(command, runs, directory) for command in suite.analyses]
    following = [filled(line, "next", directory) for line in suite.next]
    if not (file.parent / suite.recipe).is_file():
        raise InputError(
            f"{file}: recipe: {file.parent / suite.recipe}: no such file; it is relative to the suite's file"
        )
    return Job(file.parent / suite.recipe, directory, runs, plan(suite, runs), analyses, following)


def _refuse_unwritable(out: Path) -> None:
    """Raise InputError if the suite's directory clearly cannot be made or written, before minutes are spent on checks."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        problem = "cannot be written" if there.is_dir() else "is no directory"
        raise InputError(f"{out}: {there} {problem}; choose another with --out")


def _note_dropped(job: Job) -> None:
    """Say which runs of an earlier plan in this directory are in it no longer."""
    before, names = read_plan(job.out), {run.name for run in job.runs}
    dropped = [run.name for run in before.runs if run.name not in names] if before else []
    if dropped:
        note(
            f"{job.out}: {len(dropped)} runs of the suite that was run here before are no longer in it: {_some(dropped)}"
        )


def run(job: Job, prospects: Mapping[str, Any], starter: Starter, of_analyses: Mapping[str, str]) -> int:
    """All runs, then the analyses whose runs have all finished or diverged; returns the exit status."""
    done = {name: each["ended"] for name, each in prospects.items() if each["ended"]}
    interrupted = Interrupted()
    progress = Progress(
        steps={name: each["steps"] for name, each in prospects.items()},
        begin={one.name: one.parent_step for one in job.runs},
        done=set(done),
        out=job.out,
    )
    if done:
        print(f"{len(done)} of {len(job.runs)} runs have ended already")
    with interrupted.listening():
        with view(progress) as shown:
            ended, lost = run_all(job.runs, done, starter, interrupted, shown, functools.partial(_begins, job.out))
        ends = {**done, **lost, **{name: str(child) for name, child in ended.items()}}
        completed = done.keys() | {name for name, child in ended.items() if child.completed}
        possible = [analysis for analysis in job.analyses if analysis.runs <= completed]
        made = _analyse(job, possible, interrupted, of_analyses)
    print(f"\n{results(job.plan, ends, job.out)}\n")
    for analysis in job.analyses:
        if analysis not in possible:
            lacking = [one.name for one in job.runs if one.name in analysis.runs - completed]
            print(f"analysis.{analysis.name}: not made, without {_some(lacking)}")
    return _conclude(job, ended | made, interrupted)


def _begins(out: Path, run: SuiteRun) -> bool:
    """Whether the checkpoint that a branch begins at is there: a run that failed or diverged may not have come so far."""
    from record.finished import checkpoints_of  # pandas takes a while to import

    return run.parent_step in [step for step, _ in checkpoints_of(out / (run.parent or ""))]


def _analyse(
    job: Job, possible: Sequence[Analysis], interrupted: Interrupted, variables: Mapping[str, str]
) -> dict[str, Child]:
    """Make the analyses, one after the other; what they print is shown."""
    made: dict[str, Child] = {}
    for number, analysis in enumerate(possible, start=1):
        if interrupted.received:
            break
        name, command = f"analysis_{number}_{analysis.name}", ["-m", f"analysis.{analysis.name}", *analysis.arguments]
        made[name] = wait_for(name, CommandChild(command, job.logs / f"{name}.log", variables), interrupted)
    return made


def _conclude(job: Job, ended: Mapping[str, Child], interrupted: Interrupted) -> int:
    """Say what failed and why, or what to look at next; returns the exit status."""
    for name, child in ended.items():
        if not child.completed and child.status != EXIT_PREEMPTED:
            print(f"{name}: {child}; the end of {child.log}:")
            print("\n".join(f"  | {line}" for line in child.last_lines(LAST_LINES) or ["(nothing)"]))
    print(f"All of it is in {job.out}/")
    failed = [child.status for child in ended.values() if not child.completed]
    status = max(failed, default=EXIT_FINISHED)
    if interrupted.received or EXIT_PREEMPTED in failed:
        status = EXIT_PREEMPTED
    if status == EXIT_FINISHED and job.following:
        print("\n".join(["\nWhat to look at next:", *(f"  {line}" for line in job.following)]))
    if status == EXIT_PREEMPTED:
        print("interrupted; the same command goes on from here")
    return status


def _some(names: Sequence[str], most: int = 4) -> str:
    """The names, the first few of many."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
