"""Distillation from an earlier checkpoint, such as that of a run of the same model (born-again networks)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .objectives import Objective, TokenLogits, check_temperature, negative_log_likelihood
from .registry import register_objective
from .teaching import Teacher

TINY = 1e-7
"""Added to the standard deviation of logits that are standardised, as by the authors."""


def standardised(z_NV: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 over the vocabulary."""
    return (z_NV - z_NV.mean(1, keepdim=True)) / (z_NV.std(1, keepdim=True) + TINY)


class FromTeacher(Objective):
    """Base of objectives whose options name a teacher."""

    uses_rows = True
    shift_invariant = True

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.teacher = Teacher(options.teacher)


@register_objective("distill")
class Distillation(FromTeacher):
    """(1 - alpha) CE + alpha T^2 KL(R || P), R and P being the teacher's and the own prediction at temperature T (Hinton et al.
    2015, arXiv 1503.02531; with a teacher of the same size: born-again networks, Furlanello et al. 2018, arXiv 1805.04770).

    ``standardise`` takes both from logits with mean 0 and standard deviation 1 over the vocabulary (Sun et al. 2024, arXiv
    2403.01427): then the second part's gradient changes neither mean nor scale of the logits, which only CE does.
    """

    @dataclass(frozen=True)
    class Options:
        teacher: str
        """A checkpoint of an earlier run with the same tokenizer: RUN/checkpoints/step_N."""
        alpha: float = 0.5
        """Share of the teacher in the loss."""
        temperature: float = 1.0
        """T, of teacher and student."""
        standardise: bool = False
        """Standardise the logits of both."""

        def __post_init__(self) -> None:
            if not 0 <= self.alpha <= 1:
                raise ValueError(f"alpha must be from 0 to 1, not {self.alpha}")
            check_temperature(self.temperature)

    def loss(self, t: TokenLogits) -> Tensor:
        assert t.rows is not None and t.taught is not None
        log_r_NV, log_p_NV = (self._softened(z_NV) for z_NV in (t.taught, t.rows))
        kl_N = (log_r_NV.exp() * (log_r_NV - log_p_NV)).sum(1)
        alpha, temperature = self.options.alpha, self.options.temperature
        return (1 - alpha) * negative_log_likelihood(t) + alpha * temperature**2 * kl_N

    def _softened(self, z_NV: Tensor) -> Tensor:
        z_NV = standardised(z_NV) if self.options.standardise else z_NV
        return (z_NV / self.options.temperature).log_softmax(1)


@register_objective("nkd")
class NormalisedDistillation(FromTeacher):
    """CE + alpha NKD with NKD = -r_y log p_y + gamma T^2 CE(R', P'), R' and P' being teacher and student at temperature T without
    the target, renormalised (Yang et al. 2023, arXiv 2303.13005, and its code). r_y is the teacher's probability of the target
    at temperature 1.

    Were the teacher the student itself, the last part would have no gradient, and c be 1 + alpha p_y: that of poly1, and the
    opposite of TFSD's weighting.
    """

    @dataclass(frozen=True)
    class Options:
        teacher: str
        """A checkpoint of an earlier run with the same tokenizer: RUN/checkpoints/step_N."""
        alpha: float = 1.0
        """Weight of NKD beside cross-entropy."""
        gamma: float = 1.5
        """Weight of its second part."""
        temperature: float = 1.0
        """T, of teacher and student in the second part."""
        standardise: bool = False
        """Standardise the logits of both in the second part."""

        def __post_init__(self) -> None:
            if not 0 <= self.alpha <= 1000:
                raise ValueError(f"alpha must be from 0 to 1000, not {self.alpha}")
            if not 0 <= self.gamma <= 1000:
                raise ValueError(f"gamma must be from 0 to 1000, not {self.gamma}")
            check_temperature(self.temperature)

    def loss(self, t: TokenLogits) -> Tensor:
        assert t.rows is not None and t.target is not None and t.taught is not None
        y_N1 = t.target[:, None]
        sure_N = t.taught.softmax(1).gather(1, y_N1).squeeze(1)
        both = (standardised(z_NV) if self.options.standardise else z_NV for z_NV in (t.taught, t.rows))
        others = (z_NV.scatter(1, y_N1, -1e30) / self.options.temperature for z_NV in both)
        log_r_NV, log_p_NV = (z_NV.log_softmax(1) for z_NV in others)
        rest_N = -(log_r_NV.exp() * log_p_NV).sum(1)
        nll_N, options = negative_log_likelihood(t), self.options
        return nll_N + options.alpha * (sure_N * nll_N + options.gamma * options.temperature**2 * rest_N)
