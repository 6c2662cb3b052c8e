"""Build a store that refers to files of token ids: check every id once, find the documents, choose those held out.

The files are one stream in their order, since those who write shards cut documents at their ends. A document's place in
data/split.py's sense is that of its ids without the separator, so it is the same in all formats and under both conventions.

Shapes: S spans, each (file, first byte, number of ids); D documents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from common.errors import InputError, note
from common.files import sha256_of

from ..split import border_of
from .files import TokenFile
from .spans import SpannedIds, cut_spans

SeparatorAt = Literal["start", "end"]
SPANS = "{}_spans.npy"
_TELLING = 16
"""Ids by which 32-bit ones are told from 16-bit ones, of which hardly every second is 0."""


class Separator(NamedTuple):
    """The id that each document begins or ends with."""

    id: int
    at: SeparatorAt


class Source(NamedTuple):
    """A file of the corpus, by its number in the corpus."""

    number: int
    path: Path
    file: TokenFile


class Stream(NamedTuple):
    """Files one after another: their ids, the spans these are in, and where documents start."""

    ids: SpannedIds
    span_S3: np.ndarray
    start_D: np.ndarray


def check_types(sources: Sequence[Source], vocab_size: int) -> None:
    """Raise InputError for a file whose numbers cannot be all ids of the vocabulary."""
    for source in sources:
        largest = np.iinfo(source.file.dtype).max
        if largest < vocab_size - 1:
            raise InputError(
                f"{source.path}: {source.file.dtype} holds ids up to {largest:,}, and data.tokenizer has {vocab_size:,}, so "
                "larger ones were lost; write the file again with a larger type, or name the tokenizer it was made with"
            )


def read_stream(
    sources: Sequence[Source], separator: Separator | None, vocab_size: int, dtype: np.dtype, *, progress: bool
) -> Stream:
    """Read all ids once. Raises InputError for an id that is not in the vocabulary, and for a separator that does not occur."""
    spans, starts, first = [], [np.zeros(1, np.int64)], 0
    total = sum(source.file.tokens for source in sources)
    if total == 0:
        raise InputError(f"{sources[0].path}: holds no tokens, nor does any other file; leave the dataset out")
    with tqdm(total=total, desc="checking", unit="token", unit_scale=True, disable=not progress) as bar:
        for source in sources:
            if separator is None:
                starts.append(first + source.file.row_starts)
            for at, chunk in _checked(source, vocab_size):
                if separator is not None:
                    starts.append(first + at + np.flatnonzero(chunk == separator.id) + (separator.at == "end"))
                bar.update(len(chunk))
            span_S2 = source.file.span_S2[source.file.span_S2[:, 1] > 0]
            spans.append(np.insert(span_S2, 0, source.number, axis=1))
            first += source.file.tokens
    if separator is not None and sum(map(len, starts)) == 1:
        raise InputError(
            f"data.separator={separator.id}: does not occur in {sources[0].path} or any other file; give the id that stands "
            "between documents, or null"
        )
    start_D = np.unique(np.concatenate(starts))
    span_S3 = np.concatenate(spans)
    return Stream(_opened(sources, span_S3, dtype), span_S3, start_D[start_D < total])


def _opened(sources: Sequence[Source], span_S3: np.ndarray, dtype: np.dtype) -> SpannedIds:
    own_S3 = span_S3.copy()
    own_S3[:, 0] -= sources[0].number
    return SpannedIds([source.path for source in sources], [source.file.dtype for source in sources], own_S3, dtype)


def _checked(source: Source, vocab_size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the ids of a file in chunks, each with the index of its first."""
    path, file = source.path, source.file
    ids = SpannedIds([path], [file.dtype], np.insert(file.span_S2, 0, 0, axis=1), file.dtype)
    at, every_second_zero = 0, file.headless and file.tokens >= _TELLING
    for chunk in ids.chunks():
        wrong = np.flatnonzero((chunk < 0) | (chunk >= vocab_size))
        if len(wrong):
            place, value = at + int(wrong[0]), int(chunk[wrong[0]])
            what = (
                "is negative; drop the padding" if value < 0 else f"is not among the {vocab_size:,} of data.tokenizer"
            )
            mend = "" if value < 0 else "; name the tokenizer that the file was made with"
            raise InputError(f"{path}: id {value}, token {place:,} of the file counted from 0, {what}{mend}")
        every_second_zero = every_second_zero and not chunk[1::2].any()
        yield at, chunk
        at += len(chunk)
    if every_second_zero:
        raise InputError(f"{path}: every second uint16 is 0, as in a file of 32-bit ids; save these as .npy instead")


