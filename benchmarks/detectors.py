"""Benchmark of the spike detectors: known faults in realistic curves, found and missed.

    python -m benchmarks.detectors [--split tune|score] [--out DIR]

results/detectors/details.md describes curves, faults, measure and splits. With --out, writes detectors.md and detectors.csv.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.signal import lfilter

from analysis.show.tables import markdown_table
from common.command import ArgumentParser, exit_status
from common.files import write_text
from record.metrics import kind_of
from stability.detect.base import Detector
from stability.detect.catalogue import DEFAULT, DETECTORS, make_detector
from stability.detect.events import Rise

from .curves import load_curves

Floats = npt.NDArray[np.float64]
Random = np.random.Generator

WATCHED = f"{DEFAULT} and level"
"""What a run is watched by."""
RULES = {WATCHED: (DEFAULT, "level")} | {
    name: (name,) for name in DETECTORS if name not in ("stall", "non_finite", "level", "saturated", "kurtosis")
}
"""Detectors by the name under which they are measured."""
SIZES = (3, 4, 6, 8, 12, 20, 40)
LENGTHS = (1, 2, 3, 5, 10, 30, 100)
LAYOUTS = ("pulses", "lone", "bursts", "plateau", "creep", "healthy")
SPACING = 60
AFTER = 2
"""Steps after the end of a fault in which a decision still hits it."""
SEEDS = {"tune": 1, "score": 2}
TUNING_RUNS = ("linear_lr_half", "tfsd_1_8", "ce_article", "tfsd_1")
HEAVY = "heavy innovations"
SYNTHETIC, HARD, DRAWS = 240, 60, 12
"""Synthetic curves; those with heavy innovations; draws of faults over each real curve."""


class Fault(NamedTuple):
    """Steps ``start`` to ``end``; ``size`` in standard deviations of the noise at its start."""

    kind: str
    start: int
    end: int
    size: float

    @property
    def length(self) -> int:
        """In steps."""
        return self.end - self.start + 1


class Case(NamedTuple):
    """A curve with values at steps 1, 2, ...; ``source``: synthetic, heavy innovations, or the signal of a real run."""

    source: str
    signal: str
    values: Floats
    faults: list[Fault]


@dataclass
class Outcome:
    """The result of one detector on all cases: a row per fault, a row per false alarm, seconds, and values seen."""

    faults: pd.DataFrame
    alarms: pd.DataFrame
    seconds: float
    values: int


# -------------------------------------------------------------------------------------------------------------- the cases


def cases(split: str, synthetic: int = SYNTHETIC, hard: int = HARD, draws: int = DRAWS) -> Iterator[Case]:
    """All cases of a split, the same at every call."""
    seed = SEEDS[split]
    for index in range(synthetic + hard):
        random = np.random.default_rng([seed, 0, index])
        trend, sigma = _trend(random, steps=800)
        values = trend + sigma * _noise(random, len(trend), heavy_innovations=index >= synthetic)
        values, faults = _with_faults(random, values, sigma, index)
        yield Case("synthetic" if index < synthetic else HEAVY, "loss/nll", values, faults)
    for column, (run, signal) in enumerate(load_curves().columns):
        if (run in TUNING_RUNS) != (split == "tune") or ("article" in run and signal == "grad_norm/total"):
            continue
        real, sigma = _real(run, signal)
        for index in range(draws):
            values, faults = _with_faults(np.random.default_rng([seed, 1, column, index]), real, sigma, index)
            yield Case(f"real {signal}", signal, np.exp(values) if kind_of(signal) == "norm" else values, faults)


def _with_faults(random: Random, values: Floats, sigma: Floats, index: int) -> tuple[Floats, list[Fault]]:
    """The values of a curve with faults of one layout, and these; every fourth curve also has NaN."""
    faults = _faults(random, len(values), LAYOUTS[index % len(LAYOUTS)])
    return _inject(random, values, sigma, faults, nans=index % 4 == 0), faults


def _trend(random: Random, steps: int) -> tuple[Floats, Floats]:
    """A falling loss in nats, and the standard deviation of its noise."""
    last, first = random.uniform(2, 4.5), random.uniform(8, 11)
    ratio = 1 + np.arange(1, steps + 1) / random.uniform(5, 40)
    sigma = random.uniform(0.01, 0.12) * ratio ** -random.uniform(0, 0.3)
    return last + (first - last) * ratio ** -random.uniform(0.4, 0.8), sigma


def _noise(random: Random, steps: int, heavy_innovations: bool) -> Floats:
    """Noise of variance 1; the first 200 values, in which AR(1) forgets its start, are dropped."""
    freedom, memory = random.choice((3, 4, 5)), random.choice((0.0, 0.3, 0.6, 0.9))
    heavy = random.standard_t(freedom, steps + 200) / np.sqrt(freedom / (freedom - 2))
    innovations = heavy if heavy_innovations else random.standard_normal(steps + 200)
    slow = np.asarray(lfilter([np.sqrt(1 - memory**2)], [1, -memory], innovations))
    return (slow if heavy_innovations else np.sqrt(0.5) * (slow + heavy))[200:]


def _real(run: str, signal: str) -> tuple[Floats, Floats]:
    """A real curve on the scale on which its noise is even, and its local noise: residuals from a running median of 31 steps."""
    values = load_curves()[run, signal]
    values = pd.Series(np.log(values)) if kind_of(signal) == "norm" else values
    residuals = values - values.rolling(31, center=True, min_periods=8).median()
    return values.to_numpy(), residuals.rolling(101, center=True, min_periods=20).std().to_numpy()


def _faults(random: Random, steps: int, layout: str) -> list[Fault]:
    """Faults for one curve, in order."""
    if layout == "healthy":
        return []
    if layout == "lone":
        return [_pulse(random, "lone", int(random.integers(steps // 2, steps - 110)))]
    faults = []
    if random.random() < 0.5:
        faults.append(_pulse(random, "early", int(random.integers(17, 42)), lengths=LENGTHS[:5]))
    last = steps - {"plateau": 320, "creep": 300}.get(layout, 0)
    start = 80 + int(random.integers(SPACING))
    while start < last:
        if layout == "bursts" and random.random() < 0.4:
            group = []
            for _ in range(random.integers(3, 6)):
                group.append(_pulse(random, "burst", start, (8, 12, 20), (2, 3, 4)))
                start = group[-1].end + 1 + int(random.integers(6, 16))
        else:
            group = [_pulse(random, "pulse", start)]
        if group[-1].end + 10 > last:
            break
        faults += group
        start = group[-1].end + SPACING + int(random.integers(SPACING))
    if layout == "plateau":
        faults.append(Fault("plateau", steps - 299, steps - 50, float(random.choice((6, 8, 12, 20)))))
    if layout == "creep":
        faults.append(Fault("creep", steps - 289, steps, float(random.choice((12, 20, 40)))))
    return faults


def _pulse(
    random: Random, kind: str, start: int, sizes: tuple[int, ...] = SIZES, lengths: tuple[int, ...] = LENGTHS
) -> Fault:
    return Fault(kind, start, start + int(random.choice(lengths)) - 1, float(random.choice(sizes)))


def _inject(random: Random, values: Floats, sigma: Floats, faults: list[Fault], nans: bool) -> Floats:
    values = values.copy()
    for fault in faults:
        shape = np.linspace(0, 1, fault.length) if fault.kind == "creep" else np.ones(fault.length)
        values[fault.start - 1 : fault.end] += fault.size * sigma[fault.start - 1] * shape
    if nans:
        for fault in faults:
            if random.random() < 0.5:
                values[fault.start - 1 - int(random.integers(1, 10))] = np.nan
            if fault.length >= 5 and random.random() < 0.5:
                values[fault.start - 1 + int(random.integers(1, fault.length - 1))] = np.nan
        values[random.integers(10, len(values), 2)] = np.nan
    return values


# ------------------------------------------------------------------------------------------------------------ the measure


def decisions(detector: Detector, values: Floats) -> list[int]:
    """The steps at which the detector's events open; those of a rise are opened by it alone."""
    found, before = [], None
    for step, value in enumerate(values.tolist(), start=1):
        events = detector.update({"step": step, detector.signal: value})
        if (detector.open is not None and detector.open is not before) or any(isinstance(e, Rise) for e in events):
            found.append(step)
        before = detector.open
    return found


