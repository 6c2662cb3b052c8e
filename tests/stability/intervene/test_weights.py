"""Remedies that change weights, or the gradient of an embedding, against naive definitions and cases worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from common.errors import InputError
from model import HEADS, SwapHeadConfig, attend_causally, new_model
from model.attention import watch_attention
from stability.intervene.base import Update
from stability.intervene.centre_embeddings import CentreEmbeddings
from stability.intervene.mu_loss import MuLoss
from stability.intervene.qk_clip import QKClip
from stability.intervene.shrink_embedding_gradient import ShrinkEmbeddingGradient

TAKEN, SKIPPED = (Update(torch.tensor(taken), torch.zeros(0), []) for taken in (True, False))
SHAPES = {"V": st.integers(1, 30), "padding": st.integers(0, 5), "D": st.integers(1, 8), "seed": st.integers(0, 1000)}


def with_head(kind, V, padding, D, seed):
    """All that the interventions know of a model, with a random head."""
    torch.manual_seed(seed)
    head = HEADS[kind](D, V + padding, HEADS[kind].Options())
    head.n_classes = V
    torch.nn.init.normal_(head.weight, mean=0.5)
    head.double()
    return SimpleNamespace(lm_head=head, get_input_embeddings=lambda: torch.nn.Embedding(1, 1))


@given(**SHAPES)
def test_centring_leaves_a_linear_head_its_predictions(V, padding, D, seed):
    model = with_head("linear", V, padding, D, seed)
    head, remedy = model.lm_head, CentreEmbeddings(CentreEmbeddings.Options())
    remedy.attach(model, None)
    h_ND, before = torch.randn(5, D, dtype=torch.float64), head.weight.detach().clone()
    p_NV = head(h_ND).softmax(1)
    assert float(remedy.on_weights(None, SKIPPED)["mean_norm"]) == 0
    assert torch.equal(head.weight, before)
    said = remedy.on_weights(None, TAKEN)
    mean_D = before[:V].mean(0)
    torch.testing.assert_close(said["mean_norm"], mean_D.norm())
    torch.testing.assert_close(head.weight[:V], before[:V] - mean_D)
    assert torch.equal(head.weight[V:], before[V:]), "padding is no token"
    torch.testing.assert_close(head(h_ND).softmax(1), p_NV, rtol=1e-10, atol=1e-12)
    assert float(head(h_ND)[:, :V].detach().mean(1).abs().max()) < 1e-12


def test_centring_moves_the_hidden_states_of_a_metric_head():
    """||h - (w - mean)|| is ||(h + mean) - w||: other predictions than before."""
    model = with_head("metric", 7, 0, 4, 0)
    head, remedy = model.lm_head, CentreEmbeddings(CentreEmbeddings.Options())
    remedy.attach(model, None)
    h_ND, mean_D = torch.randn(5, 4, dtype=torch.float64), head.weight.detach().mean(0)
    before, moved = head(h_ND), head(h_ND + mean_D)
    remedy.on_weights(None, TAKEN)
    torch.testing.assert_close(head(h_ND), moved)
    assert not torch.allclose(head(h_ND).softmax(1), before.softmax(1), atol=1e-3)


def test_a_step_that_is_not_taken_leaves_even_numbers_that_are_not_finite():
    model = with_head("linear", 3, 0, 2, 0)
    remedy = CentreEmbeddings(CentreEmbeddings.Options())
    remedy.attach(model, None)
    with torch.no_grad():
        model.lm_head.weight[1, 1] = torch.inf
    before = model.lm_head.weight.detach().clone()
    remedy.on_weights(None, SKIPPED)
    assert torch.equal(model.lm_head.weight, before)


@given(**SHAPES, weight=st.sampled_from([0.0, 1e-4, 3.0]))
def test_mu_loss_adds_its_own_gradient(V, padding, D, seed, weight):
    model = with_head("metric", V, padding, D, seed)
    remedy, w_VD = MuLoss(MuLoss.Options(weight=weight)), model.lm_head.weight
    remedy.attach(model, None)
    usual = torch.randn_like(w_VD)
    w_VD.grad = usual.clone()
    remedy.on_tensors(None)
    (wanted,) = torch.autograd.grad(weight * w_VD[:V].mean(0).square().sum(), w_VD)
    torch.testing.assert_close(w_VD.grad, usual + wanted)
    assert torch.equal(w_VD.grad[V:], usual[V:])


TEXT = {"gpt2": {"n_layer": 1, "n_head": 2, "n_embd": 16}, "llama": {"hidden_size": 16, "intermediate_size": 24}}
TEXT["llama"] |= {"num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", TEXT)
def test_a_shrunk_embedding_gradient(kind, tied):
    """The same loss to the bit; the lookup's part of the gradient is a tenth, everything else is as it was."""
    sizes = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    ids = {"vocab_size": 30, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0}
    text = AutoConfig.for_model(kind, **TEXT[kind], **sizes, **ids)
    config = SwapHeadConfig(text, head={"kind": "linear", "tied": tied})
    model = new_model(config, 0).train()
    x_BT = torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(0))

    def gradients():
        model.zero_grad()
        loss = model(input_ids=x_BT, labels=x_BT, use_cache=False).loss
        loss.backward()
        return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    whole = gradients()
    (handle,) = ShrinkEmbeddingGradient(ShrinkEmbeddingGradient.Options(factor=0.0)).attach(model, None)
    without = gradients()
    handle.remove()
    (handle,) = ShrinkEmbeddingGradient(ShrinkEmbeddingGradient.Options(factor=0.1)).attach(model, None)
    shrunk = gradients()
    handle.remove()
    embedding = next(n for n, p in model.named_parameters() if p is model.get_input_embeddings().weight)
    assert whole[0] == without[0] == shrunk[0]
    assert bool((without[1][embedding] == 0).all()) != tied
    for name, gradient in whole[1].items():
        rest = without[1][name]
        wanted = rest + 0.1 * (gradient - rest) if name == embedding else gradient
        torch.testing.assert_close(shrunk[1][name], wanted, rtol=1e-5, atol=1e-7)
    again = gradients()
    assert all(torch.equal(again[1][name], gradient) for name, gradient in whole[1].items()), "the hook is gone"


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BODIES = {
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {**SIZES, "num_key_value_heads": 2, "attention_bias": True},
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "opt": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "dropout": 0.0},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "gpt_neox": SIZES,
}
X_BT = torch.randint(0, 90, (3, 24), generator=torch.Generator().manual_seed(1))


