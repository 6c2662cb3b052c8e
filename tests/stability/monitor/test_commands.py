"""Scripts of others with a monitor in them, run as processes, and the project's commands on what they wrote."""

from __future__ import annotations

import json
import os
import textwrap

import pytest

from analysis import summary
from analysis.curves import __main__ as curves
from analysis.replay import __main__ as replay
from analysis.spikes import __main__ as spikes
from common.command import exit_status
from tests.conftest import ROOT, python
from tests.distributed.ranks import Rank, places

from .loops import rows_of, status_of

# A well-known small trainer's loop, with the two lines that a monitor needs.
SCRIPT = """
import sys
import torch
import torch.nn as nn
from torch.nn import functional as F
from stability.monitor import Monitor

torch.manual_seed(1337)
text = "the quick brown fox jumps over the lazy dog; " * 200
chars = sorted(set(text))
data = torch.tensor([chars.index(c) for c in text])
batch_size, block_size, n_embd = 8, 16, 24

def get_batch():
    ix = torch.randint(len(data) - block_size, (batch_size,))
    x = torch.stack([data[i : i + block_size] for i in ix])
    return x, torch.stack([data[i + 1 : i + block_size + 1] for i in ix]), ix

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(n_embd), nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x):
        return x + self.net(x)

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.token_embedding_table = nn.Embedding(len(chars), n_embd)
        self.blocks = nn.Sequential(*[Block() for _ in range(2)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, len(chars))

    def forward(self, idx, targets):
        logits = self.lm_head(self.ln_f(self.blocks(self.token_embedding_table(idx))))
        return F.cross_entropy(logits.view(-1, len(chars)), targets.view(-1))

model = Model()
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
watch = Monitor(sys.argv[1], model, optimizer, config={"dropout": 0.0})
for step in range(1, 151):
    xb, yb, ix = get_batch()
    loss = model(xb, yb)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.param_groups[0]["lr"] = 3e-1 if step == 100 else 3e-3
    watch.step(loss, batch=ix)
    optimizer.step()
    if step == int(sys.argv[2]):
        raise ValueError("a user's mistake")
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "train.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture(scope="module")
def run(script):
    folder = script.parent / "mine"
    done = python(script, folder, 0, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert f"what happened? python -m analysis.spikes {folder}" in done.stdout
    return folder


def test_the_end_of_the_process_writes_the_last_rows(run):
    assert [row["step"] for row in rows_of(run)] == list(range(1, 151))
    assert status_of(run) == {"status": "finished", "step": 150, "reason": ""}
    facts = json.loads((run / "environment.json").read_text())
    assert facts["device"]["type"] == "cpu"
    assert facts["precision"] == "float32"


def test_an_exception_in_the_users_loop_is_the_runs_end(script):
    folder = script.parent / "failed"
    done = python(script, folder, 33, PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert [row["step"] for row in rows_of(folder)] == list(range(1, 34))
    assert status_of(folder) == {"status": "failed", "step": 33, "reason": "ValueError: a user's mistake"}


def test_the_commands_for_finished_runs_work_on_it(run, tmp_path):
    spikes.main([str(run), "--out", str(tmp_path)])
    found = json.loads((tmp_path / "events.json").read_text())
    assert {(event["signal"], event["start_step"]) for event in found} >= {("loss/nll", 101)}
    curves.main([str(run), "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").stat().st_size > 20_000
    summary.main([str(run), "--out", str(tmp_path)])
    (row,) = json.loads((tmp_path / "summary.json").read_text())["runs"]
    assert (row["steps"], row["status"], row["nll_spikes"]) == (150, "finished", 1)


def test_a_replay_says_in_a_line_what_it_needs(run, tmp_path, capsys):
    assert exit_status(lambda: replay.main([str(run), "--step", "101", "--out", str(tmp_path)])) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "exact replay needs a run of train_lm.py" in told


def test_only_the_first_rank_of_a_distributed_training_writes(tmp_path):
    path = tmp_path / "ddp.py"
    path.write_text(
        textwrap.dedent("""
        import os, sys
        import torch
        import torch.distributed as dist
        from stability.monitor import Monitor

        dist.init_process_group("gloo")
        rank = dist.get_rank()
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = Monitor(sys.argv[1], model, optimizer)
        torch.manual_seed(1 + rank)
        for step in range(5):
            loss = model(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            watch.step(loss)
            if rank == 0:
                print("norm", torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item())
            optimizer.step()
        watch.close()
        assert os.path.exists(sys.argv[1]) or rank
        dist.destroy_process_group()
    """)
    )
    ranks = [Rank([str(path), str(tmp_path / "run")], os.environ | place) for place in places(2)]
    (said, told), other = (rank.communicate() for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0], (told, other)
    rows = rows_of(tmp_path / "run")
    norms = [float(line.split()[1]) for line in said.splitlines() if line.startswith("norm")]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["grad_norm/total"] for row in rows] == pytest.approx(norms, rel=1e-5)
    assert {"grad_norm/weight", "grad_norm/bias"} <= set(rows[0])
