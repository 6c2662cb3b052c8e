"""Small real corpora for the tests of data/."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from data.corpora import DataConfig
from data.store import TokenStore, open_store

_WORDS = """
the of and to in is that for it as was with be by on not he his but at are this have from or had an they which one you were
all her she there would their we him been has when who will no more if out so up said what its about than into them
"""


def sentences(count: int, seed: int = 0) -> list[str]:
    """Return lines of words, no two alike."""
    generator = random.Random(seed)
    return [f"{number}: " + " ".join(generator.choices(_WORDS.split(), k=12)) + "." for number in range(count)]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """Write a text a line."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def text_data(cache_dir: Path, *paths: Path, **fields: Any) -> DataConfig:
    """Return the configuration of a text corpus with a small vocabulary."""
    values = {"sequence_length": 16, "vocab_size": 300, "cache_dir": str(cache_dir), **fields}
    if values.get("tokenizer") is not None:
        values["vocab_size"] = None
    return DataConfig(kind="text", paths=[str(path) for path in paths], **values)


def documents_of(store: TokenStore, split: str) -> list[str]:
    """Return the documents of a split, decoded; each must end with the end token and hold no other."""
    tokenizer = store.load_tokenizer()
    part = getattr(store, split)
    ends = [*part.document_starts[1:], len(part.ids)]
    documents = []
    for start, end in zip(part.document_starts, ends, strict=True):
        ids = part.ids[start:end].tolist()
        assert ids.count(store.eos_id) == 1
        assert ids[-1] == store.eos_id
        documents.append(tokenizer.decode(ids[:-1]))
    return documents


def build(cache_dir: Path, *paths: Path, **fields: Any) -> TokenStore:
    """Build (or open) the store of files."""
    return open_store(text_data(cache_dir, *paths, **fields), progress=False)
