"""The synonym grammar as a corpus: documents that are written when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from configs.schema import GrammarData

from .grammar import Grammar

RULES_VERSION = 1
"""Version of the way documents are drawn from the tables; raise it with any change to it."""


class GrammarCorpus:
    """Documents of the grammar that ``data.seed`` gives, drawn with the same seed."""

    max_tokens = None
    tokenizer_documents = None
    may_be_cut = False
    remarks = ()

    def __init__(self, data: GrammarData) -> None:
        self._documents = data.documents
        self._grammar = Grammar(data.seed)

    def identity(self) -> dict[str, Any]:
        """Return the number of documents, the seed, and a hash of all words, probabilities and transitions."""
        return {
            "kind": "grammar",
            "rules": RULES_VERSION,
            "tables": self._grammar.digest(),
            "seed": self._grammar.seed,
            "documents": self._documents,
        }

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the documents."""
        texts = self._grammar.texts(self._documents, self._grammar.seed)
        return iter(tqdm(texts, desc="writing", total=self._documents, unit="doc", disable=not progress))

    def describe(self) -> dict[str, Any]:
        """Return the grammar's seed, its states, its words, and how many sets of synonyms there are of each kind."""
        lemmas = {(one.kind, one.lemma) for one in self._grammar.sets}
        kinds = sorted({kind for kind, _ in lemmas})
        return {
            "grammar": self._grammar.seed,
            "states": len(self._grammar.automaton.states),
            "words": len(self._grammar.words),
            "sets": {kind: sum(one == kind for one, _ in lemmas) for kind in kinds},
        }
