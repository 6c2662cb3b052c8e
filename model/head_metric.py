"""The metric head: logits by distance to the token embeddings. Shapes: N tokens, C tokens of one chunk, V vocabulary, D
width."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .heads import AffineHead
from .objectives import TokenLogits, log_partition
from .precision import wide_dtype
from .registry import register_head

Normalization = Literal["none", "layernorm", "batchnorm"]
CentroidNormalization = Literal["none", "layernorm", "batchnorm", "centred"]
CentroidInit = Literal["normal", "small_uniform", "unit"]
SCALES = (1e-6, 1e6)
"""Limits of a given g, far beyond any useful value: the squares of 2 g h stay within float32 for lengths of h from 1e-11 to
1e12."""


@register_head("metric")
class MetricHead(AffineHead):
    """z_k = -g ||h - w_k||^2: logits from squared Euclidean distances to the token embeddings (docs/mathematics.md).

    Evaluated as f @ w_k + b_k + shift with f = 2 g h, b_k = -g ||w_k||^2 and shift = -g ||h||^2: one matrix product,
    without the shift. The target's logit is computed from h - w_y itself and is never positive.

    With ``abstain`` there is a class at the origin, whose logit is the shift: to predict nothing costs NLL, and its mean
    probability is logged. Logits of a model stay those of the V tokens, whose softmax is P given that one of them is
    predicted; ``head(h, lambda head, f: head.shift(f))`` has the logit of abstaining beside them.
    """

    bounded = True

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""
        scale: float | Literal["article", "linear_equivalent", "learned"] = "linear_equivalent"
        """g: a number; article = 1/sqrt(8 D) (Pisoni 2026); linear_equivalent = 1/2, which gives the linear head's logits
        plus the bias -||w_k||^2/2; learned = a parameter that starts at 1/2."""
        feature_norm: Normalization = "none"
        """Normalisation, without gain or bias, of the hidden states before the distance (tip 2 of the article)."""
        centroid_norm: CentroidNormalization = "none"
        """The same for the embeddings as centroids: per row (layernorm) or per dimension over the vocabulary (batchnorm); or
        centred: minus their mean alone."""
        init: CentroidInit = "normal"
        """Initial centroids: normal = as the body initialises embeddings; small_uniform = U(-1/D, 1/D) (tip 1); unit =
        random directions of length 1."""
        abstain: bool = False
        """One more class, at the origin, that is never a target: the loss, NLL included, is over V + 1 classes."""

        def __post_init__(self) -> None:
            if not isinstance(self.scale, str) and not SCALES[0] <= self.scale <= SCALES[1]:
                raise ValueError(f"scale must be from {SCALES[0]:g} to {SCALES[1]:g}, not {self.scale}")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        # Shape (1,), not (): FSDP2 refuses scalar parameters.
        self.log_scale = nn.Parameter(torch.empty(1)) if options.scale == "learned" else None
        fixed = {"article": 1 / math.sqrt(8 * hidden_size), "linear_equivalent": 0.5, "learned": 0.5}
        self.initial_scale = fixed[options.scale] if isinstance(options.scale, str) else float(options.scale)
        self.extra_classes = int(options.abstain)
        self.batch_norm: nn.BatchNorm1d | None = None
        if options.feature_norm == "batchnorm":
            self.mixes_positions = (
                "in training, feature_norm=batchnorm takes means over all positions of the micro-batch, later ones too"
            )
            self.batch_norm = nn.BatchNorm1d(hidden_size, affine=False)

    def reset_parameters(self) -> None:
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.initial_scale))
        if self.batch_norm is not None:
            self.batch_norm.reset_running_stats()

    @torch.no_grad()
    def reset_weight(self) -> None:
        """Initialise ``weight`` as ``options.init`` says; "normal" keeps the body's initialisation."""
        if self.options.init == "small_uniform":
            nn.init.uniform_(self.weight, -1 / self.weight.shape[1], 1 / self.weight.shape[1])
        elif self.options.init == "unit":
            nn.init.normal_(self.weight)
            self.weight.div_(self.weight.norm(dim=1, keepdim=True))

    def scale(self) -> float | Tensor:
        """g, as a number or (learned) as a tensor of shape (1,)."""
        return self.initial_scale if self.log_scale is None else self.log_scale.exp()

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        h_ND = h_ND.to(wide_dtype(h_ND.dtype))
        if self.options.feature_norm == "layernorm":
            h_ND = F.layer_norm(h_ND, h_ND.shape[-1:])
        elif self.batch_norm is not None:
            h_ND = self.batch_norm(h_ND)
        doubled = 2 * self.scale()
        # At the linear-equivalent scale the features are the hidden states: avoid a copy.
        return h_ND.to(dtype) if self.log_scale is None and doubled == 1.0 else (doubled * h_ND).to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (w_VD,) = super().classes(dtype)
        if self.options.centroid_norm == "layernorm":
            w_VD = F.layer_norm(w_VD, w_VD.shape[-1:])
        elif self.options.centroid_norm != "none":
            real_VD = w_VD[: self.n_classes]
            w_VD = w_VD - real_VD.mean(0)
            if self.options.centroid_norm == "batchnorm":
                w_VD = w_VD / (real_VD.var(0, correction=0) + 1e-5).sqrt()
        if self.options.abstain:
            w_VD = torch.cat([w_VD[: self.n_classes], w_VD.new_zeros(1, w_VD.shape[1]), w_VD[self.n_classes :]])
        g = self.scale()
        return w_VD, g if isinstance(g, Tensor) else w_VD.new_full((1,), g)

    def offsets(self, *classes: Tensor) -> Tensor | None:
        return -classes[1] * _squared_norms(classes[0])

    def add_offset_gradients(self, db_V: Tensor, classes: tuple[Tensor, ...], gradients: list[Tensor]) -> None:
        w_VD, g = classes
        gradients[0].addcmul_(w_VD.to(db_V.dtype), (-2 * g * db_V)[:, None])
        if self.log_scale is not None:
            gradients[1] -= db_V @ _squared_norms(w_VD)

    def shift(self, f_ND: Tensor) -> Tensor:
        return f_ND.to(wide_dtype(f_ND.dtype)).square().sum(1) / (-4 * self.scale())

    def target_logits(self, f_CD: Tensor, y_C: Tensor, z_C: Tensor, *classes: Tensor) -> Tensor:
        w_VD, g = classes
        difference_CD = (f_CD.to(z_C.dtype) / (2 * g)).sub_(w_VD[: self.n_classes].index_select(0, y_C))
        return -g * _squared_norms(difference_CD)

    def statistics(self, t: TokenLogits) -> dict[str, Tensor]:
        found = {"metric/true_distance": (-t.true / self.scale()).sqrt()}
        return found | {"metric/abstained": (t.shift - log_partition(t)).exp()} if self.options.abstain else found


def _squared_norms(w_VD: Tensor) -> Tensor:
    """||w_k||^2 (V,) in float32, without a second matrix."""
    return torch.linalg.vector_norm(w_VD, dim=1, dtype=wide_dtype(w_VD.dtype)).square()
