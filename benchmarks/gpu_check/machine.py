"""The card, its driver, and the versions of what runs on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

import torch

from common.command import ArgumentParser, exit_status

from .lines import add_arguments, lines_of

PACKAGES = (
    *("torch", "triton", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "datasets"),
    *("pydantic", "omegaconf", "orjson", "liger-kernel", "cut-cross-entropy"),
)


def main() -> None:
    """Write one line with what is known of the machine."""
    parser = ArgumentParser(description="What the check runs on.")
    add_arguments(parser)
    arguments = parser.parse_args()
    versions = {name: version(name) for name in PACKAGES}
    facts = device_facts(arguments.device) | host_facts()
    lines_of(arguments, "machine").write("machine", **facts, packages=versions)


def device_facts(device: str) -> dict[str, object]:
    """Name, memory and driver of the device; ``available`` is False if it cannot be used."""
    if device == "cpu":
        return {"device": device, "available": True, "name": platform.processor() or platform.machine()}
    if not torch.cuda.is_available():
        return {"device": device, "available": False, "name": None}
    card = torch.cuda.get_device_properties(0)
    return {
        "device": device,
        "available": True,
        "name": card.name,
        "memory_gib": round(card.total_memory / 2**30, 1),
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "driver": driver(),
        "cuda": torch.version.cuda or torch.version.hip,
    }


def host_facts() -> dict[str, object]:
    """The machine around the device."""
    return {"python": platform.python_version(), "cores": os.cpu_count(), "platform": platform.platform()}


def driver() -> str | None:
    """The driver's version as nvidia-smi tells it, None if there is no such program."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.split("\n")[0].strip() or None


def version(package: str) -> str | None:
    """The installed version of a package, None if there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
