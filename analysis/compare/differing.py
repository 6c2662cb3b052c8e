"""In which keys of their configurations runs differ: what a comparison of them is a comparison of."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.show.tables import WIDTH
from analysis.show.text import visible
from common.section import flat

_ASIDE = ("name", "output_dir", "resume", "checkpoint", "data.cache_dir", "trackers", "tracking")
"""Sections and keys that no number of a run's training depends on."""
_LONGEST = 40
"""Characters of a value that are shown."""


def what_matters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run's configuration by dotted key, without those that its training does not depend on."""
    values = flat(dict(config)).items()
    return {key: value for key, value in values if key not in _ASIDE and key.partition(".")[0] not in _ASIDE}


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys that have different values where they are there at all, with the value of each run; None where one has none.

    A key that only some have, with one value, comes with their kind of head, body or data, which differs too.
    """
    each = [what_matters(config) for config in configs]
    found = {}
    for key in dict.fromkeys(key for one in each for key in one):
        first, *others = (one[key] for one in each if key in one)
        if any(other != first for other in others):
            found[key] = [one.get(key) for one in each]
    return found


def differing_words(configs: Sequence[Mapping[str, Any]], what: str) -> str:
    """One sentence, on several lines if it is long: the keys, and their values in the order of ``what``: the runs or arms."""
    found = differing(configs)
    keys = "; ".join(f"{visible(key)} ({' | '.join(map(_shown, values))})" for key, values in found.items())
    return textwrap.fill(
        f"The {what} differ in: {keys or 'no key of their configurations'}.", WIDTH, subsequent_indent="  "
    )


def _shown(value: Any) -> str:
    text = "-" if value is None else visible(str(value))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
