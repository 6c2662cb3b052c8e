"""What a run costs as it grows: the tables of docs/scale.md.

    python -m benchmarks.scale [--config RECIPE ...] [--ranks 1,8,64,1024] [--vocabulary N] [--no-measure]

For each recipe, by the model in benchmarks/cost_model.py: parameters, operations and checkpoint; memory of a rank and bytes that
it sends in a step, with DDP and with FSDP2; what a step, a checkpoint and a start take at stated rates (benchmarks/bill.py).
Then, unless --no-measure, what this machine takes: steps of small models (in CPU seconds of this process, which other processes
hardly affect), writing a checkpoint, reading metrics, and the watchdog's heartbeats. Sizes are decimal (1 GB = 1e9 bytes); a GPU
of 80 GB has 80 GiB, 85.9 GB, less what its driver and NCCL take.
"""

from __future__ import annotations

import json
import re
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from torch.distributed import TCPStore

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig
from optim.optimizers import build_optimizer
from ranks.watchdog import MAX_SECONDS_BETWEEN_BEATS
from record.rows import read_rows
from training.build import build_model, prepare_model
from training.memory import Shapes, micro_batches, shapes_of
from training.saving import save_checkpoint

from .bill import DISK, FLOPS, HOP, LINK, STEP, STORED, steps, stored
from .cost_model import Costs
from .paired import BLOCK, DEFAULT_RECIPE, loop_step, start_run
from .turns import machine, take_turn

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = [
    CONFIGS / f"{name}.yaml"
    for name in ("tinystories_15m", "wikitext103_30m", "fineweb_gpt2_124m", "scale/gpt2_1_3b", "scale/gpt2_7b")
]
VOCABULARIES = {"openai-community/gpt2": 50_257}
"""Vocabularies of tokenizers that recipes name, so that they need not be downloaded."""
DISKS = (200e6, 2e9)
"""Bytes per second of a network file system under load, and of a good one or a local NVMe disk."""
STEPS = 1_000_000
"""Steps of the run whose metrics are estimated."""
SMALL = ("data.sequence_length=128", "train.batch_size=4", "body.n_layer=2", "body.n_embd=128", "body.n_head=4")
WRITING = ("body.n_embd=512", "train.batch_size=2")
"""The default recipe with a checkpoint large enough for its writing to be timed."""
GROWTH: dict[str, list[tuple[int, list[str]]]] = {
    "parameters": [(4096, [f"body.n_embd={width}"]) for width in (128, 256, 512)],
    "tokens, by sequences": [(4096, [f"train.batch_size={sequences}"]) for sequences in (4, 8, 16)],
    "tokens, by length": [(4096, [f"data.sequence_length={length}"]) for length in (128, 512, 1024)],
    "vocabulary": [(vocabulary, []) for vocabulary in (4096, 16_384, 65_536)],
}
"""Vocabularies and overrides of small models that differ in one thing."""
REPEATS = 5
"""Timed steps of each small model; the fastest, which was disturbed least, counts."""
EXCHANGES = 20
"""Timed exchanges of heartbeats; the fastest counts."""
READ_ROWS = 2000
"""Rows of the file whose reading is timed."""
_LAYER = re.compile(r"\blayer_\d+\b")

Rows = Iterator[list[str]]


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="What a run costs as it grows.")
    parser.add_argument("--config", type=Path, nargs="+", default=RECIPES, help="recipes")
    parser.add_argument("--ranks", default="1,8,64,1024", help="numbers of processes, separated by commas")
    parser.add_argument("--vocabulary", type=int, help="tokens, where the recipe does not say how many")
    parser.add_argument("--no-measure", action="store_true", help="only the model of cost")
    arguments = parser.parse_args()
    ranks = read_ranks(arguments.ranks)
    configs = [load_config(recipe) for recipe in arguments.config]
    costs = {c.name: Costs(c, vocabulary_of(c, arguments.vocabulary)) for c in configs}
    header = ["recipe", "parameters", "tokens/step", "GFLOP/token", "FLOP/step", "checkpoint GB"]
    header += [f"s at {disk / 1e6:,.0f} MB/s" for disk in DISKS]
    header.append(f"GB a rank of {max(ranks):,}, FSDP2")
    print_table("Size, operations (forward and backward) and checkpoint", header, sizes(costs, max(ranks)))
    header = ["recipe", "ranks", "", "sequences x parts", "weights", "gradients", "moments", "telemetry", "DDP buckets"]
    header += ["gathered", "working", "total GB"]
    print_table("Memory of one rank at the worst moment of a step, GB", header, memory(costs, ranks))
    header = ["recipe", "ranks", "", "parameters", "gradients", "other", "total GB"]
    print_table("Sent by one rank in one step, GB", header, traffic(costs, ranks))
    rates = (
        f"{FLOPS / 1e12:.0f} TFLOP/s and {LINK / 1e9:.0f} GB/s a rank, {1e6 * HOP:.0f} us for each doubling of ranks"
    )
    print_table(f"A step of one rank, at {rates}", ["recipe", "ranks", "", *STEP], steps(costs, ranks))
    title = f"A checkpoint and a start, at {DISK / 1e9:.0f} GB/s for all ranks together"
    print_table(title, ["recipe", "ranks", "", *STORED], stored(costs, ranks))
    if not arguments.no_measure:
        print_measured(costs, max(ranks))


