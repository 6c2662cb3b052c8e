"""Words as single tokens: whether synonyms' embeddings lie nearer than others', which are nearest, and a map of chosen ones.

Shapes: V vocabulary, D width, P pairs, C control words of a pair, K chosen words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from analysis.compare.statistics import Floats, Ids
from analysis.compare.text import RunText
from analysis.show.style import legend_outside
from analysis.synonyms.build_study import Controls, relations
from analysis.words.pair_lists import load_pairs
from analysis.words.vocabulary import Vocabulary, corpus_words
from common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_PAIRS = 10
"""Synonym pairs of single tokens below which their ratio is not told."""
NEIGHBOURS = 8
_GRID = 400
"""Points of a map along each axis at which the nearest word is found."""
_MARGIN = 0.25
"""Of a map around its words, as a share of their range."""


@dataclass(frozen=True)
class Synonyms:
    """Token ids of synonym pairs and, for each word of a pair, of words as frequent as the other one."""

    pair_P2: Ids
    controls: list[tuple[int, Ids]]
    """A word of a pair, and control words of its synonym."""


def find_synonyms(text: RunText, vocabulary: Vocabulary) -> Synonyms:
    """The built-in synonym pairs that are single tokens, occur in the training text, and have controls on both sides."""
    words = corpus_words(text.store.train.ids, vocabulary)
    pairs = load_pairs("builtin")
    controls = Controls(words, lambda word: frozenset())
    related = relations(pairs)[0]
    found: list[tuple[int, int]] = []
    others: list[tuple[int, Ids]] = []
    for pair in pairs.synonyms:
        both = (pair.word_a, pair.word_b)
        first, second = (vocabulary.single_token(word) for word in both)
        if first is None or second is None or not all(word in words.count for word in both):
            continue
        excluded = related[both[0]] | related[both[1]]
        own = []
        for token, synonym in ((first, both[1]), (second, both[0])):
            chosen = [vocabulary.single_token(word) for word in controls.choose(synonym, 1, excluded)]
            own.append((token, np.array([other for other in chosen if other is not None], dtype=np.int64)))
        if all(len(chosen_C) for _, chosen_C in own):
            found.append((first, second))
            others += own
    return Synonyms(np.array(found, dtype=np.int64).reshape(-1, 2), others)


def synonym_ratio(w_VD: Floats, synonyms: Synonyms) -> float:
    """Mean distance of synonyms over that of a word and words as frequent as its synonym; NaN from fewer than ten pairs."""
    if len(synonyms.pair_P2) < FEWEST_PAIRS:
        return math.nan
    own = np.linalg.norm(w_VD[synonyms.pair_P2[:, 0]] - w_VD[synonyms.pair_P2[:, 1]], axis=1)
    other = [np.linalg.norm(w_VD[token] - w_VD[chosen_C], axis=1) for token, chosen_C in synonyms.controls]
    return float(own.mean() / np.concatenate(other).mean())


def chosen_tokens(words: Sequence[str], vocabulary: Vocabulary) -> dict[str, int]:
    """The tokens of chosen words. Raises :class:`InputError` naming those that are not single tokens."""
    found = {word: vocabulary.single_token(word) for word in words}
    if wrong := [word for word, token in found.items() if token is None]:
        raise InputError(f"--set words: {', '.join(wrong)}: not one token after a space; leave them out")
    if 0 < len(found) < 3:
        raise InputError("--set words: a map needs at least three different words; name more, or none")
    return {word: token for word, token in found.items() if token is not None}


def placed(w_VD: Floats, tokens: Mapping[str, int], vocabulary: Vocabulary) -> dict[str, Any]:
    """Nearest neighbours of chosen words among all tokens, and the words in the plane of their first two principal components.

    ``height``: a word's distance from that plane; ``variance``: the share of the words' variance that the plane holds.
    """
    at_K = np.array(list(tokens.values()))
    neighbours = {}
    for word, token in tokens.items():
        distance_V = np.linalg.norm(w_VD - w_VD[token], axis=1)
        near = [int(k) for k in np.argsort(distance_V, kind="stable") if k != token][:NEIGHBOURS]
        neighbours[word] = [[vocabulary.text[k], float(distance_V[k])] for k in near]
    centred_KD = w_VD[at_K] - w_VD[at_K].mean(0)
    _, size_R, axis_RD = np.linalg.svd(centred_KD, full_matrices=False)
    axis_2D = axis_RD[:2] * np.sign(axis_RD[[0, 1], np.abs(axis_RD[:2]).argmax(1)])[:, None]
    place_K2 = centred_KD @ axis_2D.T
    height_K = np.linalg.norm(centred_KD - place_K2 @ axis_2D, axis=1)
    return {
        "neighbours": neighbours,
        "map": {
            "words": list(tokens),
            "place": place_K2.tolist(),
            "height": height_K.tolist(),
            "variance": float((size_R[:2] ** 2).sum() / (size_R**2).sum()),
        },
    }


def nearest_in_plane(x_M: Floats, y_M: Floats, place_K2: Floats, height_K: Floats) -> npt.NDArray[np.int64]:
    """Which of the words is nearest to each point of their plane, in all dimensions: a distance has the word's height in it."""
    square_MK = (x_M[:, None] - place_K2[:, 0]) ** 2 + (y_M[:, None] - place_K2[:, 1]) ** 2 + height_K**2
    return square_MK.argmin(1)


