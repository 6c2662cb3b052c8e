from __future__ import annotations

import copy
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.probing import substitutions
from analysis.probing.pairs import BUILTIN
from analysis.probing.substitutions import Substitution, is_substitution_file, load_substitutions
from configs.errors import InputError

CONTEXT = "It rained.\n\t\tMy aunt owned a  Huge dog; the dog's bowl was huge as well."

SWORDS: dict[str, Any] = {
    "contexts": {"c:1": {"context": CONTEXT, "extra": {"coinco_ids": ["letters:2.txt:s-r3", "letters:2.txt:s-r4"]}}},
    "targets": {
        "t:1": {
            "context_id": "c:1",
            "target": "huge",
            "offset": CONTEXT.index("huge"),
            "pos": "ADJ",
            "extra": {"coinco_ids": ["17"], "coinco_lemma": "huge"},
        },
        "t:2": {"context_id": "c:1", "target": "owned", "offset": CONTEXT.index("owned"), "pos": "VERB"},
    },
    "substitutes": {
        "s:1": {"target_id": "t:1", "substitute": "big"},
        "s:2": {"target_id": "t:1", "substitute": "very  large"},
        "s:3": {"target_id": "t:1", "substitute": "round", "extra": {"sources": ["x"]}},
        "s:4": {"target_id": "t:1", "substitute": "Huge"},
        "s:5": {"target_id": "t:2", "substitute": "have"},
        "s:6": {"target_id": "t:2", "substitute": "borrow"},
    },
    "substitutes_lemmatized": True,
    "substitute_labels": {
        "s:1": ["TRUE", "TRUE", "UNSURE", "FALSE"],
        "s:2": ["FALSE"] * 9 + ["TRUE"],
        "s:3": ["FALSE", "UNSURE", "FALSE"],
        "s:4": ["TRUE"],
        "s:5": ["TRUE"] * 3,
        "s:6": ["FALSE"] * 3,
    },
}

COINCO = """<?xml version="1.0" encoding="UTF-8"?>
<document>
  <sent MASCfile="news9.txt" MASCsentID="s-r0" >
    <precontext>
    The war went   on.
    </precontext>
    <targetsentence>
    "A mission... to end it," she &amp; I didn't think.
    </targetsentence>
    <postcontext>
    </postcontext>
    <tokens>
      <token id="XXX" wordform="``" lemma="``" posMASC="XXX" posTT="``" />
      <token id="XXX" wordform="A" lemma="a" posMASC="XXX" posTT="DT" />
      <token id="4" wordform="mission" lemma="mission" posMASC="NN" posTT="NN" problematic="no" >
        <substitutions>
          <subst lemma="goal" pos="NN" freq="2" />
          <subst lemma="task" pos="NN" freq="1" />
          <subst lemma="task" pos="VV" freq="3" />
          <subst lemma="hard job" pos="JJ NN" freq="1" />
        </substitutions>
      </token>
      <token id="XXX" wordform="…" lemma="…" posMASC="XXX" posTT=":" />
      <token id="XXX" wordform="to" lemma="to" posMASC="XXX" posTT="TO" />
      <token id="5" wordform="end" lemma="end" posMASC="VB" posTT="VV" problematic="yes" >
        <substitutions><subst lemma="odd" pos="VV" freq="1" /></substitutions>
      </token>
      <token id="XXX" wordform="it" lemma="it" posMASC="XXX" posTT="PP" />
      <token id="XXX" wordform="," lemma="," posMASC="XXX" posTT="," />
      <token id="XXX" wordform="''" lemma="''" posMASC="XXX" posTT="''" />
      <token id="XXX" wordform="she" lemma="she" posMASC="XXX" posTT="PP" />
      <token id="XXX" wordform="&amp;" lemma="and" posMASC="XXX" posTT="CC" />
      <token id="XXX" wordform="I" lemma="I" posMASC="XXX" posTT="PP" />
      <token id="6" wordform="didn" lemma="do" posMASC="NN" posTT="VVD" problematic="no" >
        <substitutions><subst lemma="did not" pos="VVD" freq="1" /></substitutions>
      </token>
    </tokens>
  </sent>
  <sent MASCfile="mail1.txt" MASCsentID="s-r7">
    <precontext></precontext>
    <targetsentence>Missions fail, end of missions ends badly</targetsentence>
    <postcontext></postcontext>
    <tokens>
      <token id="7" wordform="Missions" lemma="mission" posMASC="NNS" posTT="NNS" problematic="no">
        <substitutions><subst lemma="trip" pos="NN" freq="1" /></substitutions>
      </token>
      <token id="XXX" wordform="fail" lemma="fail" posMASC="XXX" posTT="VV" />
      <token id="XXX" wordform="," lemma="," posMASC="XXX" posTT="," />
      <token id="8" wordform="end" lemma="end" posMASC="NN" posTT="NN" problematic="no">
        <substitutions><subst lemma="close" pos="NN" freq="1" /></substitutions>
      </token>
      <token id="XXX" wordform="of" lemma="of" posMASC="XXX" posTT="IN" />
      <token id="9" wordform="missions" lemma="mission" posMASC="NNS" posTT="NNS" problematic="no">
        <substitutions><subst lemma="task" freq="2" /><subst lemma="mission" freq="1" /></substitutions>
      </token>
      <token id="10" wordform="ends" lemma="end" posMASC="VBZ" posTT="VVZ" problematic="no">
        <substitutions><subst lemma="close" freq="1" /></substitutions>
      </token>
      <token id="11" wordform="sadly" lemma="&lt;unknown&gt;" posMASC="RB" posTT="RB" problematic="no">
        <substitutions><subst lemma="poorly" freq="1" /></substitutions>
      </token>
    </tokens>
  </sent>
</document>
"""


