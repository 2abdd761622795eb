"""How far another rule's errors and gradients point from those of backpropagation."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import wide_dtype
from ..backpropagation import counted, errors_of
from ..costs import Cost
from ..given import check_batch, check_feedback
from ..layers._composite import by_layer, visited, walk
from ..layers._layer import Cache, Layer, Params, run_forward
from ..layers._swapped import Ruled, unswapped
from ..programs import program
from .learning import norm_of

__all__ = ["Alignment", "alignment"]


class Alignment(NamedTuple):
    """A rule's errors and gradients beside those of backpropagation, (layers,) each: the angle between them in degrees and
    the ratio of their norms, the rule's over the true one. Layers are those at the bottom of every composite, in order.

    NaN where there is nothing to compare: a layer without parameters. Where one of the vectors is 0 the angle is NaN, and the
    ratio 0 (the rule's), infinite (the true one) or NaN (both).

    Attributes:
        error_angle: of δ, all examples as one vector.
        error_ratio: of δ.
        gradient_angle: of the gradient of the layer's own parameters, all of them as one vector.
        gradient_ratio: of the gradient.
    """

    error_angle: Array
    error_ratio: Array
    gradient_angle: Array
    gradient_ratio: Array


def alignment(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
    feedback: Params | None = None,
) -> Alignment:
    """The angles and norm ratios between what a network's rules make of δ and of the gradients, and true backpropagation at
    the same parameters, in training mode.

    Below 90° a small step along the rule's gradient lowers the cost; two random vectors of many entries are at about 90°. A
    network without a `fnnet.Swapped` part and without ``feedback`` is at 0° exactly, with ratios of 1. In a layer that is
    `fnnet.Tied` to another the gradient is that of its own use; an activation's surrogate counts as true.

    Args:
        net: a network or a single layer, such as ``fn.Swapped(net, fn.FeedbackAlignment())``.
        cost: one of fnnet's costs.
        params: from ``net.init``.
        x: inputs (m, ...).
        y: targets, as for `fnnet.backprop`.
        key: for layers and rules that draw random numbers.
        mask: (m, T), True for the valid steps of sequences.
        weights: (m,) or (m, T), factors of the terms of C_x.
        feedback: as in `fnnet.backprop`.

    Raises:
        ValueError: as `fnnet.backprop` does.

    Source: Lillicrap et al. (2016), who watch this angle; Kahan's formula keeps it exact near 0° and 180°.
    """
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    check_feedback(params, feedback)
    return program(_alignment, net, cost)(params, x, y, key, mask, weights, feedback)


def _alignment(net, cost, params, x, y, key, mask, weights, feedback) -> Alignment:
    given = {"key": key, "train": True, "mask": mask}
    x = counted(x, weights)

    def flat(tree: Any, dtype: Any) -> Array:
        return jnp.concatenate([jnp.zeros(0, dtype), *(leaf.ravel().astype(dtype) for leaf in jax.tree.leaves(tree))])

    def vectors(net: Layer, back: Params) -> list[tuple[Array, Array]]:
        """δ and the gradient of each layer, each as one vector."""
        a, cache = run_forward(net, params, x, **given)
        errors = by_layer(net, errors_of(net, cost, params, a, cache, y, weights, back))
        caches = caches_of(net, params, x, **given)
        found = []
        for (_, layer, own, _), cache, delta in zip(walk(net, params), caches, errors, strict=True):
            gradient = layer.gradients(own, cache, delta)
            gradient = gradient["net"] if isinstance(layer, Ruled) else gradient
            found.append((flat(delta, wide_dtype(a.dtype)), flat(gradient, wide_dtype(a.dtype))))
        return found

    plain = unswapped(net)
    true = vectors(plain, params)
    own = true if plain == net and feedback is None else vectors(net, params if feedback is None else feedback)
    found = [
        (*angle_and_ratio(delta, true_delta), *angle_and_ratio(gradient, true_gradient))
        for (delta, gradient), (true_delta, true_gradient) in zip(own, true, strict=True)
    ]
    return Alignment(*map(jnp.stack, zip(*found, strict=True)))


def caches_of(net: Layer, params: Params, x: Array, **given: Any) -> list[Cache]:
    """What the forward pass keeps in each layer of `walk`."""
    caches = {}

    def visit(place: tuple[int, ...], part: Layer, p: Params, a: Array, **about: Any) -> tuple[Array, Cache]:
        a, caches[place] = run_forward(part, p, a, **about)
        return a, caches[place]

    visited(net, params, x, visit, **given)
    return [caches[placed.place] for placed in walk(net, params)]


def angle_and_ratio(a: Array, b: Array) -> tuple[Array, Array]:
    """(θ in degrees, ‖a‖ / ‖b‖) of two vectors: θ = 2 atan2(‖u − v‖, ‖u + v‖) with u = a/‖a‖, v = b/‖b‖. The arc cosine of
    u·v would lose half of the digits near 0° and 180°. NaN for a vector of 0, a ratio for a second one only."""
    of_a, of_b = norm_of(a), norm_of(b)
    u, v = a / of_a, b / of_b
    angle = jnp.degrees(2 * jnp.arctan2(norm_of(u - v), norm_of(u + v)))
    return jnp.where((of_a > 0) & (of_b > 0), angle, jnp.nan), of_a / of_b
