"""The file of `save`: an uncompressed .npz archive with an array of each leaf's bytes, and a description of them in JSON.

Reading it, nothing is believed: what the description says is compared with the bytes that are there, before memory is taken.
"""

import contextlib
import functools
import json
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DESCRIPTION = "fnnet.json"


def is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def check_kept(function: str, name: str, dtype: Any) -> None:
    """A TypeError for a dtype that JAX has no arrays of, a ValueError for one that it narrows."""
    if isinstance(dtype, np.dtype) and (kept := _kept(dtype, jnp.result_type(float))) != dtype:
        raise ValueError(
            f"{function}: expected to keep {name} in {dtype}, got {kept}; "
            f"jax.config.update('jax_enable_x64', True) allows 64-bit arrays"
        )


@functools.cache
def _kept(dtype: Any, default: Any) -> Any:
    """The dtype in which JAX has arrays of this one, for its default dtype (float64 where 64 bits are allowed)."""
    try:
        return jax.device_put(np.empty(0, str(dtype))).dtype
    except RuntimeError as error:
        raise TypeError(str(error)) from error


@functools.cache
def _key(impl: str) -> tuple[Any, Any]:
    """A PRNG key of that implementation and its data, as ``jax.ShapeDtypeStruct``."""
    return jax.eval_shape(lambda: (key := jax.random.key(0, impl=impl), jax.random.key_data(key)))


def write(file: IO[bytes], leaves: list[tuple[str, Any]], structure: dict[str, Any]) -> None:
    """Write the leaves, each with its name; ``structure`` joins the description."""
    described = [_describe(name, leaf) for name, leaf in leaves]
    text = json.dumps({"format": 1, "leaves": [about for about, _ in described], **structure})
    arrays: dict[str, Any] = {f"{i}": array for i, (_, array) in enumerate(described)}
    arrays[DESCRIPTION] = np.frombuffer(text.encode(), np.uint8)
    np.savez(file, **arrays)


def _describe(name: str, leaf: Any) -> tuple[dict[str, Any], np.ndarray]:
    """What the description says of a leaf, and its bytes as an array that NumPy can store."""
    got = type(leaf).__name__
    try:
        if is_key(leaf):
            if not isinstance(impl := jax.random.key_impl(leaf), str):
                raise TypeError(f"{impl} is not registered")
            about = {"path": name, "dtype": f"key<{impl}>", "shape": list(leaf.shape)}
            return about, _held(name, leaf, lambda part: np.asarray(jax.random.key_data(part)))
        if isinstance(leaf, np.ma.MaskedArray):
            raise TypeError("its mask would be lost")
        array = _held(name, jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf, np.asarray)
        array = np.asarray(array, order="C")
        got = f"{got} of {array.dtype}"
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not isinstance(leaf, jax.Array):
            check_kept("save", name, array.dtype)
    except (TypeError, OverflowError) as error:
        raise TypeError(
            f"save: expected arrays and numbers, got {got} at {name or 'the top'} ({error}); leave it out of the pytree"
        ) from error
    about = {"path": name, "dtype": str(array.dtype), "shape": list(array.shape)}
    return about, array if _is_numpy(array.dtype) else np.frombuffer(array.tobytes(), np.uint8)


def _held(name: str, leaf: Any, on_host: Callable[[Any], np.ndarray]) -> np.ndarray:
    """The leaf on the host, put together from this process's parts where it lies on several hosts: each may hold all of it.

    Raises:
        ValueError: where this process does not hold all of it.
    """
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return on_host(leaf)
    places = leaf.sharding.devices_indices_map(leaf.shape)  # a key's shard has the index of its data
    parts = {str(places[part.device]): (places[part.device], part.data) for part in leaf.addressable_shards}
    every = set(map(str, places.values()))
    if missing := len(every - parts.keys()):
        raise ValueError(
            f"save: expected arrays that this process holds whole, got {name or 'the top'} spread over hosts, {missing} of "
            f"its {len(every)} parts on others; save it with orbax.checkpoint, where each writes its own, or replicate it"
        )
    pieces = [(index, on_host(part)) for index, part in parts.values()]
    whole = np.empty(leaf.shape + pieces[0][1].shape[leaf.ndim :], pieces[0][1].dtype)
    for index, piece in pieces:
        whole[index] = piece
    return whole


def _is_numpy(dtype: np.dtype) -> bool:
    """Whether it is NumPy's own, and not bfloat16 or another that ml_dtypes registers."""
    return dtype.isbuiltin != 2


