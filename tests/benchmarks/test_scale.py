"""The model of cost against what really happens in small cases: parameters, memory, collectives, files."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from accelerate import FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bill, scale
from benchmarks.cost_model import Costs
from benchmarks.paired import loop_step, start_run
from benchmarks.scale import measure_exchange, measure_files, measure_step
from benchmarks.simulate import micro_batch
from common.command import exit_status
from configs.load import load_config
from optim.optimizers import build_optimizer
from ranks.launch import FILES_PER_RANK, autocast_sharded
from ranks.watchdog import MAX_SECONDS_BETWEEN_BEATS
from record.checkpoints import list_checkpoints
from record.shards import INDEX_FILE, Part, Staging, join_shards, write_shard
from tests.distributed.ranks import Ranks
from training.build import build_model, build_telemetry, prepare_model
from training.memory import shapes_of
from training.saving import save_checkpoint

VOCABULARY = 500
RANKS = 4
BODIES = {
    "gpt2": [],
    "llama": [
        "body={model_type: llama, num_hidden_layers: 3, num_attention_heads: 4, hidden_size: 32, intermediate_size: 48}"
    ],
    "untied": ["head={kind: linear, tied: false, bias: true}", "objective.kind=ce"],
}


@pytest.fixture
def configured(recipe):
    AcceleratorState._reset_state(reset_partial_state=True)
    return lambda *overrides: load_config(recipe["path"], [*recipe["overrides"], *overrides])


@pytest.fixture
def ranks():
    """This process is rank 0 of four whose collectives do nothing."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    yield
    dist.destroy_process_group()


def built(config):
    return prepare_model(config, build_model(config, VOCABULARY, 0))


def bytes_of(tensors):
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() * t.element_size() for t in local)


def trained(config, model, parts=1):
    """Take one step of ``parts`` micro-batches; returns the optimizer and the telemetry."""
    optimizer, telemetry = build_optimizer(model, config.optimizer), build_telemetry(model, config)
    x_BT = torch.zeros(2, config.data.sequence_length, dtype=torch.long)
    for _ in range(parts):
        model(input_ids=x_BT, shift_labels=x_BT, skip_logits=True, use_cache=False).loss.backward()
    optimizer.step()
    return optimizer, telemetry


@pytest.mark.parametrize("body", BODIES)
def test_parameters_are_those_of_the_built_model(configured, body):
    config = configured(*BODIES[body])
    model = build_model(config, VOCABULARY, 0)
    costs = Costs(config, VOCABULARY)
    assert costs.shapes.parameters == sum(p.numel() for p in model.parameters())
    assert costs.shapes == shapes_of(model, config.data.sequence_length)
    assert len(costs.shapes.all) == len(list(model.parameters()))


@pytest.mark.parametrize(("body", "precision"), [("gpt2", "bf16"), ("llama", "fp32"), ("untied", "fp32")])
def test_a_rank_of_ddp_holds_what_the_model_says(configured, body, precision):
    config = configured(*BODIES[body], f"train.precision={precision}")
    model = built(config)
    optimizer, telemetry = trained(config, model)
    memory = Costs(config, VOCABULARY).memory(ranks=2, sharded=False)
    assert memory.weights == bytes_of(model.parameters())
    assert memory.gradients == bytes_of(p.grad for p in model.parameters())
    assert memory.moments == bytes_of(value for state in optimizer.state.values() for value in state.values())
    assert memory.telemetry == bytes_of(telemetry.before)


