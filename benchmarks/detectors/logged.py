"""Logs of every step or fewer, with noise from real logs and faults of real shapes.

The trend is a function of the step. A logged value has the noise of its batch, so that a log of fewer steps is no less noisy; but
a spike of 20 steps is a single value in a log of every 20th.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from record.metrics import kind_of

from ..curves import load_curves
from ..residuals import Noise, bootstrap, load_noise, standardised
from .cases import SEEDS, TUNING_RUNS, Case, Fault, Floats, Random, Steps
from .shapes import BLOOM_HEIGHT, as_logged, late_rise, spike

SIZES = (4, 6, 8, 12, 20)
RISE_SIZES = (1, 2, 3, 4, 6)
AS_IT_WAS = np.inf
"""Size of a fault that is as high as BLOOM's norms were."""
LONGEST_RISE = 300
VALUES = 1_500
"""Of a log with spikes."""
FIRST_FAULT, SPACING = 150, 60
"""Values before the first spike; fewest between two."""
ONSET = (2_000, 2_300)
"""First and last value at which a late rise may begin."""
TO_BE_FOUND_IN = 1_000
"""Values after a late rise is complete in which it may be found. There the log ends."""
LATE = 20_000
"""Steps before a log with a late rise begins: it is to rise by more than the trend falls."""
EARLY_RUN = 100
"""First steps of this project's runs that are left out of their noise: a running median of 31 does not follow them."""
SPIKE_LOGS, RISE_LOGS = {1: 8, 10: 2, 20: 2, 50: 2, 100: 2}, {1: 5, 20: 5, 100: 5}
"""Logs with spikes and logs with a late rise, by interval, for each source of noise."""
NORMS = 2
"""Times as many logs with spikes of every norm, which have one shape more."""


def cases(split: str, spikes: dict[int, int] | None = None, rises: dict[int, int] | None = None) -> Iterator[Case]:
    """All logs of a split, the same at every call; ``spikes``, ``rises``: in place of SPIKE_LOGS, RISE_LOGS."""
    for place, (source, noises) in enumerate(sources(split).items()):
        norm = kind_of(noises[0].signal) == "norm"
        for every, count in (SPIKE_LOGS if spikes is None else spikes).items():
            for index in range(count * NORMS if norm else count):
                random = np.random.default_rng([SEEDS[split], 2, place, every, index])
                yield _with_spikes(random, source, noises[index % len(noises)], every)
        for every, count in ({} if norm else RISE_LOGS if rises is None else rises).items():
            for index in range(count):
                random = np.random.default_rng([SEEDS[split], 3, place, every, index])
                size = RISE_SIZES[index % len(RISE_SIZES)]
                yield _with_late_rise(random, source, noises[index % len(noises)], every, size)


def sources(split: str) -> dict[str, list[Noise]]:
    """Noise by its source. The splits have different runs of this project, and different halves of the others' logs."""
    found: dict[str, list[Noise]] = {}
    for run, signal in load_curves().columns:
        if (run in TUNING_RUNS) == (split == "tune") and not ("article" in run and kind_of(signal) == "norm"):
            found.setdefault(f"this project's {signal}", []).append(_own(run, signal))
    for noise in load_noise():
        half = len(noise.residuals) // 2
        part = noise.residuals[:half] if split == "tune" else noise.residuals[half:]
        found[f"{noise.name} {noise.signal}"] = [noise._replace(residuals=part)]
    return found


def _own(run: str, signal: str) -> Noise:
    values = load_curves()[run, signal].to_numpy()
    residuals, sigma = standardised(np.log(values) if kind_of(signal) == "norm" else values, 31, 101)
    return Noise(run, signal, sigma, residuals[EARLY_RUN:])


def _with_spikes(random: Random, source: str, noise: Noise, every: int) -> Case:
    norm = kind_of(noise.signal) == "norm"
    values = _healthy(random, noise, every * np.arange(1, VALUES + 1), norm)
    kinds = ("gradual", "sharp decay", "bloom") if norm else ("gradual", "sharp decay")
    faults: list[Fault] = []
    start = FIRST_FAULT + int(random.integers(SPACING))
    while True:
        kind = str(random.choice(kinds))
        heights = spike(random, kind)
        heights = as_logged(heights, every, int(random.integers(min(every, len(heights)))))
        sizes = (*SIZES, AS_IT_WAS) if kind == "bloom" else SIZES
        fault = inject(values, noise.sigma, kind, start, float(random.choice(sizes)), heights)
        if fault is None:
            break
        faults.append(fault)
        start = fault.end + SPACING + int(random.integers(SPACING))
    return Case(source, noise.signal, np.exp(values) if norm else values, faults, every)


def _with_late_rise(random: Random, source: str, noise: Noise, every: int, size: int) -> Case:
    start = int(random.integers(ONSET[0], ONSET[1] + 1))
    rise = round(float(np.exp(random.uniform(0, np.log(LONGEST_RISE)))))
    steps = LATE + every * np.arange(1, start + rise + TO_BE_FOUND_IN)
    values = _healthy(random, noise, steps, norm=False)
    fault = inject(values, noise.sigma, "late rise", start, float(size), late_rise(rise, TO_BE_FOUND_IN))
    assert fault is not None
    return Case(source, noise.signal, values, [fault], every, LATE)


def inject(values: Floats, sigma: float, kind: str, start: int, size: float, heights: Floats) -> Fault | None:
    """Add a fault to the values at number ``start`` and after, unless they end too soon for it; returns it."""
    end = start + len(heights) - 1
    if end + SPACING > len(values) and kind != "late rise":
        return None
    peak = BLOOM_HEIGHT if size == AS_IT_WAS else size * sigma
    values[start - 1 : end] += peak * heights
    return Fault(kind, start, end, size, int(np.argmax(heights)), float(peak / sigma * heights.max()))


def _healthy(random: Random, noise: Noise, steps: Steps, norm: bool) -> Floats:
    """Trend and noise, on the scale on which the noise is even: a falling loss in nats, or the logarithm of a norm."""
    if norm:
        trend = random.uniform(-1.5, 1.0) + random.uniform(-0.15, 0.05) * np.log(steps)
    else:
        last, first = random.uniform(2, 4.5), random.uniform(8, 11)
        trend = last + (first - last) * (1 + steps / random.uniform(5, 40)) ** -random.uniform(0.4, 0.8)
    return np.asarray(trend + noise.sigma * bootstrap(random, noise.residuals, len(steps)))