def write(folder: Path, content: str | bytes, name: str = "file") -> str:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def swords(*keys: str, **changes: Any) -> dict[str, Any]:
    """``SWORDS`` with the entry at ``keys`` changed: each of ``changes`` replaced, or removed where it is None."""
    data = copy.deepcopy(SWORDS)
    entry = data
    for key in keys:
        entry = entry[key]
    for name, value in changes.items():
        if value is None:
            del entry[name]
        else:
            entry[name] = value
    return data


def problems(source: str) -> list[str]:
    with pytest.raises(InputError) as error:
        load_substitutions(source)
    return list(error.value.problems)


# SWORDS


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
            candidates=(("big", 0.5), ("very large", 0.1), ("round", 0.0)),
            lemma="huge",
            pos="a",
            inflected=False,
        ),
        Substitution(
            item="t:2",
            document="letters:2.txt",
            left="It rained. My aunt",
            target="owned",
            candidates=(("have", 1.0), ("borrow", 0.0)),
            lemma="owned",
            pos="v",
            inflected=False,
        ),
    )
    assert found.left_out == {}


@pytest.mark.parametrize(
    ("extra", "lemmatized", "lemma", "inflected"),
    [
        ({"coinco_lemma": "own"}, True, "own", True),
        ([{"coinco": {"xml_attrs": {"lemma": "own"}}}], True, "own", True),
        ({"coinco_lemma": "own"}, False, "own", False),
        ({"coinco_lemma": "Owned"}, True, "Owned", False),
        ({"other": 1}, True, "owned", False),
    ],
)
def test_swords_targets_are_inflected_where_their_lemma_is_known_and_candidates_are_lemmas(
    tmp_path: Path, extra: Any, lemmatized: bool, lemma: str, inflected: bool
) -> None:
    data = swords("targets", "t:2", extra=extra) | {"substitutes_lemmatized": lemmatized}
    item = load_substitutions(write(tmp_path, json.dumps(data))).items[1]
    assert (item.lemma, item.inflected) == (lemma, inflected)


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


def test_many_problems_are_told_in_few_lines(tmp_path: Path) -> None:
    data = swords(
        "substitutes", **{f"x:{index}": {"target_id": "t:1", "substitute": f"w{index}"} for index in range(50)}
    )
    found = problems(write(tmp_path, json.dumps(data)))
    assert len(found) == 21
    assert "30 more" in found[-1]


# CoInCo


