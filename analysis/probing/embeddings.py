"""How far apart the embeddings of synonyms are, against those of their controls: semantic fracturing.

Shapes: P items, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .encode import Encoded
from .score import Floats
from .study import Role


def distance_ratios(model: Any, encoded: Encoded) -> Floats:
    """(P,): ||w_word - w_synonym|| / mean ||w_word - w_control|| of the output embeddings; NaN where a word is not one token.

    Below 1: synonyms lie nearer to each other than words that are only as frequent. The ratio does not change when all
    embeddings grow. Units written alike are averaged within an item.
    """
    weight_VD = model.get_output_embeddings().weight.detach().float().cpu().numpy()
    study = encoded.study
    total_P, count_P = np.zeros(len(study.items)), np.zeros(len(study.items))
    for unit, tree in zip(study.units, encoded.trees, strict=True):
        single_K = np.array([leaf >= 0 and tree.depth_E[leaf] == 1 for leaf in tree.leaf_K])
        role_K = np.array([candidate.role for candidate in unit.candidates])
        synonyms, controls = (
            np.flatnonzero(single_K & (role_K == Role.SYNONYM)),
            np.flatnonzero(single_K & (role_K == Role.CONTROL)),
        )
        if not (single_K[0] and len(synonyms) and len(controls)):
            continue
        w_KD = weight_VD[tree.token_E[tree.leaf_K]]
        distance_K = np.linalg.norm(w_KD - w_KD[0], axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):  # of embeddings that have all become one
            total_P[unit.item] += distance_K[synonyms].mean() / distance_K[controls].mean()
        count_P[unit.item] += 1
    with np.errstate(invalid="ignore"):
        ratio_P: Floats = total_P / count_P
    return ratio_P
