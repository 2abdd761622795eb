"""Why the error grows or vanishes from layer to layer: BP2 in logarithms, and the singular values of its product."""

import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32
from ..backpropagation import errors_of
from ..costs import Cost
from ..given import check_batch
from ..layers._composite import Network
from ..layers._dense import Dense
from ..layers._layer import Params, run_forward
from ..programs import program
from .learning import as_rows, norm_of
from .units import check_inputs, slope_of

__all__ = ["Growth", "error_growth", "singular_values"]


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
    size = lambda d: jnp.log(norm_of(as_rows(d)))  # noqa: E731
    pairs = []
    for l in range(len(net) - 1):
        above, slope = net[l + 1], slope_of(net[l], params[l], caches[l])
        da = size(above.propagate(params[l + 1], caches[l + 1], errors[l + 1]))
        w = at_least_float32(params[l + 1]["w"]) if isinstance(above, Dense) else None
        none = jnp.zeros_like(da)
        by_weights = none if w is None else jnp.log(norm_of(w)) - math.log(w.shape[0]) / 2
        by_slopes = none if slope is None else jnp.log(norm_of(slope)) - math.log(slope.size) / 2
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
    if not isinstance(net, Network):
        raise ValueError(f"singular_values: expected a network, got {net!r}; wrap a layer as fn.Network(layer)")
    x = check_inputs("singular_values", net, params, x)
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
        rows = jax.vmap(lambda one: as_rows(back(jnp.broadcast_to(one, (len(x), len(unit))))))(unit)
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
        scale = norm_of(back(begin[:, 0])) / a.size**0.5
        scale = jnp.where(scale > 0, scale, 1)

        def gram(u: Array) -> Array:
            """Jᵀ, then J, each divided by the scale, so that a deep network's products do not vanish."""
            d = back(u) / scale
            return jax.jvp(forward, (jnp.zeros_like(d),), (d,))[1] / scale

        squares, *_ = lobpcg_standard(jax.vmap(gram, 1, 1), begin)
        return scale * jnp.sqrt(jnp.maximum(squares, 0))

    return jax.lax.map(of_example, x)
