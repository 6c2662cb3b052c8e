"""What does a model make of a mixture of two words? The mean of their embeddings as the last input, between the two outputs.

At the last position of a context the embedding is (1 - a) e_u + a e_v for words u and v of one token each. "LLMs are
single-threaded reasoners" (Wu et al. 2025, arXiv 2508.03440) finds that models follow the dominant part of such an input. With
P_u, P_v and P_m the predictions after u, after v and after the mixture at a = 1/2, and M = (P_u + P_v) / 2:

    single = A / (A + B),  A = KL(M || P_m),  B = min(KL(P_u || P_m), KL(P_v || P_m)),  A and B summed over places

is 0 where every output is the mixture of the two, and 1 where every one is that of one word. What is neither lies between, so
``off_path`` says how far P_m is from all mixtures, and ``geometric`` what single is of the normalised geometric mean of P_u and
P_v, which is P_m where logits are linear in the input. ``taken`` is the mean over places, weighted by JS(P_u, P_v), of

    argmin over b in [0, 1] of KL((1 - b) P_u + b P_v || P_m(a)).

Shapes: G places of a group, S positions, A mixtures of a place, V vocabulary, D width.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from analysis.compare.statistics import Floats, Ids
from analysis.compare.text import RunText
from analysis.synonyms.build_study import Controls, HeldOut, relations
from analysis.words.pair_lists import load_pairs
from analysis.words.pairs import Pair
from analysis.words.vocabulary import Vocabulary, corpus_words
from common.errors import InputError, note

from .base import PROBES, Measure, Probe

GROUPS = {
    "synonyms": "pairs of synonyms",
    "antonyms": "pairs of antonyms",
    "controls": "a word of such a pair and one as frequent as the other",
}
TENTHS = 10
_ALONG = "tenths of the second word's embedding"
_MEANING = {
    "single": ("1", "0: mixture of the outputs, 1: one of the two"),
    "geometric": ("1", "single of the geometric mean of the outputs"),
    "off_path": ("nats", "KL from the nearest mixture of the outputs"),
    "js": ("nats", "Jensen-Shannon divergence of the two outputs"),
}
_HALVINGS = 16
"""Of the interval in which b is looked for."""
_SMALLEST = 1e-300
"""Below any probability of a float32 softmax's logits that is not 0 in float64."""


@dataclass(frozen=True)
class Places:
    """Where the two words of each pair are put: a context, then one of them."""

    context_GS: Ids
    u_G: Ids
    v_G: Ids


