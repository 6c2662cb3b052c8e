"""The temperatures at which every model is seen: as it is, at its own best one, and at the entropy of the baseline."""

from __future__ import annotations

VIEWS = ("raw", "fitted", "matched")
OVER_TRAINING = ("raw", "fitted")
"""Without matched entropy: two runs need not have checkpoints of the same steps, and what they are matched to changes."""
MEANINGS = {
    "raw": "as it is",
    "fitted": "at the temperature at which it predicts held-out text best",
    "matched": "at the temperature at which its mean entropy is the baseline's",
}
"""On held-out text."""
MEANINGS_WITH_TRUTH = {
    "raw": "as it is",
    "fitted": "at the temperature with the lowest expected NLL on other documents",
    "matched": "at the temperature at which its mean entropy on those documents is the baseline's",
}
"""Where the true distributions are known."""
