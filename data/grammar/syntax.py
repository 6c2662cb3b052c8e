"""The rules of the synonym grammar: what may follow in each state, with which weight, and the next state.

A document is a first name, then sentences about that person and others, in PHASES parts that an opener marks.

    sentence  = [opener ","] clause [adverb] ["," conjunction clause [adverb]] "."
    clause    = subject ([adverb] verb [object] | be [intensifier] adjective)
    subject   = pronoun | noun phrase {preposition noun phrase | "that" verb noun phrase}
    object    = noun phrase {preposition noun phrase}

Verbs agree with their subject whatever stands between, pronouns and possessives with the person the document is about.
Words with polarity (all antonymous verbs and adjectives have one) set a mood, which tilts what follows in the sentence; a
noun marked "~" is followed by another more often. The weights are free choices for sentences of about ten words, the same
for every seed.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.tokenizer import END_OF_TEXT

from . import lexicon
from .tables import REGISTER_SHARE, Emission, Feature, Tables

PHASES = 4
ADVANCE = 0.5
"""Chance that a sentence begins the next part or, after the last part, that the document ends."""

MOOD_FACTOR = 4.0
"""How much more likely an adverb of the mood's polarity is."""


class State(NamedTuple):
    """A place in the syntax plus the memory that affects what follows; what does not matter has its default."""

    place: str
    phase: int = 0
    male: bool = False
    second: bool = False
    """In the second clause of a sentence."""
    mood: int = 0
    number: int = 0
    """Of the subject, 0 singular and 1 plural."""
    role: str = ""
    """Of a noun phrase: subject, embedded (between a subject and its verb), object, last (after a preposition behind a
    verb)."""
    determined: int | None = None
    """Number that the determiner requires."""
    sense: str = ""
    """Preferred class of a noun phrase."""
    tilt: int = 0
    modified: bool = False
    """The one optional adjective or adverb has been used."""
    complement: bool = False
    """After a noun that often takes a complement, or a verb of movement."""


class Option(NamedTuple):
    """A way to continue: its weight, the words, and the next state by the word's feature."""

    weight: float
    emission: Emission
    target: Callable[[Feature], State]


START = State("start")
Pairs = tuple[tuple[str, str], ...]


