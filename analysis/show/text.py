"""Numbers and texts as they are printed: short, on one line, with nothing invisible in them."""

from __future__ import annotations

import math
import re
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

_DECIMALS = 6
"""Decimals beyond which a number is written with an exponent."""


def number(value: float | None, digits: int = 4) -> str:
    """The value to ``digits`` significant digits; "-" for None."""
    if value is None:
        return "-"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(digits - 1 - math.floor(math.log10(abs(value))), 0)}f}"


def estimate(mean: float, low: float | None, high: float | None, *, signed: bool = False) -> str:
    """The mean and, in brackets, its interval to two significant digits of its half width, as further ones say nothing, and at
    most six of the largest. Without an interval four digits of the mean; "-" for NaN."""
    if math.isnan(mean):
        return "-"
    sign = "+" if signed else ""
    half = math.nan if low is None or high is None else (high - low) / 2
    if low is None or high is None or math.isinf(mean) or not 0 < half < math.inf:
        return ("+" if signed and mean > 0 else "") + number(mean)
    largest = max(abs(mean), abs(low), abs(high))
    decimals = min(1 - math.floor(math.log10(half)), 5 - math.floor(math.log10(largest)))

    def shown(value: float) -> str:
        if decimals <= _DECIMALS:
            return f"{round(value, decimals) + 0.0:{sign},.{max(decimals, 0)}f}"  # + 0.0: no minus before a zero
        digits = 0 if value == 0 else max(math.floor(math.log10(abs(value))) + decimals, 0)
        return f"{value:{sign}.{digits}e}"

    return f"{shown(mean)} [{shown(low)}, {shown(high)}]"


def first_of(items: Sequence[str], count: int) -> str:
    """The first ``count`` items, and how many more there are."""
    more = f" and {len(items) - count} more" if len(items) > count else ""
    return ", ".join(items[:count]) + more


def skips(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Of values by metric name, those that say whether an intervention skipped the update, by the intervention."""
    matches = {name: re.fullmatch("intervention/(.+)/skipped", name) for name in metrics}
    return {match[1]: metrics[name] for name, match in matches.items() if match}


def skipped_lines(columns: Mapping[str, Any], steps: Any) -> list[str]:
    """A line for each intervention that skipped updates: at how many steps, and at which. ``columns``: by metric name."""
    skipped = {kind: list(map(str, steps[column > 0])) for kind, column in skips(columns).items()}
    return [
        f"updates skipped by {visible(kind)}: {len(at)}, at step {first_of(at, 5)}"
        for kind, at in skipped.items()
        if at
    ]


def percent(share: float | None) -> str:
    """The share in percent; only zero is written as 0%."""
    if share is None or not math.isfinite(share):
        return number(share)
    if 0 < abs(share) < 0.01:
        return f"{100 * share:.1g}%" if abs(share) >= 1e-4 else ("<0.01%" if share > 0 else ">-0.01%")
    return f"{100 * share:.0f}%"


def change(before: float, after: float) -> str:
    """The relative change in percent, with its sign; "-" if it is undefined."""
    if not (math.isfinite(before) and math.isfinite(after)) or before == 0:
        return "-"
    return f"{100 * (after / before - 1):+.3g}%"


_SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """The text on one line, with nothing in it that is invisible or controls a terminal.

    Line ends, tabs and control characters become symbols; direction controls, zero-width characters, lone surrogates,
    unusual spaces and everything else that does not print become their code in angle brackets.
    """
    return text if text.isprintable() else "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    if ord(character) < 0x20:
        return _SIGNS.get(character, chr(0x2400 + ord(character)))  # Unicode's control pictures
    return _SIGNS.get(character, f"⟨U+{ord(character):04X}⟩")


def token_text(text: str) -> str:
    """A token shown by itself: spaces are visible too, and a token without text has a symbol."""
    return on_a_base(visible(text)).replace(" ", "␣") or "∅"


def on_a_base(text: str) -> str:
    """The text with a circle under an accent that begins it, which would otherwise combine with the text before."""
    return "◌" + text if text and unicodedata.combining(text[0]) else text


def clip(text: str, cells: int) -> str:
    """At most ``cells`` terminal cells of ``text``, with "…" at the end if it is cut; wide characters take two."""
    ends = list(accumulate(map(_cells, text)))
    if not ends or ends[-1] <= cells:
        return text
    return text[: bisect_right(ends, cells - 1)] + "…"


def _cells(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
