"""Files of token ids as other tools write them: where the ids lie in a file, without reading them.

=============================================  =====================================================================
an array in NumPy's format, .npy               one dimension, any integers
shards of llm.c and modded-nanogpt             256 int32 (magic number, version, count of ids), then the ids
arrow files of ``Dataset.save_to_disk``        the column ``input_ids``
a .bin without a header, as nanoGPT writes it  uint16; the only format without a mark, so the name has to end in .bin
=============================================  =====================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from common.errors import InputError

from ..readers import readable

if TYPE_CHECKING:
    import pyarrow

COLUMN = "input_ids"
HEADER = 256
"""Numbers of four bytes before the ids of a shard: magic number, version, count of ids, zeros."""
SHARDS = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
"""Magic number of a shard -> version and type of the ids: llm.c's for GPT-2, which modded-nanogpt shares, and for Llama 3."""
_QUESTIONS = 20240522
"""Magic number of llm.c's files of multiple-choice questions."""
_NPY = b"\x93NUMPY"


class TokenFile(NamedTuple):
    """Where a file has its ids."""

    dtype: np.dtype
    span_S2: np.ndarray
    """int64: the first byte and the number of ids of each stretch without a gap, in order."""
    row_starts: np.ndarray
    """int64: the index among all of the file's ids at which each of its rows begins; a file that has no rows is one."""
    headless: bool = False
    """Whether nothing but the name says that these are uint16."""

    @property
    def tokens(self) -> int:
        """Number of ids."""
        return int(self.span_S2[:, 1].sum())


def natural(path: Path) -> list[tuple[str, int]]:
    """Key that sorts shard_2 before shard_10; no two paths have the same."""
    name = str(path)
    return [*((text, int(number or -1)) for text, number in re.findall(r"(\D*)(\d*)", name)), (name, -1)]


