"""A checkpoint under lm-evaluation-harness, as docs/probes.md says: its log-likelihoods are the model's own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml

from analysis.compare.arms import find_arms, load_member, load_tokenizer

pytestmark = pytest.mark.skipif(
    find_spec("lm_eval") is None, reason="lm_eval is not installed (requirements-lm-eval.txt)"
)
ROWS = [
    {"text": "the river stone", "choices": ["window", "bigger"], "label": 0},
    {"text": "the", "choices": ["quick", "silver market"], "label": 1},
]
SCRIPT = """
import json, sys, lm_eval
from lm_eval.tasks import TaskManager

checkpoint, folder = sys.argv[1:]
found = lm_eval.simple_evaluate(
    model="hf",
    model_args=f"pretrained={checkpoint},trust_remote_code=True,dtype=float32",
    tasks=["words"],
    task_manager=TaskManager(include_path=folder, include_defaults=False),
    device="cpu",
    batch_size=2,
)
json.dump([[float(one[0][0]) for one in sample["resps"]] for sample in found["samples"]["words"]], sys.stdout)
"""


def write_task(folder: Path) -> None:
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {
        "task": "words",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "words.jsonl")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{label}}",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "words.yaml").write_text(yaml.safe_dump(task))


def test_its_log_likelihoods_are_those_of_the_model(two_heads, tmp_path):
    """In a process that knows nothing of the project, of the metric head, which has no stock model beside it."""
    write_task(tmp_path)
    member = find_arms(two_heads)[1].members[0]
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(member.checkpoint.resolve()), str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    model, tokenizer = load_member(member), load_tokenizer(member)
    for row, own in zip(ROWS, found, strict=True):
        context = tokenizer.encode(row["text"])
        for choice, value in zip(row["choices"], own, strict=True):
            ids = tokenizer.encode(f"{row['text']} {choice}")
            with torch.no_grad():
                log_p_TV = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            expected = sum(float(log_p_TV[i - 1, ids[i]]) for i in range(len(context), len(ids)))
            assert value == pytest.approx(expected, rel=1e-5), choice
