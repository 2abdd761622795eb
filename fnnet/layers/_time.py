"""Backpropagation through time: the scan over the steps both ways, the same for every cell.

Legend: m examples (axis 0), T time steps, n units, n_in inputs, g gates; x the input (m, T, n_in), h the states and
outputs (m, T, n), z the weighted inputs (m, T, g·n), δ = ∂(Σ_x C_x)/∂z. Inside, time is the first axis, so that a step
reads one slab of memory.

The input's part x w_xᵀ of z is one matrix product over all steps; a scan adds h_{t−1} w_hᵀ + b and steps. Backwards, a scan
turns ∂C/∂h of every step into δ of every step (`through_time`); BP2's product for the input and BP3 and BP4 are one matrix
product over all steps each.

A mask (m, T) says which steps are valid. At a masked step the state is held, h_t = h_{t−1}: the error passes through, and
δ is 0.

Source: the notes' title "recurrent neural networks"; Werbos (1990).
"""

import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..forms import ROWS, contraction, is_on_one_device, stored, varying
from ._dense import input_error
from ._layer import Arrays, Params, Products
from ._products import SumsOfProducts

__all__ = ["forward_in_time", "state_errors", "through_time"]


@jax.jit
def weighted_inputs(w_x: Array, x: Array) -> Array:
    """The input's part of z for all steps, time first: Σ_k w_jk x_k. Shapes (g·n, n_in), (m, T, n_in) -> (T, m, g·n)."""
    return jnp.einsum("tmk,jk->tmj", stored(jnp.swapaxes(x, 0, 1)), w_x)


@jax.jit
@contraction
def weight_gradient(delta: Array, a: Array) -> Array:
    """BP4 over all steps at once: ∂C/∂w_jk = (1/m) Σ_t Σ_x δ_j a_k. Shapes (T, m, g·n), (T, m, k) -> (g·n, k).

    One product, in the orientation that needs no copy of δ.
    """
    columns = stored(jnp.transpose(a, (2, 0, 1)))
    product = jax.lax.dot_general(columns, delta, (((1, 2), (0, 1)), ((), ())))
    return stored(product).T / delta.shape[1]


@jax.jit
def bias_gradient(delta: Array) -> Array:
    """BP3 over all steps: (1/m) Σ_t Σ_x δ. Shapes (T, m, g·n) -> (g·n,)."""
    return jnp.sum(delta, axis=(0, 1)) / delta.shape[1]


class Kept(NamedTuple):
    """What the backward pass needs: the input (m, T, n_in); time first, the gates (T, m, g·n), what a cell keeps beside them
    and the states before each step, (T, m, n) each; the states after the last; which steps are valid (T, m, 1), or None; and
    before which steps the error is cut (T,), or None."""

    x: Array
    gates: Array
    extra: tuple[Array, ...]
    before: tuple[Array, ...]
    last: tuple[Array, ...]
    valid: Array | None
    cut: Array | None

    @property
    def h_before(self) -> Array:
        """h_{t−1} of every step as it reads it (T, m, n)."""
        return as_read(self.before[:1], None if self.cut is None else self.cut[:, None, None])[0]


