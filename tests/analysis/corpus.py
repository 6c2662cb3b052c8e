"""A small real corpus in which every word is a token of its own, and models that speak it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from configs.load import validate
from configs.recipe import dump_config
from configs.schema import RunConfig
from data.store import open_store
from training.build import model_config

PAIRS = [("big", "large"), ("fast", "quick"), ("house", "home")]
OTHERS = [
    "river",
    "stone",
    "window",
    "garden",
    "letter",
    "morning",
    "paper",
    "bridge",
    "winter",
    "silver",
    "market",
    "candle",
]
SEQUENCE_LENGTH = 16


def write_corpus(folder: Path) -> Path:
    """120 documents of 40 words drawn from PAIRS and OTHERS, half the words of PAIRS being twice as frequent."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(5)
    words = [word for pair in PAIRS for word in pair] + [pair[0] for pair in PAIRS] + OTHERS * 2
    for index in range(120):
        # " bigger" is rare, so that it stays two tokens: " big" and what goes on with it.
        text = "the " + " ".join(rng.choice(words, 40)) + (" bigger." if index % 3 == 0 else ".")
        (folder / f"{index:03}.txt").write_text(text)
    return folder


def run_config(folder: Path, name: str, head: str = "linear", **changes: Any) -> RunConfig:
    """The configuration of a run on the corpus in ``folder``/text."""
    data = {"kind": "text", "paths": [str(folder / "text")], "vocab_size": 333, "sequence_length": SEQUENCE_LENGTH}
    data |= {"cache_dir": str(folder / "cache"), "validation_fraction": 0.3, **changes}
    body = {"model_type": "gpt2", "n_layer": 1, "n_head": 2, "n_embd": 16, "initializer_range": 0.5}
    return validate(
        {
            "name": name,
            "data": data,
            "body": body,
            "head": {"kind": head},
            "objective": {"kind": "ce"},
            "optimizer": {"lr": 1e-3},
            "train": {"steps": 1, "batch_size": 1},
        }
    )


def write_model(folder: Path, name: str, *, seed: int, head: str = "linear", **changes: Any) -> Path:
    """A run directory with one checkpoint of an untrained model; its initialisation is wide, so that it prefers words."""
    from model import new_model

    config = run_config(folder, name, head, **changes)
    store = open_store(config.data, progress=False)
    run = folder / "runs" / name
    checkpoint = run / "checkpoints" / "step_00000001"
    model = new_model(model_config(config, store.vocab_size, store.eos_id), seed).eval()
    model.save_pretrained(checkpoint)
    store.load_tokenizer().save_pretrained(checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"step": 1}')
    (run / "config.yaml").write_text(dump_config(config))
    return run
