"""WordNet's rules, on a small dictionary written here in WordNet's own file format (wndb(5WN))."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from analysis.words.pair_lists import load_pairs
from analysis.words.pairs import Pair
from analysis.words.wordnet import CLOSED_CLASSES, WordNet
from common.errors import InputError

pytest.importorskip("nltk")

FILES = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
NUMBERS = {"n": 1, "v": 2, "a": 3, "r": 4, "s": 5}
LICENCE = "  1 WordNet 3.0 Copyright of nobody: words for a test\n"


@dataclass(frozen=True)
class Sense:
    """A synset: its words, and for each the number of its tagged occurrences."""

    kind: str
    words: Sequence[str]
    tagged: Sequence[int]
    antonyms: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Word to the name of the other synset and the word there."""
    head: str = ""


# Senses stand in the order of their frequency, as in WordNet.
SENSES = {
    "large": Sense("a", ["large", "big"], [90, 80], {"big": ("small", "small")}),
    "small": Sense("a", ["small", "little"], [70, 60], {"small": ("large", "big")}),
    "vast": Sense("s", ["vast", "immense"], [9, 8], head="large"),
    "house": Sense("n", ["house", "dwelling"], [90, 20]),
    "company": Sense("n", ["company", "firm"], [50, 30]),
    "firm": Sense("n", ["firm", "house"], [25, 5]),
    "sign": Sense("n", ["sign", "house"], [3, 1]),
    "hand": Sense("n", ["hand", "paw"], [200, 2]),
    "custody": Sense("n", ["hands", "keeping"], [4, 5]),
    "inch": Sense("n", ["inch", "in"], [20, 1]),
    "copper": Sense("n", ["copper", "police_officer", "bobby", "Bobby"], [0, 0, 0, 0]),
    "valley": Sense("n", ["dale", "glen"], [0, 0]),
    "wood": Sense("n", ["copse", "holt"], [0, 0]),
    "lair": Sense("n", ["dale", "holt"], [0, 0]),
    "cave": Sense("n", ["dale", "cavern"], [0, 0]),
    "meadow": Sense("n", ["Lea", "ley"], [0, 0]),
    "begin": Sense("v", ["begin", "start"], [80, 50], {"begin": ("end", "end")}),
    "end": Sense("v", ["end", "finish"], [40, 30], {"end": ("begin", "begin")}),
    "answer_n": Sense("n", ["answer", "reply"], [30, 20]),
    "answer_v": Sense("v", ["answer", "reply"], [25, 35]),
    "quickly": Sense("r", ["quickly", "fast"], [30, 10]),
    "fast": Sense("a", ["fast", "quick"], [50, 40]),
}


def write_wordnet(folder: Path) -> None:
    """The dictionary of ``SENSES`` as data, index, exception and count files."""
    folder.mkdir()
    offsets = dict.fromkeys(SENSES, 0)
    for _ in range(2):  # offsets have eight digits whatever they are: the second time they are right
        for letter, file in FILES.items():
            text = LICENCE
            for name, sense in SENSES.items():
                if letter == sense.kind or (letter, sense.kind) == ("a", "s"):
                    offsets[name] = len(text.encode())
                    text += data_line(name, sense, offsets)
            (folder / f"data.{file}").write_text(text)
    for letter, file in FILES.items():
        (folder / f"index.{file}").write_text(LICENCE + "".join(index_lines(letter, offsets)))
        (folder / f"{file}.exc").write_text("men man\n" if letter == "n" else "")
    keys = sorted(
        f"{sense_key(sense, word)} 1 {count}\n"
        for sense in SENSES.values()
        for word, count in zip(sense.words, sense.tagged, strict=True)
        if count
    )
    (folder / "cntlist.rev").write_text("".join(keys))


def data_line(name: str, sense: Sense, offsets: dict[str, int]) -> str:
    words = " ".join(f"{word} {word_id(sense, word)}" for word in sense.words)
    pointers = [
        f"! {offsets[other]:08d} {sense.kind} {sense.words.index(word) + 1:02x}{SENSES[other].words.index(there) + 1:02x}"
        for word, (other, there) in sense.antonyms.items()
    ]
    if sense.head:
        pointers.append(f"& {offsets[sense.head]:08d} a 0000")
    frames = ["01 + 02 00"] if sense.kind == "v" else []
    parts = [
        f"{offsets[name]:08d} 00 {sense.kind} {len(sense.words):02x} {words} {len(pointers):03d}",
        *pointers,
        *frames,
    ]
    return " ".join(parts) + " | a meaning  \n"


def word_id(sense: Sense, word: str) -> int:
    """Tells senses of one word in one lexicographer file apart."""
    return [other for other in SENSES.values() if other.kind == sense.kind and word in other.words].index(sense)


def sense_key(sense: Sense, word: str) -> str:
    head = f"{SENSES[sense.head].words[0]}:00" if sense.head else ":"
    return f"{word.lower()}%{NUMBERS[sense.kind]}:00:{word_id(sense, word):02d}:{head}"


