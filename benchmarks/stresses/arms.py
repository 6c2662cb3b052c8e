"""The arms: one parent run, and branches from its checkpoints that differ from it in a stress, a remedy, or both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.command import EXIT_DIVERGED, EXIT_FINISHED
from common.errors import InputError
from common.files import write_text
from configs.load import load_config
from record.rows import ENDED, status_of

ROOT = Path(__file__).parents[2]
Fault = Mapping[str, Any]

STRESSES: Mapping[str, Fault] = {
    "bfloat16 once": {"kind": "half_parameters"},
    "rate x10": {"kind": "scale_lr", "steps": 4, "factor": 10.0},
    "rate x100": {"kind": "scale_lr", "steps": 4, "factor": 100.0},
    "rate x1000": {"kind": "scale_lr", "steps": 4, "factor": 1000.0},
    "random tokens": {"kind": "corrupt_sequences", "steps": 4, "sequences": 8, "pattern": "random"},
    "span repeated": {
        "kind": "corrupt_sequences", "steps": 4, "sequences": 8, "pattern": "repeated_span", "period": 4, "repeats": 16,
    },
    "tokens shuffled": {"kind": "corrupt_sequences", "steps": 4, "sequences": 8, "pattern": "shuffled"},
    "half the labels random": {"kind": "label_noise", "steps": 4, "share": 0.5},
    "foreign text": {"kind": "foreign_text", "steps": 4},
    "short sequences": {"kind": "short_sequences", "steps": 10, "parts": 8},
    "small batch": {"kind": "small_batch", "steps": 10, "sequences": 1},
    "beta2 0.1": {"kind": "optimizer_settings", "steps": 4, "beta2": 0.1},
    "moments reset": {"kind": "stale_moments", "what": "reset"},
    "moments and count reset": {"kind": "stale_moments", "what": "reset", "step_count": "reset"},
    "moments swapped": {"kind": "stale_moments", "what": "swap"},
    "embedding x3": {"kind": "scale_weights", "parameters": "embedding", "factor": 3.0},
    "first block x3": {"kind": "scale_weights", "parameters": "layer_00", "factor": 3.0},
    "bfloat16 parameters": {"kind": "half_parameters", "steps": 40},
    "gradient noise x10": {"kind": "gradient_noise", "steps": 4, "factor": 10.0},
    "dead rank of 2": {"kind": "dead_rank", "steps": 10, "ranks": 2},
    "bit 30, parameter": {"kind": "flip_bit", "what": "parameter"},
    "sign, second moment": {"kind": "flip_bit", "what": "moment", "moment": "exp_avg_sq", "bit": 31},
}  # fmt: skip
"""By name. Each begins at the same step, and lasts one step unless it says how many. ``foreign text`` gets its file from the
plan. The first is a yardstick: what becomes of a difference that is too small to matter."""

REMEDIES: Mapping[str, Sequence[str]] = {
    "clip_update_norm": ['interventions=[{"kind": "clip_update_norm", "per_rate": false}]'],
    "skip_step": ['interventions=[{"kind": "skip_step"}]'],
    "no clip_norm": ["optimizer.clip_norm=null"],
    "rewind": ['interventions=[{"kind": "rewind"}]'],
    "beta2 0.9": ["optimizer.beta2=0.9"],
    "zclip": ['interventions=[{"kind": "zclip"}]'],
    "stable_adamw": ['interventions=[{"kind": "stable_adamw"}]'],
    "adagc": ['interventions=[{"kind": "adagc"}]'],
    "agc": ['interventions=[{"kind": "agc"}]'],
    "qk_clip": ['interventions=[{"kind": "qk_clip"}]'],
    "z_loss": ['interventions=[{"kind": "z_loss"}]'],
    "spam": ['interventions=[{"kind": "spam"}]'],
    "centre_embeddings": ['interventions=[{"kind": "centre_embeddings"}]'],
}
"""Overrides of the baseline, by name; all but one keep its clipping at 1.0. In the order of the arms."""

WITH_RECORD = ("clip_update_norm", "skip_step", "zclip", "adagc")
"""Remedies that compare with what came before, and so must act for a while before a fault."""

TREATED = ("rate x10", "random tokens", "rate x100")
"""The stresses that remedies are tried on."""


@dataclass(frozen=True)
class Plan:
    """Where the arms are, and at which steps they part."""

    out: Path
    recipe: Path = ROOT / "configs" / "pydoc_micro.yaml"
    overrides: Sequence[str] = (
        'head={"kind": "linear"}', 'objective={"kind": "ce"}', "data.sequence_length=64", "train.batch_size=8",
        'optimizer.schedule={"kind": "constant"}', "train.eval_sequences=128",
        "telemetry.edge_every=null",
    )  # fmt: skip
    """Of all arms. The rate is constant so that it is the same before and after a fault."""
    seed: int = 0
    treated_from: int = 390
    """Step at which remedies with a record leave the parent: those that compare with the last 128 steps need half of them, and
    AdaGC's warm-up takes 100.
    There is a checkpoint at every ``branch - treated_from`` steps, of which both must be multiples."""
    branch: int = 520
    """Step at which arms with a stress begin."""
    fault: int = 525
    """First step of every stress."""
    last: int = 570
    stresses: Mapping[str, Fault] = field(default_factory=lambda: STRESSES)
    remedies: Mapping[str, Sequence[str]] = field(default_factory=lambda: REMEDIES)
    treated: Sequence[str] = TREATED

    @property
    def runs(self) -> Path:
        """The folder of the run directories."""
        return self.out / f"seed{self.seed}"

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch."""
        config = load_config(self.recipe, self.overrides)
        return config.train.batch_size * config.data.sequence_length


