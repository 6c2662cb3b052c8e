"""Whether analysis.autopsy names the cause of a spike whose cause is known: a confusion matrix of planted causes.

    python -m benchmarks.autopsy --out DIR [--seeds N] [--first-seed K]

Per seed a small model is trained on the text of Python's own documentation (pydoc_data.topics), and one branch for each cause,
planted at a step that the seed decides; the body, the head, the objective and beta2 change from seed to seed. A fault of the
hardware is one whose trace is then removed from the run's configuration and rows. Each branch in which the run's own watch has
found a spike near the fault gets an autopsy; the others are counted. Finished experiments are kept, so the command goes on where
it was stopped, and only the conclusions are drawn anew. Writes DIR/autopsy.json.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import re
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

from accelerate.state import AcceleratorState

from analysis.autopsy.__main__ import main as autopsy
from analysis.autopsy.conclude import Evidence, conclude
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
LLAMA = (
    "body={model_type: llama, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 2, hidden_size: 64, "
    "intermediate_size: 172}"
)
VARIANTS: tuple[tuple[str, ...], ...] = (
    (),
    (LLAMA, "optimizer.beta2=0.99"),
    ("head={kind: metric}", "objective={kind: tfsd}", "optimizer.beta2=0.98"),
)
"""What changes from seed to seed."""
DATA, RATE, STATE, HARDWARE = "data", "rate too high", "optimizer state", "hardware"
ATTENTION, OUTPUT = "attention logits", "output logits"


@dataclass(frozen=True)
class Fault:
    """What is planted: its true cause, and the stress, whose step or batch is still open."""

    cause: str
    stress: str
    held_out: bool = True
    """Whether no fault of this kind was looked at while the rules of the conclusion were written."""
    body: str = ""
    """The only body that has what it disturbs; empty for any."""
    overrides: tuple[str, ...] = ()
    """Of a run of its own, without a stress, in place of a branch."""


PLANTED: dict[str, Fault] = {
    "random tokens": Fault(DATA, "kind: corrupt_sequences, step: {step}, sequences: 16, pattern: random", False),
    "one span repeated": Fault(
        DATA, "kind: corrupt_sequences, step: {step}, sequences: 12, pattern: repeated, period: 4", False
    ),
    "rare tokens": Fault(DATA, "kind: corrupt_sequences, step: {step}, sequences: 12, pattern: rare", False),
    "noisy targets, 3 batches": Fault(DATA, "kind: label_noise, step: {step}, steps: 3, share: 0.4", False),
    "shuffled tokens, 2 batches": Fault(
        DATA, "kind: corrupt_sequences, step: {step}, steps: 2, sequences: 16, pattern: shuffled", False
    ),
    "source code, 2 batches": Fault(DATA, "kind: foreign_text, step: {step}, steps: 2, paths: [{code}]", False),
    "sequences of 8 tokens, 2 batches": Fault(DATA, "kind: short_sequences, step: {step}, steps: 2, parts: 8", False),
    "rate x10, 5 steps": Fault(RATE, "kind: scale_lr, step: {step}, steps: 5, factor: 10.0", False),
    "rate x100, 1 step": Fault(RATE, "kind: scale_lr, step: {step}, factor: 100.0", False),
    "rate x8 to the end": Fault(RATE, "kind: scale_lr, step: {step}, steps: null, factor: 8.0", False),
    "rate x30, 2 steps": Fault(RATE, "kind: scale_lr, step: {step}, steps: 2, factor: 30.0"),
    "moments exchanged": Fault(STATE, "kind: stale_moments, step: {step}, steps: 3, what: swap", False),
    "moments reset with the step count": Fault(
        STATE, "kind: stale_moments, step: {step}, steps: 3, what: reset, step_count: reset", False
    ),
    "the same, 1 step": Fault(STATE, "kind: stale_moments, step: {step}, what: reset, step_count: reset"),
    "beta2 0.1, 5 steps": Fault(STATE, "kind: optimizer_settings, step: {step}, steps: 5, beta2: 0.1", False),
    "queries and keys x6": Fault(
        ATTENTION, "kind: scale_weights, step: {step}, parameters: '[qk]_proj', factor: 6.0", body=LLAMA
    ),
    "last norm x6": Fault(
        OUTPUT, "kind: scale_weights, step: {step}, parameters: '(ln_f|model.norm).weight', factor: 6.0"
    ),
    "hidden: embedding x5": Fault(
        HARDWARE, "kind: scale_weights, step: {step}, parameters: '(wte|embed_tokens)', factor: 5.0", False
    ),
    "hidden: gradient noise": Fault(HARDWARE, "kind: gradient_noise, step: {step}, steps: 3, factor: 30.0", False),
    "hidden: a bit of a weight": Fault(HARDWARE, "kind: flip_bit, step: {step}, what: parameter, bit: 30"),
    "hidden: last block x3": Fault(HARDWARE, "kind: scale_weights, step: {step}, parameters: layer_01, factor: 3.0"),
    "nothing: too hot from the start": Fault(
        RATE, "", overrides=("optimizer={lr: 6.0e-3, warmup_steps: 2, clip_norm: null, schedule: {kind: constant}}",)
    ),
}
"""By name."""
CODE = "code.txt"
"""Another text: the source of one of Python's modules."""
EARLY = 40
"""Of a run that is too hot from the start, the first step of a spike that can be judged."""
CONCLUSIONS = (DATA, RATE, STATE, HARDWARE, ATTENTION, OUTPUT, "numerics", "not decided", "no spike")


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


