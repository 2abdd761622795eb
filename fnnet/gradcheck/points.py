"""Where a rule is audited beside the given point: near it and far from it, without the structure that a rule may rest on."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NEAR, FAR = "a point near by", "a point far away"
LARGER = "the given point, with a larger cotangent"
ENLARGED = 100.0
"""By how much: what is clipped is no longer linear."""


class Point(NamedTuple):
    """Arguments, and by how much the cotangent is enlarged there."""

    name: str
    args: tuple[Any, ...]
    scale: float = 1.0


def drawing(*seed: int) -> np.random.Generator:
    """Random numbers that are nobody else's: drawn with a usual seed, a cotangent may be the very input that was given."""
    return np.random.default_rng((0x9E3779B97F4A7C15, *seed))


def drawn(args: tuple[Any, ...]) -> Iterator[Point]:
    """The given point with a cotangent a hundred times as large, one near it and one far from it.

    What the function may ask of its arguments stays as it is: signs, the interval [0, 1], rows that add up to 1, sorted rows,
    masks and one-hot rows, integers. A symmetric matrix does not stay symmetric, and zeros and ones do not stay such.
    """
    yield Point(LARGER, args, ENLARGED)
    for seed, (name, step) in enumerate({NEAR: 0.1, FAR: None}.items()):
        draw = drawing(seed)
        yield Point(name, jax.tree.map(lambda a, draw=draw, step=step: moved(a, draw, step), args))


def why_there(name: str, scale: float, nearly: bool, what: str = "cotangent") -> str:
    """Why a rule fails at a point and not at the given one, where it may only be ``nearly`` right."""
    if nearly:
        return f"approximate at the given point, too far off at {name}"
    if scale != 1:
        return f"not linear in the {what}: right for a usual one, wrong for one {scale:.0f} times as large"
    return f"right at the given point, wrong at {name}"


def moved(a: Any, draw: np.random.Generator, step: float | None) -> Any:
    """An array of floats moved by ``step`` times its size at random, or drawn anew in its size."""
    if not jnp.issubdtype(jnp.result_type(a), jnp.inexact) or not np.size(a):
        return a
    if jnp.issubdtype(jnp.result_type(a), jnp.complexfloating):
        real, imaginary = (np.asarray(moved(part(a), draw, step)) for part in (np.real, np.imag))
        return on_device(real + 1j * imaginary, jnp.result_type(a))
    given = np.asarray(a).astype(np.float64)
    return on_device(_moved(given, draw, step), jnp.result_type(a))


def on_device(a: Any, dtype: Any) -> Array:
    """An array of the host in a dtype. It is cast there: JAX would compile a program for each shape."""
    return jnp.asarray(np.asarray(a).astype(dtype), dtype)


def _moved(a: np.ndarray, draw: np.random.Generator, step: float | None) -> np.ndarray:
    ones, zeros = a == 1, a == 0
    if not np.isfinite(a).all() or ((ones | zeros).all() and ones.any() and zeros.any()):
        return a
    size = float(np.mean(np.abs(a))) or 1.0
    noise = draw.standard_normal(a.shape)
    inside = ((a >= 0) & (a <= 1)).all() and not ones.all() and not zeros.all()
    if inside and a.ndim and a.shape[-1] > 1 and np.allclose(a.sum(-1), 1, atol=1e-2):
        new = np.exp(noise) if step is None else a * np.exp(step * noise)
        new /= new.sum(-1, keepdims=True)
    elif inside:
        new = draw.uniform(0.05, 0.95, a.shape) if step is None else np.clip(a + step * size * noise, 0, 1)
    elif (a > 0).all() or (a < 0).all():
        new = np.sign(a) * size * np.exp(noise / 2) if step is None else a * np.exp(step * noise)
    else:
        new = size * noise if step is None else a + step * size * noise
        new = np.abs(new) if (a >= 0).all() and not zeros.all() else new
    rises = a.ndim > 0 and a.shape[-1] > 2 and (np.diff(a) > 0).all()
    return np.sort(new, axis=-1) if rises else new


def widened(a: Any) -> Any:
    """An array of floats in float64, where rows that add up to 1, or have norm 1, to rounding do so to that of float64."""
    if not jnp.issubdtype(jnp.result_type(a), jnp.floating) or not np.size(a):
        return a
    new, rounding = np.asarray(a).astype(np.float64), 8 * float(jnp.finfo(jnp.result_type(a)).eps)
    if new.ndim == 0 or new.shape[-1] < 2:
        return new
    for size in (new.sum(-1, keepdims=True), np.linalg.norm(new, axis=-1, keepdims=True)):
        if np.all(np.abs(size - 1) < rounding):
            return new / size
    return new


def _orthogonal(a: np.ndarray) -> np.ndarray:
    q, r = np.linalg.qr(a)
    return q * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def _is_square(a: np.ndarray) -> bool:
    return a.ndim >= 2 and a.shape[-1] == a.shape[-2] > 1


STRUCTURES: tuple[tuple[str, Callable[[np.ndarray], bool], Callable[[np.ndarray], np.ndarray]], ...] = (
    ("is 0", lambda a: True, np.zeros_like),
    ("is 1", lambda a: True, np.ones_like),
    ("is the same everywhere", lambda a: a.size > 1, lambda a: np.full_like(a, a.flat[0])),
    ("is symmetric, A = Aᵀ,", _is_square, lambda a: (a + a.swapaxes(-1, -2)) / 2),
    ("is orthogonal, AᵀA = 1,", _is_square, _orthogonal),
    ("is diagonal", _is_square, lambda a: a * np.eye(a.shape[-1])),
    ("has norm 1", lambda a: a.ndim > 0, lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)),
)


def structures(given: Any, elsewhere: Any) -> Iterator[tuple[str, Any]]:
    """What an array of floats is at the given point, in words, and the array elsewhere made so."""
    if not jnp.issubdtype(jnp.result_type(given), jnp.floating) or not np.size(given):
        return
    a, b = (np.asarray(x).astype(np.float64) for x in (given, elsewhere))
    for words, applies, made in STRUCTURES:
        with np.errstate(all="ignore"):
            if applies(a) and np.allclose(made(a), a, rtol=1e-6, atol=1e-6 * np.max(np.abs(a))):
                yield words, on_device(made(b), jnp.result_type(elsewhere))
