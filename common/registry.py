"""Registries: classes with a frozen dataclass ``Options``, registered by name by the project or by a plug-in file.

Registering a class makes its name a ``kind`` in the configuration, and the fields of its ``Options`` become type-checked
keys beside it. ``python -m configs.list`` shows all kinds.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import pydantic

T = TypeVar("T", bound=type)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Registry(dict[str, Any]):
    """The classes of one sort by kind. ``section`` is the configuration key that selects one."""

    def __init__(self, section: str) -> None:
        super().__init__()
        self.section = section

    def register(self, kind: str) -> Callable[[T], T]:
        """Class decorator: make ``<section>.kind: <kind>`` build this class. Raises ValueError for a name that is taken or
        is not made of lower-case letters, digits and underscores."""
        if not _NAME.fullmatch(kind):
            raise ValueError(
                f"{kind!r} cannot name a kind: use lower-case letters, digits and underscores, as in my_kind"
            )

        def add(cls: T) -> T:
            known = self.get(kind)
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise ValueError(f"{kind!r} is already registered by {known.__module__}.{known.__qualname__}")
            self[kind] = cls
            cls.kind = kind  # type: ignore[attr-defined]
            return cls

        return add


def checked_options(cls: Any, options: dict[str, Any]) -> Any:
    """Build ``cls.Options`` from these values, with defaults filled in. Raises pydantic.ValidationError for what does not
    fit."""
    # Through JSON: strict validation takes JSON's types as they are, but Python's more narrowly.
    return _adapter(cls).validate_json(json.dumps(options))


def plain_options(cls: Any, checked: Any) -> dict[str, Any]:
    """Checked options as plain JSON values, as config.yaml and checkpoints store them."""
    plain: dict[str, Any] = _adapter(cls).dump_python(checked, mode="json")
    return plain


def without_effect(options: Any, chosen: str, used: Mapping[str, Collection[Any]]) -> Iterator[tuple[str, str]]:
    """Problems with options that are set although the value of the option ``chosen`` makes no use of them. ``used``: the values
    with which each of them has an effect."""
    value = getattr(options, chosen)
    for field in fields(options):
        unused = field.name in used and value not in used[field.name]
        if unused and getattr(options, field.name) != field.default:
            yield field.name, f"has no effect with {chosen}={value}; leave it out"


@functools.cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(pydantic.dataclasses.dataclass(cls.Options, config=_STRICT, frozen=True))
