"""Asking models the questions of a study: the data they share, the plan, and every model's answers in every view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.compare.arms import Arm, Member, load_member, load_tokenizer
from analysis.compare.text import open_text
from analysis.words.pair_lists import load_pairs
from analysis.words.pairs import PairList
from analysis.words.substitution_files import is_substitution_file, load_substitutions
from analysis.words.vocabulary import CorpusWords, Vocabulary, corpus_words
from common.errors import InputError

from .controls import Controls, PartsOfSpeech
from .encode import Encoded, encode_study
from .measures import Measures, distance_ratios, measure
from .plan import HeldOut, plan_pairs, plan_substitutions
from .score import Floats, answer
from .study import Study
from .text_temperature import TextCalibration


@dataclass(frozen=True)
class Settings:
    """What is asked, besides of whom."""

    pairs: str
    """builtin, wordnet, wordnet:FOLDER, or a file of pairs or of substitutions."""
    min_similarity: float
    match_pos: str | None
    """wordnet or wordnet:FOLDER: where the parts of speech of controls come from. None: from the pairs alone."""
    contexts_per_word: int | None
    min_contexts: int
    seed: int


@dataclass(frozen=True)
class Asked:
    """One model's part of the result."""

    measures: Measures
    temperatures: dict[str, float]
    """By view; NaN where no temperature gives the baseline's entropy, and for a guest whose tokens are others."""
    nll: dict[str, float]
    """Mean NLL on the sample of held-out text, by view; NaN where there is no temperature."""
    entropy: float
    """Mean entropy on that sample, of the model as it is; nats."""
    distance_P: Floats
    """See :func:`distance_ratios`."""
    takes_trees: bool


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


def plan(data: Data, settings: Settings) -> Study:
    """The study that ``settings`` ask for on this text. Raises :class:`InputError` for sources that cannot be used."""
    if is_substitution_file(settings.pairs):
        return plan_substitutions(
            load_substitutions(settings.pairs),
            data.vocabulary,
            Controls(data.words, _parts_of_speech(settings.match_pos, None)),
            lambda text: data.tokenizer.encode(text, add_special_tokens=False),
            sequence_length=data.sequence_length,
            end_of_text=data.end_of_text,
        )
    pairs = load_pairs(settings.pairs, min_similarity=settings.min_similarity, words=frozenset(data.words.count))
    own = settings.pairs if settings.pairs.partition(":")[0] == "wordnet" else None
    return plan_pairs(
        pairs,
        data.vocabulary,
        Controls(data.words, _parts_of_speech(settings.match_pos or own, pairs)),
        HeldOut(data.validation_ids, data.document_starts, data.sequence_length, data.vocabulary),
        end_of_text=data.end_of_text,
        min_contexts=settings.min_contexts,
        contexts_per_word=settings.contexts_per_word,
        seed=settings.seed,
    )


def encode_for(member: Member, data: Data, study: Study, shared: Encoded) -> Encoded:
    """The study in the member's own tokens; ``shared`` is the study in the store's."""
    own = load_tokenizer(member)
    if own.get_vocab() == data.known_ids:
        return shared
    return encode_study(study, own, Vocabulary(own))


def ask(model: Any, encoded: Encoded, *, label: str, entropy: float | None, seed: int, progress: bool = True) -> Asked:
    """One model's answers. ``entropy``, in nats, is the baseline's; None for the baseline itself, NaN to leave the view out."""
    calibration = TextCalibration(model, encoded, label=label, seed=seed)
    matched = 1.0 if entropy is None else calibration.matching(entropy)
    temperatures = {"raw": 1.0, "fitted": calibration.best(), "matched": matched}
    nll = {view: calibration.nll(temperature) for view, temperature in temperatures.items()}
    answers = answer(model, encoded, tuple(temperatures.values()), label=label, progress=progress)
    measures = measure(encoded.study, answers)
    missing_X = np.isnan(list(temperatures.values()))
    for value_XM in measures.values():
        value_XM[missing_X] = np.nan  # ranks too, which no temperature is needed for
    return Asked(
        measures=measures,
        temperatures=temperatures,
        nll=nll,
        entropy=calibration.entropy(),
        distance_P=distance_ratios(model, encoded),
        takes_trees=answers.takes_trees,
    )


def ask_all(arms: Sequence[Arm], data: Data, study: Study, *, seed: int, progress: bool = True) -> dict[str, Asked]:
    """Every member of every arm, by label. The first arm is the baseline: a model's entropy is matched to that of its seed."""
    shared = encode_study(study, data.tokenizer, None)
    encodings = {member.label: encode_for(member, data, study, shared) for arm in arms for member in arm.members}
    entropies: dict[int | None, float] = {}  # of the baseline's members
    asked: dict[str, Asked] = {}
    for arm in arms:
        for member in arm.members:
            encoded = encodings[member.label]
            entropy = None
            if arm is not arms[0]:
                mean = sum(entropies.values()) / len(entropies)
                entropy = entropies.get(member.seed, mean) if encoded is shared else math.nan  # of other tokens
            found = ask(load_member(member), encoded, label=member.label, entropy=entropy, seed=seed, progress=progress)
            asked[member.label] = found
            if arm is arms[0]:
                entropies[member.seed] = found.entropy if encoded is shared else math.nan
    return asked


def _parts_of_speech(source: str | None, pairs: PairList | None) -> PartsOfSpeech:
    if source is not None:
        from analysis.words.wordnet import WordNet

        kind, _, folder = source.partition(":")
        if kind != "wordnet":
            raise InputError(f"--match-pos {source}: give wordnet, or wordnet:FOLDER with WordNet's dict files")
        return WordNet(Path(folder) if folder else None).parts_of_speech
    known: dict[str, set[str]] = {}
    for pair in () if pairs is None else (*pairs.synonyms, *pairs.antonyms, *pairs.dissimilar):
        for word in (pair.word_a, pair.word_b):
            known.setdefault(word, set()).update({pair.pos} - {""})
    return lambda word: frozenset(known.get(word, ()))
