"""Which options survive when an override changes the kind of a section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.errors import note


def drop_foreign_options(below: dict[str, Any], above: dict[str, Any], kind_keys: Mapping[str, str]) -> None:
    """Where ``above`` changes the kind of a section of ``below``, remove the options that the new kind does not have."""
    for section, key in kind_keys.items():
        *parents, leaf = section.split(".")
        lower: Any = below
        upper: Any = above
        for parent in parents:
            lower, upper = (tree.get(parent) if isinstance(tree, dict) else None for tree in (lower, upper))
        old, new = (tree.get(leaf) if isinstance(tree, dict) else None for tree in (lower, upper))
        if not isinstance(old, dict) or not isinstance(new, dict):
            continue
        if "checkpoint" in new or new.get(key, old.get(key)) != old.get(key):
            lower[leaf] = _kept_options(section, key, old, new)
        elif section == "body" and isinstance(old.get(key), str):
            from .body import not_replaced

            lower[leaf] = not_replaced(old, new, old[key])


def _kept_options(section: str, key: str, old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The options of a section that the kind in ``new`` has too; the others are named on stderr."""
    kind = new.get(key)
    if not isinstance(kind, str):  # a checkpoint, which has a whole body; or a mistake, reported later
        return {}
    names = _carried_over(section, old, kind)
    if names is None:  # no such kind, which is reported later
        return dict(old)
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
    """The keys of a section that another kind has too, with its names for them; None if there is no such kind, which is
    reported later."""
    if section == "body":
        from .body import carried_over

        return carried_over(old, kind)
    from .kinds import option_names, table_of

    registered = table_of(section).get(kind)
    return None if registered is None else {name: name for name in old if name in option_names(section, registered)}
