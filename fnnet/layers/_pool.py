"""Pooling over 1, 2 or 3 spatial axes: the largest or the mean entry of each window, and the way back, the notes' unsample.

Arrays are (m, *n, c), each channel pooled by itself. Pooling has no parameters and no activation: σ(z) = z, and its error
δ is ∂C/∂a_out. A remainder that no window reaches is dropped. Along an axis of n_in entries there are
n_out = ⌊(n_in + p_before + p_after − k) / s⌋ + 1 windows of size k and stride s.

Source: the notes, sections 7.1 and 7.2.2.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..activations import wide_dtype
from ..forms import UNROLLED_PLACES, forward_only, rowwise, stored
from ._cut import channelwise
from ._layer import Cache, Layer, LayerError, Params, as_floats, check_real, layer
from ._window import Padding, Sizes, Window, check_images, check_padding, check_sizes, overlap_add, taps, window

__all__ = ["GlobalMeanPool", "MaxPool", "MeanPool", "Upsample", "unsample_max", "unsample_mean"]

Algorithm = Literal["auto", "scatter", "slices"]


@functools.partial(jax.jit, static_argnames=("size", "stride", "padding"))
def max_pool(a_in: Array, size: Sizes, stride: Sizes | None = None, padding: Padding = 0) -> Array:
    """a_j = max_l a_(s·j + l − p), the maximum of strided slices. Padding never wins; NaN does.

    Args:
        a_in: (m, *n_in, c).
        size: k, an integer or one for each axis.
        stride: s; the size by default.
        padding: p: an integer or one for each axis, a pair (before, after) for each, "valid" or "same".

    Returns:
        (m, *n_out, c). Source: the notes, section 7.1.
    """
    win = pool_window("max_pool", check_real("max_pool", "inputs", a_in), size, stride, padding)
    if math.prod(win.size) > UNROLLED_PLACES:
        return reduced(a_in, lowest(a_in), jax.lax.max, win)
    largest, *others = taps(a_in, win, lowest(a_in))
    for tap in others:
        largest = jnp.where((tap > largest) | ((tap != tap) & (largest == largest)), tap, largest)
    return stored(largest)


@functools.partial(jax.jit, static_argnames=("size", "stride", "padding"))
def max_pool_forward_only(a_in: Array, size: Sizes, stride: Sizes | None = None, padding: Padding = 0) -> Array:
    """`max_pool` where no backward pass follows. (``jax.grad`` puts errors where it does there, but for those of NaN.)"""
    win = pool_window("max_pool", check_real("max_pool", "inputs", a_in), size, stride, padding)
    whole = lambda a: reduced(a, lowest(a), jax.lax.max, win)  # noqa: E731
    return forward_only(whole, lambda a: max_pool(a, size, stride, padding), a_in)


@functools.partial(jax.jit, static_argnames=("size", "stride", "padding", "algorithm"))
def unsample_max(
    delta: Array,
    a_in: Array,
    a_out: Array,
    size: Sizes,
    stride: Sizes | None = None,
    padding: Padding = 0,
    algorithm: Algorithm = "auto",
) -> Array:
    """BP2 through MAX, the notes' unsample: each error goes to the place of its window's maximum, the first one in row-major
    order; where windows overlap, errors add up.

    Args:
        delta: (m, *n_out, c).
        a_in: (m, *n_in, c), what was pooled.
        a_out: (m, *n_out, c), its maxima.
        size: and ``stride``, ``padding``: as of `max_pool`.
        algorithm: "slices" compares one strided slice for each place in the window; "scatter" finds each maximum's index
            and adds δ there. "auto": slices, but for windows of more than 64 places.

    Returns:
        ∂C/∂a_in (m, *n_in, c). Source: the notes, section 7.2.2.
    """
    win = pool_window("unsample_max", a_in, size, stride, padding)
    check_error("unsample_max", delta, win)
    check_algorithm("unsample_max", algorithm)
    if algorithm == "scatter" or (algorithm == "auto" and math.prod(win.size) > UNROLLED_PLACES):
        return scattered(delta, first_maximum(a_in, win), win)
    found, parts, inside = jnp.zeros(delta.shape, bool), [], jnp.ones((1, *win.n_in, 1), bool)
    for tap, is_inside in zip(taps(a_in, win, lowest(a_in)), taps(inside, win, False), strict=True):
        hit = ((tap == a_out) | ((tap != tap) & (a_out != a_out))) & is_inside & ~found
        found |= hit
        parts.append(jnp.where(hit, delta, 0))
    return laid_out(parts, win)


@functools.partial(jax.jit, static_argnames=("size", "stride", "padding"))
def mean_pool(a_in: Array, size: Sizes, stride: Sizes | None = None, padding: Padding = 0) -> Array:
    """a_j = (1/∏k) Σ_l a_(s·j + l − p); places of padding count as zeros.

    Args:
        a_in: (m, *n_in, c).
        size: and ``stride``, ``padding``: as of `max_pool`.

    Returns:
        (m, *n_out, c), in the default float dtype for integers. Source: the notes, section 7.2.2.
    """
    win = pool_window("mean_pool", a_in, size, stride, padding)
    a_in = as_floats("mean_pool", a_in, jnp.result_type(float))
    return (window_sum(a_in, win) / math.prod(win.size)).astype(a_in.dtype)


@functools.partial(jax.jit, static_argnames=("n_in", "size", "stride", "padding"))
def unsample_mean(
    delta: Array, n_in: tuple[int, ...], size: Sizes, stride: Sizes | None = None, padding: Padding = 0
) -> Array:
    """BP2 through MEAN, the notes' unsample: each error in equal parts δ/∏k at all places of its window.

    Args:
        delta: (m, *n_out, c).
        n_in: the spatial sizes of what was pooled.
        size: and ``stride``, ``padding``: as of `max_pool`.

    Returns:
        ∂C/∂a_in (m, *n_in, c). Source: the notes, section 7.2.2.
    """
    win = window("unsample_mean", n_in, size, size if stride is None else stride, padding)
    check_error("unsample_mean", delta, win)
    e = delta / math.prod(win.size)
    for axis, k in enumerate(win.size):
        e = overlap_add([e] * k, axis, win)
    return e


def pool_window(owner: Any, a_in: Array, size: Sizes, stride: Sizes | None, padding: Padding) -> Window:
    return window(owner, check_images(owner, a_in.shape), size, size if stride is None else stride, padding)


def check_error(owner: str, delta: Array, win: Window) -> None:
    if delta.ndim != 2 + len(win.size) or delta.shape[1:-1] != win.n_out:
        remedy = "δ has one entry for each window, as the pooled output"
        raise LayerError(owner, f"an error (m, *{win.n_out}, c)", str(delta.shape), remedy)


def check_algorithm(owner: Any, algorithm: Any) -> None:
    if algorithm not in ("auto", "scatter", "slices"):
        remedy = "'auto' takes the faster form; all give the same result"
        raise LayerError(owner, "algorithm 'auto', 'scatter' or 'slices'", repr(algorithm), remedy)


def lowest(a: Array) -> Any:
    if a.dtype == bool:
        return False
    return np.asarray(-np.inf if jnp.issubdtype(a.dtype, jnp.floating) else jnp.iinfo(a.dtype).min, a.dtype)


def reduced(a: Any, start: Any, operation: Any, win: Window) -> Any:
    sides = [(0, 0), *win.padding, (0, 0)]
    return jax.lax.reduce_window(a, start, operation, (1, *win.size, 1), (1, *win.stride, 1), sides)


def window_sum(a: Array, win: Window) -> Array:
    """Σ_l a_(s·j + l − p), in at least float32."""
    wide = wide_dtype(a.dtype)
    return reduced(a.astype(wide), np.zeros((), wide), jax.lax.add, win)


def laid_out(parts: Sequence[Array], win: Window) -> Array:
    """The parts (m, *n_out, c), one for each place in the window, at these places: the transpose of `taps`."""
    rank, (m, *n_out, c) = len(win.size), parts[0].shape
    if win.size == win.stride and win.n_in == tuple(n * k for n, k in zip(n_out, win.size, strict=True)):
        order = [rank, *(i for axis in range(rank) for i in (rank + 1 + axis, axis)), 2 * rank + 1]
        tiles = lambda *parts: jnp.stack(parts).reshape(*win.size, m, *n_out, c).transpose(order)  # noqa: E731
        return rowwise(lambda *parts: tiles(*parts).reshape(m, *win.n_in, c))(*parts)
    for axis in reversed(range(rank)):
        k = win.size[axis]
        parts = [overlap_add(parts[i : i + k], axis, win) for i in range(0, len(parts), k)]
    return parts[0]


def first_maximum(a_in: Array, win: Window) -> Array:
    """The place of each window's first maximum, counted over the input's places in row-major order."""
    places = jnp.arange(math.prod(win.n_in), dtype=jnp.int32).reshape(*win.n_in, 1)

    def larger(one: tuple[Array, Array], other: tuple[Array, Array]) -> tuple[Array, Array]:
        (a, i), (b, j) = one, other
        a_is_nan, b_is_nan, earlier = a != a, b != b, i < j
        first = jnp.where(a_is_nan | b_is_nan, a_is_nan & (earlier | ~b_is_nan), (a > b) | ((a == b) & earlier))
        return jnp.where(first, a, b), jnp.where(first, i, j)

    start = jnp.asarray(lowest(a_in), a_in.dtype), jnp.asarray(places.size, jnp.int32)
    return reduced((a_in, jnp.broadcast_to(places, a_in.shape)), start, larger, win)[1]


def scattered(delta: Array, places: Array, win: Window) -> Array:
    """δ added at these places of the input."""
    m, c = delta.shape[0], delta.shape[-1]

    def of_example(delta: Array, at: Array) -> Array:
        zero = jnp.zeros((math.prod(win.n_in), c), delta.dtype)
        return zero.at[at, jnp.arange(c)].add(delta, mode="drop")

    rows = (a.reshape(m, math.prod(win.n_out), c) for a in (delta, places))
    return jax.vmap(of_example)(*rows).reshape(m, *win.n_in, c)


@layer
class Pool(Layer):
    """What `MaxPool` and `MeanPool` share: fields and their checks."""

    size: Sizes
    stride: Sizes | None = None
    padding: Padding = 0

    independent = True
    collectives = channelwise

    def __post_init__(self) -> None:
        for name in ("size", "stride"):
            if getattr(self, name) is not None:
                check_sizes(self, name, getattr(self, name))
        if self.padding != "same":
            check_padding(self, self.padding)

    def geometry(self, shape: tuple[int, ...]) -> tuple[Sizes, Sizes | None, Padding]:
        """(size, stride, padding), or a LayerError unless they suit inputs of this shape."""
        win = window(self, check_images(self, shape), self.size, self.stride or self.size, self.padding)
        if any(max(sides) >= k for sides, k in zip(win.padding, win.size, strict=True)):
            remedy = "a window of padding alone pools nothing"
            raise LayerError(self, f"padding smaller than the window {win.size}", repr(self.padding), remedy)
        return self.size, self.stride, self.padding


@layer
class MaxPool(Pool):
    """The largest entry of each window, channel by channel. No parameters; its error δ is ∂C/∂a_out.

    Inputs (m, *n, c) of 1 to 3 spatial axes, outputs (m, *n_out, c). A remainder that no window reaches is dropped. A tie
    goes to the first maximum in row-major order, as in ``jax.grad``.

    Args:
        size: k, the window: an integer, or one for each spatial axis.
        stride: s; the size by default, which makes windows tile the input.
        padding: an integer or one for each axis, a pair (before, after) for each, "valid" or "same"; it never wins.
        algorithm: of `unsample_max`.

    Raises:
        LayerError: for a field that is none of these, padding as large as the window, or a window larger than the padded
            input.

    Source: the notes, section 7.1.
    """

    algorithm: Algorithm = "auto"

    kept = False
    _example = "fn.MaxPool(2)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_algorithm(self, self.algorithm)

    def forward(
        self, params: Params, a_in: Array, *, train: bool = False, probe: Array | None = None
    ) -> tuple[Array, Cache]:
        a = (max_pool if train else max_pool_forward_only)(a_in, *self.geometry(a_in.shape))
        return a if probe is None else a + probe, (a_in, a)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        a_in, a_out = cache
        return unsample_max(delta, a_in, a_out, *self.geometry(a_in.shape), self.algorithm)


@layer
class MeanPool(Pool):
    """The mean of each window, channel by channel. No parameters; its error δ is ∂C/∂a_out.

    Args:
        size: k, the window: an integer, or one for each spatial axis.
        stride: s; the size by default, which makes windows tile the input.
        padding: as of `MaxPool`; its places count as zeros.

    Raises:
        LayerError: as `MaxPool`.

    Source: the notes, section 7.2.2.
    """

    _example = "fn.MeanPool(2)"

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        a = mean_pool(a_in, *self.geometry(a_in.shape))
        return a if probe is None else a + probe, a_in

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return unsample_mean(delta, cache.shape[1:-1], *self.geometry(cache.shape))


@layer
class GlobalMeanPool(Layer):
    """The mean over all spatial axes: (m, *n, c) to (m, c). No parameters; its error δ is ∂C/∂a_out.

    Raises:
        LayerError: for inputs without 1 to 3 spatial axes.

    Source: Lin, Chen and Yan (2014); `MeanPool` with one window.
    """

    independent = True
    collectives = channelwise

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        n_in = check_images(self, a_in.shape)
        a = mean_pool(a_in, n_in).reshape(a_in.shape[0], a_in.shape[-1])
        return a if probe is None else a + probe, a_in

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        n_in = cache.shape[1:-1]
        return unsample_mean(delta.reshape(delta.shape[0], *(1,) * len(n_in), delta.shape[-1]), n_in, n_in)


@layer
class Upsample(Layer):
    """Each entry repeated over a window: (m, *n, c) to (m, *(n·size), c), the Kronecker product with ones. No parameters;
    its error δ is ∂C/∂a_out.

    Args:
        size: k, an integer, or one for each spatial axis.

    Raises:
        LayerError: for a size that is none of these, or inputs without 1 to 3 spatial axes.

    Source: the notes, section 7.2.2; it is ∏k times `unsample_mean`, and ∏k times `mean_pool` is its BP2.
    """

    size: Sizes

    independent = True
    collectives = channelwise
    _example = "fn.Upsample(2)"

    def __post_init__(self) -> None:
        check_sizes(self, "size", self.size)

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        a, size = a_in, check_sizes(self, "size", self.size, len(check_images(self, a_in.shape)))
        for axis, k in enumerate(size):
            a = jnp.repeat(a, k, axis=1 + axis)
        return a if probe is None else a + probe, None

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        size = check_sizes(self, "size", self.size, delta.ndim - 2)
        return window_sum(delta, window(self, delta.shape[1:-1], size, size)).astype(delta.dtype)
