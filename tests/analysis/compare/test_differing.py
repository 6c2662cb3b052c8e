"""In which keys configurations are said to differ."""

from __future__ import annotations

from analysis.compare.differing import differing, differing_words

PLAIN = {"head": {"kind": "metric", "scale": 2.0}, "negatives": None, "name": "a"}
WITH = PLAIN | {"negatives": {"kind": "random", "share": 0.25}, "name": "b"}


def test_a_section_that_only_one_run_has_is_a_difference() -> None:
    """By its kind; the keys beside it follow from that."""
    assert differing([PLAIN, WITH]) == {"negatives.kind": [None, "random"]}
    assert differing_words([PLAIN, WITH], "arms") == "The arms differ in: negatives.kind (- | random)."


def test_what_follows_from_another_kind_is_none() -> None:
    cosine = PLAIN | {"head": {"kind": "cosine", "margin": 0.0}}
    assert differing([PLAIN, cosine]) == {"head.kind": ["metric", "cosine"]}
    assert differing([PLAIN, PLAIN | {"name": "c"}]) == {}


def test_of_two_runs_with_the_section_its_keys_are_compared() -> None:
    more = WITH | {"negatives": {"kind": "random", "share": 0.5}}
    assert differing([WITH, more, PLAIN]) == {
        "negatives.share": [0.25, 0.5, None],
        "negatives.kind": ["random", "random", None],
    }
