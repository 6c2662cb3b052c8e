"""Which detector of spikes can be trusted: known faults in realistic curves, found and missed.

    python -m benchmarks.detectors [--split tune|score] [--out DIR]

**Curves.** *Synthetic*: losses that fall as a power of the step, 800 steps, with noise that shrinks along the curve: the
batches' part is white with heavy tails (Student t, 3 to 5 degrees of freedom), the parameters' part Gaussian AR(1) with
coefficient 0, 0.3, 0.6 or 0.9, half of the variance each. That is how real telemetry looks: the lag-1 autocorrelation of the
losses' residuals below is within 0.1 of 0, and an outlier is a batch, gone with the next one. *Real*: loss and gradient norm
of healthy runs of this project (benchmarks/curves.csv), 500 steps, with faults laid over them. The gradient norms of the two
runs at the article's scale are left out: they rise thirty-fold as those runs leave their cold start. *Heavy innovations*,
told apart: synthetic with AR(1) noise *driven* by Student t, in which chance itself makes excursions of many sigmas and many
steps.

**Faults.** Size in standard deviations of the local noise (3 to 40; on a log scale for gradient norms, whose noise is
multiplicative), length in steps (1 to 100). *pulse*: at least 60 steps after the last fault. *lone*: the only one of its
curve, in the second half: what rules with a long window are made for. *early*: begins at step 17 to 41. *burst*: pulses of 2
to 4 steps with 6 to 15 between. *plateau*: 250 steps. *creep*: a rise over the last 290 steps. A sixth of the curves has no
fault. A quarter has NaN: before faults, inside them, and elsewhere.

**Measure.** A detector decides at the step at which its event opens. A fault is hit if a decision falls between its first
step and two steps after its last one; the delay is counted from its first step. A decision outside of every fault is a false
alarm; a second event in one fault is neither. Recall: share of faults hit. Precision: faults hit of any size, over those and
false alarms. The target is at least 0.99 each for faults of at least 6 sigmas and 2 steps (creep apart).

**Splits.** Constants are chosen on ``tune`` (its seeds; runs linear_lr_half, tfsd_1_8, ce_article, tfsd_1), the table is made on
``score`` (other seeds, the other five runs). All runs saw the same batches, so their noise is not independent between the splits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.signal import lfilter

from analysis.show.tables import markdown_table
from common.command import ArgumentParser, exit_status
from common.files import write_text
from stability.detect.base import Detector
from stability.detect.baseline import logarithmic
from stability.detect.catalogue import DEFAULT, DETECTORS, make_detector

from .curves import load_curves

Floats = npt.NDArray[np.float64]
Random = np.random.Generator

RULES = [name for name in DETECTORS if name not in ("stall", "non_finite")]
SIZES = (3, 4, 6, 8, 12, 20, 40)
LENGTHS = (1, 2, 3, 5, 10, 30, 100)
LAYOUTS = ("pulses", "lone", "bursts", "plateau", "creep", "healthy")
SPACING = 60
AFTER = 2
"""Steps after the last one of a fault in which a decision still hits it."""
SEEDS = {"tune": 1, "score": 2}
TUNING_RUNS = ("linear_lr_half", "tfsd_1_8", "ce_article", "tfsd_1")
SYNTHETIC, HARD, DRAWS = 240, 60, 12
"""Synthetic curves; those with heavy innovations; draws of faults over each real curve."""


@dataclass(frozen=True)
class Fault:
    """Steps ``start`` to ``end``; ``size`` in standard deviations of the noise at its start."""

    kind: str
    start: int
    end: int
    size: float

    @property
    def length(self) -> int:
        """In steps."""
        return self.end - self.start + 1


@dataclass
class Case:
    """One curve, values at steps 1, 2, ...; ``source`` is synthetic, hard or the signal of a real run."""

    source: str
    signal: str
    values: Floats
    faults: list[Fault]


@dataclass
class Outcome:
    """What one detector made of all cases: a row for each fault, a row for each false alarm, seconds and values."""

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
        faults = _plan(random, len(trend), LAYOUTS[index % len(LAYOUTS)])
        source = "synthetic" if index < synthetic else "heavy innovations"
        yield Case(source, "loss/nll", _inject(random, values, sigma, faults, nans=index % 4 == 0), faults)
    for column, (run, signal) in enumerate(load_curves().columns):
        if (run in TUNING_RUNS) != (split == "tune") or ("article" in run and signal == "grad_norm/total"):
            continue
        values, sigma = _real(run, signal)
        for index in range(draws):
            random = np.random.default_rng([seed, 1, column, index])
            faults = _plan(random, len(values), LAYOUTS[index % len(LAYOUTS)])
            faulty = _inject(random, values, sigma, faults, nans=index % 4 == 0)
            yield Case(f"real {signal}", signal, np.exp(faulty) if logarithmic(signal) else faulty, faults)


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
    values = pd.Series(np.log(values)) if logarithmic(signal) else values
    residuals = values - values.rolling(31, center=True, min_periods=8).median()
    return values.to_numpy(), residuals.rolling(101, center=True, min_periods=20).std().to_numpy()


def _plan(random: Random, steps: int, layout: str) -> list[Fault]:
    """Faults for one curve, in order."""
    if layout == "healthy":
        return []
    if layout == "lone":
        return [_pulse(random, "lone", int(random.integers(steps // 2, steps - 110)), SIZES, LENGTHS)]
    faults = []
    if random.random() < 0.5:
        faults.append(_pulse(random, "early", int(random.integers(17, 42)), SIZES, LENGTHS[:5]))
    last = steps - {"plateau": 320, "creep": 300}.get(layout, 0)
    start = 80 + int(random.integers(SPACING))
    while start < last:
        if layout == "bursts" and random.random() < 0.4:
            group = []
            for _ in range(random.integers(3, 6)):
                group.append(_pulse(random, "burst", start, (8, 12, 20), (2, 3, 4)))
                start = group[-1].end + 1 + int(random.integers(6, 16))
        else:
            group = [_pulse(random, "pulse", start, SIZES, LENGTHS)]
        if group[-1].end + 10 > last:
            break
        faults += group
        start = group[-1].end + SPACING + int(random.integers(SPACING))
    if layout == "plateau":
        faults.append(Fault("plateau", steps - 299, steps - 50, float(random.choice((6, 8, 12, 20)))))
    if layout == "creep":
        faults.append(Fault("creep", steps - 289, steps, float(random.choice((12, 20, 40)))))
    return faults


def _pulse(random: Random, kind: str, start: int, sizes: tuple[int, ...], lengths: tuple[int, ...]) -> Fault:
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
    """The steps at which the detector's events open."""
    found, before = [], None
    for step, value in enumerate(values.tolist(), start=1):
        detector.update({"step": step, detector.signal: value})
        if detector.open is not None and detector.open is not before:
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