def body(kind, causal=True):
    torch.manual_seed(0)
    ids = {"vocab_size": 90, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **BODIES[kind], **ids)).train()
    for name, parameter in model.named_parameters():
        if any(part in name for part in ("attn.", "q_proj", "k_proj")):
            torch.nn.init.normal_(parameter, std=0.7)  # biases too
    assert not causal or attend_causally(model, 24)
    return model


def naive_maxima(model, sequences):
    """The largest logit of each query head by layer, from the queries and keys themselves."""
    found, handles = [], []

    def look(query, key, scaling):
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        z = (query.double() @ key.double().mT * scaling)[:sequences]
        visible = torch.ones(24, 24).tril().bool()
        found.append(torch.stack([max(one[visible].max() for one in z[:, head]) for head in range(z.shape[1])]))

    layers = [m for m in model.modules() if hasattr(m, "q_proj") or hasattr(m, "c_attn")]
    handles = [watch_attention(layer, look) for layer in layers]
    model(input_ids=X_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(found).detach()


def clip(model, threshold, update=TAKEN, sequences=2):
    remedy = QKClip(QKClip.Options(threshold=threshold, sequences=sequences))
    handles = remedy.attach(SimpleNamespace(model=model), None)
    remedy.begin(1)
    model(input_ids=X_BT, use_cache=False)
    said = remedy.on_weights(None, update)
    for handle in handles:
        handle.remove()
    return said


@pytest.mark.parametrize(("kind", "groups"), [("gpt2", 4), ("llama", 2), ("qwen2", 1), ("opt", 4)])
def test_clipped_queries_and_keys(kind, groups):
    """At a quarter of the first layer's largest logit: no head of that layer is above it afterwards, those below stay."""
    model = body(kind)
    usual = {name: p.detach().clone() for name, p in model.named_parameters()}
    before_LH = naive_maxima(model, 2)
    before_G = before_LH[0].unflatten(0, (groups, -1)).amax(1)
    threshold = float(before_G.max()) / 4
    said = clip(model, threshold, SKIPPED)
    assert all(torch.equal(p, usual[name]) for name, p in model.named_parameters()), "the step was skipped"
    assert float(said["heads"]) == 0
    said = clip(model, threshold)
    torch.testing.assert_close(said["logit_max"].double(), before_LH.max(), rtol=1e-5, atol=0)
    above = sum(int((row.unflatten(0, (groups, -1)).amax(1) > threshold).sum()) for row in before_LH)
    assert float(said["heads"]) == above
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, usual[name])}
    assert all(any(part in name for part in ("c_attn", "q_proj", "k_proj")) for name in changed), changed
    assert {name.rpartition(".")[2] for name in changed} == {"weight", "bias"}
    after_LH = naive_maxima(model, 2)
    after_G = after_LH[0].unflatten(0, (groups, -1)).amax(1)
    torch.testing.assert_close(after_G, before_G.clamp(max=threshold), rtol=1e-5, atol=0)
    factor_G = (threshold / before_G).clamp(max=1)
    factor_H = factor_G.repeat_interleave(before_LH.shape[1] // groups)
    torch.testing.assert_close(after_LH[0], before_LH[0] * factor_H, rtol=1e-5, atol=1e-5)


def test_400_becomes_100():
    """The case worked out by hand: factors of one half on queries and keys, without rounding."""
    model = body("llama")
    largest = naive_maxima(model, 2)[0].max()
    with torch.no_grad():
        for layer in model.layers:
            for part in (layer.self_attn.q_proj.weight, layer.self_attn.q_proj.bias):
                part.mul_(400.0 / largest)
    before = naive_maxima(model, 2)[0]
    assert float(before.max()) == pytest.approx(400.0, rel=1e-6)
    head = int(before.argmax())
    query = model.layers[0].self_attn.q_proj.weight.detach().clone()[8 * head : 8 * head + 8]
    clip(model, float(before.max()) / 4)
    assert torch.equal(model.layers[0].self_attn.q_proj.weight[8 * head : 8 * head + 8], query / 2)
    assert float(naive_maxima(model, 2)[0][head]) == pytest.approx(100.0, rel=1e-6)


def test_between_two_measurements_nothing_is_measured_or_scaled():
    model = body("gpt2")
    usual = {name: p.detach().clone() for name, p in model.named_parameters()}
    remedy = QKClip(QKClip.Options(threshold=1e-3, every=3))
    remedy.attach(SimpleNamespace(model=model), None)
    for step in (1, 2):
        remedy.begin(step)
        model(input_ids=X_BT, use_cache=False)
        assert remedy.on_weights(None, TAKEN) is None
    assert all(torch.equal(p, usual[name]) for name, p in model.named_parameters())
    remedy.begin(3)
    model.eval()
    model(input_ids=X_BT, use_cache=False)
    assert not remedy.largest, "evaluation is not watched"
    model.train()
    for rows in (slice(1), slice(1, 3)):  # micro-batches
        model(input_ids=X_BT[rows], use_cache=False)
    said = remedy.on_weights(None, TAKEN)
    assert float(said["logit_max"]) == pytest.approx(float(naive_maxima(body("gpt2"), 3).max()), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "causal", "reason"),
    [
        ("qwen3", True, "normalises queries and keys"),
        ("gpt_neox", True, "finds no q_proj and k_proj"),
        ("llama", False, "does not attend to the whole past"),
    ],
)
def test_bodies_that_cannot_be_clipped_are_refused(kind, causal, reason):
    with pytest.raises(InputError, match=reason):
        QKClip(QKClip.Options()).attach(SimpleNamespace(model=body(kind, causal)), None)
