"""From a recipe file and dotted overrides to a checked :class:`RunConfig`, and back to YAML.

All mistakes are reported at once, a line each: the key, what is wrong, and the nearest right key.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import InputError, note
from .files import at_home
from .imports import importing
from .schema import RunConfig, Section, TrackingConfig

_KIND_KEYS = {"data": "kind", "head": "kind", "objective": "kind", "body": "model_type"}
"""The key of each section that decides which other keys it has."""
_DECIDING = {"plugins", "body.checkpoint", *(f"{section}.{key}" for section, key in _KIND_KEYS.items()), *_KIND_KEYS}
"""Keys without which nothing can be said of others."""


@importing()  # the checks and plugins import torch and transformers
def load_config(path: str | Path, overrides: Iterable[str] = (), *, recorded: bool = False) -> RunConfig:
    """The configuration in ``path``, on top of its ``base:`` recipe if it names one, with ``key.sub=value`` overrides.

    An override that changes the kind of a section drops the file's options which the new kind does not have, and says so.
    ``recorded``: the file is a run's own config.yaml, which may be older than the rule that sizes of a body are stated.
    Raises InputError with every mistake found.
    """
    changes, unread = _read_overrides(overrides)
    keys = {key for key, _ in unread}
    problems = [line for _, line in unread]
    try:
        merged = _read_recipe(Path(path))
        if keys.isdisjoint(_DECIDING):
            config = _changed(merged, changes, recorded)
            if not problems:
                return config
    except InputError as error:
        # What is said of a key whose override cannot be read is said of the recipe's value, which is not meant.
        not_meant = tuple(f"{key}{end}" for key in keys for end in ":.")
        problems += [line for line in error.problems if not line.startswith(not_meant)]
    raise InputError(*problems)


def load_recorded(directory: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run directory, which may be anybody's. Raises InputError as :func:`load_config` does.

    Whoever sends a run directory must not bring the code along that reading it runs: plugins inside it are refused.
    """
    path = directory / "config.yaml"
    for plugin in _read_recipe(path).get("plugins") or []:
        if isinstance(plugin, str) and Path(at_home(plugin)).resolve().is_relative_to(directory.resolve()):
            raise InputError(f"{path}: plugins: {plugin} is in the run directory; move it out if you trust it")
    return load_config(path, overrides, recorded=True)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items


def _changed(merged: dict[str, Any], changes: dict[str, Any], recorded: bool) -> RunConfig:
    """The recipe ``merged`` with ``changes``, checked."""
    _import_plugins(changes.get("plugins", merged.get("plugins")) or [])
    _drop_foreign_options(merged, changes, _KIND_KEYS)
    config = validate(_merge(merged, changes), recorded=recorded)
    if config.tracking != TrackingConfig() and not set(config.trackers) - {"tensorboard"}:
        note("tracking: has no effect without a tracker other than tensorboard in trackers")
    return config


def _drop_foreign_options(below: dict[str, Any], above: dict[str, Any], kind_keys: Mapping[str, str]) -> None:
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


def validate(raw: dict[str, Any], *, recorded: bool = False) -> RunConfig:
    """Check a plain dictionary against the schema, the registered heads and objectives, and the body's own configuration."""
    foreign = list(_foreign_values(raw))
    if foreign:
        raise InputError(*foreign)
    try:
        # Through JSON, because strict validation reads JSON types as they are and a Python dict more narrowly.
        config = RunConfig.model_validate_json(json.dumps(raw))
    except pydantic.ValidationError as error:
        from .components import component_problems

        raise InputError(*(_problem(e) for e in error.errors()), *component_problems(raw)) from None
    from .components import check_components

    return check_components(config, recorded=recorded)


def _foreign_values(tree: Any, key: str = "") -> Iterator[str]:
    """One line for each value that YAML has and a configuration has not: bytes, dates, text that is no Unicode."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            place = f"{key}.{name}" if key else str(name)
            if isinstance(name, bytes):
                yield f"{place}: no name of a key"
            yield from _foreign_values(value, place)
    elif isinstance(tree, list):
        for number, value in enumerate(tree):
            yield from _foreign_values(value, f"{key}.{number}")
    elif isinstance(tree, str):
        if any("\ud800" <= character <= "\udfff" for character in tree):
            yield f"{key}: holds half a surrogate pair, which is no character"
    elif tree is not None and not isinstance(tree, bool | int | float):
        yield f"{key}: a {type(tree).__name__} has no place in a configuration; write text or a number"


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that :func:`load_config` reads back to the same configuration."""
    # Not PyYAML's own: its reader takes 1e5 for text where OmegaConf's takes it for a number, and it quotes accordingly.
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump()))


