"""Both ends of a run: what it writes before its first step, and how it ends."""

import contextlib
import json
import math
import sys

from common.command import EXIT_DIVERGED, EXIT_FINISHED, EXIT_PREEMPTED, EXIT_STORAGE
from configs.recipe import dump_config
from ranks.stop import Vote
from record.checkpoints import checkpoint_at, list_checkpoints, set_aside, start_step, tidy_up
from record.environment import environment
from record.whole import add_weights

from .resume import ResumePoint
from .run import Run


def open_run_directory(run: Run, point: ResumePoint) -> None:
    """Write the files that describe the run, and drop the rows that it will write again."""
    config, recorder, accelerator = run.config, run.recorder, run.accelerator
    accelerator.wait_for_everyone()  # all have read the directory
    path = run.store.path.resolve()
    facts = environment(accelerator.num_processes, accelerator.device, config.train.precision) | {
        "sharded": accelerator.is_fsdp2,
        "loss_kernel": run.loss_kernel,
        "parameters": sum(p.numel() for p in run.telemetry.parameters),
        "data": {"path": str(path), "store": path.name, "manifest_sha256": run.store.manifest_hash()},
    }
    if accelerator.is_main_process:
        for rejected in point.rejected:
            set_aside(run.directory / "checkpoints" / rejected["checkpoint"])
        tidy_up(run.directory)
    recorder.write_text("config.yaml", dump_config(config))
    recorder.write_text("environment.json", json.dumps(facts, indent=1) + "\n")
    recorder.rewind(run.step)
    recorder.status("running", run.step)
    if run.loss_kernel["ranks_without_triton"]:
        recorder.event("kernel_fallback", run.step, step=run.step, **run.loss_kernel)
    for rejected in point.rejected:
        recorder.event("checkpoint_rejected", run.step, step=run.step, **rejected)
        run.watch.say(f"{rejected['checkpoint']} cannot be used: {rejected['problem']}")
    if point.rejected and not run.step:
        run.watch.say("no checkpoint can be used: starting over")
    if run.step and run.step == start_step(run.directory):
        run.watch.say(f"a branch: going on from step {run.step} of {config.branch_from}")
    elif run.step:
        recorder.event("resume", run.step, step=run.step)
        run.watch.say(f"going on from step {run.step}")
    accelerator.wait_for_everyone()


def storage_failed(run: Run, error: OSError) -> int:
    """Report the disk error and where the same command will resume; returns the exit status."""
    checkpoints = list_checkpoints(run.directory)
    after = f"checkpoints/{checkpoints[-1].name}" if checkpoints else "the start"
    reason = f"{error.filename or run.directory}: {error.strerror} at step {run.step}"
    with contextlib.suppress(OSError):
        if run.directory.is_dir():
            run.recorder.status("failed", run.step, reason)
    print(f"error: {reason}; mend that, and the same command goes on from {after}", file=sys.stderr)
    return EXIT_STORAGE


def finished(run: Run, vote: Vote) -> int:
    """End a run whose steps are all taken."""
    steps = run.config.train.steps
    if run.accelerator.is_fsdp2:
        run.watchdog.moved(steps, "weights for transformers")
        last = checkpoint_at(run.directory, steps)
        run.background.begin([lambda: add_weights(last) if run.accelerator.is_main_process else None])
        run.background.finish()
    run.watch.finish(steps, run.batch_number)
    run.recorder.status("finished", steps)
    _close(run, vote)
    nll = math.nan if run.validation_nll is None else run.validation_nll
    run.accelerator.print(f"finished: validation NLL {nll:.4f} nats/token; {run.directory}")
    return EXIT_FINISHED


def diverged(run: Run, vote: Vote) -> int:
    """End a run in which something is not finite and no intervention is left to try."""
    run.background.finish()
    run.watch.finish(run.rows[-1]["step"], run.batch_number)  # steps taken since then changed nothing
    run.watch.report_divergence(run.rows[-1], run.vitals.names(), run.vitals.ranks(), updated=run.spoilt)
    _close(run, vote)
    return EXIT_DIVERGED


def preempted(run: Run, vote: Vote, signal: str) -> int:
    """End a run that was asked to stop by a signal, given by name."""
    run.background.finish()
    step = run.step
    run.recorder.event("preempted", step, step=step, signal=signal)
    run.recorder.status("preempted", step, f"stopped by {signal}; the same command goes on")
    run.watch.say(f"stopped by {signal} after step {step}; the same command goes on")
    _close(run, vote)
    return EXIT_PREEMPTED


def _close(run: Run, vote: Vote) -> None:
    """Close trackers and connections. All ranks call it."""
    vote.close()
    run.accelerator.wait_for_everyone()
    run.trackers.finish()
    run.accelerator.end_training()
