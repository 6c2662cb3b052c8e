"""The first screen in plain words: what was run, what came out of it, and what must be known before believing it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from analysis.compare.differing import differing
from analysis.logs import LogRun
from analysis.show.stresses import ACTING, spans, words
from analysis.show.text import first_of, number, visible
from analysis.stability.compare import NO_DIFFERENCE, PRIMARY, TOO_FEW_SEEDS, Row, Study
from analysis.stability.conclusion import Column, conclusions
from analysis.stability.fairness import compared_configs, warnings
from analysis.stability.tables import difference_text
from record.finished import Run

from .happened import Happened, name_of
from .material import Material, is_running
from .trend import trend

Tone = Literal["good", "bad", "plain", "open"]
_NAMED = 8
"""Most arms that a sentence names."""
_RUNS_TOLD = 6
"""Most runs of which the first screen tells by themselves."""


class Said(NamedTuple):
    """A sentence, and whether it is good news, bad news, neither, or that nothing is shown."""

    tone: Tone
    text: str


class Words(NamedTuple):
    """The first screen."""

    headline: str
    facts: list[str]
    """What was run."""
    said: list[Said]
    """What came out of it."""
    matched: list[str]
    """What was compared, and what was the same."""


MEASURES = {
    "final_nll": ("a lower final loss", "a higher final loss", "the final loss"),
    "sensitivity": (
        "less sensitivity to the learning rate", "more sensitivity to the learning rate", "sensitivity to the learning rate"
    ),
    "spikes_nll": ("fewer loss spikes", "more loss spikes", "the number of loss spikes"),
    "excess": ("a steadier loss", "a less steady loss", "how far the loss goes back up"),
    "survived": ("more runs that survive", "fewer runs that survive", "the share of runs that survive"),
}  # fmt: skip
"""Better, worse, and what is measured, of the columns of analysis.stability's closing table."""


def first_screen(material: Material, found: Sequence[Happened]) -> Words:
    """The words for arms, where there are any to compare, otherwise for runs and logs."""
    if material.study is not None and material.study.comparison.compared:
        return _of_arms(material, material.study)
    return _of_runs(material, found)


# ------------------------------------------------------------------------------------------------------------------------- arms


def _of_arms(material: Material, found: Study) -> Words:
    one = found.comparison
    columns = {column.key: column for column in conclusions(found)}
    said = [*_about_loss(found, columns.get("final_nll")), *_about_stability(found, columns)]
    return Words(_headline(found, columns), _arm_facts(material, found), said, _matched(found))


def _headline(found: Study, columns: dict[str, Column]) -> str:
    one = found.comparison
    base = visible(one.baseline)
    others = [arm for arm in one.compared if arm != one.control]
    if not others:
        return f"{base} against itself with other seeds: how much of a difference is chance"
    better = {side: _arms(columns.get("final_nll"), side) for side in ("better", "worse")}
    steadier = {arm for key, column in columns.items() if key != "final_nll" for arm in _arms(column, "better")}
    shakier = {arm for key, column in columns.items() if key != "final_nll" for arm in _arms(column, "worse")}
    if not any((better["better"], better["worse"], steadier, shakier)):
        return f"No difference from {base} is shown for {_counted(len(others), 'other arm')}"
    if len(others) == 1:
        arm = visible(others[0])
        loss = "a lower loss than" if better["better"] else "a higher loss than" if better["worse"] else "no other loss than"
        stable = (
            "mixed results for stability" if steadier and shakier else "more stable" if steadier
            else "less stable" if shakier else "no difference in stability shown"
        )  # fmt: skip
        return f"{arm} is shown to have {loss} {base}; {stable}"
    return (
        f"Of {len(others)} arms compared with {base}, {len(better['better'])} are shown to reach a lower loss and "
        f"{len(better['worse'])} a higher one; {len(steadier - shakier)} are shown to be more stable, "
        f"{len(shakier - steadier)} less"
    )


