"""The cost of a monitor in a plain training loop: a step with it against the same step without.

    python -m benchmarks.monitor [--steps N] [--batch B] [--length T]

The loop is nanoGPT's: a plain GPT of 1.3 million parameters (benchmarks/plain_gpt.py), cross-entropy, AdamW. Contestants take
turns (benchmarks/paired.py); a block of 20 steps includes the transfer of their rows and the detectors:

    alone       forward, backward, update
    monitor     the same with stability.monitor
    trainscope  the same with trainscope (PyPI) in its default configuration, if it can be imported

Shapes: B batch, T positions.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2Config

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from stability.monitor import Monitor

from .paired import BLOCK, CLOCKS, FEWEST_BLOCKS, compare, take_turns
from .plain_gpt import PlainGPT
from .turns import Step, machine

VOCABULARY = 4096
Watch = Callable[[Tensor], Any]
Attach = Callable[[PlainGPT, torch.optim.Optimizer, Path, ExitStack], Watch]
"""From model, optimizer and a folder to write to; what must be closed goes on the stack."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="The cost of a monitor, per step.")
    parser.add_argument("--steps", type=int, default=200, help=f"steps of each contestant, in {BLOCK}s")
    parser.add_argument("--batch", type=int, default=16, help="sequences of a step (default 16)")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sequence (default 128)")
    arguments = parser.parse_args()
    if (steps := arguments.steps) < (least := FEWEST_BLOCKS * BLOCK) or steps % BLOCK:
        raise InputError(f"--steps: must be a multiple of {BLOCK}, at least {least}, but is {steps}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape = (arguments.batch, arguments.length + 1)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        watches = {"alone": _alone, "monitor": _monitor, "trainscope": _trainscope}
        if not importlib.util.find_spec("trainscope"):
            del watches["trainscope"]
        contestants = {
            name: loop(shape, device, attach, Path(folder) / name, stack) for name, attach in watches.items()
        }
        series = take_turns(contestants, steps, device)
    print(machine(device))
    print(f"plain GPT: {arguments.batch * arguments.length} tokens a step, {steps} steps of each in turns")
    for name, one in series.items():
        print(f"  {name:<10}  {1e3 * float(np.median(one.per_step('wall'))):7.1f} ms/step")
    for name in list(series)[1:]:
        for clock in CLOCKS:
            found = compare(series[name], series["alone"], clock)
            print(f"  {name} / alone, {clock:<4}  {found}: {100 * (found.middle - 1):+.1f}% per step")
    print(f"  (median over {steps // BLOCK} blocks of {BLOCK} steps, 95% interval)")


def loop(shape: tuple[int, int], device: torch.device, attach: Attach, folder: Path, stack: ExitStack) -> Step:
    """A step of a plain loop on random tokens (``shape``: B, T + 1), with what ``attach`` adds between backward and update."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "n_positions": shape[1] - 1, "n_layer": 4, "n_head": 4}
    config = GPT2Config(**sizes, n_embd=128, bos_token_id=None, eos_token_id=None)
    model = PlainGPT(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    watch = attach(model, optimizer, folder, stack)

    def step(number: int) -> None:
        # New ones at every step: batches that repeat are learnt by heart, with spikes, whose precursors cost time of their own.
        generator = torch.Generator().manual_seed(number)
        batch_BT = torch.randint(VOCABULARY, shape, generator=generator).to(device)
        loss = model.loss(batch_BT[:, :-1], batch_BT[:, 1:])
        loss.backward()
        watch(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _alone(model: PlainGPT, optimizer: torch.optim.Optimizer, folder: Path, stack: ExitStack) -> Watch:
    return lambda loss: None


def _monitor(model: PlainGPT, optimizer: torch.optim.Optimizer, folder: Path, stack: ExitStack) -> Watch:
    return stack.enter_context(Monitor(folder, model, optimizer, flush_every=BLOCK)).step


def _trainscope(model: PlainGPT, optimizer: torch.optim.Optimizer, folder: Path, stack: ExitStack) -> Watch:
    from trainscope import TrainScope
    from trainscope.core.config import TrainScopeConfig

    scope = TrainScope(model, optimizer, config=TrainScopeConfig(run_dir=str(folder), run_name="run")).attach()
    return lambda loss: scope.step(loss.item())


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
