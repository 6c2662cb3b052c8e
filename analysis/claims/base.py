"""What a claim is, and how its evidence is judged.

The article's claims are about a metric head that is trained with TFSD. Each such arm of a suite is tested: against the
baseline, paired by seed, where something is claimed to be lower or higher than with cross-entropy; by itself where the claim is
about the arm alone. A claim's verdict is that of the arms at the article's own scale, if the suite has any; other scales
are told beside it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from analysis.compare.seeds import Difference, adjusted, number_of_tests, paired, smallest_shown
from analysis.compare.statistics import CONFIDENCE, Effect
from analysis.stability.compare import COMMON, OWN_BEST, Study
from common.registry import Registry
from record.finished import Run

Verdict = Literal["supported", "refuted", "not shown", "not testable here", "told"]
"""told: a number beside the tests, of which nothing is claimed."""
Side = Literal["lower", "higher"]
ARTICLE = "article"
"""head.scale of the article's own scale."""


@dataclass(frozen=True)
class Evidence:
    """One test of a claim on one arm."""

    what: str
    """What is measured."""
    arm: str
    against: str
    """The arm, or the number, that it is compared with."""
    where: str
    """Scenario and rate."""
    told: str
    """The numbers, in words."""
    decides: bool
    """Whether it counts towards the claim's verdict."""
    difference: Difference | None = None
    """Where it is a test over seeds."""
    good: Side | None = None
    """On which side of zero the difference supports the claim; None where the verdict is ``fixed``."""
    fixed: Verdict | None = None
    """The verdict of what is no test over seeds."""
    form: str = "+.3f"
    worth: str = ""
    """What has to be known of a verdict "supported" that rests on it, and stands beside that wherever it is told."""


@dataclass(frozen=True)
class Judged:
    """Evidence with its verdict."""

    evidence: Evidence
    adjusted_p: float | None
    """By Holm over the tests that decide; None beside the verdict, where the test stands by itself; NaN or None without one."""
    smallest: float | None
    """The smallest true difference that would be claimed with 80% power among that many tests."""
    verdict: Verdict

    @property
    def p(self) -> float | None:
        """The p-value that the verdict goes by: adjusted where the test decides, its own beside the verdict."""
        return (
            self.adjusted_p if self.evidence.decides or self.evidence.difference is None else self.evidence.difference.p
        )


class Claim(ABC):
    """A claim of the article. A new one is one file with a registered subclass."""

    kind: ClassVar[str]
    says: ClassVar[str]
    """The claim, in our words."""
    test: ClassVar[str]
    """What supports or refutes it."""
    probe: ClassVar[str] = ""
    """What measures the checkpoints that it is judged by; empty where the runs' own records do."""

    lacks: ClassVar[str] = "no arm has a metric head and TFSD, and the baseline's train.batch_size and negatives"
    """Why it cannot be tested where there are no :meth:`arms`."""

    def arms(self, study: Study) -> list[str]:
        """The arms that it is tested on."""
        return tested_arms(study)

    def found(self, study: Study) -> list[Evidence]:
        """Its evidence, or that there is no arm to test it on."""
        return list(self.evidence(study)) if self.arms(study) else [unmeasured("arms", self.lacks)]

    @abstractmethod
    def evidence(self, study: Study) -> Iterator[Evidence]:
        """What the suite's runs say of it."""


def unmeasured(what: str, why: str) -> Evidence:
    """Evidence that there is none."""
    return Evidence(what, "", "", "", why, decides=False, fixed="not testable here")


CLAIMS = Registry("claim")
"""All claims, by name."""


def judge(evidence: Mapping[str, Sequence[Evidence]]) -> dict[str, list[Judged]]:
    """The verdict of all evidence of all claims. Tests that decide are adjusted by Holm's method for how many these are; what is
    told beside the verdicts is judged by itself.

    Supported or refuted is what an interval that excludes zero and a p-value of at most 0.05, adjusted or its own, say.
    """
    found = [one for each in evidence.values() for one in each if one.fixed is None and one.decides]
    family = {id(one): one.difference for one in found if one.difference is not None}
    p_values, tests = adjusted(family), number_of_tests(family.values())
    return {
        name: [_judged(one, p_values.get(id(one), math.nan), tests) for one in each] for name, each in evidence.items()
    }


def _judged(one: Evidence, adjusted_p: float, tests: int) -> Judged:
    if one.fixed is not None or one.difference is None:
        return Judged(one, None, None, one.fixed or "not shown")
    smallest = smallest_shown(one.difference, tests if one.decides else 1)
    judged = Judged(one, adjusted_p if one.decides else None, smallest, "not shown")
    effect, p = one.difference.effect, judged.p
    if (
        p is None
        or not p <= 1 - CONFIDENCE
        or effect.low is None
        or effect.high is None
        or effect.low <= 0 <= effect.high
    ):
        return judged
    side: Side = "higher" if effect.mean > 0 else "lower"
    return replace(judged, verdict="supported" if side == one.good else "refuted")


