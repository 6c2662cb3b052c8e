"""The device of a part, and memory between its contestants."""

import gc

import torch

from common.errors import InputError
from model.kernel_choice import choose_kernel

from .lines import Lines


def device_of(name: str) -> torch.device:
    """The device. Raises InputError if this process cannot use it."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu")
    return torch.device(name)


def say_kernel(lines: Lines, part: str, device: torch.device, columns: int) -> None:
    """Write a line of the table "kernel": what evaluates the softmax of this project's losses, in bfloat16, over so many
    ``columns``, and why it is not the Triton kernel on a GPU. Other tables would not show it."""
    where = torch.empty(0, device=device).device  # with its index, as that of the logits
    found = choose_kernel("auto", where, columns, torch.bfloat16)
    lines.write("kernel", part=part, columns=columns, name=found.name, reason=found.reason)


def clear(device: torch.device) -> None:
    """Give back the memory of contestants that are gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def settle() -> None:
    """Exempt what is there so far from garbage collection: torch's 600,000 objects would make each one take half a second."""
    gc.freeze()
