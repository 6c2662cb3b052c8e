"""The first screen of arms with one seed each: no difference can be tested, so it tells what happened in every run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from analysis.show.text import first_of, number, visible
from analysis.stability.compare import Study

from .charts import Section
from .happened import Happened
from .material import Material, runs_of_arms
from .said import Said

_NAMED = 8
"""Most arms of which a scenario tells."""


def has_one_seed(found: Study) -> bool:
    """Whether no arm has a second seed."""
    return all(len(found.comparison.seeds(arm)) == 1 for arm in found.comparison.arms)


def one_seed_headline(material: Material, found: Study, happened: Sequence[Happened]) -> str:
    """In which arms the loss spiked, and in which it did not."""
    worst = {scenario: _worst(material, scenario, happened) for scenario in found.comparison.scenarios}
    spiked = [arm for arm in found.comparison.arms if any(arm in arms for arms in worst.values())]
    if not spiked:
        return "One seed each: in no arm did the loss spike"
    where = [scenario for scenario, arms in worst.items() if arms]
    under = f" under {visible(where[0])}" if len(where) == 1 and len(worst) > 1 else ""
    rest = [arm for arm in found.comparison.arms if arm not in spiked]
    others = f", that of {first_of([visible(arm) for arm in rest], _NAMED)} did not" if rest else ""
    return f"One seed each:{under} the loss of {first_of([visible(arm) for arm in spiked], _NAMED)} spiked{others}"


def one_seed_said(material: Material, found: Study, happened: Sequence[Happened]) -> Iterator[Said]:
    """A sentence for each arm in a scenario in which some loss spiked, one for all arms in any other."""
    for scenario in found.comparison.scenarios:
        runs = {arm: labels[0] for arm, labels in runs_of_arms(material, scenario).items()}
        worst = _worst(material, scenario, happened)
        several = len(found.comparison.scenarios) > 1
        if not worst:
            told = _final_losses(material, runs)
            what = f"{visible(scenario)}: no" if several else "No"
            yield Said("plain", f"{what} spike of the loss. Validation loss at the end: {told}.")
            continue
        under = f"{visible(scenario)}, " if several else ""
        for arm, label in list(runs.items())[:_NAMED]:
            final = f"Validation loss at the end: {_final_losses(material, {arm: label})}."
            one = worst.get(arm)
            if one is None:
                yield Said("good", f"{under}{visible(arm)}: no spike of the loss. {final}")
            else:
                yield Said("bad", f"{under}{visible(arm)}: {one.what}, {one.where}. {final}")
    yield Said("open", "Every arm has one seed: how much of these differences is chance, only more seeds can say.")


def gravest_first(drawn: Sequence[Section], happened: Sequence[Happened]) -> list[Section]:
    """The sections, that with the highest spike of a loss first."""

    def height(one: Section) -> float:
        runs = {run for group in one.groups for run in group.runs}
        return max((event.height for event in _spikes(happened) if event.run in runs), default=0.0)

    return sorted(drawn, key=height, reverse=True)


def _worst(material: Material, scenario: str, happened: Sequence[Happened]) -> dict[str, Happened]:
    """The highest spike of the loss in each arm that had one in a scenario."""
    found = {}
    for arm, labels in runs_of_arms(material, scenario).items():
        own = [one for one in _spikes(happened) if one.run in labels]
        if own:
            found[arm] = max(own, key=lambda one: one.height)
    return found


def _spikes(happened: Sequence[Happened]) -> list[Happened]:
    return [one for one in happened if one.kind in ("spike", "spike_opened") and one.signal == "loss/nll"]


def _final_losses(material: Material, runs: Mapping[str, str]) -> str:
    """The last validation losses; of several arms with their names."""
    told = []
    for arm, label in runs.items():
        losses = material.runs[label].series("validation/nll")
        name = f"{visible(arm)} " if len(runs) > 1 else ""
        told.append(f"{name}{number(float(losses.iloc[-1]), 4) if len(losses) else 'not measured'}")
    return first_of(told, _NAMED)
