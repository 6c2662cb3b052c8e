"""The loss over a vocabulary, in chunks of tokens.

The gradient is computed in the forward pass, chunk by chunk, and only scaled in the backward pass, so that only C x V
logits exist at any time, never N x V. For a loss l(z_y, L, mean z) per token (objectives.py), the gradient with respect to
the logits is dl/dL * exp(z_k - L) + dl/dmean / V for k != y, and dl/dz_y + dl/dmean / V for k = y; a loss that reads the
largest negative adds its derivative in that one column. The gradient is kept factored (:class:`LogitGradient`), so that only
the matrix products remain.

Shapes: N tokens, C tokens of one chunk, S sampled tokens, V vocabulary, D width.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .classes import Classes, LogitGradient
from .heads import Head, as_trained
from .kernel_choice import negatives
from .objectives import Objective, TokenLogits, log_partition, negative_log_likelihood, of_rows, tfsd_weight
from .rivals import Rivals, rivals_of
from .teaching import Taught

IGNORE_INDEX = -100
MAX_ROWS = {"cpu": 512, "cuda": 4096}
"""Most tokens of a chunk: where matrix products are near full speed (RESULTS.md; not measured on CUDA)."""
MAX_BYTES = 1 << 30
"""Most bytes of a chunk's logits."""
PART = "part:"
"""Marks, among the numbers per token, the parts of the objective that are reported."""
SAMPLING = 16
"""Spread and entropies of the logits need extra passes over them, so they are measured on every 16th token."""


