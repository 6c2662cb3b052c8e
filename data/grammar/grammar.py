"""A corpus of known truth: text drawn from an automaton, and the exact distribution of the next token after any text.

Shapes: B rows, T positions, Z hidden states (topic and register), A states, R rows of probabilities, V vocabulary, N
documents, S their tokens one after another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from . import lexicon
from .automaton import NOWHERE, compile_automaton
from .syntax import Syntax
from .tables import HIDDEN, Floats, Ids, Tables, generator
from .vocabulary import END_ID, vocabulary

_BLOCK = 2048
"""Documents drawn in lock step: enough that a step is one large look-up, few enough for a small corpus."""
_FORMS = {"noun": (":singular", ":plural"), "verb": (":base", ":3sg"), "adjective": ("",)}


@dataclass(frozen=True)
class SynonymSet:
    """Words between which the grammar chooses, in one inflected form; ``lemma`` is the same for all forms of a set.

    ``kind`` is equal, unequal, rare or contextual for true synonyms: whatever follows depends on the word in no way
    but one, that a word of a set which depends on the register is evidence of the register. Words of a near or an
    antonym set share contexts and lead to different ones.
    """

    name: str
    lemma: str
    kind: str
    tokens: tuple[int, ...]


class Grammar:
    """The grammar that a seed gives: the rules and words are fixed, the free probabilities drawn.

    Attributes:
        words: the text of each token id, leading space included; id 0 ends every document.
        sets: the sets of words that the grammar chooses between, one for each inflected form.
    """

    def __init__(self, seed: int) -> None:
        """Draw the probabilities and compile the rules; a fraction of a second."""
        self.seed = seed
        self.words: tuple[str, ...] = vocabulary().words
        self.sets: tuple[SynonymSet, ...] = tuple(_sets())
        self.automaton = compile_automaton(Syntax(Tables(seed)))
        self.prior_Z: Floats = np.full(HIDDEN, 1 / HIDDEN)

    def digest(self) -> str:
        """Return a SHA-256 of the words, the probabilities (in single precision) and the transitions."""
        found = hashlib.sha256("\n".join(self.words).encode())
        for table in (self.automaton.row_A, self.automaton.next_AV, self.automaton.probability_RZV.astype("<f4")):
            found.update(np.ascontiguousarray(table).tobytes())
        return found.hexdigest()

    # ------------------------------------------------------------------------------------ the truth

    def next_distribution(self, x_BT: npt.NDArray[Any]) -> Floats:
        """Return p(token t+1 | tokens 0..t) of each row, float64 of shape (B, T, V): exact, by filtering (Bayes).

        A row is END_ID, then a document from its first token; after a further END_ID a fresh document begins.

        Raises:
            ValueError: for a row that the grammar cannot have written, naming the row and the position.
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
        """Return the automaton's state and p(hidden | tokens 0..t) after each token: shapes (B, T) and (B, T, Z).

        Raises:
            ValueError: as ``next_distribution``.
        """
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
            inside_B = word_B != END_ID  # what an ended document showed says nothing of the next one
            belief_BTZ[inside_B, t] = belief_BZ[inside_B] / total_B[inside_B, None]
        return state_BT, belief_BTZ

    def _check(self, good_BT: npt.NDArray[np.bool_], x_BT: npt.NDArray[Any], start: int, problem: str) -> None:
        """Raise ValueError for the first False; the columns of ``good_BT`` are those of ``x_BT`` from ``start``."""
        if good_BT.all():
            return
        row, column = (int(index) for index in np.argwhere(~good_BT)[0])
        token = int(x_BT[row, start + column])
        text = repr(self.words[token]) if 0 <= token < len(self.words) else "no word"
        raise ValueError(f"row {row}, position {start + column}: token {token} ({text}) {problem}")

    @cached_property
    def _visits_ZA(self) -> Floats:
        """Expected visits of each state in a document, for each hidden state: the solution of n = start + n T."""
        from scipy import sparse
        from scipy.sparse.linalg import spsolve

        tables = self.automaton
        n_states = len(tables.states)
        from_S, word_S = np.nonzero(tables.next_AV != NOWHERE)
        inside_S = word_S != END_ID
        from_S, word_S = from_S[inside_S], word_S[inside_S]
        to_S, row_S = tables.next_AV[from_S, word_S], tables.row_A[from_S]
        start_A = np.eye(1, n_states)[0]
        visits = []
        for z in range(HIDDEN):
            moves = (tables.probability_RZV[row_S, z, word_S], (to_S, from_S))
            moves_AA = sparse.coo_array(moves, shape=(n_states, n_states)).tocsc()
            visits.append(spsolve(sparse.eye_array(n_states, format="csc") - moves_AA, start_A))
        return np.array(visits)

    @cached_property
    def unigram_V(self) -> Floats:
        """The long-run share of each token, ends of documents included: float64 (V,), exact."""
        visits_ZR = np.zeros((HIDDEN, len(self.automaton.probability_RZV)))
        np.add.at(visits_ZR.T, self.automaton.row_A, self._visits_ZA.T)
        count_V = np.einsum("z,zr,rzv->v", self.prior_Z, visits_ZR, self.automaton.probability_RZV, optimize=True)
        return count_V / count_V.sum()

    # ------------------------------------------------------------------------------------ text

    def sample(self, documents: int, seed: int) -> Iterator[Ids]:
        """Yield documents as token ids, each ending with END_ID. The first of many are those of few."""
        for ids_S, lengths_N in self._blocks(documents, seed):
            yield from np.split(ids_S, np.cumsum(lengths_N)[:-1])

    def texts(self, documents: int, seed: int) -> Iterator[str]:
        """Yield documents as text, without the end token."""
        for ids_S, lengths_N in self._blocks(documents, seed):
            words = [self.words[index] for index in ids_S.tolist()]
            start = 0
            for length in lengths_N.tolist():
                yield "".join(words[start : start + length - 1])
                start += length

    def _blocks(self, documents: int, seed: int) -> Iterator[tuple[Ids, Ids]]:
        """Yield the tokens of blocks of documents, and the documents' lengths; a generator for each block."""
        sampler = _Sampler(self)
        for block, first in enumerate(range(0, documents, _BLOCK)):
            ids_S, lengths_N = sampler.draw(generator(seed, "text", block))
            lengths_N = lengths_N[: documents - first]
            yield ids_S[: lengths_N.sum()], lengths_N


