"""Local files as a corpus: which files they are, and by what they are known to be unchanged. data/readers.py has the
formats, and the rules by which files become documents."""

import contextlib
import glob
import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from tqdm import tqdm

from common.errors import InputError
from common.files import folders_below, paths_below, sha256_of
from common.section import Place, Text

from .corpora import CORPORA, DataConfig, ProseCorpus, ProseOptions
from .readers import RULES_VERSION, SUFFIXES, format_of, read_documents, readable

_FORMATS = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file (.gz may follow)"
_PLAIN = "; rename a file of plain text, or a link to it, to end in .txt"
_SETTLED_SECONDS = 2
"""A file changed more recently may change again within one tick of its clock, so its time proves nothing."""
_SUFFIXES_LISTED = 5


class SourceFile(NamedTuple):
    """A file of a corpus, ``settled`` if its modification time was old enough when it was hashed to identify it."""

    path: str
    real_path: str
    """The path with links resolved."""
    size: int
    mtime_ns: int
    settled: bool
    sha256: str

    @property
    def name(self) -> str:
        """Without its folder."""
        return Path(self.path).name


@CORPORA.register("text")
class TextCorpus(ProseCorpus):
    """Local files: .txt, .json, .jsonl, .parquet, each also gzipped. A document over 64 Ki characters is cut into pieces.

    Documents come in the order of ``data.paths``, sorted within a folder or glob.
    """

    may_be_cut = True

    @dataclass(frozen=True, kw_only=True)
    class Options(ProseOptions):
        paths: Annotated[list[Place], Field(min_length=1)]
        """Files, folders (searched recursively, links followed) and globs. Files found but not read are reported."""
        text_field: Text = "text"
        """The column or key that holds the text, for .json, .jsonl and .parquet."""

    def __init__(self, options: Options, data: DataConfig) -> None:
        super().__init__(options, data)
        self._field = options.text_field
        cache_dir = Path(data.cache_dir)
        paths, self.remarks = find_files(options.paths, cache_dir)
        known = known_files(cache_dir)
        self._files = [identify(path, known) for path in paths]

    def identity(self) -> dict[str, Any]:
        """Name, size and SHA-256 of each file (no folders: the same files elsewhere are the same corpus)."""
        structured = any(format_of(Path(file.path)) != ".txt" for file in self._files)
        return {
            "kind": "text",
            "rules": RULES_VERSION,
            "text_field": self._field if structured else None,
            "files": [[file.name, file.size, file.sha256] for file in self._files],
        }

    def describe(self) -> dict[str, Any]:
        """The files with sizes and times, by which the next run recognises them without hashing."""
        return {"files": [file._asdict() for file in self._files]}

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield the documents. Raises InputError naming file and line for invalid content."""
        total = sum(file.size for file in self._files)
        with tqdm(total=total, desc="reading", unit="B", unit_scale=True, disable=not progress) as bar:
            for file in self._files:
                yield from read_documents(Path(file.path), self._field)
                check_unchanged(file)
                bar.update(file.size)


def find_files(patterns: list[str], cache_dir: Path) -> tuple[list[Path], list[str]]:
    """Absolute paths named by files, folders and globs, each file once, and a line for each pattern with unread files.

    A file's format follows from the name it is found under, which may differ from a link's target. Token stores in
    ``cache_dir`` are skipped. Raises InputError for a pattern that names no file, and for broken links.
    """
    found: dict[str, Path] = {}
    left_out: dict[str, list[Path]] = {}
    for pattern in patterns:
        paths = _paths_of(pattern, cache_dir)
        matches = [path for path in paths if format_of(path) in SUFFIXES]
        if not matches:
            raise InputError(f"data.paths: {pattern} {_no_match(pattern, paths)}")
        for path in matches:
            found.setdefault(_real_path(path), path.absolute())
        left_out[pattern] = [path for path in paths if format_of(path) not in SUFFIXES]
    remarks = []
    for pattern, paths in left_out.items():
        # Another link may give a file a readable name.
        if unread := [path for path in paths if os.path.realpath(path) not in found]:
            remarks.append(f"data.paths: {pattern}: not read, being no {_FORMATS}: {_counted(unread)}")
    return list(found.values()), remarks


def _paths_of(pattern: str, cache_dir: Path) -> list[Path]:
    """What a file, folder or glob of ``data.paths`` names, except folders."""
    place = Path(pattern)
    if place.is_dir():
        return paths_below(place, cache_dir)
    if os.path.lexists(place):
        return [place]
    matches = [Path(match) for match in sorted(set(_glob(pattern, cache_dir)))]
    return [path for match in matches for path in (paths_below(match, cache_dir) if match.is_dir() else [match])]


def _glob(pattern: str, cache_dir: Path) -> Iterator[str]:
    """Yield what a glob matches; unlike glob's own, ``**`` follows links, into each folder once."""
    parts = Path(pattern).parts
    if "**" not in parts:
        yield from glob.glob(str(Path(pattern)))  # noqa: PTH207 - absolute globs
        return
    before = Path(*parts[: parts.index("**")])
    after = Path(*parts[parts.index("**") + 1 :])
    for top in glob.glob(str(before)):  # noqa: PTH207
        for folder, _ in folders_below(Path(top), cache_dir):
            if any(part.startswith(".") for part in folder.relative_to(top).parts):
                continue  # as glob does
            if after.parts:
                yield from _glob(str(Path(glob.escape(str(folder))) / after), cache_dir)
            else:
                yield str(folder)


