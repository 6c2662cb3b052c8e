"""The synonym grammar as a corpus: documents are generated when they are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from tqdm import tqdm

from data.corpora import CORPORA, Corpus, DataConfig

from .grammar import Grammar
from .vocabulary import grammar_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RULES_VERSION = 1
"""Version of how documents are drawn from the tables; raise it with any change."""


@CORPORA.register("grammar")
class GrammarCorpus(Corpus):
    """Text of the synonym grammar, in which the probability of every word is known; one token per word."""

    @dataclass(frozen=True)
    class Options:
        documents: Annotated[int, Field(ge=10, le=1 << 32)]
        """Number of documents; they average some 80 tokens."""
        seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
        """Seed of the grammar's free probabilities and of the text."""

    def __init__(self, options: Options, data: DataConfig) -> None:
        super().__init__(options, data)
        self._documents = options.documents
        self._grammar = Grammar(options.seed)

    def identity(self) -> dict[str, Any]:
        """Number of documents, seed, and a hash of all words, probabilities and transitions."""
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
        """The grammar's seed, its states and words, and the number of synonym sets of each kind."""
        lemmas = {(one.kind, one.lemma) for one in self._grammar.sets}
        kinds = sorted({kind for kind, _ in lemmas})
        return {
            "grammar": self._grammar.seed,
            "states": len(self._grammar.automaton.states),
            "words": len(self._grammar.words),
            "sets": {kind: sum(one == kind for one, _ in lemmas) for kind in kinds},
        }

    def tokenizer_identity(self) -> dict[str, Any]:
        """Words are tokens; the words themselves are in the corpus's identity."""
        return {"words": "grammar"}

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer of the grammar's words."""
        return grammar_tokenizer()
