"""Attach the instruments to a training loop that is not ours.

    watch = Monitor("runs/mine", model, optimizer)
    ...
    loss.backward()
    watch.step(loss)
    optimizer.step()

docs/my-own-loop.md is the guide.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ranks.collectives import rank

from .gauges import Gauges
from .groups import bare
from .log import MonitorLog

Loss = Tensor | float


class Guard:
    """Runs a monitor's own code. The first exception in it is reported, and then the monitor is over; training goes on."""

    def __init__(self, report: Callable[[Exception], None]) -> None:
        self.report = report

    def __enter__(self) -> None:
        """Nothing is prepared."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.report(error)
        return isinstance(error, Exception)


class Monitor:
    """Measures every step of a training loop, and writes rows, spikes and other events to a run directory.

    Only the first rank measures and writes; on the others a monitor does nothing, and there are no collectives. No call
    raises an exception of the monitor's own into training, except the constructor.
    """

    def __init__(
        self,
        directory: str | Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
        *,
        groups: Mapping[str, str] | None = None,
        scaler: Any = None,
        flush_every: int = 20,
        warmup_steps: int = 0,
        config: Mapping[str, Any] | None = None,
        resume: bool = False,
        start_step: int | None = None,
    ) -> None:
        """Make the directory, and add hooks to ``model`` and ``optimizer`` (or several, all of which step once per step).

        ``groups``: patterns of parameter names for groups of your own, such as ``{"head": "lm_head.*"}``. ``scaler``: the
        GradScaler, whose factor is then taken out of the gradients. ``flush_every``: steps between transfers from the
        device, after which rows are written and spikes reported. ``warmup_steps``: those of the learning rate, in which
        norms are not judged. ``config``: settings to keep with the run. ``resume``: continue the directory's run after
        ``start_step``, or after its last row.

        Raises ValueError for a directory that holds a run already, and for what cannot be measured: sharded parameters,
        parameters on several devices, a pattern without a parameter. Raises OSError for a directory that cannot be written.
        """
        self.directory = Path(directory)
        self._gauges: Gauges | None = None
        self._losses: list[Loss] = []
        self._handles: list[Any] = []
        if rank() != 0:
            return
        if flush_every < 1:
            raise ValueError(f"flush_every is {flush_every}; give a whole number from 1")
        model = bare(model)
        given = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        self._optimizers = [_inner(one) for one in given]
        self._scaler = scaler
        self._guard = Guard(self._fail)
        self._log = MonitorLog(self.directory, resume, start_step, warmup_steps, flush_every)
        gauges = Gauges(model, self._optimizers, groups or {}, self._guard)
        self._stepped: set[int] = set()
        """Optimizers that have made their update since the last step."""
        self._out_of_order = False
        facts = {
            "model": type(model).__name__,
            "parameters": sum(p.numel() for p in gauges.parameters),
            "optimizers": [type(one).__name__ for one in self._optimizers],
        }
        precision = str(gauges.parameters[0].dtype).removeprefix("torch.")
        try:
            self._log.start(facts, config or {}, gauges.device, precision)
        except OSError:
            gauges.remove()
            raise
        self._gauges = gauges
        self._handles = [one.register_step_post_hook(self._updated) for one in self._optimizers]

    def micro(self, loss: Loss) -> None:
        """Add the loss of a micro-batch; the step's loss is the mean of all. Waits for nothing."""
        if self._gauges is not None:
            self._losses.append(loss.detach().clone() if isinstance(loss, Tensor) else loss)

    def step(
        self,
        loss: Loss | Sequence[Loss] | None = None,
        *,
        batch: Any = None,
        grad_norm: Tensor | float | None = None,
    ) -> None:
        """Measure a step: call it once per optimizer step, between the backward pass and ``optimizer.step()``.

        ``loss``: that of the batch, or those of its micro-batches, whose mean counts together with what :meth:`micro` was
        given. ``batch``: what names the step's data, such as the indices of its documents; events repeat it.
        ``grad_norm``: what ``clip_grad_norm_`` has returned, if gradients are already clipped.
        """
        if self._gauges is None:
            return
        with self._guard:
            self._measure(self._gauges, loss, batch, grad_norm)

    def _measure(self, gauges: Gauges, loss: Any, batch: Any, grad_norm: Any) -> None:
        losses, self._losses = [*self._losses, *_as_list(loss)], []
        if not losses:
            raise ValueError("step() was given no loss, and micro() neither")
        total = None if grad_norm is None else _on_device(grad_norm, gauges.device)
        names, vectors = gauges.before_update(self._scale(gauges.device), total)
        loss_M = torch.stack([_on_device(one, gauges.device) for one in losses])
        step = self._log.step + 1
        host: dict[str, Any] = {"step": step}
        rate = self._optimizers[0].param_groups[0]["lr"]
        if isinstance(rate, Tensor):
            names, vectors = ["lr", *names], [rate.detach().to(gauges.device, copy=True).reshape(1), *vectors]
        else:
            host["lr"] = rate
        if isinstance(batch, int):
            host["data/batch"] = batch
        self._stepped.clear()
        self._log.begin(host, ["loss/nll", *names], [loss_M.mean().reshape(1), *vectors], batch)

    def _scale(self, device: torch.device) -> Tensor | None:
        """The factor that a GradScaler has left in the gradients; None if there is none."""
        if self._scaler is None or not self._scaler.is_enabled():
            return None
        # Only here does a scaler keep whether it has taken its factor out already.
        if self._scaler._per_optimizer_states[id(self._optimizers[0])]["stage"].name != "READY":
            return None
        scaled: Tensor = self._scaler.scale(torch.ones((), device=device))  # get_scale() would wait for the device
        return scaled

    def _updated(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """After an optimizer's own step."""
        if self._gauges is None:
            return
        with self._guard:
            if self._log.open is None:
                self._warn_of_order()
                return
            self._stepped.add(id(optimizer))
            if len(self._stepped) == len(self._optimizers):
                self._log.complete(*self._gauges.after_update())

    def _warn_of_order(self) -> None:
        if not self._out_of_order:
            self._out_of_order = True
            _warn(f"{self.directory}: optimizer.step() ran without watch.step(loss) since the last one: not measured")

    def close(self, status: str = "finished", reason: str = "") -> None:
        """Write the last rows and the run's status, and take all hooks off. Without it, that happens when the process ends."""
        if self._gauges is not None:
            with self._guard:
                self._log.close(status, reason)
            self._detach()

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.close("failed", f"{type(error).__name__}: {error}")

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._gauges is not None:
            self._gauges.remove()
        self._gauges = None

    def _fail(self, error: Exception) -> None:
        """Report the monitor's own fault, and measure no more."""
        # The optimizer's hooks stay, as it may be running them now; they do nothing any more.
        if self._gauges is not None:
            self._gauges.remove()
        self._gauges = None
        self._losses = []
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        with contextlib.suppress(OSError):  # the disk may be what has failed
            self._log.give_up(reason)
        _warn(f"{self.directory}: monitoring ended after step {self._log.step}, training goes on: {reason}")


def _warn(text: str) -> None:
    try:
        warnings.warn(text, stacklevel=5)
    except Warning:  # where warnings are errors; training must go on all the same
        print(f"warning: {text}", file=sys.stderr)


def _inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside Accelerate's wrapper, whose hooks are those that run."""
    while isinstance(inside := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inside
    return optimizer


def _as_list(loss: Any) -> list[Any]:
    if loss is None:
        return []
    return list(loss) if isinstance(loss, list | tuple) else [loss]


def _on_device(value: Any, device: torch.device) -> Tensor:
    """A number or a tensor of one as a float32 scalar on the device, without waiting for it."""
    if isinstance(value, Tensor):
        return value.detach().to(device, torch.float32, non_blocking=True).reshape(())
    return torch.full((), float(value), device=device)