def parent_directory(plan: Plan) -> Path:
    """The run that all arms come from: the baseline without a stress."""
    return plan.runs / "parent"


def directory(plan: Plan, remedy: str | None, stress: str | None) -> Path:
    """The run of a remedy (None: the baseline) under a stress (None: calm)."""
    return plan.runs / "_".join(re.sub(r"\W+", "-", part) for part in (remedy or "baseline", stress or "calm"))


def has_ended(run: Path) -> bool:
    """Whether a run is finished or has diverged, rather than to be gone on with."""
    return status_of(run) in ENDED


def train_parent(plan: Plan) -> Path:
    """Train the parent, unless it is there."""
    return _train(plan, parent_directory(plan), [])


def train(plan: Plan, remedy: str | None, stress: str | None) -> Path:
    """Train an arm and what it comes from, unless they are there.

    A remedy with a record leaves the parent early, in a calm run of its own, and its arms with a stress branch from that one.
    All other arms leave the parent shortly before the fault.
    """
    overrides = list(plan.remedies[remedy]) if remedy else []
    start, step = train_parent(plan), plan.branch
    if remedy in WITH_RECORD:
        start, step = (start, plan.treated_from) if stress is None else (train(plan, remedy, None), plan.branch)
    if stress is not None:
        fault = {"step": plan.fault, **plan.stresses[stress]}
        if fault["kind"] == "foreign_text":
            fault["paths"] = [str(_foreign(plan))]
        overrides.append(f"stress={json.dumps([fault])}")
    overrides.append(f"branch_from={json.dumps(f'{start}@{step}')}")
    return _train(plan, directory(plan, remedy, stress), overrides)


def _train(plan: Plan, run: Path, overrides: Sequence[str]) -> Path:
    if has_ended(run):
        return run
    from training.loop import run_training  # torch and transformers take seconds to import

    own = [f"name={run.name}", f"output_dir={json.dumps(str(run.parent))}", f"seed={plan.seed}"]
    own += [f"train.steps={plan.last}", f"train.eval_every={plan.last}"]
    own += [f"checkpoint.every={plan.branch - plan.treated_from}", "checkpoint.keep=3"]
    status = run_training(load_config(plan.recipe, [*plan.overrides, *own, *overrides]))
    if status not in (EXIT_FINISHED, EXIT_DIVERGED):
        raise InputError(f"{run}: stopped with exit status {status}; the same command goes on with it")
    return run


def _foreign(plan: Plan) -> Path:
    """A text unlike the docstrings: columns of decimal numbers, which this repository has."""
    path = plan.out / "foreign.txt"
    if not path.exists():
        write_text(path, (ROOT / "benchmarks" / "residuals.csv").read_text(encoding="utf-8"))
    return path
