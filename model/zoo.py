"""The project's own heads and objectives: importing this module registers them."""

from .head_cosine import CosineHead
from .head_dual import DualHead
from .head_harmonic import HarmonicHead
from .head_linear import LinearHead
from .head_metric import MetricHead
from .head_mixture import MixtureHead
from .head_von_mises_fisher import VonMisesFisherHead
from .objective_ce import CrossEntropy
from .objective_confidence import ConfidencePenalty
from .objective_distill import Distillation, NormalisedDistillation
from .objective_dual_head import DualHeadDistillation
from .objective_focal import Focal
from .objective_gce import GeneralisedCrossEntropy
from .objective_geometry import GeometryDistillation
from .objective_info_nce import InfoNCE
from .objective_mix import CrossEntropyAndTFSD
from .objective_poly1 import Poly1
from .objective_tfsd import TFSD, AnchoredTFSD, WeightedCrossEntropy
from .objective_tfsd_adaptive import HeldTFSD, QuantileTFSD
from .objective_threshold import Threshold
from .objective_uskd import UniversalSelfDistillation
from .objective_virtual_teacher import VirtualTeacher
from .registry import HEADS, OBJECTIVES

__all__ = [
    "HEADS",
    "OBJECTIVES",
    "TFSD",
    "AnchoredTFSD",
    "ConfidencePenalty",
    "CosineHead",
    "CrossEntropy",
    "CrossEntropyAndTFSD",
    "Distillation",
    "DualHead",
    "DualHeadDistillation",
    "Focal",
    "GeneralisedCrossEntropy",
    "GeometryDistillation",
    "HarmonicHead",
    "HeldTFSD",
    "InfoNCE",
    "LinearHead",
    "MetricHead",
    "MixtureHead",
    "NormalisedDistillation",
    "Poly1",
    "QuantileTFSD",
    "Threshold",
    "UniversalSelfDistillation",
    "VirtualTeacher",
    "VonMisesFisherHead",
    "WeightedCrossEntropy",
]
