"""Claims that are judged by what probes measured: verdicts from values made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from analysis.claims.__main__ import all_claims, main
from analysis.claims.base import judge, verdict_of
from analysis.claims.probed import TOLERANCE, Probed, ProbedClaim
from analysis.claims.push_away import without_negatives
from analysis.stability.compare import Study, study
from analysis.stability.runs import find_runs
from common.errors import InputError
from record.suite import PlannedRun, SuitePlan, write_plan

from ..stability.made import STEPS, config, curve
from ..written import write_run

SEEDS = (0, 1, 2, 3)
NEGATIVES = {"kind": "random", "share": 0.25, "loss": "hinge", "margin": 1.0}
ARMS = {
    "base": ("linear", "ce", 16, None),
    "article": ("metric", "tfsd", 16, None),
    "fewer": ("metric", "tfsd", 12, None),
    "pushed": ("metric", "tfsd", 16, NEGATIVES),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Arms with four seeds each, whose runs ended at step 60."""
    folder, plan = tmp_path_factory.mktemp("suite"), []
    for arm, (head, objective, batch, negatives) in ARMS.items():
        for seed in SEEDS:
            own = config(seed, head={"kind": head, "scale": "article"}, objective={"kind": objective}, stress=[])
            own |= {"train": {"steps": STEPS, "batch_size": batch}, "negatives": negatives}
            plan.append(PlannedRun(f"{arm}_seed{seed}", arm, None, 0.01, seed))
            write_run(folder / plan[-1].name, curve(seed), config=own)
    write_plan(folder, SuitePlan("base", None, tuple(plan)))
    return study(find_runs([str(folder)]))


@pytest.fixture
def suite(found: Study) -> Iterator[Path]:
    """Their directory, without results of probes."""
    folder = Probed(found, "none").suite
    yield folder
    for left in (folder / "probes", *folder.glob("*/checkpoints")):
        shutil.rmtree(left, ignore_errors=True)


def measured(suite, probe, step=STEPS, **values):
    """Results of a probe: by measure and arm a number, to which something that depends on arm and seed is added."""
    rows = [
        {
            "arm": arm,
            "run": f"{arm}_seed{seed}",
            "seed": seed,
            "step": at,
            "measure": key,
            "index": index,
            "value": value,
        }
        for key, own in values.items()
        for place, arm in enumerate(ARMS)
        for seed in SEEDS
        for at, index, value in (
            (step, -1, own.get(arm, 1.0) + 1e-3 * seed**2 * place * (own.get(arm, 1.0) % 1 > 0)),
            (step - 30, -1, 99.0),  # an earlier checkpoint
            (step, 0, -99.0),  # an array's element
        )
    ]
    table = pd.DataFrame(rows)
    folder = suite / "probes" / probe
    folder.mkdir(parents=True, exist_ok=True)
    if probe == TOLERANCE:
        table[table["index"] < 0].pivot(index=["run", "step"], columns="measure", values="value").reset_index().to_csv(
            folder / "tolerance.csv", index=False
        )
    else:
        table.to_csv(folder / "values.csv", index=False)


def verdicts(found, name):
    """A claim's verdict, and those of its tests by arm and by what is tested."""
    judged = judge({name: list(all_claims()[name].evidence(found))})[name]
    return verdict_of(judged), {(one.evidence.arm, one.evidence.what.partition(",")[0]): one.verdict for one in judged}


