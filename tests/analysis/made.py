"""Studies and scores without a text or a model, and models whose predictions are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from analysis.compare.arms import Arm, Member
from analysis.synonyms.measure_models import ModelResult
from analysis.synonyms.metrics import KEYS, Values
from analysis.synonyms.score import WordScores
from analysis.synonyms.study import Candidate, Item, Role, Study, Unit
from analysis.words.vocabulary import Vocabulary

Floats = npt.NDArray[np.float64]
VIEWS = ("raw", "fitted", "matched")


def unit(item: int, lemma: str, *roles: Role, weights: Sequence[float] = (), single: bool = True) -> Unit:
    """A unit of the word ``lemma`` and candidates of these roles."""
    weight = dict(enumerate(weights))
    candidates = [Candidate(f" {lemma}{number}", role, weight.get(number, 1.0)) for number, role in enumerate(roles)]
    return Unit(item, lemma, (Candidate(f" {lemma}", Role.WORD), *candidates), single)


def study_of(
    units: Sequence[Unit], unit_M: Sequence[int], *, documents: int = 6, shuffled: Sequence[int] = ()
) -> Study:
    """Query m is unit ``unit_M[m]`` at place m; those in ``shuffled`` are at the places of other words."""
    queries = len(unit_M)
    shuffled_M = np.zeros(queries, dtype=bool)
    shuffled_M[list(shuffled)] = True
    return Study(
        source="made",
        items=tuple(Item(f"item {i}", "domain", "n") for i in range(1 + max(unit.item for unit in units))),
        left_out=(),
        units=tuple(units),
        passages=(),
        passage_C=np.arange(queries) // 2,
        position_C=np.arange(queries) % 2,
        document_C=np.arange(queries) % documents,
        place_M=np.arange(queries),
        unit_M=np.array(unit_M),
        shuffled_M=shuffled_M,
        vocabulary=cast(Vocabulary, None),  # the metrics need no tokens
        end_of_text=0,
    )


def scores_of(
    study: Study, fill: Callable[[Unit], tuple[Floats, npt.NDArray[np.int64]]], entropy_XM: Floats
) -> WordScores:
    """The scores with, for each query, ``fill(unit)``: log-probabilities (X, K) and ranks (K,)."""
    found = [fill(study.units[index]) for index in study.unit_M]
    return WordScores(
        start_M=np.cumsum([0, *(len(rank_K) for _, rank_K in found)]),
        log_p_XA=np.concatenate([log_p_XK for log_p_XK, _ in found], axis=1),
        rank_A=np.concatenate([rank_K for _, rank_K in found]),
        entropy_XM=entropy_XM,
    )


def arm(label: str, *seeds: int | None) -> Arm:
    """An arm with a member for each seed."""
    members = [Member(f"{label}{seed}", Path(label), Path(label), seed) for seed in seeds]
    return Arm(label, tuple(members))


def metrics_of(queries: int, fill: Callable[[str], Floats]) -> Values:
    """Metrics with ``fill(key)``, broadcast to (X, M), as the values of each."""
    return {key: np.broadcast_to(fill(key), (len(VIEWS), queries)).astype(np.float32) for key in KEYS}


def results_of(metrics: Mapping[str, Values]) -> dict[str, ModelResult]:
    """By member label, results that hold these metrics and nothing else."""
    return {label: ModelResult(one, {}, {}, 0.0, np.zeros(0), takes_trees=True) for label, one in metrics.items()}


def constant_model(logits_V: npt.ArrayLike, *, positions: int = 64) -> Any:
    """A transformers model that predicts the same everywhere: logits that do not depend on the text."""
    logits = torch.as_tensor(np.asarray(logits_V), dtype=torch.float32)
    options = {"n_layer": 1, "n_head": 1, "n_embd": 8, "n_positions": positions, "tie_word_embeddings": False}
    config = AutoConfig.for_model("gpt2", vocab_size=len(logits), **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()[0] = 1.0
        model.lm_head.weight.zero_()[:, 0] = logits
    return model
