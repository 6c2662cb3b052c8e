"""Checks of a well-formed configuration against the things it names: registered heads and objectives, transformers bodies."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import math
from typing import Any

import pydantic
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model import HEADS, OBJECTIVES, SwapHeadConfig, blocks, final_norm
from stability.metrics import describe
from stability.spikes import DETECTORS

from .errors import InputError
from .load import nearest, wrong_value
from .schema import BodyConfig, Choice, DetectionConfig, RunConfig

# What building or instantiating a transformers configuration raises for values that do not fit together.
_BODY_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError),
    StrictDataclassError,
)
_LARGEST = {
    "num_hidden_layers": 1024,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 24,
    "num_attention_heads": 1 << 16,
    "num_key_value_heads": 1 << 16,
    "head_dim": 1 << 16,
    "max_position_embeddings": 1 << 31,
}
"""Sizes that transformers does not look at before it builds, for hours if need be. Each is ten times any in use."""
_MOST_PARAMETERS = 10**13
_DERIVED = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}


def check_components(config: RunConfig) -> RunConfig:
    """The configuration with the options of head and objective filled in. Raises InputError with every mistake found."""
    problems: list[str] = []
    head = _resolve("head", config.head, HEADS, problems)
    objective = _resolve("objective", config.objective, OBJECTIVES, problems)
    problems += _body_problems(config.body, config.data.sequence_length)
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
        problems += _body_problems(BodyConfig.model_validate(raw.get("body")), sequence_length=2)
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


def _body_problems(body: BodyConfig, sequence_length: int) -> list[str]:
    if body.model_type is None:
        return []
    if body.model_type not in CONFIG_MAPPING:
        hint = nearest(body.model_type, CONFIG_MAPPING.keys())
        return [f"body.model_type: transformers knows no model type {body.model_type!r}{hint}"]
    if body.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        hint = nearest(body.model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        return [f"body.model_type: {body.model_type} is no language model that reads from left to right{hint}"]
    cls = CONFIG_MAPPING[body.model_type]
    known = set(inspect.signature(cls.__init__).parameters) | set(getattr(cls, "attribute_map", {})) - {
        "self",
        "kwargs",
    }
    known |= {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    problems = []
    for field in body.fields:
        if field in _DERIVED:
            problems.append(f"body.{field}: follows from the data and the head; leave it out")
        elif field not in known:
            problems.append(
                f"body.{field}: no field of a {body.model_type} configuration{nearest(field, sorted(known))}"
            )
        else:
            problems += _value_problems(body.model_type, field, body.fields[field])
    if problems:
        return problems
    try:
        return _skeleton_problems(body_config(body, sequence_length, vocab_size=512, special_id=0), sequence_length)
    except _BODY_ERRORS as error:
        reason = " ".join(str(error).partition("Exception raised from")[0].split())  # torch goes on with a trace in C++
        told = f"{reason or type(error).__name__}; look at {_blamed(body, sequence_length)}"
        return [f"body: transformers cannot build this {body.model_type}: {told}"]


def _value_problems(model_type: str, field: str, value: Any) -> list[str]:
    """What is wrong with one field of a body whatever the others are, and is not seen (or too late) by transformers."""
    if isinstance(value, float) and not math.isfinite(value):
        return [f"body.{field}: must be a finite number, but is {value}"]
    canonical = {v: k for k, v in CONFIG_MAPPING[model_type].attribute_map.items()}.get(field, field)
    most, least = _LARGEST.get(canonical), 0 if canonical == "num_hidden_layers" else 1  # no layer at all is told below
    if most is not None and type(value) is int and not least <= value <= most:
        return [f"body.{field}: must be a whole number from 1 to {most}, but is {value}"]
    return []


def _blamed(body: BodyConfig, sequence_length: int) -> str:
    """The fields without any one of which the body could be built; else, all of them."""
    blamed = []
    for field in body.fields:
        others = {name: value for name, value in body.fields.items() if name != field}
        without = BodyConfig.model_validate({"model_type": body.model_type, **others})
        try:
            text = body_config(without, sequence_length, vocab_size=512, special_id=0)
            with torch.device("meta"):
                AutoModel.from_config(text)
        except _BODY_ERRORS:
            continue
        blamed.append(field)
    return ", ".join(f"body.{field}" for field in blamed or body.fields or ["model_type"])


def _skeleton_problems(text: PreTrainedConfig, sequence_length: int) -> list[str]:
    """Build the body without memory and look at its parts. Raises what transformers raises."""
    if text.max_position_embeddings < sequence_length:
        return [
            f"data.sequence_length: {sequence_length} is more than the body's {text.max_position_embeddings} positions"
        ]
    with torch.device("meta"):
        skeleton = AutoModel.from_config(text)
    final_norm(skeleton)
    if len(blocks(skeleton)) == 0:
        layers = text.attribute_map.get("num_hidden_layers", "num_hidden_layers")
        return [f"body: this configuration has no transformer block; give it at least one layer (body.{layers})"]
    parameters = sum(parameter.numel() for parameter in skeleton.parameters())
    if parameters > _MOST_PARAMETERS:
        return [f"body: {parameters:,} parameters are more than {_MOST_PARAMETERS:,}; make body.hidden_size smaller"]
    return []


def body_config(body: BodyConfig, sequence_length: int, vocab_size: int, special_id: int) -> PreTrainedConfig:
    """The transformers configuration of a new body. The number of positions is the sequence length unless stated.

    Raises what transformers raises for fields of a wrong type or value.
    """
    assert body.model_type is not None
    fields = body.fields
    names = {"max_position_embeddings", CONFIG_MAPPING[body.model_type].attribute_map.get("max_position_embeddings")}
    if not names & set(fields):
        fields["max_position_embeddings"] = sequence_length
    return AutoConfig.for_model(
        body.model_type, vocab_size=vocab_size, bos_token_id=special_id, eos_token_id=special_id, **fields
    )


def model_config(config: RunConfig, vocab_size: int, special_id: int) -> SwapHeadConfig:
    """The configuration of a run's model, its body new or (``body.checkpoint``) that of an existing checkpoint.

    Raises InputError when the checkpoint cannot be read or its vocabulary is smaller than the tokenizer's.
    """
    if config.body.checkpoint is None:
        multiple = config.body.pad_vocab_to_multiple_of
        padded = math.ceil(vocab_size / multiple) * multiple
        text, n_classes = body_config(config.body, config.data.sequence_length, padded, special_id), vocab_size
    else:
        try:
            text = AutoConfig.from_pretrained(config.body.checkpoint, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(f"body.checkpoint: {config.body.checkpoint}: {str(error).splitlines()[0]}") from None
        text = getattr(text, "text_config", text)
        if text.vocab_size < vocab_size:
            raise InputError(
                f"body.checkpoint: {config.body.checkpoint} has {text.vocab_size} embeddings, the tokenizer {vocab_size} "
                "tokens; set data.tokenizer to the checkpoint's own"
            )
        problems = _skeleton_problems(text, config.data.sequence_length)
        if problems:
            raise InputError(*problems)
        n_classes = text.vocab_size
    head = {"kind": config.head.kind, **config.head.options}
    objective = {"kind": config.objective.kind, **config.objective.options}
    return SwapHeadConfig(text, head=head, objective=objective, n_classes=n_classes)