def test_ddp_reduces_and_copies_all_gradients_once_a_step(configured, ranks):
    config = configured("train.micro_batch_size=1")
    model = DistributedDataParallel(built(config))
    sent = []

    def hook(_, bucket):
        sent.append(bucket.buffer())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, hook)
    x_BT = torch.zeros(1, config.data.sequence_length, dtype=torch.long)
    with model.no_sync():
        model(input_ids=x_BT, shift_labels=x_BT, skip_logits=True, use_cache=False).loss.backward()
    assert sent == []
    model(input_ids=x_BT, shift_labels=x_BT, skip_logits=True, use_cache=False).loss.backward()
    costs = Costs(config, VOCABULARY)
    assert bytes_of(sent) == costs.memory(RANKS, sharded=False).buckets
    own = {p.grad.untyped_storage().data_ptr() for p in model.parameters()}
    assert not own & {buffer.untyped_storage().data_ptr() for buffer in sent}
    assert costs.traffic(RANKS, sharded=False).gradients == 2 * (RANKS - 1) / RANKS * bytes_of(sent)


@pytest.mark.parametrize("width", [32, 256, 768])
def test_ddp_has_the_predicted_buckets(configured, ranks, width):
    config = configured(f"body.n_embd={width}", "body.n_layer=3")
    model = DistributedDataParallel(built(config))
    sent = []

    def hook(_, bucket):
        sent.append(bucket.index())
        done = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    model.register_comm_hook(None, hook)
    x_BT = torch.zeros(1, config.data.sequence_length, dtype=torch.long)
    for _ in range(2):  # after the first pass the order in which gradients come is known
        sent.clear()
        model(input_ids=x_BT, shift_labels=x_BT, skip_logits=True, use_cache=False).loss.backward()
    assert len(sent) == Costs(config, VOCABULARY).collectives(RANKS, sharded=False).gradients


class Calls(TorchDispatchMode):
    """Counts FSDP2's collectives, and sums up what they gather and scatter, whole."""

    def __init__(self):
        super().__init__()
        self.gathered = self.scattered = self.gathers = self.scatters = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "allgather_base" in str(func):
            self.gathered += bytes_of(args[:1])
            self.gathers += 1
        if "reduce_scatter_base" in str(func):
            self.scattered += bytes_of(args[1:2])
            self.scatters += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("body", "precision"), [("gpt2", "bf16"), ("llama", "fp32"), ("untied", "bf16")])
def test_a_rank_of_fsdp2_as_accelerate_prepares_it_holds_and_sends_what_the_model_says(
    configured, ranks, body, precision
):
    # Widths that the ranks divide: collectives pad what they do not. 8 sequences on 4 ranks are 2 micro-batches of 1.
    config = configured(*BODIES[body], f"train.precision={precision}", "train.micro_batch_size=1")
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        reshard_after_forward=True,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
    )
    plugin.mixed_precision_policy = MixedPrecisionPolicy()  # as ranks.launch has it
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no" if precision == "fp32" else precision,
        is_main_process=False,
        is_fsdp2=True,
        device=torch.device("cpu"),
    )
    model = fsdp2_prepare_model(accelerator, built(config))
    autocast_sharded(accelerator, model)
    costs = Costs(config, VOCABULARY)
    with Calls() as calls:
        optimizer, telemetry = trained(config, model, parts=2)
    memory, traffic = costs.memory(RANKS, sharded=True), costs.traffic(RANKS, sharded=True)
    assert memory.weights == bytes_of(model.parameters())
    assert memory.gradients == bytes_of(p.grad for p in model.parameters())
    assert memory.moments == bytes_of(value for state in optimizer.state.values() for value in state.values())
    assert memory.telemetry == bytes_of(telemetry.before)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    share = (RANKS - 1) / RANKS
    assert traffic.parameters == share * calls.gathered
    assert traffic.gradients == share * calls.scattered
    assert costs.collectives(RANKS, sharded=True)[:2] == (calls.gathers, calls.scatters)


@pytest.mark.parametrize(
    ("body", "precision", "checkpointing"),
    [("gpt2", "fp32", False), ("gpt2", "bf16", True), ("llama", "bf16", False), ("llama", "fp32", True)],
)
def test_fake_tensors_need_what_real_ones_do(configured, body, precision, checkpointing):
    config = configured(
        *BODIES[body], f"train.precision={precision}", f"train.gradient_checkpointing={str(checkpointing).lower()}"
    )
    fake, real = (micro_batch(config, VOCABULARY, 4, device="cpu", fake=fake) for fake in (True, False))
    assert fake == real


