"""Compiled programs, kept for the networks in use and forgotten with the others."""

import functools
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["program"]

KEPT = 128


@functools.lru_cache(maxsize=KEPT)
def program(
    function: Callable, *fixed: Any, compiler_options: tuple[tuple[str, Any], ...] = (), **options: Any
) -> Callable:
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
        return function(*fixed, *arguments, **options)

    return jax.jit(rest, compiler_options=dict(compiler_options) or None)
