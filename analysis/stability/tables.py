"""The tables: short ones for the terminal, all of them for files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from analysis.compare.rates import Proportion
from analysis.compare.seeds import ALL_EQUAL, TOO_FEW
from analysis.show.text import number, visible

from .compare import ALL_MEASURES, COMMON, OWN_BEST, PRIMARY, SENSITIVITY, Row, Study
from .curve import median_duration
from .measure import BY_KEY, PLACES
from .sweep import NEAR_BEST, STABLE, Sweep

_OF_A_RUN = ("ended", "final_nll", "stalls", "saturated", "spikes_nll", "spikes_grad", "excess", "excess_floor", "lost_tokens",
             "recovery", "effective_rate", "update_size")  # fmt: skip
"""Measures in the table of runs."""

_AT_A_GLANCE = ("final_nll", "accuracy", "ece", "weight", "residual_growth", "logits_growth")
"""Measures in the table of what the arms have come to."""
INTERVALS = "Intervals: of each arm by itself, not adjusted; p: adjusted by Holm over the arms."


class Shown(NamedTuple):
    """A table with its title and what has to be said below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: str = ""
    in_files: tuple[str, ...] = ()
    """Columns that are left out where the table is printed."""


def difference_table(found: Study, scenario: str, basis: str, key: str = PRIMARY) -> Shown | None:
    """Each arm against the baseline in one measure; the control first. None without values."""
    one = found.comparison
    rows = found.rows(scenario, basis, key)
    base = found.on(basis, key, one.baseline, scenario)
    if not base:
        return None
    entry = rows[0].measure if rows else ALL_MEASURES[key]
    header = ["arm", "seeds", "rate", entry.heading, "minus baseline [95%]", "p (Holm)", "would show", "verdict"]
    shown = [
        [
            visible(one.baseline),
            str(len(base)),
            _rates(found, one.baseline, scenario, basis),
            mean_text(base, entry.form),
        ]
    ]
    shown[0] += ["", "", "", "baseline"]
    for row in rows:
        values = found.on(basis, key, row.arm, scenario)
        cells = [name_of(found, row.arm), str(row.difference.n), _rates(found, row.arm, scenario, basis)]
        shown.append([*cells, mean_text(values, entry.form), *_against(row), short_verdict(row)])
    unit = f", {entry.unit}" if entry.unit else ""
    return Shown(f"{entry.heading}{unit}, {scenario}, {found.basis_text(scenario, basis)}", header, shown, INTERVALS)


def difference_text(row: Row) -> str:
    """The mean difference and its interval."""
    effect = row.difference.effect
    if math.isnan(effect.mean):
        return "-"
    form = row.measure.form.lstrip("+").replace("d", ".2f").replace(",.0f", ".3g")
    return effect.format(f"+{form}")


def p_text(row: Row) -> str:
    """The adjusted p-value; the control's is its own."""
    return "" if math.isnan(row.adjusted) else f"{row.adjusted:.2g}" if row.adjusted >= 0.001 else "<0.001"


def short_verdict(row: Row) -> str:
    """The verdict, without the number that has a column of its own."""
    short = {TOO_FEW: "too few seeds", ALL_EQUAL: "all equal"}
    return short.get(row.verdict, row.verdict.partition(";")[0].replace("no difference shown", "not shown"))


