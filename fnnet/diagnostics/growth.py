"""Why the error grows or vanishes from layer to layer: BP2 in logarithms, and the singular values of its product."""

import functools
import itertools
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
from ..layers._composite import is_walked, run_parts
from ..layers._dense import Dense
from ..layers._layer import Layer, Params, run_forward
from ..layers._shared import Around
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
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> Growth:
    """Why the error grows or vanishes from layer to layer: BP2, δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l), in logarithms.

    Arguments and errors are those of `fnnet.backprop`; the network needs two layers, one after another in the order in which
    they run: where an error is split or added up, it has no single neighbour. The errors of a network inside the network
    count together. Source: the notes, section 6.1.
    """
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    if not is_walked(net) or len(net.layers) < 2:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"error_growth: expected a network of at least two layers, got {net!r}")
    return program(_growth, Around(net), cost)(params, x, y, key, mask, weights)  # pyright: ignore[reportArgumentType]


def _growth(net, cost, params, x, y, key, mask, weights) -> Growth:
    given = {"key": key, "train": True, "mask": mask}
    a, caches = run_forward(net, params, x, **given)
    errors = errors_of(net, cost, params, a, caches, y, weights, params)
    ran = run_parts(net, params, x, **given)
    pairs = list(itertools.pairwise(ran))
    if list(ran)[-1] != net.output_part or any(ran[l].a_out is not ran[up].a_in for l, up in pairs):
        remedy = "give one branch of it, or put it into an fn.Network, where it counts as one layer"
        raise ValueError(f"error_growth: expected layers one after another, got {net.net!r}; {remedy}")
    size = lambda d: jnp.log(norm_of(as_rows(d)))  # noqa: E731
    found = []
    for l, up in pairs:
        (above, p, *_, cache), slope = ran[up], slope_of(ran[l].layer, ran[l].params, ran[l].cache)
        da = size(above.propagate(p, cache, errors[up]))
        w = at_least_float32(p["w"]) if isinstance(above, Dense) else None
        none = jnp.zeros_like(da)
        by_weights = none if w is None else jnp.log(norm_of(w)) - math.log(w.shape[0]) / 2
        by_slopes = none if slope is None else jnp.log(norm_of(slope)) - math.log(slope.size) / 2
        through, past = da - size(errors[up]), size(errors[l]) - da
        found.append((through + past, by_weights, through - by_weights, by_slopes, past - by_slopes))
    return Growth(*(jnp.stack(part) for part in zip(*found, strict=True)))


def singular_values(
    net: Layer, params: Params, x: Any, *, layer: int | tuple[int, ...] = 0, k: int | None = None
) -> Array:
    """The singular values of Σ'(z^l) (w^{l+1})ᵀ Σ'(z^{l+1}) … Σ'(z^L), through which BP1 and BP2 take ∇_a C to δ^l, for each
    example, the largest first. Shape (m, min(n_l, n_L)).

    Args:
        net: a network or another composite, whose layers keep examples apart, in inference mode.
        params: from ``net.init``.
        x: inputs (m, ...).
        layer: l, counted from 0, or a place such as (1, 0), the first layer of a network that is the second; not a network
            itself, which has a δ for each of its layers.
        k: only the k largest, without ever having the matrix: by products with it and its transpose (LOBPCG), for layers of
            many units. Below a fifth of n_L.

    Raises:
        ValueError: for something that is no network, no examples, a layer that the network does not have or that is a network
            itself, or k outside 1 to (n_L − 1)/5.

    Source: the notes, section 6.1.
    """
    x, place, found = check_inputs("singular_values", net, params, x), (), net
    for i in layer if isinstance(layer, tuple) else (layer,):
        n = len(found.layers) if is_walked(found) else 0  # pyright: ignore[reportAttributeAccessIssue]
        if not -n <= operator.index(i) < n:
            got = f"{layer}, where {place} is {found!r}" if place else f"{layer}"
            raise ValueError(f"singular_values: expected layer to be one of {n} layers, not a network, got {got}")
        place, found = (*place, i % n), found.layers[i]  # pyright: ignore[reportAttributeAccessIssue]
    if is_walked(found):
        remedy = f"give the place of a layer in it, such as {(*place, 0)}"
        raise ValueError(f"singular_values: expected a layer, not a network, got {layer}, which is {found!r}; {remedy}")
    n_out = math.prod(jax.eval_shape(lambda: run_forward(net, params, x)[0]).shape[1:])
    most = (n_out - 1) // 5
    if k is not None and not 1 <= operator.index(k) <= most:
        allowed = f"k from 1 to {most}" if most else "no k"
        raise ValueError(f"singular_values: expected {allowed} for {n_out} outputs, got {k}; leave k out")
    return program(_singular_values, net, place=place, k=k)(params, x)


def _at(place: tuple[int, ...], tree: Any) -> Any:
    return functools.reduce(operator.getitem, place, tree)


def _with(place: tuple[int, ...], tree: Any, new: Any) -> Any:
    """The tree with something else in a place."""
    if not place:
        return new
    return tuple(_with(place[1:], part, new) if i == place[0] else part for i, part in enumerate(tree))


def _singular_values(net, params, x, *, place, k) -> Array:
    params, x = jax.tree.map(
        lambda leaf: at_least_float32(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, (params, x)
    )

    def back_from(x: Array) -> tuple[Any, Array]:
        """u -> Jᵀ u for every example, (m, n_L) -> the shape of δ^l; and a^L."""
        a, caches = run_forward(net, params, x)
        return lambda u: _at(place, net.error(params, caches, u.reshape(a.shape))), a

    if k is None:
        back, a = back_from(x)
        unit = jnp.eye(math.prod(a.shape[1:]), dtype=a.dtype)
        rows = jax.vmap(lambda one: as_rows(back(jnp.broadcast_to(one, (len(x), len(unit))))))(unit)
        return jnp.linalg.svd(jnp.moveaxis(rows, 0, 1), compute_uv=False)

    from jax.experimental.sparse.linalg import lobpcg_standard  # slow to import, and only needed here

    def of_example(x: Array) -> Array:
        x = x[None]
        back, a = back_from(x)
        _, caches = run_forward(net, params, x)
        nothing = jax.tree.map(jnp.zeros_like, net.error(params, caches, jnp.zeros_like(a)))

        def forward(probe: Array) -> Array:
            """a^L with something added to z^l."""
            return run_forward(net, params, x, probe=_with(place, nothing, probe))[0].ravel()

        _, push = jax.linearize(forward, _at(place, nothing))
        begin = jax.random.normal(jax.random.key(0), (a.size, k), a.dtype)
        scale = norm_of(back(begin[:, 0])) / a.size**0.5
        scale = jnp.where(scale > 0, scale, 1)

        def gram(u: Array) -> Array:
            """Jᵀ, then J, each divided by the scale, so that a deep network's products do not vanish."""
            return push(back(u) / scale) / scale

        squares, *_ = lobpcg_standard(jax.vmap(gram, 1, 1), begin)
        return scale * jnp.sqrt(jnp.maximum(squares, 0))

    return jax.lax.map(of_example, x)
