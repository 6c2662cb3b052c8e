"""Compiling the body for training."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation


class SigmoidGELU(nn.Module):
    """GELU's tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x sigmoid(2 u).

    What torch compiles tanh to takes most of a small GPT's MLP on CPU, and several times as long as the exponential. Nor does
    anything cancel for negative x.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


def compile_body(body: nn.Module) -> None:
    """Compile ``body`` when it first runs. Its results agree with those of the uncompiled one but for rounding."""
    for module in list(body.modules()):
        for name, child in module.named_children():
            if isinstance(child, (GELUTanh, NewGELUActivation, FastGELUActivation)):
                setattr(module, name, SigmoidGELU())
    body.compile()


@contextlib.contextmanager
def compiling_alone() -> Iterator[None]:
    """Hold the block, in which a body may be compiled, until no other process of this user is in one: it then finds in torch's
    cache what that one has compiled. Not for ranks, which wait for each other in their first step."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    with FileLock(Path(cache_dir()) / "compiling.lock"):
        yield
