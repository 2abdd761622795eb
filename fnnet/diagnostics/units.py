"""What the units do: which are saturated or dead, their activations, and how values are spread."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32, softmax
from ..chunks import chunk_size, mean_over_chunks
from ..layers._composite import is_walked, run_parts
from ..layers._layer import Layer, Params
from ..programs import program

__all__ = ["Histograms", "Saturation", "activations", "histograms", "saturation"]


class Saturation(NamedTuple):
    """Units that hardly learn, by layer; NaN for a layer without an activation that acts on each unit alone.

    Attributes:
        share: of all units over all examples, those with a flat activation.
        dead: of all units, those whose activation is flat for every example.
    """

    share: Array
    dead: Array


def saturation(net: Layer, params: Params, x: Any, *, bound: float = 0.01) -> Saturation:
    """The share of units with |σ'(z)| ≤ ``bound``: they hardly learn. A ReLU is flat where it is off, so ``dead`` counts
    those that no example turns on. Steps of a sequence count like examples, padded ones too; an activation of your own is
    taken to act on each unit alone.

    Args:
        net: a network or another composite; x is run through it in inference mode, in chunks where it is large.
        params: from ``net.init``.
        x: inputs (m, ...), a whole data set to find dead units.
        bound: up to which a slope counts as flat; a sigmoid's largest is 1/4.

    Raises:
        ValueError: for something that is no network, or no examples.

    Source: the notes, section 4.1.
    """
    x = check_inputs("saturation", net, params, x)
    size = chunk_size(net, params, x, jax.random.key(0), None, "auto")
    return program(_saturation, net, size=size)(params, x, bound)


def _saturation(net, params, x, bound, *, size) -> Saturation:
    def units(x: Array, key: None) -> list[tuple[Array, Array] | None]:
        """For each unit, the shares of the examples for which it is flat and for which it is steep."""
        ran = run_parts(net, params, x)
        slopes = [slope_of(ran[i].layer, ran[i].params, ran[i].cache) for i in sorted(ran)]
        flat = [None if s is None else (jnp.abs(s) <= bound).astype(s.dtype) for s in slopes]
        return [None if f is None else (jnp.mean(f, axis=0), jnp.mean(1 - f, axis=0)) for f in flat]

    shares, dead, nothing = [], [], jnp.asarray(jnp.nan)
    for unit in mean_over_chunks(units, (x,), None, size):
        shares.append(nothing if unit is None else jnp.mean(unit[0]))
        dead.append(nothing if unit is None else jnp.mean((unit[1] == 0).astype(unit[1].dtype)))
    return Saturation(jnp.stack(shares), jnp.stack(dead))


def activations(net: Layer, params: Params, x: Any, *, mask: Any = None) -> tuple[Array, ...]:
    """a^l of every layer, from the first to the last, in inference mode.

    Args:
        net: a network or another composite.
        params: from ``net.init``.
        x: inputs (m, ...).
        mask: (m, T), True for the valid steps of sequences.

    Raises:
        ValueError: for something that is no network, or no examples.
    """
    x = check_inputs("activations", net, params, x)
    ran = run_parts(net, params, x, mask=mask)
    return tuple(ran[i].a_out for i in sorted(ran))


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


def check_inputs(function: str, net: Any, params: Any, x: Any) -> Array:
    """x as an array, or a ValueError."""
    if not is_walked(net):
        raise ValueError(f"{function}: expected a network, got {net!r}; wrap a layer as fn.Network(layer)")
    net.parts(params)
    x = jnp.asarray(x)
    if not x.size:
        raise ValueError(f"{function}: expected at least one example, got x of shape {x.shape}")
    return x


def slope_of(layer: Layer, params: Params, cache: Any) -> Array | None:
    """σ'(z) of a layer; None without an activation that acts on each unit alone."""
    output = None if is_walked(layer) else layer.output(params, cache)
    if output is None or output[0].pullback is softmax.pullback:
        return None
    activation, z = output
    return activation.error(jnp.ones_like(at_least_float32(z)), at_least_float32(z))
