"""Whether analysis.autopsy names the cause of a spike whose cause is known: a confusion matrix of planted causes.

    python -m benchmarks.autopsy --out DIR [--seeds N] [--first-seed K]

Per seed a small GPT is trained on the text of Python's own documentation (pydoc_data.topics), and one branch for each cause,
planted at a step that the seed decides. A fault of the hardware is one whose trace is then removed from the run's configuration
and rows. Each branch in which the run's own watch has found a spike near the fault gets an autopsy; the others are counted.
Finished branches are kept, so the command goes on where it was stopped. Writes DIR/autopsy.json.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data import topics
from typing import Any

from accelerate.state import AcceleratorState

from analysis.autopsy.__main__ import main as autopsy
from common.command import ArgumentParser, exit_status
from common.files import write_json
from configs.load import load_config
from configs.schema import RunConfig
from record.finished import load_run
from training.loop import run_training

STEPS, AFTER = 120, 40
"""Steps before the earliest fault, and of each branch after its fault."""
SPREAD = 20
NEAR = 8
"""Steps after a fault within which a spike must begin to be its own."""
RECIPE = """
data: {{kind: text, paths: [{text}], cache_dir: {cache}, vocab_size: 1000, sequence_length: 64, validation_fraction: 0.1}}
body: {{model_type: gpt2, n_layer: 2, n_head: 2, n_embd: 64, resid_pdrop: 0.0, embd_pdrop: 0.0, attn_pdrop: 0.0}}
head: {{kind: linear}}
objective: {{kind: ce}}
optimizer: {{lr: 3.0e-3, warmup_steps: 20, schedule: {{kind: constant}}}}
train: {{steps: 1000, batch_size: 16, eval_every: 100000, eval_sequences: 16}}
checkpoint: {{every: 20, keep: 50}}
name: parent
"""
DATA, RATE, STATE, HARDWARE = "data", "rate too high", "optimizer state", "hardware"
PLANTED: dict[str, tuple[str, str]] = {
    "random tokens": (DATA, "{{kind: corrupt_sequences, step: {batch}, sequences: 16, pattern: random}}"),
    "one span repeated": (
        DATA,
        "{{kind: corrupt_sequences, step: {batch}, sequences: 12, pattern: repeated, period: 4}}",
    ),
    "rare tokens": (DATA, "{{kind: corrupt_sequences, step: {batch}, sequences: 12, pattern: rare}}"),
    "noisy targets, 3 batches": (DATA, "{{kind: label_noise, step: {batch}, steps: 3, share: 0.4}}"),
    "rate x10, 5 steps": (RATE, "{{kind: scale_lr, step: {step}, steps: 5, factor: 10.0}}"),
    "rate x100, 1 step": (RATE, "{{kind: scale_lr, step: {step}, factor: 100.0}}"),
    "rate x8 to the end": (RATE, "{{kind: scale_lr, step: {step}, steps: null, factor: 8.0}}"),
    "moments exchanged": (STATE, "{{kind: stale_moments, step: {step}, steps: 3, what: swap}}"),
    "moments reset with the step count": (
        STATE,
        "{{kind: stale_moments, step: {step}, steps: 3, what: reset, step_count: reset}}",
    ),
    "beta2 0.1, 5 steps": (STATE, "{{kind: optimizer_settings, step: {step}, steps: 5, beta2: 0.1}}"),
    "hidden: embedding x5": (HARDWARE, "{{kind: scale_weights, step: {step}, parameters: wte, factor: 5.0}}"),
    "hidden: gradient noise": (HARDWARE, "{{kind: gradient_noise, step: {step}, steps: 3, factor: 30.0}}"),
}
"""By name: the true cause, and the stress."""
CONCLUSIONS = (DATA, RATE, STATE, HARDWARE, "attention logits", "output logits", "numerics", "not decided", "no spike")


def write_recipe(folder: Path) -> None:
    """Write the small recipe and its text."""
    (folder / "text").mkdir(parents=True, exist_ok=True)
    for name, text in sorted(topics.topics.items()):
        (folder / "text" / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "small.yaml").write_text(RECIPE.format(text=folder / "text", cache=folder / "cache"), encoding="utf-8")


def config_of(folder: Path, overrides: Sequence[str]) -> RunConfig:
    """The small recipe with overrides."""
    return load_config(folder / "small.yaml", [f"output_dir={folder / 'runs'}", *overrides])


def train(folder: Path, name: str, *overrides: str) -> Path:
    """A run of the recipe, in this process, unless it is there already."""
    run = folder / "runs" / name
    AcceleratorState._reset_state(reset_partial_state=True)
    run_training(config_of(folder, [f"name={name}", *overrides]))
    return run


def hide_stress(run: Path) -> None:
    """Remove every trace of a run's stress, as nothing tells of a fault of the hardware."""
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(re.sub(r"\nstress:\n(?:[- ].*\n)+", "\nstress: []\n", config), encoding="utf-8")
    for name, pattern in (("metrics.jsonl", r',\s*"stress/acting":\s*\d'), ("events.jsonl", r'^.*"stress_\w+".*\n')):
        text = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(re.sub(pattern, "", text, flags=re.MULTILINE), encoding="utf-8")


