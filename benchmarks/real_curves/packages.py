"""Detectors of other packages, called through their own API with their default settings, where they are installed
(requirements-contestants.txt).

What was read in their source: *arc-vigil* compares weights and gradients of a live model with a reference, and takes no series.
*losslint* lints a finished log: isolated points above 10 times the local median, and a loss that ends higher than it began
(overfitting needs an evaluation loss, stagnation is no spike). *trainscope* feeds its detector with the loss alone, the default
being Page's CUSUM; to gradient norms and kurtosis it applies ``first_crossing_step``, which names one step of a run.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from .cases import Curve
from .contestants import Contestant
from .score import Sighting

PACKAGES = ("arc-vigil", "losslint", "trainscope")
TRAINSCOPE_DETECTORS = ("changepoint", "z_score", "percentile")
NEEDS_A_MODEL = "needs the weights and gradients of a live model (BendexMonitor.observe)"
LOSS_ONLY = "fed with the loss only"


def installed() -> tuple[list[Contestant], list[str]]:
    """The contestants of the packages that are there, and the names of those that are not."""
    versions = {name: version for name in PACKAGES if (version := _version(name))}
    contestants = [one for name, version in versions.items() for one in _OF[name](version)]
    return contestants, [name for name in PACKAGES if name not in versions]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _arc_vigil(version: str) -> list[Contestant]:
    return [
        Contestant(f"arc-vigil {version}", "arc_vigil.BendexMonitor", lambda column: NEEDS_A_MODEL, lambda curve: [])
    ]


def _losslint(version: str) -> list[Contestant]:
    used = "losslint.checks.check_loss_spike and check_divergence, all examples listed"
    return [Contestant(f"losslint {version}", used, _only("loss", LOSS_ONLY), _find_losslint)]


def _trainscope(version: str) -> list[Contestant]:
    detectors = [
        Contestant(
            f"trainscope {version} {name}",
            f"trainscope.core.detectors.make_detector, {name}{', the default' if name == 'changepoint' else ''}",
            _only("loss", LOSS_ONLY),
            partial(_find_trainscope, name),
        )
        for name in TRAINSCOPE_DETECTORS
    ]
    used, reason = "trainscope.analysis.first_crossing_step", "applied to gradient norm and kurtosis only"
    crossing = Contestant(f"trainscope {version} first crossing", used, _only("grad_norm", reason), _find_crossing)
    return [*detectors, crossing]


_OF: dict[str, Callable[[str], list[Contestant]]] = {
    "arc-vigil": _arc_vigil,
    "losslint": _losslint,
    "trainscope": _trainscope,
}


def _only(column: str, reason: str) -> Callable[[str], str | None]:
    return lambda name: None if name == column else reason


def _find_losslint(curve: Curve) -> list[Sighting]:
    checks: Any = importlib.import_module("losslint.checks")
    parsing: Any = importlib.import_module("losslint.parsing")
    steps = curve.steps.tolist()
    log = parsing.RunLog(steps=steps, series={"loss": curve.values.tolist()}, source=Path(curve.name))
    listed, checks.MAX_EXAMPLES = checks.MAX_EXAMPLES, len(steps)  # a finding names its first five steps
    try:
        spiked = {step for finding in checks.check_loss_spike(log) for step in finding.details["steps"]}
    finally:
        checks.MAX_EXAMPLES = listed
    seen = runs(curve, (step in spiked for step in steps))
    if checks.check_divergence(log):  # said of the whole log, so known at its end
        seen.append(Sighting(steps[-1], steps[-1], steps[-1]))
    return seen


def _find_trainscope(name: str, curve: Curve) -> list[Sighting]:
    detectors: Any = importlib.import_module("trainscope.core.detectors")
    detector = detectors.make_detector({"name": name})
    return runs(curve, (detector.update(value) is not None for value in curve.values.tolist()))


def _find_crossing(curve: Curve) -> list[Sighting]:
    analysis: Any = importlib.import_module("trainscope.analysis")
    place = analysis.first_crossing_step(curve.values.tolist())
    if place is None:
        return []
    start, opened = curve.steps[place : place + 3 : 2].tolist()  # the third of three in a row settles it
    return [Sighting(start, opened, opened)]


def runs(curve: Curve, flags: Iterable[bool]) -> list[Sighting]:
    """An event for each run of consecutive flagged values."""
    seen: list[Sighting] = []
    before = False
    for step, flag in zip(curve.steps.tolist(), flags, strict=True):
        if flag:
            start = seen.pop().start if before else step
            seen.append(Sighting(start, start, step))
        before = flag
    return seen
