"""Attention without a mask is the same attention, and what a probe measures is what a naive definition gives."""

import math

import pytest
import torch
from transformers import AutoConfig, AutoModel, DynamicCache

from model import attend_causally, attention_probe
from model.attention import QUERIES, attention_statistics

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
BODIES = {
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32},
    "llama": {**SIZES, "num_key_value_heads": 2},
    "qwen3": {**SIZES, "num_key_value_heads": 2, "head_dim": 8},
    "mistral": {**SIZES, "num_key_value_heads": 2},
    "gpt_neox": SIZES,
}


def body(kind, **fields):
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=90, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, **BODIES[kind], **fields
    )
    return AutoModel.from_config(config).eval()


X_BT = torch.randint(0, 90, (2, 24), generator=torch.Generator().manual_seed(1))


def hidden(model):
    with torch.no_grad():
        return model(input_ids=X_BT, use_cache=False).last_hidden_state


@pytest.mark.parametrize("kind", BODIES)
def test_no_mask_and_a_probe_change_nothing(kind):
    model = body(kind)
    usual = hidden(model)
    with attention_probe(model) as layers:
        assert torch.equal(hidden(model), usual)
    assert len(layers) == 2
    with_mask = [{name: float(v) for name, v in layer.items()} for layer in layers]
    assert attend_causally(model, 24)
    assert torch.equal(hidden(model), usual)
    with attention_probe(model) as layers:
        assert torch.equal(hidden(model), usual)
    assert [{name: float(v) for name, v in layer.items()} for layer in layers] == with_mask
    assert torch.equal(hidden(model), usual)
    assert len(layers) == 2, "nothing is measured outside the probe"


@pytest.mark.parametrize("ignored", [{"attention_mask": torch.ones(2, 24).tril()}, {"past_key_values": DynamicCache()}])
def test_without_a_mask_padding_and_caches_are_refused(ignored):
    model = body("llama")
    model(input_ids=X_BT, **ignored)
    assert attend_causally(model, 24)
    with pytest.raises(ValueError, match="without a mask"):
        model(input_ids=X_BT, **ignored)


def test_a_window_shorter_than_the_sequence_keeps_its_mask():
    model = body("mistral", sliding_window=8)
    usual = hidden(model)
    assert not attend_causally(model, 24)
    assert torch.equal(hidden(model), usual)
    assert attend_causally(body("mistral", sliding_window=8), 8)
    with attention_probe(model) as layers:
        assert torch.equal(hidden(model), usual)
    assert all(float(layer["entropy"]) < math.log(8) for layer in layers)


@pytest.mark.parametrize("queries", [5, 24, QUERIES + 3, 2 * QUERIES + 1])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_statistics_against_their_definition(queries, softcap):
    generator = torch.Generator().manual_seed(queries)
    q_BHQd, k_BHKd = (torch.randn(2, 3, queries, 4, generator=generator) for _ in range(2))
    logits, entropies = [], []
    stride = math.ceil(queries / QUERIES)
    for b, h, i in ((b, h, i) for b in range(2) for h in range(3) for i in range(queries - 1, -1, -stride)):
        z = 0.7 * (k_BHKd[b, h, : i + 1].double() @ q_BHQd[b, h, i].double())
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        p = z.softmax(0)
        logits.append(float(z.max()))
        entropies.append(-float((p * p.log()).sum()))
    seen = torch.ones(queries, queries, dtype=torch.bool).tril()[None, None]
    additive = torch.zeros(1, 1, queries, queries).masked_fill(~seen, torch.finfo(torch.float32).min)
    for mask in (None, seen, additive):
        found = attention_statistics(q_BHQd, k_BHKd, mask, 0.7, softcap)
        assert float(found["logit_max"]) == pytest.approx(max(logits), rel=1e-5)
        assert float(found["entropy"]) == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_a_body_with_an_attention_of_its_own_is_not_probed():
    config = AutoConfig.for_model("bloom", vocab_size=90, hidden_size=32, n_layer=2, n_head=4)
    model = AutoModel.from_config(config).eval()
    assert not attend_causally(model, 24)
    with attention_probe(model) as layers:
        hidden(model)
    assert layers == []
