"""Build a store: read the corpus once, train or load a tokenizer, encode and split the documents."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import platform
from array import array
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from common.errors import InputError
from common.files import sha256_of

from .corpora import Corpus, DataConfig, TokenisedCorpus, batched
from .split import Document, by_hash, by_weight
from .tokenizer import encoder_of, fingerprint, train_bpe, vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPLITS = ("train", "validation")
MANIFEST = "manifest.json"
_BATCH_CHARACTERS = 4 << 20
"""Characters encoded at once: enough documents for every core, some tens of megabytes of memory."""


class Filled(NamedTuple):
    """What a store has been filled with: tokenizer, documents, tokens and hash of each split, hash of the text if there is one,
    and the id that stands between documents."""

    tokenizer: PreTrainedTokenizerFast
    splits: dict[str, dict[str, Any]]
    text_sha256: str | None
    eos_id: int


def build_store(folder: Path, data: DataConfig, corpus: Corpus, identity: dict[str, Any], *, progress: bool) -> None:
    """Fill ``folder`` with a configuration's store; the manifest is written last. Documents of only white space are
    skipped. Raises InputError for a corpus that cannot be read or is too small."""
    if isinstance(corpus, TokenisedCorpus):
        filled = _refer(folder, corpus, progress=progress)
        sources = {"dtypes": [dtype.str for dtype in corpus.dtypes]}
    else:
        filled, sources = _encode(folder, corpus, data.validation_fraction, progress=progress), {}
    filled.tokenizer.save_pretrained(folder / "tokenizer")
    sizes = [split["bytes"] for split in filled.splits.values()]
    vocab_size = vocabulary_size(filled.tokenizer)
    manifest = {
        "identity": identity,
        "source": corpus.describe(),
        **sources,
        "data": data.model_dump(exclude={"cache_dir", "sequence_length"}),
        "documents": sum(split["documents"] for split in filled.splits.values()),
        "bytes": None if None in sizes else sum(sizes),
        "text_sha256": filled.text_sha256,
        "splits": filled.splits,
        "dtype": _dtype_for(vocab_size).str,
        "vocab_size": vocab_size,
        "eos_id": filled.eos_id,
        "tokenizer_sha256": fingerprint(filled.tokenizer),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "tokenizers", "transformers")},
        },
    }
    text = json.dumps(manifest, indent=1)  # in ASCII, since file names need not be Unicode
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _dtype_for(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _refer(folder: Path, corpus: TokenisedCorpus, *, progress: bool) -> Filled:
    tokenizer = corpus.tokenizer()
    assert tokenizer is not None, "tokens were made by one"
    dtype = _dtype_for(vocabulary_size(tokenizer))
    splits = corpus.write_splits(folder, tokenizer, dtype, progress=progress)
    return Filled(tokenizer, splits, None, corpus.eos_id(tokenizer))


def _encode(folder: Path, corpus: Corpus, fraction: float, *, progress: bool) -> Filled:
    stream: Iterator[str] = (text for text in corpus.documents(progress=progress) if text.strip())
    spool = folder / "documents.jsonl"
    tokenizer = corpus.tokenizer()
    if tokenizer is None:
        count = _write_spool(spool, itertools.islice(stream, corpus.tokenizer_documents))
        tokenizer = train_bpe(_read_spool(spool), corpus.options.vocab_size, progress=progress)
        spooled = tqdm(_read_spool(spool), desc="encoding", total=count, unit="doc", disable=not progress)
        stream = itertools.chain(spooled, stream)
    documents = encoded(tokenizer, stream, corpus.max_tokens)
    if corpus.may_be_cut:
        assigned = by_weight(documents, fraction, lambda text: next(encoded(tokenizer, [text], None)))
    else:
        assigned = by_hash(documents, fraction)
    splits, text_sha256 = _write_splits(folder, assigned, _dtype_for(vocabulary_size(tokenizer)), fraction)
    spool.unlink(missing_ok=True)
    return Filled(tokenizer, splits, text_sha256, tokenizer.eos_token_id)


def _write_spool(spool: Path, documents: Iterable[str]) -> int:
    """Write documents one per line; returns how many. The source is read once, the spool as often as needed."""
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


def encoded(tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], max_tokens: int | None) -> Iterator[Document]:
    """Yield the documents encoded, on all cores, until the source or the token budget ends."""
    encoder = encoder_of(tokenizer)
    tokens = 0
    for texts in batched(documents, len, _BATCH_CHARACTERS):
        for text, encoding in zip(texts, encoder.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            raw = text.encode()
            ids = np.array([*encoding.ids, tokenizer.eos_token_id], np.uint32)
            yield Document(text, ids, hashlib.sha256(raw).digest(), len(raw))
            tokens += len(ids)
            if max_tokens is not None and tokens >= max_tokens:
                return


def _write_splits(
    folder: Path, documents: Iterable[tuple[Document, bool]], dtype: np.dtype, fraction: float
) -> tuple[dict[str, dict[str, Any]], str]:
    """Write both splits; returns documents, tokens, bytes and hash of each, and the hash of the whole text. The hash of the
    text is the SHA-256 of the documents' SHA-256 digests, in order."""
    text_hash = hashlib.sha256()
    with contextlib.ExitStack() as stack:
        writers = [_SplitWriter(folder, name, dtype, fraction) for name in SPLITS]
        train, validation = (stack.enter_context(contextlib.closing(writer)) for writer in writers)
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
    """Writes one split, but holds back the document nearest to the border with the other split. With few documents the
    other split may stay empty; that document then moves there."""

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
        self._handle = self._ids_file.open("wb")

    def close(self) -> None:
        """Complete the files."""
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
        """Remove and return the document nearest to the border."""
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
        """Documents, tokens, bytes of text and SHA-256 of the file of token ids, once it is closed."""
        return {
            "documents": self.documents,
            "tokens": self._tokens,
            "bytes": self._bytes,
            "sha256": sha256_of(self._ids_file),
        }
