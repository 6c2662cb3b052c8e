"""Small models of several families, and naive definitions of their predictions."""

from __future__ import annotations

import copy
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from model import SwapHeadConfig, new_model

FAMILIES = ("gpt2", "llama", "bloom", "gemma2", "gemma2_window", "linear", "metric")
READ_ONE_BY_ONE = ("bloom", "gemma2_window")
"""Those that take no mask in the form of a tree, or would not keep to their window under one."""
_WINDOW = 5
"""Positions that gemma2_window looks back."""


def make_model(family: str, vocabulary: int, positions: int = 64) -> Any:
    """A model in evaluation mode, initialised so widely that it prefers some words to others."""
    gpt2: dict[str, Any] = {"vocab_size": vocabulary, "n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": positions}
    gpt2 |= {"initializer_range": 0.4}
    if family in ("linear", "metric"):
        text_config = AutoConfig.for_model("gpt2", **gpt2)
        return new_model(SwapHeadConfig(text_config, head={"kind": family}), seed=3).eval()
    shape: dict[str, Any] = {
        "vocab_size": vocabulary,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
    }
    shape |= {"intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": positions}
    shape |= {"initializer_range": 0.4}
    capped = shape | {"head_dim": 8, "final_logit_softcapping": 3.0}
    options: dict[str, dict[str, Any]] = {
        "gpt2": gpt2,
        "llama": shape,
        "bloom": {"vocab_size": vocabulary, "n_layer": 2, "n_head": 2, "hidden_size": 16, "initializer_range": 0.4},
        "gemma2": capped | {"sliding_window": 4 * positions},
        "gemma2_window": capped | {"sliding_window": _WINDOW},
    }
    config = AutoConfig.for_model(family.split("_", maxsplit=1)[0], **options[family])
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def boundaries(tokenizer: Any) -> npt.NDArray[np.bool_]:
    """(V,): whether a word can end before the token, from how a byte-level tokenizer writes it."""
    goes_on = tuple(string.ascii_letters + string.digits + "_")
    size = max(tokenizer.get_vocab().values()) + 1
    return np.array([not token.startswith(goes_on) for token in tokenizer.convert_ids_to_tokens(list(range(size)))])


class Naive:
    """Word probabilities by their definition, in float64, from whole forward passes over plain sequences."""

    def __init__(self, model: Any, ends_V: npt.NDArray[np.bool_]) -> None:
        self._model = copy.deepcopy(model).double()
        self._ends_V = torch.from_numpy(ends_V)
        self._known: dict[tuple[int, ...], torch.Tensor] = {}

    def log_distributions(self, ids: Sequence[int], temperature: float, last: int = 1) -> torch.Tensor:
        """(last, V): ln p of the token after each of the last positions."""
        key = tuple(map(int, ids))
        if key not in self._known:
            with torch.no_grad():
                self._known[key] = self._model(input_ids=torch.tensor([key])).logits[0, :, : len(self._ends_V)].double()
        return (self._known[key][-last:] / temperature).log_softmax(-1)

    def log_p(self, context: Sequence[int], word: Sequence[int], temperature: float, *, spaced: bool) -> float:
        """ln of the product of the tokens' probabilities times B(c w), over B(c) where the word brings its space."""
        log_p_LV = self.log_distributions([*context, *word], temperature, last=1 + len(word))
        log_p = sum(float(log_p_LV[i, token]) for i, token in enumerate(word))
        log_b_L = log_p_LV[:, self._ends_V].logsumexp(-1)
        return log_p + float(log_b_L[-1]) - (float(log_b_L[0]) if spaced else 0.0)

    def entropy(self, context: Sequence[int], temperature: float) -> float:
        """Entropy of the next token, nats."""
        log_p_V = self.log_distributions(context, temperature)[-1]
        return float(-(log_p_V.exp() * log_p_V).sum())

    def rank(self, context: Sequence[int], token: int) -> int:
        """1 + the number of tokens that are more probable."""
        log_p_V = self.log_distributions(context, 1.0)[-1]
        return 1 + int((log_p_V > log_p_V[token]).sum())
