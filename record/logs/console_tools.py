"""What tools print while they train: a row a tool, with the expressions that find the step and the fields of a line.

Expressions see lines without colours. A field is a name and a number; the name is kept as it is printed, and columns.py knows
what it means.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = (
    r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|(?:nan|inf|infinity)\b)"
)
_WORDS = r"[A-Za-z][\w/().%#-]*(?: [\w/().%#-]+)*?"
"""A name: words with one space between them."""


@dataclass(frozen=True)
class Tool:
    """How one tool prints."""

    title: str
    step: re.Pattern[str]
    """Finds the beginning of a row, with the group ``step`` and, where the row is of validation, ``val``."""
    field: re.Pattern[str]
    """Finds (name, number) in the rest of the line."""
    follows: re.Pattern[str] | None = None
    """Finds (name, number) in lines without a step, which belong to the last one."""
    ahead: bool = False
    """Such lines come before the row of their step, rather than after it."""
    whole_line: bool = False
    """Fields may also stand before the step."""


def _tool(
    title: str, step: str, field: str, follows: str | None = None, *, ahead: bool = False, whole_line: bool = False
) -> Tool:
    def expression(text: str) -> re.Pattern[str]:
        return re.compile(text.replace("NUMBER", _NUMBER).replace("WORDS", _WORDS), re.IGNORECASE)

    return Tool(title, expression(step), expression(field), expression(follows) if follows else None, ahead, whole_line)


TOOLS = (
    _tool("modded-nanogpt", r"\bstep:(?P<step>\d+)(?:/\d+)?\s+(?=\w+:)", r"(\w+):(NUMBER)"),
    _tool("llm.c main.log", r"^s:(?P<step>\d+)\s+(?=\w+:)", r"(\w+):(NUMBER)"),
    _tool(
        "llm.c", r"\bstep\s+(?P<step>\d+)\s*/\s*\d+\s*\|", r"(?:^|\|)\s*([a-z][a-z ]*?)\s+(NUMBER)",
        follows=r"^\s*(val loss):?\s+(NUMBER)\s*$",
    ),
    _tool("build-nanogpt", r"^\s*(?P<step>\d+)\s+(?=(?:train|val|hella)\s)", r"(train|val|hella)\s+(NUMBER)\s*$"),
    _tool(
        "build-nanogpt", r"\bstep\s+(?P<step>\d+)\s*\|(?=\s*loss:)", r"(?:^|\|)\s*(WORDS)\s*:?\s+(NUMBER)",
        follows=r"^\s*(val(?:idation)? loss):?\s+(NUMBER)\s*$", ahead=True,
    ),
    _tool("nanoGPT", r"\b(?:iter|step)\s+(?P<step>\d+):\s+(?=[a-z]*\s*loss\b)", r"([a-z][a-z_ ]*?)\s+(NUMBER)"),
    _tool(
        "Megatron-LM or GPT-NeoX",
        r"\biteration\s+(?P<step>\d+)\s*/\s*\d+\s*\||(?P<val>validation) (?:loss|results) at[^|]*?iteration (?P<at>\d+)[^|]*\|",
        r"([a-z][^|:]*):\s*(NUMBER)\s*(?=\||$)", whole_line=True,
    ),
    _tool(
        "torchtitan", r"(?P<val>\bvalidate )?\bstep:\s*(?P<step>\d+)\s+(?=.*?\bloss:)", r"([a-z_]\w*(?:\([^)]*\))?):\s*(NUMBER)",
    ),
    _tool(
        "OLMo", r"\bstep=(?P<step>\d+)(?:/\d+|\s*[,\]])", r"(WORDS)=(NUMBER)(?![\w/])",
        follows=r"(?:^|\s)(WORDS)=(NUMBER)\s*$",
    ),
)  # fmt: skip
"""Where several fit, the one that finds a loss in more lines, then the one named first."""

ANY_TOOL = _tool(
    "console log",
    r"\b(?:global[_ ]?step|step|iteration|iter|update)s?\b[\"']?\s*[:=#]?\s*[\[(]?\s*(?P<step>\d+(?:,\d{3})*)\b",
    r"(WORDS)[\"']?(?:\s*[:=]\s*|\s+)(NUMBER)",
    whole_line=True,
)
"""For a line of any other tool with a step and a known name of a loss or a gradient norm: "Step 10/500 | Loss: 3.21"."""
