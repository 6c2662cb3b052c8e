"""The loss over a vocabulary, walked through in chunks of tokens.

Shapes: N tokens, C tokens of one chunk, V vocabulary, D width.

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


@dataclass
class TokenLosses:
    """Sums and per-token values of one batch. Only ``objective_sum`` is differentiable."""

    objective_sum: Tensor
    """Sum of the objective over the valid tokens, ()."""
    nll_sum: Tensor
    """Sum of -log P_y in nats over the valid tokens, ()."""
    valid_N: Tensor
    """1.0 where the token counts, 0.0 where its label was -100."""
    statistics: dict[str, Tensor]
    """Per-token quantities (N,) by metric name; empty unless asked for. Where valid_N is 0 they mean nothing."""


def chunked_loss(head: Head, objective: Objective, h_ND: Tensor, y_N: Tensor, statistics: bool = False) -> TokenLosses:
    """Loss of hidden states h_ND against targets y_N (-100 is ignored) under a head and an objective.

    With ``statistics``, quantities of the logits come along from the same pass. Gradients flow to h_ND and to the
    parameters of the head; weight gradients are summed in float32.
    """
    dtype = compute_dtype(h_ND)
    with torch.autocast(h_ND.device.type, enabled=False):
        f_ND = head.features(h_ND, dtype)
        objective_sum, nll_sum, valid_N, names, *values = _ChunkedLoss.apply(
            head, objective, y_N, statistics, torch.is_grad_enabled(), f_ND, head.shift(f_ND), *head.classes(dtype)
        )
    return TokenLosses(objective_sum, nll_sum, valid_N, dict(zip(names, values, strict=True)))


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
        keep_logits = statistics or objective.uses_mean
        # One buffer for all chunks: fresh pages for each would cost more than the arithmetic on them.
        scratch_CV = shift_N.new_empty(min(rows, y_N.shape[0]), head.weight.shape[0]) if keep_logits else None
        pieces: list[dict[str, Tensor]] = []
        for start in range(0, y_N.shape[0], rows):
            c = slice(start, start + rows)
            chunk = _Chunk(head, objective, f_ND[c], shift_N[c], y_N[c], valid_N[c], matrices)
            pieces.append(chunk.evaluate(statistics, scratch_CV))
            if with_gradient:
                dz_CV, dshift_N[c] = chunk.logit_gradient()
                df_ND[c] = head.accumulate_gradients(dz_CV, chunk.f_CD, matrices, gradients)
        raw = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        t = TokenLogits(raw["true"], raw["negatives"], raw["mean"])
        objective_sum = (raw["objective"] * valid_N).sum()
        nll_sum = (negative_log_likelihood(t) * valid_N).sum()
        per_token = _statistics(head, objective, t, raw) if statistics else {}
        if with_gradient:
            ctx.save_for_backward(df_ND, dshift_N, *gradients)
        ctx.mark_non_differentiable(nll_sum, valid_N, *per_token.values())
        return objective_sum, nll_sum, valid_N, tuple(per_token), *per_token.values()

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

    def evaluate(self, statistics: bool, scratch_CV: Tensor | None) -> dict[str, Tensor]:
        """The objective's value and the logits' few numbers per token, more of them for statistics.

        Leaves exp(z - max) of the negatives in ``exp_CV``, in the place of the logits unless ``scratch_CV`` is given for it; the
        logits then serve the mean and the statistics.
        """
        # The target is masked before the log-sum-exp: subtracting exp(z_y) from the full sum afterwards would cancel.
        self.z_CV.scatter_(1, self.y_C1, float("-inf"))
        max_C1 = self.z_CV.amax(1, keepdim=True)
        target_CV = self.z_CV if scratch_CV is None else scratch_CV[: len(self.z_CV)]
        self.exp_CV = torch.sub(self.z_CV, max_C1, out=target_CV)
        if statistics:
            # The spread is taken around the maximum, which the logits' common drift does not move away from them.
            self.exp_CV.scatter_(1, self.y_C1, (self.true_C - self.shift_C)[:, None] - max_C1)
            mean_square_C = torch.linalg.vector_norm(self.exp_CV, dim=1).square() / self.z_CV.shape[1]
            self.exp_CV.scatter_(1, self.y_C1, float("-inf"))
        self.sum_C = self.exp_CV.exp_().sum(1)
        negatives_C = self.sum_C.log() + max_C1.squeeze(1) + self.shift_C
        mean_C = negatives_C
        if scratch_CV is not None:
            self.z_CV.scatter_(1, self.y_C1, (self.true_C - self.shift_C)[:, None])
            mean_C = self.head.mean_logits(self.f_CD, self.z_CV, *self.classes) + self.shift_C
        with torch.enable_grad():
            self.t = TokenLogits(*(x.detach().requires_grad_() for x in (self.true_C, negatives_C, mean_C)))
            self.loss_C = self.objective.loss(self.t)
        raw = {"objective": self.loss_C.detach(), "true": self.true_C, "negatives": negatives_C, "mean": mean_C}
        if statistics:
            raw["largest_negative"] = max_C1.squeeze(1) + self.shift_C
            raw["variance"] = mean_square_C - (mean_C - raw["largest_negative"]).square()
            raw["expected_negative"] = self.z_CV.mul_(self.exp_CV).sum(1) / self.sum_C + self.shift_C
        return raw

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


def _statistics(head: Head, objective: Objective, t: TokenLogits, raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """Telemetry of the logits (N,), by metric name."""
    # P and Q share the same renormalised negatives, so the entropy of these is all that takes a pass over the vocabulary.
    entropy_negatives_N = t.negatives - raw["expected_negative"]
    result = {
        "logit/max": torch.maximum(raw["largest_negative"], t.true),
        "logit/mean": t.mean,
        "logit/std": raw["variance"].clamp(min=0).sqrt(),
        "logit/logsumexp": log_partition(t),
        "entropy/p": _mixture_entropy(t.true - t.negatives, entropy_negatives_N),
    }
    if head.bounded or objective.uses_weight:
        result["tfsd/weight"] = tfsd_weight(t)
        result["tfsd/target_entropy"] = _mixture_entropy(-t.negatives, entropy_negatives_N)
    return result | head.statistics(t.true)


def _mixture_entropy(log_odds_true: Tensor, entropy_negatives: Tensor) -> Tensor:
    """Entropy in nats of: the target with probability sigmoid(log_odds), else one of the negatives."""
    binary = F.softplus(log_odds_true) - torch.sigmoid(log_odds_true) * log_odds_true
    return binary + torch.sigmoid(-log_odds_true) * entropy_negatives
