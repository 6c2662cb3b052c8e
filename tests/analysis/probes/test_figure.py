"""The figure of a probe: panels that measures share, what has no value, and how far an axis follows intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.compare.statistics import mean_over_seeds
from analysis.probes.base import Measure
from analysis.probes.figure import probe_figures
from analysis.show import style

SHARED = tuple(Measure(f"auc_{score}", "1", "", panel=("auc_*", score), chance=0.5) for score in ("entropy", "energy"))
MEASURES = (
    *SHARED,
    Measure("spread", "1", "", positive=True),
    Measure("unknown", "1", ""),
    Measure("by_corpus", "1", "", along="corpus"),
)
NAMES = ("novels", "code, which has a long name")


def table(values, steps=(10,)):
    """Rows of two arms; ``values``: by measure, one for each arm and seed."""
    rows = [
        {"arm": arm, "run": f"{arm}{seed}", "seed": seed, "step": step, "tokens": 16 * step, "diverged": False}
        | {"measure": key, "index": index, "value": value}
        for key, of_arms in values.items()
        for arm, own in zip(("plain", "bent"), of_arms, strict=True)
        for seed, value in enumerate(own)
        for step in steps
        for index in ((0, 1) if key == "by_corpus" else (-1,))
    ]
    return pd.DataFrame(rows)


def panels(rows, measures=MEASURES):
    with style.look():
        (figure,) = probe_figures(rows, measures, "title", lambda along: NAMES).values()
    return figure, {axes.get_title(loc="left"): axes for axes in figure.axes}


VALUES = {
    "auc_entropy": ([0.6, 0.7], [0.8, 0.9]), "auc_energy": ([0.5, 0.5], [np.nan, np.nan]), "spread": ([1.0, 2.0], [60.0, 50.0]),
    "unknown": ([np.nan] * 2, [np.nan] * 2), "by_corpus": ([0.1, 0.2], [0.3, 0.4]),
}  # fmt: skip


def test_measures_share_a_panel_and_what_has_no_value_has_none():
    figure, drawn = panels(table(VALUES))
    assert list(drawn) == ["auc_*", "spread", "by_corpus"]
    assert [label.get_text() for label in drawn["auc_*"].get_xticklabels()] == ["entropy", "energy"]
    assert [list(line.get_ydata()) for line in drawn["auc_*"].lines if line.get_linestyle() == "--"] == [[0.5, 0.5]]
    assert (drawn["spread"].get_yscale(), drawn["auc_*"].get_yscale()) == ("log", "linear")
    assert [label.get_text() for label in drawn["by_corpus"].get_xticklabels()] == ["novels", "code, which…"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "bent"]


def test_many_names_are_turned_and_of_very_many_some_are_left_out():
    for count, shown in ((15, 15), (100, 20)):
        rows = pd.concat(
            [table({"by_corpus": ([0.1], [0.2])}).query("index == 0").assign(index=at) for at in range(count)]
        )
        names = [f"{at}.self_attn.q_proj" for at in range(count)]
        with style.look():
            (figure,) = probe_figures(rows, MEASURES[-1:], "title", lambda along, names=names: names).values()
        labels = figure.axes[0].get_xticklabels()
        assert [label.get_text() for label in labels] == names[:: count // shown]
        assert {label.get_rotation() for label in labels} == {90.0}


def test_over_training_the_measures_of_a_panel_are_kinds_of_lines():
    figure, drawn = panels(table({key: VALUES[key] for key in ("auc_entropy", "auc_energy")}, steps=(10, 20)), SHARED)
    assert list(drawn) == ["auc_*"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "bent", "entropy", "energy"]


def test_a_figure_of_nothing_but_undefined_values_still_has_its_panels():
    _, drawn = panels(table({"unknown": VALUES["unknown"]}), MEASURES[3:4])
    assert list(drawn) == ["unknown"]


seeds = st.lists(st.floats(0.01, 100), min_size=2, max_size=3, unique=True)


@settings(max_examples=8)
@given(values=st.tuples(seeds, seeds), positive=st.booleans())
def test_an_axis_shows_all_values_and_no_more_of_the_intervals_than_their_span(values, positive):
    key = "spread"
    _, drawn = panels(table({key: values}), (Measure(key, "1", "", positive=positive),))
    axes = drawn[key]
    moved = np.log if axes.get_yscale() == "log" else np.asarray
    known, (low, high) = moved(np.concatenate(values)), moved(np.array(axes.get_ylim()))
    span = np.ptp(known)
    assert low < known.min() < known.max() < high
    assert high - low <= 3 * span * 1.12 + 1e-9
    ends = [end for effect in map(mean_over_seeds, values) for end in (effect.low, effect.high)]
    if moved is np.asarray and known.min() - span < min(ends) and max(ends) < known.max() + span:
        assert low < min(ends) < max(ends) < high
