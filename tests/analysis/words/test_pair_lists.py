from __future__ import annotations

import csv
import os
from collections import Counter
from pathlib import Path

import pytest

from analysis.words.pair_lists import BUILTIN, FORMATS, load_pairs
from analysis.words.pairs import PARTS_OF_SPEECH, Pair, PairList
from analysis.words.substitution_files import is_substitution_file
from common.errors import InputError

SIMLEX_HEADER = "word1\tword2\tPOS\tSimLex999\tconc(w1)\tconc(w2)\tconcQ\tAssoc(USF)\tSimAssoc333\tSD(SimLex)\n"


def write(folder: Path, content: str | bytes, name: str = "pairs") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def problems(source: str, **options: float) -> list[str]:
    with pytest.raises(InputError) as error:
        load_pairs(source, **options)  # type: ignore[arg-type]
    return list(error.value.problems)


def both_words(pairs: tuple[Pair, ...]) -> set[tuple[str, str]]:
    return {(pair.word_a, pair.word_b) for pair in pairs}


# The built-in list


def test_the_builtin_list_is_long_clean_and_without_repetition() -> None:
    pairs = load_pairs("builtin")
    words = [word for pair in pairs.synonyms + pairs.antonyms for word in (pair.word_a, pair.word_b)]
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert len(pairs.synonyms) >= 550
    assert len(pairs.antonyms) >= 120
    assert not pairs.dissimilar
    assert pairs.source == "builtin"
    # A word in two synonym pairs would tie two units of the statistics together.
    synonyms = [word for pair in pairs.synonyms for word in (pair.word_a, pair.word_b)]
    assert [word for word, count in Counter(synonyms).items() if count > 1] == []
    assert {pair.domain for pair in pairs.synonyms} == {"general", "technical"}
    assert min(Counter(pair.domain for pair in pairs.synonyms).values()) >= 50


def test_most_builtin_antonyms_are_controls_of_a_synonym_pair() -> None:
    pairs = load_pairs("builtin")
    known = {word for pair in pairs.synonyms for word in (pair.word_a, pair.word_b)}
    shared = [pair for pair in pairs.antonyms if {pair.word_a, pair.word_b} & known]
    assert len(shared) >= 120
    assert len(shared) >= 0.9 * len(pairs.antonyms)


def test_every_builtin_row_states_its_relation_and_only_closed_classes_have_no_part_of_speech() -> None:
    with BUILTIN.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["relation"] for row in rows} == {"synonym", "antonym"}
    assert {row["pos"] for row in rows} == {*PARTS_OF_SPEECH, ""}
    without = {row["word_a"] for row in rows if not row["pos"]}
    assert len(without) < 0.05 * len(rows)
    assert {"between", "until", "although", "upon", "someone"} <= without


# Lists of the project's own kind


@pytest.mark.parametrize(
    "text",
    [
        "big,large,general\nfast,quick,\n",
        "word_a,word_b,domain\nbig,large,general\nfast,quick\n",
        "Word A,Word B,Domain\nbig,large,general\nfast,quick\n",
        "word\tsynonym\tdomain\n\nbig\tlarge\tgeneral\n fast \tquick\n",
        "# of my own\nbig,large,general,synonym\n,,\n# more\nfast,quick,,synonym\n",
        "\ufeffword_a,word_b,relation,domain\r\nbig,large,,general\r\nfast,quick\r\n",
        '"big","large","general"\n"fast","quick"',
    ],
)
def test_own_files_are_read_with_and_without_header(tmp_path: Path, text: str) -> None:
    source = write(tmp_path, text)
    assert load_pairs(source) == PairList(
        f"word pairs ({source})", (Pair("big", "large", "general"), Pair("fast", "quick"))
    )


