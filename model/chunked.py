"""The loss over a vocabulary, walked through in chunks of tokens.

Shapes: N tokens, C tokens of one chunk, S sampled tokens, V vocabulary, D width.

The gradient is computed in the forward pass, chunk by chunk, and only scaled in the backward pass: at any time C x V
logits exist, never N x V. For a loss l(z_y, L, mean z) per token (see objectives.py), the gradient with respect to the
logits is  dl/dL * exp(z_k - L) + dl/dmean / V  for k != y  and  dl/dz_y + dl/dmean / V  for k = y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .heads import Head, compute_dtype
from .objectives import Objective, TokenLogits, log_partition, negative_log_likelihood, tfsd_weight

IGNORE_INDEX = -100
CHUNK_ROWS = {"cpu": 512, "cuda": 4096}
SAMPLING = 16
"""The spread and the entropies of the logits take passes over the vocabulary: they are measured on every 16th token."""


@dataclass
class TokenLosses:
    """Sums (over valid tokens) and per-token values of one batch. Only ``objective_sum`` is differentiable."""

    objective_sum: Tensor
    """Sum of the objective over the valid tokens, ()."""
    nll_sum: Tensor
    """Sum of -log P_y in nats over the valid tokens, ()."""
    objective_N: Tensor
    """The objective of each token. Where valid_N is 0 it means nothing."""
    nll_N: Tensor
    """-log P_y of each token, likewise."""
    valid_N: Tensor
    """1.0 where the token counts, 0.0 where its label was -100."""
    statistics: dict[str, Tensor]
    """Per-token quantities (N,) by metric name; empty unless asked for. Where valid_N is 0 they mean nothing."""
    sampled: dict[str, Tensor]
    """The same for every SAMPLING-th token."""

    @property
    def sampled_valid(self) -> Tensor:
        """valid_N of the sampled tokens."""
        return self.valid_N[::SAMPLING]


def chunked_loss(head: Head, objective: Objective, h_ND: Tensor, y_N: Tensor, statistics: bool = False) -> TokenLosses:
    """Loss of hidden states h_ND against targets y_N (-100 is ignored) under a head and an objective.

    With ``statistics``, quantities of the logits come along from the same pass. Gradients flow to h_ND and to the
    parameters of the head; weight gradients are summed in float32.
    """
    dtype = compute_dtype(h_ND)
    with torch.autocast(h_ND.device.type, enabled=False):
        f_ND = head.features(h_ND, dtype)
        objective_sum, objective_N, nll_N, valid_N, names, sampled_names, *values = _ChunkedLoss.apply(
            head, objective, y_N, statistics, torch.is_grad_enabled(), f_ND, head.shift(f_ND), *head.classes(dtype)
        )
    every = dict(zip(names, values[: len(names)], strict=True))
    sampled = dict(zip(sampled_names, values[len(names) :], strict=True))
    return TokenLosses(objective_sum, (nll_N * valid_N).sum(), objective_N, nll_N, valid_N, every, sampled)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        objective: Objective,
        y_N: Tensor,
        statistics: bool,
        with_gradient: bool,
        f_ND: Tensor,
        shift_N: Tensor,
        *classes: Tensor,
    ) -> tuple[Any, ...]:
        valid_N = (y_N != IGNORE_INDEX).to(shift_N.dtype)
        y_N = y_N.clamp(min=0)
        matrices = tuple(c.to(f_ND.dtype) if c.dim() == 2 else c for c in classes)
        if with_gradient:
            df_ND, dshift_N = torch.empty_like(f_ND), torch.empty_like(shift_N)
            gradients = [torch.zeros_like(c) for c in classes]
        rows = CHUNK_ROWS.get(f_ND.device.type, CHUNK_ROWS["cuda"])
        pieces: list[dict[str, Tensor]] = []
        for start in range(0, y_N.shape[0], rows):
            c = slice(start, start + rows)
            chunk = _Chunk(head, objective, f_ND[c], shift_N[c], y_N[c], valid_N[c], matrices)
            pieces.append(chunk.evaluate(slice(-start % SAMPLING, None, SAMPLING) if statistics else None))
            if with_gradient:
                dz_CV, dshift_N[c] = chunk.logit_gradient()
                df_ND[c] = head.accumulate_gradients(dz_CV, chunk.f_CD, matrices, gradients)
        raw = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        t = TokenLogits(raw["true"], raw["negatives"], raw["mean"])
        objective_sum = (raw["objective"] * valid_N).sum()
        nll_N = negative_log_likelihood(t)
        per_token, sampled = _statistics(head, objective, t, raw) if statistics else ({}, {})
        if with_gradient:
            ctx.save_for_backward(df_ND, dshift_N, *gradients)
        values = (*per_token.values(), *sampled.values())
        ctx.mark_non_differentiable(raw["objective"], nll_N, valid_N, *values)
        return objective_sum, raw["objective"], nll_N, valid_N, tuple(per_token), tuple(sampled), *values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_objective: Tensor, *_: Any) -> tuple[Any, ...]:
        return None, None, None, None, None, *(g * d_objective.to(g.dtype) for g in ctx.saved_tensors)


class _Chunk:
    """The logits of C tokens and what follows from them."""

    def __init__(
        self,
        head: Head,
        objective: Objective,
        f_CD: Tensor,
        shift_C: Tensor,
        y_C: Tensor,
        valid_C: Tensor,
        classes: tuple[Tensor, ...],
    ) -> None:
        self.head, self.objective = head, objective
        self.f_CD, self.shift_C, self.y_C1, self.valid_C = f_CD, shift_C, y_C[:, None], valid_C
        self.z_CV = head.logits(f_CD, *classes).to(shift_C.dtype)
        self.true_C = head.target_logits(f_CD, y_C, self.z_CV, shift_C, *classes)
        self.classes = classes

    def evaluate(self, sampled: slice | None) -> dict[str, Tensor]:
        """The objective's value and the logits' few numbers per token; with ``sampled``, more of them for those tokens.

        Leaves exp(z - max) of the negatives in ``exp_CV``, in the place of the logits.
        """
        mean_C = self.shift_C
        if sampled is not None or self.objective.uses_mean:
            mean_C = self.head.mean_logits(self.f_CD, self.z_CV, *self.classes) + self.shift_C
        # The target is masked before the log-sum-exp: subtracting exp(z_y) from the full sum afterwards would cancel.
        self.z_CV.scatter_(1, self.y_C1, float("-inf"))
        max_C1 = self.z_CV.amax(1, keepdim=True)
        largest_C = max_C1.squeeze(1) + self.shift_C
        self.exp_CV = self.z_CV.sub_(max_C1)
        sample_SV = self.exp_CV[sampled].clone() if sampled is not None else None
        self.sum_C = self.exp_CV.exp_().sum(1)
        negatives_C = self.sum_C.log() + largest_C
        with torch.enable_grad():
            self.t = TokenLogits(*(x.detach().requires_grad_() for x in (self.true_C, negatives_C, mean_C)))
            self.loss_C = self.objective.loss(self.t)
        raw = {"objective": self.loss_C.detach(), "true": self.true_C, "negatives": negatives_C, "mean": mean_C}
        if sample_SV is not None:
            raw["largest_negative"] = largest_C
            raw |= self._sample(sample_SV, sampled, mean_C, largest_C)
        return raw

    def _sample(self, z_SV: Tensor, sampled: slice | None, mean_C: Tensor, largest_C: Tensor) -> dict[str, Tensor]:
        """Spread and mean negative logit of the sampled tokens; uses up ``z_SV``, their logits less the largest negative."""
        y_S1, largest_S = self.y_C1[sampled], largest_C[sampled]
        z_SV.scatter_(1, y_S1, (self.true_C - largest_C)[sampled][:, None])
        # The spread is taken around the maximum, which the logits' common drift does not move away from them.
        mean_square_S = torch.linalg.vector_norm(z_SV, dim=1).square() / z_SV.shape[1]
        variance_S = mean_square_S - (mean_C[sampled] - largest_S).square()
        z_SV.scatter_(1, y_S1, 0.0)  # exp_CV is 0 there
        expected_S = z_SV.mul_(self.exp_CV[sampled]).sum(1) / self.sum_C[sampled] + largest_S
        return {"variance": variance_S, "expected_negative": expected_S}

    def logit_gradient(self) -> tuple[Tensor, Tensor]:
        """Gradients of the summed loss with respect to the chunk's logits (C, V) and to the shift (C,). Consumes ``exp_CV``."""
        leaves = (self.t.true, self.t.negatives, self.t.mean)
        d_true_C, d_negatives_C, d_mean_C = torch.autograd.grad(
            self.loss_C, leaves, self.valid_C, allow_unused=True, materialize_grads=True
        )
        dz_CV = self.exp_CV.mul_((d_negatives_C / self.sum_C)[:, None])
        dz_CV.scatter_(1, self.y_C1, d_true_C[:, None])
        if self.objective.uses_mean:
            dz_CV += (d_mean_C / dz_CV.shape[1])[:, None]
        return dz_CV, d_true_C + d_negatives_C + d_mean_C


