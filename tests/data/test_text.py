"""Local files as documents, and the one line for each thing that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from configs.errors import InputError
from data.text import LONGEST_PIECE_CHARACTERS, PIECE_CHARACTERS, TextCorpus
from tests.data.corpus import text_data


def read(*paths: Path, **fields: Any) -> list[str]:
    corpus = TextCorpus(text_data(paths[0].parent / "cache", *paths, **fields))
    return list(corpus.documents(progress=False))


def problem(*paths: Path, **fields: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(*paths, **fields)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_parquet(path: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_txt_is_a_document_without_mark_and_carriage_returns(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"\xef\xbb\xbfFirst line\r\n\r\nsecond \xc3\xa9\r\n")
    assert read(path) == ["First line\n\nsecond é"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_jsonl_is_a_document_a_line(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b'\xef\xbb\xbf{"text": "one\\r\\ntwo"}\r\n\r\n{"text": "three", "n": 1}\r\n')
    assert read(path) == ["one\ntwo", "three"]


@pytest.mark.parametrize("name", ["a.parquet", "a.parquet.gz"])
def test_parquet_is_a_document_a_row(tmp_path: Path, name: str) -> None:
    plain = write_parquet(tmp_path / "plain.parquet", {"n": [1, 2, 3], "body": ["one\r\n", "two", "three"]})
    path = write(tmp_path / name, plain.read_bytes())
    assert read(path, text_field="body") == ["one\n", "two", "three"]


@pytest.mark.parametrize("paragraphs", [True, False])
def test_a_long_txt_file_is_split_and_nothing_of_it_lost(tmp_path: Path, paragraphs: bool) -> None:
    lines = [f"This is line {number} of a long novel." for number in range(8000)]
    text = "\n".join(line + "\n" * (paragraphs and number % 20 == 0) for number, line in enumerate(lines))
    pieces = read(write(tmp_path / "novel.txt", b"\xef\xbb\xbf" + text.encode()))
    assert [line for piece in pieces for line in piece.split("\n") if line] == lines
    sizes = [len(piece) for piece in pieces[:-1]]
    least = PIECE_CHARACTERS if paragraphs else LONGEST_PIECE_CHARACTERS
    assert all(least - 2 <= size <= least + 1000 for size in sizes)


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    pieces = read(write(tmp_path / "line.txt", b"x" * 200_000))
    assert "".join(pieces) == "x" * 200_000
    assert max(map(len, pieces)) <= 2 * LONGEST_PIECE_CHARACTERS


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r"))))
def test_any_text_survives_jsonl(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert read(path) == texts


def test_folders_and_globs_are_sorted_and_take_each_file_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "deep/er/c.txt", "README.md"):
        write(tmp_path / "in" / name, name.encode())
    folder = tmp_path / "in"
    assert read(folder) == ["a.txt", "b.txt", "deep/er/c.txt"]
    assert read(folder / "**" / "*.txt", folder / "a.txt") == read(folder)
    assert read(folder / "b.txt", folder) == ["b.txt", "a.txt", "deep/er/c.txt"]
    assert read(folder / "*") == read(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\nfine\ncaf\xe9\n", r"a.txt: line 3, byte 13 of the file \(0xe9\) is not UTF-8"),
        ("a.txt.gz", b"caf\xe9\n", r"a.txt.gz: line 1, byte 3 "),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', r"a.jsonl: line 2, byte 27 "),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": \n', r"a.jsonl: line 3 is not JSON: Expecting value \(column 9\)"),
        ("a.jsonl", b'{"body": "x", "n": 1}\n', r"line 1 has no 'text'; set data.text_field to one of: body, n$"),
        ("a.jsonl", b"[1]\n", r"line 1 is not a JSON object but list"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: 'text' is not text but int"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: 'text' holds half a surrogate pair"),
        ("a.parquet", b"PAR1 not really", r"a.parquet: cannot be read as parquet"),
        ("a.pdf", b"%PDF", r"a.pdf is none of .txt, .jsonl, .parquet"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert re.search(message, problem(write(tmp_path / name, content)))


def test_a_torn_archive_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"some text" * 1000)[:-20])
    assert re.search(r"a.txt.gz: cannot be read: Compressed file ended", problem(path))


def test_parquet_columns_are_checked(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"n": [1, 2, 3], "body": ["a", None, "c"]})
    assert "has no column 'text'; set data.text_field to one of: n, body" in problem(path)
    assert "column 'n' is not text but int64" in problem(path, text_field="n")
    assert "row 2 of column 'body' is null" in problem(path, text_field="body")


def test_paths_that_match_nothing(tmp_path: Path) -> None:
    write(tmp_path / "in" / "README.md", b"x")
    for path in (tmp_path / "none.txt", tmp_path / "in", tmp_path / "*.txt"):
        assert f"data.paths: {path} matches no .txt, .jsonl, .parquet file" in problem(path)


def test_a_file_that_grows_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    documents = TextCorpus(text_data(tmp_path, path)).documents(progress=False)
    assert next(documents) == "one"
    with path.open("a") as handle:
        handle.write('{"text": "three"}\n')
    with pytest.raises(InputError, match="changed while it was read"):
        list(documents)


def test_identity_is_of_content_not_of_place(tmp_path: Path) -> None:
    def identity(path: Path) -> dict[str, Any]:
        return TextCorpus(text_data(tmp_path, path)).identity()

    original = identity(write(tmp_path / "one" / "a.txt", b"content"))
    assert identity(write(tmp_path / "two" / "a.txt", b"content")) == original
    assert identity(write(tmp_path / "one" / "a.txt", b"changed")) != original
