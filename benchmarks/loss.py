"""Time and memory of the chunked loss, against its own matrix products and against other implementations.

    python -m benchmarks.loss [--shapes N,D,V ...] [--rounds R] [--threads T]

Contestants take turns in one process. Times are CPU times on one thread (the default on a CPU), otherwise wall times; printed is
the median ratio to the three matrix products of the same chunks (logits, and the gradients of both sides), with quartiles.
Memory is the peak beyond the inputs and their gradients, in units of N x V float32 numbers. Every turn includes the gradients of
hidden states and weights. On CUDA all products are bfloat16, by autocast where a contestant supports it. cut-cross-entropy and
liger-kernel take part if installed.

Shapes: N tokens, C tokens of a chunk, V vocabulary, D width.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from common.allocation import keep_freed_memory
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from model import HEADS, OBJECTIVES
from model.chunked import chunk_rows, chunked_loss
from model.precision import compute_dtype, product

from .turns import machine, take_turn

SHAPES = [f"{N},{D},{V}" for V in (8192, 50257) for D in (256, 768) for N in (2048, 4096)]
MATMULS = "three matmuls"
LossAndInputs = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From hidden states (N, D), weights (V, D) and targets (N,) to the summed loss, differentiable."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Time and memory of the chunked loss.")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="N,D,V", help="tokens, width, vocabulary")
    parser.add_argument("--rounds", type=int, help="turns of each contestant (default: 3 to 15, by shape)")
    parser.add_argument("--threads", type=int, default=1, help="threads on CPU")
    arguments = parser.parse_args()
    shapes = [shape(text) for text in arguments.shapes]
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # as in training
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clock = "time" if device.type == "cuda" else "CPU time" if arguments.threads == 1 else "wall time"
    print(f"{machine(device)}; median ratios of {clock} [quartiles] to the three matmuls, memory in N x V floats")
    for N, D, V in shapes:
        rounds = arguments.rounds or max(3, min(15, int(3e11 / (N * D * V))))
        seconds, memory = measure(N, D, V, rounds, device, arguments.threads)
        print(f"\nN={N} D={D} V={V}, {rounds} rounds, chunks of {chunk_rows(N, V, device.type)}")
        for name, values in seconds.items():
            low, middle, high = np.quantile(values / seconds[MATMULS], [0.25, 0.5, 0.75])
            print(
                f"  {name:<34} {1e3 * np.median(values):9.1f} ms   {middle:6.3f} [{low:.3f}, {high:.3f}]"
                f"   memory {memory[name]:6.3f}",
                flush=True,
            )


def shape(text: str) -> tuple[int, int, int]:
    """N, D and V of a value of --shapes. Raises InputError for what is none."""
    parts = text.split(",")
    if len(parts) != 3 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise InputError(f"--shapes: {text!r} is not N,D,V, three positive numbers")
    N, D, V = (int(p) for p in parts)
    return N, D, V


def measure(
    N: int, D: int, V: int, rounds: int, device: torch.device, threads: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Seconds of each contestant in each round, and its memory beyond the gradients in units of N x V floats."""

    def seconds_of(turn: Callable[[], None]) -> float:
        cost = take_turn(lambda _: turn(), range(1), device)
        return cost.cpu if device.type == "cpu" and threads == 1 else cost.wall

    generator = torch.Generator().manual_seed(0)
    h_ND = torch.randn(N, D, generator=generator).to(device)
    w_VD = (0.02 * torch.randn(V, D, generator=generator)).to(device)
    y_N = torch.randint(0, V, (N,), generator=generator).to(device)
    turns = {MATMULS: functools.partial(three_matmuls, h_ND, w_VD, dtype_on(device))}
    for name, loss in contestants(device).items():
        turns[name] = functools.partial(forward_and_backward, loss, h_ND, w_VD, y_N, dtype_on(device))
    memory = {}
    for name, turn in turns.items():
        turn()  # warm-up
        memory[name] = (peak_bytes(turn, device) - 4 * (N * D + V * D)) / (4 * N * V)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    order = list(turns)
    for number in range(rounds):
        for name in order if number % 2 else order[::-1]:
            seconds[name].append(seconds_of(turns[name]))
    return {name: np.array(values) for name, values in seconds.items()}, memory


