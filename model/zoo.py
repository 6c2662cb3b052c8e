"""The project's own heads and objectives: importing this module registers them."""

from .head_cosine import CosineHead
from .head_harmonic import HarmonicHead
from .head_linear import LinearHead
from .head_metric import MetricHead
from .head_mixture import MixtureHead
from .head_von_mises_fisher import VonMisesFisherHead
from .objective_ce import CrossEntropy
from .objective_tfsd import TFSD, WeightedCrossEntropy
from .registry import HEADS, OBJECTIVES

__all__ = [
    "HEADS",
    "OBJECTIVES",
    "TFSD",
    "CosineHead",
    "CrossEntropy",
    "HarmonicHead",
    "LinearHead",
    "MetricHead",
    "MixtureHead",
    "VonMisesFisherHead",
    "WeightedCrossEntropy",
]
