"""The exercises: the solutions are right, the stubs are not written yet, and each planted mistake is told."""

import ast
import importlib.util
from pathlib import Path

import jax
import pytest

from .cases import thorough

FOLDER = Path(__file__).parent.parent / "examples" / "exercises"
MISTAKES = {  # in a solution: what stands there, what is planted, what has to be said
    "sigmoid": ("a * (1 - a)", "a * (1 + a)", ""),
    "forward": ("a_in @ w.T + b", "a_in @ w.T", "b is left out"),
    "bp1": ("(a - y) * a * (1 - a)", "(a - y)", ""),
    "bp2": ("(delta_above @ w) * a * (1 - a)", "delta_above @ w", ""),
    "bp3_bp4": ("a_in / len(delta)", "a_in", ""),
    "cross_entropy": ("return sigmoid(z) - y", "return y - sigmoid(z)", ""),
    "softmax": ("a * (da - jnp.sum(a * da, axis=-1, keepdims=True))", "a * (1 - a) * da", ""),
    "l2": ('"b": gradients["b"]', '"b": gradients["b"] + lam / n_examples * params["b"]', ""),
    "dropout": ("a * keep / (1 - rate)", "a * keep", "the units that stay are not scaled up"),
    "chain": ("deltas[0] * w[j + 1] * a[j]", "deltas[0] * w[j] * a[j]", ""),
    "gate": ('delta["a"] * (1 - g) + ', "", ""),
    "convolution": ("rot180(w))", "w)", ""),
    "max_pooling": ("spread(delta) / 4", "spread(delta)", ""),
    "bptt": ("da_out[:, t] + from_later", "da_out[:, t]", ""),
    "contrast": ("positive[name] - negative[name]", "negative[name] - positive[name]", ""),
}
