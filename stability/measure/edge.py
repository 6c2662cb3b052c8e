"""How near a step came to the edge of stability: what it did to its own loss and logits, against what the slope promised, and
how far Adam's moments are from the gradient.

Everything stays on the device. Shapes: S sampled tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from .norms import full

SIGN_LIKE = 0.9
"""Elements of an update with |m / sqrt(v)| above this: Adam moves them almost as far as it ever does."""
QUANTILES = {"p50": 0.5, "p99": 0.99}


def kappa(before: Tensor, after: Tensor, promised: Tensor) -> Tensor:
    """The change of the batch's loss as a share of what its slope promised: [L(p + d) - L(p)] / (g . d).

    1: the loss fell as the slope said; 0: the step overshot to where the loss is as before; below 0: it raised the loss of its
    own batch. For a quadratic loss, 1 / (1 - kappa) is the multiple of the step at which the loss is back at its start. NaN if
    the step went uphill (g . d >= 0), where the slope promised nothing: the trust-region ratio has no meaning then.
    """
    return torch.where(promised < 0, (after - before) / promised, math.nan)


def ghost_radius(before_SV: Tensor, after_SV: Tensor) -> dict[str, Tensor]:
    """The spread of each token's logit changes, max - min over the vocabulary, in units of pi: median, 99th percentile and
    largest over tokens.

    At 1 the real Taylor series of a softmax along the step may stop converging (arXiv 2603.13552, which takes the logits'
    derivative; here it is their change). That is a one-step bound, no edge of a language model's training: most healthy steps
    have a largest value above 1.
    """
    change_SV = after_SV - before_SV
    spread_S = (change_SV.amax(1) - change_SV.amin(1)) / math.pi
    values = {name: torch.quantile(spread_S.float(), q) for name, q in QUANTILES.items()}
    return values | {"max": spread_S.max()}


def dot(first: Iterable[Tensor], second: Iterable[Tensor]) -> Tensor:
    """The inner product () of two lists of tensors, in float64; sharded ones are summed over ranks."""
    return torch.stack([full((a * b).sum(dtype=torch.float64)) for a, b in zip(first, second, strict=True)]).sum()


def cosine(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The cosine () between two lists of tensors; NaN if one of them is zero."""
    return (dot(first, second) / (dot(first, first) * dot(second, second)).sqrt()).float()


def moments_of(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> list[dict[str, Any]] | None:
    """Adam's state and settings of each parameter: exp_avg, exp_avg_sq, step, betas, eps. None for another optimizer, and before
    the first step."""
    settings = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = []
    for parameter in parameters:
        state, group = optimizer.state.get(parameter, {}), settings[id(parameter)]
        if not {"exp_avg", "exp_avg_sq", "step"} <= state.keys() or not {"betas", "eps"} <= group.keys():
            return None
        found.append({**state, "betas": group["betas"], "eps": group["eps"]})
    return found


def adam_values(
    moments: Sequence[dict[str, Any]], gradients: Sequence[Tensor], groups: dict[str, list[int]]
) -> dict[str, Tensor]:
    """From Adam's state after a step and the gradients that it took: RMS of g / sqrt(v) by group of parameters, the share of
    elements with \\|m / sqrt(v)\\| > 0.9, and the largest sqrt(v). Both moments without their bias.

    The RMS is RMS_t of StableAdamW (arXiv 2304.13013), over a group instead of a tensor: far above 1, v has not caught up with
    the gradient. A share that rises is the update turning into a sign (arXiv 2304.09871).
    """
    squares, counts, signs, largest = [], [], [], []
    for state, gradient in zip(moments, gradients, strict=True):
        (beta1, beta2), step = state["betas"], state["step"].float()
        root = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt()
        squares.append(full((gradient / root.clamp(min=state["eps"])).square().sum(dtype=torch.float64)))
        update = state["exp_avg"] / (1 - beta1**step) / (root + state["eps"])
        signs.append(full((update.abs() > SIGN_LIKE).sum(dtype=torch.float64)))
        largest.append(_largest(root))
        counts.append(gradient.numel())
    values = {
        f"adam_rms/{name}": (torch.stack([squares[i] for i in members]).sum() / sum(counts[i] for i in members)).sqrt()
        for name, members in groups.items()
    }
    values["adam/sign_like"] = torch.stack(signs).sum() / sum(counts)
    values["adam/root_v_max"] = torch.stack(largest).max()
    return {name: value.float() for name, value in values.items()}


def _largest(values: Tensor) -> Tensor:
    """The largest () of numbers that are not negative. A rank has none of a parameter with fewer rows than ranks."""
    if not isinstance(values, DTensor):
        return values.max()
    own = values.to_local()
    own = own.max() if own.numel() else own.new_zeros(())
    return DTensor.from_local(own, values.device_mesh, [Partial("max")] * values.device_mesh.ndim).full_tensor()


def noise_scale(small_square: Tensor, big_square: Tensor, small: Tensor, big: Tensor) -> dict[str, Tensor]:
    """Unbiased estimates of the gradient's squared norm and of its variance per token, from the squared norms of the mean
    gradients of ``small`` and of ``big`` tokens, the ones part of the others (arXiv 1812.06162, appendix A.1).

    Their ratio, each averaged over many steps first, is the gradient noise scale in tokens; of one step it is mostly noise.
    """
    return {
        "noise/gradient_square": (big * big_square - small * small_square) / (big - small),
        "noise/variance": (small_square - big_square) / (1 / small - 1 / big),
    }
