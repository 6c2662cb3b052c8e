"""Memory between contestants."""

import gc

import torch


def clear(device: torch.device) -> None:
    """Give back the memory of contestants that are gone."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
