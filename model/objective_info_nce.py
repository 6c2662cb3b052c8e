"""InfoNCE with the other targets of the batch as negatives."""

from dataclasses import dataclass

from torch import Tensor

from .objectives import Objective, TokenLogits, check_temperature, softplus
from .registry import register_objective


@register_objective("info_nce")
class InfoNCE(Objective):
    """-log of the target's share in a softmax over the distinct targets of the batch alone (InfoNCE, van den Oord et al. 2018,
    arXiv 1807.03748), a batch being one micro-batch on one rank.

    A token is no negative of its own wherever else it is a target, and each other one is one negative however often it is a
    target. That is the softmax over the targets of all positions, any of the same token being right, with the logarithm of
    their frequency in the batch subtracted from the logits (the logQ correction of Yi et al. 2019, doi
    10.1145/3298689.3346996). What this leaves is that a rare token is seldom in a batch: at the optimum a logit is about log p_k
    less the logarithm of the probability of being in one. There the NLL, over the whole vocabulary, is not at its least, and how
    far from it depends on the size of the batch. Tokens that are no targets get no gradient.
    """

    uses_batch = True
    shift_invariant = True
    mixes_positions = "the negatives of a token are the targets of its micro-batch, those of later positions too"

    @dataclass(frozen=True)
    class Options:
        temperature: float = 1.0
        """T, by which logits are divided; the loss is not rescaled."""

        def __post_init__(self) -> None:
            check_temperature(self.temperature)

    def loss(self, t: TokenLogits) -> Tensor:
        assert t.rivals is not None
        rivals_N = (t.rivals / self.options.temperature).logsumexp(1)
        return softplus(rivals_N - t.true / self.options.temperature)
