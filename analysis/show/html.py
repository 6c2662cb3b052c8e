"""Templates of HTML pages whose text may be anything: all that a template writes is made visible and escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from .text import visible


def templates(folder: Path) -> jinja2.Environment:
    """The templates of a folder. ``line_end`` is a line's end in them, which as plain text would be made visible."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=_shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.globals["line_end"] = Markup("\n")
    return found


def _shown(value: Any) -> Any:
    """What a template writes for a value: text made visible, HTML of the page itself as it is."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
