"""The cosine head: only directions count, and a margin may be asked for in training. Shapes: N tokens, V vocabulary, D
width."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .heads import AffineHead
from .objectives import TokenLogits
from .precision import wide_dtype
from .registry import register_head

SCALES = (1e-3, 1e3)
"""Limits of s: cosines to the 7 digits of float32 give logits to 1e-4."""
LEAST_LENGTH = 1e-3
"""Vectors that are shorter count as this long: a row of zeros, as transformers makes of a padding token, has the logit 0 and a
gradient that is not infinite."""
LEAST_SINE = 1e-3
"""Of the angle to the target, where the margin is added: the slope of cos(theta + m) in cos(theta) grows as 1/sin(theta)."""


def directions(x_ND: Tensor) -> Tensor:
    """Each row divided by its length, in float32."""
    x_ND = x_ND.to(wide_dtype(x_ND.dtype))
    return x_ND / torch.linalg.vector_norm(x_ND, dim=1, keepdim=True).clamp(min=LEAST_LENGTH)


def with_margin(cosine: Tensor, margin: float) -> Tensor:
    """cos(theta + margin) of cos(theta); beyond theta = pi - margin, where that would rise again, cos(theta) - margin
    sin(margin)."""
    sine = ((1 - cosine) * (1 + cosine)).clamp(min=LEAST_SINE**2).sqrt()
    turned = math.cos(margin) * cosine - math.sin(margin) * sine
    return torch.where(cosine > -math.cos(margin), turned, cosine - margin * math.sin(margin))


@register_head("cosine")
class CosineHead(AffineHead):
    """z_k = s cos(h, w_k): logits from directions alone, in training with an angular margin to the target if wanted.

    The margin is that of ArcFace (Deng et al., arXiv 1801.07698): in training the objective sees s cos(theta_y + m) as the
    target's logit. Everything else that is reported, NLL, telemetry and evaluations, is without margin.

    At the start cosines have a standard deviation of 1/sqrt(D) and logits one of s/sqrt(D), whatever the initialisation. No
    probability exceeds 1/(1 + (V-1) exp(-2s)), nor, while the other embeddings are about orthogonal, 1/(1 + (V-1) exp(-s)):
    at V = 8192 that is 0.5 for s = 9 and 0.999 for s = 16. A learned s (CLIP, arXiv 2103.00020) may grow without limit, so
    it is logged. ArcFace's s = 64 and m = 0.5 are made for faces: at V = 8192 they start with an objective of some 60 nats at
    D = 64 and 47 at D = 256 (ln V is 9), of which 30 are the margin's, and with an NLL of 30 and 16 from confident noise.
    """

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""
        scale: float = 16.0
        """s, or what it starts at."""
        learn_scale: bool = False
        """Make s a parameter."""
        margin: float = 0.0
        """m, in radians, added to the angle between hidden state and target in training; 0: none."""

        def __post_init__(self) -> None:
            if not SCALES[0] <= self.scale <= SCALES[1]:
                raise ValueError(f"scale must be from {SCALES[0]:g} to {SCALES[1]:g}, not {self.scale}")
            if not 0 <= self.margin <= math.pi / 2:
                raise ValueError(f"margin must be from 0 to pi/2, not {self.margin}")
            if self.margin and self.learn_scale:
                raise ValueError("learn_scale must be false where there is a margin: its s is fixed")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        # Shape (1,), not (): FSDP2 refuses scalar parameters.
        self.log_scale = nn.Parameter(torch.empty(1)) if options.learn_scale else None

    def reset_parameters(self) -> None:
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, math.log(self.options.scale))

    def scale(self) -> float | Tensor:
        """s, as a number or (learned) as a tensor of shape (1,)."""
        return self.options.scale if self.log_scale is None else self.log_scale.exp()

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        return (self.scale() * directions(h_ND)).to(dtype)

    def classes(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (directions(self.weight),)

    def in_training(self, t: TokenLogits) -> TokenLogits:
        if not self.options.margin:
            return t
        s = self.options.scale
        true = s * with_margin(t.true / s, self.options.margin)
        return dataclasses.replace(t, true=true, mean=t.mean + (true - t.true) / self.n_classes)

    def statistics(self, t: TokenLogits) -> dict[str, Tensor]:
        s = self.scale()
        return {"cosine/true": t.true / s, "cosine/scale": torch.zeros_like(t.true) + s}
