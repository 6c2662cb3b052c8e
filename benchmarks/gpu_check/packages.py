"""Packages that the check imports and that a machine without an index may lack.

They are carried along as wheels (``make gpu-check-wheels``) and unpacked beside the environment, which stays as it is. What the
machine has itself is never replaced.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .parts import ROOT

REQUIREMENTS = ROOT / "requirements-gpu-check.txt"
WHEELS = ROOT / "wheels"


def required() -> Iterator[str]:
    """The requirements of the check beyond torch and transformers, as ``name==version``."""
    for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].partition(";")[0].strip()
        if requirement:
            yield requirement


def name_of(requirement: str) -> str:
    """The package's name."""
    return re.split(r"[=<>!~ \[]", requirement, maxsplit=1)[0]


def missing() -> list[str]:
    """The requirements whose package is not installed in any version."""
    return [requirement for requirement in required() if not _installed(name_of(requirement))]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def unpack(requirements: list[str], wheels: Path, folder: Path) -> list[str]:
    """Install the requirements from ``wheels`` into ``folder``, one by one; returns those that could not be."""
    failed = []
    for requirement in requirements:
        options = ["--quiet", "--no-index", "--no-deps", "--find-links", str(wheels), "--target", str(folder)]
        done = subprocess.run(  # noqa: S603  (pip, with names from this project's own list)
            [sys.executable, "-m", "pip", "install", *options, requirement], capture_output=True, text=True, check=False
        )
        if done.returncode:
            failed.append(requirement)
    return failed