def variant(seed: int) -> tuple[str, ...]:
    """What is special about the runs of a seed."""
    return VARIANTS[seed % len(VARIANTS)]


def hide_stress(run: Path) -> None:
    """Remove every trace of a run's stress, as nothing tells of a fault of the hardware."""
    config = (run / "config.yaml").read_text(encoding="utf-8")
    (run / "config.yaml").write_text(re.sub(r"\nstress:\n(?:[- ].*\n)+", "\nstress: []\n", config), encoding="utf-8")
    for name, pattern in (("metrics.jsonl", r',\s*"stress/acting":\s*\d'), ("events.jsonl", r'^.*"stress_\w+".*\n')):
        text = (run / name).read_text(encoding="utf-8")
        (run / name).write_text(re.sub(pattern, "", text, flags=re.MULTILINE), encoding="utf-8")


def spike_near(run: Path, first: int, last: int) -> int | None:
    """The number of the run's highest spike that began in these steps, from 1; of the loss, if it has one."""
    spikes = [e for e in load_run(run).events if e["event"] == "spike"]
    near = [
        (e["signal"] == "loss/nll", float(e["sigmas"]), k)
        for k, e in enumerate(spikes, 1)
        if first <= e["start_step"] <= last
    ]
    return max(near)[2] if near else None


def train_with(folder: Path, slug: str, seed: int, fault: Fault, step: int) -> tuple[Path, int | None]:
    """The run with the fault, and the number of the fault's spike."""
    steps = f"train.steps={step + AFTER}"
    if fault.overrides:
        run = train(folder, slug, f"seed={seed}", *variant(seed), *fault.overrides, steps)
        return run, spike_near(run, EARLY, step + AFTER)
    branch = f"branch_from={folder}/runs/parent{seed}@{step // 20 * 20 - 20}"
    planted = f"stress=[{{{fault.stress.format(step=step, code=folder / CODE)}}}]"
    run = train(folder, slug, f"seed={seed}", *variant(seed), branch, planted, steps)
    if fault.cause == HARDWARE:
        hide_stress(run)
    return run, spike_near(run, step, step + NEAR)


