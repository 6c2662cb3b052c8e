"""A mix of cross-entropy and TFSD."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .objective_tfsd import TFSD
from .objective_weighted import Weighted
from .objectives import TokenLogits, negative_log_likelihood
from .registry import register_objective


@register_objective("ce_tfsd")
class CrossEntropyAndTFSD(TFSD):
    """share * CE + (1 - share) * TFSD: c = share + (1 - share) c_TFSD, so that no token is without a gradient."""

    @dataclass(frozen=True)
    class Options:
        share: float = 0.1
        """Of cross-entropy; from 0 (TFSD) to 1."""

        def __post_init__(self) -> None:
            if not 0 <= self.share <= 1:
                raise ValueError(f"share must be from 0 to 1, not {self.share}")

    def weight(self, t: TokenLogits) -> Tensor:
        return self.options.share + (1 - self.options.share) * super().weight(t)

    def value(self, t: TokenLogits) -> Tensor:
        return self.options.share * negative_log_likelihood(t) + (1 - self.options.share) * super().value(t)

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Any]]:
        return Weighted.terms(self, t)
