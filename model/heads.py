"""Output heads: from hidden states to one logit per token of the vocabulary.

Shapes: N tokens, C tokens of one chunk, V vocabulary, D width.

A head splits its work so that a loss can walk over the tokens in chunks and never hold N x V logits:

- ``features(h_ND)``   token side, once: f_ND
- ``classes()``        vocabulary side, once: the tensors that ``logits`` needs beside the features
- ``logits(f_CD, *classes)``   the logits of a chunk *up to a constant per token*
- ``shift(f_ND)``      that constant: what to add to the logits of a token to get its true logits
- ``target_logits``    the true logit of each token's target, computed exactly

All of it runs outside autocast. Matrices enter the matrix product in the compute dtype (bfloat16 under bf16 autocast);
norms, distances and results are float32, computed from the same rounded values that enter the product.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classes import AffineClasses, Classes, SoftCappedClasses
from .precision import compute_dtype, product, wide_dtype
from .registry import register_head

Normalization = Literal["none", "layernorm", "batchnorm"]
T = TypeVar("T")
CentroidInit = Literal["normal", "small_uniform", "unit"]
SCALES = (1e-6, 1e6)
"""Between which a given g of the metric head must lie, far beyond what is of use on either side: the squares of 2 g h are then
numbers of float32 for hidden states of any length from 1e-11 to 1e12."""


class Head(nn.Module):
    """Base of all heads. ``weight`` (V, D) is what is tied to the input embedding when ``options.tied`` is true.

    A new head defines ``logits`` at least; ``features``, ``classes``, ``shift`` and ``target_logits`` have defaults that
    suit a head whose logits need no constant per token. See "Adding a head" in the README.
    """

    bounded = False
    """Whether logits are at most 0, reached where the hidden state equals the class vector: then TFSD's weight is in [0, 1)."""

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""

    def __init__(self, hidden_size: int, vocab_size: int, options: Any) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.n_classes = vocab_size
        """Rows of ``weight`` that are classes. Those after them only pad the vocabulary; they are never predicted."""

    def reset_parameters(self) -> None:
        """Initialise what is the head's own, beside ``weight``, which starts like an embedding of the body."""

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Token side of the logits, in the compute dtype."""
        return h_ND.to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Vocabulary side of the logits, in the parameters' dtype (at least float32); ``dtype`` is the compute dtype.

        Tensors with as many rows as ``weight`` have one per class: rows that only pad the vocabulary are cut off them.
        """
        return (self.weight.to(wide_dtype(self.weight.dtype)),)

    def logits(self, f_CD: Tensor, *classes: Tensor) -> Tensor:
        """Logits (C, V) up to a constant per token. Class matrices arrive in the compute dtype, vectors in float32."""
        raise TypeError(f"{type(self).__name__} must define logits()")

    def shift(self, f_ND: Tensor) -> Tensor:
        """The constant (N,) which ``logits`` leaves out for each token."""
        return torch.zeros(f_ND.shape[0], dtype=wide_dtype(f_ND.dtype), device=f_ND.device)

    def target_logits(self, f_CD: Tensor, y_C: Tensor, z_C: Tensor, *classes: Tensor) -> Tensor:
        """True logits (C,) of the targets; by default ``z_C``, those among the chunk's logits. Needs no gradient."""
        return z_C

    def vocabulary(self, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> Classes:
        """What chunks of tokens meet, made once per evaluation from what ``classes`` returned."""
        return Classes(self, tensors, dtype, with_gradient)

    def statistics(self, true_N: Tensor) -> dict[str, Tensor]:
        """Per-token quantities (N,) for telemetry which only this head has, by metric name; from the true targets' logits."""
        return {}

    @overload
    def forward(self, h: Tensor) -> Tensor: ...

    @overload
    def forward(self, h: Tensor, then: Callable[[Head, Tensor], T]) -> T: ...

    def forward(self, h: Tensor, then: Callable[[Head, Tensor], Any] | None = None) -> Any:
        """True logits (..., V) in float32 of hidden states (..., D), or what ``then(head, f_ND)`` makes of their features.

        The loss comes through here too: what wraps a module, or holds its weights elsewhere, sees only calls of it.
        """
        dtype = compute_dtype(h)
        with torch.autocast(h.device.type, enabled=False):
            f_ND = self.features(h.reshape(-1, h.shape[-1]), dtype)
            return self.true_logits(f_ND.view(*h.shape[:-1], f_ND.shape[-1])) if then is None else then(self, f_ND)

    def true_logits(self, f: Tensor) -> Tensor:
        """True logits (..., V) in float32 of features (..., D'). For generation and probes; our training never calls it."""
        f_ND = f.reshape(-1, f.shape[-1])
        classes = tuple(c.to(f.dtype) if c.dim() == 2 else c for c in self.classes(f.dtype))
        shift_N = self.shift(f_ND)
        logits_NV = self.logits(f_ND, *classes).to(shift_N.dtype) + shift_N[:, None]
        logits_NV[:, self.n_classes :] = float("-inf")
        return logits_NV.view(*f.shape[:-1], logits_NV.shape[-1])


class AffineHead(Head):
    """A head whose chunk logits are f @ A.T + b: ``classes()`` begins with A, and ``offsets`` makes b, if there is one."""

    soft_cap: float | None = None
    """Logits z become soft_cap * tanh(z / soft_cap)."""

    def offsets(self, *classes: Tensor) -> Tensor | None:
        """b (V,), in float32."""
        return None

    def add_offset_gradients(self, db_V: Tensor, classes: tuple[Tensor, ...], gradients: list[Tensor]) -> None:
        """Add to ``gradients``, those of ``classes``, what follows from the gradient of b."""

    def logits(self, f_CD: Tensor, *classes: Tensor) -> Tensor:
        z_CV, b_V = product(f_CD, classes[0].T), self.offsets(*classes)
        z_CV = z_CV if b_V is None else z_CV.add_(b_V)
        return z_CV if self.soft_cap is None else z_CV.div_(self.soft_cap).tanh() * self.soft_cap

    def vocabulary(self, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> Classes:
        kind = AffineClasses if self.soft_cap is None else SoftCappedClasses
        return kind(self, tensors, dtype, with_gradient)


@register_head("linear")
class LinearHead(AffineHead):
    """z_k = h . w_k (+ b_k): the usual unembedding; with a soft cap c (Gemma 2, arXiv 2408.00118) then c tanh(z_k / c)."""

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        bias: bool = False
        soft_cap: float | None = None

        def __post_init__(self) -> None:
            if self.soft_cap is not None and not self.soft_cap > 0:
                raise ValueError(f"soft_cap must be positive, not {self.soft_cap}")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        self.soft_cap = options.soft_cap
        self.bias = nn.Parameter(torch.empty(vocab_size)) if options.bias else None

    def reset_parameters(self) -> None:
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (weight,) = super().classes(dtype)
        return (weight,) if self.bias is None else (weight, self.bias.to(weight.dtype))

    def offsets(self, *classes: Tensor) -> Tensor | None:
        return classes[1] if len(classes) == 2 else None

    def add_offset_gradients(self, db_V: Tensor, classes: tuple[Tensor, ...], gradients: list[Tensor]) -> None:
        gradients[1] += db_V


@register_head("metric")
class MetricHead(AffineHead):
    """z_k = -g ||h - w_k||^2: logits from squared Euclidean distances to the token embeddings (docs/mathematics.md).

    Evaluated as f @ w_k + b_k + shift with f = 2 g h, b_k = -g ||w_k||^2, shift = -g ||h||^2: one matrix product, the
    shift kept out of it. The target's logit is computed from the difference h - w_y itself and never positive.
    """

    bounded = True

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        scale: float | Literal["article", "linear_equivalent", "learned"] = "linear_equivalent"
        """g: a number; article = 1/sqrt(8 D) (Pisoni 2026); linear_equivalent = 1/2, which gives the linear head's logits
        plus the bias -||w_k||^2/2; learned = a parameter that starts at 1/2."""
        feature_norm: Normalization = "none"
        """Normalisation, without gain or bias, of the hidden states before the distance (tip 2 of the article)."""
        centroid_norm: Normalization = "none"
        """The same for the embeddings as centroids: per row (layernorm) or per dimension over the vocabulary (batchnorm)."""
        init: CentroidInit = "normal"
        """Centroids at the start: normal = as the body initialises embeddings; small_uniform = U(-1/D, 1/D) (tip 1);
        unit = random directions of length 1."""

        def __post_init__(self) -> None:
            if not isinstance(self.scale, str) and not SCALES[0] <= self.scale <= SCALES[1]:
                raise ValueError(f"scale must be from {SCALES[0]:g} to {SCALES[1]:g}, not {self.scale}")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        # Shape (1,), not (): FSDP2 refuses scalar parameters.
        self.log_scale = nn.Parameter(torch.empty(1)) if options.scale == "learned" else None
        fixed = {"article": 1 / math.sqrt(8 * hidden_size), "linear_equivalent": 0.5, "learned": 0.5}
        self.initial_scale = fixed[options.scale] if isinstance(options.scale, str) else float(options.scale)
        self.batch_norm: nn.BatchNorm1d | None = None
        if options.feature_norm == "batchnorm":
            warnings.warn(
                "head.feature_norm=batchnorm mixes statistics over all positions of the batch: in a causal model the "
                "prediction at one position then depends on later tokens, so training losses are not comparable",
                stacklevel=2,
            )
            self.batch_norm = nn.BatchNorm1d(hidden_size, affine=False)

    def reset_parameters(self) -> None:
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.initial_scale))
        if self.batch_norm is not None:
            self.batch_norm.reset_running_stats()

    @torch.no_grad()
    def reset_centroids(self) -> None:
        """Initialise ``weight`` as ``options.init`` says; "normal" leaves the body's own initialisation."""
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
        # At the linear-equivalent scale the features are the hidden states: no copy of them.
        return h_ND.to(dtype) if self.log_scale is None and doubled == 1.0 else (doubled * h_ND).to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        (w_VD,) = super().classes(dtype)
        if self.options.centroid_norm == "layernorm":
            w_VD = F.layer_norm(w_VD, w_VD.shape[-1:])
        elif self.options.centroid_norm == "batchnorm":
            real_VD = w_VD[: self.n_classes]
            w_VD = (w_VD - real_VD.mean(0)) / (real_VD.var(0, correction=0) + 1e-5).sqrt()
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
        difference_CD = (f_CD.to(z_C.dtype) / (2 * g)).sub_(w_VD.index_select(0, y_C))
        return -g * _squared_norms(difference_CD)

    def statistics(self, true_N: Tensor) -> dict[str, Tensor]:
        return {"metric/true_distance": (-true_N / self.scale()).sqrt()}


def _squared_norms(w_VD: Tensor) -> Tensor:
    """||w_k||^2 (V,) in float32, without a second matrix."""
    return torch.linalg.vector_norm(w_VD, dim=1, dtype=wide_dtype(w_VD.dtype)).square()