def chunk_rows(tokens: int, vocabulary: int, device: str) -> int:
    """Tokens of a chunk: a fifth of all, within the limits set by speed and memory. All chunks have nearly the same size."""
    most = max(1, min(MAX_ROWS.get(device, MAX_ROWS["cuda"]), MAX_BYTES // (4 * vocabulary)))
    rows = min(most, max(128, math.ceil(tokens / 5)))
    return math.ceil(tokens / math.ceil(tokens / rows)) if tokens else 1


@dataclass
class TokenLosses:
    """Sums over valid tokens and per-token values of a batch. Only ``objective_sum`` is differentiable."""

    objective_sum: Tensor
    """Sum of the objective over valid tokens, ()."""
    nll_sum: Tensor
    """Sum of -log P_y in nats over valid tokens, ()."""
    objective_N: Tensor
    """Objective per token; meaningless where valid_N is 0."""
    nll_N: Tensor
    """-log P_y per token; meaningless where valid_N is 0."""
    valid_N: Tensor
    """1.0 where the token counts, 0.0 where its label was -100."""
    right_N: Tensor
    """1.0 where the target is the most probable class, else 0.0; meaningless where valid_N is 0."""
    confidence_N: Tensor
    """Probability of the most probable class; meaningless where valid_N is 0."""
    statistics: dict[str, Tensor]
    """Per-token quantities (N,) by metric name; empty unless requested. Meaningless where valid_N is 0."""
    sampled: dict[str, Tensor]
    """The same for every SAMPLING-th token."""
    negatives: "TokenLosses | None" = None
    """Of the batch's negatives (negatives.py), if it has any; nothing of theirs is in the rest."""

    @property
    def trained_sum(self) -> Tensor:
        """Sum () of everything that is minimised, that of the negatives included, in float64."""
        own = (self.objective_N.double() * self.valid_N).sum()
        return own if self.negatives is None else own + self.negatives.trained_sum

    @property
    def sampled_valid(self) -> Tensor:
        """valid_N of the sampled tokens."""
        return self.valid_N[::SAMPLING]


def chunked_loss(
    head: Head,
    objective: Objective,
    h_ND: Tensor,
    y_N: Tensor,
    statistics: bool = False,
    rows: int | None = None,
) -> TokenLosses:
    """Loss of hidden states h_ND against targets y_N (-100 is ignored) under a head and an objective.

    ``statistics`` adds quantities of the logits from the same pass. Gradients flow to h_ND and to the head's parameters;
    weight gradients are summed in float32. ``rows`` is the size of a chunk, by default :func:`chunk_rows`.
    """
    return head(h_ND, lambda head, f_ND: loss_of_features(head, objective, f_ND, y_N, statistics, rows))


@torch.compiler.disable
def loss_of_features(
    head: Head,
    objective: Objective,
    f_ND: Tensor,
    y_N: Tensor,
    statistics: bool = False,
    rows: int | None = None,
    taught: Taught | None = None,
    training: bool | None = None,
) -> TokenLosses:
    """The same from the head's features of the hidden states, beside what a teacher says of the same tokens. Call it through the
    head (:meth:`Head.forward`).

    ``training``: whether the objective is that of training (:meth:`Head.in_training`); by default, the head's mode.
    """
    training = head.training if training is None else training
    rows = rows or chunk_rows(y_N.shape[0], head.n_classes, f_ND.device.type)
    shift_N = head.shift(f_ND)
    if objective.shift_invariant:
        shift_N = shift_N.detach()
    objective_sum, objective_N, nll_N, valid_N, right_N, confidence_N, names, sampled_names, *values = (
        _ChunkedLoss.apply(
            *(head, objective, y_N, statistics, rows, taught, training, torch.is_grad_enabled()),
            *(f_ND, shift_N, *head.classes(f_ND.dtype)),
        )
    )
    every = dict(zip(names, values[: len(names)], strict=True))
    sampled = dict(zip(sampled_names, values[len(names) :], strict=True))
    nll_sum = (nll_N * valid_N).sum()
    return TokenLosses(objective_sum, nll_sum, objective_N, nll_N, valid_N, right_N, confidence_N, every, sampled)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        head: Head,
        objective: Objective,
        y_N: Tensor,
        statistics: bool,
        rows: int,
        taught: Taught | None,
        training: bool,
        with_gradient: bool,
        f_ND: Tensor,
        shift_N: Tensor,
        *classes: Tensor,
    ) -> tuple[Any, ...]:
        """Losses and statistics of all chunks; with ``with_gradient`` also the gradients, kept for the backward pass."""
        valid_N = (y_N != IGNORE_INDEX).to(shift_N.dtype)
        y_N = y_N.masked_fill(y_N == IGNORE_INDEX, 0)  # any other invalid class fails where logits are gathered
        vocabulary = head.vocabulary(classes, f_ND.dtype, with_gradient)
        if with_gradient:
            # Not float16: before the backward pass applies the loss scale, gradients may be below its smallest number.
            dtype = shift_N.dtype if f_ND.dtype == torch.float16 else f_ND.dtype
            df_ND, dshift_N = torch.empty_like(f_ND, dtype=dtype), torch.empty_like(shift_N)
        rivals = rivals_of(objective, y_N, valid_N, head.n_classes)
        pieces: list[dict[str, Tensor]] = []
        for start in range(0, max(len(y_N), 1), rows):
            c = slice(start, start + rows)
            taught_CV = None if taught is None else taught.logits(c)
            tokens = (f_ND[c], shift_N[c], y_N[c], valid_N[c])
            chunk = _Chunk(head, objective, vocabulary, training, *tokens, taught_CV, rivals)
            pieces.append(chunk.evaluate(slice(-start % SAMPLING, None, SAMPLING) if statistics else None))
            if with_gradient:
                df_ND[c], dshift_N[c] = chunk.gradient()
        raw = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        t = TokenLogits(raw["true"], raw["negatives"], raw["mean"], raw["largest_negative"], shift_N)
        objective_sum = (raw["objective"] * valid_N).sum()
        nll_N = negative_log_likelihood(t)
        right_N = (t.true > t.largest_negative).to(valid_N.dtype)
        confidence_N = (t.largest - log_partition(t)).exp()
        per_token, sampled = _statistics(head, objective, t, raw) if statistics else ({}, {})
        if with_gradient:
            ctx.gradients = [df_ND, dshift_N, *vocabulary.finish()]
            ctx.feature_dtype = f_ND.dtype
        values = (*per_token.values(), *sampled.values())
        numbers = (raw["objective"], nll_N, valid_N, right_N, confidence_N)
        ctx.mark_non_differentiable(*numbers, *values)
        return objective_sum, *numbers, tuple(per_token), tuple(sampled), *values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_objective: Tensor, *_: Any) -> tuple[Any, ...]:
        """Scale the stored gradients. They are handed over, so a second backward pass needs retain_graph=True."""
        gradients = ctx.gradients
        if gradients is None:
            raise RuntimeError("the loss's gradient is used a second time; the first time lacks retain_graph=True")
        if torch._C._autograd._get_current_graph_task_keep_graph():  # private, but AOTAutograd uses it too
            gradients = [g.clone() for g in gradients]
        else:
            # Autograd gets the only reference and need not copy: no second weight gradient exists.
            ctx.gradients = None
        df_ND, *others = (g.mul_(d_objective) for g in gradients)
        return *(None,) * 8, df_ND.to(ctx.feature_dtype), *others


