"""Training steps on the device: that none waits for it, and what fp16's loss scale does."""

import contextlib
import math

import pytest
import torch

from common.errors import InputError
from tests.conftest import ROOT
from tests.training.built import built
from training.step import training_step

from .device import ON_GPU, SIZES, size

PLUGINS = ROOT / "tests" / "plugins"
WARM_UP = 3
"""Steps before the check: the optimizer makes its state, kernels are compiled, interventions move theirs to the device."""
LINEAR = ("head={kind: linear}", "objective={kind: ce}")
METRIC = ("head={kind: metric, scale: article}", "objective={kind: tfsd}")
CASES = {
    "linear, ce": LINEAR,
    "linear, ce with all options": (
        "head={kind: linear, tied: false, bias: true, soft_cap: 20.0}",
        "objective={kind: ce, label_smoothing: 0.1, z_loss: 1e-4}",
        "body.pad_vocab_to_multiple_of=64",
    ),
    "metric, tfsd": METRIC,
    "metric, learned scale and norms": (
        "head={kind: metric, scale: learned, feature_norm: layernorm, centroid_norm: batchnorm}",
        "objective={kind: weighted_ce}",
    ),
    "a head of one's own": (f"plugins=[{PLUGINS}/cosine_head.py]", "head={kind: plain_cosine}", "objective={kind: ce}"),
    "interventions": (
        *METRIC,
        "optimizer.clip_norm=null",
        f"plugins=[{PLUGINS}/clip_to_usual.py, {PLUGINS}/skip_step.py]",
        "interventions=[{kind: clip_to_usual}, {kind: skip_above, above: 1.0}, {kind: clip_norm, max_norm: 0.1}]",
    ),
    "interventions by stage": (
        *METRIC,
        "interventions=[{kind: zclip, warmup: 2}, {kind: adagc, warmup: 2}, {kind: agc}, {kind: skip_step, window: 8}, "
        "{kind: spam, pause: 1, every: 4}, {kind: stable_adamw}, {kind: clip_update_norm, window: 4}, "
        "{kind: reset_moments, window: 8}, {kind: rewarm, at: [3], steps: 2}, "
        "{kind: safe_step, least: 0.5}, {kind: safe_step, by: logits}]",
    ),
    "stresses": (
        *METRIC,
        f"plugins=[{PLUGINS}/white_noise.py, {PLUGINS}/doubled_states.py]",
        "stress=[{kind: white_noise, step: 2, steps: 9, std: 1e-3}, {kind: doubled_states, step: 2, steps: 9}, "
        # Fewer than a micro-batch: the noise scale of one without targets is not a number.
        "{kind: corrupt_sequences, step: 2, steps: 9, sequences: 2, pattern: ignored}]",
    ),
    "stresses of the state": (
        *METRIC,
        "stress=[{kind: optimizer_settings, step: 2, steps: 9, beta2: 0.8}, {kind: half_parameters, step: 2, steps: 9}, "
        "{kind: scale_weights, step: 2, steps: 9, parameters: embedding, factor: 0.9}, "
        "{kind: stale_moments, step: 2, steps: 9, what: swap}, "
        "{kind: stale_moments, step: 2, steps: 9, what: reset, step_count: reset}, "
        "{kind: gradient_noise, step: 2, steps: 9, factor: 0.5}, {kind: flip_bit, step: 2, steps: 9, what: gradient, bit: 20}, "
        "{kind: flip_bit, step: 2, steps: 9, what: parameter, bit: 20}, "
        "{kind: flip_bit, step: 2, steps: 9, what: moment, moment: exp_avg, bit: 20}]",
    ),
    "stresses of the batch": (
        *METRIC,
        "stress=[{kind: corrupt_sequences, step: 2, steps: 9, sequences: 3, pattern: rare}, "
        "{kind: label_noise, step: 2, steps: 9, share: 0.5}, {kind: small_batch, step: 2, steps: 9, sequences: 4}, "
        "{kind: short_sequences, step: 2, steps: 9, parts: 2}, {kind: dead_rank, step: 2, steps: 9, ranks: 4}]",
    ),
    "negatives": (*METRIC, "negatives={kind: random, share: 0.4, loss: hinge, margin: 50.0}", "telemetry.edge_every=1"),
    "dropout, checkpointing, no telemetry": (
        *LINEAR,
        "body.resid_pdrop=0.1",
        "body.attn_pdrop=0.1",
        "train.gradient_checkpointing=true",
        "telemetry.enabled=false",
    ),
    "llama": (*METRIC, "body.model_type=llama", "body.intermediate_size=64"),
}


