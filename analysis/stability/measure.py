"""The values of one run that arms are compared by."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from analysis.compare.final import final_nll, lost
from analysis.show.text import skips
from record.finished import Run
from stability.detect.catalogue import DEFAULT

from .curve import (
    Floats,
    Recovery,
    Steps,
    capped,
    excess,
    median_duration,
    noise,
    noise_floor,
    recoveries,
    steps_within,
)
from .spikes import GRADIENT, NLL, PUBLISHED, SIGNALS, Spikes, find_spikes, told

VALIDATION = "validation/nll"
PLACES = {
    "residual": ("hidden_norm/pre_final/mean", "residual stream before the last normalisation, mean L2 norm"),
    "gain": ("param_norm/norm", "parameters of the last normalisation, L2 norm"),
    "embedding": ("embedding_norm/mean", "output embeddings, mean L2 norm"),
    "logits": ("logit/std", "logits, standard deviation over the vocabulary"),
}
"""Where radial growth shows: a name, the metric, and what it is."""
UPDATES = "update_rms/"
Better = Literal["lower", "higher", "neither"]
Values = dict[str, Any]


class Measure(NamedTuple):
    """A value of each run: its key in JSON and CSV, heading, format, unit, which direction is better, and what it means."""

    key: str
    heading: str
    form: str
    unit: str
    better: Better
    meaning: str

    def verdict(self, said: str) -> str:
        """ "better" or "worse" for what is said to be "lower" or "higher", if one of the sides is good; else what is said."""
        if self.better == "neither" or said not in ("lower", "higher"):
            return said
        return "better" if said == self.better else "worse"


def _growth() -> Iterable[Measure]:
    for name, (_, what) in PLACES.items():
        yield Measure(f"{name}_growth", f"{name} growth", ".3g", "1", "neither", f"{what}: last value over the first")
        yield Measure(f"{name}_max", f"{name} max", ".3g", "1", "neither", "the same: largest value over the first")


def _rules() -> Iterable[Measure]:
    for rule in PUBLISHED:
        for signal, metric in SIGNALS.items():
            meaning = f"events of the published rule {rule} in {metric}, per 1,000 steps that it could judge"
            yield Measure(f"{rule}_{signal}", f"{rule} {signal}", ".3g", "1/1000 steps", "lower", meaning)


MEASURES = (
    Measure("ended", "ended", "s", "", "neither",
            "finished or diverged: status.json; not begun: a branch of a run that diverged before it"),
    Measure("steps", "steps", "d", "steps", "neither", "the run's own steps that are on record"),
    Measure("survived", "survived", "d", "", "higher",
            "1 if the run finished, did not stall and did not end above its initial NLL"),
    Measure("diverged", "diverged", "d", "", "lower",
            "1 if the run diverged, or did so before this branch of it, or its final validation NLL is not finite"),
    Measure("stalls", "stalls", "d", "events", "lower", "times that the loss stood still while logits grew or were saturated"),
    Measure("saturated", "saturated", "d", "events", "lower", "softmaxes that became saturated"),
    Measure("rises", "rises", "d", "events", "lower", "lasting rises of the loss's level"),
    Measure("final_nll", "final NLL", ".4f", "nats/token", "lower",
            "last validation NLL; of a run that diverged the initial loss"),
    Measure("accuracy", "accuracy", ".4f", "1", "higher", "last validation accuracy: the most probable token is the next one"),
    Measure("ece", "ECE", ".4f", "1", "lower", "last expected calibration error on the validation set"),
    Measure("weight", "c", ".3g", "1", "neither",
            "mean factor on cross-entropy's gradient in the last quarter of the run; of objectives that have one"),
    Measure("initial_nll", "initial NLL", ".4f", "nats/token", "neither",
            "first training NLL, of a branch that of the run it comes from; unknown without that run"),
    Measure("capped", "capped", "d", "", "lower", "1 if the initial loss stands for the final NLL"),
    Measure("spikes_nll", "NLL spikes", ".3g", "1/1000 steps", "lower", f"spikes in {NLL} by the default rule ({DEFAULT})"),
    Measure("spikes_grad", "grad spikes", ".3g", "1/1000 steps", "lower",
            f"spikes in {GRADIENT} after warm-up, by the default rule"),
    *_rules(),
    Measure("excess", "excess", ".3g", "nat-steps", "lower", "sum of the smoothed NLL minus its running minimum"),
    Measure("excess_floor", "noise floor", ".3g", "nat-steps", "neither", "excess that noise alone gives such a curve"),
    Measure("lost_tokens", "tokens lost", ",.0f", "tokens", "lower",
            "tokens of the steps in or recovering from a loss spike, taken back by a rewind, or missing after a divergence"),
    Measure("recovery", "recovery", ".3g", "steps", "lower",
            "median steps from a loss spike's start until the NLL is back (Kaplan-Meier); infinite: not seen"),
    Measure("unrecovered", "not back", "d", "spikes", "lower", "loss spikes from which the run was not back at its end"),
    *_growth(),
    Measure("mean_rate", "mean rate", ".3g", "1", "neither", "mean learning rate over the steps"),
    Measure("update_factor", "update factor", ".3g", "1", "neither",
            "mean of the product of all update_scale factors, 0 where an update was skipped"),
    Measure("effective_rate", "effective rate", ".3g", "1", "neither", "mean of the learning rate times that product"),
    Measure("gradient_scale", "gradient scale", ".3g", "1", "neither", "mean of the smallest factor on the gradient"),
    Measure("update_size", "update size", ".3g", "1", "neither",
            "RMS of a typical update over that of the baseline's run with the same scenario, rate and seed"),
)  # fmt: skip
BY_KEY = {measure.key: measure for measure in MEASURES}


@dataclass(frozen=True)
class Measured:
    """A run's values, and the curves and events that summaries over several runs need."""

    values: Values
    """By the keys of MEASURES; None for what was not logged."""
    spikes: Mapping[str, Spikes]
    """Of the default rule, by signal (SIGNALS)."""
    recovered: list[Recovery]
    steps: Steps
    nll: Floats
    """Training NLL at the run's own steps; NaN and infinities as they are."""


