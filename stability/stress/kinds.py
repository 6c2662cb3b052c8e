"""The project's own stresses: importing this module registers them all."""

from .base import STRESSES
from .batch import CorruptSequences, LabelNoise
from .bits import FlipBit
from .foreign import ForeignText
from .gradient import GradientNoise
from .optimizer import OptimizerSettings, StaleMoments
from .rate import ScaleLearningRate
from .shape import DeadRank, ShortSequences, SmallBatch
from .weights import HalfParameters, ScaleWeights

__all__ = [
    "STRESSES",
    "CorruptSequences",
    "DeadRank",
    "FlipBit",
    "ForeignText",
    "GradientNoise",
    "HalfParameters",
    "LabelNoise",
    "OptimizerSettings",
    "ScaleLearningRate",
    "ScaleWeights",
    "ShortSequences",
    "SmallBatch",
    "StaleMoments",
]
