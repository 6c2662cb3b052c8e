"""Build a model, its optimizer and its telemetry from a configuration."""

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from common.errors import InputError
from common.seeds import stream_seed
from configs.body import body_config, skeleton_problems
from configs.schema import RunConfig
from model import SwapHeadConfig, attend_causally, blocks, final_norm, new_model, sigma_reparam
from model.modeling import build
from model.negatives import negative_loss
from model.registry import OBJECTIVES
from record.checkpoints import reparametrised_tensors
from record.whole import load_checkpoint
from stability.measure.norms import groups_of
from stability.measure.telemetry import Telemetry

from .compiled import compile_body

UNUSABLE = (OSError, ValueError, KeyError, SafetensorError)
"""What loading a teacher raises; KeyError for a kind of a plug-in that is not imported."""


def model_config(config: RunConfig, vocab_size: int, special_id: int) -> SwapHeadConfig:
    """The configuration of a run's model, with a new body or (``body.checkpoint``) that of an existing checkpoint. Raises
    InputError if the checkpoint cannot be read or its vocabulary is smaller than the tokenizer's."""
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
        problems = skeleton_problems(text, config.data.sequence_length, sigma_reparam=config.body.sigma_reparam)
        if problems:
            raise InputError(*problems)
        n_classes = text.vocab_size
    head = {"kind": config.head.kind, **config.head.options}
    objective = _objective(config)
    width = _taught_width(objective)
    return SwapHeadConfig(text, head=head, objective=objective, n_classes=n_classes, taught_width=width)


def _objective(config: RunConfig) -> dict[str, Any]:
    return {"kind": config.objective.kind, **config.objective.options}


def _taught_width(choice: dict[str, Any]) -> int | None:
    """Width of a teacher's hidden states, for an objective that maps the model's to them. Raises InputError if the teacher cannot
    be used."""
    objective = build(OBJECTIVES, choice)
    if not objective.projects:
        return None
    place = objective.teacher.checkpoint
    try:
        found = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            return int(AutoModelForCausalLM.from_config(found).get_output_embeddings().weight.shape[1])
    except UNUSABLE as error:
        raise _no_teacher(place, error) from None


def _no_teacher(place: str, error: Exception) -> InputError:
    reason = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return InputError(f"objective.teacher: {place} cannot be used: {reason}; give a checkpoint")


def build_model(config: RunConfig, vocab_size: int, special_id: int) -> Any:
    """A new model, with a new body or that of an existing checkpoint."""
    model: Any = new_model(model_config(config, vocab_size, special_id), stream_seed(config.seed, "init"))
    if config.body.checkpoint is not None:
        try:
            existing = load_checkpoint(config.body.checkpoint, local_files_only=False, body_only=True)
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(f"body.checkpoint: {config.body.checkpoint}: {' '.join(str(error).split())}") from None
        model.model.load_state_dict(existing.base_model.state_dict())
    if config.body.sigma_reparam:
        try:
            sigma_reparam.reparametrise(model, stream_seed(config.seed, "sigma_reparam"))
        except ValueError as error:
            raise InputError(f"body.sigma_reparam: {error}; leave it out") from None
    return model


def load_weights(checkpoint: Path, config: RunConfig) -> Any:
    """The model in a checkpoint, with the run's objective: a branch may have another one. Raises InputError if the weights are
    not exactly the model's."""
    try:
        model: Any = load_checkpoint(checkpoint)
        if config.body.sigma_reparam:
            sigma_reparam.restore(model, reparametrised_tensors(checkpoint))
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{checkpoint} cannot be used: {reason}; rename it, and the one before it is") from None
    objective = _objective(config)
    if _taught_width(objective) != model.config.taught_width:
        raise InputError(
            f"objective: {checkpoint} was not written with the same projection of hidden states, or without one; begin a new run"
        )
    if objective != model.config.objective:
        model.set_objective(objective)
    return model


def prepare_model(config: RunConfig, model: Any) -> Any:
    """Prepare the model for training as configured."""
    model.train()
    model.lm_head.kernel = config.train.kernel
    _load_teacher(model, config.data.sequence_length)
    if (n := config.negatives) is not None:
        classes = model.lm_head.n_classes
        model.negatives = negative_loss(n.loss, classes, weight=n.weight, margin=n.margin, nearest=n.nearest)
    attend_causally(model.model, config.data.sequence_length)
    if config.train.gradient_checkpointing:
        # transformers 5.23 renames it and warns about the old name; 5.17 has only the old one.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    if config.train.compile:
        compile_body(model.model)
    return model


def _load_teacher(model: Any, length: int) -> None:
    """Load what the objective learns from, if it has a teacher. Raises InputError for one that cannot be used."""
    teacher = model.objective.teacher
    if teacher is not None:
        try:
            found = load_checkpoint(teacher.checkpoint)
            teacher.use(found, model.lm_head.n_classes)
            if found.config.get_text_config().max_position_embeddings < length:
                raise ValueError(f"it has fewer positions than data.sequence_length={length}")
        except UNUSABLE as error:
            raise _no_teacher(teacher.checkpoint, error) from None


def build_telemetry(model: Any, config: RunConfig) -> Telemetry:
    """Telemetry on the bare model."""
    tied = config.head.options.get("tied", True)
    assert not tied or model.lm_head.weight is model.get_input_embeddings().weight, (
        "the launch broke the tied embedding"
    )
    parameters, groups = dict(model.named_parameters()), groups_of(model)
    stack, last = blocks(model.model), final_norm(model.model)
    return Telemetry(stack, last, model.lm_head, parameters, groups, config.telemetry.measured)
