"""What happened in the runs: events in plain words, the gravest first, each with what is known of its cause."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from analysis.logs import LogRun
from analysis.show.stresses import ACTING, spans, within
from analysis.show.stresses import words as steps_in_words
from analysis.show.text import clip, first_of, number, visible
from record.finished import Run

from .material import Material, files_named, read_json

NAMES = {
    "loss/nll": "the loss",
    "grad_norm/total": "the gradient norm",
    "validation/nll": "the validation loss",
}
"""Signals in plain words; others have their own name."""
KINDS = ("non_finite", "spike", "spike_opened", "rise", "stall", "saturated", "rewind", "monitor_failed")
"""Events that are told, the gravest first."""
PLURALS = {
    "non_finite": "NaN or infinite", "spike": "spikes", "spike_opened": "spikes still open", "rise": "rises of the level",
    "stall": "stalls", "saturated": "saturated softmaxes", "rewind": "rewinds", "monitor_failed": "failed monitors",
}  # fmt: skip
LASTING = ("rise", "stall", "saturated")
"""Kinds of events that say how a run is from a step on, and may come again and again."""
_ALIKE = 3
"""Most of them that are told one by one."""
_EXCERPT = 60
"""Characters shown of a sequence."""
_SHORTLY = 8
"""Steps after a planted disturbance in which an event may still be its effect, as for events of a run itself."""
_PRECURSORS = 3
"""Most signals that are named as having moved before a spike."""


@dataclass(frozen=True)
class Happened:
    """An event of a run."""

    run: str
    kind: str
    signal: str
    what: str
    where: str
    span: tuple[int, int]
    """Its first and its last step."""
    height: float
    """As the event has it; NaN if it has none."""
    sigmas: float
    """How far it stands out; NaN if that is not measured."""
    known: list[str]
    """What an autopsy or a replay has found."""
    planted: str
    """The steps at which a planted disturbance acted in it or shortly before; empty if none did."""
    before: str
    """What moved before it; empty if nothing is known to have."""
    command: str
    """What would explain it; empty if nothing can, or if it is explained."""

    @property
    def size(self) -> float:
        """How far it stands out, 0 if that is not measured."""
        return 0.0 if math.isnan(self.sigmas) else self.sigmas


def what_happened(material: Material) -> list[Happened]:
    """All events of all runs."""
    autopsies, replays = _autopsies(material.places), _replays(material.places)
    found = [
        one
        for label, run in material.runs.items()
        for event in [*run.events, *_broken(run)]
        if (one := _happened(label, run, event, autopsies, replays)) is not None
    ]
    return sorted(found, key=lambda one: (KINDS.index(one.kind), one.signal != "loss/nll", -one.size))


def _broken(run: Run) -> Iterator[dict[str, Any]]:
    """Of a log, which signals that are told by name became NaN or infinite; a run has an event of its own where that happens."""
    for signal in NAMES if isinstance(run, LogRun) else ():
        steps = run.non_finite.get(signal)
        if steps is not None and len(steps):
            ends = {"start_step": int(steps[0]), "end_step": int(steps[-1])}
            yield {"event": "non_finite", "signal": signal, "values": len(steps)} | ends


def summed_up(found: Sequence[Happened]) -> list[Happened]:
    """The events, with more than _ALIKE lasting ones of one run, kind and signal as one: how many, the largest, and where."""
    alike: dict[tuple[str, str, str], list[Happened]] = {}
    for one in found:
        if one.kind in LASTING:
            alike.setdefault((one.run, one.kind, one.signal), []).append(one)
    many = {place: own for place, own in alike.items() if len(own) > _ALIKE}
    told = []
    for one in found:
        own = many.get((one.run, one.kind, one.signal))
        if own is None:
            told.append(one)
        elif one is own[0]:
            told.append(_in_one(own))
    return told


def _in_one(alike: Sequence[Happened]) -> Happened:
    largest = max(alike, key=lambda one: -math.inf if math.isnan(one.height) else one.height)
    first, last = min(one.span[0] for one in alike), max(one.span[1] for one in alike)
    what = f"{len(alike)} {PLURALS[largest.kind]}, the largest {largest.where}: {largest.what}"
    return replace(largest, what=what, where=f"steps {first:,} to {last:,}", span=(first, last))


def counts(found: Sequence[Happened]) -> str:
    """How many events of each kind there are, in words."""
    number_of = Counter(one.kind for one in found)
    return ", ".join(f"{PLURALS[kind]}: {number_of[kind]:,}" for kind in KINDS if number_of[kind])


def _happened(
    label: str, run: Run, event: Mapping[str, Any], autopsies: Mapping[Any, list[str]], replays: Mapping[Any, list[str]]
) -> Happened | None:
    kind = str(event.get("event"))
    if kind not in KINDS or (kind == "spike_opened" and _closed(run, event)):
        return None
    first, last = _step(event, "start_step", "step"), _step(event, "end_step", "step")
    peak = _step(event, "peak_step") or first
    known = [line for step in range(first, min(last, first + 50) + 1) for line in replays.get((run.name, step), [])]
    known = [*autopsies.get((run.name, first), []), *known[:1]]
    where = f"step {first:,}" if last <= first else f"steps {first:,} to {last:,}"
    if kind in ("rise", "saturated"):
        where = f"from step {first:,}, noticed at {_step(event, 'opened_step'):,}"
    if "abandoned" in event:
        where += ", in a branch that the log left when it went back"
    sigmas = event.get("sigmas")
    value = float(sigmas) if isinstance(sigmas, int | float) else math.nan
    command = "" if known else _command(run, event, peak)
    return Happened(
        label,
        kind,
        str(event.get("signal")),
        _what(kind, event),
        where,
        (first, max(first, last)),
        _float(event, "height"),
        value,
        known,
        _planted(run, first, last),
        _before(event),
        command,
    )


def _closed(run: Run, opened: Mapping[str, Any]) -> bool:
    """Whether a spike that was reported while it lasted has been reported again when it was over."""
    place = opened.get("signal"), opened.get("start_step")
    return any((e.get("signal"), e.get("start_step")) == place for e in run.events if e.get("event") == "spike")


def _step(event: Mapping[str, Any], *keys: str) -> int:
    return next((int(event[key]) for key in keys if isinstance(event.get(key), int | float)), 0)


def name_of(signal: Any) -> str:
    """A signal in plain words."""
    return NAMES.get(str(signal), visible(str(signal)))


def _what(kind: str, event: Mapping[str, Any]) -> str:
    signal = name_of(event.get("signal"))
    height = event.get("height")
    size = number(float(height), 3) if isinstance(height, int | float) else "?"
    if kind == "non_finite":
        signals = event.get("signals") or [event.get("signal")]
        named = ", ".join(name_of(one) for one in signals[:3]) if isinstance(signals, list) else signal
        count = event.get("values")
        values = f", {count:,} values in all" if isinstance(count, int) and count > 1 else ""
        return f"{named} became NaN or infinite{values}"
    if kind in ("spike", "spike_opened"):
        end = (
            "not over at the end"
            if kind == "spike_opened"
            else "recovered"
            if event.get("recovered")
            else "not recovered"
        )
        return f"spike of {signal}: {size} above what was expected ({number(_float(event, 'sigmas'), 3)} times the noise), {end}"
    if kind == "rise":
        return f"{signal} rose by {size} and stayed up"
    if kind == "stall":
        return f"{signal} stood still while the logits grew {number(_float(event, 'growth'), 3)} times as large"
    if kind == "saturated":
        return f"a softmax became saturated: {signal} is {size}"
    if kind == "rewind":
        return "an intervention went back to an earlier checkpoint"
    return f"the monitor failed: {event.get('reason', event.get('error', 'no reason given'))}"


def _float(event: Mapping[str, Any], key: str) -> float:
    value = event.get(key)
    return float(value) if isinstance(value, int | float) else math.nan


def _planted(run: Run, first: int, last: int) -> str:
    series = run.series(ACTING)
    near = within(spans(series.index.to_numpy(), series.to_numpy()), first - _SHORTLY, max(first, last))
    return steps_in_words(near) if near else ""


def _before(event: Mapping[str, Any]) -> str:
    """The first of what left its usual range before a spike."""
    given = event.get("precursors")
    known = [p for p in given if isinstance(p, dict) and "signal" in p] if isinstance(given, list) else []
    first = sorted(known, key=lambda p: _step(p, "first_step"))
    return first_of([f"{name_of(p['signal'])} at step {_step(p, 'first_step'):,}" for p in first], _PRECURSORS)


def _command(run: Run, event: Mapping[str, Any], step: int) -> str:
    """The command that explains an event; empty where there is none."""
    path = str(run.path)
    if isinstance(run, LogRun) or "monitor" in run.config:
        return ""  # there is no checkpoint to go back to
    kind = event.get("event")
    if kind == "spike":
        return shlex.join(
            ["python", "-m", "analysis.autopsy", path, "--step", f"{step}", "--out", f"{path}/autopsy_{step}"]
        )
    told = re.search(r"--step (\d+)", str(event.get("replay")))
    if told or kind == "non_finite":
        step = int(told[1]) if told else step
        return shlex.join(
            ["python", "-m", "analysis.replay", path, "--step", f"{step}", "--out", f"{path}/replay_{step}"]
        )
    return ""


def _autopsies(places: Sequence[Path]) -> dict[tuple[str, int], list[str]]:
    """What autopsies concluded, by the name of the run and the first step of the spike."""
    found: dict[tuple[str, int], list[str]] = {}
    for path in files_named(places, "autopsy.json"):
        one = read_json(path)
        if isinstance(one, dict) and isinstance(one.get("spike"), dict):
            reasons = one.get("reasons") if isinstance(one.get("reasons"), list) else []
            lines = [f"Cause, by experiment: {one.get('cause')}", *map(str, reasons or [])]
            found[str(one.get("run")), _step(one["spike"], "start_step")] = lines
    return found


def _replays(places: Sequence[Path]) -> dict[tuple[str, int], list[str]]:
    """What replays found, by the name of the run and the step."""
    found: dict[tuple[str, int], list[str]] = {}
    for path in files_named(places, "explanation.json"):
        one = read_json(path)
        if isinstance(one, dict) and isinstance(one.get("step"), int):
            found[str(one.get("run")), one["step"]] = [" ".join(_of_replay(one))]
    return found


def _of_replay(one: Mapping[str, Any]) -> Iterator[str]:
    words = {True: "agrees with the log", False: "differs from the log"}
    reproduced = words.get(one["reproduced"]) if isinstance(one.get("reproduced"), bool) else "was not checked"
    yield f"Step {one['step']}, taken again ({reproduced}):"
    metrics = one.get("metrics")
    for key in ("loss/nll", "grad_norm/total"):
        check = metrics.get(key) if isinstance(metrics, dict) else None
        if isinstance(check, dict):
            value, usual = _float(check, "replayed"), _float(check, "usual")
            yield f"{name_of(key)} {number(value)}, usually {number(usual)}."
    sequences = one.get("sequences")
    rows = [s for s in sequences if isinstance(s, dict)] if isinstance(sequences, list) else []
    if rows:
        largest = max(rows, key=_gradient)
        begin = clip(visible(str(largest.get("text"))), _EXCERPT)
        yield f"Largest gradient: sequence {largest.get('index')}, which begins “{begin}”."


def _gradient(sequence: Mapping[str, Any]) -> float:
    value = _float(sequence, "grad_norm")
    return -math.inf if math.isnan(value) else value
