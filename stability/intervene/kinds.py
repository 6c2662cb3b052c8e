"""The project's own interventions: importing this module registers them all."""

from __future__ import annotations

from .base import INTERVENTIONS
from .centre_embeddings import CentreEmbeddings
from .clip import ClipNorm
from .max_z import MaxZ
from .mu_loss import MuLoss
from .qk_clip import QKClip
from .rewind import RewindOnSpike
from .shrink_embedding_gradient import ShrinkEmbeddingGradient
from .z_loss import ZLoss

__all__ = [
    "INTERVENTIONS",
    "CentreEmbeddings",
    "ClipNorm",
    "MaxZ",
    "MuLoss",
    "QKClip",
    "RewindOnSpike",
    "ShrinkEmbeddingGradient",
    "ZLoss",
]
