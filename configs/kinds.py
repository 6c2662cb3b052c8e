"""All kinds that a configuration can choose, and the check of their options."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from common.errors import InputError
from common.registry import checked_options, plain_options
from common.section import Choice
from data.corpora import DataConfig
from data.kinds import CORPORA
from model import HEADS, OBJECTIVES, Objective
from optim.optimizers import OPTIMIZERS, OptimizerConfig
from optim.schedules import SCHEDULES
from record.metrics import describe, family_of
from stability.detect.catalogue import DETECTORS
from stability.intervene.kinds import INTERVENTIONS
from stability.stress.base import Setup, Stress
from stability.stress.kinds import STRESSES

from .body import body_problems
from .messages import nearest, wrong_value
from .schema import BodyConfig, RunConfig

TABLES: dict[str, dict[str, Any]] = {
    "data": CORPORA,
    "head": HEADS,
    "objective": OBJECTIVES,
    "optimizer": OPTIMIZERS,
    "optimizer.schedule": SCHEDULES,
    "stress": STRESSES,
    "interventions": INTERVENTIONS,
    "detection.detector": DETECTORS,
}
"""The registered classes, by the configuration key that chooses among them."""
LISTS = ("stress", "interventions")
"""Lists of kinds."""
_SHARED: dict[str, type[pydantic.BaseModel]] = {"data": DataConfig, "optimizer": OptimizerConfig}
"""Sections with keys of their own besides those of the kind."""

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MISSING = ("missing", "missing_argument")
"""Types of pydantic's errors."""


def table_of(section: str) -> dict[str, Any]:
    """The kinds of a section; for stress.0, those of stress."""
    return TABLES[_unnumbered(section)]


def _unnumbered(section: str) -> str:
    return ".".join(part for part in section.split(".") if not part.isdigit())


def option_names(section: str, cls: Any) -> list[str]:
    """The keys of a section with this kind, without ``kind`` itself."""
    shared = _SHARED[section].model_fields if section in _SHARED else {}
    return [*(f.name for f in dataclasses.fields(cls.Options)), *(name for name in shared if name != "kind")]


def check_kinds(config: RunConfig, *, recorded: bool = False) -> RunConfig:
    """The configuration with the options of all kinds filled in. Raises InputError with every mistake found."""
    problems: list[str] = []
    optimizer = _resolve("optimizer", config.optimizer, problems)
    schedule = _resolve("optimizer.schedule", config.optimizer.schedule, problems)
    found = {
        "data": _resolve("data", config.data, problems),
        "head": _resolve("head", config.head, problems),
        "objective": _resolve("objective", config.objective, problems),
        "optimizer": optimizer.model_copy(update={"schedule": schedule}),
        "stress": [_resolve(f"stress.{i}", choice, problems) for i, choice in enumerate(config.stress)],
        "interventions": [
            _resolve(f"interventions.{i}", choice, problems) for i, choice in enumerate(config.interventions)
        ],
    }
    problems += body_problems(config.body, config.data.sequence_length, recorded=recorded)
    problems += _detection_problems(config)
    if not problems:
        problems += [*_problems_of_kinds(config), *_problems_of_objective(config, recorded=recorded)]
        problems += _problems_of_distances(config)
    if problems:
        raise InputError(*problems)
    return config.model_copy(update=found)


def _detection_problems(config: RunConfig) -> list[str]:
    detection, problems = config.detection, []
    acting = {choice.kind for choice in config.interventions} | ({"clip_norm"} if config.optimizer.clip_norm else set())
    for kind in acting & INTERVENTIONS.keys():
        INTERVENTIONS[kind].declare_metrics()
    if detection.detector not in DETECTORS:
        hint = nearest(detection.detector, DETECTORS)
        problems.append(
            f"detection.detector: no detector {detection.detector!r}; there are {', '.join(sorted(DETECTORS))}{hint}"
        )
    for signal in detection.signals:
        try:
            describe(signal)
            if signal.startswith("intervention/") and signal.split("/")[1].partition("-")[0] not in acting:
                raise KeyError(signal)
            family = family_of(signal)
            if family is not None and not config.telemetry.measures(family):
                problems.append(f"detection.signals: {signal} is not measured without {family} in telemetry.families")
        except KeyError:
            problems.append(f"detection.signals: no metric {signal!r}; docs/metrics.md lists them")
    return problems