def test_relations_and_parts_of_speech_are_kept_apart(tmp_path: Path) -> None:
    pairs = load_pairs(
        write(tmp_path, "big,large,x,synonym,a\nbig,small,x,antonym,a\nrun,walk,,antonym\nrun,trot,,,v\n")
    )
    assert pairs.synonyms == (Pair("big", "large", "x", "a"), Pair("run", "trot", "", "v"))
    assert pairs.antonyms == (Pair("big", "small", "x", "a"), Pair("run", "walk"))


def test_every_bad_row_is_named_with_its_line(tmp_path: Path) -> None:
    source = write(
        tmp_path,
        "word_a,word_b,domain,relation,pos\nbig,large\nalone\nof course,surely\nsame,same\n\nlarge,big,,antonym\n"
        "a,b,c,antonym,n,more\n,x\nhot,cold,,opposite\nhot,cool,,synonym,adj\nhot,warm,7.2\n",
    )
    found = problems(source)
    assert [problem.split(":")[0] for problem in found] == [
        f"--pairs {source} line {number}" for number in (3, 4, 5, 7, 8, 9, 10, 11, 12)
    ]
    named = ("1 columns", "'of course'", "itself", "line 2 already", "6 columns", "''", "'opposite'", "'adj'", "'7.2'")
    for problem, expected in zip(found, named, strict=True):
        assert expected in problem


def test_an_unknown_column_of_a_header_is_named(tmp_path: Path) -> None:
    (problem,) = problems(write(tmp_path, "word1,word2,rating\nbig,large,8\n"))
    assert "line 1: column 'rating'" in problem
    assert FORMATS[-1] in problem


# Lists scored by judges


def test_simlex_is_recognised_by_its_header_and_scaled_from_ten(tmp_path: Path) -> None:
    rest = "\t1\t2\t3\t4\t0\t1.5\n"
    rows = ["smart\tbright\tA\t9.2", "bad\tgood\tA\t0.5", "flee\trun\tV\t6", "book\tpage\tN\t4", "tea\tcup\tN\t5"]
    source = write(tmp_path, SIMLEX_HEADER + "".join(row + rest for row in rows), "anything.csv")
    pairs = load_pairs(source)
    assert pairs.source == f"SimLex-999 ({source})"
    assert pairs.synonyms == (Pair("smart", "bright", "", "a"), Pair("flee", "run", "", "v"))
    assert pairs.dissimilar == (Pair("bad", "good", "", "a"), Pair("book", "page", "", "n"))
    assert pairs.antonyms == ()


