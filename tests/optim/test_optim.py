"""Optimizers and learning-rate schedules."""

from itertools import pairwise

import pytest

from configs.load import load_config
from configs.schema import OptimizerConfig
from optim.optimizers import build_optimizer, learning_rate
from training.build import build_model


def test_the_optimizer_decays_matrices_and_nothing_else(recipe):
    config = load_config(recipe["path"], ["head.scale=learned"])
    model = build_model(config, vocab_size=500, special_id=0)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{names[id(p)] for p in g["params"]} for g in build_optimizer(model, config.optimizer).param_groups]
    assert sorted([*groups[0], *groups[1]]) == sorted(names.values())
    assert {"model.wte.weight", "model.wpe.weight", "model.h.0.attn.c_attn.weight"} <= groups[0]
    assert {"lm_head.log_scale", "model.ln_f.weight", "model.h.0.attn.c_attn.bias"} <= groups[1]


@pytest.mark.parametrize("schedule", [{"kind": "cosine"}, {"kind": "wsd", "decay_fraction": 0.3}, {"kind": "constant"}])
def test_learning_rate_schedules(schedule):
    config = OptimizerConfig.model_validate({"lr": 2.0, "warmup_steps": 10, "schedule": schedule})
    rates = [learning_rate(config, 100, step) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.2 * s for s in range(1, 11)])
    assert max(rates) == pytest.approx(2.0)
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[9:]))
    last = {"cosine": 0.2, "wsd": 0.0, "constant": 2.0}[schedule["kind"]]
    assert rates[-1] == pytest.approx(last)
    if schedule["kind"] == "wsd":
        assert rates[:70][-1] == 2.0
        assert rates[84] == pytest.approx(1.0)
