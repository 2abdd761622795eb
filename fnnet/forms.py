"""What persuades the compiler, in one room, so that an equation reads like its formula.

Nothing here changes a result but for rounding. Each rule says what was measured, on two CPU cores; where a choice is
no better on another backend, it is left to XLA there. The rules that a layer states about itself are `in_loop` and
``kept`` of the contract.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

__all__ = [
    "after",
    "below_all_kept",
    "contraction",
    "mean_of_products",
    "mean_of_products_in_loop",
    "rowwise",
    "stored",
    "varying",
    "varying_axes",
]

T = TypeVar("T")


def stored(x: T) -> T:
    """x (a pytree), computed once and stored: XLA computes what looks cheap anew in every fusion that reads it, and
    fuses what a loop computes with the slice of a buffer that it reads or writes, which then is copied whole.

    Without it: the book's convolutional network 1.2 (m = 32) and 2.0 times (m = 128) as slow, an LSTM 1.2 times. JAX
    0.10.2 drops it before it fuses, but for loops: there only the LSTM gains.
    """
    return jax.lax.optimization_barrier(x)


def varying(tree: T, of: Any) -> T:
    """The tree, marked as different on each device wherever a leaf of ``of`` is: what a loop starts from inside of
    ``jax.shard_map`` has to be so where what it computes is. The same numbers; elsewhere the tree as it is."""
    axes = frozenset().union(*map(varying_axes, jax.tree.leaves(of)))

    def marked(leaf: Any) -> Any:
        missing = tuple(sorted(axes - varying_axes(leaf)))
        if hasattr(jax.lax, "pcast"):
            return jax.lax.pcast(leaf, missing, to="varying")
        return jax.lax.pvary(leaf, missing)  # pyright: ignore[reportAttributeAccessIssue]: of JAX before 0.9

    return jax.tree.map(marked, tree) if axes else tree


def varying_axes(a: Any) -> frozenset[str]:
    """The axes of the enclosing ``jax.shard_map`` over which an array may differ; none outside of one that checks."""
    aval = jax.typeof(a)
    return aval.vma if hasattr(aval, "vma") else aval.manual_axis_type.varying  # pyright: ignore


def is_on_one_device(a: Array) -> bool:
    """Whether all examples (axis 0) that the computation sees are known to be on one device: inside ``jax.shard_map``, on an
    explicit mesh that does not divide them, and where there is no other device. Elsewhere the compiler divides what it is
    given only when all is written, and a form that reads single examples, or loops over them, would move them."""
    sharding = jax.typeof(a).sharding
    mesh = jax.sharding.get_abstract_mesh() if sharding.mesh.empty else sharding.mesh
    if mesh.empty:
        return jax.device_count() == 1
    by_compiler = [mesh.shape[name] for name in mesh.auto_axes]
    return math.prod(by_compiler) == 1 and sharding.spec[:1] in ((), (None,))


def devices_of(a: Array) -> int:
    """Among how many devices the examples may be divided, as far as is known."""
    return 1 if is_on_one_device(a) else jax.device_count()


def contraction(equation: Callable[..., T]) -> Callable[..., T]:
    """An equation of arrays, the batch first, that sums over examples. On an explicit mesh that divides them the compiler
    divides the equation, and each device has the whole of its result."""
    return _by_compiler(equation, False)


def rowwise(equation: Callable[..., T]) -> Callable[..., T]:
    """An equation of arrays, the batch first, whose results have the examples on axis 0. On an explicit mesh that divides
    them the compiler divides the equation, and its results are divided as the batch is."""
    return _by_compiler(equation, True)


def _by_compiler(equation: Callable, rows: bool) -> Callable:
    @functools.wraps(equation)
    def run(batch: Array, *others: Any) -> Any:
        sharding = jax.typeof(batch).sharding
        if not any(sharding.spec):
            return equation(batch, *others)
        out = jax.sharding.PartitionSpec(*sharding.spec[:1] if rows else ())
        with jax.sharding.use_abstract_mesh(sharding.mesh):
            return jax.sharding.auto_axes(equation, out_sharding=out)(batch, *others)

    return run


def after(d: Any, x: T) -> tuple[Any, T]:
    """(d, x), x only once d is there: what is computed from x again is neither shared with the first time nor run
    early, as in ``jax.checkpoint``. (Inside a loop on a CPU, four repeated blocks have the same temporaries without.)"""
    return jax.lax.optimization_barrier((d, x))


SMALL_BATCH, SMALL_WEIGHTS = 16, 4096
"""Up to which numbers of rows, and of entries of a gradient, a sum over examples is written out: the product needs a
copy of δ with its axes exchanged, which takes longer."""


@contraction
def mean_of_products(delta: Array, a: Array) -> Array:
    """(1/m) Σ_x δ_j a_k over the examples x and all axes between, (n_out, n_in).

    For a small batch of rows and a small result the sum is written out; else it is one product, the 1/m applied to its first
    factor (to the result: 0.7 times as fast at m = 10). Of sequences and images XLA would turn that factor, and compute it
    anew for it. So it is turned and stored before, and it is a where that and turning the result copy less than turning δ:
    `Dense(512, gelu)` on 12 sequences of 64 steps is 1.2 times as fast as by XLA's order, 3.3 times without a bias. (Rows
    gain as well, 784 to 100 at m = 32 1.5 times, but need a second δ in memory.)

    Args:
        delta: (m, ..., n_out).
        a: (m, ..., n_in).
    """
    m, n_out, n_in = delta.shape[0], delta.shape[-1], a.shape[-1]
    if is_small_batch_of_rows(delta) and n_out * n_in <= SMALL_WEIGHTS:
        return written_out(delta / m, a)
    if delta.ndim == 2:
        return product_of_rows(delta / m, a)
    rows = math.prod(delta.shape[:-1])
    if rows * n_in + n_in * n_out < rows * n_out:
        return stored(product_of_columns(a / m, delta)).T
    return product_of_columns(delta / m, a)


def product_of_rows(delta: Array, a: Array) -> Array:
    """Σ_x δ_x a_xᵀ as one product."""
    return jax.lax.dot_general(delta, a, (((0,), (0,)), ((), ())))


def written_out(delta: Array, a: Array) -> Array:
    """Σ_x δ_x a_xᵀ written out on a CPU; elsewhere as one product."""
    return jax.lax.platform_dependent(delta, a, cpu=sum_of_outer_products, default=product_of_rows)


def product_of_columns(a: Array, b: Array) -> Array:
    """Σ a_j b_k over all axes but the last, a turned first."""
    columns, n = stored(jnp.moveaxis(a, -1, 0)), a.ndim
    return jax.lax.dot_general(columns, b, ((tuple(range(1, n)), tuple(range(n - 1))), ((), ())))


@contraction
def mean_of_products_in_loop(delta: Array, a: Array) -> Array:
    """`mean_of_products` where the update follows at once: of a small batch of rows the sum is written out whatever
    the size of the result. XLA fuses it with the update into one pass over w, in place, where a product would be
    stored and read again: an epoch of 784-100-10 at m = 10 takes 0.25 s for 0.48 s. Of other rows the product is divided by
    m, which is part of the update's pass, where a scaled copy of δ is one of its own: a step of 784-500-500-2000-10 at
    m = 100 takes 0.92 of the time."""
    if is_small_batch_of_rows(delta):
        return written_out(*stored((delta / len(delta), a)))
    return product_of_rows(delta, a) / len(delta) if delta.ndim == 2 else mean_of_products(delta, a)


def is_small_batch_of_rows(delta: Array) -> bool:
    """Whether δ is (m, n) with a small m, all on one device."""
    return delta.ndim == 2 and 0 < len(delta) <= SMALL_BATCH and is_on_one_device(delta)


def sum_of_outer_products(delta: Array, a: Array) -> Array:
    """Σ_x δ_x a_xᵀ written out and added by halves: shorter chains of additions, so faster and more exact."""
    half = len(delta) // 2
    if half == 0:
        return delta[0][:, None] * a[0][None, :]
    return sum_of_outer_products(delta[:half], a[:half]) + sum_of_outer_products(delta[half:], a[half:])


def below_all_kept(layers: Iterable[Any]) -> Iterator[bool]:
    """Of layers in a row, whether each reads what the compiler keeps in memory: above one that says ``kept = False``
    a sum that is written out would compute that one's output again for every weight."""
    return itertools.accumulate(layers, lambda kept, part: kept and part.kept, initial=True)