def test_what_is_counted_is_what_the_allocator_gives_out(configured):
    """Torch's own record of allocations, of a whole forward and backward pass."""
    config = configured("data.sequence_length=128")
    model = built(config)
    x_BT = torch.zeros(16, 128, dtype=torch.long)
    for _ in range(2):  # gradients exist from the first pass on
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            model(input_ids=x_BT, shift_labels=x_BT, skip_logits=True, use_cache=False, statistics=True).loss.backward()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    counted = micro_batch(config, VOCABULARY, 16, device="cpu", fake=False)
    assert counted.peak == pytest.approx(most, rel=0.03)


def test_activations_grow_with_tokens_and_checkpointing_keeps_a_fraction(configured):
    config = configured("data.sequence_length=128", "body.n_layer=4")
    one, two = (micro_batch(config, VOCABULARY, sequences, fake=False).kept for sequences in (4, 8))
    assert two == pytest.approx(2 * one, rel=0.02)
    checkpointed = configured("data.sequence_length=128", "body.n_layer=4", "train.gradient_checkpointing=true")
    assert micro_batch(checkpointed, VOCABULARY, 8, fake=False).kept < 0.15 * two


def test_operations_are_those_of_the_matrix_products(configured):
    """Counted by torch in a forward pass of eager attention, which computes all of T x T as the convention has it."""
    config = configured("head.kind=linear", "objective.kind=ce")
    model = build_model(config, VOCABULARY, 0)
    model.set_attn_implementation("eager")
    x_BT = torch.zeros(2, config.data.sequence_length, dtype=torch.long)
    with FlopCounterMode(display=False) as counted:
        model(input_ids=x_BT, use_cache=False)
    assert Costs(config, VOCABULARY).shapes.flops_per_token() * x_BT.numel() == 3 * counted.get_total_flops()


