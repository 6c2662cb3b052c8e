"""The article's claims, as far as a suite's runs decide them.

    python -m analysis.claims SUITE_DIR|RUN... [--baseline ARM] [--out DIR]

Prints a table: each claim, how it was tested, and its verdict: supported, refuted or not shown. With --out writes claims.md and
claims.json (strict). Everything is computed from run directories and from what probes have found in the suite's checkpoints, in
SUITE_DIR/probes/PROBE; at the end stand the commands that write there what is missing. analysis.stability has the comparisons of
all arms.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import analysis.claims
from analysis.show.tables import WIDTH, markdown_table, terminal_table
from analysis.stability.compare import Study, study
from analysis.stability.fairness import unbegun_line
from analysis.stability.runs import find_runs
from common.command import ArgumentParser, exit_status
from common.errors import InputError
from common.files import write_json, write_text

from .base import CLAIMS, Claim, Judged, interval, judge, verdict_of, worth_of
from .probed import Probed

HEADER = ["arm", "against", "where", "difference [95%]", "n", "p (Holm)", "would show", "verdict"]
READING = (
    "Intervals are of 95%, each of one test by itself; p is adjusted by Holm's method over the tests with two seeds or more that "
    "decide a verdict. A difference is claimed only if its interval excludes 0 and its p is at most 0.05. Would show: the "
    "smallest that would be claimed with 80% power. Tests beside the verdicts decide nothing: their p is their own, not adjusted."
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m analysis.claims", description="The article's claims, decided.")
    parser.add_argument("runs", nargs="+", metavar="SUITE_DIR|RUN", help="a suite's directory, or run directories")
    parser.add_argument("--baseline", metavar="ARM", help="the arm to compare with (default: the plan's, or the first)")
    parser.add_argument("--out", type=Path, help="folder for claims.md and claims.json")
    options = parser.parse_args(arguments)
    found = study(find_runs(options.runs, options.baseline), rules=())
    claims = all_claims()
    if not any(claim.arms(found) for claim in claims.values()):
        lacks = "; ".join(dict.fromkeys(claim.lacks for claim in claims.values()))
        raise InputError(f"{lacks}: give a suite that has one, as the claims are of such arms")
    judged = judge({name: claim.found(found) for name, claim in claims.items()})
    if options.out:  # first: a reader of what is printed may close the pipe
        write_text(options.out / "claims.md", page(found, claims, judged))
        write_json(options.out / "claims.json", as_json(found, claims, judged))
    _print(found, claims, judged)
    if options.out:
        print(f"\nwritten to {options.out}: claims.md, claims.json")


def _print(found: Study, claims: Mapping[str, Claim], judged: Mapping[str, Sequence[Judged]]) -> None:
    """The verdicts, what decides them, and the commands that measure what is missing."""
    if (line := unbegun_line(found.comparison)) is not None:
        print(f"{line}\n")
    print(terminal_table(["claim", "verdict", "tests that decide"], _overview(judged)))
    print(f"\n{textwrap.fill(READING, WIDTH)}")
    for name, claim in claims.items():
        print(f"\n{name}: {_verdict(judged[name])}")
        print(_wrapped(f"{claim.says} Test: {claim.test}.", "  "))
        for one in judged[name]:
            if one.evidence.decides or one.verdict == "not testable here":
                print(_wrapped(_line(one), "  - "))
    missing = {p.command: p for c in claims.values() if (p := _probed(found, c)) is not None and not p.file.is_file()}
    if missing:
        print(f"\nNot measured yet; these write into the suite's directory, in {next(iter(missing.values())).folder}:")
        print(*(f"  {command}" for command in missing), sep="\n")


def _wrapped(text: str, before: str) -> str:
    """Lines of the terminal's width, commands and paths unbroken."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=before,
        subsequent_indent=" " * len(before),
        break_on_hyphens=False,
        break_long_words=False,
    )


def all_claims() -> dict[str, Claim]:
    """Every claim by its name: each module of this package registers its own."""
    for module in pkgutil.iter_modules(analysis.claims.__path__):
        if not module.name.startswith("_"):
            importlib.import_module(f"analysis.claims.{module.name}")
    return {name: kind() for name, kind in CLAIMS.items()}


def _verdict(judged: Sequence[Judged]) -> str:
    """A claim's verdict, and what has to be known of it."""
    worth = worth_of(judged)
    return verdict_of(judged) + (f" ({worth})" if worth else "")