def _problems_of_objective(config: RunConfig, *, recorded: bool) -> Iterator[str]:
    """An objective that does not fit the head, and a teacher that is not there (of a recorded run it may be gone)."""
    kind, head, has = config.objective.kind, config.head.kind, HEADS[config.head.kind].has_auxiliary
    objective: Objective = OBJECTIVES[kind](checked_options(OBJECTIVES[kind], config.objective.options))
    teacher = config.objective.options.get("teacher")
    if config.head.options.get("abstain") and (objective.uses_rows or objective.uses_likeliest):
        yield f"objective.kind: {kind} reads all logits, to which head.abstain adds one; leave head.abstain out"
    if config.head.options.get("abstain") and objective.uses_batch:
        yield f"objective.kind: {kind} reads no logit that head.abstain adds; leave head.abstain out"
    if objective.state is not None and not config.telemetry.measures("logits"):
        yield f"objective.kind: {kind} learns from the statistics of the logits; measure logits (telemetry)"
    if objective.uses_auxiliary and not has:
        yield f"objective.kind: {kind} trains an auxiliary head, which {head} lacks; use head.kind=dual"
    if has and not objective.uses_auxiliary:
        yield f"objective.kind: {kind} does not train the auxiliary head of {head}; use dual_head, or head.kind=linear"
    if teacher is not None and not recorded and not (Path(teacher) / "config.json").is_file():
        runs = (Path(teacher), Path(teacher).parent.parent)
        there = sorted(found for run in runs for found in run.glob("checkpoints/step_*/config.json"))
        hint = f"there is {there[-1].parent}" if there else "give one of an earlier run, RUN/checkpoints/step_N"
        yield f"objective.teacher: there is no checkpoint at {teacher}; {hint}"


def _problems_of_distances(config: RunConfig) -> Iterator[str]:
    """What asks for distances, or for a class besides the vocabulary's, where the head has none."""
    head, negatives = HEADS[config.head.kind], config.negatives
    without = f"head.kind={config.head.kind} has no distances to its classes; use head.kind=metric"
    if negatives is not None and negatives.loss == "hinge" and not head.bounded:
        yield f"negatives.loss: hinge: {without} or negatives.loss=uniform"
    if config.checkpoint.unknown_fpr is not None and not head.bounded:
        yield f"checkpoint.unknown_fpr: {without} or leave it out"
    extra = head.extra_classes or config.head.options.get("abstain")
    if negatives is not None and negatives.loss == "others" and not extra:
        yield "negatives.loss: others: the head has no class besides the vocabulary's; set head.kind=metric head.abstain=true"


def _problems_of_kinds(config: RunConfig) -> Iterator[str]:
    """Problems that stresses and interventions find in the run's configuration."""
    train = config.train
    moments = OPTIMIZERS[config.optimizer.kind].moments
    setup = Setup(train.steps, train.batch_size, config.data.sequence_length, moments)
    for number, choice in enumerate(config.stress):
        cls = STRESSES[choice.kind]
        options = checked_options(cls, choice.options)
        for key, text in cls.problems(options, setup):
            yield f"stress.{number}.{key}: {text}"
        if train.precision == "fp16" and cls.gradients is not Stress.gradients:
            yield f"stress.{number}.kind: {choice.kind} changes gradients after the fp16 scaler has checked them; use bf16"
    for number, choice in enumerate(config.interventions):
        cls = INTERVENTIONS[choice.kind]
        options = checked_options(cls, choice.options)
        for key, text in cls.problems(options, signals=config.detection.signals):
            yield f"interventions.{number}.{key}: {text}"
        if choice.kind == "clip_norm" and config.optimizer.clip_norm is not None:
            yield f"interventions.{number}.kind: optimizer.clip_norm clips already; set optimizer.clip_norm=null"


