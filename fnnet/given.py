"""Checks of what a function is given that more than one module makes."""

from numbers import Integral
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

__all__ = ["whole"]


def whole(function: str, name: str, value: Any, least: int = 1) -> Any:
    """The value as an int, or a ValueError unless it is an integer of at least ``least``, which a boolean is not; a tracer
    as it is."""
    if isinstance(value, Tracer):
        return value
    is_array = hasattr(value, "dtype") and np.ndim(value) == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    if isinstance(value, bool) or not (is_array or isinstance(value, Integral)) or value < least:
        raise ValueError(f"{function}: expected {name} to be an integer of at least {least}, got {value!r}")
    return int(value)
