"""How often the statistics of arms over seeds are right: simulated runs with known differences, through the functions themselves.

    python -m benchmarks.coverage [--out DIR] [--experiments N]

An experiment is two arms (or a family of them) of S seeds each. analysis.compare.seeds and analysis.compare.rates judge it, and
what is counted is how often their interval holds the true value, and how often they claim a difference where there is one and
where there is none. Intervals of shares and rates, whose outcomes can be listed, are not simulated but summed over all outcomes.
Prints the tables and, with --out, writes DIR/coverage.md.

Shapes: X experiments, S seeds, O observations of a seed, A arms, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binom, poisson

from analysis.compare.rates import OVER_RUNS, Proportion, Rate, poisson_rate, proportion
from analysis.compare.seeds import (
    MOST_FOR_T,
    Difference,
    adjusted,
    hierarchical_bootstrap,
    paired,
    smallest_shown,
    verdict,
)
from analysis.compare.statistics import RESAMPLES, Effect, mean_over_seeds
from analysis.show.tables import markdown_table
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_text

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

SEED = 20_260
EXPERIMENTS = 10_000
SLOW = 5
"""Of experiments that take many calls there are as many times fewer."""
SEEDS = (3, 5, 8, 12, 20)
TRUE = 0.5
"""The true difference of the arms, in standard deviations of one run's noise."""
SHARED = 3.0
"""Standard deviation of what the runs of one seed share, in the same unit."""
EFFECTS = (0.5, 1.0, 2.0, 3.0)
"""True differences whose power is shown, in standard deviations of the paired differences."""
ARMS = 8
OBSERVATIONS = 4
PAGE = "coverage.md"


def normal(random: np.random.Generator, size: tuple[int, ...]) -> Floats:
    """Standard normal noise."""
    return random.standard_normal(size)


def heavy(random: np.random.Generator, size: tuple[int, ...]) -> Floats:
    """Student's t with three degrees of freedom, scaled to variance 1."""
    return random.standard_t(3, size) / math.sqrt(3)


def skewed(random: np.random.Generator, size: tuple[int, ...]) -> Floats:
    """A lognormal with sigma 1 (skewness 6.2), shifted to mean 0 and scaled to variance 1."""
    return (random.lognormal(size=size) - math.exp(0.5)) / math.sqrt(math.e * (math.e - 1))


def none(_: np.random.Generator, size: tuple[int, ...]) -> Floats:
    """No noise."""
    return np.zeros(size)


@dataclass(frozen=True)
class Noise:
    """How the runs of two arms vary beyond the true difference."""

    arm: Draw
    baseline: Draw
    shared: bool = True
    """Whether runs of one seed share an effect; otherwise each run has one of its own, as large."""

    def draw(self, random: np.random.Generator, experiments: int, seeds: int) -> tuple[Floats, Floats]:
        """(X, S) each: the values of the arm and of the baseline."""
        size = (experiments, seeds)
        effect_XS = SHARED * random.standard_normal(size)
        other_XS = effect_XS if self.shared else SHARED * random.standard_normal(size)
        return TRUE + effect_XS + self.arm(random, size), other_XS + self.baseline(random, size)

    @property
    def spread(self) -> float:
        """Standard deviation of the difference of two runs of one seed."""
        variances = [0.0 if side is none else 1.0 for side in (self.arm, self.baseline)]
        return math.sqrt(sum(variances) + (0 if self.shared else 2 * SHARED**2))


NOISES = {
    "normal": Noise(normal, normal),
    "normal, seeds share nothing": Noise(normal, normal, shared=False),
    "heavy-tailed (t3)": Noise(heavy, heavy),
    "skewed (lognormal) in both arms": Noise(skewed, skewed),
    "skewed in one arm alone": Noise(skewed, none),
}


def runs(value_S: Floats, first: int = 0) -> dict[int, float]:
    """Values by seed."""
    return dict(enumerate(value_S.tolist(), start=first))


@dataclass(frozen=True)
class Intervals:
    """The intervals of many experiments about ``true``."""

    low_X: Floats
    high_X: Floats
    true: float

    @property
    def coverage(self) -> float:
        """How often the interval holds the true value."""
        return float(np.mean((self.low_X <= self.true) & (self.true <= self.high_X)))

    def power(self, effect: float | Floats) -> float:
        """How often the interval would exclude zero if the true value were ``effect``: intervals move with the data."""
        move = effect - self.true
        return float(np.mean((self.low_X + move > 0) | (self.high_X + move < 0)))