def _no_match(pattern: str, paths: list[Path]) -> str:
    if Path(pattern).is_file():
        return f"is no {_FORMATS}{_PLAIN}"
    text = f"matches no {_FORMATS}"
    if paths:
        text += f", only {_counted(paths)}{_PLAIN}"
    literal = next((str(place) for place in (Path(pattern), *Path(pattern).parents) if place.is_dir()), "")
    wildcard = next((part for part in Path(pattern).parts if "[" in part), None)
    if wildcard is not None and wildcard in Path(literal).parts:
        text += f"; brackets are a wildcard in a glob: write {glob.escape(wildcard)} for the folder {wildcard}"
    return text


def _real_path(path: Path) -> str:
    """The path with links resolved. Raises InputError if there is no file."""
    if not path.is_file():
        leads = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "is no regular file"
        raise InputError(f"data.paths: {path} {leads}; restore or remove it")
    return os.path.realpath(path)


def _counted(paths: Iterable[Path]) -> str:
    """How many files of which kinds these are: "3 x .md, 2 x without suffix"."""
    counts = Counter(_suffix_of(path) for path in paths)
    more = ["..."] if len(counts) > _SUFFIXES_LISTED else []
    return ", ".join([f"{count} x {kind}" for kind, count in counts.most_common(_SUFFIXES_LISTED)] + more)


def _suffix_of(path: Path) -> str:
    if not path.exists():
        return "broken link"
    packed = path.suffix.lower() == ".gz"
    return (format_of(path) if packed else "") + path.suffix or "without suffix"


def known_files(cache_dir: Path) -> dict[str, SourceFile]:
    """Real path -> file as recorded by existing stores, so that unchanged files need no hashing. A file counts as unchanged
    if path, size and modification time are the same."""
    known = {}
    for manifest in sorted(cache_dir.glob("*/manifest.json")):
        # A damaged manifest spares nothing.
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            for record in json.loads(manifest.read_text(encoding="utf-8"))["source"]["files"]:
                known[record["real_path"]] = SourceFile(**record)
    return known


def identify(path: Path, known: dict[str, SourceFile]) -> SourceFile:
    """The file at ``path`` with its hash, which is taken only if the file is not among the ``known`` ones."""
    status = path.stat()
    real_path = os.path.realpath(path)
    before = known.get(real_path)
    if before and before.settled and (before.size, before.mtime_ns) == (status.st_size, status.st_mtime_ns):
        return before._replace(path=str(path))
    settled = time.time_ns() - status.st_mtime_ns > _SETTLED_SECONDS * 10**9
    with readable(path):
        return SourceFile(str(path), real_path, status.st_size, status.st_mtime_ns, settled, sha256_of(path))


def check_unchanged(file: SourceFile) -> None:
    """Raise InputError if a file is not what it was when it was identified."""
    status = Path(file.path).stat()
    if (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
        raise InputError(f"{file.path}: changed while it was read; run again once it is complete")
