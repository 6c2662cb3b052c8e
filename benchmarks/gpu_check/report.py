"""What the check found, as one JSON file and one Markdown section. Needs the standard library alone, even if torch fails."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common.files import strict

from . import tables
from .lines import read_lines
from .parts import PARTS, Outcome

Line = dict[str, Any]
JSON_NAME, MARKDOWN_NAME = "gpu_check.json", "gpu_check.md"
_NOTHING = "Nothing: every part ran to its end and every test passed."


@dataclass
class Report:
    """The state of a check."""

    date: str
    commit: str | None
    device: str
    minutes: float
    missing_packages: list[str] = field(default_factory=list)
    """Packages of requirements-gpu-check.txt that are neither installed nor among the wheels."""
    outcomes: list[Outcome] = field(default_factory=list)
    running: str | None = None
    """The part that has not ended yet."""
    lines: list[Line] = field(default_factory=list)
    """All that the parts have written so far."""

    def of(self, table: str) -> list[Line]:
        """The lines of a table."""
        return [line for line in self.lines if line.get("table") == table]

    def failures(self) -> list[str]:
        """What must be seen first: tests that failed, parts that did not run to their end, what they lack."""
        found = [f"test {line['test']}: {line['outcome']}" for line in self.of("tests") if "failed" in line["outcome"]]
        found += [f"{outcome.name}: {outcome.problem}" for outcome in self.outcomes if outcome.problem]
        found += self._unfinished()
        found += tables.failures(self.lines)
        found += [f"{line['part']}: {line['what']} left out: {line['why']}" for line in self.of("left_out")]
        ended = {outcome.name for outcome in self.outcomes} | {self.running}
        return found + [f"{part.name}: not started" for part in PARTS if part.name not in ended]

    def _unfinished(self) -> list[str]:
        """The tests without a result, those that had begun by name, the others by file: there may be hundreds."""
        unfinished, started = self.unfinished_tests(), {line["test"] for line in self.of("started_tests")}
        waiting = Counter(test.partition("::")[0] for test in unfinished if test not in started)
        return [
            *(f"tests: {test} began and did not end" for test in unfinished if test in started),
            *(f"tests: {count} of {file} did not begin" for file, count in waiting.items()),
        ]

    def unfinished_tests(self) -> list[str]:
        """Tests that were collected but have no result."""
        if self.running == "tests":
            return []
        done = {line["test"] for line in self.of("tests")}
        return [test for line in self.of("planned_tests") for test in line["tests"] if test not in done]


def lines_in(folder: Path) -> list[Line]:
    """All lines of the parts so far."""
    return [line for part in PARTS for line in read_lines(folder / f"{part.name}.jsonl")]


def write_report(report: Report, folder: Path) -> None:
    """Write both files anew, each at once."""
    failures = report.failures()
    state = strict(asdict(report) | {"failures": failures})
    for name, text in ((JSON_NAME, json.dumps(state, indent=1) + "\n"), (MARKDOWN_NAME, markdown(report, failures))):
        beside = folder / f".{name}"
        beside.write_text(text, encoding="utf-8")
        beside.replace(folder / name)


def markdown(report: Report, failures: Sequence[str]) -> str:
    """The section: machine, what fell short, tests, tables."""
    machine = next(iter(report.of("machine")), {})
    parts = [f"# GPU check: {machine.get('name') or report.device}", *_machine(report, machine)]
    missed = tables.missed_targets(report.lines) if report.device == "cuda" else []
    parts += ["## What fell short", *_bullets([*failures, *missed], _NOTHING)]
    parts += ["## Tests", *_tests(report), tables.report(report.lines).rstrip()]
    return "\n\n".join(parts) + "\n"


def _machine(report: Report, machine: Line) -> list[str]:
    spent = "; ".join(f"{o.name} {o.seconds:.0f} s" for o in report.outcomes)
    versions = ", ".join(
        f"{name} {version or 'not installed'}" for name, version in machine.get("packages", {}).items()
    )
    facts = [
        f"{machine[key]} {unit}" for key, unit in (("memory_gib", "GiB"), ("cores", "host cores")) if machine.get(key)
    ]
    facts += [f"{key} {machine[key]}" for key in ("driver", "cuda", "capability", "python") if machine.get(key)]
    lines = [
        f"{report.date}, commit {report.commit or 'unknown'}; {', '.join(facts)}.",
        f"{versions}." if versions else "",
    ]
    lines.append(f"`python -m benchmarks.gpu_check --device {report.device} --minutes {report.minutes:g}`: {spent}.")
    if report.device == "cpu":
        lines.append("**On a CPU, with tiny sizes: this shows that the command works. Its figures mean nothing.**")
    if report.running:
        lines.append(f"**Unfinished: {report.running} was running when this was written.**")
    if report.missing_packages:
        lines.append(f"Not installed here and without a wheel: {', '.join(report.missing_packages)}.")
    return [line for line in lines if line]


def _bullets(items: Sequence[str], none: str) -> list[str]:
    return ["\n".join(f"- {' '.join(item.split())}" for item in items)] if items else [none]


def _tests(report: Report) -> list[str]:
    counts: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for line in report.of("tests"):
        file = line["test"].partition("::")[0]
        counts[file][line["outcome"].partition(" ")[0]] += 1
        counts[file]["seconds"] += line["seconds"]
    for test in report.unfinished_tests():
        counts[test.partition("::")[0]]["unfinished"] += 1
    columns = ("passed", "failed", "skipped", "unfinished")
    if not counts:
        return ["Not run."]
    rows = [
        "| file | " + " | ".join(columns) + " | seconds |",
        "| --- |" + " ---: |" * (len(columns) + 1),
        *(
            f"| {file} | {' | '.join(f'{own[column]:.0f}' for column in columns)} | {own['seconds']:.1f} |"
            for file, own in sorted(counts.items())
        ),
    ]
    failed = [line for line in report.of("tests") if "failed" in line["outcome"]]
    details = [f"{line['test']} ({line['outcome']}):\n\n{_indented(line['message'])}" for line in failed]
    skipped = sorted(
        {
            f"{line['test'].partition('[')[0]}: {line['message']}"
            for line in report.of("tests")
            if line["outcome"] == "skipped"
        }
    )
    return ["\n".join(rows), *details, *(["Skipped:", *_bullets(skipped, "")] if skipped else [])]


def _indented(text: str) -> str:
    """A code block, whatever it holds."""
    return "\n".join(f"    {line}" for line in text.splitlines())
