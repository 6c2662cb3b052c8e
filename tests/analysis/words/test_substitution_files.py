from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from analysis.words.pair_lists import BUILTIN
from analysis.words.substitution_files import is_substitution_file, load_substitutions
from tests.analysis.substitutes import COINCO, SWORDS, problems, write


@pytest.mark.parametrize("text", [json.dumps(SWORDS), json.dumps(SWORDS, indent=2, sort_keys=True), COINCO])
def test_marks_line_ends_and_compression_change_nothing(tmp_path: Path, text: str) -> None:
    plain = load_substitutions(write(tmp_path, text)).items
    assert len(plain) == 2
    windows = "\ufeff" + text.replace("\n", "\r\n")
    for name, content in {
        "bom": ("\ufeff" + text).encode(),
        "crlf": windows.encode(),
        "packed.gz": gzip.compress(text.encode()),
        "packed_under_another_name": gzip.compress(windows.encode()),
    }.items():
        source = write(tmp_path, content, name)
        assert is_substitution_file(source)
        assert load_substitutions(source).items == plain


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"big,large\n",
        b"\xff\xfe\x00\x01",
        b"[1, 2]",
        b'{"pairs": {"a": "b"}}',
        b"<html><body>word</body></html>",
        b"\x1f\x8bdamaged",
        gzip.compress(COINCO.encode(), mtime=0)[:40],
        None,
    ],
)
def test_other_files_are_not_substitutions_and_are_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    source = str(tmp_path / "absent") if content is None else write(tmp_path, content)
    assert not is_substitution_file(source)
    (problem,) = problems(source)
    assert source in problem


def test_a_list_of_pairs_and_a_folder_are_not_substitutions(tmp_path: Path) -> None:
    assert not is_substitution_file(BUILTIN)
    assert not is_substitution_file(tmp_path)


@pytest.mark.parametrize("text", ['{"targets": {', '{"targets": {}' + ',"x":' + "[" * 100_000, '{"a": 1}'])
def test_damaged_json_is_one_line(tmp_path: Path, text: str) -> None:
    (problem,) = problems(write(tmp_path, text))
    assert "JSON" in problem or "SWORDS" in problem
