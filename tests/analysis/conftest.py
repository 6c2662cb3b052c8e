from __future__ import annotations

from pathlib import Path

import pytest

from analysis.synonyms.build_study import Controls, HeldOut, study_of_pairs
from analysis.synonyms.study import Study

from .corpus import write_corpus
from .text import PAIRS, SEQUENCE_LENGTH, Text, small_text


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the corpus of tests/analysis/corpus.py in text/; its store and models go beside it."""
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "text")
    return folder


@pytest.fixture(scope="session")
def text() -> Text:
    """The text of tests/analysis/text.py."""
    return small_text()


@pytest.fixture(scope="session")
def held_out(text: Text) -> HeldOut:
    """Its validation split."""
    return HeldOut(text.ids, text.starts, SEQUENCE_LENGTH, text.vocabulary)


@pytest.fixture(scope="session")
def controls(text: Text) -> Controls:
    """Its control words, of no known part of speech."""
    return Controls(text.words, lambda word: frozenset())


@pytest.fixture(scope="session")
def study(text: Text, held_out: HeldOut, controls: Controls) -> Study:
    """A few places of each word of PAIRS."""
    return study_of_pairs(
        PAIRS, text.vocabulary, controls, held_out, end_of_text=text.end_of_text, min_contexts=4, contexts_per_word=4
    )
