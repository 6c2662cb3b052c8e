"""The model in a checkpoint as transformers has it, also where the checkpoint is in shards."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.files import flush_to_disk
from model import SwapHeadConfig, SwapHeadForCausalLM, load_model

from .checkpoints import MODEL, STATE_FILE, is_sharded, make_readable
from .integrity import MANIFEST_FILE, listed, write_manifest
from .shards import INDEX_FILE, Shards

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
"""One of them is where transformers can read the weights."""


def load_checkpoint(checkpoint: str | Path, **options: Any) -> PreTrainedModel:
    """:func:`model.load_model`, which puts the weights together in memory if they are in shards alone."""
    folder = Path(checkpoint)
    if has_weights(folder) or not is_sharded(folder):
        return load_model(checkpoint, **options)
    return load_model(checkpoint, weights=joined_weights(folder), body_only=options.get("body_only", False))


def has_weights(checkpoint: Path) -> bool:
    """Whether transformers can read a checkpoint's weights."""
    return any((checkpoint / name).is_file() for name in WEIGHTS)


def joined_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The model's weights in a checkpoint in shards."""
    shards = Shards(checkpoint)
    return {name.removeprefix(MODEL): shards.whole(name) for name in shards.names(MODEL)}


def export(checkpoint: Path, place: Path) -> None:
    """Write the model of a checkpoint to the new folder ``place``: weights, configuration, code and tokenizer. The kinds of its
    head and objective must be known."""
    place.mkdir(parents=True)
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors" and path.name not in (STATE_FILE, MANIFEST_FILE, INDEX_FILE):
            shutil.copyfile(path, place / path.name)
    if has_weights(checkpoint):
        for path in checkpoint.glob("model*.safetensors"):
            shutil.copyfile(path, place / path.name)
        return
    with torch.device("meta"):
        model = SwapHeadForCausalLM(SwapHeadConfig.from_pretrained(str(checkpoint), local_files_only=True))
    model.save_pretrained(place, state_dict=joined_weights(checkpoint))
    make_readable(place)


def add_weights(checkpoint: Path) -> None:
    """Add the weights as transformers reads them to a checkpoint in shards. If the process is killed meanwhile, the checkpoint is
    as it was, or has files that its manifest does not list."""
    known = listed(checkpoint)
    if any(name in known for name in WEIGHTS):
        return
    temporary = checkpoint.with_name(f".{checkpoint.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        export(checkpoint, temporary)
        # The index of several files, if there is one, comes last.
        for path in sorted(temporary.glob("model*.safetensors*"), key=lambda path: path.name in WEIGHTS):
            flush_to_disk(path)
            path.replace(checkpoint / path.name)
        write_manifest(checkpoint, known)
        flush_to_disk(checkpoint)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