def spike_near(run: Path, step: int) -> int | None:
    """The number of the run's highest spike that began near a step, from 1; of the loss, if it has one."""
    spikes = [e for e in load_run(run).events if e["event"] == "spike"]
    near = [
        (e["signal"] == "loss/nll", float(e["sigmas"]), k)
        for k, e in enumerate(spikes, 1)
        if 0 <= e["start_step"] - step <= NEAR
    ]
    return max(near)[2] if near else None


def case(folder: Path, seed: int, name: str, step: int) -> dict[str, Any]:
    """Plant a fault, look for its spike, and ask for the cause."""
    cause, stress = PLANTED[name]
    slug = f"seed{seed}_{re.sub('[^a-z0-9]+', '_', name.lower())}"
    done = folder / "cases" / f"{slug}.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return found
    begin = step // 20 * 20 - 20
    branch = f"branch_from={folder}/runs/parent{seed}@{begin}"
    planted = f"stress=[{stress.format(step=step, batch=step)}]"
    run = train(folder, slug, f"seed={seed}", branch, planted, f"train.steps={step + AFTER}")
    if cause == HARDWARE:
        hide_stress(run)
    number = spike_near(run, step)
    found = {"seed": seed, "planted": name, "cause": cause, "step": step, "concluded": None}
    if number is not None:
        AcceleratorState._reset_state(reset_partial_state=True)
        autopsy([str(run), "--event", str(number), "--out", str(folder / "autopsies" / slug)])
        told = json.loads((folder / "autopsies" / slug / "autopsy.json").read_text(encoding="utf-8"))
        found |= {
            "concluded": told["cause"],
            "removed": told["evidence"]["removed"],
            "steps_taken": told["steps_taken"],
        }
    shutil.rmtree(run, ignore_errors=True)
    write_json(done, found)
    return found


def matrix(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Conclusions by planted fault, and the shares that were right, wrong and not decided of those with a spike."""
    by_fault: dict[str, Counter[str]] = {}
    for each in cases:
        by_fault.setdefault(str(each["planted"]), Counter())[each["concluded"] or "no spike"] += 1
    spiked = [each for each in cases if each["concluded"] is not None]
    right = sum(each["concluded"] == each["cause"] for each in spiked)
    undecided = sum(each["concluded"] == "not decided" for each in spiked)
    table = [
        {"planted": name, "cause": PLANTED[name][0], **{told: counts[told] for told in CONCLUSIONS}}
        for name, counts in by_fault.items()
    ]
    return {
        "faults": table,
        "spiked": len(spiked),
        "right": right,
        "undecided": undecided,
        "wrong": len(spiked) - right - undecided,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Planted causes of spikes against the autopsy's conclusions.")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=100)
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    write_recipe(folder)
    cases = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        step = STEPS + random.Random(seed).randrange(SPREAD)
        train(folder, f"parent{seed}", f"seed={seed}", f"train.steps={STEPS}")
        for name in PLANTED:
            cases.append(case(folder, seed, name, step))
            print(f"seed {seed}: {name}: {cases[-1]['concluded'] or 'no spike'}", flush=True)
    write_json(folder / "autopsy.json", {**matrix(cases), "cases": cases})
    print(folder / "autopsy.json")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
