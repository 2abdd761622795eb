"""Recurrent layers, and backpropagation through time by hand: the simple (Elman) network, LSTM and GRU.

Legend: m examples (axis 0), T time steps, n units, n_in inputs, g gates; x the input (m, T, n_in), h the states and
outputs (m, T, n), z the weighted inputs (m, T, g·n), δ = ∂(Σ_x C_x)/∂z. Inside, time is the first axis, so that a step
reads one slab of memory.

All three run alike. The input's part x w_xᵀ of z is one matrix product over all steps; a scan adds h_{t−1} w_hᵀ + b and
steps. Backwards, a scan turns ∂C/∂h of every step into δ of every step (`through_time`); BP2's product for the input and
BP3 and BP4 are one matrix product over all steps each.

A mask (m, T) says which steps are valid. At a masked step the state is held, h_t = h_{t−1}: the error passes through, and
δ is 0.

Source: the notes' title "recurrent neural networks"; Elman (1990); Hochreiter and Schmidhuber (1997) with the forget gate
of Gers et al. (2000); Cho et al. (2014) with the reset gate after the product.
"""

import functools
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import Activation, at_least_float32, tanh
from ..initializers import Initializer, scaled_normal, zeros
from ._dense import input_error
from ._layer import (
    Layer,
    LayerError,
    Params,
    Shape,
    as_floats,
    check_activation,
    check_leaf,
    check_real,
    drawing_key,
    layer,
    whole_number,
)

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "LastStep",
    "forward_in_time",
    "gru_step",
    "gru_step_error",
    "length_mask",
    "lstm_step",
    "lstm_step_error",
    "state_errors",
    "through_time",
]

barrier = jax.lax.optimization_barrier


@jax.jit
def lstm_step(z: Array, c_before: Array) -> tuple[Array, Array, Array]:
    """A step of the LSTM from its weighted inputs z = x w_xᵀ + h_{t−1} w_hᵀ + b, gates stacked as (i, f, g, o):

    i, f, o = s(z_i), s(z_f), s(z_o) with s the logistic function, g = tanh(z_g); c = f ⊙ c_{t−1} + i ⊙ g, h = o ⊙ tanh(c).

    Args:
        z: (m, 4n).
        c_before: c_{t−1} (m, n).

    Returns:
        The gates (m, 4n), h and c (m, n).
    """
    i, f, g, o = jnp.split(z, 4, axis=-1)
    i, f, g, o = jax.lax.logistic(i), jax.lax.logistic(f), jnp.tanh(g), jax.lax.logistic(o)
    c = f * c_before + i * g
    return jnp.concatenate([i, f, g, o], axis=-1), o * jnp.tanh(c), c


