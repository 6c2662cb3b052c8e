"""Replaying a step of a run and explaining what happened there."""
