"""Which cheap signal knew how near to the edge a step was: each signal against the truth, over many steps.

    python -m benchmarks.signals --out DIR [--seeds N] [--first-seed K]

Small GPTs are trained on the text of Python's own documentation (pydoc_data.topics): at four learning rates, and at the lowest of
them with a stress. At steps that a rule names beforehand (:func:`chosen`) everything is measured that analysis.step measures. The
truth is the safe multiple: how many times as long the step could have been before the loss of its own batch is back where it was.
A second one is what comes of it: how far the held-out loss rises from before the step to AFTER steps later.

Measured runs are kept in DIR/runs, so the command goes on where it was stopped. Writes DIR/signals.json and signals.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate.state import AcceleratorState
from scipy.stats import rankdata

from analysis.show.tables import markdown_table
from analysis.step.measure import Vectors, take_step, take_vectors
from analysis.step.signals import (
    ALONG_GRADIENT,
    ALONG_STEP,
    FALLING,
    GRADIENT_CHANGE,
    GRADIENT_TURN,
    PREDICT,
    SHARPNESS,
    UPDATE_TURN,
    nearness,
)
from common.command import ArgumentParser, exit_status
from common.files import write_json, write_text
from ranks.launch import start_accelerator
from training.evaluate import evaluate
from training.run import Run, build_run
from training.step import training_step

from .autopsy import config_of, write_recipe

Floats = npt.NDArray[np.float64]
Row = dict[str, Any]

STEPS, FAULT, LASTS = 240, 120, 5
"""Steps of a run without a stress; the stress's first step, and how many it lasts."""
AFTER = 5
"""Steps, from the measured one on, after which the held-out loss is compared."""
HEALTHY = "rate 3e-3"
ARMS: dict[str, list[str]] = {
    HEALTHY: [],
    "rate 1e-2": ["optimizer.lr=1.0e-2"],
    "rate 3e-2": ["optimizer.lr=3.0e-2"],
    "rate 1e-1": ["optimizer.lr=1.0e-1"],
    "stress: rate x10": [f"stress=[{{kind: scale_lr, step: {FAULT}, steps: {LASTS}, factor: 10.0}}]"],
    "stress: moments exchanged": [f"stress=[{{kind: stale_moments, step: {FAULT}, steps: {LASTS}, what: swap}}]"],
    "stress: random tokens": [
        f"stress=[{{kind: corrupt_sequences, step: {FAULT}, steps: {LASTS}, sequences: 16, pattern: random}}]"
    ],
    "stress: beta2 0.1": [f"stress=[{{kind: optimizer_settings, step: {FAULT}, steps: {LASTS}, beta2: 0.1}}]"],
}
COMMON = ["train.eval_sequences=64", f"train.steps={STEPS + AFTER}"]
EDGE, RISE = 2.0, 0.05
"""A step is dangerous if the loss of its batch is back before twice the step; it did harm if the held-out loss is higher by more
than this many nats/token AFTER steps later."""
SIGNALS = (
    *("edge/kappa", "edge/logit_change_p50", "edge/logit_change_p99", "edge/logit_change_max"),
    *("adam_rms/max", "adam/sign_like", "adam/root_v_max", "adam/momentum_cosine"),
    *("grad_norm/total", "update_ratio/max", "lr"),
    *(ALONG_STEP, ALONG_GRADIENT, SHARPNESS, GRADIENT_CHANGE, GRADIENT_TURN, UPDATE_TURN),
)
"""What is held against the truth; the learning rate for comparison, as whoever set it knew it."""
THRESHOLDS = (
    *(("edge/kappa", 0.5), ("edge/kappa", 0.0)),
    *(("edge/logit_change_p50", 1.0), ("edge/logit_change_p99", 1.0), ("edge/logit_change_max", 1.0)),
    *((ALONG_STEP, 0.5), (ALONG_STEP, 1.0), (ALONG_GRADIENT, 1.0), (SHARPNESS, 1.0)),
    *((GRADIENT_CHANGE, 1.0), ("adam_rms/max", 2.3), ("adam/momentum_cosine", 0.0)),
    *((GRADIENT_TURN, 0.0), (UPDATE_TURN, 0.0)),
)
"""Values beyond which a signal is said to tell of danger."""
RESAMPLES = 1000


# --------------------------------------------------------------------------------------------------------------- measuring


def chosen(arm: str) -> list[int]:
    """The steps that are measured: of a run without a stress every 5th of the 20 of the warm-up, then every 20th; of another
    one each of its stress and the one after. Before its stress a run is that of another arm."""
    if arm.startswith("stress"):
        return list(range(FAULT, FAULT + LASTS + 1))
    return [*range(5, 20, 5), *range(20, STEPS + 1, 20)]


