"""Normalisation: layer, group, batch and RMS normalisation, one formula with different means.

Legend: m examples (axis 0), *n positions, c channels (the last axis); a activation, μ and σ² its mean and variance over what
is normalised together, r = 1/√(σ² + ε), x̂ = (a − μ) r; g gain (c,), b bias (c,), δ = ∂C/∂a_out the error, u = g δ.
Statistics and sums are taken in at least float32.

Source: docs/normalisation.md; Ioffe and Szegedy (2015), Ba et al. (2016), Wu and He (2018), Zhang and Sennrich (2019).
"""

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32, on_last_axis, wide_dtype
from ..forms import stored
from ._dense import bias_gradient
from ._layer import (
    Cache,
    Layer,
    LayerError,
    Params,
    Products,
    Sends,
    Shape,
    Shard,
    as_floats,
    at_valid_steps,
    check_input,
    check_leaf,
    check_mask,
    layer,
    real_number,
    whole_number,
)
from ._products import SumsOfProducts

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "RMSNorm",
    "gain_gradient",
    "input_error",
    "inverse_root",
    "mean_over_batch",
    "mean_over_channels",
    "mean_over_groups",
    "normalised",
    "product",
    "rms_input_error",
    "scaled",
]


@jax.jit
def mean_over_channels(t: Array, g: Array | None = None) -> Array:
    """mean(g t) over the channels: of layer and RMS normalisation.

    Args:
        t: (m, ..., c).
        g: (c,), or None for 1.

    Returns:
        (m, ..., 1).
    """
    if g is None:
        return jnp.mean(t, -1, keepdims=True)
    return (jnp.einsum("...c,c->...", t, g) / t.shape[-1])[..., None]