def draw_maps(details: Mapping[str, Any]) -> Figure:
    """A map for each arm: the words in their plane, and for each the part of the plane where it is the nearest of them."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from analysis.show.style import arm_styles

    words = next(iter(details.values()))["map"]["words"]
    colours = [style.colour for style in arm_styles(words).values()]
    columns = min(3, len(details))
    rows = math.ceil(len(details) / columns)
    figure = Figure(figsize=(4.4 * columns, 1.0 + 4.2 * rows), layout="constrained")
    for place, (arm, one) in enumerate(details.items(), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.set_title(f"{arm}: {one['map']['variance']:.0%} of the variance", fontsize=9)
        _draw_map(axes, one["map"], colours)
    title = "Embeddings in the plane of their first two principal components; colour: which of them is nearest"
    figure.suptitle(title, fontsize=10)
    handles = [Patch(color=colour, alpha=0.5, label=word) for word, colour in zip(words, colours, strict=True)]
    legend_outside(figure, handles, loc="outside lower center", most=8)
    return figure


def _draw_map(axes: Axes, one: Mapping[str, Any], colours: list[str]) -> None:
    from matplotlib.colors import ListedColormap

    place_K2, height_K = np.array(one["place"]), np.array(one["height"])
    centre_2, half = (place_K2.max(0) + place_K2.min(0)) / 2, (0.5 + _MARGIN) * float(np.ptp(place_K2, axis=0).max())
    low_2, high_2 = centre_2 - half, centre_2 + half
    x_G, y_G = (np.linspace(low, high, _GRID) for low, high in zip(low_2, high_2, strict=True))
    x_GG, y_GG = np.meshgrid(x_G, y_G)
    cell_GG = nearest_in_plane(x_GG.ravel(), y_GG.ravel(), place_K2, height_K).reshape(x_GG.shape)
    extent = (low_2[0], high_2[0], low_2[1], high_2[1])
    axes.imshow(
        cell_GG, origin="lower", extent=extent, cmap=ListedColormap(colours), vmin=-0.5, vmax=len(colours) - 0.5,
        alpha=0.25, interpolation="nearest",
    )  # fmt: skip
    for (x, y), word, colour in zip(place_K2, one["words"], colours, strict=True):
        axes.plot(x, y, "o", color=colour, markersize=4)
        axes.annotate(word, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=8)
    axes.grid(visible=False)


def neighbour_lines(details: Mapping[str, Any]) -> list[str]:
    """The nearest tokens of each word, by arm."""
    return [
        f"nearest to {word} in {arm}: " + ", ".join(f"{text!r} {distance:.3g}" for text, distance in near)
        for arm, one in details.items()
        for word, near in one["neighbours"].items()
    ]