def sweep_table(found: Study, scenario: str) -> Shown | None:
    """What each arm does over the rates. None if there are fewer than two."""
    one = found.comparison
    if not any(len(found.sweeps[arm, scenario].rates) > 1 for arm in one.arms):
        return None
    header = ["arm", "seeds", "best rate", "between [95%]", "within .05", "stable to", "sensitivity"]
    header += ["minus baseline [95%]", "p (Holm)", "would show"]
    differences = {row.arm: row for row in found.sensitivity_rows(scenario)}
    rows = []
    for arm in one.arms:
        sweep = found.sweeps[arm, scenario]
        values = list(sweep.sensitivity().values())
        rows.append(
            [
                name_of(found, arm),
                _seeds(sweep),
                _best(sweep),
                "-" if (between := sweep.best_between()) is None else between.format(".2g"),
                "-" if (span := sweep.stable_range()) is None else " to ".join(dict.fromkeys(map(rate_text, span))),
                rate_text(sweep.largest_stable()),
                f"{sum(values) / len(values):.3f}" if values else "-",
                *_against(differences.get(arm)),
            ]
        )
    grid = ", ".join(map(rate_text, found.sweeps[one.baseline, scenario].rates))
    notes = (
        f"Rates: {grid}; seeds: those with a run at each, which the sensitivity is of. \N{LESS-THAN OR EQUAL TO}, "
        "\N{GREATER-THAN OR EQUAL TO}: best at an end of the grid. Between: by a parabola, if inside for every seed. Within .05: "
        f"mean final NLL at most {NEAR_BEST} nats above the lowest. Stable to: up to this rate no seed diverged or "
        f"stalled, and the mean is within {STABLE} nats of the lowest. Sensitivity: {SENSITIVITY.meaning}. {INTERVALS}"
    )
    return Shown(f"Over the rates, {scenario}", header, rows, notes, ("between [95%]", "p (Holm)"))


def overview_table(found: Study) -> Shown | None:
    """What each arm has come to without a stress, at its own best rate. None without accuracies."""
    one = found.comparison
    calm, basis = one.calm, found.bases(one.calm)[0]
    if not found.on(basis, "accuracy", one.baseline, calm):
        return None
    entries = [BY_KEY[key] for key in _AT_A_GLANCE]
    rows = {key: {row.arm: row for row in found.rows(calm, basis, key)} for key in _AT_A_GLANCE}
    shown = []
    for arm in one.arms:
        cells = [name_of(found, arm), _rates(found, arm, calm, basis)]
        for entry in entries:
            text = mean_text(found.on(basis, entry.key, arm, calm), entry.form)
            row = rows[entry.key].get(arm)
            cells.append(f"{text}*" if row is not None and not row.null else text)
        shown.append(cells)
    notes = (
        "Means over seeds; *: differs from the baseline's, by the interval and the p-value adjusted by Holm over the arms. "
        + "; ".join(f"{entry.heading}: {entry.meaning}" for entry in entries)
        + ". Accuracy, ECE and c are of the runs that did not diverge"
        + "."
    )
    header = ["arm", "rate", *(entry.heading for entry in entries)]
    return Shown(f"At a glance, {calm}, {found.basis_text(calm, basis)}", header, shown, notes)


def event_table(found: Study, scenario: str) -> Shown:
    """Divergences, stalls, spikes and recovery over all runs of each arm in a scenario."""
    one = found.comparison
    header = ["arm", "runs", "diverged [95%]", "stalled", "NLL spikes [95%]", "grad spikes [95%]"]
    header += ["recovery", "excess (floor)", "tokens lost"]
    rows = []
    for arm in one.arms:
        runs = found.of(arm, scenario)
        if not runs:
            continue
        median, spikes, censored = found.recovery(arm, scenario)
        rows.append(
            [
                name_of(found, arm),
                str(len(runs)),
                share_text(found.share("diverged", arm, scenario)),
                f"{sum(bool(m.values['stalls']) for m in runs.values())}",
                _spike_text(found, "nll", arm, scenario),
                _spike_text(found, "grad", arm, scenario),
                "" if not spikes else f"{_steps(median)} ({spikes}, {censored} open)",
                _excess(found, arm, scenario),
                _mean_of(found, "lost_tokens", arm, scenario, ",.0f"),
            ]
        )
    notes = (
        "All rates and seeds of an arm; intervals are over seeds, and from fewer than 3 there are none over several rates. "
        "Diverged: at one rate Clopper-Pearson, otherwise Student's t of the seeds' shares. Spikes per 1,000 steps: Poisson, "
        "widened where seeds vary more than that. Recovery, in the files: Kaplan-Meier median of the steps that a loss spike "
        "lasts (spikes, those not over when the run ended). Excess: nat-steps above the running minimum, mean of the runs; "
        "floor: what noise alone gives."
    )
    return Shown(f"Events, {scenario}", header, rows, notes, ("recovery", "tokens lost"))