@functools.partial(jax.jit, static_argnames="groups")
def mean_over_groups(t: Array, groups: int, g: Array | None = None, mask: Array | None = None) -> Array:
    """mean(g t) over all positions and the channels of each group: of group normalisation. g is the same at all positions,
    so it multiplies their mean.

    Args:
        t: (m, ..., c).
        groups: they divide c.
        g: (c,), or None for 1.
        mask: (m, T), the steps that count; None for all.

    Returns:
        (m, 1, ..., 1, c), the channels of a group alike.
    """
    mean = mean_over_positions(t, tuple(range(1, t.ndim - 1)), g, mask)
    parts = mean.reshape(*mean.shape[:-1], groups, t.shape[-1] // groups)
    return jnp.broadcast_to(jnp.mean(parts, -1, keepdims=True), parts.shape).reshape(mean.shape)


@jax.jit
def mean_over_batch(t: Array, g: Array | None = None, mask: Array | None = None) -> Array:
    """mean(g t) over examples and positions: of batch normalisation.

    Args:
        t: (m, ..., c).
        g: (c,), or None for 1.
        mask: (m, T), the steps that count; None for all.

    Returns:
        (1, ..., 1, c).
    """
    return mean_over_positions(t, tuple(range(t.ndim - 1)), g, mask)


def mean_over_positions(t: Array, axes: tuple[int, ...], g: Array | None, mask: Array | None) -> Array:
    """g mean(t) over axes without the last; 0 where no step counts."""
    if mask is None:
        mean = jnp.mean(t, axes, keepdims=True)
    else:
        count = jnp.maximum(number_of_positions(t, axes, mask), 1).astype(t.dtype)
        mean = jnp.sum(at_valid_steps(t, mask), axes, keepdims=True) / count
    return mean if g is None else scaled(g, mean)


def number_of_positions(t: Array, axes: tuple[int, ...], mask: Array | None) -> Array:
    """How many of the positions over axes without the last count."""
    return jnp.sum(at_valid_steps(jnp.ones_like(t[..., :1], int), mask), axes, keepdims=True)


@jax.jit
def inverse_root(square: Array, eps: float) -> Array:
    """r = 1/√(σ² + ε).

    Args:
        square: σ², or the mean square of RMS normalisation.
        eps: ε.

    Returns:
        Shaped like σ².
    """
    return stored(jax.lax.rsqrt(square + eps))


@jax.jit
def normalised(a: Array, mu: Array, r: Array) -> Array:
    """x̂ = (a − μ) r.

    Args:
        a: (m, ..., c).
        mu: of the same rank.
        r: see mu.

    Returns:
        (m, ..., c), in at least float32.
    """
    return (at_least_float32(a) - mu) * r


@jax.jit
def scaled(g: Array, a: Array) -> Array:
    """g_c a_c: of x̂ forwards, and of δ backwards, where it is u.

    Args:
        g: (c,).
        a: (m, ..., c).

    Returns:
        (m, ..., c), in at least float32.
    """
    a = at_least_float32(a)
    return on_last_axis(g.astype(a.dtype), a.ndim) * a


@jax.jit
def product(delta: Array, x_hat: Array) -> Array:
    """δ x̂, which BP2 and the gradient of g share.

    Args:
        delta: (m, ..., c).
        x_hat: (m, ..., c).

    Returns:
        (m, ..., c), in at least float32.
    """
    return stored(at_least_float32(delta) * x_hat)


@jax.jit
def input_error(u: Array, x_hat: Array, r: Array, mean_u: Array, mean_ux: Array) -> Array:
    """BP2 through the statistics: ∂C/∂a = r (u − mean(u) − x̂ mean(u x̂)).

    What u has in the direction of 1, which μ takes out, and in the direction of x̂, which σ takes out, is taken out of it.

    Args:
        u: g δ (m, ..., c).
        x_hat: (m, ..., c).
        r: of the same rank.
        mean_u: see r.
        mean_ux: see r.

    Returns:
        (m, ..., c). Source: docs/normalisation.md.
    """
    mean_u, mean_ux = stored((mean_u, mean_ux))
    return r * (u - mean_u - x_hat * mean_ux)


@jax.jit
def rms_input_error(u: Array, x_hat: Array, r: Array, mean_ux: Array) -> Array:
    """BP2 of RMS normalisation, without a mean: ∂C/∂a = r (u − x̂ mean(u x̂)). Arguments and result as `input_error`."""
    return r * (u - x_hat * stored(mean_ux))


@jax.jit
def gain_gradient(product: Array) -> Array:
    """∂C/∂g_c = (1/m) Σ δ_c x̂_c over examples and positions: BP4 with one weight for each channel.

    Args:
        product: δ x̂ (m, ..., c).

    Returns:
        (c,).
    """
    return bias_gradient(product)


class Normalisation(SumsOfProducts):
    """What the layers share: a_out = g x̂ + b, and the mean over what is normalised together. Cache (a_in, μ, r, ...)."""

    eps: float

    means: ClassVar[tuple[str, ...]] = ("mean", "variance")
    """The means forwards, each of which waits for the one before; BP2 takes as many at once."""

    def __post_init__(self) -> None:
        remedy = "it is added to the variance; 1e-5 is usual"
        real_number(self, "eps", lambda eps: 0 < eps < math.inf, "a positive number eps", remedy)

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        c, dtype = self.channels(input_shape), jnp.result_type(float)
        return {"g": jnp.ones(c, dtype), "b": jnp.zeros(c, dtype)}

    def channels(self, input_shape: Shape) -> int:
        """The size of the last axis of one example's shape, checked."""
        if not isinstance(input_shape, tuple) or not input_shape or input_shape[-1] < 1:
            remedy = "give the shape of one example, as in net.init(key, (28, 28, 16))"
            raise LayerError(self, "an input shape (..., c) with c ≥ 1", str(input_shape), remedy)
        return input_shape[-1]

    def mean(self, t: Array, g: Array | None = None, mask: Array | None = None) -> Array:
        """mean(g t) over what is normalised together."""
        return mean_over_channels(t, g)

    def mask_of(self, cache: Any) -> Array | None:
        """The steps that count in the means; None for all, or for means that are not over steps."""
        return None

    def checked(self, params: Any, a_in: Array) -> Array:
        """The inputs as floats, or a LayerError where they do not fit the parameters."""
        g = check_leaf(self, params, "g", (None,))
        check_input(self, a_in, g.shape[0])
        return as_floats(self, a_in, g.dtype)

    def statistics(self, a_in: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """μ = mean(a), σ² = mean((a − μ)²)."""
        a = at_least_float32(a_in)
        mu = stored(self.mean(a, None, mask))
        return mu, self.mean(jnp.square(a - mu), None, mask)

    def result(self, params: Any, cache: Any, probe: Array | None) -> tuple[Array, Any]:
        """(a_out, cache) from the cache."""
        (a_in, *_), x_hat, g = cache, self.x_hat(cache), params["g"]
        b = check_leaf(self, params, "b", g.shape)
        a = scaled(g, x_hat) + on_last_axis(b.astype(x_hat.dtype), x_hat.ndim)
        a = at_valid_steps(a.astype(jnp.result_type(a_in, g, b)), self.mask_of(cache))
        return a if probe is None else a + probe, cache

    def x_hat(self, cache: Any) -> Array:
        a_in, mu, r, *_ = cache
        return normalised(a_in, mu, r)

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        a_in = self.checked(params, a_in)
        mu, var = self.statistics(a_in)
        return self.result(params, (a_in, mu, inverse_root(var, self.eps)), probe)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        (_, _, r, *_), mask = cache, self.mask_of(cache)
        x_hat, wide = self.x_hat(cache), at_valid_steps(at_least_float32(delta), mask)
        g = params["g"].astype(wide.dtype)
        mean_u, mean_ux = self.mean(wide, g, mask), self.mean(product(wide, x_hat), g, mask)
        da = input_error(scaled(g, wide), x_hat, r, mean_u, mean_ux)
        return at_valid_steps(da, mask).astype(delta.dtype)

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        delta = at_valid_steps(delta, self.mask_of(cache))
        grads = {"g": gain_gradient(product(delta, self.x_hat(cache))), "b": bias_gradient(delta)}
        return {name: grad.astype(params[name].dtype) for name, grad in grads.items()}

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        """Of means over channels that are cut."""
        over = self.channels_over(params)
        return self.sums(over, (*a_in.shape[:-1], 1), a_in.dtype)._replace(a_in=over, a_out=over)

    def channels_over(self, params: Any) -> str | None:
        """The axis of the mesh over which the channels are cut, the same in every leaf."""
        cuts = {name: leaf.cut for name, leaf in params.items()}
        if len(set(cuts.values())) > 1:
            got = ", ".join(f"{name} by P{cut}" for name, cut in cuts.items())
            raise LayerError(self, "all parameters cut alike", got, "give them one spec")
        return params["g"].cut[0]

    def sums(self, axis: str | None, shape: Shape, dtype: Any) -> Sends:
        """What means of this shape send where what they are taken over is cut over the axis."""
        if axis is None:
            return Sends()
        of = lambda name, *n: (name, axis, (*n, *shape), wide_dtype(dtype))  # noqa: E731
        return Sends(forward=tuple(map(of, self.means)), propagate=(of("BP2", len(self.means)),))

    def products(self, params: Params, cache: Cache, delta: Array) -> Products:
        delta = at_valid_steps(delta, self.mask_of(cache))
        return {"g": (product(delta, self.x_hat(cache)), None), "b": (delta, None)}


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


class OverSteps(Normalisation):
    """What group and batch normalisation share: means over the steps of sequences too, where a mask says which count. Cache
    (a_in, μ, r, ..., mask)."""

    def mask_of(self, cache: Cache) -> Array | None:
        return cache[-1]

    def valid(self, a_in: Array, mask: Any) -> Array | None:
        """The mask, or a LayerError where it does not fit; None for inputs without steps, such as those after `LastStep`."""
        if mask is None or a_in.ndim < 3:
            return None
        check_mask(self, mask, a_in.shape[:2])
        return jnp.asarray(mask).astype(bool)


@layer
class GroupNorm(OverSteps):
    """Group normalisation: each example's channels in groups, each to mean 0 and variance 1 over all positions.

    Parameters {g (c,), b (c,)}. Inputs and outputs (m, ..., c), channels last; the groups are runs of c / groups channels.
    With a ``mask`` (m, T) the statistics are those of the valid steps, and another step's output is 0.

    Args:
        groups: how many; one normalises each example as a whole, c of them each channel by itself (instance normalisation).
        eps: ε, added to the variance.

    Raises:
        LayerError: for groups that do not divide c, an ε that is no positive number, or inputs or parameters of another
            shape, or such a mask.

    Source: Wu and He (2018); docs/normalisation.md.
    """

    groups: int
    eps: float = 1e-5

    independent = True
    _example = "fn.GroupNorm(8)"

    def __post_init__(self) -> None:
        whole_number(self, "groups", "a positive number of groups")
        super().__post_init__()

    def channels(self, input_shape: Shape) -> int:
        return self.divided(super().channels(input_shape))

    def divided(self, c: int) -> int:
        """c, or a LayerError unless the groups divide it."""
        if c % self.groups:
            got = f"{c} channels in {self.groups} groups"
            raise LayerError(self, "channels that groups divide", got, "each group takes c / groups channels")
        return c

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        return Layer.collectives(self, params, a_in, a_out)

    def checked(self, params: Params, a_in: Array) -> Array:
        a_in = super().checked(params, a_in)
        self.divided(a_in.shape[-1])
        return a_in

    def mean(self, t: Array, g: Array | None = None, mask: Array | None = None) -> Array:
        return mean_over_groups(t, self.groups, g, mask)

    def forward(
        self, params: Params, a_in: Array, *, mask: Array | None = None, probe: Array | None = None
    ) -> tuple[Array, Cache]:
        a_in = self.checked(params, a_in)
        mask = self.valid(a_in, mask)
        a_in = at_valid_steps(a_in, mask)
        mu, var = self.statistics(a_in, mask)
        return self.result(params, (a_in, mu, inverse_root(var, self.eps), mask), probe)


@layer
class BatchNorm(OverSteps):
    """Batch normalisation: each channel to mean 0 and variance 1 over the batch and all positions.

    Parameters {g, b, mean, var}, each (c,). Inputs and outputs (m, ..., c). While training the statistics are the batch's, so
    examples depend on each other: row x of δ is the derivative of the whole batch's Σ_x C_x, and a batch is never run in
    chunks. At inference they are ``mean`` and ``var``, which no gradient trains (theirs is 0): `moving` does.
    With a ``mask`` (m, T) the statistics are those of the valid steps, and another step's output is 0.
    The cache is (a_in, μ, r, statistics, mask); μ, r and the statistics are of shape (1, ..., 1, c), without examples.

    Args:
        momentum: how far `moving` goes towards the statistics of a batch.
        eps: ε, added to the variance.

    Raises:
        LayerError: for a momentum outside [0, 1], an ε that is no positive number, inputs, parameters or a mask of another
            shape, or a training batch with a single number for each channel, whose variance is 0.

    Source: Ioffe and Szegedy (2015); docs/normalisation.md.
    """

    momentum: float = 0.1
    eps: float = 1e-5

    _example = "fn.BatchNorm()"

    def __post_init__(self) -> None:
        remedy = "it is the weight of the newest batch; 0.1 is usual"
        real_number(self, "momentum", lambda momentum: 0 <= momentum <= 1, "a momentum from 0 to 1", remedy)
        super().__post_init__()

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        params = super().init(key, input_shape)
        return {**params, "mean": jnp.zeros_like(params["b"]), "var": jnp.ones_like(params["g"])}

    def mean(self, t: Array, g: Array | None = None, mask: Array | None = None) -> Array:
        return mean_over_batch(t, g, mask)

    def forward(
        self, params: Params, a_in: Array, *, train: bool = False, mask: Array | None = None, probe: Array | None = None
    ) -> tuple[Array, Cache]:
        a_in = self.checked(params, a_in)
        mask = self.valid(a_in, mask)
        a_in = at_valid_steps(a_in, mask)
        mean, var = (check_leaf(self, params, name, a_in.shape[-1:]) for name in ("mean", "var"))
        if train:
            if a_in.size // a_in.shape[-1] < 2:
                remedy = (
                    "a single number has no variance: train with larger batches, or use fn.GroupNorm or fn.LayerNorm"
                )
                raise LayerError(self, "at least 2 numbers of each channel while training", str(a_in.shape), remedy)
            mu, var = batch = self.statistics(a_in, mask)
        else:
            mu, var = (on_last_axis(jax.lax.stop_gradient(at_least_float32(s)), a_in.ndim) for s in (mean, var))
            batch = None
        return self.result(params, (a_in, mu, inverse_root(var, self.eps), batch, mask), probe)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        _, _, r, batch, mask = cache
        if batch is None:
            return at_valid_steps((r * scaled(params["g"], delta)).astype(delta.dtype), mask)
        return super().propagate(params, cache, delta)

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        fixed = {name: jnp.zeros_like(params[name]) for name in ("mean", "var")}
        return {**super().gradients(params, cache, delta), **fixed}

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        """Of means over a batch that is cut."""
        over = self.channels_over(params)
        sums = self.sums(a_in.cut[0], params["g"].shape, a_in.dtype)
        return sums._replace(a_in=over, a_out=over, fixed=("mean", "var"))

    def products(self, params: Params, cache: Cache, delta: Array) -> Products:
        nothing = jnp.zeros_like(delta), None
        return {**super().products(params, cache, delta), "mean": nothing, "var": nothing}

    def moving(self, params: Params, cache: Cache) -> Params:
        """params with mean ← (1 − momentum) mean + momentum μ, and var likewise; unchanged by a cache of inference.

        The variance is the unbiased one, σ² N / (N − 1) for N numbers of each channel, as in PyTorch, while the batch itself
        is normalised with σ². To be called outside of the gradient.
        """
        a_in, _, _, batch, mask = cache
        if batch is None:
            return params
        mu, var = (s.reshape(-1) for s in batch)
        count = a_in.size / a_in.shape[-1]
        if mask is not None:
            count = number_of_positions(a_in, tuple(range(a_in.ndim)), mask).reshape(()).astype(var.dtype)
        newest = {"mean": mu, "var": var * (count / jnp.maximum(count - 1, 1.0))}
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
    means: ClassVar[tuple[str, ...]] = ("mean square",)
    _example = "fn.RMSNorm()"

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        return {"g": jnp.ones(self.channels(input_shape), jnp.result_type(float))}

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        a_in = self.checked(params, a_in)
        r = inverse_root(self.mean(jnp.square(at_least_float32(a_in))), self.eps)
        g, cache = params["g"], (a_in, r)
        a = scaled(g, self.x_hat(cache)).astype(jnp.result_type(a_in, g))
        return a if probe is None else a + probe, cache

    def x_hat(self, cache: Cache) -> Array:
        a_in, r = cache
        return at_least_float32(a_in) * r

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        (_, r), x_hat = cache, self.x_hat(cache)
        products = product(delta, x_hat)
        mean_ux = self.mean(products, params["g"].astype(products.dtype))
        return rms_input_error(scaled(params["g"], delta), x_hat, r, mean_ux).astype(delta.dtype)

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return {"g": gain_gradient(product(delta, self.x_hat(cache))).astype(params["g"].dtype)}

    def products(self, params: Params, cache: Cache, delta: Array) -> Products:
        return {"g": (product(delta, self.x_hat(cache)), None)}
