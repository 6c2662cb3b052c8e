"""A probe: what a model is measured on beside its loss. One class in one file, in the project or in a plug-in file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy.typing as npt

from analysis.compare.text import RunText
from common.registry import Registry

Prepared = TypeVar("Prepared")

PROBES = Registry("probe")
"""All probes, by the name that ``python -m analysis.probes`` knows them by."""


@dataclass(frozen=True)
class Measure:
    """A quantity that a probe reports."""

    key: str
    unit: str
    """ "1" if it has none."""
    meaning: str
    along: str | None = None
    """What the values of an array are numbered by (layer, bin, ...); None for a single number."""


class Probe(ABC, Generic[Prepared]):
    """Base of all probes. What a probe reports is averaged over seeds, compared, tabulated and drawn without further code."""

    kind: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    """Everything that :meth:`measure` returns."""

    @dataclass(frozen=True)
    class Options:
        """None; a probe with options has a class of this name of its own."""

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def prepare(self, text: RunText, *, seed: int) -> Prepared:
        """What all models are measured on. Called once; draw from ``seed`` alone."""

    @abstractmethod
    def measure(self, model: Any, prepared: Prepared, *, seed: int) -> Mapping[str, float | npt.ArrayLike]:
        """A value for each of :attr:`measures`: a number, or a 1-D array if the measure has an ``along``.

        ``model`` is a causal language model of transformers in evaluation mode, in float32, on a GPU if there is one; gradients
        are switched off. NaN where a quantity is undefined.
        """
