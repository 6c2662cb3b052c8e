"""The claims' measures on series made by hand, the verdicts' rules, and the whole command on a small suite."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState

from analysis.claims.__main__ import _row, all_claims, main
from analysis.claims.base import Evidence, Judged, judge, verdict_of, worth_of
from analysis.claims.bounded_logits import growth, largest
from analysis.claims.capped_outliers import not_finite, outlier
from analysis.claims.vanishing_gradient import correlation
from analysis.compare.seeds import paired
from analysis.stability.compare import study
from analysis.stability.runs import find_runs
from common.command import exit_status
from configs.load import load_config
from record.finished import Run
from record.suite import PlannedRun, SuitePlan, write_plan
from run_suite import read_job
from train_lm import train

from ...conftest import ROOT
from ..stability.made import config, curve
from ..written import write_run


def made(**columns):
    """A run with these metrics from step 1 on; a name's __ stands for the slash."""
    frame = pd.DataFrame({name.replace("__", "/"): np.asarray(values, float) for name, values in columns.items()})
    frame.index = pd.RangeIndex(1, len(frame) + 1, name="step")
    return Run(ROOT, "made", {"stress": []}, frame, {}, [], {"status": "finished"})


def test_growth_is_the_logarithm_of_last_over_first():
    assert growth(np.array([2.0, 7.0, math.nan, 16.0])) == pytest.approx(math.log(8))
    assert math.isnan(growth(np.array([2.0, math.nan])))
    assert growth(np.array([0.0, 3.0, 3.0])) == 0.0


def test_the_largest_logit_is_that_of_the_steps_that_have_one():
    """A run that has none on record says nothing of the bound."""
    assert largest(made(logit__max=[-3.0, math.nan, -1.0])) == -1.0
    assert largest(made(logit__max=[math.nan, math.inf])) == math.inf
    assert largest(made(logit__max=[math.nan, math.nan])) is None
    assert largest(made(loss__nll=[1.0, 1.0])) is None


def test_an_outlier_is_its_height_over_the_median_before():
    norm, acting = [2.0, 4.0, 2.0, 2.0, 30.0, 20.0, 1.0], [0, 0, 0, 0, 1, 1, 0]
    assert outlier(made(grad_norm__total=norm, stress__acting=acting)) == pytest.approx(math.log(15))
    assert math.isnan(outlier(made(grad_norm__total=norm, stress__acting=[0] * 7)))  # nothing acted
    assert math.isnan(
        outlier(made(grad_norm__total=norm, stress__acting=[0, 1, 0, 0, 0, 0, 0]))
    )  # too few steps before
    assert not not_finite(made(grad_norm__total=norm, stress__acting=acting))
    norm[4] = math.inf
    broken = made(grad_norm__total=norm, stress__acting=acting)
    assert math.isnan(outlier(broken))  # no norm to compare, and so evidence of its own
    assert not_finite(broken)
    assert not not_finite(made(grad_norm__total=norm, stress__acting=[0] * 7))


def test_the_weights_correlation_with_the_nll_is_spearmans():
    nll = [5.0, 4.0, 3.5, 3.0, 3.2]
    assert correlation(made(tfsd__weight_mean=[0.1, 0.2, 0.3, 0.5, 0.4], loss__nll=nll)) == pytest.approx(-1.0)
    assert correlation(made(tfsd__weight_mean=[0.9, 0.8, 0.7, 0.5, 0.6], loss__nll=nll)) == pytest.approx(1.0)
    assert correlation(made(tfsd__weight_mean=[1.0] * 5, loss__nll=nll)) is None
    assert correlation(made(loss__nll=nll)) is None