@pytest.mark.parametrize("delimiter", [",", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_wordsim_is_read_with_its_identical_and_its_repeated_pair(tmp_path: Path, delimiter: str, end: str) -> None:
    rows = ["Word 1,Word 2,Human (mean)", "cat,lion,7.35", "cat,cat,10.00", "coin,cash,9", "cash,coin,8", "ox,cup,0.3"]
    judged = [row + ",1,2" for row in rows]  # sets 1 and 2 have a column for each judge
    for lines in (rows, judged):
        source = write(tmp_path, "\ufeff" + end.join(lines).replace(",", delimiter) + end)
        pairs = load_pairs(source)
        assert pairs.source == f"WordSim-353 ({source}; 1 scored with itself left out; 1 scored twice averaged)"
        assert pairs.synonyms == (Pair("cat", "lion"), Pair("coin", "cash"))
        assert [str(pair) for pair in pairs.dissimilar] == ["ox/cup"]


def test_the_split_of_wordsim_without_a_header_and_its_list_with_relations(tmp_path: Path) -> None:
    split = load_pairs(write(tmp_path, "# judged\n# by people\ncat\tlion\t7.35\nox\tcup\t0.3\n", "split"))
    agreed = load_pairs(write(tmp_path, "# judged\ns\tcat\tlion\t7.35\nt\tox\tcup\t0.3\n", "agreed"))
    for pairs in (split, agreed):
        assert pairs.synonyms == (Pair("cat", "lion"),)
        assert both_words(pairs.dissimilar) == {("ox", "cup")}
    assert "scores taken as 0 to 10, the largest being 7.35" in split.source
    assert agreed.source.startswith("WordSim-353 with relations (")


@pytest.mark.parametrize(("largest", "scale"), [(0.9, 1), (1, 1), (1.2, 5), (5, 5), (5.1, 10), (10, 10)])
def test_the_scale_of_other_scored_lists_is_the_smallest_that_holds_them_and_is_stated(
    tmp_path: Path, largest: float, scale: float
) -> None:
    pairs = load_pairs(write(tmp_path, f"similarity,pos,word1,word2\n{largest},n,a,b\n0,v,c,d\n"), min_similarity=0.505)
    highest, lowest = Pair("a", "b", "", "n"), Pair("c", "d", "", "v")
    assert pairs.synonyms == ((highest,) if largest / scale >= 0.505 else ())
    assert pairs.dissimilar == ((lowest,) if largest / scale >= 0.505 else (highest, lowest))
    assert f"scores taken as 0 to {scale}, the largest being {largest}" in pairs.source


@pytest.mark.parametrize("tenths", [6, 7, 8, 9, 10])
def test_a_score_at_either_threshold_belongs_to_its_group(tmp_path: Path, tenths: int) -> None:
    rows = "".join(f"a{score},b{score},{score}\n" for score in range(11))
    pairs = load_pairs(write(tmp_path, "Word 1,Word 2,Human (mean)\n" + rows), min_similarity=tenths / 10)
    assert [pair.word_a for pair in pairs.synonyms] == [f"a{score}" for score in range(tenths, 11)]
    assert [pair.word_a for pair in pairs.dissimilar] == [f"a{score}" for score in range(11 - tenths)]


def test_every_bad_score_is_named_with_its_line(tmp_path: Path) -> None:
    rest = "\t1\t2\t3\t4\t0\t1.5\n"
    rows = ["a\tb\tN\tmuch", "a\tb c\tN\t5", "a\tc\tX\t5", "a\td\tN\t10.5", "a\te\tN\t-1", "a\tf\tN\tnan", "a\tg\tN\t5"]
    source = write(tmp_path, SIMLEX_HEADER + "".join(row + rest for row in rows) + "a\th\tN\n")
    found = problems(source)
    assert [int(problem.split("line ")[1].split(":")[0]) for problem in found] == [2, 3, 4, 5, 6, 7, 9]
    named = ("'much'", "'b c'", "'X'", "10.5", "-1", "'nan'", "3 columns")
    for problem, expected in zip(found, named, strict=True):
        assert expected in problem


@pytest.mark.parametrize("min_similarity", [0.5, 0.0, 1.1, float("nan")])
def test_thresholds_that_could_make_a_pair_both_similar_and_dissimilar_are_refused(min_similarity: float) -> None:
    (problem,) = problems("builtin", min_similarity=min_similarity)
    assert "--min-similarity" in problem


# Files that are no lists


@pytest.mark.parametrize("content", [None, b"", b"\n# nothing\n,,\n", b"word_a,word_b\n", b"\xff\xfe\x00", b"a,b\0\n"])
def test_files_without_pairs_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    source = str(tmp_path / "pairs") if content is None else write(tmp_path, content)
    (problem,) = problems(source)
    assert source in problem


@pytest.mark.parametrize(
    "text", ["It was late.\nNobody came.\n", "big;large\n", "big large 8.5\n", "a,b,c,d,e,f\n", "alone\n"]
)
def test_an_unknown_format_is_told_with_all_known_ones(tmp_path: Path, text: str) -> None:
    (problem,) = problems(write(tmp_path, text))
    for known in FORMATS:
        assert known in problem


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    (problem,) = problems(str(tmp_path))
    assert "cannot be read" in problem


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_substitution_file(tmp_path / "pipe")
    (problem,) = problems(str(tmp_path / "pipe"))
    assert "pipe cannot be read as text (it is no regular file); give builtin" in problem
