"""What probes have measured of a suite's runs, as far as their results lie in its directory."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import pandas as pd

from analysis.compare.differing import differing
from analysis.compare.seeds import paired
from analysis.stability.compare import OWN_BEST, Study
from analysis.stability.fairness import compared_configs
from common.errors import InputError
from record.finished import Run, checkpoints_of, is_file
from record.suite import PLAN_FILE

from .base import Claim, Evidence, Side, against_baseline, against_number, place, unmeasured

FOLDER = "probes"
"""Within a suite's directory, where its probes' results lie, each in a folder of its name."""
TOLERANCE = "tolerance"
"""analysis.tolerance, whose results lie beside those of the probes."""


class ProbedClaim(Claim):
    """Base of the claims that are judged by what a probe measures of checkpoints."""

    def evidence(self, study: Study) -> Iterator[Evidence]:
        probed = Probed(study, self.probe)
        if not probed.of_suite:
            yield unmeasured(self.probe, "checkpoints are judged in a suite's directory alone")
            return
        if not probed.file.is_file():
            yield unmeasured(self.probe, "not measured yet; a command at the end does that")
            return
        yield from self.judged(study, probed)

    def judged(self, study: Study, probed: Probed) -> Iterator[Evidence]:
        """The evidence, where the probe has measured the suite."""
        raise NotImplementedError


@dataclass(frozen=True)
class Probed:
    """The values that one probe has found at the last checkpoints of the calm runs."""

    study: Study
    probe: str

    @property
    def suite(self) -> Path:
        """The suite's directory."""
        return Path(next(iter(self.study.comparison.planned.values()))).parent

    @property
    def file(self) -> Path:
        """Where the values are."""
        return self.folder / self.probe / ("tolerance.csv" if self.probe == TOLERANCE else "values.csv")

    @property
    def folder(self) -> Path:
        """Where the results of all probes lie."""
        return self.suite / FOLDER

    @property
    def of_suite(self) -> bool:
        """Whether the runs are a suite's, in whose directory results can lie."""
        return is_file(self.suite / PLAN_FILE)

    @property
    def command(self) -> str:
        """What measures them."""
        what, last = ("tolerance", ["--last"]) if self.probe == TOLERANCE else (f"probes {self.probe}", [])
        return shlex.join(
            ["python", "-m", *f"analysis.{what}".split(), f"{self.suite}", *last, "--out", f"{self.file.parent}"]
        )

    @property
    def where(self) -> str:
        """Of what these values are, in words."""
        return f"at the end of training, {place(self.study.comparison.calm, OWN_BEST)}"

    def against_baseline(
        self, what: str, key: str, arm: str, good: Side, *, decides: bool, form: str = "+.3f"
    ) -> Evidence:
        """A test of a measure of an arm against the baseline's, paired by seed."""
        base = self.study.comparison.baseline
        values = {each: self.finite(key, each) for each in (arm, base)}
        if not values[arm] or not values[base]:
            return self._undefined(what, arm)
        return against_baseline(self.study, what, values, arm, self.where, good, decides=decides, form=form)

    def against_arm(
        self, what: str, keys: tuple[str, str], arm: str, other: str, good: Side, *, decides: bool
    ) -> Evidence:
        """A test of a measure of an arm against one of another arm, paired by seed."""
        own, base = (self.finite(key, each) for key, each in zip(keys, (arm, other), strict=True))
        if not own or not base:
            return self._undefined(what, arm if not own else other)
        told = f"{arm} {fmean(own.values()):.3f}, {other} {fmean(base.values()):.3f}"
        return Evidence(what, arm, other, self.where, told, decides, paired(own, base), good)

    def against_number(self, what: str, key: str, number: float, arm: str, good: Side, *, decides: bool) -> Evidence:
        """A test of the mean of a measure over seeds against a number."""
        values = self.finite(key, arm)
        if not values:
            return self._undefined(what, arm)
        return against_number(what, values, number, arm, self.where, good, decides=decides)

    def _undefined(self, what: str, arm: str) -> Evidence:
        return unmeasured(
            what,
            f"{arm}: no run that trained to its end has a value of it from the {self.probe} probe; docs/probes.md says when "
            "there is none",
        )

    def finite(self, key: str, arm: str) -> dict[int, float]:
        """A measure that is one number, by seed, where it is finite. Raises InputError for values that are not of the runs as
        they are."""
        return {seed: value for seed, value in self._values(key, arm).items() if math.isfinite(value)}

    def _values(self, key: str, arm: str) -> dict[int, float]:
        """A measure by seed, without runs that have no checkpoint of their end, such as those that diverged: an earlier one would
        be compared with models that were trained for longer."""
        table = _last_values(self.file, self.file.stat().st_mtime_ns, self.probe == TOLERANCE)
        found = {}
        for seed, run in self._runs(arm).items():
            checkpoints = checkpoints_of(run.path)
            if run.name not in table:
                if not checkpoints:
                    continue
                raise InputError(f"{self.file} has nothing of the run {run.name}; measure again: {self.command}")
            step, values = table[run.name]
            if checkpoints and step != checkpoints[-1][0]:
                raise InputError(
                    f"{self.file} has {run.name} at step {step}, whose last checkpoint is of {checkpoints[-1][0]}; measure "
                    f"again: {self.command}"
                )
            if step == run.setting("train", "steps"):
                found[seed] = values.get(key, math.nan)
        return found

    def _runs(self, arm: str) -> Mapping[int, Run]:
        """The calm runs of an arm at the rate that is best for it over all seeds, by seed: those that probes measure."""
        one = self.study.comparison
        rate = self.study.rate_of(arm, one.calm, None)
        return {
            cell.seed: run
            for cell, run in one.runs.items()
            if cell.arm == arm and cell.scenario == one.calm and cell.rate == rate
        }


def with_objective(study: Study, arm: str, kind: str) -> str | None:
    """The arm that is this one but for its objective, which is of ``kind``."""
    configs = compared_configs(study.comparison)
    own = {**configs[arm], "objective": None}
    return next(
        (
            other
            for other, config in configs.items()
            if config["objective"].get("kind") == kind and not differing([own, {**config, "objective": None}])
        ),
        None,
    )


@cache
def _last_values(file: Path, changed: int, wide: bool) -> dict[str, tuple[int, dict[str, float]]]:
    """By run: the last step that was measured, and the single numbers there. ``changed``, the time of the file's last change,
    tells one state of it from the next."""
    try:
        table = pd.read_csv(file)
        table = table[table["step"].notna()]
        last = table[table["step"] == table.groupby("run")["step"].transform("max")]
        if not wide:
            last = last[last["index"] < 0].set_index(["run", "step", "measure"])["value"].unstack()
        else:
            last = last.set_index(["run", "step"]).select_dtypes("number")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{file}: cannot be read ({error}); measure again") from None
    return {
        str(run): (int(step), {str(key): float(value) for key, value in values.items()})
        for (run, step), values in last.iterrows()
    }
