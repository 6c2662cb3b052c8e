"""A causal language model: any transformers decoder as body, with a head and an objective of this project.

Shapes: B batch, T positions, N = B*T tokens, V vocabulary, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from .chunked import IGNORE_INDEX, TokenLosses, chunked_loss
from .configuration import SwapHeadConfig
from .heads import Head, MetricHead
from .objectives import Objective
from .registry import HEADS, OBJECTIVES


@dataclass
class SwapHeadOutput(CausalLMOutputWithPast):
    """What transformers models return, and with labels the sums and per-token values behind ``loss``."""

    losses: TokenLosses | None = None


def build(table: dict[str, Any], choice: dict[str, Any], *arguments: Any) -> Any:
    """The registered class named by ``choice["kind"]``, built from ``arguments`` and its options; KeyError if unknown."""
    options = dict(choice)
    kind = options.pop("kind")
    if kind not in table:
        raise KeyError(
            f"unknown kind {kind!r}; registered: {', '.join(sorted(table))} (import the plugin that defines it)"
        )
    return table[kind](*arguments, table[kind].Options(**options))


class SwapHeadForCausalLM(PreTrainedModel, GenerationMixin):
    """Body, head and objective behind the transformers interface.

    ``lm_head`` is a real output module whose ``weight`` is the input embedding itself when tied, so that saving, loading,
    generation and sharded training treat it as they treat any other model's.
    """

    config_class = SwapHeadConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: SwapHeadConfig) -> None:
        super().__init__(config)
        text = config.text_config
        self.model = AutoModel.from_config(text, attn_implementation=config._attn_implementation)
        self.lm_head: Head = build(HEADS, config.head, text.hidden_size, text.vocab_size)
        self.lm_head.n_classes = config.n_classes
        self.objective: Objective = build(OBJECTIVES, config.objective)
        if config.tie_word_embeddings:
            # The name of the input embedding differs between bodies: wte, embed_tokens, ...
            source = next(n for n, m in self.model.named_modules() if m is self.model.get_input_embeddings())
            self._tied_weights_keys = {"lm_head.weight": f"model.{source}.weight"}
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Head):
            if not getattr(module.weight, "_is_hf_initialized", False):
                nn.init.normal_(module.weight, std=getattr(self.config.text_config, "initializer_range", 0.02))
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head.weight = new_embeddings.weight  # type: ignore[assignment]

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; all of ``new_num_tokens`` are then classes, and what is padded beyond them is not."""
        embedding: nn.Embedding = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if new_num_tokens is not None:
            self.lm_head.n_classes = self.config.n_classes = new_num_tokens
        return embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        logits_to_keep: int | Tensor = 0,
        statistics: bool = False,
        **kwargs: Any,
    ) -> SwapHeadOutput:
        """Logits (B, T, V), or the loss when labels are given; then no logits are formed.

        ``labels`` (B, T) are shifted inside, ``shift_labels`` are taken as the targets of each position as they stand;
        -100 is ignored. ``loss`` is the sum over tokens divided by ``num_items_in_batch`` when that is given, else the mean
        over the valid tokens. ``logits_to_keep``: only the last so many positions (or those positions), 0 for all.
        """
        kwargs["return_dict"] = True
        body = self.model(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        h_BTD = body.last_hidden_state
        cache = {name: getattr(body, name, None) for name in ("past_key_values", "hidden_states", "attentions")}
        if labels is not None and shift_labels is None:
            shift_labels = nn.functional.pad(labels, (0, 1), value=IGNORE_INDEX)[..., 1:]
        if shift_labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            return SwapHeadOutput(logits=self.lm_head(h_BTD[:, keep]), **cache)
        losses = chunked_loss(
            self.lm_head, self.objective, h_BTD.reshape(-1, h_BTD.shape[-1]), shift_labels.reshape(-1), statistics
        )
        items = losses.valid_N.sum() if num_items_in_batch is None else num_items_in_batch
        return SwapHeadOutput(loss=losses.objective_sum / items, losses=losses, **cache)


def new_model(config: SwapHeadConfig, seed: int) -> SwapHeadForCausalLM:
    """A freshly initialised model in which the body's weights depend on ``seed`` alone, not on the head or the objective."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SwapHeadForCausalLM(config)
        if isinstance(model.lm_head, MetricHead):
            model.lm_head.reset_centroids()
    return model


def blocks(body: nn.Module) -> nn.ModuleList:
    """The stack of transformer blocks of a decoder: its longest ModuleList. Raises AttributeError when it has none."""
    stacks = [m for m in body.modules() if isinstance(m, nn.ModuleList)]
    if not stacks:
        raise AttributeError(f"{type(body).__name__} has no stack of transformer blocks")
    return max(stacks, key=len)


def final_norm(body: nn.Module) -> nn.Module:
    """The normalisation after the last block: the last one beside the stack of blocks. AttributeError when there is none."""
    stack = blocks(body)
    parent = next(m for m in body.modules() if stack in m.children())
    norms = [m for name, m in parent.named_children() if "norm" in type(m).__name__.lower() or "norm" in name]
    if not norms:
        raise AttributeError(f"{type(body).__name__} has no normalisation after its last block")
    return norms[-1]
