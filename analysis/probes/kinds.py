"""The project's own probes: importing this module registers them all."""

from __future__ import annotations

from .base import PROBES
from .calibration import Calibration
from .uncertainty import Uncertainty

__all__ = ["PROBES", "Calibration", "Uncertainty"]
