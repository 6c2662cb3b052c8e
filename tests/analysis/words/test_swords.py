from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.words import substitutions
from analysis.words.substitution_files import load_substitutions
from analysis.words.substitutions import Substitution
from tests.analysis.substitutes import CONTEXT, SWORDS, problems, swords, write


def test_swords_weights_are_the_share_of_true_and_the_text_before_the_target_is_kept(tmp_path: Path) -> None:
    source = write(tmp_path, json.dumps(SWORDS))
    found = load_substitutions(source)
    assert found.source == f"SWORDS ({source})"
    assert found.items == (
        Substitution(
            item="t:1",
            document="letters:2.txt",
            left="It rained. My aunt owned a Huge dog; the dog's bowl was",
            target="huge",
            candidates=(("big", 0.75), ("very large", 0.1), ("round", 0.0)),
            lemma="huge",
            pos="a",
        ),
        Substitution(
            item="t:2",
            document="letters:2.txt",
            left="It rained. My aunt",
            target="owned",
            candidates=(("have", 1.0), ("borrow", 0.0)),
            lemma="owned",
            pos="v",
        ),
    )
    assert found.left_out == {}


@pytest.mark.parametrize(
    ("extra", "lemma"),
    [
        ({"coinco_lemma": "own"}, "own"),
        ([{"coinco": {"xml_attrs": {"lemma": "own"}}}], "own"),
        ({"coinco_lemma": "Owned"}, "Owned"),
        ({"other": 1}, "owned"),
    ],
)
def test_swords_targets_have_their_lemma_where_it_is_known(tmp_path: Path, extra: Any, lemma: str) -> None:
    data = swords("targets", "t:2", extra=extra)
    assert load_substitutions(write(tmp_path, json.dumps(data))).items[1].lemma == lemma


def test_older_benchmarks_in_the_same_format_weigh_by_the_number_of_annotators(tmp_path: Path) -> None:
    data = swords("contexts", "c:1", extra=[{"legacy_id": "news.txt:s-r1"}])
    data["substitute_labels"] = {
        key: ["TRUE_IMPLICIT"] * votes or ["FALSE_IMPLICIT"]
        for key, votes in zip(data["substitutes"], (3, 1, 0, 2, 1, 0), strict=True)
    }
    found = load_substitutions(write(tmp_path, json.dumps(data))).items[0]
    assert found.candidates == (("big", 3.0), ("very large", 1.0), ("round", 0.0))
    assert found.document == "news.txt"


@pytest.mark.parametrize(
    ("context", "target", "reason"),
    [
        ("Owned by none", "Owned", substitutions.FIRST),
        (" \n Owned by none", "Owned", substitutions.FIRST),
        ("They (owned) it", "owned", substitutions.GLUED),
        ("a well-known man", "known", substitutions.GLUED),
        ("a well-known man", "well", substitutions.GLUED),
        ("they cannot go", "can", substitutions.GLUED),
        ("they don't go", "don", substitutions.GLUED),
        ("they don\u2019t go", "don", substitutions.GLUED),
        ("what John's dog", "John", None),
        ("what they owned, too", "owned", None),
        ("what they\nowned", "owned", None),
    ],
)
def test_targets_that_cannot_be_asked_are_left_out_and_counted(
    tmp_path: Path, context: str, target: str, reason: str | None
) -> None:
    data = swords("targets", "t:2", target=target, offset=context.index(target), context_id="c:2")
    data["contexts"]["c:2"] = {"context": context}
    found = load_substitutions(write(tmp_path, json.dumps(data)))
    assert found.left_out == ({} if reason is None else {reason: 1})
    assert len(found.items) == 2 - len(found.left_out)
    if reason is None:
        assert found.items[1].left == " ".join(context[: context.index(target)].split())
        assert found.items[1].document == "c:2"


