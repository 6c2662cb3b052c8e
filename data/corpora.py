"""What a corpus is, which ones there are by kind, and the section of a configuration that chooses one.

A new corpus is a class in one file, here or in a plug-in: it registers with :data:`CORPORA`, states its keys as ``Options``,
and yields documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from common.registry import Registry
from common.section import MOST, Choice, Place

from .tokenizer import load_tokenizer, tokenizer_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CORPORA = Registry("data")


def _ordered(steps: list[int]) -> list[int]:
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1] <= MOST:
        raise ValueError(f"a range of steps is [first, last] with 1 <= first <= last, at most {MOST}, not {steps}")
    return steps


class DataConfig(Choice):
    """The text that a run reads: a kind of corpus with its own keys, and what all kinds share."""

    sequence_length: int = Field(ge=2, le=1 << 20)
    """Tokens a sequence feeds to the model; each predicts the next one."""
    validation_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share held out for validation: of the tokens for text and hub, where a document may be cut; of the documents, which
    stay whole, for pydoc and grammar (data/split.py). A share that is off by a quarter or more is told."""
    cache_dir: Place = "data_cache"
    """Where token stores are kept; one subdirectory for each (corpus, tokenizer) pair."""
    skip_steps: list[Annotated[list[int], AfterValidator(_ordered)]] = Field(default=[])
    """Batches left out, as [first, last] in the order of batches: [[312, 320]] goes on with batch 321 at step 312."""


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class Corpus:
    """A source of documents. ``options`` are the kind's own keys, ``data`` the whole section."""

    max_tokens: int | None = None
    """The store stops reading after this many tokens; None reads everything."""
    tokenizer_documents: int | None = None
    """How many of the first documents a BPE is trained on; None means all."""
    may_be_cut: ClassVar[bool] = False
    """Whether a document may be cut so that the split meets the fraction asked for (data/split.py)."""
    remarks: Sequence[str] = ()
    """What a user should know of the source, a line each: what was left out of it."""

    Options: Any = NoOptions

    def __init__(self, options: Any, data: DataConfig) -> None:
        self.options, self.data = options, data

    def identity(self) -> dict[str, Any]:
        """Return, as JSON, everything that determines the text: it changes when the source does. Quick to call."""
        raise NotImplementedError

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the documents in an order that never varies. Raises InputError for a source that cannot be read."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return, as JSON, what the manifest should tell besides; complete once ``documents`` is exhausted."""
        return {}

    def tokenizer_identity(self) -> dict[str, Any]:
        """Return, as JSON, what determines the tokenizer besides the text."""
        raise NotImplementedError

    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Return the tokenizer that the corpus brings or the configuration names; None if a BPE is to be trained."""
        raise NotImplementedError


@dataclass(frozen=True)
class ProseOptions:
    """Keys that all corpora of prose share: the tokenizer is a choice. Exactly one of the two is given."""

    vocab_size: Annotated[int, Field(ge=300, le=1 << 24)] | None = None
    """Size of the byte-level BPE trained on the corpus."""
    tokenizer: Place | None = None
    """A tokenizer to use as it is: a local directory, a tokenizer.json, or a name on the hub."""

    def __post_init__(self) -> None:
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError("give exactly one of vocab_size (train a BPE) and tokenizer (use one as it is)")


class ProseCorpus(Corpus):
    """Text that any tokenizer suits: a BPE trained on it, or one that exists."""

    Options = ProseOptions

    def tokenizer_identity(self) -> dict[str, Any]:
        """Return the size of the BPE, or what the tokenizer's files are; InputError for a path without a tokenizer."""
        return tokenizer_identity(self.options.tokenizer, self.options.vocab_size)

    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Return the tokenizer that the configuration names, if it does. Raises InputError as ``load_tokenizer`` does."""
        return None if self.options.tokenizer is None else load_tokenizer(self.options.tokenizer)
