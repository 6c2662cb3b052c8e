"""The project's own interventions: importing this module registers them all."""

from __future__ import annotations

from .adagc import AdaGC
from .agc import AdaptiveClip
from .base import INTERVENTIONS
from .centre_embeddings import CentreEmbeddings
from .clip import ClipNorm
from .clip_update_norm import ClipUpdateNorm
from .last_step import LastStep
from .max_z import MaxZ
from .mu_loss import MuLoss
from .qk_clip import QKClip
from .repel import Repel
from .reset_moments import ResetMoments
from .rewarm import Rewarm
from .rewind import RewindOnSpike
from .safe_step import SafeStep
from .shrink_embedding_gradient import ShrinkEmbeddingGradient
from .skip_step import SkipStep
from .spam import Spam
from .stable_adamw import StableAdamW
from .z_loss import ZLoss
from .zclip import ZClip

__all__ = [
    "INTERVENTIONS",
    "AdaGC",
    "AdaptiveClip",
    "CentreEmbeddings",
    "ClipNorm",
    "ClipUpdateNorm",
    "LastStep",
    "MaxZ",
    "MuLoss",
    "QKClip",
    "Repel",
    "ResetMoments",
    "Rewarm",
    "RewindOnSpike",
    "SafeStep",
    "ShrinkEmbeddingGradient",
    "SkipStep",
    "Spam",
    "StableAdamW",
    "ZClip",
    "ZLoss",
]
