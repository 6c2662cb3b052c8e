"""Stochastic gradient descent with momentum, and a rate that falls linearly to nothing."""

from dataclasses import dataclass

import torch

from optim.optimizers import OPTIMIZERS, Optimizer
from optim.schedules import SCHEDULES, Schedule


@OPTIMIZERS.register("sgd")
class Momentum(Optimizer):
    moments = ("momentum_buffer",)

    @dataclass(frozen=True)
    class Options:
        momentum: float = 0.9

    def build(self, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=self.options.momentum, fused=True)
        for parameter in model.parameters():  # made by a first step that is skipped, it would hold anything
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer


@SCHEDULES.register("linear")
class Linear(Schedule):
    def factor(self, step: int, warmup_steps: int, steps: int) -> float:
        return (steps - step) / (steps - warmup_steps)
