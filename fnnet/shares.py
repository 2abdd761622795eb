"""Every example's share of the gradient, from one backward pass.

Legend: m examples (axis 0), C_x the cost of example x, g_x = ∂C_x/∂params its gradient, G = (1/m) Σ_x g_x the batch's.

δ holds every example's error, and BP3 and BP4 sum over examples last. So one pass of errors is enough for all shares: their
norms, second moments and inner products need the layers' ``square_norms``, ``second_moment`` and the like, few of which ever
make a g_x; and a sum with a factor for each example, Σ_x f_x g_x, is BP3 and BP4 of the errors f_x δ^x.

Where a layer mixes examples (`BatchNorm` while training) g_x is the part of the batch's gradient that goes through δ^x, the
batch's statistics given: these still have G as their mean.

Source: docs/shares.md.
"""

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .activations import at_least_float32
from .backpropagation import completed, counted, errors_of
from .chunks import check_micro_batch, chunk_size, mean_over_chunks
from .costs import Cost
from .forms import concatenated
from .given import check_batch, check_cost, check_net, check_number
from .layers._composite import bottom, is_walked
from .layers._layer import (
    Cache,
    Delta,
    Layer,
    LayerError,
    Params,
    batch_key,
    example_index,
    keys_of,
    located,
    n_parts,
    run_forward,
)
from .layers._swapped import Ruled
from .programs import KEPT, placed, program

__all__ = [
    "GradientStatistics",
    "clipped_value_and_grad",
    "example_gradients",
    "gradient_gram",
    "gradient_norms",
    "gradient_statistics",
    "input_gradient",
]


class GradientStatistics(NamedTuple):
    """What `gradient_statistics` returns: pytrees like the parameters, and a number.

    Attributes:
        mean: G = (1/m) Σ_x g_x.
        variance: of each entry over the examples, (1/m) Σ_x g_x² − G², at least 0.
        signal_to_noise: G² / variance of each entry; 0 where G is 0.
        noise_scale: B = tr(Σ) / ‖G‖², the sum of the variances over the square of the gradient's length; 0 where
            nothing varies.
    """

    mean: Params
    variance: Params
    signal_to_noise: Params
    noise_scale: Array


