"""The loss benchmark: its contestants compute the same thing, and it measures them all."""

import pytest
import torch

from benchmarks.loss import MATMULS, contestants, main, measure

CPU = torch.device("cpu")


def value_and_gradients(loss, h_ND, w_VD, y_N):
    h_ND, w_VD = h_ND.clone().requires_grad_(), w_VD.clone().requires_grad_()
    value = loss(h_ND, w_VD, y_N)
    return value.detach(), *torch.autograd.grad(value, (h_ND, w_VD))


@pytest.mark.parametrize("kind", ["TFSD", "CE"])
def test_contestants_with_the_same_objective_and_head_agree(kind):
    generator = torch.Generator().manual_seed(0)
    h_ND, w_VD = torch.randn(300, 16, generator=generator), torch.randn(50, 16, generator=generator)
    y_N = torch.randint(0, 50, (300,), generator=generator)
    linear_ce = ("CE, linear", "cross_entropy", "cut-cross")
    names = {
        "TFSD": [name for name in contestants(CPU) if "TFSD" in name],
        "CE": [name for name in contestants(CPU) if any(part in name for part in linear_ce)],
    }[kind]
    fewest = {"TFSD": 3, "CE": 4 if hasattr(torch.nn.functional, "linear_cross_entropy") else 2}  # from torch 2.13 on
    assert len(names) >= fewest[kind]
    first, *others = (value_and_gradients(contestants(CPU)[name], h_ND, w_VD, y_N) for name in names)
    for other in others:
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_every_contestant_is_measured():
    seconds, memory = measure(600, 8, 40, rounds=2, device=CPU, threads=1)
    assert seconds.keys() == memory.keys() == {MATMULS, *contestants(CPU)}
    assert all(len(values) == 2 and (values > 0).all() for values in seconds.values())
    assert memory["F.kl_div definition of TFSD"] > 3 > memory["CE, linear"]


def test_a_wrong_shape_is_one_line(monkeypatch, capsys):
    from common.command import exit_status

    monkeypatch.setattr("sys.argv", ["loss", "--shapes", "12,x"])
    assert exit_status(main) == 2
    assert "--shapes: '12,x' is not N,D,V" in capsys.readouterr().err
