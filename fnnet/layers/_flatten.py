"""Flatten: one row for each example. Source: the notes, section 7.1 (a convolution's maps into a dense layer)."""

import math

import jax
from jax import Array

from ._layer import Cache, Layer, Params, layer

__all__ = ["Flatten"]


@jax.jit
def flatten(a_in: Array) -> Array:
    """(m, ...) -> (m, n), in row-major order."""
    return a_in.reshape(a_in.shape[0], math.prod(a_in.shape[1:]))


@layer
class Flatten(Layer):
    """Inputs (m, ...) to rows (m, n). No parameters; its error δ is ∂C/∂a_out."""

    independent = True

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        a = flatten(a_in)
        return a if probe is None else a + probe, a_in

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return delta.reshape(cache.shape)
