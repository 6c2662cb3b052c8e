"""The project's own heads and objectives: importing this module registers them."""

from .head_linear import LinearHead
from .head_metric import MetricHead
from .objective_ce import CrossEntropy
from .objective_tfsd import TFSD, WeightedCrossEntropy
from .registry import HEADS, OBJECTIVES

__all__ = ["HEADS", "OBJECTIVES", "TFSD", "CrossEntropy", "LinearHead", "MetricHead", "WeightedCrossEntropy"]