def over_seeds(values, good, decides=True):
    difference = paired(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    return Evidence("x", "arm", "base", "calm", "", decides, difference, good)


def test_a_verdict_needs_the_interval_and_the_adjusted_p():
    """One p of 0.02 is enough alone, and not among three tests that decide."""
    clear, weak = [1.0, 1.1, 0.9, 1.05], [1.0, 0.4, 1.8, 1.2]
    assert 0.017 < over_seeds(weak, "higher").difference.p < 0.05
    alone = judge({"a": [over_seeds(weak, "higher")]})["a"][0]
    assert (alone.verdict, alone.adjusted_p) == ("supported", pytest.approx(alone.evidence.difference.p))
    assert judge({"a": [over_seeds(weak, "lower")]})["a"][0].verdict == "refuted"
    among = judge(
        {"a": [over_seeds(weak, "higher")], "b": [over_seeds(clear, "higher"), over_seeds([0.1, -0.2, 0.2], "lower")]}
    )
    assert among["a"][0].adjusted_p == pytest.approx(2 * over_seeds(weak, "higher").difference.p)
    assert [each.verdict for each in (*among["a"], *among["b"])] == ["not shown", "supported", "not shown"]
    assert among["a"][0].smallest > alone.smallest  # among more tests only a larger one would be claimed


def test_what_stands_beside_the_verdicts_is_no_test_among_those_that_decide():
    weak, clear = [1.0, 0.4, 1.8, 1.2], [1.0, 1.1, 0.9, 1.05]
    beside = [over_seeds(each, "higher", decides=False) for each in (clear, weak)]
    decides, *others = judge({"a": [over_seeds(weak, "higher"), *beside]})["a"]
    assert decides == judge({"a": [over_seeds(weak, "higher")]})["a"][0]
    assert [(each.adjusted_p, each.p) for each in others] == [(None, each.difference.p) for each in beside]
    assert [each.verdict for each in others] == ["supported", "supported"]
    assert _row(decides)[5] == f"{decides.evidence.difference.p:.2g}"
    assert [each[5] for each in map(_row, others)] == [f"{each.difference.p:.2g} unadjusted" for each in beside]


def test_a_difference_of_nothing_measured_is_told_in_words():
    row = _row(judge({"a": [replace(over_seeds([], "higher"), told="arm unknown")]})["a"][0])
    assert (row[3], row[5]) == ("arm unknown", "")


def test_what_is_no_test_over_seeds_has_its_own_verdict_and_is_not_counted():
    fixed = Evidence("x", "arm", "0", "calm", "", True, fixed="supported")
    equal = over_seeds([1.0, 1.0], "higher")
    judged = judge({"a": [fixed, equal, over_seeds([1.0, 1.1, 0.9], "higher")]})["a"]
    assert [each.verdict for each in judged] == ["supported", "not shown", "supported"]
    assert judged[2].adjusted_p == pytest.approx(judged[2].evidence.difference.p)


def test_a_test_counts_whatever_its_differences_are():
    zero, equal, weak = (over_seeds(each, "higher") for each in ([0.0] * 4, [1.0] * 4, [1.0, 0.4, 1.8, 1.2]))
    alone, p = judge({"a": [weak]})["a"][0], weak.difference.p
    beside_zero, of_zero = judge({"a": [weak], "b": [zero]}).values()
    assert (beside_zero[0].adjusted_p, beside_zero[0].verdict) == (pytest.approx(2 * p), "not shown")
    assert (of_zero[0].adjusted_p, of_zero[0].verdict) == (1.0, "not shown")
    beside_equal, of_equal = judge({"a": [weak], "b": [equal]}).values()
    assert beside_equal[0].adjusted_p == pytest.approx(p)  # the equal one has the smallest rank
    assert math.isnan(of_equal[0].adjusted_p)
    assert alone.smallest < beside_zero[0].smallest == beside_equal[0].smallest
    assert judge({"a": [weak, over_seeds([0.0], "higher")]})["a"][0] == alone  # one seed is no test


def test_a_claim_is_refuted_by_one_and_supported_by_all():
    def of(*verdicts, beside=()):
        each = [Judged(Evidence("x", "a", "b", "c", "", True), None, None, verdict) for verdict in verdicts]
        return verdict_of([*each, *(Judged(Evidence("x", "a", "b", "c", "", False), None, None, v) for v in beside)])

    assert of("supported", "supported", beside=["refuted"]) == "supported"
    assert of("supported", "not shown") == "not shown"
    assert of("supported", "refuted") == "refuted"
    assert of("not testable here", beside=["supported"]) == of(beside=["supported"]) == "not testable here"
    assert of("not testable here", "supported") == "not shown"


def test_a_claim_that_the_suite_cannot_test_says_what_it_lacks(tmp_path):
    plan = []
    for arm, head, objective in (("base", "linear", "ce"), ("half", "metric", "tfsd")):
        own = config(0, head={"kind": head, "scale": "linear"}, objective={"kind": objective}, stress=[])
        plan.append(PlannedRun(arm, arm, None, 0.01, 0))
        write_run(tmp_path / arm, curve(0), config=own)
    write_plan(tmp_path, SuitePlan("base", None, tuple(plan)))
    found = study(find_runs([str(tmp_path)]))
    judged = judge({name: claim.found(found) for name, claim in all_claims().items()})
    lacking = {name: [one for one in each if one.verdict == "not testable here"] for name, each in judged.items()}
    assert all(lacking[name] for name, each in judged.items() if verdict_of(each) == "not testable here")
    assert "no run has a stress that spoils a batch" in lacking["capped_outliers"][0].evidence.told
    assert lacking["no_temperature"][0].evidence.told == "no arm has the article's scale"


def test_what_zero_loss_is_worth_is_told_and_not_judged(tmp_path):
    """A distance from a minimum is never below 0: a test of it could only refute."""
    plan = []
    for arm, head, objective in (("base", "linear", "ce"), ("article", "metric", "tfsd")):
        for seed in (0, 1, 2):
            rows = curve(seed)
            for row in rows:
                row["loss/objective"] = row["loss/nll"]
            rows[0]["loss/objective"] = 0.001  # at the first step, where nothing is predicted yet
            own = config(seed, head={"kind": head, "scale": "article"}, objective={"kind": objective}, stress=[])
            plan.append(PlannedRun(f"{arm}_s{seed}", arm, None, 0.01, seed))
            write_run(tmp_path / plan[-1].name, rows, config=own)
    write_plan(tmp_path, SuitePlan("base", None, tuple(plan)))
    found = list(all_claims()["zero_loss"].evidence(study(find_runs([str(tmp_path)]))))
    reached, worth = judge({"zero_loss": found})["zero_loss"]
    assert reached.verdict == "supported"
    assert (worth.verdict, worth.adjusted_p, worth.evidence.decides) == ("told", None, False)
    nll = [[row["loss/nll"] for row in curve(seed)] for seed in (0, 1, 2)]
    mean = np.mean([own[0] - min(own) for own in nll])
    assert worth.evidence.told.startswith(f"article {mean:.3f} [")
    assert verdict_of([reached, worth]) == "supported"
    assert worth_of([reached, worth]) == f"NLL there {mean:.2f} nats above the lowest"
    assert worth_of([replace(reached, verdict="not shown"), worth]) == ""


SUITE = """
recipe: {workspace}/tiny.yaml
out: out
seeds: [0, 1]
control: []
overrides: [train.steps=18, train.eval_every=18]
arms:
  linear: [head.kind=linear, objective.kind=ce]
  half: []
  article: [head.scale=article]
scenarios:
  calm: {{}}
  noise:
    arms: [linear, article]
    branch_from: calm@10
    overrides: ['stress=[{{kind: label_noise, step: 15, steps: 2, share: 0.9}}]']
"""


@pytest.fixture(scope="module")
def suite(workspace, tmp_path_factory):
    """The runs of SUITE, trained in this process."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "suite.yaml").write_text(SUITE.format(workspace=workspace))
    job = read_job(folder / "suite.yaml", str(folder / "out"))
    for run in job.runs:
        AcceleratorState._reset_state(reset_partial_state=True)
        assert train(load_config(job.recipe, run.overrides)) == 0
    write_plan(job.out, job.plan)
    return job.out


def test_the_command_tells_every_claims_verdict_from_run_directories(suite, tmp_path, capsys):
    capsys.readouterr()
    main([str(suite), "--out", str(tmp_path)])
    printed, page = capsys.readouterr().out, (tmp_path / "claims.md").read_text()
    assert "p is adjusted by Holm's method over the tests with two seeds or more that decide a verdict" in page
    found = json.loads((tmp_path / "claims.json").read_text())
    assert {each["claim"] for each in found["claims"]} == all_claims().keys()
    for claim in found["claims"]:
        verdict = claim["verdict"] + (f" ({claim['worth']})" if claim["worth"] else "")
        assert f"\n{claim['claim']}: {verdict}\n" in printed
        assert f"## {claim['claim']}: {verdict}\n" in page
        deciding = {each["arm"] for each in claim["evidence"] if each["decides"]}
        assert deciding <= {"article"}  # the article's own scale decides where there is one
    by_name = {each["claim"]: each for each in found["claims"]}
    assert (by_name["bounded_logits"]["verdict"], by_name["bounded_logits"]["worth"]) == (
        "supported",
        "true by construction",
    )
    largest = {
        each["arm"]: each["told"] for each in by_name["bounded_logits"]["evidence"] if each["what"] == "largest logit"
    }
    assert {arm: told.partition(" have a logit above 0")[0] for arm, told in largest.items()} == {
        "half": "0 of 2 runs", "article": "0 of 4 runs",
    }  # fmt: skip
    assert {each["where"].partition(",")[0] for each in by_name["capped_outliers"]["evidence"]} == {"noise"}


def test_a_suite_without_tfsd_is_refused(suite, capsys):
    linear = [str(suite / f"linear_calm_seed{seed}") for seed in (0, 1)]
    assert exit_status(lambda: main(linear)) == 2
    assert "error: no arm has a metric head and TFSD" in (told := capsys.readouterr().err)
    assert "; no arm has negatives with the hinge" in told
