"""Pytrees of NumPy arrays by name, whatever their leaves are."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ..verdicts import wide

NUMBERS = (int, float, np.number, np.bool_)


def prepared(a: Any) -> Any:
    """An argument with its arrays of floats in float64; lists of numbers are arrays."""
    if isinstance(a, dict):
        return {key: prepared(b) for key, b in a.items()}
    if isinstance(a, list | tuple):
        if a and all(isinstance(n, NUMBERS) for n in np.ravel(np.array(a, object))) and _is_regular(a):
            return prepared(np.array(a))
        parts = map(prepared, a)
        return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
    if isinstance(a, jax.Array):
        a = np.asarray(a)
    if isinstance(a, np.ndarray):
        return a.astype(np.float64) if is_floats(a) else a.copy()
    return a


def _is_regular(a: Any) -> bool:
    try:
        return np.array(a).dtype != object
    except ValueError:
        return False


def is_floats(a: Any) -> bool:
    dtype = getattr(a, "dtype", None)
    return dtype is not None and (np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16")


def named(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(name, leaf) of every leaf in dicts, lists and tuples."""
    if isinstance(tree, dict):
        for key, b in tree.items():
            yield from named(b, f"{name}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for i, b in enumerate(tree):
            yield from named(b, f"{name}[{i}]")
    else:
        yield name, tree


def replaced(tree: Any, name: str, new: dict[str, Any]) -> Any:
    """The tree with new leaves, by name. Containers are new, so that they can be changed."""
    if isinstance(tree, dict):
        return {key: replaced(b, f"{name}[{key!r}]", new) for key, b in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [replaced(b, f"{name}[{i}]", new) for i, b in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return new.get(name, tree)


def floats_of(out: Any) -> list[np.ndarray]:
    """The arrays of floats in an output."""
    if isinstance(out, np.ndarray) and out.dtype == np.float64:
        return [out]
    found = [np.asarray(leaf) for _, leaf in named(out, "") if isinstance(leaf, NUMBERS) or hasattr(leaf, "dtype")]
    if any(np.iscomplexobj(leaf) for leaf in found):
        raise ValueError(
            "audit: expected real outputs of NumPy code, got complex ones; return real and imaginary parts"
        )
    return [wide(leaf) for leaf in found if is_floats(leaf)]


def cotangents_of(out: Any, u: Iterator[np.ndarray]) -> Any:
    """u in the structure of an output; zeros for what is no float."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, float) and not is_floats(leaf):
            return np.zeros(np.shape(leaf))
        return next(u).reshape(np.shape(leaf))[()]

    return replaced(out, "", {name: one(leaf) for name, leaf in named(out, "")})
