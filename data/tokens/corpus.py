"""Text that is tokenised already as a corpus: which files, whose tokenizer, and what stands between documents.
files.py has the formats."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from common.errors import InputError
from common.section import Place

from ..corpora import CORPORA, DataConfig, TokenisedCorpus
from ..text import check_unchanged, identify, known_files
from ..tokenizer import load_tokenizer, tokenizer_identity, vocabulary_size
from .build import (
    Separator,
    SeparatorAt,
    Source,
    check_types,
    hold_out,
    note_convention,
    read_stream,
    write_split,
)
from .files import files_of_dataset, natural, token_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RULES_VERSION = 1
"""Version of how files become documents and of how these are split; raise it with any change to either."""


@CORPORA.register("tokens")
class TokensCorpus(TokenisedCorpus):
    """Token ids as other tools write them: .bin of nanoGPT, llm.c and modded-nanogpt, .npy, datasets saved to disk.

    The files are one stream, in the order of ``data.paths``, in natural order within a glob. The store refers to them.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        paths: Annotated[list[Place], Field(min_length=1)]
        """Files and globs of the training text, and folders that ``Dataset.save_to_disk`` wrote (column ``input_ids``)."""
        validation_paths: Annotated[list[Place], Field(min_length=1)] | None = None
        """The same of the validation text; null: ``validation_fraction`` of the training text is held out."""
        tokenizer: Place
        """The tokenizer that made the ids: a local directory, a tokenizer.json, or a name on the hub."""
        separator: Annotated[int, Field(ge=0, le=1 << 32)] | None = None
        """Id that stands between documents, 50256 for GPT-2; null: a file is a document, in a dataset a row."""
        separator_at: SeparatorAt | None = None
        """Whether a document begins (llm.c, modded-nanogpt) or ends (nanoGPT) with it; required if there is one."""

        def __post_init__(self) -> None:
            if (self.separator is None) != (self.separator_at is None):
                raise ValueError("give separator together with separator_at (start or end), or neither of them")

    def __init__(self, options: Options, data: DataConfig) -> None:
        super().__init__(options, data)
        found = {key: _find_files(f"data.{key}", getattr(options, key) or []) for key in ("paths", "validation_paths")}
        if both := set(found["paths"]) & set(found["validation_paths"]):
            raise InputError(
                f"data.validation_paths: {found['paths'][min(both)]} is a file of data.paths, too; leave it out of one"
            )
        paths = [path for paths in found.values() for path in paths.values()]
        self._training = len(found["paths"])
        known = known_files(Path(data.cache_dir))
        self._paths = paths
        if not all(str(path.resolve()) in known for path in paths):
            for path in paths:
                token_file(path)  # so that a file that cannot be read is told before all are hashed
        self.files = [identify(path, known) for path in paths]
        if options.separator is None:
            self.remarks = ["data.separator is null: a file is one document, in a dataset a row"]

    @cached_property
    def _sources(self) -> list[Source]:
        """Read once the files are identified, so that one which changes afterwards is noticed."""
        return [Source(number, path, token_file(path)) for number, path in enumerate(self._paths)]

    @property
    def dtypes(self) -> list[np.dtype]:
        """Of each file's ids."""
        return [source.file.dtype for source in self._sources]

    @property
    def validation_fraction(self) -> float | None:
        """None if there is a validation text."""
        return self.data.validation_fraction if self.options.validation_paths is None else None

    def identity(self) -> dict[str, Any]:
        """Name, size and SHA-256 of each file (no folders: the same files elsewhere are the same corpus), and the separator."""
        files = [[file.name, file.size, file.sha256] for file in self.files]
        return {
            "kind": "tokens",
            "rules": RULES_VERSION,
            "separator": [self.options.separator, self.options.separator_at],
            "files": files[: self._training],
            "validation_files": files[self._training :],
        }

    def describe(self) -> dict[str, Any]:
        """The files with sizes and times, by which the next run recognises them without hashing."""
        return {"files": [file._asdict() for file in self.files]}

    def tokenizer_identity(self) -> dict[str, Any]:
        """The tokenizer's files, or its name; InputError for a path without a tokenizer."""
        return tokenizer_identity(self.options.tokenizer, None)

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that the configuration names. Raises InputError as ``load_tokenizer`` does."""
        return load_tokenizer(self.options.tokenizer)

    def eos_id(self, tokenizer: PreTrainedTokenizerFast) -> int:
        """The separator, since that is what a model of this text ends a document with."""
        return int(tokenizer.eos_token_id if self.options.separator is None else self.options.separator)

    def write_splits(
        self, folder: Path, tokenizer: PreTrainedTokenizerFast, dtype: np.dtype, *, progress: bool
    ) -> dict[str, dict[str, Any]]:
        """Check all ids, and write which of them are in which split. Raises InputError for a file that does not fit the
        tokenizer or has changed meanwhile."""
        vocab_size, o = vocabulary_size(tokenizer), self.options
        separator = None if o.separator is None else Separator(o.separator, o.separator_at)
        if separator and separator.id >= vocab_size:
            raise InputError(f"data.separator={separator.id}: not among the {vocab_size:,} ids of data.tokenizer")
        check_types(self._sources, vocab_size)
        parts = [part for part in (self._sources[: self._training], self._sources[self._training :]) if part]
        streams = [read_stream(part, separator, vocab_size, dtype, progress=progress) for part in parts]
        if separator and progress:
            note_convention(streams[0], separator)
        if self.validation_fraction is None:
            chosen = [(stream, np.ones(len(stream.start_D), bool)) for stream in streams]
        else:
            stream, held_D = hold_out(streams[0], separator, self.validation_fraction)
            chosen = [(stream, ~held_D), (stream, held_D)]
        for file in self.files:
            check_unchanged(file)
        sizes = [dtype.itemsize for dtype in self.dtypes]
        return {
            name: write_split(folder, name, stream, sizes, chosen_D)
            for name, (stream, chosen_D) in zip(("train", "validation"), chosen, strict=True)
        }


def _find_files(key: str, patterns: Sequence[str]) -> dict[Path, Path]:
    """Real path -> absolute path of the files that these name, each once. Raises InputError for a pattern without files."""
    found: dict[Path, Path] = {}
    for pattern in patterns:
        for path in _files_of(key, pattern):
            if not path.is_file():
                raise InputError(f"{key}: {path} is no file; restore or remove it")
            found.setdefault(path.resolve(), path.absolute())
    return found


def _files_of(key: str, pattern: str) -> Iterator[Path]:
    place = Path(pattern)
    matches = [place] if place.exists() else sorted(map(Path, glob.glob(pattern, recursive=True)), key=natural)  # noqa: PTH207
    if not matches:
        raise InputError(f"{key}: {pattern} matches no file")
    for match in matches:
        yield from files_of_dataset(match) if match.is_dir() else [match]
