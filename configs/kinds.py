"""Checks of a well-formed configuration against the things it names: registered heads and objectives, transformers bodies."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from typing import Any

import pydantic

from common.errors import InputError
from model import HEADS, OBJECTIVES
from record.metrics import describe
from stability.detect.catalogue import DETECTORS

from .body import body_problems
from .messages import nearest, wrong_value
from .schema import BodyConfig, Choice, DetectionConfig, RunConfig


def check_components(config: RunConfig, *, recorded: bool = False) -> RunConfig:
    """The configuration with the options of head and objective filled in. Raises InputError with every mistake found."""
    problems: list[str] = []
    head = _resolve("head", config.head, HEADS, problems)
    objective = _resolve("objective", config.objective, OBJECTIVES, problems)
    problems += body_problems(config.body, config.data.sequence_length, recorded=recorded)
    problems += _detection_problems(config.detection)
    if problems:
        raise InputError(*problems)
    return config.model_copy(update={"head": head, "objective": objective})


def _detection_problems(detection: DetectionConfig) -> list[str]:
    problems = []
    if detection.detector not in DETECTORS:
        hint = nearest(detection.detector, DETECTORS)
        problems.append(
            f"detection.detector: no detector {detection.detector!r}; there are {', '.join(sorted(DETECTORS))}{hint}"
        )
    for signal in detection.signals:
        try:
            describe(signal)
        except KeyError:
            problems.append(f"detection.signals: no metric {signal!r}; docs/metrics.md lists them")
    return problems


def component_problems(raw: dict[str, Any]) -> list[str]:
    """What can be said about head, objective and body of a configuration that is wrong elsewhere."""
    problems: list[str] = []
    for section, table in (("head", HEADS), ("objective", OBJECTIVES)):
        with contextlib.suppress(pydantic.ValidationError):
            _resolve(section, Choice.model_validate(raw.get(section)), table, problems)
    with contextlib.suppress(pydantic.ValidationError):
        problems += body_problems(BodyConfig.model_validate(raw.get("body")), sequence_length=2)
    return problems


def _resolve(section: str, choice: Choice, table: dict[str, Any], problems: list[str]) -> Choice:
    """``choice`` with all options of its kind; mistakes are appended to ``problems``."""
    if choice.kind not in table:
        known = ", ".join(sorted(table))
        problems.append(
            f"{section}.kind: unknown kind {choice.kind!r}; registered: {known}{nearest(choice.kind, table)}"
        )
        return choice
    plain = table[choice.kind].Options
    strict = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    options = pydantic.dataclasses.dataclass(plain, config=strict, frozen=True)
    try:
        resolved = pydantic.TypeAdapter(options).validate_json(json.dumps(choice.options))
    except pydantic.ValidationError as error:
        problems += _option_problems(section, choice, [f.name for f in dataclasses.fields(plain)], error)
        return choice
    return Choice.model_validate({"kind": choice.kind, **dataclasses.asdict(resolved)})


def _option_problems(section: str, choice: Choice, names: list[str], error: pydantic.ValidationError) -> list[str]:
    """One line for each option that is wrong."""
    messages: dict[str, list[str]] = {}
    for e in error.errors():
        key = f"{section}.{e['loc'][0]}" if e["loc"] else section
        if e["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            has = f"it has {', '.join(names)}" if names else "it has no options"
            text = f"no option of the kind {choice.kind}, {has}{nearest(str(e['loc'][0]), names)}"
        elif e["type"] == "value_error":
            text = str(e["ctx"]["error"])
        else:
            text = wrong_value(key, e)
        messages.setdefault(key, []).append(text)
    return [f"{key}: {'; or '.join(texts)}" for key, texts in messages.items()]