@jax.jit
def lstm_step_error(gates: Array, c_before: Array, c: Array, dh: Array, dc: Array) -> tuple[Array, Array]:
    """BPTT through a step of the LSTM, from ∂C/∂h and what later steps say of ∂C/∂c.

    With u = tanh(c): ∂C/∂c = dc + dh ⊙ o ⊙ (1 − u²), and
    δ_i = ∂C/∂c ⊙ g ⊙ i(1 − i), δ_f = ∂C/∂c ⊙ c_{t−1} ⊙ f(1 − f), δ_g = ∂C/∂c ⊙ i ⊙ (1 − g²), δ_o = dh ⊙ u ⊙ o(1 − o).

    Args:
        gates: (m, 4n), as of `lstm_step`.
        c_before: and ``c``, ``dh``, ``dc``: (m, n).

    Returns:
        δ (m, 4n), and ∂C/∂c_{t−1} = ∂C/∂c ⊙ f (m, n).
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    u = jnp.tanh(c)
    dc = dc + dh * o * (1 - u * u)
    delta = [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * u * o * (1 - o)]
    return jnp.concatenate(delta, axis=-1), dc * f


@jax.jit
def gru_step(z: Array, q: Array, h_before: Array) -> tuple[Array, Array]:
    """A step of the GRU, gates stacked as (r, z, n), the reset gate applied after the product:

    r, u = s(z_r + q_r), s(z_z + q_z), n = tanh(z_n + r ⊙ q_n), h = (1 − u) ⊙ n + u ⊙ h_{t−1}.

    Args:
        z: x w_xᵀ + b (m, 3n).
        q: h_{t−1} w_hᵀ, with b_h added to its n part (m, 3n).
        h_before: h_{t−1} (m, n).

    Returns:
        The gates r, u, n (m, 3n), and h (m, n).
    """
    (z_r, z_u, z_n), (q_r, q_u, q_n) = (jnp.split(part, 3, axis=-1) for part in (z, q))
    r, u = jax.lax.logistic(z_r + q_r), jax.lax.logistic(z_u + q_u)
    n = jnp.tanh(z_n + r * q_n)
    return jnp.concatenate([r, u, n], axis=-1), (1 - u) * n + u * h_before


@jax.jit
def gru_step_error(gates: Array, q_n: Array, h_before: Array, dh: Array) -> tuple[Array, Array, Array]:
    """BPTT through a step of the GRU, from ∂C/∂h.

    δ_n = dh ⊙ (1 − u) ⊙ (1 − n²), δ_z = dh ⊙ (h_{t−1} − n) ⊙ u(1 − u), δ_r = δ_n ⊙ q_n ⊙ r(1 − r); the error of q_n is
    δ_n ⊙ r.

    Args:
        gates: (m, 3n), as of `gru_step`.
        q_n: and ``h_before``, ``dh``: (m, n).

    Returns:
        δ (m, 3n), the error of q_n (m, n), and the part dh ⊙ u of ∂C/∂h_{t−1} (m, n); the other part is
        (δ_r, δ_z, δ_n ⊙ r) w_h.
    """
    r, u, n = jnp.split(gates, 3, axis=-1)
    delta_n = dh * (1 - u) * (1 - n * n)
    delta_z = dh * (h_before - n) * u * (1 - u)
    delta_r = delta_n * q_n * r * (1 - r)
    return jnp.concatenate([delta_r, delta_z, delta_n], axis=-1), delta_n * r, dh * u


@jax.jit
def weighted_inputs(w_x: Array, x: Array) -> Array:
    """The input's part of z for all steps, time first: Σ_k w_jk x_k. Shapes (g·n, n_in), (m, T, n_in) -> (T, m, g·n)."""
    return jnp.einsum("tmk,jk->tmj", barrier(jnp.swapaxes(x, 0, 1)), w_x)


@jax.jit
def weight_gradient(delta: Array, a: Array) -> Array:
    """BP4 over all steps at once: ∂C/∂w_jk = (1/m) Σ_t Σ_x δ_j a_k. Shapes (T, m, g·n), (T, m, k) -> (g·n, k).

    One product, in the orientation that needs no copy of δ.
    """
    columns = barrier(jnp.transpose(a, (2, 0, 1)))
    product = jax.lax.dot_general(columns, delta, (((1, 2), (0, 1)), ((), ())))
    return barrier(product).T / delta.shape[1]


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


@functools.partial(jax.jit, static_argnums=0)
def forward_in_time(
    cell: "Recurrent",
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
def _in_place(cell: "Recurrent", *arguments: Any) -> tuple[Array, Kept]:
    """`_forward` in one buffer for z and the gates. Autodiff, for which a buffer that is overwritten is slow, is given the
    ordinary scan; both compute the same numbers."""
    return _forward(cell, True, *arguments)


@_in_place.defjvp
def _ordinary(cell: "Recurrent", arguments: Any, tangents: Any) -> Any:
    return jax.jvp(functools.partial(_forward, cell, False), arguments, tangents)


def _forward(
    cell: "Recurrent", in_place: bool, params: Params, x: Array, mask: Any, probe: Any, start: Any, first: Any
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
    w = barrier(params["w_h"].T)

    def advance(z: Array, states: tuple, valid: Any, cut: Any) -> tuple[Array, tuple, tuple]:
        if cut is not None:
            states = tuple(jnp.where(cut, jax.lax.stop_gradient(state), state) for state in states)
        gates, extra, new = cell.step(params, z, states[0] @ w, states)
        if valid is not None:
            new = tuple(jnp.where(valid, ours, held) for ours, held in zip(new, states, strict=True))
        return barrier((gates, extra, new))

    def in_turn(states: tuple, now: tuple) -> tuple[tuple, tuple]:
        z, valid, cut = now
        gates, extra, new = advance(barrier(z), states, valid, cut)
        return new, (gates, extra, states)

    def in_buffer(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        buffer, z, states = carry
        t, valid, cut = now
        gates, extra, new = advance(z, states, valid, cut)
        buffer = _put(buffer, gates, t)
        return (buffer, _at(buffer, jnp.minimum(t + 1, len(buffer) - 1)), new), (extra, states)

    if start is None:
        start = (jnp.zeros_like(z[0, :, : cell.n]),) * cell.n_states
    if in_place:
        carry = z, z[0], start
        (gates, _, last), (extra, before) = jax.lax.scan(in_buffer, carry, (steps, valid, cut))
    else:
        last, (gates, extra, before) = jax.lax.scan(in_turn, start, (z, valid, cut))
    h = jnp.concatenate([before[0][1:], last[0][None]])
    return jnp.swapaxes(h, 0, 1), Kept(x, gates, extra, before, last, valid, cut)


def _at(a: Any, t: Array) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, t, keepdims=False), a)


def _put(a: Any, slab: Any, t: Array) -> Any:
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, t, 0), a, slab)


