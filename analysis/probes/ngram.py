"""Which statistics of a corpus does a model have? Its distance to the 1-, 2- and 3-gram distributions of the training text.

The distributions are those of ngram_counts.py. The same distributions are also added to the logits, z + lambda log q_n, as Ahmed
(2026, arXiv 2601.16224, "Limits of n-gram style control for LLMs via logit-space injection") does with those of a style. It
reports one narrow range in which that helps, around lambda = 0.1 on one of its corpora, and collapse beyond it.

Shapes: B windows, T positions, P tokens of a prompt, V vocabulary, L lambdas, R continuations at all lambdas.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from analysis.compare.statistics import Floats, Ids
from analysis.compare.text import RunText

from .base import PROBES, Measure, Probe
from .ngram_counts import ORDERS, NGramModel, contexts_of

LAMBDAS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_ALONG = "lambda"
_MEANING = {
    "kl": ("nats", "KL(q_{n} || P), mean over positions"),
    "tv": ("1", "total variation between q_{n} and P, mean over positions"),
    "nll": ("nats/token", "NLL of q_{n} itself at the same positions"),
}
CONTINUATIONS = 8
"""Windows that are continued at each lambda."""
LONGEST = 32
"""Most tokens of a continuation."""


@dataclass(frozen=True)
class Held:
    """Windows of the validation split, and the n-grams of the training split."""

    x_BT: Ids
    y_BT: Ids
    grams: NGramModel


@PROBES.register("ngram")
class NGram(Probe[Held]):
    """Distance to the training text's 1-, 2- and 3-gram distributions q_n, and what adding log q_n to the logits does."""

    measures = (
        *(
            Measure(f"{key}_{n}", unit, meaning.format(n=n), panel=(f"{key}_*", f"{n}"))
            for key, (unit, meaning) in _MEANING.items()
            for n in ORDERS
        ),
        Measure("best_lambda", "1", "lambda of the grid with the lowest NLL of z + lambda log q_n"),
        Measure("gain_injected", "nats/token", "how much lower that NLL is than the one at lambda = 0"),
        Measure("nll_injected", "nats/token", "NLL of z + lambda log q_n", along=_ALONG),
        Measure(
            "distinct_2", "1", "different pairs of tokens in a greedy continuation, of all its pairs", along=_ALONG
        ),
    )

    @dataclass(frozen=True)
    class Options:
        windows: Annotated[int, Field(ge=1)] = 32
        """Windows of the training length, drawn from the validation split."""
        counted: Annotated[int, Field(ge=1, le=1 << 30)] = 1 << 22
        """Most tokens at the beginning of the training split whose n-grams are counted; about 40 bytes each."""
        injected: Annotated[int, Field(ge=1, le=3)] = 2
        """n of the distributions whose logarithm is added to the logits."""

    def prepare(self, text: RunText, *, seed: int) -> Held:
        grams = NGramModel(np.asarray(text.store.train.ids[: self.options.counted]), text.store.vocab_size)
        return Held(*text.windows(self.options.windows, seed=seed), grams)

    def places(self, along: str) -> list[str]:
        return [f"{value:g}" for value in LAMBDAS]

    def measure(self, model: Any, prepared: Held, *, seed: int) -> dict[str, float | Floats]:
        parts = [
            self._window(model, prepared.grams, x_T, y_T) for x_T, y_T in zip(prepared.x_BT, prepared.y_BT, strict=True)
        ]
        kl, tv, nll = (np.mean([part[i] for part in parts], axis=0) for i in range(3))
        injected_L = np.mean([part[3] for part in parts], axis=0)
        best = int(injected_L.argmin())
        return {
            **{f"kl_{n}": float(kl[n - 1]) for n in ORDERS},
            **{f"tv_{n}": float(tv[n - 1]) for n in ORDERS},
            **{f"nll_{n}": float(nll[n - 1]) for n in ORDERS},
            "best_lambda": LAMBDAS[best],
            "gain_injected": float(injected_L[0] - injected_L[best]),
            "nll_injected": injected_L,
            "distinct_2": self._distinct(model, prepared),
        }

    def _window(self, model: Any, grams: NGramModel, x_T: Ids, y_T: Ids) -> tuple[Floats, Floats, Floats, Floats]:
        """Of one window, means over its positions: KL, total variation and NLL by n, and the NLL by lambda."""
        z_TV = model(input_ids=torch.from_numpy(x_T[None]).to(model.device), use_cache=False).logits[0].double()
        q_nTV = [torch.from_numpy(q_TV).to(z_TV.device) for q_TV in grams.distributions(contexts_of(x_T))]
        log_p_TV = z_TV.log_softmax(-1)[:, : grams.vocabulary]
        y_T1 = torch.from_numpy(y_T).to(z_TV.device)[:, None]
        kl, tv = zip(*(distances(q_TV, log_p_TV) for q_TV in q_nTV), strict=True)
        nll = [-q_TV.gather(1, y_T1).log().mean() for q_TV in q_nTV]
        log_q_TV = q_nTV[self.options.injected - 1].log()
        injected = [injected_nll(log_p_TV, log_q_TV, y_T1, value) for value in LAMBDAS]
        kl_n, tv_n, nll_n, injected_L = (torch.stack(list(one)).cpu().numpy() for one in (kl, tv, nll, injected))
        return kl_n, tv_n, nll_n, injected_L

    def _distinct(self, model: Any, prepared: Held) -> Floats:
        """distinct_2 at each lambda, the mean over continuations of the windows' first halves."""
        length = prepared.x_BT.shape[1]
        prompt_BP = prepared.x_BT[:CONTINUATIONS, : max(1, length // 2)]
        steps = min(LONGEST, length - prompt_BP.shape[1])
        if steps < 2:
            return np.full(len(LAMBDAS), np.nan)
        lambda_R = np.repeat(LAMBDAS, len(prompt_BP))
        prompt_RP = np.tile(prompt_BP, (len(LAMBDAS), 1))
        made_RS = continued(model, prepared.grams, prompt_RP, lambda_R, self.options.injected, steps)
        shares = [len(set(pairwise(made_S))) / (steps - 1) for made_S in made_RS.tolist()]
        return np.reshape(shares, (len(LAMBDAS), -1)).mean(1)


def distances(q_NV: Tensor, log_p_NV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(q || P) and the total variation, means over positions; P may have more tokens than these."""
    kl_N = (q_NV * (q_NV.log() - log_p_NV)).sum(1)
    return kl_N.mean(), (q_NV - log_p_NV.exp()).clamp(min=0).sum(1).mean()


def injected_nll(log_p_NV: Tensor, log_q_NV: Tensor, y_N1: Tensor, factor: float) -> Tensor:
    """NLL of softmax(z + factor log q), mean over positions, over the tokens of q."""
    return -(log_p_NV + factor * log_q_NV).log_softmax(1).gather(1, y_N1).mean()


def continued(model: Any, grams: NGramModel, prompt_RP: Ids, lambda_R: Floats, order: int, steps: int) -> Ids:
    """(R, steps): greedy continuations of the prompts by z + lambda log q_n, each with a lambda of its own."""
    text_RS, past = prompt_RP, None
    for _ in range(steps):
        read_RS = text_RS if past is None else text_RS[:, -1:]
        out = model(input_ids=torch.from_numpy(read_RS).to(model.device), past_key_values=past, use_cache=True)
        past, z_RV = out.past_key_values, out.logits[:, -1, : grams.vocabulary].double().cpu().numpy()
        context_R2 = np.stack([contexts_of(text_S[-2:])[-1] for text_S in text_RS])
        z_RV = z_RV + lambda_R[:, None] * np.log(grams.distributions(context_R2)[order - 1])
        text_RS = np.append(text_RS, z_RV.argmax(1)[:, None], axis=1)
    return text_RS[:, prompt_RP.shape[1] :]