@contextlib.contextmanager
def unwaiting():
    """Within the block any wait for the GPU is an error."""
    if not ON_GPU:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def start(recipe):
    def build(*overrides):
        another = any(
            override.startswith("body.model_type") for override in overrides
        )  # with other names for its sizes
        sizes = [o for o in SIZES if ON_GPU and not (another and o.startswith("body."))]
        return built(recipe | {"overrides": [*recipe["overrides"], *sizes]}, *overrides)

    return build


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_a_step_does_not_wait_for_the_device(case, precision, start):
    """Micro-batches, a probe of the attention at every step, clipping, telemetry. One transfer brings all rows at the end."""
    several = (f"train.micro_batch_size={size(3, 6)}", "telemetry.attention_every=1", f"train.precision={precision}")
    run = start(*CASES[case], *several)
    for step in range(1, WARM_UP + 1):
        training_step(run, step)
    with unwaiting():
        for step in range(WARM_UP + 1, WARM_UP + 4):
            training_step(run, step)
    rows, healthy = run.recorder.transfer()
    assert [row["step"] for row in rows] == list(range(1, WARM_UP + 4))
    assert healthy == len(rows)
    wrong = {(row["step"], name): value for row in rows for name, value in row.items() if not math.isfinite(value)}
    wrong = {key: value for key, value in wrong.items() if not key[1].endswith("/kappa")}  # NaN for a step uphill
    assert not wrong, wrong
    if "no telemetry" not in case:
        assert "attention/layer_01/logit_max" in rows[-1]
    if not ON_GPU:
        pytest.skip("the steps ran; of waits the driver tells, and a CPU has none")


def test_fp16_trains_and_overflows_end_nothing(start):
    """From a scale that overflows at once: those steps change nothing and lower the scale, and then it trains."""
    options = ("train.precision=fp16", "train.steps=60", *LINEAR)
    if not ON_GPU:
        with pytest.raises(InputError) as refusal:
            start(*options)
        assert str(refusal.value) == (
            "train.precision: fp16 needs a GPU (its gradients must be scaled); use fp32 or bf16 on a CPU"
        )
        pytest.skip("fp16 is refused on a CPU, in one line, as it was here")
    run = start(*options)
    scaler = run.accelerator.scaler
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0**40})
    before = [p.detach().clone() for p in run.model.parameters()]
    training_step(run, 1)
    assert scaler.get_scale() == 2.0**39, "an overflow halves the scale"
    assert all(map(torch.equal, before, run.model.parameters())), "and leaves the parameters alone"
    for step in range(2, 61):
        training_step(run, step)
    rows, healthy = run.recorder.transfer()
    overflowed = [row["step"] for row in rows if not math.isfinite(row["grad_norm/total"])]
    losses = [row["loss/nll"] for row in rows]
    said = f"scale {scaler.get_scale():g}, overflows at {overflowed}, losses {losses[0]:.4f} to {losses[-1]:.4f}"
    assert healthy == len(rows), f"ended at step {healthy + 1}: {said}"
    assert overflowed[:5] == [1, 2, 3, 4, 5], said
    assert len(overflowed) < 40, said
    assert scaler.get_scale() == 2.0 ** (40 - len(overflowed)), said
    assert losses[-1] < losses[0] - 0.1, said
    assert all(map(math.isfinite, losses)), said
