"""Error messages for mistakes in a configuration, a line each."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import pydantic

from common.section import Choice, Section

from .schema import BodyConfig, RunConfig


def sections(
    model: type[pydantic.BaseModel] = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, type[pydantic.BaseModel]]]:
    """Every section and its prefix: "" for the run's own keys, "train." for those of ``train``."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for variant in _leaves(field.annotation):
            if is_section(variant):
                yield from sections(variant, f"{prefix}{name}.")


def is_section(hint: Any) -> bool:
    """Whether a key of this type has keys of its own."""
    return isinstance(hint, type) and issubclass(hint, Section | Choice | BodyConfig)


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types inside an annotation: the parts of unions, lists and Annotated."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


_MEANT = {"out": "output_dir", "dir": "output_dir", "output_dir": "out", "learning_rate": "optimizer.lr"}
"""Of keys that suites, other commands or other tools have, the one that is meant, whose name is not near."""


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A hint for a misspelt word: '; did you mean x?', or nothing when nothing is near."""
    candidates = [c for c in candidates if c != word]
    leaf = word.rpartition(".")[2]
    same_leaf = [c for c in candidates if "." in c and c.rpartition(".")[2] == leaf]
    meant = [c for c in candidates if c == _MEANT.get(leaf)]
    close = meant or same_leaf[:1] or difflib.get_close_matches(word, candidates, n=1, cutoff=0.7)
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
    """The message of a pydantic error, the value, and how to write it correctly where that is known."""
    value = error["input"]
    return f"{but_is(error)}{_mend(key, error['type'], value, _shown(value))}"


def but_is(error: Any) -> str:
    """What pydantic says of a value, in YAML's words, and the value."""
    message = error["msg"].replace("valid array", "list").replace("an object", "a mapping of keys")
    return f"{message[:1].lower()}{message[1:]}, but is {_shown(error['input'])}"


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:80]


_READ = {
    int: "this as a number",
    float: "this as a number",
    bool: "true, yes, on, false, no and off as truth values",
    list: "[ ] as a list",
    dict: "{ } and a colon as a mapping",
}
"""How YAML has read a value that was meant as text, by its type."""


def _mend(key: str, wrong: str, value: Any, shown: str) -> str:
    """How to write what was meant, where that is known."""
    if wrong == "list_type":
        return f"; write {key}=[{{kind: ...}}, ...]" if key in ("stress", "interventions") else f"; write {key}=[...]"
    if wrong == "string_type" and value is None:
        return "; an empty value is null, too: give a text"
    if wrong == "string_type":
        # Only of a number is it known what was written: false may have been off.
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
    """Whether ``text`` would be right without its quotes."""
    if wrong == "bool_type":
        return text.lower() in ("true", "false")
    try:
        return math.isfinite(float(text)) and (wrong == "float_type" or float(text).is_integer())
    except ValueError:
        return False
