from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from analysis.compare.arms import Arm
from analysis.compare.temperature import VIEWS
from analysis.synonyms.compare import Comparison, compare
from analysis.synonyms.measure_models import ModelResult
from analysis.synonyms.metrics import KEYS
from analysis.synonyms.options import Settings
from analysis.synonyms.report import brief, item_table, printed, summary, write_contexts
from analysis.synonyms.study import Role
from common.files import write_json
from tests.analysis.made import arm, metrics_of, study_of, unit

BASE, OTHER, GUEST = arm("base", 0, 1), arm("other", 0, 1), arm("guest", None)
ARMS = (BASE, OTHER, GUEST)
SETTINGS = Settings("made", 0.8, None, None, 1, 0)


@pytest.fixture(scope="module")
def found() -> Comparison:
    """Three arms on three items; the guest has no matched view and one item without a distance, and nobody a GAP."""
    units = [unit(i, f"lemma{i}", Role.SYNONYM, Role.CONTROL, Role.ANTONYM) for i in range(3)]
    rng = np.random.default_rng(0)
    study = study_of(units, [0] * 10 + [1] * 3 + [2] * 2 + [0, 1, 2], shuffled=range(15, 18))
    results: dict[str, ModelResult] = {}
    for one in ARMS:
        for member in one.members:
            metrics = metrics_of(18, lambda key: np.full(18, math.nan) if key == "gap" else rng.normal(size=(3, 18)))
            temperatures, distance_P = dict.fromkeys(VIEWS, 1.0), rng.uniform(0.5, 1.5, 3)
            if one is GUEST:
                temperatures["matched"], distance_P[1] = math.nan, math.nan
                for value_XM in metrics.values():
                    value_XM[VIEWS.index("matched")] = math.nan
            results[member.label] = ModelResult(
                metrics, temperatures, dict.fromkeys(VIEWS, 2.0), 3.0, distance_P, takes_trees=True
            )
    return compare(study, ARMS, results, seed=0)


def strictly(path: Path) -> dict[str, Any]:
    """The JSON in a file, which must hold no NaN or infinity."""
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON"))
    assert isinstance(found, dict)
    return found


def test_the_summary_is_strict_json_and_says_how_many_of_everything(found: Comparison, tmp_path: Path) -> None:
    write_json(tmp_path / "summary.json", summary(found, SETTINGS))
    written = strictly(tmp_path / "summary.json")
    assert written["counts"]["contexts"] == 15 and written["counts"]["shuffled_contexts"] == 3
    for one in ARMS:
        assert written["gains"][one.label]["n"] == 15 * len(one.members)
        for view in VIEWS:
            for key in KEYS:
                absent = key == "gap" or (one is GUEST and view == "matched")
                assert written["means"][one.label][view][key]["items"] == (0 if absent else 3)
                assert (written["means"][one.label][view][key]["mean"] == "NaN") == absent
                if one is BASE:
                    continue
                assert written["signed_rank"][one.label][view][key]["items"] == (0 if absent else 3)
                for scope in ("all", "single"):
                    row = written["differences"][one.label][scope][view]
                    assert key not in row or row[key]["n"] == (0 if absent else 15 * len(one.members))
    assert [written["distance_ratio"][one.label]["items"] for one in ARMS] == [3, 3, 2]
    assert [written["items_tested"][label]["items"] for label in ("other", "guest")] == [3, 0]
    # of 10, 3 and 2 contexts: signs that all agree have a p of 2 in 1024, 8 and 4, of which only the first can pass Holm
    assert found.item_tests["other"].lowest_P == pytest.approx([2 / 1024, 2 / 8, 2 / 4])
    assert [written["items_tested"][label]["too_few_contexts"] for label in ("other", "guest")] == [2, 0]
    assert set(written["metrics"]) == set(KEYS)
    assert [(m["label"], m["arm"], m["seed"]) for m in written["models"]][-1] == ("guestNone", "guest", None)


