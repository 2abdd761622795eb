"""Save and load pytrees of arrays: parameters, training states, optimiser states.

One file, described in `fnnet.archive`; no pickle. A failed save leaves the old file whole, a damaged file is one clear error.
"""

import contextlib
import json
import os
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .archive import Leaf, check_kept, contents, reading, require, restored, stored, write
from .files import replacing

__all__ = ["load", "save"]

DEEPEST = 100  # containers in each other that are described: parsers of JSON have their limits


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a pytree of arrays, numbers and PRNG keys to one file, atomically; several writers may share a path.

    Arrays come back as JAX arrays of the same dtype, numbers as arrays of JAX's default dtypes. A link is followed to its
    file, whose mode is kept. Under several processes any one may save what it holds whole, such as replicated parameters.

    Raises:
        TypeError: for a leaf that is no array of a dtype that JAX has, or a dict whose keys cannot be sorted.
        ValueError: for a 64-bit NumPy array while JAX is not set to keep 64 bits; for an array that is spread over hosts, so
            that this process does not hold all of it.
        OSError: where the folder cannot be written; an older file at ``path`` is then unharmed.
    """
    leaves, treedef = _named_leaves("save", tree)
    structure = {}
    with contextlib.suppress(TypeError):
        structure = {"structure": _structure(treedef)}
    with replacing("save", path) as file:
        write(file, leaves, structure)


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """The pytree that `save` wrote.

    Args:
        path: the file.
        like: a pytree of the same structure, shapes and dtypes (arrays or ``jax.ShapeDtypeStruct``), such as
            ``net.init(key, shape)``; the result has its containers and lies where its arrays were put: each leaf has the
            sharding of the one in ``like``, of which a process places its own parts. A leaf of shape (0, ...) stands for any
            length. Without it the tree must be of tuples, lists and dicts, and is returned as it was saved.

    Raises:
        TypeError: for a ``like`` of something else than arrays and numbers.
        ValueError: for a file that is no fnnet file or is damaged, before more memory is taken than it has bytes; or for
            one that does not match ``like``: the message names the first leaf that differs. For a ``like`` on a mesh of
            which JAX does not know the devices.
        FileNotFoundError: where there is no file.
    """
    path = Path(os.path.expanduser(path))
    with contextlib.ExitStack() as stack:
        with reading(path):
            require(not path.exists() or path.is_file(), "no regular file")  # in this order: it may appear meanwhile
            file = stack.enter_context(open(path, "rb"))
            archive = stack.enter_context(zipfile.ZipFile(file))
            found, description = contents(archive, os.fstat(file.fileno()).st_size)
        for leaf in found:
            check_kept("load", leaf.name, leaf.dtype)
        shardings: list[Any] = [None] * len(found)
        if like is not None:
            order, treedef = _order_of(like, found, path)
            for i, (name, given) in zip(order, _named_leaves("load", like)[0], strict=True):
                shardings[i] = _sharding_of(name, given)
        elif "structure" in description:
            with reading(path):
                order, treedef = _order_described(description["structure"], found)
        else:
            raise ValueError(
                f"load: expected a like= pytree for {path}, which holds containers other than tuples, lists and dicts of "
                f"plain keys, got none; give a pytree of the same structure"
            )
        leaves = []
        for leaf, sharding in zip(found, shardings, strict=True):
            with reading(path):
                array = stored(archive, leaf)
            leaves.append(restored(leaf, array, sharding))
    return jax.tree.unflatten(treedef, [leaves[i] for i in order])


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
            f"{function}: expected a name for each leaf, got {twice} twice; give the keys reprs that differ"
        )
    return [(name, leaf) for name, (_, leaf) in zip(names, flat, strict=True)], treedef


def _plain(key: Any) -> Any:
    """A dict's key with Python's integers and booleans in the place of NumPy's, which are equal to them."""
    if type(key) is tuple:
        return tuple(map(_plain, key))
    return key.item() if isinstance(key, np.integer | np.bool_) else key


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


def _order_described(structure: Any, found: list[Leaf]) -> tuple[list[int], Any]:
    """Which leaf of the file is each leaf of the tree that is described, and its treedef.

    They are found by name, since version 0.1 described an OrderedDict sorted, but not its leaves. Where a key's repr is
    another when it comes from JSON (an enumeration's), the file's order is right.
    """
    names: list[str] = []
    places, treedef = jax.tree.flatten(_build(structure, names))
    require(len(names) == len(found), f"a structure of {len(names)} leaves for {len(found)}")
    index = {leaf.name: i for i, leaf in enumerate(found)}
    return [index[names[i]] for i in places] if index.keys() == set(names) else places, treedef


def _build(structure: Any, names: list[str], name: str = "") -> Any:
    """The tree that `_structure` described; each leaf is its place in ``names``, where its name is put."""
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
    require(len(made) == len(pairs), f"a dict with a key twice at {name:.80}")
    return made


def _hashable(key: Any) -> Any:
    """A dict's key from JSON, which knows no tuples."""
    return tuple(map(_hashable, key)) if isinstance(key, list) else key


def _order_of(like: Any, found: list[Leaf], path: Path) -> tuple[list[int], Any]:
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
        dtype = getattr(given, "dtype", None)
        if dtype is None and not isinstance(given, bool | int | float | complex):
            got = f"{type(given).__name__} at {name or 'the top'}"
            raise TypeError(f"load: expected like= to be of arrays and numbers, got {got}; give what was saved")
        leaf, shape = found[index[name]], jnp.shape(given)
        dtype = jnp.result_type(given) if dtype is None else dtype
        dtype = dtype.newbyteorder("=") if isinstance(dtype, np.dtype) else dtype
        longer = shape[:1] == (0,) and len(shape) == len(leaf.shape) and leaf.shape[1:] == shape[1:]
        if leaf.dtype != dtype or not (leaf.shape == shape or longer):
            raise ValueError(
                f"load: expected {name} to be {dtype}{list(shape)}, got {leaf.about} in {path}; "
                f"load it into the network that it was saved from"
            )
    return [index[name] for name in names], treedef


def _sharding_of(name: str, given: Any) -> Any:
    """Where a leaf of ``like`` was put; None for one that JAX may put anywhere."""
    if not getattr(given, "committed", True):
        return None
    sharding: Any = getattr(given, "sharding", None)
    if not isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):
        return sharding
    mesh = jax.sharding.get_mesh()
    if mesh.empty or mesh.abstract_mesh != sharding.mesh:
        raise ValueError(
            f"load: expected like= to say on which devices {name or 'the top'} is, got {sharding}; load it under "
            f"jax.set_mesh(mesh), or give arrays"
        )
    return jax.sharding.NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