class Syntax:
    """The rules over the emissions of one grammar."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def options(self, state: State) -> list[Option]:
        """The ways to continue from a state; their weights sum to 1."""
        return list(getattr(self, f"_{state.place}")(state))

    def _words(self, *words: str) -> Emission:
        return self._tables.listed(tuple((word, 1.0, 1.0, Feature()) for word in words))

    def _pairs(self, pairs: Pairs) -> Emission:
        """Pairs of an informal and a formal word."""
        informal = [(pair[0], REGISTER_SHARE, 1 - REGISTER_SHARE, Feature()) for pair in pairs]
        formal = [(pair[1], 1 - REGISTER_SHARE, REGISTER_SHARE, Feature()) for pair in pairs]
        return self._tables.listed((*informal, *formal))

    def _determiners(self, male: bool, capital: bool) -> Emission:
        """The feature's number is 0, 1, or -1 for a determiner of both."""
        weights = lexicon.DETERMINERS | {lexicon.POSSESSIVES[male]: (None, lexicon.POSSESSIVE_WEIGHT)}
        return self._tables.listed(
            tuple(
                (word.capitalize() if capital else word, weight, weight, Feature(number=-1 if n is None else n))
                for word, (n, weight) in weights.items()
            )
        )

    def _adverbs(self, words: str, mood: int) -> Emission:
        """Adverbs, the likelier the more their polarity is that of the mood."""
        marked = lexicon.marked(words)
        return self._tables.listed(
            tuple(
                (word, MOOD_FACTOR ** (mood * sign), MOOD_FACTOR ** (mood * sign), Feature())
                for word, sign in marked.items()
            )
        )

    def _start(self, state: State) -> Iterator[Option]:
        yield Option(0.5, self._words(*lexicon.NAMES_MALE.split()), lambda _: State("verb", male=True))
        yield Option(0.5, self._words(*lexicon.NAMES_FEMALE.split()), lambda _: State("verb", male=False))

    def _sentence(self, state: State) -> Iterator[Option]:
        """After a full stop."""
        if state.phase == PHASES - 1:
            yield Option(ADVANCE, self._words(END_OF_TEXT), lambda _: START)
        else:
            opener = self._pairs((lexicon.OPENERS[state.phase],))
            yield Option(ADVANCE, opener, lambda _: State("comma", state.phase + 1, state.male))
        stay = 1 - ADVANCE
        pronoun = self._words(lexicon.PRONOUNS[state.male].capitalize())
        yield Option(0.2 * stay, self._pairs(lexicon.CONNECTIVES), lambda _: state._replace(place="comma"))
        yield Option(0.35 * stay, pronoun, lambda _: state._replace(place="verb"))
        yield Option(
            0.45 * stay, self._determiners(state.male, True), lambda f: _phrase(state, f, "subject", "subject")
        )

    def _comma(self, state: State) -> Iterator[Option]:
        yield Option(1.0, self._words(","), lambda _: state._replace(place="clause"))

    def _clause(self, state: State) -> Iterator[Option]:
        """Before a subject within a sentence."""
        yield Option(0.4, self._words(lexicon.PRONOUNS[state.male]), lambda _: state._replace(place="verb"))
        yield Option(0.6, self._determiners(state.male, False), lambda f: _phrase(state, f, "subject", "subject"))

    def _end(self, state: State) -> Iterator[Option]:
        """Where a clause may end; a mood is commented on, or has a consequence."""
        adverb = 0.0 if state.modified else 0.2 + 0.1 * abs(state.mood)
        comma = 0.0 if state.second else 0.15 + 0.2 * abs(state.mood)
        if adverb:
            after = state._replace(modified=True)
            yield Option(adverb, self._adverbs(lexicon.ADVERBS_FINAL, state.mood), lambda _: after)
        if comma:
            yield Option(comma, self._words(","), lambda _: state._replace(place="conjunction", modified=False))
        yield Option(1 - adverb - comma, self._words("."), lambda _: State("sentence", state.phase, state.male))

    def _conjunction(self, state: State) -> Iterator[Option]:
        """A consequence keeps the mood, a contrast inverts it."""
        after = state._replace(place="clause", second=True)
        yield Option(0.55, self._pairs(lexicon.CONSEQUENCES), lambda _: after)
        yield Option(0.25, self._pairs(lexicon.CONTRASTS), lambda _: after._replace(mood=-state.mood))
        yield Option(0.2, self._words("and"), lambda _: after._replace(mood=0))

    def _determiner(self, state: State) -> Iterator[Option]:
        """Before a noun phrase other than a subject; persons may have names."""
        name = 0.2 if state.sense == "person" else 0.0
        if name:
            names = self._words(*(f" {n}" for n in (lexicon.NAMES_MALE + " " + lexicon.NAMES_FEMALE).split()))
            yield Option(name, names, lambda f: _after_noun(state, f))
        determiners = self._determiners(state.male, False)
        yield Option(1 - name, determiners, lambda f: _phrase(state, f, state.role, state.sense))

    def _noun(self, state: State) -> Iterator[Option]:
        adjective = 0.3 if not state.modified and state.role in ("subject", "object") else 0.0
        if adjective:
            after = state._replace(modified=True)
            yield Option(
                adjective, self._tables.adjective(0, False), lambda f: after._replace(tilt=f.polarity or state.tilt)
            )
        nouns = self._tables.noun(state.determined, state.sense, state.tilt, state.modified)
        yield Option(1 - adjective, nouns, lambda f: _after_noun(state, f))

    def _subject(self, state: State) -> Iterator[Option]:
        """After a noun before the verb: more that stands between the subject and its verb, or the verb."""
        between = state._replace(complement=False)
        phrase, relative = (0.35, 0.05) if state.complement else (0.08, 0.15)
        yield from self._prepositions(phrase, state, between._replace(place="determiner", role="embedded"))
        yield Option(relative, self._words("that"), lambda _: between._replace(place="relative"))
        for option in self._verb(between._replace(place="verb")):
            yield option._replace(weight=(1 - phrase - relative) * option.weight)

    def _object(self, state: State) -> Iterator[Option]:
        """After a noun behind the verb."""
        end = state._replace(place="end", complement=False)
        phrase = 0.45 if state.complement else 0.1
        yield from self._prepositions(phrase, state, end._replace(place="determiner", role="last"))
        for option in self._end(end):
            yield option._replace(weight=(1 - phrase) * option.weight)

    def _prepositions(self, weight: float, state: State, after: State) -> Iterator[Option]:
        """Prepositions of complements are eight times as likely after a word that takes one."""
        more = 4.0 if state.complement else 0.5
        words = [(word, 1.0, 1.0, Feature(sense=sense)) for word, sense in lexicon.PREPOSITIONS.items()]
        words += [(word, more, more, Feature(sense=s)) for word, s in lexicon.COMPLEMENT_PREPOSITIONS.items()]
        yield Option(weight, self._tables.listed(tuple(words)), lambda f: after._replace(sense=f.sense))

    def _verb(self, state: State) -> Iterator[Option]:
        """Before the verb of a clause."""
        plain = state._replace(modified=False)
        adverb = 0.0 if state.modified else 0.12
        if adverb:
            often = self._adverbs(lexicon.ADVERBS_FREQUENCY, 0)
            yield Option(adverb, often, lambda _: plain._replace(modified=True))
        rest = 1 - adverb
        modal, be = 0.15 * rest, 0.25 * rest
        base = plain._replace(place="base", number=0)
        yield Option(modal, self._pairs(lexicon.MODALS), lambda _: base)
        yield Option(be, self._words("are" if state.number else "is"), lambda _: base._replace(place="predicate"))
        form = 0 if state.number else 1
        yield Option(rest - modal - be, self._tables.verb(form, _tilt(state), False), lambda f: _after_verb(plain, f))

    def _base(self, state: State) -> Iterator[Option]:
        """After a modal verb."""
        yield Option(0.2, self._words("be"), lambda _: state._replace(place="predicate"))
        yield Option(0.8, self._tables.verb(0, _tilt(state), False), lambda f: _after_verb(state, f))

    def _relative(self, state: State) -> Iterator[Option]:
        """After "that": a verb that agrees with the noun before it."""
        after = state._replace(place="determiner", role="embedded")
        verbs = self._tables.verb(0 if state.number else 1, 0, True)
        yield Option(1.0, verbs, lambda f: after._replace(sense=f.sense))

    def _predicate(self, state: State) -> Iterator[Option]:
        """After a form of "be"."""
        if not state.modified:
            yield Option(0.25, self._pairs(lexicon.INTENSIFIERS), lambda _: state._replace(modified=True))
        weight = 1.0 if state.modified else 0.75
        adjectives = self._tables.adjective(_tilt(state), True)
        end = state._replace(place="end", modified=False)
        yield Option(weight, adjectives, lambda f: end._replace(mood=f.polarity))

    def _alone(self, state: State) -> Iterator[Option]:
        """After a verb without an object: adverbs, or where it moves to."""
        end = state._replace(place="end", complement=False)
        if state.complement:
            yield from self._prepositions(0.6, end, end._replace(place="determiner", role="last"))
        share = 0.4 if state.complement else 1.0
        for option in self._end(end):
            yield option._replace(weight=share * option.weight)


def _tilt(state: State) -> int:
    """A mood tilts the second clause."""
    return state.mood if state.second else 0


def _phrase(state: State, determiner: Feature, role: str, sense: str) -> State:
    """The state after a determiner. The verb's mood tilts its object."""
    determined = None if determiner.number < 0 else determiner.number
    tilt = state.mood if role == "object" else 0
    return state._replace(place="noun", role=role, sense=sense, determined=determined, tilt=tilt, modified=False)


def _after_noun(state: State, noun: Feature) -> State:
    """The state after the last word of a noun phrase, which depends on its role."""
    plain = state._replace(role="", sense="", determined=None, tilt=0, modified=False)
    after = plain._replace(complement=noun.complement)
    if state.role == "subject":
        return after._replace(place="subject", number=noun.number)
    return after._replace(place="subject" if state.role == "embedded" else "object")


def _after_verb(state: State, verb: Feature) -> State:
    plain = state._replace(number=0, mood=verb.polarity)
    if verb.sense in lexicon.OBJECTLESS:
        return plain._replace(place="alone", complement=verb.sense == "moving")
    return plain._replace(place="determiner", role="object", sense=verb.sense)
