"""The layer around the scans of `_time`, what `RNN`, `LSTM` and `GRU` share: parameters, checks, dtypes, and memory against
work, the whole sequence kept or run again by segments.

Legend: m examples (axis 0), T time steps, S segments, n units, n_in inputs, g gates; x the input (m, T, n_in), h the states
(m, T, n), δ = ∂(Σ_x C_x)/∂z of the weighted inputs z (m, T, g·n).

Source: Chen et al. (2016), segments of √T steps.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32
from ..forms import varying
from ..initializers import Initializer
from ._dense import input_error
from ._layer import (
    Cache,
    LayerError,
    Params,
    Products,
    Sends,
    Shape,
    Shard,
    as_floats,
    check_leaf,
    check_mask,
    check_real,
    drawing_key,
    whole_number,
)
from ._time import Cell, Kept, backward_products, forward_in_time, through_time

__all__ = ["Recurrent"]


class Segments(NamedTuple):
    """What a layer that recomputes keeps: its arguments, the states before each segment (S, m, n) and after the last. The
    parameters are among them, since the backward pass may be given others (``feedback=``)."""

    params: Params
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
    cell: Cell, params: Params, x: Array, mask: Any = None, probe: Any = None, start: Any = None
) -> tuple[Array, Segments]:
    """`forward_in_time` that keeps the states at the bounds of √T segments and no more. Arguments as there."""
    size, full, rest = _segments(x.shape[1])

    def segment(states: Any, first: Any, size: int = size) -> tuple[tuple, tuple]:
        h, kept = forward_in_time(cell, params, *_part((x, mask, probe), first, size), states, first)
        return kept.last, (h, states)

    if start is None:
        nothing = jnp.broadcast_to(jnp.zeros_like(x[:, 0, :1]), (len(x), cell.n))
        start = varying((nothing,) * cell.n_states, (params, x))
    last, (h, starts) = jax.lax.scan(segment, start, size * jnp.arange(full))
    h = jnp.swapaxes(h, 0, 1).reshape(x.shape[0], full * size, cell.n)
    if rest:
        begin = last
        last, (more, _) = segment(begin, full * size, rest)
        h = jnp.concatenate([h, more], axis=1)
        starts = tuple(jnp.concatenate([a, b[None]]) for a, b in zip(starts, begin, strict=True))
    return h, Segments(params, x, mask, probe, starts, last)


@functools.partial(jax.jit, static_argnums=0)
def backward_by_segments(cell: Cell, params: Params, kept: Segments, da: Array) -> tuple[Array, Params]:
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
        _, own = forward_in_time(cell, kept.params, *parts, start, first)
        delta, extra, d_states = through_time(cell, params, own, da_part, d_states)
        da_in, gradients = backward_products(cell, params, own, delta, extra)
        return (d_states, jax.tree.map(jnp.add, total, gradients)), da_in

    carry, after = varying(jax.tree.map(jnp.zeros_like, (kept.last, params)), (params, kept, da)), None
    if rest:
        carry, after = segment(carry, (full * size, tuple(state[-1] for state in kept.starts)), rest)
    whole = size * jnp.arange(full), tuple(state[:full] for state in kept.starts)
    (_, gradients), da_in = jax.lax.scan(segment, carry, whole, reverse=True)
    da_in = jnp.swapaxes(da_in, 0, 1).reshape(len(da), full * size, kept.x.shape[-1])
    return da_in if after is None else jnp.concatenate([da_in, after], axis=1), gradients


class Recurrent(Cell):
    """What `RNN`, `LSTM` and `GRU` share, but for a cell's steps."""

    recompute: bool
    weight_init: Initializer
    bias_init: Initializer

    independent = True

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

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        for name, leaf in params.items():
            if any(leaf.cut):
                expected = (
                    f"{name} whole on each device: its rows are {self.n_gates} gates of {self.n}, one under another"
                )
                remedy = (
                    "a part of the rows is not a part of each gate, and every step would move the state: give it P(), or "
                    "write a cell with weights (g, n, n_in) and cut their second axis"
                )
                raise LayerError(self, expected, f"P{leaf.cut}", remedy)
        return Sends()

    def check_params(self, params: Any) -> None:
        """Raise a LayerError unless these are parameters of this layer."""
        rows = self.n_gates * self.n
        for name, shape in (("w_x", (rows, None)), ("w_h", (rows, self.n)), ("b", (rows,))):
            check_leaf(self, params, name, shape)

    def forward(
        self, params: Params, a_in: Array, *, mask: Array | None = None, probe: Array | None = None, state: Any = None
    ) -> tuple[Array, Cache]:
        self.check_params(params)
        n_in = params["w_x"].shape[1]
        if a_in.ndim != 3 or a_in.shape[-1] != n_in or a_in.shape[1] == 0:
            remedy = (
                "give sequences of at least one step; x[None] for a single one, x[..., None] for one feature a step"
            )
            raise LayerError(self, f"inputs of shape (m, T, {n_in})", str(a_in.shape), remedy)
        check_mask(self, mask, a_in.shape[:2])
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

    def final_state(self, cache: Cache) -> tuple[Array, ...]:
        return cache.last

    def all_kept(self, cache: Kept | Segments) -> Kept:
        """`Kept`, computed again where the layer recomputes."""
        if isinstance(cache, Kept):
            return cache
        start = tuple(state[0] for state in cache.starts)
        return forward_in_time(self, cache.params, cache.x, cache.mask, cache.probe, start)[1]

    def error(self, params: Params, cache: Cache, da_out: Array) -> Array:
        da = da_out.astype(cache.last[0].dtype)
        delta, _, _ = through_time(self, _wide(params), self.all_kept(cache), da)
        return jnp.swapaxes(delta, 0, 1).astype(da_out.dtype)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return input_error(params["w_x"].astype(delta.dtype), delta)

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        kept = self.all_kept(cache)
        delta = jnp.swapaxes(delta, 0, 1).astype(kept.gates.dtype)
        return _like(self.sums(kept.x, kept.h_before, delta, self.extra_errors(kept, delta)), params)

    def products(self, params: Params, cache: Cache, delta: Array) -> Products:
        kept = self.all_kept(cache)
        delta = jnp.swapaxes(delta, 0, 1).astype(kept.gates.dtype)
        x = jnp.swapaxes(kept.x, 0, 1)
        terms = self.terms(x, kept.h_before, delta, self.extra_errors(kept, delta))
        in_front = functools.partial(jnp.swapaxes, axis1=0, axis2=1)
        return {name: (in_front(d), None if a is None else in_front(a)) for name, (d, a) in terms.items()}

    def backward(self, params: Params, cache: Cache, da_out: Array) -> tuple[Array, dict[str, Array]]:
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