def measure(name: str, all_cases: list[Case]) -> Outcome:
    """Run one detector over all cases."""
    rows, alarms, began = [], [], time.perf_counter()
    for index, case in enumerate(all_cases):
        hits, false = match(case.faults, decisions(make_detector(name, case.signal), case.values))
        alarms += [{"case": index, "source": case.source, "step": step} for step in false]
        for fault, hit in zip(case.faults, hits, strict=True):
            target = fault.size >= 6 and fault.length >= 2 and fault.kind != "creep"
            delay = np.nan if hit is None else hit - fault.start
            rows.append(
                {"case": index, "source": case.source, "kind": fault.kind, "size": fault.size, "length": fault.length,
                 "start": fault.start, "target": target, "hit": hit is not None, "delay": delay}
            )  # fmt: skip
    faults = pd.DataFrame(rows)
    false_alarms = pd.DataFrame(alarms, columns=["case", "source", "step"])
    return Outcome(faults, false_alarms, time.perf_counter() - began, sum(len(case.values) for case in all_cases))


# ------------------------------------------------------------------------------------------------------------- the report


def main() -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(description="Precision, recall and delay of every spike detector.")
    parser.add_argument("--split", choices=tuple(SEEDS), default="score")
    parser.add_argument("--out", type=Path, help="folder for detectors.md and detectors.csv (a row for each fault)")
    options = parser.parse_args()
    all_cases = list(cases(options.split))
    outcomes = {name: measure(name, all_cases) for name in RULES}
    report = f"{overview(outcomes)}\n{by_source(outcomes)}\n{by_size(outcomes)}"
    print(report)
    if options.out:
        write_text(options.out / "detectors.md", report)
        table = pd.concat({name: outcome.faults for name, outcome in outcomes.items()}, names=["detector", None])
        write_text(options.out / "detectors.csv", table.reset_index(level=0).to_csv(index=False, lineterminator="\n"))


