"""The rules compiled to tables: which row of probabilities a state draws its word from, and the state after each word.

Shapes: A states, R distinct rows, Z hidden states, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .syntax import START, Option, State, Syntax
from .tables import HIDDEN, Floats, Ids
from .vocabulary import vocabulary

NOWHERE = -1


@dataclass(frozen=True)
class Automaton:
    """A probabilistic automaton whose states are functions of the words so far; the document begins in state 0.

    The probability of word w in state a of a document with the hidden state z is ``probability_RZV[row_A[a], z, w]``,
    and the next state is ``next_AV[a, w]``, NOWHERE for words that cannot come.
    """

    states: tuple[State, ...]
    row_A: Ids
    next_AV: npt.NDArray[np.int16]
    probability_RZV: Floats


def compile_automaton(syntax: Syntax) -> Automaton:
    """Follow the rules from the start until no new state comes.

    States with the same weights and words share a row.

    Raises:
        ValueError: if a word may come in two ways in one state, so that it would not decide what follows.
    """
    numbers = {START: 0}
    states = [START]
    rows: dict[tuple[tuple[float, int], ...], int] = {}
    tables: list[Floats] = []
    row_A: list[int] = []
    next_rows: list[npt.NDArray[np.int16]] = []
    for state in states:  # grows while it is walked
        options = syntax.options(state)
        key = tuple((option.weight, id(option.emission)) for option in options)
        if key not in rows:
            rows[key] = len(tables)
            tables.append(_mixture(state, options))
        row_A.append(rows[key])
        next_V = np.full(len(vocabulary()), NOWHERE, np.int16)
        for option in options:
            for feature, ids in option.emission.groups:
                target = option.target(feature)
                if target not in numbers:
                    numbers[target] = len(states)
                    states.append(target)
                next_V[ids] = numbers[target]
        next_rows.append(next_V)
    return Automaton(tuple(states), np.array(row_A), np.array(next_rows), np.array(tables))


def _mixture(state: State, options: list[Option]) -> Floats:
    share_ZV = np.zeros((HIDDEN, len(vocabulary())))
    taken_V = np.zeros(len(vocabulary()), bool)
    for option in options:
        words_V = option.emission.share_ZV.any(axis=0)
        if (words_V & taken_V).any():
            twice = vocabulary().words[int(np.argmax(words_V & taken_V))]
            raise ValueError(f"grammar: {twice!r} may come in two ways in {state}")
        taken_V |= words_V
        share_ZV += option.weight * option.emission.share_ZV
    return share_ZV / share_ZV.sum(axis=1, keepdims=True)  # the sums are 1 but for rounding
