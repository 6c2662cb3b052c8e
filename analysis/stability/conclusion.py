"""The table that closes a report: for each arm whether it is better or worse than the baseline in the measures that matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from analysis.show.text import visible

from .compare import ALL_RATES, NO_DIFFERENCE, PRIMARY, TOO_FEW_SEEDS, Row, Share, Study
from .tables import Shown, mean_text, name_of, rate_text

SHORT = {NO_DIFFERENCE: "~", TOO_FEW_SEEDS: "-"}
"""Verdicts in the table."""


class Conclusion(NamedTuple):
    """An arm's value in words, and what may be said of it: better, worse, either of these in all seeds, NO_DIFFERENCE, or
    TOO_FEW_SEEDS. The baseline has no verdict, nor has what is not compared."""

    value: str
    verdict: str


@dataclass(frozen=True)
class Column:
    """A measure, with the conclusion for each arm that has it."""

    key: str
    heading: str
    cells: Mapping[str, Conclusion]
    valued: bool = False
    """Whether the table shows the values of every arm: of counts, and of what has no verdict."""


def conclusions(found: Study) -> list[Column]:
    """The columns: without a stress, then whether runs survived and were back in each other scenario."""
    return [column for column in _columns(found) if column.cells]


def _columns(found: Study) -> Iterator[Column]:
    one, calm = found.comparison, found.comparison.calm
    basis = found.bases(calm)[0]

    def final(arm: str) -> str:
        return mean_text(found.on(basis, PRIMARY, arm, calm), ".4f")

    def sensitivity(arm: str) -> str:
        return mean_text(found.sweeps[arm, calm].sensitivity(), ".3f")

    def largest(arm: str) -> str:
        return rate_text(found.sweeps[arm, calm].largest_stable())

    def spikes(arm: str) -> str:
        return "-" if (rate := found.spike_rate("nll", arm, calm)) is None else f"{1000 * rate.rate:.1f}"

    def excess(arm: str) -> str:
        values = [m.values["excess"] for m in found.of(arm, calm).values()]
        return mean_text(dict(enumerate(value for value in values if value is not None)), ".1f")

    yield _of_rows(found, "final_nll", "final NLL", found.rows(calm, basis, PRIMARY), final)
    yield _of_rows(found, "sensitivity", "sensitivity", found.sensitivity_rows(calm), sensitivity)
    swept = [arm for arm in one.arms if len(found.sweeps[arm, calm].rates) > 1]
    yield Column("stable_to", "stable to", {arm: Conclusion(largest(arm), "") for arm in swept}, valued=True)
    yield _of_rows(found, "spikes_nll", "NLL spikes", found.rows(calm, ALL_RATES, "spikes_nll"), spikes)
    yield _of_rows(found, "excess", "nat-steps", found.rows(calm, ALL_RATES, "excess"), excess)
    yield _of_shares("survived", "survived", found.shares("survived", calm))
    for scenario in one.scenarios[1:]:
        yield _of_shares(f"{scenario}/survived", visible(scenario), found.shares("survived", scenario))
        yield _of_shares(f"{scenario}/back", "back", found.shares("back", scenario))


def _of_rows(found: Study, key: str, heading: str, rows: Sequence[Row], value: Callable[[str], str]) -> Column:
    if not rows:
        return Column(key, heading, {})
    cells = {found.comparison.baseline: Conclusion(value(found.comparison.baseline), "")}
    for row in rows:
        if row.difference.n:
            cells[row.arm] = Conclusion(value(row.arm), _said(row))
    return Column(key, heading, cells)


def _of_shares(key: str, heading: str, shares: Sequence[Share]) -> Column:
    cells = {one.arm: Conclusion(f"{one.share.k}/{one.share.n}", one.verdict) for one in shares}
    return Column(key, heading, cells, valued=True)


def _said(row: Row) -> str:
    if row.verdict in ("better", "worse"):
        return row.verdict
    if row.alike is not None:
        return f"{row.alike} in all"
    return NO_DIFFERENCE if row.difference.p is not None else TOO_FEW_SEEDS


def short_table(found: Study) -> Shown | None:
    """A row for each arm; None without an arm to compare."""
    one, columns = found.comparison, conclusions(found)
    if not one.compared or not columns:
        return None
    rows = [[name_of(found, arm), *(_cell(column, arm, one.baseline) for column in columns)] for arm in one.arms]
    notes = (
        f"The first row has {visible(one.baseline)}'s values. Better, worse: shown, adjusted by Holm over the arms of a column; "
        "in all: by the same in every seed, without a test that shows it; ~: no difference shown; -: none could be shown with so "
        "few seeds (of counts the p-value is at least 2 \N{MULTIPLICATION SIGN} 0.5^seeds). Final NLL: "
        f"{found.basis_text(one.calm, found.bases(one.calm)[0])}; the other columns: all rates. Stable to: a rate, with no "
        "verdict; -: unstable at the best rate already. Under a stress: survived, then back."
    )
    return Shown("In short", ["arm", *(column.heading for column in columns)], rows, notes)


def _cell(column: Column, arm: str, baseline: str) -> str:
    if arm not in column.cells:
        return ""
    value, verdict = column.cells[arm]
    if arm == baseline or not verdict:
        return value
    short = SHORT.get(verdict, verdict)
    return f"{value} {short}" if column.valued else short
