"""The default corpus: docstrings of the Python standard library and of the packages in requirements.txt.

It gives real technical English on every machine that can run the project, without a download. Packages are found on
``sys.path`` and their sources read by :mod:`data.docstrings`, without importing them.
"""

import contextlib
import hashlib
import importlib.machinery
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import sysconfig
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from tqdm import tqdm

from common.errors import InputError
from common.processes import ending
from common.section import MOST

from . import docstrings
from .corpora import CORPORA, DataConfig, ProseCorpus, ProseOptions, batched

RULES_VERSION = 1
"""Version of the extraction rules here and in data/docstrings.py; raise it with any change to them."""

STANDARD_LIBRARY = "python"
"""Name of the standard library among the packages."""

PACKAGES = (
    "accelerate",
    "datasets",
    "filelock",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "omegaconf",
    "pandas",
    "pyarrow",
    "pydantic",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)
"""The packages of requirements.txt whose import and distribution names agree; missing ones are skipped."""

REPEATED_PARAGRAPH_CHARACTERS = 60
"""Longer paragraphs are kept once: repeated argument descriptions are a tenth of these docstrings."""

_LEFT_OUT_FOLDERS = frozenset(
    {
        *("__pycache__", "dist-packages", "site-packages"),
        *("test", "tests", "_tests", "idle_test"),
        *("vendor", "vendored", "_vendor", "_vendored"),
    }
)
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_CHUNK_BYTES = 2_000_000
"""Source that one worker reads: half a second of work, against which its start hardly counts."""


class SourceFile(NamedTuple):
    """A source file, its package and its path in the package."""

    package: str
    name: str
    path: Path
    size: int


@CORPORA.register("pydoc")
class PydocCorpus(ProseCorpus):
    """Docstrings of the Python standard library and of the installed packages of requirements.txt, read in place.

    A document is a source file's docstrings, deduplicated, in the order of package and path. ``packages``: package name -> its
    folder or module file; by default the standard library and the installed PACKAGES.
    """

    @dataclass(frozen=True)
    class Options(ProseOptions):
        max_documents: Annotated[int, Field(ge=10, le=MOST)] | None = None
        """Use only this many documents, selected by a hash of the file names; null means all."""

    def __init__(self, options: Options, data: DataConfig, packages: Mapping[str, Path] | None = None) -> None:
        super().__init__(options, data)
        self._max_documents = options.max_documents
        self._packages = installed_packages() if packages is None else dict(sorted(packages.items()))
        self._counts: dict[str, dict[str, Any]] = {
            name: {"version": version(name), "files": 0, "files_not_parsed": 0, "documents": 0, "bytes": 0}
            for name in self._packages
        }

    def identity(self) -> dict[str, Any]:
        """Version of the extraction rules, the packages' versions and the number of documents."""
        return {
            "kind": "pydoc",
            "rules": RULES_VERSION,
            "versions": {name: counts["version"] for name, counts in self._counts.items()},
            "max_documents": self._max_documents,
        }

    def describe(self) -> dict[str, Any]:
        """Version, files, unparsable files, documents and bytes of each package."""
        return {"packages": self._counts}

    def documents(self, *, progress: bool) -> Iterator[str]:
        """Yield one document per source file: its docstrings that are new, joined by blank lines."""
        files = [file for package, place in self._packages.items() for file in source_files(package, place)]
        if self._max_documents is not None:
            files.sort(key=lambda file: hashlib.sha256(f"{file.package}/{file.name}".encode()).digest())
        unseen = _Unseen()
        yielded = 0
        with (
            contextlib.closing(_extract(files)) as extracted,
            tqdm(total=len(files), desc="docstrings", unit="file", disable=not progress) as bar,
        ):
            for file, documents in extracted:
                bar.update()
                counts = self._counts[file.package]
                counts["files"] += 1
                counts["files_not_parsed"] += documents is None
                for texts in documents or []:
                    document = "\n\n".join(kept for text in texts if (kept := unseen.part(text)))
                    if not document:
                        continue
                    counts["documents"] += 1
                    counts["bytes"] += len(document.encode())
                    yield document
                    yielded += 1
                    if yielded == self._max_documents:
                        return


