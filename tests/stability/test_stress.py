"""Planted faults of the batch, the rate and the shares of ranks: what they are, where they act, and that they are the same on
any number of ranks."""

import math
from collections import Counter
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InputError
from common.section import Choice
from data.batches import IGNORED
from stability.stress.base import describe_stresses, make_stresses
from stability.stress.kinds import STRESSES

VOCABULARY, LENGTH = 500, 12


class Split:
    # Token k occurs about 500 - k times: the rarest ones are the last, and 499 never occurs.
    ids = np.repeat(np.arange(499), 500 - np.arange(499)).astype(np.uint16)


class Store:
    vocab_size, train = VOCABULARY, Split


def stresses(*entries, seed=0):
    assert all(entry["kind"] in STRESSES for entry in entries)
    choices = [Choice.model_validate(entry) for entry in entries]
    return make_stresses(choices, seed=seed, store=Store(), sequence_length=LENGTH)


def corrupt(x_BT, y_BT, planted, batch, first_row=0):
    for stress in planted:
        if stress.acts(batch, batch):
            stress.batch(batch, x_BT, y_BT, first_row=first_row)


def zeros():
    return torch.zeros(8, LENGTH, dtype=torch.int64), torch.zeros(8, LENGTH, dtype=torch.int64)


def text(rows=8, length=LENGTH, seed=0):
    """Windows of an imagined text, with few tokens twice."""
    window_BW = torch.from_numpy(np.random.default_rng(seed).integers(VOCABULARY, size=(rows, length + 1)))
    return window_BW[:, :-1].clone(), window_BW[:, 1:].clone()


def windows(x_BT, y_BT):
    assert torch.equal(x_BT[:, 1:], y_BT[:, :-1]), "a sequence and its targets stay one text"
    return torch.cat([x_BT, y_BT[:, -1:]], 1).tolist()


RANDOM = {"kind": "corrupt_sequences", "step": 5, "steps": 2, "sequences": 3, "pattern": "random"}
REPEATED = {"kind": "corrupt_sequences", "step": 5, "sequences": 8, "pattern": "repeated", "period": 3}
SHUFFLED = {"kind": "corrupt_sequences", "step": 5, "steps": 2, "sequences": 7, "pattern": "shuffled"}
SPAN = SHUFFLED | {"pattern": "repeated_span", "period": 2, "repeats": 4}
RARE = SHUFFLED | {"pattern": "rare", "rare_share": 0.001}
LABELS = {"kind": "label_noise", "step": 5, "steps": 2, "share": 0.5}
DEAD = {"kind": "dead_rank", "step": 5, "steps": 2, "ranks": 3, "rank": 1}


def test_sequences_are_corrupted_at_their_batches_only():
    for batch, expected in ((4, 0), (5, 3), (6, 3), (7, 0)):
        x_BT, y_BT = zeros()
        corrupt(x_BT, y_BT, stresses(RANDOM), batch)
        assert (x_BT.sum(1) > 0).tolist() == [row < expected for row in range(8)]
        assert torch.equal(x_BT[:, 1:], y_BT[:, :-1]), "a sequence and its targets stay one text"
        assert int(x_BT.max()) < 500


@pytest.mark.parametrize(
    "fault", [RANDOM, SHUFFLED, SPAN, RARE, LABELS], ids=lambda fault: fault.get("pattern", "labels")
)
def test_a_fault_of_the_batch_acts_at_its_batches_only_and_each_time_anew(fault):
    found = []
    for batch in (4, 5, 6, 7):
        x_BT, y_BT = text()
        corrupt(x_BT, y_BT, stresses(fault), batch)
        found.append(torch.cat([x_BT, y_BT], 1))
    sound = torch.cat(text(), 1)
    assert [torch.equal(one, sound) for one in found] == [True, False, False, True]
    assert not torch.equal(found[1], found[2])


def test_what_is_repeated_has_its_period():
    x_BT, y_BT = zeros()
    corrupt(x_BT, y_BT, stresses(REPEATED), 5)
    assert torch.equal(x_BT[:, :-3], x_BT[:, 3:])
    assert len({tuple(row) for row in x_BT.tolist()}) == 8


def test_what_is_shuffled_has_its_own_tokens_in_another_order():
    sound, found = text(), text()
    corrupt(*found, stresses(SHUFFLED), 5)
    for row, (before, after) in enumerate(zip(windows(*sound), windows(*found), strict=True)):
        assert Counter(before) == Counter(after)
        assert (before == after) == (row == 7)


@given(st.integers(1, 13), st.integers(1, 13), st.integers(0, 1 << 20))
def test_a_repeated_span_is_the_text_s_own_and_the_rest_stays(period, repeats, seed):
    length = period * repeats + seed % 5
    sound, found = text(2, length), text(2, length)
    fault = SPAN | {"period": period, "repeats": repeats, "sequences": 1}
    corrupt(*found, stresses(fault, seed=seed), 5)
    (before, other), (after, same) = windows(*sound), windows(*found)
    assert other == same
    possible = [
        [*before[:start], *before[start : start + period] * repeats, *before[start + period * repeats :]]
        for start in range(length + 2 - period * repeats)
    ]
    assert after in possible


def test_a_span_may_be_repeated_at_every_place():
    sound = windows(*text())[0]
    starts = set()
    for seed in range(60):
        found = text()
        corrupt(*found, stresses(SPAN, seed=seed), 5)
        after = windows(*found)[0]
        starts.add(next(start for start in range(6) if after[start : start + 8] == sound[start : start + 2] * 4))
    assert starts == set(range(6))


