"""How fast each layer learns, how far an update goes, and when learning turns into overfitting."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..activations import at_least_float32
from ..backpropagation import backprop
from ..costs import Cost
from ..layers._composite import is_walked
from ..layers._layer import Layer, Params
from ..penalties import weights_in
from ..sweep import Sweep
from ..training import History

__all__ = ["LearningSpeed", "Overfitting", "learning_speed", "overfitting", "update_ratios"]


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
    for delta in errors if is_walked(net) else (errors,):
        flat = as_rows(delta)
        sizes.append((norm_of(jnp.mean(flat, axis=0)), jnp.mean(norm_of(flat, axis=1)), norm_of(flat) / flat.size**0.5))
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
        return norm_of(jnp.concatenate(weights)) if weights else jnp.asarray(jnp.nan)

    return jnp.stack([norm(update) / norm(own) for own, update in zip(params, updates, strict=True)])


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


def norm_of(values: Array, axis: int | None = None) -> Array:
    """‖values‖, of entries divided by the largest: the squares of a deep network's errors do not vanish."""
    largest = jnp.max(jnp.abs(values), axis=axis, keepdims=True, initial=0)
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    scaled = values / scale
    return jnp.linalg.norm(scaled.ravel() if axis is None else scaled, axis=axis) * scale.squeeze(axis)


def as_rows(delta: Any) -> Array:
    """An error, which may be a pytree, as (m, units)."""
    return jnp.concatenate([at_least_float32(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(delta)], axis=1)