class _Chunk:
    """The logits of C tokens, and the loss and gradient computed from them."""

    def __init__(
        self,
        head: Head,
        objective: Objective,
        vocabulary: Classes,
        training: bool,
        f_CD: Tensor,
        shift_C: Tensor,
        y_C: Tensor,
        valid_C: Tensor,
        taught_CV: Tensor | None = None,
        rivals: Rivals | None = None,
    ) -> None:
        self.head, self.objective, self.vocabulary, self.training = head, objective, vocabulary, training
        self.taught_CV, self.rivals = taught_CV, rivals
        self.f_CD, self.shift_C, self.y_C, self.valid_C = f_CD, shift_C, y_C, valid_C
        self.z_CV = vocabulary.logits(f_CD).to(shift_C.dtype)

    def evaluate(self, sampled: slice | None) -> dict[str, Tensor]:
        """The objective and a few numbers per token; with ``sampled``, more of them for those tokens. Overwrites the logits
        with the exponentials of the negatives."""
        bias_V, y_C1 = self.vocabulary.bias_V, self.y_C[:, None]
        z_C = self.z_CV.gather(1, y_C1).squeeze(1) + self.shift_C
        true_C = self.head.target_logits(
            self.f_CD, self.y_C, z_C if bias_V is None else z_C + bias_V[self.y_C], *self.vocabulary.tensors
        )
        mean_C = self.shift_C
        if sampled is not None or self.objective.uses_mean:
            mean_C = self.vocabulary.mean_logits(self.f_CD, self.z_CV) + self.shift_C
        sample_SV = None
        if sampled is not None:
            sample_SV = self.z_CV[sampled].clone() if bias_V is None else self.z_CV[sampled] + bias_V
        rows_CV = self._rows(true_C) if self.objective.uses_rows else None
        rivals_CK = None
        if self.rivals is not None and rows_CV is None:
            self.classes_CK, rivals_CK = self.rivals.logits(self.z_CV, bias_V, self.shift_C, self.y_C)
            rivals_CK.requires_grad_()
        self.negatives = negatives(self.z_CV, bias_V, self.y_C, self.f_CD.dtype, self.head.kernel)
        auxiliary_CV = self._auxiliary()
        with torch.enable_grad():
            negatives_C, largest_C = self.negatives.logsumexp_C + self.shift_C, self.negatives.max_C + self.shift_C
            logits = (true_C, negatives_C, mean_C, largest_C, self.shift_C)
            self.t = replace(
                TokenLogits(*(x.detach().requires_grad_() for x in logits)),
                rivals=rivals_CK,
                auxiliary=auxiliary_CV,
                taught=self.taught_CV,
            )
            if rows_CV is not None:
                beside = (self.t.shift, self.taught_CV, self.rivals)
                self.t = of_rows(rows_CV.requires_grad_(), self.y_C, *beside)
            self.loss_C, parts = self.objective.terms(as_trained(self.head, self.t) if self.training else self.t)
        raw = {"objective": self.loss_C.detach(), "true": true_C, "negatives": negatives_C, "mean": mean_C}
        raw["largest_negative"] = largest_C
        if sample_SV is not None and sampled is not None:
            raw |= {f"{PART}{name}": part_C.detach() for name, part_C in parts.items()}
            raw |= self._sample(sample_SV, sampled, true_C, mean_C)
        return raw

    def _auxiliary(self) -> Tensor | None:
        """The auxiliary head's logits (C, V), if the objective reads them."""
        if not self.objective.uses_auxiliary:
            return None
        assert self.vocabulary.auxiliary is not None
        return self.vocabulary.auxiliary.logits(self.f_CD).detach().requires_grad_()

    def _rows(self, true_C: Tensor) -> Tensor:
        """A copy of the chunk's true logits (C, V)."""
        z_CV = self.z_CV if self.vocabulary.bias_V is None else self.z_CV + self.vocabulary.bias_V
        return (z_CV + self.shift_C[:, None]).scatter_(1, self.y_C[:, None], true_C[:, None])

    def _sample(self, z_SV: Tensor, sampled: slice, true_C: Tensor, mean_C: Tensor) -> dict[str, Tensor]:
        """What the variance of the sampled tokens' logits ``z_SV``, which are overwritten, and the entropy of their negatives
        are made of (:func:`_statistics`). Logits may drift far from 0 together and all but one may vanish, so nothing here is
        a difference of large numbers."""
        y_S1, shift_S, max_S = self.y_C[sampled, None], self.shift_C[sampled], self.negatives.max_C[sampled]
        mean_S = mean_C[sampled] - shift_S
        z_SV.scatter_(1, y_S1, (true_C[sampled] - shift_S)[:, None]).sub_(mean_S[:, None])
        raw = {"spread": torch.linalg.vector_norm(z_SV, dim=1), "offset": z_SV.mean(1)}
        z_SV.add_((mean_S - max_S)[:, None]).scatter_(1, y_S1, float("-inf"))
        weights_SV = z_SV.exp()  # 1 for the largest, 0 for the target
        raw["total"] = weights_SV.sum(1, dtype=torch.float64)
        raw["below_max"] = z_SV.scatter_(1, y_S1, 0.0).mul_(weights_SV).sum(1)
        return raw

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Gradients of the summed loss for features (C, D) and shift (C,); those of the classes are accumulated."""
        t = self.t
        if t.rows is not None:
            return self._gradient_by_rows(t.rows)
        leaves = (t.true, t.negatives, t.mean, t.largest_negative, t.shift)
        more = [x for x in (t.rivals, t.auxiliary) if x is not None]
        d_true_C, d_negatives_C, d_mean_C, d_largest_C, d_shift_C, *d_more = torch.autograd.grad(
            self.loss_C, (*leaves, *more), self.valid_C, allow_unused=True, materialize_grads=True
        )
        weights_CV, total_C = self.negatives.weights_CV, self.negatives.total_C
        # The target's gradient becomes one more weight of its row, that of the largest negative is added to its weight. If the
        # gradient of the negatives is 0 but one of these is not, a scale far below rounding stands for 0.
        most = 1e4 if weights_CV.dtype == torch.float16 else 1e25
        scale_C = d_negatives_C / total_C
        least_C = torch.maximum(d_true_C.abs(), d_largest_C.abs()) / most
        scale_C = torch.where(scale_C.abs() < least_C, least_C, scale_C)
        if self.objective.uses_largest:
            # In half precision the first of those that round to the largest probability.
            largest_C1 = weights_CV.argmax(1, keepdim=True)
            extra_C = torch.where(scale_C == 0, 0, d_largest_C / scale_C)
            weights_CV.scatter_add_(1, largest_C1, extra_C.to(weights_CV.dtype)[:, None])
        target_C = torch.where(scale_C == 0, 0, d_true_C / scale_C)
        weights_CV.scatter_(1, self.y_C[:, None], target_C.to(weights_CV.dtype)[:, None])
        uniform_C = d_mean_C / weights_CV.shape[1] if self.objective.uses_mean else None
        gradient = LogitGradient(weights_CV, scale_C, uniform_C)
        d_shift_C = d_true_C + d_negatives_C + d_mean_C + d_largest_C + d_shift_C
        if self.rivals is not None:
            d_CK = d_more.pop(0)
            d_shift_C = d_shift_C + d_CK.sum(1)
            df_CD = self._accumulate(gradient.dense().scatter_add_(1, self.classes_CK, d_CK), self.vocabulary)
        else:
            df_CD = self.vocabulary.accumulate(gradient, self.f_CD)
        if self.vocabulary.auxiliary is not None and t.auxiliary is not None:
            df_CD = df_CD + self._accumulate(d_more.pop(), self.vocabulary.auxiliary)
        return df_CD, d_shift_C

    def _gradient_by_rows(self, rows_CV: Tensor) -> tuple[Tensor, Tensor]:
        """The same of an objective that reads the rows, whose gradient fits no formula."""
        dz_CV, d_shift_C = torch.autograd.grad(
            self.loss_C, (rows_CV, self.t.shift), self.valid_C, allow_unused=True, materialize_grads=True
        )
        return self._accumulate(dz_CV, self.vocabulary), d_shift_C + dz_CV.sum(1)

    def _accumulate(self, dz_CV: Tensor, vocabulary: Classes) -> Tensor:
        """Gradient of the features (C, D) from that of the logits, in float32; those of the classes are accumulated."""
        scale_C = torch.ones_like(self.shift_C)
        if self.f_CD.dtype != dz_CV.dtype:  # half precision: the largest entry of a row becomes 1
            scale_C = dz_CV.abs().amax(1).clamp(min=torch.finfo(dz_CV.dtype).tiny)
            dz_CV = (dz_CV / scale_C[:, None]).to(self.f_CD.dtype)
        return vocabulary.accumulate(LogitGradient(dz_CV, scale_C), self.f_CD)


def _statistics(
    head: Head, objective: Objective, t: TokenLogits, raw: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Telemetry of the logits by metric name: of every token (N,), and of the sampled ones (S,)."""
    every = {
        "logit/max": torch.maximum(raw["largest_negative"], t.true),
        "logit/mean": t.mean,
        "logit/logsumexp": log_partition(t),
        **head.statistics(t),
        **{name.removeprefix(PART): part_N for name, part_N in raw.items() if name.startswith(PART)},
    }
    true_S, negatives_S = t.true[::SAMPLING], t.negatives[::SAMPLING]
    # P and Q share the renormalised negatives, so only their entropy takes a pass over the vocabulary.
    total_S, below_max_S = raw["total"], raw["below_max"]
    entropy_negatives_S = (torch.log1p(total_S - 1) - below_max_S / total_S).to(below_max_S.dtype)
    variance_S = raw["spread"].square() / (head.n_classes + head.extra_classes) - raw["offset"].square()
    sampled = {
        "logit/std": variance_S.clamp(min=0).sqrt(),  # rounding may make it negative
        "entropy/p": _mixture_entropy(true_S - negatives_S, entropy_negatives_S),
    }
    if head.bounded or objective.uses_weight:
        every["tfsd/weight"] = tfsd_weight(t)
        sampled["tfsd/target_entropy"] = _mixture_entropy(-negatives_S, entropy_negatives_S)
    return every, sampled


def _mixture_entropy(log_odds_true: Tensor, entropy_negatives: Tensor) -> Tensor:
    """Entropy in nats of the target with probability sigmoid(log_odds), else one of the negatives."""
    size = log_odds_true.abs()
    binary = F.softplus(-size) + size * torch.sigmoid(-size)  # both terms positive, so nothing cancels
    return binary + torch.sigmoid(-log_odds_true) * entropy_negatives
