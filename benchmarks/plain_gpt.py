"""A plain GPT-2, with which the speed of this project's training step is compared.

Shapes: B batch, T positions, V vocabulary, D width, H heads, d width of a head.

The loss is F.cross_entropy of all logits at once. The parameters are those of transformers' GPT-2 body; there is no dropout.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config
from transformers.activations import ACT2FN


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, h_BTD: Tensor) -> Tensor:
        """Each position attends to itself and to those before it."""
        query_BHTd, key_BHTd, value_BHTd = (
            x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x_BTD in self.query_key_value(h_BTD).chunk(3, dim=-1)
        )
        mixed_BHTd = F.scaled_dot_product_attention(query_BHTd, key_BHTd, value_BHTd, is_causal=True)
        mixed_BTD: Tensor = self.output(mixed_BHTd.transpose(1, 2).flatten(2))
        return mixed_BTD


class Block(nn.Module):
    """Attention and MLP, each after a normalisation, with residual connections."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        width, inner = config.n_embd, config.n_inner or 4 * config.n_embd
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.attention = Attention(width, config.n_head)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_epsilon)
        self.up = nn.Linear(width, inner)
        self.activation: Any = ACT2FN[config.activation_function]
        self.down = nn.Linear(inner, width)

    def forward(self, h_BTD: Tensor) -> Tensor:
        """The residual stream after this block."""
        h_BTD = h_BTD + self.attention(self.attention_norm(h_BTD))
        return h_BTD + self.down(self.activation(self.up(self.mlp_norm(h_BTD))))


class PlainGPT(nn.Module):
    """Token and position embeddings, blocks, a normalisation and the transposed token embedding."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.positions = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.apply(self._initialise)
        self.lm_head.weight = self.tokens.weight

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, x_BT: Tensor) -> Tensor:
        """Logits of the next token (B, T, V)."""
        h_BTD = self.tokens(x_BT) + self.positions(torch.arange(x_BT.shape[1], device=x_BT.device))
        for block in self.blocks:
            h_BTD = block(h_BTD)
        logits_BTV: Tensor = self.lm_head(self.norm(h_BTD))
        return logits_BTV

    def loss(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Mean cross-entropy against the targets, in nats per token."""
        return F.cross_entropy(self(x_BT).flatten(0, 1), y_BT.flatten())

    def flops_per_token(self, length: int) -> int:
        """FLOPs of a forward and a backward pass over ``length`` positions, as counted for PaLM (appendix B).

        6 for each parameter but the position embedding's, and 12 L D T for attention, as if it covered all positions.
        """
        parameters = sum(p.numel() for p in self.parameters()) - self.positions.weight.numel()
        return 6 * parameters + 12 * len(self.blocks) * self.tokens.embedding_dim * length
