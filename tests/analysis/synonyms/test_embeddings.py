from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from analysis.synonyms.encode import encode_study
from analysis.synonyms.metrics import distance_ratios
from analysis.synonyms.study import Role, Study
from tests.analysis.models import make_model
from tests.analysis.text import VOCABULARY, Text


def naive(model: Any, study: Study, tokenizer: Any, item: int) -> float:
    """The mean over the item's units of the distance to the synonym over the mean distance to the controls."""
    w_VD = model.get_output_embeddings().weight.detach().double().numpy()
    ratios = []
    for unit in (unit for unit in study.units if unit.item == item):
        vectors: dict[Role, list[Any]] = {role: [] for role in Role}
        for candidate in unit.candidates:
            before = tokenizer.encode('"' if not unit.spaced else "a", add_special_tokens=False)
            both = tokenizer.encode(('"' if not unit.spaced else "a") + candidate.surface, add_special_tokens=False)
            if len(both) == len(before) + 1:
                vectors[candidate.role].append(w_VD[both[-1]])
        if vectors[Role.WORD] and vectors[Role.SYNONYM] and vectors[Role.CONTROL]:
            (word,) = vectors[Role.WORD]
            near = [math.dist(word, other) for other in vectors[Role.SYNONYM]]
            far = [math.dist(word, other) for other in vectors[Role.CONTROL]]
            ratios.append((sum(near) / len(near)) / (sum(far) / len(far)))
    return sum(ratios) / len(ratios) if ratios else math.nan


@pytest.mark.parametrize("kind", ["linear", "metric", "llama"])
def test_distances_are_those_of_loops_and_missing_where_a_word_is_not_one_token(
    kind: str, study: Study, text: Text
) -> None:
    model = make_model(kind, VOCABULARY)
    found = distance_ratios(model, encode_study(study))
    expected = [naive(model, study, text.tokenizer, item) for item in range(len(study.items))]
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
    assert 0 < np.isfinite(found).sum() < len(found)


def test_growing_embeddings_change_nothing_and_moving_synonyms_together_does(study: Study, text: Text) -> None:
    model, encoded = make_model("linear", VOCABULARY), encode_study(study)
    before = distance_ratios(model, encoded)
    weight = model.get_output_embeddings().weight
    big, large = (text.vocabulary.tokens(word) or () for word in (" big", " large"))
    with torch.no_grad():
        weight *= 4
        np.testing.assert_allclose(distance_ratios(model, encoded), before, rtol=1e-6)
        weight[large[0]] = weight[big[0]] + 0.01
    (item,) = [i for i, item in enumerate(study.items) if "big" in item.name]
    assert distance_ratios(model, encoded)[item] < 0.1 * before[item]
