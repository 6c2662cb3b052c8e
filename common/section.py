"""What the sections of a configuration are made of: strict, immutable, and open where a ``kind`` decides about the keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from .files import at_home

MOST = 1 << 40
"""No count is larger: a step times the largest batch is still a 64-bit number, and no run takes so many steps."""
FLOAT32_MAX = 3.4e38
"""The largest number that an optimizer in float32 can be given."""
LONGEST_FILE_NAME = 255
"""Bytes of a file's or folder's name on the usual file systems."""
LONGEST_PATH = 4095


class Section(BaseModel):
    """Base of all sections: immutable, strict about unknown keys, no number read out of a string or out of a boolean."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Choice(BaseModel):
    """A section whose ``kind`` names a registered class; its further keys are that class's options (common/registry.py)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The options of the kind: all keys that the section itself does not declare."""
        return dict(self.model_extra or {})


def _plain(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    unprintable = [character for character in text if not character.isprintable()]
    if unprintable:
        raise ValueError(f"holds {unprintable[0]!r}, which does not print")
    return text


def _path(text: str) -> str:
    if len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_FILE_NAME for part in text.split("/")):
        raise ValueError(
            f"is longer than a path may be ({LONGEST_PATH} bytes, {LONGEST_FILE_NAME} for each name in it)"
        )
    return text


Text = Annotated[str, AfterValidator(_plain)]
"""Text of at least one character, all of which print: names, patterns, keys."""
Place = Annotated[Text, AfterValidator(at_home), AfterValidator(_path)]
"""A file, a folder or a name on the hub; a leading ``~`` becomes the home directory."""


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items
