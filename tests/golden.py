"""Whether a change leaves every number as it was: the same short runs and analyses by two commits, compared byte by byte.

    python -m tests.golden REVISION [--keep FOLDER]

Takes REVISION (a commit) from git into a temporary folder, has it and the working tree each make the runs and analyses of
:data:`COMMANDS`, and compares all that they write, but for what depends on the clock and the machine. Then the working tree
resumes and replays the runs that REVISION made. Exit status 0 if all is equal, else 1 and a line for each file that differs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

import yaml
from safetensors import safe_open

from .conftest import ROOT

BODIES = {
    "gpt2": "{model_type: gpt2, n_layer: 2, n_head: 2, n_embd: 32, resid_pdrop: 0.1, embd_pdrop: 0.1, attn_pdrop: 0.1}",
    "llama": "{model_type: llama, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, hidden_size: 32, "
    "intermediate_size: 64}",
}
RECIPE = """
name: {name}
output_dir: runs
data: {data}
body: {body}
head: {{kind: {head}}}
objective: {{kind: {objective}}}
optimizer: {{lr: 3.0e-3, warmup_steps: 5}}
train: {{steps: {steps}, batch_size: 8, eval_every: 10, eval_sequences: 16}}
checkpoint: {{every: 10}}
telemetry: {{flush_every: 7}}
"""
TEXT = "{kind: text, paths: [text], cache_dir: cache, vocab_size: 500, sequence_length: 32, validation_fraction: 0.1}"
GRAMMAR = "{kind: grammar, documents: 600, cache_dir: cache, sequence_length: 64, validation_fraction: 0.2}"
BAD_BATCH = "stress=[{{kind: corrupt_sequences, step: 65, steps: 3, sequences: 8, pattern: random}}]"
LONG = ("train.steps=80", "checkpoint.every=20")
TRAIN = ("{code}/train_lm.py", "--config")
COMMANDS: dict[str, tuple[str, ...]] = {
    "metric": (*TRAIN, "gpt2_metric.yaml", "train.micro_batch_size=3"),
    "linear": (*TRAIN, "gpt2_linear.yaml", "checkpoint.keep=9"),
    "rewound": (*TRAIN, "llama_metric.yaml", BAD_BATCH, *LONG, "interventions=[{{kind: rewind}}]"),
    "spiked": (*TRAIN, "llama_linear.yaml", BAD_BATCH, *LONG),
    "ranks": ("-m", "accelerate.commands.launch", "--config_file", "{code}/configs/launch/cpu_2proc.yaml", *TRAIN)
    + ("gpt2_linear.yaml", "name=ranks", "train.micro_batch_size=2"),
    "grammar": (*TRAIN, "gpt2_grammar.yaml", "checkpoint.keep=9"),
    "grammar_ce": (*TRAIN, "gpt2_grammar.yaml", "name=grammar_ce", "objective.kind=ce", "checkpoint.keep=9"),
    "overflow": (*TRAIN, "gpt2_linear.yaml", "name=overflow", "stress=[{{kind: scale_lr, step: 12, factor: 1.0e+38}}]"),
    "curves": (
        "-m",
        "analysis.curves",
        "runs/gpt2_metric",
        "runs/gpt2_linear",
        "runs/ranks",
        "--out",
        "out/curves.png",
    ),
    "summary": ("-m", "analysis.summary", "runs/gpt2_metric", "runs/gpt2_linear", "--out", "out/summary"),
    "spikes": ("-m", "analysis.spikes", "runs/llama_linear", "--detector", "all", "--out", "out/spikes"),
    "synonyms": ("-m", "analysis.synonyms", "--baseline", "runs/gpt2_linear", "--candidate", "runs/gpt2_metric")
    + ("--pairs", "pairs.csv", "--contexts-per-word", "4", "--min-contexts", "2", "--out", "out/synonyms"),
    "truth": ("-m", "analysis.grammar", "--baseline", "runs/grammar_ce", "--candidate", "runs/grammar")
    + ("--documents", "60", "--over-training", "--out", "out/grammar"),
    "tolerance": ("-m", "analysis.tolerance", "runs/gpt2_linear", "--pairs", "pairs.csv")
    + ("--contexts-per-word", "4", "--min-contexts", "2", "--out", "out/tolerance"),
    "replay": ("-m", "analysis.replay", "runs/llama_linear", "--step", "66", "--out", "out/replay")
    + ("--window", "8", "--counterfactual", "skip", "--counterfactual", "clip=0.5", "--counterfactual", "lr=1e-4"),
    "replay_rewound": ("-m", "analysis.replay", "runs/llama_metric", "--step", "70", "--out", "out/replay_rewound"),
}
"""By name, what Python is called with; {code} is the checkout."""
WORKS = {"overflow": 3}
"""Exit statuses that are not 0."""
PASSED_OVER = ("throughput/", "memory/")


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden")
    parser.add_argument("revision", help="the commit to compare the working tree with")
    parser.add_argument(
        "--keep", type=Path, help="folder for what both write, which then stays; what it holds is used again"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        then, now = folder / "then", folder / "now"
        if not (then / "whole").exists():
            code = Path(temporary) / "code"
            subprocess.run(["git", "worktree", "add", "--detach", code, options.revision], cwd=ROOT, check=True)
            try:
                make(code, then)
            finally:
                subprocess.run(["git", "worktree", "remove", "--force", code], cwd=ROOT, check=True)
        shutil.rmtree(now, ignore_errors=True)
        make(ROOT, now)
        differing = [*differences(then, now), *taken_over(then, folder / "taken_over")]
    for line in differing:
        print(line)
    print(f"{len(differing)} differences")
    return 1 if differing else 0


def make(code: Path, folder: Path) -> None:
    """Have a checkout make all runs and analyses in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "text").mkdir(parents=True)
    for name, text in sorted(topics.topics.items()):
        (folder / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "pairs.csv").write_text("value,object\nclass,type\nname,names\n")
    for name, body, head, objective, data, steps in (
        ("gpt2_metric", "gpt2", "metric", "tfsd", TEXT, 30),
        ("gpt2_linear", "gpt2", "linear", "ce", TEXT, 30),
        ("llama_metric", "llama", "metric", "tfsd", TEXT, 80),
        ("llama_linear", "llama", "linear", "ce", TEXT, 80),
        ("gpt2_grammar", "gpt2", "metric", "tfsd", GRAMMAR, 30),
    ):
        recipe = RECIPE.format(name=name, body=BODIES[body], head=head, objective=objective, data=data, steps=steps)
        (folder / f"{name}.yaml").write_text(recipe.replace("name: gpt2_grammar", "name: grammar"))
    for name, arguments in COMMANDS.items():
        print(f"{folder.name}: {name}", flush=True)
        call(code, folder, name, arguments)
    (folder / "whole").touch()


