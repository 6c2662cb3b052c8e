"""The token store: a corpus, tokenised once, as memory-mapped files with a manifest.

    <cache_dir>/<key>/train.bin, validation.bin       token ids, uint16 or uint32, little-endian; or, of data.kind=tokens,
                      train_spans.npy, ...            int64: where in the source's files they are (data/tokens/spans.py)
                      train_documents.npy, ...        int64: where each document starts
                      tokenizer/                      in the transformers format
                      manifest.json                   what it was made from, and hashes of its contents

The key is a hash of the corpus's and the tokenizer's identity: a changed source is another store, and an unchanged one is
never tokenised again. A store is built in a sibling folder and renamed when complete.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

from common.errors import InputError, note
from common.files import digest_of, flush_to_disk, sha256_of

from .build import MANIFEST, SPLITS, build_store
from .corpora import DataConfig, TokenisedCorpus
from .kinds import make_corpus
from .split import is_near
from .text import SourceFile
from .tokenizer import fingerprint
from .tokens.build import SPANS
from .tokens.spans import SpannedIds, TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT_VERSION = 1
"""Version of the file layout and of how whole documents are split; raise it with any change to either."""


@dataclass(frozen=True)
class Split:
    """The tokens of one split, 1-D and memory-mapped, and the int64 index of each document's first token."""

    ids: TokenIds
    document_starts: np.ndarray


@dataclass(frozen=True)
class TokenStore:
    """An open token store. Every document ends with ``eos_id``, unless the text was tokenised elsewhere (data.kind=tokens);
    every id is below ``vocab_size``."""

    path: Path
    manifest: dict[str, Any]
    train: Split
    validation: Split
    vocab_size: int
    eos_id: int

    def manifest_hash(self) -> str:
        """SHA-256 of the manifest, which holds the hashes of everything else."""
        return digest_of(self.manifest)

    def verify(self) -> None:
        """Raise InputError naming a file whose content has changed since it was written. Reads all tokens once."""
        written = "{}.bin"
        if isinstance(self.train.ids, SpannedIds):
            written = SPANS
            for place, record in zip(self.train.ids.paths, self.manifest["source"]["files"], strict=True):
                _check_content(place, record["sha256"])
        for name in SPLITS:
            file = self.path / written.format(name)
            if sha256_of(file) != self.manifest["splits"][name]["sha256"]:
                raise InputError(
                    f"{file}: not what was written (its SHA-256 differs); delete {self.path} to build it again"
                )
        tokenizer: Any = self.load_tokenizer()
        if fingerprint(tokenizer) != self.manifest["tokenizer_sha256"]:
            folder = self.path / "tokenizer"
            raise InputError(
                f"{folder}: not the tokenizer that the tokens were made with; delete {self.path} to build it again"
            )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer whose ids the store holds."""
        from transformers import AutoTokenizer  # two seconds

        return AutoTokenizer.from_pretrained(self.path / "tokenizer", local_files_only=True, trust_remote_code=False)


def open_store(data: DataConfig, *, progress: bool = True) -> TokenStore:
    """Open a configuration's store, building it first if its source or tokenizer is new.

    Any number of processes may call this at once: one builds, the others wait. Raises InputError for a source that cannot
    be read, too little text for two splits, or a damaged store.
    """
    corpus = make_corpus(data)
    identity = {
        "format": FORMAT_VERSION,
        "corpus": corpus.identity(),
        "tokenizer": corpus.tokenizer_identity(),
        "validation_fraction": corpus.validation_fraction,
    }
    path = Path(data.cache_dir) / digest_of(identity)[:16]
    for remark in corpus.remarks if progress else ():
        note(remark)
    if not path.exists():

        def build(folder: Path) -> None:
            if progress:
                told = f"making the tokens of the {data.kind} corpus, once for all runs and probes of it, in {path}"
                print(told, file=sys.stderr)
            build_store(folder, data, corpus, identity, progress=progress)

        _create(path, build)
    store = read_store(path, corpus.files if isinstance(corpus, TokenisedCorpus) else ())
    if progress and corpus.validation_fraction is not None:
        _note_share(store, corpus.validation_fraction)
    return store


def _note_share(store: TokenStore, fraction: float) -> None:
    """Tell the user if the share held out is not the one requested."""
    held_out, tokens = len(store.validation.ids), len(store.train.ids) + len(store.validation.ids)
    if not is_near(held_out / tokens, fraction):
        note(
            f"data.validation_fraction={fraction:g}: {held_out / tokens:.2g} is held out ({held_out:,} of {tokens:,} tokens, "
            f"{len(store.validation.document_starts):,} of {store.manifest['documents']:,} documents); the documents are too "
            "few, or too unequal, for the share asked for"
        )


def read_store(path: Path, files: Sequence[SourceFile] = ()) -> TokenStore:
    """Open the store in a folder. ``files``: where files that it may refer to are now, if that is known. Raises InputError naming
    a file that is missing or does not match the manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path / MANIFEST}: not a store's manifest ({error}); delete the folder {path}") from None
    try:
        read = _spans_reader(path, manifest, files) if "dtypes" in manifest else _read_ids
        train, validation = (_read_split(path, name, manifest, read) for name in SPLITS)
        return TokenStore(path, manifest, train, validation, manifest["vocab_size"], manifest["eos_id"])
    except (LookupError, TypeError, ValueError) as error:  # JSON, but not what a store's manifest says
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{path / MANIFEST}: not a store's manifest ({reason}); delete the folder {path}") from None


