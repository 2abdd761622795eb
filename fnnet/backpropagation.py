"""Backpropagation of a network in two passes, errors and then gradients, and the plain objective for autodiff.

Source: the notes, section 3.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .chunks import check_micro_batch, chunk_size, mean_over_chunks
from .costs import Cost
from .devices import batch_size, divided, where_divided
from .given import called_as, check_cost, check_feedback, check_net, run_checked, whole
from .head import check_head, from_cost, through_positions
from .layers._layer import Cache, Delta, Layer, Params, run_forward
from .penalties import Penalty, check_penalty
from .programs import placed, program

__all__ = ["Backprop", "backprop", "objective", "value_and_grad"]


class Backprop(NamedTuple):
    """What `backprop` returns.

    Attributes:
        cost: C, penalty included.
        errors: δ of each layer for each example, ∂(Σ_x C_x)/∂z: not divided by m, no penalty in them.
        gradients: ∂C/∂params, means over the batch, penalty included; a pytree like the parameters.
    """

    cost: Array
    errors: tuple[Delta, ...]
    gradients: Params


@called_as("backprop(net, cost, params, x, y)")
def backprop(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
    penalty: Penalty | None = None,
    n_examples: Any = None,
    feedback: Params | None = None,
    state: Any = None,
) -> Backprop:
    """Hand-written backpropagation, in training mode: the errors from last layer to first, then the gradients.

    BP1 δ^L = ∇_a C ⊙ σ'(z^L); BP2 δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l); BP3 ∂C/∂b = (1/m) Σ_x δ; BP4 ∂C/∂w = (1/m) δᵀ a_in.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: from ``net.init``.
        x: inputs (m, ...).
        y: targets shaped like the outputs, or integer labels.
        key: for layers that draw random numbers; a net with dropout needs one.
        mask: (m, T), True for the valid steps of sequences.
        weights: (m,) or (m, T), factors of the terms of C_x.
        penalty: added to cost and gradients.
        n_examples: N of the penalty, the size of the training set; by default the batch size.
        feedback: parameters used in place of ``params`` in BP2's products only (feedback alignment).
        state: the state before the first step of recurrent layers, from ``apply_from`` or ``final_state``; zero by default.

    Raises:
        ValueError: for bad input, naming the layer, what was expected, what came and the remedy.
    """
    check_net(net)
    check_cost(cost)
    check_penalty(penalty)
    check_feedback(params, feedback)
    more = *jax.tree.map(placed, (penalty, n_examples)), feedback
    run = _run_where_the_batch_lies(_backprop, net, cost)
    return run_checked(run, net, cost, params, x, y, key, mask, weights, state, *more)


def _backprop(net, cost, params, x, y, key, mask, weights, state, penalty, n_examples, feedback, *, over) -> Backprop:
    def of_part(both, x, y, mask, weights, state, key):
        params, back = both
        x = counted(x, weights)
        a, cache = run_forward(net, params, x, key=key, train=True, mask=mask, state=state)
        errors = errors_of(net, cost, params, a, cache, y, weights, back)
        value = cost(a, y, weights=weights, output=net.output(params, cache))
        return (value, net.gradients(params, cache, errors)), errors

    both = params, params if feedback is None else feedback
    (value, gradients), errors = divided(of_part, over, both, (x, y, mask, weights, state), key, first=False)
    value, gradients = completed(value, gradients, params, x, penalty, n_examples)
    return Backprop(value, errors, gradients)


def errors_of(
    net: Layer, cost: Cost, params: Params, a: Array, cache: Cache, y: Any, weights: Any, back: Params
) -> Delta:
    """Every layer's δ from what the forward pass gave; BP2's products use ``back``."""
    delta = cost.delta(net.output(params, cache), y, weights=weights)
    if delta is not None:
        return net.output_error(back, cache, delta)
    return net.error(back, cache, cost.output_gradient(a, y, weights=weights))


@called_as("value_and_grad(net, cost)(params, x, y)")
def value_and_grad(
    net: Layer,
    cost: Cost,
    *,
    penalty: Penalty | None = None,
    n_examples: Any = None,
    micro_batch: int | Literal["auto"] | None = "auto",
    positions: int | None = None,
    carry: bool = False,
) -> Callable[..., tuple[Any, Params]]:
    """The function (params, x, y, *, key, mask, weights, state) -> (C, ∂C/∂params), by hand: a drop-in for
    ``jax.value_and_grad(fn.objective(net, cost))`` that runs each layer's ``backward``.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        penalty: added to both.
        n_examples: N of the penalty; by default the batch size, that of all parts of a batch divided by ``shard_map``.
        micro_batch: examples that are run at a time, which bounds the memory of a large batch. The result is that of the
            whole batch, dropout masks included. "auto" chooses where it pays; None runs the whole batch at once.
        positions: steps of the sequences that the last layer and the cost are run on at a time, for a large vocabulary: then
            no more than these steps' logits and their errors are ever held. The same result. For a network, tied or not, that
            ends in a `Dense` layer; None (the default) runs all steps at once.
        carry: also return the state after the last step, ((C, state), ∂C/∂params), to be given as ``state=`` with the steps
            that follow. No error goes back into a given state: truncated backpropagation through time. The batch runs whole.

    Layers that are not ``independent`` run whole whatever it says.

    Raises:
        ValueError: as `backprop` does; also for a ``micro_batch`` that is not positive.
    """
    check_net(net)
    check_cost(cost)
    check_micro_batch(micro_batch)
    if positions is not None:
        positions = whole("value_and_grad", "positions", positions)
        check_head(net)
    check_penalty(penalty)
    about_penalty = jax.tree.map(placed, (penalty, n_examples))
    options = {"micro_batch": micro_batch, "positions": positions, "carry": carry}
    run = _run_where_the_batch_lies(_value_and_grad, net, cost, **options)

    @called_as("value_and_grad(net, cost)(params, x, y, key=key)")
    def manual_value_and_grad(params, x, y, *, key=None, mask=None, weights=None, state=None):
        return run_checked(run, net, cost, params, x, y, key, mask, weights, state, *about_penalty)

    return manual_value_and_grad


def _value_and_grad(
    net, cost, params, x, y, key, mask, weights, state, penalty, n_examples, *, micro_batch, positions, carry, over
):
    def of_part(params, x, y, mask, weights, state, key):
        size = x.shape[0] if carry else chunk_size(net, params, x, key, mask, micro_batch)
        of_chunk = functools.partial(chunk, params)
        value, gradients = mean_over_chunks(of_chunk, (x, y, mask, weights, state), key, size)
        value, last = value if carry else (value, None)
        return (value, gradients), last

    def chunk(params, x, y, mask, weights, state, key):
        x = counted(x, weights)
        if positions is not None:
            given = {"key": key, "mask": mask, "state": state}
            value, last, gradients = through_positions(net, cost, params, x, y, weights, positions, carry, given)
            return (value, last) if carry else value, gradients
        a, cache = run_forward(net, params, x, key=key, train=True, mask=mask, state=state)
        value, _, gradients = from_cost(net, cost, params, a, cache, y, weights)
        return (value, net.final_state(cache)) if carry else value, gradients

    (value, gradients), last = divided(of_part, over, params, (x, y, mask, weights, state), key)
    value, gradients = completed(value, gradients, params, x, penalty, n_examples)
    return ((value, last) if carry else value), gradients


@called_as("objective(net, cost)(params, x, y)")
def objective(
    net: Layer, cost: Cost, *, penalty: Penalty | None = None, n_examples: Any = None, carry: bool = False
) -> Callable[..., Any]:
    """The function (params, x, y, *, key, mask, weights, state) -> C in training mode: a plain forward pass for ``jax.grad``.

    No hand-written rule takes part in its derivative. Arguments and errors are those of `value_and_grad`; with ``carry`` it
    returns (C, state), for ``jax.value_and_grad(..., has_aux=True)``.
    """
    check_net(net)
    check_cost(cost)
    check_penalty(penalty)
    about_penalty = jax.tree.map(placed, (penalty, n_examples))
    run = _run_where_the_batch_lies(_objective, net, cost, carry=carry)

    @called_as("objective(net, cost)(params, x, y, key=key)")
    def cost_of_params(params, x, y, *, key=None, mask=None, weights=None, state=None):
        return run_checked(run, net, cost, params, x, y, key, mask, weights, state, *about_penalty)

    return cost_of_params


def _objective(net, cost, params, x, y, key, mask, weights, state, penalty, n_examples, *, carry, over):
    def of_part(params, x, y, mask, weights, state, key):
        x = counted(x, weights)
        a, cache = run_forward(net, params, x, key=key, train=True, mask=mask, state=state)
        return cost(a, y, weights=weights, output=net.output(params, cache)), net.final_state(cache) if carry else None

    value, last = divided(of_part, over, params, (x, y, mask, weights, state), key)
    if penalty is not None:
        value = value + penalty.value(params, batch_size(x) if n_examples is None else n_examples).astype(value.dtype)
    return (value, last) if carry else value


def _run_where_the_batch_lies(function: Callable, net: Layer, cost: Cost, **options: Any) -> Callable:
    """``function`` compiled, of a batch on one device or of one that is divided; it holds the former."""
    on_one = program(function, net, cost, **options, over=None)

    def run(params: Params, x: Array, *arguments: Any) -> Any:
        over = where_divided(net, params, x)
        of = on_one if over is None else program(function, net, cost, **options, over=over)
        return of(params, x, *arguments)

    return run


def counted(x: Array, weights: Any) -> Array:
    """x with 0 for what is not finite in an example whose weights are all 0. Its δ is 0, and BP4's 0 · NaN would be NaN."""
    if weights is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    counts = jnp.any(weights.astype(bool), axis=tuple(range(1, weights.ndim)))
    return jnp.where(counts.reshape(-1, *(1,) * (x.ndim - 1)) | jnp.isfinite(x), x, 0)


def completed(
    value: Array, gradients: Params, params: Params, x: Any, penalty: Penalty | None, n_examples: Any
) -> tuple[Array, Params]:
    """Value and gradients with the penalty, the gradients in the structure and the dtypes of the parameters."""
    leaves, treedef = jax.tree.flatten(params)
    if treedef.num_leaves == len(jax.tree.leaves(gradients)):
        gradients = treedef.unflatten(
            g.astype(p.dtype) for g, p in zip(jax.tree.leaves(gradients), leaves, strict=True)
        )
        for (path, p), g in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(gradients), strict=True):
            if jnp.shape(g) != jnp.shape(p):
                raise ValueError(
                    f"gradients: expected {jax.tree_util.keystr(path)} of shape {jnp.shape(p)}, as the parameter, got "
                    f"{jnp.shape(g)}; fn.compare_gradients with the same arguments names the equation"
                )
    if penalty is None:
        return value, gradients
    n = batch_size(x) if n_examples is None else n_examples
    gradients = jax.tree.map(jnp.add, gradients, penalty.gradient(params, n))
    return value + penalty.value(params, n).astype(value.dtype), gradients