def intervals(effects: Sequence[Effect], true: float = TRUE) -> Intervals:
    """The intervals of effects, which all have one."""
    ends_X2 = np.array([(each.low, each.high) for each in effects], dtype=np.float64)
    return Intervals(ends_X2[:, 0], ends_X2[:, 1], true)


def judged(arm_XS: Floats, baseline_XS: Floats) -> list[Difference]:
    """``paired`` of each experiment, each with random numbers of its own."""
    both = zip(arm_XS, baseline_XS, strict=True)
    return [paired(runs(arm_S), runs(baseline_S), seed=x) for x, (arm_S, baseline_S) in enumerate(both)]


def percentile_intervals(value_XS: Floats, true: float, random: np.random.Generator) -> Intervals:
    """The percentile bootstrap of the mean: between the 2.5th and 97.5th percentile of resampled means."""
    seeds, parts = value_XS.shape[1], []
    for start in range(0, len(value_XS), 500):
        count_RS = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
        mean_XR = value_XS[start : start + 500] @ count_RS.T / seeds
        parts.append(np.quantile(mean_XR, [0.025, 0.975], axis=1))
    low_X, high_X = np.concatenate(parts, axis=1)
    return Intervals(low_X, high_X, true)


# ----------------------------------------------------------------------------------------------------------- differences


@dataclass(frozen=True)
class Cell:
    """What came of one kind of noise and number of seeds."""

    found: Intervals
    students_t: Intervals
    """Whatever the number of seeds."""
    percentile: Intervals
    smallest: float
    """The true difference that ``Effect.smallest`` estimates: its factor times the true standard error."""
    spread: float


def cells(experiments: int) -> dict[tuple[str, int], Cell]:
    """Each kind of noise with each number of seeds."""
    table = {}
    for kind, (name, noise) in enumerate(NOISES.items()):
        for seeds in SEEDS:
            random = np.random.default_rng((SEED, 0, kind, seeds))
            arm_XS, baseline_XS = noise.draw(random, experiments, seeds)
            differences = judged(arm_XS, baseline_XS)
            effects = [each.effect for each in differences]
            one = effects[0]
            by_t = effects if seeds <= MOST_FOR_T else [mean_over_seeds(each_S) for each_S in arm_XS - baseline_XS]
            assert one.smallest is not None and one.standard_error is not None
            table[name, seeds] = Cell(
                intervals(effects),
                intervals(by_t),
                percentile_intervals(arm_XS - baseline_XS, TRUE, random),
                one.smallest / one.standard_error * noise.spread / math.sqrt(seeds),
                noise.spread,
            )
    return table


def coverage_tables(table: Mapping[tuple[str, int], Cell]) -> str:
    """Coverage of the intervals and of the percentile bootstrap, and power."""

    def by_noise(heading: str, value: Callable[[Cell], float]) -> str:
        rows = [[name, *(f"{value(table[name, seeds]):.3f}" for seeds in SEEDS)] for name in NOISES]
        return markdown_table([heading, *(f"{seeds} seeds" for seeds in SEEDS)], rows)

    power = []
    for seeds in SEEDS:
        cell = table["normal", seeds]
        shown = [f"{cell.found.power(effect * cell.spread):.3f}" for effect in (0.0, *EFFECTS)]
        power.append([str(seeds), *shown, f"{cell.smallest / cell.spread:.2f}"])
    header = ["seeds, normal noise", "0", *(f"{effect:g} s_d" for effect in EFFECTS), "80% power at, s_d"]
    return "\n".join(
        [
            by_noise("coverage of the 95% interval", lambda cell: cell.found.coverage),
            by_noise("coverage of Student's t alone", lambda cell: cell.students_t.coverage),
            by_noise("coverage of a percentile bootstrap", lambda cell: cell.percentile.coverage),
            by_noise("shown at the true smallest effect", lambda cell: cell.found.power(cell.smallest)),
            markdown_table(header, power),
        ]
    )