def test_rare_tokens_are_those_that_make_up_the_last_share():
    counts = 500 - np.arange(499)
    rarest = {k for k in range(499) if counts[k:].sum() <= 0.001 * counts.sum()}
    assert 5 < len(rarest) < 30
    drawn = set()
    for seed in range(20):
        found = text()
        corrupt(*found, stresses(RARE, seed=seed), 5)
        drawn |= set(chain(*windows(*found)[:7]))
    assert drawn == rarest
    found = text()
    corrupt(*found, stresses(RARE | {"rare_share": 1e-9}), 5)
    assert set(chain(*windows(*found)[:7])) == {498}, "the rarest token that occurs"


def test_label_noise_replaces_its_share_of_the_targets_that_count():
    (x_BT, y_BT), (sound_x, sound_y) = text(400), text(400)
    y_BT[3], sound_y[3] = IGNORED, IGNORED
    corrupt(x_BT, y_BT, stresses(LABELS | {"share": 0.3}), 5)
    assert torch.equal(x_BT, sound_x)
    assert bool((y_BT[3] == IGNORED).all())
    assert float((y_BT != sound_y).float().mean()) == pytest.approx(0.3 * 499 / 500, abs=0.03)
    noise = y_BT[y_BT != sound_y]
    assert int(noise.min()) < 25
    assert int(noise.max()) > 475


def test_after_targets_are_ignored_a_sequence_can_still_be_corrupted():
    found = text()
    corrupt(*found, stresses(RANDOM | {"pattern": "ignored"}, SHUFFLED), 5)
    assert min(map(min, windows(*found))) >= 0


@pytest.mark.parametrize(
    "fault", [RANDOM, SHUFFLED, SPAN, RARE, LABELS], ids=lambda fault: fault.get("pattern", "labels")
)
def test_ranks_share_the_faults_of_one(fault):
    whole = text()
    corrupt(*whole, stresses(fault, seed=7), 5)
    parts = [tuple(t[2 * rank : 2 * rank + 2] for t in text()) for rank in range(4)]
    for rank, part in enumerate(parts):
        corrupt(*part, stresses(fault, seed=7), 5, first_row=2 * rank)
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0])
    assert torch.equal(torch.cat([y for _, y in parts]), whole[1])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_share_of_a_dead_rank_is_missing_on_any_number_of_processes(ranks):
    (dead,) = stresses(DEAD)
    y_BT = text()[1]
    for rank, y_RT in enumerate(y_BT.chunk(ranks)):
        dead.lose(5, y_RT, first_row=rank * 8 // ranks, batch_rows=8)
    assert (y_BT == IGNORED).all(1).tolist() == [2 <= row < 5 for row in range(8)], "rows 8/3 to 16/3"
    assert not (y_BT == IGNORED)[[0, 1, 5, 6, 7]].any()


def test_sequences_are_cut_without_a_change_of_their_tokens():
    (short,) = stresses({"kind": "short_sequences", "step": 5, "parts": 4})
    (x_BT, y_BT), sound = text(), text()
    x_RT, y_RT = short.reshape(5, x_BT, y_BT)
    assert x_RT.shape == y_RT.shape == (32, 3)
    assert x_RT[4:8].flatten().tolist() == sound[0][1].tolist()
    assert y_RT[4:8].flatten().tolist() == sound[1][1].tolist()
    with pytest.raises(InputError, match=r"stress\.0\.parts: 4 does not divide the 3 tokens that another stress left"):
        short.reshape(5, x_RT, y_RT)


def test_a_small_batch_has_evenly_spaced_sequences():
    (small,) = stresses({"kind": "small_batch", "step": 5, "sequences": 3})
    x_RT, y_RT = small.reshape(5, *text())
    assert torch.equal(x_RT, text()[0][[0, 2, 5]])
    assert torch.equal(y_RT, text()[1][[0, 2, 5]])
    assert all(map(torch.equal, small.reshape(5, x_RT[:2], y_RT[:2]), (x_RT[:2], y_RT[:2]))), "no sequence twice"


def test_the_learning_rate_is_scaled_while_the_fault_lasts():
    planted = stresses(
        {"kind": "scale_lr", "step": 4, "steps": 2, "factor": 10.0}, {"kind": "scale_lr", "step": 5, "factor": 0.5}
    )
    factors = [math.prod(s.rate(step) for s in planted if s.acts(step, step)) for step in (3, 4, 5, 6)]
    assert factors == [1.0, 10.0, 5.0, 1.0]
    assert describe_stresses(planted, 5, 5) == ["learning rate times 10", "learning rate times 0.5"]
    assert describe_stresses(stresses(RANDOM), 4, 5) == ["3 sequences of batch 5 replaced by random tokens"]


def test_without_an_end_the_rate_is_a_step_to_the_end():
    planted = stresses({"kind": "scale_lr", "step": 4, "steps": None, "factor": 1000.0})
    factors = [math.prod(s.rate(step) for s in planted if s.acts(step, step)) for step in (3, 4, 5, 1 << 40)]
    assert factors == [1.0, 1000.0, 1000.0, 1000.0]


def test_two_of_a_kind_draw_different_numbers():
    one, two = text(), text()
    first, second = stresses(RANDOM, RANDOM)
    first.batch(5, *one, first_row=0)
    second.batch(5, *two, first_row=0)
    assert not torch.equal(one[0], two[0])
