"""Compiled programs, kept for the networks in use and forgotten with the others."""

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

__all__ = ["for_each_structure", "placed", "program"]

KEPT = 128
KEPT_RUNS = 32


@functools.lru_cache(maxsize=KEPT)
def program(
    function: Callable, *fixed: Any, compiler_options: tuple[tuple[str, Any], ...] = (), **options: Any
) -> Callable[..., Any]:
    """``jax.jit`` of the rest of ``function(*fixed, *arguments, **options)``; equal arguments give the same program.

    An argument that is static under ``jax.jit`` stays in its cache for good, and with it all that was compiled for it. Here
    the `KEPT` programs used last are held, and one that nobody else holds is freed with everything it was compiled to.

    Args:
        function: pure, of hashable ``fixed`` arguments and then arrays.
        fixed: networks, costs and other values.
        compiler_options: of ``jax.jit``, as (name, value) pairs.
        options: static keywords, hashable.
    """

    @functools.wraps(function)
    def rest(*arguments: Any) -> Any:
        with on_mesh_of(arguments):
            return function(*fixed, *arguments, **options)

    return jax.jit(rest, compiler_options=dict(compiler_options) or None)


def on_mesh_of(arrays: Any) -> contextlib.AbstractContextManager[Any]:
    """The explicit mesh of arrays that are traced, as ``jax.set_mesh`` would have it: without one, zeros and slices forget
    how an array is divided. Nothing where there is one already, or for arrays on no such mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        for leaf in jax.tree.leaves(arrays):
            mesh = jax.typeof(leaf).sharding.mesh
            if mesh.explicit_axes:
                return jax.sharding.use_abstract_mesh(mesh)
    return contextlib.nullcontext()


def for_each_structure(function: Callable) -> Callable:
    """``function(*arguments, **options)`` compiled, with a program for each structure of the arguments and each choice of the
    hashable options. Networks, costs, schedules and an optax transformation's functions are part of a structure.

    The `KEPT_RUNS` programs used last are held: those of runs are large, and a fresh lambda makes one of its own. Numbers and
    NumPy arrays are put on the device explicitly, as ``jax.transfer_guard`` asks. ``.lower`` is that of ``jax.jit``.
    """

    def of(arguments: Any, options: Any) -> tuple[Callable, Iterable]:
        leaves, structure = jax.tree.flatten(arguments)
        return _program_of_run(_of_leaves, function, structure, **options), map(placed, leaves)

    @functools.wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        compiled, leaves = of(arguments, options)
        return compiled(*leaves)

    def lower(*arguments: Any, **options: Any) -> Any:
        compiled, leaves = of(arguments, options)
        return compiled.lower(*leaves)  # pyright: ignore[reportFunctionMemberAccess]

    run.lower = lower  # pyright: ignore[reportAttributeAccessIssue]
    return run


_program_of_run = functools.lru_cache(maxsize=KEPT_RUNS)(program.__wrapped__)


def _of_leaves(function: Callable, structure: Any, *leaves: Any, **options: Any) -> Any:
    return function(*structure.unflatten(leaves), **options)


def placed(leaf: Any) -> Any:
    """A number or a NumPy array put on the device explicitly; anything else as it is."""
    return jax.device_put(leaf) if isinstance(leaf, NUMBERS) else leaf


NUMBERS = np.ndarray, np.generic, int, float, complex
