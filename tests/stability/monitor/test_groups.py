"""The parts and groups of models that the monitor has never seen."""

from __future__ import annotations

import pytest
from torch import nn
from transformers import GPT2Config, MixtralConfig, MixtralForCausalLM, OPTConfig, OPTForCausalLM

from benchmarks.plain_gpt import PlainGPT
from stability.monitor.groups import bare, find_parts, group_names

from .loops import bigram, gpt2, llama, mlp


def plain():
    return PlainGPT(GPT2Config(vocab_size=20, n_positions=8, n_layer=3, n_head=2, n_embd=8))


def mixtral():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    return MixtralForCausalLM(MixtralConfig(vocab_size=20, num_key_value_heads=1, num_local_experts=4, **sizes))


def opt():
    sizes = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "word_embed_proj_dim": 8}
    return OPTForCausalLM(OPTConfig(vocab_size=20, max_position_embeddings=16, **sizes))


MODELS = {
    "gpt2": (gpt2, 2, {"transformer.wpe.weight": "embedding", "transformer.ln_f.bias": "norm"}),
    "llama": (llama, 3, {"model.norm.weight": "norm", "lm_head.weight": "head"}),
    "mixtral": (mixtral, 2, {"model.embed_tokens.weight": "embedding", "lm_head.weight": "head"}),
    "opt": (
        opt,
        2,
        {"model.decoder.embed_positions.weight": "embedding", "model.decoder.final_layer_norm.bias": "norm"},
    ),
    "plain": (plain, 3, {"tokens.weight": "embedding", "positions.weight": "embedding", "norm.weight": "norm"}),
    "bigram": (bigram, 3, {"blocks.2.mlp.0.weight": "layer_02", "lm_head.weight": "head", "ln_f.weight": "norm"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_parts_are_those_a_reader_would_name(kind):
    make, layers, expected = MODELS[kind]
    model = make()
    parts = find_parts(model)
    groups = group_names(model, parts, {})
    assert len(parts.blocks) == layers
    assert parts.head is not None and parts.final_norm is not None
    assert {name: groups[name] for name in expected} == expected
    assert set(groups.values()) <= {"embedding", "norm", "head", *(f"layer_{i:02d}" for i in range(layers))}
    assert set(groups) == {name for name, _ in model.named_parameters()}


def test_without_blocks_groups_are_first_components_below_what_all_share():
    model = nn.ModuleDict({"net": nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})})
    assert set(group_names(model, find_parts(model), {}).values()) == {"encoder", "decoder"}
    assert set(group_names(mlp(), find_parts(mlp()), {}).values()) == {"0", "3"}
    one = nn.Linear(2, 2)
    assert group_names(one, find_parts(one), {}) == {"weight": "weight", "bias": "bias"}


def test_a_pattern_overrides_what_would_be_found():
    model = bigram()
    groups = group_names(model, find_parts(model), {"head": "lm_head.*", "tables": "w*e.*", "first": "blocks.0.*"})
    assert groups["wte.weight"] == "tables"
    assert groups["blocks.0.ln.bias"] == "first"
    assert groups["blocks.1.ln.bias"] == "layer_01"


def test_wrappers_are_looked_through():
    import torch

    model = mlp()
    assert bare(nn.DataParallel(torch.compile(model))) is model
