"""Leaving out updates whose loss or gradient stands out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.section import FLOAT32_MAX, MOST
from record.metrics import Metric

from .base import INTERVENTIONS, Action, Intervention, Seen
from .window import Window


@INTERVENTIONS.register("skip_step")
class SkipStep(Intervention):
    """Skips an update whose loss or gradient norm is more than ``sigmas`` deviations above the mean of the last ``window``
    values.

    Published code: allenai/OLMo-core, optim/skip_step_optimizer.py, for which either of the two is enough. The deviation is
    the unbiased one; the current value is not among those it is compared with; values of skipped steps are, so that a
    lasting rise becomes the new normal. It acts from the step on at which there are window / 2 values, the current one
    included (there: 20 at least).

    Differs: a loss or gradient norm that is not finite is skipped at any step and never enters the window (there it makes the
    mean NaN, and the next 128 steps are skipped). After ``most_in_a_row`` skips in a row an update is made, whatever it is.
    """

    metrics = (
        Metric("loss_sigmas", "1", "same", "deviations of the loss above the window's mean; 0 before it acts"),
        Metric("norm_sigmas", "1", "same", "the same of the gradient norm"),
    )

    @dataclass(frozen=True)
    class Options:
        watch: Literal["either", "loss", "gradient_norm"] = "either"
        """What must stand out."""
        sigmas: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 6.0
        """Deviations above the mean from which on an update is skipped."""
        window: Annotated[int, Field(ge=8, le=1 << 20)] = 128
        """Values that the mean and the deviation are taken of."""
        most_in_a_row: Annotated[int, Field(ge=1, le=MOST)] = 16
        """Consecutive updates that are skipped, at most."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.losses, self.norms = Window(options.window), Window(options.window)
        self.in_a_row: Tensor | None = None
        """() updates skipped since the last that was made."""

    def first_steps(self) -> Iterable[tuple[int, str]]:
        return [(self.began + self.options.window // 2, "skips nothing that is finite")]

    def on_gradient(self, seen: Seen) -> Action:
        o = self.options
        least = o.window // 2 - 1  # besides the current one
        skip, said = ~(seen.loss.isfinite() & seen.gradient_norm.isfinite()), {}
        pairs = (("loss", seen.loss, self.losses), ("norm", seen.gradient_norm, self.norms))
        for name, value, window in pairs:
            spread = window.spread(value, unbiased=True)
            above = (spread.count >= least) & (value.double() - spread.mean > o.sigmas * spread.std)
            if o.watch == "either" or o.watch.endswith(name):
                skip = skip | above
            said[f"{name}_sigmas"] = spread.sigmas(value, least).float()
            window.push(value)
        in_a_row = torch.zeros_like(skip, dtype=torch.int64) if self.in_a_row is None else self.in_a_row
        skip = skip & (in_a_row < o.most_in_a_row)
        self.in_a_row = torch.where(skip, in_a_row + 1, 0)
        return Action(skip=skip, said=said)

    def state(self) -> dict[str, Tensor]:
        row = {} if self.in_a_row is None else {"in_a_row": self.in_a_row}
        return self.losses.state("losses") | self.norms.state("norms") | row

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.losses.load("losses", state)
        self.norms.load("norms", state)
        self.in_a_row = state["in_a_row"].clone()