@functools.partial(jax.jit, static_argnums=0)
def through_time(
    cell: "Recurrent", params: Params, kept: Kept, da: Array, d_last: Any = None
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
def state_errors(cell: "Recurrent", params: Params, kept: Kept, da: Array) -> Array:
    """∂C/∂h_t of every step through all that comes after it (m, T, n). Arguments as `through_time`."""
    return jnp.swapaxes(_through_time(cell, params, kept, da, None, True)[1], 0, 1)


def _through_time(cell: "Recurrent", params: Params, kept: Kept, da: Array, d_last: Any, states: bool) -> tuple:
    def step(carry: tuple, t: Array) -> tuple[tuple, Any]:
        buffers, (gates, extra), after, d_states = carry
        before = _at(kept.before, t)
        da_t = jax.lax.dynamic_index_in_dim(da, t, 1, keepdims=False)
        before, da_t = barrier((before, da_t))
        d_states = (d_states[0] + da_t, *d_states[1:])
        delta, extra, back = cell.step_error(gates, extra, before, after, d_states)
        if kept.valid is not None:
            valid = _at(kept.valid, t)
            delta, extra = jax.tree.map(lambda d: jnp.where(valid, d, 0), (delta, extra))
            back = tuple(jnp.where(valid, ours, held) for ours, held in zip(back, d_states, strict=True))
        delta, extra, back = barrier((delta, extra, back))
        back = (back[0] + cell.of_states(delta, extra) @ params["w_h"], *back[1:])
        if kept.cut is not None:
            back = tuple(jnp.where(_at(kept.cut, t), 0, d) for d in back)
        buffers = _put(buffers, (delta, extra), t)
        return (buffers, _at(buffers, jnp.maximum(t - 1, 0)), before, back), d_states[0] if states else None

    if d_last is None:
        d_last = tuple(jnp.zeros_like(state) for state in kept.last)
    buffers, steps = (kept.gates, kept.extra), jnp.arange(da.shape[1])
    carry = buffers, _at(buffers, steps[-1]), kept.last, d_last
    carry, dh = jax.lax.scan(step, carry, steps, reverse=True)
    return carry[0], dh, carry[3]


ROWS = 1024
"""How many rows (steps times examples) the products of the backward pass take at a time: enough for their speed, few enough
for the cache."""


@functools.partial(jax.jit, static_argnums=0)
def backward_products(
    cell: "Recurrent", params: Params, kept: Kept, delta: Array, extra: tuple[Array, ...]
) -> tuple[Array, Params]:
    """BP2's product for the input, and BP3 and BP4 over all steps, a block of steps at a time.

    Args:
        cell: and ``params``, ``kept``: as `through_time`.
        delta: and ``extra``: what it returned.

    Returns:
        ∂C/∂x (m, T, n_in) and the gradients.
    """
    steps, m, _ = delta.shape
    blocks = max(1, -(-steps * m // ROWS))
    size = -(-steps // blocks)
    blocks = -(-steps // size)

    def block(i: Any, carry: tuple) -> tuple:
        da_in, total = carry
        first = jnp.minimum(i * size, steps - size)
        part = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), (kept.before[0], delta, extra))
        x = jax.lax.dynamic_slice_in_dim(kept.x, first, size, 1)
        h, delta_part, extra_part = part
        own = jnp.swapaxes(barrier(input_error(params["w_x"], delta_part)), 0, 1)
        da_in = jax.lax.dynamic_update_slice_in_dim(da_in, own, first, 1)
        if steps % size:
            new = (first + jnp.arange(size) >= i * size)[:, None, None]
            delta_part, extra_part = jax.tree.map(lambda d: jnp.where(new, d, 0), (delta_part, extra_part))
        return da_in, jax.tree.map(jnp.add, total, cell.sums(x, h, delta_part, extra_part))

    start = jnp.zeros_like(kept.x), jax.tree.map(jnp.zeros_like, params)
    return jax.lax.fori_loop(0, blocks, block, start)


class Segments(NamedTuple):
    """What a layer that recomputes keeps: its arguments, the states before each segment (S, m, n) and after the last."""

    x: Array
    mask: Array | None
    probe: Array | None
    starts: tuple[Array, ...]
    last: tuple[Array, ...]


def _segments(steps: int) -> tuple[int, int, int]:
    """⌈√T⌉ steps in a segment, how many segments are whole, and the steps that are left."""
    size = math.isqrt(steps - 1) + 1
    return size, *divmod(steps, size)


def _part(a: Any, first: Any, size: int) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size, 1), a)


@functools.partial(jax.jit, static_argnums=0)
def forward_by_segments(
    cell: "Recurrent", params: Params, x: Array, mask: Any = None, probe: Any = None, start: Any = None
) -> tuple[Array, Segments]:
    """`forward_in_time` that keeps the states at the bounds of √T segments and no more. Arguments as there."""
    size, full, rest = _segments(x.shape[1])

    def segment(states: Any, first: Any, size: int = size) -> tuple[tuple, tuple]:
        h, kept = forward_in_time(cell, params, *_part((x, mask, probe), first, size), states, first)
        return kept.last, (h, states)

    if start is None:
        start = (jnp.zeros_like(x, shape=(x.shape[0], cell.n)),) * cell.n_states
    last, (h, starts) = jax.lax.scan(segment, start, size * jnp.arange(full))
    h = jnp.swapaxes(h, 0, 1).reshape(x.shape[0], full * size, cell.n)
    if rest:
        begin = last
        last, (more, _) = segment(begin, full * size, rest)
        h = jnp.concatenate([h, more], axis=1)
        starts = tuple(jnp.concatenate([a, b[None]]) for a, b in zip(starts, begin, strict=True))
    return h, Segments(x, mask, probe, starts, last)


@functools.partial(jax.jit, static_argnums=0)
def backward_by_segments(cell: "Recurrent", params: Params, kept: Segments, da: Array) -> tuple[Array, Params]:
    """BPTT a segment at a time, from the last to the first: the segment's forward pass again, its deltas, and what they add
    to the gradients. Only one segment is ever in memory.

    Args:
        cell: and ``params``, ``da``: as `through_time`.
        kept: from `forward_by_segments`.

    Returns:
        ∂C/∂x (m, T, n_in) and the gradients.
    """
    size, full, rest = _segments(da.shape[1])

    def segment(carry: tuple, here: tuple, size: int = size) -> tuple[tuple, Array]:
        d_states, total = carry
        first, start = here
        *parts, da_part = _part((kept.x, kept.mask, kept.probe, da), first, size)
        _, own = forward_in_time(cell, params, *parts, start, first)
        delta, extra, d_states = through_time(cell, params, own, da_part, d_states)
        da_in, gradients = backward_products(cell, params, own, delta, extra)
        return (d_states, jax.tree.map(jnp.add, total, gradients)), da_in

    carry, after = jax.tree.map(jnp.zeros_like, (kept.last, params)), None
    if rest:
        carry, after = segment(carry, (full * size, tuple(state[-1] for state in kept.starts)), rest)
    whole = size * jnp.arange(full), tuple(state[:full] for state in kept.starts)
    (_, gradients), da_in = jax.lax.scan(segment, carry, whole, reverse=True)
    da_in = jnp.swapaxes(da_in, 0, 1).reshape(len(da), full * size, kept.x.shape[-1])
    return da_in if after is None else jnp.concatenate([da_in, after], axis=1), gradients


class Recurrent(Layer):
    """What `RNN`, `LSTM` and `GRU` share. A cell says its numbers of gates and states, its step, and the step's error."""

    n: int
    truncate: int | None
    recompute: bool
    weight_init: Initializer
    bias_init: Initializer
    n_gates: ClassVar[int]
    n_states: ClassVar[int] = 1

    independent = True

    def step(self, params: Params, z: Array, q: Array, states: tuple) -> tuple[Array, tuple, tuple]:
        """(the gates (m, g·n), what else the error needs, the new states) from z = x w_xᵀ and q = h_{t−1} w_hᵀ."""
        raise NotImplementedError(f"{type(self).__name__} defines no step(params, z, q, states)")

    def step_error(self, gates: Array, extra: tuple, before: tuple, after: tuple, d_states: tuple) -> tuple:
        """(δ, the errors of what else was kept, what reaches the states before beside w_h)."""
        raise NotImplementedError(f"{type(self).__name__} defines no step_error(gates, extra, before, after, d_states)")

    def of_states(self, delta: Array, extra: tuple) -> Array:
        """The error of q (..., g·n)."""
        return delta

    def extra_errors(self, kept: Kept, delta: Array) -> tuple:
        """The errors of what was kept beside the gates, from δ (T, m, g·n)."""
        return ()

    def __post_init__(self) -> None:
        whole_number(self, "n", "a positive number of units")
        if self.truncate is not None:
            whole_number(self, "truncate", "a positive number of steps")

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        if not isinstance(input_shape, tuple) or len(input_shape) != 2 or input_shape[-1] < 1:
            remedy = "give the shape of one sequence, as in net.init(key, (28, 28)); Flatten is for dense layers"
            raise LayerError(self, "an input shape (T, n_in)", str(input_shape), remedy)
        x_key, h_key, b_key = jax.random.split(drawing_key(self, key), 3)
        dtype, rows = jnp.result_type(float), self.n_gates * self.n
        return {
            "w_x": self.weight_init(x_key, (rows, input_shape[-1]), dtype),
            "w_h": self.weight_init(h_key, (rows, self.n), dtype),
            "b": self.bias_init(b_key, (rows,), dtype),
        }

    def check_params(self, params: Any) -> None:
        """Raise a LayerError unless these are parameters of this layer."""
        rows = self.n_gates * self.n
        for name, shape in (("w_x", (rows, None)), ("w_h", (rows, self.n)), ("b", (rows,))):
            check_leaf(self, params, name, shape)

    def forward(self, params, a_in, *, mask=None, probe=None, state=None):
        self.check_params(params)
        n_in = params["w_x"].shape[1]
        if a_in.ndim != 3 or a_in.shape[-1] != n_in or a_in.shape[1] == 0:
            remedy = (
                "give sequences of at least one step; x[None] for a single one, x[..., None] for one feature a step"
            )
            raise LayerError(self, f"inputs of shape (m, T, {n_in})", str(a_in.shape), remedy)
        if mask is not None and jnp.shape(mask) != a_in.shape[:2]:
            remedy = "it says which steps of which sequence are valid; fn.length_mask(lengths, T) makes one"
            raise LayerError(self, f"a mask of shape {a_in.shape[:2]}", str(jnp.shape(mask)), remedy)
        if mask is not None:
            check_real(self, "masks", jnp.asarray(mask))
        a_in = as_floats(self, a_in, params["b"].dtype)
        dtype = jnp.result_type(a_in, *params.values())
        x = at_least_float32(a_in.astype(dtype))
        run = forward_by_segments if self.recompute else forward_in_time
        h, kept = run(self, _wide(params), x, mask, _wide(probe), self._given(state, x))
        return h.astype(dtype), kept

    def _given(self, state: Any, x: Array) -> tuple[Array, ...] | None:
        if state is None:
            return None
        shape = (x.shape[0], self.n)
        parts = state if isinstance(state, tuple | list) else [state]
        shapes = [getattr(part, "shape", type(part).__name__) for part in parts]
        if shapes != [shape] * self.n_states or parts is not state:
            wanted = f"a state of {self.n_states} array{'s' * (self.n_states > 1)} of shape {shape}, in a tuple"
            got = f"{shapes}{'' if parts is state else ', in none'}"
            raise LayerError(self, wanted, got, "give what final_state or apply_from returned, or None for zero")
        return tuple(check_real(self, "states", jnp.asarray(part)).astype(x.dtype) for part in state)

    def final_state(self, cache):
        return cache.last

    def all_kept(self, params: Params, cache: Kept | Segments) -> Kept:
        """`Kept`, computed again where the layer recomputes."""
        if isinstance(cache, Kept):
            return cache
        start = tuple(state[0] for state in cache.starts)
        return forward_in_time(self, _wide(params), cache.x, cache.mask, cache.probe, start)[1]

    def error(self, params, cache, da_out):
        da = da_out.astype(cache.last[0].dtype)
        delta, _, _ = through_time(self, _wide(params), self.all_kept(params, cache), da)
        return jnp.swapaxes(delta, 0, 1).astype(da_out.dtype)

    def propagate(self, params, cache, delta):
        return input_error(params["w_x"].astype(delta.dtype), delta)

    def gradients(self, params, cache, delta):
        kept = self.all_kept(params, cache)
        delta = jnp.swapaxes(delta, 0, 1).astype(kept.gates.dtype)
        return _like(self.sums(kept.x, kept.before[0], delta, self.extra_errors(kept, delta)), params)

    def sums(self, x: Array, h_before: Array, delta: Array, extra: tuple) -> dict[str, Array]:
        """BP3 and BP4 from x (m, T, n_in), and time first, the states before each step and the errors."""
        return {
            "w_x": weight_gradient(delta, jnp.swapaxes(x, 0, 1)),
            "w_h": weight_gradient(self.of_states(delta, extra), h_before),
            "b": bias_gradient(delta),
        }

    def backward(self, params, cache, da_out):
        wide, da = _wide(params), da_out.astype(cache.last[0].dtype)
        if isinstance(cache, Segments):
            da_in, grads = backward_by_segments(self, wide, cache, da)
        else:
            delta, extra, _ = through_time(self, wide, cache, da)
            da_in, grads = backward_products(self, wide, cache, delta, extra)
        return da_in.astype(da_out.dtype), _like(grads, params)


def _wide(tree: Any) -> Any:
    return jax.tree.map(at_least_float32, tree)


def _like(grads: dict[str, Array], params: Params) -> dict[str, Array]:
    return {name: g.astype(params[name].dtype) for name, g in grads.items()}


@layer
class RNN(Recurrent):
    """A simple recurrent (Elman) layer: h_t = σ(x_t w_xᵀ + h_{t−1} w_hᵀ + b), h_0 = 0.

    Parameters {w_x (n, n_in), w_h (n, n), b (n)}. Inputs (m, T, n_in), outputs (m, T, n): h of every step.

    Args:
        n: units.
        activation: σ.
        weight_init: initialiser of w_x and w_h.
        bias_init: initialiser of b.
        truncate: the error is cut before every ``truncate``-th step (truncated BPTT); None cuts nothing.
        recompute: keep the states at the bounds of √T segments only, and run each segment again on the way back: less memory,
            half as much work again.

    Raises:
        LayerError: for an n that is no positive integer, or inputs, parameters or a mask of another shape.

    Source: the notes' title "recurrent neural networks"; Elman (1990).
    """

    n: int
    activation: Activation = tanh
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    truncate: int | None = None
    recompute: bool = False

    n_gates: ClassVar[int] = 1
    _example = "fn.RNN(64)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activation(self, self.activation)

    def step(self, params, z, q, states):
        z = z + q + params["b"][None, :]
        return z, (), (self.activation(z),)

    def step_error(self, gates, extra, before, after, d_states):
        delta = self.activation.error_in_layer(d_states[0], gates, after[0])
        return delta, (), (jnp.zeros_like(delta),)


@layer
class LSTM(Recurrent):
    """A long short-term memory, `lstm_step` at every step, h_0 = c_0 = 0.

    Parameters {w_x (4n, n_in), w_h (4n, n), b (4n)}, gates stacked as i, f, g, o. Inputs (m, T, n_in), outputs (m, T, n): h
    of every step.

    Args:
        n: units.
        weight_init: initialiser of w_x and w_h.
        bias_init: initialiser of b.
        forget_bias: added to the forget gate's part of b at the start, so that the state is kept at first.
        truncate: and ``recompute``: as `RNN`.

    Raises:
        LayerError: as `RNN`.

    Source: Hochreiter and Schmidhuber (1997); Gers et al. (2000).
    """

    n: int
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    forget_bias: float = 1.0
    truncate: int | None = None
    recompute: bool = False

    n_gates: ClassVar[int] = 4
    n_states: ClassVar[int] = 2
    _example = "fn.LSTM(64)"

    def init(self, key, input_shape):
        params = super().init(key, input_shape)
        with jax.transfer_guard("allow"):  # a constant
            return {**params, "b": params["b"].at[self.n : 2 * self.n].add(self.forget_bias)}

    def step(self, params, z, q, states):
        gates, h, c = lstm_step(z + q + params["b"][None, :], states[1])
        return gates, (), (h, c)

    def step_error(self, gates, extra, before, after, d_states):
        delta, dc = lstm_step_error(gates, before[1], after[1], *d_states)
        return delta, (), (jnp.zeros_like(dc), dc)


@layer
class GRU(Recurrent):
    """A gated recurrent unit, `gru_step` at every step, h_0 = 0.

    Parameters {w_x (3n, n_in), w_h (3n, n), b (3n), b_h (n)}, gates stacked as r, z, n. Inputs (m, T, n_in), outputs
    (m, T, n): h of every step.

    Args:
        n: units.
        weight_init: initialiser of w_x and w_h.
        bias_init: initialiser of b and b_h.
        truncate: and ``recompute``: as `RNN`.

    Raises:
        LayerError: as `RNN`.

    Source: Cho et al. (2014), with the reset gate after the product.
    """

    n: int
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    truncate: int | None = None
    recompute: bool = False

    n_gates: ClassVar[int] = 3
    _example = "fn.GRU(64)"

    def init(self, key, input_shape):
        key, own = jax.random.split(drawing_key(self, key))
        params = super().init(key, input_shape)
        return {**params, "b_h": self.bias_init(own, (self.n,), params["b"].dtype)}

    def check_params(self, params):
        super().check_params(params)
        check_leaf(self, params, "b_h", (self.n,))

    def step(self, params, z, q, states):
        q = q.at[:, 2 * self.n :].add(params["b_h"][None, :])
        gates, h = gru_step(z + params["b"][None, :], q, states[0])
        return gates, (q[:, 2 * self.n :],), (h,)

    def step_error(self, gates, extra, before, after, d_states):
        delta, of_q, dh = gru_step_error(gates, extra[0], before[0], d_states[0])
        return delta, (of_q,), (dh,)

    def of_states(self, delta, extra):
        return jnp.concatenate([delta[..., : 2 * self.n], extra[0]], axis=-1)

    def extra_errors(self, kept, delta):
        return (delta[..., 2 * self.n :] * kept.gates[..., : self.n],)

    def sums(self, x, h_before, delta, extra):
        return {**super().sums(x, h_before, delta, extra), "b_h": bias_gradient(extra[0])}


@layer
class LastStep(Layer):
    """The last step of each sequence: (m, T, n) to (m, n). No parameters; its error δ is ∂C/∂a_out. Masked steps hold the
    state, so it needs no mask.

    Raises:
        LayerError: for inputs that are no sequences of at least one step.
    """

    independent = True

    def forward(self, params, a_in, *, probe=None):
        if a_in.ndim < 3 or a_in.shape[1] == 0:
            remedy = "put it after a layer that gives every step, such as fn.LSTM(n)"
            raise LayerError(self, "sequences (m, T, n) of at least one step", str(a_in.shape), remedy)
        a = a_in[:, -1]
        return a if probe is None else a + probe, a_in

    def propagate(self, params, cache, delta):
        return _at_last_step(delta, cache.shape[1])


def _at_last_step(d: Array, steps: int) -> Array:
    """An error of the last step (m, ...) among zeros for the others (m, T, ...)."""
    return jnp.zeros((d.shape[0], steps, *d.shape[1:]), d.dtype).at[:, -1].set(d)


@layer
class Bidirectional(Layer):
    """A cell over the sequence and another of the same kind over the reversed sequence, their outputs side by side.

    Parameters {ahead, back}, each the cell's. Inputs (m, T, n_in), outputs (m, T, 2n): at step t the state after x_1 … x_t
    and the state after x_T … x_t. Its error is the pair of both cells' δ, each (m, T, g·n) in the order of the sequence.

    Args:
        cell: `RNN`, `LSTM` or `GRU`.
        last: give both final states (m, 2n) instead.

    Raises:
        LayerError: for another cell, for what the cell refuses, and where a state would be carried: the way back starts at
            the end.

    Source: Schuster and Paliwal (1997).
    """

    cell: Recurrent
    last: bool = False

    independent = True
    _example = "fn.Bidirectional(fn.LSTM(64))"

    def __post_init__(self) -> None:
        if not isinstance(self.cell, Recurrent):
            remedy = "give an fn.RNN, fn.LSTM or fn.GRU, as in fn.Bidirectional(fn.LSTM(64))"
            raise LayerError(self, "a recurrent cell", repr(self.cell), remedy)

    def init(self, key, input_shape):
        ahead, back = jax.random.split(drawing_key(self, key))
        return {"ahead": self.cell.init(ahead, input_shape), "back": self.cell.init(back, input_shape)}

    def forward(self, params, a_in, *, mask=None, probe=None):
        if not isinstance(params, dict) or params.keys() != {"ahead", "back"}:
            got = f"the keys {sorted(params)}" if isinstance(params, dict) else type(params).__name__
            remedy = "use the parameters that init of an equal layer returned"
            raise LayerError(self, "parameters with the keys ahead and back", got, remedy)
        probe_ahead, probe_back = (None, None) if probe is None else probe
        ahead, kept_ahead = self.cell.forward(params["ahead"], a_in, mask=mask, probe=probe_ahead)
        turned = {"mask": _reversed(mask), "probe": _reversed(probe_back)}
        back, kept_back = self.cell.forward(params["back"], _reversed(a_in), **turned)
        h = [ahead[:, -1], back[:, -1]] if self.last else [ahead, _reversed(back)]
        return jnp.concatenate(h, axis=-1), (kept_ahead, kept_back)

    def final_state(self, cache):
        remedy = "carry states through RNN, LSTM and GRU only: the way back starts at the end of the whole sequence"
        raise LayerError(self, "a layer whose state can be carried on", "one that runs both ways", remedy)

    def _da(self, cache: tuple, da_out: Array) -> tuple[Array, Array]:
        """∂C/∂h of both cells, each in the order of its run."""
        ahead, back = jnp.split(da_out, 2, axis=-1)
        if not self.last:
            return ahead, _reversed(back)
        steps = cache[0].x.shape[1]
        return _at_last_step(ahead, steps), _at_last_step(back, steps)

    def error(self, params, cache, da_out):
        ahead, back = self._da(cache, da_out)
        delta = self.cell.error(params["ahead"], cache[0], ahead)
        return delta, _reversed(self.cell.error(params["back"], cache[1], back))

    def propagate(self, params, cache, delta):
        ahead = self.cell.propagate(params["ahead"], cache[0], delta[0])
        return ahead + self.cell.propagate(params["back"], cache[1], delta[1])

    def gradients(self, params, cache, delta):
        return {
            "ahead": self.cell.gradients(params["ahead"], cache[0], delta[0]),
            "back": self.cell.gradients(params["back"], cache[1], _reversed(delta[1])),
        }

    def backward(self, params, cache, da_out):
        ahead, back = self._da(cache, da_out)
        d_ahead, grads_ahead = self.cell.backward(params["ahead"], cache[0], ahead)
        d_back, grads_back = self.cell.backward(params["back"], cache[1], back)
        return d_ahead + _reversed(d_back), {"ahead": grads_ahead, "back": grads_back}


def _reversed(a: Any) -> Any:
    return None if a is None else jnp.flip(a, axis=1)


def length_mask(lengths: Any, steps: int) -> Array:
    """The mask (m, T) of sequences of these lengths (m,), padded at the end to ``steps`` steps: True where t < length.

    Raises:
        ValueError: for lengths that are no vector of integers.
    """
    lengths = jnp.asarray(lengths)
    if lengths.ndim != 1 or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"length_mask: expected integer lengths of shape (m,), got {lengths.dtype} of shape {lengths.shape}"
        )
    return jnp.arange(steps)[None, :] < lengths.astype(jnp.result_type(int))[:, None]
