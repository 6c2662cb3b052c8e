"""Going back before a spike."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from record.rewinds import GoingBack

    from .run import Run


def rewind(run: Run) -> bool:
    """Go back before what was just seen, if the configuration asks for that; whether it did."""
    from ranks.collectives import from_main
    from record.checkpoints import checkpoint_at
    from record.rewinds import ABANDONED, GoingBack, take_back

    from .run import go_to

    accelerator = run.accelerator
    # Decided in one place: a network's disk may show the ranks different folders.
    told = from_main(lambda: asdict(back) if (back := whole_way_back(run)) else None, accelerator.device)
    if told is None:
        return False
    back = GoingBack(**told)
    run.trackers.go_back(back.to_step)  # first: killed in between, a tracker has a run too many and no step twice
    if accelerator.is_main_process:
        take_back(run.recorder, back)
    accelerator.wait_for_everyone()
    run.watch.say(
        f"rewind {back.number}: from step {back.from_step} to {back.to_step}, without batches "
        f"{back.skipped[-1][0]} to {back.skipped[-1][1]}; the steps taken back are in {ABANDONED}"
    )
    go_to(run, checkpoint_at(run.directory, back.to_step) if back.to_step else None)
    run.began = time.perf_counter()
    return True


def whole_way_back(run: Run) -> GoingBack | None:
    """Where the run goes back to: to a checkpoint that is whole; those that are not are set aside. Main process only."""
    from record.checkpoints import checkpoint_at, set_aside
    from record.integrity import damage
    from stability.intervene.rewind import decide

    skipped, every = run.config.data.skip_steps, run.config.checkpoint.every
    wishes = [i.on_alarms(run.watch.alarms) for i in run.interventions.values()]
    while True:
        back = decide([w for w in wishes if w is not None], run.rewind, skipped, run.step, run.directory, every)
        if back is None or back.to_step == 0:
            return back
        target = checkpoint_at(run.directory, back.to_step)
        problem = damage(target)
        if problem is None:
            return back
        set_aside(target)
        run.recorder.event("checkpoint_rejected", run.step, step=run.step, checkpoint=target.name, problem=problem)
        run.watch.say(f"{target.name} cannot be used: {problem}")
