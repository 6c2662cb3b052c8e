"""Pretrain a language model and watch it: one run, from configuration to run directory.

    [accelerate launch] train_lm.py --config configs/pydoc_micro.yaml [key.sub=value ...] [--print-config]

Exit status: 0 finished, 2 bad input, 3 diverged (something was not finite), 69 another rank is gone, 74 the disk refused, 75
preempted (checkpoint written); after 69, 74 and 75 the same command goes on. What a run is made of is in training/run.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import EXIT_FINISHED, EXIT_RANK_LOST, EXIT_STORAGE, ArgumentParser, exit_status
from configs.load import load_config
from configs.recipe import dump_config
from configs.schema import RunConfig
from ranks.launch_variables import check_launch_variables
from training.due import due_after
from training.ends import diverged, finished, open_run_directory, preempted, storage_failed
from training.flush import flush
from training.rewinding import rewind
from training.saving import fit_to_keep, save_checkpoint
from training.step import training_step

if TYPE_CHECKING:
    from training.resume import ResumePoint
    from training.run import Run

# Threads that wait for each other sleep instead of spinning: with one busy neighbour on the cores, spinning made a step on
# two cores several times slower (RESULTS.md). Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Parse the command line, then run; returns the exit status."""
    parser = ArgumentParser(description="Pretrain a language model and watch it.")
    parser.add_argument("--config", required=True, help="recipe: a YAML file, see configs/")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="changes to the recipe")
    arguments = parser.parse_args()
    check_launch_variables()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.print_config:
        print(dump_config(config), end="")
        return EXIT_FINISHED
    return train(config)


def train(config: RunConfig) -> int:
    """Run to the end, to divergence or to preemption."""
    from ranks.collectives import from_main
    from ranks.launch import start_accelerator
    from record.lock import run_lock
    from record.trackers import refuse_unready
    from training.resume import ResumePoint, find_resume_point
    from training.run import build_run

    accelerator = start_accelerator(
        config.train.precision, batch_size=config.train.batch_size, stall_seconds=config.train.stall_seconds
    )
    from_main(lambda: refuse_unready(config.trackers), accelerator.device)
    directory = Path(config.output_dir) / config.name
    with contextlib.ExitStack() as held:
        launch = from_main(lambda: held.enter_context(run_lock(directory)), accelerator.device)
        point = ResumePoint(**from_main(lambda: find_resume_point(config, directory).to_json(), accelerator.device))
        if point.finished:
            accelerator.print(f"{directory}: already finished")
            return EXIT_FINISHED
        run = build_run(config, accelerator, directory, point.checkpoint(directory), launch=launch)
        held.callback(run.bar.close)  # what ends the run before its first step begins a line of its own
        from_main(lambda: run.trackers.start(run.step), accelerator.device)
        return guarded(run, point)


def guarded(run: Run, point: ResumePoint) -> int:
    """The run's steps; what ends them from outside (a lost rank, a full disk) is told in one line."""
    from ranks.watchdog import RankLostError

    try:
        with run.watchdog.watching():
            try:
                open_run_directory(run, point)
                return loop(run)
            except RuntimeError:
                run.watchdog.name_lost()  # a broken connection says nothing about who broke it
                raise
    except RankLostError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_RANK_LOST
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            return storage_failed(run, error)
        run.recorder.status("failed", run.step, f"{type(error).__name__}: {error}")
        raise


def loop(run: Run) -> int:
    """All steps that are left; returns the exit status."""
    from ranks.launch import connection_timeout
    from ranks.stop import StopVote, stop_signals

    run.began = time.perf_counter()
    with stop_signals() as stop, run.bar:
        vote = StopVote(connection_timeout(run.config.train.stall_seconds))
        while run.step < run.config.train.steps:
            training_step(run, run.step + 1)
            due = due_after(run.step, run.config, stop_asked=vote(stop.signal is not None))
            if not due.look:
                continue
            flush(run, due.evaluate)
            fit = not run.diverged and (not due.keep or fit_to_keep(run))
            if due.decide and rewind(run):
                continue
            undecided = not due.decide and run.decides  # a run that goes on here decides about it
            if not fit and not undecided:
                return diverged(run, vote)
            if due.keep and fit:
                save_checkpoint(run, undecided=undecided)
            run.began = time.perf_counter()
            if due.stop:
                return preempted(run, vote, stop.signal or "a signal to another rank")
    return finished(run, vote)


if __name__ == "__main__":
    ended_with = exit_status(main)
    if ended_with in (EXIT_RANK_LOST, EXIT_STORAGE):  # other ranks are gone or wait: nothing may wait for them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended_with)
    raise SystemExit(ended_with)