def pairing_table(experiments: int) -> str:
    """The baseline against itself: runs of the same seeds, and of others, as a control has them (A/A)."""
    rows = []
    for seeds in SEEDS[:-1]:
        random = np.random.default_rng((SEED, 1, seeds))
        arm_XS, baseline_XS = NOISES["normal"].draw(random, experiments, seeds)
        _, other_XS = NOISES["normal"].draw(random, experiments, seeds)
        others = [(seed, seed + 100) for seed in range(seeds)]
        same = judged(arm_XS - TRUE, baseline_XS)
        control = [
            paired(runs(arm_S), runs(other_S, first=100), others, seed=x)
            for x, (arm_S, other_S) in enumerate(zip(arm_XS - TRUE, other_XS, strict=True))
        ]
        row = [str(seeds)]
        for differences in (same, control):
            found = intervals([each.effect for each in differences], 0.0)
            removed = float(
                np.median([each.variance_removed for each in differences if each.variance_removed is not None])
            )
            width = float(np.median(found.high_X - found.low_X))
            row += [f"{1 - found.coverage:.3f}", f"{width:.2f}", f"{removed:.2f}"]
        rows.append(row)
    columns = ["claimed", "width", "variance removed"]
    header = ["A/A, seeds", *(f"{name}, {kind}" for kind in ("same seeds", "other seeds") for name in columns)]
    return markdown_table(header, rows)


