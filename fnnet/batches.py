"""Which examples each step of an epoch takes, and where: all on one device, or divided among many."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from .devices import WHOLE, Division, check_divides, check_dividing, division_of, division_of_run, is_whole
from .given import Examples
from .layers._layer import Layer

__all__ = [
    "ONE", "Layout", "all_of_step", "laid_out", "layout_of_batches", "numbered", "of_device", "order", "part_of_device",
    "placed", "total",
]  # fmt: skip


class Layout(NamedTuple):
    """How a data set lies on the devices.

    Attributes:
        over: how mini-batches are divided; None for one device, and where the compiler divides.
        cut: whether each device has its part of the data set, else it has all of it.
        block: whether a mini-batch takes as many examples of each device's own part, which then shuffles by itself.
        mesh: where the data lie, if on one.
    """

    over: Division | None = None
    cut: bool = False
    block: bool = False
    mesh: Any = None

    def in_blocks(self, batch_size: int) -> Any:
        """The batch size, in how many parts as well where the devices' own parts make it."""
        return (batch_size, self.over.n) if self.block and self.over else batch_size


ONE = Layout()


def laid_out(
    function: str, net: Layer, params: Any, data: Examples, mesh: Any, shuffle: str, batch_size: int | None = None
) -> tuple[Layout, Examples]:
    """(the layout, the data so placed) for ``mesh=`` and ``shuffle=`` of a function.

    Without a mesh it is that on which the data lie already, where there is one. A network that mixes examples, or with
    parameters that are divided themselves, is divided by the compiler.

    Raises:
        ValueError: for data that only this process has where there are several, a mesh without an axis for the examples, a
            shuffle that is neither "global" nor "block", and what the devices do not divide in blocks.
        LayerError: for a layer that mixes examples, in blocks or on an explicit mesh.
    """
    over, cut = division_of_run(function, mesh, shuffle, data.x)
    if over is None:
        return ONE, data
    by_compiler = _by_compiler(net, params)
    if shuffle == "block":
        check_divides(function, len(data.x), over, "data")
        if batch_size is not None:
            check_divides(function, batch_size, over, "a batch_size")
        cut = True
    if by_compiler and (shuffle == "block" or over.mesh.explicit_axes):
        check_dividing(function, net, params, over)
    placed = jax.device_put(data, NamedSharding(over.mesh, over.rows if cut else WHOLE))
    return Layout(None if by_compiler else over, cut, shuffle == "block", over.mesh), placed


def _by_compiler(net: Layer, params: Any) -> bool:
    """Whether the equations cannot run on each device by itself."""
    return not (net.independent and all(map(is_whole, jax.tree.leaves(params))))


def layout_of_batches(function: str, net: Layer, params: Any, mesh: Any, shuffle: str) -> Layout:
    """The layout of mini-batches that are given one by one.

    Raises:
        ValueError: for another shuffle than "global", a mesh without an axis for the examples, and several processes without
            a mesh.
        LayerError: for a layer that mixes examples on an explicit mesh.
    """
    if shuffle != "global":
        raise ValueError(
            f"{function}: expected no shuffle= with data from a function, which has an order of its own, got {shuffle!r}"
        )
    if mesh is None:
        if jax.process_count() > 1:
            raise ValueError(
                f"{function}: expected mesh= for batches from {jax.process_count()} processes, got none; each would train by "
                f"itself"
            )
        return ONE
    over = division_of(function, mesh)
    by_compiler = _by_compiler(net, params)
    if by_compiler and mesh.explicit_axes:
        check_dividing(function, net, params, over)
    return Layout(None if by_compiler else over, True, False, mesh)


