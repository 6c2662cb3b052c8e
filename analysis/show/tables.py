"""Tables for a terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 120
"""Characters per line of a printed table; a wider one is cut into blocks that repeat the first column."""


def terminal_table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """Right-aligned columns (the first left-aligned), in as many blocks, one below the other, as ``width`` requires."""
    first, *widths = (max(map(len, column)) for column in zip(header, *rows, strict=True))
    blocks: list[list[int]] = [[]]
    used = first
    for column, needed in enumerate(widths, start=1):
        if blocks[-1] and used + 2 + needed > width:
            blocks.append([])
            used = first
        blocks[-1].append(column)
        used += 2 + needed

    def line(row: Sequence[str], block: list[int]) -> str:
        return "  ".join([row[0].ljust(first), *(row[i].rjust(widths[i - 1]) for i in block)]).rstrip()

    return "\n\n".join("\n".join(line(row, block) for row in (header, *rows)) for block in blocks)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table, first column left-aligned, the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
