"""Does TFSD's target soften for hard tokens? Its weight and the entropy of its target against difficulty, frequency and place.

With L = log sum_{k != y} exp(z_k), the target Q of TFSD is Q_y = sigmoid(-L) at the next token and sigmoid(L) R_k elsewhere, R
being the softmax of the other logits, which P shares; c = Q_y (1 - exp(z_y)) is the factor on cross-entropy's gradient
(docs/mathematics.md, section 2). All of it is taken in float64 from the logits as they are, whatever head they come from.

Shapes: B windows, T positions, V vocabulary, C positions of one chunk, N positions of all windows, K bins.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from analysis.compare.ranking import rank_correlation
from analysis.compare.statistics import Floats, Ids
from analysis.compare.text import RunText
from model.objectives import negative_log_likelihood, of_rows, softplus

from .base import PROBES, Measure, Probe

BINS = 10
CHUNK = 256
"""Positions whose logits are held in float64 at once."""
NO_GRADIENT = 1e-6
"""Length of P - Q below which its direction is rounding."""
CONSTANT = 1e-3
"""Range of c, or of H(Q) in nats, up to which it does not vary: where c is 1 for every token, its order says nothing."""
_DIFFICULTY, _RARITY, _PLACE = (
    "tenth of the positions, the lowest NLL first",
    "tenth of the positions, the rarest next token first",
    "tenth of the positions, the first of a window first",
)


@dataclass(frozen=True)
class Held:
    """Windows, and how often each token occurs in the training text."""

    x_BT: Ids
    y_BT: Ids
    count_V: Ids


@PROBES.register("adaptive")
class Adaptive(Probe[Held]):
    """TFSD's weight c and target Q by a token's difficulty, frequency and position, and how far P is from Q."""

    measures = (
        Measure("weight", "1", "mean c; negative for a target with a logit above 0, which no metric head has"),
        Measure("weight_difficulty_rank", "1", "rank correlation of c with the NLL; above 0: hard tokens count more"),
        Measure("entropy_difficulty_rank", "1", "the same of H(Q); above 0: the target is softer for hard tokens"),
        Measure("weight_frequency_rank", "1", "rank correlation of c with the next token's count in the training text"),
        Measure("entropy_frequency_rank", "1", "the same of H(Q)"),
        Measure("weight_position_rank", "1", "rank correlation of c with the position in the window"),
        Measure("gradient_kept", "1", "sum of c |g| over the sum of |g|, g = P - onehot: the share of CE's gradient"),
        Measure("target_gap", "1", "mean |P_y - Q_y|"),
        Measure("negatives_gap", "1", "mean sum over the other tokens of |P_k - Q_k|; by the mathematics the same"),
        Measure("ce_gap", "1", "both gaps of cross-entropy's target: mean 1 - P_y"),
        Measure("dark_knowledge", "1", "largest share of P - Q orthogonal to CE's P - onehot; by the mathematics 0"),
        Measure("weight_by_difficulty", "1", "mean c", along=_DIFFICULTY),
        Measure("entropy_by_difficulty", "nats", "mean H(Q)", along=_DIFFICULTY),
        Measure("nll_by_difficulty", "nats/token", "mean NLL", along=_DIFFICULTY),
        Measure("gradient_kept_by_difficulty", "1", "gradient_kept of these positions", along=_DIFFICULTY),
        Measure("weight_by_frequency", "1", "mean c", along=_RARITY),
        Measure("nll_by_frequency", "nats/token", "mean NLL", along=_RARITY),
        Measure("weight_by_position", "1", "mean c", along=_PLACE),
    )

    @dataclass(frozen=True)
    class Options:
        windows: Annotated[int, Field(ge=1)] = 64
        """Windows of the training length, drawn from the validation split."""

    def prepare(self, text: RunText, *, seed: int) -> Held:
        return Held(*text.windows(self.options.windows, seed=seed), text.training_counts())

    def measure(self, model: Any, prepared: Held, *, seed: int) -> dict[str, float | Floats]:
        found = [
            token_values(z_CV.double(), y_C)
            for z_TV, y_T in window_logits(model, prepared.x_BT, prepared.y_BT)
            for z_CV, y_C in zip(z_TV.split(CHUNK), y_T.split(CHUNK), strict=True)
        ]
        of = {key: torch.cat([one[key] for one in found]).cpu().numpy() for key in found[0]}
        count_N = prepared.count_V[prepared.y_BT.ravel()]
        position_N = np.tile(np.arange(prepared.y_BT.shape[1]), len(prepared.y_BT))
        return {
            "weight": float(of["weight"].mean()),
            "weight_difficulty_rank": rank_correlation(of["weight"], of["nll"], CONSTANT),
            "entropy_difficulty_rank": rank_correlation(of["entropy"], of["nll"], CONSTANT),
            "weight_frequency_rank": rank_correlation(of["weight"], count_N, CONSTANT),
            "entropy_frequency_rank": rank_correlation(of["entropy"], count_N, CONSTANT),
            "weight_position_rank": rank_correlation(of["weight"], position_N, CONSTANT),
            "gradient_kept": _share(of["kept"], of["gradient"]),
            **{key: float(of[key].mean()) for key in ("target_gap", "negatives_gap", "ce_gap")},
            "dark_knowledge": float(np.fmax.reduce(of["dark"])),
            **_arrays(of, count_N, position_N),
        }


def window_logits(model: Any, x_BT: Ids, y_BT: Ids) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits (T, V) of each window, and its targets (T,). Those that rounding lifts above 0, the most that a bounded head
    gives, are 0."""
    bounded = bool(getattr(getattr(model, "lm_head", None), "bounded", False))
    for x_T, y_T in zip(x_BT, y_BT, strict=True):
        z_TV = model(input_ids=torch.from_numpy(x_T[None]).to(model.device), use_cache=False).logits[0]
        yield (z_TV.clamp(max=0) if bounded else z_TV), torch.from_numpy(y_T).to(model.device)


