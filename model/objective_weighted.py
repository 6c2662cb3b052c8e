"""The family of losses whose gradient is that of cross-entropy times a weight c for each token.

Any loss that is a function of p_y alone has dL/dz_k = c (P_k - [k = y]) with c = -p_y dL/dp_y: focal loss, Poly-1, generalised
cross-entropy and others differ in c and in nothing else. TFSD belongs to it, with a c that depends on z_y too.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .objectives import Objective, TokenLogits, negative_log_likelihood, softplus


class Weighted(Objective):
    """Base of the family. ``loss`` is the value, differentiated by autograd; with ``detached`` its gradient is c (P - onehot)
    with c held fixed, whatever the value."""

    shift_invariant = True

    @abstractmethod
    def weight(self, t: TokenLogits) -> Tensor:
        """c of each token (N,)."""

    @abstractmethod
    def value(self, t: TokenLogits) -> Tensor:
        """The loss of each token (N,)."""

    def loss(self, t: TokenLogits) -> Tensor:
        if not self.detached:
            return self.value(t)
        carrier = self.weight(t).detach() * negative_log_likelihood(t)
        return carrier + (self.value(t) - carrier).detach()

    def terms(self, t: TokenLogits) -> tuple[Tensor, Mapping[str, Any]]:
        return self.loss(t), {"objective/weight": self.weight(t).detach()}


def log_true(t: TokenLogits) -> Tensor:
    """log p_y."""
    return -softplus(t.negatives - t.true)


def log_others(t: TokenLogits) -> Tensor:
    """log(1 - p_y), exact where p_y is near 1."""
    return -softplus(t.true - t.negatives)
