"""What a corpus is, and which one a configuration asks for; each kind has a file of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from configs.schema import DataConfig, GrammarData, HubData, PydocData


class Corpus(Protocol):
    """A source of documents."""

    @property
    def max_tokens(self) -> int | None:
        """The store stops reading after this many tokens; None reads everything."""

    @property
    def tokenizer_documents(self) -> int | None:
        """How many of the first documents a BPE is trained on; None means all."""

    @property
    def may_be_cut(self) -> bool:
        """Whether a document may be cut so that the split meets the fraction asked for (data/split.py)."""

    @property
    def remarks(self) -> Sequence[str]:
        """What a user should know of the source, a line each: what was left out of it."""

    def identity(self) -> dict[str, Any]:
        """Return, as JSON, everything that determines the text: it changes when the source does. Quick to call."""

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the documents in an order that never varies. Raises InputError for a source that cannot be read."""

    def describe(self) -> dict[str, Any]:
        """Return, as JSON, what the manifest should tell besides; complete once ``documents`` is exhausted."""


def make_corpus(data: DataConfig) -> Corpus:
    """Return the corpus of a configuration. Raises InputError when its paths match nothing."""
    if isinstance(data, PydocData):
        from .pydoc import PydocCorpus

        return PydocCorpus(data.max_documents)
    if isinstance(data, HubData):
        from .hub import HubCorpus

        return HubCorpus(data)
    if isinstance(data, GrammarData):
        from data.grammar.corpus import GrammarCorpus

        return GrammarCorpus(data)
    from .text import TextCorpus

    return TextCorpus(data)
