"""Registries of heads and objectives. Each is a class with a nested frozen dataclass ``Options``; registering it makes
``head.kind`` or ``objective.kind`` accept its name, and its options become configuration keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from .heads import Head
    from .objectives import Objective

HEADS: dict[str, type[Head]] = {}
OBJECTIVES: dict[str, type[Objective]] = {}

T = TypeVar("T", bound=type)


def _register(table: dict[str, T], kind: str) -> Callable[[T], T]:
    def add(cls: T) -> T:
        known = table.get(kind)
        if known is not None and not _same(known, cls):
            raise ValueError(f"{kind!r} is already registered by {known.__module__}.{known.__qualname__}")
        table[kind] = cls
        return cls

    return add


def _same(known: type, cls: type) -> bool:
    """Whether two classes are one: read again, or the copy of it that a checkpoint carries. A plug-in's class is none of the
    project's, whatever its name."""
    own = [each.__module__.rpartition(".")[0] == __package__ for each in (known, cls)]
    copied = any(each.__module__.startswith("transformers_modules") for each in (known, cls))
    return known.__qualname__ == cls.__qualname__ and (own[0] == own[1] or copied)


def register_head(kind: str) -> Callable[[type[Head]], type[Head]]:
    """Class decorator: make ``head.kind: <kind>`` build this head. Raises ValueError if the name is taken."""
    return _register(HEADS, kind)


def register_objective(kind: str) -> Callable[[type[Objective]], type[Objective]]:
    """Class decorator: make ``objective.kind: <kind>`` build this objective. Raises ValueError if the name is taken."""
    return _register(OBJECTIVES, kind)
