"""Speed of train_lm.py's loop, against the same model in a bare loop and against a plain GPT.

    python -m benchmarks.throughput [--config FILE] [--steps N] [--compiled] [--peak-tflops X] [key.sub=value ...]

Contestants of one shape take turns on the same batches, with the same fused AdamW and clipping (benchmarks/paired.py):

    loop ...      train_lm.py's step with all its telemetry and the transfer of its rows; no evaluation, no checkpoint
    bare ...      the same model with batch, forward, backward, clipping, update, and nothing else
    nanogpt       benchmarks/plain_gpt.py in the bare loop: cross-entropy of all logits at once
    ... compiled  with torch.compile: of nanogpt the whole, of the loop the body (train.compile)

Prints tokens per second and ratios, by wall clock and by CPU time of this process (steadier where other processes compete; on a
GPU it is the host's share), in the precision of the recipe, but on a GPU in bfloat16 unless overridden.
Shapes: B batch, T positions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig
from data.batches import Batches
from optim.optimizers import build_optimizer
from training.build import build_model, prepare_model
from training.run import Run

from . import paired
from .paired import BLOCK, CLOCKS, FIRST, Series
from .plain_gpt import PlainGPT
from .turns import Step, machine

METRIC, LINEAR = "metric+TFSD", "linear+CE"
ARMS = {METRIC: ["head.kind=metric", "objective.kind=tfsd"], LINEAR: ["head.kind=linear", "objective.kind=ce"]}
SAME = [
    *("train.compile=false", "train.micro_batch_size=null", "train.gradient_checkpointing=false"),
    *("body.resid_pdrop=0.0", "body.embd_pdrop=0.0", "body.attn_pdrop=0.0"),
]
"""Switched off for all: what the bare loop and the plain GPT do not have."""
RATIOS: list[tuple[str, str, float | None]] = [
    (f"loop {METRIC}", f"bare {METRIC}", 1.03),
    (f"loop {LINEAR}", f"bare {LINEAR}", 1.03),
    (f"loop {METRIC}", f"loop {LINEAR}", 1.03),
    (f"loop {METRIC}", "nanogpt", None),
    (f"loop {LINEAR}", "nanogpt", None),
    (f"loop {METRIC} compiled", f"loop {METRIC}", None),
    ("nanogpt compiled", "nanogpt", None),
    (f"loop {METRIC} compiled", "nanogpt compiled", None),
]
"""Pairs of contestants whose times per step are compared, and the target of their ratio."""


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="How fast train_lm.py's loop is, as ratios.")
    parser.add_argument("--compiled", action="store_true", help="include torch.compile")
    parser.add_argument("--peak-tflops", type=float, help="of the device, for model FLOPs utilisation (MFU)")
    arguments = paired.parse_arguments(parser)
    peak = arguments.peak_tflops
    if peak is not None and not peak > 0:
        raise InputError(f"--peak-tflops: must be above 0, but is {peak}")
    series, run, plain = measure(arguments.config, arguments.steps, arguments.overrides, arguments.compiled)
    print(f"{machine(run.accelerator.device)}, {run.config.train.precision}")
    print(
        f"{arguments.config.stem}: {sum(p.numel() for p in plain.parameters()):,} parameters, "
        f"{run.tokens_per_step} tokens a step, {arguments.steps} steps of each in turns"
    )
    print_speeds(series, run, plain, peak)
    print_ratios(series)


# ------------------------------------------------------------------------------------------------------------- measuring


def measure(
    recipe: Path, steps: int, overrides: list[str], compiled: bool = False
) -> tuple[dict[str, Series], Run, PlainGPT]:
    """The costs of all contestants, one of their runs, and the plain GPT.

    Raises InputError for a recipe that the plain GPT or the bare loop does not support.
    """
    overrides = [*(["train.precision=bf16"] if torch.cuda.is_available() else []), *overrides]
    check_recipe(recipe, overrides)
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            f"loop {arm}": paired.start_run(recipe, [*overrides, *SAME, *own], folder, f"loop_{number}")
            for number, (arm, own) in enumerate(ARMS.items())
        }
        run = runs[f"loop {LINEAR}"]
        plain = plain_gpt(run)
        contestants = {f"bare {arm}": bare_project(runs[f"loop {arm}"]) for arm in ARMS}
        contestants["nanogpt"] = bare_step(run.config, run.batches, run.accelerator.device, plain, plain.loss)
        if compiled:
            own = [*SAME, *ARMS[METRIC], "train.compile=true"]
            runs[f"loop {METRIC} compiled"] = paired.start_run(recipe, [*overrides, *own], folder, "loop_compiled")
            second = plain_gpt(run)
            compiled_loss = torch.compile(second.loss)
            contestants["nanogpt compiled"] = bare_step(
                run.config, run.batches, run.accelerator.device, second, compiled_loss
            )
        contestants = {name: paired.loop_step(r) for name, r in runs.items()} | contestants
        series = paired.take_turns(contestants, steps, run.accelerator.device)
    return series, run, plain


def check_recipe(recipe: Path, overrides: list[str]) -> None:
    """Raises InputError for a recipe that the plain GPT or the bare loop does not support."""
    config = load_config(recipe, overrides)
    if config.body.model_type != "gpt2":
        body = config.body.model_type or config.body.checkpoint
        raise InputError(
            f"body.model_type: the plain GPT has the shape of gpt2 and no other, but the recipe's is {body}"
        )
    if config.train.precision == "fp16":
        raise InputError("train.precision: the bare loop does not scale gradients, as fp16 needs; use fp32 or bf16")


def plain_gpt(run: Run) -> PlainGPT:
    """A plain GPT of the shape of the run's body."""
    body = run.bare_model().model
    plain = PlainGPT(body.config).to(run.accelerator.device)
    counts = [sum(p.numel() for p in model.parameters()) for model in (plain, body)]
    assert counts[0] == counts[1], f"the plain GPT has {counts[0]} parameters, the body {counts[1]}"
    return plain


