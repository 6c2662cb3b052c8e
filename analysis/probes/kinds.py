"""The project's own probes: importing this module registers them all."""

from __future__ import annotations

from .base import PROBES
from .bottleneck import Bottleneck
from .calibration import Calibration
from .geometry import Geometry
from .radial import Radial
from .uncertainty import Uncertainty

__all__ = ["PROBES", "Bottleneck", "Calibration", "Geometry", "Radial", "Uncertainty"]
