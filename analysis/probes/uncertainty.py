"""Does a model know what it does not know? Scores of text against those of other tokens, and how many a threshold flags.

Known are windows of the validation split. Unknown are the same with their tokens in random order, random tokens, and corpora that
are named. The scores are those of Hendrycks & Gimpel (2017, arXiv 1610.02136: the largest probability), Liu et al. (2020, arXiv
2010.03759: the energy), the entropy, and the distance to the nearest class. The unknown is the positive class.

Shapes: B windows, T positions, V vocabulary, C classes (V, and those besides), S scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from analysis.compare.foreign import FOREIGN, TEXT, Texts, corpus_windows, known_and_foreign
from analysis.compare.ranking import auroc, average_precision, false_positive_rate, rank_correlation
from analysis.compare.statistics import Floats
from analysis.compare.text import Ids, RunText
from common.section import Place, Text
from model.heads import Head
from model.unknown import nearest_of, threshold_at

from .base import PROBES, Measure, Probe

SCORES = {
    "probability": "minus the largest probability",
    "entropy": "entropy of the prediction",
    "energy": "minus log sum exp of the logits",
    "distance": "squared distance to the nearest class (NaN for heads without distances)",
}
"""What speaks for a position being unknown: larger, the more."""
_OF = {"shuffled": "shuffled text", "random": "random tokens"}

_STATISTICS = {
    "auroc": ("{what} against text by {score}: area under the ROC curve, 0.5 by chance", 0.5),
    "auroc_sequence": (
        "windows of {what} against windows of text by their mean {score}: area under the ROC curve",
        0.5,
    ),
    "aupr": ("{what} against text by {score}: average precision, 0.5 by chance", 0.5),
    "fpr95": ("share of the text flagged by the threshold on {score} that flags 95% of {what}; 0.95 by chance", 0.95),
}


class Prepared(NamedTuple):
    """What all models are measured on."""

    texts: Texts
    corpora: list[Ids]


@PROBES.register("uncertainty")
class Uncertainty(Probe[Prepared]):
    """How well confidence, entropy, energy and distance tell text from what the model was not trained for."""

    measures = (
        *(
            Measure(
                f"{statistic}_{score}_{name}", "1", meaning.format(what=_OF[name], score=SCORES[score]),
                panel=(f"{statistic}_*_{name}", score), chance=chance,
            )
            for statistic, (meaning, chance) in _STATISTICS.items()
            for name in FOREIGN
            for score in SCORES
        ),
        Measure("tau", "1", "distance that the share fpr of other windows of the text exceeds"),
        *(
            Measure(f"flagged_{name}", "1", f"share of {what} farther than tau", panel=("flagged_*", name))
            for name, what in ((TEXT, "text"), *_OF.items())
        ),
        Measure(
            "distance_entropy_rank", "1", "Spearman's correlation of distance and entropy, over positions of text, shuffled and "
            "random together; positive: what is far is flat", chance=0.0,
        ),
        *(
            Measure(f"auroc_{score}_by_corpus", "1", f"each of corpora against text by {score}", along="corpus", chance=0.5)
            for score in SCORES
        ),
    )  # fmt: skip

    @dataclass(frozen=True)
    class Options:
        windows: Annotated[int, Field(ge=1)] = 64
        """Windows of the training length to calibrate tau on, of the text to measure, and of all that it is compared with."""
        corpora: tuple[Place, ...] = ()
        """Other texts: files, folders and globs, as for data.paths; read are at most the first 4 Mi tokens of each."""
        text_field: Text = "text"
        """The column or key that holds their text, for .json, .jsonl and .parquet."""
        fpr: Annotated[float, Field(gt=0, lt=1)] = 0.05
        """Share of the text that tau may flag."""

    def places(self, along: str) -> list[str]:
        return [Path(corpus).name for corpus in self.options.corpora]

    def prepare(self, text: RunText, *, seed: int) -> Prepared:
        o, keys = self.options, ("--set corpora", "--set text_field")
        corpora = corpus_windows(text, o.corpora, o.text_field, o.windows, seed, keys)
        return Prepared(known_and_foreign(text, o.windows, seed), corpora)

    def measure(self, model: Any, prepared: Prepared, *, seed: int) -> dict[str, float | Floats]:
        texts = prepared.texts
        scores = {name: _scores(model, x_BT) for name, x_BT in texts.measured.items()}
        of_corpora = [_scores(model, x_BT) for x_BT in prepared.corpora]
        found: dict[str, float | Floats] = {}
        for score in SCORES:
            known_BT = scores[TEXT][score]
            for name in FOREIGN:
                found |= _told_apart(f"{score}_{name}", known_BT, scores[name][score])
            areas = [auroc(known_BT.ravel(), one[score].ravel()) for one in of_corpora]
            found[f"auroc_{score}_by_corpus"] = np.array(areas or [math.nan])
        tau = math.nan
        if _head(model) is not None:
            calibrated_BT = _scores(model, texts.calibrated_BT)["distance"]
            tau = threshold_at(torch.from_numpy(calibrated_BT.ravel()), self.options.fpr)
        for name, one in scores.items():
            found[f"flagged_{name}"] = math.nan if math.isnan(tau) else float((one["distance"] > tau).mean())
        distance, entropy = (
            np.concatenate([one[key].ravel() for one in scores.values()]) for key in ("distance", "entropy")
        )
        return found | {"tau": tau, "distance_entropy_rank": rank_correlation(distance, entropy)}


def _told_apart(name: str, known_BT: Floats, unknown_BT: Floats) -> dict[str, float]:
    known, unknown = known_BT.ravel(), unknown_BT.ravel()
    return {
        f"auroc_{name}": auroc(known, unknown),
        f"aupr_{name}": average_precision(known, unknown),
        f"fpr95_{name}": false_positive_rate(known, unknown),
        f"auroc_sequence_{name}": auroc(known_BT.mean(1), unknown_BT.mean(1)),
    }


def _head(model: Any) -> Head | None:
    """The model's head, if its logits say distances."""
    head = getattr(model, "lm_head", None)
    return head if isinstance(head, Head) and head.bounded else None


def _scores(model: Any, x_BT: Ids) -> dict[str, Floats]:
    """The scores (B, T) of all positions, a window at a time."""
    score_SBT = torch.stack([_of_window(model, x_T) for x_T in torch.from_numpy(x_BT).to(model.device)], dim=1)
    return dict(zip(SCORES, score_SBT.cpu().numpy(), strict=True))


def _of_window(model: Any, x_T: Tensor) -> Tensor:
    """The scores (S, T) of a window.

    Probabilities are over all classes, the largest is of the vocabulary: a class besides it says that the model abstains.
    """
    head, lm_head = _head(model), getattr(model, "lm_head", None)
    if isinstance(lm_head, Head):
        h_TD = model.model(input_ids=x_T[None], use_cache=False).last_hidden_state[0]
        z_TC = lm_head(h_TD, lambda head, f_TD: head.class_logits(f_TD)).double()
        z_TV = z_TC[:, : lm_head.n_classes]
    else:
        z_TV = z_TC = model(input_ids=x_T[None], use_cache=False).logits[0].double()
    log_z_T = z_TC.logsumexp(-1)
    largest_T = (z_TV.amax(-1) - log_z_T).exp()
    entropy_T = torch.special.entr((z_TC - log_z_T[:, None]).exp()).sum(-1)
    distance_T = torch.full_like(log_z_T, math.nan) if head is None else nearest_of(z_TV)
    return torch.stack([-largest_T, entropy_T, -log_z_T, distance_T])