def installed_packages() -> dict[str, Path]:
    """Name -> folder (or module file) of the standard library and of the installed PACKAGES."""
    found = {STANDARD_LIBRARY: Path(sysconfig.get_path("stdlib"))}
    for name in PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(name)  # searches sys.path without running the package
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            found[name] = origin.parent if origin.name == "__init__.py" else origin
    return dict(sorted(found.items()))


def version(package: str) -> str | None:
    """Version of a distribution, of Python for the standard library, None for other names."""
    if package == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_files(package: str, place: Path) -> list[SourceFile]:
    """The source files below ``place``, sorted by relative path, without tests and vendored code."""
    if place.is_file():
        return [SourceFile(package, place.name, place, place.stat().st_size)]
    files = []
    for folder, subfolders, names in os.walk(place):
        left_out = _LEFT_OUT_FOLDERS
        if Path(folder).name == "testing":  # numpy.testing and its like are public; torch.testing._internal is tests
            left_out = left_out | {"_internal"}
        subfolders[:] = [name for name in subfolders if name not in left_out]
        paths = [Path(folder, name) for name in names if name.endswith(".py") and not _is_test(name)]
        files += [SourceFile(package, path.relative_to(place).as_posix(), path, path.stat().st_size) for path in paths]
    return sorted(files, key=lambda file: file.name)


def _is_test(name: str) -> bool:
    return name.startswith("test_") or name.endswith("_test.py") or name == "conftest.py"


class _Unseen:
    """Filters out repeated docstrings and long paragraphs, ignoring white space."""

    def __init__(self) -> None:
        self._docstrings: set[bytes] = set()
        self._paragraphs: set[bytes] = set()

    def part(self, docstring: str) -> str:
        """The prose in a docstring that is new; empty if that is too little. Paragraphs that start with a doctest prompt
        are dropped."""
        if not _add(self._docstrings, docstring):
            return ""
        kept = [paragraph for paragraph in _PARAGRAPH_BREAK.split(docstring) if self._is_wanted(paragraph)]
        text = "\n\n".join(kept).strip()
        return text if len(text) >= docstrings.MINIMUM_CHARACTERS else ""

    def _is_wanted(self, paragraph: str) -> bool:
        if paragraph.lstrip().startswith(">>>"):
            return False
        return len(paragraph) < REPEATED_PARAGRAPH_CHARACTERS or _add(self._paragraphs, paragraph)


def _add(seen: set[bytes], text: str) -> bool:
    """Record a text by a hash that ignores white space; True if it is new."""
    key = hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()
    before = len(seen)
    seen.add(key)
    return len(seen) > before


def _extract(files: Sequence[SourceFile]) -> Generator[tuple[SourceFile, list[list[str]] | None]]:
    """Yield each file with what read_docstrings finds in it, in order, using one process per core."""
    chunks = list(batched(files, lambda file: file.size, _CHUNK_BYTES))
    executor = ThreadPoolExecutor(max_workers=os.cpu_count())  # its threads only wait for worker processes
    try:
        for chunk, found in zip(chunks, executor.map(_read_chunk, chunks), strict=True):
            yield from zip(chunk, found, strict=True)
    finally:
        executor.shutdown(cancel_futures=True)


def _read_chunk(chunk: Sequence[SourceFile]) -> list[list[list[str]] | None]:
    worker = [sys.executable, "-I", docstrings.__file__]
    paths = json.dumps([str(file.path) for file in chunk])
    finished = subprocess.run(worker, input=paths, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own file
    if finished.returncode:
        how = ending(finished.returncode)
        raise InputError(
            f"data.kind=pydoc: the process that reads docstrings, {chunk[0].path} first, ended: {how}; run again"
        )
    return [json.loads(line) for line in finished.stdout.splitlines()]
