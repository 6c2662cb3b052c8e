"""What a training script printed, of any tool in console_tools.py."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from .base import FORMATS, Format, Rows, RowsBuilder, open_error
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
_STEP_NAMES = ("step", "iteration", "iter")
_TRAINER_ROW = b"{'loss': "
Numbers = dict[str, float]


@FORMATS.register("console")
class Console(Format):
    """Recognised by lines that fit the expressions of a tool."""

    title = "console log"
    order = 2

    def lacks(self, path: Path, head: bytes) -> str:
        if not first_lines(head):
            return "it is no text"
        if _tool_of(path):
            return ""
        if _TRAINER_ROW in head:
            return "what transformers' Trainer prints has no step: name the trainer_state.json of its last checkpoint"
        return f"no line of {', '.join(dict.fromkeys(tool.title for tool in TOOLS))}, and none with a step and a loss"

    def title_of(self, path: Path, head: bytes) -> str:
        tool = _tool_of(path)
        return self.title if tool is None or tool is ANY_TOOL else f"{self.title} of {tool.title}"

    def read(self, path: Path) -> list[Rows]:
        tool = _tool_of(path)
        assert tool is not None
        builder = RowsBuilder()
        for step, numbers in _rows(tool, path):
            builder.add({"step": step, **numbers})
        return [builder.rows(first_counts=True)] if builder.count else []


def _rows(tool: Tool, path: Path) -> Iterator[tuple[float, Numbers]]:
    """Steps and numbers of the lines that have some, of the first rank alone where lines say of which rank they are."""
    step, own, waiting = 0.0, "", Numbers()
    for text in _lines(path):
        rank = match[0] if (match := _RANK.match(text)) else ""
        found = tool.step.search(text)
        if found:
            numbers = _fields(tool, text, found)
            own = own or (rank if numbers else "")
            if rank == own or not rank:
                step = _step(found)
                if numbers or waiting:
                    yield step, numbers | waiting
                waiting = Numbers()
        elif tool.follows and (rank == own or not rank) and (numbers := Numbers(_numbers(tool.follows.findall(text)))):
            if tool.ahead:
                waiting |= numbers
            else:
                yield step, numbers
    if waiting:
        yield step, waiting


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
    """The tool whose expressions find a loss in the first rows of a file."""
    fitting: Counter[Tool] = Counter()
    for count, text in enumerate(_lines(path)):
        for tool in (*TOOLS, ANY_TOOL):
            match = tool.step.search(text)
            follows = tool.follows.findall(text) if tool.follows else []
            fitting[tool] += has_loss(_fields(tool, text, match) if match else Numbers(_numbers(follows)))
        if max(fitting[tool] for tool in TOOLS) >= _ENOUGH or count > _EXAMINED:
            break
    best = max(TOOLS, key=lambda tool: fitting[tool])  # of equal ones the first
    if fitting[best]:
        return best
    return ANY_TOOL if fitting[ANY_TOOL] else None


def has_loss(numbers: Numbers) -> bool:
    """Whether a name among them is known as that of a loss or a gradient norm."""
    return any(role is not None and role.key in _LOSSES for role in map(role_of, numbers))


def _step(match: re.Match[str]) -> float:
    groups = match.groupdict()
    return float((groups["step"] or groups["at"]).replace(",", ""))


def _fields(tool: Tool, text: str, match: re.Match[str]) -> Numbers:
    """The numbers of a row by name, of equal names the first; none for a line of an unknown tool that has no loss."""
    found = _numbers(tool.field.findall(text if tool.whole_line else text[match.end() :]))
    if match.groupdict().get("val"):
        found = [(f"validation {name}", value) for name, value in found]
    numbers = Numbers(reversed(found))
    return Numbers() if tool is ANY_TOOL and not has_loss(numbers) else numbers


def _numbers(found: Iterable[tuple[str, str]]) -> list[tuple[str, float]]:
    return [(key, float(value.replace(",", ""))) for name, value in found if (key := _key(name))]


@cache
def _key(name: str) -> str:
    """The name of a field without spaces around it; empty for that of the step."""
    key = name.strip()
    return "" if key.lower().endswith(_STEP_NAMES) else key
