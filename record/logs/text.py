"""The first lines of a text file, by which formats of text are recognised."""

from __future__ import annotations

_BOMS = (b"\xff\xfe", b"\xfe\xff")


def first_lines(head: bytes) -> list[bytes]:
    """The complete lines that are not blank at the beginning of a file; none if it is no text. A single line may be cut."""
    if b"\0" in head or head.startswith(_BOMS):
        return []
    lines = head.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    whole = lines[:-1] if len(lines) > 1 and lines[-1].strip() else lines
    return [line for line in whole if line.strip()]
