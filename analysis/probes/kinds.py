"""The project's own probes: importing this module registers them all."""

from __future__ import annotations

from .adaptive import Adaptive
from .base import PROBES
from .bottleneck import Bottleneck
from .calibration import Calibration
from .geometry import Geometry
from .ngram import NGram
from .radial import Radial
from .soft_inputs import SoftInputs
from .uncertainty import Uncertainty

__all__ = [
    "PROBES",
    "Adaptive",
    "Bottleneck",
    "Calibration",
    "Geometry",
    "NGram",
    "Radial",
    "SoftInputs",
    "Uncertainty",
]
