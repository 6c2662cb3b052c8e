"""Curves with rectangular pulses: synthetic ones, and healthy runs of this project (benchmarks/curves.csv)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from record.metrics import kind_of

from ..curves import load_curves
from .cases import SEEDS, TUNING_RUNS, Case, Fault, Floats, Random

SIZES = (3, 4, 6, 8, 12, 20, 40)
LENGTHS = (1, 2, 3, 5, 10, 30, 100)
LAYOUTS = ("pulses", "lone", "bursts", "plateau", "creep", "healthy")
SPACING = 60
HEAVY = "heavy innovations"
SYNTHETIC, HARD, DRAWS = 240, 60, 12
"""Synthetic curves; those with heavy innovations; draws of faults over each real curve."""


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
