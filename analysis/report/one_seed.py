"""The first screen of arms with one seed each: no difference can be tested, so it tells what happened in every run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from analysis.show.text import first_of, number, visible
from analysis.stability.compare import Study

from .charts import Section
from .happened import Happened, summed_up
from .material import Material, runs_of_arms
from .said import Said

LOSS = "loss/nll"
_NAMED = 8
"""Most arms of which a scenario tells."""


def has_one_seed(found: Study) -> bool:
    """Whether no arm has runs of a second seed."""
    seeds: dict[str, set[int | None]] = {}
    for cell in found.comparison.runs:
        seeds.setdefault(cell.arm, set()).add(cell.seed)
    return all(len(own) == 1 for own in seeds.values())


class Outcome(NamedTuple):
    """How the run of an arm went in a scenario."""

    label: str
    diverged: int | None
    """Its last step, if it diverged."""
    spike: Happened | None
    """The highest spike of the loss."""
    other: Happened | None
    """The gravest of what else can go wrong with a loss."""

    @property
    def good(self) -> bool:
        """Whether nothing went wrong."""
        return self.diverged is None and self.spike is None and self.other is None


def one_seed_headline(material: Material, found: Study, happened: Sequence[Happened]) -> str:
    """Which arms diverged, in which the loss spiked, and in which neither happened. Arms without a run are not named."""
    outcomes = {scenario: _outcomes(material, scenario, happened) for scenario in found.comparison.scenarios}
    ran = [arm for arm in found.comparison.arms if any(arm in own for own in outcomes.values())]
    diverged = {s: [arm for arm, one in own.items() if one.diverged is not None] for s, own in outcomes.items()}
    spiked = {s: [arm for arm, one in own.items() if one.spike is not None] for s, own in outcomes.items()}
    lost, high = ([arm for arm in ran if any(arm in own for own in places.values())] for places in (diverged, spiked))
    rest = [arm for arm in ran if arm not in lost and arm not in high]
    told = [f"{_under(diverged)}{_named(lost, diverged)} diverged"] if lost else []
    if high:
        others = f", that of {_named(rest, {})} did not" if rest else ""
        told.append(f"{_under(spiked)}the loss of {_named(high, spiked)} spiked{others}")
    elif rest:
        told.append(f"in no {'other ' if lost else ''}arm did the loss spike")
    return f"One seed each: {'; '.join(told)}"


def _named(arms: Sequence[str], places: Mapping[str, Sequence[str]]) -> str:
    """The arms; each with the scenarios in which something happened to it, if there are several of these."""
    several = sum(bool(own) for own in places.values()) > 1
    where = {arm: ", ".join(visible(scenario) for scenario, own in places.items() if arm in own) for arm in arms}
    return first_of([f"{visible(arm)} ({where[arm]})" if several else visible(arm) for arm in arms], _NAMED)


def _under(places: Mapping[str, Sequence[str]]) -> str:
    """Where something happened, if that is one scenario of several."""
    where = [scenario for scenario, arms in places.items() if arms]
    return f"under {visible(where[0])} " if len(where) == 1 and len(places) > 1 else ""


def one_seed_said(material: Material, found: Study, happened: Sequence[Happened]) -> Iterator[Said]:
    """A sentence for each arm in a scenario in which something went wrong with some loss, one for all arms in any other."""
    several = len(found.comparison.scenarios) > 1
    for scenario in found.comparison.scenarios:
        outcomes = _outcomes(material, scenario, happened)
        if not outcomes:
            continue
        if all(one.good for one in outcomes.values()):
            told = _final_losses(material, {arm: one.label for arm, one in outcomes.items()})
            what = f"{visible(scenario)}: no" if several else "No"
            yield Said("plain", f"{what} spike of the loss. Validation loss at the end: {told}.")
            continue
        under = f"{visible(scenario)}, " if several else ""
        for arm, one in list(outcomes.items())[:_NAMED]:
            final = f"Validation loss at the end: {_final_losses(material, {arm: one.label})}."
            yield Said("good" if one.good else "bad", f"{under}{visible(arm)}: {_what(one)}. {final}")
    yield Said("open", "Every arm has one seed: how much of these differences is chance, only more seeds can say.")


def _what(one: Outcome) -> str:
    told = [f"{event.what}, {event.where}" for event in (one.spike or one.other,) if event is not None]
    if one.diverged is not None:
        return "; ".join([f"diverged at step {one.diverged:,}", *told])
    if one.spike is None:
        told.insert(0, "no spike of the loss")
    return ", but ".join(told)


def gravest_first(drawn: Sequence[Section], happened: Sequence[Happened]) -> list[Section]:
    """The sections, that with the highest spike of a loss first."""

    def height(one: Section) -> float:
        runs = {run for group in one.groups for run in group.runs}
        return max((_height(event) for event in _spikes(happened) if event.run in runs), default=-math.inf)

    return sorted(drawn, key=height, reverse=True)


def _outcomes(material: Material, scenario: str, happened: Sequence[Happened]) -> dict[str, Outcome]:
    """How each arm that has a run in a scenario fared in it."""
    found = {}
    for arm, (label, *_) in runs_of_arms(material, scenario).items():
        run, own = material.runs[label], [one for one in happened if one.run == label]
        diverged = int(run.metrics.index[-1]) if run.status.get("status") == "diverged" else None
        others = [one for one in summed_up(own) if one.kind == "non_finite" or _is_level(one)]
        spike = max(_spikes(own), key=_height, default=None)
        found[arm] = Outcome(label, diverged, spike, next(iter(others), None))
    return found


def _is_level(one: Happened) -> bool:
    return one.kind in ("rise", "stall") and one.signal == LOSS


def _height(one: Happened) -> float:
    """For comparisons: an unknown height is below all others."""
    return -math.inf if math.isnan(one.height) else one.height


def _spikes(happened: Sequence[Happened]) -> list[Happened]:
    return [one for one in happened if one.kind in ("spike", "spike_opened") and one.signal == LOSS]


def _final_losses(material: Material, runs: Mapping[str, str]) -> str:
    """The last validation losses; of several arms with their names."""
    told = []
    for arm, label in runs.items():
        losses = material.runs[label].series("validation/nll")
        name = f"{visible(arm)} " if len(runs) > 1 else ""
        told.append(f"{name}{number(float(losses.iloc[-1]), 4) if len(losses) else 'not measured'}")
    return first_of(told, _NAMED)