def series_of(run: Run, key: str, before: Run | None = None) -> tuple[Steps, Floats]:
    """Steps and values of a metric; ``before``: the run that a branch comes from, whose earlier steps are put first."""
    own = run.series(key)
    steps, values = own.index.to_numpy(dtype=np.int64), own.to_numpy(dtype=np.float64)
    if before is None:
        return steps, values
    earlier = before.series(key)
    earlier = earlier[earlier.index < run.metrics.index[0]]
    return (
        np.concatenate([earlier.index.to_numpy(dtype=np.int64), steps]),
        np.concatenate([earlier.to_numpy(dtype=np.float64), values]),
    )


def measure(run: Run, before: Run | None = None, rules: Sequence[str] = PUBLISHED) -> Measured:
    """All values but ``update_size``, which needs another run. ``before``: the run that a branch comes from. ``rules``: those
    beside the default one whose spikes are counted, which takes most of the time."""
    steps, nll = series_of(run, NLL, before)
    first_own = int(run.metrics.index[0])
    last = max(int(run.setting("train", "steps") or 0), int(run.metrics.index[-1]))
    finite = nll[np.isfinite(nll)]
    initial = float(finite[0]) if len(finite) else None
    warmup = int(run.setting("optimizer", "warmup_steps") or 0)
    curves = {metric: series_of(run, metric, before) for metric in SIGNALS.values()}
    spikes = {
        (rule, signal): find_spikes(
            rule,
            metric,
            *curves[metric],
            own_from=first_own,
            warmup_steps=warmup,
            known=told(run, metric) if rule == DEFAULT else None,
        )
        for rule in (DEFAULT, *rules)
        for signal, metric in SIGNALS.items()
    }
    values: Values = {"steps": len(run.metrics)}
    values |= {f"spikes_{signal}": spikes[DEFAULT, signal].rate for signal in SIGNALS}
    values |= {f"{rule}_{signal}": spikes[rule, signal].rate for rule in rules for signal in SIGNALS}
    begun_elsewhere = before is None and bool(run.config.get("branch_from"))  # its first NLL is no initial one
    values |= _ending(run, None if begun_elsewhere else initial)
    recovered: list[Recovery] = []
    if initial is not None and not (begun_elsewhere and values["diverged"]):
        of_curve, recovered = _of_curve(run, steps, nll, initial, first_own, last, spikes[DEFAULT, "nll"])
        values |= of_curve
    values |= _at_the_end(run)
    for name, (metric, _) in PLACES.items():
        values |= _radial(name, series_of(run, metric, before)[1])
    values |= _rates(run)
    own = steps >= first_own
    return Measured(
        {entry.key: values.get(entry.key) for entry in MEASURES},
        {signal: spikes[DEFAULT, signal] for signal in SIGNALS},
        recovered,
        steps[own],
        nll[own],
    )


