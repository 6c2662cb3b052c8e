"""Recipe files and overrides as plain dictionaries."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.errors import InputError, note
from common.files import at_home

from .carry_over import drop_foreign_options
from .schema import RunConfig

_REFERENCE = "${"
"""Begins a value that is taken from elsewhere: another key, or the environment."""


def foreign_values(tree: Any, key: str = "") -> Iterator[str]:
    """A line for each value that YAML allows and a configuration does not: bytes, dates, invalid Unicode."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            place = f"{key}.{name}" if key else str(name)
            if isinstance(name, bytes):
                yield f"{place}: not a valid key"
            yield from foreign_values(value, place)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from foreign_values(value, f"{key}.{number}")
    elif isinstance(tree, str):
        if any("\ud800" <= character <= "\udfff" for character in tree):
            yield f"{key}: holds half a surrogate pair, which is not a character"
    elif tree is not None and not isinstance(tree, bool | int | float):
        yield f"{key}: a {type(tree).__name__} has no place in a configuration; write text or a number"


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that :func:`load_config` reads back to the same configuration."""
    # OmegaConf's writer, because its reader takes 1e5 for a number where PyYAML takes it for text: each quotes accordingly.
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump()))


def read_recipe(path: Path, kind_keys: Mapping[str, str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe merged onto its base, if it names one; ``above``: the recipes that led here. Raises InputError naming the file.

    ``kind_keys``: the sections that lose the base's options where the recipe has another kind, with the key that names it.
    Plugins must be imported before; without any sections, what they are can be read."""
    try:
        text = path.read_text(encoding="utf-8")
        # What a recipe takes from the environment may change while this process runs.
        raw = _parsed.__wrapped__(path, text) if _REFERENCE in text else copy.deepcopy(_parsed(path, text))
    except FileNotFoundError:
        raise InputError(f"--config {path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: cannot be read: {error}") from None
    except RecursionError:
        raise InputError(f"--config {path}: not a valid YAML recipe: nested too deeply") from None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:  # ValueError: an integer of 5000 digits, say
        raise InputError(f"--config {path}: not a valid YAML recipe: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"--config {path}: holds a {type(raw).__name__}, not a mapping of keys")
    recipe: dict[str, Any] = {str(key): value for key, value in raw.items()}
    base = recipe.pop("base", None)
    if base is None:
        return recipe
    if not isinstance(base, str) or not base or "\0" in base:
        raise InputError(f"--config {path}: base: must be the path of a recipe, but is {base!r}")
    try:
        base_path = path.parent / at_home(base)
    except ValueError as error:
        raise InputError(f"--config {path}: base: {error}") from None
    try:
        found = base_path.is_file()
    except OSError:  # a name longer than a name can be
        found = False
    if not found:
        raise InputError(f"--config {path}: base: {base}: no such file")
    if base_path.resolve() in (*above, path.resolve()):
        raise InputError(f"--config {path}: its base, {base}, leads back to itself")
    below = read_recipe(base_path, kind_keys, (*above, path.resolve()))
    drop_foreign_options(below, recipe, kind_keys)
    return merge(below, recipe)


@functools.lru_cache
def _parsed(path: Path, text: str) -> Any:
    """The content of a recipe's file, which is ``text``. Kept, since a suite reads the same recipe for all of its runs."""
    return OmegaConf.to_container(OmegaConf.load(path), resolve=True)


@functools.lru_cache(maxsize=1024)
def _parsed_override(override: str) -> Any:
    """An override as nested keys; kept for the same reason."""
    return OmegaConf.to_container(OmegaConf.from_dotlist([override]))


def read_overrides(overrides: Iterable[str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The readable overrides as nested keys, and for each of the others its key and the problem."""
    overrides = list(overrides)
    changes: dict[str, Any] = {}
    unread: list[tuple[str, str]] = []
    for override in overrides:
        key = override.partition("=")[0]
        if "=" not in override or override.startswith("-") or not _names_key(key):
            unread.append((key, f"{override}: an override has the form key.sub=value"))
            continue
        try:
            changes = merge(changes, _parsed_override(override))
        except InputError as error:  # an entry of a list that is not there
            unread += [(key, line) for line in error.problems]
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            quoted = f"if it is text, put it in quotes: '{key}=\"...\"', or '{key}=[\"...\"]' in a list"
            unread.append((key, f"{override}: not valid YAML: {' '.join(str(error).split())}; {quoted}"))
    if not any(_REFERENCE in override for override in overrides):
        return copy.deepcopy(changes), unread
    try:
        container = OmegaConf.to_container(OmegaConf.create(changes), resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        line = f"overrides: {' '.join(str(error).split())}"
        raise InputError(*(problem for _, problem in unread), line) from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}, unread


def _names_key(key: str) -> bool:
    return all(part.strip() for part in key.split("."))


def merge(
    below: dict[str, Any], above: dict[str, Any], prefix: str = "", problems: list[str] | None = None
) -> dict[str, Any]:
    """Both, and ``above`` where they differ. Sections are merged key by key; a list is replaced, or changed entry by entry
    by a mapping of numbers, as the override ``stress.0.step=26`` gives.

    An entry that is not there is added to ``problems``, or raised as InputError if there is no such list.
    """
    merged = dict(below)
    for key, value in above.items():
        old, place = merged.get(key), f"{prefix}{key}"
        if isinstance(old, list) and isinstance(value, dict) and value and all(str(n).isdecimal() for n in value):
            merged[key] = _merge_entries(place, old, value, problems)
        elif isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value, f"{place}.", problems)
        else:
            merged[key] = value
    return merged


def _merge_entries(key: str, old: list[Any], changes: dict[str, Any], problems: list[str] | None) -> list[Any]:
    entries = list(old)
    for number, new in changes.items():
        if int(number) >= len(entries):
            last = f"the last entry is {key}.{len(entries) - 1}" if entries else f"{key} has no entry"
            problem = f"{key}.{number}: {last}; to add one, give the whole list: {key}=[...]"
            if problems is None:
                raise InputError(problem)
            problems.append(problem)
            continue
        entry, merged = entries[int(number)], new
        if isinstance(entry, dict) and isinstance(new, dict):
            if new.get("kind", entry.get("kind")) == entry.get("kind"):
                merged = merge(entry, new, f"{key}.{number}.", problems)
            else:
                dropped = ", ".join(sorted(entry.keys() - new.keys()))
                note(f"{key}.{number}.kind={new['kind']}: the recipe's other values are left out ({dropped})")
        entries[int(number)] = merged
    return entries
