"""What to do after a step: a pure function of the step, the configuration and whether a stop was requested."""

from dataclasses import dataclass

from configs.schema import RunConfig


@dataclass(frozen=True)
class Due:
    """What the loop does after a step, before the next one."""

    flush: bool
    """Bring the buffered rows to the host, write and inspect them."""
    evaluate: bool
    keep: bool
    """Write a checkpoint, if the state is fit to be kept."""
    decide: bool
    """Let interventions act on the rows. Not if only a stop caused the flush: an uninterrupted run would not have flushed."""
    stop: bool
    """End after this step, as requested by a signal."""


def due_after(step: int, config: RunConfig, *, stop_requested: bool) -> Due:
    """What is due after ``step``."""
    last = step == config.train.steps
    checkpoint = last or step % config.checkpoint.every == 0
    evaluate = checkpoint or step % config.train.eval_every == 0
    decide = evaluate or step % config.telemetry.flush_every == 0
    stop = stop_requested and not last
    return Due(flush=decide or stop, evaluate=evaluate, keep=checkpoint or stop, decide=decide, stop=stop)