def case(folder: Path, seed: int, name: str, step: int) -> dict[str, Any]:
    """Plant a fault, look for its spike, and ask for the cause."""
    fault = PLANTED[name]
    slug = f"seed{seed}_{re.sub('[^a-z0-9]+', '_', name.lower())}"
    done = folder / "cases" / f"{slug}.json"
    if done.exists():
        found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return found
    run, number = train_with(folder, slug, seed, fault, step)
    found = {"seed": seed, "planted": name, "cause": fault.cause, "step": step, "spiked": number is not None}
    if number is not None:
        AcceleratorState._reset_state(reset_partial_state=True)
        autopsy([str(run), "--event", str(number), "--out", str(folder / "autopsies" / slug)])
        told = json.loads((folder / "autopsies" / slug / "autopsy.json").read_text(encoding="utf-8"))
        found |= {"evidence": told["evidence"], "steps_taken": told["steps_taken"]}
    shutil.rmtree(run, ignore_errors=True)
    write_json(done, found)
    return found


def concluded_from(found: Mapping[str, Any]) -> str | None:
    """What the rules conclude from a case's experiments; None if there was no spike."""
    if not found["spiked"]:
        return None
    numbers: dict[str, Any] = {
        name: float(x) if isinstance(x, str) else x for name, x in found["evidence"].items()
    }  # "Infinity"
    numbers["removed"] = {name: (cause, float(share)) for name, (cause, share) in numbers["removed"].items()}
    return conclude(Evidence(**numbers)).cause


def matrix(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Conclusions by true cause and by planted fault, and how many were right, of all kinds and of those that are new."""
    kinds = {name: fault for name, fault in PLANTED.items() if any(each["planted"] == name for each in cases)}
    new = [each for each in cases if PLANTED[each["planted"]].held_out]
    return {
        "totals": [{"kinds": "all", **totals(cases)}, {"kinds": "new", **totals(new)}],
        "causes": [
            {"cause": cause, **concluded(cases, "cause", cause)}
            for cause in dict.fromkeys(fault.cause for fault in kinds.values())
        ],
        "faults": [
            {
                "planted": name,
                "new": "yes" if fault.held_out else "",
                "cause": fault.cause,
                **concluded(cases, "planted", name),
            }
            for name, fault in kinds.items()
        ],
    }


def concluded(cases: Sequence[Mapping[str, Any]], key: str, value: str) -> dict[str, int]:
    """How often each conclusion was reached in the cases with this value."""
    counts = Counter(each["concluded"] or "no spike" for each in cases if each[key] == value)
    return {told: counts[told] for told in CONCLUSIONS}


def totals(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many conclusions were right, not decided and wrong, and the median number of steps that one took."""
    spiked = [each for each in cases if each["concluded"] is not None]
    right = sum(each["concluded"] == each["cause"] for each in spiked)
    undecided = sum(each["concluded"] == "not decided" for each in spiked)
    return {
        "planted": len(cases),
        "spiked": len(spiked),
        "right": right,
        "undecided": undecided,
        "wrong": len(spiked) - right - undecided,
        "median steps": statistics.median([each["steps_taken"] for each in spiked] or [0]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Planted causes of spikes against the autopsy's conclusions.")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--first-seed", type=int, default=200)
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    write_recipe(folder)
    (folder / CODE).write_text(inspect.getsource(argparse), encoding="utf-8")
    cases = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        step = STEPS + random.Random(seed).randrange(SPREAD)
        train(folder, f"parent{seed}", f"seed={seed}", *variant(seed), f"train.steps={STEPS}")
        for name in (name for name, fault in PLANTED.items() if fault.body in ("", *variant(seed))):
            found = case(folder, seed, name, step)
            cases.append({**found, "concluded": concluded_from(found)})
            print(f"seed {seed}: {name}: {cases[-1]['concluded'] or 'no spike'}", flush=True)
    write_json(folder / "autopsy.json", {**matrix(cases), "cases": cases})
    print(folder / "autopsy.json")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