class Cell(SumsOfProducts):
    """What the scans ask of a cell: its numbers of gates and states, its step, the step's error, and what BP3 and BP4 sum."""

    n: int
    truncate: int | None
    n_gates: ClassVar[int]
    n_states: ClassVar[int] = 1

    def step(self, params: Params, z: Array, q: Array, states: Arrays) -> tuple[Array, Arrays, Arrays]:
        """(the gates (m, g·n), what else the error needs, the new states) from z = x w_xᵀ and q = h_{t−1} w_hᵀ."""
        raise NotImplementedError(f"{type(self).__name__} defines no step(params, z, q, states)")

    def step_error(
        self, gates: Array, extra: Arrays, before: Arrays, after: Arrays, d_states: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        """(δ, the errors of what else was kept, what reaches the states before beside w_h)."""
        raise NotImplementedError(f"{type(self).__name__} defines no step_error(gates, extra, before, after, d_states)")

    def of_states(self, delta: Array, extra: Arrays) -> Array:
        """The error of q (..., g·n)."""
        return delta

    def extra_errors(self, kept: Kept, delta: Array) -> Arrays:
        """The errors of what was kept beside the gates, from δ (T, m, g·n)."""
        return ()

    def terms(self, x: Array, h_before: Array, delta: Array, extra: Arrays) -> Products:
        """For each leaf the error and what BP4 multiplies it with, None for BP3. Time first, (T, m, ...)."""
        return {"w_x": (delta, x), "w_h": (self.of_states(delta, extra), h_before), "b": (delta, None)}

    def sums(self, x: Array, h_before: Array, delta: Array, extra: Arrays) -> dict[str, Array]:
        """BP3 and BP4 from x (m, T, n_in), and time first, the states before each step and the errors."""
        terms = self.terms(jnp.swapaxes(x, 0, 1), h_before, delta, extra)
        return {name: bias_gradient(d) if a is None else weight_gradient(d, a) for name, (d, a) in terms.items()}


@functools.partial(jax.jit, static_argnums=0)
def forward_in_time(
    cell: Cell,
    params: Params,
    x: Array,
    mask: Any = None,
    probe: Any = None,
    start: Any = None,
    first: Any = 0,
) -> tuple[Array, Kept]:
    """The scan over the steps.

    Args:
        cell: `RNN`, `LSTM` or `GRU`.
        params: its parameters.
        x: (m, T, n_in).
        mask: (m, T), True for the valid steps.
        probe: (m, T, g·n), added to z.
        start: the states before the first step, (m, n) each; zero by default.
        first: the first step's number, which says where `truncate` cuts.

    Returns:
        h of all steps (m, T, n), and `Kept`.
    """
    return _in_place(cell, params, x, mask, probe, start, first)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _in_place(cell: Cell, *arguments: Any) -> tuple[Array, Kept]:
    """`_forward` in one buffer for z and the gates. Autodiff, for which a buffer that is overwritten is slow, is given the
    ordinary scan; both compute the same numbers."""
    return _forward(cell, True, *arguments)


@_in_place.defjvp
def _ordinary(cell: Cell, arguments: Any, tangents: Any) -> Any:
    return jax.jvp(functools.partial(_forward, cell, False), arguments, tangents)


def _forward(
    cell: Cell, in_place: bool, params: Params, x: Array, mask: Any, probe: Any, start: Any, first: Any
) -> tuple[Array, Kept]:
    valid, cut, steps = None, None, jnp.arange(x.shape[1])
    if mask is not None:
        valid = jnp.swapaxes(mask, 0, 1).astype(bool)[..., None]
        x = jnp.where(mask.astype(bool)[..., None], x, 0)
    if cell.truncate is not None:
        number = first + steps
        cut = (number % cell.truncate == 0) & (number > 0)
    z = weighted_inputs(params["w_x"], x)
    z = z if probe is None else z + jnp.swapaxes(probe, 0, 1)
    w = stored(params["w_h"].T)

    def advance(z: Array, states: tuple, valid: Any, cut: Any) -> tuple[Array, tuple, tuple]:
        states = as_read(states, cut)
        gates, extra, new = cell.step(params, z, states[0] @ w, states)
        if valid is not None:
            new = tuple(jnp.where(valid, ours, held) for ours, held in zip(new, states, strict=True))
        return stored((gates, extra, new))

    def in_turn(states: tuple, now: tuple) -> tuple[tuple, tuple]:
        z, valid, cut = now
        gates, extra, new = advance(stored(z), states, valid, cut)
        return new, (gates, extra, states)

    def in_buffer(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        buffer, z, states = carry
        t, valid, cut = now
        gates, extra, new = advance(z, states, valid, cut)
        buffer = _put(buffer, gates, t)
        return (buffer, _at(buffer, jnp.minimum(t + 1, len(buffer) - 1)), new), (extra, states)

    if start is None:
        start = varying((jnp.zeros_like(z[0, :, : cell.n]),) * cell.n_states, (params, z))
    if in_place:
        carry = z, z[0], start
        (gates, _, last), (extra, before) = jax.lax.scan(in_buffer, carry, (steps, valid, cut))
    else:
        last, (gates, extra, before) = jax.lax.scan(in_turn, start, (z, valid, cut))
    h = jnp.concatenate([before[0][1:], last[0][None]])
    return jnp.swapaxes(h, 0, 1), Kept(x, gates, extra, before, last, valid, cut)


def as_read(states: tuple[Array, ...], cut: Array | None) -> tuple[Array, ...]:
    """The states before a step as it reads them: to a derivative constants where the error is cut. Of the backward pass, too,
    whose tangent then is that of one function. (Compiled without derivatives nothing is left of it.)"""
    if cut is None:
        return states
    return tuple(jnp.where(cut, jax.lax.stop_gradient(state), state) for state in states)


def _at(a: Any, t: Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), a)


def _put(a: Any, slab: Any, t: Array) -> Any:
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, t, 0), a, slab)


@functools.partial(jax.jit, static_argnums=0)
def through_time(
    cell: Cell, params: Params, kept: Kept, da: Array, d_last: Any = None
) -> tuple[Array, tuple[Array, ...], tuple[Array, ...]]:
    """Backpropagation through time.

    What reaches h_t is da_t + (the error of q_{t+1}) w_h + what the cell hands on beside w_h; q = h_{t−1} w_hᵀ has the error
    δ, but for a GRU's n part. δ takes the gates' place: one buffer serves both, and a step's gates are read from it after the
    step above was written, which leaves the compiler no reason to copy it.

    Args:
        cell: `RNN`, `LSTM` or `GRU`.
        params: its parameters.
        kept: from `forward_in_time`.
        da: ∂C/∂h of every step by itself (m, T, n).
        d_last: ∂C/∂(the states after the last step), (m, n) each; zero by default.

    Returns:
        δ of every step (T, m, g·n), the errors of what the cell kept beside the gates, and ∂C/∂(the states before the first).
    """
    (delta, extra), _, d_start = _through_time(cell, params, kept, da, d_last, False)
    return delta, extra, d_start


