"""The long-run share of each token in text of the synonym grammar, to hold samples against."""

from functools import cache

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve

from data.grammar import Grammar
from data.grammar.grammar import NOWHERE
from data.grammar.tables import HIDDEN
from data.grammar.vocabulary import END_ID


@cache
def unigram_of(grammar: Grammar) -> np.ndarray:
    """Share of each token, ends of documents included: float64 (V,), exact, from the expected visits of each state."""
    tables, visits_ZA = grammar.automaton, []
    n_states = len(tables.states)
    from_S, word_S = np.nonzero(tables.next_AV != NOWHERE)
    inside_S = word_S != END_ID
    from_S, word_S = from_S[inside_S], word_S[inside_S]
    to_S, row_S = tables.next_AV[from_S, word_S], tables.row_A[from_S]
    for z in range(HIDDEN):  # n = start + n T
        moves = (tables.probability_RZV[row_S, z, word_S], (to_S, from_S))
        moves_AA = sparse.coo_array(moves, shape=(n_states, n_states)).tocsc()
        visits_ZA.append(spsolve(sparse.eye_array(n_states, format="csc") - moves_AA, np.eye(1, n_states)[0]))
    visits_ZR = np.zeros((HIDDEN, len(tables.probability_RZV)))
    np.add.at(visits_ZR.T, tables.row_A, np.array(visits_ZA).T)
    count_V = np.einsum("z,zr,rzv->v", grammar.prior_Z, visits_ZR, tables.probability_RZV, optimize=True)
    return count_V / count_V.sum()
