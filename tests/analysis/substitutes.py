"""A small file of each format of lexical substitutions, and what is changed in them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from analysis.words.substitution_files import load_substitutions
from common.errors import InputError

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
        "s:1": ["TRUE", "TRUE", "TRUE", "UNSURE"],
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
    """The path of a new file with this content."""
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
    """What loading ``source`` says is wrong with it."""
    with pytest.raises(InputError) as error:
        load_substitutions(source)
    return list(error.value.problems)