def files_of_dataset(folder: Path) -> list[Path]:
    """The arrow files of a folder that ``Dataset.save_to_disk`` wrote, in order. Raises InputError for any other folder."""
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.parent.name for path in folder.glob("*/state.json")))
        raise InputError(f"{folder}: is a DatasetDict; give the folder of one of its splits: {splits}")
    if not (folder / "state.json").is_file():
        raise InputError(
            f"{folder}: is a folder without a state.json, so no dataset that save_to_disk wrote; name the files of other "
            f"formats, as in {folder}/*train*.bin"
        )
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = [folder / str(file["filename"]) for file in state["_data_files"]]
        ordered_elsewhere = bool(state.get("_indices_data_files"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{folder}/state.json: not as save_to_disk writes it; save the dataset again") from None
    if ordered_elsewhere:
        raise InputError(f"{folder}: its rows are in the order of another file; save dataset.flatten_indices() instead")
    if not files:
        raise InputError(f"{folder}: a dataset without rows; leave it out")
    return files


def token_file(path: Path) -> TokenFile:
    """Recognise a file by its content. Raises InputError naming the file for one that is damaged, or has no ids."""
    with readable(path):
        size = path.stat().st_size
        with path.open("rb") as handle:
            head = handle.read(4 * HEADER)
        if size == 0:
            raise InputError(f"{path}: is empty; leave it out")
        if path.suffix == ".arrow":
            return _arrow(path)
        magic, version, count = np.frombuffer(head.ljust(12, b"\0"), "<i4", 3).tolist()
        if head.startswith(_NPY):
            found = _array(path)
        elif magic in SHARDS:
            found = _shard(path, size, SHARDS[magic], version, count)
        elif magic == _QUESTIONS:
            raise InputError(f"{path}: holds multiple-choice questions of llm.c, no text; leave it out")
        else:
            found = _headless(path, size)
    if found.tokens == 0:  # of a dataset, one file may hold only empty rows
        raise InputError(f"{path}: holds no tokens; leave it out")
    return found


def _whole(dtype: np.dtype, first_byte: int, count: int, *, headless: bool = False) -> TokenFile:
    return TokenFile(dtype, np.array([[first_byte, count]], np.int64), np.zeros(1, np.int64), headless)


def _headless(path: Path, size: int) -> TokenFile:
    if path.suffix != ".bin":
        raise InputError(
            f"{path}: is no .npy, no shard of llm.c and no arrow file of a dataset; if it holds uint16 ids and nothing else, "
            "rename it to end in .bin"
        )
    if size % 2:
        raise InputError(f"{path}: {size} bytes are no whole number of uint16 ids; copy or write it again")
    return _whole(np.dtype("<u2"), 0, size // 2, headless=True)


def _shard(path: Path, size: int, known: tuple[int, str], version: int, count: int) -> TokenFile:
    expected, dtype = known[0], np.dtype(known[1])
    if version != expected:
        raise InputError(
            f"{path}: a shard of version {version}, where {expected} is known; write it in that one, or as .npy"
        )
    if size != 4 * HEADER + count * dtype.itemsize:
        there = (size - 4 * HEADER) / dtype.itemsize
        raise InputError(
            f"{path}: its header counts {count} tokens, but {size} bytes hold {there:g}; copy or write it again"
        )
    return _whole(dtype, 4 * HEADER, count)


def _array(path: Path) -> TokenFile:
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read as .npy ({reason}); copy or write it again") from None
    if ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise InputError(
            f"{path}: holds {ids.dtype} of shape {ids.shape}; token ids are one dimension of integers: save it so"
        )
    if ids.size == 0:
        return _whole(ids.dtype, 0, 0)
    return _whole(ids.dtype, ids.offset, len(ids))


def _arrow(path: Path) -> TokenFile:
    import pyarrow  # not needed if the store exists

    try:
        whole = pyarrow.memory_map(str(path)).read_buffer()
        stretches = list(_stretches(path, whole))
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: cannot be read as arrow: {' '.join(str(error).split())}") from None
    kinds = {dtype for dtype, _, _ in stretches} or {np.dtype("<i4")}
    if len(kinds) > 1:
        raise InputError(f"{path}: column {COLUMN!r} changes its type; save the dataset again")
    lengths = np.concatenate([np.zeros(1, np.int64), *(length_R for _, _, length_R in stretches)])
    spans = [(first_byte, int(length_R.sum())) for _, first_byte, length_R in stretches]
    return TokenFile(kinds.pop(), np.array(spans, np.int64).reshape(-1, 2), np.cumsum(lengths)[:-1])


def _stretches(path: Path, whole: pyarrow.Buffer) -> Iterator[tuple[np.dtype, int, np.ndarray]]:
    """Of each batch of rows: type and first byte of its ids, and the rows' lengths."""
    import pyarrow

    reader = pyarrow.ipc.open_stream(whole)
    if COLUMN not in reader.schema.names:
        raise InputError(f"{path}: has no column {COLUMN!r}, only {', '.join(reader.schema.names)}; rename it")
    kind = reader.schema.field(COLUMN).type
    listed = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if not listed or not pyarrow.types.is_integer(kind.value_type):
        raise InputError(f"{path}: column {COLUMN!r} is {kind}, no list of integers a row; save it so")
    for batch in reader:
        rows = batch.column(COLUMN)
        ids = rows.flatten()
        if rows.null_count or ids.null_count:
            raise InputError(f"{path}: column {COLUMN!r} has nulls; drop them")
        length_R = rows.value_lengths().to_numpy().astype(np.int64)
        dtype = np.dtype(kind.value_type.to_pandas_dtype())
        if len(ids):
            first_byte = ids.buffers()[1].address - whole.address + ids.offset * dtype.itemsize
            if not 0 <= first_byte <= whole.size - len(ids) * dtype.itemsize:
                raise InputError(f"{path}: is compressed; save the dataset again, without compression")
            yield dtype, first_byte, length_R
        else:
            yield dtype, 0, length_R
