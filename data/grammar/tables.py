"""The grammar's word probabilities: frequencies, topics, tones and splits, drawn from its seed.

An emission is a distribution over words for each hidden state z = 2 * topic + register, which is fixed through a document
(register 0 is informal, 1 formal). A meaning is drawn first, then a word for it.

Shapes: Z hidden states, V vocabulary, L lemmas of a part of speech, C its concepts.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import lexicon
from .lexicon import Concept
from .vocabulary import ids, words

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

TOPICS = 7
REGISTERS = 2
HIDDEN = TOPICS * REGISTERS
REGISTER_SHARE = 0.85
"""Share of the word of the document's register in a pair of function words."""

ZIPF_OFFSET = 3.0
"""The concept of rank r in its part of speech has weight 1 / (r + offset), before topics."""
TOPIC_FACTOR = 8.0
"""How much more likely a concept is in its home topics; one in four is at home everywhere."""
EVERYWHERE = 0.25
TONE_SCALE = 0.8
"""Standard deviation of tones: mood +1 multiplies a concept's weight by exp(tone), mood -1 divides by it."""
POLARITY_TONE = 1.0
"""What a word's own polarity adds to its tone."""
SENSE_FACTOR = 0.06
"""Weight of a noun of another class than the preferred one."""
SUBJECT_FACTORS = {"person": 1.0, "thing": 0.35, "place": 0.2}
PLURAL_SHARE = 0.35
"""Share of plurals after a determiner that allows both numbers."""

_PURPOSES = {"frequency": 1, "topic": 2, "tone": 3, "text": 4}
PARTS = ("noun", "verb", "adjective")


class Feature(NamedTuple):
    """What the state after a word depends on."""

    number: int = 0
    polarity: int = 0
    sense: str = ""
    complement: bool = False


@dataclass(frozen=True)
class Emission:
    """A distribution over words for each hidden state, and the words grouped by their feature."""

    share_ZV: Floats
    groups: tuple[tuple[Feature, Ids], ...]


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """Random generator for one purpose of a grammar."""
    return np.random.default_rng([seed, _PURPOSES[purpose], *index])


class Part:
    """The words of one part of speech: their weights by topic, tones, splits and tokens."""

    def __init__(self, name: str, concepts: Sequence[Concept], seed: int) -> None:
        """Draw the free probabilities of one part of speech."""
        index = PARTS.index(name)
        self.words = [word for concept in concepts for word in concept.words]
        concept_L = np.repeat(np.arange(len(concepts)), [len(concept.words) for concept in concepts])
        base_L = _frequencies(concepts, generator(seed, "frequency", index))[concept_L]
        kind_L = np.array([concept.kind for concept in concepts for _ in concept.words])
        near_L = kind_L == "near"
        own_L = np.where(near_L, np.arange(len(concept_L)), np.searchsorted(concept_L, concept_L))
        topic_TL = _topics(concept_L, near_L, generator(seed, "topic", index))[:, own_L]
        tone_L = generator(seed, "tone", index).normal(0, TONE_SCALE, len(own_L))[own_L]
        polarity_L = np.array([word.polarity for word in self.words])
        self.tone_L: Floats = tone_L + POLARITY_TONE * polarity_L * (kind_L != "antonym")
        self.weight_ZL: Floats = np.repeat(topic_TL * base_L, REGISTERS, axis=0)
        self.token_FL: Ids = np.array([ids(word.forms) for word in self.words]).T
        self._split_RFPL = _splits(concepts)

    def split_ZL(self, form: int, place: int) -> Floats:
        """Probability of each word given its concept, for each hidden state (Z, L)."""
        return np.tile(self._split_RFPL[:, form, place], (TOPICS, 1))

    def share_ZL(self, factor_L: Floats, tilt: int, form: int, place: int) -> Floats:
        """Distribution over lemmas: topics and frequencies times ``factor_L``, tilted by a mood."""
        share_ZL = self.weight_ZL * factor_L * np.exp(tilt * self.tone_L) * self.split_ZL(form, place)
        return share_ZL / share_ZL.sum(axis=1, keepdims=True)


def _frequencies(concepts: Sequence[Concept], draw: np.random.Generator) -> Floats:
    """Zipfian weights (C,), with the concepts of each kind spread evenly over the ranks."""
    place_C = np.empty(len(concepts))
    for kind in {(concept.kind, concept.condition): None for concept in concepts}:
        members = [i for i, concept in enumerate(concepts) if (concept.kind, concept.condition) == kind]
        place_C[draw.permutation(members)] = (np.arange(len(members)) + draw.random(len(members))) / len(members)
    rank_C = np.argsort(np.argsort(place_C, kind="stable"), kind="stable")
    return 1 / (1 + rank_C + ZIPF_OFFSET)


