"""Tensors in shards: every rank writes the rows that it holds, and reads those that it is to hold.

A shard is a safetensors file. shards.json says, for each tensor, its shape and which of its rows are in which shard, so that any
number of ranks reads what any other number has written. It is put together from the ranks' receipts: a rank writes its own once
its shard is on the disk.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from common.files import flush_to_disk, replace_file, sha256_of

INDEX_FILE = "shards.json"


@dataclass(frozen=True)
class Part:
    """What a rank holds of a tensor: its rows from the one numbered ``first`` on, or all of it."""

    shape: list[int]
    """Of the whole tensor."""
    first: int
    rows: Tensor


def part_of(tensor: Tensor) -> Part:
    """This rank's part of a tensor that may be sharded; of one that is not, all of it."""
    if not isinstance(tensor, DTensor):
        return Part(list(tensor.shape), 0, tensor)
    rows, first = Shard.local_shard_size_and_offset(
        len(tensor), tensor.device_mesh.size(), tensor.device_mesh.get_local_rank()
    )
    own = tensor.to_local()
    assert own.shape == (rows, *tensor.shape[1:]), "FSDP2 shards the first dimension, over all ranks"
    return Part(list(tensor.shape), first, own)


class Staging:
    """Main memory to which a rank copies its parts, so that training goes on while they are written. It is used again for the
    next checkpoint: fresh memory takes several times as long."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor], *, main: bool) -> dict[str, Part]:
        """Copies of this rank's parts. What is not sharded is the main process's alone."""
        parts = {n: part_of(t.detach()) for n, t in tensors.items() if main or isinstance(t, DTensor)}
        parts = {name: part for name, part in parts.items() if part.rows.numel()}
        for name, part in parts.items():
            kept = self._buffers.get(name)
            if kept is None or kept.shape != part.rows.shape or kept.dtype != part.rows.dtype:
                pinned = part.rows.is_cuda  # else the device would wait after each tensor
                self._buffers[name] = torch.empty_like(
                    part.rows, device="cpu", pin_memory=pinned, memory_format=torch.contiguous_format
                )
            self._buffers[name].copy_(part.rows, non_blocking=True)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        return {name: Part(part.shape, part.first, self._buffers[name]) for name, part in parts.items()}


def _shard(number: int) -> str:
    return f"shard_{number:05d}.safetensors"


def _receipt(number: int) -> str:
    return f"shard_{number:05d}.json"


def write_shard(folder: Path, number: int, parts: Mapping[str, Part]) -> None:
    """Write the shard of rank ``number``, and its receipt once it is on the disk."""
    path = folder / _shard(number)
    save_file({name: part.rows for name, part in parts.items()}, path)
    flush_to_disk(path)
    receipt = {
        "bytes": path.stat().st_size,
        "sha256": sha256_of(path),
        "parts": {name: [part.shape, part.first, *part.rows.shape[:1]] for name, part in parts.items()},
    }
    text = json.dumps(receipt).encode()
    replace_file(folder / _receipt(number), folder / f".{_receipt(number)}.tmp", lambda file: file.write(text))


def join_shards(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """Write shards.json from the receipts of ``count`` ranks, which are then deleted; returns each shard's size and SHA-256.
    Raises FileNotFoundError if a receipt is missing."""
    index: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    for number in range(count):
        receipt = json.loads((folder / _receipt(number)).read_text(encoding="utf-8"))
        facts[_shard(number)] = {"bytes": receipt["bytes"], "sha256": receipt["sha256"]}
        for name, (shape, *rows) in receipt["parts"].items():
            index.setdefault(name, {"shape": shape, "parts": []})["parts"].append([number, *rows])
    (folder / INDEX_FILE).write_text(json.dumps({"tensors": index}) + "\n", encoding="utf-8")
    for number in range(count):
        (folder / _receipt(number)).unlink()
    return facts


class Shards:
    """The tensors of a folder with shards.json. Raises ValueError for an index that does not fit its shards."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, dict[int, Any]()
        try:
            tensors = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))["tensors"]
            self._index = {
                str(name): (
                    [int(size) for size in one["shape"]],
                    sorted([int(n) for n in part] for part in one["parts"]),
                )
                for name, one in tensors.items()
            }
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"{INDEX_FILE} is damaged") from None

    def names(self, prefix: str) -> list[str]:
        """The tensors whose names begin with ``prefix``."""
        return [name for name in self._index if name.startswith(prefix)]

    def whole(self, name: str) -> Tensor:
        """A tensor, from all shards that have some of it."""
        shape, _ = self._index[name]
        return self._rows(name, 0, shape[0] if shape else 0)

    def fill(self, name: str, target: Tensor) -> None:
        """Read into ``target``, which may be sharded, what this rank holds of it."""
        own = part_of(target)
        if self._index.get(name, (None,))[0] != own.shape:
            raise ValueError(f"{INDEX_FILE} has no tensor {name} of shape {own.shape}")
        if own.rows.numel():
            own.rows.copy_(self._rows(name, own.first, len(own.rows) if own.shape else 0))

    def _rows(self, name: str, first: int, count: int) -> Tensor:
        """``count`` rows of a tensor; of one without dimensions, itself."""
        shape, parts = self._index[name]
        if not shape:
            found: Tensor = self._file(parts[0][0]).get_tensor(name)
            return found
        pieces, reached = [], first
        for number, start, rows in sorted(parts, key=lambda part: part[1]):
            stop = min(start + rows, first + count)
            if start <= reached < stop:
                pieces.append(self._file(number).get_slice(name)[reached - start : stop - start])
                reached = stop
        if reached != first + count or not pieces:
            raise ValueError(f"{INDEX_FILE}: rows of {name} are missing")
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def _file(self, number: int) -> Any:
        if number not in self._files:
            self._files[number] = safe_open(self._folder / _shard(number), framework="pt")
        return self._files[number]
