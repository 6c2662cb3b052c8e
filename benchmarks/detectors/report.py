"""Tables of the part with pulses."""

from __future__ import annotations

import pandas as pd

from analysis.show.tables import markdown_table
from stability.detect.catalogue import DEFAULT

from .measure import Outcome
from .pulses import HEAVY, LENGTHS, SIZES


def tables(outcomes: dict[str, Outcome]) -> str:
    """The tables of this part in Markdown."""
    return f"{overview(outcomes)}\n{by_source(outcomes)}\n{by_size(outcomes)}"


def overview(outcomes: dict[str, Outcome]) -> str:
    """Markdown: a row per detector, over all sources but heavy innovations."""
    header = ["detector", "recall", "precision", "early", "burst", "plateau", "lone", "creep"]
    header += ["1 step, 20 sigmas or more", "false alarms", "delay, steps", "us a value"]
    rows = []
    for name, outcome in outcomes.items():
        faults = outcome.faults[outcome.faults["source"] != HEAVY]
        alarms = int((outcome.alarms["source"] != HEAVY).sum())
        target = faults[faults["target"]]
        kinds = [share(target[target["kind"] == kind]) for kind in ("early", "burst", "plateau", "lone")]
        kinds += [share(faults[faults["kind"] == "creep"])]
        kinds += [share(faults[(faults["length"] == 1) & (faults["size"] >= 20)])]
        cost = f"{1e6 * outcome.seconds / outcome.values:.0f}"
        scores = [share(target, 4), _precision(faults, alarms)]
        rows.append([name, *scores, *kinds, str(alarms), f"{target['delay'].mean():.1f}", cost])
    count = len(target)
    return f"{markdown_table(header, rows)}\nRecall over {count} faults of at least 6 sigmas and 2 steps, early ones included.\n"


def by_source(outcomes: dict[str, Outcome]) -> str:
    """Markdown: recall of the target, and precision, for each source of curves."""

    def scores(outcome: Outcome, source: str) -> str:
        faults = outcome.faults[outcome.faults["source"] == source]
        alarms = int((outcome.alarms["source"] == source).sum())
        return f"{share(faults[faults['target']])} / {_precision(faults, alarms)} ({alarms})"

    sources = list(dict.fromkeys(next(iter(outcomes.values())).faults["source"]))
    rows = [[name, *(scores(outcome, source) for source in sources)] for name, outcome in outcomes.items()]
    return markdown_table(["recall / precision (false alarms)", *sources], rows)


def by_size(outcomes: dict[str, Outcome]) -> str:
    """Markdown: share of pulses hit, by size and length for the default detector, by size for all."""

    def shares(outcome: Outcome, size: int, *lengths: tuple[int, ...]) -> list[str]:
        faults = outcome.faults[(outcome.faults["source"] != HEAVY) & (outcome.faults["size"] == size)]
        pulses = faults[faults["kind"].isin(["pulse", "lone"])]
        return [share(pulses[pulses["length"].isin(group)], 2) for group in lengths]

    grid = [[f"{size} sigmas", *shares(outcomes[DEFAULT], size, *((n,) for n in LENGTHS))] for size in SIZES]
    rows = [
        [f"{name}, {which}", *(shares(outcome, size, lengths)[0] for size in SIZES)]
        for name, outcome in outcomes.items()
        for which, lengths in (("1 step", LENGTHS[:1]), ("longer", LENGTHS[1:]))
    ]
    table = markdown_table([f"pulses hit by {DEFAULT}", *(f"{n} step{'s' * (n > 1)}" for n in LENGTHS)], grid)
    return f"{table}\n{markdown_table(['pulses hit', *(f'{size} sigmas' for size in SIZES)], rows)}"


def share(faults: pd.DataFrame, digits: int = 3) -> str:
    """The share of faults that were hit; empty if there are none."""
    return f"{faults['hit'].mean():.{digits}f}" if len(faults) else ""


def _precision(faults: pd.DataFrame, alarms: int) -> str:
    hits = int(faults["hit"].sum())
    return f"{hits / (hits + alarms):.4f}" if hits + alarms else ""
