"""Curvature of the costs with their matched activations: H = ∂²C_x/∂z∂z of an example (or of a step of it), from the
weighted input z of the last layer.

Each has three forms: the product H u; the columns of a root S with S Sᵀ = H; and an error δ of a target that is drawn from
the model, for which E[δ δᵀ] = H. For these pairs H does not depend on which class y names, so it is also the Fisher
information of the model's own distribution.

Legend: z, u (m, ..., n); y targets as floats, shaped like z; a the activation; e_k the k-th unit vector.

Source: Schraudolph (2002); Martens (2014), section 9; Dangel et al. (2020) for the root.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .activations import both_sides, softmax_function, softmax_pullback

__all__ = ["Curvature"]


class Curvature(NamedTuple):
    """The second derivative of a cost with its matched activation, from z in at least float32.

    Attributes:
        product: (z, y, u) -> H u, shaped like z.
        column: (z, y, k) -> the k-th of the n columns of S, shaped like z.
        sample: (z, y, keys) -> δ of a target drawn for each example by its own key, shaped like z.
    """

    product: Callable[[Array, Array, Array], Array]
    column: Callable[[Array, Array, Array], Array]
    sample: Callable[[Array, Array, Array], Array]


def is_unit(z: Array, k: Array) -> Array:
    """Where the last axis is at k, (1, ..., n)."""
    return jnp.arange(z.shape[-1]).reshape((1,) * (z.ndim - 1) + (-1,)) == k


def mass(y: Array) -> Array:
    """Σ_j y_j (m, ..., 1), by which the log-likelihood of an example counts."""
    return jnp.sum(y, axis=-1, keepdims=True)


@jax.jit
def quadratic_product(z: Array, y: Array, u: Array) -> Array:
    """H = 1."""
    return u


@jax.jit
def quadratic_column(z: Array, y: Array, k: Array) -> Array:
    """S = 1: e_k."""
    return jnp.broadcast_to(is_unit(z, k), z.shape).astype(z.dtype)


@jax.jit
def quadratic_sample(z: Array, y: Array, keys: Array) -> Array:
    """δ ~ N(0, 1): C_x is −ln of the density N(a, 1) at y, up to a constant."""
    return jax.vmap(lambda key, z: jax.random.normal(key, z.shape, z.dtype))(keys, z)


@jax.jit
def sigmoid_product(z: Array, y: Array, u: Array) -> Array:
    """H u = a (1 − a) ⊙ u, the factors without a difference."""
    a, rest = both_sides(z)
    return a * rest * u


@jax.jit
def sigmoid_column(z: Array, y: Array, k: Array) -> Array:
    """√(a_k (1 − a_k)) e_k."""
    a, rest = both_sides(z)
    return jnp.where(is_unit(z, k), jnp.sqrt(a * rest), 0)


@jax.jit
def sigmoid_sample(z: Array, y: Array, keys: Array) -> Array:
    """δ = a − b with b ~ Bernoulli(a) for each output: a, or −(1 − a)."""
    a, rest = both_sides(z)
    drawn = jax.vmap(lambda key, a: jax.random.uniform(key, a.shape, a.dtype) < a)(keys, a)
    return jnp.where(drawn, -rest, a)


@jax.jit
def softmax_product(z: Array, y: Array, u: Array) -> Array:
    """H u = Σ_j y_j (diag a − a aᵀ) u, which is the pullback of softmax."""
    return mass(y) * softmax_pullback(u, z, softmax_function(z))


@jax.jit
def softmax_column(z: Array, y: Array, k: Array) -> Array:
    """√(Σ_j y_j a_k) (e_k − a), 1 − a_k as the sum of the others: H = Σ_j y_j Σ_k a_k (e_k − a)(e_k − a)ᵀ."""
    a = softmax_function(z)
    return -jnp.sqrt(mass(y) * jnp.sum(jnp.where(is_unit(z, k), a, 0), -1, keepdims=True)) * beside(a, is_unit(z, k))


@jax.jit
def softmax_sample(z: Array, y: Array, keys: Array) -> Array:
    """δ = √(Σ_j y_j) (a − e_k) with the class k ~ a."""
    k = jax.vmap(jax.random.categorical)(keys, z)
    return jnp.sqrt(mass(y)) * beside(softmax_function(z), is_unit(z, k[..., None]))


def beside(a: Array, unit: Array) -> Array:
    """a − e_k, where a_k − 1 is −Σ_{j≠k} a_j: no difference where the model is nearly certain."""
    return jnp.where(unit, -jnp.sum(jnp.where(unit, 0, a), -1, keepdims=True), a)


quadratic_curvature: Curvature = Curvature(quadratic_product, quadratic_column, quadratic_sample)
sigmoid_curvature: Curvature = Curvature(sigmoid_product, sigmoid_column, sigmoid_sample)
softmax_curvature: Curvature = Curvature(softmax_product, softmax_column, softmax_sample)
