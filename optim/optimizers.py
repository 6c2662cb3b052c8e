"""Optimizers, and the configuration section that selects one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from common.registry import Registry, checked_options
from common.section import FLOAT32_MAX, MOST, Choice

from .schedules import SCHEDULES, Schedule

if TYPE_CHECKING:
    import torch

OPTIMIZERS = Registry("optimizer")


class OptimizerConfig(Choice):
    """The optimizer with its own keys, the learning-rate schedule, and clipping."""

    kind: str = "adamw"
    lr: float = Field(gt=0, le=FLOAT32_MAX)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0, le=MOST)
    """Steps of linear warm-up from 0 to the peak."""
    schedule: Choice = Choice(kind="cosine")
    """How the rate falls after warm-up."""
    clip_norm: float | None = Field(default=1.0, gt=0, le=FLOAT32_MAX)
    """Largest global gradient norm, enforced by the intervention clip_norm; null disables clipping."""


class Optimizer:
    """Builds a torch optimizer, which must leave parameters and state alone where ``found_inf`` is 1, as torch's fused ones
    do."""

    moments: ClassVar[tuple[str, ...]] = ()
    """Names of its per-parameter state tensors that an update uses; watched for non-finite values."""

    @dataclass(frozen=True)
    class Options:
        """No options."""

    def __init__(self, options: Any) -> None:
        self.options = options

    def build(self, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        """The optimizer of ``model``'s parameters; the loop sets ``lr`` of every group at every step."""
        raise NotImplementedError


@OPTIMIZERS.register("adamw")
class AdamW(Optimizer):
    """Fused AdamW; weight decay applies to matrices (embeddings included), not to gains, biases and the learned scale."""

    moments = ("exp_avg", "exp_avg_sq")

    @dataclass(frozen=True)
    class Options:
        beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
        """Decay of the running mean of gradients."""
        beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
        """Decay of the running mean of squared gradients."""
        eps: Annotated[float, Field(gt=0, le=FLOAT32_MAX)] = 1e-8
        """Added to the root of the running mean of squares."""
        weight_decay: Annotated[float, Field(ge=0, le=FLOAT32_MAX)] = 0.1
        """Decoupled weight decay of matrices, times the learning rate."""

    def build(self, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
        import torch

        o = self.options
        matrices = [p for p in model.parameters() if p.dim() >= 2]
        vectors = [p for p in model.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=lr, betas=(o.beta1, o.beta2), eps=o.eps, fused=True)


def make_optimizer(config: OptimizerConfig) -> Optimizer:
    """The optimizer of a checked configuration."""
    cls = OPTIMIZERS[config.kind]
    optimizer: Optimizer = cls(checked_options(cls, config.options))
    return optimizer


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The torch optimizer of a model as configured."""
    return make_optimizer(config).build(model, config.lr)


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """Rate of ``step`` (from 1) of ``steps``: linear warm-up, then the schedule."""
    if step <= config.warmup_steps:
        return config.lr * step / config.warmup_steps
    cls = SCHEDULES[config.schedule.kind]
    schedule: Schedule = cls(checked_options(cls, config.schedule.options))
    return config.lr * schedule.factor(step, config.warmup_steps, steps)
