"""One HTML document with everything in it.

Names, configurations and logs may contain any text: what the template gets goes through ``visible`` and is escaped, what the
scripts get is JSON without angle brackets, and no script runs but the two whose hashes the document names.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup, escape

from analysis.show.html import templates
from analysis.show.style import ArmStyle, Floats
from analysis.show.text import visible

from . import tables
from .charts import Chart, Group, Section, sections
from .happened import counts, summed_up, what_happened
from .material import Material
from .one_seed import gravest_first, has_one_seed
from .picture import picture
from .verdicts import first_screen

HERE = Path(__file__).parent
_DIGITS = 5
"""Significant digits of a value in a chart."""


def page(material: Material, command: str, refresh: int | None = None) -> str:
    """The document. ``command``: the command line that made it. ``refresh``: after how many seconds it loads itself again."""
    happened = what_happened(material)
    told = summed_up(happened)
    found, drawn = material.study, sections(material)
    one_seed = found is not None and has_one_seed(found)
    if one_seed:
        drawn = gravest_first(drawn, happened)
    script = (HERE / "page.js").read_text(encoding="utf-8")
    words = first_screen(material, happened)
    forest = None if found is None or one_seed else tables.forest(found)
    return _templates().get_template("page.html.j2").render(
        words=words,
        title=_title(material),
        made=f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        refresh=refresh,
        forest=forest,
        stills=_stills(drawn, apart=forest is None),
        happened=told[: tables.EVENTS],
        events=len(told),
        opened=tables.OPEN_EVENTS,
        counted=counts(happened),
        by_run=tables.of_events(happened),
        sections=drawn,
        arms=[] if found is None else [*tables.of_arms(found), tables.presence_table(found)],
        runs=tables.of_runs(material.runs),
        claims=tables.of_claims(material),
        probes=tables.of_probes(material),
        differences=tables.of_differences(material),
        environment=tables.of_environment(material),
        notes=tables.notes(material),
        commands=tables.commands(material, command),
        configurations=tables.configurations(material),
        data=_json([_section(one) for one in drawn]),
        plotly=Markup(_plotly()),  # noqa: S704  (a package's own file)
        script=Markup(script),  # noqa: S704
        hashes=[_hash(_plotly()), _hash(script)],
    )  # fmt: skip


def _title(material: Material) -> str:
    names = list(material.runs) if material.suite is None else [material.suite.resolve().name]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


@cache
def _hash(script: str) -> str:
    """A script's hash, as a content security policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _stills(drawn: Sequence[Section], *, apart: bool) -> list[tuple[str, str]]:
    """For each section its picture and what this shows. With ``apart`` the first panel of all is a picture of its own, the
    first; one that shows nothing is empty."""
    parts = list(drawn)
    if parts and apart:
        charts = parts[0].charts
        parts = [replace(parts[0], charts=charts[:1]), replace(parts[0], charts=charts[1:]), *parts[1:]]
    return [
        (_image(picture(part)), ", ".join(chart.quantity.title for chart in part.charts)) if part.charts else ("", "")
        for part in parts
    ]


def _image(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _templates() -> jinja2.Environment:
    found = templates(HERE)
    found.globals["dashes"] = dashes
    return found


# ------------------------------------------------------------------------------------------------------------ for the scripts


def _json(value: Any) -> Markup:
    """JSON that can stand in a script element: without angle brackets and ampersands."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704


def _section(one: Section) -> dict[str, Any]:
    return {"groups": [_group(group) for group in one.groups], "charts": [_chart(chart) for chart in one.charts]}


def _group(group: Group) -> dict[str, Any]:
    return {"name": _shown(group.name), "colour": group.look.colour, "dash": dashes(group.look), "hidden": group.hidden}


def _chart(chart: Chart) -> dict[str, Any]:
    return {
        "unit": chart.quantity.unit,
        "log": chart.log,
        "limits": chart.limits,
        "bands": chart.bands,
        "lines": [
            {
                "group": line.group,
                "kind": line.kind,
                "name": _shown(line.name),
                "x": _steps(line.x),
                "y": _numbers(line.y),
            }
            for line in chart.lines
        ],
        "marks": [
            {"group": m.group, "x": m.x, "y": _numbers(np.array([m.y]))[0], "text": _shown(m.text), "broken": m.broken}
            | ({"beyond": True, "label": m.label} if m.beyond else {})
            for m in chart.marks
        ],
    }


def _shown(text: str) -> str:
    """Text for plotly, which reads some HTML in names."""
    return str(escape(visible(text)))


def _steps(values: Floats) -> list[int]:
    return [int(value) for value in values.tolist()]


def _numbers(values: Floats) -> list[float | None]:
    return [float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]


def dashes(look: ArmStyle) -> str:
    """A line's dashes as SVG and plotly have them; empty for a solid line."""
    return "" if isinstance(look.line, str) else ",".join(f"{2 * length:g}px" for length in look.line[1])
