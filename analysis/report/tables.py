"""The tables of a page: comparisons, runs, claims, probes, configurations and environments."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from analysis.compare.differing import differing
from analysis.compare.statistics import Effect
from analysis.logs import LogRun
from analysis.show.text import clip, estimate, first_of, skipped_lines, visible
from analysis.stability.compare import PRIMARY, Row, Study
from analysis.stability.conclusion import short_table
from analysis.stability.fairness import (
    compared_configs,
    control_line,
    noise_line,
    presence,
    seeds_line,
    unbegun_line,
    warnings,
)
from analysis.stability.report import main_tables
from analysis.stability.tables import Shown, mean_text, name_of, short_verdict
from analysis.summary import formatted, summarise
from common.section import flat
from record.finished import Run

from .happened import Happened, counts
from .material import Material, claims_of, files_named, read_json

EVENTS, OPEN_EVENTS = 40, 6
"""Most events that are told one by one, and how many of them are not folded away."""
_RUNS = 60
"""Most runs in the table of runs."""
_VALUE = 60
"""Characters shown of a value of a configuration."""
_LOGS = 8
"""Most logs that a command names."""
_LEFT_OUT = 20
"""Most runs that are named as left out."""


@dataclass(frozen=True)
class Table:
    """A table; columns whose header is in ``text``, and the first, are aligned as text."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: str = ""
    text: tuple[str, ...] = ()
    folded: bool = False

    @property
    def kinds(self) -> list[str]:
        """The alignment of each column."""
        return ["text" if place == 0 or name in self.text else "number" for place, name in enumerate(self.header)]


@dataclass(frozen=True)
class Bar:
    """A difference from the baseline, drawn on a scale from 0 to 100 on which 50 is no difference."""

    name: str
    told: str
    verdict: str
    middle: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Forest:
    """Differences of all arms."""

    title: str
    bars: list[Bar]
    ends: tuple[str, str]
    """Values at the ends of the scale."""


def forest(found: Study) -> Forest | None:
    """The difference of each arm from the baseline in the final loss, the lowest first; None without one."""
    one = found.comparison
    basis = found.bases(one.calm)[0]
    rows = [row for row in found.rows(one.calm, basis, PRIMARY) if math.isfinite(row.difference.effect.mean)]
    if not rows:
        return None
    span = _span(rows)

    def place(value: float | None) -> float | None:
        return None if value is None else round(min(max(50 + 50 * value / span, 0.0), 100.0), 2)

    bars = []
    for row in sorted(rows, key=lambda row: row.difference.effect.mean):
        effect = row.difference.effect
        places = (place(effect.mean) or 0.0, place(effect.low), place(effect.high))
        bars.append(Bar(name_of(found, row.arm), effect.format("+.3f"), short_verdict(row), *places))
    base = mean_text(found.on(basis, PRIMARY, one.baseline, one.calm), ".4f")
    title = f"Final loss minus that of {visible(one.baseline)} ({base}), nats per token: left is better"
    return Forest(title, bars, (f"{-span:+.2g}", f"{span:+.2g}"))


def _span(rows: Sequence[Row]) -> float:
    """Where the scale ends: at the largest mean or, of intervals, at most at three times the 90th percentile of the means."""
    means = sorted(abs(row.difference.effect.mean) for row in rows)
    usual = 3 * means[min(len(means) - 1, int(0.9 * len(means)))]
    ends = [
        abs(end) for row in rows for end in (row.difference.effect.low, row.difference.effect.high) if end is not None
    ]
    return 1.05 * max([min(means[-1], usual), *(min(end, usual) for end in ends)]) or 1.0


def of_arms(found: Study) -> list[Table]:
    """The tables of analysis.stability that are printed, the closing one first."""
    tables = [table for table in (short_table(found), *main_tables(found)) if table is not None]
    return [_shown(table, folded=place > 1) for place, table in enumerate(tables)]


def _shown(table: Shown, *, folded: bool) -> Table:
    return Table(table.title, table.header, table.rows, table.notes, ("verdict", "arm", "run"), folded)


def of_runs(runs: Mapping[str, Run]) -> Table:
    """The table of analysis.summary."""
    kept = dict(list(runs.items())[:_RUNS])
    header, rows = formatted(summarise(kept))
    left = f" The first {_RUNS} of {len(runs)} runs." if len(runs) > _RUNS else ""
    notes = "NLL in nats per token. train NLL: mean of the last 5% of the steps. Of logs: losses as logged." + left
    return Table("Runs", header, rows, notes, ("head", "objective", "status"), folded=len(runs) > EVENTS)


def of_events(found: Sequence[Happened]) -> Table | None:
    """How many events each run has, where there are more than are told one by one; None otherwise."""
    if len(found) <= EVENTS:
        return None
    by_run: dict[str, list[Happened]] = {}
    for one in found:
        by_run.setdefault(one.run, []).append(one)
    order = sorted(by_run, key=lambda run: -len(by_run[run]))[:_RUNS]
    left = f"The {_RUNS} runs with the most events, of {len(by_run)}." if len(by_run) > _RUNS else ""
    rows = [[visible(run), f"{len(by_run[run])}", counts(by_run[run])] for run in order]
    return Table("Events by run", ["run", "events", "which"], rows, left, ("which",), folded=True)


