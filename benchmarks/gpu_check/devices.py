"""The device of a part, and memory between its contestants."""

import gc

import torch

from common.errors import InputError


def device_of(name: str) -> torch.device:
    """The device. Raises InputError if this process cannot use it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu")
    return torch.device(name)


def clear(device: torch.device) -> None:
    """Give back the memory of contestants that are gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def settle() -> None:
    """Exempt what is there so far from garbage collection: torch's 600,000 objects would make each one take half a second."""
    gc.freeze()
