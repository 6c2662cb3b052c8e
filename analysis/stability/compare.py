"""Arms against the baseline, paired by seed, with intervals and Holm's adjustment; and what each arm does by itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.compare.rates import (
    FEWEST_SEEDS,
    MOST_FLIPPED,
    Proportion,
    Rate,
    least_p,
    mcnemar,
    rate_over_seeds,
    share_over_seeds,
    sign_flip,
)
from analysis.compare.seeds import ALL_EQUAL, Difference, adjusted, number_of_tests, paired, smallest_shown, verdict
from analysis.compare.statistics import CONFIDENCE, holm

from .curve import median_duration
from .measure import BY_KEY, MEASURES, Measure, Measured, measure, measure_unbegun, update_size
from .runs import Cell, Comparison
from .spikes import PUBLISHED
from .stresses import DAMAGES, damage
from .sweep import Sweep

PRIMARY = "final_nll"
"""The measure that conclusions rest on."""
NO_DIFFERENCE, TOO_FEW_SEEDS = "no difference shown", "too few seeds"
"""Verdicts where nothing is shown; where nothing could be, whatever the runs had done."""
OWN_BEST = "own best rate"
"""Each arm at the rate that is best for it on the other seeds."""
COMMON = "baseline's best rate"
"""All arms at the rate that is best for the baseline, over all seeds."""
ALL_RATES = "all rates"
"""Each seed's mean over the rates at which both arms have a value."""
POOLED = ("spikes_nll", "excess")
"""Measures that are compared over all rates too."""
SENSITIVITY = Measure("sensitivity", "sensitivity", ".4f", "nats/token", "lower",
                      "mean over the rates of the final NLL minus the lowest (arXiv 2309.14322)")  # fmt: skip
ALL_MEASURES = {**BY_KEY, **{entry.key: entry for entry in (*DAMAGES, SENSITIVITY)}}
YES_OR_NO = ("survived", "diverged", "capped", "back")
"""Measures that are compared as shares."""
_NOT_COMPARED = ("steps", "initial_nll", "recovery", *YES_OR_NO)
"""Not an outcome; or infinite where it was not seen, so that it has no mean."""
COMPARED = tuple(m.key for m in (*MEASURES, *DAMAGES) if m.form != "s" and m.key not in _NOT_COMPARED)
"""Measures of which arms are compared."""


@dataclass(frozen=True)
class Row:
    """One arm against the baseline in one measure."""

    scenario: str
    basis: str
    """At which rate: OWN_BEST, COMMON or "rate 0.001"."""
    measure: Measure
    arm: str
    control: bool
    """Whether it is the A/A control, which is adjusted for no other arm."""
    difference: Difference
    adjusted: float
    """p-value by Holm over all arms with enough pairs; NaN without one."""
    smallest: float | None
    """Smallest true difference that would be claimed with 80% power."""
    verdict: str
    """better or worse; lower or higher, where neither side is good; or what else may be said."""

    @property
    def alike(self) -> str | None:
        """better or worse, if it is that by the same amount in all of several seeds, which leaves no interval."""
        return alike(self.measure, self.difference)

    @property
    def null(self) -> bool:
        """Whether no difference is shown: by the interval and the adjusted p-value."""
        low, high = self.difference.effect.low, self.difference.effect.high
        return low is None or high is None or low <= 0 <= high or self.adjusted > 1 - CONFIDENCE


@dataclass(frozen=True)
class Share:
    """How many runs of an arm a yes-or-no measure holds for, at one rate or at all."""

    scenario: str
    rate: str
    """As a number, or "all"."""
    measure: Measure
    arm: str
    share: Proportion
    baseline: Proportion
    p: float
    """Over pairs of seeds: McNemar's exact test at one rate; over several, from FEWEST_SEEDS on, the exact test that flips signs
    of the differences of the seeds' shares, and beyond MOST_FLIPPED Student's t. NaN without one, and for the baseline itself."""
    adjusted: float
    """By Holm over the arms; the control's is its own."""
    verdict: str
    """better or worse; either of these "in all", as a row's alike; TOO_FEW_SEEDS if even the least p-value that so many seeds can
    have would show nothing; otherwise NO_DIFFERENCE. Empty for the baseline."""


