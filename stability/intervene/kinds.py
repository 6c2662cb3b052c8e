"""The project's own interventions: importing this module registers them all."""

from __future__ import annotations

from .adagc import AdaGC
from .agc import AdaptiveClip
from .base import INTERVENTIONS
from .clip import ClipNorm
from .clip_update_norm import ClipUpdateNorm
from .reset_moments import ResetMoments
from .rewarm import Rewarm
from .rewind import RewindOnSpike
from .skip_step import SkipStep
from .spam import Spam
from .stable_adamw import StableAdamW
from .zclip import ZClip

__all__ = [
    "INTERVENTIONS",
    "AdaGC",
    "AdaptiveClip",
    "ClipNorm",
    "ClipUpdateNorm",
    "ResetMoments",
    "Rewarm",
    "RewindOnSpike",
    "SkipStep",
    "Spam",
    "StableAdamW",
    "ZClip",
]