def token_values(z_NV: Tensor, y_N: Tensor) -> dict[str, Tensor]:
    """What is averaged, of each token (N,), in the dtype of the logits. ``dark``: NaN where P - Q is no more than rounding."""
    t = of_rows(z_NV, y_N, torch.zeros_like(z_NV[:, 0]))
    y_N1, negatives_N = y_N[:, None], t.negatives
    others_NV = z_NV.scatter(1, y_N1, -torch.inf)
    r_NV = (others_NV - negatives_N[:, None]).exp()
    other_q_N, binary_N = negatives_N.sigmoid(), _binary_entropy(negatives_N)
    missed_N = (negatives_N - t.true).sigmoid()  # 1 - P_y
    length_N = (1 + r_NV.square().sum(1)).sqrt()  # of P - onehot, or of P - Q, over its entry at the target
    p_NV, q_NV = z_NV.softmax(1), z_NV.scatter(1, y_N1, 0.0).softmax(1)
    return {
        "nll": negative_log_likelihood(t),
        "weight": weight(t.true, negatives_N),
        "entropy": binary_N + other_q_N * torch.special.entr(r_NV).sum(1),
        "gradient": missed_N * length_N,
        "kept": gap(t.true, negatives_N) * length_N,
        "target_gap": gap(t.true, negatives_N).abs(),
        "negatives_gap": (p_NV - q_NV).abs().scatter(1, y_N1, 0.0).sum(1),
        "ce_gap": missed_N,
        "dark": _dark_share(p_NV - q_NV, p_NV.scatter(1, y_N1, -missed_N[:, None])),
    }


def weight(true_N: Tensor, negatives_N: Tensor) -> Tensor:
    """c = (1 - exp(z_y)) / (1 + exp(L)), which is the model's own where z_y <= 0, without its overflow beyond."""
    below = -(-negatives_N).sigmoid() * torch.expm1(true_N.clamp(max=0))
    above = torch.expm1(-true_N.clamp(min=0)) * (true_N - softplus(negatives_N)).exp()
    return torch.where(true_N <= 0, below, above)


def gap(true_N: Tensor, negatives_N: Tensor) -> Tensor:
    """Q_y - P_y = c (1 - P_y), as a product of factors from -1 to 1."""
    below = -(-negatives_N).sigmoid() * (negatives_N - true_N).sigmoid() * torch.expm1(true_N.clamp(max=0))
    above = negatives_N.sigmoid() * (true_N - negatives_N).sigmoid() * torch.expm1(-true_N.clamp(min=0))
    return torch.where(true_N <= 0, below, above)


def _binary_entropy(log_odds_N: Tensor) -> Tensor:
    """Entropy of a coin; both terms are positive, so that nothing cancels."""
    size_N = log_odds_N.abs()
    return softplus(-size_N) + size_N * (-size_N).sigmoid()


def _dark_share(of_tfsd_NV: Tensor, of_ce_NV: Tensor) -> Tensor:
    """The part of one gradient that is orthogonal to the other, as a share of its length."""
    size_N1 = of_tfsd_NV.norm(dim=1, keepdim=True)
    direction_NV = of_ce_NV / of_ce_NV.abs().amax(1, keepdim=True)  # squares of the smallest would have few digits left
    direction_NV = direction_NV / direction_NV.norm(dim=1, keepdim=True)
    rest_NV = of_tfsd_NV - (of_tfsd_NV * direction_NV).sum(1, keepdim=True) * direction_NV
    return torch.where(size_N1 > NO_GRADIENT, rest_NV.norm(dim=1, keepdim=True) / size_N1, torch.nan)[:, 0]


def _share(part_N: Floats, whole_N: Floats) -> float:
    return float(part_N.sum() / whole_N.sum()) if whole_N.sum() > 0 else float("nan")


def _arrays(of: dict[str, Floats], count_N: Ids, position_N: Ids) -> dict[str, Floats]:
    """Means over bins of equal size."""
    bins = min(BINS, len(count_N))
    hard_K, rare_K, place_K = (
        np.array_split(np.argsort(by_N, kind="stable"), bins) for by_N in (of["nll"], count_N, position_N)
    )
    found = {f"{key}_by_difficulty": [of[key][at].mean() for at in hard_K] for key in ("weight", "entropy", "nll")}
    found["gradient_kept_by_difficulty"] = [_share(of["kept"][at], of["gradient"][at]) for at in hard_K]
    found |= {f"{key}_by_frequency": [of[key][at].mean() for at in rare_K] for key in ("weight", "nll")}
    found["weight_by_position"] = [of["weight"][at].mean() for at in place_K]
    return {key: np.array(values) for key, values in found.items()}
