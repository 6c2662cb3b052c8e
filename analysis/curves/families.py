"""Grouping many runs into families that differ only in the seed, and what distinguishes the families."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.compare.differing import differing, what_matters
from analysis.show.text import visible
from record.finished import Run, unique_labels
from record.table import number_of

_SEED_SUFFIX = re.compile(r"([-_.]s(eed)?|seed)[-_]?\d+$")
"""The seed in a run's name: run_suite.py writes tfsd_seed3."""
_FEWEST_VALUES = 3
"""Distinct numbers that make a scale; two are just two kinds."""


@dataclass(frozen=True)
class Family:
    """Runs that differ only in the seed."""

    label: str
    members: tuple[str, ...]
    """Labels of the runs."""
    values: dict[str, Any]
    """Its settings in the keys in which families differ; None for a key that it does not have."""


@dataclass(frozen=True)
class Scale:
    """A configuration key that orders the families by a number."""

    key: str
    values: tuple[float, ...]
    """One per family."""


def find_families(runs: Mapping[str, Run]) -> list[Family]:
    """The families of the labelled runs, in the order of their first members."""
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for label, run in runs.items():
        config = without_seed(run.config)
        group = next((group for group in groups if group[0] == config), (config, []))
        if not group[1]:
            groups.append(group)
        group[1].append(label)
    keys = differing([config for config, _ in groups])
    values = [{key: column[place] for key, column in keys.items()} for place in range(len(groups))]
    described = [settings_text(own) for own in values]
    stems = [
        stem([runs[label].name for label in members], text)
        for (_, members), text in zip(groups, described, strict=True)
    ]
    names = [name if stems.count(name) == 1 else text or name for name, text in zip(stems, described, strict=True)]
    labels = unique_labels(names, [members[0] for _, members in groups])
    return [Family(label, tuple(members), own) for label, (_, members), own in zip(labels, groups, values, strict=True)]


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration by dotted key, without what may differ within a family."""
    return {key: value for key, value in what_matters(config).items() if key != "seed"}


def stem(names: Sequence[str], otherwise: str = "") -> str:
    """The name of a family: that of its only run, or the common part of its runs' names before the seed.

    If there is none, ``otherwise``, or the first run's name.
    """
    stems = {_SEED_SUFFIX.sub("", name) or name for name in names}
    return names[0] if len(names) == 1 else stems.pop() if len(stems) == 1 else otherwise or names[0]


def settings_text(values: Mapping[str, Any]) -> str:
    """Settings in one line: optimizer.lr=0.001, head.kind=metric."""
    return ", ".join(f"{visible(key)}={visible(str(value))}" for key, value in values.items() if value is not None)


def find_scale(families: Sequence[Family]) -> Scale | None:
    """The key with the most distinct numbers among those in which every family has one; the learning rate wins ties."""
    found = []
    for key in families[0].values:
        values = [None if isinstance(value := f.values[key], str) else number_of(value) for f in families]
        numbers = tuple(value for value in values if value is not None and math.isfinite(value))
        if len(numbers) == len(values) and len(set(numbers)) >= _FEWEST_VALUES:
            found.append(Scale(key, numbers))
    return max(found, key=lambda scale: (len(set(scale.values)), scale.key == "optimizer.lr"), default=None)


def other_settings(families: Sequence[Family], scale: Scale) -> list[str]:
    """The settings of each family apart from its number on the scale, and apart from those that follow from the number."""
    keys = [key for key in families[0].values if key != scale.key and not _follows(families, scale, key)]
    return [settings_text({key: family.values[key] for key in keys}) for family in families]


def _follows(families: Sequence[Family], scale: Scale, key: str) -> bool:
    """Whether the number determines the value of ``key``, as a width may determine the heads.

    If no number occurs twice, the value must rise or fall with the number.
    """
    values = [family.values[key] for family in families]
    pairs = {(number, str(value)) for number, value in zip(scale.values, values, strict=True)}
    numbers = set(scale.values)
    if len(pairs) > len(numbers) or len(numbers) < len(families):
        return len(pairs) == len(numbers)
    if not all(isinstance(value, int | float) for value in values):
        return False
    ordered = [value for _, value in sorted(zip(scale.values, values, strict=True))]
    return ordered in (sorted(values), sorted(values, reverse=True))
