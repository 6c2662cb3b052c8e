"""Tables of the part with real shapes, noise and intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from analysis.show.tables import markdown_table

from .cases import Case
from .logged import AS_IT_WAS, RISE_LOGS, RISE_SIZES, SIZES, SPIKE_LOGS
from .measure import Outcome, quiet_values
from .report import share

SPIKES = ("gradual", "sharp decay")
PLAIN = 8
"""Sigmas from which a spike is counted where sizes are not told apart."""
SEEN = 6
"""Sigmas of the largest logged value from which a spike can be said to be in the log."""
SLOW = 30
"""Values above which a late rise is slow."""


def tables(all_cases: Sequence[Case], outcomes: dict[str, Outcome]) -> str:
    """The tables of this part in Markdown."""
    sources = list(dict.fromkeys(case.source for case in all_cases))
    parts = [by_shape(outcomes), late_rises(outcomes), by_interval(outcomes), delays(outcomes)]
    parts.append(false_alarms("noise of", sources, [case.source for case in all_cases], "source", all_cases, outcomes))
    parts.append(
        false_alarms("every", list(SPIKE_LOGS), [case.every for case in all_cases], "every", all_cases, outcomes)
    )
    return "\n".join(parts)


def _rows(outcomes: dict[str, Outcome], cells: Callable[[pd.DataFrame], list[str]]) -> list[list[str]]:
    return [[name, *cells(outcome.faults)] for name, outcome in outcomes.items()]


def by_shape(outcomes: dict[str, Outcome]) -> str:
    """Recall by shape and size where every step is logged."""

    def cells(faults: pd.DataFrame, kind: str) -> list[str]:
        chosen = faults[(faults["kind"] == kind) & (faults["every"] == 1)]
        return [share(chosen[chosen["size"] == size], 2) for size in (*SIZES, AS_IT_WAS)]

    rows = [
        [f"{name}, {kind}", *cells(outcome.faults, kind)]
        for name, outcome in outcomes.items()
        for kind in (*SPIKES, "bloom")
        if not (name == "level" and kind == "bloom")
    ]
    return markdown_table(["spikes hit, every step", *(f"{size} sigmas" for size in SIZES), "as it was"], rows)


def late_rises(outcomes: dict[str, Outcome]) -> str:
    """Recall and delay of late rises by size, and by how slow they are."""

    def cells(faults: pd.DataFrame) -> list[str]:
        late = faults[faults["kind"] == "late rise"]
        slow = late["rise"] >= SLOW
        sizes = [share(late[late["size"] == size], 2) for size in RISE_SIZES]
        return [*sizes, share(late[~slow], 2), share(late[slow], 2), share(late)]

    header = [f"{size} sigma{'s' * (size > 1)}" for size in RISE_SIZES]
    header += [f"{SLOW} values or fewer", "more", "all"]
    count = int((next(iter(outcomes.values())).faults["kind"] == "late rise").sum())
    return f"{markdown_table(['late rises hit', *header], _rows(outcomes, cells))}\n{count} late rises.\n"


def by_interval(outcomes: dict[str, Outcome]) -> str:
    """Recall of spikes and of late rises by the interval of the log; first, what share of the spikes is in it."""

    def chosen(faults: pd.DataFrame, every: int) -> pd.DataFrame:
        return faults[(faults["every"] == every) & faults["kind"].isin(SPIKES) & (faults["size"] >= PLAIN)]

    def cells(faults: pd.DataFrame) -> list[str]:
        late = faults[faults["kind"] == "late rise"]
        spikes = [share(chosen(faults, every), 2) for every in SPIKE_LOGS]
        return [*spikes, *(share(late[late["every"] == every], 2) for every in RISE_LOGS)]

    faults = next(iter(outcomes.values())).faults
    logged = [f"{(chosen(faults, every)['top'] >= SEEN).mean():.2f}" for every in SPIKE_LOGS]
    lengths = [f"{chosen(faults, every)['length'].median():.0f}" for every in SPIKE_LOGS]
    blank = [""] * len(RISE_LOGS)
    rows = [["values of a spike (median)", *lengths, *blank]]
    rows += [[f"a logged value of {SEEN} sigmas", *logged, *blank], *_rows(outcomes, cells)]
    header = [
        f"{what}, every {every}" for what, by in (("spikes", SPIKE_LOGS), ("late rises", RISE_LOGS)) for every in by
    ]
    return markdown_table(["hit, by interval", *header], rows)


def delays(outcomes: dict[str, Outcome]) -> str:
    """Median delay of the hits, in logged values, from the first value of the fault and from its peak."""

    def cells(faults: pd.DataFrame) -> list[str]:
        hit = faults[faults["hit"]]
        large = hit[(hit["every"] == 1) & (hit["size"] >= PLAIN)]
        kinds = [large[large["kind"] == kind] for kind in (*SPIKES, "bloom")] + [hit[hit["kind"] == "late rise"]]
        return [text for kind in kinds for text in (_median(kind["delay"]), _median(kind["delay"] - kind["rise"]))]

    kinds = (*SPIKES, "bloom", "late rise")
    header = [f"{kind}{what}" for kind in kinds for what in ("", ", from the peak")]
    return markdown_table(["median delay, values", *header], _rows(outcomes, cells))


def _median(values: pd.Series) -> str:
    return f"{values.median():.0f}" if len(values) else ""


def false_alarms(
    title: str,
    groups: Sequence[object],
    group_of: Sequence[object],
    column: str,
    all_cases: Sequence[Case],
    outcomes: dict[str, Outcome],
) -> str:
    """False alarms in 10,000 values outside of faults, by a column of the alarms; ``group_of``: the same of each case."""
    values = {
        group: sum(quiet_values(case) for case, of in zip(all_cases, group_of, strict=True) if of == group)
        for group in groups
    }

    def cells(alarms: pd.DataFrame) -> list[str]:
        each = [f"{1e4 * (alarms[column] == group).sum() / values[group]:.2f}" for group in groups]
        return [*each, f"{1e4 * len(alarms) / sum(values.values()):.2f}"]

    rows = [[name, *cells(outcome.alarms)] for name, outcome in outcomes.items()]
    rows.append(["values outside of faults", *(f"{count:,}" for count in values.values()), f"{sum(values.values()):,}"])
    return markdown_table([f"false alarms per 10,000, {title}", *map(str, groups), "all"], rows)