@dataclass(frozen=True)
class Noise:
    """A standard deviation over seeds."""

    deviation: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Finals:
    """The final NLLs of an arm in a scenario at a rate."""

    arm: str
    scenario: str
    rate: float | None
    seeds: int
    mean: float
    lowest: float
    highest: float
    noise: Noise | None
    """Over the seeds; None from a single one."""


@dataclass(frozen=True)
class Study:
    """All measured runs, and what they show."""

    comparison: Comparison
    measured: Mapping[Cell, Measured]

    @cached_property
    def sweeps(self) -> dict[tuple[str, str], Sweep]:
        """By arm and scenario."""
        one = self.comparison
        return {(arm, scenario): self._sweep(arm, scenario) for arm in one.arms for scenario in one.scenarios}

    def values(self, key: str, arm: str, scenario: str, rate: float | None) -> dict[int, float]:
        """A measure of the runs of an arm at a rate, by seed; without what was not measured."""
        runs = self._by_place.get((arm, scenario, rate), {})
        return {cell.seed: float(value) for cell, one in runs.items() if (value := one.values.get(key)) is not None}

    @cached_property
    def _by_place(self) -> dict[tuple[str, str, float | None], dict[Cell, Measured]]:
        """The measured runs by arm, scenario and rate."""
        found: dict[tuple[str, str, float | None], dict[Cell, Measured]] = {}
        for cell, one in self.measured.items():
            found.setdefault(cell[:3], {})[cell] = one
        return found

    def rate_of(self, arm: str, scenario: str, seed: int | None) -> float | None:
        """The best rate of an arm for a run of ``seed``, chosen without that seed (None: over all). It is chosen in the calm
        scenario, or in the scenario itself if that has no runs at this rate."""
        place = (arm, scenario, seed)
        if place not in self._chosen:
            rates = self.comparison.rates(arm, scenario)
            best = self.sweeps[arm, self.comparison.calm].best(seed)
            if best not in rates:
                best = self.sweeps[arm, scenario].best(seed) if len(rates) > 1 else (rates or [None])[0]
            self._chosen[place] = best
        return self._chosen[place]

    @cached_property
    def _chosen(self) -> dict[tuple[str, str, int | None], float | None]:
        """What :meth:`rate_of` has found."""
        return {}

    def at_own_best(self, key: str, arm: str, scenario: str) -> dict[int, float]:
        """By seed, a measure at the rate that is best for the arm on the other seeds."""
        found = {}
        for seed in self.comparison.seeds(arm):
            values = self.values(key, arm, scenario, self.rate_of(arm, scenario, seed))
            if seed in values:
                found[seed] = values[seed]
        return found

    def bases(self, scenario: str) -> list[str]:
        """The rates at which arms are compared in a scenario: only one, if there is none to choose."""
        one = self.comparison
        rates = one.rates(one.baseline, scenario)
        if len(rates) > 1:
            return [OWN_BEST, COMMON, *(_at(rate) for rate in rates)]
        return [COMMON] if self.stress_basis(scenario) == COMMON else [OWN_BEST, COMMON]

    def stress_basis(self, scenario: str) -> str:
        """At which rates arms are compared under a stress: all at one, unless they have rates of their own."""
        one = self.comparison
        rates = one.rates(one.baseline, scenario)
        return COMMON if all(one.rates(arm, scenario) in ([], rates) for arm in one.compared) else OWN_BEST

    def basis_text(self, scenario: str, basis: str) -> str:
        """The basis in words: a single rate need not be the best one, and is named."""
        rates = self.comparison.rates(self.comparison.baseline, scenario)
        return _at(rates[0]) if basis == COMMON and len(rates) == 1 and rates[0] is not None else basis

    def on(self, basis: str, key: str, arm: str, scenario: str) -> dict[int, float]:
        """A measure of an arm by seed, at the rate that ``basis`` names."""
        if basis == OWN_BEST:
            return self.at_own_best(key, arm, scenario)
        rate = self.rate_of(self.comparison.baseline, scenario, None)
        if basis != COMMON:
            rates = self.comparison.rates(self.comparison.baseline, scenario)
            rate = next(rate for rate in rates if _at(rate) == basis)
        return self.values(key, arm, scenario, rate)

    def rows(self, scenario: str, basis: str, key: str) -> list[Row]:
        """Each arm against the baseline; empty if the baseline has no such values."""
        if basis == ALL_RATES:
            return self._pooled_rows(scenario, key)
        base = self.on(basis, key, self.comparison.baseline, scenario)
        values = {arm: self.on(basis, key, arm, scenario) for arm in self.comparison.compared}
        found = {arm: paired(own, base, self.comparison.pairs(arm, scenario)) for arm, own in values.items()}
        return self._rows(scenario, basis, ALL_MEASURES[key], found) if base else []

    def _pooled_rows(self, scenario: str, key: str) -> list[Row]:
        both = {arm: self._common(key, arm, scenario, "all") for arm in self.comparison.compared}
        found = {arm: paired(_means(own), _means(base)) for arm, (own, base) in both.items()}
        known = any(own for own, _ in both.values())
        return self._rows(scenario, ALL_RATES, ALL_MEASURES[key], found) if known else []

    def sensitivity_rows(self, scenario: str) -> list[Row]:
        """Each arm's sensitivity to the learning rate against the baseline's, at the rates that it has in common with it."""
        base, found = self.sweeps[self.comparison.baseline, scenario], {}
        for arm in self.comparison.compared:
            own = self.sweeps[arm, scenario]
            values = own.at(base.rates).sensitivity(), base.at(own.rates).sensitivity()
            found[arm] = paired(*values, self.comparison.pairs(arm, scenario))
        return self._rows(scenario, ALL_RATES, SENSITIVITY, found) if base.sensitivity() else []

    def _rows(self, scenario: str, basis: str, entry: Measure, found: Mapping[str, Difference]) -> list[Row]:
        control = self.comparison.control
        others = {arm: difference for arm, difference in found.items() if arm != control}
        p_values = adjusted(others)
        rows = []
        for arm, difference in found.items():
            alone = arm == control
            p = (math.nan if difference.p is None else difference.p) if alone else p_values[arm]
            tests = 1 if alone else number_of_tests(others.values())
            said = entry.verdict(verdict(difference, p, tests=tests))
            rows.append(Row(scenario, basis, entry, arm, alone, difference, p, smallest_shown(difference, tests), said))
        return rows

    def _sweep(self, arm: str, scenario: str) -> Sweep:
        planned = [rate for rate in self.comparison.rates(arm, scenario) if rate is not None and rate > 0]
        final = {rate: self.values(PRIMARY, arm, scenario, rate) for rate in planned}
        most = max((len(own) for own in final.values()), default=0)
        rates = tuple(rate for rate in planned if final[rate] and 2 * len(final[rate]) >= most)
        survived = {rate: self.values("survived", arm, scenario, rate) for rate in rates}
        places = [(rate, seed) for rate in rates for seed in final[rate]]
        return Sweep(
            rates,
            tuple(sorted({seed for _, seed in places})),
            {(rate, seed): final[rate][seed] for rate, seed in places},
            {(rate, seed): survived[rate][seed] > 0 for rate, seed in places},
        )

    def of(self, arm: str, scenario: str, rate: float | str | None = "all") -> dict[Cell, Measured]:
        """The measured runs of an arm in a scenario, at one rate or all."""
        places = [(arm, scenario, each) for each in self.comparison.rates(arm, scenario) if rate in ("all", each)]
        return {cell: one for place in places for cell, one in self._by_place.get(place, {}).items()}

    def share(self, key: str, arm: str, scenario: str, rate: float | str | None = "all") -> Proportion | None:
        """The share of runs of which a yes-or-no measure holds; None without a run that has it."""
        outcomes: dict[int, list[bool]] = {}
        for cell, one in self.of(arm, scenario, rate).items():
            if (value := one.values.get(key)) is not None:
                outcomes.setdefault(cell.seed, []).append(bool(value))
        return share_over_seeds(outcomes) if outcomes else None

    def shares(self, key: str, scenario: str, rate: float | str | None = "all") -> list[Share]:
        """Every arm's share of runs, and the test against the baseline's; empty if the baseline has none."""
        one = self.comparison
        base = self.share(key, one.baseline, scenario, rate)
        if base is None:
            return []
        entry, place = ALL_MEASURES[key], rate if isinstance(rate, str) else "recipe's" if rate is None else f"{rate:g}"
        shares = {arm: own for arm in one.arms if (own := self.share(key, arm, scenario, rate)) is not None}
        tests = {arm: self._share_test(key, arm, scenario, rate) for arm in shares if arm != one.baseline}
        p_values = {arm: p for arm, (p, _) in tests.items()}
        least = {arm: math.nan if math.isnan(p) else least_p(tests[arm][1].n) for arm, p in p_values.items()}
        p_adjusted, least = self._holm(p_values), self._holm(least)
        found = [Share(scenario, place, entry, one.baseline, base, base, math.nan, math.nan, "")]
        for arm, (p, difference) in tests.items():
            said = _of_share(entry, difference, p_adjusted[arm], least[arm])
            found.append(Share(scenario, place, entry, arm, shares[arm], base, p, p_adjusted[arm], said))
        return found

    def _holm(self, p_values: Mapping[str, float]) -> dict[str, float]:
        """p-values by arm adjusted by Holm's method; the control's stays its own."""
        others = [arm for arm in p_values if arm != self.comparison.control]
        return {**p_values, **dict(zip(others, holm([p_values[arm] for arm in others]).tolist(), strict=True))}

    def _share_test(self, key: str, arm: str, scenario: str, rate: float | str | None) -> tuple[float, Difference]:
        """The p-value of a share, and how it differs from the baseline's over seeds."""
        own, base = self._common(key, arm, scenario, rate)
        if not own:
            return math.nan, paired({}, {})
        mean, base_mean = _means(own), _means(base)
        difference = paired(mean, base_mean)
        if all(len(values) == 1 for values in own.values()):
            sides = ({seed: values[0] > 0 for seed, values in side.items()} for side in (own, base))
            return mcnemar(*sides), difference
        if len(own) < FEWEST_SEEDS:
            return math.nan, difference
        if len(own) <= MOST_FLIPPED:
            return sign_flip([mean[seed] - base_mean[seed] for seed in own]), difference
        return least_p(len(own)) if difference.p is None else difference.p, difference

    def _common(
        self, key: str, arm: str, scenario: str, rate: float | str | None
    ) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
        """By the arm's seeds the values of a measure at the rates at which both it and the baseline's paired run have one: its
        own and the baseline's."""
        pairs = dict(self.comparison.pairs(arm))
        own: dict[int, list[float]] = {}
        base: dict[int, list[float]] = {}
        for cell, one in self.of(arm, scenario, rate).items():
            partner = cell._replace(arm=self.comparison.baseline, seed=pairs.get(cell.seed, cell.seed))
            values = one.values.get(key), self.measured[partner].values.get(key) if partner in self.measured else None
            if values[0] is not None and values[1] is not None:
                own.setdefault(cell.seed, []).append(float(values[0]))
                base.setdefault(cell.seed, []).append(float(values[1]))
        return own, base

    def spike_rate(self, signal: str, arm: str, scenario: str) -> Rate | None:
        """Spikes per step by the default rule over all runs; None if no step was judged."""
        return spikes_per_step(signal, self.of(arm, scenario))

    def recovery(self, arm: str, scenario: str) -> tuple[float, int, int]:
        """Median steps until a loss spike is over (Kaplan-Meier over all spikes of all runs), the spikes, and those that were
        not over when their run ended."""
        spikes = [spike for one in self.of(arm, scenario).values() for spike in one.recovered]
        median = median_duration([spike.steps for spike in spikes], [spike.back for spike in spikes])
        return median, len(spikes), sum(not spike.back for spike in spikes)

    def time_back(self, arm: str, scenario: str) -> tuple[list[float], list[bool]]:
        """For each stressed run the steps until it was back at its calm partner, and whether that was seen. A run that diverged
        counts as not back to the end."""
        values = [one.values for one in self.of(arm, scenario).values() if one.values.get("back_steps") is not None]
        return [float(one["back_steps"]) for one in values], [bool(one["back"]) for one in values]

    def finals(self, arm: str, scenario: str, rate: float | None) -> Finals | None:
        """The final NLLs of an arm at a rate, over its seeds; None without any."""
        values = list(self.values(PRIMARY, arm, scenario, rate).values())
        if not values:
            return None
        noise = noise_of(values) if len(values) > 1 else None
        return Finals(arm, scenario, rate, len(values), statistics.fmean(values), min(values), max(values), noise)

    def noise_of_baseline(self) -> Noise | None:
        """How much the baseline's final NLL varies over seeds, without a stress at its best rate; None from fewer than two."""
        one = self.comparison
        finals = self.finals(one.baseline, one.calm, self.rate_of(one.baseline, one.calm, None))
        return None if finals is None else finals.noise