ROWS = 1024
"""How many rows (steps times examples) the products of a recurrent backward pass take at a time: enough for their
speed, few enough for the cache."""

STATES = 2**12
"""How many states of a Boltzmann machine are enumerated at a time."""

WHOLE_BATCH_BYTES, CHUNK_BYTES, SMALLEST_CHUNK = 16 * 2**20, 8 * 2**20, 32
"""A batch is run in chunks where the backward pass reads more than the first, in chunks that read the second:
compiled temporaries above about 16 MiB cost page faults at every call on a CPU, 0.35 ms for each MB."""

UNROLLED_PLACES = 64
"""Windows with more places than this are not unrolled: compile time grows with the number of slices."""


def forward_only(whole: Callable[[Array], T], slices: Callable[[Array], T], a: Array) -> T:
    """The largest of each window where no backward pass follows: ``whole`` is one operation, ``slices`` compare slices.

    On a CPU XLA of JAX 0.10 runs a convolution, its activation, a whole pooling and the next convolution as one kernel,
    which slices break up: the book's network takes 0.75, 0.56, 0.40 and 0.19 of the time forwards at m = 10, 32, 128 and
    512. With a backward pass behind it, and in JAX 0.12, slices are as fast or faster (3×3 convolutions 1.1 times)."""
    if jax.__version_info__ < (0, 11):
        return jax.lax.platform_dependent(a, cpu=whole, default=slices)
    return slices(a)


