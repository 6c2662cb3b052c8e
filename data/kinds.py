"""The project's own corpora: importing this module registers them, and :func:`make_corpus` makes any corpus."""

from common.registry import checked_options

from .corpora import CORPORA, Corpus, DataConfig
from .grammar.corpus import GrammarCorpus
from .hub import HubCorpus
from .pydoc import PydocCorpus
from .text import TextCorpus
from .tokens.corpus import TokensCorpus

__all__ = ["CORPORA", "GrammarCorpus", "HubCorpus", "PydocCorpus", "TextCorpus", "TokensCorpus", "make_corpus"]


def make_corpus(data: DataConfig) -> Corpus:
    """The corpus of a configuration. Raises InputError if its paths match nothing."""
    cls = CORPORA[data.kind]
    corpus: Corpus = cls(checked_options(cls, data.options), data)
    return corpus
