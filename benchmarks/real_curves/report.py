"""Tables of a benchmark on real curves, and its rows as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import pandas as pd

from analysis.show.tables import markdown_table

from .cases import Count, Curve, Half, TimesMedian
from .contestants import Contestant
from .score import Sighting, healthy_steps, score, score_noted

PER, WORST_PER = 10_000, 20_000
"""Steps to which false alarms are scaled, over all logs and in the worst one."""
HALVES: dict[str, tuple[Half, ...]] = {
    "all curves": ("tune", "report"),
    "tune half": ("tune",),
    "report half": ("report",),
}


@dataclass(frozen=True)
class Result:
    """What a contestant found: by curve, None where it cannot judge the column."""

    contestant: Contestant
    seen: Sequence[Sequence[Sighting] | None]
    seconds: float
    values: int

    @property
    def speed(self) -> str:
        """Seconds per million values."""
        return f"{1e6 * self.seconds / self.values:.1f}" if self.values else ""


def tables(curves: Sequence[Curve], results: Sequence[Result], absent: Sequence[str]) -> str:
    """The whole report in Markdown."""
    parts = [labelled(curves, results, title, halves) for title, halves in HALVES.items()]
    if any(curve.rule for curve in curves):
        parts.append(noted(curves, results))
    parts += [curve_table(curves), used(results)]
    parts += [f"{name}: not installed (pip install -r requirements-contestants.txt)\n" for name in absent]
    return "\n".join(parts)


def labelled(curves: Sequence[Curve], results: Sequence[Result], title: str, halves: Sequence[Half]) -> str:
    """A row per contestant, over the labelled curves of some halves."""
    header = [title, "sharp spikes", "late rises", "median delay, steps", "false alarms", f"per {PER:,} healthy steps"]
    header += [f"worst log, per {WORST_PER:,}", "s per million values"]
    chosen = [place for place, curve in enumerate(curves) if curve.labelled and curve.half in halves]
    steps = sum(healthy_steps(curves[place]) for place in chosen)
    rows = [[result.contestant.name, *_cells(curves, result, chosen)] for result in results]
    return f"{markdown_table(header, rows)}\n{len(chosen)} curves, {steps:,} healthy steps.\n"


def _cells(curves: Sequence[Curve], result: Result, chosen: Sequence[int]) -> list[str]:
    if reason := result.contestant.takes("loss"):
        return [f"not applicable: {reason}", *[""] * 6]
    scores = {place: score(curves[place], result.seen[place] or ()) for place in chosen}
    healthy = {place: healthy_steps(curves[place]) for place in chosen}
    delays = [one.delay for one in scores.values() if one.delay is not None]
    alarms = sum(len(one.alarms) for one in scores.values())
    worst = max(
        ((len(scores[p].alarms) * WORST_PER / healthy[p], curves[p].name) for p in chosen if healthy[p]),
        default=(0.0, ""),
    )
    return [
        _share([hit for one in scores.values() for hit in one.sharp]),
        _share([hit for one in scores.values() for hit in one.rises]),
        f"{median(delays):.0f}" if delays else "",
        str(alarms),
        f"{alarms * PER / max(sum(healthy.values()), 1):.2f}",
        f"{worst[0]:.1f} ({worst[1]})" if worst[0] else "0.0",
        result.speed,
    ]


def _share(hits: Sequence[bool]) -> str:
    return f"{sum(hits)} of {len(hits)}" if hits else ""


def noted(curves: Sequence[Curve], results: Sequence[Result]) -> str:
    """A row per contestant, a column or two for each column of a log that is scored by its note."""
    places = [place for place, curve in enumerate(curves) if not curve.labelled]
    header = ["by the note"]
    for place in places:
        curve = curves[place]
        title = f"{curve.name} {curve.column}"
        if isinstance(curve.rule, Count):
            header.append(f"{title}, events, {curve.rule.number} by eye ({curve.half})")
        else:
            others = "false" if isinstance(curve.rule, TimesMedian) else "others"
            header += [f"{title} ({curve.half})", f"{others}, {curve.name}"]
    rows = []
    for result in results:
        row = [result.contestant.name]
        for place in places:
            curve, seen = curves[place], result.seen[place]
            if seen is None:
                absent = f"not applicable: {result.contestant.takes(curve.column)}"
                row += [absent] if isinstance(curve.rule, Count) else [absent, ""]
                continue
            one = score_noted(curve, seen)
            row += [str(one.found)] if one.others is None else [f"{one.found} of {one.wanted}", str(one.others)]
        rows.append(row)
    return markdown_table(header, rows)


def curve_table(curves: Sequence[Curve]) -> str:
    """A row per column that was scored."""
    header = ["curve", "column", "half", "values", "healthy steps", "sharp", "late rise", "scored by", "source"]
    rows = []
    for curve in curves:
        label = curve.label
        by = "label" if curve.labelled else "note"
        marks = [str(len(label.sharp)), str(label.late_rise or "")] if curve.labelled else ["", ""]
        healthy = f"{healthy_steps(curve):,}" if curve.labelled else ""
        rows.append([curve.name, curve.column, curve.half, f"{len(curve.values):,}", healthy, *marks, by, label.source])
    return markdown_table(header, rows)


def used(results: Sequence[Result]) -> str:
    """What each contestant is."""
    return markdown_table(["contestant", "used"], [[r.contestant.name, r.contestant.used] for r in results])


def events(curves: Sequence[Curve], results: Sequence[Result]) -> pd.DataFrame:
    """A row per event: contestant, curve, column, start, opened and end step, and whether it is a false alarm."""
    rows: list[Mapping[str, object]] = []
    for result in results:
        for curve, seen in zip(curves, result.seen, strict=True):
            alarms = set(score(curve, seen or ()).alarms) if curve.labelled else set()
            rows += [
                {"contestant": result.contestant.name, "curve": curve.name, "column": curve.column}
                | one._asdict()
                | {"false_alarm": one in alarms}
                for one in seen or ()
            ]
    return pd.DataFrame(rows, columns=["contestant", "curve", "column", "start", "opened", "end", "false_alarm"])
