"""Text that a model is trained for, and what it is not: the same tokens in random order, random tokens, other corpora.

Shapes: B windows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from common.errors import InputError
from data.foreign import foreign_tokens

from .text import Ids, RunText

TEXT, FOREIGN = "text", ("shuffled", "random")


class Texts(NamedTuple):
    """Windows of the validation split, and what is made of them."""

    calibrated_BT: Ids
    """Windows to calibrate a threshold on."""
    measured: dict[str, Ids]
    """TEXT: as many other windows; and those of FOREIGN."""
    next_BT: Ids
    """The next tokens of the text among these."""


def known_and_foreign(text: RunText, windows: int, seed: int) -> Texts:
    """Drawn with ``seed``. Raises InputError for a validation split with a single window."""
    x_BT, y_BT = text.windows(2 * windows, seed=seed)
    if len(x_BT) < 2:
        raise InputError("the validation split has a single window; hold out more (data.validation_fraction)")
    own_BT, generator = x_BT[1::2], np.random.default_rng(seed)
    others = (generator.permuted(own_BT, axis=1), generator.integers(text.store.vocab_size, size=own_BT.shape))
    return Texts(x_BT[::2], {TEXT: own_BT, **dict(zip(FOREIGN, others, strict=True))}, y_BT[1::2])


def corpus_windows(
    text: RunText, paths: Sequence[str], text_field: str, windows: int, seed: int, keys: tuple[str, str]
) -> list[Ids]:
    """Of the text at each of ``paths`` at most this many windows, in the tokens of ``text``. They do not overlap.

    ``keys``: what the user calls ``paths`` and ``text_field``. Raises InputError with the problems of all of them.
    """
    length = text.data.sequence_length
    found: list[Ids] = []
    problems: list[str] = []
    for path in paths:
        try:
            ids = foreign_tokens(text.store, [path], text_field, length, keys)
        except InputError as error:
            problems += error.problems
            continue
        start_B = length * np.random.default_rng(seed).permutation(len(ids) // length)[:windows]
        found.append(ids[start_B[:, None] + np.arange(length)])
    if problems:
        raise InputError(*problems)
    return found