def test_checkpointing_computes_the_blocks_forward_pass_once_more_but_for_its_last_product(configured):
    """Of each block: torch stops computing again when it has all that the backward pass needs."""
    counts, costs = {}, {}
    for again in ("false", "true"):
        config = configured("head.kind=linear", "objective.kind=ce", f"train.gradient_checkpointing={again}")
        model = build_model(config, VOCABULARY, 0)
        model.set_attn_implementation("eager")
        x_BT = torch.zeros(2, config.data.sequence_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counted:
            prepare_model(config, model).model(input_ids=x_BT, use_cache=False).last_hidden_state.sum().backward()
        counts[again], costs[again] = counted.get_total_flops(), Costs(config, VOCABULARY)
    last = 2 * x_BT.numel() * config.body.n_layer * 4 * config.body.n_embd**2
    share = config.train.batch_size / RANKS / len(x_BT)
    more = costs["true"].operations(RANKS) - costs["false"].operations(RANKS)
    assert more == pytest.approx(share * (counts["true"] - counts["false"] + last), rel=1e-12)
    assert costs["false"].operations(RANKS) == share * costs["false"].shapes.flops_per_token() * x_BT.numel()


COUNTED = """
import json, os, sys
from pathlib import Path
import train_lm, training.loop
from torch.utils._python_dispatch import TorchDispatchMode
from common.command import exit_status

class Count(TorchDispatchMode):
    calls = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += "c10d" in str(func) and "wait" not in str(func) and "wrap" not in str(func)
        return func(*args, **(kwargs or {}))

def step(run, number, usual=training.loop.training_step):
    with Count() as count:
        usual(run, number)
    sockets = sum(path.is_socket() for path in Path("/proc/self/fd").iterdir())
    print(json.dumps({"calls": count.calls, "sockets": sockets}) if run.accelerator.is_main_process else "", file=sys.stderr)

training.loop.training_step = step
raise SystemExit(exit_status(train_lm.main))
"""


def test_real_ranks_make_the_predicted_calls_and_connections(recipe, tmp_path):
    """In whole steps of train_lm.py: two ranks of DDP, and three of FSDP2 that accumulate."""
    (tmp_path / "counted.py").write_text(COUNTED)
    sockets = {}
    for number, sharded, overrides in [
        (2, False, ["train.batch_size=6"]),
        (3, True, ["train.batch_size=6", "train.micro_batch_size=1"]),
    ]:
        quick = ["optimizer.warmup_steps=1", "body.n_layer=1", "train.steps=3", f"name=of{number}", *overrides]
        launched = Ranks(recipe, *quick, world_size=number, sharded=sharded, program=(tmp_path / "counted.py",))
        try:
            ended = launched.wait()
        finally:
            launched.kill()
        assert [status for status, _ in ended] == [0] * number, ended
        found = [json.loads(line) for line in re.findall(r"{.*}", ended[0][1])]
        config = load_config(recipe["path"], [*recipe["overrides"], *quick])
        expected = Costs(config, VOCABULARY).collectives(number, sharded)
        # At the first two steps there are no moments yet, and DDP's ranks agree on the order of gradients.
        assert found[-1]["calls"] == sum(expected) - expected.vote
        sockets[number] = found[-1]["sockets"]
    assert sockets[3] - sockets[2] == FILES_PER_RANK


@pytest.mark.parametrize("number", [1, 4, 7, 40])
def test_an_index_of_shards_has_the_predicted_bytes(configured, tmp_path, number):
    """Of ranks that do not divide the width of 30, and of more ranks than rows."""
    costs = Costs(configured("body.n_embd=30"), VOCABULARY)
    for rank in range(number):
        parts = {f"optimizer.{name}.step": Part([], 0, torch.zeros(())) for name in costs.names if rank == 0}
        for name, shape in costs.names.items():
            rows, first = Shard.local_shard_size_and_offset(shape[0], number, rank)
            for stored in (
                (f"model.{name}", f"optimizer.{name}.exp_avg", f"optimizer.{name}.exp_avg_sq") if rows else ()
            ):
                parts[stored] = Part([*shape], first, torch.zeros(rows, *shape[1:]))
        write_shard(tmp_path, rank, parts)
    join_shards(tmp_path, number)
    assert costs.index_bytes(number) == (tmp_path / INDEX_FILE).stat().st_size


def test_what_does_not_fit_a_device_has_no_seconds(configured):
    costs = {"large": Costs(configured("body.n_embd=8192", "body.n_layer=8", "train.batch_size=64"), VOCABULARY)}
    ddp, sharded = bill.steps(costs, [64])
    assert ddp[:5] == ["large", "64", "DDP", ddp[3], "does not fit 80 GB"]
    assert float(sharded[3]) < bill.DEVICE / 1e9 < float(ddp[3])
    assert [row[2] for row in bill.stored(costs, [64])] == ["FSDP2"]


def test_a_step_of_one_rank_is_computing_alone(configured):
    cost = Costs(configured(), VOCABULARY)
    assert bill.step_seconds(cost, 1, sharded=False) == (cost.operations(1) / bill.FLOPS, 0, 0)
    computing, sending, latency = bill.step_seconds(cost, 4, sharded=True)
    assert computing == pytest.approx(cost.operations(1) / bill.FLOPS / 4)
    assert sending == sum(cost.traffic(4, sharded=True)) / bill.LINK
    assert latency == pytest.approx(2 * bill.HOP * (sum(cost.collectives(4, sharded=True)) - 1))


def test_a_checkpoint_has_the_predicted_bytes_within_the_stated_overhead(recipe, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=True)
    run = start_run(recipe["path"], recipe["overrides"], str(tmp_path), "written")
    loop_step(run)(1)
    save_checkpoint(run, undecided=False)
    (checkpoint,) = list_checkpoints(run.directory)
    written = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    costs = Costs(run.config, run.store.vocab_size)
    entry = 256  # bytes of a tensor's entry in the header of a safetensors file, and its alignment: at most
    assert 0 < written - costs.checkpoint_bytes <= entry * 4 * len(costs.shapes.all)


def test_the_first_rank_writes_the_predicted_bytes_of_a_checkpoint_in_shards(configured, ranks):
    costs = Costs(configured("body.n_embd=30"), VOCABULARY)  # which four ranks do not divide
    mesh = init_device_mesh("cpu", (RANKS,))
    weights = {str(n): torch.zeros(shape) for n, shape in enumerate(costs.shapes.all)}
    sharded = {n: distribute_tensor(weight, mesh, [Shard(0)], src_data_rank=None) for n, weight in weights.items()}
    parts = Staging().copy(sharded, main=True).values()
    assert costs.shard_bytes(RANKS) == 3 * bytes_of(part.rows for part in parts) + 4 * len(weights)
    assert costs.shard_bytes(1) == costs.checkpoint_bytes


def test_rows_of_a_deeper_model_have_the_predicted_bytes(recipe):
    AcceleratorState._reset_state(reset_partial_state=True)
    shallow = measure_files(recipe["path"], [*recipe["overrides"], "body.n_layer=2"])
    deep = measure_files(recipe["path"], [*recipe["overrides"], "body.n_layer=6"])
    assert (shallow.layers, deep.layers) == (2, 6)
    assert shallow.row_bytes(6) == pytest.approx(deep.row_bytes(6), rel=0.03)
    assert shallow.fixed_bytes == pytest.approx(deep.fixed_bytes, rel=0.03)
    assert shallow.checkpoint_bytes > 0 < shallow.seconds_per_row_read


def test_small_models_are_measured(recipe):
    shapes, tokens, seconds = measure_step([*recipe["overrides"]], VOCABULARY, recipe["path"])
    assert (shapes.length, tokens) == (32, 8 * 32)
    assert seconds > 0


def test_the_tables_are_printed_for_launches_that_the_batch_can_be_dealt_out_to(recipe, monkeypatch, capsys):
    arguments = ["scale", "--config", str(recipe["path"]), "--ranks", "1,3,8", "--no-measure"]
    monkeypatch.setattr("sys.argv", arguments)
    assert exit_status(scale.main) == 0
    out = capsys.readouterr().out
    costs = Costs(load_config(recipe["path"]), VOCABULARY)
    assert f"{costs.shapes.parameters:,}" in out
    launches = [line.split(" | ")[1:3] for line in out.splitlines() if line.startswith("| tiny | ")]
    assert [launch for launch in launches if launch[1] in ("DDP", "FSDP2")] == 4 * [
        ["1", "DDP"],
        ["8", "DDP"],
        ["8", "FSDP2"],
    ]
    assert out.count("| tiny | 3 |  | 8 sequences do not divide over 3 ranks: train.batch_size=9 |") == 2


def test_heartbeats_are_exchanged_over_a_real_store():
    assert 0 < measure_exchange(3) < MAX_SECONDS_BETWEEN_BEATS


def test_the_reference_shapes_are_ordinary_recipes_of_the_size_they_say():
    named = {"gpt2_1_3b": 1.3e9, "gpt2_7b": 6.7e9}
    for name, parameters in named.items():
        config = load_config(scale.CONFIGS / "scale" / f"{name}.yaml")
        assert config.name == name
        assert Costs(config, 50_257).shapes.parameters == pytest.approx(parameters, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--ranks", "1,x"], "--ranks: '1,x' is not a list of numbers from 1"),
        (["--ranks", "0"], "--ranks: '0' is not a list of numbers from 1"),
        (
            ["--config", "configs/grammar_micro.yaml"],
            "--vocabulary: grammar_micro does not say how many tokens there are",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(scale.CONFIGS.parent)
    monkeypatch.setattr("sys.argv", ["scale", *arguments])
    assert exit_status(scale.main) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {problem}")
    assert told.count("\n") == 1
