"""CSV and TSV files with a header: a script's own, Lightning's metrics.csv, W&B's history, a tag of TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError

from .base import FORMATS, Format, Rows, number_of_text
from .text import first_lines

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = ",\t;"
_EXAMINED = 20
_COMMENT = b"#"
_ENDS = ("__MIN", "__MAX")


@dataclass(frozen=True)
class Header:
    """The names of the columns of a delimited file, and how they are delimited."""

    names: tuple[str, ...]
    delimiter: str

    @property
    def is_export(self) -> bool:
        """Whether W&B exported a panel: all columns but the first are called "<run> - <metric>"."""
        others = [name for name in self.names[1:] if not name.endswith(_ENDS)]
        return bool(others) and all(" - " in name for name in others)


def header_of(head: bytes) -> Header | str:
    """The header of a delimited file, or what the file lacks to be one."""
    lines = [_text(line) for line in first_lines(head) if not line.lstrip().startswith(_COMMENT)][: _EXAMINED + 1]
    if not lines:
        return "it is no text"
    delimiter = max(DELIMITERS, key=lines[0].count)
    rows = list(csv.reader(lines, delimiter=delimiter))
    names, others = tuple(name.strip() for name in rows[0]), rows[1:]
    if len(names) < 2:
        return "its first line is no header: no comma, semicolon or tab in it"
    if any(number_of_text(name) is not None for name in names):
        return "its first line is no header: it has numbers"
    alike = [row for row in others if len(row) == len(names)]
    if not alike or 2 * len(alike) < len(others):
        return f"its lines have not the {len(names)} columns of its first line"
    if not any(number_of_text(cell) is not None for row in alike for cell in row):
        return "no numbers below its first line"
    return Header(names, delimiter)


def _text(line: bytes) -> str:
    return line.decode(errors="replace")


@FORMATS.register("delimited")
class Delimited(Format):
    """Recognised by a first line of names without numbers and lines of as many columns below it."""

    title = "CSV or TSV"

    def lacks(self, path: Path, head: bytes) -> str:
        header = header_of(head)
        if isinstance(header, str):
            return header
        return "it is an export of W&B" if header.is_export else ""

    def title_of(self, path: Path, head: bytes) -> str:
        header = header_of(head)
        assert isinstance(header, Header)
        names = set(header.names)
        if names & {"_step", "_timestamp", "_runtime"}:
            return "W&B history CSV"
        if {"epoch", "step"} <= names:
            return "Lightning metrics.csv"
        return "TSV" if header.delimiter == "\t" else "CSV"

    def read(self, path: Path) -> list[Rows]:
        from .arrow import rows_of

        table, skipped = read_delimited(path)
        rows = rows_of(table)
        if skipped:
            rows.remarks.append(
                f"{skipped:,} {'line' if skipped == 1 else 'lines'} of another number of columns passed over"
            )
        return [rows] if rows.columns else []


def read_delimited(path: Path) -> tuple[pa.Table, int]:
    """A delimited file as columns of text, and the number of lines that were passed over. Raises :class:`InputError`."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    from .base import HEAD_BYTES

    skipped = 0

    def skip(row: arrow_csv.InvalidRow) -> str:
        nonlocal skipped
        skipped += 1
        return "skip"

    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        header = header_of(head)
        assert isinstance(header, Header)
        options = {
            "read_options": arrow_csv.ReadOptions(skip_rows=_lines_before(head), column_names=_unique(header.names)),
            "parse_options": arrow_csv.ParseOptions(delimiter=header.delimiter, invalid_row_handler=skip),
            "convert_options": arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(_unique(header.names), pa.string()),
                null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=True, check_utf8=False,
            ),
        }  # fmt: skip
        return arrow_csv.read_csv(path, **options), skipped
    except (OSError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or ["damaged"])[0]
        raise InputError(f"{path}: a table of text that cannot be read ({reason}); write the file again") from error


def _unique(names: Sequence[str]) -> list[str]:
    """Names with a number for those that come again."""
    return [name if name not in names[:place] else f"{name}.{place}" for place, name in enumerate(names)]


def _lines_before(head: bytes) -> int:
    """The lines up to and including the header."""
    lines = head.replace(b"\r\n", b"\n").split(b"\n")
    header = next(i for i, line in enumerate(lines) if line.strip() and not line.lstrip().startswith(_COMMENT))
    return header + 1
