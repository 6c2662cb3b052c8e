"""Versions, hardware and launch shape of a run, for environment.json."""

import contextlib
import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")


def environment(world_size: int, device: torch.device, precision: str) -> dict[str, Any]:
    """Versions, device, launch shape and git revision (null outside a git checkout)."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions(_PACKAGES),
        "device": {"type": device.type, "name": name},
        "threads": torch.get_num_threads(),
        "world_size": world_size,
        "precision": precision,
        "git": _git_revision(),
    }


def versions(packages: Iterable[str]) -> dict[str, str | None]:
    """The installed version of each package; null for one that is not installed: a run on local text needs no datasets."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for package in found:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _git_revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        found = subprocess.run(  # noqa: S603  (a fixed command)
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory of this process: allocated on its GPU, else resident in main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
