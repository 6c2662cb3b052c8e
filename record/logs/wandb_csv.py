"""CSV exports of W&B's panels: a column "<run> - <metric>" for each run and metric, each with its __MIN and __MAX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .base import FORMATS, Column, Format, Rows
from .delimited import Header, header_of, read_delimited

_ENDS = ("__MIN", "__MAX")


@FORMATS.register("wandb_csv")
class WandbExport(Format):
    """Recognised by the header: all columns but the first are called "<run> - <metric>"."""

    title = "W&B CSV export"

    def lacks(self, path: Path, head: bytes) -> str:
        header = header_of(head)
        return "" if isinstance(header, Header) and header.is_export else 'no columns called "<run> - <metric>"'

    def read(self, path: Path) -> list[Rows]:
        from .arrow import numbers_of

        table, _ = read_delimited(path)
        axis, *names = table.column_names
        shared = numbers_of(table.column(0))
        runs: dict[str, dict[str, Column]] = {}
        for place, name in enumerate(names, start=1):
            run, dash, metric = name.rpartition(" - ")
            if name.endswith(_ENDS) or not dash or (numbers := numbers_of(table.column(place))) is None:
                continue
            runs.setdefault(run, {})[metric] = numbers
        return [
            Rows(run, table.num_rows, _with_axis(columns, axis, shared, table.num_rows))
            for run, columns in runs.items()
        ]


def _with_axis(columns: dict[str, Column], axis: str, shared: Any, count: int) -> dict[str, Column]:
    """The columns of a run with the shared axis, at the rows where the run has a value."""
    if shared is None or axis in columns:
        return columns
    there = np.zeros(count, dtype=bool)
    for places, _ in columns.values():
        there[places] = True
    places, values = shared
    return {axis: (places[there[places]], values[there[places]]), **columns}
