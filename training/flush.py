"""Bringing buffered steps to the host, and looking at them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from .evaluate import evaluate

if TYPE_CHECKING:
    from .run import Run


def flush(run: Run, evaluation_due: bool) -> None:
    """Bring the buffered steps over, evaluate, write and look at them: they are then ``run.rows``."""
    from record.environment import peak_memory_bytes

    run.watchdog.moved(run.step, "transfer")
    transferred, healthy = run.recorder.transfer()
    speed = len(transferred) * run.tokens_per_step / (time.perf_counter() - run.began)
    run.diverged = healthy < len(transferred)
    rows = transferred[: healthy + 1]  # what came after the bad step saw no update and means nothing
    for row in rows:
        row["throughput/tokens_per_second"] = speed
        row["memory/peak_bytes"] = peak_memory_bytes(run.accelerator.device)
    if evaluation_due and not run.diverged:
        rows[-1] |= evaluate(run)
    run.rows = rows
    run.validation_nll = rows[-1].get("validation/nll")
    run.recorder.write_rows(rows)
    run.watch.look(
        rows, run.batch_number, diverged_since=diverged_since(run, rows[-1]["step"]) if run.diverged else None
    )
    run.trackers.log(rows)
    run.bar.set_postfix({"nll": f"{rows[-1]['loss/nll']:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)
    run.bar.update(rows[-1]["step"] - run.bar.n)


def diverged_since(run: Run, step: int) -> int:
    """The first step to blame for what was not finite at ``step``: the one before, if that one's update had made it so."""
    return step - any(not name.startswith("gradient of ") for name in run.vitals.names())