def stress_tables(found: Study) -> list[Shown]:
    """What each stress did to each arm, held against its calm runs; what the columns are is said below the last."""
    tables = [table for scenario in found.comparison.scenarios if (table := _stress_table(found, scenario)) is not None]
    notes = (
        "Each run against the calm one of its arm, rate and seed, over all rates and seeds; nat-steps, and what they differ "
        f"from the baseline's, at the {COMMON}, or the only one, alone (at their own best one, where arms have different rates). "
        "Survived: finished, without a stall and "
        "not above the initial NLL. Back: at the calm "
        "run's NLL again, for good, before the end; a run that diverged is not. Steps: until then, Kaplan-Meier median; > end: "
        "over half were not back. Nat-steps: sum of the NLL minus the calm run's; none if that had diverged before the stress. "
        + INTERVALS
    )
    return [*tables[:-1], *(table._replace(notes=notes) for table in tables[-1:])]


def _stress_table(found: Study, scenario: str) -> Shown | None:
    """One stress's; None if no run of it has a calm partner."""
    header = ["arm", "runs", "survived [95%]", "back [95%]", "steps", "nat-steps"]
    header += ["minus baseline [95%]", "p (Holm)", "would show", "pairs"]
    rows = []
    basis = found.stress_basis(scenario)
    differences = {row.arm: row for row in found.rows(scenario, basis, "damage_excess")}
    for arm in found.comparison.arms:
        durations, seen = found.time_back(arm, scenario)
        if durations:
            cells = [name_of(found, arm), str(len(durations))]
            cells += [share_text(found.share(key, arm, scenario)) for key in ("survived", "back")]
            cells += [_steps(median_duration(durations, seen)), _mean_at(found, "damage_excess", arm, scenario, basis)]
            row = differences.get(arm)
            rows.append([*cells, *_against(row), "" if row is None else str(row.difference.n)])
    return Shown(f"Under stress, {visible(scenario)}", header, rows, "", ("p (Holm)", "pairs")) if rows else None


def _mean_at(found: Study, key: str, arm: str, scenario: str, basis: str) -> str:
    """The mean over seeds of a measure at the rate that ``basis`` names, with its sign."""
    values = found.on(basis, key, arm, scenario).values()
    return format(sum(values) / len(values), "+.3g") if values else "-"


def rate_table(found: Study, scenario: str) -> Shown:
    """Final NLL, events, growth and size of the updates of each arm at each rate."""
    one = found.comparison
    header = ["arm", "rate", "seeds", "final NLL", "sd", "lowest", "highest", "diverged", "stalled", "saturated"]
    header += ["residual growth", "update size", "effective rate"]
    rows = []
    for arm in one.arms:
        for rate in one.rates(arm, scenario):
            runs = [m.values for m in found.of(arm, scenario, rate).values()]
            finals = found.finals(arm, scenario, rate)
            of_nll = ["-"] * 4
            if finals is not None:
                sd = "-" if finals.noise is None else f"{finals.noise.deviation:.4f}"
                of_nll = [f"{finals.mean:.4f}", sd, f"{finals.lowest:.4f}", f"{finals.highest:.4f}"]
            counts = [f"{sum(bool(v[key]) for v in runs)}" for key in ("diverged", "stalls", "saturated")]
            keys = ("residual_growth", "update_size", "effective_rate")
            sizes = [[v[key] for v in runs if v.get(key) is not None] for key in keys]
            of_sizes = [f"{sum(own) / len(own):.3g}" if own else "-" for own in sizes]
            rows.append([visible(arm), rate_text(rate), str(len(runs)), *of_nll, *counts, *of_sizes])
    notes = (
        "sd: standard deviation over seeds. Of a run that diverged the final NLL is its initial loss. Saturated: runs in which "
        "attention or the output did. Growth, update size and rate: means over seeds."
    )
    return Shown(f"By rate, {scenario}", header, rows, notes)


def growth_table(found: Study, scenario: str) -> Shown:
    """Radial growth at each arm's own best rate."""
    one = found.comparison
    basis = found.bases(scenario)[0]
    header = ["arm", *(f"{name}, last/first" for name in PLACES), *(f"{name}, max/first" for name in PLACES)]
    rows = []
    for arm in one.arms:
        keys = [f"{name}_growth" for name in PLACES] + [f"{name}_max" for name in PLACES]
        rows.append([visible(arm), *(mean_text(found.on(basis, key, arm, scenario), ".3g") for key in keys)])
    notes = (
        "Means over seeds. " + "; ".join(f"{name}: {what} ({metric})" for name, (metric, what) in PLACES.items()) + "."
    )
    return Shown(f"Radial growth, {scenario}, {found.basis_text(scenario, basis)}", header, rows, notes)


