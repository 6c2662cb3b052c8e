"""A transformers body, a head and an objective behind the transformers interface. Knows nothing of the rest of the project."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from .attention import attend_causally, attention_probe
from .configuration import SwapHeadConfig
from .heads import AffineHead, Head
from .modeling import SwapHeadForCausalLM, SwapHeadOutput, blocks, final_norm, new_model
from .objectives import Objective, TokenLogits
from .registry import register_head, register_objective
from .zoo import HEADS, OBJECTIVES, LinearHead, MetricHead

__all__ = [
    "HEADS",
    "OBJECTIVES",
    "AffineHead",
    "Head",
    "LinearHead",
    "MetricHead",
    "Objective",
    "SwapHeadConfig",
    "SwapHeadForCausalLM",
    "SwapHeadOutput",
    "TokenLogits",
    "attend_causally",
    "attention_probe",
    "blocks",
    "final_norm",
    "load_model",
    "new_model",
    "register_head",
    "register_objective",
]

AutoConfig.register("swap_head", SwapHeadConfig)
AutoModelForCausalLM.register(SwapHeadConfig, SwapHeadForCausalLM)
# A saved checkpoint carries these files, so that it loads without the project (with trust_remote_code on the reader's side).
SwapHeadConfig.register_for_auto_class()
SwapHeadForCausalLM.register_for_auto_class("AutoModelForCausalLM")


def load_model(checkpoint: str | Path, *, local_files_only: bool = True, body_only: bool = False) -> PreTrainedModel:
    """A model of this project, or any transformers causal LM, from a checkpoint: float32, evaluation mode.

    Never runs code that the checkpoint carries. Raises ValueError, naming them, if the checkpoint lacks weights of the model
    (``body_only``: of its body), or has them in another shape: transformers only warns and leaves such weights random. A
    checkpoint of this project must not hold any other weights either; of somebody else's model, which may carry parts that are
    not used here, a warning names them.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(checkpoint),
        dtype="float32",
        local_files_only=local_files_only,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # told below
        output_loading_info=True,
    )
    model, told = loaded
    needed = f"{model.base_model_prefix}." if body_only else ""
    missing = [key for key in told["missing_keys"] if key.startswith(needed)]
    reshaped = [key for key, *_ in told["mismatched_keys"] if key.startswith(needed)]
    unknown = told["unexpected_keys"]
    surplus = f"weights that are not the model's: {_some(unknown)}"
    problems = [f"missing weights: {_some(missing)}"] if missing else []
    problems += [f"weights of another shape: {_some(reshaped)}"] if reshaped else []
    problems += [surplus] if unknown and (problems or isinstance(model, SwapHeadForCausalLM)) else []
    if problems:
        raise ValueError("; ".join(problems))
    if unknown:
        warnings.warn(f"{checkpoint}: not used: {surplus}", stacklevel=2)
    return model.eval()


def _some(names: Iterable[str], most: int = 3) -> str:
    """The first names in order, and how many there are if there are more."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f", ... ({len(ordered)} in all)" if len(ordered) > most else "")
