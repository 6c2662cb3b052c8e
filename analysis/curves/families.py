"""Many runs as few families: runs that differ in nothing but the seed, and what sets the families apart."""

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
"""What a run's name says of its seed: run_suite.py writes tfsd_seed3."""
_FEWEST_VALUES = 3
"""Different numbers that make a scale; two are two kinds."""


@dataclass(frozen=True)
class Family:
    """Runs that differ in nothing but the seed."""

    label: str
    members: tuple[str, ...]
    """The labels of the runs."""
    values: dict[str, Any]
    """The values of the keys in which families differ; None where this one has no such key."""


@dataclass(frozen=True)
class Scale:
    """A key of the configurations that orders the families, as every one has a number there."""

    key: str
    values: tuple[float, ...]
    """Of each family."""


def find_families(runs: Mapping[str, Run]) -> list[Family]:
    """The families of the labelled runs, in the order of their first members."""
    groups: list[tuple[dict[str, Any], list[str]]] = []
    for label, run in runs.items():
        config = without_seed(run.config)
        members = next((members for other, members in groups if other == config), None)
        if members is None:
            groups.append((config, [label]))
        else:
            members.append(label)
    keys = differing([config for config, _ in groups])
    values = [{key: column[place] for key, column in keys.items()} for place in range(len(groups))]
    stems = [
        stem([runs[label].name for label in members], words(own))
        for (_, members), own in zip(groups, values, strict=True)
    ]
    stems = [name if stems.count(name) == 1 else words(own) or name for name, own in zip(stems, values, strict=True)]
    labels = unique_labels(stems, [members[0] for _, members in groups])
    return [Family(label, tuple(members), own) for label, (_, members), own in zip(labels, groups, values, strict=True)]


def without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run's configuration by dotted key, without those that may differ within a family."""
    return {key: value for key, value in what_matters(config).items() if key != "seed"}


def stem(names: Sequence[str], otherwise: str = "") -> str:
    """The name of a family: that of its only run, or what its runs' names share before the seed.

    Where they share nothing, ``otherwise``, or the first one's name.
    """
    stems = {_SEED_SUFFIX.sub("", name) or name for name in names}
    return names[0] if len(names) == 1 else stems.pop() if len(stems) == 1 else otherwise or names[0]


def words(values: Mapping[str, Any]) -> str:
    """Some values of a configuration in one line: optimizer.lr=0.001, head.kind=metric."""
    return ", ".join(f"{visible(key)}={visible(str(value))}" for key, value in values.items() if value is not None)


def find_scale(families: Sequence[Family]) -> Scale | None:
    """The key with the most different numbers, of those in which every family has one; of equals the learning rate."""
    found = []
    for key in families[0].values:
        values = [None if isinstance(value := f.values[key], str) else number_of(value) for f in families]
        numbers = tuple(value for value in values if value is not None and math.isfinite(value))
        if len(numbers) == len(values) and len(set(numbers)) >= _FEWEST_VALUES:
            found.append(Scale(key, numbers))
    return max(found, key=lambda scale: (len(set(scale.values)), scale.key == "optimizer.lr"), default=None)


def beside(families: Sequence[Family], scale: Scale) -> list[str]:
    """What else each family has than its number on the scale, in words; keys that follow from the number are left out."""
    keys = [key for key in families[0].values if key != scale.key and not _follows(families, scale, key)]
    return [words({key: family.values[key] for key in keys}) for family in families]


def _follows(families: Sequence[Family], scale: Scale, key: str) -> bool:
    """Whether who knows the number knows the value of ``key``, too, as of heads and width; where no number comes twice, whether
    both rise together, or one as the other falls."""
    values = [family.values[key] for family in families]
    pairs = {(number, str(value)) for number, value in zip(scale.values, values, strict=True)}
    numbers = set(scale.values)
    if len(pairs) > len(numbers) or len(numbers) < len(families):
        return len(pairs) == len(numbers)
    if not all(isinstance(value, int | float) for value in values):
        return False
    ordered = [value for _, value in sorted(zip(scale.values, values, strict=True))]
    return ordered in (sorted(values), sorted(values, reverse=True))