def example_gradients(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> Params:
    """g_x = ∂C_x/∂params of every example, a pytree like params with a leading axis m; their mean is the gradient.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: from ``net.init``.
        x: inputs (m, ...).
        y: targets shaped like the outputs, or integer labels.
        key: for layers that draw random numbers; the masks are those of `value_and_grad`.
        mask: (m, T), True for the valid steps of sequences.
        weights: (m,) or (m, T), factors of the terms of C_x.

    Raises:
        ValueError: as `backprop` does.
    """
    return _run(_example_gradients, net, cost, params, x, y, key, mask, weights)


def gradient_norms(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> Array:
    """‖g_x‖ of every example over all parameters, (m,). Arguments and errors as `example_gradients`.

    Source: Goodfellow (2015); docs/shares.md.
    """
    return _run(_gradient_norms, net, cost, params, x, y, key, mask, weights)


def gradient_statistics(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> GradientStatistics:
    """Mean, variance and signal to noise of every entry over the examples, and the simple noise scale: the batch size at
    which noise and gradient are level. Arguments and errors as `example_gradients`.

    The variance is that of these m examples, (1/m) Σ_x (g_x − G)²: times m/(m − 1) it is unbiased. ‖G‖² is that of the
    batch's gradient, on average tr(Σ)/m more than that of the gradient over all data, so B comes out too small in small
    batches, m at most or so. The variance is a difference, exact to rounding of the second moment; of an entry whose
    gradients are all 0 to rounding the ratio is one of rounding errors.

    Source: McCandlish et al. (2018), B = tr(Σ)/‖G‖²; Liu et al. (2020), the ratio of each parameter.
    """
    return _run(_gradient_statistics, net, cost, params, x, y, key, mask, weights)


def gradient_gram(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> Array:
    """⟨g_x, g_y⟩ of each two examples, (m, m): of dense layers on rows (δ δᵀ) ⊙ (a aᵀ + 1), layer by layer. Arguments and
    errors as `example_gradients`."""
    return _run(_gradient_gram, net, cost, params, x, y, key, mask, weights)


def input_gradient(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> Array:
    """∂C_x/∂x of every example, shaped like x: BP2 of the first layer. Where a layer mixes examples, row x is the derivative
    of Σ C_x. Arguments as `example_gradients`.

    Raises:
        ValueError: as `backprop` does; also for inputs that are no floats, and where the first layer has no `propagate`.
    """
    return _run(_input_gradient, net, cost, params, x, y, key, mask, weights)


def clipped_value_and_grad(
    net: Layer,
    cost: Cost,
    bound: Any,
    noise: Any = None,
    *,
    micro_batch: int | Literal["auto"] | None = "auto",
) -> Callable[..., tuple[Array, Params]]:
    """The function (params, x, y, *, key, mask, weights) -> (C, the gradient of differentially private SGD), which
    ``fit(..., gradient=)`` takes: (1/m) (Σ_x min(1, bound/‖g_x‖) g_x + noise · bound · N(0, I)).

    The errors of one backward pass give the norms; then BP3 and BP4 of the errors, each example's scaled by its factor, give
    the sum. An example whose gradient is 0 has the factor 1. ``weights`` scale C_x, so they come before the bound. Equal
    arguments give the same function, so that nothing compiles again.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        bound: the largest norm of an example's gradient; a number, which may be traced.
        noise: the noise multiplier; None adds none. Drawn from the call's ``key`` (dropout masks are those of
            `value_and_grad` with the same key), and added to the sum, before 1/m. Of a batch divided among devices, by
            `data_parallel`, ``fit(mesh=)`` or in a ``shard_map`` whose `ExampleKeys` number the examples, it is drawn once.
        micro_batch: as of `value_and_grad`; the result is that of the whole batch.

    Raises:
        ValueError: for a bound that is no positive number, or infinite beside noise, noise that is no number of at least 0, a
            ``micro_batch`` that is not positive; as `backprop` does; and from the function, for noise without a key.
        LayerError: for a layer that is not ``independent``: it has no examples' gradients by themselves; for noise where a
            rule of `Swapped` has arrays, which the noise would move.

    Source: Abadi et al. (2016).
    """
    check_net(net)
    check_cost(cost)
    remedy = "it is the largest norm of an example's gradient, as fn.gradient_norms gives them"
    check_number("clipped_value_and_grad", "bound", bound, remedy, positive=True)
    if noise is not None:
        check_number("clipped_value_and_grad", "noise", noise, "it multiplies the bound; None adds none")
    check_micro_batch(micro_batch)
    _check_independent(net)
    if noise is not None:
        for part in bottom(net):
            if isinstance(part, Ruled) and part.has_arrays:
                remedy = "add no noise, or take a rule without arrays, such as fn.SignSymmetry()"
                raise LayerError(
                    part.layer, "parameters that are all trained, to add noise", f"{part.rule!r}'s", remedy
                )
    bound, noise = (float(number) if isinstance(number, Real) else number for number in (bound, noise))
    if noise is not None and isinstance(bound, float) and math.isinf(bound):
        raise ValueError(
            "clipped_value_and_grad: expected a finite bound with noise, which is noise · bound, got inf; give a bound, or "
            "no noise"
        )
    is_known = isinstance(bound, float) and isinstance(noise, float | None)
    return (_clipping if is_known else _clipping.__wrapped__)(net, cost, bound, noise, micro_batch)


@functools.lru_cache(maxsize=KEPT)
def _clipping(net: Layer, cost: Cost, bound: Any, noise: Any, micro_batch: Any) -> Callable[..., tuple[Array, Params]]:
    run = program(_clipped, net, cost, micro_batch=micro_batch)

    def clipped_value_and_gradients(params, x, y, *, key=None, mask=None, weights=None):
        x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
        if noise is not None and key is None:
            raise ValueError(
                "clipped_value_and_grad: expected a key to draw the noise with, got None; pass key=jax.random.key(seed), a "
                "new one each step"
            )
        return run(params, x, y, mask, weights, key, placed(bound), placed(noise))

    # The name by which ``fit`` tells one run from another.
    clipped_value_and_gradients.__qualname__ = f"clipped_value_and_grad(bound={bound}, noise={noise})"
    return clipped_value_and_gradients


def _clipped(net, cost, params, x, y, mask, weights, key, bound, noise, *, micro_batch):
    def chunk(x, y, mask, weights, key):
        value, cache, errors = _errors(net, cost, params, x, y, mask, weights, key)
        norms = jnp.sqrt(net.square_norms(params, cache, errors))
        within = norms <= bound.astype(norms.dtype)
        factors = jnp.where(within, 1, bound.astype(norms.dtype) / jnp.where(within, 1, norms))
        return value, net.gradients(params, cache, jax.tree.map(lambda d: scaled(factors, d), errors))

    size = chunk_size(net, params, x, key, mask, micro_batch)
    value, gradients = mean_over_chunks(chunk, (x, y, mask, weights), key, size)
    value, gradients = completed(value, gradients, params, x, None, None)
    if noise is not None:
        scale = noise.astype(value.dtype) * bound.astype(value.dtype) / (len(x) * n_parts(key))
        gradients = _noisy(gradients, jax.random.fold_in(batch_key(key), NOISE), scale)
    return value, gradients


NOISE = 2**32 - 1
"""What noise's key is folded with: no example's number, with which keys of dropout are folded."""


@jax.jit
def scaled(factors: Array, delta: Array) -> Array:
    """f_x δ^x. Shapes (m,), (m, ...)."""
    wide = at_least_float32(delta)
    return (factors.astype(wide.dtype).reshape(-1, *(1,) * (delta.ndim - 1)) * wide).astype(delta.dtype)


def _noisy(tree: Params, key: Array, scale: Array) -> Params:
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    drawn = (jax.random.normal(k, g.shape, at_least_float32(g).dtype) for k, g in zip(keys, leaves, strict=True))
    return structure.unflatten(
        [(at_least_float32(g) + scale.astype(n.dtype) * n).astype(g.dtype) for g, n in zip(leaves, drawn, strict=True)]
    )


def _check_independent(net: Layer) -> None:
    if is_walked(net):
        for i, part in enumerate(net.layers):  # pyright: ignore[reportAttributeAccessIssue]
            with located(i):
                _check_independent(part)
    if not net.independent:
        remedy = (
            "use fn.GroupNorm or fn.LayerNorm for fn.BatchNorm; a layer of your own that mixes no examples says so by "
            "independent = True in its class"
        )
        raise LayerError(
            net, "an independent layer, to clip each example's gradient", "one that mixes examples", remedy
        )


def _run(
    function: Callable, net: Any, cost: Any, params: Params, x: Any, y: Any, key: Any, mask: Any, weights: Any
) -> Any:
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    return program(function, net, cost)(params, x, y, mask, weights, key)


def _errors(net, cost, params, x, y, mask, weights, key) -> tuple[Array, Cache, Delta]:
    """C, the cache and all errors, in training mode."""
    a, cache = run_forward(net, params, counted(x, weights), key=key, train=True, mask=mask)
    value = cost(a, y, weights=weights, output=net.output(params, cache))
    return value, cache, errors_of(net, cost, params, a, cache, y, weights, params)


def _example_gradients(net, cost, params, *given):
    _, cache, errors = _errors(net, cost, params, *given)
    return net.example_gradients(params, cache, errors)


def _gradient_norms(net, cost, params, x, y, mask, weights, key):
    def chunk(index, x, y, mask, weights):
        keys = keys_of(key, index) if net.independent else key
        _, cache, errors = _errors(net, cost, params, x, y, mask, weights, keys)
        return net.square_norms(params, cache, errors)

    m, size = len(x), chunk_size(net, params, x, key, mask, "auto")
    return jnp.sqrt(concatenated(chunk, (example_index(key, m), x, y, mask, weights), size))


def _gradient_gram(net, cost, params, *given):
    _, cache, errors = _errors(net, cost, params, *given)
    return net._gram(params, cache, errors)


def _gradient_statistics(net, cost, params, x, y, mask, weights, key):
    def chunk(*batch):
        _, cache, errors = _errors(net, cost, params, *batch)
        return net.gradients(params, cache, errors), net.second_moment(params, cache, errors)

    size = chunk_size(net, params, x, key, mask, "auto")
    mean, moment = mean_over_chunks(chunk, (x, y, mask, weights), key, size)
    squares = jax.tree.map(lambda g: jnp.square(at_least_float32(g)), mean)
    variance = jax.tree.map(lambda s, g: jnp.maximum(s - g, 0), moment, squares)
    ratio = jax.tree.map(lambda g, v: jnp.where(g == 0, 0, g / v), squares, variance)
    noise, signal = (jnp.asarray(sum(map(jnp.sum, jax.tree.leaves(tree)))) for tree in (variance, squares))
    return GradientStatistics(mean, variance, ratio, jnp.where(noise == 0, 0, noise / signal))


def _input_gradient(net, cost, params, x, *given):
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"input_gradient: expected inputs of a float dtype, got {x.dtype}: integers have no derivative; convert numbers "
            f"by x.astype(float), and of tokens give the rows of an Embedding to the layers above it, net[1:]"
        )
    _, cache, errors = _errors(net, cost, params, x, *given)
    da = net._propagated(params, cache, errors)
    if da is None:
        raise ValueError(
            f"input_gradient: expected a first layer with a propagate(params, cache, delta), got none in {net!r}; write it"
        )
    return da
