"""The training loop: from a configuration to an exit status."""

import contextlib
import sys
import time
from dataclasses import asdict
from pathlib import Path

from common.command import EXIT_FINISHED, EXIT_RANK_LOST
from configs.schema import RunConfig
from ranks.collectives import from_main
from ranks.launch import connection_timeout, start_accelerator
from ranks.stop import Vote, stop_signals
from ranks.watchdog import RankLostError
from record.checkpoints import start_of, starting_point
from record.lock import run_lock
from record.trackers import refuse_unready

from .branch import begin_branch
from .compiled import compiling_alone
from .due import due_after
from .ends import diverged, finished, open_run_directory, preempted, storage_failed
from .flush import flush
from .resume import ResumePoint, find_resume_point
from .rewinding import rewind
from .run import Run, build_run
from .saving import fit_to_keep, save_checkpoint
from .step import training_step


def run_training(config: RunConfig) -> int:
    """Start or resume the run and train until it is finished, diverged or preempted; returns the exit status."""
    accelerator = start_accelerator(
        config.train.precision, batch_size=config.train.batch_size, stall_seconds=config.train.stall_seconds
    )
    from_main(lambda: refuse_unready(config.trackers), accelerator.device)
    directory = Path(config.output_dir) / config.name
    with contextlib.ExitStack() as held:
        launch = from_main(lambda: held.enter_context(run_lock(directory)), accelerator.device)
        point = ResumePoint(**from_main(lambda: asdict(find_resume_point(config, directory)), accelerator.device))
        if point.finished:
            accelerator.print(f"{directory}: already finished")
            return EXIT_FINISHED
        from_main(lambda: begin_branch(config, directory), accelerator.device)
        checkpoint = starting_point(directory, point.step) if point.step else start_of(directory)
        run = build_run(config, accelerator, directory, checkpoint, launch=launch)
        held.callback(run.bar.close)  # so that an error before the first step starts on a new line
        from_main(lambda: run.trackers.start(run.step), accelerator.device)
        return _guarded(run, point)


def _guarded(run: Run, point: ResumePoint) -> int:
    """Take the run's steps; a lost rank or a failing disk ends them with one line."""
    try:
        with run.watchdog.watching():
            try:
                open_run_directory(run, point)
                return loop(run)
            except RuntimeError:
                run.watchdog.name_lost()  # a broken connection does not say who broke it
                raise
    except RankLostError as error:
        print(f"error: {error}", file=sys.stderr)
        run.background.salvage()
        return EXIT_RANK_LOST
    except Exception as error:
        run.background.salvage()
        if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError):
            return storage_failed(run, error)
        run.recorder.status("failed", run.step, f"{type(error).__name__}: {error}")
        raise


def loop(run: Run) -> int:
    """Take all remaining steps; returns the exit status."""
    run.began = time.perf_counter()
    with stop_signals() as stop, run.bar:
        vote = Vote(connection_timeout(run.config.train.stall_seconds))
        alone = run.config.train.compile and run.accelerator.num_processes == 1
        while run.step < run.config.train.steps:
            with compiling_alone(lambda: stop.signal is not None) if alone else contextlib.nullcontext():
                training_step(run, run.step + 1)
            alone = False
            stops, *written = vote(stop.signal is not None, *run.background.votes())
            run.background.go_on(*written)
            due = due_after(run.step, run.config, stop_requested=bool(stops))
            if not due.flush:
                continue
            flush(run, due.evaluate)
            fit = not run.diverged and (not due.keep or fit_to_keep(run))
            if due.decide and rewind(run):
                continue
            undecided = not due.decide and run.may_rewind  # the resumed run will decide
            if not fit and not undecided:
                return diverged(run, vote)
            if due.keep and fit:
                save_checkpoint(run, undecided=undecided)
            run.began = time.perf_counter()
            if due.stop:
                return preempted(run, vote, stop.signal or "a signal to another rank")
        run.background.finish()
    return finished(run, vote)