def _arms(column: Column | None, side: str) -> list[str]:
    """The arms that are shown to be on this side."""
    return [] if column is None else [arm for arm, cell in column.cells.items() if cell.verdict == side]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _arm_facts(material: Material, found: Study) -> list[str]:
    one = found.comparison
    names = first_of([visible(arm) for arm in one.arms if arm != one.control], _NAMED)
    control = f" {visible(one.control)} is {visible(one.baseline)} once more, with other seeds." if one.control else ""
    seeds = sorted({len(one.seeds(arm)) for arm in one.arms})
    counted = _counted(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    steps = sorted({int(s) for run in one.runs.values() if isinstance(s := run.setting("train", "steps"), int)})
    length = "" if not steps else f", {steps[-1]:,} steps a run"
    tokens = max((int(t.iloc[-1]) for run in one.runs.values() if len(t := run.series("tokens"))), default=0)
    length += f" ({tokens:,} tokens)" if tokens else ""
    rates = {rate for arm in one.arms for scenario in one.scenarios for rate in one.rates(arm, scenario)} - {None}
    lines = [
        f"{_counted(len(one.arms), 'arm')} (ways to train that are compared): {names}. The baseline is {visible(one.baseline)}."
        + control,
        f"{counted} each (the same training with other random numbers), {_counted(len(rates), 'peak learning rate')}{length}.",
        f"{len(one.runs):,} of {len(one.planned):,} planned runs have ended.",
    ]
    if len(one.scenarios) > 1:
        lines.insert(2, f"Conditions (scenarios): {', '.join(map(visible, one.scenarios))}.{_stresses(found)}")
    running = sum(is_running(run) for run in material.runs.values())
    return [*lines, *([f"{_counted(running, 'run')} still going on."] if running else [])]


def _stresses(found: Study) -> str:
    """What was planted in each scenario."""
    one, told = found.comparison, []
    for scenario in one.scenarios:
        run = next((run for cell, run in one.runs.items() if cell.scenario == scenario), None)
        faults = run.config.get("stress") if run is not None else None
        kinds = [str(fault.get("kind")) for fault in faults if isinstance(fault, dict)] if isinstance(faults, list) else []
        if kinds:
            told.append(f"{visible(scenario)}: {', '.join(map(visible, kinds))}")
    return f" Disturbances planted on purpose: {'; '.join(told)}." if told else ""


def _about_loss(found: Study, column: Column | None) -> Iterator[Said]:
    one = found.comparison
    base, basis = visible(one.baseline), found.bases(one.calm)[0]
    rows = {row.arm: row for row in found.rows(one.calm, basis, PRIMARY) if row.arm != one.control}
    if column is None or not rows:
        yield Said("open", "No final loss can be compared yet.")
        return
    for tone, side, word in (("good", "better", "Lower"), ("bad", "worse", "Higher")):
        arms = sorted((arm for arm in _arms(column, side) if arm in rows), key=lambda arm: rows[arm].difference.effect.mean)
        if arms:
            told = first_of([f"{visible(arm)} ({difference_text(rows[arm])})" for arm in arms], _NAMED)
            yield Said(tone, f"{word} final loss than {base}: {told}, in nats per token with 95% interval.")  # type: ignore[arg-type]
    rest = [arm for arm in rows if arm in column.cells and column.cells[arm].verdict in (NO_DIFFERENCE, TOO_FEW_SEEDS)]
    if rest:
        yield _not_shown([rows[arm] for arm in rest], base)


def _not_shown(rows: Sequence[Row], base: str) -> Said:
    names = first_of([f"{visible(row.arm)} ({difference_text(row)})" for row in rows], _NAMED)
    known = sorted(row.smallest for row in rows if row.smallest is not None)
    if not known:
        return Said("open", f"From so few seeds nothing can be concluded of the final loss of {names}: it may be chance.")
    ends = " to ".join(dict.fromkeys([number(known[0], 2), number(known[-1], 2)]))
    return Said("open", f"No difference in final loss from {base} is shown for {names}. One of {ends} would probably be shown.")


def _about_stability(found: Study, columns: dict[str, Column]) -> Iterator[Said]:
    base = visible(found.comparison.baseline)
    silent, few = [], []
    for key, column in columns.items():
        if key in ("final_nll", "stable_to"):
            continue
        better, worse, measure = _named(key)
        control = found.comparison.control
        sides = {side: [arm for arm in _arms(column, side) if arm != control] for side in ("better", "worse")}
        if sides["better"]:
            yield Said("good", f"{_capital(better)} than {base}: {first_of(list(map(visible, sides['better'])), _NAMED)}.")
        if sides["worse"]:
            yield Said("bad", f"{_capital(worse)} than {base}: {first_of(list(map(visible, sides['worse'])), _NAMED)}.")
        verdicts = {cell.verdict for arm, cell in column.cells.items() if arm != control and cell.verdict}
        if not any(sides.values()) and verdicts:
            (few if verdicts == {TOO_FEW_SEEDS} else silent).append(measure)
    if silent:
        yield Said("open", f"For no arm a difference from {base} is shown in {', '.join(silent)}.")
    if few:
        yield Said("open", f"With so few seeds no difference could be shown in {', '.join(few)}.")


def _named(key: str) -> tuple[str, str, str]:
    if key in MEASURES:
        return MEASURES[key]
    scenario, _, what = key.rpartition("/")
    under = visible(scenario)
    if what == "survived":
        return f"more runs that survive {under}", f"fewer runs that survive {under}", f"the share of runs that survive {under}"
    return f"more runs that recover from {under}", f"fewer runs that recover from {under}", f"the share that recovers from {under}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _matched(found: Study) -> list[str]:
    one = found.comparison
    configs = compared_configs(one)
    keys = list(differing(list(configs.values())))
    told = first_of([visible(key) for key in keys], _NAMED) if keys else "no key"
    lines = [
        f"Runs are compared in pairs with the same seed; final losses at each arm's {found.basis_text(one.calm, found.bases(one.calm)[0])}.",
        f"The arms' configurations differ in {told}; every other key is the same (but seed, learning rate, disturbance).",
    ]
    warned = warnings(found)
    if warned:
        lines.append(f"{_counted(len(warned), 'warning')}, the gravest: {warned[0]}.")
    return lines


# ------------------------------------------------------------------------------------------------------------------------- runs


def _of_runs(material: Material, found: Sequence[Happened]) -> Words:
    runs = material.runs
    told = list(runs.items())[:_RUNS_TOLD]
    said = [one for label, run in told for one in _about_run(label, run, found, alone=len(runs) == 1)]
    if len(runs) > len(told):
        said.append(Said("plain", f"{len(runs) - len(told)} more runs are in the tables below."))
    facts = [fact for label, run in told for fact in _run_facts(label, run, alone=len(runs) == 1)]
    return Words(_run_headline(runs, found), facts, said, _apart(material))


def _run_headline(runs: dict[str, Run], found: Sequence[Happened]) -> str:
    if len(runs) == 1:
        label, run = next(iter(runs.items()))
        spikes = sum(one.kind in ("spike", "spike_opened") for one in found)
        told = "no spike was found" if not spikes else _counted(spikes, "spike") + (" was found" if spikes == 1 else " were found")
        return f"{visible(label)} {_state(run)[1]}; {told}"
    spiked = len({one.run for one in found if one.kind in ("spike", "spike_opened")})
    broken = sum(run.status.get("status") == "diverged" for run in runs.values())
    ended = f", {broken} diverged" if broken else ""
    return f"{len(runs)} runs side by side: spikes were found in {spiked}{ended}"


def _state(run: Run) -> tuple[Tone, str]:
    """How a run ended, or how far it is."""
    last = f"{int(run.metrics.index[-1]):,}"
    status, planned = run.status.get("status"), run.setting("train", "steps")
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    if isinstance(run, LogRun):
        return "plain", f"is logged up to step {last}"
    return {
        "finished": ("good", f"ran to its end, step {last}"),
        "diverged": ("bad", f"diverged at step {last} and was stopped"),
        "running": ("plain", f"is at step {last}{of} (it still runs, or was killed)"),
        "preempted": ("plain", f"was interrupted at step {last}{of}"),
        "failed": ("bad", f"failed at step {last}{of}"),
    }.get(str(status), ("plain", f"ended at step {last}: {visible(str(status))}"))  # type: ignore[return-value]


def _about_run(label: str, run: Run, found: Sequence[Happened], *, alone: bool) -> Iterator[Said]:
    name = "It" if alone else visible(label)
    tone, state = _state(run)
    reason = str(run.status.get("reason") or "")
    yield Said(tone, f"{name} {state}{': ' + visible(reason) if reason else ''}.")
    yield from _about_spikes(label, name, run, [one for one in found if one.run == label])
    yield from _about_level(name, run)


def _about_spikes(label: str, name: str, run: Run, own: Sequence[Happened]) -> Iterator[Said]:
    spikes = [one for one in own if one.kind in ("spike", "spike_opened")]
    if spikes:
        worst = max(spikes, key=lambda one: (0 if math.isnan(one.sigmas) else one.sigmas))
        count = "Once" if len(spikes) == 1 else f"{len(spikes)} times"
        yield Said("bad", f"{name} spiked {count.lower()}. The worst, {worst.where}: {worst.what}.")
    elif any(not run.series(key).empty for key in ("loss/nll", "grad_norm/total")):
        yield Said("good", f"No spike was found in {_watched(run)}.")
    for one in own:
        if one.kind in ("non_finite", "rise", "stall", "saturated", "monitor_failed"):
            yield Said("bad", f"{_capital(one.what)} ({one.where}).")
    series = run.series(ACTING)
    if planted := spans(series.index.to_numpy(), series.to_numpy()):
        yield Said("plain", f"A disturbance was planted on purpose at {words(planted)}.")


def _watched(run: Run) -> str:
    return " or ".join(name_of(key) for key in ("loss/nll", "grad_norm/total") if not run.series(key).empty)


def _about_level(name: str, run: Run) -> Iterator[Said]:
    losses = run.series("loss/nll").to_numpy()
    if not len(losses):
        return
    found = trend(losses)
    size = number(abs(found.change), 2)
    told: dict[str, Said] = {
        "falling": Said("good", f"The loss is still falling: by {size} from one tenth of the steps to the last."),
        "rising": Said("bad", f"The loss is rising: by {size} from one tenth of the steps to the last."),
        "level": Said("plain", "The loss no longer falls by more than its noise over the last fifth of the steps."),
        "unknown": Said("open", "Whether the loss still falls cannot be said: too few values at the end, or not finite."),
    }
    tone, text = told[found.word]
    validation = run.series("validation/nll")
    last = f" Validation loss at the end: {number(float(validation.iloc[-1]), 4)}." if len(validation) else ""
    finite = losses[np.isfinite(losses)]
    level = f" Last training loss: {number(float(finite[-1]), 4)}, lowest: {number(float(finite.min()), 4)}." if finite.size else ""
    yield Said(tone, (text if name == "It" else f"{name}: {text[0].lower()}{text[1:]}") + level + last)


def _run_facts(label: str, run: Run, *, alone: bool) -> list[str]:
    begin = "" if alone else f"{visible(label)}: "
    if isinstance(run, LogRun):
        return [f"{begin}{run.log.format}, {_counted(len(run.metrics), 'logged step')}; {visible(str(run.log.path.name))}."]
    parts = [f"{_counted(len(run.metrics), 'logged step')}"]
    tokens = run.series("tokens")
    parts += [f"{int(tokens.iloc[-1]):,} tokens"] if len(tokens) else []
    settings = {"head": ("head", "kind"), "objective": ("objective", "kind"), "peak learning rate": ("optimizer", "lr")}
    parts += [f"{what} {visible(str(v))}" for what, keys in settings.items() if (v := run.setting(*keys)) is not None]
    loop = "a training loop of its own, watched by the monitor: " if "monitor" in run.config else ""
    return [f"{begin}{loop}{', '.join(parts)}."]


def _apart(material: Material) -> list[str]:
    configs = [run.config for run in material.runs.values() if not isinstance(run, LogRun)]
    if len(configs) < 2:  # noqa: PLR2004
        return ["Nothing was compared: the events are those that the project's default rules find."]
    keys = list(differing(configs))
    return [
        f"The runs' configurations differ in {first_of([visible(key) for key in keys], _NAMED) if keys else 'no key'}.",
        "These runs form no arms with a verdict: read the curves side by side.",
    ]