def measure_unbegun(parent: Run, before: Run | None, step: int, last: int) -> Measured:
    """The values of a branch that was to begin after ``step`` and to end at ``last``, of a run that diverged before: those of a
    run that diverges at once. ``before``: the run that ``parent`` comes from."""
    steps, nll = series_of(parent, NLL, before)
    finite = nll[np.isfinite(nll)]
    initial = float(finite[0]) if len(finite) and (before or not parent.config.get("branch_from")) else None
    values: Values = {"steps": 0, "stalls": 0, "saturated": 0, "rises": 0} | _lost("not begun", initial)
    none = Spikes([], 0)
    if initial is not None:
        values |= _of_curve(replace(parent, events=[]), steps, nll, initial, step + 1, last, none)[0]
    own: tuple[Steps, Floats] = np.array([], dtype=np.int64), np.array([])
    return Measured({entry.key: values.get(entry.key) for entry in MEASURES}, dict.fromkeys(SIGNALS, none), [], *own)


def _lost(ended: str, initial: float | None) -> Values:
    """What counts for a run that diverged, or never began."""
    capped = None if initial is None else 1
    return {
        "ended": ended,
        "diverged": 1,
        "survived": 0,
        "final_nll": initial,
        "initial_nll": initial,
        "capped": capped,
    }


def _ending(run: Run, initial: float | None) -> Values:
    counts = {
        key: sum(event.get("event") == kind and "abandoned" not in event for event in run.events)
        for key, kind in (("stalls", "stall"), ("saturated", "saturated"), ("rises", "rise"))
    }
    validation = run.series(VALIDATION)
    final = float(validation.iloc[-1]) if len(validation) else None
    diverged = run.status["status"] == "diverged"
    if lost(diverged, final):
        return _lost(run.status["status"], initial) | counts
    counted = final_nll(diverged, final, initial)
    above = counted is not None and final is not None and counted < final
    return {
        "ended": run.status["status"],
        "diverged": 0,
        "survived": int(not counts["stalls"] and not above),
        "final_nll": counted,
        "initial_nll": initial,
        "capped": None if counted is None else int(counted == initial),
        **counts,
    }


