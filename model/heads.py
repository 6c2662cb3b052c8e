"""Output heads: from hidden states to one logit per token of the vocabulary.

A head splits its work into ``features`` (token side, once), ``classes`` (vocabulary side, once), ``logits`` of a chunk of
tokens up to a constant per token, that constant (``shift``), and exact ``target_logits``, so that a loss never holds N x V
logits. All of it runs outside autocast: matrices enter the product in the compute dtype, while norms, distances and results
are float32, computed from the same rounded values.

Shapes: N tokens, C tokens of one chunk, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classes import AffineClasses, Classes, SoftCappedClasses
from .kernel_choice import Kernel
from .objectives import TokenLogits
from .precision import compute_dtype, product, wide_dtype


class Head(nn.Module):
    """Base of all heads. ``weight`` (V, D) is tied to the input embedding if ``options.tied``. A new head must define
    ``logits``; the defaults of the other methods suit a head without a constant per token. See docs/adding-your-own.md."""

    bounded = False
    """Whether logits are at most 0, reached where the hidden state equals the class vector: then TFSD's weight is in [0,
    1)."""

    extra_classes = 0
    """Classes besides the vocabulary's, never a target: ``classes`` has their rows after the real ones, before the padding."""

    has_auxiliary = False
    """Whether there is an auxiliary head, which only objectives with ``uses_auxiliary`` train."""

    mixes_positions = ""
    """How a prediction depends on other positions of the batch than those before it, if it does; a run says so."""

    kernel: Kernel = "auto"
    """What evaluates the loss's softmax over each row of logits."""

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""

    def __init__(self, hidden_size: int, vocab_size: int, options: Any) -> None:
        super().__init__()
        self.options = options
        self.weight = nn.Parameter(torch.empty(vocab_size, hidden_size))
        self.n_classes = vocab_size
        """Rows of ``weight`` that are classes; the others pad the vocabulary and are never predicted."""

    def reset_parameters(self) -> None:
        """Initialise the head's own parameters; ``weight`` starts like an embedding of the body."""

    def reset_weight(self) -> None:
        """Re-initialise ``weight`` of a new model, if it is not to start like an embedding of the body."""

    def resize(self, rows: int) -> None:
        """Give the head's own parameters that have a row per class this many, those there are first."""

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """Token side of the logits, in the compute dtype."""
        return h_ND.to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Vocabulary side of the logits, in the parameters' dtype (at least float32); ``dtype`` is the compute dtype.
        Tensors with as many rows as ``weight`` have one per class; rows that pad the vocabulary are cut off."""
        return (self.weight.to(wide_dtype(self.weight.dtype)),)

    def without_padding(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Class tensors without the rows that pad the vocabulary."""
        rows, real = len(self.weight) + self.extra_classes, self.n_classes + self.extra_classes
        return tuple(t[:real] if t.dim() and len(t) == rows else t for t in tensors)

    def logits(self, f_CD: Tensor, *classes: Tensor) -> Tensor:
        """Logits (C, V) up to a constant per token. Class matrices arrive in the compute dtype, vectors in float32. A
        parameter that is read here, rather than in ``features`` or ``classes``, gets no gradient."""
        raise TypeError(f"{type(self).__name__} must define logits()")

    def auxiliary_logits(self, f_ND: Tensor) -> Tensor:
        """Logits (N, V) of the auxiliary head."""
        raise TypeError(f"{type(self).__name__} has no auxiliary head")

    def shift(self, f_ND: Tensor) -> Tensor:
        """The constant (N,) that ``logits`` leaves out for each token."""
        return torch.zeros(f_ND.shape[0], dtype=wide_dtype(f_ND.dtype), device=f_ND.device)

    def target_logits(self, f_CD: Tensor, y_C: Tensor, z_C: Tensor, *classes: Tensor) -> Tensor:
        """True logits (C,) of the targets; by default ``z_C``, gathered from the chunk's logits. Needs no gradient."""
        return z_C

    def in_training(self, t: TokenLogits) -> TokenLogits:
        """What the objective sees in training instead of ``t``, a differentiable function of it; reported numbers keep ``t``."""
        return t

    def vocabulary(self, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> Classes:
        """The vocabulary side of one evaluation, from what ``classes`` returned."""
        return Classes(self, tensors, dtype, with_gradient)

    def statistics(self, t: TokenLogits) -> dict[str, Tensor]:
        """The head's own telemetry (N,) by metric name."""
        return {}

    def forward(self, h: Tensor, then: Callable[[Head, Tensor], Any] | None = None) -> Any:
        """True logits (..., V) in float32 of hidden states (..., D), or ``then(head, f_ND)`` of their features. The loss
        goes through here too, since wrappers and sharding act only when the module itself is called."""
        dtype = compute_dtype(h)
        with torch.autocast(h.device.type, enabled=False):
            f_ND = self.features(h.reshape(-1, h.shape[-1]), dtype)
            return self.true_logits(f_ND.view(*h.shape[:-1], f_ND.shape[-1])) if then is None else then(self, f_ND)

    def true_logits(self, f: Tensor) -> Tensor:
        """True logits (..., V) in float32 of features (..., D'). For generation and probes; not used in training."""
        logits_NV = self.class_logits(f.reshape(-1, f.shape[-1]))[:, : self.n_classes]
        padding = len(self.weight) - self.n_classes
        logits_NV = F.pad(logits_NV, (0, padding), value=float("-inf")) if padding else logits_NV
        return logits_NV.reshape(*f.shape[:-1], logits_NV.shape[-1])

    def class_logits(self, f_ND: Tensor) -> Tensor:
        """True logits of every class, ``extra_classes`` included, without the padding of the vocabulary."""
        classes = self.without_padding(self.classes(f_ND.dtype))
        shift_N = self.shift(f_ND)
        logits_NV = self.logits(f_ND, *(c.to(f_ND.dtype) if c.dim() == 2 else c for c in classes))
        return logits_NV.to(shift_N.dtype) + shift_N[:, None]


def as_trained(head: Head, t: TokenLogits) -> TokenLogits:
    """``t`` as the objective sees it in training, rows included."""
    seen = head.in_training(t)
    if seen is t or seen.rows is None or seen.target is None:
        return seen
    return replace(seen, rows=seen.rows.scatter(1, seen.target[:, None], seen.true[:, None]))


class AffineHead(Head):
    """A head with chunk logits f @ A.T + b: ``classes()`` starts with A, and ``offsets`` computes b, if any."""

    soft_cap: float | None = None
    """Logits z become soft_cap * tanh(z / soft_cap)."""

    def offsets(self, *classes: Tensor) -> Tensor | None:
        """b (V,), in float32."""
        return None

    def add_offset_gradients(self, db_V: Tensor, classes: tuple[Tensor, ...], gradients: list[Tensor]) -> None:
        """Add to ``gradients``, those of ``classes``, the part that follows from the gradient of b."""

    def logits(self, f_CD: Tensor, *classes: Tensor) -> Tensor:
        z_CV, b_V = product(f_CD, classes[0].T), self.offsets(*classes)
        z_CV = z_CV if b_V is None else z_CV.add_(b_V)
        return z_CV if self.soft_cap is None else z_CV.div_(self.soft_cap).tanh() * self.soft_cap

    def vocabulary(self, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> Classes:
        kind = AffineClasses if self.soft_cap is None else SoftCappedClasses
        return kind(self, tensors, dtype, with_gradient)
