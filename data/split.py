"""Choose the text that is held out for validation.

Every document has a place in [0, 1), by a hash of its text, and those below ``data.validation_fraction`` are held out:
copies share a split, and adding text moves no other text. Where documents may be cut (files and rows), up to WEIGHED_BYTES
are weighed in tokens first, and the border is put where the share is nearest to the fraction; if that is still FAR off, the
document at the border is cut in two and its end held out. Neighbouring pieces of a long document may be in different
splits, so a validation loss is that of new text by known authors, not of new books.
"""

import bisect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

NEAR = 1.25
"""A share within this factor of the fraction is accepted."""
FAR = 2.0
"""No document is cut if whole ones come within this factor of the fraction."""
WEIGHED_BYTES = 32 << 20
"""A larger corpus is not weighed: it has some 500 documents or more, and may not fit in memory."""

_LONGEST_WORD = 32
_BOUNDARIES = ((re.compile(r"\n+"), 0), (re.compile(r"\s+"), _LONGEST_WORD))
"""Where a document is cut, best first: within an eighth of the held-out length, or within so many characters; if there is
neither, between any two characters of a text longer than a word."""


class Document(NamedTuple):
    """An encoded document: text, tokens with the end token, and SHA-256 and size of its UTF-8 text."""

    text: str
    ids: np.ndarray
    sha256: bytes
    size: int

    @property
    def place(self) -> float:
        """Position in [0, 1), by a hash of the text."""
        return int.from_bytes(self.sha256[:8]) / 2**64


def is_near(share: float, fraction: float, factor: float = NEAR) -> bool:
    """Whether a share is the fraction, within the factor."""
    return fraction / factor <= share <= fraction * factor


def by_hash(documents: Iterable[Document], border: float) -> Iterator[tuple[Document, bool]]:
    """Pair each document with whether it is held out: whether its place is below the border."""
    return ((document, document.place < border) for document in documents)


def by_weight(
    documents: Iterable[Document], fraction: float, encode: Callable[[str], Document]
) -> Iterator[tuple[Document, bool]]:
    """Pair each document, or both parts of one that is cut, with whether it is held out; see the module's docstring."""
    weighed: list[Document] = []
    size = 0
    rest = iter(documents)
    for document in rest:
        weighed.append(document)
        size += document.size
        if size > WEIGHED_BYTES:
            return by_hash(itertools.chain(weighed, rest), fraction)
    return _fitted(weighed, fraction, encode) if weighed else iter(())


class Border(NamedTuple):
    """Documents with a place below ``below`` are held out; if ``share`` is not 0, so is that share at the end of those at it.
    ``whole`` is the border if these cannot be cut."""

    below: float
    share: float
    whole: float


def border_of(places: Sequence[float], weights: Sequence[int], fraction: float) -> Border:
    """The border for documents of these weights in tokens at these places, which ascend; see the module's docstring."""
    held_out = [0, *itertools.accumulate(weights)]  # held_out[n]: by the first n places
    wanted = fraction * held_out[-1]
    borders = range(1, len(places))  # none that leaves a split empty
    usual = bisect.bisect_left(places, fraction)
    if usual in borders and is_near(held_out[usual], wanted):
        return Border(fraction, 0.0, fraction)
    best = min(borders, key=lambda border: abs(held_out[border] - wanted), default=0)
    if best in borders and is_near(held_out[best], wanted, FAR):
        return Border(places[best], 0.0, places[best])
    whole = bisect.bisect_right(held_out, wanted) - 1  # number of whole places that fit; the next one is cut
    return Border(places[whole], (wanted - held_out[whole]) / weights[whole], places[best])


def _fitted(
    documents: list[Document], fraction: float, encode: Callable[[str], Document]
) -> Iterator[tuple[Document, bool]]:
    weights: Counter[float] = Counter()
    for document in documents:
        weights[document.place] += len(document.ids)
    places = sorted(weights)
    border = border_of(places, [weights[place] for place in places], fraction)
    if border.share == 0:
        return by_hash(documents, border.below)
    text = next(document.text for document in documents if document.place == border.below)
    parts = _cut(text, border.share)
    if parts is None:
        return by_hash(documents, border.whole)
    ends = [(encode(part), held) for part, held in zip(parts, (False, True), strict=True)]
    return itertools.chain.from_iterable(
        ends if document.place == border.below else [(document, document.place < border.below)]
        for document in documents
    )


def _cut(text: str, share: float) -> tuple[str, str] | None:
    """A text in two parts, the second about ``share`` of it; None for a single word."""
    length = max(1, round(share * len(text)))
    at = len(text) - length
    for boundary, least in _BOUNDARIES:
        reach = max(length // 8, least)
        near = boundary.finditer(text, max(0, at - reach), at + reach)
        if found := min(near, key=lambda match: abs(match.end() - at), default=None):
            break
    if not found and len(text) <= _LONGEST_WORD:
        return None
    first, second = (text[: found.start()], text[found.end() :]) if found else (text[:at], text[at:])
    return (first, second) if first.strip() and second.strip() else None
