"""Local files as a corpus: .txt, .jsonl and .parquet, each also gzipped, read as streams.

In a .txt file a document is the whole file, or, above WHOLE_FILE_CHARACTERS, a piece that ends at a blank line. In
.jsonl a document is a line, in .parquet a row. Line ends become "\\n" and a byte order mark is dropped.
"""

from __future__ import annotations

import contextlib
import glob
import gzip
import io
import json
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from tqdm import tqdm

from configs.errors import InputError
from configs.schema import TextData
from data.files import sha256_of

if TYPE_CHECKING:
    import pyarrow

RULES_VERSION = 1
"""Version of the rules by which files become documents; raise it with any change to them."""

WHOLE_FILE_CHARACTERS = 64 * 1024
"""A longer .txt file is several documents: a held-out share of a few novels needs documents smaller than novels."""
PIECE_CHARACTERS = 16 * 1024
"""A piece of a long .txt file ends at the first blank line after this many characters ..."""
LONGEST_PIECE_CHARACTERS = 32 * 1024
"""... or, where no blank line comes, at the first line end after this many (a line longer than this is cut)."""

SUFFIXES = (".txt", ".jsonl", ".parquet")
_SETTLED_SECONDS = 2
"""A file changed more recently than this may change again within one tick of its clock, so its time proves nothing."""


class TextFile(NamedTuple):
    """A file of the corpus. It is ``settled`` if its time of modification was old enough to know it by when hashed."""

    path: str
    size: int
    mtime_ns: int
    settled: bool
    sha256: str


class TextCorpus:
    """The documents of local files, in the order of ``data.paths`` and sorted within a folder or glob."""

    max_tokens = None
    tokenizer_documents = None

    def __init__(self, data: TextData) -> None:
        self._field = data.text_field
        paths = find_files(data.paths)
        known = _known_files(Path(data.cache_dir))
        self._files = [_identify(path, known) for path in paths]

    def identity(self) -> dict[str, Any]:
        """Return name, size and SHA-256 of each file (no folders: the same files elsewhere are the same corpus)."""
        names = [Path(file.path).name for file in self._files]
        structured = any(_kind(Path(name)) != ".txt" for name in names)
        return {
            "kind": "text",
            "rules": RULES_VERSION,
            "text_field": self._field if structured else None,
            "files": [[name, file.size, file.sha256] for name, file in zip(names, self._files, strict=True)],
        }

    def describe(self) -> dict[str, Any]:
        """Return the files with the sizes and times by which the next run recognises them without hashing."""
        return {"files": [file._asdict() for file in self._files]}

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the documents. Raises InputError naming file and line for what is not the text it claims to be."""
        total = sum(file.size for file in self._files)
        with tqdm(total=total, desc="reading", unit="B", unit_scale=True, disable=not progress) as bar:
            for file in self._files:
                path = Path(file.path)
                with _readable(path):
                    yield from _READERS[_kind(path)](path, self._field)
                _check_unchanged(file)
                bar.update(file.size)


def find_files(patterns: list[str]) -> list[Path]:
    """Return the absolute paths that files, folders and globs name, each once; InputError for one that names none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            place = Path(pattern).expanduser()
        except RuntimeError:  # "~" of a user that this machine does not have
            raise InputError(f"data.paths: {pattern} is the home of nobody here") from None
        if place.is_file():
            if not _is_readable_kind(place):
                raise InputError(f"data.paths: {pattern} is none of {', '.join(SUFFIXES)} (each may end in .gz)")
            matches = [place]
        elif place.is_dir():
            matches = _text_files_below(place)
        else:
            places = [Path(match) for match in sorted(glob.glob(str(place), recursive=True))]  # noqa: PTH207 - absolute globs
            matches = [file for match in places for file in (_text_files_below(match) if match.is_dir() else [match])]
            matches = [file for file in matches if _is_readable_kind(file)]
        if not matches:
            raise InputError(f"data.paths: {pattern} matches no {', '.join(SUFFIXES)} file (each may end in .gz)")
        found |= dict.fromkeys(match.resolve() for match in matches)
    return list(found)


def _text_files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and _is_readable_kind(path))


def _kind(path: Path) -> str:
    """Return the suffix that says how to read a file, without .gz."""
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix


def _is_readable_kind(path: Path) -> bool:
    return _kind(path) in SUFFIXES


# ---------------------------------------------------------------------------------------- known by their hash