def _statistics(
    head: Head, objective: Objective, t: TokenLogits, raw: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Telemetry of the logits by metric name: of every token (N,), and of the sampled ones (S,)."""
    every = {
        "logit/max": torch.maximum(raw["largest_negative"], t.true),
        "logit/mean": t.mean,
        "logit/logsumexp": log_partition(t),
        **head.statistics(t.true),
    }
    true_S, negatives_S = t.true[::SAMPLING], t.negatives[::SAMPLING]
    # P and Q share the same renormalised negatives, so the entropy of these is all that takes a pass over the vocabulary.
    entropy_negatives_S = negatives_S - raw["expected_negative"]
    sampled = {
        "logit/std": raw["variance"].clamp(min=0).sqrt(),
        "entropy/p": _mixture_entropy(true_S - negatives_S, entropy_negatives_S),
    }
    if head.bounded or objective.uses_weight:
        every["tfsd/weight"] = tfsd_weight(t)
        sampled["tfsd/target_entropy"] = _mixture_entropy(-negatives_S, entropy_negatives_S)
    return every, sampled


def _mixture_entropy(log_odds_true: Tensor, entropy_negatives: Tensor) -> Tensor:
    """Entropy in nats of: the target with probability sigmoid(log_odds), else one of the negatives."""
    binary = F.softplus(log_odds_true) - torch.sigmoid(log_odds_true) * log_odds_true
    return binary + torch.sigmoid(-log_odds_true) * entropy_negatives