def kind_problems(raw: dict[str, Any]) -> list[str]:
    """Problems of the kinds and the body in a configuration that already has mistakes elsewhere."""
    problems: list[str] = []
    lists = {f"{key}.{i}": each for key in LISTS for i, each in _numbered(raw.get(key))}
    optimizer = raw.get("optimizer")
    lists["optimizer.schedule"] = optimizer.get("schedule") if isinstance(optimizer, dict) else None
    for section in ("data", "head", "objective", "optimizer", *lists):
        given = lists.get(section, raw.get(section))
        if section in _SHARED and isinstance(given, dict):  # what is wrong with the other keys, the schema has said
            fields = _SHARED[section].model_fields
            usual = {} if fields["kind"].is_required() else {"kind": fields["kind"].default}
            given = usual | {name: value for name, value in given.items() if name == "kind" or name not in fields}
        with contextlib.suppress(pydantic.ValidationError):
            _resolve(section, Choice.model_validate(given), problems)
    with contextlib.suppress(pydantic.ValidationError):
        problems += body_problems(BodyConfig.model_validate(raw.get("body")), sequence_length=2)
    return problems


def _numbered(choices: Any) -> Iterator[tuple[int, Any]]:
    yield from enumerate(choices if isinstance(choices, list) else ())


def _resolve(section: str, choice: Any, problems: list[str]) -> Any:
    """``choice`` with all options of its kind; mistakes are appended to ``problems``."""
    table = table_of(section)
    if choice.kind not in table:
        known = ", ".join(sorted(table))
        hint = nearest(choice.kind, table) or "; one of your own needs its file in plugins"
        problems.append(f"{section}.kind: unknown kind {choice.kind!r}; registered: {known}{hint}")
        return choice
    try:
        resolved = checked_options(table[choice.kind], choice.options)
    except pydantic.ValidationError as error:
        problems += _option_problems(section, choice, error)
        return choice
    shared = {name: getattr(choice, name) for name in type(choice).model_fields}
    options = plain_options(table[choice.kind], resolved)
    if clash := shared.keys() & options.keys():
        problems.append(
            f"{section}.kind: the options of {choice.kind} have {', '.join(sorted(clash))}, a key of the section too; rename it"
        )
        return choice
    return type(choice).model_construct(**shared, **options)


def _option_problems(section: str, choice: Choice, error: pydantic.ValidationError) -> list[str]:
    """One line for each option that is wrong."""
    table, base = table_of(section), _unnumbered(section)
    names = option_names(section, table[choice.kind])
    elsewhere = {name for cls in table.values() for name in option_names(section, cls)}
    messages: dict[str, list[str]] = {}
    for e in error.errors():
        key = ".".join([section, *map(str, e["loc"])])
        name = str(e["loc"][0]) if e["loc"] else ""
        if e["type"] not in _UNKNOWN or base in ("head", "objective"):
            text = option_problem(key, e, choice.kind, names)
            if e["type"] in _MISSING:
                text += f" or as {key}=..."
        elif name in elsewhere:
            text = f"has no effect with {section}.kind={choice.kind}; leave it out"
        else:
            near = nearest(f"{section}.{name}", [f"{section}.{own}" for own in names])
            text = "unknown key" + (near or f"; {section}.kind={choice.kind} {_has(names)}")
        messages.setdefault(key, []).append(text)
    return [f"{key}: {'; or '.join(texts)}" for key, texts in messages.items()]


def _has(names: list[str]) -> str:
    return f"has {', '.join(names)}" if names else "has no options"


def option_problem(key: str, error: Any, kind: str, names: list[str]) -> str:
    """What is wrong with an option of a kind that has the options ``names``, from pydantic's error about ``key``."""
    if error["type"] in _UNKNOWN:
        return f"no option of the kind {kind}, it {_has(names)}{nearest(str(error['loc'][0]), names)}"
    if error["type"] in _MISSING:
        return "is required and has no default; set it in the recipe"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return wrong_value(key, error)
