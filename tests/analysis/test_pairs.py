from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from analysis.pairs import Pair, load_pairs
from configs.errors import InputError


def test_the_builtin_list_is_long_clean_and_without_repetition() -> None:
    pairs = load_pairs("builtin")
    words = [word for pair in pairs for word in (pair.word_a, pair.word_b)]
    assert len(pairs) >= 180
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    # A word in two pairs would tie two units of the statistics together.
    assert [word for word, count in Counter(words).items() if count > 1] == []
    assert {pair.domain for pair in pairs} == {"general", "technical"}
    assert min(Counter(pair.domain for pair in pairs).values()) >= 50


@pytest.mark.parametrize(
    "text",
    [
        "big,large,general\nfast,quick,\n",
        "word_a,word_b,domain\nbig,large,general\nfast,quick\n",
        "word\tsynonym\tdomain\n\nbig\tlarge\tgeneral\n fast \tquick\n",
        "\ufeffword_a,word_b\r\nbig,large,general\r\nfast,quick\r\n",
    ],
)
def test_files_are_read_with_and_without_header(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pairs"
    path.write_text(text, encoding="utf-8", newline="")
    assert load_pairs(str(path)) == [Pair("big", "large", "general"), Pair("fast", "quick")]


def test_every_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("word_a,word_b\nbig,large\nalone\nof course,surely\nsame,same\n\nlarge,big\na,b,c,d\n,x\n")
    with pytest.raises(InputError) as error:
        load_pairs(str(path))
    assert [problem.split(":")[0] for problem in error.value.problems] == [
        f"--pairs {path} line {number}" for number in (3, 4, 5, 7, 8, 9)
    ]
    assert "line 2 already" in error.value.problems[3]
    assert "'of course'" in error.value.problems[1]


@pytest.mark.parametrize("content", [None, b"", b"word_a,word_b\n", b"\xff\xfe\x00"])
def test_files_without_pairs_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "pairs.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        load_pairs(str(path))
    assert len(error.value.problems) == 1
    assert str(path) in error.value.problems[0]
