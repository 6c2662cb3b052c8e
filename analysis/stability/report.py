"""What is written: stability.md, stability.json, CSV files and figures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.show.tables import markdown_table
from common.files import write_json, write_text

from .compare import ALL_MEASURES, COMMON, OWN_BEST, PRIMARY, Row, Share, Study, all_rows, all_shares
from .conclusion import conclusions, short_table
from .fairness import control_line, matched, noise_line, presence, seeds_line, unbegun_line, warnings
from .figures import write_figures
from .tables import (
    Shown,
    difference_table,
    event_table,
    growth_table,
    overview_table,
    rate_table,
    run_table,
    stress_tables,
    sweep_table,
)


def main_tables(found: Study) -> list[Shown]:
    """The tables that are printed."""
    one = found.comparison
    basis = found.bases(one.calm)[0]
    tables = [difference_table(found, one.calm, basis), overview_table(found), sweep_table(found, one.calm)]
    tables.append(event_table(found, one.calm))
    return [table for table in (*tables, *stress_tables(found)) if table is not None]


def every_table(found: Study) -> Iterator[Shown]:
    """All tables: what stresses did, then scenario by scenario."""
    if (table := overview_table(found)) is not None:
        yield table
    yield from stress_tables(found)
    for scenario in found.comparison.scenarios:
        for basis in found.bases(scenario):
            if (table := difference_table(found, scenario, basis)) is not None:
                yield table
        for make in (sweep_table, event_table, rate_table, growth_table):
            if (shown := make(found, scenario)) is not None:
                yield shown


def write(found: Study, out: Path) -> list[str]:
    """Write everything to a folder; returns the names of the files."""
    rows = all_rows(found)
    told = warnings(found)
    runs = _runs(found)
    write_json(out / "stability.json", _json(found, rows, told, runs))
    write_text(out / "runs.csv", _csv(runs))
    write_text(out / "comparisons.csv", _csv([_flat(row) for row in rows]))
    write_text(out / "shares.csv", _csv([_flat_share(share) for share in all_shares(found)]))
    write_text(out / "stability.md", _page(found, told))
    return ["stability.md", "stability.json", "runs.csv", "comparisons.csv", "shares.csv", *write_figures(found, out)]


def _csv(rows: list[dict[str, Any]]) -> str:
    text: str = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    return text


def _flat_share(one: Share) -> dict[str, Any]:
    """A share as a row of a CSV file."""
    share = one.share
    return {
        "scenario": one.scenario, "rate": one.rate, "measure": one.measure.key, "arm": one.arm, "k": share.k, "n": share.n,
        "share": share.share, "low": _known(share.low), "high": _known(share.high), "at_most": _known(share.at_most),
        "baseline_k": one.baseline.k, "baseline_n": one.baseline.n, "p": _known(one.p), "adjusted_p": _known(one.adjusted),
        "verdict": one.verdict,
    }  # fmt: skip


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _page(found: Study, told: Sequence[str]) -> str:
    one = found.comparison
    parts = [
        f"# {', '.join(one.arms)}\n\n{len(one.runs)} of {len(one.planned)} planned runs have ended. {matched(one)}\n"
    ]
    said = (unbegun_line(one), seeds_line(one), noise_line(found), control_line(found))
    lines = [line for line in (*said, *told) if line is not None]
    parts.append("".join(f"- {line}\n" for line in lines))
    parts.append(markdown_table(["arm", "scenario", "ended", "not begun", "left out"], presence(one)))
    tables = [table for table in (short_table(found), *every_table(found)) if table is not None]
    parts += [f"## {t.title}\n\n{markdown_table(t.header, t.rows)}\n{t.notes}\n" for t in tables]
    table = run_table(found)
    parts.append(f"## {table.title}\n\n{markdown_table(table.header, table.rows)}\n{table.notes}\n")
    meanings = [[m.heading, m.unit, m.better, m.meaning] for m in ALL_MEASURES.values()]
    parts.append("## What each value is\n\n" + markdown_table(["value", "unit", "better", "meaning"], meanings))
    return "\n".join(parts)


def _runs(found: Study) -> list[dict[str, Any]]:
    return [
        {"run": found.comparison.name(cell), **cell._asdict(), **one.values} for cell, one in found.measured.items()
    ]


def _flat(row: Row) -> dict[str, Any]:
    """A comparison as a row of a CSV file."""
    effect = row.difference.effect
    return {
        "scenario": row.scenario, "basis": row.basis, "measure": row.measure.key, "arm": row.arm, "control": row.control,
        "n": row.difference.n, "mean": effect.mean, "low": effect.low, "high": effect.high, "p": row.difference.p,
        "adjusted_p": row.adjusted, "smallest": row.smallest, "method": row.difference.method, "verdict": row.verdict,
        "left_out": " ".join(map(str, row.difference.left_out)), "variance_removed": row.difference.variance_removed,
    }  # fmt: skip


def _json(found: Study, rows: Sequence[Row], told: Sequence[str], runs: list[dict[str, Any]]) -> dict[str, Any]:
    one = found.comparison
    sweeps = [
        {
            "arm": arm, "scenario": scenario, "rates": sweep.rates, "seeds": sweep.seeds,
            "complete": sweep.complete, "best": sweep.best(),
            "inside": sweep.inside, "sensitivity": sweep.sensitivity(), "vertices": sweep.vertices(),
            "stable_range": sweep.stable_range(), "largest_stable": sweep.largest_stable(),
        }
        for (arm, scenario), sweep in found.sweeps.items()
        if sweep.rates
    ]  # fmt: skip
    return {
        "measures": {m.key: m._asdict() for m in ALL_MEASURES.values()},
        "baseline": one.baseline,
        "control": one.control,
        "arms": one.arms,
        "scenarios": one.scenarios,
        "primary": PRIMARY,
        "in_short": {
            column.key: {arm: cell._asdict() for arm, cell in column.cells.items()} for column in conclusions(found)
        },
        "tables": {
            table.title: [dict(zip(table.header, row, strict=True)) for row in table.rows]
            for table in (short_table(found), *main_tables(found), rate_table(found, one.calm))
            if table is not None
        },
        "noise": None if (noise := found.noise_of_baseline()) is None else asdict(noise),
        "bases": {OWN_BEST: "chosen without the seed", COMMON: "chosen over all seeds of the baseline"},
        "warnings": list(told),
        "unbegun": [
            {**cell._asdict(), "run": one.planned[cell], "begins_at": each.parent.name, "step": each.step}
            for cell, each in one.unbegun.items()
        ],
        "left_out": [{**cell._asdict(), "run": one.planned[cell], "why": why} for cell, why in one.left_out.items()],
        "runs": runs,
        "sweeps": sweeps,
        "by_rate": [
            asdict(finals)
            for scenario in one.scenarios
            for arm in one.arms
            for rate in one.rates(arm, scenario)
            if (finals := found.finals(arm, scenario, rate)) is not None
        ],
        "shares": [_flat_share(share) for share in all_shares(found)],
        "comparisons": {
            key: [_flat(row) for row in rows if row.measure.key == key]
            for key in dict.fromkeys(row.measure.key for row in rows)
        },
    }
