"""Rows out of tables of pyarrow, for formats with columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from .base import Column, Rows, number_of_text, validation_name, validation_prefix


def rows_of(table: pa.Table, name: str = "") -> Rows:
    """The numbers of a table: nothing where it has null, text or truth values. Structs become columns of their own."""
    while any(pa.types.is_struct(column.type) for column in table.columns):
        table = table.flatten()
    found: dict[str, Column] = {}
    of_validation = _validation_rows(table)
    for title, column in zip(table.column_names, table.columns, strict=True):
        label = title.strip()
        numbers = numbers_of(column)
        if numbers is None or label in found or not label:
            continue
        places, values = numbers
        own = validation_name(label)
        if of_validation is not None and own != label:
            apart = of_validation[places]
            found[own] = places[apart], values[apart]
            places, values = places[~apart], values[~apart]
        found[label] = places, values
    return Rows(name, table.num_rows, {key: column for key, column in found.items() if len(column[0])})


def numbers_of(column: pa.ChunkedArray) -> Column | None:
    """Rows and values of a column's numbers; None for a column of another kind."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _numbers_of_text(column)
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        return None
    places = np.flatnonzero(pc.is_valid(column).to_numpy())
    return places, column.drop_null().cast(pa.float64(), safe=False).to_numpy().astype(np.float64)


def _numbers_of_text(column: pa.ChunkedArray) -> Column | None:
    trimmed = pc.utf8_trim_whitespace(column)
    written = pc.if_else(pc.equal(trimmed, ""), None, trimmed)
    try:
        return numbers_of(written.cast(pa.float64()))
    except pa.ArrowInvalid:  # words among them, or thousands separators
        found = [None if text is None else number_of_text(text) for text in written.to_pylist()]
    places = np.array([place for place, value in enumerate(found) if value is not None], dtype=np.int64)
    values = np.array([value for value in found if value is not None], dtype=np.float64)
    return (places, values) if len(places) else None


def _validation_rows(table: pa.Table) -> npt.NDArray[np.bool_] | None:
    """Mask of the rows that say that they are of validation; None if no column says it."""
    of_text: dict[str, Any] = {}
    for title, column in zip(table.column_names, table.columns, strict=True):
        words = column.unique() if pa.types.is_string(column.type) else pa.array([], pa.string())
        if len(words) <= 20 and any(validation_prefix({title: word}) for word in words.to_pylist()):
            of_text[title] = column
    if not of_text:
        return None
    mask = np.zeros(table.num_rows, dtype=bool)
    for title, column in of_text.items():
        mask |= np.array([validation_prefix({title: word}) for word in column.to_pylist()], dtype=bool)
    return mask
