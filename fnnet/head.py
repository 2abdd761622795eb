"""From the cost down: the whole output at once, or the last layer a few steps of the sequences at a time, for a large
vocabulary without all of its logits."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .costs import Cost
from .layers._composite import Composite
from .layers._dense import Dense
from .layers._layer import Layer, LayerError, Params, run_forward
from .layers._shared import Tied


def check_head(net: Layer) -> None:
    """Raise a LayerError unless the net is a network, tied or not, that ends in a Dense layer."""
    if isinstance(net, Tied):
        return check_head(net.net)
    chain = isinstance(net, Composite) and type(net).forward is Composite.forward
    last = net.output_part if chain else None  # pyright: ignore[reportAttributeAccessIssue]
    if last is None or not isinstance(net.layers[last], Dense):  # pyright: ignore[reportAttributeAccessIssue]
        remedy = "leave positions out, or end the network with fn.Dense(n, fn.softmax)"
        raise LayerError(net, "a network that ends in a Dense layer, for positions=", repr(net), remedy)


def from_cost(
    net: Layer, cost: Cost, params: Params, a: Array, cache: Any, y: Array, weights: Any
) -> tuple[Array, Any, Params]:
    """(C, ∂(Σ_x C_x)/∂a_in, ∂C/∂params) from what the forward pass gave, by each layer's ``backward``."""
    output = net.output(params, cache)
    delta = cost.delta(output, y, weights=weights)
    if delta is not None:
        da_in, gradients = net.output_backward(params, cache, delta)
    else:
        da_in, gradients = net.backward(params, cache, cost.output_gradient(a, y, weights=weights))
    return cost(a, y, weights=weights, output=output), da_in, gradients


def through_positions(
    net: Any,
    cost: Cost,
    params: Params,
    x: Array,
    y: Array,
    weights: Any,
    size: int,
    carry: bool,
    given: dict[str, Any],
) -> tuple[Array, Any, Params]:
    """(C, state after the last step or None, ∂C/∂params), the last layer and the cost run on ``size`` steps at a time.

    C_x is a sum over the steps, so value and gradients of the last layer are sums over the pieces; the error that each piece
    propagates is put beside the others, and goes down through the rest of the network as usual.
    """
    if isinstance(net, Tied):
        value, state, gradients = through_positions(
            net.net, cost, net.expanded(params), x, y, weights, size, carry, given
        )
        return value, state, net.collapsed(gradients)
    parts, l = net.parts(params), net.output_part
    last, own = parts[l]

    def run(i: int, part: Layer, p: Params, a: Array, **about: Any) -> tuple[Array, Any]:
        return (a, ()) if i == l else run_forward(part, p, a, **about)

    h, cache = net.forward(params, x, **given, train=True, run=run)
    if h.ndim < 3:
        raise LayerError(last, "sequences (m, T, n) for positions=", str(h.shape), "leave positions out")

    def piece(start: Any, count: int) -> tuple[tuple[Array, Params], Array]:
        def steps(a: Any) -> Any:
            return a if a is None or a.ndim < 2 else jax.lax.dynamic_slice_in_dim(a, start, count, 1)

        targets, own_weights = steps(y), steps(weights)
        a, kept = run_forward(last, own, steps(h), train=True)
        value, dh, gradients = from_cost(last, cost, own, a, kept, targets, own_weights)
        return (value, gradients), dh

    def body(total: Any, start: Array) -> tuple[Any, Array]:
        found, dh = piece(start, size)
        return jax.tree.map(jnp.add, total, found), dh

    steps = h.shape[1]
    size = min(size, steps)
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: piece(0, size)[0]))
    (value, of_last), dh = jax.lax.scan(body, zeros, size * jnp.arange(steps // size))
    dh = jnp.moveaxis(dh, 0, 1).reshape(len(h), -1, h.shape[2])
    if rest := steps % size:
        (more, of_rest), below = piece(steps - rest, rest)
        value, of_last = value + more, jax.tree.map(jnp.add, of_last, of_rest)
        dh = jnp.concatenate([dh, below], axis=1)
    gradients: list[Any] = [None] * len(parts)

    def through(i: int, part: Layer, p: Params, da: Any) -> Any:
        da, gradients[i] = (dh, of_last) if i == l else part.backward(p, cache[i], da)
        return da

    net._backwards(params, cache, dh, through)
    return value, net.final_state(cache) if carry else None, net.joined(tuple(gradients))
