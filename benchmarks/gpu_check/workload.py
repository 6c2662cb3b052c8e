"""What the training table and the profile run: GPT-2 124M on random tokens, or a tiny body on a CPU."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models

from benchmarks.paired import start_run
from benchmarks.throughput import ARMS, SAME
from common.files import sha256_of
from configs.load import load_config
from configs.schema import RunConfig
from data.build import MANIFEST, SPLITS
from data.store import TokenStore, read_store
from data.tokenizer import END_OF_TEXT, fingerprint, wrapped
from training.run import Run

RECIPE = Path(__file__).parents[2] / "configs" / "fineweb_gpt2_124m.yaml"

FIXED_BYTES, ROW_BYTES = 10 << 30, 12 << 27
"""A guess of what a group's contestants hold between steps, and of the most that one takes for each sequence of a step."""


@dataclass(frozen=True)
class Size:
    """Sequences of a step, the vocabulary, the tokens of the store, and what differs from the recipe."""

    rows: int
    vocabulary: int
    tokens: int
    overrides: tuple[str, ...] = ()


SIZES = {
    "cuda": Size(32, 50257, 4_000_000),
    "cpu": Size(
        *(2, 300, 20_000),
        ("data.sequence_length=16", "body.n_layer=1", "body.n_head=2", "body.n_embd=16"),
    ),
}


@dataclass(frozen=True)
class Workload:
    """Random tokens and a folder for runs on them."""

    device: torch.device
    folder: Path
    store: TokenStore

    @property
    def size(self) -> Size:
        """The size for the device."""
        return SIZES[self.device.type]

    def overrides(self, rows: int, arm: str, *more: str) -> list[str]:
        """What a run of an arm (benchmarks/throughput.py) in steps of ``rows`` sequences changes in the recipe."""
        batch = [f"train.batch_size={rows}", "train.precision=bf16"]
        return [*self.size.overrides, *SAME, *batch, *ARMS[arm], *more]

    def config(self, rows: int, arm: str) -> RunConfig:
        """The configuration of such a run."""
        return load_config(RECIPE, self.overrides(rows, arm))

    def run(self, name: str, rows: int, arm: str, *more: str) -> Run:
        """Such a run at its start, which writes to a directory of this name."""
        return start_run(RECIPE, self.overrides(rows, arm, *more), str(self.folder), name, self.store)


def prepare(device: torch.device, folder: Path) -> Workload:
    """Choose the device for this process's runs and make the tokens."""
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"
    size = SIZES[device.type]
    return Workload(device, folder, random_store(folder / "tokens", size.vocabulary, size.tokens))


def random_store(folder: Path, vocabulary: int, tokens: int) -> TokenStore:
    """A store of uniformly random tokens, a tenth of them for validation. Its tokenizer has one token, and is never asked."""
    folder.mkdir(parents=True)
    tokenizer = wrapped(Tokenizer(models.WordLevel({END_OF_TEXT: 0}, unk_token=END_OF_TEXT)))
    tokenizer.save_pretrained(folder / "tokenizer")
    generator, dtype = np.random.default_rng(0), np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    splits = {}
    for name, count in zip(SPLITS, (tokens - tokens // 10, tokens // 10), strict=True):
        generator.integers(vocabulary, size=count).astype(dtype).tofile(folder / f"{name}.bin")
        np.save(folder / f"{name}_documents.npy", np.zeros(1, np.int64))
        splits[name] = {"tokens": count, "documents": 1, "sha256": sha256_of(folder / f"{name}.bin")}
    facts = {"dtype": dtype.str, "vocab_size": vocabulary, "eos_id": 0, "splits": splits}
    facts["tokenizer_sha256"] = fingerprint(tokenizer)
    (folder / MANIFEST).write_text(json.dumps(facts), encoding="utf-8")
    return read_store(folder)


def rows_that_fit(workload: Workload) -> int:
    """Sequences of a step: as many as the workload's, but fewer on a small GPU, where the plain GPT's logits would not fit."""
    rows = workload.size.rows
    if workload.device.type == "cuda":
        total = torch.cuda.get_device_properties(workload.device).total_memory
        while rows > 1 and FIXED_BYTES + rows * ROW_BYTES > total:
            rows //= 2
    return rows
