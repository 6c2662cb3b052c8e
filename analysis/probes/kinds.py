"""The project's own probes: importing this module registers them all."""

from __future__ import annotations

from .adaptive import Adaptive
from .base import PROBES
from .calibration import Calibration
from .ngram import NGram
from .soft_inputs import SoftInputs

__all__ = ["PROBES", "Adaptive", "Calibration", "NGram", "SoftInputs"]