def run_table(found: Study) -> Shown:
    """Each run's main values; all values are in runs.csv."""
    entries = [BY_KEY[key] for key in _OF_A_RUN]
    rows = []
    for cell, one in found.measured.items():
        values = [one.values.get(entry.key) for entry in entries]
        shown = ["-" if v is None else format(v, e.form) for v, e in zip(values, entries, strict=True)]
        rows.append([visible(found.comparison.name(cell)), *shown])
    return Shown(
        "Runs", ["run", *(entry.heading for entry in entries)], rows, "All values of each run are in runs.csv."
    )


def name_of(found: Study, arm: str) -> str:
    """An arm's name, marked if it is the control."""
    return visible(arm) + (" (A/A)" if arm == found.comparison.control else "")


def _against(row: Row | None) -> list[str]:
    """Difference, p-value and smallest difference; empty for the baseline."""
    if row is None:
        return ["", "", ""]
    return [difference_text(row), p_text(row), "" if row.smallest is None else number(row.smallest, 3)]


def _seeds(sweep: Sweep) -> str:
    complete, seeds = len(sweep.complete), len(sweep.seeds)
    return f"{seeds}" if complete == seeds else f"{complete} of {seeds}"


def _best(sweep: Sweep) -> str:
    """The best rate, marked if it is at an end of the grid."""
    best = sweep.best()
    if best is None or sweep.inside:
        return rate_text(best)
    sign = "\N{LESS-THAN OR EQUAL TO}" if best == sweep.rates[0] else "\N{GREATER-THAN OR EQUAL TO}"
    return f"{sign}{best:g}"


def share_text(share: Proportion | None) -> str:
    """k/n and, if there is one, the interval in percent."""
    if share is None:
        return ""
    interval = "" if math.isnan(share.low) else f" [{100 * share.low:.0f}, {100 * share.high:.0f}]%"
    return f"{share.k}/{share.n}{interval}"


def _spike_text(found: Study, signal: str, arm: str, scenario: str) -> str:
    rate = found.spike_rate(signal, arm, scenario)
    if rate is None:
        return ""
    interval = "" if math.isnan(rate.low) else f" [{1000 * rate.low:.1f}, {1000 * rate.high:.1f}]"
    return f"{1000 * rate.rate:.1f}{interval}"


def _excess(found: Study, arm: str, scenario: str) -> str:
    parts = [_mean_of(found, key, arm, scenario, ".1f") for key in ("excess", "excess_floor")]
    return f"{parts[0]} ({parts[1]})" if all(parts) else ""


def _mean_of(found: Study, key: str, arm: str, scenario: str, form: str) -> str:
    values = [v for m in found.of(arm, scenario).values() if (v := m.values.get(key)) is not None]
    return format(sum(values) / len(values), form) if values else ""


def mean_text(values: Mapping[int, float], form: str) -> str:
    """The mean of values by seed."""
    form = form.lstrip("+").replace("d", ".2f")
    return format(sum(values.values()) / len(values), form) if values else "-"


def _rates(found: Study, arm: str, scenario: str, basis: str) -> str:
    """The rate of the runs that are compared; with OWN_BEST there may be several, since it is chosen without each seed."""
    if basis not in (OWN_BEST, COMMON):
        return basis.removeprefix("rate ")
    if basis == COMMON:
        return rate_text(found.rate_of(found.comparison.baseline, scenario, None))
    chosen = [found.rate_of(arm, scenario, seed) for seed in found.comparison.seeds(arm)]
    return ", ".join(dict.fromkeys(map(rate_text, chosen)))


def rate_text(rate: float | None) -> str:
    """A learning rate."""
    return "-" if rate is None else f"{rate:g}"


def _steps(median: float) -> str:
    return "-" if math.isnan(median) else "> end" if math.isinf(median) else f"{median:g}"
