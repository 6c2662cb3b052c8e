from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analysis.curves.families import Family, Scale, find_families, find_scale, other_settings
from record.finished import load_runs
from tests.analysis.written import write_run


def family(label: str, **values: Any) -> Family:
    return Family(label, (label,), values)


def families_of(folder: Path, configs: dict[str, dict[str, Any]]) -> list[Family]:
    runs = [write_run(folder / name, [{"step": 1, "loss/nll": 2.0}], config=config) for name, config in configs.items()]
    return find_families(load_runs(runs))


def test_runs_that_differ_in_the_seed_alone_are_a_family(tmp_path: Path) -> None:
    configs = {
        f"{kind}_seed{seed}": {"seed": seed, "head": {"kind": kind}, "output_dir": f"{kind}{seed}"}
        for seed in range(3)
        for kind in ("linear", "metric")
    }
    first, second = families_of(tmp_path, configs)
    assert (first.label, first.values) == ("linear", {"head.kind": "linear"})
    assert (second.label, second.members) == ("metric", ("metric_seed0", "metric_seed1", "metric_seed2"))


def test_a_family_whose_names_share_nothing_is_named_by_what_it_is(tmp_path: Path) -> None:
    configs = {f"run{i}": {"seed": i, "optimizer": {"lr": [1e-3, 2e-3][i % 2]}} for i in range(4)}
    assert [one.label for one in families_of(tmp_path, configs)] == ["optimizer.lr=0.001", "optimizer.lr=0.002"]


def test_one_family_has_nothing_to_differ_in(tmp_path: Path) -> None:
    (one,) = families_of(tmp_path, {f"run_seed{i}": {"seed": i} for i in range(3)})
    assert (one.label, len(one.members), one.values) == ("run", 3, {})
    assert find_scale([one]) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.2, 0.3], "x"),
        ([1, 2.5, 4], "x"),
        ([0.1, 0.2, 0.1], None),  # two numbers are two kinds
        ([0.1, 0.2, None], None),
        ([0.1, 0.2, "0.3"], None),
        ([0.1, 0.2, "nan"], None),
        ([0.1, 0.2, float("inf")], None),
        ([True, 2, 3], None),
        ([1, 2, 10**400], None),
        (["a", "b", "c"], None),
    ],
)
def test_a_scale_is_of_numbers_that_every_family_has(values: list[Any], expected: str | None) -> None:
    scale = find_scale([family(str(i), x=value) for i, value in enumerate(values)])
    assert (scale and scale.key) == expected


def test_the_scale_is_the_key_with_the_most_numbers_and_of_equals_the_learning_rate() -> None:
    grid = [family(f"{a}{b}", **{"a": a, "optimizer.lr": b}) for a in (1, 2, 3) for b in (0.1, 0.2, 0.3)]
    scale = find_scale(grid)
    assert scale and (scale.key, scale.values[:3]) == ("optimizer.lr", (0.1, 0.2, 0.3))
    scale = find_scale([*grid, family("more", **{"a": 4, "optimizer.lr": 0.1})])
    assert scale and scale.key == "a"


def test_settings_that_follow_from_the_number_are_not_named_beside_it() -> None:
    widths = [
        family(str(w), width=w, heads=w // 64, kind="ab"[w // 64 % 2], best=["x", "y"][0]) for w in (64, 128, 192)
    ]
    assert other_settings(widths, Scale("width", (64, 128, 192))) == [
        "kind=b, best=x",
        "kind=a, best=x",
        "kind=b, best=x",
    ]
    pairs = [family(f"{w}{k}", width=w, kind=k, wide=w > 1) for w in (1, 2, 3) for k in "ab"]
    assert other_settings(pairs, Scale("width", (1, 1, 2, 2, 3, 3))) == ["kind=a", "kind=b"] * 3