def test_targets_whose_candidates_are_all_accepted_or_all_rejected_are_left_out(tmp_path: Path) -> None:
    data = swords("substitute_labels", **{"s:5": ["FALSE"]})
    data["targets"]["t:3"] = data["targets"]["t:2"] | {"target": "aunt", "offset": CONTEXT.index("aunt")}
    found = load_substitutions(write(tmp_path, json.dumps(data)))
    assert [item.item for item in found.items] == ["t:1"]
    assert found.left_out == {substitutions.ONE_SIDED: 2}


@pytest.mark.parametrize(("true", "kept"), [(4, False), (5, False), (6, True)])
def test_a_target_needs_a_substitute_that_more_than_half_of_its_judges_accept(
    tmp_path: Path, true: int, kept: bool
) -> None:
    data = swords("substitute_labels", **{"s:5": ["TRUE"] * true + ["FALSE"] * (10 - true)})
    found = load_substitutions(write(tmp_path, json.dumps(data)))
    assert [item.item for item in found.items] == ["t:1", *["t:2"] * kept]
    assert found.left_out == ({} if kept else {substitutions.ONE_SIDED: 1})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({key: value for key, value in SWORDS.items() if key != "substitute_labels"}, "key substitute_labels"),
        (SWORDS | {"targets": []}, "key targets"),
        (swords("contexts", "c:1", context=5), "context c:1"),
        (swords("targets", "t:1", offset="0"), "target t:1"),
        (swords("targets", "t:1", offset=0), "target t:1: 'huge' does not stand at offset 0"),
        (swords("targets", "t:1", offset=-5), "target t:1: 'huge' does not stand at offset -5"),
        (swords("targets", "t:1", pos=["ADJ"]), "target t:1"),
        (swords("targets", "t:1", context_id="c:9"), "target t:1: context_id 'c:9'"),
        (swords("targets", "t:1", context_id=["c:1"]), "target t:1: context_id ['c:1']"),
        (swords("targets", **{"t:1": 5}), "target t:1"),
        (swords("substitutes", "s:1", target_id="t:9"), "substitute s:1: target_id 't:9'"),
        (swords("substitutes", "s:1", target_id=["t:1"]), "substitute s:1: target_id ['t:1']"),
        (swords("substitutes", "s:1", substitute=" "), "substitute s:1"),
        (swords("substitutes", "s:1", substitute="round"), "substitute s:3: 'round' is given twice"),
        (swords("substitute_labels", **{"s:1": None}), "substitute s:1: has no labels"),
        (swords("substitute_labels", **{"s:1": []}), "substitute s:1: has no labels"),
        (swords("substitute_labels", **{"s:1": ["TRUE", "MAYBE"]}), "substitute s:1: label 'MAYBE'"),
        (swords("substitute_labels", **{"s:1": ["TRUE", "TRUE_IMPLICIT"]}), "substitute s:1: mixes"),
    ],
)
def test_what_is_wrong_in_swords_is_named(tmp_path: Path, data: dict[str, Any], expected: str) -> None:
    source = write(tmp_path, json.dumps(data))
    (problem,) = problems(source)
    assert problem.startswith(source)
    assert expected in problem


@pytest.mark.parametrize("value", ["[" * 5000 + "]" * 5000, "9" * 5000], ids=["nested", "long number"])
def test_swords_that_python_cannot_read_are_told(tmp_path: Path, value: str) -> None:
    source = write(tmp_path, json.dumps(SWORDS)[:-1] + f', "n": {value}}}')
    assert problems(source) == [f"{source} is not a SWORDS file: its JSON nests too deeply or has too long a number"]


def test_many_problems_are_told_in_few_lines(tmp_path: Path) -> None:
    data = swords(
        "substitutes", **{f"x:{index}": {"target_id": "t:1", "substitute": f"w{index}"} for index in range(50)}
    )
    found = problems(write(tmp_path, json.dumps(data)))
    assert len(found) == 21
    assert "30 more" in found[-1]
