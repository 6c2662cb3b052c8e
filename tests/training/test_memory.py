"""What is said of a run's size before it begins: against the model itself, and against the system's own files."""

import dataclasses

import psutil
import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks.simulate import StorageCounter, micro_batch
from common.command import exit_status
from common.errors import InputError
from configs.load import load_config
from model import HEADS, LinearHead
from tests.training.built import built
from train_lm import train
from training.memory import GIB, LEAST_VOCABULARY, activations, group_room, need_of, shapes_of, skeleton
from training.step import training_step

CPU = torch.device("cpu")
GELU = "body.activation_function=gelu_pytorch_tanh"
BODIES = {
    "gpt2": ["body.n_embd=64", GELU],
    "llama": ["body={model_type: llama, hidden_size: 64, num_key_value_heads: 1, intermediate_size: 192}"],
    "qwen3": [
        "body={model_type: qwen3, hidden_size: 64, num_key_value_heads: 1, head_dim: 48, intermediate_size: 192}"
    ],
    "gpt2 in bf16": ["body.n_embd=64", GELU, "train.precision=bf16"],
    "gpt2, recomputed": ["body.n_embd=64", "body.n_layer=6", GELU, "train.gradient_checkpointing=true"],
}


def config_of(recipe, *overrides):
    return load_config(recipe["path"], [*recipe["overrides"], "data.sequence_length=64", *overrides])


@pytest.mark.parametrize("overrides", BODIES.values(), ids=BODIES)
def test_the_estimate_of_activations_is_near_what_the_model_takes(overrides, recipe):
    config = config_of(recipe, *overrides)
    estimate = activations(config, shapes_of(skeleton(config, 500), 64), 8, "cpu")
    counted = micro_batch(config, 500, 8, device="cpu").peak
    assert 0.6 < estimate / counted < 1.5


def test_the_certain_part_is_what_the_float32_tensors_take(recipe):
    """Weights, gradients, two moments and the telemetry's copy: 20 bytes a parameter, and a step count each."""
    config = config_of(recipe, "telemetry.edge_every=null")
    model = skeleton(config, 500)
    need = need_of(config, 500, ranks=1, sharded=False, device=CPU)
    numbers = sum(p.numel() for p in model.parameters())
    assert need.parameters == numbers
    assert need.certain == 20 * numbers + 4 * len(list(model.parameters()))
    assert 0 < need.free <= psutil.virtual_memory().total


UPDATES = {
    "nothing": ["telemetry.edge_every=null"],
    "measured": ["telemetry.edge_every=1"],
    "measured, with stresses": ["telemetry.edge_every=1", "stress=[{kind: scale_lr, step: 1, steps: 9, factor: 1.0}]"],
    "clip_update_norm": ["interventions=[{kind: clip_update_norm}]"],
    "stable_adamw": ["telemetry.edge_every=null", "interventions=[{kind: stable_adamw}]"],
    "safe_step after agc": ["telemetry.edge_every=null", "interventions=[{kind: agc}, {kind: safe_step}]"],
    "without telemetry": ["telemetry.enabled=false", "interventions=[{kind: safe_step}]"],
}


@pytest.mark.parametrize("overrides", UPDATES.values(), ids=UPDATES)
def test_what_an_update_holds_besides_is_what_its_tensors_take(overrides, recipe):
    """In a step of 8 tokens of a wide model, whose activations are nothing beside a copy of its parameters."""
    run = built(
        recipe, "body.n_embd=256", "data.sequence_length=8", "train.batch_size=1", "head={kind: linear}",
        "objective={kind: ce}", "telemetry.attention_every=null", *overrides,
    )  # fmt: skip
    training_step(run, 1)  # moments come with the first step
    held = [*run.model.parameters(), *run.model.buffers(), *run.telemetry.before, run.probe_BT]
    held += [t for state in run.optimizer.optimizer.state.values() for t in state.values()]
    counter = StorageCounter()
    for tensor in held:
        counter.count(tensor)
    copy = 4 * sum(p.numel() for p in run.model.parameters())
    before = counter.bytes
    with counter:
        training_step(run, 2)
    memory = need_of(run.config, run.store.vocab_size, ranks=1, sharded=False, device=CPU).memory
    assert memory.lasting == pytest.approx(before + copy, rel=0.02), "and the gradients"
    taken = counter.peak - before - copy
    assert memory.update - 0.05 * copy < taken < memory.update + 0.16 * copy, (
        "less than that are forward and backward pass"
    )


def test_a_padding_token_of_the_body_fits_into_the_smallest_vocabulary_that_is_asked_about(recipe):
    """OPT's is 1: of a given tokenizer the size is not known when a run that cannot fit should be refused."""
    config = config_of(recipe, "body.model_type=opt", "body.ffn_dim=64", "data.vocab_size=null", "data.tokenizer=x")
    assert config.data.vocab_size is None
    assert need_of(config, LEAST_VOCABULARY, ranks=1, sharded=False, device=CPU).parameters > 0


