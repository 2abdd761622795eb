"""Save and load pytrees of arrays: parameters, training states, optimiser states.

One .npz file with the arrays and a JSON description; no pickle. A load believes nothing that a file says: what it declares
is compared with the bytes that are there before memory is taken for it.
"""

import contextlib
import functools
import json
import math
import os
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .files import replacing

__all__ = ["load", "save"]

DESCRIPTION = "fnnet.json"
DEEPEST = 100  # containers in each other that the description may have: parsers of JSON have their limits


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a pytree of arrays, numbers and PRNG keys to one file, atomically; several writers may share a path.

    Arrays come back as JAX arrays of the same dtype, numbers as arrays of JAX's default dtypes. A link is followed to its
    file, whose mode is kept.

    Raises:
        TypeError: for a leaf that is no array of a dtype that JAX has, or a dict whose keys cannot be sorted.
        ValueError: for a 64-bit NumPy array while JAX is not set to keep 64 bits.
        OSError: where the folder cannot be written; an older file at ``path`` is then unharmed.
    """
    leaves, treedef = _named_leaves("save", tree)
    entries, arrays = [], {}
    for i, (name, leaf) in enumerate(leaves):
        entry, arrays[f"{i}"] = _describe(name, leaf)
        entries.append({"path": name, **entry})
    description: dict[str, Any] = {"format": 1, "leaves": entries}
    with contextlib.suppress(TypeError):
        description["structure"] = _structure(treedef)
    arrays[DESCRIPTION] = np.frombuffer(json.dumps(description).encode(), np.uint8)
    with replacing("save", path) as file:
        np.savez(file, **arrays)


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """The pytree that `save` wrote.

    Args:
        path: the file.
        like: a pytree of the same structure, shapes and dtypes (arrays or ``jax.ShapeDtypeStruct``), such as
            ``net.init(key, shape)``; the result has its containers. A leaf of shape (0, ...) stands for any length. Without
            it the tree must be of tuples, lists and dicts, and is returned as it was saved.

    Raises:
        ValueError: for a file that is no fnnet file or is damaged, before more memory is taken than it has bytes; or for
            one that does not match ``like``: the message names the first leaf that differs.
        FileNotFoundError: where there is no file.
    """
    path = Path(os.path.expanduser(path))
    with contextlib.ExitStack() as stack:
        with _reading(path):
            _require(path.is_file() or not path.exists(), "no regular file")
            file = stack.enter_context(open(path, "rb"))
            archive = stack.enter_context(zipfile.ZipFile(file))
            found, description = _contents(archive, os.fstat(file.fileno()).st_size)
        for leaf in found:
            _check_kept("load", leaf.name, leaf.dtype)
        if like is not None:
            order, treedef = _order_of(like, found, path)
        elif "structure" in description:
            with _reading(path):
                order, treedef = _order_described(description["structure"], found)
        else:
            raise ValueError(
                f"load: expected a like= pytree for {path}, which holds containers other than tuples, lists and dicts of "
                f"plain keys, got none; give a pytree of the same structure"
            )
        leaves = []
        for leaf in found:
            with _reading(path):
                array = _array(archive, leaf)
            array = jnp.asarray(array)
            leaves.append(array if leaf.impl is None else jax.random.wrap_key_data(array, impl=leaf.impl))
    return jax.tree.unflatten(treedef, [leaves[i] for i in order])


# What both agree on: the names of leaves, and the dtypes that JAX has.


def _named_leaves(function: str, tree: Any) -> tuple[list[tuple[str, Any]], Any]:
    """The leaves, each with its name such as ``[0]['w']``, and the treedef."""
    DictKey = jax.tree_util.DictKey
    try:
        flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    except ValueError as error:
        raise TypeError(
            f"{function}: expected dicts whose keys can be sorted, got others; give them keys of one type"
        ) from error
    paths = [[DictKey(_plain(k.key)) if isinstance(k, DictKey) else k for k in path] for path, _ in flat]
    names = [jax.tree_util.keystr(tuple(path)) for path in paths]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise TypeError(
            f"{function}: expected a name for each leaf, got {twice} twice; give the keys a repr of their own"
        )
    return [(name, leaf) for name, (_, leaf) in zip(names, flat, strict=True)], treedef


def _plain(key: Any) -> Any:
    """A dict's key with Python's integers and booleans in the place of NumPy's, which are equal to them."""
    if type(key) is tuple:
        return tuple(map(_plain, key))
    return key.item() if isinstance(key, np.integer | np.bool_) else key


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@functools.cache
def _kept(dtype: Any, default: Any) -> Any:
    """The dtype in which JAX, of this default dtype, has arrays of that one; a TypeError where it has none."""
    try:
        return jax.device_put(np.empty(0, dtype)).dtype
    except RuntimeError as error:
        raise TypeError(str(error)) from error


