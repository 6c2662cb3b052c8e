"""Shared set-up of the tests: quiet, offline, one thread (the suite's runs are tiny; threads only get in each other's way)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "1")  # the same runs everywhere: bit for bit holds on the CPU
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if (os.environ.get("GPU_CHECK_DEVICE") or ("cuda" if Path("/dev/nvidiactl").exists() else "cpu")) == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined: before the first import of the model

from pydoc_data import topics

import pytest
import torch
from hypothesis import settings
from transformers.utils import logging

from configs.kinds import TABLES

torch.set_num_threads(1)
logging.disable_progress_bar()
logging.set_verbosity_error()
settings.register_profile("project", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("project")

for number in (
    signal.SIGTERM,
    signal.SIGUSR1,
):  # who started this process may ignore them, and then its children would, too
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

ROOT = Path(__file__).parent.parent
SLOW = (
    "tests/benchmarks/test_gpu_whole.py",
    "tests/suite/test_cluster.py",
    "tests/suite/test_run_suite.py",
    "tests/suite/test_warm.py",
    "tests/stability/intervene/test_remedies_in_runs.py",
    "tests/stability/monitor/test_commands.py",
    "tests/training/test_loss_kernel.py",
    "tests/benchmarks/test_gpu_check.py",
    "tests/training/test_stresses.py",
    "tests/test_describe.py",
)
"""Files that take half a minute or more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow files, then with those of many tests: side by side, a file that begins last is waited for."""
    order = {ROOT / name: place for place, name in enumerate(SLOW)}
    assert all(path.is_file() for path in order), "SLOW names a file that is not there"
    count = Counter(item.path for item in items)
    items.sort(key=lambda item: (order.get(item.path, len(order)), -count[item.path]))


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with real English text in text/, a recipe tiny.yaml, and the token store that all runs on them share."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "text").mkdir()
    for name, text in sorted(topics.topics.items()):
        (folder / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
    recipe = f"""
name: tiny
output_dir: {folder}/runs
data:
  kind: text
  paths: [{folder}/text]
  cache_dir: {folder}/cache
  vocab_size: 500
  sequence_length: 32
  validation_fraction: 0.1
body: {{model_type: gpt2, n_layer: 2, n_head: 2, n_embd: 32, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}}
head: {{kind: metric}}
objective: {{kind: tfsd}}
optimizer: {{lr: 3.0e-3, warmup_steps: 5}}
train: {{steps: 30, batch_size: 8, eval_every: 10, eval_sequences: 16}}
checkpoint: {{every: 10}}
telemetry: {{flush_every: 7}}
"""
    (folder / "tiny.yaml").write_text(recipe, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", autouse=True)
def kinds_of_the_project() -> Iterator[None]:
    """The kinds of plug-ins that a file of tests imports are not known to the next file in the same process."""
    before = {section: dict(kinds) for section, kinds in TABLES.items()}
    yield
    for section, kinds in before.items():
        TABLES[section].clear()
        TABLES[section].update(kinds)


@pytest.fixture
def recipe(workspace: Path, tmp_path: Path) -> dict[str, Any]:
    """How to start a run of tiny.yaml that writes to this test's own directory: path and overrides."""
    return {"path": workspace / "tiny.yaml", "overrides": [f"output_dir={tmp_path}"]}


def python(
    *arguments: object, cwd: Path = ROOT, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments in a process of its own."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=timeout
    )


def wait_for(condition: Callable[[], object], process: subprocess.Popen[Any], what: str, seconds: float = 120) -> None:
    """Wait for something that a process does; fails, naming it, if the process ends before or takes too long."""
    ends = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"{what}: not before the process ended with {process.returncode}"
        assert time.monotonic() < ends, f"{what}: not within {seconds:g} s"
        time.sleep(0.002)


def rows_of(run: Path) -> list[dict[str, Any]]:
    """The rows of a run without what depends on the clock and the machine."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("throughput/", "memory/"))} for row in rows]


def events_of(run: Path) -> list[dict[str, Any]]:
    """The events of a run."""
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