CASES = {
    "synonym_tolerance": (TOLERANCE, {"auc": {"article": 0.6, "base": 0.55}, "log_odds_fitted": {}}, "supported"),
    "semantic_fracturing": ("geometry", {"synonym_ratio": {"article": 0.95, "base": 0.85}}, "refuted"),
    "bottleneck": (
        "bottleneck",
        {"rank": {"article": 34.0}, "bound": {"article": 34.0}, "largest": {"article": 136.0}, "effective_rank": {}},
        "refuted",
    ),
    "far_means_unknown": (
        "uncertainty",
        {
            "auroc_distance_random": {"article": 0.95}, "auroc_probability_random": {"base": 0.75},
            "auroc_distance_shuffled": {"article": 0.65}, "auroc_probability_shuffled": {"base": 0.45},
            "distance_entropy_rank": {"article": -0.45},
        },
        "supported",
    ),
    "adaptive_curriculum": ("adaptive", {"entropy_difficulty_rank": {"article": 0.35}, "gradient_kept": {}}, "supported"),
    "dark_knowledge": ("adaptive", {"dark_knowledge": dict.fromkeys(ARMS, 0.0)}, "refuted"),
    "push_away": ("geometry", {"cell_ratio": {"pushed": 0.85, "fewer": 0.95, "article": 0.75}}, "supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_claim_is_judged_by_the_last_checkpoints_of_its_probe(found, suite, name):
    probe, values, expected = CASES[name]
    measured(suite, probe, **values)
    verdict, tests = verdicts(found, name)
    assert verdict == expected
    assert {arm for arm, _ in tests} == {"pushed" if name == "push_away" else "article"}  # fewer sees less text


def test_a_claim_without_its_probe_is_not_testable_and_says_what_to_run(found, suite, capsys):
    main([str(suite), "--out", str(suite / "claims")])
    printed, page = capsys.readouterr().out, (suite / "claims" / "claims.md").read_text()
    for name, claim in all_claims().items():
        if isinstance(claim, ProbedClaim):
            assert verdicts(found, name) == ("not testable here", {("", claim.probe): "not testable here"})
    assert "  - geometry: not measured yet; a command at the end does that: not testable here" in printed
    assert f"these write into the suite's directory, in {suite}/probes:" in printed
    for text in (printed, page):  # geometry serves two claims
        assert text.count(f"python -m analysis.probes geometry {suite} --out {suite}/probes/geometry") == 1
        assert text.count(f"python -m analysis.tolerance {suite} --last --out {suite}/probes/tolerance") == 1


def test_values_of_other_runs_or_checkpoints_are_refused(found, suite):
    values = {"entropy_difficulty_rank": dict.fromkeys(ARMS, 0.35), "gradient_kept": {}}
    measured(suite, "adaptive", **values)
    write_checkpoint(suite / "article_seed0", 90)
    with pytest.raises(
        InputError, match=r"article_seed0 at step 60, whose last checkpoint is of 90; measure again: python"
    ):
        verdicts(found, "adaptive_curriculum")
    without_rows(suite / "probes" / "adaptive" / "values.csv", "article_seed0")
    with pytest.raises(InputError, match=r"values\.csv has nothing of the run article_seed0; measure again: python"):
        verdicts(found, "adaptive_curriculum")


def write_checkpoint(run, step):
    """A complete one, as far as its files' names say."""
    checkpoint = run / "checkpoints" / f"step_{step:08}"
    checkpoint.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).write_text("{}")


def without_rows(file, text):
    file.write_text("".join(line for line in file.open() if text not in line))


def pairs_of(found, name):
    """How many runs each deciding test of a claim is of."""
    evidence = [one for one in all_claims()[name].evidence(found) if one.decides]
    return [(one.difference.n, one.difference.left_out) for one in evidence]


@pytest.mark.parametrize(("rows", "last"), [("article_seed1", None), (f"article_seed1,1,{STEPS}", STEPS - 30)])
def test_a_run_without_a_checkpoint_of_its_end_is_left_out(found, suite, rows, last):
    """One that diverged has none, or one of a step before: nothing to be held against what others are at their end."""
    measured(suite, "geometry", synonym_ratio={"article": 0.85, "base": 0.95})
    without_rows(suite / "probes" / "geometry" / "values.csv", rows)
    if last is not None:
        write_checkpoint(suite / "article_seed1", last)
    assert pairs_of(found, "semantic_fracturing") == [(3, (1,))]
    assert verdicts(found, "semantic_fracturing")[0] == "supported"


def test_a_rank_that_nothing_could_exceed_refutes_nothing(found, suite):
    """With few contexts the rank is their number, and a head that caps its logits is bounded by the vocabulary alone."""
    for rank, bound in ((10.0, 10.0), (60.0, 512.0)):
        values = {"rank": rank, "bound": bound, "largest": bound}
        measured(suite, "bottleneck", effective_rank={}, **{key: {"article": value} for key, value in values.items()})
        assert verdicts(found, "bottleneck")[0] == "not testable here"


def test_what_a_probe_could_not_measure_is_not_testable(found, suite):
    measured(suite, "geometry", synonym_ratio=dict.fromkeys(ARMS, float("nan")))
    assert verdicts(found, "semantic_fracturing")[0] == "not testable here"


def test_negatives_are_held_against_the_arm_with_as_much_text(found):
    assert {arm: without_negatives(found, arm) for arm in ARMS} == dict.fromkeys(ARMS) | {"pushed": "fewer"}


def test_arms_with_and_without_negatives_may_have_rates_of_their_own_and_are_alike_in_all_else(tmp_path):
    arms = {"pushed": (0.01, NEGATIVES, STEPS), "short": (0.01, None, STEPS - 1), "plain": (0.03, None, STEPS)}
    plan = []
    for arm, (rate, negatives, steps) in arms.items():
        own = config(0, rate, head={"kind": "metric"}, objective={"kind": "tfsd"}, stress=[], negatives=negatives)
        own["train"] = {"steps": steps, "batch_size": 16}
        plan.append(PlannedRun(f"{arm}_seed0", arm, None, rate, 0))
        write_run(tmp_path / plan[-1].name, curve(0), config=own)
    write_plan(tmp_path, SuitePlan("pushed", None, tuple(plan)))
    assert without_negatives(study(find_runs([str(tmp_path)])), "pushed") == "plain"


def test_of_arms_that_see_other_text_only_what_negatives_do_is_judged(found, tmp_path):
    """With no other arm of the article's that could be held against the baseline."""
    suite = tmp_path / "suite"
    arms = ("base", "fewer", "pushed")
    for run in (f"{arm}_seed{seed}" for arm in arms for seed in SEEDS):
        shutil.copytree(Probed(found, "none").suite / run, suite / run)
    plan = tuple(PlannedRun(f"{arm}_seed{seed}", arm, None, 0.01, seed) for arm in arms for seed in SEEDS)
    write_plan(suite, SuitePlan("base", None, plan))
    measured(suite, "geometry", cell_ratio={"pushed": 0.85, "fewer": 0.95})
    main([str(suite), "--out", str(suite / "claims")])
    claims = json.loads((suite / "claims" / "claims.json").read_text())["claims"]
    told = {claim["claim"]: claim["verdict"] for claim in claims}
    assert told == dict.fromkeys(all_claims(), "not testable here") | {"push_away": "supported"}


def test_a_distance_that_no_model_has_is_not_testable(found, suite):
    keys = [f"auroc_{score}_{text}" for score in ("distance", "probability") for text in ("random", "shuffled")]
    nothing = dict.fromkeys(ARMS, float("nan"))
    measured(suite, "uncertainty", **dict.fromkeys((*keys, "distance_entropy_rank"), nothing))
    assert verdicts(found, "far_means_unknown")[0] == "not testable here"


def test_runs_outside_of_a_suite_have_no_command_that_would_measure_them(suite, tmp_path):
    for run in ("base_seed0", "base_seed1", "article_seed0", "article_seed1"):
        shutil.copytree(suite / run, tmp_path / run)
    paths = [str(tmp_path / run) for run in ("base_seed0", "base_seed1", "article_seed0", "article_seed1")]
    main([*paths, "--out", str(tmp_path / "claims")])
    claims = json.loads((tmp_path / "claims" / "claims.json").read_text())["claims"]
    assert {claim["command"] for claim in claims} == {None}
    assert "checkpoints are judged in a suite's directory alone" in (tmp_path / "claims" / "claims.md").read_text()
