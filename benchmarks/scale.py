"""What a run costs, and what breaks first when it grows: the tables of docs/scale.md.

    python -m benchmarks.scale [--config RECIPE ...] [--ranks 1,8,64] [--vocabulary N] [--no-measure]

For each recipe: parameters, operations and checkpoint; memory of a rank and bytes that it sends in a step, with DDP and with
FSDP2, by the model of benchmarks/cost_model.py. Then, unless --no-measure, what this machine tells: steps of small models as
parameters, tokens and vocabulary grow, the writing of a checkpoint, and the bytes of a row of metrics. Sizes are decimal
(1 GB = 1e9 bytes); a GPU of 80 GB has 80 GiB, 85.9 GB, less what its driver and NCCL take.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from common.command import ArgumentParser, exit_status
from common.errors import InputError
from configs.load import load_config
from configs.schema import RunConfig

from .cost_model import Costs
from .measured import Files, StepCost, measure_files, measure_step
from .paired import machine

CONFIGS = Path(__file__).parent.parent / "configs"
RECIPES = [
    CONFIGS / f"{name}.yaml"
    for name in ("tinystories_15m", "wikitext103_30m", "fineweb_gpt2_124m", "scale/gpt2_1_3b", "scale/gpt2_7b")
]
VOCABULARIES = {"openai-community/gpt2": 50_257}
"""Of tokenizers that the recipes name, so that nothing need be downloaded to know it."""
DISKS = (200e6, 2e9)
"""Bytes per second of a network file system under load, and of a good one or a local NVMe disk."""
STEPS = 1_000_000
"""Of the run whose metrics are estimated."""
SMALL = ("data.sequence_length=128", "train.batch_size=4", "body.n_layer=2", "body.n_embd=128", "body.n_head=4")
WRITING = ("body.n_embd=512", "train.batch_size=2")
"""The default recipe, with a checkpoint large enough for its writing to be timed."""
GROWTH: dict[str, list[tuple[int, list[str]]]] = {
    "parameters": [(4096, [f"body.n_embd={width}"]) for width in (128, 256, 512)],
    "tokens, by sequences": [(4096, [f"train.batch_size={sequences}"]) for sequences in (4, 8, 16)],
    "tokens, by length": [(4096, [f"data.sequence_length={length}"]) for length in (128, 512, 1024)],
    "vocabulary": [(vocabulary, []) for vocabulary in (4096, 16_384, 65_536)],
}
"""Small models that differ in one thing: their vocabularies and overrides."""


def main() -> None:
    """Compute, measure and print."""
    parser = ArgumentParser(description="What a run costs as it grows.")
    parser.add_argument("--config", type=Path, nargs="+", default=RECIPES, help="recipes")
    parser.add_argument("--ranks", default="1,8,64", help="numbers of processes, separated by commas")
    parser.add_argument("--vocabulary", type=int, help="tokens, where the recipe does not say how many")
    parser.add_argument("--no-measure", action="store_true", help="only the model of cost")
    arguments = parser.parse_args()
    ranks = read_ranks(arguments.ranks)
    configs = [load_config(recipe) for recipe in arguments.config]
    costs = {c.name: Costs(c, vocabulary_of(c, arguments.vocabulary)) for c in configs}
    print_table(*sizes(costs))
    print_table(*memory(costs, ranks))
    print_table(*traffic(costs, ranks))
    if not arguments.no_measure:
        print_measured(costs)


def read_ranks(text: str) -> list[int]:
    """Numbers of processes. Raises InputError."""
    try:
        ranks = [int(part) for part in text.split(",")]
    except ValueError:
        ranks = []
    if not ranks or min(ranks) < 1:
        raise InputError(f"--ranks: {text!r} is not a list of numbers from 1, such as 1,8,64")
    return ranks


def vocabulary_of(config: RunConfig, stated: int | None) -> int:
    """Tokens that can be predicted. Raises InputError where neither the recipe nor the command says it."""
    tokenizer = getattr(config.data, "tokenizer", None)
    known = stated or getattr(config.data, "vocab_size", None) or VOCABULARIES.get(tokenizer or "")
    if known is None:
        raise InputError(f"--vocabulary: {config.name} does not say how many tokens there are; give their number")
    return known


# --------------------------------------------------------------------------------------------------- by the model of cost

Table = tuple[str, list[str], Iterator[list[str]]]
"""A title, the heads of the columns, and the rows."""


def sizes(costs: dict[str, Costs]) -> Table:
    """Parameters, operations and checkpoint of each run."""
    heads = ["recipe", "parameters", "tokens/step", "GFLOP/token", "FLOP/step", "checkpoint GB"]
    heads += [f"s at {disk / 1e6:,.0f} MB/s" for disk in DISKS]

    def rows() -> Iterator[list[str]]:
        for name, cost in costs.items():
            tokens = cost.config.train.batch_size * cost.config.data.sequence_length
            flops, written = cost.shapes.flops_per_token(), cost.checkpoint_bytes
            cells = [name, f"{cost.shapes.parameters:,}", f"{tokens:,}", f"{flops / 1e9:.3g}", f"{flops * tokens:.2g}"]
            yield [*cells, gigabytes(written), *(f"{written / disk:.3g}" for disk in DISKS)]

    return "Size, operations (forward and backward) and checkpoint", heads, rows()


def memory(costs: dict[str, Costs], ranks: Sequence[int]) -> Table:
    """Memory of a rank."""
    heads = ["recipe", "ranks", "", "sequences x parts", "weights", "gradients", "moments", "telemetry", "DDP buckets"]
    heads += ["gathered", "working", "total GB"]

    def rows() -> Iterator[list[str]]:
        for name, cost, number, sharded in _launches(costs, ranks):
            m, (sequences, parts) = cost.memory(number, sharded), cost.split(number)
            held = (m.weights, m.gradients, m.moments, m.telemetry, m.buckets, m.gathered, m.working)
            launch = [name, str(number), "FSDP2" if sharded else "DDP", f"{sequences} x {parts}"]
            yield [*launch, *map(gigabytes, held), gigabytes(m.total)]

    return "Memory of one rank at the worst moment of a step, GB", heads, rows()


def traffic(costs: dict[str, Costs], ranks: Sequence[int]) -> Table:
    """Communication of a rank."""
    heads = ["recipe", "ranks", "", "parameters", "gradients", "other", "total GB"]

    def rows() -> Iterator[list[str]]:
        for name, cost, number, sharded in _launches(costs, ranks):
            t = cost.traffic(number, sharded)
            launch = [name, str(number), "FSDP2" if sharded else "DDP"]
            yield [*launch, *map(gigabytes, (t.parameters, t.gradients, t.other, t.total))]

    return "Sent by one rank in one step, GB", heads, rows()


def _launches(costs: dict[str, Costs], ranks: Sequence[int]) -> Iterator[tuple[str, Costs, int, bool]]:
    """Every run on every number of ranks that its batch can be dealt out to, with DDP and with FSDP2."""
    for name, cost in costs.items():
        for number in ranks:
            if cost.config.train.batch_size % number == 0:
                yield from ((name, cost, number, sharded) for sharded in ((False, True) if number > 1 else (False,)))


# ------------------------------------------------------------------------------------------------------------- measured


def print_measured(costs: dict[str, Costs]) -> None:
    """What this machine tells."""
    import torch

    print(f"Measured on: {machine(torch.device('cpu'))}")
    print_table(*growth())
    files = measure_files(overrides=WRITING)
    speed = files.checkpoint_bytes / files.checkpoint_seconds
    print(
        f"Checkpoint: {files.checkpoint_bytes / 1e6:.1f} MB in {files.checkpoint_seconds:.2f} s, "
        f"{1e3 * 1e6 / speed:.2f} ms per MB ({speed / 1e6:,.0f} MB/s), flushed to the disk\n"
    )
    print_table(*volume(costs, files))


def growth() -> Table:
    """Steps of small models."""
    heads = ["growing", "parameters", "tokens/step", "length", "vocabulary", "MFLOP/token", "CPU ms/step", "GFLOP/s"]

    def rows() -> Iterator[list[str]]:
        for what, models in GROWTH.items():
            for vocabulary, overrides in models:
                cost: StepCost = measure_step([*SMALL, *overrides], vocabulary)
                flops = cost.shapes.flops_per_token()
                cells = [what, f"{cost.shapes.parameters:,}", f"{cost.tokens:,}", f"{cost.shapes.length:,}"]
                cells += [f"{vocabulary:,}", f"{flops / 1e6:.1f}", f"{1e3 * cost.seconds:.1f}"]
                yield [*cells, f"{cost.flops / cost.seconds / 1e9:.1f}"]

    return "A step of small models: forward, backward, update", heads, rows()


def volume(costs: dict[str, Costs], files: Files) -> Table:
    """Metrics of a long run."""
    heads = [
        "recipe",
        "layers",
        "bytes/row",
        f"GB for {STEPS:,} steps",
        "minutes to read them back",
        "GB of memory for it",
    ]

    def rows() -> Iterator[list[str]]:
        for name, cost in costs.items():
            layers = len(cost.shapes.blocks)
            row = files.rows.row(layers)
            # Reading is parsing: its time and its memory go by the byte.
            measured_rows = STEPS * row / files.rows.row(files.layers)
            minutes, held = measured_rows * files.seconds_per_row_read / 60, measured_rows * files.memory_per_row_read
            yield [name, str(layers), f"{row:,.0f}", gigabytes(STEPS * row), f"{minutes:.1f}", gigabytes(held)]

    return "metrics.jsonl, everything on", heads, rows()


def gigabytes(size: float) -> str:
    """Three significant digits; a dash for nothing."""
    return f"{size / 1e9:.3g}" if size else "-"


def print_table(title: str, heads: list[str], rows: Iterator[list[str]]) -> None:
    """As Markdown, a line as soon as it is known."""
    print(f"{title}:\n\n| {' | '.join(heads)} |\n| --- |{' ---: |' * (len(heads) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
