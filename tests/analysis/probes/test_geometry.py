"""Geometry: cells and synonyms against naive definitions, distances' identities, maps, and the command with all its hooks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.compare.arms import find_arms, load_member
from analysis.compare.text import open_text
from analysis.probes.__main__ import main
from analysis.probes.embedded_words import Synonyms, nearest_in_plane, placed, synonym_ratio
from analysis.probes.figure import probe_figures
from analysis.probes.geometry import Geometry, cells
from analysis.probes.states import compared
from analysis.show import style
from common.errors import InputError
from tests.analysis.models import make_model
from tests.analysis.trained import write_training


@settings(max_examples=15)
@given(count=st.integers(1, 6), words=st.integers(2, 9), width=st.integers(1, 5), seed=st.integers(0, 1000))
def test_cells_are_those_of_all_distances(count, words, width, seed):
    generator = np.random.default_rng(seed)
    h, w, y = (
        generator.normal(size=(count, width)),
        generator.normal(size=(words, width)),
        generator.integers(0, words, count),
    )
    found = cells(*(torch.from_numpy(x) for x in (h, w, y)))
    own = [np.linalg.norm(h[i] - w[y[i]]) for i in range(count)]
    other = [min(np.linalg.norm(h[i] - w[k]) for k in range(words) if k != y[i]) for i in range(count)]
    assert found["in_cell"] == np.mean(np.array(own) < other)
    assert found["cell_ratio"] == pytest.approx(np.median(np.array(own) / other), rel=1e-6)
    assert found["cell_distance"] == pytest.approx(np.mean(own), rel=1e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_distances_between_models_see_no_rotation_scale_or_translation(seed):
    generator = torch.Generator().manual_seed(seed)
    h_ND, other_ND = torch.randn(2, 12, 5, generator=generator)
    turned = h_ND @ torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    probe = Geometry(Geometry.Options())
    assert all(abs(value) < 1e-5 for value in probe.against(h_ND, 7 * turned).values())
    plain, moved = probe.against(h_ND, other_ND), probe.against(h_ND, 7 * other_ND + 3)
    assert moved["cka"] == pytest.approx(plain["cka"], abs=1e-5)
    assert moved["procrustes"] == pytest.approx(plain["procrustes"], abs=1e-5)


@given(count=st.integers(3, 8), seed=st.integers(0, 1000))
@settings(max_examples=15)
def test_a_map_is_the_words_cells_cut_by_their_plane(count, seed):
    generator = np.random.default_rng(seed)
    w_VD = generator.normal(size=(12, 6))
    vocabulary = type("Words", (), {"text": [str(k) for k in range(12)]})()
    one = placed(w_VD, {f"word{k}": k for k in range(count)}, vocabulary)["map"]
    place, height = np.array(one["place"]), np.array(one["height"])
    centred = w_VD[:count] - w_VD[:count].mean(0)
    basis = np.linalg.lstsq(place, centred, rcond=None)[0]  # the plane's axes in all dimensions
    points = generator.normal(size=(20, 2))
    exact = np.linalg.norm((points @ basis)[:, None] - centred, axis=2).argmin(1)
    np.testing.assert_array_equal(nearest_in_plane(points[:, 0], points[:, 1], place, height), exact)
    assert one["variance"] == pytest.approx((place**2).sum() / (centred**2).sum())


def test_the_ratio_of_synonyms_needs_ten_pairs_and_is_that_of_mean_distances():
    w_VD = np.random.default_rng(0).normal(size=(60, 4))
    pair_P2 = np.arange(20).reshape(10, 2)
    controls = [(token, np.array([token + 30, token + 35])) for token in range(20)]
    own = np.mean([np.linalg.norm(w_VD[a] - w_VD[b]) for a, b in pair_P2])
    other = np.mean([np.linalg.norm(w_VD[token] - w_VD[k]) for token, chosen in controls for k in chosen])
    assert synonym_ratio(w_VD, Synonyms(pair_P2, controls)) == pytest.approx(own / other)
    assert np.isnan(synonym_ratio(w_VD, Synonyms(pair_P2[:9], controls)))


@pytest.mark.parametrize("family", ["metric", "linear", "gpt2", "gemma2"])
def test_what_a_metric_head_compares_gives_its_logits_and_a_guest_has_rows(family):
    model = make_model(family, 30)
    with torch.no_grad():
        h_ND = model.base_model(input_ids=torch.arange(6)[None]).last_hidden_state[0]
        x_ND, w_VD = compared(model, h_ND, 30)
        if family == "metric":
            expected = -model.lm_head.scale() * torch.cdist(x_ND, w_VD).square()
            torch.testing.assert_close(model.lm_head(h_ND).double(), expected, rtol=1e-4, atol=1e-4)
        else:
            assert w_VD.equal(model.get_output_embeddings().weight.double())
    assert next(model.parameters()).dtype == torch.float32


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("geometry")
    made = [write_training(corpus, folder, "plain", seed=seed, steps=[10, 20]) for seed in (0, 1)]
    return [str(run) for run in (*made, write_training(corpus, folder, "bent", seed=0, steps=[10, 20], head="metric"))]


def states_of(run, step, prepared):
    (arm,) = find_arms([f"{run}/checkpoints/step_{step:08}"])
    with torch.no_grad():
        return Geometry(Geometry.Options()).keep(load_member(arm.members[0]), prepared)


def test_over_training_models_are_compared_with_the_first_arm_and_with_their_last_checkpoint(runs, tmp_path, capsys):
    words = "words=[big, large, river, stone]"
    main(["geometry", *runs, "--out", str(tmp_path), "--over-training", "--set", "windows=4", "--set", words])
    printed = capsys.readouterr().out
    assert "nearest to river in bent_seed0" in printed
    assert "growth [95%]" in printed
    table = pd.read_csv(tmp_path / "values.csv")
    value = table[table["index"] < 0].set_index(["run", "step", "measure"])["value"]
    prepared = Geometry(Geometry.Options(windows=4)).prepare(open_text(find_arms(runs)), seed=0)
    plain, last, other, bent = (
        states_of(run, step, prepared) for run, step in ((runs[0], 10), (runs[0], 20), (runs[1], 10), (runs[2], 10))
    )
    distances = Geometry(Geometry.Options()).against
    assert value["bent_seed0", 10, "cka_to_first"] == pytest.approx(distances(bent, plain)["cka"])
    assert value["plain_seed0", 10, "gram_to_last"] == pytest.approx(distances(plain, last)["gram"])
    assert value["plain_seed0", 10, "cka_to_first"] == pytest.approx(distances(plain, other)["cka"])
    assert np.isnan(value["plain_seed1", 10, "cka_to_first"]), "no pair of seeds counts twice"
    assert np.isnan(value["plain_seed0", 20, "gram_to_last"])
    assert table[table["measure"] == "synonym_ratio"]["value"].isna().all(), "three pairs are too few"
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["details"].keys() == {"plain", "bent_seed0"}
    assert (tmp_path / "geometry_map.png").stat().st_size > 0


def test_many_measures_have_their_arrays_in_a_figure_of_their_own():
    measures = [m for m in Geometry.measures if not m.between]
    known = {"arm": "plain", "run": "plain_seed0", "seed": 0, "step": 1, "tokens": 16, "diverged": False, "value": 0.5}
    table = pd.DataFrame([known | {"measure": m.key, "index": 0 if m.along else -1} for m in measures])
    with style.look():
        assert probe_figures(table, measures, "title", lambda along: ()).keys() == {"probe"}
        more = [replace(measure, key=f"{measure.key}_{k}") for measure in measures for k in range(2)]
        copies = [table.assign(measure=table["measure"] + f"_{k}") for k in range(2)]
        figures = probe_figures(pd.concat(copies), more, "title", lambda along: ())
    assert {name: len(figure.axes) for name, figure in figures.items()} == {"probe": 8, "probe_arrays": 6}


@pytest.mark.parametrize(
    ("words", "message"), [("[big, zymurgy, large]", "zymurgy: not one token"), ("[big, large]", "at least three")]
)
def test_words_that_make_no_map_are_refused(runs, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        main(["geometry", runs[0], "--out", str(tmp_path / "out"), "--set", f"words={words}"])
