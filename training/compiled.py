"""Compiling the body for training."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation

from common.errors import InputError, note

PATIENCE = 300
"""Seconds after which a process no longer waits for another one that compiles."""


class SigmoidGELU(nn.Module):
    """GELU's tanh form, x (1 + tanh u) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3), as x sigmoid(2 u).

    What torch compiles tanh to takes most of a small GPT's MLP on CPU, and several times as long as the exponential. Nor does
    anything cancel for negative x.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))


def compile_body(body: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let ``body`` be compiled when it first runs in training mode; in evaluation mode it stays as it is, because whoever looks
    at it then has other shapes and hooks. Compiled, it agrees with the uncompiled one but for rounding."""
    for module in list(body.modules()):
        for name, child in module.named_children():
            if isinstance(child, (GELUTanh, NewGELUActivation, FastGELUActivation)):
                setattr(module, name, SigmoidGELU())
    usual = body.forward
    compiled = torch.compile(usual, backend=backend)

    @functools.wraps(usual)
    def forward(*arguments: Any, **named: Any) -> Any:
        return (compiled if body.training else usual)(*arguments, **named)

    body.forward = forward


def check_compiler() -> None:
    """Raise InputError if nothing can be compiled for this machine's CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise InputError("train.compile: there is no C++ compiler; install g++, or name another in CXX") from None


@contextlib.contextmanager
def compiling_alone(stopped: Callable[[], bool]) -> Iterator[None]:
    """Enter the block, in which a body may be compiled, when no other process of this user is in one: it then finds in torch's
    cache what that one has compiled. That only saves work, so nobody waits long, or once ``stopped``. Not for ranks, which wait
    for each other in their first step."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    lock = FileLock(Path(cache_dir()) / "compiling.lock")
    with contextlib.suppress(OSError):  # a folder that only others may write
        for second in range(PATIENCE):
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=1)
                break
            if stopped():
                break
            if second == 0:
                note("train.compile: waits for another run that compiles")
    try:
        yield
    finally:
        lock.release()
