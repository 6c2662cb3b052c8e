"""Which text is held out: the share that is asked for, copies together, and nothing lost or in both splits."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.corpora import DataConfig
from data.split import FAR, NEAR, WEIGHED_BYTES, Document, by_weight
from data.store import TokenStore, open_store

from .corpus import build, documents_of, sentences, text_data, write_jsonl


def encode(text: str) -> Document:
    """A document with a token for each character, and one for its end."""
    raw = text.encode()
    return Document(text, np.arange(len(text) + 1), hashlib.sha256(raw).digest(), len(raw))


def split(texts: list[str], fraction: float) -> tuple[list[str], list[str]]:
    """Return what is trained on and what is held out."""
    assigned = list(by_weight(map(encode, texts), fraction, encode))
    train, held_out = ([document.text for document, held in assigned if held == which] for which in (False, True))
    return train, held_out


def share(texts: list[str], fraction: float) -> float:
    """Return the share of the tokens that is held out."""
    train, held_out = (sum(len(text) + 1 for text in part) for part in split(texts, fraction))
    return held_out / (train + held_out)


def place(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) / 2**256


def told_share(store: TokenStore) -> float:
    return len(store.validation.ids) / (len(store.train.ids) + len(store.validation.ids))


def test_many_small_documents_are_split_by_their_hashes() -> None:
    texts = sentences(2000)
    train, held_out = split(texts, 0.1)
    assert held_out == [text for text in texts if place(text) < 0.1]
    assert train == [text for text in texts if place(text) >= 0.1]


@pytest.mark.parametrize("fraction", [0.005, 0.02, 0.1, 0.4])
@pytest.mark.parametrize(
    "sizes", [[200_000], [30_000, 30_000], [9, 60_000], [60_000, 9, 9], [50, 5000, 500_000], [100] * 9]
)
def test_few_or_unequal_documents_meet_the_fraction(sizes: list[int], fraction: float) -> None:
    lines = "\n".join(sentences(10_000, seed=len(sizes)))
    texts = [lines[start : start + size] for start, size in zip(range(0, 700, 70), sizes, strict=False)]
    assert fraction / FAR <= share(texts, fraction) <= fraction * FAR
    if sum(sizes) * fraction > 100:
        assert fraction / NEAR <= share(texts, fraction) <= fraction * NEAR


def test_one_text_is_cut_at_a_line_end_and_its_end_held_out() -> None:
    lines = sentences(1000)
    (first,), (second,) = split(["\n".join(lines)], 0.1)
    assert first.split("\n") + second.split("\n") == lines


def test_what_has_no_spaces_is_cut_too() -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 5000)))
    (first,), (second,) = split([text], 0.1)
    assert first + second == text
    assert len(second) == 500


@given(
    st.lists(st.text(alphabet="ab \n日", min_size=1).filter(str.strip), min_size=1, max_size=8),
    st.floats(0.001, 0.499),
    st.integers(1, 3),
)
def test_nothing_is_lost_and_copies_share_a_split(texts: list[str], fraction: float, copies: int) -> None:
    train, held_out = split(texts * copies, fraction)
    unspaced = sorted("".join("".join(texts * copies).split()))
    assert sorted("".join("".join(train + held_out).split())) == unspaced
    assert len(train) % copies == len(held_out) % copies == 0
    if len(set(texts)) > 1:
        assert train
        assert held_out


@pytest.mark.parametrize("texts", [[], ["x"], ["x", "x"], [" x\n"]])
def test_what_cannot_be_cut_stays_whole(texts: list[str]) -> None:
    train, held_out = split(texts, 0.3)
    assert sorted(train + held_out) == texts


def test_a_corpus_too_large_to_be_weighed_is_split_by_its_hashes() -> None:
    documents = [encode(text)._replace(size=WEIGHED_BYTES // 10) for text in sentences(30)]
    assigned = by_weight(iter(documents), 0.001, encode)
    assert [(document.text, held) for document, held in assigned] == [
        (document.text, place(document.text) < 0.001) for document in documents
    ]


def test_book_sized_rows_and_one_short_text_are_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    books = ["\n\n".join(sentences(1050, seed=seed)) for seed in range(4)]
    for name, texts in (
        ("four", books),
        ("unequal", ["".join(books), "One short row."]),
        ("short", [books[0][:9_000]]),
    ):
        store = build(tmp_path / "cache", write_jsonl(tmp_path / f"{name}.jsonl", texts))
        assert 0.02 / NEAR <= told_share(store) <= 0.02 * NEAR
        held = documents_of(store, "validation") + documents_of(store, "train")
        assert sorted("\n".join(held).split()) == sorted(" ".join(texts).split())
    data = text_data(tmp_path / "cache", tmp_path / "short.jsonl")
    open_store(data)
    assert "is held out" not in capsys.readouterr().err


def test_pieces_of_a_book_follow_one_another(tmp_path: Path) -> None:
    book = sentences(3_000)
    store = build(tmp_path / "cache", write_jsonl(tmp_path / "a.jsonl", ["\n\n".join(book)]), validation_fraction=0.2)
    found = documents_of(store, "train") + documents_of(store, "validation")
    for piece in found:
        numbers = [int(line.partition(":")[0]) for line in piece.split("\n\n")]
        assert all(after == before + 1 for before, after in pairwise(numbers))


def test_a_share_that_is_not_met_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = DataConfig(kind="grammar", documents=10, seed=1, sequence_length=16, cache_dir=str(tmp_path))
    for _ in range(2):  # when it is built, and when it is opened
        store = open_store(data)
        line = capfd.readouterr().err.splitlines()[-1]
        assert line == (
            "note: data.validation_fraction=0.02: 0.15 is held out (114 of 770 tokens, 1 of 10 documents); the documents are too "
            "few, or too unequal, for the share asked for"
        )
    assert (len(store.validation.ids), len(store.train.ids)) == (114, 656)


def test_the_grammar_is_split_as_ever(tmp_path: Path) -> None:
    """Its stores keep their names and their tokens, which the results were made with."""
    data = DataConfig(kind="grammar", documents=500, seed=1, sequence_length=32, cache_dir=str(tmp_path))
    store = open_store(data, progress=False)
    assert store.path.name == "108ae87f40820593"
    hashes = {name: split["sha256"][:16] for name, split in store.manifest["splits"].items()}
    assert hashes == {"train": "2e114d1231f93e32", "validation": "4446cd4afcec5c2a"}
