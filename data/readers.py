"""Read files as documents: .txt, .json, .jsonl and .parquet, each also gzipped, as streams.

A document is a whole .txt file, a line of .jsonl, an object of the array in .json (or a line, as is common), or a row of
.parquet. A document over WHOLE_DOCUMENT_CHARACTERS is cut into pieces at blank lines, so that holding out a share of a few
books takes no whole book. Line ends become "\\n" and a byte order mark is dropped.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, cast

from common.errors import InputError

if TYPE_CHECKING:
    import pyarrow

RULES_VERSION = 2
"""Version of how files and rows become documents, and of how documents that may be cut are split (data/split.py); raise it
with any change to either."""

WHOLE_DOCUMENT_CHARACTERS = 64 * 1024
"""Longer documents are cut into pieces."""
PIECE_CHARACTERS = 16 * 1024
"""A piece ends at the first blank line after this many characters ..."""
LONGEST_PIECE_CHARACTERS = 32 * 1024
"""... or, without one, at the first line end after this many (a longer line is cut)."""

_JSON_KINDS = {
    dict: "an object",
    list: "an array",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
_JSON_SPACE = re.compile(r"[ \t\n\r]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def format_of(path: Path) -> str:
    """The suffix that determines how to read a file, in lower case and without .gz."""
    return (path.with_suffix("") if _is_packed(path) else path).suffix.lower()


def _is_packed(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def read_documents(path: Path, field: str) -> Iterator[str]:
    """Yield the documents of a file; ``field`` is the key or column that holds the text. Raises InputError naming the file,
    and line or row, for invalid content."""
    read = _READERS[format_of(path)]
    with readable(path):
        yield from read(path, field)


def text_of(value: Any, field: str, place: str) -> str:
    """The text that a row holds as ``field``. Raises InputError naming the place if it is not text."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start} (0x{value[error.start]:02x})"
            raise InputError(f"{place}: {field!r} is not UTF-8 text: {wrong}; convert it") from None
    if not isinstance(value, str):
        raise InputError(f"{place}: {field!r} is not text but {_kind_of(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: {field!r} holds half a surrogate pair, which is no character") from None
    return value.replace("\r\n", "\n")


def _kind_of(value: Any) -> str:
    return _JSON_KINDS.get(type(value), type(value).__name__)


def pieces(text: str) -> Iterator[str]:
    """Yield a text whole, or in pieces if it is long."""
    if len(text) <= WHOLE_DOCUMENT_CHARACTERS:
        yield text
    else:
        yield from _pieces(io.StringIO(text))