def bare_project(run: Run) -> Step:
    """A bare loop with a model like the run's own."""
    model = prepare_model(run.config, build_model(run.config, run.store.vocab_size, run.store.eos_id))
    model.to(run.accelerator.device)

    def loss(x_BT: Tensor, y_BT: Tensor) -> Tensor:
        value: Tensor = model(input_ids=x_BT, shift_labels=y_BT, skip_logits=True, use_cache=False).loss
        return value

    return bare_step(run.config, run.batches, run.accelerator.device, model, loss)


def bare_step(
    config: RunConfig,
    batches: Batches,
    device: torch.device,
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Step:
    """A step on a run's batches with its kind of optimizer and clipping, and nothing else."""
    clip_norm, autocast = config.optimizer.clip_norm, config.train.precision == "bf16"
    parameters = list(model.parameters())
    optimizer = build_optimizer(model, config.optimizer)

    def step(number: int) -> None:
        x_BT, y_BT = batches.at(number)
        if device.type == "cuda":
            x_BT, y_BT = (t.pin_memory().to(device, non_blocking=True) for t in (x_BT, y_BT))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            value = loss(x_BT, y_BT)
        value.backward()
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


# ------------------------------------------------------------------------------------------------------------- reporting


def print_speeds(series: dict[str, Series], run: Run, plain: PlainGPT, peak_tflops: float | None) -> None:
    """A line per contestant: medians over the blocks."""
    on_gpu = run.accelerator.device.type == "cuda"
    flops = plain.flops_per_token(run.config.data.sequence_length)
    headings = ["tokens/s", "ms/step", "CPU ms/step", f"first {FIRST} steps, s"]
    headings += ["peak over resident, MiB"] * on_gpu + ["MFU, %"] * bool(peak_tflops)
    rows = {"medians over blocks": headings}
    for name, one in series.items():
        wall, cpu = (float(np.median(one.per_step(clock))) for clock in CLOCKS)
        speed = run.tokens_per_step / wall
        rows[name] = [f"{speed:,.0f}", f"{1e3 * wall:.1f}", f"{1e3 * cpu:.1f}", f"{one.first.wall:.2f}"]
        if on_gpu:
            rows[name].append(f"{max(cost.extra_bytes for cost in one.blocks) / 2**20:,.0f}")
        if peak_tflops:
            rows[name].append(f"{100 * speed * flops / (1e12 * peak_tflops):.2f}")
    print()
    for name, cells in rows.items():
        print(f"  {name:<28}" + "".join(f"{c:>{len(head) + 3}}" for c, head in zip(cells, headings, strict=True)))


def print_ratios(series: dict[str, Series]) -> None:
    """A line for each of the ``RATIOS`` whose contestants took part."""
    count = len(next(iter(series.values())).blocks)
    print(f"\n  {'ratios of times per step':<50}{'wall clock':<24}{'CPU time':<24}target")
    for above, below, target in RATIOS:
        if above in series and below in series:
            wall, cpu = (paired.compare(series[above], series[below], clock) for clock in CLOCKS)
            bound = f"at most {target}" if target is not None else ""
            print(f"  {f'{above} / {below}':<50}{wall!s:<24}{cpu!s:<24}{bound}".rstrip())
    print(f"  (median over {count} blocks of {BLOCK} steps and its 95% interval; below 1: the first is faster)")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
