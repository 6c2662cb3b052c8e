"""Benchmark of the spike detectors: known faults in realistic curves, found and missed."""

from .measure import RULES, WATCHED
