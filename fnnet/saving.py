"""Save and load pytrees of arrays: parameters, training states, optimiser states.

One .npz file with the arrays and a JSON description; no pickle. A save is written beside the target and moved into place,
so a failed one leaves the old file whole.
"""

import contextlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["load", "save"]

DESCRIPTION = "fnnet.json"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> tuple[dict[str, Any], np.ndarray]:
    """A leaf's kind, dtype and shape, and its bytes as an array that NumPy can store."""
    if _is_key(leaf):
        data = np.asarray(jax.random.key_data(leaf))
        return {"dtype": f"key<{jax.random.key_impl(leaf)}>", "shape": list(leaf.shape)}, data
    array = np.asarray(jnp.asarray(leaf) if isinstance(leaf, bool | int | float | complex) else leaf)
    if array.dtype.kind in "OUSM":
        raise TypeError(f"save: expected arrays and numbers, got {type(leaf).__name__}; leave it out of the pytree")
    stored = array if array.dtype.kind in "biufc" else np.frombuffer(array.tobytes(), np.uint8)
    return {"dtype": str(array.dtype), "shape": list(array.shape)}, stored


def _restore(about: dict[str, Any], stored: np.ndarray) -> Any:
    name = about["dtype"]
    if name.startswith("key<"):
        return jax.random.wrap_key_data(jnp.asarray(stored), impl=name[4:-1])
    dtype = jnp.dtype(name)
    return stored if stored.dtype == dtype else np.frombuffer(stored.tobytes(), dtype).reshape(about["shape"])


def _structure(tree: Any) -> Any:
    """The nesting of tuples, lists, dicts and None as JSON, with "*" for a leaf; a TypeError for another container."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {"dict": [[key, _structure(value)] for key, value in sorted(tree.items())]}
    if isinstance(tree, tuple | list) and not hasattr(tree, "_fields"):
        return {type(tree).__name__: [_structure(item) for item in tree]}
    if not jax.tree_util.all_leaves([tree]):
        raise TypeError(f"a {type(tree).__name__} has no description in JSON")
    return "*"


def _build(structure: Any, leaves: Any) -> Any:
    if structure is None:
        return None
    if structure == "*":
        return next(leaves)
    (kind, items), *_ = structure.items()
    if kind == "dict":
        return {key: _build(item, leaves) for key, item in items}
    return (tuple if kind == "tuple" else list)(_build(item, leaves) for item in items)


def save(path: str | os.PathLike[str], tree: Any) -> None:
    """Write a pytree of arrays, numbers and PRNG keys to one file, atomically.

    Raises:
        TypeError: for a leaf that is no array.
        OSError: where the folder cannot be written; an older file at ``path`` is then unharmed.
    """
    target = Path(path)
    entries, arrays = [], {}
    for i, (keypath, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        about, arrays[f"{i}"] = _describe(leaf)
        entries.append({"path": jax.tree_util.keystr(keypath), **about})
    description: dict[str, Any] = {"format": 1, "leaves": entries}
    with contextlib.suppress(TypeError):
        description["structure"] = _structure(tree)
    arrays[DESCRIPTION] = np.frombuffer(json.dumps(description).encode(), np.uint8)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def load(path: str | os.PathLike[str], like: Any = None) -> Any:
    """The pytree that `save` wrote.

    Args:
        path: the file.
        like: a pytree of the same structure, shapes and dtypes (arrays or ``jax.ShapeDtypeStruct``), such as
            ``net.init(key, shape)``; the result has its containers. A leaf of shape (0, ...) stands for any length. Without
            it the tree must be of tuples, lists and dicts, and is returned as it was saved.

    Raises:
        ValueError: for a file that is no fnnet file or is damaged, or one that does not match ``like``: the message names
            the first leaf that differs.
        FileNotFoundError: where there is no file.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            description = json.loads(file[DESCRIPTION].tobytes())
            entries = description["leaves"]
            leaves = [_restore(entry, file[f"{i}"]) for i, entry in enumerate(entries)]
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        remedy = "save it again with fn.save"
        raise ValueError(f"load: expected a file written by fn.save, got {path} ({error}); {remedy}") from error
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    for entry, leaf in zip(entries, leaves, strict=True):
        if not _is_key(leaf) and str(leaf.dtype) != entry["dtype"]:
            raise ValueError(
                f"load: expected to keep {entry['path']} in {entry['dtype']}, got {leaf.dtype}; "
                f"jax.config.update('jax_enable_x64', True) allows 64-bit arrays"
            )
    if like is None:
        if "structure" not in description:
            raise ValueError(
                f"load: expected a like= pytree for {path}, which holds containers other than tuples, lists and dicts, "
                f"got none; give a pytree of the same structure"
            )
        return _build(description["structure"], iter(leaves))
    wanted, treedef = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(keypath) for keypath, _ in wanted]
    found = [entry["path"] for entry in entries]
    for name in sorted(set(names) ^ set(found)):
        kind = "the file lacks it" if name in names else "only the file has it"
        raise ValueError(
            f"load: expected {path} to hold {len(names)} leaves like those given, got {len(found)}: {name} differs "
            f"({kind}); load it into the network that it was saved from"
        )
    by_name = dict(zip(found, zip(entries, leaves, strict=True), strict=True))
    for name, (_, leaf) in zip(names, wanted, strict=True):
        about, _ = by_name[name]
        expected = _about(leaf)
        shapes_match = about["shape"] == expected["shape"] or (
            expected["shape"][:1] == [0] and about["shape"][1:] == expected["shape"][1:]
        )
        if about["dtype"] != expected["dtype"] or not shapes_match:
            raise ValueError(
                f"load: expected {name} to be {expected['dtype']}{expected['shape']}, got "
                f"{about['dtype']}{about['shape']} in {path}; load it into the network that it was saved from"
            )
    return jax.tree.unflatten(treedef, [by_name[name][1] for name in names])


def _about(leaf: Any) -> dict[str, Any]:
    if _is_key(leaf):
        return _describe(leaf)[0]
    return {"dtype": str(jnp.result_type(leaf)), "shape": list(jnp.shape(leaf))}
