"""Distillation from the model of one step ago."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from common.errors import InputError
from common.section import FLOAT32_MAX
from model.objectives import TokenLogits
from model.sigma_reparam import is_reparametrised
from model.teaching import Teacher

from .base import INTERVENTIONS, Intervention, Seen, Update


@INTERVENTIONS.register("last_step")
class LastStep(Intervention):
    """Adds weight T^2 KL(R || P) to the loss of each token, R being the prediction of the parameters before the last update, P
    the own, both at temperature T: after last-mini-batch distillation (DLB, Shen et al. 2022, arXiv 2203.16172;
    Meta-knowledge-Lab/DLB, dlb.py).

    There half of each batch is the other half of the one before, augmented anew, and R what the last step predicted of it. Text
    has no augmentations, and what the last step predicted is what its parameters predict; so they are kept here and asked about
    the whole batch. That takes a forward pass instead of half of the new text, all V probabilities count, and the state, in
    checkpoints, is a copy of the parameters. To first order the gradient is weight times the Fisher matrix times the last
    update: it resists changes of the prediction, which dropout, where there is any, makes too. The first step has R = P.
    """

    penalty_reads = ("rows",)
    penalty_shift_invariant = True
    update_copies = 2

    @dataclass(frozen=True)
    class Options:
        weight: Annotated[float, Field(ge=0, le=FLOAT32_MAX)] = 1.0
        """alpha, beside the objective."""
        temperature: Annotated[float, Field(ge=0.01, le=1000)] = 3.0
        """T, of both predictions."""

    def attach(self, model: Any, optimizer: Optimizer) -> Sequence[RemovableHandle]:
        refuse(model)
        with torch.random.fork_rng(devices=[]):
            twin = type(model)(model.config)
        self.names = [name for name, _ in model.named_parameters()]
        self.teacher = Teacher("the last step's model")
        self.teacher.use(twin.to(model.lm_head.weight.device), model.lm_head.n_classes)
        self.taught = [parameter.detach() for parameter in twin.parameters()]
        self.before = [parameter.detach().clone() for parameter in model.parameters()]
        return ()

    @torch.no_grad()
    def begin(self, step: int) -> None:
        torch._foreach_copy_(self.taught, self.before)

    def penalty(self, t: TokenLogits) -> Tensor:
        assert t.rows is not None and t.taught is not None
        temperature = self.options.temperature
        log_r_NV, log_p_NV = ((z_NV / temperature).log_softmax(1) for z_NV in (t.taught, t.rows))
        return self.options.weight * temperature**2 * (log_r_NV.exp() * (log_r_NV - log_p_NV)).sum(1)

    def on_weights(self, seen: Seen, update: Update) -> Mapping[str, Tensor] | None:
        torch._foreach_copy_(self.before, list(update.before))
        return None

    def state(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.before, strict=True))

    def load(self, state: Mapping[str, Tensor]) -> None:
        torch._foreach_copy_(self.before, [state[name] for name in self.names])


def refuse(model: Any) -> None:
    """Raise InputError for a model of which no second one, by its parameters, says the same."""
    reason = ""
    if model.objective.teacher is not None:
        reason = "is a teacher, and the objective has one; take another objective.kind"
    elif any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        reason = "needs whole parameters on every rank, which FSDP2 shards; launch without FSDP2"
    elif is_reparametrised(model):
        reason = "knows no body.sigma_reparam; leave it out"
    elif model.lm_head.extra_classes:
        reason = "compares all logits, to which head.abstain adds one; leave head.abstain out"
    elif getattr(model.lm_head.options, "margin", 0):
        reason = "compares predictions, of which head.margin changes one in training alone; leave head.margin out"
    elif any(True for _ in model.lm_head.buffers()):
        reason = "keeps parameters, and head.feature_norm=batchnorm has running means; use layernorm"
    if reason:
        raise InputError(f"interventions: last_step {reason}")
