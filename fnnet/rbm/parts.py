"""A device's part of a mini-batch: which rows it takes, what they weigh in a mean, and the random numbers that are theirs.

On one device a part is the whole. On a mesh all of it holds inside ``jax.shard_map`` over ``axis``.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_prng_impl

__all__ = ["Part", "check_numbered"]

T = TypeVar("T")


class Part(NamedTuple):
    """The part of the device at hand; of the only one where ``axis`` is None."""

    axis: Any = None

    @property
    def devices(self) -> int:
        """How many there are."""
        return 1 if self.axis is None else jax.lax.axis_size(self.axis)

    def rows(self, a: Array, axis: int = 0) -> Array:
        """This device's rows of an array that each device has whole: one after the other, the last ones filled up with 0."""
        if self.axis is None:
            return a
        size = -(-a.shape[axis] // self.devices)
        fill = [(0, size * self.devices - n if i == axis % a.ndim else 0) for i, n in enumerate(a.shape)]
        return jax.lax.dynamic_slice_in_dim(jnp.pad(a, fill), jax.lax.axis_index(self.axis) * size, size, axis)

    def share(self, count: int, dtype: Any) -> Array | None:
        """What each of this device's rows weighs in the mean over ``count`` rows of all devices; None on one device, where
        it is 1/count."""
        return None if self.axis is None else self.rows(jnp.full(count, 1 / count, dtype))

    def key(self, key: Array, count: int) -> Array:
        """A key that draws this device's rows of what ``key`` draws for ``count`` rows."""
        if self.axis is None:
            return key
        first = jax.lax.axis_index(self.axis) * -(-count // self.devices)
        return jax.random.wrap_key_data(_from_row(jax.random.key_data(key), first), impl=ROWS)

    def total(self, tree: T) -> T:
        """Σ over the devices."""
        return tree if self.axis is None else jax.lax.psum(tree, self.axis)


def check_numbered(function: str, key: Any) -> None:
    """Raise a ValueError unless the key's random numbers are numbered, so that a device can draw its own of them."""
    impl = str(jax.random.key_impl(key))
    numbered = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if impl != "threefry2x32" or not numbered:
        got = f"keys of {impl}" if numbered else "jax_threefry_partitionable=False"
        raise ValueError(
            f"{function}: expected threefry keys and JAX's default jax_threefry_partitionable=True on a mesh, got {got}, of "
            f"which a device cannot draw its own part; make one with jax.random.key(seed, impl='threefry2x32')"
        )


def _from_row(keys: Array, first: Array) -> Array:
    """Threefry's keys (..., 2) and the first row as those of `ROWS` (..., 3)."""
    first = jnp.broadcast_to(first.astype(keys.dtype), (*keys.shape[:-1], 1))
    return jnp.concatenate([keys, first], axis=-1)


def _bits(key: Array, width: int, shape: tuple[int, ...]) -> Array:
    """Threefry's random bits of the entries from row key[2] on: those of entry i, in row-major order, are the hash of i
    (for fewer than 2³² entries in all)."""
    number = jnp.full(shape, key[2])
    for axis, size in enumerate(shape):
        number = number * jnp.uint32(size if axis else 1) + jax.lax.broadcasted_iota(number.dtype, shape, axis)
    high, low = threefry2x32_p.bind(key[0], key[1], jnp.zeros_like(number), number)
    if width == 64:
        return high.astype(jnp.uint64) << 32 | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{width}")


ROWS = define_prng_impl(
    key_shape=(3,),
    seed=lambda seed: _from_row(threefry_prng_impl.seed(seed), jnp.uint32(0)),
    split=lambda key, shape: _from_row(threefry_prng_impl.split(key[:2], shape), key[2]),
    random_bits=_bits,
    fold_in=lambda key, data: _from_row(threefry_prng_impl.fold_in(key[:2], data), key[2]),
    name="rows of threefry2x32",
    tag="rows",
)
"""JAX's threefry, which numbers what it draws, from a row on that is part of the key."""
