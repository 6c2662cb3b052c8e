"""Rewinding the run to before a spike."""

import time
from dataclasses import asdict

from common.errors import InputError
from ranks.collectives import from_main
from record.checkpoints import set_aside, start_step, starting_point
from record.integrity import damage
from record.rewinds import ABANDONED, RewindEvent, take_back
from stability.intervene.rewind import decide

from .run import Run, go_to


def rewind(run: Run) -> bool:
    """Go back to before what was just seen, if an intervention requests it; returns whether the run went back."""
    accelerator = run.accelerator
    if run.background.pending and run.may_rewind and from_main(lambda: bool(run.watch.alarms), accelerator.device):
        run.background.finish()  # the checkpoint being written may be the one to go back to
    # Decided on the main process: a network disk may show each rank different folders.
    found = from_main(lambda: asdict(back) if (back := _decided(run)) else None, accelerator.device)
    if found is None:
        return False
    back = RewindEvent(**found)
    run.trackers.go_back(back.to_step)  # first: if the run is killed in between, no tracker has a step twice
    if accelerator.is_main_process:
        take_back(run.recorder, back)
    accelerator.wait_for_everyone()
    run.watch.say(
        f"rewind {back.number}: from step {back.from_step} to {back.to_step}, without batches "
        f"{back.skipped[-1][0]} to {back.skipped[-1][1]}; the steps taken back are in {ABANDONED}"
    )
    go_to(run, starting_point(run.directory, back.to_step))
    run.began = time.perf_counter()
    return True


def _decided(run: Run) -> RewindEvent | None:
    """The rewind to make, to an intact checkpoint; damaged ones are set aside. Main process only."""
    skipped, every = run.config.data.skip_steps, run.config.checkpoint.every
    wishes = [i.on_alarms(run.watch.alarms) for i in run.interventions.values()]
    while True:
        back = decide([w for w in wishes if w is not None], run.rewind, skipped, run.step, run.directory, every)
        target = starting_point(run.directory, back.to_step) if back else None
        problem = damage(target) if target else None
        if back is None or target is None or problem is None:
            return back
        if back.to_step == start_step(run.directory):
            raise InputError(f"{target} cannot be used: {problem}; nothing before it is left")
        set_aside(target)
        run.recorder.event("checkpoint_rejected", run.step, step=run.step, checkpoint=target.name, problem=problem)
        run.watch.say(f"{target.name} cannot be used: {problem}")