def _at_the_end(run: Run) -> Values:
    """What the run has come to, if it has not diverged."""
    if run.status["status"] == "diverged":
        return {}
    found: Values = {}
    for key, metric in (("accuracy", "validation/accuracy"), ("ece", "validation/ece")):
        if len(values := run.series(metric)):
            found[key] = float(values.iloc[-1])
    objective = run.setting("objective", "kind")
    weights = run.series("tfsd/weight_mean" if objective in ("tfsd", "weighted_ce") else "objective/weight")
    if len(weights):
        found["weight"] = float(weights.iloc[-max(1, len(weights) // 4) :].mean())
    return found


def _of_curve(
    run: Run, steps: Steps, nll: Floats, initial: float, first_own: int, last: int, spikes: Spikes
) -> tuple[Values, list[Recovery]]:
    """What the training NLL tells from the step ``first_own`` on: excess, and what was lost in spikes."""
    ended = int(steps[-1])
    sigma = noise(nll)
    diverged = run.status["status"] == "diverged"
    whole, curve = capped(steps, nll, last if diverged else ended, initial)
    own = whole >= first_own
    recovered = recoveries(whole, curve, [(e.start_step, e.peak_step) for e in spikes.found], sigma, int(whole[-1]))
    gone = max(ended + 1, first_own)
    missing = [Recovery(gone, last + 1 - gone, back=False)] if diverged and last >= gone else []
    missing += [Recovery(int(step), 1, back=True) for step in steps[~np.isfinite(nll) & (steps >= first_own)]]
    taken_back = sum(e["from_step"] - e["to_step"] for e in run.events if e.get("event") == "rewind")
    tokens = run.series("tokens")
    a_step = float(np.median(np.diff(tokens) / np.diff(tokens.index))) if len(tokens) > 1 else None
    lost = steps_within([*recovered, *missing]) + taken_back
    return {
        "excess": float(excess(curve)[own].sum()),
        "excess_floor": float(noise_floor(curve, sigma)[own].sum()),
        "lost_tokens": None if a_step is None else lost * a_step,
        "recovery": median_duration([one.steps for one in recovered], [one.back for one in recovered])
        if recovered
        else None,
        "unrecovered": sum(not one.back for one in recovered),
    }, recovered


def _radial(name: str, values: Floats) -> Values:
    finite = values[np.isfinite(values)]
    if not len(finite) or finite[0] <= 0:
        return {}
    return {f"{name}_growth": float(finite[-1] / finite[0]), f"{name}_max": float(finite.max() / finite[0])}


def _rates(run: Run) -> Values:
    """The rate at which the run really learnt, as far as its log tells."""
    names = list(run.metrics.columns)
    scales = [name for name in names if name.startswith("intervention/") and name.endswith("/update_scale")]
    factor = np.ones(len(run.metrics))
    for name in scales:
        factor *= _or_one(run, name)
    for skipped in skips(run.metrics).values():
        factor[np.nan_to_num(np.asarray(skipped, dtype=np.float64)) > 0] = 0.0
    gradient = [_or_one(run, name) for name in names if name.startswith("intervention/") and name.endswith("/scale")]
    found: Values = {
        "update_factor": float(factor.mean()),
        "gradient_scale": float(np.min(gradient, axis=0).mean()) if gradient else 1.0,
    }
    rate = run.metrics["lr"].to_numpy(dtype=np.float64) if "lr" in names else np.array([math.nan])
    if np.isfinite(rate).all():
        found |= {"mean_rate": float(rate.mean()), "effective_rate": float((rate * factor).mean())}
    return found


def _or_one(run: Run, name: str) -> Floats:
    """The factors of an intervention; 1 where it logged none."""
    values = run.metrics[name].to_numpy(dtype=np.float64)
    return np.where(np.isfinite(values), values, 1.0)


def update_size(run: Run, other: Run) -> float | None:
    """Root mean square of a typical update of a run relative to another's over the steps of both: the geometric mean over the
    groups of parameters of the ratio of medians. None if there is no common step or group."""
    names = [n for n in run.metrics.columns if n.startswith(UPDATES) and n in other.metrics.columns]
    common = run.metrics.index.intersection(other.metrics.index)
    if not names or not len(common):
        return None
    ratios = (run.metrics.loc[common, names].median() / other.metrics.loc[common, names].median()).to_numpy()
    kept = ratios[np.isfinite(ratios) & (ratios > 0)]
    return float(np.exp(np.log(kept).mean())) if len(kept) else None