def _pieces(lines: TextIO) -> Iterator[str]:
    piece = ""
    while line := lines.readline(LONGEST_PIECE_CHARACTERS):
        piece += line
        if len(piece) >= LONGEST_PIECE_CHARACTERS or (len(piece) >= PIECE_CHARACTERS and not line.strip()):
            yield piece.strip("\n")
            piece = ""
    yield piece.strip("\n")


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn errors in reading a file (undecodable text, a torn archive, no access) into an InputError naming it."""
    try:
        yield
    except UnicodeDecodeError:
        raise InputError(f"{path}: {_first_undecodable(path)}; convert the file to UTF-8") from None
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _first_undecodable(path: Path) -> str:
    """Where the first byte is that is not UTF-8."""
    offset = 0
    with _open_bytes(path) as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return (
                    f"line {number}, byte {offset + error.start} of the file (0x{line[error.start]:02x}) is not UTF-8"
                )
            offset += len(line)
    return "is not UTF-8"


def _open_bytes(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if _is_packed(path) else path.open("rb")


@contextlib.contextmanager
def _open_seekable(path: Path) -> Iterator[BinaryIO]:
    """Open a file for random access; a gzipped one is first unpacked to a temporary file."""
    if not _is_packed(path):
        with path.open("rb") as handle:
            yield handle
        return
    with tempfile.TemporaryFile() as unpacked, gzip.open(path, "rb") as packed:
        shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        yield unpacked


def _read_txt(path: Path, _field: str) -> Iterator[str]:
    with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig") as handle:  # universal newlines: CRLF comes as "\n"
        head = handle.read(WHOLE_DOCUMENT_CHARACTERS + 1)
        if len(head) <= WHOLE_DOCUMENT_CHARACTERS:
            yield head.strip("\n")
            return
        handle.seek(0)
        yield from _pieces(handle)


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    with _open_bytes(path) as handle:
        for number, line in enumerate(handle, start=1):
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            if not text:
                continue
            place = f"{path}: line {number}"
            try:
                row = _parsed(place, _DECODER.decode, text)
            except json.JSONDecodeError as error:
                raise InputError(f"{place} is not JSON: {error.msg} (column {error.colno})") from None
            yield from pieces(_text_in_row(row, field, place))


def _read_json(path: Path, field: str) -> Iterator[str]:
    with _open_bytes(path) as handle:
        first = next((line for line in handle if line.strip(_BYTE_ORDER_MARK + b" \t\r\n")), b"").decode("utf-8-sig")
    if not first.lstrip().startswith("["):
        with contextlib.suppress(json.JSONDecodeError):  # an object that takes several lines
            _parsed(f"{path}: the first line", _DECODER.decode, first)
            yield from _read_jsonl(path, field)
            return
    with _open_bytes(path) as handle:
        content = handle.read().decode("utf-8-sig")
    try:
        for number, row in enumerate(_json_rows(path, content), start=1):
            place = f"{path}: row {number}"
            yield from pieces(_text_in_row(row, field, place))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno} is not JSON: {error.msg} (column {error.colno})") from None


def _json_rows(path: Path, content: str) -> Iterator[Any]:
    """Yield the values of an array one by one, or the one value in ``content``."""
    at = _after_space(content, 0)
    if not content.startswith("[", at):
        yield _parsed(f"{path}: row 1", _DECODER.decode, content)
        return
    number, before_row = 0, "["
    while content.startswith(before_row, at):
        at = _after_space(content, at + 1)
        if number == 0 and content.startswith("]", at):
            break
        number, before_row = number + 1, ","
        row, at = _parsed(f"{path}: row {number}", _DECODER.raw_decode, content, at)
        yield row
        at = _after_space(content, at)
    if not content.startswith("]", at):
        raise json.JSONDecodeError("Expecting ',' or ']'", content, at)
    if _after_space(content, at + 1) < len(content):
        raise json.JSONDecodeError("Extra data", content, at + 1)


def _after_space(content: str, at: int) -> int:
    match = _JSON_SPACE.match(content, at)
    assert match is not None, "it matches nothing as well"
    return match.end()


_DECODER = json.JSONDecoder(parse_int=float)
"""Numbers are irrelevant here, and an int of more than 4,300 digits would be an error."""


def _parsed(place: str, decode: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return decode(*arguments)
    except RecursionError:
        raise InputError(f"{place} is nested too deeply to be read; leave it out") from None


def _text_in_row(row: Any, field: str, place: str) -> str:
    if not isinstance(row, dict):
        raise InputError(f"{place} is not a JSON object but {_kind_of(row)}")
    if field not in row:
        raise InputError(
            f"{place} has no {field!r}; give data.paths that leave the file out, or set data.text_field to one of: "
            f"{', '.join(map(str, row)) or 'none'}"
        )
    return text_of(row[field], field, place)


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    import pyarrow  # not needed if the store exists
    from pyarrow import parquet

    row = 0
    with _open_seekable(path) as handle:
        try:
            table = parquet.ParquetFile(handle)
            _check_column(path, field, table.schema_arrow)
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                # As bytes, whatever the column's type, so that an error names its row.
                for raw in batch.column(field).cast(pyarrow.large_binary()).to_pylist():
                    row += 1
                    if raw is None:
                        raise InputError(f"{path}: row {row} of column {field!r} is null; drop such rows")
                    yield from pieces(text_of(raw, field, f"{path}: row {row}"))
        except pyarrow.ArrowException as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read as parquet after row {row}: {reason}") from None


def _check_column(path: Path, field: str, schema: pyarrow.Schema) -> None:
    from pyarrow import types

    if field not in schema.names:
        raise InputError(f"{path}: has no column {field!r}; set data.text_field to one of: {', '.join(schema.names)}")
    if schema.names.count(field) > 1:
        raise InputError(f"{path}: has {schema.names.count(field)} columns named {field!r}; rename all but one")
    kind = schema.field(field).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    binaries = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if not any(is_kind(values) for is_kind in (*texts, *binaries)):
        raise InputError(f"{path}: column {field!r} is not text but {kind}")


_READERS = {".txt": _read_txt, ".json": _read_json, ".jsonl": _read_jsonl, ".parquet": _read_parquet}

SUFFIXES = tuple(_READERS)
