"""What happens inside a network: functions that return arrays and never plot (`fnnet.plots` draws them)."""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .activations import at_least_float32, softmax
from .costs import Cost
from .layers._dense import Dense
from .layers._layer import Layer, Params, run_forward
from .layers._recurrent import Recurrent, state_errors
from .network import Network, backprop, check_batch
from .penalties import is_weight

__all__ = [
    "Growth",
    "LearningSpeed",
    "credit",
    "credit_map",
    "error_growth",
    "learning_speed",
    "saturation",
    "singular_values",
    "update_ratios",
]


class LearningSpeed(NamedTuple):
    """Three sizes of each layer's error δ, from the first layer to the last.

    Attributes:
        norm_of_mean: ‖(1/m) Σ_x δ^x‖, which is the norm of the biases' gradient.
        mean_of_norms: (1/m) Σ_x ‖δ^x‖; it does not fall where examples pull in different directions.
        rms: the root of the mean square of δ's entries; it does not grow with the number of units.
    """

    norm_of_mean: Array
    mean_of_norms: Array
    rms: Array


def learning_speed(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> LearningSpeed:
    """How large the error of each layer is, from `fnnet.backprop`: how fast it learns. Arguments and errors are those of it.

    Source: the notes, section 6.1; Nielsen's figures are ``norm_of_mean``.
    """
    errors = backprop(net, cost, params, x, y, key=key, mask=mask, weights=weights).errors
    sizes = []
    for delta in errors if isinstance(net, Network) else (errors,):
        flat = _flat(delta)
        norms = jnp.linalg.norm(flat, axis=1)
        sizes.append((jnp.linalg.norm(jnp.mean(flat, axis=0)), jnp.mean(norms), jnp.sqrt(jnp.mean(flat**2))))
    return LearningSpeed(*(jnp.stack(size) for size in zip(*sizes, strict=True)))


def update_ratios(params: Params, updates: Params) -> Array:
    """‖Δw‖ / ‖w‖ of each layer's weights, for the updates of an optimizer; NaN for a layer without weights. Shape (L,).

    About 0.001 is usual; a layer whose ratio is a hundred times smaller than another's hardly learns beside it.
    """

    def norm(tree: Any) -> Array:
        squares = [jnp.sum(at_least_float32(leaf) ** 2) for leaf in _weights_of(tree)]
        return jnp.sqrt(sum(squares)) if squares else jnp.asarray(jnp.nan)

    return jnp.stack([norm(update) / norm(own) for own, update in zip(params, updates, strict=True)])


def saturation(net: Network, params: Params, x: Any, *, bound: float = 0.01) -> Array:
    """The share of each layer's units, over all examples, whose |σ'(z)| is below ``bound``: they hardly learn. Shape (L,);
    NaN for a layer without an activation that acts on each unit alone.

    With ``bound`` a tiny number it is the share of ReLUs that are off.

    Args:
        net: a network.
        params: from ``net.init``.
        x: inputs (m, ...).
        bound: below which a slope counts as flat; a sigmoid's largest is 1/4.

    Source: the notes, section 4.1.
    """
    _, caches = run_forward(net, params, jnp.asarray(x))
    shares = []
    for part, p, cache in zip(net, params, caches, strict=True):
        slope = _slope(part, p, cache)
        shares.append(jnp.asarray(jnp.nan) if slope is None else jnp.mean((jnp.abs(slope) < bound).astype(slope.dtype)))
    return jnp.stack(shares)


class Growth(NamedTuple):
    """ln(‖δ^l‖ / ‖δ^{l+1}‖) for neighbouring layers, from the first pair to the last, and four parts that add up to it. Norms
    are over all units and examples.

    Attributes:
        total: ln(‖δ^l‖ / ‖δ^{l+1}‖), below 0 where the error vanishes.
        weights: ln(‖w‖ / √n), n the units of the upper layer: what a product with w does to a δ of random direction. 0 for a
            layer that is not dense.
        weight_alignment: how much more it does to this δ.
        slopes: ln of the root mean square of σ'(z^l); 0 without an activation that acts on each unit alone.
        slope_alignment: how much more σ' does to this error.
    """

    total: Array
    weights: Array
    weight_alignment: Array
    slopes: Array
    slope_alignment: Array


def error_growth(
    net: Network, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> Growth:
    """Why the error grows or vanishes from layer to layer: BP2, δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l), in logarithms.

    Arguments and errors are those of `fnnet.backprop`; the network needs two layers. Source: the notes, section 6.1.
    """
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    if not isinstance(net, Network) or len(net) < 2:
        raise ValueError(f"error_growth: expected a network of at least two layers, got {net!r}")
    return _growth(net, cost, params, x, y, key, mask, weights)


@jax.jit
def _growth(net, cost, params, x, y, key, mask, weights) -> Growth:
    a, caches = run_forward(net, params, x, key=key, train=True, mask=mask)
    output = net.output(params, caches)
    if cost.matches(output):
        errors = net.output_error(params, caches, cost.output_error(output[1], y, weights=weights))
    else:
        errors = net.error(params, caches, cost.output_gradient(a, y, weights=weights))
    size = lambda d: jnp.log(jnp.linalg.norm(_flat(d)))  # noqa: E731
    pairs = []
    for l in range(len(net) - 1):
        above, slope = net[l + 1], _slope(net[l], params[l], caches[l])
        da = size(above.propagate(params[l + 1], caches[l + 1], errors[l + 1]))
        w = at_least_float32(params[l + 1]["w"]) if isinstance(above, Dense) else None
        by_weights = 0 * da if w is None else jnp.log(jnp.linalg.norm(w)) - math.log(w.shape[0]) / 2
        by_slopes = 0 * da if slope is None else jnp.log(jnp.mean(slope**2)) / 2
        through, past = da - size(errors[l + 1]), size(errors[l]) - da
        pairs.append((through + past, by_weights, through - by_weights, by_slopes, past - by_slopes))
    return Growth(*(jnp.stack(part) for part in zip(*pairs, strict=True)))


def singular_values(net: Network, params: Params, x: Any, *, layer: int = 0, k: int | None = None) -> Array:
    """The singular values of Σ'(z^l) (w^{l+1})ᵀ Σ'(z^{l+1}) … Σ'(z^L), through which BP1 and BP2 take ∇_a C to δ^l, for each
    example, the largest first. Shape (m, min(n_l, n_L)).

    Args:
        net: a network whose layers keep examples apart, in inference mode.
        params: from ``net.init``.
        x: inputs (m, ...).
        layer: l, counted from 0.
        k: only the k largest, without ever having the matrix: by products with it and its transpose (LOBPCG), for layers of
            many units. A fifth of n_L at most.

    Raises:
        ValueError: for a layer that the network does not have, or k outside 1 to n_L/5.

    Source: the notes, section 6.1.
    """
    x = jnp.asarray(x)
    if not -len(net) <= operator.index(layer) < len(net):
        raise ValueError(f"singular_values: expected layer to be one of {len(net)} layers, got {layer}")
    n_out = math.prod(jax.eval_shape(lambda: run_forward(net, params, x)[0]).shape[1:])
    if k is not None and not 1 <= operator.index(k) <= n_out // 5:
        raise ValueError(
            f"singular_values: expected k from 1 to {n_out // 5} for {n_out} outputs, got {k}; leave k out"
        )
    return _singular_values(net, params, x, layer=layer % len(net), k=k)


@functools.partial(jax.jit, static_argnames=("layer", "k"))
def _singular_values(net, params, x, *, layer, k) -> Array:
    a, caches = run_forward(net, params, x)
    n_out = math.prod(a.shape[1:])

    def back(u: Array) -> Array:
        """Jᵀ u for every example: (m, n_L) -> (m, n_l)."""
        return _flat(net.error(params, caches, u.reshape(a.shape))[layer])

    if k is None:
        rows = jax.vmap(lambda one: back(jnp.broadcast_to(one, (len(x), n_out))))(jnp.eye(n_out, dtype=a.dtype))
        return jnp.linalg.svd(jnp.moveaxis(rows, 0, 1), compute_uv=False)

    below, above = net.layers[:layer], net.layers[layer:]
    start = Network(*below).apply(params[:layer], x) if below else x
    shape = jax.eval_shape(lambda: net.error(params, caches, a)[layer]).shape

    def forward(probe: Array) -> Array:
        """a^L with something added to z^l."""
        out, _ = run_forward(above[0], params[layer], start, probe=probe.reshape(shape))
        return (Network(*above[1:]).apply(params[layer + 1 :], out) if above[1:] else out).reshape(len(x), n_out)

    def gram(u: Array) -> Array:
        """Jᵀ, then J, for every example: (m, n_L) -> (m, n_L)."""
        d = back(u)
        return jax.jvp(forward, (jnp.zeros_like(d),), (d,))[1]

    from jax.experimental.sparse.linalg import lobpcg_standard  # slow to import, and only needed here

    def of_example(i: Array) -> Array:
        """The example alone: others get 0."""
        one = jax.nn.one_hot(i, len(x), dtype=a.dtype)[:, None]
        product = jax.vmap(lambda u: gram(one * u)[i], 1, 1)
        begin = jax.random.normal(jax.random.key(0), (n_out, k), a.dtype)
        return jnp.sqrt(jnp.maximum(lobpcg_standard(product, begin)[0], 0))

    return jax.lax.map(of_example, jnp.arange(len(x)))


def _flat(delta: Any) -> Array:
    """An error, which may be a pytree, as (m, units)."""
    return jnp.concatenate([at_least_float32(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(delta)], axis=1)


def _weights_of(tree: Any) -> list[Array]:
    return [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if is_weight(path)]


def _slope(layer: Layer, params: Params, cache: Any) -> Array | None:
    """σ'(z) of a layer; None without an activation that acts on each unit alone."""
    output = None if isinstance(layer, Network) else layer.output(params, cache)
    if output is None or output[0].pullback is softmax.pullback:
        return None
    activation, z = output
    return activation.error(jnp.ones_like(at_least_float32(z)), at_least_float32(z))


def credit(
    net: Network,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    layer: int = 0,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
) -> Array:
    """∂C_x,τ/∂h_t for all pairs of steps: what step t of a recurrent layer contributes to the cost of step τ.

    C_x = Σ_τ C_x,τ over the steps of the output. Their sum over τ is the error that backpropagation through time carries to
    h_t; for t > τ it is 0, unless a layer above runs backwards. By hand: each step's cost is backpropagated by itself through
    `state_errors`. An output without steps (after `LastStep`, say) has one cost, τ = 0.

    Args:
        net: a network with a recurrent layer.
        cost: one of fnnet's costs.
        params: from ``net.init``.
        x: inputs (m, T, ...).
        y: targets, as for `fnnet.backprop`.
        layer: which layer's h.
        key: for layers that draw random numbers.
        mask: (m, T), True for the valid steps.
        weights: (m,) or (m, T), factors of the terms of C_x.

    Returns:
        (m, τ, t, n): m · T² · n numbers; `credit_map` needs m · T² only.

    Raises:
        ValueError: where ``layer`` is no recurrent layer of the network, and as `fnnet.backprop` does.
    """
    return _of(net, cost, params, x, y, layer, key, mask, weights, norms=False)


def credit_map(
    net: Network,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    layer: int = 0,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
) -> Array:
    """‖∂C_x,τ/∂h_t‖ for all pairs of steps (m, τ, t): the picture of vanishing and exploding gradients in time.

    Arguments and errors as `credit`.
    """
    return _of(net, cost, params, x, y, layer, key, mask, weights, norms=True)


def _of(net, cost, params, x, y, layer, key, mask, weights, norms) -> Array:
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    layer, size = operator.index(layer), len(net) if isinstance(net, Network) else 0
    if not (-size <= layer < size and isinstance(net[layer], Recurrent)):
        got = repr(net[layer]) if -size <= layer < size else f"a network of {size} layers" if size else repr(net)
        raise ValueError(f"credit: expected layer={layer} to be an RNN, LSTM or GRU of a network, got {got}")
    layer %= size
    return _credit(net, cost, params, x, y, layer, key, mask, weights, norms)


@functools.partial(jax.jit, static_argnames=("layer", "norms"))
def _credit(net, cost, params, x, y, layer, key, mask, weights, norms) -> Array:
    cell, above = net[layer], Network(*net.layers[layer + 1 :]) if layer + 1 < len(net) else None
    a, caches = run_forward(net, params, x, key=key, train=True, mask=mask)
    output, upper = net.output(params, caches), (params[layer + 1 :], caches[layer + 1 :])
    wide = jax.tree.map(at_least_float32, params[layer])
    kept = cell.all_kept(wide, caches[layer])
    steps = a.shape[1] if a.ndim > 2 else 1
    given = jnp.ones(a.shape[:1], a.dtype) if weights is None else weights.astype(a.dtype)

    def of_step(tau: Array) -> Array:
        own = given
        if a.ndim > 2:
            own = given.reshape(len(a), -1) * (jnp.arange(steps) == tau).astype(a.dtype)
        if above is None:
            da: Any = cost.output_gradient(a, y, weights=own)
        elif cost.matches(output):
            delta = cost.output_error(output[1], y, weights=own)
            da = above.propagate(*upper, above.output_error(*upper, delta))
        else:
            da = above.propagate(*upper, above.error(*upper, cost.output_gradient(a, y, weights=own)))
        dh = state_errors(cell, wide, kept, da.astype(kept.gates.dtype))
        return jnp.linalg.norm(dh, axis=-1) if norms else dh

    return jnp.moveaxis(jax.lax.map(of_step, jnp.arange(steps)), 0, 1)
