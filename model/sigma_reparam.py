"""sigmaReparam (arXiv 2303.06296): matrices of the blocks as W = (s / sigma(W~)) W~, with a learned scalar s for each, so that
their spectral norm is |s|, but for what one power iteration a step lags behind, however large W~ grows.

sigma(W~) = u' W~ v, with u and v from power iterations. They are buffers: the gradient goes through W~ alone, and only
:func:`power_step` moves them. Nothing in a forward pass does, so micro-batches, recomputed activations and evaluations all see
the same W.

Shapes: R rows and C columns of a matrix as its layer stores it, P matrices side by side in it (GPT-2's queries, keys and values;
else 1), K = C / P columns of each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized, register_parametrization
from transformers.pytorch_utils import Conv1D

from .modeling import SwapHeadForCausalLM, blocks

START_ITERATIONS = 100
"""Power iterations at the start. For a new matrix of 768 x 768 sigma is then 0.15% below the largest singular value; after 20 it
is 2% below."""
_OWN = ".parametrizations.weight."
"""In the names of tensors that a plain model does not have."""
_RAW, _SCALE, _LEFT, _RIGHT = "original0", "original1", "0.left_PR", "0.right_PK"
"""What follows in them: W~, s, u and v."""


class SigmaReparam(nn.Module):
    """The parametrization of one layer's weight (R, C): W from W~ (R, C) and s (P,)."""

    left_PR: Tensor
    right_PK: Tensor

    def __init__(self, left_PR: Tensor, right_PK: Tensor) -> None:
        super().__init__()
        self.register_buffer("left_PR", left_PR)
        self.register_buffer("right_PK", right_PK)

    def forward(self, raw_RC: Tensor, scale_P: Tensor) -> Tensor:
        return folded(raw_RC, scale_P, self.left_PR, self.right_PK)

    def right_inverse(self, weight_RC: Tensor) -> tuple[Tensor, Tensor]:
        """W~ and s that give this W: itself and its sigma."""
        return weight_RC, sigma(weight_RC, self.left_PR, self.right_PK)


def folded(raw_RC: Tensor, scale_P: Tensor, left_PR: Tensor, right_PK: Tensor) -> Tensor:
    """W = (s / sigma(W~)) W~, in the precision of W~ also under autocast."""
    with torch.autocast(raw_RC.device.type, enabled=False):
        factor_P1 = (scale_P / sigma(raw_RC, left_PR, right_PK)).unsqueeze(1)
        return (raw_RC.unflatten(1, (len(scale_P), -1)) * factor_P1).flatten(1)


def sigma(raw_RC: Tensor, left_PR: Tensor, right_PK: Tensor) -> Tensor:
    """u' W~ v of each matrix (P,)."""
    raw_RPK = raw_RC.unflatten(1, (len(left_PR), -1))
    return (left_PR * torch.einsum("rpk,pk->pr", raw_RPK, right_PK)).sum(1)


def _iterated(raw_RC: Tensor, left_PR: Tensor) -> tuple[Tensor, Tensor]:
    """u (P, R) and v (P, K) after a power iteration from ``left_PR``."""
    raw_RPK = raw_RC.unflatten(1, (len(left_PR), -1))
    right_PK = normalize(torch.einsum("rpk,pr->pk", raw_RPK, left_PR), dim=1)
    return normalize(torch.einsum("rpk,pk->pr", raw_RPK, right_PK), dim=1), right_PK


# ------------------------------------------------------------------------------------------------------- which matrices


def linear_layers(stack: nn.Module) -> Iterator[nn.Linear | Conv1D]:
    """The layers in a stack of blocks whose matrices are reparametrised."""
    return (module for module in stack.modules() if isinstance(module, nn.Linear | Conv1D))


def unfit(body: nn.Module) -> str | None:
    """Why a body's blocks cannot be reparametrised, with the name of a parameter; None if they can. On any device."""
    stack = blocks(body)
    own = {id(layer.weight) for layer in linear_layers(stack)}
    if not own:
        return "the blocks of this body have no linear layer"
    holders = Counter(id(p) for module in body.modules() for p in module.parameters(recurse=False))
    names = {id(p): name for name, p in body.named_parameters()}
    for parameter in stack.parameters():
        name = names[id(parameter)]
        if parameter.dim() > 1 and id(parameter) not in own:
            return f"{name} is not the matrix of a linear layer (as of experts or convolutions), and would be left out"
        if id(parameter) in own and holders[id(parameter)] > 1:
            return f"{name} is tied: several layers share it, and would not any more"
    return None


def _parts(name: str, layer: nn.Linear | Conv1D) -> int:
    """The number of matrices in a layer's: 3 in GPT-2's c_attn. Other fused layers count as one, as in the published code."""
    rows, columns = layer.weight.shape
    return 3 if isinstance(layer, Conv1D) and name.endswith("c_attn") and columns == 3 * rows else 1


