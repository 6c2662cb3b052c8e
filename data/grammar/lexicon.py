"""The words of the synonym grammar: synonym sets, near-synonyms, antonyms, and single words.

Each line of the tables holds words of one part of speech and class, with the words of a set joined by "/". Marks on a word:
"+" or "-" before it is its polarity, "~" means a complement often follows, ">form" gives an irregular inflection, "@class"
overrides the class. A noun's class is what it denotes, a verb's what its object denotes ("alone" and "moving" verbs take no
object).
"""

import re
from dataclasses import dataclass

NOUN_CLASSES = ("person", "thing", "place")
OBJECTLESS = ("alone", "moving")

RARE_SHARE = 0.03
UNEQUAL_SHARE = 0.2
CONTEXTUAL_SHARE = 0.1
"""Share of the less likely word of a pair, by kind; a contextual pair is reversed where its condition holds."""


@dataclass(frozen=True)
class Word:
    """A lemma: its forms (singular and plural, or base and third person, or one), polarity -1, 0 or 1, class, complement."""

    lemma: str
    forms: tuple[str, ...]
    polarity: int
    sense: str
    complement: bool


@dataclass(frozen=True)
class Concept:
    """One meaning and the words for it, or (antonyms, near-synonyms) two meanings that share contexts."""

    part: str
    kind: str
    """single, equal, unequal, rare, contextual, near or antonym."""
    condition: str
    """none, or what reverses the split of a contextual set: the document's register, the form's number, or the place (a
    noun after an adjective, an adjective in the predicate)."""
    words: tuple[Word, ...]

    @property
    def name(self) -> str:
        """The lemmas, joined by "/"."""
        return "/".join(word.lemma for word in self.words)

    def split(self, *, reversed_: bool) -> tuple[float, ...]:
        """Probability of each word given the concept; ``reversed_`` where the condition holds."""
        n = len(self.words)
        small = {"unequal": UNEQUAL_SHARE, "rare": RARE_SHARE, "contextual": CONTEXTUAL_SHARE}.get(self.kind)
        if small is None:
            return (1 / n,) * n
        return (small, 1 - small) if reversed_ and self.kind == "contextual" else (1 - small, small)


_SETS = """
noun person equal       doctor/physician kid/child>children
noun thing  equal       couch/sofa automobile/car picture/image/photo
noun place  equal       shop/store street/road/lane
verb thing  equal       buy/purchase gather/collect begin/start/commence shut/close
adjective - equal       big/large fast/quick/rapid +happy/+glad quiet/silent
noun person unequal     lawyer/attorney
noun thing  unequal     gift/present job/occupation
noun place  unequal     forest/woodland
verb person unequal     help/assist
verb thing  unequal     choose/select hide/conceal mend/repair
adjective - unequal     +clever/+smart strange/odd -angry/-mad
noun person rare        soldier/warrior
noun thing  rare        letter/missive
noun place  rare        house/dwelling
verb person rare        ask/query
verb thing  rare        see/behold drink/imbibe
adjective - rare        +rich/+opulent -tired/-weary little/diminutive
noun person register    boss/supervisor friend/companion
noun thing  register    meal/repast
verb thing  register    get/obtain need/require show/demonstrate
verb moving register    go>goes/proceed
adjective - register    cheap/inexpensive +brave/+courageous
noun thing  number      ship/vessel rock/stone
noun thing  place       coat/jacket
noun place  place       path/trail
verb person number      watch/observe
adjective - place       -sick/-ill
noun person near        teacher/~professor
noun thing  near        cup/~bowl
noun place  near        lake/~pond city/~village
verb thing  near        visit@place/meet@person design@thing/build@place cook@thing/serve@person
verb moving near        run/rest@alone
adjective - near        -sad/lonely +bright/shiny
noun person antonym     hero>heroes/~villain
noun thing  antonym     victory/~defeat
verb person antonym     +love/-hate +praise/-blame
verb thing  antonym     +find/-lose
verb alone  antonym     +win/-fail
adjective - antonym     +hot/-cold +young/-old +easy/-difficult +strong/-weak +clean/-dirty +safe/-dangerous
"""

_SINGLES = """
noun person farmer baker sailor painter writer singer dancer nurse ~driver ~captain ~king ~queen neighbour cousin
noun person brother sister ~uncle merchant judge guard ~student pupil thief>thieves hunter gardener
noun person stranger visitor ~poet pilot engineer ~owner servant guest ~witness actor
noun thing  ~book table chair window door ~key clock ~knife>knives ~bottle basket ~box coin ~map
noun thing  ~bridge wheel engine boat hammer candle mirror carpet blanket pillow violin piano
noun thing  ~song ~story ~poem ~plan ~idea ~question ~answer lesson game toy ~report contract bill ticket parcel
noun thing  apple loaf>loaves cake cheese potato>potatoes fish>fishes horse dog cat cow goat bird ~tool hat
noun thing  shoe shirt ~dress ~rumour ~secret shield
noun place  school hospital station market harbour ~garden farm field valley ~island beach river mountain desert cave
noun place  castle ~palace church temple library theatre factory office kitchen tower ~square
noun place  hotel prison
verb person teach greet follow trust +thank invite -fear -insult remember forget +admire -accuse hire -punish
verb person call advise warn -betray comfort lead +protect -deceive recognise
verb thing  carry hold push pull open break bring sell borrow lend steal count wash paint burn
verb thing  eat taste bake cut tie throw drop send read study describe +enjoy -destroy -damage +improve
verb thing  want keep use copy move
verb place  leave enter reach cross explore search sweep
verb alone  +laugh -weep sleep wait sing work smile -complain speak dream listen think +succeed -suffer
verb moving walk travel live hurry wander swim sail return arrive stay stand sit
adjective - tall short heavy light thin thick narrow wide deep round flat -sharp soft hard wet dry
adjective - red blue green yellow white black golden wooden broken empty full new famous rare
adjective - +kind -cruel +polite -rude +honest -greedy +gentle -lazy +proud -shy +calm -nervous +lucky -poor busy
adjective - hungry thirsty curious serious simple late modern foreign local +useful -useless +beautiful
adjective - -ugly sweet bitter fresh loud +pleasant +healthy sleepy
"""

