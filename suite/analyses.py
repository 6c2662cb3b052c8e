"""The commands of analysis/ that a suite makes of its runs."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import InputError

from .expand import SuiteRun


@dataclass(frozen=True)
class Analysis:
    """A command of analysis/ and the runs that it names."""

    name: str
    arguments: list[str]
    runs: set[str]


def read_analysis(command: str, runs: Sequence[SuiteRun], out: Path) -> Analysis:
    """The command with its placeholders filled in; one for several runs becomes several arguments. Raises InputError."""
    try:
        name, *words = shlex.split(command)
    except ValueError as error:  # an unclosed quotation, or nothing at all
        raise InputError(f"analyses: {command!r} cannot be read: {error}") from None
    if not name.isidentifier() or importlib.util.find_spec(f"analysis.{name}") is None:
        raise InputError(f"analyses: {command}: there is no analysis.{name}")
    groups = groups_of(runs)
    arguments, named = [], set[str]()
    for word in words:
        inside = word[1:-1] if word[:1] + word[-1:] == "{}" else ""
        if inside in groups:
            arguments += [str(out / run) for run in groups[inside]]
            named |= set(groups[inside])
        else:
            arguments.append(filled(word, "analyses", out))
    return Analysis(name, arguments, named)


def groups_of(runs: Sequence[SuiteRun]) -> Mapping[str, list[str]]:
    """The names of the runs that each placeholder stands for: {runs}, and the arms."""
    groups: dict[str, list[str]] = {"runs": [run.name for run in runs]}
    for run in runs:
        groups.setdefault(run.planned.arm, []).append(run.name)
    return groups


def filled(text: str, key: str, out: Path) -> str:
    """``text``, from the suite's ``key``, with the suite's directory for {out}. Raises InputError for another placeholder."""
    try:
        return text.format(out=out)
    except (KeyError, IndexError, ValueError, AttributeError):
        known = "{out}, {runs} and the arms' names, as words of their own" if key == "analyses" else "{out}"
        raise InputError(f"{key}: {text}: unknown placeholder; there are {known}") from None