def _check_kept(function: str, name: str, dtype: Any) -> None:
    if isinstance(dtype, np.dtype) and (kept := _kept(dtype, jnp.result_type(float))) != dtype:
        raise ValueError(
            f"{function}: expected to keep {name} in {dtype}, got {kept}; "
            f"jax.config.update('jax_enable_x64', True) allows 64-bit arrays"
        )


# Writing: what the file says of each leaf, and of the containers.


def _describe(name: str, leaf: Any) -> tuple[dict[str, Any], np.ndarray]:
    """A leaf's dtype and shape, and its bytes as an array that NumPy can store."""
    got = type(leaf).__name__
    try:
        if _is_key(leaf):
            if not isinstance(impl := jax.random.key_impl(leaf), str):
                raise TypeError(f"{impl} is not registered")
            return {"dtype": f"key<{impl}>", "shape": list(leaf.shape)}, np.asarray(jax.random.key_data(leaf))
        if isinstance(leaf, np.ma.MaskedArray):
            raise TypeError("its mask would be lost")
        array = np.asarray(jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf, order="C")
        got = f"{got} of {array.dtype}"
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if not isinstance(leaf, jax.Array):
            _check_kept("save", name, array.dtype)
    except (TypeError, OverflowError) as error:
        raise TypeError(
            f"save: expected arrays and numbers, got {got} at {name} ({error}); leave it out of the pytree"
        ) from error
    stored = array if array.dtype.isbuiltin != 2 else np.frombuffer(array.tobytes(), np.uint8)
    return {"dtype": str(array.dtype), "shape": list(array.shape)}, stored


def _structure(treedef: Any, room: int = DEEPEST) -> Any:
    """The nesting of tuples, lists, dicts and None as JSON, with "*" for a leaf; a TypeError for other containers or keys."""
    if treedef.node_data() is None:
        return "*"
    kind, keys = treedef.node_data()
    if kind is type(None):
        return None
    if kind is defaultdict:
        kind, (_, keys) = dict, keys
    if kind not in (tuple, list, dict, OrderedDict) or not room:
        raise TypeError(f"a {kind.__name__} in {DEEPEST - room} others has no description")
    items = [_structure(child, room - 1) for child in treedef.children()]
    if keys is not None:
        items = [[_plain(key), item] for key, item in zip(keys, items, strict=True)]
        json.dumps([key for key, _ in items])
    return {kind.__name__: items}


# Reading: nothing is believed.


def _require(holds: bool, reason: str) -> None:
    if not holds:
        raise ValueError(reason)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """One ValueError for all that a file which is no such file, or no longer whole, brings about in its readers."""
    try:
        yield
    except (FileNotFoundError, PermissionError, MemoryError):
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__} {error}"
        raise ValueError(
            f"load: expected a file written by fn.save, got {path} ({reason:.200}); save it again with fn.save"
        ) from error


class _Leaf(NamedTuple):
    """What the file says of a leaf, and the entry that holds the array of its bytes."""

    name: str
    about: str
    dtype: Any
    shape: tuple[int, ...]
    stored: jax.ShapeDtypeStruct
    impl: str | None
    member: zipfile.ZipInfo

    @property
    def header(self) -> int:
        """How many of the entry's bytes are left for the header of the .npy format."""
        return self.member.file_size - math.prod(self.stored.shape) * self.stored.dtype.itemsize


def _contents(archive: zipfile.ZipFile, size: int) -> tuple[list[_Leaf], dict[str, Any]]:
    """The leaves and the description, which fit the archive's entries and these the size of the file."""
    entries = archive.infolist()
    members = {entry.filename: entry for entry in entries}
    _require(len(members) == len(entries), "two entries of one name")
    plain = all(m.compress_type == zipfile.ZIP_STORED and m.compress_size == m.file_size for m in entries)
    _require(
        plain and sum(m.file_size for m in entries) <= size, "entries that are compressed, or larger than the file"
    )
    text = archive.read(members[f"{DESCRIPTION}.npy"])
    description = json.loads(text[text.index(b"\n") + 1 :])
    _require(description["format"] == 1, f"format {description['format']!r:.20}, where this version reads 1")
    leaves = [_leaf(about, members[f"{i}.npy"]) for i, about in enumerate(description["leaves"])]
    _require(len(members) == len(leaves) + 1, f"{len(members) - 1} arrays, of which it describes {len(leaves)}")
    _require(len({leaf.name for leaf in leaves}) == len(leaves), "two leaves of one name")
    return leaves, description


