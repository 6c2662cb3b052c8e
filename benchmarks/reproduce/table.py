"""The outcomes of all findings that were judged, kept as JSON, and as the tables of reproduce.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.show.tables import markdown_table
from common.files import write_json, write_text

from .base import Finding, Outcome, in_order

HEADER = ("key", "finding", "source", "must come out", "what came out", "verdict", "seeds", "CPU minutes", "command")
REPORT = "reproduce.md"
ALL = "reproduce.json"


def keep(finding: Finding, outcome: Outcome, seeds: int, minutes: float, out: Path) -> None:
    """Write the outcome of a finding beside those of others, of which an earlier one of the same finding is replaced."""
    entry = {
        "key": finding.key,
        "finding": finding.title,
        "source": finding.source,
        "must come out": finding.claim,
        "what came out": outcome.told,
        "verdict": str(outcome.verdict),
        "seeds": f"{seeds}",
        "CPU minutes": f"{minutes:.2g}" if minutes < 1 else f"{minutes:.0f}",
        "command": f"`python -m benchmarks.reproduce {finding.key} --out DIR`",
    }
    write_json(out / "outcomes" / f"{finding.key}.json", {"row": entry, "table": [dict(row) for row in outcome.table]})


def write_report(out: Path) -> str:
    """Write reproduce.json and reproduce.md from the outcomes of all findings in ``out``; returns the text."""
    files = sorted((out / "outcomes").glob("*.json"), key=lambda file: in_order(file.stem))
    entries = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows, tables = [entry["row"] for entry in entries], [entry["table"] for entry in entries]
    write_json(out / ALL, {"findings": rows, "tables": tables})
    text = report(rows, tables)
    write_text(out / REPORT, text)
    return text


def report(rows: Sequence[Any], tables: Sequence[Any]) -> str:
    """One table of all findings, then the numbers of each."""
    parts = [markdown_table(list(HEADER), [[row[column] for column in HEADER] for row in rows])]
    for row, table in zip(rows, tables, strict=True):
        if table:
            parts.append(f"{row['key']}: {row['finding']}\n")
            parts.append(markdown_table(list(table[0]), [list(each.values()) for each in table]))
    return "\n".join(parts)
