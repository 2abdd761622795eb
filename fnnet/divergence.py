"""Training that failed for good: in which layer the first number was not finite, and what to do about it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .layers._composite import visited
from .layers._layer import Layer, Params, run_forward

__all__ = ["Diverged", "diverged_at"]


class Diverged(RuntimeError):
    """Training failed for good: the cost is no longer finite, or a Boltzmann machine models its data worse and worse.

    Attributes:
        epoch: the epoch in which it happened, from 1.
        params: the parameters at the end of the last good epoch.
        history: the monitors up to there.
        layer: the first layer whose values are not finite, such as "1 Dense(10, softmax)"; None for a Boltzmann machine.
        step: the mini-batch, from 1; None for a Boltzmann machine.
    """

    def __init__(
        self, message: str, epoch: int, params: Params, history: Any, layer: str | None = None, step: int | None = None
    ) -> None:
        self.epoch = epoch
        self.params = params
        self.history = history
        self.layer = layer
        self.step = step
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.epoch, self.params, self.history, self.layer, self.step), vars(self)


def diverged_at(
    net: Layer, state: Any, history: Any, params: Params, batch: Any, epoch_key: Array, step: int, x: Array
) -> Diverged:
    """What to raise for a mini-batch that diverged: its layers are looked through.

    Args:
        net: the network.
        state: the last good one, and its history.
        history: see ``state``.
        params: those before the step.
        batch: the examples of the mini-batch.
        epoch_key: the key of the epoch.
        step: the number of the mini-batch, from 0.
        x: the inputs, or some of them.
    """
    key = jax.random.fold_in(jax.random.split(epoch_key)[1], step)
    layer = _first_not_finite(net, params, batch.x, key, batch.extras.get("mask"))
    epoch = int(state.epoch) + 1
    message = (
        f"training diverged in epoch {epoch}, mini-batch {step + 1}: the cost is not finite, first in {layer}; "
        f"{_remedy(net, params, x)}. .params and .history hold the last good epoch"
    )
    return Diverged(message, epoch, state.params, history, layer, step + 1)


LARGE_INPUT = 10


def _remedy(net: Layer, params: Params, x: Array) -> str:
    """What to do about a run that diverged: large inputs are the likely cause, unless they are indices."""
    low, high = float(jnp.min(x)), float(jnp.max(x))
    if not LARGE_INPUT < max(-low, high) < np.inf or not _takes_floats(net, params, x):
        return "lower the learning rate or scale the inputs"
    return (
        f"the inputs, {x.dtype} from {low:.4g} to {high:.4g}, are large: scale them to about [0, 1], as in x / "
        f"{max(-low, high):.4g}, or lower the learning rate"
    )


def _takes_floats(net: Layer, params: Params, x: Array) -> bool:
    floats = jax.ShapeDtypeStruct(x.shape, jnp.result_type(float))
    try:
        jax.eval_shape(lambda p, x: run_forward(net, p, x), params, floats)
    except (TypeError, ValueError):
        return False
    return True


def _first_not_finite(net: Layer, params: Params, x: Array, key: Any, mask: Any) -> str:
    if not _finite(x):
        return "the input data"

    found = []

    def visit(place: tuple[int, ...], part: Layer, p: Params, a: Array, **given: Any) -> tuple[Array, Any]:
        a, cache = run_forward(part, p, a, **given)
        if not found and not _finite((p, a)):
            found.append(f"layer {'.'.join(map(str, place or (0,)))} {part!r}")
        return a, cache

    visited(net, params, x, visit, key=key, train=True, mask=mask)
    return found[0] if found else "the cost of the last layer"


def _finite(tree: Any) -> bool:
    return all(
        bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
