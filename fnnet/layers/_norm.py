"""Normalisation: layer, RMS, group and batch normalisation, one formula over different axes.

Legend: m examples (axis 0), *n positions, c channels (the last axis); a activation, μ and σ² its mean and variance over the
axes that are normalised, r = 1/√(σ² + ε), x̂ = (a − μ) r; g gain (c,), b bias (c,), δ = ∂C/∂a_out the error, u = g δ.
Statistics and sums are taken in at least float32.

Source: docs/normalisation.md; Ioffe and Szegedy (2015), Ba et al. (2016), Wu and He (2018), Zhang and Sennrich (2019).
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32, on_last_axis
from ._dense import bias_gradient
from ._layer import Layer, LayerError, Shape, as_floats, check_input, check_leaf, layer, whole_number

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "gain_gradient",
    "input_error",
    "inverse_deviation",
    "inverse_rms",
    "normalised",
    "rms_input_error",
    "scaled",
    "statistics",
]


@functools.partial(jax.jit, static_argnames="axes")
def statistics(a: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """μ = mean(a), σ² = mean((a − μ)²), the biased variance.

    Args:
        a: any shape.
        axes: those that the means run over.

    Returns:
        (μ, σ²), each shaped like a with 1 for those axes.
    """
    a = at_least_float32(a)
    mu = jnp.mean(a, axes, keepdims=True)
    return mu, jnp.mean(jnp.square(a - mu), axes, keepdims=True)


@jax.jit
def inverse_deviation(var: Array, eps: float) -> Array:
    """r = 1/√(σ² + ε)."""
    return jax.lax.rsqrt(var + eps)


@jax.jit
def normalised(a: Array, mu: Array, r: Array) -> Array:
    """x̂ = (a − μ) r.

    Args:
        a: any shape.
        mu, r: of the same rank, 1 along the axes of the statistics.

    Returns:
        Shaped like a, in at least float32.
    """
    return (at_least_float32(a) - mu) * r


@jax.jit
def scaled(g: Array, a: Array) -> Array:
    """g_c a_c: the gain forwards, of x̂, and backwards, u = g δ.

    Args:
        g: (c,).
        a: (m, ..., c).

    Returns:
        (m, ..., c), in at least float32.
    """
    a = at_least_float32(a)
    return on_last_axis(g.astype(a.dtype), a.ndim) * a


@functools.partial(jax.jit, static_argnames="axes")
def input_error(u: Array, x_hat: Array, r: Array, axes: tuple[int, ...]) -> Array:
    """BP2 through the statistics: ∂C/∂a = r (u − mean(u) − x̂ mean(u x̂)).

    What is left of u after its part along 1 (μ removes it) and its part along x̂ (σ removes it) are taken away.

    Args:
        u: g δ, any shape.
        x_hat: likewise.
        r: of the same rank, 1 along the axes.
        axes: those of the statistics.

    Returns:
        Shaped like u. Source: docs/normalisation.md.
    """
    along_1 = jnp.mean(u, axes, keepdims=True)
    along_x = jnp.mean(u * x_hat, axes, keepdims=True)
    return r * (u - along_1 - x_hat * along_x)


@jax.jit
def inverse_rms(a: Array, eps: float) -> Array:
    """r = 1/√(mean(a²) + ε) over the last axis, in at least float32.

    Args:
        a: (m, ..., c).
        eps: ε.

    Returns:
        (m, ..., 1).
    """
    return inverse_deviation(jnp.mean(jnp.square(at_least_float32(a)), -1, keepdims=True), eps)


@jax.jit
def rms_input_error(u: Array, x_hat: Array, r: Array) -> Array:
    """BP2 without a mean: ∂C/∂a = r (u − x̂ mean(u x̂)) over the last axis; arguments and result as `input_error`."""
    return r * (u - x_hat * jnp.mean(u * x_hat, -1, keepdims=True))


@jax.jit
def gain_gradient(delta: Array, x_hat: Array) -> Array:
    """∂C/∂g_c = (1/m) Σ_x Σ_n δ_c x̂_c: BP4 with one weight for each channel.

    Args:
        delta: (m, ..., c).
        x_hat: (m, ..., c).

    Returns:
        (c,).
    """
    return bias_gradient(at_least_float32(delta) * x_hat)


class Normalisation(Layer):
    """What the layers share: a_out = g x̂ + b, x̂ normalised over `axes` of a `view` of the input. Cache (a_in, μ, r)."""

    eps: float

    def __post_init__(self) -> None:
        if isinstance(self.eps, bool) or not isinstance(self.eps, int | float) or not 0 < self.eps < math.inf:
            raise LayerError(
                self, "a positive number eps", repr(self.eps), "it is added to the variance; 1e-5 is usual"
            )

    def init(self, key, input_shape):
        c, dtype = self.channels(input_shape), jnp.result_type(float)
        return {"g": jnp.ones(c, dtype), "b": jnp.zeros(c, dtype)}

    def channels(self, input_shape: Shape) -> int:
        """The size of the last axis of one example's shape, checked."""
        if not isinstance(input_shape, tuple) or not input_shape or input_shape[-1] < 1:
            remedy = "give the shape of one example, as in net.init(key, (28, 28, 16))"
            raise LayerError(self, "an input shape (..., c) with c ≥ 1", str(input_shape), remedy)
        return input_shape[-1]

    def view(self, a: Array) -> Array:
        """The array as it is normalised."""
        return a

    def axes(self, rank: int) -> tuple[int, ...]:
        """The axes of the statistics in the view of an input of this rank."""
        raise NotImplementedError("Normalisation: expected one of its subclasses, got their base class")

    def checked(self, params, a_in: Array) -> Array:
        """The inputs as floats, or a LayerError where they do not fit the parameters."""
        g = check_leaf(self, params, "g", (None,))
        check_input(self, a_in, g.shape[0])
        return as_floats(self, a_in, g.dtype)

    def x_hat(self, cache) -> Array:
        a_in, mu, r, *_ = cache
        return normalised(self.view(a_in), mu, r).reshape(a_in.shape)

    def result(self, params, cache, probe):
        """(a_out, cache) from the cache."""
        a_in, x_hat, g = cache[0], self.x_hat(cache), params["g"]
        b = check_leaf(self, params, "b", g.shape)
        a = scaled(g, x_hat) + on_last_axis(b.astype(x_hat.dtype), a_in.ndim)
        a = a.astype(jnp.result_type(a_in, g, b))
        return a if probe is None else a + probe, cache

    def forward(self, params, a_in, *, probe=None):
        a_in = self.checked(params, a_in)
        mu, var = statistics(self.view(a_in), self.axes(a_in.ndim))
        return self.result(params, (a_in, mu, inverse_deviation(var, self.eps)), probe)

    def propagate(self, params, cache, delta):
        _, _, r, *_ = cache
        u, x_hat = self.view(scaled(params["g"], delta)), self.view(self.x_hat(cache))
        return input_error(u, x_hat, r, self.axes(delta.ndim)).reshape(delta.shape).astype(delta.dtype)

    def gradients(self, params, cache, delta):
        grads = {"g": gain_gradient(delta, self.x_hat(cache)), "b": bias_gradient(delta)}
        return {name: grad.astype(params[name].dtype) for name, grad in grads.items()}


