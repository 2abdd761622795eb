"""Convolution over 1, 2 or 3 spatial axes, its four equations, and its transpose.

Legend: m examples (axis 0), c channels (the last axis), spatial sizes n; a activation, z weighted input, w kernels
(*k, c_in / groups, c_out), b biases, δ the error. "Convolution" is the notes' equation 5, which sums w_l a_{j+l}: the
cross-correlation of mathematics, as in every framework. Stride s, padding p, dilation d and groups are static.

Each equation has two forms, named by ``algorithm``: "library" (XLA's convolution) and "gemm" (one matrix product over the
windows' entries side by side). "auto" takes what was measured to be faster: the rules are in `fnnet.forms`.

Source: the notes, sections 7.1 and 7.2.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import Activation, at_least_float32, wide_dtype
from ..forms import (
    UNROLLED_PLACES,
    PerPlatform,
    after,
    concatenated,
    contraction,
    examples_at_a_time,
    input_error_by_product,
    is_on_one_device,
    rowwise,
    stored,
    summed,
    summed_squares,
    weight_gradient_by_product,
)
from ..initializers import Initializer, scaled_normal, zeros
from ._cut import of_product
from ._dense import biased, check_bias, weight_and_bias
from ._layer import (
    Cache,
    Layer,
    LayerError,
    Params,
    Sends,
    Shape,
    Shard,
    added_up,
    as_floats,
    check_activation,
    check_leaf,
    check_real,
    drawing_key,
    layer,
)
from ._products import share, share_second_moment, share_square_norms
from ._window import (
    Padding,
    Sizes,
    Window,
    check_images,
    check_padding,
    check_sizes,
    is_whole,
    overlap_add,
    padded,
    places,
    tap,
    taps,
    window,
)

__all__ = ["Conv", "ConvTranspose", "convolve", "cross_correlate", "pad_full", "rot180"]

Algorithm = Literal["auto", "gemm", "library"]
static = functools.partial(jax.jit, static_argnames=("win", "groups", "algorithm"))


@static
def weighted_input(w: Array, a_in: Array, win: Window, groups: int = 1, algorithm: Algorithm = "auto") -> Array:
    """z_jo = Σ_l Σ_c w_lco a_(s·j + d·l − p)c, without the bias.

    As "gemm" the sums over all axes of the window but the first, and over c, are one product, with the entries of its rows
    side by side; its first axis is then a sum of shifted slices. Half precision is summed in float32, here and below.

    Args:
        w: (*k, c_in / groups, c_out).
        a_in: (m, *n_in, c_in), of the same dtype.
        win: where the windows stand, from `window`.
        groups: output channel o reads the input channels of its own group only.
        algorithm: "auto" takes the form that was measured to be faster for these shapes.

    Returns:
        (m, *n_out, c_out). Source: the notes, section 7.1, equation 5.
    """

    def library(w: Array, a_in: Array) -> Array:
        return jax.lax.conv_general_dilated(
            a_in,
            w,
            win.stride,
            win.padding,
            rhs_dilation=win.dilation,
            dimension_numbers=layout(w),
            feature_group_count=groups,
        )

    def gemm(w: Array, a_in: Array) -> Array:
        rows = Window(win.n_in, (1, *win.size[1:]), (1, *win.stride[1:]), win.padding, (1, *win.dilation[1:]))
        entries = stored(jnp.stack(taps(a_in, rows), axis=-2))
        kernels = jnp.moveaxis(w, 0, -2).reshape(math.prod(win.size[1:]), w.shape[-2], win.size[0], w.shape[-1])
        shares = jnp.tensordot(entries, kernels, axes=2, preferred_element_type=wide_dtype(w.dtype))
        k, s, d, n = win.size[0], win.stride[0], win.dilation[0], win.n_out[0]
        parts = (shares[:, d * l : d * l + s * (n - 1) + 1 : s, ..., l, :] for l in range(k))
        return functools.reduce(jnp.add, parts).astype(w.dtype)

    return run(algorithm, library, each_group(gemm, groups), False, win, groups, w, a_in)


@static
def input_error(w: Array, delta: Array, win: Window, groups: int = 1, algorithm: Algorithm = "auto") -> Array:
    """BP2's product, the notes' padding(δ) * rot180(w): ∂C/∂a_ic = Σ_l Σ_o w_lco δ_jo, over the j, l with s·j + d·l − p = i.

    As "library" it is a convolution of δ, padded and spread by the stride, with the rotated kernels, their channels
    swapped; as "gemm" every window's share w δ_j, added up where windows overlap.

    Args:
        w: (*k, c_in / groups, c_out).
        delta: (m, *n_out, c_out).

    Returns:
        (m, *n_in, c_in). Source: the notes, section 7.2.3.
    """

    def library(w: Array, delta: Array) -> Array:
        sides = []
        for n_in, n_out, r, s, (low, _) in zip(win.n_in, win.n_out, win.span, win.stride, win.padding, strict=True):
            sides.append((r - 1 - low, n_in - 1 - s * (n_out - 1) + low))
        return jax.lax.conv_general_dilated(
            delta,
            swapped(jnp.flip(w, range(w.ndim - 2)), groups),
            (1,) * len(sides),
            sides,
            lhs_dilation=win.stride,
            rhs_dilation=win.dilation,
            dimension_numbers=layout(w),
            feature_group_count=groups,
        )

    def gemm(w: Array, delta: Array) -> Array:
        shares = jnp.tensordot(delta, w, axes=(-1, -1), preferred_element_type=wide_dtype(w.dtype))
        at = 1 + len(win.size)
        e = shares.reshape(*shares.shape[:at], math.prod(shares.shape[at:]))
        for axis, k in enumerate(win.size):
            parts = e.reshape(*e.shape[:at], k, e.shape[at] // k)
            e = overlap_add([jax.lax.index_in_dim(parts, l, at, keepdims=False) for l in range(k)], axis, win)
            e = stored(e)
        return e.astype(delta.dtype)

    on_cpu = groups == 1 and input_error_by_product(w, win)
    return run(algorithm, library, each_group(gemm, groups), on_cpu, win, groups, w, delta)


@static
def weight_gradient(delta: Array, a_in: Array, win: Window, groups: int = 1, algorithm: Algorithm = "auto") -> Array:
    """BP4: ∂C/∂w_lco = (1/m) Σ_x Σ_j δ_jo a_(s·j + d·l − p)c, the cross-correlation of a with δ.

    As "library" it is written as an ordinary convolution in which examples and channels have changed places: a's examples are
    summed over as if they were channels. (``jax.grad`` leaves the axes where they are and names them otherwise, which
    XLA runs 12 to 50 times slower inside a loop on CPU.) Half precision is summed in float32.

    Args:
        delta: (m, *n_out, c_out).
        a_in: (m, *n_in, c_in).

    Returns:
        (*k, c_in / groups, c_out). Source: the notes, section 7.2.4, without its rotation.
    """
    wide = wide_dtype(delta.dtype)

    def library(delta: Array, a_in: Array) -> Array:
        # What no window reads is cut off: it would make more places than the kernel has.
        read = zip(win.span, win.n_out, win.stride, win.n_in, win.padding, strict=True)
        g = jax.lax.conv_general_dilated(
            jnp.swapaxes(a_in, 0, -1),
            jnp.moveaxis(delta, 0, -2),
            win.dilation,
            [(low, r + s * (n_out - 1) - n_in - low) for r, n_out, s, n_in, (low, _) in read],
            rhs_dilation=win.stride,
            dimension_numbers=layout(delta),
            batch_group_count=groups,
            preferred_element_type=wide,
        )
        return jnp.moveaxis(g, 0, -2)

    def gemm(delta: Array, a_in: Array) -> Array:
        entries = jnp.moveaxis(jnp.stack(taps(a_in, win)), -1, 1)
        g = jnp.tensordot(entries, delta, axes=delta.ndim - 1, preferred_element_type=wide)
        return g.reshape(*win.size, *g.shape[1:])

    def by_place(delta: Array, a_in: Array) -> Array:
        in_groups = lambda a: a.reshape(*a.shape[:-1], groups, a.shape[-1] // groups)  # noqa: E731
        a, delta, found, alone = padded(a_in, win), in_groups(at_least_float32(delta)), [], is_on_one_device(a_in)
        rows, group = tuple(range(delta.ndim - 2)), (delta.ndim - 2,)
        for place in places(win):
            entries = in_groups(at_least_float32(tap(a, win, place)))
            g = jax.lax.dot_general(entries, delta, ((rows, rows), (group, group)))
            if alone:
                g, a = after(g, a)
            found.append(jnp.swapaxes(g, 0, 1).reshape(g.shape[1], -1))
        return jnp.stack(found).reshape(*win.size, *found[0].shape)

    form, on_cpu = (gemm, weight_gradient_by_product(delta, a_in, win)) if groups == 1 else (by_place, True)
    total = contraction(functools.partial(run, algorithm, library, form, on_cpu, win, groups))(delta, a_in)
    return (total / delta.shape[0]).astype(delta.dtype)


@functools.partial(jax.jit, static_argnames=("win", "groups"))
def weight_shares(delta: Array, a_in: Array, win: Window, groups: int = 1) -> Array:
    """BP4 of each example, ∂C_x/∂w_lco = Σ_j δ_jo a_(s·j + d·l − p)c: one product for each over its windows' entries.

    Args:
        delta: and ``a_in``, ``win``, ``groups``: as of `weight_gradient`.

    Returns:
        (m, *k, c_in / groups, c_out), in at least float32.
    """

    def of_chunk(delta: Array, a_in: Array) -> Array:
        g = jnp.concatenate([share(e, d) for e, d in in_windows(delta, a_in, win, groups)], axis=-1)
        return g.reshape(len(g), *win.size, a_in.shape[-1] // groups, g.shape[-1])

    return rowwise(lambda d, a: concatenated(of_chunk, (d, a), chunk(d, a, win)))(delta, a_in)


@functools.partial(jax.jit, static_argnames=("win", "groups"))
def weight_square_norms(delta: Array, a_in: Array, win: Window, groups: int = 1) -> Array:
    """‖∂C_x/∂w‖² of each example, (m,), a chunk of examples at a time. Arguments as `weight_shares`."""

    def of_chunk(delta: Array, a_in: Array) -> Array:
        return added_up([share_square_norms(e, d) for e, d in in_windows(delta, a_in, win, groups)], delta)

    return rowwise(lambda d, a: concatenated(of_chunk, (d, a), chunk(d, a, win)))(delta, a_in)


@functools.partial(jax.jit, static_argnames=("win", "groups"))
def weight_second_moment(delta: Array, a_in: Array, win: Window, groups: int = 1) -> Array:
    """(1/m) Σ_x (∂C_x/∂w)² entry by entry, shaped like w, a chunk of examples at a time, a quarter of one for gradients (as
    fast, with less memory). Arguments as `weight_shares`."""

    def of_chunk(delta: Array, a_in: Array) -> Array:
        pairs = [map(at_least_float32, pair) for pair in in_windows(delta, a_in, win, groups)]
        g = jnp.concatenate([summed_squares(*pair) for pair in pairs], axis=-1)
        return g.reshape(*win.size, a_in.shape[-1] // groups, g.shape[-1])

    return contraction(lambda d, a: summed(of_chunk, (d, a), chunk(d, a, win, 4)))(delta, a_in) / len(delta)


def in_windows(delta: Array, a_in: Array, win: Window, groups: int) -> list[tuple[Array, Array]]:
    """Of each group the windows' entries (m, P, ∏k · c_in / groups) and the errors (m, P, c_out / groups) of the P places.

    Entries are laid out place by place last, as slices of one channel each.
    """
    (m, *n_in, c), n_out = a_in.shape, math.prod(win.n_out)
    channels = stored(jnp.moveaxis(a_in, -1, 1)).reshape(m * c, *n_in, 1)
    entries = jnp.stack([t.reshape(m, c, n_out) for t in taps(channels, win)], axis=1)
    parts = zip(jnp.split(entries, groups, axis=2), jnp.split(delta, groups, axis=-1), strict=True)
    return [(jnp.swapaxes(stored(e.reshape(m, -1, n_out)), 1, 2), d.reshape(m, n_out, -1)) for e, d in parts]


def chunk(delta: Array, a_in: Array, win: Window, times: int = 1) -> PerPlatform:
    """How many examples' windows and gradients to make at a time, of each so many times."""
    places, entries = math.prod(win.n_out), math.prod(win.size) * a_in.shape[-1]
    return examples_at_a_time(delta, times * entries * (places + delta.shape[-1]))


