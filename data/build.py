"""How a store is made: one reading of the corpus, a tokenizer trained or loaded, the documents encoded and split."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import platform
from array import array
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from common.errors import InputError
from common.files import sha256_of

from .corpora import Corpus, DataConfig
from .split import Document, by_hash, by_weight
from .tokenizer import encoder_of, fingerprint, train_bpe, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")
MANIFEST = "manifest.json"
_BATCH_CHARACTERS = 4 << 20
"""Text encoded at once: enough documents for every core, some tens of megabytes of memory."""


def build_store(folder: Path, data: DataConfig, corpus: Corpus, identity: dict[str, Any], *, progress: bool) -> None:
    """Fill ``folder`` with the store of a configuration; the manifest comes last.

    Documents of white space only are left out. Raises InputError for a corpus that cannot be read or is too small.
    """
    stream: Iterator[str] = (text for text in corpus.documents(progress=progress) if text.strip())
    spool = folder / "documents.jsonl"
    tokenizer = corpus.tokenizer()
    if tokenizer is None:
        count = _write_spool(spool, itertools.islice(stream, corpus.tokenizer_documents))
        tokenizer = train_bpe(_read_spool(spool), corpus.options.vocab_size, progress=progress)
        spooled = tqdm(_read_spool(spool), desc="encoding", total=count, unit="doc", disable=not progress)
        stream = itertools.chain(spooled, stream)
    documents = _encoded(tokenizer, stream, corpus.max_tokens)
    vocab_size = vocabulary_size(tokenizer)
    dtype = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    fraction = data.validation_fraction
    if corpus.may_be_cut:
        encode = functools.partial(_encode_one, tokenizer)
        assigned = by_weight(documents, fraction, encode)
    else:
        assigned = by_hash(documents, fraction)
    splits, text_sha256 = _write_splits(folder, assigned, dtype, fraction)
    spool.unlink(missing_ok=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    manifest = {
        "identity": identity,
        "source": corpus.describe(),
        "data": data.model_dump(exclude={"cache_dir", "sequence_length"}),
        "documents": sum(split["documents"] for split in splits.values()),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "text_sha256": text_sha256,
        "splits": splits,
        "dtype": dtype.str,
        "vocab_size": vocab_size,
        "eos_id": tokenizer.eos_token_id,
        "tokenizer_sha256": fingerprint(tokenizer),
        "versions": _versions("numpy", "tokenizers", "transformers"),
    }
    text = json.dumps(manifest, indent=1)  # in ASCII, because the name of a file need not be Unicode
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _versions(*packages: str) -> dict[str, str]:
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _write_spool(spool: Path, documents: Iterable[str]) -> int:
    """Write documents a line each; return how many. The source is read once, the file as often as needed."""
    count = 0
    with spool.open("w", encoding="utf-8") as handle:
        for text in documents:
            handle.write(json.dumps(text) + "\n")
            count += 1
    return count


def _read_spool(spool: Path) -> Iterator[str]:
    with spool.open(encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)


def _encoded(
    tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], max_tokens: int | None
) -> Iterator[Document]:
    """Yield the documents encoded, on all cores, until the source or the token budget ends."""
    encoder = encoder_of(tokenizer)
    tokens = 0
    for texts in _batches(documents):
        for text, encoding in zip(texts, encoder.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            raw = text.encode()
            ids = np.array([*encoding.ids, tokenizer.eos_token_id], np.uint32)
            yield Document(text, ids, hashlib.sha256(raw).digest(), len(raw))
            tokens += len(ids)
            if max_tokens is not None and tokens >= max_tokens:
                return


def _encode_one(tokenizer: PreTrainedTokenizerFast, text: str) -> Document:
    return next(_encoded(tokenizer, [text], None))


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# ---------------------------------------------------------------------------------------- splits


def _write_splits(
    folder: Path, documents: Iterable[tuple[Document, bool]], dtype: np.dtype, fraction: float
) -> tuple[dict[str, dict[str, Any]], str]:
    """Write both splits; return documents, tokens, bytes and hash of each, and the hash of the whole text.

    The hash of the text is the SHA-256 of the documents' SHA-256 digests, in order.
    """
    text_hash = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        train, validation = (stack.enter_context(_SplitWriter(folder, name, dtype, fraction)) for name in SPLITS)
        for document, held_out in documents:
            text_hash.update(document.sha256)
            (validation if held_out else train).add(document)
        if train.documents + validation.documents < 2:
            raise InputError(
                f"data: the corpus has {train.documents + validation.documents} documents with text in them; some text for "
                "training and some for validation is the least"
            )
        if validation.documents == 0:
            validation.add(train.take())
        elif train.documents == 0:
            train.add(validation.take())
    counts = {writer.name: writer.summary() for writer in (train, validation)}
    return counts, text_hash.hexdigest()


class _SplitWriter:
    """Writes one split, and keeps back until the end the document nearest to the border with the other.

    That one can still change sides if the other split stays empty, as happens with few documents.
    """

    def __init__(self, folder: Path, name: str, dtype: np.dtype, border: float) -> None:
        self.name = name
        self.documents = 0
        self._bytes = 0
        self._tokens = 0
        self._dtype = dtype
        self._border = border
        self._kept_back: Document | None = None
        self._starts = array("q")
        self._ids_file = folder / f"{name}.bin"
        self._starts_file = folder / f"{name}_documents.npy"

    def __enter__(self) -> _SplitWriter:
        self._handle = self._ids_file.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._kept_back is not None:
            self._write(self._kept_back)
        self._handle.close()
        np.save(self._starts_file, np.array(self._starts, np.int64), allow_pickle=False)

    def add(self, document: Document) -> None:
        """Add a document to this split."""
        self.documents += 1
        self._bytes += document.size
        if self._kept_back is None:
            self._kept_back = document
            return
        nearer, farther = sorted((self._kept_back, document), key=lambda one: abs(one.place - self._border))
        self._write(farther)
        self._kept_back = nearer

    def take(self) -> Document:
        """Take out the document nearest to the border."""
        document, self._kept_back = self._kept_back, None
        assert document is not None, "a split that has documents has kept one back"
        self.documents -= 1
        self._bytes -= document.size
        return document

    def _write(self, document: Document) -> None:
        self._starts.append(self._tokens)
        self._tokens += len(document.ids)
        self._handle.write(document.ids.astype(self._dtype).tobytes())

    def summary(self) -> dict[str, Any]:
        """Return documents, tokens, bytes of text and the SHA-256 of the file of token ids, once it is closed."""
        return {
            "documents": self.documents,
            "tokens": self._tokens,
            "bytes": self._bytes,
            "sha256": sha256_of(self._ids_file),
        }