CACHE_BYTES = 3 * 2**19
"""Up to which size a convolution's entries side by side pay as one product. (Of the forward pass they do not: 20 channels
of 12×12 by 40 kernels of 5×5 at m = 10, 32, 64 took 0.7 to 1.0 of the product's time by the library on JAX 0.10.2, and
0.9 on 0.12.0.1: two cores of an AMD EPYC, family 25.)"""


def input_error_by_product(w: Array, win: Any) -> bool:
    """Whether BP2 of a convolution is a product whose shares are added up: up to 32 channels and an input much larger
    than the output (2.4 times as fast), or any in float64, for which the library's is slow."""
    waste = math.prod(win.n_in) / math.prod(win.n_out)
    return (w.shape[-2] <= 32 and waste >= 1.5) or (w.dtype == jnp.float64 and waste > 1)


def weight_gradient_by_product(delta: Array, a_in: Array, win: Any) -> bool:
    """Whether BP4 of a convolution is a product over the entries side by side: where they fit in the cache (2 times
    as fast for one or two channels)."""
    entries = math.prod(delta.shape[:-1]) * math.prod(win.size) * a_in.shape[-1]
    return entries * a_in.dtype.itemsize <= CACHE_BYTES


SHARE_BYTES = 2**20
"""How many bytes of single examples' gradients are there at a time, where no more than a sum of them is kept. (Times are
alike from 256 KiB to 16 MiB: a convolution's norms 2.1 to 2.2 ms, a cell's 1.7 to 1.9. Off the CPU, where nothing was
measured, 256 times as many, so that a device has work.)"""


class PerPlatform(NamedTuple):
    """How many examples to take at a time, by the platform that a program is compiled for: it may be exported to another than
    the one that it was written on."""

    cpu: int
    default: int


def by_size(form: Callable[[int], T], size: int | PerPlatform) -> T:
    """form(size), of the platform's size where there are two."""
    cpu, default = size if isinstance(size, PerPlatform) else (size, size)
    if cpu == default:
        return form(cpu)
    return jax.lax.platform_dependent(cpu=lambda: form(cpu), default=lambda: form(default))


