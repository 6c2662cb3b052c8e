"""Parquet tables, as pandas, polars and datasets write them."""

from __future__ import annotations

from pathlib import Path

from common.errors import InputError

from .base import FORMATS, Format, Rows

_MAGIC = b"PAR1"


@FORMATS.register("parquet")
class ParquetFile(Format):
    """Recognised by its first four bytes."""

    title = "parquet"

    def lacks(self, path: Path, head: bytes) -> str:
        return "" if head.startswith(_MAGIC) else f"its first bytes are not {_MAGIC.decode()}"

    def read(self, path: Path) -> list[Rows]:
        import pyarrow as pa
        from pyarrow import parquet

        from .arrow import rows_of

        try:
            table = parquet.read_table(path)
        except (OSError, pa.ArrowException) as error:
            reason = (str(error).splitlines() or ["damaged"])[0]
            raise InputError(f"{path}: parquet, but it cannot be read ({reason}); write the file again") from error
        rows = rows_of(table)
        return [rows] if rows.columns else []
