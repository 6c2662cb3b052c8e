"""The command on runs with a metric head, against the definitions in float64."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from analysis.compare.arms import find_arms, load_member
from analysis.compare.text import open_text
from analysis.unknown import main
from common.errors import InputError
from model import load_model

from .trained import write_training

WINDOWS, FPR = 12, 0.1


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("unknown")
    made = [write_training(corpus, folder, "plain", seed=seed, steps=[10], head="metric") for seed in (0, 1)]
    checkpoint = made[1] / "checkpoints" / "step_00000010"
    model = load_model(checkpoint)
    model.config.unknown_distance, model.config.unknown_fpr = 20.0, 0.5
    model.save_pretrained(checkpoint)
    return [str(run) for run in made]


@pytest.fixture(scope="module")
def found(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    main([*runs, "--out", str(out), "--fpr", str(FPR), "--windows", str(WINDOWS), "--bins", "3"])
    return json.loads((out / "unknown.json").read_text())


def test_the_threshold_is_calibrated_on_other_windows_than_are_measured(runs, found):
    assert (found["fpr"], found["windows"]) == (FPR, WINDOWS)
    arms = find_arms(runs)
    x_BT, _ = open_text(arms).windows(2 * WINDOWS, seed=0)
    for member in (member for arm in arms for member in arm.members):
        model = load_member(member).double()
        with torch.no_grad():
            d_BT = -model(input_ids=torch.from_numpy(x_BT)).logits.amax(-1).numpy()
        one = found["models"][member.label]
        over = (d_BT[::2] > one["tau"] * (1 + 1e-6)).mean()
        assert over == pytest.approx(FPR, abs=1.5 / d_BT[::2].size)
        assert one["flagged"]["text"] == pytest.approx((d_BT[1::2] > one["tau"]).mean(), abs=1.5 / d_BT[1::2].size)


def test_what_is_measured_is_in_range_and_of_what_the_table_says(found):
    plain, saved = found["models"].values()
    assert plain["saved_tau"] is plain["flagged_by_saved"] is None
    assert saved["saved_tau"] == 20.0
    assert saved["flagged_by_saved"].keys() == plain["flagged"].keys() == {"text", "shuffled", "random"}
    for one in (plain, saved):
        assert one["auroc_distance"].keys() == one["auroc_probability"].keys() == {"shuffled", "random"}
        assert all(0 <= v <= 1 for name in ("auroc_distance", "auroc_probability") for v in one[name].values())
        assert len(one["by_frequency"]) == 3
        assert np.mean([b["flagged"] for b in one["by_frequency"]]) == pytest.approx(one["flagged"]["text"], abs=1e-9)
        edges = [edge for b in one["by_frequency"] for edge in (b["least"], b["most"])]
        assert edges == sorted(edges)


def test_the_table_is_printed(runs, tmp_path, capsys):
    main([*runs, "--out", str(tmp_path), "--windows", "2"])
    told = capsys.readouterr().out
    assert "AUROC probability: random" in told
    assert "plain_seed0" in told
    assert f"written to {tmp_path}: unknown.json" in told


def test_a_head_without_distances_is_refused(corpus, tmp_path):
    run = write_training(corpus, tmp_path, "flat", seed=0, steps=[10])
    with pytest.raises(InputError, match="its head has no distances to its classes; name runs with"):
        main([str(run), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--fpr=0", "--fpr is 0"),
        ("--fpr=nan", "--fpr is nan"),
        ("--windows=0", "--windows is 0"),
        ("--seed=-1", "--seed"),
    ],
)
def test_numbers_out_of_range_are_refused(runs, option, said, tmp_path):
    with pytest.raises(InputError, match=said):
        main([*runs, "--out", str(tmp_path), option])
