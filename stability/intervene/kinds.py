"""The project's own interventions: importing this module registers them all."""

from __future__ import annotations

from .base import INTERVENTIONS
from .clip import ClipNorm
from .rewind import RewindOnSpike

__all__ = ["INTERVENTIONS", "ClipNorm", "RewindOnSpike"]
