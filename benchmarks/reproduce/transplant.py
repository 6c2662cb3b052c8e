"""QK-norm put into a model in mid-run: from a checkpoint with Llama's body to one with Qwen3's, from which a run can branch.

The two bodies differ in nothing but the normalisation of queries and keys, so all weights, Adam's moments and the place in the
data are taken over. The new gains are 1, and Adam has seen no gradient of theirs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from common.errors import InputError
from common.files import write_text
from configs.load import load_config
from configs.recipe import dump_config
from configs.schema import RunConfig
from record.checkpoints import checkpoint_at, joined_optimizer, read_state, write_checkpoint
from record.whole import load_checkpoint
from training.build import build_model

NEW = ("q_norm.weight", "k_norm.weight")
"""How the names of the gains end."""


def transplant(run: Path, step: int, place: Path) -> Path:
    """Write the run directory ``place``, whose checkpoint of ``step`` is that of ``run`` with QK-norm; returns it. A run with the
    body that :func:`overrides` gives can branch from it.

    Raises InputError for a run with another body than Llama's, or without that checkpoint.
    """
    config, checkpoint = load_config(run / "config.yaml", recorded=True), checkpoint_at(run, step)
    if not checkpoint.is_dir():
        raise InputError(f"{run}: no checkpoint of step {step}")
    config = load_config(run / "config.yaml", overrides(config), recorded=True)
    old = load_checkpoint(checkpoint)
    model = build_model(config, old.config.n_classes, old.config.eos_token_id or 0)
    _take_over(model, old.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)

    def save_model(directory: Path) -> None:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    moments = joined_optimizer(checkpoint) | _no_moments(model)
    state = read_state(checkpoint) | {"config": config.model_dump(mode="json")}
    place.mkdir(parents=True)
    write_checkpoint(place, step, save_model, moments, {}, {}, {k: v for k, v in state.items() if k != "step"})
    shutil.copy2(run / "metrics.jsonl", place)
    write_text(place / "config.yaml", dump_config(config))
    return place


def overrides(config: RunConfig) -> list[str]:
    """Overrides that give a run with Llama's body Qwen3's of the same size. Raises InputError for another body."""
    fields = config.body.fields
    if config.body.model_type != "llama" or config.body.sigma_reparam:
        raise InputError("body: only a plain body of model_type llama can be given QK-norm in mid-run")
    head_dim = fields.get("head_dim") or fields["hidden_size"] // fields["num_attention_heads"]
    return ["body.model_type=qwen3", f"body.head_dim={head_dim}"]


def _take_over(model: Any, weights: dict[str, Tensor]) -> None:
    found = model.load_state_dict(weights, strict=False)
    lacking = [name for name in found.missing_keys if not name.endswith(NEW)]
    if lacking or found.unexpected_keys:
        raise InputError(f"body: Qwen3's does not have the weights of this one: {(lacking + found.unexpected_keys)[0]}")


def _no_moments(model: Any) -> dict[str, Tensor]:
    gains = {name: p.detach() for name, p in model.named_parameters() if name.endswith(NEW)}
    moments = {f"{name}.{slot}": torch.zeros_like(p) for name, p in gains.items() for slot in ("exp_avg", "exp_avg_sq")}
    return moments | {f"{name}.step": torch.tensor(0.0) for name in gains}
