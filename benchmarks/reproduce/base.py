"""A published finding as an experiment: what is run, what must come out, and the rule that decides whether it did."""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from record.finished import Run

Row = Mapping[str, str]
T = TypeVar("T", bound="type[Finding]")


class Verdict(StrEnum):
    """What became of a finding."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    """The effect could have shown and did not, or the opposite came out."""
    NOT_AT_THIS_SCALE = "not at this scale"
    """What the finding is about (a spike, a shrinking gradient) did not occur, so nothing can be said."""


@dataclass(frozen=True)
class Seed:
    """What there is of one seed when a finding is judged."""

    number: int
    runs: Mapping[str, Run]
    """By the names of :meth:`Finding.runs`."""
    measured: Any
    """What :meth:`Finding.measure` returned, as it was read back from JSON."""


@dataclass(frozen=True)
class Outcome:
    """A verdict and the numbers it rests on."""

    verdict: Verdict
    told: str
    """One or two sentences with the measured numbers."""
    table: Sequence[Row] = field(default_factory=list)
    """Printed cells by heading; all rows have the same headings."""


class Finding(ABC):
    """One published finding. The docstring of a class states its rule of judgement, which was fixed before the runs were
    read; where it was changed afterwards, the docstring says so."""

    key: ClassVar[str]
    """Its name on the command line, as A9."""
    title: ClassVar[str]
    source: ClassVar[str]
    """Where it was published: an arXiv identifier or an address."""
    claim: ClassVar[str]
    """What must come out, in one line."""
    seeds: ClassVar[int] = 3
    """Seeds that are run unless the command names another number."""
    folder: ClassVar[str] = ""
    """Folder of its runs and measurements; the key by default. Findings that read the same ones name the same folder, and
    return the same runs or measure the same."""

    def runs(self) -> Mapping[str, Sequence[str]]:
        """Overrides of configs/reproduce.yaml by name of the run; in them $RUNS stands for the folder of this seed's runs,
        and a run that another one branches from comes first. Empty for a finding without runs."""
        return {}

    def measure(self, seed: int, overrides: Sequence[str]) -> Any:
        """What is computed without runs that are kept: any JSON value. ``overrides``: of the recipe, from the command line."""
        return None

    @abstractmethod
    def judge(self, seeds: Sequence[Seed]) -> Outcome:
        """The outcome, from all seeds."""


FINDINGS: dict[str, type[Finding]] = {}
"""By key."""


def finding(cls: T) -> T:
    """Class decorator: make a finding available under its key. Raises ValueError for a key that is taken or no such key."""
    if not re.fullmatch(r"[A-Z]\d+[a-z]?", cls.key):
        raise ValueError(f"{cls.key!r} is no key of a finding: a letter and a number, as in A9 or A9b")
    if (known := FINDINGS.get(cls.key)) is not None and known.__qualname__ != cls.__qualname__:
        raise ValueError(f"{cls.key} is already the key of {known.__qualname__}")
    FINDINGS[cls.key] = cls
    return cls


def load_findings() -> dict[str, type[Finding]]:
    """Import every file of this package that is named after a key (a9_adam_spike.py); returns all findings in order."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if re.match(r"[a-z]\d+[a-z]?_", module.name):
            importlib.import_module(f"{package}.{module.name}")
    return {key: FINDINGS[key] for key in sorted(FINDINGS, key=in_order)}


def in_order(key: str) -> tuple[str, int, str]:
    """Sorts A9 before A10."""
    letter, number, rest = re.fullmatch(r"([A-Z])(\d+)([a-z]?)", key).groups()  # type: ignore[union-attr]
    return letter, int(number), rest
