"""What is said of a number that is reported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A number that a question, a set of synonyms or a text has under a model."""

    key: str
    heading: str
    """In printed tables."""
    form: str
    """How its values are printed, as format() takes it."""
    meaning: str
    ranks: bool = False
    """Depends on the order of probabilities alone. Of single tokens no temperature changes that order but through the
    probability that the word ends there, which is close to 1 and not the same for all; the rank is the token's own."""
