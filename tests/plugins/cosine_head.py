"""Logits are cosines of hidden state and embedding, times a learned scale: neither norm can grow the logits."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from model import Head, register_head


@register_head("plain_cosine")
class PlainCosineHead(Head):
    """z_k = exp(s) cos(h, w_k), with s learned."""

    def __init__(self, hidden_size: int, vocab_size: int, options: Head.Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        self.log_scale = nn.Parameter(torch.empty(1))  # (1,), not (): FSDP2 shards the first dimension

    def reset_parameters(self) -> None:
        nn.init.constant_(self.log_scale, 2.0)

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.log_scale.exp() * normalize(h_ND.float(), dim=-1)).to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (normalize(self.weight.float(), dim=-1),)

    def logits(self, f_CD: Tensor, w_VD: Tensor) -> Tensor:
        return f_CD @ w_VD.T
