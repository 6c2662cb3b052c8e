"""Is the softmax bottleneck broken? The rank of the log-probabilities that a model gives over many contexts.

Yang et al. 2018 (arXiv 1711.03953): logits h . w_k leave log P a matrix of rank D + 1 at most, however many contexts and tokens
there are. The rank is that of log P itself, as in docs/mathematics.md; its spectrum is that of log P without the mean of each
row, which the softmax fixes and which would hide all the rest.

Shapes: N contexts, V vocabulary, D width, R singular values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from analysis.compare.text import Ids, RunText
from model.heads import AffineHead, Head

from .base import PROBES, Measure, Probe
from .states import in_double

_MARKS = np.arange(0, 2.01, 0.05)
"""Where the spectrum is given, in units of D + 1 singular values."""


@PROBES.register("bottleneck")
class Bottleneck(Probe[tuple[Ids, int]]):
    """Numerical and effective rank of the log-probability matrix, contexts x vocabulary, in float64."""

    measures = (
        Measure("rank", "1", "singular values of log P above max(N, V) x the rounding of a number x the largest"),
        Measure(
            "bound", "1", "the largest rank that this head can have: D + 1, D + 2 with a bias, else V; at most N and V"
        ),
        Measure("rank_over_bound", "1", "rank / bound"),
        Measure("largest", "1", "the largest rank that any such matrix can have: the smaller of N and V"),
        Measure(
            "effective_rank", "1", "exp of the entropy of the singular values as shares of their sum", positive=True
        ),
        Measure(
            "beyond_bound",
            "1",
            "share of the squared singular values beyond D + 1: 0 of a head affine in h",
            positive=True,
        ),
        Measure(
            "spectrum",
            "1",
            "singular values over the largest, at every 5% of D + 1",
            along="5% of D + 1",
            positive=True,
        ),
    )

    @dataclass(frozen=True)
    class Options:
        contexts: Annotated[int, Field(ge=2)] | None = None
        """Positions of held-out text (N), at most V; null: 4 (D + 2)."""

    def prepare(self, text: RunText, *, seed: int) -> tuple[Ids, int]:
        vocabulary, length = text.store.vocab_size, text.data.sequence_length
        there = (len(text.store.validation.ids) - 1) // length
        most = min(self.options.contexts or vocabulary, vocabulary)
        return text.windows(max(1, min(there, math.ceil(most / length))), seed=seed)[0], vocabulary

    def measure(self, model: Any, prepared: tuple[Ids, int], *, seed: int) -> dict[str, Any]:
        x_BT, vocabulary = prepared
        width = model.get_output_embeddings().weight.shape[1]
        contexts = min(self.options.contexts or 4 * (width + 2), vocabulary, x_BT.size)
        windows = np.linspace(0, len(x_BT) - 1, math.ceil(contexts / x_BT.shape[1])).round().astype(int)
        with in_double(model):
            z_NV = torch.cat([_logits(model, x_T, vocabulary) for x_T in x_BT[windows]])[:contexts]
        rounding = torch.finfo(z_NV.dtype).eps  # a guest may return float32 whatever it computes in
        log_p_NV = z_NV.double().log_softmax(1)
        mean_N1 = log_p_NV.mean(1, keepdim=True)
        # Orthogonal columns leave singular values, and the rows of both matrices, apart from their means, are the same.
        rest_NR = torch.linalg.qr((log_p_NV - mean_N1).T, mode="r").R.T
        whole_R = torch.linalg.svdvals(torch.cat([rest_NR, math.sqrt(vocabulary) * mean_N1], dim=1))
        rank = int((whole_R > max(log_p_NV.shape) * rounding * whole_R[0]).sum())
        largest = min(log_p_NV.shape)
        bound = min(largest_rank(model, vocabulary), largest)
        ranks = {"rank": rank, "bound": bound, "rank_over_bound": rank / bound, "largest": largest}
        return ranks | _of_spectrum(rest_NR, width)


def _logits(model: Any, x_T: Ids, vocabulary: int) -> Tensor:
    logits_TV: Tensor = model(input_ids=torch.from_numpy(x_T[None]).to(model.device), use_cache=False).logits[0]
    return logits_TV[:, :vocabulary]


def _of_spectrum(rest_NR: Tensor, width: int) -> dict[str, Any]:
    s_R = torch.linalg.svdvals(rest_NR)
    share_R = s_R / s_R.sum()
    places = (_MARKS * (width + 1)).round().astype(int)
    spectrum = np.full(len(places), math.nan)
    there = places < len(s_R)
    spectrum[there] = (s_R / s_R[0]).cpu().numpy()[places[there]]
    return {
        "effective_rank": float(torch.special.entr(share_R).sum().exp()),
        "beyond_bound": float(s_R[width + 1 :].square().sum() / s_R.square().sum()),
        "spectrum": spectrum,
    }


def largest_rank(model: Any, vocabulary: int) -> int:
    """The largest rank of log P: for logits that are affine in D features D + 1, with offsets D + 2; else the vocabulary."""
    head = model.get_output_embeddings()
    if isinstance(head, Head):
        if not isinstance(head, AffineHead) or type(head).logits is not AffineHead.logits or head.soft_cap is not None:
            return vocabulary
        classes = head.classes(head.weight.dtype)
        return int(classes[0].shape[1]) + 1 + (head.offsets(*classes) is not None)
    capped = getattr(model.config.get_text_config(), "final_logit_softcapping", None) is not None
    if not isinstance(head, nn.Linear) or capped:
        return vocabulary
    return head.in_features + 1 + (head.bias is not None)
