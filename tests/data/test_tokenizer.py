"""The trained BPE and tokenizers brought along."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from common.errors import InputError
from data.tokenizer import END_OF_TEXT, encoder_of, fingerprint, load_tokenizer, tokenizer_identity, train_bpe

from .corpus import sentences


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe(iter(sentences(300)), 400, progress=False)


def test_a_trained_tokenizer_has_the_size_and_special_tokens_asked_for(bpe: PreTrainedTokenizerFast) -> None:
    assert len(bpe) == 400
    assert bpe.eos_token == bpe.bos_token == END_OF_TEXT
    assert bpe.eos_token_id == bpe.bos_token_id == 0
    assert bpe.model_max_length == 1 << 20


def test_words_carry_their_space(bpe: PreTrainedTokenizerFast) -> None:
    assert len(bpe.encode(" there")) == 1


def test_training_is_deterministic(bpe: PreTrainedTokenizerFast) -> None:
    assert fingerprint(train_bpe(iter(sentences(300)), 400, progress=False)) == fingerprint(bpe)
    assert fingerprint(train_bpe(iter(sentences(300, seed=1)), 400, progress=False)) != fingerprint(bpe)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(bpe: PreTrainedTokenizerFast, text: str) -> None:
    assert bpe.decode(encoder_of(bpe).encode(text).ids) == text


def test_a_special_token_in_the_text_is_text(bpe: PreTrainedTokenizerFast) -> None:
    text = f"The token {END_OF_TEXT} ends a document."
    assert 0 in bpe.encode(text)
    ids = encoder_of(bpe).encode(text).ids
    assert 0 not in ids
    assert bpe.decode(ids) == text


def test_too_little_text_for_the_vocabulary_is_told() -> None:
    with pytest.raises(InputError, match=r"data.vocab_size=5000: the corpus yields only \d+ tokens"):
        train_bpe(iter(sentences(5)), 5000, progress=False)


def test_a_tokenizer_loads_from_its_folder_and_from_its_file(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bpe.save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = load_tokenizer(str(place))
        assert fingerprint(loaded) == fingerprint(bpe)
        assert loaded.eos_token_id == 0


def test_identity_follows_the_files(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    bpe.save_pretrained(tmp_path)
    place = str(tmp_path)
    before = tokenizer_identity(place, None)
    assert tokenizer_identity(place, None) == before
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8") + " ", encoding="utf-8")
    assert tokenizer_identity(place, None) != before


def without_end(tokenizer: PreTrainedTokenizerFast, path: Path) -> str:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content["added_tokens"] = []
    content["model"]["vocab"]["<|start|>"] = content["model"]["vocab"].pop(END_OF_TEXT)
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def problems(bpe: PreTrainedTokenizerFast, folder: Path) -> Iterator[tuple[str, str]]:
    (folder / "bad.json").write_text('{"model": 1}')
    (folder / "empty").mkdir()
    yield without_end(bpe, folder / "endless.json"), r"names no end-of-text token"
    yield str(folder / "bad.json"), r"bad.json: "
    yield str(folder / "empty"), r"holds no tokenizer.json"
    yield str(folder / "none"), r"no such file or folder"


def test_what_is_wrong_is_told_in_one_line(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    for name, message in problems(bpe, tmp_path):
        with pytest.raises(InputError) as caught:
            tokenizer_identity(name, None)
            load_tokenizer(name)
        assert re.search(rf"^data.tokenizer={re.escape(name)}: .*\Z", str(caught.value))
        assert re.search(message, str(caught.value))