# ------------------------------------------------------------------------------------------------------ claims and probes


def of_claims(material: Material) -> list[Table]:
    """The verdicts of each claims.json in the suite's folder."""
    tables = []
    for found in claims_of(material):
        rows = [[*_claim(c), *(str(c.get(key) or "") for key in ("probe", "says", "test"))] for c in found.claims]
        title = f"Claims, {found.folder}: {found.runs} of {found.planned} runs"
        notes = "Probe: what measures the checkpoints that the claim is judged by; its command stands at the end of this page."
        tables.append(Table(title, _CLAIM, rows, notes, text=_CLAIM))
        tables.append(_evidence(found.claims))
    return tables


_CLAIM = ("claim", "verdict", "probe", "what is claimed", "what decides")


def _claim(one: Mapping[str, Any]) -> tuple[str, str]:
    """A claim's name, and its verdict with what has to be known of it."""
    verdict, worth = str(one.get("verdict", "")), one.get("worth")
    return str(one.get("claim", "")), f"{verdict} ({worth})" if worth else verdict


def _evidence(claims: Sequence[Mapping[str, Any]]) -> Table:
    told = [
        (str(claim.get("claim")), one["row"])
        for claim in claims
        for one in claim.get("evidence") or []
        if isinstance(one, dict) and isinstance(one.get("row"), dict)
    ]
    header = list(told[0][1]) if told else []
    rows = [[name, *(str(row.get(key, "")) for key in header)] for name, row in told]
    notes = (
        "Intervals are of 95%, each of one test by itself. p is adjusted by Holm's method, but where it says unadjusted. "
        "(beside): decides nothing."
    )
    text = ("arm", "against", "where", "verdict")
    return Table("Every test of every claim", ["claim", *header], rows, notes, text, folded=True)


def of_probes(material: Material) -> list[Table]:
    """The means and differences of each probe in the suite's folder."""
    tables = []
    for path in files_named(material.places[:1], "summary.json", "probes*/*/summary.json"):
        found = read_json(path)
        if isinstance(found, dict) and isinstance(found.get("probe"), str) and isinstance(found.get("arms"), list):
            tables.append(_probe(found))
    return tables


def _probe(found: Mapping[str, Any]) -> Table:
    rows, first = [], ""
    for one in found["arms"]:
        if isinstance(one, dict) and one.get("index") == -1:
            first = first or str(one.get("arm"))
            mean, difference = _effect(one.get("mean")), _effect(one.get("difference"))
            cells = [str(one.get("measure")), str(one.get("arm")), "" if mean is None else f"{mean.n}"]
            cells += ["" if mean is None else estimate(mean.mean, mean.low, mean.high)]
            cells += [
                "" if difference is None else estimate(difference.mean, difference.low, difference.high, signed=True)
            ]
            rows.append(cells)
    measures = found.get("measures")
    meanings = [
        f"{key} ({one.get('unit')}): {one.get('meaning')}"
        for key, one in (measures.items() if isinstance(measures, dict) else ())
        if isinstance(one, dict) and one.get("along") is None
    ]
    header = ["measure", "arm", "seeds", "mean [95%]", f"minus {visible(first)} [95%]"]
    undefined = ["-: not defined for this arm's models, or not measured"] if any("-" in row[3:] for row in rows) else []
    notes = ". ".join([*meanings, "Intervals: of each arm by itself", *undefined]) + "."
    return Table(f"Probe {found['probe']}: {found.get('meaning')}", header, rows, notes, ("arm",))


def _effect(value: Any) -> Effect | None:
    """An effect of a JSON file; None for anything else."""
    if not isinstance(value, dict):
        return None
    mean, low, high, count = (_number(value.get(key)) for key in ("mean", "low", "high", "n"))
    return Effect(math.nan if mean is None else mean, low, high, None, None, int(count or 0), {})


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# ------------------------------------------------------------------------------------- configurations, environment and warnings


def of_differences(material: Material) -> Table | None:
    """In what the arms, or the runs, differ; None if there is one only."""
    if material.study is not None and len(compared_configs(material.study.comparison)) > 1:
        configs = compared_configs(material.study.comparison)
    else:
        configs = {label: run.config for label, run in material.runs.items() if not isinstance(run, LogRun)}
    keys = differing(list(configs.values()))
    if len(configs) < 2 or not keys:
        return None
    rows = []
    for place, name in enumerate(configs):
        own = [(key, values) for key, values in keys.items() if values[place] is not None]
        changed = own if place == 0 else [(key, values) for key, values in own if values[place] != values[0]]
        rows.append([visible(name), ", ".join(f"{visible(key)}={_short(values[place])}" for key, values in changed)])
    return Table("Settings in which they differ", ["", "of the first all, of the others what differs from it"], rows[:_RUNS],
                 text=("of the first all, of the others what differs from it",))  # fmt: skip


def _short(value: Any) -> str:
    return clip(visible(str(value)), _VALUE)