def examples_at_a_time(a: Array, entries: int) -> PerPlatform:
    """How many examples of a batch to take at a time, each of which makes so many entries, in float32 at least; as many on
    each of the devices that may share it."""
    fitting = (factor * SHARE_BYTES // (entries * max(4, a.dtype.itemsize)) for factor in (1, 256))
    return PerPlatform(*(min(len(a), max(1, n) * devices_of(a)) for n in fitting))


def by_inner_products(delta: Array, a: Array) -> bool:
    """Whether an example's norm is faster from inner products of places, P² (n_out + n_in) products, than from its gradient,
    P n_out n_in. The former are up to 1.75 times as many and still level: at 0.27, 1.0, 1.75 and 2.0 times as many the
    gradient took 3.5, 1.3 to 1.8, 1.0 to 1.2 and 0.7 times as long. Shapes (m, P, n_out), (m, P, n_in)."""
    (_, places, n_out), n_in = delta.shape, a.shape[2]
    return 4 * places * (n_out + n_in) <= 7 * n_out * n_in


def concatenated(f: Callable, arrays: Any, size: int | PerPlatform) -> Any:
    """f(*arrays) by chunks of so many examples, its results along axis 0. The arrays may be pytrees."""

    def by(size: int) -> Any:
        if size >= n_examples(arrays):
            return f(*arrays)
        rows, full, chunk, rest = chunks(arrays, size)
        in_rows = lambda parts: jax.tree.map(lambda a: a.reshape(rows, -1, *a.shape[1:]), parts)  # noqa: E731
        _, parts = jax.lax.scan(lambda _, i: (None, in_rows(f(*chunk(i)))), None, jnp.arange(full))
        parts = jax.tree.map(lambda a: jax.lax.collapse(jnp.moveaxis(a, 0, 1), 1, 3), parts)
        others = [] if rest is None else [in_rows(f(*rest))]
        return jax.tree.map(lambda *a: jax.lax.collapse(jnp.concatenate(a, axis=1), 0, 2), parts, *others)

    return by_size(by, size)


def summed(f: Callable, arrays: Any, size: int | PerPlatform) -> Any:
    """f(*arrays), which is a sum over examples, by chunks of so many."""

    def by(size: int) -> Any:
        if size >= n_examples(arrays):
            return f(*arrays)
        _, full, chunk, rest = chunks(arrays, size)
        zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: f(*chunk(0))))
        add_one = lambda total, i: (jax.tree.map(jnp.add, total, f(*chunk(i))), None)  # noqa: E731
        total, _ = jax.lax.scan(add_one, zeros, jnp.arange(full))
        return total if rest is None else jax.tree.map(jnp.add, total, f(*rest))

    return by_size(by, size)


def summed_squares(delta: Array, a: Array) -> Array:
    """Σ_x (Σ_p δ_p a_pᵀ)² entry by entry, (n_out, n_in), from (m, P, n_out) and (m, P, n_in).

    On a CPU one example after the other: of JAX 0.10.2 a batch of products takes 15 times as long there (32 examples of 28
    places, 512 and 128 units), of 0.12.0.1 as long."""

    def in_turn(delta: Array, a: Array) -> Array:
        def add_one(total: Array, example: tuple[Array, Array]) -> tuple[Array, None]:
            delta, a = stored(example)
            return total + jnp.square(a.T @ delta), None

        zeros = jnp.zeros((a.shape[-1], delta.shape[-1]), delta.dtype)
        return jax.lax.scan(add_one, varying(zeros, (delta, a)), (delta, a))[0].T

    def in_chunks(delta: Array, a: Array) -> Array:
        of_chunk = lambda delta, a: jnp.sum(jnp.square(jnp.einsum("mpj,mpk->mjk", delta, a)), axis=0)  # noqa: E731
        return summed(of_chunk, (delta, a), examples_at_a_time(a, delta.shape[-1] * a.shape[-1]))

    if not is_on_one_device(a):
        return in_chunks(delta, a)
    return jax.lax.platform_dependent(delta, a, cpu=in_turn, default=in_chunks)


def chunks(arrays: Any, size: int) -> tuple[int, int, Callable[[Any], Any], Any]:
    """A batch in chunks of ``size`` examples: how many rows it is laid out in, how many chunks there are, i -> the i-th of
    them, and the examples that are left, or None.

    On one device a chunk is a run of neighbours. A batch that may be divided among devices is laid out in gcd(m, size) rows,
    and a chunk is a few columns: where the devices divide m and the size, each has some of the rows, so its part of every
    chunk, and no example moves.
    """
    m = n_examples(arrays)
    alone = all(map(is_on_one_device, jax.tree.leaves(arrays)))
    rows, full = 1 if alone else math.gcd(m, size), m // size
    columns = size // rows

    def taken(start: Any, count: int) -> Any:
        def take(a: Array) -> Array:
            if alone:
                return jax.lax.dynamic_slice_in_dim(a, start, count)
            table = a.reshape(rows, m // rows, *a.shape[1:])
            return jax.lax.collapse(jax.lax.dynamic_slice_in_dim(table, start, count, 1), 0, 2)

        return jax.tree.map(take, arrays)

    rest = taken(full * columns, m // rows - full * columns) if m % size else None
    return rows, full, lambda i: taken(i * columns, columns), rest


def n_examples(arrays: Any) -> int:
    """m."""
    return len(jax.tree.leaves(arrays)[0])