def dtype_on(device: torch.device) -> torch.dtype:
    """Dtype of the products on a device."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


@torch.no_grad()  # as in the loss: on CUDA product() keeps the unrounded sums only outside autograd
def three_matmuls(h_ND: Tensor, w_VD: Tensor, dtype: torch.dtype) -> None:
    """The matrix products of the chunked loss alone: logits, gradient of the features, gradient of the classes."""
    h_ND, w_VD = h_ND.to(dtype), w_VD.to(dtype)
    rows = chunk_rows(len(h_ND), len(w_VD), h_ND.device.type)
    z_CV = torch.empty(rows, len(w_VD), device=h_ND.device)
    dh_ND, dw_VD = torch.empty_like(h_ND), torch.zeros_like(w_VD, dtype=torch.float32)
    for start in range(0, len(h_ND), rows):
        h_CD = h_ND[start : start + rows]
        dz_CV = product(h_CD, w_VD.T, z_CV[: len(h_CD)]).to(dtype)
        dh_ND[start : start + rows] = product(dz_CV, w_VD)
        if dtype == dw_VD.dtype:
            dw_VD.addmm_(dz_CV.T, h_CD)
        else:
            dw_VD += product(dz_CV.T, h_CD)


def contestants(device: torch.device) -> dict[str, LossAndInputs]:
    """Implementations of the losses, by name."""
    found = {
        "CE, linear": chunked("linear", "ce"),
        "CE, metric": chunked("metric", "ce"),
        "TFSD, metric": chunked("metric", "tfsd"),
        "TFSD, metric, with statistics": chunked("metric", "tfsd", statistics=True),
        "F.kl_div definition of TFSD": tfsd_definition,
        "F.cross_entropy on all logits": all_logits,
    }
    kind = "cce" if device.type == "cuda" else "torch_compile"
    others: dict[str, Callable[[], LossAndInputs]] = {
        "torch linear_cross_entropy, 256": functools.partial(torch_linear_cross_entropy, 256),
        "torch linear_cross_entropy, 512": functools.partial(torch_linear_cross_entropy, 512),
        f"cut-cross-entropy, {kind}": functools.partial(cut_cross_entropy, kind),
    }
    if device.type == "cuda":
        others["Liger fused linear CE"] = liger
    for name, make in others.items():
        with contextlib.suppress(ImportError):
            found[name] = make()
    return found


def chunked(
    head_kind: str, objective_kind: str, statistics: bool = False, rows: int | None = None, kernel: str | None = None
) -> LossAndInputs:
    """This project's loss. ``rows``: tokens of a chunk; ``kernel``: what the head is to compute the softmax with."""
    objective = OBJECTIVES[objective_kind](OBJECTIVES[objective_kind].Options())

    def loss(h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> Tensor:
        with torch.device("meta"):
            head: Any = HEADS[head_kind](w_VD.shape[1], len(w_VD), HEADS[head_kind].Options())
        del head.weight
        head.weight = w_VD  # a plain tensor in place of a parameter
        if kernel is not None:
            head.kernel = kernel
        return chunked_loss(head, objective, h_ND, y_N, statistics, rows).objective_sum

    return loss


def all_logits(h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> Tensor:
    """F.cross_entropy of all logits at once."""
    return F.cross_entropy(h_ND @ w_VD.T, y_N, reduction="sum")


def torch_linear_cross_entropy(rows: int | None = None) -> LossAndInputs:
    """torch's own fused loss, in chunks of ``rows`` tokens if given. Raises ImportError if this torch has none."""
    if not hasattr(F, "linear_cross_entropy"):
        raise ImportError(f"torch {torch.__version__} has no linear_cross_entropy")
    chosen: dict[str, Any] = (
        {} if rows is None else {"options": torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)}
    )
    return _in_compute_dtype(functools.partial(F.linear_cross_entropy, reduction="sum", **chosen))


def cut_cross_entropy(kind: str, **options: Any) -> LossAndInputs:
    """cut-cross-entropy's implementation ``kind``. Raises ImportError if it is not installed."""
    from cut_cross_entropy import linear_cross_entropy

    return _in_compute_dtype(functools.partial(linear_cross_entropy, reduction="sum", impl=kind, **options))


def liger(**options: Any) -> LossAndInputs:
    """Liger's fused loss. Raises ImportError if it is not installed, TypeError for options of a newer version."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    fused = LigerFusedLinearCrossEntropyLoss(reduction="sum", **options)
    return _in_compute_dtype(lambda h_ND, w_VD, y_N: fused(w_VD, h_ND, y_N))


def _in_compute_dtype(loss: LossAndInputs) -> LossAndInputs:
    """``loss`` of inputs and weights in autocast's dtype: kernels of others do their products outside autocast."""
    return lambda h_ND, w_VD, y_N: loss(h_ND.to(compute_dtype(h_ND)), w_VD.to(compute_dtype(w_VD)), y_N)


def tfsd_definition(h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> Tensor:
    """KL(Q || P) of a metric head at g = 1/2, literally: two log-softmaxes of all logits and F.kl_div."""
    z_NV = h_ND @ w_VD.T - 0.5 * w_VD.square().sum(1) - 0.5 * h_ND.square().sum(1, keepdim=True)
    teacher_NV = z_NV.detach().scatter(1, y_N[:, None], 0.0).log_softmax(1)
    return F.kl_div(z_NV.log_softmax(1), teacher_NV, log_target=True, reduction="sum")


def forward_and_backward(loss: LossAndInputs, h_ND: Tensor, w_VD: Tensor, y_N: Tensor, dtype: torch.dtype) -> None:
    """The loss and the gradients of float32 hidden states and weights, with products in ``dtype``."""
    h_ND, w_VD = h_ND.detach().requires_grad_(), w_VD.detach().requires_grad_()
    with torch.autocast(h_ND.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        value = loss(h_ND, w_VD, y_N)
    value.backward()


def peak_bytes(turn: Callable[[], None], device: torch.device) -> int:
    """The most bytes that were allocated at once during a turn."""
    if device.type == "cuda":
        return take_turn(lambda _: turn(), range(1), device).extra_bytes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        turn()
    assert recorded.profiler is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return int(np.cumsum(sizes).max())


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