def read_ranks(text: str) -> list[int]:
    """Numbers of processes. Raises InputError."""
    ranks = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(ranks) < 1:
        raise InputError(f"--ranks: {text!r} is not a list of numbers from 1, such as 1,8,64")
    return ranks


def vocabulary_of(config: RunConfig, stated: int | None) -> int:
    """Size of the vocabulary. Raises InputError if neither the recipe nor the command states it."""
    tokenizer = getattr(config.data, "tokenizer", None)
    known = stated or getattr(config.data, "vocab_size", None) or VOCABULARIES.get(tokenizer or "")
    if known is None:
        raise InputError(f"--vocabulary: {config.name} does not say how many tokens there are; give their number")
    return known


def gigabytes(size: float) -> str:
    """Three significant digits; a dash for nothing."""
    return f"{size / 1e9:.3g}" if size else "-"


def print_table(title: str, header: list[str], rows: Iterable[list[str]]) -> None:
    """Print a Markdown table, each row as soon as it is known."""
    print(f"{title}:\n\n| {' | '.join(header)} |\n| --- |{' ---: |' * (len(header) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


# --------------------------------------------------------------------------------------------------- by the model of cost


def sizes(costs: dict[str, Costs], ranks: int) -> Rows:
    """Parameters, operations and checkpoint of each run, the last also for one of so many ranks that write shards."""
    for name, cost in costs.items():
        tokens = cost.config.train.batch_size * cost.config.data.sequence_length
        flops, written = cost.shapes.flops_per_token(), cost.checkpoint_bytes
        cells = [name, f"{cost.shapes.parameters:,}", f"{tokens:,}", f"{flops / 1e9:.3g}", f"{flops * tokens:.2g}"]
        seconds = (f"{written / disk:.3g}" for disk in DISKS)
        yield [*cells, gigabytes(written), *seconds, gigabytes(cost.shard_bytes(ranks))]


def memory(costs: dict[str, Costs], ranks: Sequence[int]) -> Rows:
    """Memory of a rank, for each launch."""
    for name, cost, number, sharded in _launches(costs, ranks):
        m, (sequences, parts) = cost.memory(number, sharded), micro_batches(cost.config, number)
        held = (m.weights, m.gradients, m.moments, m.telemetry, m.buckets, m.gathered, m.working, m.total)
        yield [name, f"{number:,}", "FSDP2" if sharded else "DDP", f"{sequences} x {parts}", *map(gigabytes, held)]


def traffic(costs: dict[str, Costs], ranks: Sequence[int]) -> Rows:
    """Bytes that a rank sends, for each launch."""
    for name, cost, number, sharded in _launches(costs, ranks):
        sent = cost.traffic(number, sharded)
        yield [name, f"{number:,}", "FSDP2" if sharded else "DDP", *map(gigabytes, (*sent, sum(sent)))]


def _launches(costs: dict[str, Costs], ranks: Sequence[int]) -> Iterator[tuple[str, Costs, int, bool]]:
    """Every run on every number of ranks that divides its batch, with DDP and with FSDP2."""
    for name, cost in costs.items():
        for number in ranks:
            if cost.config.train.batch_size % number == 0:
                yield from ((name, cost, number, sharded) for sharded in ((False, True) if number > 1 else (False,)))


# ------------------------------------------------------------------------------------------------------------- measured


class Files(NamedTuple):
    """The files of a short run."""

    layers: int
    fixed_bytes: float
    """Mean bytes of a row of metrics.jsonl apart from ``layer_bytes``."""
    layer_bytes: float
    """Mean bytes of a row for each layer."""
    seconds_per_row_read: float
    """Time to read metrics.jsonl back, as every start of a run does."""
    memory_per_row_read: float
    """Bytes of a row as Python objects."""
    checkpoint_bytes: int
    checkpoint_seconds: float

    def row_bytes(self, layers: int) -> float:
        """Mean bytes of a row for a model with so many layers."""
        return self.fixed_bytes + layers * self.layer_bytes


def measure_files(recipe: Path = DEFAULT_RECIPE, overrides: Sequence[str] = ()) -> Files:
    """Take the steps of one block, write a checkpoint, and read many rows back."""
    with tempfile.TemporaryDirectory() as folder:
        run = start_run(recipe, overrides, folder, "measured")
        step = loop_step(run)
        for number in range(1, BLOCK + 1):
            step(number)
        began = time.perf_counter()
        save_checkpoint(run, undecided=False)
        seconds = time.perf_counter() - began
        size = sum(path.stat().st_size for path in run.directory.glob("checkpoints/**/*") if path.is_file())
        metrics = run.directory / "metrics.jsonl"
        text = metrics.read_text(encoding="utf-8")
        layers = len(shapes_of(run.bare_model(), run.config.data.sequence_length).blocks)
        # A metric by itself has two braces in place of the comma and the space in its row.
        items = (item for line in text.splitlines() for item in json.loads(line).items())
        of_layers = sum(len(json.dumps({name: value})) for name, value in items if _LAYER.search(name))
        metrics.write_text(text * (READ_ROWS // BLOCK), encoding="utf-8")
        began = time.perf_counter()
        read_rows(metrics)
        read_seconds = time.perf_counter() - began
        tracemalloc.start()  # only now: it slows reading down
        count = len(rows := read_rows(metrics))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        del rows
    fixed, layer = (len(text) - of_layers) / BLOCK, of_layers / BLOCK / layers
    return Files(layers, fixed, layer, read_seconds / count, held / count, size, seconds)


def measure_step(overrides: Sequence[str], vocabulary: int, recipe: Path = DEFAULT_RECIPE) -> tuple[Shapes, int, float]:
    """A step of a small model on random tokens, without telemetry: its shapes, tokens, and CPU seconds."""
    config = load_config(recipe, overrides)
    model = prepare_model(config, build_model(config, vocabulary, 0))
    optimizer = build_optimizer(model, config.optimizer)
    shape = (config.train.batch_size, config.data.sequence_length)
    x_BT = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))

    def step(_: int) -> None:
        model(input_ids=x_BT, shift_labels=x_BT, skip_logits=True, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step(0)  # allocates memory
    seconds = min(take_turn(step, range(1), torch.device("cpu")).cpu for _ in range(REPEATS))
    return shapes_of(model, shape[1]), x_BT.numel(), seconds


def print_measured(costs: dict[str, Costs], ranks: int) -> None:
    """Measure this machine, and print the tables; the heartbeats are those of so many ranks."""
    print(f"Measured on: {machine(torch.device('cpu'))}")
    header = ["growing", "parameters", "tokens/step", "length", "vocabulary", "MFLOP/token", "CPU ms/step", "GFLOP/s"]
    print_table("A step of small models: forward, backward, update", header, growth())
    files = measure_files(overrides=WRITING)
    speed = files.checkpoint_bytes / files.checkpoint_seconds
    print(
        f"Checkpoint: {files.checkpoint_bytes / 1e6:.1f} MB in {files.checkpoint_seconds:.2f} s, "
        f"{1e3 * 1e6 / speed:.2f} ms per MB ({speed / 1e6:,.0f} MB/s), flushed to the disk\n"
    )
    exchange = measure_exchange(ranks)
    print(
        f"Heartbeats: {ranks:,} ranks exchange theirs in {1e3 * exchange:.2f} ms each, in {ranks * exchange:.2g} s one after the "
        f"other, every {MAX_SECONDS_BETWEEN_BEATS:g} s\n"
    )
    header = ["recipe", "layers", "bytes/row", f"GB for {STEPS:,} steps", "minutes to read them back"]
    print_table("metrics.jsonl, everything on", [*header, "GB of memory for it"], volume(costs, files))


def measure_exchange(ranks: int) -> float:
    """Seconds in which one rank writes its heartbeat to the watchdog's store and reads those of all ``ranks``."""
    wait = timedelta(seconds=60)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=wait)
    everyone = [str(number) for number in range(ranks)]
    heartbeat = json.dumps([STEPS, STEPS, STEPS, "forward and backward"])
    for number in everyone:
        store.set(number, heartbeat)
    rank = TCPStore("localhost", store.port, is_master=False, timeout=wait)
    seconds = []
    for _ in range(EXCHANGES):
        began = time.perf_counter()
        rank.set(everyone[-1], heartbeat)
        rank.multi_get(everyone)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def growth() -> Rows:
    """Steps of small models."""
    for what, models in GROWTH.items():
        for vocabulary, overrides in models:
            shapes, tokens, seconds = measure_step([*SMALL, *overrides], vocabulary)
            flops = shapes.flops_per_token()
            cells = [what, f"{shapes.parameters:,}", f"{tokens:,}", f"{shapes.length:,}", f"{vocabulary:,}"]
            yield [*cells, f"{flops / 1e6:.1f}", f"{1e3 * seconds:.1f}", f"{tokens * flops / seconds / 1e9:.1f}"]


def volume(costs: dict[str, Costs], files: Files) -> Rows:
    """Metrics of a long run."""
    for name, cost in costs.items():
        layers = len(cost.shapes.blocks)
        row = files.row_bytes(layers)
        # Reading is parsing: its time and its memory are proportional to the bytes.
        equivalent = STEPS * row / files.row_bytes(files.layers)
        minutes, held = equivalent * files.seconds_per_row_read / 60, equivalent * files.memory_per_row_read
        yield [name, str(layers), f"{row:,.0f}", gigabytes(STEPS * row), f"{minutes:.1f}", gigabytes(held)]


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