def _known_files(cache_dir: Path) -> dict[str, TextFile]:
    """Return path -> file as recorded by the stores built so far, to spare the hashing of files that did not change.

    A file is taken for unchanged when path, size and time of modification are what they were.
    """
    known = {}
    for manifest in sorted(cache_dir.glob("*/manifest.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # a damaged manifest spares nothing
            for record in json.loads(manifest.read_text(encoding="utf-8"))["source"]["files"]:
                known[record["path"]] = TextFile(**record)
    return known


def _identify(path: Path, known: dict[str, TextFile]) -> TextFile:
    status = path.stat()
    before = known.get(str(path))
    unchanged = before is not None and (before.size, before.mtime_ns) == (status.st_size, status.st_mtime_ns)
    if before is not None and before.settled and unchanged:
        return before
    settled = time.time_ns() - status.st_mtime_ns > _SETTLED_SECONDS * 10**9
    with _readable(path):
        return TextFile(str(path), status.st_size, status.st_mtime_ns, settled, sha256_of(path))


def _check_unchanged(file: TextFile) -> None:
    status = Path(file.path).stat()
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise InputError(f"{file.path}: changed while it was read; run again once it is complete")


# ---------------------------------------------------------------------------------------- readers


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a file (undecodable text, a torn archive, no access) into an InputError naming it."""
    try:
        yield
    except UnicodeDecodeError:
        raise InputError(f"{path}: {_first_undecodable(path)}; convert the file to UTF-8") from None
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None


def _first_undecodable(path: Path) -> str:
    """Return where the first byte stands that is not UTF-8."""
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
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _read_txt(path: Path, _field: str) -> Iterator[str]:
    with io.TextIOWrapper(_open_bytes(path), encoding="utf-8-sig") as handle:  # universal newlines: CRLF comes as "\n"
        head = handle.read(WHOLE_FILE_CHARACTERS + 1)
        if len(head) <= WHOLE_FILE_CHARACTERS:
            yield head.strip("\n")
            return
        handle.seek(0)
        piece = ""
        while line := handle.readline(LONGEST_PIECE_CHARACTERS):
            piece += line
            if len(piece) >= LONGEST_PIECE_CHARACTERS or (len(piece) >= PIECE_CHARACTERS and not line.strip()):
                yield piece.strip("\n")
                piece = ""
        yield piece.strip("\n")


def _read_jsonl(path: Path, field: str) -> Iterator[str]:
    with _open_bytes(path) as handle:
        for number, line in enumerate(handle, start=1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                row = json.loads(text) if text else None
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number} is not JSON: {error.msg} (column {error.colno})") from None
            if text:
                yield _text_of(row, field, f"{path}: line {number}")


def _text_of(row: Any, field: str, place: str) -> str:
    """Return the text of a JSON row. Raises InputError naming the place if it has none."""
    if not isinstance(row, dict):
        raise InputError(f"{place} is not a JSON object but {type(row).__name__}")
    if field not in row:
        raise InputError(
            f"{place} has no {field!r}; set data.text_field to one of: {', '.join(map(str, row)) or 'none'}"
        )
    text = row[field]
    if not isinstance(text, str):
        raise InputError(f"{place}: {field!r} is not text but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{place}: {field!r} holds half a surrogate pair, which is no character") from None
    return text.replace("\r\n", "\n")


def _read_parquet(path: Path, field: str) -> Iterator[str]:
    from pyarrow import ArrowException, parquet  # a store already built need not wait for it

    row = 0
    with _open_seekable(path) as handle:
        try:
            table = parquet.ParquetFile(handle)
            _check_column(path, field, table.schema_arrow)
            for batch in table.iter_batches(batch_size=256, columns=[field]):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if text is None:
                        raise InputError(f"{path}: row {row} of column {field!r} is null; drop such rows")
                    yield text.replace("\r\n", "\n")
        except (ArrowException, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read as parquet after row {row}: {reason}") from None


def _check_column(path: Path, field: str, schema: pyarrow.Schema) -> None:
    from pyarrow import types

    if field not in schema.names:
        raise InputError(f"{path}: has no column {field!r}; set data.text_field to one of: {', '.join(schema.names)}")
    kind = schema.field(field).type
    if not (types.is_string(kind) or types.is_large_string(kind)):
        raise InputError(f"{path}: column {field!r} is not text but {kind}")


@contextlib.contextmanager
def _open_seekable(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading here and there; a gzipped one allows that only unpacked, to a temporary file."""
    if path.suffix != ".gz":
        with path.open("rb") as handle:
            yield handle
        return
    with tempfile.TemporaryFile() as unpacked, gzip.open(path, "rb") as packed:
        shutil.copyfileobj(packed, unpacked)
        unpacked.seek(0)
        yield unpacked


_READERS = {".txt": _read_txt, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