def _topics(concept_L: Ids, near_L: npt.NDArray[np.bool_], draw: np.random.Generator) -> Floats:
    """Factor of each lemma in each topic (topics, L), of mean 1. A concept has one or two home topics. Near-synonyms share
    one, and each has another of its own."""
    homes_LK = np.array([draw.permutation(TOPICS)[:3] for _ in concept_L])
    first_L = np.searchsorted(concept_L, concept_L)
    homes_LK[near_L] = homes_LK[first_L][near_L]
    second_L = np.where(near_L & (first_L != np.arange(len(first_L))), homes_LK[:, 2], homes_LK[:, 1])
    has_second_L = near_L | (draw.random(len(first_L)) < 0.5)
    everywhere_L = ~near_L & (draw.random(len(first_L)) < EVERYWHERE)
    factor_TL = np.ones((TOPICS, len(first_L)))
    lemmas = np.arange(len(first_L))
    factor_TL[homes_LK[:, 0], lemmas] = TOPIC_FACTOR
    factor_TL[second_L[has_second_L], lemmas[has_second_L]] = TOPIC_FACTOR
    factor_TL[:, everywhere_L] = 1.0
    return factor_TL / factor_TL.mean(axis=0)


def _splits(concepts: Sequence[Concept]) -> Floats:
    """P(word | concept) by register, form (2) and place (2): (R, F, P, L). Antonyms and near-synonyms: halves."""

    def split(concept: Concept, register: int, form: int, place: int) -> tuple[float, ...]:
        reverses = {"none": False, "register": register == 1, "number": form == 1, "place": place == 1}
        return concept.split(reversed_=reverses[concept.condition])

    return np.array(
        [
            [[[s for concept in concepts for s in split(concept, r, f, p)] for p in range(2)] for f in range(2)]
            for r in range(REGISTERS)
        ]
    )


class Tables:
    """The emissions of a grammar, computed on first use."""

    def __init__(self, seed: int) -> None:
        """Draw the probabilities that the rules leave free."""
        concepts = lexicon.concepts()
        self.parts = {
            name: Part(name, [concept for concept in concepts if concept.part == name], seed) for name in PARTS
        }
        self.noun = cache(self._noun)
        self.verb = cache(self._verb)
        self.adjective = cache(self._adjective)
        self.listed = cache(self._listed)

    def _noun(self, number: int | None, sense: str, tilt: int, after_adjective: bool) -> Emission:
        """Nouns in a number (None: both), preferably of a class ("subject": mostly persons), tilted by a mood."""
        part = self.parts["noun"]
        preferred = dict.fromkeys(lexicon.NOUN_CLASSES, SENSE_FACTOR) | {sense: 1.0}
        factors = SUBJECT_FACTORS if sense == "subject" else preferred
        factor_L = np.array([factors[word.sense] for word in part.words])
        numbers = {0: 1 - PLURAL_SHARE, 1: PLURAL_SHARE} if number is None else {number: 1.0}
        pieces = []
        for form, weight in numbers.items():
            share_ZL = weight * part.share_ZL(factor_L, tilt, form, int(after_adjective))
            features = [Feature(number=form, complement=word.complement) for word in part.words]
            pieces.append((part.token_FL[form], share_ZL, features))
        return _emission(pieces)

    def _verb(self, form: int, tilt: int, in_relative: bool) -> Emission:
        """Verbs in a form (0 base, 1 third person singular). In a relative clause only those with an object and no
        polarity."""
        part = self.parts["verb"]
        allowed = [not in_relative or (not word.polarity and word.sense in lexicon.NOUN_CLASSES) for word in part.words]
        share_ZL = part.share_ZL(np.array(allowed, float), tilt, form, 0)
        features = [Feature(polarity=word.polarity, sense=word.sense) for word in part.words]
        return _emission([(part.token_FL[form], share_ZL, features)])

    def _adjective(self, tilt: int, in_predicate: bool) -> Emission:
        """Adjectives, before a noun or in the predicate."""
        part = self.parts["adjective"]
        share_ZL = part.share_ZL(np.ones(len(part.words)), tilt, 0, int(in_predicate))
        return _emission([(part.token_FL[0], share_ZL, [Feature(polarity=word.polarity) for word in part.words])])

    def _listed(self, entries: tuple[tuple[str, float, float, Feature], ...]) -> Emission:
        """Function words: (text, weight in the informal register, in the formal one, feature)."""
        share_RL = np.array([[entry[1 + register] for entry in entries] for register in range(REGISTERS)])
        share_ZL = np.tile(share_RL / share_RL.sum(axis=1, keepdims=True), (TOPICS, 1))
        return _emission([(ids([entry[0] for entry in entries]), share_ZL, [entry[3] for entry in entries])])


def _emission(pieces: Iterable[tuple[Ids, Floats, list[Feature]]]) -> Emission:
    share_ZV = np.zeros((HIDDEN, len(words())))
    by_feature: dict[Feature, list[int]] = {}
    for token_L, share_ZL, features in pieces:
        share_ZV[:, token_L] = share_ZL
        for place in np.flatnonzero(share_ZL.any(axis=0)).tolist():
            by_feature.setdefault(features[place], []).append(int(token_L[place]))
    return Emission(share_ZV, tuple((feature, np.array(tokens)) for feature, tokens in by_feature.items()))
