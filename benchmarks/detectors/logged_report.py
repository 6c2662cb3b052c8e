"""Tables of the part with real shapes, noise and intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pandas as pd

from analysis.show.tables import markdown_table
from record.metrics import kind_of

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
    sources = [case.source for case in all_cases]
    intervals = [case.every if kind_of(case.signal) == "loss" else None for case in all_cases]
    parts = [by_shape(outcomes), late_rises(outcomes), by_interval(outcomes), delays(outcomes)]
    parts.append(false_alarms("noise of", list(dict.fromkeys(sources)), sources, all_cases, outcomes))
    parts.append(false_alarms("losses every", list(SPIKE_LOGS), intervals, all_cases, outcomes))
    return "\n".join(parts)


def _rows(outcomes: dict[str, Outcome], cells: Callable[[pd.DataFrame], list[str]]) -> list[list[str]]:
    return [[name, *cells(outcome.faults)] for name, outcome in outcomes.items()]


def by_shape(outcomes: dict[str, Outcome]) -> str:
    """Recall by shape, signal and size where every step is logged."""
    rows = []
    for name, outcome in outcomes.items():
        spikes = outcome.faults[(outcome.faults["every"] == 1) & (outcome.faults["kind"] != "late rise")]
        for (kind, signal), group in spikes.groupby(["kind", "signal"]):
            cells = [share(group[group["size"] == size], 2) for size in (*SIZES, AS_IT_WAS)]
            rows.append([f"{name}, {kind} in {signal}", *cells])
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
    all_cases: Sequence[Case],
    outcomes: dict[str, Outcome],
) -> str:
    """False alarms in 10,000 values outside of faults, by groups of cases; ``group_of``: that of each case."""
    values: Counter[object] = Counter()
    for case, group in zip(all_cases, group_of, strict=True):
        values[group] += quiet_values(case)
    total = sum(values[group] for group in groups)

    def cells(alarms: pd.DataFrame) -> list[str]:
        counts = Counter(group_of[case] for case in alarms["case"])
        each = [_rate(counts[group], values[group]) for group in groups]
        return [*each, _rate(sum(counts[group] for group in groups), total)]

    rows = [[name, *cells(outcome.alarms)] for name, outcome in outcomes.items()]
    rows.append(["values outside of faults", *(f"{values[group]:,}" for group in groups), f"{total:,}"])
    return markdown_table([f"false alarms per 10,000, {title}", *map(str, groups), "all"], rows)


def _rate(alarms: int, values: int) -> str:
    return f"{1e4 * alarms / values:.2f}" if values else ""
