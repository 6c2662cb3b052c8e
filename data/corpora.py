"""The corpus base class, the registry of corpora, and the configuration section that selects one.

A new corpus is a class in one file, here or in a plug-in: it registers with :data:`CORPORA`, declares its keys as
``Options``, and yields documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar

import numpy as np
from pydantic import AfterValidator, Field

from common.registry import Registry
from common.section import MOST, Choice, Place

from .tokenizer import load_tokenizer, tokenizer_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from .text import SourceFile

CORPORA = Registry("data")
T = TypeVar("T")


def _ordered(steps: list[int]) -> list[int]:
    if len(steps) != 2 or not 1 <= steps[0] <= steps[1] <= MOST:
        raise ValueError(f"a range of steps is [first, last] with 1 <= first <= last, at most {MOST}, not {steps}")
    return steps


class DataConfig(Choice):
    """The text of a run: a kind of corpus with its own keys, and what all kinds share."""

    sequence_length: int = Field(ge=2, le=1 << 20)
    """Tokens of a sequence fed to the model; each predicts the next one."""
    validation_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share held out for validation: of the tokens for text, hub and tokens, where a document may be cut; of the documents,
    which stay whole, for pydoc and grammar (data/split.py). A share that misses this by a quarter or more is reported."""
    cache_dir: Place = "data_cache"
    """Where token stores are kept, one subdirectory for each (corpus, tokenizer) pair."""
    skip_steps: list[Annotated[list[int], AfterValidator(_ordered)]] = Field(default=[])
    """Batches to skip, as [first, last] in the order of batches: with [[312, 320]], step 312 draws batch 321."""


@dataclass(frozen=True)
class NoOptions:
    """No options."""


class Corpus:
    """A source of documents. ``options`` are the kind's own keys, ``data`` is the whole section."""

    max_tokens: int | None = None
    """The store stops reading after this many tokens; None reads everything."""
    tokenizer_documents: int | None = None
    """Number of first documents a BPE is trained on; None means all."""
    may_be_cut: ClassVar[bool] = False
    """Whether a document may be cut to meet the validation fraction (data/split.py)."""
    remarks: Sequence[str] = ()
    """Notes to the user about the source, one per line: what was skipped."""

    Options: Any = NoOptions

    def __init__(self, options: Any, data: DataConfig) -> None:
        self.options, self.data = options, data

    @property
    def validation_fraction(self) -> float | None:
        """Share to be held out; None if the source has a validation text of its own."""
        return self.data.validation_fraction

    def identity(self) -> dict[str, Any]:
        """Everything that determines the text, as JSON; changes when the source does. Quick to call."""
        raise NotImplementedError

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the documents in a fixed order. Raises InputError for a source that cannot be read."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Further facts for the manifest, as JSON; complete once ``documents`` is exhausted."""
        return {}

    def tokenizer_identity(self) -> dict[str, Any]:
        """What determines the tokenizer besides the text, as JSON."""
        raise NotImplementedError

    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer that the corpus brings or the configuration names; None to train a BPE."""
        raise NotImplementedError


@dataclass(frozen=True)
class ProseOptions:
    """Keys shared by all corpora of prose. Exactly one of the two must be given."""

    vocab_size: Annotated[int, Field(ge=300, le=1 << 24)] | None = None
    """Size of the byte-level BPE trained on the corpus."""
    tokenizer: Place | None = None
    """An existing tokenizer: a local directory, a tokenizer.json, or a name on the hub."""

    def __post_init__(self) -> None:
        if (self.vocab_size is None) == (self.tokenizer is None):
            raise ValueError("give exactly one of vocab_size (train a BPE) and tokenizer (use one as it is)")


class ProseCorpus(Corpus):
    """Text for any tokenizer: a BPE trained on it, or an existing one."""

    Options = ProseOptions

    def tokenizer_identity(self) -> dict[str, Any]:
        """The BPE's size, or the tokenizer's files; InputError for a path without a tokenizer."""
        return tokenizer_identity(self.options.tokenizer, self.options.vocab_size)

    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """The tokenizer that the configuration names, if any. Raises InputError as ``load_tokenizer`` does."""
        return None if self.options.tokenizer is None else load_tokenizer(self.options.tokenizer)


class TokenisedCorpus(Corpus):
    """A source of tokens. Its store has no copy of them, but refers to the source's files (data/tokens/)."""

    files: Sequence[SourceFile]

    @property
    def dtypes(self) -> Sequence[np.dtype]:
        """Of each file's ids."""
        raise NotImplementedError

    def eos_id(self, tokenizer: PreTrainedTokenizerFast) -> int:
        """The id that stands between documents."""
        raise NotImplementedError

    def write_splits(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, dtype: np.dtype, *, progress: bool
    ) -> dict[str, dict[str, Any]]:
        """Write which ids are in which split; returns what the manifest says of each. ``dtype`` holds the vocabulary."""
        raise NotImplementedError


def batched(items: Iterable[T], size_of: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Group items in order, each group as soon as its total size is ``enough``."""
    batch: list[T] = []
    size = 0
    for item in items:
        batch.append(item)
        size += size_of(item)
        if size >= enough:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
