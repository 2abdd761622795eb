"""What happens inside a network: functions that return arrays and never plot (`fnnet.plots` draws them)."""

from .credits import credit, credit_map
from .growth import Growth, error_growth, singular_values
from .learning import LearningSpeed, Overfitting, learning_speed, overfitting, update_ratios
from .units import Histograms, Saturation, activations, histograms, saturation

__all__ = [
    "Growth",
    "Histograms",
    "LearningSpeed",
    "Overfitting",
    "Saturation",
    "activations",
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
