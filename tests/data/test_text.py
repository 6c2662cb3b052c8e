"""Local files as documents, and the one line for each thing that can be wrong with them."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from common.errors import InputError
from data.kinds import make_corpus
from data.readers import LONGEST_PIECE_CHARACTERS, PIECE_CHARACTERS

from .corpus import text_data

DEEP = b"[" * 100_000 + b"]" * 100_000


def read(*paths: Path, **fields: Any) -> list[str]:
    corpus = make_corpus(text_data(paths[0].parent / "cache", *paths, **fields))
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


@pytest.mark.parametrize("layout", [None, 1, "\t"], ids=["one line", "indented", "tabs"])
def test_json_is_a_document_an_object_of_the_array(tmp_path: Path, layout: Any) -> None:
    rows = [{"text": "one\r\ntwo", "tags": ["[", "]"]}, {"n": 1, "text": "three"}, {"text": "é"}]
    content = json.dumps(rows, indent=layout, ensure_ascii=False)
    path = write(tmp_path / "a.json", b"\xef\xbb\xbf" + content.encode() + b"\n")
    assert read(path) == ["one\ntwo", "three", "é"]
    assert read(write(tmp_path / "b.json.gz", content.encode())) == read(path)


def test_json_is_read_by_its_content(tmp_path: Path) -> None:
    lines = b'\n{"text": "one"}\n{"text": "two"}\n'
    assert read(write(tmp_path / "lines.json", lines)) == ["one", "two"]
    assert read(write(tmp_path / "object.json", b'{\n "text": "alone"\n}\n')) == ["alone"]
    assert read(write(tmp_path / "none.json", b" [ ] ")) == []


@pytest.mark.parametrize("name", ["A.TXT", "A.Jsonl.GZ", "A.JSON", "A.Parquet"])
def test_suffixes_are_read_in_any_case(tmp_path: Path, name: str) -> None:
    content = b'{"text": "some text"}' if ".J" in name else b"some text"
    if name == "A.Parquet":
        content = write_parquet(tmp_path / "plain", {"text": ["some text"]}).read_bytes()
    path = tmp_path / "in" / name
    path.parent.mkdir()
    path.write_bytes(gzip.compress(content) if name.endswith(".GZ") else content)
    assert read(path.parent) == ["some text"]


_TEXTS = ["Zoë", "", "Œuvre 😀"]
_AS_BYTES = [text.encode() for text in _TEXTS]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(_TEXTS, pa.large_string()),
        pa.array(_TEXTS, pa.string_view()),
        pa.array(_TEXTS).dictionary_encode(),
        pa.array(pd.Categorical(_TEXTS)),
        pa.array(_AS_BYTES),
        pa.array(_AS_BYTES, pa.large_binary()),
        pa.array(_AS_BYTES, pa.binary_view()),
        pa.array(_AS_BYTES).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_every_kind_of_column_that_holds_text_is_read(tmp_path: Path, column: pa.Array) -> None:
    assert read(write_parquet(tmp_path / "a.parquet", {"n": [1, 2, 3], "text": column})) == _TEXTS


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.parquet"])
@pytest.mark.parametrize("paragraphs", [True, False])
def test_a_long_document_is_split_and_nothing_of_it_lost(tmp_path: Path, paragraphs: bool, name: str) -> None:
    lines = [f"This is line {number} of a long novel." for number in range(8000)]
    text = "\n".join(line + "\n" * (paragraphs and number % 20 == 0) for number, line in enumerate(lines))
    rows = {"a.txt": text, "a.jsonl": json.dumps({"text": text}), "a.json": json.dumps([{"text": text}])}
    if name in rows:
        pieces = read(write(tmp_path / name, b"\xef\xbb\xbf" + rows[name].encode()))
    else:
        pieces = read(write_parquet(tmp_path / name, {"text": [text]}))
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
        ("a.jsonl", b'{"body": "x", "n": 1}\n', r"line 1 has no 'text'; .* set data.text_field to one of: body, n$"),
        ("a.jsonl", b"[1]\n", r"line 1 is not a JSON object but an array"),
        ("a.jsonl", b'{"text": 5}\n', r"line 1: 'text' is not text but a number"),
        ("a.jsonl", b'{"text": "x"}\n' + DEEP + b"\n", r"a.jsonl: line 2 is nested too deeply to be read"),
        ("a.json", b'[{"text": "x"},\n ' + DEEP + b"]\n", r"a.json: row 2 is nested too deeply to be read"),
        ("a.json", DEEP, r"a.json: row 1 is nested too deeply to be read"),
        ("a.json", b'{"text":\n' + DEEP + b"}", r"a.json: row 1 is nested too deeply to be read"),
        ("a.json", b'{"text": ' + DEEP + b"}", r"a.json: the first line is nested too deeply to be read"),
        ("a.json", b'[{"text": "x"},\n {"body": "y"}]', r"row 2 has no 'text'; .* to one of: body$"),
        ("a.json", b'[{"text": "x"},\n {"text": null}]', r"row 2: 'text' is not text but null"),
        ("a.json", b'[{"text": "x"},\n 5]', r"row 2 is not a JSON object but a number"),
        ("a.json", b'[{"text": "x"},\n]', r"a.json: line 2 is not JSON: Expecting value \(column 1\)"),
        ("a.json", b'[{"text": "x"}\n {"text": "y"}]', r"line 2 is not JSON: Expecting ',' or ']' \(column 2\)"),
        ("a.json", b'[{"text": "x"}]\n[', r"line 1 is not JSON: Extra data"),
        ("a.json", b'{"text": "x"}\n{"text": \n', r"line 2 is not JSON"),
        ("a.json", b"", r"line 1 is not JSON: Expecting value"),
        ("a.json", b'[{"text": "caf\xe9"}]', r"a.json: line 1, byte 14 of the file \(0xe9\) is not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"line 1: 'text' holds half a surrogate pair"),
        ("a.parquet", b"PAR1 not really", r"a.parquet: cannot be read as parquet"),
        ("a.pdf", b"%PDF", r"a.pdf is no .txt, .json, .jsonl or .parquet file"),
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
    write_parquet(path, {"text": [b"fine", b"caf\xe9"]})
    assert "row 2: 'text' is not UTF-8 text: byte 3 (0xe9)" in problem(path)
    parquet.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    assert "a.parquet: has 2 columns named 'text'; rename all but one" in problem(path)


def test_numbers_of_any_length_are_read_over(tmp_path: Path) -> None:
    row = b'{"n": ' + b"9" * 5000 + b', "text": "x"}'
    assert read(write(tmp_path / "a.jsonl", row + b"\n")) == ["x"]
    assert read(write(tmp_path / "a.json", b"[" + row + b"]")) == ["x"]


def test_paths_that_match_nothing(tmp_path: Path) -> None:
    write(tmp_path / "in" / "README.md", b"x")
    for path in (tmp_path / "none.txt", tmp_path / "in", tmp_path / "*.txt"):
        assert f"data.paths: {path} matches no .txt, .json, .jsonl or .parquet file" in problem(path)
    way_out = "; rename a file of plain text, or a link to it, to end in .txt"
    assert f"(.gz may follow), only 1 x .md{way_out}" in problem(tmp_path / "in")
    assert f"(.gz may follow){way_out}" in problem(tmp_path / "in" / "README.md")
    (tmp_path / "link.txt").symlink_to(tmp_path / "in" / "README.md")
    assert read(tmp_path / "link.txt") == ["x"]


def test_a_glob_below_a_folder_with_brackets_is_explained(tmp_path: Path) -> None:
    write(tmp_path / "[v1]" / "a.txt", b"text")
    line = problem(tmp_path / "[v1]" / "*.txt")
    assert line.endswith("brackets are a wildcard in a glob: write [[]v1] for the folder [v1]")
    assert read(tmp_path / "[[]v1]" / "*.txt") == read(tmp_path / "[v1]") == ["text"]


def test_a_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "datasets--me--books"
    write(cache / "blobs" / "0a1b", b'{"text": "one"}\n')
    write(cache / "blobs" / "2c3d", b"about it")
    snapshot = cache / "snapshots" / "abc" / "data"
    snapshot.mkdir(parents=True)
    (snapshot / "train.jsonl").symlink_to("../../../blobs/0a1b")
    (snapshot / "README.md").symlink_to("../../../blobs/2c3d")
    for path in (snapshot, tmp_path / "hub", tmp_path / "**" / "*.jsonl", snapshot / "train.jsonl"):
        assert read(path) == ["one"]
    assert read(snapshot / "train.jsonl", tmp_path / "hub") == ["one"]
    assert make_corpus(text_data(tmp_path / "cache", tmp_path / "hub")).remarks == [
        f"data.paths: {tmp_path / 'hub'}: not read, being no .txt, .json, .jsonl or .parquet file (.gz may follow): "
        "1 x without suffix, 1 x .md"
    ]


def test_linked_folders_are_entered_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "b.txt", b"b")
    folder = tmp_path / "in"
    write(folder / "a.txt", b"a")
    for name, target in (
        ("more", "../elsewhere"),
        ("again", "../elsewhere"),
        ("up", "."),
        ("self", "self"),
        ("down", "up"),
    ):
        (folder / name).symlink_to(target)
    for path in (folder, folder / "**" / "*.txt", folder / "**", tmp_path / "*" / "**" / "[ab].txt"):
        assert sorted(read(path)) == ["a", "b"]


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.txt", "b.md", "c.md", "d.csv.gz", "noext", ".txt"):
        write(folder / name, b"text")
    (folder / "gone").symlink_to("nowhere")
    corpus = make_corpus(text_data(tmp_path / "cache", folder, folder / "*.txt"))
    (line,) = corpus.remarks
    assert line.startswith(f"data.paths: {folder}: not read, being no ")
    assert line.endswith(": 2 x without suffix, 2 x .md, 1 x .csv.gz, 1 x broken link")


def test_a_link_to_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    link = tmp_path / "in" / "a.txt"
    link.symlink_to("nowhere")
    for path in (link, link.parent, tmp_path / "in" / "*.txt"):
        assert problem(path) == f"data.paths: {link} is a link to nowhere, which is not there; restore or remove it"
    link.unlink()
    os.mkfifo(link)
    assert problem(link.parent) == f"data.paths: {link} is no regular file; restore or remove it"


def test_the_stores_below_a_folder_are_not_its_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"text")
    write(tmp_path / "cache" / "0123" / "manifest.json", b"{}")
    for path in (tmp_path, tmp_path / "**"):
        corpus = make_corpus(text_data(tmp_path / "cache", path))
        assert list(corpus.documents(progress=False)) == ["text"]


def test_a_link_led_elsewhere_is_another_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        os.utime(write(tmp_path / name, name.encode()), ns=(0, 10**18))
    link = tmp_path / "current.txt"
    link.symlink_to("one")
    first = make_corpus(text_data(tmp_path, link))
    write(tmp_path / "0123" / "manifest.json", json.dumps({"source": first.describe()}).encode())
    link.unlink()
    link.symlink_to("two")
    assert make_corpus(text_data(tmp_path, link)).identity() != first.identity()


def test_a_file_that_grows_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": "two"}\n')
    documents = make_corpus(text_data(tmp_path, path)).documents(progress=False)
    assert next(documents) == "one"
    with path.open("a") as handle:
        handle.write('{"text": "three"}\n')
    with pytest.raises(InputError, match="changed while it was read"):
        list(documents)


def test_identity_is_of_content_not_of_place(tmp_path: Path) -> None:
    def identity(path: Path) -> dict[str, Any]:
        return make_corpus(text_data(tmp_path, path)).identity()

    original = identity(write(tmp_path / "one" / "a.txt", b"content"))
    assert identity(write(tmp_path / "two" / "a.txt", b"content")) == original
    assert identity(write(tmp_path / "one" / "a.txt", b"changed")) != original
