from __future__ import annotations

from pathlib import Path

import pytest

from analysis.words import substitutions
from analysis.words.substitution_files import load_substitutions
from analysis.words.substitutions import Substitution
from tests.analysis.substitutes import COINCO, problems, write


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
        ),
        Substitution(
            item="9",
            document="mail1.txt",
            left="Missions fail, end of",
            target="missions",
            candidates=(("task", 2.0), ("goal", 0.0), ("hard job", 0.0), ("trip", 0.0)),
            lemma="mission",
            pos="n",
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
