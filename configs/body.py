"""Bodies: transformers configurations, checked field by field before anything is built."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from model import SwapHeadConfig, blocks, final_norm
from model.sigma_reparam import unfit

from .messages import nearest
from .schema import BodyConfig

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
"""Limits on sizes, which transformers does not check before it builds for hours. Each is ten times any in use."""
_MOST_PARAMETERS = 10**13
_DERIVED = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"}
_SIZE = re.compile(
    r"(hidden|embedding|intermediate|feed_forward|state|head)_size|d_model|d_ff|dff|dim_ff|ffn|d_inner|d_state|emb_dim|n_embd"
    r"|head_dim|dim_head|kv_channels|(rank|layers?|heads?|experts|_per_layer_input)$"
)
"""Names of the fields that decide the size of a model: width, depth, heads, experts, width of embeddings."""


_FINE: set[str] = set()
"""What :func:`body_problems` was asked and found no problem in: a suite asks it of the same bodies hundreds of times."""


def body_problems(body: BodyConfig, sequence_length: int, *, recorded: bool = False) -> list[str]:
    """Problems of a new body, a line each: unknown fields, missing sizes, values that do not fit together.

    ``recorded``: the body of an older run, in which sizes may be transformers' defaults.
    """
    asked = repr((body.model_dump(), sequence_length, recorded))
    problems = [] if asked in _FINE else _body_problems(body, sequence_length, recorded=recorded)
    if not problems:
        _FINE.add(asked)
    return problems


def _body_problems(body: BodyConfig, sequence_length: int, *, recorded: bool) -> list[str]:
    if body.model_type is None:
        return []
    if body.model_type not in CONFIG_MAPPING:
        hint = nearest(body.model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - {SwapHeadConfig.model_type})
        return [f"body.model_type: transformers knows no model type {body.model_type!r}{hint}"]
    if body.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or body.model_type == SwapHeadConfig.model_type:
        hint = nearest(body.model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        return [f"body.model_type: {body.model_type} is not a causal language model{hint}"]
    known = known_fields(body.model_type)
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
    problems += _doubled_fields(body)
    if not recorded:
        problems += [
            f"body.{name}: is required; transformers' default for {body.model_type}, {default}, is that of a published model"
            for name, default in unstated_sizes(body.model_type, body.fields).items()
        ]
    if problems:
        return problems
    try:
        text = body_config(body, sequence_length, vocab_size=512, special_id=0)
        return skeleton_problems(text, sequence_length, sigma_reparam=body.sigma_reparam)
    except _BODY_ERRORS as error:
        reason = " ".join(str(error).partition("Exception raised from")[0].split())  # torch goes on with a trace in C++
        message = f"{reason or type(error).__name__}; look at {_blamed(body, sequence_length)}"
        return [f"body: transformers cannot build this {body.model_type}: {message}"]


def known_fields(model_type: str) -> set[str]:
    """The fields of a model type's transformers configuration, by all their names."""
    return {*_defaults(model_type), *CONFIG_MAPPING[model_type].attribute_map}


def common_name(model_type: str, field: str) -> str:
    """The name that transformers gives a field across model types: hidden_size for n_embd of gpt2."""
    return {own: common for common, own in CONFIG_MAPPING[model_type].attribute_map.items()}.get(field, field)


def carried_over(old: Mapping[str, Any], model_type: str) -> dict[str, str] | None:
    """The fields of the body section ``old`` that another model type has too, with its names for them.

    None if there is no such type, which is reported later.
    """
    old_type = old.get("model_type")
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or model_type not in CONFIG_MAPPING:
        return None
    if not isinstance(old_type, str) or old_type not in CONFIG_MAPPING:
        return {}
    own, known = CONFIG_MAPPING[model_type].attribute_map, known_fields(model_type)
    named = {field: common_name(old_type, field) for field in old if field not in BodyConfig.model_fields}
    kept = {field: own.get(common, common) for field, common in named.items() if common in known}
    return kept | {field: field for field in old if field in ("pad_vocab_to_multiple_of", "sigma_reparam")}


def not_replaced(old: Mapping[str, Any], new: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    """The fields of ``old`` without those that ``new`` states by another name."""
    if model_type not in CONFIG_MAPPING:
        return dict(old)
    stated = {common_name(model_type, field) for field in new}
    return {
        field: value for field, value in old.items() if field in new or common_name(model_type, field) not in stated
    }


def _defaults(model_type: str) -> dict[str, Any]:
    """The fields of a model type's configuration by its own names, and their defaults."""
    cls = CONFIG_MAPPING[model_type]
    stated = inspect.signature(cls.__init__).parameters.values()
    defaults = {p.name: p.default for p in stated if p.kind is not p.VAR_KEYWORD and p.name != "self"}
    return defaults | ({f.name: f.default for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else {})


def _doubled_fields(body: BodyConfig) -> list[str]:
    """Problems of fields given under two of their names."""
    names: dict[str, list[str]] = {}
    for field in body.fields:
        names.setdefault(common_name(str(body.model_type), field), []).append(field)
    return [
        f"body.{same[0]}: body.{same[1]} is the same field; leave one out" for same in names.values() if len(same) > 1
    ]


def unstated_sizes(model_type: str, fields: Mapping[str, Any]) -> dict[str, int]:
    """Sizes missing in ``fields``, with transformers' defaults, which are mostly those of billion-parameter models."""
    stated = {common_name(model_type, field) for field in fields}
    return {
        name: default
        for name, default in _defaults(model_type).items()
        if type(default) is int
        and default > 1
        and _SIZE.search(name)
        and not name.startswith("max_")
        and common_name(model_type, name) not in stated
    }


def _value_problems(model_type: str, field: str, value: Any) -> list[str]:
    """Problems of a single field that transformers does not find, or finds too late."""
    if isinstance(value, float) and not math.isfinite(value):
        return [f"body.{field}: must be a finite number, but is {value}"]
    canonical = common_name(model_type, field)
    most, least = (
        _LARGEST.get(canonical),
        0 if canonical == "num_hidden_layers" else 1,
    )  # no layer at all is reported below
    if most is not None and type(value) is int and not least <= value <= most:
        return [f"body.{field}: must be a whole number from 1 to {most}, but is {value}"]
    return []


def _blamed(body: BodyConfig, sequence_length: int) -> str:
    """The fields each of which, if left out, lets the body be built; if there are none, all fields."""
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


def skeleton_problems(text: PreTrainedConfig, sequence_length: int, *, sigma_reparam: bool) -> list[str]:
    """Problems found by building the body on the meta device, as ``body.sigma_reparam`` says. Raises what transformers raises."""
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
    if sigma_reparam and (problem := unfit(skeleton)):
        return [f"body.sigma_reparam: {problem}; leave it out"]
    return []


def body_config(body: BodyConfig, sequence_length: int, vocab_size: int, special_id: int) -> PreTrainedConfig:
    """The transformers configuration of a new body. The number of positions is the sequence length unless given.

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
