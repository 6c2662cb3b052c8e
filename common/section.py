"""Base classes and types of configuration sections: strict and immutable; a ``kind`` may add keys of its own."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from .files import at_home

MOST = 1 << 40
"""Upper limit of every count, so that a step times the largest batch size still fits 64 bits."""
FLOAT32_MAX = 3.4e38
"""Upper limit of numbers passed to an optimizer that works in float32."""
LONGEST_FILE_NAME = 255
"""Bytes of a file's or folder's name on the usual file systems."""
LONGEST_PATH = 4095


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, no numbers parsed from strings or booleans."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Choice(BaseModel):
    """A section whose ``kind`` names a registered class; its other keys are that class's options (common/registry.py)."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)

    kind: str

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own options: all keys that the section does not declare itself."""
        return dict(self.model_extra or {})


def _plain(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    unprintable = [character for character in text if not character.isprintable()]
    if unprintable:
        raise ValueError(f"contains the unprintable character {unprintable[0]!r}")
    return text


def _path(text: str) -> str:
    if len(text.encode()) > LONGEST_PATH or any(len(part.encode()) > LONGEST_FILE_NAME for part in text.split("/")):
        raise ValueError(
            f"is longer than a path may be ({LONGEST_PATH} bytes, {LONGEST_FILE_NAME} for each name in it)"
        )
    return text


Text = Annotated[str, AfterValidator(_plain)]
"""Non-empty text of printable characters: names, patterns, keys."""
Place = Annotated[Text, AfterValidator(at_home), AfterValidator(_path)]
"""A file, a folder or a name on the hub; a leading ``~`` is expanded."""


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries into one with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return items