ADVERBS_FINAL = (
    "+happily +proudly +bravely +kindly +cheerfully +wisely -sadly -badly -bitterly -nervously -rudely slowly quickly "
    "quietly carefully again together today alone there here outside"
)
ADVERBS_FREQUENCY = "often always never sometimes usually rarely seldom already still"

NAMES_MALE = "Peter John David Henry Martin Oscar Simon Victor Walter Felix Hugo Leo"
NAMES_FEMALE = "Anna Maria Clara Emma Julia Laura Nina Rosa Sofia Helen Alice Ida"

PREPOSITIONS = {"in": "place", "near": "place", "behind": "place", "with": "person", "for": "person", "about": "thing"}
COMPLEMENT_PREPOSITIONS = {"of": "person", "from": "place"}
"""Preposition -> the class of noun that mostly follows it; the second kind introduces complements."""

DETERMINERS = {
    "the": (None, 10.0),
    "this": (0, 2.0),
    "another": (0, 1.5),
    "every": (0, 1.0),
    "these": (1, 1.2),
    "many": (1, 1.0),
    "some": (1, 1.3),
    "several": (1, 0.8),
}
"""Determiner -> the number it requires (0 singular, 1 plural, None either) and its weight."""
POSSESSIVES = {True: "his", False: "her"}
POSSESSIVE_WEIGHT = 4.0
PRONOUNS = {True: "he", False: "she"}
"""By whether the protagonist is male."""

OPENERS = (("Later", "Subsequently"), ("Then", "Consequently"), ("Anyway", "Finally"))
"""How each further part of a document opens: the informal word, the formal one."""
CONNECTIVES = (("Also", "Moreover"), ("Well", "Furthermore"), ("Now", "Indeed"))
INTENSIFIERS = (("really", "very"), ("pretty", "rather"))
CONSEQUENCES = (("so", "thus"),)
CONTRASTS = (("but", "yet"),)
MODALS = (("can", "may"), ("will", "shall"), ("might", "must"))
"""Pairs of function words, informal and formal, by which a document shows its register."""


def concepts() -> tuple[Concept, ...]:
    """All concepts, sets first, in the order of the tables. Raises ValueError if a form occurs twice, or if true synonyms
    differ in anything that affects what follows."""
    found = []
    for line in _SETS.strip().splitlines():
        part, sense, kind, *entries = line.split()
        for entry in entries:
            words = tuple(_word(text, part, sense) for text in entry.split("/"))
            contextual = kind in ("register", "number", "place")
            found.append(Concept(part, *(("contextual", kind) if contextual else (kind, "none")), words))
    for line in _SINGLES.strip().splitlines():
        part, sense, *entries = line.split()
        found += [Concept(part, "single", "none", (_word(text, part, sense),)) for text in entries]
    _check(found)
    return tuple(found)


def _word(text: str, part: str, sense: str) -> Word:
    match = re.fullmatch(r"([+-]?)(~?)([a-z]+)(?:>([a-z]+))?(?:@([a-z]+))?", text)
    if match is None:
        raise ValueError(f"lexicon: {text!r} is not a word with marks")
    sign, complement, lemma, irregular, own = match.groups()
    forms = (lemma,) if part == "adjective" else (lemma, irregular or inflect(lemma))
    return Word(lemma, forms, {"": 0, "+": 1, "-": -1}[sign], own or sense, bool(complement))


def inflect(lemma: str) -> str:
    """The regular plural of a noun, spelt like the third person of a verb."""
    if re.search(r"(s|x|z|ch|sh)$", lemma):
        return lemma + "es"
    return lemma[:-1] + "ies" if re.search(r"[^aeiou]y$", lemma) else lemma + "s"


def marked(words: str) -> dict[str, int]:
    """Word -> polarity of a list of marked words, in order."""
    return {text.lstrip("+-"): {"+": 1, "-": -1}.get(text[0], 0) for text in words.split()}


def _check(found: list[Concept]) -> None:
    forms = [form for concept in found for word in concept.words for form in word.forms]
    repeated = sorted({form for form in forms if forms.count(form) > 1})
    if repeated:
        raise ValueError(f"lexicon: more than once: {', '.join(repeated)}")
    for concept in found:
        behaviours = {(word.polarity, word.sense, word.complement) for word in concept.words}
        if (len(behaviours) > 1) != (concept.kind in ("near", "antonym")):
            raise ValueError(f"lexicon: {concept.name} is {concept.kind}, but its words behave as {behaviours}")
