"""Negatives: as many in every batch, the same ones on any number of ranks, and each of its kind."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batches import IGNORED
from data.negatives import Negatives, negative_count

VOCABULARY, LENGTH = 50, 12
CORPUS = np.arange(1000, 1040)


def negatives(kind, count, batch_size, seed=3):
    corpus = CORPUS if kind == "corpus" else None
    return Negatives(kind, count=count, batch_size=batch_size, vocab_size=VOCABULARY, seed=seed, corpus=corpus)


def text(rows):
    ids = torch.arange(rows * (LENGTH + 1)).view(rows, LENGTH + 1) % VOCABULARY
    return ids[:, :-1].clone(), ids[:, 1:].clone()


@given(batch_size=st.integers(2, 64), share=st.floats(0.01, 0.99), parts=st.sampled_from([1, 2, 4]))
def test_all_parts_of_a_batch_have_nearly_as_many(batch_size, share, parts):
    batch_size *= parts
    count = negative_count(share, batch_size)
    found = negatives("random", count, batch_size)
    rows = batch_size // parts
    of_part = [len(found.rows(part * rows, rows)) for part in range(parts)]
    assert sum(of_part) == count
    assert max(of_part) - min(of_part) <= 1
    assert count == batch_size or not found.is_negative_B[0]


@pytest.mark.parametrize("kind", ["shuffled", "random", "corpus"])
@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_has_the_same_ones(kind, world_size):
    x_BT, y_BT = text(8)
    negatives(kind, 3, 8).replace(5, x_BT, y_BT, first_row=0)
    x_RTs, y_RTs = (ids.chunk(world_size) for ids in text(8))
    for rank, (x_RT, y_RT) in enumerate(zip(x_RTs, y_RTs, strict=True)):
        negatives(kind, 3, 8).replace(5, x_RT, y_RT, first_row=rank * len(x_RT))
    assert torch.equal(torch.cat(x_RTs), x_BT)
    assert torch.equal(torch.cat(y_RTs), y_BT)


@pytest.mark.parametrize("kind", ["shuffled", "random", "corpus"])
def test_the_rest_of_the_batch_stays(kind):
    found, (x_BT, y_BT), (before_BT, targets_BT) = negatives(kind, 3, 8), text(8), text(8)
    found.replace(5, x_BT, y_BT, first_row=0)
    own = torch.from_numpy(found.is_negative_B)
    assert own.sum() == 3
    assert torch.equal(x_BT[~own], before_BT[~own])
    assert torch.equal(y_BT[~own], targets_BT[~own])
    assert bool((y_BT[own] == IGNORED).all())
    assert not any(torch.equal(x_T, before_T) for x_T, before_T in zip(x_BT[own], before_BT[own], strict=True))


def test_each_is_of_its_kind():
    before_BT, _ = text(8)
    for kind in ("shuffled", "random", "corpus"):
        found, (x_BT, y_BT) = negatives(kind, 4, 8), text(8)
        found.replace(1, x_BT, y_BT, first_row=0)
        for x_T, before_T in zip(x_BT[found.is_negative_B], before_BT[found.is_negative_B], strict=True):
            if kind == "shuffled":
                assert torch.equal(x_T.sort().values, before_T.sort().values)
            elif kind == "random":
                assert 0 <= int(x_T.min()) <= int(x_T.max()) < VOCABULARY
            else:
                assert torch.equal(x_T, x_T[0] + torch.arange(LENGTH))
                assert int(x_T[0]) >= 1000


@pytest.mark.parametrize("kind", ["shuffled", "random", "corpus"])
def test_they_depend_on_batch_row_and_seed_alone(kind):
    def drawn(batch, seed):
        found, (x_BT, y_BT) = negatives(kind, 8, 16, seed), text(16)
        found.replace(batch, x_BT, y_BT, first_row=0)
        return x_BT[found.is_negative_B]

    assert torch.equal(drawn(2, 0), drawn(2, 0))
    assert not torch.equal(drawn(2, 0), drawn(3, 0))
    assert not torch.equal(drawn(2, 0), drawn(2, 1))
    assert len({tuple(x_T.tolist()) for x_T in drawn(2, 0)}) > 1


def test_random_tokens_are_uniform():
    found, x_BT = negatives("random", 99, 100), torch.zeros(100, 1000, dtype=torch.long)
    found.replace(1, x_BT, torch.zeros_like(x_BT), first_row=0)
    count_V = x_BT[found.is_negative_B].flatten().bincount(minlength=VOCABULARY).double()
    expected = 99_000 / VOCABULARY
    assert float(((count_V - expected) ** 2 / expected).sum()) < 95  # chi-squared of 49 degrees: 1 in 10,000


@pytest.mark.parametrize("length", [40, 39])
def test_all_places_of_a_text_may_be_drawn(length):
    starts = set()
    for batch in range(40):
        x_BT, y_BT = (torch.zeros(2, length, dtype=torch.long) for _ in range(2))
        negatives("corpus", 1, 2).replace(batch, x_BT, y_BT, first_row=0)
        starts.add(int(x_BT[1, 0]))
    assert starts == set(range(1000, 1041 - length))