@layer
class LayerNorm(Normalisation):
    """Layer normalisation: the last axis of each place to mean 0 and variance 1. Parameters {g (c,), b (c,)}.

    Inputs and outputs (m, ..., c). It has no activation, so δ is ∂C/∂a_out; g starts as 1 and b as 0.

    Args:
        eps: ε, added to the variance.

    Raises:
        LayerError: for an ε that is no positive number, or inputs or parameters of another shape.

    Source: Ba et al. (2016); docs/normalisation.md.
    """

    eps: float = 1e-5

    independent = True
    _example = "fn.LayerNorm()"

    def axes(self, rank):
        return (-1,)


@layer
class GroupNorm(Normalisation):
    """Group normalisation: each example's channels in groups, each to mean 0 and variance 1 over all positions.

    Parameters {g (c,), b (c,)}. Inputs and outputs (m, ..., c), channels last; the groups are runs of c / groups channels.

    Args:
        groups: how many; one normalises each example as a whole, c of them each channel by itself (instance normalisation).
        eps: ε, added to the variance.

    Raises:
        LayerError: for groups that do not divide c, an ε that is no positive number, or inputs or parameters of another
            shape.

    Source: Wu and He (2018); docs/normalisation.md.
    """

    groups: int
    eps: float = 1e-5

    independent = True
    _example = "fn.GroupNorm(8)"

    def __post_init__(self) -> None:
        whole_number(self, "groups", "a positive number of groups")
        super().__post_init__()

    def channels(self, input_shape):
        return self.divided(super().channels(input_shape))

    def divided(self, c: int) -> int:
        """c, or a LayerError unless the groups divide it."""
        if c % self.groups:
            got = f"{c} channels in {self.groups} groups"
            raise LayerError(self, "channels that groups divide", got, "each group takes c / groups channels")
        return c

    def checked(self, params, a_in):
        a_in = super().checked(params, a_in)
        self.divided(a_in.shape[-1])
        return a_in

    def view(self, a):
        return a.reshape(*a.shape[:-1], self.groups, a.shape[-1] // self.groups)

    def axes(self, rank):
        return (*range(1, rank - 1), rank)


@layer
class BatchNorm(Normalisation):
    """Batch normalisation: each channel to mean 0 and variance 1 over the batch and all positions.

    Parameters {g, b, mean, var}, each (c,). Inputs and outputs (m, ..., c). While training the statistics are the batch's, so
    examples depend on each other: row x of δ is the derivative of the whole batch's Σ_x C_x, and a batch is never run in
    chunks. At inference they are ``mean`` and ``var``, which no gradient trains (theirs is 0): `moving` does.
    The cache is (a_in, μ, r, statistics), all but a_in of shape (1, ..., 1, c), without examples.

    Args:
        momentum: how far `moving` goes towards the statistics of a batch.
        eps: ε, added to the variance.

    Raises:
        LayerError: for a momentum outside [0, 1], an ε that is no positive number, inputs or parameters of another shape, or
            a training batch with a single number for each channel, whose variance is 0.

    Source: Ioffe and Szegedy (2015); docs/normalisation.md.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    _example = "fn.BatchNorm()"

    def __post_init__(self) -> None:
        momentum = self.momentum
        if isinstance(momentum, bool) or not isinstance(momentum, int | float) or not 0 <= momentum <= 1:
            remedy = "it is the weight of the newest batch; 0.1 is usual"
            raise LayerError(self, "a momentum from 0 to 1", repr(momentum), remedy)
        super().__post_init__()

    def init(self, key, input_shape):
        params = super().init(key, input_shape)
        return {**params, "mean": jnp.zeros_like(params["b"]), "var": jnp.ones_like(params["g"])}

    def axes(self, rank):
        return tuple(range(rank - 1))

    def forward(self, params, a_in, *, train=False, probe=None):
        a_in = self.checked(params, a_in)
        mean, var = (check_leaf(self, params, name, a_in.shape[-1:]) for name in ("mean", "var"))
        if train:
            if a_in.size // a_in.shape[-1] < 2:
                remedy = (
                    "a single number has no variance: train with larger batches, or use fn.GroupNorm or fn.LayerNorm"
                )
                raise LayerError(self, "at least 2 numbers of each channel while training", str(a_in.shape), remedy)
            mu, var = batch = statistics(a_in, self.axes(a_in.ndim))
        else:
            mu, var = (on_last_axis(jax.lax.stop_gradient(at_least_float32(s)), a_in.ndim) for s in (mean, var))
            batch = None
        return self.result(params, (a_in, mu, inverse_deviation(var, self.eps), batch), probe)

    def propagate(self, params, cache, delta):
        _, _, r, batch = cache
        if batch is None:
            return (r * scaled(params["g"], delta)).astype(delta.dtype)
        return super().propagate(params, cache, delta)

    def gradients(self, params, cache, delta):
        fixed = {name: jnp.zeros_like(params[name]) for name in ("mean", "var")}
        return {**super().gradients(params, cache, delta), **fixed}

    def moving(self, params, cache):
        """params with mean ← (1 − momentum) mean + momentum μ, and var likewise; unchanged by a cache of inference.

        The variance is the unbiased one, σ² N / (N − 1) for N numbers of each channel, as in PyTorch, while the batch itself
        is normalised with σ². To be called outside of the gradient.
        """
        a_in, _, _, batch = cache
        if batch is None:
            return params
        mu, var = (s.reshape(-1) for s in batch)
        count = a_in.size // a_in.shape[-1]
        newest = {"mean": mu, "var": var * (count / (count - 1))}
        moved = {
            n: (1 - self.momentum) * params[n] + self.momentum * s.astype(params[n].dtype) for n, s in newest.items()
        }
        return {**params, **moved}


@layer
class RMSNorm(Normalisation):
    """Root-mean-square normalisation: a_out = g a / √(mean(a²) + ε) over the last axis. Parameters {g (c,)}.

    Inputs and outputs (m, ..., c). `LayerNorm` without the mean and the bias.

    Args:
        eps: ε, added to the mean square.

    Raises:
        LayerError: for an ε that is no positive number, or inputs or parameters of another shape.

    Source: Zhang and Sennrich (2019); docs/normalisation.md.
    """

    eps: float = 1e-5

    independent = True
    _example = "fn.RMSNorm()"

    def init(self, key, input_shape):
        return {"g": jnp.ones(self.channels(input_shape), jnp.result_type(float))}

    def forward(self, params, a_in, *, probe=None):
        a_in = self.checked(params, a_in)
        g, cache = params["g"], (a_in, inverse_rms(a_in, self.eps))
        a = scaled(g, self.x_hat(cache)).astype(jnp.result_type(a_in, g))
        return a if probe is None else a + probe, cache

    def x_hat(self, cache):
        a_in, r = cache
        return at_least_float32(a_in) * r

    def propagate(self, params, cache, delta):
        _, r = cache
        return rms_input_error(scaled(params["g"], delta), self.x_hat(cache), r).astype(delta.dtype)

    def gradients(self, params, cache, delta):
        return {"g": gain_gradient(delta, self.x_hat(cache)).astype(params["g"].dtype)}
