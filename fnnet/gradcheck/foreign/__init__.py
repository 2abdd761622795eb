"""Gradients that are no JAX: ``numpy_rules`` and ``torch_rules`` say how they are called, ``runner`` calls them, ``state``
keeps objects as they were, ``trees`` names arrays, and ``audited`` holds them to differences."""

from .numpy_rules import audit_numpy
from .torch_rules import audit_torch, is_torch

__all__ = ["audit_numpy", "audit_torch", "is_torch"]
