"""A corpus of known truth: text drawn from an automaton, and the exact distribution of the next token after any text.

Shapes: B rows, T positions, Z hidden states (topic and register), A automaton states, R rows of probabilities, V
vocabulary, N documents, S their tokens one after another.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import lexicon
from .syntax import START, Option, State, Syntax
from .tables import HIDDEN, Floats, Ids, Tables, generator
from .vocabulary import END_ID, ids, words

NOWHERE = -1
_BLOCK = 2048
"""Documents drawn in lock step: enough to make each step one large look-up, few enough for a small corpus."""
_FORMS = {"noun": (":singular", ":plural"), "verb": (":base", ":3sg"), "adjective": ("",)}


@dataclass(frozen=True)
class SynonymSet:
    """Words among which the grammar chooses, in one inflected form; ``lemma`` is shared by all forms of a set.

    ``kind`` is equal, unequal, rare or contextual for true synonyms: what follows does not depend on which was chosen,
    except that a word of a set split by register is evidence of the register. Words of a near or an antonym set share
    contexts but lead to different ones.
    """

    name: str
    lemma: str
    kind: str
    tokens: tuple[int, ...]


class Grammar:
    """The grammar for a seed: rules and words are fixed, the free probabilities are drawn from the seed.

    ``words`` is the text of each token id, leading space included (id 0 ends every document); ``sets`` are the synonym
    sets, one for each inflected form.
    """

    def __init__(self, seed: int) -> None:
        """Draw the probabilities and compile the rules; takes a fraction of a second."""
        self.seed = seed
        self.words = words()
        self.sets: tuple[SynonymSet, ...] = tuple(_sets())
        self.automaton = compile_automaton(Syntax(Tables(seed)))
        self.prior_Z: Floats = np.full(HIDDEN, 1 / HIDDEN)

    def digest(self) -> str:
        """SHA-256 of the words, the probabilities (in single precision) and the transitions."""
        found = hashlib.sha256("\n".join(self.words).encode())
        for table in (self.automaton.row_A, self.automaton.next_AV, self.automaton.probability_RZV.astype("<f4")):
            found.update(np.ascontiguousarray(table).tobytes())
        return found.hexdigest()

    def next_distribution(self, x_BT: npt.NDArray[Any]) -> Floats:
        """p(token t+1 | tokens 0..t) of each row, float64 of shape (B, T, V): exact, by Bayesian filtering.

        A row is END_ID, then a document from its first token; after another END_ID a new document begins. Raises ValueError
        for a row that the grammar cannot generate, naming row and position.
        """
        state_BT, belief_BTZ = self.filter(x_BT)
        row_P = self.automaton.row_A[state_BT].ravel()
        belief_PZ = belief_BTZ.reshape(-1, HIDDEN)
        out_PV = np.empty((len(row_P), len(self.words)))
        order_P = np.argsort(row_P, kind="stable")
        for places in np.split(order_P, np.flatnonzero(np.diff(row_P[order_P])) + 1):
            if len(places):
                out_PV[places] = belief_PZ[places] @ self.automaton.probability_RZV[row_P[places[0]]]
        return out_PV.reshape(*state_BT.shape, len(self.words))

    def filter(self, x_BT: npt.NDArray[Any]) -> tuple[Ids, Floats]:
        """The automaton's state (B, T) and p(hidden | tokens 0..t) (B, T, Z) after each token. Raises ValueError as
        ``next_distribution`` does."""
        x_BT = np.asarray(x_BT)
        if x_BT.ndim != 2 or not np.issubdtype(x_BT.dtype, np.integer):
            raise ValueError(f"tokens must be a two-dimensional array of integers, not {x_BT.dtype} of {x_BT.shape}")
        self._check(x_BT[:, :1] == END_ID, x_BT, 0, "does not begin with the end of a document")
        self._check((x_BT >= 0) & (x_BT < len(self.words)), x_BT, 0, "is no token of the grammar")
        tables = self.automaton
        state_BT = np.zeros(x_BT.shape, np.int64)
        belief_BTZ = np.tile(self.prior_Z, (*x_BT.shape, 1))
        for t in range(1, x_BT.shape[1]):
            word_B, state_B = x_BT[:, t], state_BT[:, t - 1]
            next_B = tables.next_AV[state_B, word_B]
            belief_BZ = belief_BTZ[:, t - 1] * tables.probability_RZV[tables.row_A[state_B], :, word_B]
            total_B = belief_BZ.sum(axis=1)
            self._check(((next_B != NOWHERE) & (total_B > 0))[:, None], x_BT, t, "cannot come here")
            state_BT[:, t] = next_B
            inside_B = word_B != END_ID  # a new document has its own hidden state
            belief_BTZ[inside_B, t] = belief_BZ[inside_B] / total_B[inside_B, None]
        return state_BT, belief_BTZ

    def _check(self, good_BT: npt.NDArray[np.bool_], x_BT: npt.NDArray[Any], start: int, problem: str) -> None:
        """Raise ValueError for the first False in ``good_BT``, whose columns are those of ``x_BT`` from ``start`` on."""
        if good_BT.all():
            return
        row, column = (int(index) for index in np.argwhere(~good_BT)[0])
        token = int(x_BT[row, start + column])
        text = repr(self.words[token]) if 0 <= token < len(self.words) else "no word"
        raise ValueError(f"row {row}, position {start + column}: token {token} ({text}) {problem}")

    def sample(self, documents: int, seed: int) -> Iterator[Ids]:
        """Yield documents as token ids, each ending with END_ID. A larger sample begins with the smaller one."""
        sampler = _Sampler(self)
        for block, first in enumerate(range(0, documents, _BLOCK)):
            ids_S, lengths_N = sampler.draw(generator(seed, "text", block))
            yield from np.split(ids_S, np.cumsum(lengths_N)[:-1])[: documents - first]

    def texts(self, documents: int, seed: int) -> Iterator[str]:
        """Yield documents as text, without the end token."""
        for document_S in self.sample(documents, seed):
            yield "".join([self.words[index] for index in document_S[:-1].tolist()])


@dataclass(frozen=True)
class Automaton:
    """A probabilistic automaton whose state is a function of the words so far; a document begins in state 0.

    The probability of word w in state a, with hidden state z, is ``probability_RZV[row_A[a], z, w]``; the next state is
    ``next_AV[a, w]``, NOWHERE for impossible words.
    """

    states: tuple[State, ...]
    row_A: Ids
    next_AV: npt.NDArray[np.int16]
    probability_RZV: Floats


def compile_automaton(syntax: Syntax) -> Automaton:
    """Follow the rules from the start until no new state is found. States with the same weights and words share a row.
    Raises ValueError if a word may come in two ways in one state, so that it would not determine the next one."""
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
        next_V = np.full(len(words()), NOWHERE, np.int16)
        for option in options:
            for feature, tokens in option.emission.groups:
                target = option.target(feature)
                if target not in numbers:
                    numbers[target] = len(states)
                    states.append(target)
                next_V[tokens] = numbers[target]
        next_rows.append(next_V)
    return Automaton(tuple(states), np.array(row_A), np.array(next_rows), np.array(tables))


def _mixture(state: State, options: list[Option]) -> Floats:
    share_ZV = np.zeros((HIDDEN, len(words())))
    taken_V = np.zeros(len(words()), bool)
    for option in options:
        words_V = option.emission.share_ZV.any(axis=0)
        if (words_V & taken_V).any():
            twice = words()[int(np.argmax(words_V & taken_V))]
            raise ValueError(f"grammar: {twice!r} may come in two ways in {state}")
        taken_V |= words_V
        share_ZV += option.weight * option.emission.share_ZV
    return share_ZV / share_ZV.sum(axis=1, keepdims=True)  # the sums are 1 but for rounding


class _Sampler:
    """Draws documents in lock step. The cumulative distributions of all (row, z) form one increasing table: those of the
    k-th lie in (k, k + 1], so that a search for k + u finds one of its words."""

    def __init__(self, grammar: Grammar) -> None:
        self._tables = grammar.automaton
        self._prior_Z = grammar.prior_Z
        table_KV = self._tables.probability_RZV.reshape(-1, len(grammar.words))
        row_E, self._word_E = np.nonzero(table_KV)
        cumulative_KV = np.cumsum(table_KV, axis=1)
        self._cumulative_E = row_E + cumulative_KV[row_E, self._word_E] / cumulative_KV[row_E, -1]
        self._last_K = np.cumsum((table_KV > 0).sum(axis=1)) - 1

    def draw(self, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """The tokens of _BLOCK documents one after another, and the documents' lengths."""
        hidden_N = draw.choice(HIDDEN, size=_BLOCK, p=self._prior_Z)
        document_N, state_N = np.arange(_BLOCK), np.zeros(_BLOCK, np.int64)
        drawn, owners = [], []
        while len(document_N):
            row_N = self._tables.row_A[state_N] * HIDDEN + hidden_N
            found_N = np.searchsorted(self._cumulative_E, row_N + draw.random(len(row_N)), side="right")
            word_N = self._word_E[np.minimum(found_N, self._last_K[row_N])]  # k + u may round to k + 1
            drawn.append(word_N)
            owners.append(document_N)
            going_N = word_N != END_ID
            state_N = self._tables.next_AV[state_N, word_N][going_N].astype(np.int64)
            hidden_N, document_N = hidden_N[going_N], document_N[going_N]
        owner_S = np.concatenate(owners)
        return np.concatenate(drawn)[np.argsort(owner_S, kind="stable")], np.bincount(owner_S, minlength=_BLOCK)


def _sets() -> Iterator[SynonymSet]:
    for concept in lexicon.concepts():
        if concept.kind != "single":
            for form, suffix in enumerate(_FORMS[concept.part]):
                tokens = ids(word.forms[form] for word in concept.words)
                yield SynonymSet(concept.name + suffix, concept.name, concept.kind, tuple(tokens.tolist()))