def measured(folder: Path, arm: str, seed: int, steps: Sequence[int]) -> list[Row]:
    """What was measured at ``steps`` of a run, which is trained unless that is kept in ``folder`` already."""
    name = f"{''.join(c if c.isalnum() else '_' for c in arm)}_seed{seed}"
    kept = folder / "runs" / f"{name}.json"
    if not kept.exists():
        AcceleratorState._reset_state(reset_partial_state=True)
        config = config_of(folder, [f"name={name}", f"seed={seed}", *COMMON, *ARMS[arm]])
        train = config.train
        accelerator = start_accelerator(train.precision, batch_size=train.batch_size, stall_seconds=train.stall_seconds)
        run = build_run(config, accelerator, folder / "runs" / name, None, writes=False)
        write_json(kept, [{"arm": arm, "seed": seed, **row} for row in measure(run, steps)])
    rows: list[Row] = json.loads(kept.read_text(encoding="utf-8"))
    for row in rows:  # infinities are written as words
        row |= {name: float(row[name]) for name in ("safe_multiple", "rise")}
        row["predicted"] = {name: None if x is None else float(x) for name, x in row["predicted"].items()}
    return rows


def measure(run: Run, steps: Sequence[int]) -> list[Row]:
    """Train the run from its start to AFTER steps beyond the last of ``steps``, and measure at those. If the run diverges, the
    rise of the last ones is infinite."""
    rows: dict[int, Row] = {}
    before: dict[int, float] = {}
    previous: Vectors | None = None
    for step in range(1, max(steps) + AFTER):
        if step in steps:
            before[step] = _held_out(run)
            found, previous = take_step(run, sequences=2, previous=previous)
            row = found.row
            rows[step] = {
                "step": step,
                "safe_multiple": found.safe_multiple,
                "signals": {**found.signals, "lr": row["lr"]},
                "predicted": found.predicted,
            }
        elif step + 1 in steps:
            row, previous = take_vectors(run)
        else:
            run.edge_every = None
            training_step(run, step)
            (row,) = run.recorder.transfer().rows
            previous = None
        if not math.isfinite(row["loss/nll"]):
            break
        if (start := step - AFTER + 1) in rows:
            rows[start]["rise"] = _held_out(run) - before[start]
    return [{"rise": math.inf, **row} for row in rows.values()]


def _held_out(run: Run) -> float:
    return evaluate(run)["validation/nll"]


# ------------------------------------------------------------------------------------------------------------------ tables


def rank_correlation(first: Floats, second: Floats) -> float:
    """Spearman's rank correlation, ties with their mean rank; NaN where one of the two does not vary."""
    one, other = (ranks - ranks.mean() for ranks in (rankdata(first), rankdata(second)))
    sizes = float(one @ one) * float(other @ other)
    return float(one @ other) / math.sqrt(sizes) if sizes else math.nan


def within(arms: npt.NDArray[Any], first: Floats, second: Floats) -> float:
    """The mean over arms of the rank correlations within each, weighted by its steps; arms that do not vary are left out."""
    own = [arms == arm for arm in np.unique(arms)]
    found = np.array([rank_correlation(first[mine], second[mine]) for mine in own])
    weights, varies = np.array([mine.sum() for mine in own]), np.isfinite(found)
    return float(np.average(found[varies], weights=weights[varies])) if varies.any() else math.nan