def alike(measure: Measure, difference: Difference) -> str | None:
    """better or worse, if a measure is that by the same amount in all of FEWEST_SEEDS seeds or more; otherwise None."""
    effect = difference.effect
    if difference.method != ALL_EQUAL or difference.n < FEWEST_SEEDS or not effect.mean:
        return None
    return measure.verdict("higher" if effect.mean > 0 else "lower")


def _of_share(measure: Measure, difference: Difference, p: float, least: float) -> str:
    """The verdict of a share, by its adjusted p-value and the least that it could have."""
    if p <= 1 - CONFIDENCE:
        return measure.verdict("higher" if difference.effect.mean > 0 else "lower")
    if (side := alike(measure, difference)) is not None:
        return f"{side} in all"
    return NO_DIFFERENCE if least <= 1 - CONFIDENCE else TOO_FEW_SEEDS


def spikes_per_step(signal: str, runs: Mapping[Cell, Measured]) -> Rate | None:
    """Spikes per step by the default rule over these runs, with the seeds as units; None if no step was judged."""
    counts: dict[int, list[tuple[int, float]]] = {}
    for cell, one in runs.items():
        if one.spikes[signal].steps:
            counts.setdefault(cell.seed, []).append((len(one.spikes[signal].found), one.spikes[signal].steps))
    return rate_over_seeds(counts) if counts else None


