"""What an arm does over the learning rates: sensitivity, best rate, and the range in which it is stable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.compare.statistics import Effect, mean_over_seeds

NEAR_BEST = 0.05
"""Nats per token above the lowest mean final NLL up to which a rate is in the stable range."""
STABLE = 0.2
"""Nats per token above the lowest final NLL up to which a rate counts as stable."""


@dataclass(frozen=True)
class Sweep:
    """The final NLLs of an arm in a scenario, by rate and seed. That of a run that diverged, or ended higher than it began, is
    the initial loss."""

    rates: tuple[float, ...]
    """Ascending; without rates at which fewer than half as many runs have ended as at others."""
    seeds: tuple[int, ...]
    """Those with a value at any rate."""
    final: Mapping[tuple[float, int], float]
    """Without runs that are missing."""
    stable: Mapping[tuple[float, int], bool]
    """Whether the run finished without a divergence or a stall."""

    @property
    def complete(self) -> tuple[int, ...]:
        """The seeds with a value at every rate, which alone have a sensitivity."""
        return tuple(seed for seed in self.seeds if all((rate, seed) in self.final for rate in self.rates))

    def at(self, rates: Sequence[float]) -> Sweep:
        """The same at some of the rates alone."""
        kept = tuple(rate for rate in self.rates if rate in rates)
        return Sweep(kept, self.seeds, self.final, self.stable)

    def means(self, without: int | None = None) -> dict[float, float]:
        """The mean final NLL at each rate with a run, over all seeds but one; over all if there is no other.

        Where runs are missing, a rate must not gain by a seed that is easy everywhere: each value is taken for the sum of a level
        of its rate and one of its seed, fitted by least squares, and all seeds have the same weight.
        """
        seeds = [seed for seed in self.seeds if seed != without] or list(self.seeds)
        cells = [
            (r, s) for r, rate in enumerate(self.rates) for s, seed in enumerate(seeds) if (rate, seed) in self.final
        ]
        values = np.array([self.final[self.rates[r], seeds[s]] for r, s in cells])
        if len(cells) == len(self.rates) * len(seeds):
            return (
                dict(zip(self.rates, values.reshape(len(self.rates), -1).mean(axis=1).tolist(), strict=True))
                if cells
                else {}
            )
        design = np.zeros((len(cells), len(self.rates) + len(seeds)))
        for row, (r, s) in zip(design, cells, strict=True):
            row[[r, len(self.rates) + s]] = 1
        levels = np.linalg.lstsq(design, values, rcond=None)[0]
        of_seeds = levels[len(self.rates) :].mean()
        return {self.rates[r]: float(levels[r] + of_seeds) for r in sorted({r for r, _ in cells})}

    def best(self, without: int | None = None) -> float | None:
        """The rate with the lowest mean final NLL, over all seeds but one; the lower one of equals. None without a run."""
        means = self.means(without)
        return min(means, key=means.__getitem__) if means else None

    @property
    def inside(self) -> bool:
        """Whether the best rate is neither the lowest nor the highest of the grid."""
        return self.best() in self.rates[1:-1]

    def sensitivity(self) -> dict[int, float]:
        """By complete seed, the mean over the rates of the final NLL minus the lowest: the sensitivity of arXiv 2309.14322, for
        this grid. Empty for a single rate."""
        if len(self.rates) < 2:
            return {}
        finals = {seed: [self.final[rate, seed] for rate in self.rates] for seed in self.complete}
        return {seed: float(np.mean(values) - min(values)) for seed, values in finals.items()}

    def vertices(self) -> dict[int, float]:
        """By complete seed, the best rate between those of the grid: the lowest point of the parabola in the logarithm of the
        rate through the best rate of the grid and its neighbours. A seed whose best rate is at an end of the grid has none."""
        found = {}
        for seed in self.complete:
            values = [self.final[rate, seed] for rate in self.rates]
            place = int(np.argmin(values))
            if 0 < place < len(values) - 1:
                found[seed] = _vertex(self.rates[place - 1 : place + 2], values[place - 1 : place + 2])
        return found

    def best_between(self) -> Effect | None:
        """The geometric mean of :meth:`vertices` with its interval over seeds; None unless every complete seed has one."""
        vertices = self.vertices()
        if not vertices or len(vertices) < len(self.complete):
            return None
        effect = mean_over_seeds(np.log(list(vertices.values())))
        ends = [None if end is None else math.exp(end) for end in (effect.low, effect.high)]
        return Effect(math.exp(effect.mean), ends[0], ends[1], None, None, effect.n, effect.clusters)

    def stable_range(self) -> tuple[float, float] | None:
        """The lowest and the highest of the rates around the best one, without a gap, whose mean final NLL is within NEAR_BEST
        of the lowest."""
        if (best := self.best()) is None:
            return None
        means = self.means()
        rates, limit = list(means), means[best] + NEAR_BEST
        low = high = rates.index(best)
        while low > 0 and means[rates[low - 1]] <= limit:
            low -= 1
        while high < len(rates) - 1 and means[rates[high + 1]] <= limit:
            high += 1
        return rates[low], rates[high]

    def largest_stable(self) -> float | None:
        """The highest rate up to which, from the best one on, no seed diverged or stalled and the mean final NLL is within STABLE
        of the lowest. None if a seed fails at the best rate already."""
        if (best := self.best()) is None:
            return None
        means, found = self.means(), None
        for rate in self.rates[self.rates.index(best) :]:
            there = [seed for seed in self.seeds if (rate, seed) in self.final]
            if means.get(rate, math.inf) > means[best] + STABLE or not all(self.stable[rate, seed] for seed in there):
                break
            found = rate
        return found


def _vertex(rates: Sequence[float], values: Sequence[float]) -> float:
    """The lowest point of the parabola through three points in the logarithm of the rate, of which the middle one is lowest."""
    (x0, x1, x2), (y0, y1, y2) = np.log(rates), values
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    if curvature <= 0:  # three equal values
        return rates[1]
    return math.exp(min(max((x0 + x1) / 2 - left / (2 * curvature), x0), x2))