def placed(layout: Layout, batch: Examples) -> tuple[Examples, int]:
    """(a given mini-batch on the layout's devices, the number of its examples over all processes): without waiting.

    Where the devices do not divide it, it is filled up with examples of weight 0 (or, where the compiler divides, each
    device gets all of it).

    Raises:
        ValueError: for a part of one of several processes that its devices do not divide.
    """
    if layout.mesh is None:
        return jax.device_put(batch), len(batch.x)
    over, processes = layout.over or division_of("fit", layout.mesh), jax.process_count()
    count, rows = len(batch.x), NamedSharding(layout.mesh, over.rows)
    if processes > 1 and not (isinstance(batch.x, Array) and not batch.x.is_fully_addressable):
        if count % (own := over.n // processes):
            raise ValueError(
                f"expected a process's part of a batch that its {own} devices divide, got {count} examples; give as many to "
                f"each device"
            )
        part = lambda a: jax.make_array_from_process_local_data(rows, np.asarray(a))  # noqa: E731
        return jax.tree.map(part, batch), count * processes
    if missing := -count % over.n:
        if layout.over is None:
            return jax.device_put(batch, NamedSharding(layout.mesh, WHOLE)), count
        batch = jax.tree.map(lambda a: _repeated_last(a, missing), batch)
        batch = _counting(batch, np.arange(count + missing) < count)
    return jax.device_put(batch, rows), count


def _repeated_last(a: Any, times: int) -> Any:
    like = np if isinstance(a, np.ndarray) else jnp
    return like.pad(a, [(0, times), *[(0, 0)] * (a.ndim - 1)], mode="edge")


def numbered(layout: Layout, batch: Examples, count: int) -> tuple[Array | None, float]:
    """Of a device's part of a mini-batch that was `placed`: the numbers and the factor, as of `of_device`."""
    if layout.over is None:
        return None, 1.0
    size = len(batch.x)
    return layout.over.own(size), size * layout.over.n / count


def total(layout: Layout, data: Examples) -> int:
    """N, from what a device has."""
    return len(data.x) * (layout.over.n if layout.over and layout.cut else 1)


def order(layout: Layout, key: Array, n: int) -> Array:
    """The examples in the order in which an epoch takes them, as numbers from 0: of its own part on each device of a block
    layout, the same on all devices otherwise."""
    if not (layout.block and layout.over):
        return jax.random.permutation(key, n)
    return jax.random.permutation(jax.random.fold_in(key, jax.lax.axis_index(layout.over.axis)), n // layout.over.n)


def of_device(layout: Layout, data: Examples, rows: Array) -> tuple[Examples, Array | None, float]:
    """A device's part of the mini-batch of these rows, as `order` numbers them.

    Returns:
        the examples, their numbers in the mini-batch (None on one device), and the factor by which the mean over the devices
        is the mean over the mini-batch: a mini-batch that the devices do not divide is filled up with examples of weight 0.
    """
    over = layout.over
    if over is None or layout.block:
        taken = jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds", unique_indices=True), data)
        return (taken, over.own(len(rows)), 1.0) if over else (_spread(taken), None, 1.0)
    size = -(-len(rows) // over.n)
    index = over.own(size)
    filled = rows[jnp.minimum(jnp.arange(size * over.n), len(rows) - 1)]
    if layout.cut:
        taken = jax.tree.map(lambda a: _exchanged(over, a, filled), data)
    else:
        taken = jax.tree.map(lambda a: a.at[filled[index]].get(mode="promise_in_bounds"), data)
    return _counting(taken, index < len(rows)), index, size * over.n / len(rows)


def part_of_device(layout: Layout, data: Examples) -> tuple[Examples, float]:
    """A device's part of the whole data set, and the factor as of `of_device`."""
    if layout.over is None or layout.cut:
        return data, 1.0
    n = len(data.x)
    size = -(-n // layout.over.n)
    index = layout.over.own(size)
    taken = jax.tree.map(lambda a: a.at[jnp.minimum(index, n - 1)].get(mode="promise_in_bounds"), data)
    return _counting(taken, index < n), size * layout.over.n / n


def all_of_step(layout: Layout, data: Examples, rows: Array) -> Examples:
    """The whole mini-batch of these rows, on every device."""
    taken, _, _ = of_device(layout, data, rows)
    if layout.over is None:
        return taken
    size, over = len(rows) * (layout.over.n if layout.block else 1), layout.over
    every = jax.tree.map(lambda a: jax.lax.all_gather(a, over.axis, tiled=True)[:size], taken)
    return Examples(every.x, every.y, {name: every.extras[name] for name in data.extras})


def _spread(data: Examples) -> Examples:
    """A mini-batch, divided by the compiler where the data lie on a mesh that it sees to; else each device would run all."""
    mesh = jax.typeof(data.x).sharding.mesh
    names = mesh.auto_axes
    if not names or (len(names) > 1 and "data" not in names):
        return data
    rows = NamedSharding(mesh, PartitionSpec("data" if len(names) > 1 else names[0]))
    return jax.lax.with_sharding_constraint(data, rows)


def _counting(data: Examples, counts: Any) -> Examples:
    """Examples with weight 0 where they do not count."""
    weights = data.extras.get("weights")
    like = np if isinstance(counts, np.ndarray) and not isinstance(weights, Array) else jnp
    weights = like.ones(counts.shape, np.float32) if weights is None else weights
    of_terms = like.expand_dims(counts, tuple(range(1, weights.ndim)))
    return data._replace(extras={**data.extras, "weights": like.where(of_terms, weights, like.zeros_like(weights))})


def _exchanged(over: Division, a: Array, rows: Array) -> Array:
    """A device's share of these rows of an array of which each has a part. A row is 0 but on the device that has it."""
    if a.dtype == bool:
        return _exchanged(over, a.astype(jnp.uint8), rows).astype(bool)
    here = rows - (jax.lax.axis_index(over.axis) * len(a)).astype(rows.dtype)
    mine = jnp.expand_dims((here >= 0) & (here < len(a)), tuple(range(1, a.ndim)))
    held = a.at[jnp.clip(here, 0, len(a) - 1)].get(mode="promise_in_bounds")
    return jax.lax.psum_scatter(jnp.where(mine, held, jnp.zeros_like(held)), over.axis, tiled=True)
