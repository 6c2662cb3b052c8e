"""The weights that analysis.weights draws: those by which each objective's gradient differs from cross-entropy's."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from analysis.show import style
from analysis.weights import (
    GROUPS,
    ON_RIVALS,
    ON_SUM,
    P_ALONE,
    SUMS,
    TABLE,
    all_curves,
    draw_weights,
    main,
    token_logits,
)
from common.command import exit_status
from model import OBJECTIVES
from model.objective_weighted import Weighted
from model.objectives import of_rows

PLUGIN = """
import torch
from model import register_objective
from model.objective_weighted import Weighted


@register_objective("root")
class Root(Weighted):
    def weight(self, t):
        return torch.sigmoid(t.true - t.negatives).sqrt()

    def value(self, t):
        return 2 - 2 * self.weight(t)
"""
CURVES = list(all_curves())


def test_every_objective_of_the_family_has_a_curve():
    family = {kind for kind, cls in OBJECTIVES.items() if issubclass(cls, Weighted)}
    named = {name.split(",")[0] for curve in CURVES for name in curve.name.split(" = ")}
    assert named == family


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.label)
def test_c_is_the_ratio_of_the_gradients(curve):
    """Every logit's gradient over that of cross-entropy, by autograd, among 12 tokens of which two compete."""
    generator = torch.Generator().manual_seed(0)
    z_NV = -2 * torch.rand(40, 12, generator=generator, dtype=torch.float64).requires_grad_()
    y_N = torch.randint(0, 12, (40,), generator=generator)
    t = of_rows(z_NV, y_N, torch.zeros(40, dtype=torch.float64))
    (actual_NV,) = torch.autograd.grad(curve.objective.loss(t).sum(), z_NV)
    (of_ce_NV,) = torch.autograd.grad(torch.nn.functional.cross_entropy(z_NV, y_N, reduction="sum"), z_NV)
    c_N = curve.objective.weight(t).detach()
    torch.testing.assert_close(actual_NV, c_N[:, None] * of_ce_NV, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("S", SUMS)
@pytest.mark.parametrize("rivals", [1, 10, 8191])
def test_the_tokens_are_those_that_are_said(S, rivals):
    t = token_logits(TABLE, S, rivals)
    np.testing.assert_allclose(t.negatives.exp(), [S] * len(TABLE), rtol=1e-12)
    np.testing.assert_allclose(torch.sigmoid(t.true - t.negatives), TABLE, rtol=1e-12)
    np.testing.assert_allclose(t.largest_negative.exp(), [S / rivals] * len(TABLE), rtol=1e-12)


def test_what_c_depends_on():
    found = {name: curve.group for curve in CURVES for name in curve.name.split(" = ")}
    assert found["focal, gamma 2"] == found["tfsd_anchored, margin 0"] == found["threshold, probability 0.9"] == P_ALONE
    assert found["tfsd"] == found["weighted_ce"] == found["ce_tfsd, share 0.1"] == ON_SUM
    assert found["tfsd_anchored, anchor largest"] == ON_RIVALS


def test_numbers_by_hand():
    at = {curve.label: dict(zip(TABLE, curve.weights(np.array(TABLE)), strict=True)) for curve in CURVES}
    assert at["focal, gamma 1"][0.5] == pytest.approx(0.5 + 0.5 * math.log(2))
    assert at["gce, q 0.3"][0.1] == pytest.approx(0.1**0.3)
    assert at["tfsd_anchored, margin 0"][0.5] == pytest.approx(1 / 3)
    assert at["tfsd = weighted_ce, S = 1"][0.1] == pytest.approx((1 - 1 / 9) / 2)
    assert at["tfsd = weighted_ce, S = 8191"][1e-4] == pytest.approx((1 - 8191e-4 / (1 - 1e-4)) / 8192)
    assert at["tfsd_quantile, level -3"][0.1] == 0  # above e^-3
    assert math.isnan(at["tfsd = weighted_ce, S = 1"][0.9])  # its logit would be log 9


@pytest.mark.parametrize("log_z", [-6.0, -1.0, 0.0])
def test_at_a_given_z_tfsd_is_anchored_tfsd(log_z):
    """c = (1 - p Z) / (1 + (1 - p) Z), which is that of tfsd_anchored with a margin of -log Z."""
    z_NV = torch.randn(50, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(1) + log_z
    t = of_rows(z_NV, torch.arange(50) % 9, torch.zeros(50, dtype=torch.float64))
    anchored, plain = OBJECTIVES["tfsd_anchored"], OBJECTIVES["tfsd"]
    expected_N = anchored(anchored.Options(margin=-log_z)).weight(t)
    torch.testing.assert_close(plain(plain.Options()).weight(t), expected_N, rtol=1e-10, atol=1e-13)


def test_the_files_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["--out", str(tmp_path)])
    said = capsys.readouterr().out
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["p"] == list(TABLE)
    rows = {(row["objective"], row["S"], row["rivals"]): row["c"] for row in told["objectives"]}
    assert len(rows) == len(CURVES)
    assert rows["tfsd = weighted_ce", 1.0, 8191][-1] is None
    assert all(curve.label in said for curve in CURVES)
    lines = list(csv.DictReader((tmp_path / "weights.csv").open()))
    assert {(line["objective"], float(line["S"]), int(line["rivals"])) for line in lines} == rows.keys()
    assert (tmp_path / "weights.png").read_bytes()[:4] == b"\x89PNG"


def test_the_figure_has_every_curve_in_the_panel_of_its_group():
    with style.look():
        figure = draw_weights(CURVES)
    for axes, group in zip(figure.axes, GROUPS, strict=True):
        labels = [line.get_label() for line in axes.lines]
        assert labels == ["ce", *(curve.label for curve in CURVES if curve.group == group)]
        assert axes.get_title(loc="left") == group
    assert "p_y" in " ".join(text.get_text() for text in figure.findobj(Text))


def test_an_objective_of_a_plug_in_is_drawn_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "root.py").write_text(PLUGIN)
    main(["--out", str(tmp_path / "out"), "--plugins", str(tmp_path / "root.py")])
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("root ")]
    assert row == ["root", "0.01", "0.1", "0.316", "0.707", "0.949", "0.995"]


def test_an_option_without_a_default_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    text = PLUGIN.replace('"root"', '"bare"').replace(
        "    def weight", "    @dataclass(frozen=True)\n    class Options:\n        power: float\n\n    def weight", 1
    )
    (tmp_path / "bare.py").write_text(f"from dataclasses import dataclass\n{text}")
    assert exit_status(lambda: main(["--out", str(tmp_path / "out"), "--plugins", str(tmp_path / "bare.py")])) == 2
    assert "bare: give its options a default to have it drawn: power" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
