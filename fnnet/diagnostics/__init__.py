"""What happens inside a network: functions that return arrays and never plot (`fnnet.plots` draws them)."""

from .alignment import Alignment, alignment
from .credits import credit, credit_map
from .growth import Growth, error_growth, singular_values
from .learning import LearningSpeed, Overfitting, learning_speed, overfitting, update_ratios
from .units import Histograms, Saturation, activations, histograms, saturation

__all__ = [
    "Alignment",
    "Growth",
    "Histograms",
    "LearningSpeed",
    "Overfitting",
    "Saturation",
    "activations",
    "alignment",
    "credit",
    "credit_map",
    "error_growth",
    "histograms",
    "learning_speed",
    "overfitting",
    "saturation",
    "singular_values",
    "update_ratios",
]
