"""Packages that the check imports and that a machine without an index may lack.

They are carried along as wheels (``make gpu-check-wheels``) and unpacked beside the environment, which stays as it is. What the
machine has itself is never replaced.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
import zipfile
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
    """Unpack the requirements from ``wheels`` into ``folder``, without pip, which a machine may lack as well; returns those for
    which there is no wheel that this Python can import."""
    return [requirement for requirement in requirements if not _unpack_one(requirement, wheels, folder)]


def _unpack_one(requirement: str, wheels: Path, folder: Path) -> bool:
    name, _, version = requirement.partition("==")
    for wheel in wheels.glob("*.whl"):
        own_name, own_version, *_, python, abi, _ = wheel.stem.split("-")
        if _normal(own_name) == _normal(name) and own_version == version and _importable(python, abi):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)  # scripts, which wheels keep in a folder of their own, are not needed
            return True
    return False


def _normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _importable(python: str, abi: str) -> bool:
    """Whether this Python is among those that a wheel's tags name. The platform was chosen when it was downloaded."""
    major, minor = sys.version_info[:2]
    own = {"none": {f"py{major}", f"py{major}{minor}", f"cp{major}{minor}"}, f"cp{major}{minor}": {f"cp{major}{minor}"}}
    return abi == "abi3" or not own.get(abi, set()).isdisjoint(python.split("."))