@PROBES.register("soft_inputs")
class SoftInputs(Probe[dict[str, Places]]):
    """Whether a mixture of two words' embeddings as input gives the mixture of their outputs, or one of the two."""

    measures = (
        *(
            Measure(f"{key}_{group}", unit, f"{meaning}; {words}", panel=(f"{key}_*", group))
            for key, (unit, meaning) in _MEANING.items()
            for group, words in GROUPS.items()
        ),
        *(Measure(f"taken_{g}", "1", f"share of the second output; {w}", along=_ALONG) for g, w in GROUPS.items()),
    )

    @dataclass(frozen=True)
    class Options:
        pairs: Annotated[int, Field(ge=1)] = 50
        """Most pairs of each group, drawn from the built-in list."""
        places: Annotated[int, Field(ge=1)] = 4
        """Most places of each pair, drawn from those in the validation split at which one of its words stands."""
        context: Annotated[int, Field(ge=1)] = 24
        """Tokens before each place; at most the training length less one."""

    def prepare(self, text: RunText, *, seed: int) -> dict[str, Places]:
        vocabulary = Vocabulary(text.tokenizer)
        split = text.store.validation
        held_out = HeldOut(split.ids, split.document_starts, text.data.sequence_length, vocabulary)
        pairs = _token_pairs(text, vocabulary, seed)
        found = {group: self._places(held_out, own, [seed, *group.encode()]) for group, own in pairs.items()}
        counts = {group: len(np.unique([places.u_G, places.v_G], axis=1).T) for group, places in found.items()}
        if not any(counts.values()):
            raise InputError(
                "probe soft_inputs: no pair of the built-in list has two words of one token of which one stands in the "
                "validation split; use a larger data.vocab_size or data.validation_fraction"
            )
        told = [f"{count} pairs of {group} at {len(found[group].u_G)} places" for group, count in counts.items()]
        note(f"soft_inputs: {', '.join(told)}")
        return found

    def _places(self, held_out: HeldOut, pairs: list[tuple[int, int]], seed: list[int]) -> Places:
        """Pairs in random order, each at some places of either word, until there are enough pairs."""
        length, rng = min(self.options.context, held_out.length - 1), np.random.default_rng(seed)
        rows: list[tuple[int, int, int]] = []
        used = 0
        for number in rng.permutation(len(pairs)):
            at_C = np.concatenate([held_out.find((token,), spaced=True) for token in pairs[number]])
            at_C = rng.permutation(at_C[at_C >= length])[: self.options.places]
            rows += [(int(at), *pairs[number]) for at in at_C]
            used += len(at_C) > 0
            if used == self.options.pairs:
                break
        at_G, u_G, v_G = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        return Places(held_out.ids[at_G[:, None] + np.arange(-length, 0)], u_G, v_G)

    def measure(self, model: Any, prepared: dict[str, Places], *, seed: int) -> dict[str, float | Floats]:
        if "inputs_embeds" not in inspect.signature(model.forward).parameters:
            raise InputError(
                f"probe soft_inputs: {type(model).__name__} takes no inputs_embeds, so that it cannot read mixtures; leave it out"
            )
        found: dict[str, float | Floats] = {}
        for group, places in prepared.items():
            values = of_group(model, places)
            found |= {f"{key}_{group}": value for key, value in values.items()}
        return found


def of_group(model: Any, places: Places) -> dict[str, float | Floats]:
    """The measures of one group; NaN without a place."""
    if not len(places.u_G):
        return dict.fromkeys(("single", "geometric", "off_path", "js"), np.nan) | {"taken": np.full(TENTHS + 1, np.nan)}
    parts = [
        of_place(log_predictions(model, context_S, u, v))
        for context_S, u, v in zip(places.context_GS, places.u_G.tolist(), places.v_G.tolist(), strict=True)
    ]
    of = {key: np.array([part[key] for part in parts]) for key in parts[0]}
    js_G = of["js"]
    weight_G = js_G / js_G.sum() if js_G.sum() > 0 else np.full(len(js_G), np.nan)
    return {
        "single": _share(of["to_mean"], of["to_one"]),
        "geometric": _share(of["geometric_to_mean"], of["geometric_to_one"]),
        "off_path": float(of["off_path"].mean()),
        "js": float(js_G.mean()),
        "taken": weight_G @ of["taken"],
    }


def log_predictions(model: Any, context_S: Ids, u: int, v: int) -> Tensor:
    """(A, V): log P_m(a) for a = 0, 1/10, ..., 1, in float64."""
    ids_S = torch.from_numpy(np.append(context_S, [u, v])).to(model.device)
    e_SD = model.get_input_embeddings()(ids_S)
    a_A1 = torch.arange(TENTHS + 1, device=e_SD.device)[:, None] / TENTHS
    mixed_AD = torch.lerp(e_SD[-2], e_SD[-1], a_A1.to(e_SD.dtype))
    inputs_ASD = torch.cat([e_SD[:-2].expand(len(mixed_AD), -1, -1), mixed_AD[:, None]], dim=1)
    logits: Tensor = model(inputs_embeds=inputs_ASD, use_cache=False).logits[:, -1]
    return logits.double().log_softmax(-1)


