"""Windows that slide over 1, 2 or 3 axes: the geometry that convolution and pooling share.

Legend: arrays are (m, *n, c), with m examples (axis 0), one size n for each spatial axis, c channels. Entry l of the window
at output position j is the input at s·j + d·l − p, along each spatial axis: k entries, stride s, dilation d, p places of
padding in front.
"""

import itertools
from collections.abc import Sequence
from numbers import Integral
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ._layer import LayerError, Shape

__all__ = ["Padding", "Sizes", "Window", "check_images", "check_sizes", "overlap_add", "taps", "window"]

Sizes = int | tuple[int, ...]
Padding = int | str | tuple[int, ...] | tuple[tuple[int, int], ...]


class Window(NamedTuple):
    """One entry for each spatial axis."""

    n_in: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def span(self) -> tuple[int, ...]:
        """From the window's first place to its last: d (k − 1) + 1."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True))

    @property
    def n_padded(self) -> tuple[int, ...]:
        return tuple(n + low + high for n, (low, high) in zip(self.n_in, self.padding, strict=True))

    @property
    def n_out(self) -> tuple[int, ...]:
        """How often the window fits; a remainder at the end is dropped."""
        return tuple((n - r) // s + 1 for n, r, s in zip(self.n_padded, self.span, self.stride, strict=True))


def window(
    owner: Any, n_in: tuple[int, ...], size: Sizes, stride: Sizes = 1, padding: Padding = 0, dilation: Sizes = 1
) -> Window:
    """The window of ``owner`` (a layer or the name of an equation) over an input with the spatial sizes n_in.

    Args:
        owner: named in errors.
        n_in: the spatial sizes of the input.
        size: k, an integer or one for each axis; ``stride`` s and ``dilation`` d likewise.
        padding: an integer or one for each axis, a pair (before, after) for each axis, "valid" (none), or "same" (as much as
            gives ⌈n/s⌉ positions, the odd one behind).

    Raises:
        LayerError: for anything else, and where the window does not fit into the padded input.
    """
    rank = len(n_in)
    k, s, d = (
        check_sizes(owner, name, value, rank)
        for name, value in (("size", size), ("stride", stride), ("dilation", dilation))
    )
    if padding == "same":
        positions = (-(-n // s_) for n, s_ in zip(n_in, s, strict=True))
        spans = (d_ * (k_ - 1) + 1 for k_, d_ in zip(k, d, strict=True))
        missing = (max(0, (q - 1) * s_ + r - n) for q, s_, r, n in zip(positions, s, spans, n_in, strict=True))
        sides = tuple((total // 2, total - total // 2) for total in missing)
    else:
        sides = check_padding(owner, padding, rank)
    found = Window(tuple(n_in), k, s, sides, d)
    if min(found.n_out) < 1:
        remedy = "use a smaller window, more padding, or fewer layers that shrink the image"
        expected = f"inputs of at least {found.span} places, padding included"
        raise LayerError(owner, expected, f"{found.n_padded}", remedy)
    return found


def check_sizes(owner: Any, name: str, value: Any, rank: int | None = None) -> tuple[int, ...]:
    """One positive integer for each of ``rank`` axes, or a LayerError."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * (rank or 1)
    wrong_rank = rank is not None and len(values) != rank
    if wrong_rank or not values or not all(is_whole(v) and v >= 1 for v in values):
        expected = f"{name} to be a positive integer or {rank or 'a tuple'} of them"
        raise LayerError(owner, expected, repr(value), "give one for all spatial axes, or one for each")
    return tuple(int(v) for v in values)


def check_padding(owner: Any, padding: Any, rank: int | None = None) -> tuple[tuple[int, int], ...]:
    """A pair (before, after) for each of ``rank`` axes, or a LayerError."""
    if padding == "valid":
        padding = 0
    values = tuple(padding) if isinstance(padding, tuple | list) else (padding,) * (rank or 1)
    pairs = tuple(tuple(v) if isinstance(v, tuple | list) else (v, v) for v in values)
    wrong_rank = rank is not None and len(pairs) != rank
    if wrong_rank or not pairs or not all(len(p) == 2 and all(is_whole(n) and n >= 0 for n in p) for p in pairs):
        expected = "padding to be an integer ≥ 0, one for each axis, a pair (before, after) for each, 'valid' or 'same'"
        remedy = "as in padding=2, for images padding=(2, 1) or ((1, 0), (1, 0)), for sequences padding=((2, 0),)"
        raise LayerError(owner, expected, repr(padding), remedy)
    return tuple((int(low), int(high)) for low, high in pairs)


