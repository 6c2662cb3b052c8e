"""Smaller steps where a step turns out to be too large: measured on the step itself, after it was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.registry import without_effect
from common.section import FLOAT32_MAX
from record.metrics import Metric
from stability.measure.edge import kappa

from .base import INTERVENTIONS, Action, Intervention, Seen, Update


@INTERVENTIONS.register("safe_step")
class SafeStep(Intervention):
    """Scales the whole change that the optimizer has made, weight decay included, by what it did to its own batch's loss, or to
    the logits.

    ``by: kappa``, of this project: if the loss fell by less than ``least`` of what its slope promised, the change is scaled to
    where the parabola through L(p) and L(p + d) with the slope g . d is lowest, 1 / (2 (1 - kappa)). A change that went uphill
    (g . d > 0) is scaled only if the loss rose. It takes a forward pass of the batch at every step, without dropout (a step took
    1.4 times as long on a CPU), and another one where the training pass has dropout or a penalty or is compiled (1.8 times).

    ``by: logits``, after arXiv 2603.13552, whose authors cap the step at a radius of 1: the change is scaled by limit / r where
    r is above ``limit``. r is the spread of a token's logit change over the vocabulary in units of pi. Differs: the change of the
    logits is measured, not their derivative, and on 64 tokens of the step's first sequence, not on the whole training set. It
    takes two forward passes of that sequence at every step (1.1 times as long). In a language model r of the worst token is
    above 1 at most healthy steps, so that with ``quantile: max`` this is mostly a lower learning rate: its fair partner is a
    run at the mean rate that it leaves (lr times the mean of update_scale).

    What is scaled has been measured once; the smaller step is not measured again. The moments keep the whole gradient.
    """

    metrics = (
        Metric("kappa", "1", "same", "of the change that the optimizer made: as edge/kappa, before it is scaled"),
        Metric("spread", "pi nats", "same", "of the logit changes, as edge/logit_change, before it is scaled"),
    )

    @dataclass(frozen=True)
    class Options:
        by: Literal["kappa", "logits"] = "kappa"
        """kappa: the loss of the step's own batch; logits: the spread of the logits' change."""
        least: Annotated[float, Field(ge=-FLOAT32_MAX, le=0.5)] = 0.0
        """Smallest kappa that is left alone; 0: only where the loss rose. At 0.5 the lowest point is the whole step."""
        floor: Annotated[float, Field(gt=0, le=1)] = 0.01
        """Smallest scale by kappa, and the scale of any change after which loss or logits are not finite."""
        quantile: Literal["p50", "p99", "max"] = "max"
        """Of r over tokens: median, 99th percentile or largest."""
        limit: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 1.0
        """Largest r that is left alone."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.edge_reads = ("losses",) if options.by == "kappa" else ("logit_changes",)

    @classmethod
    def problems(cls, options: Any, *, signals: Sequence[str]) -> Sequence[tuple[str, str]]:
        """Also options of the other way of measuring."""
        used = {"least": ("kappa",), "quantile": ("logits",), "limit": ("logits",)}
        return list(without_effect(options, "by", used))

    def on_update(self, seen: Seen, update: Update) -> Action:
        name, value, scale = self._by_kappa(update) if self.options.by == "kappa" else self._by_logits(update)
        return Action(scale=torch.where(update.taken, scale, 1.0).float(), said={name: value.float()})

    def _by_kappa(self, update: Update) -> tuple[str, Tensor, Tensor]:
        assert update.edge is not None
        before, after, promised = update.edge.losses()
        value = kappa(before, after, promised)
        # kappa >= least, and if the slope promised nothing, a loss that did not rise. False for what is not finite.
        safe = after - before <= self.options.least * promised.clamp(max=0)
        lowest = (0.5 / (1 - value)).nan_to_num(nan=0.0).clamp(min=self.options.floor, max=1.0)
        return "kappa", value, torch.where(safe, 1.0, lowest)

    def _by_logits(self, update: Update) -> tuple[str, Tensor, Tensor]:
        assert update.edge is not None
        value, o = update.edge.logit_changes()[self.options.quantile], self.options
        scale = torch.where(value <= o.limit, 1.0, o.limit / value)
        return "spread", value, torch.where(value.isfinite(), scale, o.floor)
