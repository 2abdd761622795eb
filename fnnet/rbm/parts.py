"""A device's part of a mini-batch: what its rows weigh in a mean, the random numbers that are theirs, the sum of all parts.

The rows lie on the devices one after the other, as many on each. On one device (``over`` None) a part is the whole; else
all of it holds inside ``jax.shard_map``.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.random import define_prng_impl, threefry2x32_p, threefry_prng_impl

from ..devices import Division

__all__ = ["check_numbered", "key_of_part", "share", "summed"]

T = TypeVar("T")


def share(over: Division | None, count: int, dtype: Any) -> Array | None:
    """What each of the device's rows weighs in the mean over ``count`` rows of all devices, the last of which may be filled
    up; None on one device, where it is 1/count."""
    if over is None:
        return None
    return jnp.where(over.own(_size(over, count)) < count, jnp.asarray(1 / count, dtype), 0)


def key_of_part(over: Division | None, key: Array, count: int) -> Array:
    """A key that draws the device's rows of what ``key`` draws for ``count`` rows of all devices."""
    if over is None:
        return key
    return jax.random.wrap_key_data(_from_row(jax.random.key_data(key), over.own(_size(over, count))[0]), impl=ROWS)


def summed(over: Division | None, tree: T) -> T:
    """Σ over the devices."""
    return tree if over is None else jax.lax.psum(tree, over.axis)


def _size(over: Division, count: int) -> int:
    return -(-count // over.n)


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
"""JAX's threefry, which numbers what it draws, from a row on that is part of the key: distributions drawn by such keys have
the rows that follow."""
