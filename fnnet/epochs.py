"""One epoch of training as a compiled scan over its mini-batches, and the monitors of a data set.

Source: the notes, section 3 (the algorithm).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from .backpropagation import counted, value_and_grad
from .batches import ONE, Layout, all_of_step, numbered, of_device, order, part_of_device, total
from .chunks import chunk_size, mean_over_chunks
from .costs import Cost, accuracy
from .curvature import gauss_newton_vector
from .devices import WHOLE, mean
from .forms import varying
from .given import Examples
from .layers._composite import has_moving
from .layers._layer import ExampleKeys, Layer, Params, run_forward
from .optimizers import Optimizer, apply_updates, extra_arguments, updated
from .penalties import Penalty
from .programs import for_each_structure

__all__ = ["batch_step", "epoch", "mini_batch", "monitor"]


def epoch(
    net: Layer,
    cost: Cost,
    optimizer: Optimizer,
    penalty: Penalty | None,
    params: Params,
    opt_state: Any,
    data: Examples,
    key: Array,
    *,
    batch_size: int,
    gradient: Callable[..., tuple[Array, Params]] | None,
    micro_batch: int | Literal["auto"] | None,
    window: int | None,
    steps: int | None = None,
    layout: Layout = ONE,
) -> tuple[Params, Any, Array, Array]:
    """(params, optimiser state, cost of each mini-batch, whether costs and parameters are finite) after one shuffled pass, or
    after its first ``steps`` steps."""
    about = net, cost, batch_size, gradient, micro_batch, window, steps, layout
    whole = optimizer, penalty, params, opt_state, key
    return on_devices(functools.partial(_epoch, *about), layout, data, *whole)


def _epoch(
    net,
    cost,
    batch_size,
    gradient,
    micro_batch,
    window,
    steps,
    layout,
    data,
    optimizer,
    penalty,
    params,
    opt_state,
    key,
):
    n, over = total(layout, data), layout.over
    shuffle_key, step_key = jax.random.split(key)
    rows = order(layout, shuffle_key, n)
    take = stepping(net, cost, optimizer, penalty, gradient, micro_batch, window, n, over)

    def step(carry: tuple[Params, Any], batch: tuple[Array, Array]) -> tuple[tuple[Params, Any], Array]:
        rows, i = batch
        return take(carry, *of_device(layout, data, rows), jax.random.fold_in(step_key, i))

    size = batch_size // over.n if layout.block else batch_size
    full, rest = divmod(len(rows), size)
    steps = full + (rest > 0) if steps is None else steps
    full = min(full, steps)
    batches = rows[: full * size].reshape(full, size), jnp.arange(full)
    carry, costs = jax.lax.scan(step, (params, opt_state), batches)
    if steps > full:
        carry, last = step(carry, (rows[full * size :], jnp.asarray(full)))
        costs = jnp.append(costs, last)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((carry[0], costs))]
    return *carry, costs, jnp.all(jnp.stack(finite))


@for_each_structure
def batch_step(
    net, cost, optimizer, penalty, params, opt_state, costs, batch, key, number, *, count, n_examples, gradient, micro_batch,
    window, layout,
) -> tuple[Params, Any, Array]:  # fmt: skip
    """(params, optimiser state, the sum of the costs) after the step of this number on a given mini-batch of ``count``
    examples, with the key of its epoch."""

    def run(
        batch: Any,
        optimizer: Any,
        penalty: Any,
        params: Params,
        opt_state: Any,
        costs: Array,
        key: Array,
        number: Array,
    ) -> Any:
        take = stepping(net, cost, optimizer, penalty, gradient, micro_batch, window, n_examples, layout.over)
        step_key = jax.random.fold_in(jax.random.split(key)[1], number)
        carry, value = take((params, opt_state), batch, *numbered(layout, batch, count), step_key)
        return *carry, costs + value.astype(costs.dtype)

    return on_devices(run, layout, batch, optimizer, penalty, params, opt_state, costs, key, number)


def stepping(
    net: Layer, cost: Cost, optimizer: Optimizer, penalty: Any,
    gradient: Callable[..., tuple[Array, Params]] | None, micro_batch: int | Literal["auto"] | None, window: int | None,
    n: int, over: Any,
) -> Callable:  # fmt: skip
    """The function (carry, examples, index, factor, key) -> (carry, cost) of a step, the carry being (params, optimiser
    state) and the rest what `of_device` gives for a mini-batch, with its key.

    Args:
        net: and the others: as in `fnnet.fit`.
        n: N of the penalty.
        over: how mini-batches are divided.
    """
    moves, own = has_moving(net), gradient
    gradient = gradient or value_and_grad(net.in_loop(), cost, micro_batch=micro_batch, carry=window is not None)

    def improved(
        params: Params, opt_state: Any, run: Callable, seen: Callable, curved: Callable
    ) -> tuple[Params, Any, Any]:
        """(params, optimiser state, value) after a step, with run(params) -> value, gradients of the mini-batch; value is a
        cost, or (cost, state). ``seen(params)`` is the forward pass of that batch, which the compiler shares with run's, and
        ``curved(params, v)`` the product with its Gauss-Newton matrix."""

        def penalised(params: Params, value: Any, grads: Params) -> tuple[Array, Params]:
            value = jnp.asarray(value if window is None else value[0])
            if penalty is None:
                return value, grads
            added = penalty.gradient(params, n)
            grads = jax.tree.map(lambda g, p: g + p.astype(g.dtype), grads, added)
            return value + penalty.value(params, n).astype(value.dtype), grads

        value, grads = run(params)
        objective, grads = penalised(params, value, grads)

        def ggnvp(v: Params) -> Params:
            product = curved(params, v)
            if penalty is None:
                return product
            added = jax.jvp(lambda params: penalty.gradient(params, n), (params,), (v,))[1]
            return jax.tree.map(lambda g, p: g + p.astype(g.dtype), product, added)

        asked = extra_arguments(objective, grads, lambda params: penalised(params, *run(params))) | {"ggnvp": ggnvp}
        updates, opt_state = updated("fit", optimizer, grads, opt_state, params, **asked)
        new_params = apply_updates(params, updates)
        if moves:
            new_params = net.moving(new_params, seen(params)[1])
        return new_params, opt_state, value

    def averaged(params: Params, x: Array, y: Array, factor: float, weights: Any, **given: Any) -> tuple[Any, Params]:
        """Value and gradients of the mini-batch from those of each device's part."""
        of_part = functools.partial(gradient, varying(params, x), x, y, **given)
        if own is not None and factor != 1:
            _check_weighing(lambda weights: of_part(weights=weights), weights, over.n)
        value, grads = of_part(weights=weights)
        value, *state = value if window is not None else (value,)
        value, grads = mean((value, grads), over, factor)
        return (value, *state) if state else value, grads

    def forward(x: Array, key: Any, given: dict[str, Any], state: Any = None) -> Callable:
        about = {"key": key, "train": True, "mask": given.get("mask"), "state": state}
        return lambda params: run_forward(net, params, counted(x, given["weights"]), **about)

    def curved(x: Array, y: Array, key: Any, given: dict[str, Any], factor: float, state: Any = None) -> Callable:
        about = key, given.get("mask"), given["weights"], state

        def product(params: Params, v: Params) -> Params:
            params, v = varying((params, v), x)
            return mean(gauss_newton_vector(net, cost, params, x, y, v, *about), over, factor)

        return product

    def through_windows(
        carry: Any, x: Array, y: Array, given: dict[str, Any], key: Any, factor: float, window: int
    ) -> Any:
        """A mini-batch of sequences, window by window; its cost is the sum over the windows."""

        def part(a: Array, start: Any, size: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(a, start, size, 1) if a.ndim > 1 else a

        def one(carry: tuple, start: Any, size: int = window) -> tuple[tuple, Array]:
            params, opt_state, state = carry
            x_part, y_part, more = jax.tree.map(lambda a: part(a, start, size), (x, y, given))
            own_key = _folded(key, start)

            def run(params: Params) -> tuple[Any, Params]:
                return averaged(params, x_part, y_part, factor, key=own_key, state=state, **more)

            seen, product = forward(x_part, own_key, more, state), curved(x_part, y_part, own_key, more, factor, state)
            params, opt_state, (value, state) = improved(params, opt_state, run, seen, product)
            return (params, opt_state, state), value

        zero_state = varying(jax.tree.map(jnp.zeros_like, state_after(net, carry[0], part(x, 0, window))), x)
        full, rest = divmod(x.shape[1], window)
        (*carry, state), values = jax.lax.scan(one, (*carry, zero_state), window * jnp.arange(full))
        value = jnp.sum(values)
        if rest:
            (*carry, state), last = one((*carry, state), full * window, rest)
            value = value + last
        return tuple(carry), value

    def take(carry: tuple[Params, Any], examples: Any, index: Any, factor: float, key: Array) -> tuple[Any, Array]:
        x, y, extras = examples
        given = {"weights": None, **extras}
        of_examples = key if index is None else ExampleKeys(key, index)
        if window is not None:
            return through_windows(carry, x, y, given, of_examples, factor, min(window, x.shape[1]))

        def run(params: Params) -> tuple[Any, Params]:
            return averaged(params, x, y, factor, key=of_examples, **given)

        seen, product = forward(x, of_examples, given), curved(x, y, of_examples, given, factor)
        params, opt_state, value = improved(*carry, run, seen, product)
        return (params, opt_state), value

    return take


def _check_weighing(gradient: Callable, weights: Array, n: int) -> None:
    """Raise a ValueError where examples of weight 0 would count: for a gradient function that does not read the weights."""
    jaxpr = jax.make_jaxpr(gradient)(weights).jaxpr
    if not _reads(jaxpr, jaxpr.invars[0]):
        raise ValueError(
            f"fit: expected a gradient= that multiplies each example's cost by weights=, got one that does not read them; a "
            f"mini-batch that the {n} devices do not divide is filled up with examples of weight 0: weigh the costs, or "
            f"choose a batch_size with which they divide each mini-batch"
        )


def _reads(jaxpr: Any, argument: Any) -> bool:
    """Whether an argument takes part in a computation, jitted functions within looked into."""
    for equation in jaxpr.eqns:
        for i, read in enumerate(equation.invars):
            inner = equation.params["jaxpr"].jaxpr if equation.primitive.name in ("jit", "pjit") else None
            if read is argument and (inner is None or _reads(inner, inner.invars[i])):
                return True
    return False


def _folded(key: Any, number: Any) -> Any:
    if isinstance(key, ExampleKeys):
        return ExampleKeys(jax.random.fold_in(key.key, number), key.index)
    return jax.random.fold_in(key, number)


def state_after(net: Layer, params: Params, x: Any) -> Any:
    """The shapes of the state after x, as zeros can be made from them."""
    return jax.eval_shape(lambda p, x: net.final_state(run_forward(net, p, x)[1]), params, x)


@for_each_structure
def mini_batch(data, key, *, batch_size, step, layout) -> Any:
    """The examples of a step of an epoch, on every device."""

    def run(data: Any, key: Array) -> Any:
        rows = order(layout, jax.random.split(key)[0], total(layout, data))
        size = batch_size // layout.over.n if layout.block else batch_size
        return all_of_step(layout, data, rows[step * size : (step + 1) * size])

    # The check does not see that what is gathered is the same on every device.
    return on_devices(run, layout, data, key, check=False)


def on_devices(f: Callable, layout: Layout, data: Any, *whole: Any, check: bool = True) -> Any:
    """f(data, *whole), on each device of the layout with what it has of the data."""
    if layout.over is None:
        return f(data, *whole)
    specs = layout.over.rows if layout.cut else WHOLE, *(WHOLE for _ in whole)
    about = {"mesh": layout.over.mesh, "in_specs": specs, "out_specs": WHOLE, "check_vma": check}
    return jax.shard_map(f, **about)(data, *whole)


@for_each_structure
def monitor(net, cost, penalty, params, data, n_examples, *, classes, layout=ONE) -> tuple[Array, Array]:
    """(objective, accuracy) of a data set in inference mode, a chunk at a time."""

    def chunk(params, x, y, extras, key):
        a, cache = run_forward(net, params, x, mask=extras.get("mask"))
        weights = extras.get("weights")
        value = cost(a, y, weights=weights, output=net.output(params, cache))
        if not classes:
            return value, jnp.full((), jnp.nan), jnp.ones(())
        share = jnp.ones(()) if weights is None else jnp.mean(weights.astype(jnp.result_type(float)))
        hits = jnp.where(share > 0, accuracy(a, y, weights) * share, 0)
        return value, hits, share

    def means(data: Any, params: Params) -> tuple[Array, Array, Array]:
        part, factor = part_of_device(layout, data)
        params = varying(params, part)
        size = chunk_size(net, params, part.x, jax.random.key(0), part.extras.get("mask"), "auto", most=8192)
        found = mean_over_chunks(functools.partial(chunk, params), tuple(part), None, size)
        return mean(found, layout.over, factor)

    value, hits, share = on_devices(means, layout, data, params)
    if penalty is not None:
        value = value + penalty.value(params, n_examples).astype(value.dtype)
    return value, hits / share
