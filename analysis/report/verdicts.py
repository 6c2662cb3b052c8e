"""The first screen in plain words: what was run, what came out of it, and what must be known before believing it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from analysis.compare.differing import differing
from analysis.logs import LogRun
from analysis.show.stresses import ACTING, spans, words
from analysis.show.text import first_of, number, visible
from analysis.stability.compare import NO_DIFFERENCE, OWN_BEST, PRIMARY, TOO_FEW_SEEDS, Row, Study
from analysis.stability.conclusion import Column, conclusions
from analysis.stability.fairness import compared_configs, warnings
from record.finished import Run

from .happened import LASTING, NAMES, Happened, name_of, summed_up
from .material import Material, claims_of, is_running
from .one_seed import has_one_seed, one_seed_headline, one_seed_said
from .said import Said, Tone, Words
from .trend import trend

_NAMED = 8
"""Most arms that a sentence names."""
_RUNS_TOLD = 6
"""Most runs of which the first screen tells by themselves."""


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
        return _of_arms(material, material.study, found)
    return _of_runs(material, found)


# ------------------------------------------------------------------------------------------------------------------------- arms


def _of_arms(material: Material, found: Study, happened: Sequence[Happened]) -> Words:
    if has_one_seed(found):
        said = [*one_seed_said(material, found, happened), *_about_claims(material)]
        headline = one_seed_headline(material, found, happened)
        return Words(headline, _arm_facts(material, found), said, _matched(found))
    columns = {column.key: column for column in conclusions(found)}
    said = [*_about_loss(found, columns.get("final_nll")), *_about_stability(found, columns), *_about_claims(material)]
    return Words(_headline(found, columns), _arm_facts(material, found), said, _matched(found))


def _headline(found: Study, columns: dict[str, Column]) -> str:
    one = found.comparison
    base = visible(one.baseline)
    others = [arm for arm in one.compared if arm != one.control]
    if not others:
        return f"{base} against itself with other seeds: how much of a difference is chance"
    better, worse = ({*_arms(columns.get("final_nll"), side)} & {*others} for side in ("better", "worse"))
    rest = [column for key, column in columns.items() if key != "final_nll"]
    steadier, shakier = (
        {a for column in rest for a in _arms(column, side)} & {*others} for side in ("better", "worse")
    )
    if not (better or worse or steadier or shakier):
        return f"No difference from {base} is shown for {_counted(len(others), 'other arm')}"
    if len(others) == 1:
        loss = "a lower loss" if better else "a higher loss" if worse else "no difference in loss"
        both = {(True, True): "more stability in one measure and less in another", (True, False): "more stability",
                (False, True): "less stability", (False, False): "no difference in stability"}  # fmt: skip
        return f"{visible(others[0])} against {base}: {loss} is shown, and {both[bool(steadier), bool(shakier)]}"
    counts = [len(better), len(worse), len(steadier - shakier), len(shakier - steadier)]
    low, high, more, less = (str(count) if count else "none" for count in counts)
    return (
        f"Compared with {base}, a lower loss is shown for {low} of {len(others)} arms and a higher one for {high}; "
        f"more stability for {more}, less for {less}"
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
        each = [fault for fault in faults if isinstance(fault, dict)] if isinstance(faults, list) else []
        if each:
            told.append(f"{visible(scenario)}: {', '.join(map(_fault, each))}")
    return f" Disturbances planted on purpose: {'; '.join(told)}." if told else ""


def _fault(fault: Mapping[str, Any]) -> str:
    """A planted disturbance: its kind and its settings."""
    settings = ", ".join(f"{key} {value}" for key, value in fault.items() if key != "kind")
    return visible(f"{fault.get('kind')} ({settings})" if settings else str(fault.get("kind")))


def _about_loss(found: Study, column: Column | None) -> Iterator[Said]:
    one = found.comparison
    base, basis = visible(one.baseline), found.bases(one.calm)[0]
    rows = {row.arm: row for row in found.rows(one.calm, basis, PRIMARY) if row.arm != one.control}
    if column is None or not rows:
        yield Said("open", "No final loss can be compared yet.")
        return
    sides: tuple[tuple[Tone, str, str], ...] = (("good", "better", "Lower"), ("bad", "worse", "Higher"))
    for tone, side, word in sides:
        arms = sorted(
            (arm for arm in _arms(column, side) if arm in rows), key=lambda arm: rows[arm].difference.effect.mean
        )
        if arms:
            told = first_of([f"{visible(arm)} ({_told(rows[arm])})" for arm in arms], _NAMED)
            yield Said(tone, f"{word} final loss than {base}: {told}, in nats per token with 95% interval.")
    for side, word in (("better in all", "Lower"), ("worse in all", "Higher")):
        if arms := [f"{visible(arm)} ({_told(rows[arm])})" for arm in _arms(column, side) if arm in rows]:
            yield Said(
                "open", f"{word} final loss in every seed, but without a test that shows it: {first_of(arms, _NAMED)}."
            )
    rest = [arm for arm in rows if arm in column.cells and column.cells[arm].verdict in (NO_DIFFERENCE, TOO_FEW_SEEDS)]
    if rest:
        yield _not_shown([rows[arm] for arm in rest], base)


def _told(row: Row) -> str:
    """A difference with its interval."""
    return row.difference.effect.format("+.3f")


def _not_shown(rows: Sequence[Row], base: str) -> Said:
    names = first_of([f"{visible(row.arm)} ({_told(row)})" for row in rows], _NAMED)
    known = sorted(row.smallest for row in rows if row.smallest is not None)
    if not known:
        return Said(
            "open", f"From so few seeds nothing can be concluded of the final loss of {names}: it may be chance."
        )
    ends = " to ".join(dict.fromkeys([number(known[0], 2), number(known[-1], 2)]))
    return Said(
        "open", f"No difference in final loss from {base} is shown for {names}. One of {ends} would probably be shown."
    )


def _about_stability(found: Study, columns: Mapping[str, Column]) -> Iterator[Said]:
    base, control = visible(found.comparison.baseline), found.comparison.control
    silent: list[str] = []
    few: list[str] = []
    for key in (key for key in columns if key not in ("final_nll", "stable_to")):
        better, worse, measure = _named(key)
        seeds = "in every seed, but without a test that shows it"
        sides: tuple[tuple[str, Tone, str], ...] = (
            ("better", "good", f"{better} than {base}"), ("worse", "bad", f"{worse} than {base}"),
            ("better in all", "open", f"{better} {seeds}"), ("worse in all", "open", f"{worse} {seeds}"),
        )  # fmt: skip
        shown = {side: [visible(arm) for arm in _arms(columns[key], side) if arm != control] for side, _, _ in sides}
        for side, tone, text in sides:
            if shown[side]:
                yield Said(tone, f"{_capital(text)}: {first_of(shown[side], _NAMED)}.")
        verdicts = {cell.verdict for arm, cell in columns[key].cells.items() if arm != control and cell.verdict}
        if verdicts and not any(shown.values()):
            (few if verdicts == {TOO_FEW_SEEDS} else silent).append(measure)
    if silent:
        yield Said("open", f"For no arm a difference from {base} is shown in {', '.join(silent)}.")
    if few:
        yield Said("open", f"With so few seeds no difference could be shown in {', '.join(few)}.")


def _about_claims(material: Material) -> Iterator[Said]:
    for found in claims_of(material):
        told = []
        for verdict in ("refuted", "supported", "not shown", "not testable here"):
            names = [_claim(one) for one in found.claims if one.get("verdict") == verdict]
            told += [f"{len(names)} {verdict} ({', '.join(names)})"] if names else []
        yield Said("plain", f"Of {_counted(len(found.claims), 'claim')} of the article: {'; '.join(told)}.")


def _claim(one: Mapping[str, Any]) -> str:
    """A claim's name, with what has to be known of its verdict."""
    name, worth = visible(str(one.get("claim"))), one.get("worth")
    return f"{name} [{visible(str(worth))}]" if worth else name


