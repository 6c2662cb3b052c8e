"""What is due after a step: a pure function of the step, the configuration and whether somebody asked the run to stop."""

from __future__ import annotations

from dataclasses import dataclass

from configs.schema import RunConfig


@dataclass(frozen=True)
class Due:
    """What the loop does after a step, before the next one."""

    look: bool
    """Bring the buffered rows to the host, write them and look at them."""
    evaluate: bool
    """Evaluate on the validation set."""
    keep: bool
    """Write a checkpoint, if the state is fit to be kept."""
    decide: bool
    """Let interventions act on what was seen. Not where only a stop makes the run look: an unbroken run would not have looked."""
    stop: bool
    """End after this step, as asked from outside."""


def due_after(step: int, config: RunConfig, *, stop_asked: bool) -> Due:
    """What is due after ``step``."""
    last = step == config.train.steps
    checkpoint = last or step % config.checkpoint.every == 0
    evaluate = checkpoint or step % config.train.eval_every == 0
    decide = evaluate or step % config.telemetry.flush_every == 0
    stop = stop_asked and not last
    return Due(look=decide or stop, evaluate=evaluate, keep=checkpoint or stop, decide=decide, stop=stop)