def match(faults: list[Fault], decided: list[int]) -> tuple[list[int | None], list[int]]:
    """For each fault the step of the first decision that hits it, or None; and the false alarms."""
    hits: list[int | None] = [None] * len(faults)
    alarms = []
    for step in decided:
        within = [i for i, fault in enumerate(faults) if fault.start <= step <= fault.end + AFTER]
        if not within:
            alarms.append(step)
        elif hits[within[-1]] is None:
            hits[within[-1]] = step
    return hits, alarms


def measure(names: Sequence[str], all_cases: list[Case]) -> Outcome:
    """Run detectors over all cases, as one that decides when any of them does."""
    rows, alarms, began = [], [], time.perf_counter()
    for index, case in enumerate(all_cases):
        used = [name for name in names if name != "level" or kind_of(case.signal) == "loss"]
        decided = [step for name in used for step in decisions(make_detector(name, case.signal), case.values)]
        hits, false = match(case.faults, sorted(decided))
        alarms += [{"case": index, "source": case.source, "step": step} for step in false]
        for fault, hit in zip(case.faults, hits, strict=True):
            target = fault.size >= 6 and fault.length >= 2 and fault.kind != "creep"
            delay = np.nan if hit is None else hit - fault.start
            rows.append(
                {"case": index, "source": case.source, "kind": fault.kind, "size": fault.size, "length": fault.length,
                 "start": fault.start, "target": target, "hit": hit is not None, "delay": delay}
            )  # fmt: skip
    false_alarms = pd.DataFrame(alarms, columns=["case", "source", "step"])
    values = sum(len(case.values) for case in all_cases)
    return Outcome(pd.DataFrame(rows), false_alarms, time.perf_counter() - began, values)