def overview(outcomes: dict[str, Outcome]) -> str:
    """Markdown: one row for each detector, all sources but heavy innovations."""
    header = ["detector", "recall", "precision", "early", "burst", "plateau", "lone", "creep"]
    header += ["1 step, 20 sigmas or more", "false alarms", "delay, steps", "us a value"]
    rows = []
    for name, outcome in outcomes.items():
        faults = outcome.faults[outcome.faults["source"] != "heavy innovations"]
        alarms = int((outcome.alarms["source"] != "heavy innovations").sum())
        target = faults[faults["target"]]
        kinds = [_share(target[target["kind"] == kind]["hit"]) for kind in ("early", "burst", "plateau", "lone")]
        creep = _share(faults[faults["kind"] == "creep"]["hit"])
        single = _share(faults[(faults["length"] == 1) & (faults["size"] >= 20)]["hit"])
        precision = _precision(int(faults["hit"].sum()), alarms)
        recall, delay = _share(target["hit"], 4), f"{target['delay'].mean():.1f}"
        cost = f"{1e6 * outcome.seconds / outcome.values:.0f}"
        rows.append([name, recall, precision, *kinds, creep, single, str(alarms), delay, cost])
    count = int(target["hit"].count())
    return f"{markdown_table(header, rows)}\nRecall over {count} faults of at least 6 sigmas and 2 steps, early ones included.\n"


def by_source(outcomes: dict[str, Outcome]) -> str:
    """Markdown: recall of the target, and precision, for each source of curves."""
    sources = list(dict.fromkeys(next(iter(outcomes.values())).faults["source"]))
    rows = []
    for name, outcome in outcomes.items():
        row = [name]
        for source in sources:
            faults = outcome.faults[outcome.faults["source"] == source]
            alarms = int((outcome.alarms["source"] == source).sum())
            recall = _share(faults[faults["target"]]["hit"])
            row.append(f"{recall} / {_precision(int(faults['hit'].sum()), alarms)} ({alarms})")
        rows.append(row)
    return markdown_table(["recall / precision (false alarms)", *sources], rows)


def by_size(outcomes: dict[str, Outcome]) -> str:
    """Markdown: share of pulses hit, by size and length for the default, by size for all."""
    pulses = {}
    for name, outcome in outcomes.items():
        faults = outcome.faults
        pulses[name] = faults[(faults["kind"].isin(["pulse", "lone"])) & (faults["source"] != "heavy innovations")]
    default = pulses[DEFAULT]
    grid = [
        [f"{size} sigmas"]
        + [_share(default[(default["size"] == size) & (default["length"] == length)]["hit"], 2) for length in LENGTHS]
        for size in SIZES
    ]
    rows = []
    for name, faults in pulses.items():
        for which, chosen in (("1 step", faults["length"] == 1), ("longer", faults["length"] > 1)):
            shares = [_share(faults[chosen & (faults["size"] == size)]["hit"], 2) for size in SIZES]
            rows.append([f"{name}, {which}", *shares])
    lengths = [f"{length} step{'s' * (length > 1)}" for length in LENGTHS]
    table = markdown_table([f"pulses hit by {DEFAULT}", *lengths], grid)
    return f"{table}\n{markdown_table(['pulses hit', *(f'{size} sigmas' for size in SIZES)], rows)}"


def _share(hits: pd.Series, digits: int = 3) -> str:
    return f"{hits.mean():.{digits}f}" if len(hits) else ""


def _precision(hits: int, alarms: int) -> str:
    return f"{hits / (hits + alarms):.4f}" if hits + alarms else ""


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
