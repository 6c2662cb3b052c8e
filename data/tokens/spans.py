"""Token ids that lie in files of other tools: spans of several files as one array, and what is looked for in it.

Shapes: S spans, each (file, first byte, number of ids).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from common.errors import InputError

CHUNK = 1 << 22
"""Ids that are read at once."""
_MOST_OPEN = 64
"""Files that are kept mapped: each takes one of the descriptors of the process, of which there may be only 256."""


class SpannedIds:
    """A one-dimensional array of ids that are read from their files when a slice of it is taken."""

    def __init__(self, paths: Sequence[Path], dtypes: Sequence[np.dtype], span_S3: np.ndarray, dtype: np.dtype) -> None:
        """``dtypes``: of each file; ``dtype``: of what is read."""
        self.paths = paths
        self._mapped = lru_cache(_MOST_OPEN)(lambda file: np.asarray(np.memmap(paths[file], np.uint8, "r")))
        self._dtypes = dtypes
        self._span_S3 = span_S3
        self._end_S = np.cumsum(span_S3[:, 2])
        self.dtype = dtype

    def __len__(self) -> int:
        return int(self._end_S[-1]) if len(self._end_S) else 0

    def __getitem__(self, index: slice) -> np.ndarray:
        start, stop, step = index.indices(len(self))
        if step != 1:
            raise ValueError(f"a slice of spans has step 1, not {step}")
        parts = [np.empty(0, self.dtype)]
        span = int(np.searchsorted(self._end_S, start, side="right"))
        while start < stop:
            file, first_byte, count = self._span_S3[span].tolist()
            begin = start - (int(self._end_S[span]) - count)
            end = min(count, begin + stop - start)
            size = self._dtypes[file].itemsize
            raw = self._mapped(file)[first_byte + begin * size : first_byte + end * size]
            if len(raw) < (end - begin) * size:
                raise InputError(f"{self.paths[file]}: is shorter than when its tokens were counted; restore it")
            parts.append(raw.view(self._dtypes[file]).astype(self.dtype))
            start, span = start + end - begin, span + 1
        return np.concatenate(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("spans of files cannot become an array without a copy")
        return self[:].astype(dtype or self.dtype, copy=False)

    def chunks(self, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
        """Yield the ids from ``start`` to ``stop`` in turn, never more than fit in memory."""
        stop = len(self) if stop is None else stop
        return (self[at : min(at + CHUNK, stop)] for at in range(start, stop, CHUNK))


TokenIds: TypeAlias = np.ndarray | SpannedIds
"""The tokens of a split: in a file of the store's own, or in the files that the store refers to."""


def cut_spans(span_S3: np.ndarray, sizes: Sequence[int], starts: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The spans of the documents ``chosen`` (bool) among those that begin at ``starts`` and together fill ``span_S3``.

    ``sizes``: bytes of an id of each file. Neighbouring documents of a file share a span.
    """
    ends = np.cumsum(span_S3[:, 2])
    span_starts = ends - span_S3[:, 2]
    runs = np.flatnonzero(np.diff(chosen, prepend=not chosen[0]))  # the documents at which the choice changes
    cuts = np.unique(np.concatenate([span_starts, starts[runs]]))
    lengths = np.diff(cuts, append=ends[-1])
    kept = chosen[runs][np.searchsorted(starts[runs], cuts, side="right") - 1]
    cuts, lengths = cuts[kept], lengths[kept]
    span = np.searchsorted(span_starts, cuts, side="right") - 1
    file = span_S3[span, 0]
    first_byte = span_S3[span, 1] + (cuts - span_starts[span]) * np.asarray(sizes, np.int64)[file]
    return np.stack([file, first_byte, lengths], axis=1)
