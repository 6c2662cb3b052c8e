"""Tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 120
"""Columns a printed table may take; a wider one is cut into blocks that repeat the first column."""


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """Right-aligned columns (the first left-aligned), in as many blocks one below the other as ``width`` asks for."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    blocks: list[list[int]] = [[]]
    used = widths[0]
    for column in range(1, len(header)):
        if blocks[-1] and used + 2 + widths[column] > width:
            blocks.append([])
            used = widths[0]
        blocks[-1].append(column)
        used += 2 + widths[column]
    return "\n\n".join(
        "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in block)]).rstrip()
            for row in (header, *rows)
        )
        for block in blocks
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table, first column left-aligned, the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
