"""Detectors: from the rows of a run to events."""
