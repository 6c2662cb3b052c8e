"""A transformers body, a head and an objective behind the transformers interface. Imports nothing else of the project."""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from .attention import attend_causally, attention_probe
from .configuration import SwapHeadConfig
from .heads import AffineHead, Head
from .modeling import SwapHeadForCausalLM, SwapHeadOutput, blocks, final_norm, new_model
from .objectives import Objective, TokenLogits
from .registry import register_head, register_objective
from .zoo import HEADS, OBJECTIVES, LinearHead, MetricHead

AutoConfig.register("swap_head", SwapHeadConfig)
AutoModelForCausalLM.register(SwapHeadConfig, SwapHeadForCausalLM)
# Saved checkpoints carry a copy of these files, so that they load without the project (with trust_remote_code).
SwapHeadConfig.register_for_auto_class()
SwapHeadForCausalLM.register_for_auto_class("AutoModelForCausalLM")


def load_model(
    checkpoint: str | Path,
    *,
    local_files_only: bool = True,
    body_only: bool = False,
    weights: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Load this project's model, or any transformers causal LM, from a checkpoint: float32, evaluation mode.

    Never runs code from the checkpoint. Raises ValueError naming weights that are missing or have another shape
    (``body_only``: only those of the body), which transformers would leave random with a warning. A checkpoint of this
    project must not hold other weights either; for other models a warning names them. ``weights``: those of this project's model,
    of whose checkpoint then only the configuration is read.
    """
    options: dict[str, Any] = {"dtype": "float32", "ignore_mismatched_sizes": True, "output_loading_info": True}
    loaded: Any
    if weights is None:
        loaded = AutoModelForCausalLM.from_pretrained(
            str(checkpoint),
            local_files_only=local_files_only,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    else:
        config = SwapHeadConfig.from_pretrained(str(checkpoint), local_files_only=True)
        loaded = SwapHeadForCausalLM.from_pretrained(None, config=config, state_dict=weights, **options)
    model, info = loaded
    needed = f"{model.base_model_prefix}." if body_only else ""
    missing = [key for key in info["missing_keys"] if key.startswith(needed)]
    reshaped = [key for key, *_ in info["mismatched_keys"] if key.startswith(needed)]
    unknown = info["unexpected_keys"]
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
    """The first names in order, and their number if there are more."""
    ordered = sorted(names)
    return ", ".join(ordered[:most]) + (f", ... ({len(ordered)} in all)" if len(ordered) > most else "")