def family_table(experiments: int) -> str:
    """Eight arms of which none differs from their common baseline, and then one of them, by ``smallest_shown``."""
    rows = []
    count = max(1, experiments // SLOW)
    for seeds in SEEDS[:-1]:
        random = np.random.default_rng((SEED, 2, seeds))
        any_single = any_holm = single = shown = 0
        for x in range(count):
            shared_S, value_AS = SHARED * normal(random, (seeds,)), normal(random, (ARMS + 1, seeds))
            baseline, *arms = (runs(shared_S + value_S) for value_S in value_AS)
            found = {f"arm {a}": paired(arm, baseline, seed=x) for a, arm in enumerate(arms)}
            holm = adjusted(found)
            any_single += any(claimed(each, each.p) for each in found.values())
            any_holm += any(claimed(each, holm[name]) for name, each in found.items())
            first = found["arm 0"]
            error = first.effect.standard_error
            needed = smallest_shown(first, ARMS)
            assert error is not None and needed is not None
            effect = needed / error * math.sqrt(2 / seeds)  # the true standard error in place of the estimated one
            found["arm 0"] = raised = paired(
                {seed: value + effect for seed, value in arms[0].items()}, baseline, seed=x
            )
            single += claimed(raised, raised.p)
            shown += claimed(raised, adjusted(found)["arm 0"])
        shares = [f"{number / count:.3f}" for number in (any_single, any_holm, single, shown)]
        rows.append([str(seeds), *shares, f"{effect / math.sqrt(2):.2f}", str(count)])
    header = [f"family of {ARMS}, seeds", "any false claim, each alone", "any false claim, Holm"]
    header += ["one that differs, alone", "one that differs, Holm", "it differs by, s_d", "families"]
    return markdown_table(header, rows)


def claimed(difference: Difference, p: float | None) -> bool:
    """Whether the verdict claims a difference."""
    return p is not None and verdict(difference, p) in ("higher", "lower")


def hierarchy_table(experiments: int) -> str:
    """Several observations of each seed, with seed effects as large as the noise of an observation, and with none."""
    rows = []
    for seeds in SEEDS[1:]:
        count = experiments if seeds <= MOST_FOR_T else max(1, experiments // SLOW)
        row = [str(seeds)]
        for kind, effect in enumerate((1.0, 0.0)):
            random = np.random.default_rng((SEED, 3, seeds, kind))
            value_XSO = TRUE + effect * normal(random, (count, seeds, 1)) + normal(random, (count, seeds, OBSERVATIONS))
            found = [hierarchical_bootstrap(list(value_SO), seed=x) for x, value_SO in enumerate(value_XSO)]
            naive = percentile_intervals(value_XSO.reshape(count, -1), TRUE, random)
            row += [f"{intervals(found).coverage:.3f}", f"{naive.coverage:.3f}"]
        rows.append([*row, str(count)])
    header = [f"{OBSERVATIONS} observations a seed, seeds", "seeds differ", "seeds differ, pooled"]
    return markdown_table([*header, "seeds are alike", "seeds are alike, pooled", "experiments"], rows)


# ------------------------------------------------------------------------------------------------------ shares and rates


def share_coverage(n: int, shares: Floats) -> tuple[Floats, Floats]:
    """How often the interval, and the one-sided limit, of k of ``n`` holds each true share: summed over all k."""
    found = [proportion(k, n) for k in range(n + 1)]
    return _summed(found, binom.pmf(np.arange(n + 1)[:, None], n, shares), shares)


def rate_coverage(expected: Floats) -> tuple[Floats, Floats]:
    """The same of a Poisson rate with each number of ``expected`` events."""
    most = int(poisson.isf(1e-12, expected.max()))
    found = [poisson_rate(k, 1.0) for k in range(most + 1)]
    return _summed(found, poisson.pmf(np.arange(most + 1)[:, None], expected), expected)


def _summed(found: Sequence[Proportion | Rate], chance: Floats, true: Floats) -> tuple[Floats, Floats]:
    low, high, at_most = np.array([(each.low, each.high, each.at_most) for each in found]).T[:, :, None]
    within, below = (low <= true) & (true <= high), true <= at_most
    return (chance * within).sum(axis=0), (chance * below).sum(axis=0)


def exact_table() -> str:
    """The lowest, mean and highest coverage of the exact intervals over a grid of true values."""
    shares = np.arange(1, 1000) / 1000
    cases = {f"share of {n}": share_coverage(n, shares) for n in (3, 5, 8, 20, 100)}
    for low, high in ((0.1, 1.0), (1.0, 10.0), (10.0, 100.0)):
        cases[f"rate, {low:g} to {high:g} events expected"] = rate_coverage(np.geomspace(low, high, 1000))
    rows = []
    for name, (two_sided, one_sided) in cases.items():
        numbers = [two_sided.min(), two_sided.mean(), two_sided.max(), one_sided.min(), one_sided.mean()]
        rows.append([name, *(f"{number:.3f}" for number in numbers)])
    header = [
        "coverage of exact intervals",
        "lowest",
        "mean",
        "highest",
        "one-sided limit, lowest",
        "one-sided limit, mean",
    ]
    return markdown_table(header, rows)


def clustered_counts(random: np.random.Generator, size: tuple[int, ...], mean: float, dispersion: float) -> Floats:
    """Counts with that mean and variance / mean: Poisson, of rates that differ between runs like a gamma distribution."""
    if dispersion == 1:
        return random.poisson(mean, size).astype(np.float64)
    return random.poisson(random.gamma(mean / (dispersion - 1), dispersion - 1, size)).astype(np.float64)


def cluster_table(experiments: int) -> str:
    """Counts of runs: the interval that knows the runs, beside that of one long run."""
    rows = []
    numbers = (3, 5, 8, 20)
    for case, (mean, dispersion) in enumerate((mean, dispersion) for mean in (1.0, 5.0) for dispersion in (1, 2, 5)):
        with_runs, as_one = [], []
        widened = 0
        for seeds in numbers:
            random = np.random.default_rng((SEED, 4, case, seeds))
            count_XS = clustered_counts(random, (experiments, seeds), mean, dispersion)
            found = [poisson_rate(count_S, np.ones(seeds)) for count_S in count_XS]
            alone = {total: poisson_rate(total, seeds) for total in np.unique(count_XS.sum(axis=1))}
            with_runs.append(f"{np.mean([each.low <= mean <= each.high for each in found]):.3f}")
            ends = [alone[total] for total in count_XS.sum(axis=1)]
            as_one.append(f"{np.mean([each.low <= mean <= each.high for each in ends]):.3f}")
            widened += sum(each.method == OVER_RUNS for each in found)
        name = f"mean {mean:g}, variance / mean {dispersion}"
        rows.append([name, *with_runs, *as_one, f"{widened / experiments / len(numbers):.2f}"])
    header = ["events a run", *(f"{n} runs" for n in numbers), *(f"{n} runs as one" for n in numbers), "widened"]
    return markdown_table(header, rows)


def report(experiments: int) -> Iterator[str]:
    """All tables, as soon as each is there."""
    yield f"Seed {SEED}, {experiments:,} experiments a cell unless a column says otherwise.\n"
    yield coverage_tables(cells(experiments))
    yield pairing_table(experiments)
    yield family_table(experiments)
    yield hierarchy_table(experiments)
    yield exact_table()
    yield cluster_table(experiments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(
        prog="python -m benchmarks.coverage", description="How often intervals over seeds are right."
    )
    parser.add_argument("--out", type=Path, help=f"folder for {PAGE}")
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS, help="simulated experiments a cell")
    options = parser.parse_args(arguments)
    if options.experiments < 1:
        raise InputError(f"--experiments: must be at least 1, but is {options.experiments}")
    parts = []
    for part in report(options.experiments):
        parts.append(part)
        print(part, flush=True)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        write_text(options.out / PAGE, "\n".join(parts))


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
