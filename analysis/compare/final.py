"""What counts as the final loss of a run."""

from __future__ import annotations

import math


def lost(diverged: bool, validation: float | None) -> bool:
    """Whether a run has no final loss of its own: it ``diverged``, or its last validation loss is not finite."""
    return diverged or (validation is not None and not math.isfinite(validation))


def final_nll(diverged: bool, validation: float | None, initial: float | None) -> float | None:
    """The last ``validation`` loss of a run; the ``initial`` training loss in its place if the run was :func:`lost` or ended
    above it. None if that is not known: without a validation, or for a run that was lost and has no initial loss."""
    if lost(diverged, validation):
        return initial
    return validation if validation is None or initial is None else min(validation, initial)
