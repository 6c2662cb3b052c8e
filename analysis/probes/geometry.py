"""How hidden states lie among each other and among the embeddings: between layers, models and checkpoints, and in cells.

The distances are those of model/objective_geometry.py: Procrustes (Ding et al. 2021, arXiv 2108.01661) and linear CKA (Kornblith
et al. 2019, arXiv 1905.00414) see no rotation, scale or translation, Gram sees no lengths: none of them sees radial growth.

Shapes: T positions of a window, N chosen positions, D width, V vocabulary, L layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from analysis.compare.text import Ids, RunText
from analysis.words.vocabulary import Vocabulary
from model.objective_geometry import cka, gram, procrustes, spread

from .base import PROBES, Measure, Probe, Report
from .embedded_words import Synonyms, chosen_tokens, draw_maps, find_synonyms, neighbour_lines, placed, synonym_ratio
from .states import compared, residual_stream

DISTANCES = {"procrustes": procrustes, "gram": gram, "cka": cka}
_MEANING = {
    "procrustes": "squared distance of the last hidden states after the best rotation, 0 to 2",
    "gram": "mean squared difference of the cosines of two last hidden states",
    "cka": "1 - linear CKA of the last hidden states, 0 to 1",
}


@dataclass(frozen=True)
class Prepared:
    """What all models are measured on."""

    x_BT: Ids
    y_N: Ids
    """The next tokens at the chosen positions."""
    at_N: Ids
    """These, counted through all windows."""
    size: int
    """Tokens of the vocabulary."""
    vocabulary: Vocabulary
    synonyms: Synonyms
    words: dict[str, int]


@PROBES.register("geometry")
class Geometry(Probe[Prepared]):
    """Distances between layers, arms and checkpoints; hidden states in the embeddings' cells; synonyms' embeddings."""

    measures = (
        Measure("in_cell", "1", "share of positions at which the next token's row is the nearest to the hidden state"),
        Measure("cell_ratio", "1", "distance to the next token's row over that to the nearest other, median; below 1: its cell"),
        Measure("cell_distance", "1", "distance to the next token's row, mean", positive=True),
        Measure("synonym_ratio", "1", "distance of synonyms' rows over that of words as frequent; 1: no nearer than others",
                chance=1.0),
        *(Measure(key, "1", meaning, between=True) for key, meaning in _MEANING.items()),
        *(Measure(f"{key}_by_layer", "1", meaning.replace("last hidden states", "states of two layers in a row"), along="layer")
          for key, meaning in _MEANING.items()),
    )  # fmt: skip

    @dataclass(frozen=True)
    class Options:
        windows: Annotated[int, Field(ge=1)] = 16
        """Windows of the training length, drawn from the validation split."""
        positions: Annotated[int, Field(ge=2, le=8192)] = 256
        """Most positions whose states are compared, spread evenly over the windows."""
        words: tuple[str, ...] = ()
        """Words, one token each after a space, whose neighbours are listed and whose cells are drawn (geometry_map.png)."""

    def prepare(self, text: RunText, *, seed: int) -> Prepared:
        vocabulary = Vocabulary(text.tokenizer)
        words = chosen_tokens(self.options.words, vocabulary)
        x_BT, y_BT = text.windows(self.options.windows, seed=seed)
        at_N = np.sort(spread(x_BT.size, self.options.positions, torch.device("cpu")).numpy())
        synonyms = find_synonyms(text, vocabulary)
        return Prepared(x_BT, y_BT.ravel()[at_N], at_N, text.store.vocab_size, vocabulary, synonyms, words)

    def measure(self, model: Any, prepared: Prepared, *, seed: int) -> dict[str, Any]:
        states = _states(model, prepared)
        h_ND, w_VD = compared(model, states[-1], prepared.size)
        y_N = torch.from_numpy(prepared.y_N).to(h_ND.device)
        by_layer = {
            f"{key}_by_layer": [_distance(key, *pair) for pair in itertools.pairwise(states)] for key in DISTANCES
        }
        return {
            **cells(h_ND, w_VD, y_N),
            "synonym_ratio": synonym_ratio(w_VD.cpu().numpy(), prepared.synonyms),
            **by_layer,
        }

    def keep(self, model: Any, prepared: Prepared) -> Tensor:
        return _states(model, prepared)[-1].cpu()

    def against(self, own: Tensor, other: Tensor) -> dict[str, float]:
        return {key: _distance(key, own, other) for key in DISTANCES}

    def details(self, model: Any, prepared: Prepared) -> Any:
        if not prepared.words:
            return None
        _, w_VD = compared(model, _states(model, prepared)[-1], prepared.size)
        return placed(w_VD.cpu().numpy(), prepared.words, prepared.vocabulary)

    def report(self, details: Mapping[str, Any]) -> Report:
        return Report(neighbour_lines(details), {"geometry_map": draw_maps(details)}) if details else Report()


def _states(model: Any, prepared: Prepared) -> list[Tensor]:
    """The states (N, D) before the first block, after each, and as the head gets them, at the chosen positions."""
    windows, length = prepared.x_BT.shape
    found = []
    for window in range(windows):
        own_N = torch.from_numpy(prepared.at_N[prepared.at_N // length == window] % length)
        if len(own_N):
            found.append([h_TD[own_N.to(h_TD.device)] for h_TD in residual_stream(model, prepared.x_BT[window])])
    return [torch.cat(layer) for layer in zip(*found, strict=True)]


def _distance(key: str, a_ND: Tensor, b_ND: Tensor) -> float:
    a_ND, b_ND = a_ND.double(), b_ND.double()
    return float(DISTANCES[key](a_ND, b_ND, a_ND.new_ones(len(a_ND))))


def cells(h_ND: Tensor, w_VD: Tensor, y_N: Tensor) -> dict[str, float]:
    """How the states lie in the Voronoi cells of the rows: whether in that of their target, and how near to it."""
    distance_NV = torch.cdist(
        h_ND, w_VD, compute_mode="donot_use_mm_for_euclid_dist"
    )  # exact near 0, as a product is not
    own_N = distance_NV.gather(1, y_N[:, None])[:, 0]
    other_N = distance_NV.scatter(1, y_N[:, None], torch.inf).amin(1)
    return {
        "in_cell": float((own_N < other_N).double().mean()),
        "cell_ratio": float((own_N / other_N).quantile(0.5)),
        "cell_distance": float(own_N.mean()),
    }
