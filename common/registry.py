"""Kinds by name: classes with a frozen dataclass ``Options``, registered by the project or by a plug-in file.

A kind is one class in one file. Registering it makes its name a value of the configuration, and the fields of its ``Options``
become keys beside it, checked against their types as every other key is. ``python -m configs.list`` shows all kinds.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from typing import Any, TypeVar

import pydantic

T = TypeVar("T", bound=type)
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Registry(dict[str, Any]):
    """The classes of one sort, by kind. ``section`` is the configuration key that chooses among them."""

    def __init__(self, section: str) -> None:
        super().__init__()
        self.section = section

    def register(self, kind: str) -> Callable[[T], T]:
        """Class decorator: make ``<section>.kind: <kind>`` build this class.

        Raises ValueError for a name that is taken, or that is not of lower-case letters, digits and underscores.
        """
        if not _NAME.fullmatch(kind):
            raise ValueError(
                f"{kind!r} is no name of a kind: lower-case letters, digits and underscores, as in my_kind"
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
    """``cls.Options`` of these values, defaults filled in. Raises pydantic.ValidationError for whatever does not fit."""
    # Through JSON, because strict validation reads JSON types as they are and Python's more narrowly.
    return _adapter(cls).validate_json(json.dumps(options))


def plain_options(cls: Any, checked: Any) -> dict[str, Any]:
    """Checked options as JSON has them: what config.yaml and checkpoints hold, and compare equal to."""
    plain: dict[str, Any] = _adapter(cls).dump_python(checked, mode="json")
    return plain


@functools.cache
def _adapter(cls: Any) -> pydantic.TypeAdapter[Any]:
    return pydantic.TypeAdapter(pydantic.dataclasses.dataclass(cls.Options, config=_STRICT, frozen=True))