def _overview(judged: Mapping[str, Sequence[Judged]]) -> list[list[str]]:
    return [
        [name, _verdict(each), f"{sum(one.evidence.decides for one in each)} of {len(each)}"]
        for name, each in judged.items()
    ]


def _line(one: Judged) -> str:
    of = one.evidence
    effect = interval(of.difference.effect if of.difference else None, of.form)
    where = ", ".join(part for part in (of.what, of.where) if part)
    arm = f"{of.arm}: " if of.arm and of.arm not in of.told else ""
    told = f"{where}: {arm}{of.told}"
    if not effect or not of.good:
        return f"{told}: {one.verdict}"
    return f"{told}; difference {effect}, unadjusted{'; p = ' + _p(one) + ' by Holm' if _p(one) else ''}: {one.verdict}"


def _p(one: Judged) -> str:
    """The p-value, and whether it is not adjusted; empty without one."""
    if one.p is None or math.isnan(one.p):
        return ""
    return f"{one.p:.2g}{'' if one.evidence.decides else ' unadjusted'}"


def _row(one: Judged) -> list[str]:
    of = one.evidence
    effect = interval(of.difference.effect if of.difference else None, of.form)
    smallest = "" if one.smallest is None else format(one.smallest, of.form.replace("+", ""))
    n = "" if of.difference is None else f"{of.difference.n}"
    return [
        of.arm,
        of.against,
        of.where,
        effect or of.told,
        n,
        _p(one),
        smallest,
        f"{one.verdict}{'' if of.decides else ' (beside)'}",
    ]


def page(found: Study, claims: Mapping[str, Claim], judged: Mapping[str, Sequence[Judged]]) -> str:
    """claims.md: the verdicts, then every test of every claim."""
    one = found.comparison
    unbegun = "" if (line := unbegun_line(one)) is None else f"{line[0].upper()}{line[1:]}. "
    parts = [
        f"# The article's claims\n\n{len(one.runs)} of {len(one.planned)} planned runs; baseline {one.baseline}. {unbegun}"
        f"{READING}\n",
        markdown_table(["claim", "verdict", "tests that decide"], _overview(judged)),
    ]
    for name, claim in claims.items():
        parts.append(
            f"## {name}: {_verdict(judged[name])}\n\n{claim.says}\n\nTest: {claim.test}.{_measured_by(found, claim)}\n"
        )
        for what in dict.fromkeys(each.evidence.what for each in judged[name]):
            rows = [_row(each) for each in judged[name] if each.evidence.what == what]
            parts.append(f"{what[0].upper()}{what[1:]}:\n\n{markdown_table(HEADER, rows)}")
    if commands := dict.fromkeys(p.command for c in claims.values() if (p := _probed(found, c)) is not None):
        lines = "".join(f"    {command}\n" for command in commands)
        parts.append(f"## Commands of the probes\n\nThey write into the suite's directory.\n\n{lines}")
    return "\n".join(parts)


def _measured_by(found: Study, claim: Claim) -> str:
    return f" Measured by {claim.probe}; its command stands at the end." if _probed(found, claim) is not None else ""


def _probed(found: Study, claim: Claim) -> Probed | None:
    """What measures the suite's checkpoints for a claim; None where nothing does."""
    probed = Probed(found, claim.probe)
    return probed if claim.probe and probed.of_suite else None


def as_json(found: Study, claims: Mapping[str, Claim], judged: Mapping[str, Sequence[Judged]]) -> dict[str, Any]:
    """claims.json."""
    return {
        "baseline": found.comparison.baseline,
        "runs": len(found.comparison.runs),
        "planned": len(found.comparison.planned),
        "unbegun": len(found.comparison.unbegun),
        "claims": [
            {
                "claim": name, "says": claim.says, "test": claim.test, "verdict": verdict_of(judged[name]),
                "worth": worth_of(judged[name]), "probe": claim.probe,
                "command": None if (probed := _probed(found, claim)) is None else probed.command,
                "evidence": [
                    asdict(one.evidence)
                    | {"adjusted_p": one.adjusted_p, "smallest": one.smallest, "verdict": one.verdict}
                    | {"row": dict(zip(HEADER, _row(one), strict=True))}
                    for one in judged[name]
                ],
            }
            for name, claim in claims.items()
        ],
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