def verdict_of(evidence: Sequence[Judged]) -> Verdict:
    """A claim's verdict: refuted if anything that decides refutes it, supported if everything that decides supports it."""
    deciding = [one.verdict for one in evidence if one.evidence.decides]
    if set(deciding) <= {"not testable here"}:
        return "not testable here"
    if "refuted" in deciding:
        return "refuted"
    return "supported" if set(deciding) == {"supported"} else "not shown"


def worth_of(evidence: Sequence[Judged]) -> str:
    """What has to be known of a verdict "supported"; empty for other verdicts, and where nothing has to."""
    told = [one.evidence for one in evidence if one.evidence.decides and one.evidence.worth]
    if verdict_of(evidence) != "supported" or not told:
        return ""
    said = {one.worth: one.arm for one in told}
    return "; ".join(f"{arm}: {worth}" if len(said) > 1 else worth for worth, arm in said.items())


# ----------------------------------------------------------------------------------------------------- what claims are tested on


def tested_arms(study: Study) -> list[str]:
    """The arms with a metric head and TFSD that see the same text as the baseline, those at the article's scale first."""
    base = _seen(config_of(study, study.comparison.baseline))
    arms = [
        arm
        for arm in study.comparison.compared
        if arm != study.comparison.control
        and (config := config_of(study, arm))
        and (config["head"]["kind"], config["objective"]["kind"]) == ("metric", "tfsd")
        and _seen(config) == base
    ]
    return sorted(arms, key=lambda arm: not at_article_scale(study, arm))


def _seen(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a run sees at a step: how many sequences, and whether negatives are among them."""
    return config.get("train", {}).get("batch_size"), config.get("negatives")


def at_article_scale(study: Study, arm: str) -> bool:
    """Whether an arm's metric head has the article's own scale."""
    return bool(config_of(study, arm).get("head", {}).get("scale") == ARTICLE)


def deciding(study: Study, arm: str) -> bool:
    """Whether a claim's verdict rests on this arm."""
    return at_article_scale(study, arm) or not any(at_article_scale(study, other) for other in tested_arms(study))


def config_of(study: Study, arm: str) -> dict[str, Any]:
    """The configuration of one of an arm's runs; empty if it has none."""
    return next((run.config for cell, run in study.comparison.runs.items() if cell.arm == arm), {})


def runs_at(study: Study, arm: str, scenario: str, basis: str) -> dict[int, Run]:
    """An arm's runs by seed, at the baseline's best rate or at its own; without branches that could not begin."""
    found: dict[int, Run] = {}
    for seed in study.comparison.seeds(arm):
        chosen = (
            study.rate_of(study.comparison.baseline, scenario, None)
            if basis == COMMON
            else study.rate_of(arm, scenario, seed)
        )
        own = [cell for cell in study.of(arm, scenario, chosen) if cell.seed == seed]
        found |= {cell.seed: study.comparison.runs[cell] for cell in own if cell in study.comparison.runs}
    return found


def against_baseline(
    study: Study,
    what: str,
    values: Mapping[str, Mapping[int, float]],
    arm: str,
    where: str,
    good: Side,
    *,
    decides: bool,
    form: str = "+.3f",
) -> Evidence:
    """A test of an arm against the baseline, paired by seed. ``values``: by arm and seed."""
    base = study.comparison.baseline
    difference = paired(values[arm], values[base], study.comparison.pairs(arm))
    told = f"{arm} {_mean(values[arm], form)}, {base} {_mean(values[base], form)}{_without(difference)}"
    return Evidence(what, arm, base, where, told, decides, difference, good, form=form)


def against_number(
    what: str,
    values: Mapping[int, float],
    number: float,
    arm: str,
    where: str,
    good: Side,
    *,
    decides: bool,
    form: str = "+.3f",
) -> Evidence:
    """A test of an arm's mean over seeds against a number."""
    difference = paired(values, dict.fromkeys(values, number))
    told = f"{arm} {_mean(values, form)}{_without(difference)}"
    return Evidence(what, arm, f"{number:g}", where, told, decides, difference, good, form=form)


def _without(difference: Difference) -> str:
    """The seeds that have no value, and may be those that diverged."""
    left = difference.left_out
    return f"; without {'seed' if len(left) == 1 else 'seeds'} {', '.join(map(str, left))}" if left else ""


def without_effect(one: Evidence, told: str) -> Evidence:
    """Evidence of something that could not be measured."""
    return replace(one, told=told, difference=None, good=None, fixed="not shown")


def _mean(values: Mapping[int, float], form: str) -> str:
    known = [value for value in values.values() if not math.isnan(value)]
    return format(sum(known) / len(known), form.replace("+", "")) if known else "unknown"


WORDS = {COMMON: "at the baseline's best rate", OWN_BEST: "each at its own best rate"}


def place(scenario: str, basis: str) -> str:
    """Scenario and rate, in words."""
    return f"{scenario}, {WORDS[basis]}"


def interval(effect: Effect | None, form: str) -> str:
    """An effect with its interval; empty if nothing was measured."""
    return "" if effect is None or math.isnan(effect.mean) else effect.format(form)