def _read_split(
    path: Path, name: str, manifest: dict[str, Any], read: Callable[[Path, str, dict[str, Any]], TokenIds]
) -> Split:
    ids, starts = read(path, name, manifest), _loaded(path / f"{name}_documents.npy")
    documents = manifest["splits"][name]["documents"]
    if len(starts) != documents:
        raise InputError(
            f"{path / name}_documents.npy: {len(starts)} documents where the manifest counts {documents}; delete {path}"
        )
    return Split(ids, starts)


def _loaded(file: Path) -> np.ndarray:
    try:
        array: np.ndarray = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file}: cannot be read ({error}); delete {file.parent}") from None
    return array


def _read_ids(path: Path, name: str, manifest: dict[str, Any]) -> np.memmap:
    tokens, dtype = manifest["splits"][name]["tokens"], np.dtype(manifest["dtype"])
    file = path / f"{name}.bin"
    size = file.stat().st_size if file.is_file() else 0
    if size != tokens * dtype.itemsize:
        raise InputError(f"{file}: {size} bytes where the manifest counts {tokens} tokens; delete {path}")
    return np.memmap(file, dtype=dtype, mode="r")


def _spans_reader(
    path: Path, manifest: dict[str, Any], files: Sequence[SourceFile]
) -> Callable[[Path, str, dict[str, Any]], SpannedIds]:
    """What reads a split of a store that refers to the source's files. Raises InputError for a file that has changed."""
    now = {file.sha256: Path(file.path) for file in files}
    recorded = [SourceFile(**record) for record in manifest["source"]["files"]]
    places = [now.get(file.sha256) or _unchanged(file) for file in recorded]
    dtypes = [np.dtype(dtype) for dtype in manifest["dtypes"]]

    def read(path: Path, name: str, manifest: dict[str, Any]) -> SpannedIds:
        file = path / SPANS.format(name)
        ids = SpannedIds(places, dtypes, _loaded(file), np.dtype(manifest["dtype"]))
        if len(ids) != manifest["splits"][name]["tokens"]:
            tokens = manifest["splits"][name]["tokens"]
            raise InputError(f"{file}: {len(ids)} tokens where the manifest counts {tokens}; delete {path}")
        return ids

    return read


def _unchanged(file: SourceFile) -> Path:
    """Where a file is that a store refers to. Raises InputError if it is not as it was: in size and time, or, if the time proves
    nothing, in content."""
    place = Path(file.real_path)
    if not place.is_file():
        raise InputError(
            f"{place}: is gone, and a token store refers to it; restore it, or open the store by its configuration"
        )
    status = place.stat()
    if (status.st_size, status.st_mtime_ns, True) != (file.size, file.mtime_ns, file.settled):
        _check_content(place, file.sha256)
    return place


def _check_content(place: Path, sha256: str) -> None:
    if sha256_of(place) != sha256:
        raise InputError(f"{place}: has changed since a token store was made that refers to it; restore it")


def _create(path: Path, build: Callable[[Path], None]) -> None:
    """Let ``build`` fill a folder and rename it to ``path`` when complete, unless another process was faster."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if path.exists():
                return
            _remove_remains(path.parent, held=path)
            folder = path.with_suffix(".building")
            try:
                folder.mkdir()
                build(folder)
                for file in sorted(folder.rglob("*")):
                    flush_to_disk(file)
                flush_to_disk(folder)
                folder.rename(path)
                flush_to_disk(path.parent)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise InputError(f"data.cache_dir={path.parent}: the store cannot be written: {error}") from None


def _lock_of(path: Path) -> filelock.BaseFileLock:
    return filelock.FileLock(path.with_suffix(".lock"))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a store's lock; the system releases it if the process dies."""
    lock = _lock_of(path)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        print(f"waiting for another process that is building {path}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_remains(cache_dir: Path, held: Path) -> None:
    """Remove folders of killed builds: those whose lock is free, and that of ``held``, whose lock we hold."""
    for remains in cache_dir.glob("*.building"):
        store = remains.with_suffix("")
        with contextlib.suppress(filelock.Timeout), contextlib.ExitStack() as stack:
            if store != held:
                stack.enter_context(_lock_of(store).acquire(blocking=False))
            shutil.rmtree(remains)
