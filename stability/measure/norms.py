"""L2 norms of parameters and gradients, by tensor and by group. Shapes: G groups, P parameters (tensors)."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from model import blocks

LARGE = 1 << 20
"""Entries of a matrix from which its norm is measured by rows on CPU."""
PORTION = 100_000
"""Parameters copied and measured together on CPU: two sets of them fit a core's second-level cache."""


def parameter_groups(
    names: Sequence[str], embedding_prefix: str, blocks_prefix: str, head_prefix: str | tuple[str, ...]
) -> dict[str, list[int]]:
    """Indices of the parameters in each group: embedding, layer_NN, norm and head. A tied output weight counts as
    embedding. Norms inside a block belong to its layer; ``norm`` is the final one."""
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        layer = re.match(re.escape(blocks_prefix) + r"\.(\d+)\.", name)
        if layer:
            group = f"layer_{int(layer[1]):02d}"
        elif name.startswith(head_prefix):
            group = "head"
        elif name.startswith(embedding_prefix) or "emb" in name or re.search(r"\bwpe\b", name):
            group = "embedding"
        else:
            group = "norm"
        groups.setdefault(group, []).append(index)
    return groups


def groups_of(model: Any) -> dict[str, list[int]]:
    """The same for one of this project's models, from its ``named_parameters()``."""
    names = {id(module): name for name, module in model.named_modules()}
    return parameter_groups(
        [name for name, _ in model.named_parameters()],
        embedding_prefix=names[id(model.get_input_embeddings())],
        blocks_prefix=names[id(blocks(model.model))],
        head_prefix=(names[id(model.lm_head)], "projection."),
    )


class GroupNorms:
    """L2 norms of lists of tensors by group: one norm per tensor, then two small device operations."""

    def __init__(self, groups: dict[str, list[int]], parameters: Sequence[Tensor]) -> None:
        self.names = list(groups)
        device = parameters[0].device
        self.members_GP = torch.zeros(len(groups), len(parameters), device=device)
        for row, indices in enumerate(groups.values()):
            self.members_GP[row, indices] = 1
        assert bool((self.members_GP.sum(0) == 1).all()), "every parameter must be in exactly one group"
        counts = [sum(parameters[i].numel() for i in indices) for indices in groups.values()]
        self.root_count_G = torch.tensor([math.sqrt(c) for c in counts], device=device)

    @torch.no_grad()
    def __call__(self, norm_P: Tensor) -> tuple[Tensor, Tensor]:
        """Norm of each group (G,) and of all tensors (), in float32, from the norms of the P tensors."""
        squares_P = norm_P.float().square()
        norm_G = (self.members_GP @ squares_P.nan_to_num(0.0, 0.0)).sqrt()
        # A product with 0 would carry what is not finite into every other group.
        for unusual_P, value in ((squares_P.isinf(), math.inf), (squares_P.isnan(), math.nan)):
            norm_G = torch.where(self.members_GP @ unusual_P.float() > 0, value, norm_G)
        return norm_G, total_norm(norm_P)


def portions_of(parameters: Sequence[Tensor]) -> list[slice]:
    """Split the parameters into runs that fit a core's cache (CPU only)."""
    if parameters[0].device.type != "cpu":
        return [slice(None)]
    starts, size = [0], 0
    for index, parameter in enumerate(parameters):
        if size and size + parameter.numel() > PORTION:
            starts.append(index)
            size = 0
        size += parameter.numel()
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(parameters)], strict=True)]


def norms_of(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The L2 norm () of each tensor, summed in ``dtype`` (None: that of the tensor).

    On CPU torch adds the squares of a float32 tensor up in a few sums: at 50 million entries the norm is 0.4% too small. So
    large matrices are measured row by row, which takes no longer.
    """
    large = [t.device.type == "cpu" and t.dim() > 1 and t.numel() > LARGE for t in tensors]
    small = [t for t, by_row in zip(tensors, large, strict=True) if not by_row]
    rest = iter(torch._foreach_norm(small, 2, dtype=dtype) if small else ())
    return [
        torch.linalg.vector_norm(torch.linalg.vector_norm(t, dim=-1, dtype=dtype)) if by_row else next(rest)
        for t, by_row in zip(tensors, large, strict=True)
    ]


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm of each tensor (P,)."""
    return whole(norms_of(tensors))


def total_norm(norm_P: Tensor) -> Tensor:
    """The norm () of all tensors together, in float32, from their norms."""
    return norm_P.float().square().sum().sqrt()


def whole(norms: Sequence[Tensor]) -> Tensor:
    """Stack norms of tensors (P,); those of sharded tensors are combined over ranks."""
    return full(torch.stack(list(norms)))


def full(values: Tensor) -> Tensor:
    """The whole of a possibly sharded tensor. All ranks call it."""
    return values.full_tensor() if isinstance(values, DTensor) else values
