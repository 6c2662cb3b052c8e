"""A transformers body, a head and an objective behind the transformers interface. Knows nothing of the rest of the project."""

from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from .attention import attend_causally, attention_probe
from .configuration import SwapHeadConfig
from .heads import AffineHead, Head, LinearHead, MetricHead
from .modeling import SwapHeadForCausalLM, SwapHeadOutput, blocks, final_norm, new_model
from .objectives import Objective, TokenLogits
from .registry import HEADS, OBJECTIVES, register_head, register_objective

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


def load_model(checkpoint: str | Path) -> PreTrainedModel:
    """A model of this project, or any transformers causal LM, from a local checkpoint directory: float32, evaluation mode.

    Never runs code that the checkpoint carries.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        str(checkpoint), dtype="float32", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    return model.eval()