def _means(values: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {seed: statistics.fmean(own) for seed, own in values.items()}


def noise_of(values: Sequence[float]) -> Noise:
    """The standard deviation of two values or more, with its 95% interval, which takes them for normal."""
    from scipy.stats import chi2

    freedom, deviation = len(values) - 1, statistics.stdev(values)
    tail = (1 - CONFIDENCE) / 2
    low, high = (deviation * math.sqrt(freedom / float(chi2.ppf(share, freedom))) for share in (1 - tail, tail))
    return Noise(deviation, low, high, len(values))


def study(comparison: Comparison, rules: Sequence[str] = PUBLISHED) -> Study:
    """Measure all runs; ``rules``: as of :func:`measure`."""
    measured = {cell: measure(run, comparison.parent(run), rules) for cell, run in comparison.runs.items()}
    seeds = {arm: dict(comparison.pairs(arm)) for arm in comparison.arms}
    for cell, run in comparison.runs.items():
        other = cell._replace(arm=comparison.baseline, seed=seeds[cell.arm].get(cell.seed, cell.seed))
        if other in comparison.runs:
            measured[cell].values["update_size"] = update_size(run, comparison.runs[other])
    for cell, one in comparison.unbegun.items():
        last = int(one.like.setting("train", "steps") or one.like.metrics.index[-1])
        measured[cell] = measure_unbegun(one.parent, comparison.parent(one.parent), one.step, last)
    for cell, own in measured.items():
        if (partner := comparison.partner(cell)) is not None:
            like = comparison.runs[cell] if cell in comparison.runs else comparison.unbegun[cell].like
            own.values.update(damage(like, own, measured[partner]))
    return Study(comparison, {cell: measured[cell] for cell in comparison.planned if cell in measured})


def _at(rate: float | None) -> str:
    return "rate of the recipe" if rate is None else f"rate {rate:g}"


def all_shares(found: Study) -> list[Share]:
    """Every yes-or-no measure in every scenario, over all rates and at each."""
    one = found.comparison
    rates: list[float | str | None]
    shares = []
    for scenario in one.scenarios:
        rates = ["all", *one.rates(one.baseline, scenario)]
        for key in YES_OR_NO:
            for rate in rates if len(rates) > 2 else rates[:1]:
                shares += found.shares(key, scenario, rate)
    return shares


def all_rows(found: Study, keys: Sequence[str] = COMPARED) -> list[Row]:
    """Every comparison of every measure, scenario and basis."""
    one = found.comparison
    rows = []
    for scenario in one.scenarios:
        for basis in found.bases(scenario):
            for key in keys:
                rows += found.rows(scenario, basis, key)
        for key in POOLED if len(one.rates(one.baseline, scenario)) > 1 else ():
            rows += found.rows(scenario, ALL_RATES, key)
        rows += found.sensitivity_rows(scenario)
    return rows