def test_what_cannot_fit_is_refused_and_what_may_not_is_said(recipe):
    need = need_of(config_of(recipe), 500, ranks=1, sharded=False, device=CPU)
    dataclasses.replace(need, free=need.certain).refuse()
    with pytest.raises(InputError, match=r"^body: [\d,]+ parameters need \S+ \SiB of memory on each rank"):
        dataclasses.replace(need, free=need.certain - 1).refuse()
    with pytest.raises(InputError, match=r"^body: each rank builds its [\d,]+ parameters in \S+ \SiB of main memory"):
        dataclasses.replace(need, free_to_load=need.loading - 1).refuse()
    assert need.loading == 4 * need.parameters
    assert "it may not fit" in str(dataclasses.replace(need, free=need.memory.total - 1))
    assert "it may not fit" not in str(dataclasses.replace(need, free=need.memory.total))


def test_the_copy_of_shards_counts_where_the_device_is_main_memory(recipe):
    config = config_of(recipe)
    one, three = (need_of(config, 500, ranks=ranks, sharded=True, device=CPU) for ranks in (1, 3))
    assert one.memory.staging == 12 * one.parameters + 4 * len(list(skeleton(config, 500).parameters()))
    assert three.memory.staging == pytest.approx(one.memory.staging / 3, rel=0.05)
    assert three.certain - three.memory.update == three.memory.lasting > three.memory.staging
    assert need_of(config, 500, ranks=3, sharded=False, device=CPU).memory.staging == 0


def test_a_scalar_parameter_of_a_head_counts_and_is_refused_where_it_would_be_sharded(recipe, monkeypatch):
    class Scaled(LinearHead):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.gain = torch.nn.Parameter(torch.ones(()))

    monkeypatch.setitem(HEADS, "linear", Scaled)
    config = config_of(recipe, "head={kind: linear}")
    shapes = shapes_of(skeleton(config, 500), 64)
    assert shapes.shard(1) == shapes.parameters
    assert need_of(config, 500, ranks=2, sharded=False, device=CPU).parameters == shapes.parameters
    with pytest.raises(
        InputError, match=r"head.kind: linear: FSDP2 cannot shard .* give lm_head.gain the shape \(1,\)"
    ):
        need_of(config, 500, ranks=2, sharded=True, device=CPU)


def test_a_run_says_its_size_and_one_that_cannot_fit_is_refused_before_its_text_is_read(
    recipe, tmp_path, monkeypatch, capfd
):
    cache = tmp_path / "cache"
    huge = ["body.n_layer=200", "body.n_embd=20000", f"data.cache_dir={cache}"]
    AcceleratorState._reset_state(reset_partial_state=True)
    config = load_config(recipe["path"], [*recipe["overrides"], *huge])
    assert exit_status(lambda: train(config)) == 2
    refused = capfd.readouterr().err
    assert refused.startswith("error: body: 960,")
    assert refused.count("\n") == 1
    assert not cache.exists()
    assert not (tmp_path / "tiny").exists()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train(load_config(recipe["path"], [*recipe["overrides"], "train.steps=6", "checkpoint.every=6"])) == 0
    told = capfd.readouterr()
    no_effect = "note: launch: mixed_precision=bf16 has no effect; the run's own is train.precision=fp32"
    assert no_effect in told.err.splitlines()
    (size,) = [line for line in told.out.splitlines() if line.startswith("tiny: ")]
    model = skeleton(config_of(recipe), 500)
    numbers = sum(p.numel() for p in model.parameters())
    assert size.startswith(f"tiny: {numbers - 32 * 32:,} parameters; 256 tokens a step, 1,536 in all (")
    assert size.endswith(" free")


@pytest.fixture
def groups(tmp_path):
    """Write the files of control groups; returns where /proc/self/cgroup and /sys/fs/cgroup would be."""

    def write(membership, **files):
        (tmp_path / "cgroup").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "fs" / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / "cgroup", tmp_path / "fs"

    return write


def test_the_tightest_limit_of_a_group_and_its_parents_counts(groups, tmp_path):
    """Version 2, a SLURM job's nested groups; read files are given back and count as free."""
    files = {
        "system__job_7__memory.max": f"{8 * GIB}\n",
        "system__job_7__memory.current": f"{5 * GIB}\n",
        "system__job_7__memory.stat": f"anon {3 * GIB}\ninactive_file {GIB}\nactive_file {GIB}\n",
        "system__job_7__step_0__memory.max": "max\n",
        "system__memory.max": f"{64 * GIB}\n",
        "system__memory.current": f"{10 * GIB}\n",
    }
    found = group_room(*groups("0::/system/job_7/step_0\n", **files))
    assert found == [5 * GIB, 54 * GIB]
    assert group_room(tmp_path / "nowhere", tmp_path) == []


def test_groups_of_version_1_and_full_ones(groups):
    files = {
        "memory__docker__x__memory.limit_in_bytes": f"{2 * GIB}\n",
        "memory__docker__x__memory.usage_in_bytes": f"{3 * GIB}\n",
        "memory__docker__memory.limit_in_bytes": f"{9 * GIB}\n",
        "memory__docker__memory.usage_in_bytes": f"{7 * GIB}\n",
        "memory__docker__memory.stat": f"inactive_file 0\ntotal_inactive_file {3 * GIB}\ntotal_active_file {GIB}\n",
    }
    assert group_room(*groups("5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n", **files)) == [0, 6 * GIB]
