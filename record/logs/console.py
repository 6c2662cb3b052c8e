"""What a training script printed, of any tool in console_tools.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from .base import FORMATS, Format, Rows, RowsBuilder, number_of_text, open_error
from .columns import SIGNALS, role_of
from .console_tools import ANY_TOOL, TOOLS, Tool
from .text import first_lines

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07")
_RANK = re.compile(r"^\s*(?:\[(?:rank|default)?_?(\d+)\]\s*:?|(\d+):\s)", re.IGNORECASE)
"""As torchrun and srun mark the lines of a rank."""
_ENOUGH = 5
"""Lines of a tool by which it is recognised; a file with fewer may be too short to have more."""
_LONGEST_LINE = 20_000
_EXAMINED = 2_000_000
"""Lines in which the first row is looked for: some scripts print their whole source first."""
_LOSSES = (*SIGNALS, "val_loss")


@FORMATS.register("console")
class Console(Format):
    """Recognised by lines that fit the expressions of a tool."""

    title = "console log"
    order = 2

    def lacks(self, path: Path, head: bytes) -> str:
        if not first_lines(head):
            return "it is no text"
        names = ", ".join(dict.fromkeys(tool.title for tool in TOOLS))
        return "" if _tool_of(path) else f"no line of {names}, and none with a step and a loss"

    def title_of(self, path: Path, head: bytes) -> str:
        tool = _tool_of(path)
        return self.title if tool in (None, ANY_TOOL) else f"{self.title} of {tool.title}" if tool else self.title

    def read(self, path: Path) -> list[Rows]:
        tool = _tool_of(path)
        assert tool is not None
        builder = RowsBuilder()
        step, own_rank = None, None
        for text in _lines(path):
            rank = _RANK.match(text)
            match = tool.step.search(text)
            if match:
                if rank and own_rank is None and _fields(tool, text, match):
                    own_rank = rank[0]
                if rank and rank[0] != own_rank:
                    continue
                step = _step(match)
                numbers = _fields(tool, text, match)
            elif tool.follows and step is not None and (not rank or rank[0] == own_rank):
                numbers = dict(_numbers(tool.follows.findall(text)))
            else:
                continue
            if numbers and step is not None:
                builder.add({"step": step, **numbers})
        return [builder.rows(first_counts=True)] if builder.count else []


def _lines(path: Path) -> Iterator[str]:
    """Lines without colours; a carriage return ends a line too (progress bars)."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if len(line) <= _LONGEST_LINE:
                    yield _ANSI.sub("", line) if "\x1b" in line else line
    except OSError as error:
        raise open_error(path, error) from error


def _tool_of(path: Path) -> Tool | None:
    """The tool whose expressions fit the first rows of a file."""
    fitting: Counter[int] = Counter()
    others = 0
    for count, text in enumerate(_lines(path)):
        for place, tool in enumerate(TOOLS):
            match = tool.step.search(text)
            if match and _fields(tool, text, match):
                fitting[place] += 1
        others += bool((match := ANY_TOOL.step.search(text)) and _fields(ANY_TOOL, text, match))
        if (fitting and max(fitting.values()) >= _ENOUGH) or count > _EXAMINED:
            break
    if fitting:
        return TOOLS[max(fitting, key=lambda place: (fitting[place], -place))]
    return ANY_TOOL if others else None


def _step(match: re.Match[str]) -> float:
    groups = match.groupdict()
    return float((groups["step"] or groups["at"]).replace(",", ""))


def _fields(tool: Tool, text: str, match: re.Match[str]) -> dict[str, float]:
    """The numbers of a row by name; none for any tool's line without a loss or a gradient norm."""
    found = _numbers(tool.field.findall(text if tool.whole_line else text[match.end() :]))
    if match.groupdict().get("val"):
        return {f"validation {name}": value for name, value in found}
    numbers: dict[str, float] = {}
    for name, value in found:
        numbers.setdefault(name, value)
    if tool is ANY_TOOL:
        numbers = {name: value for name, value in numbers.items() if not ANY_TOOL.step.fullmatch(f"{name} 0")}
        known = (role_of(name) for name in numbers)
        return numbers if any(role is not None and role.key in _LOSSES for role in known) else {}
    return numbers


def _numbers(found: list[tuple[str, str]]) -> list[tuple[str, float]]:
    numbers = [(name.strip(), number_of_text(value)) for name, value in found]
    return [(name, value) for name, value in numbers if value is not None and name != "step"]
