"""Watching a run's rows as they arrive: divergence and spikes, told in events.jsonl and on the terminal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from .recorder import Recorder, Row
from .spikes import Spike, SpikeDetector

SPIKE_SIGNALS = ("loss/nll", "grad_norm/total")


class Watch:
    """Looks at every row once, in order. ``say`` prints a line for people (on the main process)."""

    def __init__(self, recorder: Recorder, say: Callable[[str], None], gradient_must_be_finite: bool) -> None:
        self.recorder, self.say = recorder, say
        self.must_be_finite = ["loss/objective", "loss/nll"] + ["grad_norm/total"] * gradient_must_be_finite
        self.detectors = [SpikeDetector(signal) for signal in SPIKE_SIGNALS]

    def healthy(self, rows: list[Row]) -> list[Row]:
        """The rows before the first one whose loss or gradient is not finite."""
        bad = (i for i, row in enumerate(rows) if not all(math.isfinite(row[name]) for name in self.must_be_finite))
        return rows[: next(bad, len(rows))]

    def find_spikes(self, rows: list[Row]) -> None:
        """Feed the detectors; report each spike that has ended."""
        for detector in self.detectors:
            for row in rows:
                self._report(detector.update(row["step"], row[detector.signal]), rows[-1]["step"])

    def finish(self, step: int) -> None:
        """Report the spikes that are still open at the end of the run."""
        for detector in self.detectors:
            self._report(detector.finish(), step)

    def _report(self, spike: Spike | None, written_at: int) -> None:
        if spike is not None:
            self.recorder.event("spike", written_at, **spike.event())
            end = "recovered" if spike.recovered else "not recovered"
            self.say(
                f"spike in {spike.signal}: steps {spike.start_step} to {spike.end_step}, peak at {spike.peak_step}, "
                f"{spike.height:+.3g} ({spike.sigmas:.1f} sigma), {end}"
            )

    def report_divergence(self, row: Row) -> None:
        """Write the event and the status of a run that ended in a loss or a gradient that is not finite."""
        signals = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        reason = f"{signals[0]} is not finite at step {row['step']}; the parameters stay those before that step"
        self.recorder.event("non_finite", row["step"], step=row["step"], signals=signals)
        self.recorder.status("diverged", row["step"], reason)
        self.say(f"diverged: {reason}")

    def state(self) -> list[dict[str, Any]]:
        """JSON state for a checkpoint."""
        return [detector.state() for detector in self.detectors]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Go on exactly from what :meth:`state` returned."""
        self.detectors = [SpikeDetector.from_state(s) for s in state]
