"""Evaluating models on a study: the data they share, their temperatures on held-out text, and their metrics in every view.

Shapes: N tokens, D width, V vocabulary, R rows, X views, M queries, P items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from analysis.compare.arms import Arm, Member, load_member, load_tokenizer
from analysis.compare.statistics import Floats
from analysis.compare.temperature import Calibration, matched_entropy
from analysis.compare.text import open_text
from analysis.words.vocabulary import CorpusWords, Vocabulary, corpus_words

from .encode import Encoded, encode_study
from .hidden_states import Reader
from .metrics import Values, compute_metrics, distance_ratios
from .score import LOGITS, score_words, softmax_rows
from .study import Study

TOKENS = 2048
"""Held-out tokens on which a temperature is fitted."""


@dataclass(frozen=True)
class ModelResult:
    """The results of one model."""

    metrics: Values
    temperatures: dict[str, float]
    """By view; NaN if no temperature gives the baseline's entropy, and for a guest with another tokenizer."""
    nll: dict[str, float]
    """Mean NLL on the sample of held-out text, by view; NaN if there is no temperature."""
    entropy: float
    """Mean entropy on that sample in the raw view, nats."""
    distance_P: Floats
    """See :func:`distance_ratios`."""
    takes_trees: bool
    """Whether the model was read with a tree attention mask, or one sequence after the other."""


@dataclass(frozen=True)
class Data:
    """The text of a run: its tokens, its tokenizer, its words."""

    tokenizer: Any
    vocabulary: Vocabulary
    words: CorpusWords
    validation_ids: Any
    document_starts: Any
    sequence_length: int
    end_of_text: int
    known_ids: dict[str, int]


def open_data(arms: Sequence[Arm]) -> Data:
    """The data of the first run among ``arms``. Raises :class:`InputError` if none of them is a run."""
    text = open_text(arms)
    vocabulary = Vocabulary(text.tokenizer)
    return Data(
        tokenizer=text.tokenizer,
        vocabulary=vocabulary,
        words=corpus_words(text.store.train.ids, vocabulary),
        validation_ids=text.store.validation.ids,
        document_starts=text.store.validation.document_starts,
        sequence_length=text.data.sequence_length,
        end_of_text=text.store.eos_id,
        known_ids=text.tokenizer.get_vocab(),
    )


class TextCalibration(Calibration):
    """A model's next-token distributions on a sample of the study's passages, at any temperature."""

    precision = 1e-6
    """What float32 allows: one model at two temperatures must not look like two."""

    def __init__(self, reader: Reader, seed: int) -> None:
        """Read a sample of the passages, the same for every model with the study's tokenizer."""
        self._reader = reader
        order = np.random.default_rng([seed, len(reader.encoded.passages)]).permutation(len(reader.encoded.passages))
        sample = [ids for ids in (reader.encoded.passages[index] for index in order) if len(ids) >= 2]
        sample = sample[: 1 + np.searchsorted(np.cumsum([len(ids) - 1 for ids in sample]), TOKENS)]
        with torch.inference_mode():
            self._h_ND = torch.cat([reader.body(ids[None])[0, :-1] for ids in sample])[:TOKENS]
        self._y_N = torch.from_numpy(np.concatenate([ids[1:] for ids in sample]))[:TOKENS].to(self._h_ND.device)

    def means(self, beta: float) -> tuple[float, float, float]:
        """See :meth:`Calibration.means`; the slope is the mean of E[z] - z_y, E the expectation under the model."""
        sums = torch.zeros(3, dtype=torch.float64)
        vocabulary = len(self._reader.encoded.vocabulary)
        step = max(1, LOGITS // vocabulary)
        beta_X = torch.tensor([beta], dtype=torch.float64, device=self._h_ND.device)
        all_V = torch.ones(vocabulary, dtype=torch.bool, device=self._h_ND.device)
        with torch.inference_mode():
            for h_RD, y_R in zip(self._h_ND.split(step), self._y_N.split(step), strict=True):
                logits_RV = self._reader.logits(h_RD).float()
                (log_z_R,), _, (entropy_R,) = softmax_rows(logits_RV, beta_X, all_V, with_entropy=True)
                nll_R = log_z_R - beta * logits_RV.gather(1, y_R[:, None])[:, 0].double()
                # The entropy is log Z - beta E[z], so that the slope is (NLL - entropy) / beta.
                sums += torch.stack([(nll_R - entropy_R).sum() / beta, entropy_R.sum(), nll_R.sum()]).cpu()
        slope, entropy, nll = (sums / len(self._y_N)).tolist()
        return slope, entropy, nll


def encode_for(member: Member, data: Data, shared: Encoded) -> Encoded:
    """The study in the member's own tokens; ``shared`` is the study in the store's."""
    own = load_tokenizer(member)
    return shared if own.get_vocab() == data.known_ids else encode_study(shared.study, own)


def evaluate(model: Any, encoded: Encoded, *, label: str, entropy: float | None, seed: int) -> ModelResult:
    """One model's result. ``entropy`` is the baseline's, in nats; None for the baseline itself, NaN for no matched view.

    Raises :class:`InputError` naming ``label`` if the model does not fit the study, Diverged among them.
    """
    reader = Reader(model, encoded, label)
    calibration = TextCalibration(reader, seed)
    temperatures = calibration.temperatures(entropy)
    metrics = compute_metrics(encoded.study, score_words(reader, list(temperatures.values())))
    missing_X = np.isnan(list(temperatures.values()))
    for value_XM in metrics.values():
        value_XM[missing_X] = np.nan  # including ranks, which need no temperature
    return ModelResult(
        metrics=metrics,
        temperatures=temperatures,
        nll={view: calibration.nll(temperature) for view, temperature in temperatures.items()},
        entropy=calibration.entropy(),
        distance_P=distance_ratios(model, encoded),
        takes_trees=reader.takes_trees,
    )


def evaluate_arms(arms: Sequence[Arm], data: Data, study: Study, *, seed: int) -> dict[str, ModelResult]:
    """The result of every member of every arm, by label. The first arm is the baseline, whose entropies the others match."""
    shared = encode_study(study)
    encodings = {member.label: encode_for(member, data, shared) for arm in arms for member in arm.members}
    entropies: dict[int | None, float] = {}  # of the baseline's members, by seed
    results: dict[str, ModelResult] = {}
    for arm in arms:
        for member in arm.members:
            encoded = encodings[member.label]
            entropy = None
            if arm is not arms[0]:  # entropies of other tokens cannot be compared
                entropy = matched_entropy(entropies, member.seed) if encoded is shared else math.nan
            result = evaluate(load_member(member), encoded, label=member.label, entropy=entropy, seed=seed)
            results[member.label] = result
            if arm is arms[0]:
                entropies[member.seed] = result.entropy if encoded is shared else math.nan
    return results
