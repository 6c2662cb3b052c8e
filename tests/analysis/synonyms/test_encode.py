from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analysis.synonyms.encode import Encoded, encode_study
from analysis.synonyms.study import Study
from common.errors import InputError
from tests.analysis.guests import other_bpe, whole_pieces, with_bos
from tests.analysis.text import SEQUENCE_LENGTH, Text


def as_guest(study: Study, tokenizer: Any) -> Encoded:
    return encode_study(study, tokenizer)


def test_the_stores_own_tokens_stay_as_they_are(study: Study, text: Text) -> None:
    encoded = encode_study(study)
    assert all((ours == theirs).all() for ours, theirs in zip(encoded.passages, study.passages, strict=True))
    np.testing.assert_array_equal(encoded.position_C, study.position_C)
    assert encoded.longest == SEQUENCE_LENGTH


@pytest.mark.parametrize("tokenizer", [None, other_bpe()])
def test_a_tree_holds_each_candidate_and_every_beginning_once(study: Study, text: Text, tokenizer: Any) -> None:
    encoded = encode_study(study, tokenizer)
    shared = 0
    for unit, tree in zip(study.units, encoded.trees, strict=True):
        paths = []
        for node, parent in enumerate(tree.parent_E.tolist()):
            paths.append([*(paths[parent] if parent >= 0 else []), int(tree.token_E[node])])
            assert parent < node
            assert tree.depth_E[node] == len(paths[node])
        assert len({tuple(path) for path in paths}) == len(paths)
        for candidate, leaf in zip(unit.candidates, tree.leaf_K, strict=True):
            assert encoded.vocabulary.decode(paths[leaf]) == candidate.surface
        shared += sum(len(paths[leaf]) for leaf in tree.leaf_K) - len(paths)
    assert shared > 0  # " ki" stands once for " kimu" and " kiki"


@pytest.mark.parametrize("tokenizer", [other_bpe(), with_bos(), whole_pieces()])
def test_a_guest_reads_the_same_text_up_to_every_place(study: Study, text: Text, tokenizer: Any) -> None:
    encoded = as_guest(study, tokenizer)
    bos = tokenizer.encode("")
    for place, (passage, position) in enumerate(zip(study.passage_C, study.position_C, strict=True)):
        theirs = study.passages[passage][: position + 1].tolist()
        ours = encoded.passages[passage][: encoded.position_C[place] + 1].tolist()
        assert ours[: len(bos)] == bos
        written = tokenizer.decode(ours[len(bos) :]).replace(tokenizer.eos_token, text.tokenizer.eos_token)
        assert written == text.tokenizer.decode(theirs)
        assert ours.count(tokenizer.eos_token_id) == theirs.count(study.end_of_text)
        assert not set(bos) & set(ours[len(bos) :])
    ends = [len(encoded.passages[p]) for p in range(len(study.passages))]
    assert encoded.longest >= max(ends)


def begin_with_end_of_text(study: Study) -> Study:
    """Every passage as a substitution's is: an end of text, then the text."""
    passages = tuple(np.concatenate([[study.end_of_text], ids]) for ids in study.passages)
    return replace(study, passages=passages, position_C=study.position_C + 1)


def test_what_stands_before_a_text_is_the_guests_own(study: Study) -> None:
    later = begin_with_end_of_text(study)
    plain, bos = other_bpe(), with_bos()
    for ids, without in zip(as_guest(later, plain).passages, as_guest(study, plain).passages, strict=True):
        assert ids.tolist() == [plain.eos_token_id, *without]
    first, second = as_guest(later, bos), as_guest(study, bos)
    for ids, without in zip(first.passages, second.passages, strict=True):
        assert ids.tolist() == without.tolist()  # <s> alone, not an end of text after it as well
    np.testing.assert_array_equal(first.position_C, second.position_C)


def test_a_place_at_the_very_beginning_needs_a_token_before_it(study: Study) -> None:
    alone = replace(study, passages=(np.array([study.end_of_text]),), passage_C=np.zeros(1, int))
    alone = replace(alone, position_C=np.zeros(1, int), document_C=np.zeros(1, int), place_M=np.zeros(1, int))
    alone = replace(alone, unit_M=np.zeros(1, int), shuffled_M=np.zeros(1, bool))
    for tokenizer in (other_bpe(), with_bos(), whole_pieces()):
        encoded = as_guest(alone, tokenizer)
        assert encoded.position_C.tolist() == [0]
        assert encoded.passages[0].tolist() == [
            tokenizer.encode("")[0] if tokenizer.encode("") else tokenizer.eos_token_id
        ]
    with pytest.raises(InputError, match="no token for the beginning of a passage"):
        as_guest(alone, whole_pieces(eos=False))


def test_candidates_that_a_guest_cannot_tell_from_the_quote_before_them_have_no_leaf(study: Study) -> None:
    encoded = as_guest(study, whole_pieces())
    leaves = {True: [], False: []}
    for unit, tree in zip(study.units, encoded.trees, strict=True):
        leaves[unit.spaced] += tree.leaf_K.tolist()
    assert min(leaves[True]) >= 0
    assert min(leaves[False]) == -1


def test_the_longest_is_what_a_model_needs_positions_for(study: Study, text: Text) -> None:
    encoded = encode_study(study)
    ends = [
        encoded.position_C[place] + 1 + depth
        for place, unit in zip(study.place_M, study.unit_M, strict=True)
        for depth in encoded.trees[unit].depth_E
    ]
    short = replace(encoded, passages=tuple(ids[:1] for ids in encoded.passages))
    assert short.longest == max(ends)