def test_coinco_candidates_are_those_named_here_and_for_the_lemma_elsewhere(tmp_path: Path) -> None:
    source = write(tmp_path, COINCO)
    found = load_substitutions(source)
    assert found.source == f"CoInCo ({source})"
    assert found.items == (
        Substitution(
            item="4",
            document="news9.txt",
            left='The war went on. "A',
            target="mission",
            candidates=(("task", 4.0), ("goal", 2.0), ("hard job", 1.0), ("trip", 0.0)),
            lemma="mission",
            pos="n",
            inflected=False,
        ),
        Substitution(
            item="9",
            document="mail1.txt",
            left="Missions fail, end of",
            target="missions",
            candidates=(("task", 2.0), ("goal", 0.0), ("hard job", 0.0), ("trip", 0.0)),
            lemma="mission",
            pos="n",
            inflected=True,
        ),
    )


def test_coinco_targets_that_cannot_be_asked_are_counted(tmp_path: Path) -> None:
    assert load_substitutions(write(tmp_path, COINCO)).left_out == {
        substitutions.PROBLEMATIC: 1,  # 5
        substitutions.GLUED: 1,  # 6, of "didn't"
        substitutions.FIRST: 1,  # 7
        substitutions.ONE_SIDED: 2,  # 8 as a noun and 10 as a verb; what was named for the problematic 5 is no candidate
        substitutions.MISSING: 1,  # 11 is not in the sentence
    }


def test_a_token_that_occurs_twice_is_found_at_its_own_place(tmp_path: Path) -> None:
    sentence = "He said he could end the end."
    tokens = "".join(
        f'<token id="XXX" wordform="{form}" lemma="x"/>' for form in ("He", "said", "he", "could", "end", "the")
    )
    named = "".join(
        f'<token id="{item}" wordform="end" lemma="end" posMASC="NN">{subst}</token>'
        for item, subst in ((1, '<subst lemma="stop" freq="1"/>'), (2, '<subst lemma="aim" freq="1"/>'))
    )
    text = (
        f"<document><sent><targetsentence>{sentence}</targetsentence><tokens>{tokens}{named}</tokens></sent></document>"
    )
    # The first target stands after "the" as its token does, the second nowhere.
    found = load_substitutions(write(tmp_path, text))
    assert [(item.item, item.left) for item in found.items] == [("1", "He said he could end the")]
    assert found.left_out == {substitutions.MISSING: 1}


def test_a_token_that_is_spelled_otherwise_is_not_taken_for_a_later_one(tmp_path: Path) -> None:
    tokens = "".join(f'<token id="XXX" wordform="{form}" lemma="x"/>' for form in ("&quot;", "Go", "to", "the"))
    named = (
        '<token id="1" wordform="end" lemma="end" posMASC="NN"><subst lemma="stop" freq="1"/></token>'
        '<token id="2" wordform="end" lemma="end" posMASC="NN" problematic="no"><subst lemma="aim" freq="1"/></token>'
    )
    sentence = '\u201cGo to the end" he said'
    text = (
        f"<document><sent><targetsentence>{sentence}</targetsentence><tokens>{tokens}{named}</tokens></sent></document>"
    )
    (item,) = load_substitutions(write(tmp_path, text)).items
    assert (item.left, item.target) == ("\u201cGo to the", "end")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("</document>", "", f"line {len(COINCO.splitlines()) + 1}: is not XML"),
        ('freq="2" />', 'freq="two" />', "token 4: freq 'two' of 'goal'"),
        ('freq="2" />', 'freq="0" />', "token 4: freq '0' of 'goal'"),
        ('lemma="goal" ', "", "token 4: has a subst without a lemma"),
        ('wordform="mission" ', "", "token 4: has no wordform"),
        ("<document>", "<!DOCTYPE document>\n<document>", "DOCTYPE"),
        (
            "<document>",
            '<!DOCTYPE document [<!ENTITY a "aa"><!ENTITY b "&a;&a;">]>\n<document>',
            "declares a DOCTYPE or entities",
        ),
    ],
)
def test_what_is_wrong_in_coinco_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in COINCO
    source = write(tmp_path, COINCO.replace(old, new, 1))
    (problem,) = problems(source)
    assert problem.startswith(source)
    assert expected in problem


# Both


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
        gzip.compress(COINCO.encode())[:40],
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
