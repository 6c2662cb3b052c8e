"""Leaves out the update where the loss is more than ``above`` nats, but never twice in a row."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stability.intervene.base import INTERVENTIONS, Action, Intervention, Seen


@INTERVENTIONS.register("skip_above")
class SkipAbove(Intervention):
    @dataclass(frozen=True)
    class Options:
        above: float

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.skipped_last = torch.tensor(False)

    def on_gradient(self, seen: Seen) -> Action:
        self.skipped_last = (seen.loss > self.options.above) & ~self.skipped_last.to(seen.loss.device)
        return Action(skip=self.skipped_last)

    def state(self) -> dict[str, Tensor]:
        return {"skipped_last": self.skipped_last}

    def load(self, state: Mapping[str, Tensor]) -> None:
        self.skipped_last = state["skipped_last"]
