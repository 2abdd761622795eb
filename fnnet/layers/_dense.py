"""The fully connected layer and its four equations.

Legend: m examples (axis 0), n_in and n_out neurons; a activation, z weighted input, w weights (n_out, n_in), b biases,
δ the error. Axes between the first and the last (time steps, say) share the weights and are summed over in gradients.

Source: the notes, sections 2 and 3.
"""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import Activation, at_least_float32, on_last_axis
from ..forms import mean_of_products, mean_of_products_in_loop
from ..initializers import Initializer, scaled_normal, zeros
from ._cut import of_product
from ._layer import (
    Cache,
    LayerError,
    Params,
    Products,
    Sends,
    Shape,
    Shard,
    as_floats,
    check_activation,
    check_input,
    check_leaf,
    drawing_key,
    layer,
    whole_number,
)
from ._products import SumsOfProducts

__all__ = ["Dense", "bias_gradient", "input_error", "weight_gradient", "weight_gradient_in_loop", "weighted_input"]


@jax.jit
def weighted_input(w: Array, b: Array | None, a_in: Array) -> Array:
    """z_j = Σ_k w_jk a_k + b_j.

    Args:
        w: (n_out, n_in).
        b: (n_out,), or None for 0.
        a_in: (m, ..., n_in).

    Returns:
        z (m, ..., n_out). Source: the notes, section 2.
    """
    return biased(jnp.einsum("...k,jk->...j", a_in, w), b)


def biased(z: Array, b: Array | None) -> Array:
    """z + b, or z where there is no b."""
    return z if b is None else z + on_last_axis(b, z.ndim)


@jax.jit
def input_error(w: Array, delta: Array) -> Array:
    """BP2's product: ∂C/∂a_k = Σ_j w_jk δ_j.

    Args:
        w: (n_out, n_in).
        delta: (m, ..., n_out).

    Returns:
        da_in (m, ..., n_in). Source: the notes, section 3, equation 2.
    """
    return jnp.einsum("...j,jk->...k", delta, w)


@jax.jit
def bias_gradient(delta: Array) -> Array:
    """BP3: ∂C/∂b_j = (1/m) Σ_x δ_j.

    Args:
        delta: (m, ..., n_out).

    Returns:
        (n_out,). Source: the notes, section 3, equation 3.
    """
    total = jnp.sum(at_least_float32(delta), axis=tuple(range(delta.ndim - 1)))
    return (total / delta.shape[0]).astype(delta.dtype)


@jax.jit
def weight_gradient(delta: Array, a_in: Array) -> Array:
    """BP4: ∂C/∂w_jk = (1/m) Σ_x δ_j a_k. Half precision is summed in float32.

    Args:
        delta: (m, ..., n_out).
        a_in: (m, ..., n_in).

    Returns:
        (n_out, n_in). Source: the notes, section 3, equation 4.
    """
    return mean_of_products(at_least_float32(delta), at_least_float32(a_in)).astype(delta.dtype)


@jax.jit
def weight_gradient_in_loop(delta: Array, a_in: Array) -> Array:
    """BP4 inside a compiled loop of updates: of a small batch of rows the sum over examples is written out, so that it and
    the update are one pass over w, in place. Arguments and result as `weight_gradient`."""
    return mean_of_products_in_loop(at_least_float32(delta), at_least_float32(a_in)).astype(delta.dtype)


def check_bias(layer: Any) -> None:
    """Raise a LayerError unless the layer's field ``bias`` is True or False."""
    if not isinstance(layer.bias, bool):
        remedy = "bias says whether there is a b; bias_init says how it starts"
        raise LayerError(layer, "bias to be True or False", repr(layer.bias), remedy)


def weight_and_bias(layer: Any, params: Any, w: Array, delta: Array) -> dict[str, Array]:
    """The gradients {w, b}, that of w given; {w} for a layer without a bias."""
    grads = {"w": w.astype(params["w"].dtype)}
    return {**grads, "b": bias_gradient(delta).astype(params["b"].dtype)} if layer.bias else grads


@layer
class Dense(SumsOfProducts):
    """A fully connected layer: a = σ(z), z = a_in wᵀ + b. Parameters {w (n_out, n_in), b (n_out)}; {w} without a bias.

    Inputs (m, ..., n_in), outputs (m, ..., n_out): axes between are time steps or positions that share the weights.

    Args:
        n_out: number of neurons.
        activation: σ.
        weight_init: initialiser of w, N(0, 1/n_in) by default.
        bias_init: initialiser of b, 0 by default.
        bias: whether there is a b.
        loop: set by `in_loop`.

    Raises:
        LayerError: for a size that is no positive integer, or inputs or parameters of another shape.

    Source: the notes, section 2.
    """

    n_out: int
    activation: Activation
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    bias: bool = True
    loop: bool = False

    independent = True
    _example = "fn.Dense(10, fn.softmax)"

    def __post_init__(self) -> None:
        whole_number(self, "n_out", "a positive number of neurons")
        check_activation(self, self.activation)
        check_bias(self)

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        if not isinstance(input_shape, tuple) or not input_shape or input_shape[-1] < 1:
            remedy = "give the shape of one example, as in net.init(key, (784,))"
            raise LayerError(self, "an input shape (..., n_in) with n_in ≥ 1", str(input_shape), remedy)
        w_key, b_key = jax.random.split(drawing_key(self, key))
        dtype = jnp.result_type(float)
        w = {"w": self.weight_init(w_key, (self.n_out, input_shape[-1]), dtype)}
        return {**w, "b": self.bias_init(b_key, (self.n_out,), dtype)} if self.bias else w

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        w = check_leaf(self, params, "w", (self.n_out, None))
        b = check_leaf(self, params, "b", (self.n_out,)) if self.bias else None
        check_input(self, a_in, w.shape[1])
        a_in = as_floats(self, a_in, w.dtype)
        z = weighted_input(w, b, a_in)
        if probe is not None:
            z = z + probe
        a = self.activation(z)
        return a, (a_in, z, a)

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array]:
        _, z, _ = cache
        return self.activation, z

    def error(self, params: Params, cache: Cache, da_out: Array) -> Array:
        _, z, a = cache
        return self.activation.error_in_layer(da_out, z, a)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return input_error(params["w"], delta)

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        a_in, _, _ = cache
        equation = weight_gradient_in_loop if self.loop else weight_gradient
        return weight_and_bias(self, params, equation(delta, a_in), delta)

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        return of_product(self, params, a_in, a_out, 0, 1, self.activation)

    def products(self, params: Params, cache: Cache, delta: Array) -> Products:
        return {"w": (delta, cache[0]), **({"b": (delta, None)} if self.bias else {})}

    def in_loop(self) -> Self:
        return dataclasses.replace(self, loop=True)