def index_lines(letter: str, offsets: dict[str, int]) -> list[str]:
    found: dict[str, list[str]] = {}
    for name, sense in SENSES.items():
        if letter == sense.kind or (letter, sense.kind) == ("a", "s"):
            for word in sense.words:
                listed = found.setdefault(word.lower(), [])
                if f"{offsets[name]:08d}" not in listed:
                    listed.append(f"{offsets[name]:08d}")
    return [f"{word} {letter} {len(at)} 0 {len(at)} 0 {' '.join(at)}  \n" for word, at in sorted(found.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wordnet") / "dict"
    write_wordnet(path)
    return path


@pytest.fixture(scope="module")
def wordnet(folder: Path) -> WordNet:
    return WordNet(folder)


EVERY_WORD = frozenset(word for sense in SENSES.values() for word in sense.words)


def synonyms(wordnet: WordNet, *words: str) -> list[str]:
    return [str(pair) for pair in wordnet.pairs(words or EVERY_WORD).synonyms]


def test_a_folder_without_lexnames_is_read_and_named_with_its_version(wordnet: WordNet, folder: Path) -> None:
    assert not (folder / "lexnames").exists()
    assert wordnet.source == f"WordNet 3.0 (nltk, {folder})"


def test_all_pairs_keep_the_rules(wordnet: WordNet) -> None:
    found = wordnet.pairs(EVERY_WORD)
    assert found.synonyms == (
        Pair("answer", "reply", pos="n"),
        Pair("begin", "start", pos="v"),
        Pair("big", "large", pos="a"),
        Pair("bobby", "copper", pos="n"),
        Pair("company", "firm", pos="n"),
        Pair("copse", "holt", pos="n"),
        Pair("dale", "glen", pos="n"),
        Pair("dwelling", "house", pos="n"),
        Pair("end", "finish", pos="v"),
        Pair("fast", "quick", pos="a"),
        Pair("hand", "paw", pos="n"),
        Pair("immense", "vast", pos="a"),
        Pair("little", "small", pos="a"),
    )
    assert found.antonyms == (Pair("begin", "end", pos="v"), Pair("big", "small", pos="a"))
    assert found.dissimilar == ()


def test_a_sense_that_is_the_first_of_neither_word_or_late_for_one_makes_no_pair(wordnet: WordNet) -> None:
    assert synonyms(wordnet, "dale", "holt") == []
    assert synonyms(wordnet, "dale", "cavern") == []


def test_a_name_is_not_the_word_spelled_like_it(wordnet: WordNet) -> None:
    assert synonyms(wordnet, "lea", "Lea", "ley") == []


def test_a_sense_that_is_a_small_share_of_a_word_makes_no_pair(wordnet: WordNet) -> None:
    # house: 5 of 96 tagged occurrences are the firm, and the sign is its third sense.
    assert synonyms(wordnet, "firm", "house", "sign") == []
    # fast is an adverb in 10 of 60.
    assert synonyms(wordnet, "quickly", "fast") == []


def test_a_form_of_a_much_more_frequent_word_makes_no_pair(wordnet: WordNet) -> None:
    assert synonyms(wordnet, "hands", "keeping") == []


def test_words_of_closed_classes_and_words_that_are_not_asked_for_are_in_no_pair(wordnet: WordNet) -> None:
    assert "in" in CLOSED_CLASSES
    assert synonyms(wordnet, "in", "inch") == []
    assert synonyms(wordnet, "big", "vast", "inch") == []


def test_parts_of_speech_of_base_and_inflected_forms(wordnet: WordNet) -> None:
    expected = {
        "answer": "nv",
        "answers": "nv",
        "fast": "ar",
        "vast": "a",
        "smaller": "a",
        "started": "v",
        "in": "",
        "qux": "",
    }
    assert {word: "".join(sorted(wordnet.parts_of_speech(word))) for word in expected} == expected


def test_load_pairs_searches_the_given_words(folder: Path) -> None:
    found = load_pairs(f"wordnet:{folder}", words=frozenset({"big", "large", "small"}))
    assert [str(pair) for pair in found.synonyms] == ["big/large"]
    assert [str(pair) for pair in found.antonyms] == ["big/small"]
    assert found.source == f"WordNet 3.0 (nltk, {folder})"
    with pytest.raises(ValueError, match="given words"):
        load_pairs(f"wordnet:{folder}")


@pytest.fixture
def data_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder in which nltk looks for data, with its WordNet not yet loaded."""
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    monkeypatch.setattr(nltk.corpus, "wordnet", LazyCorpusLoader("wordnet", WordNetCorpusReader, None))
    return tmp_path


@pytest.mark.filterwarnings("ignore:The multilingual functions")
def test_nltks_own_data_give_the_same_pairs(data_path: Path, wordnet: WordNet) -> None:
    (data_path / "corpora").mkdir()
    installed = data_path / "corpora" / "wordnet"
    write_wordnet(installed)
    (installed / "lexnames").write_text("00\tadj.all\t3\n")
    (installed / "index.sense").write_text("")
    found = load_pairs("wordnet", words=EVERY_WORD)
    assert found.source == "WordNet 3.0 (nltk)"
    assert (found.synonyms, found.antonyms) == (wordnet.pairs(EVERY_WORD).synonyms, wordnet.pairs(EVERY_WORD).antonyms)


def test_what_is_missing_is_one_line_with_the_mend(data_path: Path) -> None:
    with pytest.raises(InputError) as error:
        WordNet(data_path)
    assert f"wordnet:{data_path} has no index.noun" in str(error.value)
    with pytest.raises(InputError, match="names no folder"):
        load_pairs("wordnet:", words=frozenset())
    with pytest.raises(InputError) as error:
        WordNet()
    (problem,) = error.value.problems
    assert "pip install nltk" in problem
    assert "python -m nltk.downloader wordnet" in problem
    assert "wordnet:FOLDER" in problem


def test_files_that_are_not_wordnets_are_one_line(tmp_path: Path, folder: Path) -> None:
    for damaged, content in (("index.noun", "nonsense n x\n"), ("cntlist.rev", "nonsense\n"), ("data.adj", "\n")):
        copy = tmp_path / damaged
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        (copy / damaged).write_text(content)
        with pytest.raises(InputError) as error:
            WordNet(copy)
        assert len(error.value.problems) == 1
