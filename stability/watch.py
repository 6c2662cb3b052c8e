"""Watch a run's rows as they arrive, and report divergence and spikes in events.jsonl and on the terminal."""

import math
import shlex
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from record.checkpoints import checkpoint_before, start_of, step_of
from record.metrics import kind_of
from record.recorder import Recorder
from record.rows import BRANCH_ROWS, Row, read_rows, rows_up_to
from stability.detect.base import Detector
from stability.detect.catalogue import detector_from_state, judged_from, make_detector
from stability.detect.events import Alarm, Event, Spike, told_by
from stability.detect.precursors import LOOK_BACK, precursors
from stability.detect.saturation import LIMITS

TENSORS_TOLD = 20
"""Most tensor names in an event: after one bad token all gradients are bad."""


class Watch:
    """Sees every row once, in order. ``say`` prints a line on the main process."""

    def __init__(
        self,
        recorder: Recorder,
        say: Callable[[str], None],
        detector: str,
        signals: Sequence[str],
        warmup_steps: int = 0,
    ) -> None:
        self.recorder, self.say, self.warmup_steps = recorder, say, warmup_steps
        self.detector, self.signals = detector, signals
        self.restore(None, step=0)

    def restore(self, state: list[dict[str, Any]] | None, step: int, undecided: Sequence[dict[str, Any]] = ()) -> None:
        """Continue from what :meth:`state` returned after ``step`` (None: from the start), and from undecided alarms."""
        self.detectors = self._new_detectors()
        if state is not None:
            saved = {(one["detector"], one["signal"]): one for one in state}
            self.detectors = [_continued(new, saved.get((new.kind, new.signal))) for new in self.detectors]
        self.recent: deque[Row] = deque(maxlen=LOOK_BACK)
        if step > 0:
            rows = rows_up_to(self.recorder.directory / "metrics.jsonl", step, LOOK_BACK)
            if (start := start_of(self.recorder.directory)) is not None:
                rows = [*read_rows(start.with_name(BRANCH_ROWS)), *rows]
            # Non-finite numbers are stored as strings.
            self.recent.extend({k: float(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows)
        self.announced = {_which(d.open) for d in self.detectors if d.open is not None}
        """Spikes that were reported while open."""
        self.alarms: list[Alarm] = []
        self.carried = [Alarm(**alarm) for alarm in undecided]

    def _new_detectors(self) -> list[Detector]:
        """What every run is watched for, each once, whatever is configured."""
        rules = [(self.detector, signal) for signal in self.signals]
        rules += [("level", signal) for signal in self.signals if kind_of(signal) == "loss"]
        rules += [("saturated", signal) for signal in LIMITS]
        rules.append(("stall", "loss/nll"))
        return [make_detector(rule, signal) for rule, signal in dict.fromkeys(rules)]

    def state(self) -> list[dict[str, Any]]:
        """The detectors' state as JSON, for a checkpoint."""
        return [detector.state() for detector in self.detectors]

    def look(self, rows: list[Row], drew: Callable[[int], int], *, diverged_since: int | None = None) -> None:
        """Feed the detectors and report each spike that has ended. ``drew`` maps a step to its batch. ``alarms`` are then
        the spikes among these rows, over or not, and the steps from ``diverged_since`` to the last row."""
        self.alarms, self.carried = self.carried, []
        for row in rows:
            self.recent.append(row)
            for detector in self.detectors:
                if row["step"] < judged_from(detector, self.warmup_steps):
                    continue
                for found in detector.update(row):
                    self._report(found, written_at=rows[-1]["step"], drew=drew)
        self.alarms += [_alarm(d.open) for d in self.detectors if d.open is not None]
        self._announce(rows[-1]["step"] if rows else 0)
        if diverged_since is not None:
            self.alarms.append(Alarm("non_finite", diverged_since, rows[-1]["step"], math.inf))

    def overflowed(self, step: int) -> None:
        """Add an alarm for a step whose update, rather than the step itself, produced something not finite."""
        self.alarms.append(Alarm("non_finite", step, step, math.inf))

    def first_steps(self, highest: int) -> list[int]:
        """First steps of the run's ``highest`` spikes and of open ones: where a replay may want to begin."""
        events = [e for e in read_rows(self.recorder.directory / "events.jsonl") if e["event"] == "spike"]
        events.sort(key=lambda e: float(e["sigmas"]), reverse=True)
        return [e["start_step"] for e in events[:highest]] + [
            step for d in self.detectors if (step := d.suspected_since()) is not None
        ]

    def finish(self, step: int, drew: Callable[[int], int]) -> None:
        """Report what is still open at the end of the run."""
        for detector in self.detectors:
            for found in detector.finish():
                # step + 1: a run killed now that resumes from a checkpoint of this step reports it again.
                self._report(found, written_at=step + 1, drew=drew)

    def _report(self, found: Event, written_at: int, drew: Callable[[int], int]) -> None:
        if told_by(found, self._spikes()):
            return
        if not isinstance(found, Spike):
            self.recorder.event(found.kind, written_at, **found.event())
            self.say(str(found))
            return
        self.alarms.append(_alarm(found))
        steps = [row["step"] for row in self.recent]
        names = {name for row in self.recent for name in row}
        signals = {name: [row.get(name, math.nan) for row in self.recent] for name in sorted(names)}
        way_back, command = self.way_back(found, drew)
        before = [asdict(p) for p in precursors(found, steps, signals)]
        self.recorder.event("spike", written_at, **found.event(), precursors=before, **way_back)
        self.say(f"{found}\n  what happened? {command}")

    def _announce(self, written_at: int) -> None:
        """Report spikes that are open at the end of the rows, once each: one that never ends must not go unreported."""
        for detector in self.detectors:
            spike = detector.open
            if spike is None or _which(spike) in self.announced:
                continue
            self.announced.add(_which(spike))
            told = {key: value for key, value in spike.event().items() if key != "recovered"}
            self.recorder.event("spike_opened", written_at, **told)
            height = f"{spike.height:+.3g} ({spike.sigmas:.1f} sigma) at step {spike.peak_step}"
            self.say(f"a spike in {spike.signal} is open: since step {spike.start_step}, {height} so far")

    def _spikes(self) -> Iterator[Spike]:
        """All spikes so far, open ones included."""
        yield from (detector.open for detector in self.detectors if detector.open is not None)
        for event in read_rows(self.recorder.directory / "events.jsonl"):
            if event["event"] == "spike":
                told: dict[str, Any] = {
                    field.name: event.get(field.name, event["start_step"]) for field in fields(Spike)
                }
                yield Spike(**told)

    def way_back(self, spike: Spike, drew: Callable[[int], int]) -> tuple[dict[str, Any], str]:
        """What leads back to a spike: fields of its event, and the command that explains it."""
        before = checkpoint_before(self.recorder.directory, spike.start_step)
        command = replay_command(self.recorder.directory, spike.start_step)
        batches = [drew(spike.start_step), drew(spike.end_step)]
        return {"batches": batches, "checkpoint": step_of(before) if before else 0, "replay": command}, command

    def report_divergence(self, row: Row, tensors: Sequence[str], ranks: Sequence[int], *, updated: bool) -> None:
        """Write event and status of a run that ended because something was not finite at the step of ``row``. ``tensors``:
        names from the vitals; ``ranks``: where it began, if known; ``updated``: whether the step's own update did it."""
        signals = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        state = [name for name in tensors if not name.startswith("gradient of ")]  # gradients may be the effect
        first = next(iter([*state, *signals, *tensors]), "a value")
        where = f" on rank {', '.join(map(str, ranks))}" if ranks and not state else ""
        step = row["step"]
        end = "after its update; no checkpoint was written" if updated else "the parameters stay those before that step"
        reason = f"{first} is not finite{where} at step {step}; {end}"
        command = replay_command(self.recorder.directory, step)
        self.recorder.event(
            "non_finite",
            step,
            step=step,
            signals=signals,
            tensors=list(tensors[:TENSORS_TOLD]),
            tensors_in_all=len(tensors),
            ranks=list(ranks),
            replay=command,
        )
        self.recorder.status("diverged", step, reason)
        self.say(f"diverged: {reason}\n  what happened? {command}")


def replay_command(run: Path, step: int) -> str:
    """The command that replays and explains ``step`` of a run."""
    return shlex.join(
        ["python", "-m", "analysis.replay", str(run), "--step", str(step), "--out", f"{run}/replay_{step}"]
    )


def _continued(new: Detector, saved: dict[str, Any] | None) -> Detector:
    """The detector as it was saved; ``new`` itself where the checkpoint is of a version that had no such rule, or another form
    of it."""
    if saved is None or not _has_all(saved, new.state()):
        return new
    return detector_from_state(saved)


def _has_all(saved: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether a state has all keys of a new detector's, those of the history and the outliers included."""
    return saved.keys() >= new.keys() and all(
        _has_all(saved[key], value)
        for key, value in new.items()
        if isinstance(value, dict) and isinstance(saved[key], dict)
    )


def _which(spike: Spike) -> tuple[str, str, int]:
    return spike.detector, spike.signal, spike.start_step


def _alarm(spike: Spike) -> Alarm:
    return Alarm(spike.signal, spike.start_step, spike.end_step, spike.sigmas)
