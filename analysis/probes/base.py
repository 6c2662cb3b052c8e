"""A probe: what a model is measured on beside its loss. One class in one file, in the project or in a plug-in file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import numpy.typing as npt

from analysis.compare.text import RunText
from common.registry import Registry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    positive: bool = False
    """Above 0 whatever the model: its growth over training is told, and a wide range is drawn on a log axis."""
    panel: tuple[str, str] | None = None
    """The title of a panel of the figure that it shares with others, and its name in there; None: one of its own."""
    chance: float | None = None
    """The value that speaks for nothing: a dashed line in the figure."""
    between: bool = False
    """Of two models: what :meth:`Probe.against` returns, and not :meth:`Probe.measure`."""


@dataclass(frozen=True)
class Report:
    """What a probe shows beside its measures."""

    lines: list[str] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    """By file name without suffix."""


class Probe(ABC, Generic[Prepared]):
    """Base of all probes. What a probe reports is averaged over seeds, compared, tabulated and drawn without further code."""

    kind: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    """Everything that :meth:`measure` and :meth:`against` return."""

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
        """A value for each of :attr:`measures` of one model: a number, or a 1-D array if the measure has an ``along``.

        ``model`` is a causal language model of transformers in evaluation mode, in float32, on a GPU if there is one; gradients
        are switched off. NaN where a quantity is undefined.
        """

    def keep(self, model: Any, prepared: Prepared) -> Any:
        """What of a model :meth:`against` needs, on the CPU: it is held for all models until they are compared."""
        return None

    def against(self, own: Any, other: Any) -> Mapping[str, float | npt.ArrayLike]:
        """A value for each measure that is ``between`` models, from what :meth:`keep` returned for two of them. ``other`` is the
        first arm's model of the same seed or the last one of the same run; each is a measure of its own."""
        return {}

    def places(self, along: str) -> Sequence[str]:
        """Names of what arrays along this are numbered by, for the figure's axis; empty if the numbers say enough."""
        return ()

    def places_of(self, model: Any, along: str) -> Sequence[str]:
        """The same where the names are a model's own; arms that do not agree on them have numbers."""
        return self.places(along)

    def details(self, model: Any, prepared: Prepared) -> Any:
        """What is no measure, as plain JSON values, for summary.json and :meth:`report`: asked of each arm's first run at its
        last checkpoint. None if there is nothing."""
        return None

    def report(self, details: Mapping[str, Any]) -> Report:
        """What is printed and drawn of the ``details``, by arm."""
        return Report()
