"""The monitor as a callback of transformers' Trainer.

    Trainer(..., callbacks=[MonitorCallback("runs/mine")])

The Trainer tells callbacks neither a step's loss nor its gradient norm, except where it logs. Both pass through its Accelerator:
``backward`` is given each micro-batch's loss as it counts in the step, ``clip_grad_norm_`` returns the norm before clipping.
During training the callback notes what these two of the Accelerator's methods are given and return; it changes neither.
"""

import functools
import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .log import holds_run
from .monitor import Monitor


class MonitorCallback(TrainerCallback):
    """A :class:`~stability.monitor.monitor.Monitor` of a Trainer's training, with a row for every optimizer step."""

    def __init__(
        self,
        directory: str | Path,
        *,
        groups: Mapping[str, str] | None = None,
        flush_every: int = 20,
        config: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        """The options are those of the monitor. ``resume``: continue the directory's rows after the checkpoint's step if the
        Trainer resumes from one, else after the last row. Raises ValueError for a directory that holds a run already, unless
        ``resume``."""
        self.directory = Path(directory)
        if holds_run(self.directory) and not resume:
            raise ValueError(
                f"{directory} holds a run already; name another directory, or continue it with resume=True"
            )
        self.options: dict[str, Any] = {
            "groups": groups,
            "flush_every": flush_every,
            "config": config,
            "resume": resume,
        }
        self.monitor: Monitor | None = None
        self.heard: list[torch.Tensor] = []
        """Losses of the step's micro-batches, as they add up."""
        self.norm: Any = None
        self.wrapped: Accelerator | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach the monitor. Raises ValueError for what cannot be monitored, before the first step."""
        if self.monitor is not None:  # an earlier train() that ended with an exception
            self.monitor.close("failed", "training ended with an exception")
        accelerator = _accelerator_of(kwargs["optimizer"])
        self.monitor = Monitor(
            self.directory,
            kwargs["model"],
            kwargs["optimizer"],
            start_step=state.global_step or None,
            warmup_steps=args.get_warmup_steps(state.max_steps),
            **self.options,
        )
        self.options["resume"] = True  # for the next train() of the same Trainer
        self._listen(accelerator)

    def _listen(self, accelerator: Accelerator) -> None:
        self._stop_listening()
        backward, clip = accelerator.backward, accelerator.clip_grad_norm_

        @functools.wraps(backward)
        def heard_backward(loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
            self.heard.append(loss.detach())
            backward(loss, *arguments, **options)

        @functools.wraps(clip)
        def heard_clip(*arguments: Any, **options: Any) -> Any:
            self.norm = clip(*arguments, **options)
            return self.norm

        accelerator.backward, accelerator.clip_grad_norm_ = heard_backward, heard_clip
        self.wrapped = accelerator

    def _stop_listening(self) -> None:
        if self.wrapped is not None:
            del self.wrapped.backward, self.wrapped.clip_grad_norm_
        self.wrapped, self.heard, self.norm = None, [], None

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure the step, whose gradients are clipped by now."""
        heard, norm = self.heard, self.norm
        self.heard, self.norm = [], None
        if self.monitor is not None:
            self.monitor.step(torch.stack(heard).sum() if heard else None, grad_norm=norm)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write what is left, and let go of model and Trainer."""
        self._stop_listening()
        if self.monitor is not None:
            self.monitor.close()
        self.monitor = None


def _accelerator_of(optimizer: Any) -> Accelerator:
    """The Accelerator that has prepared an optimizer; no callback is told of it. ValueError if there is none."""
    kinds = (a for a in gc.get_objects() if issubclass(type(a), Accelerator))
    found = next((a for a in kinds if any(o is optimizer for o in a._optimizers)), None)
    if found is None:
        raise ValueError(f"a {type(optimizer).__name__} that no Accelerator has prepared cannot be monitored")
    return found