# ---------------------------------------------------------------------------------------------------- to and from a model


def reparametrise(model: SwapHeadForCausalLM, seed: int) -> None:
    """Reparametrise a plain model, which stays the same function: s = sigma(W). ``seed``: of the vectors from which the power
    iterations start. Raises ValueError for what :func:`unfit` tells."""
    generator = torch.Generator().manual_seed(seed)
    for name, layer in _named_layers(model):
        weight_RC = layer.weight.detach()
        start_PR = torch.randn(_parts(name, layer), len(weight_RC), generator=generator)
        left_PR, right_PK = _iterated(weight_RC, normalize(start_PR.to(weight_RC), dim=1))
        for _ in range(START_ITERATIONS - 1):
            left_PR, right_PK = _iterated(weight_RC, left_PR)
        if not bool((sigma(weight_RC, left_PR, right_PK) > 0).all()):
            raise ValueError(f"{name}.weight is zero, and has no direction")
        register_parametrization(layer, "weight", SigmaReparam(left_PR, right_PK))


def restore(model: SwapHeadForCausalLM, own: Mapping[str, Tensor]) -> None:
    """Reparametrise a plain model with the tensors that :func:`split` set aside. Raises ValueError if they are not its own."""
    layers = _named_layers(model)
    needed = {f"{name}{_OWN}{end}" for name, _ in layers for end in (_RAW, _SCALE, _LEFT, _RIGHT)}
    if differing := sorted(needed ^ own.keys()):
        raise ValueError(f"missing or unknown tensors of sigmaReparam: {differing[0]}, ... ({len(differing)} in all)")
    try:
        for name, layer in layers:
            left_PR, right_PK = (own[f"{name}{_OWN}{end}"].clone() for end in (_LEFT, _RIGHT))
            register_parametrization(layer, "weight", SigmaReparam(left_PR, right_PK))
        model.load_state_dict(dict(own), strict=False)
    except RuntimeError as error:
        raise ValueError(f"tensors of sigmaReparam of another shape: {error}") from None


def split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A state dictionary as that of the plain model, with W under its ordinary name, and the tensors that only this one has."""
    plain = {name: weight for name, weight in weights.items() if _OWN not in name}
    own = {name: weight for name, weight in weights.items() if _OWN in name}
    for layer in {name.partition(_OWN)[0] for name in own}:
        plain[f"{layer}.weight"] = folded(*(own[f"{layer}{_OWN}{end}"] for end in (_RAW, _SCALE, _LEFT, _RIGHT)))
    return plain, own


def _named_layers(model: SwapHeadForCausalLM) -> list[tuple[str, nn.Linear | Conv1D]]:
    if problem := unfit(model.model):
        raise ValueError(problem)
    names = {id(module): name for name, module in model.named_modules()}
    return [(names[id(layer)], layer) for layer in linear_layers(blocks(model.model))]


# ---------------------------------------------------------------------------------------------------------- in training


def stored_weight(layer: Any) -> Tensor:
    """The parameter that a layer's weight is made from: W~, or the weight itself."""
    return layer.parametrizations.weight.original0 if is_parametrized(layer, "weight") else layer.weight


def is_reparametrised(model: nn.Module) -> bool:
    """Whether any matrix of the model is."""
    return any(isinstance(module, SigmaReparam) for module in model.modules())


@torch.no_grad()
def power_step(model: nn.Module, taken: Tensor) -> None:
    """Once a step, after the update: a power iteration for each matrix. If ``taken``, () boolean, is false, W stays as it is."""
    for reparam, raw_RC, _ in _reparametrised(model):
        for kept, new in zip((reparam.left_PR, reparam.right_PK), _iterated(raw_RC, reparam.left_PR), strict=True):
            kept.copy_(torch.where(taken, new, kept))


@torch.no_grad()
def scales(model: nn.Module) -> dict[str, Tensor]:
    """The largest and the smallest |s| of all matrices, by metric name; nothing for a plain model."""
    found = [scale_P for *_, scale_P in _reparametrised(model)]
    if not found:
        return {}
    scale_S = torch.cat(found).abs()
    return {"sigma_reparam/s_max": scale_S.max(), "sigma_reparam/s_min": scale_S.min()}


def _reparametrised(model: nn.Module) -> Iterator[tuple[SigmaReparam, Tensor, Tensor]]:
    """Each parametrization with its W~ and s."""
    for module in model.modules():
        if isinstance(module, ParametrizationList) and isinstance(module[0], SigmaReparam):
            yield module[0], module.get_parameter(_RAW), module.get_parameter(_SCALE)