def test_the_means_of_the_items_are_those_of_the_summary(found: Comparison) -> None:
    means = summary(found, SETTINGS)["means"]
    rows = list(csv.DictReader(io.StringIO(item_table(found).to_csv(index=False))))
    assert [(row["arm"], row["item"]) for row in rows] == [(one.label, f"item {i}") for one in ARMS for i in range(3)]
    assert [int(row["contexts"]) for row in rows[:3]] == [10, 3, 2]
    for one in ARMS:
        own = [row for row in rows if row["arm"] == one.label]
        for view in VIEWS:
            for key in KEYS:
                values = [float(row[key if view == "raw" else f"{key}_{view}"] or "nan") for row in own]
                expected = means[one.label][view][key]["mean"]
                assert np.mean(values) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert {row["p"] for row in rows if row["arm"] in ("base", "guest")} == {""}
    assert all(float(row["p_holm"]) >= float(row["p"]) for row in rows if row["arm"] == "other")


def test_contexts_are_a_row_for_each_model_and_query(found: Comparison, tmp_path: Path) -> None:
    write_contexts(found, tmp_path / "contexts.parquet")
    table = parquet.read_table(tmp_path / "contexts.parquet")
    names = ["arm", "seed", "item", "word", "document", "passage", "position", "shuffled", "single_tokens"]
    assert table.column_names == names + [key if view == "raw" else f"{key}_{view}" for key in KEYS for view in VIEWS]
    rows = table.to_pylist()
    members: list[tuple[Arm, str, int | None]] = [(one, m.label, m.seed) for one in ARMS for m in one.members]
    assert len(rows) == 18 * len(members)
    for number, (one, label, seed) in enumerate(members):
        for m, row in enumerate(rows[18 * number : 18 * (number + 1)]):
            assert (row["arm"], row["seed"], row["shuffled"]) == (one.label, seed, m >= 15)
            assert row["word"] == found.study.units[found.study.unit_M[m]].candidates[0].surface
            assert row["document"] == found.study.document_C[m]
            for x, suffix in enumerate(("", "_fitted", "_matched")):
                value = found.results[label].metrics["log_odds"][x, m]
                assert row[f"log_odds{suffix}"] == pytest.approx(value, nan_ok=True)


def test_every_arm_is_printed(found: Comparison) -> None:
    text = printed(found, Path("somewhere"))
    for heading in ("other minus base", "guest minus base", "15 contexts", "somewhere"):
        assert heading in text


def test_in_brief_every_arm_has_a_row_and_a_verdict(found: Comparison) -> None:
    """The verdict is whether the interval leaves out zero."""
    of_three = brief(found, Path("somewhere")).splitlines()
    assert of_three[0].startswith("Synonyms (")
    assert of_three[0].endswith("): 3 items at 15 places in held-out text")
    assert of_three[1].startswith("rank AUC: share of the controls that are less probable than the synonym; ")
    assert [line.split()[0] for line in of_three[3:6]] == ["base", "other", "guest"]
    assert [line.endswith("no interval") for line in of_three[3:6]] == [False, True, True]
    effect = found.differences["other"]["all"]["raw"]["auc"]
    for low, high, verdict in (
        (-0.1, 0.2, "no difference shown; one of 0.123 would be"),
        (0.1, 0.2, "higher"),
        (-2, -1, "lower"),
    ):
        known = replace(effect, mean=(low + high) / 2, low=low, high=high, smallest=0.123)
        views = {"all": {"raw": {**found.differences["other"]["all"]["raw"], "auc": known}}}
        one = replace(found, differences={**found.differences, "other": views})
        (line,) = [line for line in brief(one, Path("somewhere")).splitlines() if line.startswith("other")]
        assert line.split(known.format("+.3f"))[1].strip() == verdict


def test_three_lemmas_get_no_interval_and_the_reason_is_said(found: Comparison) -> None:
    text = printed(found, Path("somewhere"))
    assert "no interval is given from fewer than 5 lemmas or documents" in text
    assert "say nothing of other seeds" in text
    tables = text.partition("other minus base")[2].partition("share of the controls")[0]
    assert "log-odds" in tables and "[" not in tables
