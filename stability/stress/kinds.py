"""The project's own stresses: importing this module registers them all."""

from .base import STRESSES
from .batch import CorruptSequences
from .rate import ScaleLearningRate

__all__ = ["STRESSES", "CorruptSequences", "ScaleLearningRate"]