def run(
    algorithm: Algorithm, library: Callable, gemm: Callable, on_cpu: bool, win: Window, groups: int, *args: Array
) -> Array:
    """The form that ``algorithm`` names; for "auto" the library's, but gemm where ``on_cpu`` prefers it, it runs on a CPU and
    the window is not large. Always gemm for a batch that the compiler may divide where there are groups: it would gather the
    batch for the library's."""
    if groups > 1 and not is_on_one_device(args[-1]):
        return gemm(*args)
    if algorithm == "auto" and on_cpu and math.prod(win.size) <= UNROLLED_PLACES:
        return jax.lax.platform_dependent(*args, cpu=gemm, default=library)
    return gemm(*args) if algorithm == "gemm" else library(*args)


def each_group(form: Callable, groups: int) -> Callable:
    """The form group by group, in at least float32: JAX 0.12 cannot compile some slices of rows of bfloat16 on CPU (LLVM
    aborts)."""

    def in_parts(*args: Array) -> Array:
        parts = zip(*(jnp.split(at_least_float32(a), groups, axis=-1) for a in args), strict=True)
        return jnp.concatenate([form(*part) for part in parts], axis=-1).astype(args[-1].dtype)

    return in_parts


def layout(a: Array) -> tuple[str, str, str]:
    """The axes of input, kernels and output, for a's rank."""
    space = "DHW"[5 - a.ndim :]
    return f"N{space}C", f"{space}IO", f"N{space}C"


