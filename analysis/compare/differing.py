"""The configuration keys in which runs differ."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.show.tables import WIDTH
from analysis.show.text import visible
from common.section import flat

_IGNORED = ("name", "output_dir", "resume", "checkpoint", "data.cache_dir", "trackers", "tracking")
"""Sections and keys that do not affect a run's numbers."""
_LONGEST = 40
"""Characters shown of a value."""


def what_matters(config: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run's configuration by dotted key, without those that do not affect its training."""
    values = flat(dict(config)).items()
    return {key: value for key, value in values if key not in _IGNORED and key.partition(".")[0] not in _IGNORED}


def differing(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The keys with different values among the runs that have them, and the value of each run (None if it has none).

    A key that only some runs have, with one value, follows from their kind of head, body or data, which differs too. Of a section
    that others have set to null, its kind differs.
    """
    each = [what_matters(config) for config in configs]
    found = {}
    for key in dict.fromkeys(key for one in each for key in one):
        first, *others = (one[key] for one in each if key in one)
        if any(other != first for other in others) or any(_lacks_section(one, key) for one in each):
            found[key] = [one.get(key) for one in each]
    return found


def _lacks_section(config: Mapping[str, Any], key: str) -> bool:
    """Whether ``key`` is the kind of a section that is null here."""
    section, _, last = key.rpartition(".")
    return last == "kind" and section in config and config[section] is None


def differing_words(configs: Sequence[Mapping[str, Any]], what: str) -> str:
    """A sentence, wrapped to the terminal: how ``what`` (runs or arms) differ, values in the order of ``configs``."""
    found = differing(configs)
    keys = "; ".join(f"{visible(key)} ({' | '.join(map(_shown, values))})" for key, values in found.items())
    return textwrap.fill(
        f"The {what} differ in: {keys or 'no key of their configurations'}.", WIDTH, subsequent_indent="  "
    )


def _shown(value: Any) -> str:
    text = "-" if value is None else visible(str(value))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
