"""From a recipe file and dotted overrides to a checked :class:`RunConfig`, and back to YAML.

All mistakes are reported at once, a line each: the key, what is wrong, and the nearest right key.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pydantic

from common.errors import InputError, note
from common.files import at_home
from common.imports import importing

from .carry_over import drop_foreign_options
from .messages import problem_line
from .recipe import foreign_values, merge, read_overrides, read_recipe
from .schema import RunConfig, TrackingConfig

_KIND_KEYS = {
    **dict.fromkeys(("data", "head", "objective", "optimizer", "optimizer.schedule"), "kind"),
    "body": "model_type",
}
"""The key of each section that decides which other keys it has."""
_DECIDING = {"plugins", "body.checkpoint", *(f"{section}.{key}" for section, key in _KIND_KEYS.items()), *_KIND_KEYS}
"""Keys that must be known before others can be checked."""


@importing()  # the checks and plugins import torch and transformers
def load_config(path: str | Path, overrides: Iterable[str] = (), *, recorded: bool = False) -> RunConfig:
    """The configuration in ``path``, on top of its ``base:`` recipe if it names one, with ``key.sub=value`` overrides.

    A recipe or an override that changes the kind of a section drops the options below it that the new kind does not have, and
    says so.
    ``recorded``: the file is the config.yaml of a run, which may lack sizes of the body that are required today.
    Raises InputError with every mistake found.
    """
    changes, unread = read_overrides(overrides)
    keys = {key for key, _ in unread}
    problems = [line for _, line in unread]
    try:
        plain = read_recipe(Path(path), {})
        if keys.isdisjoint(_DECIDING):
            import_plugins(changes.get("plugins", plain.get("plugins")) or [])
            config = _changed(read_recipe(Path(path), _KIND_KEYS), changes, recorded)
            if not problems:
                return config
    except InputError as error:
        # Where an override cannot be read, problems of that key are about the recipe's value, which is not meant.
        not_meant = tuple(f"{key}{end}" for key in keys for end in ":.")
        problems += [line for line in error.problems if not line.startswith(not_meant)]
    raise InputError(*problems)


def load_recorded(directory: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run directory. Raises InputError as :func:`load_config` does.

    Run directories may come from someone else, and must not bring code along: plugins inside of them are refused.
    """
    path = directory / "config.yaml"
    for plugin in read_recipe(path, {}).get("plugins") or []:
        if isinstance(plugin, str) and Path(at_home(plugin)).resolve().is_relative_to(directory.resolve()):
            raise InputError(f"{path}: plugins: {plugin} is in the run directory; move it out if you trust it")
    try:
        return load_config(path, overrides, recorded=True)
    except InputError as error:
        named = (line if str(path) in line else f"{path}: {line}" for line in error.problems)
        raise InputError(*named) from None


def _changed(merged: dict[str, Any], changes: dict[str, Any], recorded: bool) -> RunConfig:
    """The recipe ``merged`` with ``changes``, checked."""
    drop_foreign_options(merged, changes, _KIND_KEYS)
    problems: list[str] = []
    raw = merge(merged, changes, problems=problems)
    try:
        config = validate(raw, recorded=recorded)
    except InputError as error:
        problems += error.problems
    if problems:
        raise InputError(*problems)
    if not recorded:
        _note_unbounded(config)
    if config.tracking != TrackingConfig() and not set(config.trackers) - {"tensorboard"}:
        note("tracking: has no effect without a tracker other than tensorboard in trackers")
    return config


def _note_unbounded(config: RunConfig) -> None:
    from .kinds import TABLES

    head, objective = TABLES["head"][config.head.kind], TABLES["objective"][config.objective.kind]
    if objective.uses_weight and not head.bounded:
        note(
            f"objective.kind={config.objective.kind}: the weight c is negative where a true logit is above 0, which "
            f"head.kind={config.head.kind} allows: there the update makes the true token less likely"
        )


def validate(raw: dict[str, Any], *, recorded: bool = False) -> RunConfig:
    """Check a plain dictionary against the schema, the registered heads and objectives, and the body's own configuration."""
    foreign = list(foreign_values(raw))
    if foreign:
        raise InputError(*foreign)
    try:
        # Through JSON, because strict validation reads JSON types as they are and a Python dict more narrowly.
        config = RunConfig.model_validate_json(json.dumps(raw))
    except pydantic.ValidationError as error:
        from .kinds import kind_problems

        raise InputError(*(problem_line(e) for e in error.errors()), *kind_problems(raw)) from None
    from .kinds import check_kinds

    return check_kinds(config, recorded=recorded)


def import_plugins(paths: Any) -> None:
    """Import each plugin file, which registers its kinds."""
    from .kinds import TABLES

    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise InputError("plugins: must be a list of Python files, for example plugins=[my_heads.py]")
    for given in paths:
        try:
            path = at_home(given)
        except ValueError as error:
            raise InputError(f"plugins: {error}") from None
        try:
            found = Path(path).is_file()
        except (OSError, ValueError):  # not a possible file name
            found = False
        if not found:
            raise InputError(f"plugins: {path}: no such file")
        place = hashlib.sha256(str(Path(path).resolve()).encode()).hexdigest()[:12]  # two files may have the same name
        spec = importlib.util.spec_from_file_location(f"plugin_{Path(path).stem}_{place}", path)
        if spec is None or spec.loader is None:
            raise InputError(f"plugins: {path}: not a Python file (its name must end in .py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        before = {section: dict(kinds) for section, kinds in TABLES.items()}
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # noqa: BLE001  (a user's file may raise anything)
            for section, kinds in before.items():
                TABLES[section].clear()
                TABLES[section].update(kinds)
            raise InputError(f"plugins: {path}: {type(error).__name__}: {' '.join(str(error).split())}") from None