def swapped(w: Array, groups: int) -> Array:
    """Input and output channels changed places, group by group: (*k, c_in / g, c_out) -> (*k, c_out / g, c_in)."""
    *k, c, c_out = w.shape
    return jnp.swapaxes(w.reshape(*k, c, groups, c_out // groups), -1, -3).reshape(*k, c_out // groups, groups * c)


# The notes' own words, for one channel: functions of matrices (or of vectors, or of arrays of rank 3).


@jax.jit
def rot180(w: Array) -> Array:
    """w turned by 180°: flipped along every axis. Source: the notes, section 7.2.3."""
    return jnp.flip(jnp.asarray(w))


@functools.partial(jax.jit, static_argnames="size")
def pad_full(delta: Array, size: Sizes) -> Array:
    """δ with size − 1 zeros on every side, so that a window of that size meets each entry at each of its places.

    Source: the notes, section 7.2.3, padding(δ).
    """
    delta = jnp.asarray(delta)
    return jnp.pad(delta, [(k - 1, k - 1) for k in check_sizes("pad_full", "size", size, delta.ndim)])


@jax.jit
def cross_correlate(a: Array, w: Array) -> Array:
    """z_j = Σ_l w_l a_{j+l}, where w fits into a ("valid"): what the notes' equation 5 computes.

    Args:
        a: a vector, a matrix or an array of rank 3.
        w: of the same rank, no larger than a.

    Raises:
        LayerError: for a and w of different or higher rank, or w larger than a.
    """
    a, w = (check_real("cross_correlate", "matrices", jnp.asarray(part)) for part in (a, w))
    dtype = jnp.result_type(a, w)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    if a.ndim != w.ndim:
        got = f"{a.shape} and {w.shape}"
        raise LayerError("cross_correlate", "a and w of the same rank", got, "give two matrices, or two vectors")
    a, w = a[None, ..., None].astype(dtype), w[..., None, None].astype(dtype)
    win = window("cross_correlate", check_images("cross_correlate", a.shape), w.shape[:-2])
    return weighted_input(w, a, win)[0, ..., 0]


@jax.jit
def convolve(a: Array, w: Array) -> Array:
    """z_j = Σ_l w_l a_{j−l+k−1}, where w fits into a ("valid"): the convolution of mathematics, `cross_correlate` with
    rot180(w)."""
    return cross_correlate(a, rot180(w))


@layer
class Convolution(Layer):
    """What `Conv` and `ConvTranspose` share: fields and their checks, parameters, σ and σ'."""

    features: int
    size: Sizes
    activation: Activation
    stride: Sizes = 1
    padding: Padding = 0
    dilation: Sizes = 1
    groups: int = 1
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    algorithm: Algorithm = "auto"
    bias: bool = True

    independent = True

    def __post_init__(self) -> None:
        for name in ("features", "groups"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise LayerError(self, f"a positive number of {name}", repr(value), f"give {name} as an integer")
            object.__setattr__(self, name, int(value))
        for name in ("size", "stride", "dilation"):
            check_sizes(self, name, getattr(self, name))
        if self.padding != "same":
            check_padding(self, self.padding)
        check_activation(self, self.activation)
        check_bias(self)
        if self.algorithm not in ("auto", "gemm", "library"):
            remedy = "'auto' takes the faster form; all give the same result"
            raise LayerError(self, "algorithm 'auto', 'gemm' or 'library'", repr(self.algorithm), remedy)
        if self.features % self.groups:
            got = f"{self.features} features in {self.groups} groups"
            raise LayerError(self, "features that groups divide", got, "each group makes features / groups of them")

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        n_in, c_in = check_images(self, (1, *input_shape)), input_shape[-1]
        if c_in % self.groups:
            got = f"{c_in} channels in {self.groups} groups"
            raise LayerError(
                self, "input channels that groups divide", got, "each group reads its share of the channels"
            )
        size = check_sizes(self, "size", self.size, len(n_in))
        shape, dtype = (*size, c_in // self.groups, self.features), jnp.result_type(float)
        w_key, b_key = jax.random.split(drawing_key(self, key))
        w = {"w": self.weight_init(w_key, shape, dtype, in_axis=-2, out_axis=-1)}
        return {**w, "b": self.bias_init(b_key, (self.features,), dtype)} if self.bias else w

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        rank = jnp.ndim(params["w"]) - 2 if isinstance(params, dict) and "w" in params else a_in.ndim - 2
        size = check_sizes(self, "size", self.size, rank)
        w = check_leaf(self, params, "w", (*size, None, self.features))
        b = check_leaf(self, params, "b", (self.features,)) if self.bias else None
        check_images(self, a_in.shape, rank, w.shape[-2] * self.groups)
        a_in = as_floats(self, a_in, w.dtype)
        dtype = jnp.result_type(a_in, *jax.tree.leaves((w, b)))
        a_in = a_in.astype(dtype)
        z = biased(self.product(w.astype(dtype), a_in), b)
        if probe is not None:
            z = z + probe
        a = self.activation(z)
        return a, (a_in, z, a)

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        """As `Dense`'s, by channels, for the library's convolution: the products over patches are added up before their rows
        are, which would send each row of the window."""
        w = params["w"]
        if any(w.cut) and (self.groups > 1 or self.algorithm != "library"):
            remedy = f"build {type(self).__name__} with these, or give w the spec P()"
            raise LayerError(self, 'algorithm="library" and one group, to cut channels', f"w cut by P{w.cut}", remedy)
        return of_product(self, params, a_in, a_out, len(w.cut) - 1, len(w.cut) - 2, self.activation)

    def product(self, w: Array, a_in: Array) -> Array:
        """The weighted input without the bias."""
        raise NotImplementedError("Convolution: expected Conv or ConvTranspose, got their base class")

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array]:
        _, z, _ = cache
        return self.activation, z

    def error(self, params: Params, cache: Cache, da_out: Array) -> Array:
        _, z, a = cache
        return self.activation.error_in_layer(da_out, z, a)

    def correlated(self, cache: Any, delta: Array) -> tuple[Array, Array, Window]:
        """(δ, a, window) of the cross-correlation of a with δ that BP4 is."""
        raise NotImplementedError("Convolution: expected Conv or ConvTranspose, got their base class")

    def ordered(self, w: Array) -> Array:
        """A gradient of w in the order of its channels."""
        return w

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        w = weight_gradient(*self.correlated(cache, delta), self.groups, self.algorithm)
        return weight_and_bias(self, params, self.ordered(w), delta)

    def example_gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        if self.is_large(params):
            return super().example_gradients(params, cache, delta)
        shares = {
            "w": self.ordered(weight_shares(*self.correlated(cache, delta), self.groups)),
            **self.of_bias(share, delta),
        }
        return {name: g.astype(params[name].dtype) for name, g in shares.items()}

    def square_norms(self, params: Params, cache: Cache, delta: Array) -> Array:
        if self.is_large(params):
            return super().square_norms(params, cache, delta)
        w = weight_square_norms(*self.correlated(cache, delta), self.groups)
        return added_up([w, *self.of_bias(share_square_norms, delta).values()], delta)

    def second_moment(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        if self.is_large(params):
            return super().second_moment(params, cache, delta)
        w = weight_second_moment(*self.correlated(cache, delta), self.groups)
        return {"w": self.ordered(w), **self.of_bias(share_second_moment, delta)}

    def of_bias(self, equation: Callable, delta: Array) -> dict[str, Array]:
        return {"b": equation(delta, None)} if self.bias else {}

    def is_large(self, params: Any) -> bool:
        """Whether the window has more places than are worth slicing out one by one."""
        return math.prod(params["w"].shape[:-2]) > UNROLLED_PLACES


@layer
class Conv(Convolution):
    """A convolution: a = σ(z), z = w ⋆ a_in + b, the kernels w shared by all places.

    Parameters {w (*k, c_in / groups, features), b (features)}. Inputs (m, *n, c_in), outputs (m, *n_out, features) with
    n_out = ⌊(n + p_before + p_after − d (k − 1) − 1) / s⌋ + 1. The rank of the input says whether it is 1-D (sequences (m,
    T, c)), 2-D (images (m, H, W, c)) or 3-D.

    Args:
        features: output channels, the notes' feature maps.
        size: k, the local receptive field; an integer, or one for each spatial axis.
        activation: σ.
        stride: s, likewise.
        padding: p: an integer or one for each axis, a pair (before, after) for each axis, "valid" (0), or "same" (as much as
            gives ⌈n / s⌉ places).
        dilation: d: the receptive field's entries stand d apart.
        groups: channels are split into groups that do not mix; it divides c_in and features.
        weight_init: initialiser of w, N(0, 1/n_in) by default, with n_in = c_in · ∏k / groups.
        bias_init: initialiser of b, 0 by default.
        algorithm: "auto" takes the form of each equation that is faster for its shapes and backend; "library" and "gemm"
            force XLA's convolution or one matrix product over patches.
        bias: whether there is a b; without one the parameters are {w}.

    Raises:
        LayerError: for a field that is none of these, inputs or parameters of another shape, or a window larger than the
            padded input.

    Source: the notes, section 7.1.
    """

    _example = "fn.Conv(20, 5, fn.relu)"

    def window(self, n_in: tuple[int, ...]) -> Window:
        return window(self, n_in, self.size, self.stride, self.padding, self.dilation)

    def product(self, w: Array, a_in: Array) -> Array:
        return weighted_input(w, a_in, self.window(a_in.shape[1:-1]), self.groups, self.algorithm)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        a_in, _, _ = cache
        return input_error(
            params["w"].astype(delta.dtype), delta, self.window(a_in.shape[1:-1]), self.groups, self.algorithm
        )

    def correlated(self, cache: Cache, delta: Array) -> tuple[Array, Array, Window]:
        a_in, _, _ = cache
        return delta, a_in.astype(delta.dtype), self.window(a_in.shape[1:-1])

    def factor_rows(self, params: Params, cache: Cache, delta: Array) -> tuple[dict[str, Array], Array] | None:
        if self.groups > 1:
            return None
        a_in, delta = at_least_float32(cache[0]), at_least_float32(delta)
        places = tuple(range(1, a_in.ndim - 1))
        entries = [jnp.mean(tap, places) for tap in taps(a_in, self.window(a_in.shape[1:-1]))]
        rows = {"w": jnp.concatenate(entries, axis=1)}
        if self.bias:
            rows["b"] = jnp.ones((len(delta), 1), delta.dtype)
        return rows, jnp.sum(delta, places)


@layer
class ConvTranspose(Convolution):
    """The transpose of `Conv`: each entry of the input lays the kernel, times its value, over the output.

    z_(s·j + d·l − p)o = Σ_c w_lco a_jc + b_o, summed where kernels overlap: `Conv`'s BP2 as the forward pass, and `Conv`'s
    forward pass as its BP2. Parameters {w (*k, c_in / groups, features), b (features)}; outputs have
    n_out = s (n − 1) + d (k − 1) + 1 − p_before − p_after places. Its arguments are those of `Conv`; only padding differs.

    Args:
        padding: what is cut off the output: an integer or one for each axis, a pair (before, after) for each axis, "valid"
            (0), or "same" (as much as leaves s·n places).

    Raises:
        LayerError: as `Conv`.

    Source: the notes, section 7.2.3, read forwards; Zeiler et al. (2010).
    """

    _example = "fn.ConvTranspose(20, 5, fn.relu)"

    def window(self, n_in: tuple[int, ...]) -> Window:
        """The window of the convolution whose transpose this is: it reads the output."""
        rank = len(n_in)
        k, s, d = (check_sizes(self, n, getattr(self, n), rank) for n in ("size", "stride", "dilation"))
        whole = [s_ * (n - 1) + d_ * (k_ - 1) + 1 for n, k_, s_, d_ in zip(n_in, k, s, d, strict=True)]
        if self.padding == "same":
            cut = [n - s_ * q for n, s_, q in zip(whole, s, n_in, strict=True)]
            sides = tuple((max(0, c) // 2, c - max(0, c) // 2) for c in cut)
        else:
            sides = check_padding(self, self.padding, rank)
        n_out = tuple(n - low - high for n, (low, high) in zip(whole, sides, strict=True))
        if min(n_out) < 1:
            remedy = "use less padding or a larger kernel"
            raise LayerError(
                self, "padding that leaves some of the output", f"{self.padding} of {tuple(whole)}", remedy
            )
        return Window(n_out, k, s, sides, d)

    def product(self, w: Array, a_in: Array) -> Array:
        win = self.window(a_in.shape[1:-1])
        return input_error(swapped(w, self.groups), a_in, win, self.groups, self.algorithm)

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        a_in, _, _ = cache
        win = self.window(a_in.shape[1:-1])
        w = swapped(params["w"].astype(delta.dtype), self.groups)
        return weighted_input(w, delta, win, self.groups, self.algorithm)

    def correlated(self, cache: Cache, delta: Array) -> tuple[Array, Array, Window]:
        a_in, _, _ = cache
        return a_in.astype(delta.dtype), delta, self.window(a_in.shape[1:-1])

    def ordered(self, w: Array) -> Array:
        return swapped(w, self.groups)
