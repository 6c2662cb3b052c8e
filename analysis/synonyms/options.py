"""The command-line options that studies of synonyms share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

from analysis.words.pair_lists import MIN_SIMILARITY
from common.command import ArgumentParser
from common.errors import InputError


@dataclass(frozen=True)
class Settings:
    """The options that define a study."""

    pairs: str
    """builtin, wordnet, wordnet:FOLDER, or a file of pairs or of substitutions."""
    min_similarity: float
    match_pos: str | None
    """wordnet or wordnet:FOLDER: where the parts of speech of controls come from. None: from the pairs alone."""
    contexts_per_word: int | None
    min_contexts: int
    seed: int


def add_settings(parser: ArgumentParser, contexts_per_word: int | None = None) -> None:
    """Add the options of :class:`Settings`, with this default of --contexts-per-word; None: all."""
    parser.add_argument(
        "--pairs", default="builtin", metavar="SOURCE", help="builtin (the default), wordnet, wordnet:FOLDER or a file"
    )
    parser.add_argument(
        "--match-pos", metavar="SOURCE", help="match controls by part of speech: wordnet, wordnet:FOLDER (default: not)"
    )
    similarity = "least of synonyms in scored lists, 0 to 1 (default %(default)s)"
    parser.add_argument("--min-similarity", type=float, default=MIN_SIMILARITY, metavar="S", help=similarity)
    most = f"at most (default: {contexts_per_word or 'all'})"
    parser.add_argument("--contexts-per-word", type=int, default=contexts_per_word, metavar="N", help=most)
    parser.add_argument("--min-contexts", type=int, default=5, metavar="N", help="of one word of a pair (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn at random (default 0)")


def settings_of(options: argparse.Namespace) -> Settings:
    """The checked settings. Raises :class:`InputError` naming each invalid option."""
    problems = [
        f"--{name.replace('_', '-')} is {value}; give a whole number from {least}"
        for name, least in (("contexts_per_word", 1), ("min_contexts", 1), ("seed", 0))
        if (value := getattr(options, name)) is not None and value < least
    ]
    if not problems and (options.contexts_per_word or options.min_contexts) < options.min_contexts:
        problems.append(
            f"--contexts-per-word {options.contexts_per_word} is below --min-contexts {options.min_contexts}: no pair has so "
            "many; lower the second"
        )
    if problems:
        raise InputError(*problems)
    return Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
