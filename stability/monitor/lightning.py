"""The monitor as a callback of Lightning's Trainer, for automatic optimization.

Trainer(..., callbacks=[MonitorCallback("runs/mine")])
"""

from pathlib import Path
from typing import Any

import torch

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # the older name of the same package
    from pytorch_lightning import Callback

from .log import holds_run
from .monitor import Monitor


class MonitorCallback(Callback):
    """A :class:`~stability.monitor.monitor.Monitor` of a fit, with a row for every optimizer step."""

    def __init__(self, directory: str | Path, **options: Any) -> None:
        """``options``: the monitor's. Raises ValueError for a directory that holds a run already, unless ``resume``."""
        self.directory, self.options = Path(directory), options
        if holds_run(self.directory) and not options.get("resume"):
            raise ValueError(
                f"{directory} holds a run already; name another directory, or continue it with resume=True"
            )
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the monitor, after a checkpoint has been loaded."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        given: dict[str, Any] = {"start_step": trainer.global_step or None, "scaler": scaler} | self.options
        self.monitor = Monitor(self.directory, pl_module, trainer.optimizers, **given)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        """A micro-batch's loss, which Lightning has divided by their number."""
        if self.monitor is not None:
            self.monitor.micro(loss.detach() * trainer.accumulate_grad_batches)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Measure the step, before its gradients are clipped."""
        if self.monitor is not None:
            self.monitor.step()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write what is left."""
        if self.monitor is not None:
            self.monitor.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Write what is left of a fit that failed."""
        if self.monitor is not None:
            self.monitor.close("failed", f"{type(exception).__name__}: {exception}")