def separation(values: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """The probability that one of the ``positive`` steps has a larger value than another step, a tie counting half (AUC)."""
    count = int(positive.sum())
    if not 0 < count < len(values):
        return math.nan
    return float((rankdata(values)[positive].sum() - count * (count + 1) / 2) / (count * (len(values) - count)))


def draws(rows: Sequence[Row], seed: int = 0) -> list[npt.NDArray[np.int64]]:
    """Indices of the steps of RESAMPLES samples, each of as many whole runs as there are, drawn from all of them: an arm has too
    few to draw from it alone."""
    runs: dict[tuple[str, int], list[int]] = {}
    for index, row in enumerate(rows):
        runs.setdefault((row["arm"], row["seed"]), []).append(index)
    each, random = [np.array(run) for run in runs.values()], np.random.default_rng(seed)
    return [np.concatenate([each[n] for n in random.integers(len(each), size=len(each))]) for _ in range(RESAMPLES)]


def with_interval(statistic: Callable[..., float], drawn: Sequence[Any], *values: npt.NDArray[Any]) -> list[float]:
    """A statistic of the steps' values, and its 95% interval over the samples ``drawn``."""
    found = [statistic(*(each[index] for each in values)) for index in drawn]
    low, high = np.nanpercentile(found, [2.5, 97.5]) if np.isfinite(found).any() else (math.nan, math.nan)
    return [statistic(*values), float(low), float(high)]


def danger(row: Row) -> float:
    """The first truth, turned such that larger is nearer to the edge; infinite multiples are tied."""
    return -min(float(row["safe_multiple"]), 1e9)


def known(rows: Sequence[Row], name: str) -> list[Row]:
    """The steps at which a signal has a value."""
    return [row for row in rows if row["signals"].get(name) is not None]


def arrays(rows: Sequence[Row], name: str) -> tuple[Floats, Floats, Floats]:
    """Of each step: a signal's nearness to the edge, that of the truth, and the rise of the held-out loss."""
    near = np.array([nearness(name, row["signals"][name]) for row in rows])
    return near, np.array([danger(row) for row in rows]), np.array([row["rise"] for row in rows])


def correlations(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """A signal against both truths, with intervals where something is compared between runs."""
    own = known(rows, name)
    near, truth, rise = arrays(own, name)
    drawn, arms = draws(own), np.array([row["arm"] for row in own])
    found = {
        "all": with_interval(rank_correlation, drawn, near, truth),
        "within": with_interval(within, drawn, arms, near, truth),
        "rise": with_interval(rank_correlation, drawn, near, rise),
    }
    dangerous, harmful = separation(near, truth > -EDGE), separation(near, rise > RISE)
    return {"signal": name, "steps": len(own), **found, "dangerous": dangerous, "harmful": harmful}


def flags(rows: Sequence[Row], name: str, limit: float) -> dict[str, Any]:
    """How many healthy steps a threshold flags, and how many dangerous ones it misses; a signal without a value flags nothing."""
    beyond = [
        row["signals"].get(name) is not None and nearness(name, row["signals"][name]) > nearness(name, limit)
        for row in rows
    ]
    dangerous = [row["safe_multiple"] < EDGE for row in rows]
    return {
        "signal": name,
        "limit": limit,
        "healthy": dangerous.count(False),
        "flagged": sum(b and not d for b, d in zip(beyond, dangerous, strict=True)),
        "dangerous": dangerous.count(True),
        "missed": sum(d and not b for b, d in zip(beyond, dangerous, strict=True)),
    }


def predicted(rows: Sequence[Row], name: str) -> dict[str, Any]:
    """How far a signal's safe multiple is from the true one, over steps at which both are finite: the median factor, and the
    share within a factor of two."""
    pairs = [(row["predicted"][name], row["safe_multiple"]) for row in rows if row["predicted"].get(name)]
    logs = np.array([math.log2(said / true) for said, true in pairs if 0 < true < math.inf and said < math.inf])
    middle = float(2 ** np.median(logs)) if len(logs) else math.nan
    return {
        "signal": name,
        "steps": len(logs),
        "factor": middle,
        "close": float((abs(logs) <= 1).mean()) if len(logs) else math.nan,
    }


def by_arm(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each arm: its runs and steps, and what came of them."""
    found = []
    for arm in ARMS:
        own = [row for row in rows if row["arm"] == arm]
        if own:
            safe = np.array([row["safe_multiple"] for row in own])
            found.append(
                {
                    "arm": arm,
                    "runs": len({row["seed"] for row in own}),
                    "steps": len(own),
                    "median": float(np.median(safe)),
                    "below 1": int((safe < 1).sum()),
                    "below 2": int((safe < EDGE).sum()),
                    "never": int(np.isinf(safe).sum()),
                    "harmful": sum(row["rise"] > RISE for row in own),
                }
            )
    return found


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything that the tables show."""
    return {
        "arms": by_arm(rows),
        "correlations": [correlations(rows, name) for name in SIGNALS],
        "flags": [flags(rows, name, limit) for name, limit in THRESHOLDS],
        "predicted": [predicted(rows, name) for name in PREDICT if name in SIGNALS],
    }


def tables(found: Mapping[str, Any]) -> str:
    """The summary in Markdown."""
    arms = [
        [a["arm"], *(f"{a[k]}" for k in ("runs", "steps")), f"{a['median']:.3g}"]
        + [f"{a[k]}" for k in ("below 1", "below 2", "never", "harmful")]
        for a in found["arms"]
    ]
    header = ["arm", "runs", "steps", "median safe multiple", "below 1", "below 2", "never back", "held-out loss rose"]
    known_by = [
        [c["signal"], f"{c['steps']}", *(_interval(c[k]) for k in ("all", "within"))]
        + [_plain(c["dangerous"]), _interval(c["rise"]), _plain(c["harmful"])]
        for c in found["correlations"]
    ]
    columns = ["signal", "steps", "all", "within arms", "AUC, multiple < 2", "held-out rise", "AUC, rise"]
    told = [
        [f"{f['signal']} {'<' if f['signal'] in FALLING else '>'} {f['limit']:g}"]
        + [f"{f['flagged']} of {f['healthy']}", f"{f['missed']} of {f['dangerous']}"]
        for f in found["flags"]
    ]
    said = [[p["signal"], f"{p['steps']}", f"{p['factor']:.2f}", f"{p['close']:.0%}"] for p in found["predicted"]]
    return "\n".join(
        [
            markdown_table(header, arms),
            markdown_table(columns, known_by),
            markdown_table(["threshold", "healthy steps flagged", "dangerous steps missed"], told),
            markdown_table(["prediction", "steps", "median of predicted / true", "within a factor of 2"], said),
        ]
    )


def _plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def _interval(values: Sequence[float]) -> str:
    middle, low, high = map(_plain, values)
    return f"{middle} [{low}, {high}]" if middle else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.signals", description="Signals of danger against the truth.")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first-seed", type=int, default=200)
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    write_recipe(folder)
    rows: list[Row] = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for arm in ARMS:
            rows += measured(folder, arm, seed, chosen(arm))
            print(f"seed {seed}: {arm}", flush=True)
    found = summary(rows)
    write_json(folder / "signals.json", {**found, "steps": rows})
    write_text(folder / "signals.md", tables(found))
    print(tables(found))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
