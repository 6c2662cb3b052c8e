"""The mixture head: a mixture of softmaxes. Shapes: N tokens, C tokens of one chunk, K components, V vocabulary, D width."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .classes import AffineClasses, Classes, LogitGradient
from .heads import AffineHead
from .precision import product, wide_dtype
from .registry import register_head

COMPONENTS = (1, 64)
"""Limits of K."""


@register_head("mixture")
class MixtureHead(AffineHead):
    """P = sum_i pi_i softmax(W tanh(A_i h + b_i)): a mixture of K softmaxes (Yang et al. 2018, arXiv 1711.03953).

    pi = softmax(B h) depends on the token. Logits are z_k = log P_k, a log-sum-exp over components of log pi_i plus the
    component's log-softmax, so log Z = 0. The published code takes log(P + 1e-8), whose NLL cannot exceed 18.4 and which is
    kindest to rare tokens; nothing is added here. Its dropout and the decoder's bias are left out.

    Not affine: the log-probabilities have full rank. Every component's softmax needs all of the vocabulary, so a chunk costs K
    times the linear head's products and once more those of the logits, again in the gradient; it holds four chunks of logits.
    Projections start at U(-1/sqrt(D), 1/sqrt(D)), biases and B at 0 (all components equally likely): tanh has a root mean
    square of 0.5, and logits start with half the linear head's spread.
    """

    @dataclass(frozen=True)
    class Options:
        tied: bool = True
        """Share one parameter between input and output embedding."""
        components: int = 4
        """K; the paper has 10 to 15."""

        def __post_init__(self) -> None:
            if not COMPONENTS[0] <= self.components <= COMPONENTS[1]:
                raise ValueError(f"components must be from {COMPONENTS[0]} to {COMPONENTS[1]}, not {self.components}")

    def __init__(self, hidden_size: int, vocab_size: int, options: Options) -> None:
        super().__init__(hidden_size, vocab_size, options)
        self.projection = nn.Parameter(torch.empty(options.components * hidden_size, hidden_size))
        self.projection_bias = nn.Parameter(torch.empty(options.components * hidden_size))
        self.prior = nn.Parameter(torch.empty(options.components, hidden_size))

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.projection.shape[1])
        nn.init.uniform_(self.projection, -bound, bound)
        nn.init.zeros_(self.projection_bias)
        nn.init.zeros_(self.prior)

    def features(self, h_ND: Tensor, dtype: torch.dtype) -> Tensor:
        """The states of all components, then their log pi: (N, K D + K). Rounded log pi are other log pi; P stays normalised,
        as a softmax of z."""
        h_ND = h_ND.to(dtype)
        states_NF = F.linear(h_ND, self.projection.to(dtype), self.projection_bias.to(dtype)).tanh()
        prior_NK = F.linear(h_ND, self.prior.to(dtype)).to(wide_dtype(dtype)).log_softmax(1)
        return torch.cat([states_NF, prior_NK.to(dtype)], 1)

    def parts(self, f_CD: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """The components' states, K times (C, D), and log pi (C, K), of features."""
        components = self.options.components
        return f_CD[:, :-components].chunk(components, 1), f_CD[:, -components:].to(wide_dtype(f_CD.dtype))

    def logits(self, f_CD: Tensor, *classes: Tensor) -> Tensor:
        states, prior_CK = self.parts(f_CD)
        joint = [
            product(s_CD, classes[0].T).log_softmax(1) + prior_C1
            for s_CD, prior_C1 in zip(states, prior_CK.split(1, 1), strict=True)
        ]
        return torch.stack(joint).logsumexp(0)

    def vocabulary(self, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> Classes:
        return MixtureClasses(self, tensors, dtype, with_gradient)


class MixtureClasses(AffineClasses):
    """Classes of a mixture: one component at a time, so that no tensor has K times a chunk's logits."""

    head: MixtureHead

    def __init__(self, head: MixtureHead, tensors: tuple[Tensor, ...], dtype: torch.dtype, with_gradient: bool) -> None:
        super().__init__(head, tensors, dtype, with_gradient)
        self.with_gradient = with_gradient
        self.z_CV: Tensor | None = None
        """The logits of the last chunk; the loss overwrites those it is given."""
        self.log_z: list[Tensor] = []
        """Of each component of the last chunk, the log-sum-exp of its logits (C, 1) without log pi."""

    def joint(self, state_CD: Tensor, prior_C1: Tensor, log_z_C1: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """log(pi_i P_i) of one component, in the base class's buffer, and the log-sum-exp of its logits."""
        joint_CV = super().logits(state_CD)
        log_z_C1 = joint_CV.logsumexp(1, keepdim=True) if log_z_C1 is None else log_z_C1
        return joint_CV.add_(prior_C1 - log_z_C1), log_z_C1

    def logits(self, f_CD: Tensor) -> Tensor:
        states, prior_CK = self.head.parts(f_CD)
        self.log_z, z_CV = [], None
        for state_CD, prior_C1 in zip(states, prior_CK.split(1, 1), strict=True):
            joint_CV, log_z_C1 = self.joint(state_CD, prior_C1)
            z_CV = joint_CV.clone() if z_CV is None else torch.logaddexp(z_CV, joint_CV, out=z_CV)
            self.log_z.append(log_z_C1)
        assert z_CV is not None
        self.z_CV = z_CV.clone() if self.with_gradient else None
        return z_CV

    def mean_logits(self, f_CD: Tensor, z_CV: Tensor) -> Tensor:
        return z_CV.mean(1)

    def accumulate(self, gradient: LogitGradient, f_CD: Tensor) -> Tensor:
        """Component i has the share r_k = pi_i P_ik / P_k of dz_k; through its softmax, dz_k r_k - P_ik sum_j dz_j r_j."""
        assert self.z_CV is not None
        if gradient.uniform_C is None:
            dz_CV, scale_C = gradient.weights_CV.to(gradient.scale_C.dtype), gradient.scale_C
        else:
            dz_CV, scale_C = gradient.dense(), torch.ones_like(gradient.scale_C)
        states, prior_CK = self.head.parts(f_CD)
        df, dprior = [], []
        for state_CD, prior_C1, log_z_C1 in zip(states, prior_CK.split(1, 1), self.log_z, strict=True):
            joint_CV, _ = self.joint(state_CD, prior_C1, log_z_C1)
            ds_CV = torch.sub(joint_CV, self.z_CV).exp_().mul_(dz_CV)
            total_C1 = ds_CV.sum(1, keepdim=True)
            ds_CV.addcmul_(joint_CV.sub_(prior_C1).exp_(), total_C1, value=-1)
            df.append(super().accumulate(LogitGradient(ds_CV.to(f_CD.dtype), scale_C), state_CD))
            dprior.append(total_C1 * scale_C[:, None])
        return torch.cat([*df, *dprior], 1)
