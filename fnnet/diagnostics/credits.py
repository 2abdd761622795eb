"""What each step of a sequence contributes to the cost of each other: vanishing and exploding gradients in time."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32
from ..costs import Cost
from ..given import check_batch
from ..layers._composite import is_walked
from ..layers._layer import Layer, Params, run_forward
from ..layers._recurrent import Recurrent
from ..layers._shared import Around
from ..layers._time import state_errors
from ..programs import program

__all__ = ["credit", "credit_map"]


def credit(
    net: Layer,
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
        net: a network or another composite with a recurrent layer among its parts.
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
    net: Layer,
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
    layers = net.layers if is_walked(net) else ()  # pyright: ignore[reportAttributeAccessIssue]
    layer, size = operator.index(layer), len(layers)
    if not (-size <= layer < size and isinstance(layers[layer], Recurrent)):
        got = repr(layers[layer]) if -size <= layer < size else f"a network of {size} layers" if size else repr(net)
        raise ValueError(f"credit: expected layer={layer} to be an RNN, LSTM or GRU of a network, got {got}")
    about = {"layer": layer % size, "norms": norms}
    return program(_credit, Around(net), cost, **about)(params, x, y, key, mask, weights)  # pyright: ignore


def _credit(net, cost, params, x, y, key, mask, weights, *, layer, norms) -> Array:
    a, caches = run_forward(net, params, x, key=key, train=True, mask=mask)
    output, (cell, own_params) = net.output(params, caches), net.parts(params)[layer]
    wide, kept = jax.tree.map(at_least_float32, own_params), cell.all_kept(caches[layer])
    steps = a.shape[1] if a.ndim > 2 else 1
    given = jnp.ones(a.shape[:1], a.dtype) if weights is None else weights.astype(a.dtype)

    def of_step(tau: Array) -> Array:
        own = given
        if a.ndim > 2:
            own = given.reshape(len(a), -1) * (jnp.arange(steps) == tau).astype(a.dtype)[None, :]
        delta = cost.delta(output, y, weights=own)
        das = {}

        def through(i: int, part: Layer, p: Params, da: Any) -> Any:
            das[i] = da
            matched = delta is not None and i == net.output_part
            return part._propagated(p, caches[i], (part.output_error if matched else part.error)(p, caches[i], da))

        net._backwards(params, caches, cost.output_gradient(a, y, weights=own) if delta is None else delta, through)
        dh = state_errors(cell, wide, kept, das[layer].astype(kept.gates.dtype))
        return jnp.linalg.norm(dh, axis=-1) if norms else dh

    return jnp.moveaxis(jax.lax.map(of_step, jnp.arange(steps)), 0, 1)
