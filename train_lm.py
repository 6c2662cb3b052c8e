"""Pretrain a language model and watch it: one run, from configuration to run directory.

    [accelerate launch] train_lm.py --config configs/pydoc_micro.yaml [key.sub=value ...] [--print-config]

Exit status: 0 finished, 2 bad input, 3 diverged (something was not finite), 69 another rank is gone, 74 the disk refused, 75
preempted (checkpoint written); after 69, 74 and 75 the same command goes on. What a run is made of is in training/run.py.
Shapes: B sequences of one micro-batch on this rank, T positions.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import (
    EXIT_DIVERGED,
    EXIT_FINISHED,
    EXIT_PREEMPTED,
    EXIT_RANK_LOST,
    EXIT_STORAGE,
    ArgumentParser,
    exit_status,
)
from configs.load import load_config
from configs.recipe import dump_config
from configs.schema import RunConfig
from ranks.launch_variables import check_launch_variables
from training.flush import flush
from training.opening import end, open_run_directory, storage_failed
from training.rewinding import rewind
from training.saving import save_checkpoint
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

    accelerator = start_accelerator(config)
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
    """The run's steps; what may end them from outside becomes one line and an exit status."""
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

    config, steps = run.config, run.config.train.steps
    run.began = time.perf_counter()
    with stop_signals() as stop, run.bar:
        vote = StopVote(connection_timeout(config.train.stall_seconds))
        while run.step < steps:
            training_step(run, run.step + 1)
            step = run.step
            checkpoint_due = step % config.checkpoint.every == 0 or step == steps
            evaluation_due = step % config.train.eval_every == 0 or checkpoint_due
            stopping = vote(stop.signal is not None) and step < steps
            # Where only a signal makes the run look, an unbroken run would not have looked, nor decided anything.
            regular = step % config.telemetry.flush_every == 0 or evaluation_due
            if not (regular or stopping):
                continue
            last_row = flush(run, evaluation_due)
            if regular and rewind(run):
                continue
            keeping = (checkpoint_due or stopping) and not run.diverged
            spoilt = keeping and not run.vitals.state_is_finite(run.optimizer.optimizer)
            if spoilt:
                run.watch.overflowed(step)
                if regular and rewind(run):
                    continue
            decides_later = not regular and bool(config.interventions)
            if (run.diverged or spoilt) and not decides_later:
                run.watch.finish(step, run.batch_number)
                run.watch.report_divergence(last_row, run.vitals.names(), run.vitals.ranks(), updated=spoilt)
                end(run, vote)
                return EXIT_DIVERGED
            if keeping and not spoilt:
                save_checkpoint(run, undecided=decides_later)
            run.began = time.perf_counter()
            if stopping:
                asked = stop.signal or "a signal to another rank"
                run.recorder.event("preempted", step, step=step, signal=asked)
                run.recorder.status("preempted", step, f"stopped by {asked}; the same command goes on")
                run.watch.say(f"stopped by {asked} after step {step}; the same command goes on")
                end(run, vote)
                return EXIT_PREEMPTED
    run.watch.finish(steps, run.batch_number)
    run.recorder.status("finished", steps)
    end(run, vote)
    nll = math.nan if run.validation_nll is None else run.validation_nll
    run.accelerator.print(f"finished: validation NLL {nll:.4f} nats/token; {run.directory}")
    return EXIT_FINISHED


# --------------------------------------------------------------------------------------------------------------- a step


# ------------------------------------------------------------------------------------------------------ between the steps


if __name__ == "__main__":
    ended_with = exit_status(main)
    if ended_with in (EXIT_RANK_LOST, EXIT_STORAGE):  # other ranks are gone or wait: nothing may wait for them
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended_with)
    raise SystemExit(ended_with)