def of_place(log_p_AV: Tensor) -> dict[str, Any]:
    """What is averaged, from log P_m(a): rows from a = 0, which is P_u, to a = 1, which is P_v."""
    log_u_V, log_m_V, log_v_V = log_p_AV[0], log_p_AV[len(log_p_AV) // 2], log_p_AV[-1]
    p_u_V, p_v_V = log_u_V.exp(), log_v_V.exp()
    middle_V = (p_u_V + p_v_V) / 2
    log_g_V = ((log_u_V + log_v_V) / 2).log_softmax(-1)
    b_A = nearest_share(p_u_V, p_v_V, log_p_AV)
    nearest_V = torch.lerp(p_u_V, p_v_V, b_A[len(b_A) // 2])
    to_mean, geometric_to_mean = (_kl(middle_V, log_V) for log_V in (log_m_V, log_g_V))
    to_one, geometric_to_one = (min(_kl(p_u_V, log_V), _kl(p_v_V, log_V)) for log_V in (log_m_V, log_g_V))
    return {
        "to_mean": to_mean,
        "to_one": to_one,
        "geometric_to_mean": geometric_to_mean,
        "geometric_to_one": geometric_to_one,
        "off_path": _kl(nearest_V, log_m_V),
        "js": (_kl(p_u_V, _log(middle_V)) + _kl(p_v_V, _log(middle_V))) / 2,
        "taken": b_A.cpu().numpy(),
    }


def nearest_share(p_u_V: Tensor, p_v_V: Tensor, log_p_AV: Tensor) -> Tensor:
    """(A,): argmin over b in [0, 1] of KL((1 - b) P_u + b P_v || P), for each P; it is convex in b.

    Its derivative, sum_k (P_v - P_u)_k (log mixture_k - log P_k), is at its root where the interval is halved until it is small.
    """
    change_V, log_p_AV = p_v_V - p_u_V, log_p_AV.clamp(min=np.log(_SMALLEST))

    def slope(b_A: Tensor) -> Tensor:
        return ((_log(p_u_V + b_A[:, None] * change_V) - log_p_AV) * change_V).sum(1)

    low_A, high_A = log_p_AV.new_zeros(len(log_p_AV)), log_p_AV.new_ones(len(log_p_AV))
    at_end_A = slope(high_A) <= 0
    at_start_A = slope(low_A) >= 0
    for _ in range(_HALVINGS):
        middle_A = (low_A + high_A) / 2
        rises_A = slope(middle_A) > 0
        low_A, high_A = torch.where(rises_A, low_A, middle_A), torch.where(rises_A, middle_A, high_A)
    return torch.where(at_start_A, 0.0, torch.where(at_end_A, 1.0, (low_A + high_A) / 2))


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=_SMALLEST).log()


def _kl(p_V: Tensor, log_q_V: Tensor) -> float:
    """KL(p || q), at least 0; what p gives no probability does not count."""
    return max(0.0, float((p_V * (_log(p_V) - log_q_V.clamp(min=np.log(_SMALLEST)))).sum()))


def _share(part_G: Floats, other_G: Floats) -> float:
    whole = float(part_G.sum() + other_G.sum())
    return float(part_G.sum()) / whole if whole > 0 else float("nan")


def _token_pairs(text: RunText, vocabulary: Vocabulary, seed: int) -> dict[str, list[tuple[int, int]]]:
    """The pairs of each group whose words are one token each after a space, as tokens."""
    pairs = load_pairs("builtin")
    words = corpus_words(text.store.train.ids, vocabulary)
    controls = Controls(words, lambda word: frozenset())
    rng = np.random.default_rng(seed)

    def tokens(pair: Pair) -> tuple[int, int] | None:
        first, second = (vocabulary.single_token(word) for word in (pair.word_a, pair.word_b))
        return None if first is None or second is None else (first, second)

    groups = {"synonyms": pairs.synonyms, "antonyms": pairs.antonyms}
    known = {name: [pair for pair in group if tokens(pair)] for name, group in groups.items()}
    related = relations(pairs)[0]
    known["controls"] = []
    for pair in known["synonyms"]:
        others = controls.choose(pair.word_b, 1, related[pair.word_a] | related[pair.word_b])
        if others:
            known["controls"].append(Pair(pair.word_a, str(rng.choice(others))))
    return {name: [found for pair in group if (found := tokens(pair))] for name, group in known.items()}
