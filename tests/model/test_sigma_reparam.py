"""Matrices reparametrised by their spectral norm, against singular values, finite differences and the plain model."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.nn.utils.parametrize import register_parametrization
from transformers import AutoConfig, AutoModel

from model import SwapHeadConfig, blocks, new_model
from model.sigma_reparam import (
    SigmaReparam,
    linear_layers,
    power_step,
    reparametrise,
    restore,
    scales,
    sigma,
    split,
    stored_weight,
    unfit,
)

from .test_modeling import HEADS, make, tokens

BODIES = ("gpt2", "llama", "qwen3")
TAKEN = torch.tensor(True)


def reparametrised(body="gpt2", seed=0):
    model = make(body, "linear", "ce").eval()
    reparametrise(model, seed)
    return model


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def matrices_of(layer):
    """The matrices in a layer's weight: queries, keys and values apart."""
    weight = stored_weight(layer).detach()
    return weight.chunk(len(layer.parametrizations.weight.original1), dim=1)


@pytest.mark.parametrize("body", BODIES)
def test_the_model_stays_what_it_is(body):
    plain, model = make(body, "linear", "ce").eval(), reparametrised(body)
    assert torch.equal(model(tokens()).logits, plain(tokens()).logits)
    layers = list(linear_layers(blocks(model.model)))
    assert len(layers) == 2 * (4 if body == "gpt2" else 7)
    assert all(layer.parametrizations.weight.original1.dim() == 1 for layer in layers), "no weight decay"
    others = [n for n, p in model.named_parameters() if p.dim() > 1 and "parametrizations" not in n]
    assert all("wte" in n or "wpe" in n or "embed" in n for n in others), others


@pytest.mark.parametrize("body", ["gpt2", "llama"])
def test_power_steps_lead_to_the_largest_singular_value(body):
    """One a step, while the matrices stay: of queries, keys and values each its own."""
    model = reparametrised(body)
    for _ in range(600):
        power_step(model, TAKEN)
    count = 0
    for layer in linear_layers(blocks(model.model)):
        of = layer.parametrizations.weight
        found = sigma(of.original0, of[0].left_PR, of[0].right_PK)
        true = torch.stack([torch.linalg.svdvals(matrix)[0] for matrix in matrices_of(layer)])
        torch.testing.assert_close(found, true, rtol=1e-5, atol=0)
        for matrix, scale in zip(layer.weight.detach().chunk(len(true), dim=1), of.original1, strict=True):
            torch.testing.assert_close(torch.linalg.svdvals(matrix)[0], scale.detach(), rtol=1e-5, atol=0)
        count += len(true)
    assert count == 2 * (6 if body == "gpt2" else 7)


def test_a_model_starts_with_nearly_converged_norms():
    for layer in linear_layers(blocks(reparametrised().model)):
        found = layer.parametrizations.weight.original1.tolist()
        for matrix, scale in zip(matrices_of(layer), found, strict=True):
            true = float(torch.linalg.svdvals(matrix)[0])
            assert 0.99 * true < scale <= true * (1 + 1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_gradient_is_that_of_the_loss_with_u_and_v_held(parts):
    """In float64, against finite differences: of W~ through sigma too, and of s."""
    left, right = normalize(drawn(parts, 5, seed=1), dim=1), normalize(drawn(parts, 4, seed=2), dim=1)
    layer = nn.Linear(4 * parts, 5).double()
    register_parametrization(layer, "weight", SigmaReparam(left, right))
    x = drawn(7, 4 * parts, seed=3)

    def loss(raw, scale):
        return torch.tanh(nn.functional.linear(x, layer.parametrizations.weight[0](raw, scale))).square().sum()

    raw, scale = drawn(5, 4 * parts, seed=4).requires_grad_(), drawn(parts, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(loss, (raw, scale))
    assert torch.autograd.gradgradcheck(loss, (raw, scale))
    (slope,) = torch.autograd.grad(loss(raw, scale), raw)
    along = (slope * raw).sum(0).unflatten(0, (parts, -1)).sum(1)
    assert float(along.detach().abs().max()) < 1e-12, "W does not depend on the length of W~"


def test_a_step_that_is_not_taken_leaves_every_matrix_alone():
    model = reparametrised()
    with torch.no_grad():
        for layer in linear_layers(blocks(model.model)):
            stored_weight(layer).add_(0.01 * torch.randn_like(stored_weight(layer)))
    before = copy.deepcopy(model.state_dict())
    power_step(model, torch.tensor(False))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    power_step(model, TAKEN)
    changed = {
        name.rpartition(".")[2] for name, value in model.state_dict().items() if not torch.equal(before[name], value)
    }
    assert changed == {"left_PR", "right_PK"}


def test_forward_and_backward_passes_move_nothing():
    model = reparametrised().train()
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        model(tokens(), labels=tokens()).loss.backward()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("body", BODIES)
def test_what_is_split_is_a_plain_model_and_is_restored_to_the_bit(body):
    model = reparametrised(body)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    power_step(model, TAKEN)
    weights, own = split(model.state_dict())
    plain = make(body, "linear", "ce", seed=1).eval()
    plain.load_state_dict(weights)
    logits = model(tokens()).logits
    torch.testing.assert_close(plain(tokens()).logits, logits)
    restore(plain, own)
    assert torch.equal(plain(tokens()).logits, logits)
    assert plain.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.state_dict().items())
    own.pop(next(iter(own)))
    with pytest.raises(ValueError, match="missing or unknown tensors"):
        restore(make(body, "linear", "ce"), own)


def test_the_vectors_depend_on_the_seed_and_on_nothing_else():
    torch.manual_seed(5)
    one = reparametrised(seed=1).state_dict()
    state = torch.random.get_rng_state()
    two, other = reparametrised(seed=1).state_dict(), reparametrised(seed=2).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_scales_are_logged_by_their_extremes():
    model = reparametrised()
    layers = linear_layers(blocks(model.model))
    found = [s for layer in layers for s in layer.parametrizations.weight.original1.tolist()]
    assert {k: float(v) for k, v in scales(model).items()} == {
        "sigma_reparam/s_max": max(found),
        "sigma_reparam/s_min": min(found),
    }
    assert scales(make()) == {}


def test_bodies_with_other_or_shared_matrices_are_unfit():
    small = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.device("meta"):
        experts = AutoModel.from_config(
            AutoConfig.for_model("mixtral", **small, intermediate_size=32, num_key_value_heads=2, num_local_experts=2)
        )
        mamba = AutoModel.from_config(AutoConfig.for_model("mamba", vocab_size=64, hidden_size=16, num_hidden_layers=1))
    assert "experts" in unfit(experts) and "is not the matrix of a linear layer" in unfit(experts)
    assert "is not the matrix of a linear layer" in unfit(mamba)
    tied = make().model
    tied.h[1].attn.c_proj.weight = tied.h[0].attn.c_proj.weight
    assert unfit(tied) == "h.0.attn.c_proj.weight is tied: several layers share it, and would not any more"
    assert unfit(make().model) is None


def test_a_matrix_of_zeros_has_no_direction():
    text = AutoConfig.for_model("gpt2", vocab_size=60, n_layer=1, n_head=2, n_embd=16)
    model = new_model(SwapHeadConfig(text, head=HEADS["linear"]), seed=0)
    nn.init.zeros_(model.model.h[0].mlp.c_proj.weight)
    with pytest.raises(ValueError, match=r"model\.h\.0\.mlp\.c_proj\.weight is zero, and has no direction"):
        reparametrise(model, 0)