def _named(key: str) -> tuple[str, str, str]:
    if key in MEASURES:
        return MEASURES[key]
    scenario, _, what = key.rpartition("/")
    does = f"{'survive' if what == 'survived' else 'recover from'} {visible(scenario)}"
    return f"more runs that {does}", f"fewer runs that {does}", f"the share of runs that {does}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _matched(found: Study) -> list[str]:
    one = found.comparison
    keys = list(differing(list(compared_configs(one).values())))
    told = first_of([visible(key) for key in keys], _NAMED) if keys else "no key"
    basis = found.bases(one.calm)[0]
    rate = "each arm's own best rate" if basis == OWN_BEST else found.basis_text(one.calm, basis)
    lines = [
        f"Runs are compared in pairs with the same seed; final losses at {rate}.",
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
    if len(runs) == 1:
        said = [one for label, run in told for one in _about_run("It", label, run, found)]
    else:
        said = [_in_one(label, list(_about_run("", label, run, found))) for label, run in told]
    if len(runs) > len(told):
        said.append(Said("plain", f"{len(runs) - len(told)} more runs are in the tables below."))
    facts = [fact for label, run in told for fact in _run_facts(label, run, alone=len(runs) == 1)]
    return Words(_run_headline(runs, found), facts, said, _apart(material))


def _run_headline(runs: dict[str, Run], found: Sequence[Happened]) -> str:
    if len(runs) == 1:
        label, run = next(iter(runs.items()))
        kinds = {"became NaN or infinite": ("non_finite",), "spiked": ("spike", "spike_opened")}
        told = []
        for what, alike in kinds.items():
            of = [
                name_of(one.signal) for one in found if one.kind in alike and (what == "spiked" or one.signal in NAMES)
            ]
            told += [f"{' and '.join(list(dict.fromkeys(of))[:3])} {what}"] if of else []
        return f"{visible(label)} {_state(run)[1]}; {', '.join(told) or 'no spike was found'}"
    spiked = len({one.run for one in found if one.kind in ("spike", "spike_opened")})
    diverged = sum(run.status.get("status") == "diverged" for run in runs.values())
    ended = f", {diverged} diverged" if diverged else ""
    broken = [count for run in runs.values() if (count := _broken_rows(run))]
    rows = f", NaN or infinite values in {len(broken)} ({_counted(sum(broken), 'step')})" if broken else ""
    return f"{len(runs)} runs side by side: spikes were found in {spiked}{rows}{ended}"


def _broken_rows(run: Run) -> int:
    """At how many steps a signal that is told by name is not finite."""
    return len(set().union(*(run.non_finite.get(signal, ()) for signal in NAMES)))


def _state(run: Run) -> tuple[Tone, str]:
    """How a run ended, or how far it is."""
    last = f"{int(run.metrics.index[-1]):,}"
    status, planned = run.status.get("status"), run.setting("train", "steps")
    of = f" of {planned:,}" if isinstance(planned, int) else ""
    if isinstance(run, LogRun):
        return "plain", f"is logged up to step {last}"
    told: dict[str, tuple[Tone, str]] = {
        "finished": ("good", f"ran to its end, step {last}"),
        "diverged": ("bad", f"diverged at step {last} and was stopped"),
        "running": ("plain", f"is at step {last}{of} (it still runs, or was killed)"),
        "preempted": ("plain", f"was interrupted at step {last}{of}"),
        "failed": ("bad", f"failed at step {last}{of}"),
    }
    return told.get(str(status), ("plain", f"ended at step {last}: {visible(str(status))}"))


def _in_one(label: str, parts: Sequence[Said]) -> Said:
    """What there is to say of one of several runs, as the gravest of it is toned."""
    tones: tuple[Tone, ...] = ("bad", "open", "good", "plain")
    tone = next(tone for tone in tones if any(one.tone == tone for one in parts))
    return Said(tone, f"{visible(label)} {' '.join(one.text for one in parts).strip()}")


def _about_run(name: str, label: str, run: Run, found: Sequence[Happened]) -> Iterator[Said]:
    """How a run ended, what happened in it, and where its loss is. ``name``: what the first sentence begins with."""
    tone, state = _state(run)
    reason = str(run.status.get("reason") or "")
    yield Said(tone, f"{name} {state}{': ' + visible(reason) if reason else ''}.")
    own = [one for one in found if one.run == label]
    spikes = [one for one in own if one.kind in ("spike", "spike_opened")]
    if spikes:
        worst = max(spikes, key=lambda one: (one.signal == "loss/nll", one.size))
        yield Said("bad", f"{_how_often(spikes)}. The worst, {worst.where}: {worst.what}.")
    elif any(not run.series(key).empty for key in ("loss/nll", "grad_norm/total")):
        broken = any(one.kind == "non_finite" for one in own)
        yield Said("open" if broken else "good", f"No spike was found in {_watched(run)}.")
    for kind in ("non_finite", *LASTING, "monitor_failed"):
        if alike := [one for one in summed_up(own) if one.kind == kind]:
            more = f"; {len(alike) - 1} more like it" if len(alike) > 1 else ""
            yield Said("bad", f"{_capital(alike[0].what)} ({alike[0].where}{more}).")
    series = run.series(ACTING)
    if planted := spans(series.index.to_numpy(), series.to_numpy()):
        yield Said("plain", f"A disturbance was planted on purpose at {words(planted)}.")
    yield from _about_level(run)


def _how_often(spikes: Sequence[Happened]) -> str:
    """How often each signal spiked."""
    times = Counter(one.signal for one in spikes)
    (signal, count), *others = times.items()
    told = [f"{name_of(signal)} spiked {_times(count)}", *(f"{name_of(other)} {_times(n)}" for other, n in others)]
    return _capital(", ".join(told))


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _watched(run: Run) -> str:
    return " or ".join(name_of(key) for key in ("loss/nll", "grad_norm/total") if not run.series(key).empty)


def _about_level(run: Run) -> Iterator[Said]:
    losses = run.series("loss/nll").to_numpy()
    if not len(losses):
        return
    found = trend(losses)
    size, lately = (
        number(abs(found.change), 2),
        f"on average over the last {found.values:,} values than over those before",
    )
    why = "too few values" if np.isfinite(losses).all() else "some of its values are NaN or infinite"
    told: dict[str, Said] = {
        "falling": Said("good", f"The loss is still falling: {size} lower {lately}."),
        "rising": Said("bad", f"The loss is rising at the end: {size} higher {lately}."),
        "level": Said(
            "plain",
            f"Beyond its noise no change of the loss is shown: {size} {'lower' if found.change < 0 else 'higher'} {lately}.",
        ),
        "unknown": Said("open", f"Whether the loss still falls cannot be said: {why}."),
    }
    tone, text = told[found.word]
    validation = run.series("validation/nll")
    last = f" Validation loss at the end: {number(float(validation.iloc[-1]), 4)}." if len(validation) else ""
    finite = losses[np.isfinite(losses)]
    ends = (number(float(finite[-1])), number(float(finite.min()))) if finite.size else ("-", "-")
    level = f" Last training loss: {ends[0]}, lowest: {ends[1]}."
    above = f" On average over such a stretch it is {number(found.above, 2)} above its lowest." if found.above else ""
    yield Said(tone if tone != "good" or not above else "open", text + above + level + last)


def _run_facts(label: str, run: Run, *, alone: bool) -> list[str]:
    begin = "" if alone else f"{visible(label)}: "
    if isinstance(run, LogRun):
        return [f"{begin}{run.log.format}, {_counted(len(run.metrics), 'logged step')}."]
    parts = [f"{_counted(len(run.metrics), 'logged step')}"]
    tokens = run.series("tokens")
    parts += [f"{int(tokens.iloc[-1]):,} tokens"] if len(tokens) else []
    settings = {"head": ("head", "kind"), "objective": ("objective", "kind"), "peak learning rate": ("optimizer", "lr")}
    parts += [f"{what} {visible(str(v))}" for what, keys in settings.items() if (v := run.setting(*keys)) is not None]
    parts += [f"branch of {visible(str(place))}"] if (place := run.config.get("branch_from")) else []
    loop = "a training loop of its own, watched by the monitor: " if "monitor" in run.config else ""
    return [f"{begin}{loop}{', '.join(parts)}."]


def _apart(material: Material) -> list[str]:
    configs = [run.config for run in material.runs.values() if not isinstance(run, LogRun)]
    if len(configs) < 2:
        alone = (
            "It was compared with nothing"
            if len(material.runs) == 1
            else "Logs do not say their settings, so nothing is compared"
        )
        return [f"{alone}. Events are what the default rules of the project's detectors find."]
    keys = list(differing(configs))
    return [
        f"The runs' configurations differ in {first_of([visible(key) for key in keys], _NAMED) if keys else 'no key'}.",
        "These runs form no arms with a verdict: read the curves side by side.",
    ]
