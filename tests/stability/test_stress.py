"""Planted faults: where they act, and that they are the same on any number of ranks."""

import math

import torch

from common.section import Choice
from stability.stress.base import describe_stresses, make_stresses
from stability.stress.kinds import STRESSES


class Store:
    vocab_size = 500


def stresses(*entries, seed=0):
    assert all(entry["kind"] in STRESSES for entry in entries)
    return make_stresses([Choice.model_validate(entry) for entry in entries], seed=seed, store=Store())


def corrupt(x_BT, y_BT, planted, batch, first_row=0):
    for stress in planted:
        if stress.acts(batch, batch):
            stress.batch(batch, x_BT, y_BT, first_row=first_row)


def zeros():
    return torch.zeros(8, 12, dtype=torch.int64), torch.zeros(8, 12, dtype=torch.int64)


RANDOM = {"kind": "corrupt_sequences", "step": 5, "steps": 2, "sequences": 3, "pattern": "random"}
REPEATED = {"kind": "corrupt_sequences", "step": 5, "sequences": 8, "pattern": "repeated", "period": 3}


def test_sequences_are_corrupted_at_their_batches_only():
    for batch, expected in ((4, 0), (5, 3), (6, 3), (7, 0)):
        x_BT, y_BT = zeros()
        corrupt(x_BT, y_BT, stresses(RANDOM), batch)
        assert (x_BT.sum(1) > 0).tolist() == [row < expected for row in range(8)]
        assert torch.equal(x_BT[:, 1:], y_BT[:, :-1]), "a sequence and its targets stay one text"
        assert int(x_BT.max()) < 500


def test_what_is_repeated_has_its_period():
    x_BT, y_BT = zeros()
    corrupt(x_BT, y_BT, stresses(REPEATED), 5)
    assert torch.equal(x_BT[:, :-3], x_BT[:, 3:])
    assert len({tuple(row) for row in x_BT.tolist()}) == 8


def test_ranks_share_the_faults_of_one():
    whole = zeros()
    corrupt(*whole, stresses(RANDOM, seed=7), 5)
    parts = [tuple(t[2 * rank : 2 * rank + 2] for t in zeros()) for rank in range(4)]
    for rank, part in enumerate(parts):
        corrupt(*part, stresses(RANDOM, seed=7), 5, first_row=2 * rank)
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0])
    assert torch.equal(torch.cat([y for _, y in parts]), whole[1])


def test_the_learning_rate_is_scaled_while_the_fault_lasts():
    planted = stresses(
        {"kind": "scale_lr", "step": 4, "steps": 2, "factor": 10.0}, {"kind": "scale_lr", "step": 5, "factor": 0.5}
    )
    factors = [math.prod(s.rate(step) for s in planted if s.acts(step, step)) for step in (3, 4, 5, 6)]
    assert factors == [1.0, 10.0, 5.0, 1.0]
    assert describe_stresses(planted, 5, 5) == ["learning rate times 10", "learning rate times 0.5"]
    assert describe_stresses(stresses(RANDOM), 4, 5) == ["3 sequences of batch 5 replaced by random tokens"]