class _Sampler:
    """Draws documents in lock step.

    The distributions of all (row, z) stand one after another as one increasing table: the cumulative probabilities of
    the k-th lie in (k, k + 1], so that a search for k + u finds a word of it.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._tables = grammar.automaton
        self._prior_Z = grammar.prior_Z
        table_KV = self._tables.probability_RZV.reshape(-1, len(grammar.words))
        row_E, self._word_E = np.nonzero(table_KV)
        cumulative_KV = np.cumsum(table_KV, axis=1)
        self._cumulative_E = row_E + cumulative_KV[row_E, self._word_E] / cumulative_KV[row_E, -1]
        self._last_K = np.cumsum((table_KV > 0).sum(axis=1)) - 1

    def draw(self, draw: np.random.Generator) -> tuple[Ids, Ids]:
        """Return the tokens of _BLOCK documents one after another, and the documents' lengths."""
        hidden_N = draw.choice(HIDDEN, size=_BLOCK, p=self._prior_Z)
        document_N, state_N = np.arange(_BLOCK), np.zeros(_BLOCK, np.int64)
        words, owners = [], []
        while len(document_N):
            row_N = self._tables.row_A[state_N] * HIDDEN + hidden_N
            found_N = np.searchsorted(self._cumulative_E, row_N + draw.random(len(row_N)), side="right")
            word_N = self._word_E[np.minimum(found_N, self._last_K[row_N])]  # k + u may round to k + 1
            words.append(word_N)
            owners.append(document_N)
            going_N = word_N != END_ID
            state_N = self._tables.next_AV[state_N, word_N][going_N].astype(np.int64)
            hidden_N, document_N = hidden_N[going_N], document_N[going_N]
        owner_S = np.concatenate(owners)
        return np.concatenate(words)[np.argsort(owner_S, kind="stable")], np.bincount(owner_S, minlength=_BLOCK)


def _sets() -> Iterator[SynonymSet]:
    for concept in lexicon.concepts():
        if concept.kind != "single":
            for form, suffix in enumerate(_FORMS[concept.part]):
                tokens = vocabulary().ids(word.forms[form] for word in concept.words)
                yield SynonymSet(concept.name + suffix, concept.name, concept.kind, tuple(tokens.tolist()))
