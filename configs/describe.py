"""The configuration reference, for people and for editors: every key, its type, its default and its meaning.

It is generated from the classes that check the configuration (:mod:`configs.schema` and the ``Options`` of all kinds).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from itertools import pairwise
from typing import Any, NamedTuple, get_type_hints

import pydantic
from pydantic_core import PydanticUndefined

from common.section import Choice

from .kinds import LISTS, TABLES
from .messages import is_section, sections
from .schema import RunConfig


class Key(NamedTuple):
    """One key of the configuration."""

    name: str
    type: str
    default: str
    """As YAML; "required" where there is none."""
    meaning: str


def keys_of(cls: Any) -> list[Key]:
    """The keys of a section, or of the options of a kind, without nested sections."""
    said, hints = attribute_docs(cls), get_type_hints(cls, include_extras=True)
    if dataclasses.is_dataclass(cls):
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        missing: Any = dataclasses.MISSING
    else:
        defaults = {name: field.default for name, field in cls.model_fields.items()}
        missing = PydanticUndefined
    return [
        Key(name, _type_name(hints[name]), "required" if value is missing else _yaml(value), said.get(name, ""))
        for name, value in defaults.items()
        if not is_section(hints[name])
    ]


def first_line(cls: Any) -> str:
    """The first sentence of a class's docstring."""
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0].split())  # not inherited
    return "" if text.startswith(f"{cls.__name__}(") else text  # what dataclasses write themselves


def attribute_docs(cls: Any) -> dict[str, str]:
    """The docstrings below the attributes of a class and its bases, on one line each."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith("pydantic"):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        assert isinstance(tree.body[0], ast.ClassDef)
        body = tree.body[0].body
        for attribute, text in pairwise(body):
            if isinstance(attribute, ast.AnnAssign) and isinstance(attribute.target, ast.Name):
                said = text.value.value if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) else ""
                found[attribute.target.id] = " ".join(str(said).split())
    return found


def _type_name(hint: Any) -> str:
    """A type in YAML's terms, with the limits of its numbers."""
    schema = pydantic.TypeAdapter(hint).json_schema()
    return _named(schema, schema.get("$defs", {}))


def _named(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "$ref" in schema:
        return _named(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(_named(part, definitions) for part in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(map(str, schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return f"list of {_named(schema.get('items', {}), definitions)}"
    name = {"integer": "int", "number": "float", "string": "text", "boolean": "bool", "object": "mapping"}
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {schema[key]:g}" for key, sign in signs.items() if key in schema and abs(schema[key]) < 1e6]
    return " ".join([name.get(schema.get("type", ""), schema.get("type", "any")), *limits])


def _yaml(value: Any) -> str:
    if isinstance(value, Choice):
        return f"{{kind: {value.kind}}}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


# ----------------------------------------------------------------------------------------------------------- for people


def reference() -> str:
    """docs/configuration.md."""
    parts = [_HEADING]
    for prefix, cls in sections():
        key = prefix.rstrip(".")
        kinds = TABLES.get(key, {})
        if key in LISTS:
            continue
        parts.append(f"## {key or 'The run'}\n\n{first_line(cls) if cls is not Choice else _CHOICES[key]}\n")
        if cls is not Choice and (rows := [k for k in keys_of(cls) if k.name != "kind" or not kinds]):
            parts.append(_table(rows, prefix))
        parts += _kinds(key, kinds)
        if key == "":
            for name in LISTS:
                parts.append(f"### {name}: a list of kinds\n\n{_CHOICES[name]}\n")
                parts += _kinds(name, TABLES[name])
    return "\n".join(parts)


def _kinds(key: str, kinds: Any) -> list[str]:
    parts = []
    for kind, cls in kinds.items():
        parts.append(f"#### {key}.kind: {kind}\n\n{first_line(cls)}\n")
        if rows := keys_of(cls.Options):
            parts.append(_table(rows, f"{key}[]." if key in LISTS else f"{key}."))
    return parts


def _table(keys: list[Key], prefix: str) -> str:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    rows += [f"| `{prefix}{k.name}` | {k.type} | `{k.default}` | {k.meaning} |".replace("||", "|") for k in keys]
    return "\n".join(rows) + "\n"


_HEADING = """# Configuration

Every key of a recipe, generated by `python -m configs.describe` (a test compares). A recipe is a YAML file; `base:` names
another recipe to build on, and `key.sub=value` on the command line changes a key. `--print-config` prints the result.
`python -m configs.list` shows the kinds that can be chosen, plug-ins included.
"""
_CHOICES = {
    "head": "The output head: how hidden states become logits.",
    "objective": "What is minimised, given the logits.",
    "optimizer.schedule": "The learning rate after the warm-up.",
    "stress": "Faults injected on purpose. Each is `{kind: ..., ...}`.",
    "interventions": "What the run does about instability, in this order. Each is `{kind: ..., ...}`.",
}

# ---------------------------------------------------------------------------------------------------------- for editors


def json_schema() -> dict[str, Any]:
    """A JSON schema for YAML editors. Nothing is required: a recipe may leave any key to its base."""
    schema = RunConfig.model_json_schema()
    definitions, properties = schema["$defs"], schema["properties"]
    for key in ("data", "head", "objective", "optimizer"):
        properties[key] = _by_kind(key)
    definitions["Schedule"] = _by_kind("optimizer.schedule")
    properties["base"] = {"type": "string", "description": "The recipe that this one builds on, relative to it."}
    for name, text in attribute_docs(RunConfig).items():
        if text and name in properties:
            properties[name].setdefault("description", text)
    schema = _optional(schema)
    for key in LISTS:  # a list is given whole
        schema["properties"][key] |= {"type": "array", "items": _by_kind(key, whole=True)}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema


def _by_kind(key: str, *, whole: bool = False) -> dict[str, Any]:
    """One alternative for each kind, and one for those of plug-ins. ``whole``: what has no default must be given."""
    kinds = TABLES[key]
    shared = next((_properties(cls) for prefix, cls in sections() if prefix == f"{key}." and cls is not Choice), {})
    alternatives = []
    for kind, cls in kinds.items():
        alternative = {
            "type": "object",
            "description": first_line(cls),
            "properties": {**shared, "kind": {"const": kind}, **_properties(cls.Options)},
            "additionalProperties": False,
        }
        if whole:
            needed = [k.name for k in keys_of(cls.Options) if k.default == "required"]
            alternative["required"] = ["kind", *needed]
        alternatives.append(alternative)
    plugged = {"type": "object", "properties": {"kind": {"not": {"enum": list(kinds)}}}, "required": ["kind"]}
    return {"anyOf": [*alternatives, plugged]}


def _properties(cls: Any) -> dict[str, Any]:
    said = attribute_docs(cls)
    properties = pydantic.TypeAdapter(cls).json_schema().get("properties", {})
    return {name: value | ({"description": said[name]} if said.get(name) else {}) for name, value in properties.items()}


def _optional(schema: Any) -> Any:
    """Without required keys, which a recipe may leave to its base; the schedule by its kinds."""
    if isinstance(schema, dict):
        if schema.get("$ref") == "#/$defs/Choice":
            return {"$ref": "#/$defs/Schedule"}
        kept = {k: _optional(v) for k, v in schema.items() if k != "required" or v == ["kind"]}
        return {k: v for k, v in kept.items() if k not in ("title", "default")} if "properties" in kept else kept
    return [_optional(each) for each in schema] if isinstance(schema, list) else schema


if __name__ == "__main__":
    print(re.sub(r"\n{3,}", "\n\n", reference()), end="")