@functools.partial(jax.jit, static_argnums=0)
def state_errors(cell: Cell, params: Params, kept: Kept, da: Array) -> Array:
    """∂C/∂h_t of every step through all that comes after it (m, T, n). Arguments as `through_time`."""
    return jnp.swapaxes(_through_time(cell, params, kept, da, None, True)[1], 0, 1)


def _through_time(cell: Cell, params: Params, kept: Kept, da: Array, d_last: Any, states: bool) -> tuple:
    def step(carry: tuple, t: Array) -> tuple[tuple, Any]:
        buffers, (gates, extra), after, d_states = carry
        before = _at(kept.before, t)
        da_t = jax.lax.dynamic_index_in_dim(da, t, 1, keepdims=False)
        before, da_t = stored((before, da_t))
        d_states = (d_states[0] + da_t, *d_states[1:])
        cut = None if kept.cut is None else _at(kept.cut, t)
        delta, extra, back = cell.step_error(gates, extra, as_read(before, cut), after, d_states)
        if kept.valid is not None:
            valid = _at(kept.valid, t)
            delta, extra = jax.tree.map(lambda d: jnp.where(valid, d, 0), (delta, extra))
            back = tuple(jnp.where(valid, ours, held) for ours, held in zip(back, d_states, strict=True))
        delta, extra, back = stored((delta, extra, back))
        back = (back[0] + cell.of_states(delta, extra) @ params["w_h"], *back[1:])
        if cut is not None:
            back = tuple(jnp.where(cut, 0, d) for d in back)
        buffers = _put(buffers, (delta, extra), t)
        return (buffers, _at(buffers, jnp.maximum(t - 1, 0)), before, back), d_states[0] if states else None

    if d_last is None:
        d_last = tuple(jnp.zeros_like(state) for state in kept.last)
    buffers, steps = (kept.gates, kept.extra), jnp.arange(da.shape[1])
    carry = buffers, _at(buffers, steps[-1]), kept.last, d_last
    carry, dh = jax.lax.scan(step, carry, steps, reverse=True)
    return carry[0], dh, carry[3]


@functools.partial(jax.jit, static_argnums=0)
def backward_products(
    cell: Cell, params: Params, kept: Kept, delta: Array, extra: tuple[Array, ...]
) -> tuple[Array, Params]:
    """BP2's product for the input, and BP3 and BP4 over all steps: at once, so that devices that share the batch add up their
    parts once; on a CPU that has all of it a block of steps at a time, which takes less memory.

    Args:
        cell: and ``params``, ``kept``: as `through_time`.
        delta: and ``extra``: what it returned.

    Returns:
        ∂C/∂x (m, T, n_in) and the gradients.
    """

    def at_once() -> tuple[Array, Params]:
        da_in = jnp.swapaxes(stored(input_error(params["w_x"], delta)), 0, 1)
        return da_in, cell.sums(kept.x, kept.h_before, delta, extra)

    def by_blocks() -> tuple[Array, Params]:
        steps, m, _ = delta.shape
        blocks = max(1, -(-steps * m // ROWS))
        size = -(-steps // blocks)
        blocks = -(-steps // size)

        def block(i: Any, carry: tuple) -> tuple:
            da_in, total = carry
            first = jnp.minimum(i * size, steps - size)
            part = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), (kept.h_before, delta, extra))
            x = jax.lax.dynamic_slice_in_dim(kept.x, first, size, 1)
            h, delta_part, extra_part = part
            own = jnp.swapaxes(stored(input_error(params["w_x"], delta_part)), 0, 1)
            da_in = jax.lax.dynamic_update_slice_in_dim(da_in, own, first, 1)
            if steps % size:
                new = (first + jnp.arange(size) >= i * size)[:, None, None]
                delta_part, extra_part = jax.tree.map(lambda d: jnp.where(new, d, 0), (delta_part, extra_part))
            return da_in, jax.tree.map(jnp.add, total, cell.sums(x, h, delta_part, extra_part))

        start = varying((jnp.zeros_like(kept.x), jax.tree.map(jnp.zeros_like, params)), (params, kept, delta))
        return jax.lax.fori_loop(0, blocks, block, start)

    if not is_on_one_device(kept.x):
        return at_once()
    return jax.lax.platform_dependent(cpu=by_blocks, default=at_once)
