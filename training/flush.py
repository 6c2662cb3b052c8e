"""Bring buffered steps to the host, evaluate, write the rows and inspect them."""

import time

from record.checkpoints import start_step
from record.environment import peak_memory_bytes

from .evaluate import evaluate
from .run import Run


def flush(run: Run, evaluation_due: bool) -> None:
    """Bring the buffered steps over, evaluate if that is due, write and inspect them; they are then ``run.rows``."""
    run.watchdog.moved(run.step, "transfer")
    transferred, healthy = run.recorder.transfer()
    speed = len(transferred) * run.tokens_per_step / (time.perf_counter() - run.began)
    run.diverged = healthy < len(transferred)
    rows = transferred[: healthy + 1]  # steps after the bad one made no update and mean nothing
    for row in rows:
        row["throughput/tokens_per_second"] = speed
        row["memory/peak_bytes"] = peak_memory_bytes(run.accelerator.device)
    if evaluation_due and not run.diverged:
        rows[-1] |= evaluate(run)
    run.rows = rows
    run.validation_nll = rows[-1].get("validation/nll")
    run.recorder.write_rows(rows)
    report_stresses(run)
    since = None
    if run.diverged:  # the step before is to blame if it was its update that made something not finite
        since = rows[-1]["step"] - any(not name.startswith("gradient of ") for name in run.vitals.names())
    run.watch.look(rows, run.batch_number, diverged_since=since)
    run.trackers.log(rows)
    run.bar.set_postfix({"nll": f"{rows[-1]['loss/nll']:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)
    run.bar.update(rows[-1]["step"] - run.bar.n)


def report_stresses(run: Run) -> None:
    """Write an event for each stress that has begun or ended to act in the steps just flushed."""
    begin = start_step(run.directory)
    for row in run.rows:
        step = row["step"]
        for number, stress in enumerate(run.stresses):
            acts, acted = (stress.acts(s, run.batch_number(s)) if s > begin else False for s in (step, step - 1))
            if acts != acted:
                what = stress.describe(step, run.batch_number(step)) if acts else ""
                event = {"step": step, "number": number, "kind": stress.kind, "description": what}
                run.recorder.event("stress_began" if acts else "stress_ended", step, **event)
