"""What happens inside a network: functions that return arrays and never plot (`fnnet.plots` draws them)."""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .activations import at_least_float32, softmax
from .costs import Cost
from .layers._dense import Dense
from .layers._layer import Layer, Params, run_forward
from .layers._recurrent import Recurrent
from .layers._time import state_errors
from .network import Network, backprop, check_batch, chunk_size, errors_of, mean_over_chunks
from .penalties import weights_in
from .programs import program
from .sweep import Sweep
from .training import History

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


class LearningSpeed(NamedTuple):
    """Three sizes of each layer's error δ, from the first layer to the last.

    Attributes:
        norm_of_mean: ‖(1/m) Σ_x δ^x‖, which is the norm of a dense layer's gradient of its biases.
        mean_of_norms: (1/m) Σ_x ‖δ^x‖; it does not fall where examples pull in different directions.
        rms: the root of the mean square of δ's entries; it does not grow with the number of units.
    """

    norm_of_mean: Array
    mean_of_norms: Array
    rms: Array


def learning_speed(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> LearningSpeed:
    """How large the error of each layer is, from `fnnet.backprop`: how fast it learns. Arguments and errors are those of it;
    the errors of a network inside the network count together.

    Source: the notes, section 6.1; Nielsen's figures are ``norm_of_mean``.
    """
    errors = backprop(net, cost, params, x, y, key=key, mask=mask, weights=weights).errors
    sizes = []
    for delta in errors if isinstance(net, Network) else (errors,):
        flat = _flat(delta)
        sizes.append((_norm(jnp.mean(flat, axis=0)), jnp.mean(_norm(flat, axis=1)), _norm(flat) / flat.size**0.5))
    return LearningSpeed(*(jnp.stack(size) for size in zip(*sizes, strict=True)))


def update_ratios(params: Params, updates: Params) -> Array:
    """‖Δw‖ / ‖w‖ of each layer's weights, for the updates of an optimizer; NaN for a layer without weights. Shape (L,).

    About 0.001 is usual; a layer whose ratio is a hundred times smaller than another's hardly learns beside it.

    Args:
        params: of a network, an entry for each layer.
        updates: as ``optimizer.update`` returns them.

    Raises:
        ValueError: for parameters that are no tuple.
    """
    if not isinstance(params, tuple):
        raise ValueError(
            f"update_ratios: expected a network's parameters, a tuple with an entry for each layer, got "
            f"{type(params).__name__}; wrap a single layer's as (params,)"
        )

    def norm(tree: Any) -> Array:
        weights = [w.astype(jnp.result_type(float)).ravel() for w in weights_in(tree)]
        return _norm(jnp.concatenate(weights)) if weights else jnp.asarray(jnp.nan)

    return jnp.stack([norm(update) / norm(own) for own, update in zip(params, updates, strict=True)])


class Saturation(NamedTuple):
    """Units that hardly learn, by layer; NaN for a layer without an activation that acts on each unit alone.

    Attributes:
        share: of all units over all examples, those with a flat activation.
        dead: of all units, those whose activation is flat for every example.
    """

    share: Array
    dead: Array


def saturation(net: Network, params: Params, x: Any, *, bound: float = 0.01) -> Saturation:
    """The share of units with |σ'(z)| ≤ ``bound``: they hardly learn. A ReLU is flat where it is off, so ``dead`` counts
    those that no example turns on. Steps of a sequence count like examples, padded ones too; an activation of your own is
    taken to act on each unit alone.

    Args:
        net: a network; x is run through it in inference mode, in chunks where it is large.
        params: from ``net.init``.
        x: inputs (m, ...), a whole data set to find dead units.
        bound: up to which a slope counts as flat; a sigmoid's largest is 1/4.

    Raises:
        ValueError: for something that is no network, or no examples.

    Source: the notes, section 4.1.
    """
    x = _check("saturation", net, params, x)
    size = chunk_size(net, params, x, jax.random.key(0), None, "auto")
    return program(_saturation, net, size=size)(params, x, bound)


def _saturation(net, params, x, bound, *, size) -> Saturation:
    def units(x: Array, key: None) -> list[tuple[Array, Array] | None]:
        """For each unit, the shares of the examples for which it is flat and for which it is steep."""
        _, caches = run_forward(net, params, x)
        slopes = [_slope(part, p, cache) for part, p, cache in zip(net, params, caches, strict=True)]
        flat = [None if s is None else (jnp.abs(s) <= bound).astype(s.dtype) for s in slopes]
        return [None if f is None else (jnp.mean(f, axis=0), jnp.mean(1 - f, axis=0)) for f in flat]

    shares, dead, nothing = [], [], jnp.asarray(jnp.nan)
    for unit in mean_over_chunks(units, (x,), None, size):
        shares.append(nothing if unit is None else jnp.mean(unit[0]))
        dead.append(nothing if unit is None else jnp.mean((unit[1] == 0).astype(unit[1].dtype)))
    return Saturation(jnp.stack(shares), jnp.stack(dead))


def activations(net: Network, params: Params, x: Any, *, mask: Any = None) -> tuple[Array, ...]:
    """a^l of every layer, from the first to the last, in inference mode.

    Args:
        net: a network.
        params: from ``net.init``.
        x: inputs (m, ...).
        mask: (m, T), True for the valid steps of sequences.

    Raises:
        ValueError: for something that is no network, or no examples.
    """
    a, outputs = _check("activations", net, params, x), []
    for part, p in zip(net, params, strict=True):
        a, _ = run_forward(part, p, a, mask=mask)
        outputs.append(a)
    return tuple(outputs)


class Histograms(NamedTuple):
    """A histogram for each layer.

    Attributes:
        counts: (L, bins), integers: how many values are in each bin; 0 for a layer without values.
        edges: (L, bins + 1), the bins' edges, from the layer's smallest value to its largest; NaN for a layer without values.
    """

    counts: Array
    edges: Array


@functools.partial(jax.jit, static_argnames="bins")
def histograms(values: Any, *, bins: int = 50) -> Histograms:
    """How the values of each layer are spread; what is not finite is left out.

    Args:
        values: an entry for each layer: `activations`, ``backprop(...).errors`` or ``.gradients``, or the parameters.
        bins: how many.

    Raises:
        ValueError: for no layers at all.
    """
    if not len(values):
        raise ValueError("histograms: expected an entry for each layer, got none")

    def of_layer(tree: Any) -> tuple[Array, Array]:
        leaves = [
            at_least_float32(leaf).astype(jnp.result_type(float)).ravel()
            for leaf in jax.tree.leaves(tree)
            if jnp.size(leaf)
        ]
        if not leaves:
            return jnp.zeros(bins, int), jnp.full(bins + 1, jnp.nan)
        flat = jnp.concatenate(leaves)
        finite = jnp.isfinite(flat)
        low, high = jnp.min(flat, where=finite, initial=jnp.inf), jnp.max(flat, where=finite, initial=-jnp.inf)
        edges = jnp.histogram_bin_edges(flat, bins, (low, high))
        places = jnp.clip(jnp.searchsorted(edges, flat, side="right") - 1, 0, bins - 1)
        return jnp.zeros(bins, int).at[places].add(finite.astype(int)), jnp.where(jnp.any(finite), edges, jnp.nan)

    return Histograms(*(jnp.stack(part) for part in zip(*map(of_layer, values), strict=True)))


class Overfitting(NamedTuple):
    """When validation turns, and how far training runs ahead of it. Shapes are those of the history without its last axis
    (the epochs), the gaps' with it.

    Attributes:
        cost_turns: the epoch, from 1, with the lowest validation cost; 0 where there is none.
        accuracy_turns: the first epoch with the best validation accuracy.
        cost_gap: validation cost − training cost after each epoch; None without a monitored training cost.
        accuracy_gap: training accuracy − validation accuracy.
    """

    cost_turns: Array
    accuracy_turns: Array
    cost_gap: Array | None
    accuracy_gap: Array | None


def overfitting(history: History | Sweep) -> Overfitting:
    """When a network begins to overfit, and by how much. The penalty is part of both costs and not of their gap.

    Args:
        history: from `fnnet.fit` or `fnnet.sweep`, with validation data.

    Raises:
        ValueError: for a history without validation data, or without epochs.

    Source: the notes, section 5.1.
    """
    if history.validation_cost is None or history.validation_accuracy is None:
        raise ValueError("overfitting: expected a history with validation data, got none; give fit validation=(x, y)")
    if not np.shape(history.validation_cost)[-1]:
        raise ValueError("overfitting: expected a history of at least one epoch, got none")
    cost, share = jnp.asarray(history.validation_cost), jnp.asarray(history.validation_accuracy)
    turns = jnp.nanargmin(cost, axis=-1) + 1, jnp.nanargmax(share, axis=-1) + 1
    if history.accuracy is None:
        return Overfitting(*turns, None, None)
    return Overfitting(*turns, cost - history.cost, jnp.asarray(history.accuracy) - share)


class Growth(NamedTuple):
    """ln(‖δ^l‖ / ‖δ^{l+1}‖) for neighbouring layers, from the first pair to the last, and four parts that add up to it. Norms
    are over all units and examples. Where an error is 0 the total is −∞, or NaN after 0, and so is the part that made it so.

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
    return program(_growth, net, cost)(params, x, y, key, mask, weights)


def _growth(net, cost, params, x, y, key, mask, weights) -> Growth:
    a, caches = run_forward(net, params, x, key=key, train=True, mask=mask)
    errors = errors_of(net, cost, params, a, caches, y, weights, params)
    size = lambda d: jnp.log(_norm(_flat(d)))  # noqa: E731
    pairs = []
    for l in range(len(net) - 1):
        above, slope = net[l + 1], _slope(net[l], params[l], caches[l])
        da = size(above.propagate(params[l + 1], caches[l + 1], errors[l + 1]))
        w = at_least_float32(params[l + 1]["w"]) if isinstance(above, Dense) else None
        none = jnp.zeros_like(da)
        by_weights = none if w is None else jnp.log(_norm(w)) - math.log(w.shape[0]) / 2
        by_slopes = none if slope is None else jnp.log(_norm(slope)) - math.log(slope.size) / 2
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
        layer: l, counted from 0; not a network inside the network, which has a δ for each of its layers.
        k: only the k largest, without ever having the matrix: by products with it and its transpose (LOBPCG), for layers of
            many units. Below a fifth of n_L.

    Raises:
        ValueError: for something that is no network, no examples, a layer that the network does not have or that is a network
            itself, or k outside 1 to (n_L − 1)/5.

    Source: the notes, section 6.1.
    """
    x = _check("singular_values", net, params, x)
    if not -len(net) <= operator.index(layer) < len(net) or isinstance(net[layer], Network):
        got = layer if not -len(net) <= layer < len(net) else f"{layer}, which is {net[layer]!r}"
        raise ValueError(f"singular_values: expected layer to be one of {len(net)} layers, not a network, got {got}")
    n_out = math.prod(jax.eval_shape(lambda: run_forward(net, params, x)[0]).shape[1:])
    most = (n_out - 1) // 5
    if k is not None and not 1 <= operator.index(k) <= most:
        allowed = f"k from 1 to {most}" if most else "no k"
        raise ValueError(f"singular_values: expected {allowed} for {n_out} outputs, got {k}; leave k out")
    return program(_singular_values, net, layer=layer % len(net), k=k)(params, x)


def _singular_values(net, params, x, *, layer, k) -> Array:
    params, x = jax.tree.map(
        lambda leaf: at_least_float32(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, (params, x)
    )

    def back_from(x: Array) -> tuple[Any, Array]:
        """u -> Jᵀ u for every example, (m, n_L) -> the shape of δ^l; and a^L."""
        a, caches = run_forward(net, params, x)
        return lambda u: net.error(params, caches, u.reshape(a.shape))[layer], a

    if k is None:
        back, a = back_from(x)
        unit = jnp.eye(math.prod(a.shape[1:]), dtype=a.dtype)
        rows = jax.vmap(lambda one: _flat(back(jnp.broadcast_to(one, (len(x), len(unit))))))(unit)
        return jnp.linalg.svd(jnp.moveaxis(rows, 0, 1), compute_uv=False)

    from jax.experimental.sparse.linalg import lobpcg_standard  # slow to import, and only needed here

    def of_example(x: Array) -> Array:
        x = x[None]
        back, a = back_from(x)
        below, above = net.layers[:layer], net.layers[layer:]
        start = Network(*below).apply(params[:layer], x) if below else x

        def forward(probe: Array) -> Array:
            """a^L with something added to z^l."""
            out, _ = run_forward(above[0], params[layer], start, probe=probe)
            return (Network(*above[1:]).apply(params[layer + 1 :], out) if above[1:] else out).ravel()

        begin = jax.random.normal(jax.random.key(0), (a.size, k), a.dtype)
        scale = _norm(back(begin[:, 0])) / a.size**0.5
        scale = jnp.where(scale > 0, scale, 1)

        def gram(u: Array) -> Array:
            """Jᵀ, then J, each divided by the scale, so that a deep network's products do not vanish."""
            d = back(u) / scale
            return jax.jvp(forward, (jnp.zeros_like(d),), (d,))[1] / scale

        squares, *_ = lobpcg_standard(jax.vmap(gram, 1, 1), begin)
        return scale * jnp.sqrt(jnp.maximum(squares, 0))

    return jax.lax.map(of_example, x)


def _check(function: str, net: Any, params: Any, x: Any) -> Array:
    """x as an array, or a ValueError."""
    if not isinstance(net, Network):
        raise ValueError(f"{function}: expected a network, got {net!r}; wrap a layer as fn.Network(layer)")
    if not isinstance(params, tuple) or len(params) != len(net):
        got = f"{len(params)} entries" if isinstance(params, tuple) else type(params).__name__
        raise ValueError(f"{function}: expected parameters with an entry for each of {len(net)} layers, got {got}")
    x = jnp.asarray(x)
    if not x.size:
        raise ValueError(f"{function}: expected at least one example, got x of shape {x.shape}")
    return x


def _norm(values: Array, axis: int | None = None) -> Array:
    """‖values‖, of entries divided by the largest: the squares of a deep network's errors do not vanish."""
    largest = jnp.max(jnp.abs(values), axis=axis, keepdims=True, initial=0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    scaled = values / scale
    return jnp.linalg.norm(scaled.ravel() if axis is None else scaled, axis=axis) * scale.squeeze(axis)


def _flat(delta: Any) -> Array:
    """An error, which may be a pytree, as (m, units)."""
    return jnp.concatenate([at_least_float32(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(delta)], axis=1)


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
    return program(_credit, net, cost, layer=layer, norms=norms)(params, x, y, key, mask, weights)


def _credit(net, cost, params, x, y, key, mask, weights, *, layer, norms) -> Array:
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
            own = given.reshape(len(a), -1) * (jnp.arange(steps) == tau).astype(a.dtype)[None, :]
        if above is None:
            da: Any = cost.output_gradient(a, y, weights=own)
        elif (delta := cost.delta(output, y, weights=own)) is not None:
            da = above.propagate(*upper, above.output_error(*upper, delta))
        else:
            da = above.propagate(*upper, above.error(*upper, cost.output_gradient(a, y, weights=own)))
        dh = state_errors(cell, wide, kept, da.astype(kept.gates.dtype))
        return jnp.linalg.norm(dh, axis=-1) if norms else dh

    return jnp.moveaxis(jax.lax.map(of_step, jnp.arange(steps)), 0, 1)
