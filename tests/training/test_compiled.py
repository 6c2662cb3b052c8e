"""Compiling the body: what is put in the place of activations that compile badly, when it is compiled, and who waits for whom."""

import math
import shutil

import pytest
import torch
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from transformers import AutoModel, GPT2Config
from transformers.activations import ACT2FN

from common.errors import InputError
from training.compiled import SigmoidGELU, check_compiler, compile_body, compiling_alone

SAME = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def by_definition(x: float) -> float:
    """In float64, without the cancellation of 1 + tanh for negative x."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + math.exp(-2 * u)) if u > -300 else 0.0


@given(st.floats(-20, 20, width=32))
def test_the_activation_is_gelus_tanh_form(x):
    found = SigmoidGELU()(torch.tensor(x)).item()
    assert found == pytest.approx(by_definition(x), rel=2e-5, abs=1e-37)


@pytest.mark.parametrize("name", SAME)
def test_it_stands_for_activations_that_are_the_same_function(name):
    x_N = torch.linspace(-12, 12, 4001, dtype=torch.float64, requires_grad=True)
    there_N, here_N = ACT2FN[name](x_N), SigmoidGELU()(x_N)
    torch.testing.assert_close(here_N, there_N, rtol=0, atol=1e-9)
    slopes = [torch.autograd.grad(y_N.sum(), x_N)[0] for y_N in (here_N, there_N)]
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "replaced"), [*((name, True) for name in SAME), ("gelu", False), ("relu", False)])
def test_only_those_are_replaced_in_a_body_that_is_to_be_compiled(name, replaced):
    config = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, activation_function=name)
    body = AutoModel.from_config(config)
    compile_body(body)
    activations: list[nn.Module] = [block.mlp.act for block in body.h]
    assert all(isinstance(act, SigmoidGELU) == replaced for act in activations)


def test_only_training_runs_what_is_compiled():
    config, graphs = GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2), CompileCounter()
    body = AutoModel.from_config(config)
    compile_body(body, backend=graphs)
    for mode in (body.eval, body.train, body.eval):
        mode()(torch.zeros(1, 4, dtype=torch.long))
    assert graphs.frame_count == 1


def test_a_process_waits_for_another_that_compiles_but_not_if_it_is_to_stop(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    free, asked = [], []
    lock = FileLock(tmp_path / "compiling.lock", thread_local=False)

    def stopped() -> bool:
        asked.append(lock.release())
        return False

    with lock, compiling_alone(stopped):
        free.append(not lock.is_locked)
    assert free == [True] and len(asked) == 1
    assert "waits for another run that compiles" in capsys.readouterr().err
    with lock, compiling_alone(lambda: True):
        assert lock.is_locked


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_a_compiler_that_is_not_there_is_told_in_a_line(monkeypatch):
    check_compiler()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(InputError, match=r"train\.compile: there is no C\+\+ compiler"):
        check_compiler()