def _leaf(about: dict[str, Any], member: zipfile.ZipInfo) -> _Leaf:
    name, kind, shape = about["path"], about["dtype"], tuple(about["shape"])
    whole = len(shape) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    _require(isinstance(name, str) and isinstance(kind, str) and whole, f"a leaf that is {about!r:.80}")
    if kind.startswith("key<"):
        impl = kind[4:-1]
        key, data = jax.eval_shape(lambda: (k := jax.random.key(0, impl=impl), jax.random.key_data(k)))
        dtype, stored = key.dtype, jax.ShapeDtypeStruct((*shape, *data.shape), data.dtype)
    else:
        impl, dtype = None, jnp.dtype(kind)
        _kept(dtype, jnp.result_type(float))
        _require(str(dtype) == kind, f"the dtype {kind:.40}")
        stored = jax.ShapeDtypeStruct(shape, dtype)
    leaf = _Leaf(name, f"{kind}{list(shape)}", dtype, shape, stored, impl, member)
    _require(10 < leaf.header <= 4096, f"{member.file_size} bytes for {leaf.about} of {name:.80}")
    return leaf


def _array(archive: zipfile.ZipFile, leaf: _Leaf) -> np.ndarray:
    """The leaf's array, whose header says the same as the description."""
    shape, dtype = leaf.stored.shape, np.dtype(leaf.stored.dtype)
    with archive.open(leaf.member) as file:
        header, content = file.read(leaf.header), file.read()
    builtin = dtype.isbuiltin != 2  # 2: those of ml_dtypes
    descr, stored = (np.lib.format.dtype_to_descr(dtype), shape) if builtin else ("|u1", (len(content),))
    start = b"\x93NUMPY\x01\x00" + (leaf.header - 10).to_bytes(2, "little")
    for order in ("C", "F"):
        says = f"{{'descr': {descr!r}, 'fortran_order': {order == 'F'}, 'shape': {stored}, }}"
        if header.rstrip() == start + says.encode():
            return np.ndarray(shape, dtype, content, order=order)
    raise ValueError(f"an array of another dtype or shape than {leaf.about} of {leaf.name:.80}")


def _order_described(structure: Any, found: list[_Leaf]) -> tuple[list[int], Any]:
    """Which leaf of the file is each leaf of the tree that is described, and its treedef.

    They are found by name: up to version 0.9 an OrderedDict was described sorted, and its leaves were not. Where a name has
    changed since (that of an enumeration's key comes back as that of its value), they are in the file's order.
    """
    names: list[str] = []
    tree = _build(structure, names)
    _require(len(names) == len(found), f"a structure of {len(names)} leaves for {len(found)}")
    places, treedef = jax.tree.flatten(tree)
    index = {leaf.name: i for i, leaf in enumerate(found)}
    return [index[names[i]] for i in places] if index.keys() == set(names) else places, treedef


def _build(structure: Any, names: list[str], name: str = "") -> Any:
    """The tree that `_structure` described, with the place of each leaf in ``names``, which receives their names."""
    if structure is None:
        return None
    if structure == "*":
        names.append(name)
        return len(names) - 1
    ((kind, items),) = structure.items()
    if kind in ("tuple", "list"):
        made = [_build(item, names, f"{name}[{i}]") for i, item in enumerate(items)]
        return tuple(made) if kind == "tuple" else made
    pairs = [(key := _hashable(k), _build(item, names, f"{name}[{key!r}]")) for k, item in items]
    made = {"dict": dict, "OrderedDict": OrderedDict}[kind](pairs)
    _require(len(made) == len(pairs), f"a dict with a key twice at {name:.80}")
    return made


def _hashable(key: Any) -> Any:
    """A dict's key from JSON, which knows no tuples."""
    return tuple(map(_hashable, key)) if isinstance(key, list) else key


def _order_of(like: Any, found: list[_Leaf], path: Path) -> tuple[list[int], Any]:
    """Which leaf of the file is each leaf of ``like``, and its treedef; a ValueError that names the first that differs."""
    wanted, treedef = _named_leaves("load", like)
    index, names = {leaf.name: i for i, leaf in enumerate(found)}, [name for name, _ in wanted]
    for name in sorted(index.keys() ^ set(names)):
        kind = "only the file has it" if name in index else "the file lacks it"
        raise ValueError(
            f"load: expected {path} to hold {len(names)} leaves like those given, got {len(found)}: {name} differs "
            f"({kind}); load it into the network that it was saved from"
        )
    for name, given in wanted:
        leaf, shape = found[index[name]], jnp.shape(given)
        dtype = given.dtype if hasattr(given, "dtype") else jnp.result_type(given)
        dtype = dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype
        longer = shape[:1] == (0,) and leaf.shape[:1] != () and leaf.shape[1:] == shape[1:]
        if leaf.dtype != dtype or not (leaf.shape == shape or longer):
            raise ValueError(
                f"load: expected {name} to be {dtype}{list(shape)}, got {leaf.about} in {path}; "
                f"load it into the network that it was saved from"
            )
    return [index[name] for name in names], treedef
