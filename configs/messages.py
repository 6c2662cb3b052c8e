"""Mistakes in a configuration, a line each."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import pydantic

from common.section import Choice, Section

from .schema import RunConfig


def sections(
    model: type[pydantic.BaseModel] = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, type[pydantic.BaseModel]]]:
    """Every section with its dotted name."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for variant in _leaves(field.annotation):
            if isinstance(variant, type) and issubclass(variant, Section | Choice):
                yield from sections(variant, f"{prefix}{name}.")


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of: of unions, lists and Annotated their parts."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A hint for a misspelt word: '; did you mean x?', or nothing when nothing is near."""
    candidates = [c for c in candidates if c != word]
    leaf = word.rpartition(".")[2]
    same_leaf = [c for c in candidates if "." in c and c.rpartition(".")[2] == leaf]
    close = same_leaf[:1] or difflib.get_close_matches(word, candidates, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def problem_line(error: Any) -> str:
    """One line for one pydantic error."""
    key = ".".join(str(part) for part in error["loc"]) or "configuration"
    if error["type"] == "extra_forbidden":
        keys = [prefix + name for prefix, model in sections() for name in model.model_fields]
        unnumbered = ".".join(part for part in key.split(".") if not part.isdigit())
        return f"{key}: unknown key{nearest(unnumbered, keys)}"
    if error["type"] == "missing":
        return f"{key}: is required and has no default; set it in the recipe or as {key}=..."
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    return f"{key}: {wrong_value(key, error)}"


def wrong_value(key: str, error: Any) -> str:
    """What a pydantic error says of a value, the value, and the mend where quotes have made the difference."""
    value = error["input"]
    shown = json.dumps(value)[:80]
    message = error["msg"].replace("valid array", "list").replace("an object", "a mapping of keys")
    return f"{message[:1].lower()}{message[1:]}, but is {shown}{_mend(key, error['type'], value, shown)}"


_READ = {
    int: "this as a number",
    float: "this as a number",
    bool: "true, yes, on, false, no and off as truth values",
    list: "[ ] as a list",
    dict: "{ } and a colon as a mapping",
}
"""What YAML makes of a value that was meant as text, by its type."""


def _mend(key: str, wrong: str, value: Any, shown: str) -> str:
    """How to write what was meant, if YAML has read a text as something else, or a number or truth value as text."""
    if wrong == "list_type":
        return f"; write {key}=[{{kind: ...}}, ...]" if key in ("stress", "interventions") else f"; write {key}=[...]"
    if wrong == "string_type" and value is None:
        return "; an empty value is null, too: give a text"
    if wrong == "string_type":
        # What was written is known of a number only: false may have been off.
        text = f'"{shown}"' if type(value) in (int, float) else '"..."'
        place, _, item = key.rpartition(".")
        line, recipe = (f"{place}=[{text}]", f"- {text}") if item.isdigit() else (f"{key}={text}", f"{item}: {text}")
        return f"; YAML reads {_READ[type(value)]}; in quotes it is text: '{line}' on the command line, {recipe} in a recipe"
    if wrong in ("int_type", "float_type", "bool_type") and isinstance(value, str) and _is_number(value, wrong):
        return "; leave the quotes out"
    if wrong == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    return ""


def _is_number(text: str, wrong: str) -> bool:
    """Whether ``text`` is, but for its quotes, what pydantic has missed."""
    if wrong == "bool_type":
        return text.lower() in ("true", "false")
    try:
        return math.isfinite(float(text)) and (wrong == "float_type" or float(text).is_integer())
    except ValueError:
        return False
