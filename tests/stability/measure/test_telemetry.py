"""What telemetry measures, against the same quantities computed the long way."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from configs.schema import RunConfig
from model import SwapHeadConfig, new_model
from model.chunked import SAMPLING
from optim.optimizers import build_optimizer
from record.metrics import METRICS, describe, table
from stability.measure.norms import parameter_groups
from stability.measure.telemetry import excess_kurtosis, weight_histogram, weight_quantile
from training.build import build_telemetry

RAW = {
    "name": "x",
    "data": {"kind": "pydoc", "vocab_size": 300, "sequence_length": 8},
    "body": {"model_type": "gpt2"},
    "head": {"kind": "metric"},
    "objective": {"kind": "tfsd"},
    "optimizer": {"lr": 0.01},
    "train": {"steps": 1, "batch_size": 4},
}
CONFIG = RunConfig.model_validate(RAW)


@pytest.fixture
def model():
    fields = {"n_layer": 2, "n_head": 2, "n_embd": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    text = AutoConfig.for_model("gpt2", vocab_size=90, bos_token_id=0, eos_token_id=0, **fields)
    return new_model(
        SwapHeadConfig(text, head={"kind": "metric", "scale": 0.05}, objective={"kind": "tfsd"}), 0
    ).train()


def batch():
    return torch.randint(0, 90, (4, 8), generator=torch.Generator().manual_seed(0))


def measured_step(model, micro_batches):
    return instrumented_step(model, build_telemetry(model, CONFIG), micro_batches)


def instrumented_step(model, telemetry, micro_batches):
    optimizer = build_optimizer(model, CONFIG.optimizer)
    for x_BT in batch().split(4 // micro_batches):
        out = model(
            input_ids=x_BT, shift_labels=x_BT, num_items_in_batch=32, skip_logits=True, statistics=True, use_cache=False
        )
        out.loss.backward()
        telemetry.end_micro_batch(out.losses)
    losses = telemetry.loss_values()
    telemetry.before_update()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    telemetry.after_update()
    return losses | telemetry.collect(), before


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
def test_values_against_their_definitions(model, micro_batches):
    names = [n for n, _ in model.named_parameters()]
    twin = new_model(model.config, 0).train()
    found, before = measured_step(model, micro_batches)
    out = twin(
        input_ids=batch(),
        shift_labels=batch(),
        skip_logits=True,
        statistics=True,
        output_hidden_states=True,
        use_cache=False,
    )
    out.loss.backward()
    gradients = dict(zip(names, (p.grad for p in twin.parameters()), strict=True))
    after = dict(model.named_parameters())

    layer = [n for n in names if n.startswith("model.h.1.")]
    norm = lambda tensors: math.sqrt(sum(float(t.detach().double().square().sum()) for t in tensors))  # noqa: E731
    moved = {n: after[n] - b for n, b in zip(names, before, strict=True)}
    stats = out.losses.statistics
    z_NV = twin(input_ids=batch()).logits.flatten(0, 1)
    # Of each micro-batch every 16th token, the first one first.
    z_SV = torch.cat([part[::SAMPLING] for part in z_NV.split(32 // micro_batches)]).detach().double()
    log_p_SV = z_SV.log_softmax(1)
    residual = out.hidden_states[1].norm(dim=-1)  # after block 0; transformers' last entry is after the final norm
    final = out.hidden_states[-1].norm(dim=-1)
    c_N = stats["tfsd/weight"]
    expected = {
        "loss/objective": out.loss.item(),
        "loss/nll": out.losses.nll_sum.item() / 32,
        "grad_norm/total": norm(gradients.values()),
        "grad_norm/layer_01": norm(gradients[n] for n in layer),
        "grad_norm/embedding": norm(gradients[n] for n in ("model.wte.weight", "model.wpe.weight")),
        "grad_norm/norm": norm(gradients[n] for n in ("model.ln_f.weight", "model.ln_f.bias")),
        "param_norm/layer_01": norm(dict(zip(names, before, strict=True))[n] for n in layer),
        "update_rms/layer_01": norm(moved[n] for n in layer) / math.sqrt(sum(moved[n].numel() for n in layer)),
        "hidden_norm/layer_00/mean": residual.mean().item(),
        "hidden_norm/layer_00/max": residual.max().item(),
        "hidden_norm/final/mean": final.mean().item(),
        "hidden_norm/final/max": final.max().item(),
        "embedding_norm/max": before[names.index("model.wte.weight")].norm(dim=1).max().item(),
        "logit/max": stats["logit/max"].max().item(),
        "logit/std": z_SV.std(1, correction=0).mean().item(),
        "entropy/p": -(log_p_SV.exp() * log_p_SV).sum(1).mean().item(),
        "tfsd/weight_mean": c_N.mean().item(),
        "tfsd/weight_below_1pct": (c_N < 0.01).float().mean().item(),
        "metric/true_distance": stats["metric/true_distance"].mean().item(),
    }
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=2e-5), name
    assert found["hidden_norm/pre_final/mean"].item() == found["hidden_norm/layer_01/mean"].item()
    assert found["tfsd/weight_p10"].item() == pytest.approx(c_N.quantile(0.1, interpolation="lower").item(), rel=0.05)
    assert all(describe(name) for name in found)


def test_ignored_targets_do_not_count_whatever_the_number_of_tokens(model):
    """33 tokens, of which the sampled ones are 0, 16 and 32; token 16 is ignored."""
    assert SAMPLING == 16
    telemetry = build_telemetry(model, CONFIG)
    x_BT = torch.randint(0, 90, (1, 33), generator=torch.Generator().manual_seed(0))
    y_BT = x_BT.clone()
    y_BT[0, 16] = -100
    asked = {"skip_logits": True, "statistics": True, "output_hidden_states": True, "use_cache": False}
    out = model(input_ids=x_BT, shift_labels=y_BT, **asked)
    telemetry.end_micro_batch(out.losses)
    found, entropy_S = telemetry.collect(), out.losses.sampled["entropy/p"]
    assert found["entropy/p"].item() == pytest.approx(entropy_S[[0, 2]].mean().item(), rel=1e-6)
    mean_N = out.losses.statistics["logit/mean"][[i for i in range(33) if i != 16]]
    assert found["logit/mean"].item() == pytest.approx(mean_N.mean().item(), rel=1e-6)
    norm_BT = out.hidden_states[-1].norm(dim=-1)
    assert found["hidden_norm/final/mean"].item() == pytest.approx(norm_BT.mean().item(), rel=1e-6), "of all tokens"


def test_an_evaluation_leaves_no_trace(model):
    telemetry = build_telemetry(model, CONFIG)
    model.eval()(input_ids=batch())
    assert telemetry.norms == telemetry.latest == {}


@given(st.lists(st.floats(1e-12, 1.0), min_size=1, max_size=200), st.floats(0.01, 0.99))
def test_the_histogram_quantile_is_within_its_resolution(weights, q):
    weight_N = torch.tensor(weights)
    valid_N = torch.ones_like(weight_N)
    found = weight_quantile(weight_histogram(weight_N, valid_N), q).item()
    exact = weight_N.sort().values[max(0, math.ceil(q * len(weights) - 1e-4) - 1)].item()
    assert found == pytest.approx(exact, rel=0.0012)


@pytest.mark.parametrize("body", ["gpt2", "llama"])
def test_every_parameter_is_in_the_group_a_reader_would_expect(body):
    prefixes = {
        "gpt2": (
            "model.wte",
            "model.h",
            ["model.wte.weight", "model.wpe.weight", "model.h.11.mlp.c_fc.bias", "model.ln_f.bias"],
        ),
        "llama": (
            "model.embed_tokens",
            "model.layers",
            ["model.embed_tokens.weight", "model.layers.11.input_layernorm.weight", "model.norm.weight"],
        ),
    }
    embedding, blocks, names = prefixes[body]
    groups = parameter_groups([*names, "lm_head.log_scale"], embedding, blocks, "lm_head")
    assert set(groups) == {"embedding", "layer_11", "norm", "head"}
    assert sorted(i for indices in groups.values() for i in indices) == list(range(len(names) + 1))


def test_the_documented_table_is_the_registry():
    from pathlib import Path

    assert table() in Path("docs/metrics.md").read_text(encoding="utf-8")
    assert not [m.name for m in METRICS if "|" in m.meaning], "it would end a cell of the table"
    assert len({m.name for m in METRICS}) == len(METRICS)
    with pytest.raises(KeyError, match="no/such"):
        describe("no/such")


def test_kurtosis_is_that_of_the_probed_sequences_and_of_no_other_forward_pass(model):
    telemetry = build_telemetry(model, CONFIG)
    model.eval()
    with torch.no_grad(), telemetry.probe():
        hidden = model(input_ids=batch(), output_hidden_states=True, use_cache=False).hidden_states
    with torch.no_grad():
        model(input_ids=batch()[:1], use_cache=False)  # an evaluation
    found, _ = instrumented_step(model.train(), telemetry, 1)
    kurtoses = {name: value for name, value in found.items() if name.startswith("hidden_kurtosis/")}
    assert sorted(kurtoses) == ["hidden_kurtosis/layer_00", "hidden_kurtosis/layer_01"]
    expected = scipy.stats.kurtosis(hidden[1].double().numpy(), axis=None)
    assert kurtoses["hidden_kurtosis/layer_00"].item() == pytest.approx(expected, rel=1e-5)
    assert {describe(name).reduction for name in kurtoses} == {"same"}
    again, _ = instrumented_step(model, telemetry, 1)
    assert not any(name.startswith("hidden_kurtosis/") for name in again)


def test_excess_kurtosis_by_hand():
    assert excess_kurtosis(torch.tensor([[1.0, -1.0], [1.0, -1.0]])).item() == -2.0
    assert excess_kurtosis(torch.tensor([0.0, 0.0, 0.0, 4.0])).item() == pytest.approx((81 + 3) / 4 / 9 - 3)
    assert excess_kurtosis(torch.full((5,), 7.0)).item() == 0.0
    assert math.isnan(excess_kurtosis(torch.tensor([1.0, math.nan])).item())
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert abs(excess_kurtosis(normal).item()) < 0.05
    assert excess_kurtosis(1e15 * normal).item() == pytest.approx(excess_kurtosis(normal).item(), abs=1e-3)
