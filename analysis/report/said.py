"""What the first screen is made of."""

from __future__ import annotations

from typing import Literal, NamedTuple

Tone = Literal["good", "bad", "plain", "open"]


class Said(NamedTuple):
    """A sentence, and whether it is good news, bad news, neither, or that nothing is shown."""

    tone: Tone
    text: str


class Words(NamedTuple):
    """The first screen."""

    headline: str
    facts: list[str]
    """What was run."""
    said: list[Said]
    """What came out of it."""
    matched: list[str]
    """What was compared, and what was the same."""
