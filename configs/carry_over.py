"""What keeps its meaning when an override changes the kind of a section."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args

from common.errors import note

from .messages import sections


def drop_foreign_options(below: dict[str, Any], above: dict[str, Any], kind_keys: Mapping[str, str]) -> None:
    """Remove from the sections of ``below`` whose kind ``above`` changes the options that the new kind does not have."""
    for section, key in kind_keys.items():
        old, new = below.get(section), above.get(section)
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        if "checkpoint" in new or new.get(key, old.get(key)) != old.get(key):
            below[section] = _kept_options(section, key, old, new)
        elif section == "body" and isinstance(old.get(key), str):
            from .body import not_replaced

            below[section] = not_replaced(old, new, old[key])


def _kept_options(section: str, key: str, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The options of a section that keep their meaning where ``new`` changes its kind; the others are named on stderr."""
    kind = new.get(key)
    if not isinstance(kind, str):  # a checkpoint, which has a whole body; or a mistake, told later
        return {}
    names = _carried_over(section, old, kind)
    if names is None:
        return {}
    dropped = [name for name in old if name not in names and old[name] is not None and name not in (key, *new)]
    if dropped:
        left_out = f"has no {', '.join(dropped)}; the recipe's values are left out"
        note(f"{section}.{key}={kind} {left_out}")
    if section == "body":
        from .body import carried_over

        given = set((carried_over({**new, "model_type": kind}, kind) or {}).values())
        names = {name: own for name, own in names.items() if own not in given}
    return {own: old[name] for name, own in names.items()}


def _carried_over(section: str, old: dict[str, Any], kind: str) -> dict[str, str] | None:
    """The keys of a section that keep their meaning under another kind, and what they are called there; None if there is no
    such kind, which is told later."""
    if section == "body":
        from .body import carried_over

        return carried_over(old, kind)
    if section == "data":
        variants = [m for name, m in sections() if name == "data."]
        fields = [set(m.model_fields) for m in variants if get_args(m.model_fields["kind"].annotation) == (kind,)]
    else:
        from model import HEADS, OBJECTIVES

        tables: dict[str, dict[str, Any]] = {"head": {**HEADS}, "objective": {**OBJECTIVES}}
        registered = tables[section].get(kind)
        fields = [{f.name for f in dataclasses.fields(registered.Options)}] if registered else []
    return {name: name for name in old if name in fields[0]} if fields else None
