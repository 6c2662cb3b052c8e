"""The plain GPT is the transformers body but for its code, and the benchmark's contestants all take their steps."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, GPT2Config

from benchmarks import paired
from benchmarks.paired import _order, ratio
from benchmarks.plain_gpt import PlainGPT
from benchmarks.throughput import main, measure
from common.command import exit_status

CONFIG = GPT2Config(
    **{"vocab_size": 97, "n_positions": 16, "n_embd": 24, "n_layer": 3, "n_head": 4},
    **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "activation_function": "gelu_pytorch_tanh"},
)
LINEARS = {
    **{"attn.c_attn": "attention.query_key_value", "attn.c_proj": "attention.output"},
    **{"mlp.c_fc": "up", "mlp.c_proj": "down"},
}
NORMS = {"ln_1": "attention_norm", "ln_2": "mlp_norm"}


def copied(theirs):
    """A plain GPT with the weights of a transformers GPT-2; every parameter of both is used once."""
    state = {
        "tokens.weight": theirs.wte.weight,
        "lm_head.weight": theirs.wte.weight,
        "positions.weight": theirs.wpe.weight,
    }
    state |= {f"norm.{name}": value for name, value in theirs.ln_f.named_parameters()}
    for index, block in enumerate(theirs.h):
        for old, new in (LINEARS | NORMS).items():
            layer = block.get_submodule(old)
            # transformers keeps GPT-2's matrices as (inputs, outputs).
            state[f"blocks.{index}.{new}.weight"] = layer.weight.T if old in LINEARS else layer.weight
            state[f"blocks.{index}.{new}.bias"] = layer.bias
    ours = PlainGPT(CONFIG)
    ours.load_state_dict(state)
    return ours


@pytest.fixture
def theirs():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and gains too: what is 0 or 1 hides what is left out
            parameter.add_(torch.randn_like(parameter) / 10)
    return model


def tokens(*shape):
    return torch.randint(CONFIG.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def test_the_plain_gpt_has_the_parameters_of_the_transformers_body(theirs):
    assert sum(p.numel() for p in PlainGPT(CONFIG).parameters()) == sum(p.numel() for p in theirs.parameters())


def test_the_plain_gpt_computes_what_the_transformers_body_computes(theirs):
    x_BT = tokens(3, CONFIG.n_positions)
    ours = copied(theirs.transformer)
    with torch.no_grad():
        expected = theirs(input_ids=x_BT).logits
        torch.testing.assert_close(ours(x_BT), expected, rtol=0, atol=1e-4)
        y_BT = tokens(3, CONFIG.n_positions + 1)[:, 1:]
        wanted = torch.nn.functional.cross_entropy(expected.transpose(1, 2), y_BT)
        torch.testing.assert_close(ours.loss(x_BT, y_BT), wanted)


def test_a_later_token_does_not_change_earlier_logits():
    model = PlainGPT(CONFIG).eval()
    x_BT = tokens(2, 12)
    changed_BT = x_BT.clone()
    changed_BT[:, 7] = (changed_BT[:, 7] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(x_BT), model(changed_BT)
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_flops_are_counted_by_hand():
    layer = 12 * 24**2 + 13 * 24  # four matrices with biases and two normalisations
    assert PlainGPT(CONFIG).flops_per_token(16) == 6 * (97 * 24 + 3 * layer + 2 * 24) + 12 * 3 * 24 * 16


def test_all_contestants_take_their_steps(recipe, monkeypatch):
    monkeypatch.setattr(paired, "BLOCK", 5)
    AcceleratorState._reset_state(reset_partial_state=True)
    measured, run, _ = measure(recipe["path"], 10, recipe["overrides"])
    names = {*(f"{loop} {arm}" for loop in ("loop", "bare") for arm in ("metric+TFSD", "linear+CE")), "nanogpt"}
    assert set(measured) == names
    assert (run.tokens_per_step, run.config.train.precision) == (8 * 32, "fp32")
    for series in measured.values():
        for clock in ("wall", "cpu"):
            assert series.per_step(clock).shape == (2,)
            assert (series.per_step(clock) > 0).all()
        assert series.first.wall > 0


def test_everyone_goes_first_equally_often_and_all_take_part():
    names = list("abcde")
    orders = [_order(names, turn) for turn in range(20)]
    assert all(sorted(order) == names for order in orders)
    assert {name: sum(order[0] == name for order in orders) for name in names} == dict.fromkeys(names, 4)


def test_a_ratio_is_the_median_of_the_blocks_ratios():
    below = torch.linspace(1, 3, 11).double().numpy()
    found = ratio(1.5 * below, below)
    assert found.middle == found.low == found.high == pytest.approx(1.5)


def test_the_interval_of_six_blocks_holds_the_true_median_as_often_as_it_says():
    """Lognormal ratios with a median of 1; the interval's exact coverage is 1 - 2 / 2**6 = 0.97."""
    blocks = np.random.default_rng(0).lognormal(0.0, 0.1, (400, 6))
    found = [ratio(one, np.ones(6)) for one in blocks]
    assert np.mean([one.low <= 1 <= one.high for one in found]) > 0.95


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--steps", "30"], "--steps: must be a multiple of 20, at least 120, but is 30"),
        (["--peak-tflops", "0"], "--peak-tflops: must be above 0, but is 0.0"),
        (["train.precision=fp16"], "train.precision: the bare loop does not scale gradients"),
        (
            ["body.model_type=llama", "body.intermediate_size=64"],
            "body.model_type: the plain GPT has the shape of gpt2 and no other",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(recipe, monkeypatch, capsys, arguments, problem):
    monkeypatch.setattr("sys.argv", ["throughput", "--config", str(recipe["path"]), *arguments])
    assert exit_status(main) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("note: ")]
    assert told.startswith(f"error: {problem}")