class Leaf(NamedTuple):
    """What the description says of a leaf (``dtype``, ``shape``), and the entry that holds its ``bytes``."""

    name: str
    about: str
    dtype: Any
    shape: tuple[int, ...]
    impl: str | None
    bytes: jax.ShapeDtypeStruct
    entry: zipfile.ZipInfo

    @property
    def header(self) -> int:
        """How much of the entry is left for the header of the .npy format."""
        return self.entry.file_size - math.prod(self.bytes.shape) * self.bytes.dtype.itemsize


def require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """One ValueError for all that a file which is no such file, or no longer whole, brings about in its readers."""
    try:
        yield
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        reason = (
            str(error)
            if isinstance(error, ValueError | OSError | zipfile.BadZipFile)
            else f"{type(error).__name__} {error}"
        )
        raise ValueError(
            f"load: expected a file written by fn.save, got {path} ({reason:.200}); save it again with fn.save"
        ) from error


def contents(archive: zipfile.ZipFile, size: int) -> tuple[list[Leaf], dict[str, Any]]:
    """The leaves and the description, which fit the entries of the archive, and these its size."""
    listed = archive.infolist()
    entries = {entry.filename: entry for entry in listed}
    require(len(entries) == len(listed), "two entries of one name")
    plain = all(e.compress_type == zipfile.ZIP_STORED and e.compress_size == e.file_size for e in listed)
    within = sum(e.file_size for e in listed) <= size
    require(plain and within, "entries that are compressed, or larger than the file")
    text = archive.read(entries[f"{DESCRIPTION}.npy"])
    description = json.loads(text[text.index(b"\n") + 1 :])
    require(description["format"] == 1, f"format {description['format']!r:.20}, where this version reads 1")
    leaves = [_leaf(about, entries[f"{i}.npy"]) for i, about in enumerate(description["leaves"])]
    require(len(entries) == len(leaves) + 1, f"{len(entries) - 1} arrays, of which it describes {len(leaves)}")
    require(len({leaf.name for leaf in leaves}) == len(leaves), "two leaves of one name")
    return leaves, description


def _leaf(about: dict[str, Any], entry: zipfile.ZipInfo) -> Leaf:
    name, kind, shape = about["path"], about["dtype"], tuple(about["shape"])
    whole = len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    require(isinstance(name, str) and isinstance(kind, str) and whole, f"a leaf that is {about!r:.80}")
    if kind.startswith("key<"):
        impl = kind[4:-1]
        key, data = _key(impl)
        dtype, stored = key.dtype, jax.ShapeDtypeStruct((*shape, *data.shape), data.dtype)
    else:
        impl, dtype = None, jnp.dtype(kind)
        _kept(dtype, jnp.result_type(float))
        require(str(dtype) == kind, f"the dtype {kind:.40}")
        stored = jax.ShapeDtypeStruct(shape, dtype)
    leaf = Leaf(name, f"{kind}{list(shape)}", dtype, shape, impl, stored, entry)
    require(10 < leaf.header <= 4096, f"{entry.file_size} bytes for {leaf.about} of {name:.80}")
    return leaf


def stored(archive: zipfile.ZipFile, leaf: Leaf) -> np.ndarray:
    """The leaf's bytes as an array; their header says the same as the description."""
    shape, dtype = leaf.bytes.shape, np.dtype(leaf.bytes.dtype)
    with archive.open(leaf.entry) as file:
        header, content = file.read(leaf.header), file.read()
    descr, sizes = (np.lib.format.dtype_to_descr(dtype), shape) if _is_numpy(dtype) else ("|u1", (len(content),))
    start = b"\x93NUMPY\x01\x00" + (leaf.header - 10).to_bytes(2, "little")
    for order in ("C", "F"):
        says = f"{{'descr': {descr!r}, 'fortran_order': {order == 'F'}, 'shape': {sizes}, }}"
        if header.rstrip() == start + says.encode():
            return np.ndarray(shape, dtype, content, order=order)
    raise ValueError(f"an array of another dtype or shape than {leaf.about} of {leaf.name:.80}")


def restored(leaf: Leaf, array: np.ndarray, sharding: Any = None) -> jax.Array:
    """The leaf as a JAX array, uncommitted, or this process's parts of it where the sharding puts them."""
    if sharding is None:
        data = jnp.asarray(array)
    else:
        data = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return data if leaf.impl is None else jax.random.wrap_key_data(data, impl=leaf.impl)
