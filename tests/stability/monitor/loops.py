"""Small models and training loops as other people write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

VOCABULARY = 40


def mlp(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 1))


def gpt2(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    rates = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=16, n_layer=2, n_head=2, n_embd=16, **rates, **ids)
    )


def llama() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=16, tie_word_embeddings=False, **sizes)
    )


class Bigram(nn.Module):
    """The shape of the well-known small trainers: embeddings, a stack of blocks, a norm and a head, in a file of 30 lines."""

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.ln = nn.LayerNorm(width)
            self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(self.ln(x))

    def __init__(self, width: int = 16, layers: int = 3) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*[self.Block(width) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        logits = self.lm_head(self.ln_f(self.blocks(self.wte(input_ids))))
        return type("Output", (), {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())})


def bigram() -> nn.Module:
    torch.manual_seed(0)
    return Bigram()


def tokens(step: int) -> Tensor:
    return torch.randint(VOCABULARY, (4, 16), generator=torch.Generator().manual_seed(step))


def token_loss(model: Any, step: int) -> Tensor:
    x = tokens(step)
    return model(input_ids=x, labels=x).loss


def regression_loss(model: Any, step: int) -> Tensor:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
    return F.mse_loss(model(x), x.sum(1, keepdim=True))


def train(
    model: nn.Module,
    loss_of: Callable[[Any, int], Tensor],
    steps: int,
    attach: Callable[[nn.Module, torch.optim.Optimizer], Any] | None = None,
    rate: Callable[[int], float] = lambda step: 1e-2,
) -> Any:
    """A plain loop, steps from 1; returns what ``attach`` did."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch = attach(model, optimizer) if attach else None
    torch.manual_seed(1)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = loss_of(model, step)
        optimizer.zero_grad()
        loss.backward()
        if watch is not None:
            watch.step(loss)
        optimizer.step()
    return watch


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def events_of(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())