def of_environment(material: Material) -> Table | None:
    """Versions, machine and data of the runs, as their environment.json says; None without any."""
    values: dict[str, dict[str, int]] = {}
    for run in material.runs.values():
        found = None if isinstance(run, LogRun) else read_json(run.path / "environment.json")
        for key, value in flat(found).items() if isinstance(found, dict) else ():
            each = values.setdefault(key, {})
            each[str(value)] = each.get(str(value), 0) + 1
    if not values:
        return None
    rows = [[visible(key), _counted(own)] for key, own in values.items()]
    return Table("Environment", ["key", "value"], rows, text=("value",), folded=True)


def _counted(values: Mapping[str, int]) -> str:
    if len(values) == 1:
        return _short(next(iter(values)))
    return first_of([f"{_short(value)} ({count} runs)" for value, count in values.items()], 5)


def notes(material: Material) -> list[str]:
    """Warnings, and what has to be known of the runs; the gravest first."""
    told: list[str] = []
    if material.study is not None:
        one = material.study.comparison
        told += warnings(material.study)
        said = (unbegun_line(one), seeds_line(one), noise_line(material.study), control_line(material.study))
        told += [line for line in said if line is not None]
        named = [f"{visible(one.name(cell))}: {why}" for cell, why in one.left_out.items()]
        told += [f"left out of the comparison: {line}" for line in named[:_LEFT_OUT]]
        told += [f"and {len(named) - _LEFT_OUT} more runs left out"] if len(named) > _LEFT_OUT else []
    few = list(material.runs.items())[:_RUNS]
    told += [f"{label}: {line}" for label, run in few for line in skipped_lines(run.metrics, run.metrics.index)]
    told += [f"{label}: the loss kernel fell back to torch's operations" for label, run in few if _fell_back(run)]
    return told + material.notes


def _fell_back(run: Run) -> bool:
    return any(event.get("event") == "kernel_fallback" for event in run.events)


def presence_table(found: Study) -> Table:
    """Which of the planned runs there are."""
    header = ["arm", "scenario", "ended", "not begun", "left out"]
    return Table("Planned runs", header, [[clip(cell, 4 * _VALUE) for cell in row] for row in presence(found.comparison)],
                 text=("scenario", "left out"), folded=True)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True)
class Command:
    """A command line and what it is for."""

    what: str
    line: str


def commands(material: Material, own: str) -> list[Command]:
    """What made the page, what makes what is missing in it, and what repeats the runs."""
    found = [Command("This page", own)]
    paths = [*material.paths]
    into = ", written into the suite's folder" if material.suite else ""
    if material.study is not None:
        out = f"{material.suite}/stability" if material.suite else "stability"
        what = f"All tables and figures of the comparison{into}"
        found.append(Command(what, _line("analysis.stability", paths, out)))
    if material.suite is not None:
        found += list(_of_probes(material, into))
        what = f"The article's claims, for suites with TFSD{into}"
        found.append(Command(what, _line("analysis.claims", paths, f"{paths[0]}/claims")))
    found += list(_again(material))
    return found


def _of_probes(material: Material, into: str) -> Iterator[Command]:
    """What measures checkpoints for the claims, each once, with the claims that it is for."""
    served: dict[tuple[str, str], list[str]] = {}
    for claim in (claim for found in claims_of(material) for claim in found.claims):
        if claim.get("command"):
            served.setdefault((str(claim["command"]), str(claim.get("probe"))), []).append(str(claim.get("claim")))
    for (line, probe), claims in served.items():
        yield Command(f"The probe {probe}, for {', '.join(dict.fromkeys(claims))}{into}", line)


def _line(module: str, paths: Sequence[str], out: str) -> str:
    return shlex.join(["python", "-m", module, *paths, "--out", out])


def _again(material: Material) -> Iterator[Command]:
    """Runs of train_lm.py can be repeated from their configuration."""
    run = next((run for run in material.runs.values() if _ours(run)), None)
    if run is not None:
        line = shlex.join(["python", "train_lm.py", "--config", f"{run.path}/config.yaml", f"name={run.name}_again"])
        yield Command(f"The run {visible(run.name)} again; the others likewise", line)
    logs = list(dict.fromkeys(str(run.log.path) for run in material.runs.values() if isinstance(run, LogRun)))
    if logs:
        yield Command("The events of the logs, and their figure", _line("analysis.spikes", logs[:_LOGS], "spikes"))


def _ours(run: Run) -> bool:
    return not isinstance(run, LogRun) and "monitor" not in run.config


def configurations(material: Material) -> list[tuple[str, list[str]]]:
    """The configuration of one run of each arm, at most six, or of the first runs, as lines of YAML."""
    chosen = list(material.runs.items())
    if material.study is not None:
        one = material.study.comparison
        first = {cell.arm: run for cell, run in reversed(list(one.runs.items())) if cell.scenario == one.calm}
        chosen = [(arm, first[arm]) for arm in one.arms if arm in first]
    told = [(name, run) for name, run in chosen if run.config][:6]
    return [(name, yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True).splitlines()) for name, run in told]