def _read_recipe(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
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
    below = _read_recipe(base_path, (*above, path.resolve()))
    _drop_foreign_options(below, recipe, {"body": "model_type"})  # which head has which options, plugins say later
    return _merge(below, recipe)


def _read_overrides(overrides: Iterable[str]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What the overrides that can be read change, and of each of the others its key and what is wrong with it."""
    good, unread = [], []
    for override in overrides:
        key = override.partition("=")[0]
        if "=" not in override or override.startswith("-") or not _names_key(key):
            unread.append((key, f"{override}: an override has the form key.sub=value"))
            continue
        try:
            OmegaConf.from_dotlist([override])
            good.append(override)
        except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
            quoted = f"if it is text, put it in quotes: '{key}=\"...\"', or '{key}=[\"...\"]' in a list"
            unread.append((key, f"{override}: not valid YAML: {' '.join(str(error).split())}; {quoted}"))
    try:
        container = OmegaConf.to_container(OmegaConf.from_dotlist(good), resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        line = f"overrides {' '.join(good)}: {' '.join(str(error).split())}"
        raise InputError(*(told for _, told in unread), line) from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}, unread


def _names_key(key: str) -> bool:
    return all(part.strip() for part in key.split("."))


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both, and ``above`` where they differ; sections are merged key by key, lists are replaced."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _import_plugins(paths: Any) -> None:
    """Import each plugin file, for what it registers."""
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise InputError("plugins: must be a list of Python files, for example plugins=[my_heads.py]")
    for given in paths:
        try:
            path = at_home(given)
        except ValueError as error:
            raise InputError(f"plugins: {error}") from None
        try:
            found = Path(path).is_file()
        except (OSError, ValueError):  # no name that a file can have
            found = False
        if not found:
            raise InputError(f"plugins: {path}: no such file")
        spec = importlib.util.spec_from_file_location(f"plugin_{Path(path).stem}", path)
        if spec is None or spec.loader is None:
            raise InputError(f"plugins: {path}: not a Python file (its name must end in .py)")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # noqa: BLE001  (anything may go wrong in a file of the user's own)
            raise InputError(f"plugins: {path}: {type(error).__name__}: {' '.join(str(error).split())}") from None


# --------------------------------------------------------------------------------------------------- telling the mistakes


def _sections(model: type[Section] = RunConfig, prefix: str = "") -> Iterator[tuple[str, type[pydantic.BaseModel]]]:
    """Every section with its dotted name; each variant of a union comes under the same name."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for variant in _leaves(field.annotation):
            if isinstance(variant, type) and issubclass(variant, Section):
                yield from _sections(variant, f"{prefix}{name}.")


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of: of unions, lists and Annotated their parts."""
    parts = get_args(annotation)
    if not parts:
        yield annotation
    for part in parts:
        yield from _leaves(part)


def _carried_over(section: str, old: dict[str, Any], kind: str) -> dict[str, str] | None:
    """The keys of a section that keep their meaning under another kind, and what they are called there; None if there is no
    such kind, which is told later."""
    if section == "body":
        from .body import carried_over

        return carried_over(old, kind)
    if section == "data":
        variants = [m for name, m in _sections() if name == "data."]
        fields = [set(m.model_fields) for m in variants if get_args(m.model_fields["kind"].annotation) == (kind,)]
    else:
        from model import HEADS, OBJECTIVES

        tables: dict[str, dict[str, Any]] = {"head": {**HEADS}, "objective": {**OBJECTIVES}}
        registered = tables[section].get(kind)
        fields = [{f.name for f in dataclasses.fields(registered.Options)}] if registered else []
    return {name: name for name in old if name in fields[0]} if fields else None


def nearest(word: str, candidates: Iterable[str]) -> str:
    """A hint for a misspelt word: '; did you mean x?', or nothing when nothing is near."""
    candidates = [c for c in candidates if c != word]
    leaf = word.rpartition(".")[2]
    same_leaf = [c for c in candidates if "." in c and c.rpartition(".")[2] == leaf]
    close = same_leaf[:1] or difflib.get_close_matches(word, candidates, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _problem(error: Any) -> str:
    """One line for one pydantic error."""
    tags = {get_args(m.model_fields["kind"].annotation)[0] for _, m in _sections() if "kind" in m.model_fields}
    loc = [str(part) for part in error["loc"]]
    key = ".".join(part for i, part in enumerate(loc) if i == 0 or part not in tags) or "configuration"
    if error["type"] == "extra_forbidden":
        keys = [prefix + name for prefix, model in _sections() for name in model.model_fields]
        unnumbered = ".".join(part for part in key.split(".") if not part.isdigit())
        if unnumbered in keys and not loc[-1].isdigit():
            return f"{key}: has no effect with this {key.rpartition('.')[0]}.kind; leave it out"
        return f"{key}: unknown key{nearest(unnumbered, keys)}"
    if error["type"] == "missing":
        return f"{key}: is required and has no default; set it in the recipe or as {key}=..."
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}"
    if error["type"].startswith("union_tag"):
        return f"{key}.kind: {error['msg'][:1].lower()}{error['msg'][1:]}"
    return f"{key}: {wrong_value(key, error)}"


def wrong_value(key: str, error: Any) -> str:
    """What a pydantic error says of a value, the value, and the mend where quotes have made the difference."""
    value = error["input"]
    shown = json.dumps(value)[:80]
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, but is {shown}{_mend(key, error['type'], value, shown)}"


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
