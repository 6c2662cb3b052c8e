"""Tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 120
"""Characters per line of a printed table; a wider one is cut into blocks that repeat the first column."""


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH, names: int = 1) -> str:
    """Right-aligned columns (the first left-aligned), in as many blocks, one below the other, as ``width`` requires. Each repeats
    the first ``names`` columns, which say what a row is of."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    first = sum(widths[:names]) + 2 * (names - 1)
    blocks: list[list[int]] = [[]]
    used = first
    for column, needed in enumerate(widths[names:], start=names):
        if blocks[-1] and used + 2 + needed > width:
            blocks.append([])
            used = first
        blocks[-1].append(column)
        used += 2 + needed

    def line(row: Sequence[str], block: list[int]) -> str:
        cells = (row[i].rjust(widths[i]) for i in [*range(1, names), *block])
        return "  ".join([row[0].ljust(widths[0]), *cells]).rstrip()

    return "\n\n".join("\n".join(line(row, block) for row in (header, *rows)) for block in blocks)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table, first column left-aligned, the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
