"""Numbers and texts made visible and harmless."""

from __future__ import annotations

import math
import unicodedata
from bisect import bisect_right
from itertools import accumulate


def number(value: float | None, digits: int = 4) -> str:
    """The value to so many significant digits; "-" for None."""
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


def percent(share: float | None) -> str:
    """The share in percent; what is not zero is never written as 0%."""
    if share is None or not math.isfinite(share):
        return number(share)
    if 0 < abs(share) < 0.01:
        return f"{100 * share:.1g}%" if abs(share) >= 1e-4 else ("<0.01%" if share > 0 else ">-0.01%")
    return f"{100 * share:.0f}%"


def change(before: float, after: float) -> str:
    """The relative change in percent, with its sign; "-" where there is none to state."""
    if not (math.isfinite(before) and math.isfinite(after)) or before == 0:
        return "-"
    return f"{100 * (after / before - 1):+.3g}%"


_SIGNS = {"\n": "⏎", "\r": "␍", "\t": "⇥", "\x7f": "␡"}


def visible(text: str) -> str:
    """The text on one line with nothing in it that acts unseen.

    Line ends, tabs and control characters become signs; direction controls, zero-width characters, lone surrogates,
    unusual spaces and whatever else does not print become their code in angle brackets.
    """
    return text if text.isprintable() else "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character.isprintable():
        return character
    if ord(character) < 0x20:
        return _SIGNS.get(character, chr(0x2400 + ord(character)))  # the block of control pictures
    return _SIGNS.get(character, f"⟨U+{ord(character):04X}⟩")


def token_text(text: str) -> str:
    """A token that stands alone: spaces are seen too, and one without any text has a sign."""
    return on_a_base(visible(text)).replace(" ", "␣") or "∅"


def on_a_base(text: str) -> str:
    """An accent that begins a text gets a circle to sit on, else it would land on what stands before."""
    return "◌" + text if text and unicodedata.combining(text[0]) else text


def clip(text: str, cells: int) -> str:
    """At most so many terminal cells of ``text``, "…" at the end if something is cut; wide characters take two."""
    ends = list(accumulate(map(_cells, text)))
    if not ends or ends[-1] <= cells:
        return text
    return text[: bisect_right(ends, cells - 1)] + "…"


def _cells(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