def is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_images(owner: Any, shape: Shape, rank: int | None = None, channels: int | None = None) -> tuple[int, ...]:
    """The spatial sizes of a batch of this shape, or a LayerError unless it is (m, *n, c) with 1 to 3 spatial axes."""
    spatial = len(shape) - 2
    fits = 1 <= spatial <= 3 and (rank is None or spatial == rank) and channels in (None, shape[-1])
    if not fits:
        axes = "1 to 3 spatial axes" if rank is None else f"{rank} spatial ax{'is' if rank == 1 else 'es'}"
        c = "c" if channels is None else channels
        remedy = "images are (m, H, W, c), sequences (m, T, c): axis 0 is the example, the last one the channel"
        if rank is not None and spatial == rank - 1 and channels in (None, shape[-1]):
            remedy = "give a batch: x[None] for a single example"
        elif rank is not None and spatial == rank - 1:
            remedy = "add the axis of channels: x[..., None] for grey images"
        raise LayerError(owner, f"inputs (m, *n, {c}) with {axes}", str(shape), remedy)
    return shape[1:-1]


def padded(a: Array, win: Window, value: float = 0) -> Array:
    return jax.lax.pad(a, jnp.asarray(value, a.dtype), [(0, 0, 0), *((*p, 0) for p in win.padding), (0, 0, 0)])


def taps(a: Array, win: Window, value: float = 0) -> list[Array]:
    """The windows' entries: for each place in the window, in row-major order, those of all windows there, (m, *n_out, c)."""
    a = padded(a, win, value)
    return [tap(a, win, place) for place in places(win)]


def places(win: Window) -> list[tuple[int, ...]]:
    """The places in the window, in row-major order."""
    return list(itertools.product(*map(range, win.size)))


def tap(a: Array, win: Window, place: tuple[int, ...]) -> Array:
    """The entries at one place of all windows, a strided slice of the padded input."""
    starts = [d * l for d, l in zip(win.dilation, place, strict=True)]
    stops = [i + s * (n - 1) + 1 for i, s, n in zip(starts, win.stride, win.n_out, strict=True)]
    return jax.lax.slice(a, (0, *starts, 0), (a.shape[0], *stops, a.shape[-1]), (1, *win.stride, 1))


def overlap_add(parts: Sequence[Array], axis: int, win: Window) -> Array:
    """The transpose of `taps` along one spatial axis: the sum over l of parts[l], entry j of it placed at s·j + d·l − p.

    Places r, r + s, r + 2s, ... are summed for each r < s, by plain shifts; then the s sums are interleaved.
    """
    s, (low, _), at = win.stride[axis], win.padding[axis], 1 + axis
    blocks, zero = -(-max(win.n_padded[axis], low + win.n_in[axis]) // s), jnp.zeros((), parts[0].dtype)
    sums: list[Any] = [None] * s
    for l, part in enumerate(parts):
        shift, r = divmod(win.dilation[axis] * l, s)
        edges = [(0, 0, 0)] * part.ndim
        edges[at] = (shift, blocks - shift - part.shape[at], 0)
        placed = jax.lax.pad(part, zero, edges)
        sums[r] = placed if sums[r] is None else sums[r] + placed
    nothing = jnp.zeros_like(next(total for total in sums if total is not None))
    whole = jnp.stack([nothing if total is None else total for total in sums], axis=at + 1)
    whole = whole.reshape(*nothing.shape[:at], blocks * s, *nothing.shape[at + 1 :])
    return jax.lax.slice_in_dim(whole, low, low + win.n_in[axis], axis=at)
