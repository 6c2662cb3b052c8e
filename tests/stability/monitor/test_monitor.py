"""The monitor on plain loops: what it measures, and that it changes nothing."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from record.metrics import is_known
from stability.monitor import Monitor

from .loops import bigram, events_of, gpt2, llama, mlp, regression_loss, rows_of, status_of, token_loss, tokens, train

LOOPS = {
    "mlp": (mlp, regression_loss),
    "bigram": (bigram, token_loss),
    "gpt2": (gpt2, token_loss),
    "llama": (llama, token_loss),
}


@pytest.mark.parametrize("kind", LOOPS)
def test_every_step_has_a_row_and_every_row_the_same_metrics(tmp_path, kind):
    make, loss_of = LOOPS[kind]
    model = make()
    train(model, loss_of, 33, lambda m, o: Monitor(tmp_path / "run", m, o, flush_every=10)).close()
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 34))
    assert len({tuple(row) for row in rows}) == 1
    assert all(math.isfinite(value) for row in rows for value in row.values())
    groups = {name.split("/", 1)[1] for name in rows[0] if name.startswith("update_rms/")}
    if kind == "mlp":
        assert groups == {"0", "3"}
    else:
        layers = {f"layer_{i:02d}" for i in range(2 if kind == "gpt2" else 3)}
        assert groups == {"embedding", "norm", *layers} | ({"head"} if kind != "gpt2" else set())
        places = {"embedding", "pre_final", "final", *layers}
        assert {f"hidden_norm/{place}/{how}" for place in places for how in ("mean", "max")} <= set(rows[0])
        assert all(is_known(name) for name in rows[0])
    assert status_of(tmp_path / "run") == {"status": "finished", "step": 33, "reason": ""}


@pytest.mark.parametrize("kind", ["bigram", "llama"])
def test_the_values_are_those_of_their_definitions(tmp_path, kind):
    model = LOOPS[kind][0]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    watch = Monitor(tmp_path / "run", model, optimizer, groups={"mine": "*mlp*"})
    hidden = {}
    final = model.ln_f if kind == "bigram" else model.model.norm
    final.register_forward_hook(
        lambda _m, a, out: hidden.update(pre_final=a[0].double().norm(dim=-1), final=out.double().norm(dim=-1))
    )
    loss = token_loss(model, 1)
    loss.backward()
    before = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    gradients = {n: p.grad.double().clone() for n, p in model.named_parameters()}
    watch.step(loss)
    optimizer.step()
    watch.close()
    (row,) = rows_of(tmp_path / "run")
    after = {n: p.detach().double() for n, p in model.named_parameters()}

    def norm(values, names=None):
        return math.sqrt(sum(float(v.square().sum()) for n, v in values.items() if names is None or n in names))

    mine = {n for n in before if "mlp" in n}
    changes = {n: after[n] - before[n] for n in before}
    head = model.lm_head.weight
    expected = {
        "lr": 0.3,
        "loss/nll": loss.item(),
        "grad_norm/total": norm(gradients),
        "grad_norm/mine": norm(gradients, mine),
        "param_norm/mine": norm(before, mine),
        "param_norm/head": before["lm_head.weight"].norm().item(),
        "update_rms/mine": norm(changes, mine) / math.sqrt(sum(before[n].numel() for n in mine)),
        "embedding_norm/max": before["lm_head.weight"].norm(dim=1).max().item(),
        "hidden_norm/pre_final/mean": hidden["pre_final"].mean().item(),
        "hidden_norm/pre_final/max": hidden["pre_final"].max().item(),
        "hidden_norm/final/mean": hidden["final"].mean().item(),
    }
    assert head.shape[0] == 40
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("make", [lambda: mlp(0.2), lambda: gpt2(0.2), bigram])
def test_training_is_the_same_to_the_bit(tmp_path, make):
    loss_of = regression_loss if isinstance(make(), nn.Sequential) else token_loss
    alone, watched = make(), make()
    train(alone, loss_of, 50)
    train(watched, loss_of, 50, lambda m, o: Monitor(tmp_path / "run", m, o)).close()
    for one, other in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(one, other)
    assert len(rows_of(tmp_path / "run")) == 50


class NoWaiting(TorchDispatchMode):
    """Counts the operations that read a value back from the device."""

    waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.waits += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


def test_no_step_reads_anything_back(tmp_path):
    model = gpt2()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = Monitor(tmp_path / "run", model, optimizer, flush_every=100)
    with NoWaiting() as mode:
        for step in range(20):
            loss = token_loss(model, step)
            loss.backward()
            total = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            watch.step(loss, batch=tokens(step), grad_norm=total)
            optimizer.step()
        assert mode.waits == 0
        loss.item()
        assert mode.waits == 1  # the counter counts
    watch.close()
    assert len(rows_of(tmp_path / "run")) == 20


def test_a_planted_spike_is_reported_with_its_batches_and_how_to_look(tmp_path, capsys):
    model = bigram()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = Monitor(tmp_path / "run", model, optimizer)
    for step in range(1, 161):
        optimizer.param_groups[0]["lr"] = 1.0 if step == 100 else 1e-2
        loss = token_loss(model, step)
        optimizer.zero_grad()
        loss.backward()
        watch.step(loss, batch=torch.tensor([step, 1000 + step]))
        optimizer.step()
    said = capsys.readouterr().out  # before the end: while training goes on
    watch.close()
    spike = next(e for e in events_of(tmp_path / "run") if e["event"] == "spike" and e["signal"] == "loss/nll")
    assert spike["start_step"] == 101
    assert spike["batches"][:2] == [[100, [100, 1100]], [101, [101, 1101]]]  # the update of step 100 did it
    assert "replay" not in spike
    assert f"python -m analysis.spikes {tmp_path / 'run'} --out" in said
    assert "analysis.replay" not in said


def test_a_loss_that_is_not_finite_is_reported_and_training_goes_on(tmp_path, capsys):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch = Monitor(tmp_path / "run", model, optimizer, flush_every=5)
    for step in range(1, 31):
        loss = regression_loss(model, step) * (math.nan if step in (12, 13) else 1.0)
        optimizer.zero_grad()
        loss.backward()
        watch.step(loss, batch=step)
        if step not in (12, 13):
            optimizer.step()
    watch.close()
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows if row["loss/nll"] == "NaN"] == [12, 13]
    assert all("update_rms/0" in row for row in rows if row["step"] not in (12, 13))
    assert not any("update_rms/0" in row for row in rows if row["step"] in (12, 13))  # no update was made
    (event,) = [e for e in events_of(tmp_path / "run") if e["event"] == "non_finite"]
    assert (event["step"], event["batches"], event["signals"][0]) == (12, [[12, 12]], "loss/nll")
    assert "grad_norm/0" in event["signals"]
    assert "loss/nll is not finite at step 12" in capsys.readouterr().out
    assert rows[0]["data/batch"] == 1


def test_the_losses_of_micro_batches_are_averaged(tmp_path):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch = Monitor(tmp_path / "run", model, optimizer)
    expected = []
    for step in range(1, 5):
        losses = [regression_loss(model, 10 * step + i) for i in range(3)]
        for loss in losses:
            (loss / 3).backward()
            if step % 2:
                watch.micro(loss)
        watch.step(None if step % 2 else losses)
        expected.append(sum(loss.item() for loss in losses) / 3)
        optimizer.step()
        optimizer.zero_grad()
    watch.close()
    assert [row["loss/nll"] for row in rows_of(tmp_path / "run")] == pytest.approx(expected, rel=1e-6)


def test_hidden_norms_are_over_all_micro_batches_and_only_those_of_training(tmp_path):
    model = bigram()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch = Monitor(tmp_path / "run", model, optimizer)
    seen = []
    handle = model.ln_f.register_forward_hook(lambda _m, _a, out: seen.append(out.detach().norm(dim=-1).flatten()))
    for i in range(2):
        token_loss(model, i).backward()
    handle.remove()
    model.eval()
    token_loss(model, 9)
    model.train()
    watch.step(1.0)
    optimizer.step()
    watch.close()
    (row,) = rows_of(tmp_path / "run")
    assert row["hidden_norm/final/mean"] == pytest.approx(torch.cat(seen).mean().item(), rel=1e-6)
    assert row["hidden_norm/final/max"] == pytest.approx(torch.cat(seen).max().item(), rel=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_does_not_count_twice(tmp_path, reentrant):
    model = bigram()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = Monitor(tmp_path / "run", model, optimizer)
    x = tokens(0)
    for step in range(2):
        h = model.wte(x)
        for block in model.blocks:
            h = checkpoint(block, h, use_reentrant=reentrant) if step else block(h)
        loss = F.cross_entropy(model.lm_head(model.ln_f(h)).flatten(0, 1), x.flatten())
        loss.backward()
        assert len(watch._gauges.hidden["hidden_norm/layer_01"]) == 1
        watch.step(loss)
        optimizer.step()
        optimizer.zero_grad()
    watch.close()
    plain, checkpointed = rows_of(tmp_path / "run")
    assert {k: v for k, v in plain.items() if k.startswith("hidden")} == {
        k: v for k, v in checkpointed.items() if k.startswith("hidden")
    }


def test_clipping_before_the_monitor_needs_the_norm_that_it_returned(tmp_path):
    rows = []
    for how in ("raw", "clipped", "told"):
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        watch = Monitor(tmp_path / how, model, optimizer)
        loss = regression_loss(model, 1)
        loss.backward()
        total = None if how == "raw" else nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        watch.step(loss, grad_norm=total if how == "told" else None)
        optimizer.step()
        watch.close()
        rows.append(rows_of(tmp_path / how)[0])
    raw, clipped, told = rows
    assert clipped["grad_norm/total"] == pytest.approx(0.01, rel=1e-3)
    for name in ("grad_norm/total", "grad_norm/0", "grad_norm/3"):
        assert told[name] == pytest.approx(raw[name], rel=1e-5)


@pytest.mark.parametrize("unscaled", [False, True])
def test_the_factor_of_a_gradient_scaler_is_taken_out(tmp_path, unscaled):
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    watch = Monitor(tmp_path / "run", model, optimizer, scaler=scaler)
    expected = []
    for step in range(1, 4):
        loss = regression_loss(model, step)
        expected.append(
            math.sqrt(sum(g.square().sum() for g in torch.autograd.grad(loss, model.parameters(), retain_graph=True)))
        )
        if step == 3:
            loss = loss * math.inf  # overflows: the scaler skips this step
        scaler.scale(loss).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        watch.step(loss)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    watch.close()
    rows = rows_of(tmp_path / "run")
    assert [row["grad_norm/total"] for row in rows[:2]] == pytest.approx(expected[:2], rel=1e-5)
    assert ["update_rms/0" in row for row in rows] == [True, True, False]


def test_two_optimizers_that_share_the_model_are_one_step(tmp_path):
    model = mlp()
    optimizers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[3].parameters(), lr=0.01)]
    watch = Monitor(tmp_path / "run", model, optimizers)
    for step in range(1, 4):
        loss = regression_loss(model, step)
        loss.backward()
        before = [p.detach().clone() for p in model[0].parameters()]
        watch.step(loss)
        for optimizer in optimizers:
            optimizer.step()
        change = torch.cat([(p - b).flatten() for p, b in zip(model[0].parameters(), before, strict=True)])
        model.zero_grad()
    watch.close()
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["update_rms/0"] == pytest.approx(change.square().mean().sqrt().item(), rel=1e-4)
    assert rows[-1]["update_rms/3"] > 0


def test_a_copy_of_a_watched_model_is_not_watched(tmp_path):
    model = bigram()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch = Monitor(tmp_path / "run", model, optimizer)
    average = copy.deepcopy(model)
    stored = io.BytesIO()
    torch.save(model, stored)
    stored.seek(0)
    for other in (average, torch.load(stored, weights_only=False)):
        other.train()
        token_loss(other, 1)
    assert watch._gauges.hidden == {}
    token_loss(model, 1)
    assert watch._gauges.hidden
    watch.close()
    assert not model.ln_f._forward_hooks and not optimizer._optimizer_step_post_hooks


def test_a_directory_that_holds_a_run_is_refused(tmp_path):
    model = mlp()
    train(model, regression_loss, 5, lambda m, o: Monitor(tmp_path / "run", m, o)).close()
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"{tmp_path / 'run'} holds a run already"):
        Monitor(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("start", "steps"), [(None, 40), (20, 30)])
def test_a_resumed_run_goes_on_with_its_rows_and_its_detectors(tmp_path, start, steps):
    run = tmp_path / "run"
    train(mlp(), regression_loss, 30, lambda m, o: Monitor(run, m, o)).close()
    options = {"resume": True, "start_step": start}
    train(mlp(), regression_loss, 10, lambda m, o: Monitor(run, m, o, **options)).close()
    assert [row["step"] for row in rows_of(run)] == list(range(1, steps + 1))
    assert [e["step"] for e in events_of(run) if e["event"] == "resume"] == [start or 30]
    watch = Monitor(run, model := mlp(), torch.optim.SGD(model.parameters(), lr=0.1), resume=True)
    assert watch._log.watch.detectors[0].last_step == steps
    watch.close()


def test_a_pattern_that_matches_nothing_is_refused(tmp_path):
    model = mlp()
    with pytest.raises(ValueError, match=r"groups: head: 'lm_head\.\*' matches none"):
        Monitor(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), groups={"head": "lm_head.*"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("first", ["monitor", "compiler"])
def test_a_compiled_model_stays_one_graph_and_is_measured_but_for_its_hidden_states(tmp_path, first):
    model = bigram()
    whole = torch.compile(model, backend="eager", fullgraph=True) if first == "compiler" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    watch = Monitor(tmp_path / "run", whole, optimizer)
    step = torch.compile(lambda m, x: m.lm_head(m.ln_f(m.blocks(m.wte(x)))), backend="eager", fullgraph=True)
    for number in range(1, 4):
        x = tokens(number)
        loss = F.cross_entropy(step(model, x).flatten(0, 1), x.flatten())
        loss.backward()
        watch.step(loss)
        optimizer.step()
    watch.close()
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"update_rms/layer_01", "grad_norm/head", "embedding_norm/max"} <= set(rows[0])
    assert not any(name.startswith("hidden_norm") for name in rows[0])


def test_what_cannot_be_measured_is_refused_before_training(tmp_path):
    model = mlp()
    model[3].weight = nn.Parameter(torch.empty(1, 32, device="meta"))
    with pytest.raises(ValueError, match="several devices cannot be monitored: cpu, meta"):
        Monitor(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="flush_every is 0"):
        Monitor(tmp_path / "run", mlp(), torch.optim.SGD(mlp().parameters(), lr=0.1), flush_every=0)


def test_sharded_parameters_are_refused(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(mlp(), mesh=dist.init_device_mesh("cpu", (1,)))
        with pytest.raises(ValueError, match="sharded parameters"):
            Monitor(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1))
    finally:
        dist.destroy_process_group()


def test_a_directory_that_cannot_be_written_is_refused_and_the_model_left_alone(tmp_path):
    (tmp_path / "file").write_text("")
    model = bigram()
    with pytest.raises(NotADirectoryError):
        Monitor(tmp_path / "file" / "run", model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
