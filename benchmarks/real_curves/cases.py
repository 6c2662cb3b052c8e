"""Read a folder of curves and their labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from common.errors import InputError, note

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]
Half = Literal["tune", "report"]

LABELS = "labels.json"
RISE_AFTER = 5_000
"""Steps after the onset of a late rise in which it may be found. Nothing later is scored, so the curve is cut there."""


class Label(BaseModel):
    """What a viewer saw in one curve. Steps are those of the log."""

    model_config = ConfigDict(extra="forbid")

    every: int = Field(ge=1)
    """Steps between two lines of the log."""
    source: str = Field(min_length=1)
    sharp: list[int]
    """First steps of spikes."""
    late_rise: int | None
    """First step of a rise of the level that stays."""
    healthy: bool
    note: str = ""

    @model_validator(mode="after")
    def _agrees(self) -> Label:
        if self.healthy and (self.sharp or self.late_rise is not None):
            raise ValueError("a healthy curve has neither sharp nor late_rise")
        return self


class Above(NamedTuple):
    """Every value above ``limit`` is to be covered by an event."""

    limit: float


class TimesMedian(NamedTuple):
    """Every value of at least ``factor`` times the centred running median of ``window`` values is to be covered, where the
    window is whole; an event there that covers none is false."""

    factor: float
    window: int


class Count(NamedTuple):
    """``number`` events are to be found; where, the viewer did not write down."""

    number: int


class Noted(NamedTuple):
    """A column that is scored by the curve's note instead of the labels."""

    column: str
    rule: Above | TimesMedian | Count


BY_NOTE = {
    "hf_star": Noted("grad_norm", Above(3 * 4.8)),
    "llmc_124m": Noted("grad_norm", TimesMedian(2.0, 201)),
    "nanogpt_153325": Noted("loss", Count(14)),
}
"""By curve, the notes made into rules. Values of hf_star above three times the usual 4.8: 32, as its note says. A window of 201
values gives the 16 of llmc_124m's note."""


@dataclass(frozen=True)
class Curve:
    """One column of one log: the values that were written, at their steps, as far as they are scored."""

    name: str
    column: str
    half: Half
    label: Label
    steps: Steps
    values: Floats
    rule: Above | TimesMedian | Count | None = None
    """Scored by this instead of the labels."""

    @property
    def labelled(self) -> bool:
        """Whether it is scored by its labels."""
        return self.rule is None


def load(folder: Path) -> list[Curve]:
    """All columns that are scored, in the order of the curves' names. The halves alternate in that order. Raises InputError
    naming a file that is missing or cannot be used."""
    curves = []
    for place, (name, label) in enumerate(sorted(load_labels(folder).items())):
        table = _table(folder / f"{name}.parquet")
        half: Half = "report" if place % 2 else "tune"
        noted = BY_NOTE.get(name)
        if label.healthy or label.sharp or label.late_rise is not None:
            if "loss" in table.columns:
                curves.append(Curve(name, "loss", half, label, *_column(table, "loss", label.late_rise)))
            else:
                note(f"{name} has no column loss: left out")
        elif noted is None:
            note(f"{name} is neither healthy nor labelled: left out")
        if noted is not None:
            if noted.column not in table.columns:
                raise InputError(f"{folder / name}.parquet has no column {noted.column}, by which {name} is scored")
            curves.append(Curve(name, noted.column, half, label, *_column(table, noted.column, None), noted.rule))
    if not curves:
        raise InputError(f"{folder / LABELS} has no curve that can be scored; label one, or name another folder")
    return curves


def load_labels(folder: Path) -> Mapping[str, Label]:
    """The labels by curve. Raises InputError naming each mistake."""
    file = folder / LABELS
    try:
        return TypeAdapter(dict[str, Label]).validate_python(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); name a folder of curves that has one") from error
    except ValidationError as error:
        raise InputError(*(f"{file}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from error
    except ValueError as error:
        raise InputError(f"{file} is no JSON: {error}") from error


def _table(file: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"{file} cannot be read as parquet ({error}); {LABELS} names it") from error
    if "step" not in table.columns:
        raise InputError(f"{file} has no column step")
    if not table["step"].is_monotonic_increasing or not table["step"].is_unique:
        raise InputError(f"{file}: step goes back or repeats; sort the rows and keep one of each step")
    return table


def _column(table: pd.DataFrame, column: str, late_rise: int | None) -> tuple[Steps, Floats]:
    """Steps and values at which the column was written. NaN in a table means that it was not."""
    rows = table[["step", column]].dropna()
    if late_rise is not None:
        rows = rows[rows["step"] <= late_rise + RISE_AFTER]
    return rows["step"].to_numpy(np.int64), rows[column].to_numpy(np.float64)