# ------------------------------------------------------------------------------------------------------------- the report


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Precision, recall and delay of every spike detector.")
    parser.add_argument("--split", choices=tuple(SEEDS), default="score")
    parser.add_argument("--out", type=Path, help="folder for detectors.md and detectors.csv (a row for each fault)")
    options = parser.parse_args()
    all_cases = list(cases(options.split))
    outcomes = {name: measure(rules, all_cases) for name, rules in RULES.items()}
    report = f"{overview(outcomes)}\n{by_source(outcomes)}\n{by_size(outcomes)}"
    print(report)
    if options.out:
        write_text(options.out / "detectors.md", report)
        table = pd.concat({name: outcome.faults for name, outcome in outcomes.items()}, names=["detector", None])
        write_text(options.out / "detectors.csv", table.reset_index(level=0).to_csv(index=False, lineterminator="\n"))


def overview(outcomes: dict[str, Outcome]) -> str:
    """Markdown: a row per detector, over all sources but heavy innovations."""
    header = ["detector", "recall", "precision", "early", "burst", "plateau", "lone", "creep"]
    header += ["1 step, 20 sigmas or more", "false alarms", "delay, steps", "us a value"]
    rows = []
    for name, outcome in outcomes.items():
        faults = outcome.faults[outcome.faults["source"] != HEAVY]
        alarms = int((outcome.alarms["source"] != HEAVY).sum())
        target = faults[faults["target"]]
        kinds = [_share(target[target["kind"] == kind]) for kind in ("early", "burst", "plateau", "lone")]
        kinds += [_share(faults[faults["kind"] == "creep"])]
        kinds += [_share(faults[(faults["length"] == 1) & (faults["size"] >= 20)])]
        cost = f"{1e6 * outcome.seconds / outcome.values:.0f}"
        scores = [_share(target, 4), _precision(faults, alarms)]
        rows.append([name, *scores, *kinds, str(alarms), f"{target['delay'].mean():.1f}", cost])
    count = len(target)
    return f"{markdown_table(header, rows)}\nRecall over {count} faults of at least 6 sigmas and 2 steps, early ones included.\n"


def by_source(outcomes: dict[str, Outcome]) -> str:
    """Markdown: recall of the target, and precision, for each source of curves."""

    def scores(outcome: Outcome, source: str) -> str:
        faults = outcome.faults[outcome.faults["source"] == source]
        alarms = int((outcome.alarms["source"] == source).sum())
        return f"{_share(faults[faults['target']])} / {_precision(faults, alarms)} ({alarms})"

    sources = list(dict.fromkeys(next(iter(outcomes.values())).faults["source"]))
    rows = [[name, *(scores(outcome, source) for source in sources)] for name, outcome in outcomes.items()]
    return markdown_table(["recall / precision (false alarms)", *sources], rows)


def by_size(outcomes: dict[str, Outcome]) -> str:
    """Markdown: share of pulses hit, by size and length for the default detector, by size for all."""

    def shares(outcome: Outcome, size: int, *lengths: tuple[int, ...]) -> list[str]:
        faults = outcome.faults[(outcome.faults["source"] != HEAVY) & (outcome.faults["size"] == size)]
        pulses = faults[faults["kind"].isin(["pulse", "lone"])]
        return [_share(pulses[pulses["length"].isin(group)], 2) for group in lengths]

    grid = [[f"{size} sigmas", *shares(outcomes[DEFAULT], size, *((n,) for n in LENGTHS))] for size in SIZES]
    rows = [
        [f"{name}, {which}", *(shares(outcome, size, lengths)[0] for size in SIZES)]
        for name, outcome in outcomes.items()
        for which, lengths in (("1 step", LENGTHS[:1]), ("longer", LENGTHS[1:]))
    ]
    table = markdown_table([f"pulses hit by {DEFAULT}", *(f"{n} step{'s' * (n > 1)}" for n in LENGTHS)], grid)
    return f"{table}\n{markdown_table(['pulses hit', *(f'{size} sigmas' for size in SIZES)], rows)}"


def _share(faults: pd.DataFrame, digits: int = 3) -> str:
    return f"{faults['hit'].mean():.{digits}f}" if len(faults) else ""


def _precision(faults: pd.DataFrame, alarms: int) -> str:
    hits = int(faults["hit"].sum())
    return f"{hits / (hits + alarms):.4f}" if hits + alarms else ""


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