def note_convention(stream: Stream, separator: Separator) -> None:
    """Tell the user if the ends of the stream contradict where the separator is said to be."""
    begins, ends = (int(chunk[0]) == separator.id for chunk in (stream.ids[:1], stream.ids[len(stream.ids) - 1 :]))
    found: SeparatorAt = "start" if begins else "end"
    if begins != ends and found != separator.at:
        note(
            f"data.separator_at={separator.at}: the files look as if it should be {found}: {separator.id} stands there"
        )


def hold_out(stream: Stream, separator: Separator | None, fraction: float) -> tuple[Stream, np.ndarray]:
    """Choose the documents that are held out (bool), by the rules of data/split.py; one that is cut counts as two.

    Raises InputError if a split would be empty.
    """
    length_D = np.diff(stream.start_D, append=len(stream.ids))
    place_D = np.array(
        [_place(stream.ids, start, length, separator) for start, length in zip(stream.start_D, length_D, strict=True)]
    )
    places, group_D = np.unique(place_D, return_inverse=True)
    weights = np.bincount(group_D, weights=length_D).astype(np.int64)
    border = border_of(places.tolist(), weights.tolist(), fraction)
    at_border_D = (place_D == border.below) & (border.share > 0)
    start_D, held_D = stream.start_D, place_D < border.below
    if at_border_D.any() and length_D[at_border_D].min() == 1:
        held_D = place_D < border.whole
    elif at_border_D.any():
        own = length_D[at_border_D]
        cut = start_D[at_border_D] + own - np.clip(np.rint(border.share * own).astype(np.int64), 1, own - 1)
        start_D, held_D = np.append(start_D, cut), np.append(held_D, np.ones(len(cut), bool))
        order = np.argsort(start_D)
        start_D, held_D = start_D[order], held_D[order]
    if held_D.all() or not held_D.any():
        raise InputError(
            f"data: {len(stream.ids)} tokens in {len(length_D)} documents are too few for two splits; add text"
        )
    return stream._replace(start_D=start_D), held_D


def _place(ids: SpannedIds, start: int, length: int, separator: Separator | None) -> float:
    begin, end = int(start), int(start + length)
    if separator is not None and separator.at == "start":
        begin += int(ids[begin : begin + 1][0] == separator.id)
    elif separator is not None:
        end -= int(ids[end - 1 : end][0] == separator.id)
    digest = hashlib.sha256()
    for chunk in ids.chunks(begin, end):
        digest.update(chunk.astype("<u4").tobytes())
    return int.from_bytes(digest.digest()[:8]) / 2**64


def write_split(folder: Path, name: str, stream: Stream, sizes: Sequence[int], chosen_D: np.ndarray) -> dict[str, Any]:
    """Write where the ids and the documents of a split are; returns what the manifest says of it. ``sizes``: bytes of an id of
    each file of the corpus."""
    length_D = np.diff(stream.start_D, append=len(stream.ids))[chosen_D]
    spans_file = folder / SPANS.format(name)
    np.save(spans_file, cut_spans(stream.span_S3, sizes, stream.start_D, chosen_D), allow_pickle=False)
    np.save(folder / f"{name}_documents.npy", np.cumsum(length_D) - length_D, allow_pickle=False)
    return {
        "documents": len(length_D),
        "tokens": int(length_D.sum()),
        "bytes": None,
        "sha256": sha256_of(spans_file),
    }