def call(code: Path, folder: Path, name: str, arguments: tuple[str, ...]) -> None:
    """Run one command in ``folder``; what an analysis prints becomes a file there."""
    environment = os.environ | {"PYTHONPATH": str(code), "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(argument.replace("{{", "{").replace("}}", "}") for argument in arguments)]
    command = [part.replace("{code}", str(code)) for part in command]
    done = subprocess.run(
        command, cwd=folder, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode != WORKS.get(name, 0):
        raise SystemExit(f"{folder}: {name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    if "train_lm.py" not in " ".join(command):
        (folder / f"printed_{name}.txt").write_text(done.stdout)


def differences(then: Path, now: Path) -> Iterator[str]:
    """A line for each file that is not the same in two folders that :func:`make` has filled."""
    a, b = contents(then), contents(now)
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            yield f"{name}: {'missing now' if name in a else 'new'}"
        else:
            yield from (f"{name}: {place}" for place in sorted(set(_differing(a[name], b[name]))))


def _differing(then: object, now: object, place: str = "") -> Iterator[str]:
    """Where two values differ, by dotted keys. What only the new one has is told as such, lists only by what they hold."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            if key not in then or key not in now:
                yield f"{place}{key} is {'gone' if key in then else 'new'}"
            else:
                yield from _differing(then[key], now[key], f"{place}{key}.")
    elif isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        for one, other in zip(then, now, strict=True):
            yield from _differing(one, other, place)
    elif then != now:
        yield f"{place.rstrip('.') or 'it'} differs"


def contents(folder: Path) -> dict[str, object]:
    """All that was written, by the path in the folder, without what depends on the clock and the machine."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.suffix == ".py" or name.startswith("cache"):
            continue
        if path.name in ("environment.json", "manifest.json"):
            continue
        if path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (it is no dictionary)
            found[name] = {key: (t.dtype.str, t.shape, t.tobytes()) for key, t in tensors.items()}
        elif path.name in ("metrics.jsonl", "abandoned.jsonl"):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if not k.startswith(PASSED_OVER)} for row in rows]
        elif path.name == "trainer_state.json":
            found[name] = json.loads(path.read_text()) | {"data": None}  # a hash of when the text was written, too
        elif name.startswith(("out/summary", "printed_summary")):
            continue  # times
        elif path.suffix in (".json", ".yaml"):
            found[name] = yaml.safe_load(path.read_text().replace(str(folder), "folder"))
        else:
            found[name] = path.read_bytes().replace(bytes(folder), b"folder")
    return found


def taken_over(then: Path, folder: Path) -> Iterator[str]:
    """A line for each way in which runs of the old code do not go on under the new: resumed at their middle, and replayed."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(then, folder)
    for run, config in (("gpt2_linear", "gpt2_linear.yaml"), ("llama_metric", "llama_metric.yaml")):
        last = max((folder / "runs" / run / "checkpoints").iterdir())
        shutil.rmtree(last)
        (folder / "runs" / run / "status.json").unlink()
        more = next(arguments for arguments in COMMANDS.values() if config in arguments)
        call(ROOT, folder, "resumed", more)
        before, after = ((root / "runs" / run) for root in (then, folder))
        for name, there in contents(before).items():
            written_again = name.startswith(f"checkpoints/{last.name}/") and Path(name).name != "config.json"
            if written_again or name == "metrics.jsonl":
                places = set(_differing(there, contents(after).get(name)))
                yield from (f"resumed {run}: {name}: {place}" for place in places if not place.endswith("is new"))
    call(ROOT, folder, "replay", ("-m", "analysis.replay", "runs/llama_linear", "--step", "66", "--out", "replayed"))
    if not json.loads((folder / "replayed" / "explanation.json").read_text())["reproduced"]:
        yield "replay of a run of the old code: not reproduced"


if __name__ == "__main__":
    raise SystemExit(main())
