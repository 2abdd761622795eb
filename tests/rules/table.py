"""What a row of the table of rules is."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ALL = ("float64", "float32", "bfloat16", "float16")
WIDE = ("float64", "float32")  # LAPACK, FFT and the special functions have no other


class Mistake(NamedTuple):
    """A wrong backward pass: the leaf whose row is the first to fail, and a pattern in its hint."""

    name: str
    backward: Callable
    leaf: str
    hint: str


@dataclass(frozen=True)
class Rule:
    """A function with a hand-written rule: forward (*args) -> (out, residuals), backward (residuals, u) -> cotangents."""

    forward: Callable
    backward: Callable
    draw: Callable
    dtypes: tuple[str, ...]
    mistakes: tuple[Mistake, ...]

    @property
    def name(self) -> str:
        return self.forward.__name__

    def __repr__(self) -> str:
        return self.name

    def point(self, dtype: str = "float64") -> tuple:
        """The arguments, floats in this dtype."""
        args = self.draw(Draw(self.name))

        def cast(a: Any) -> Any:
            return jnp.asarray(a, dtype) if getattr(a, "dtype", None) == np.float64 else jnp.asarray(a)

        return jax.tree.map(cast, args)

    def decorated(self, backward: Callable | None = None) -> Callable:
        """As a function of ``jax.custom_vjp``."""
        f = jax.custom_vjp(lambda *args: self.forward(*args)[0])
        f.defvjp(self.forward, backward or self.backward)
        return f


class Draw:
    """Random numbers that depend on nothing but a rule's name."""

    def __init__(self, name: str) -> None:
        self.random = np.random.default_rng(zlib.crc32(name.encode()))

    def __call__(self, *shape: int) -> np.ndarray:
        return np.asarray(self.random.standard_normal(shape))

    def positive(self, *shape: int) -> np.ndarray:
        return self.random.uniform(0.5, 2, shape)

    def apart(self, *shape: int) -> np.ndarray:
        """No two entries near each other, none near 0: no dtype has a tie."""
        n = int(np.prod(shape))
        return self.random.permutation(np.linspace(-2, 2.1, n)).reshape(shape)

    def below(self, n: int, *shape: int) -> np.ndarray:
        return self.random.integers(n, size=shape)

    def regular(self, n: int, *batch: int) -> np.ndarray:
        """A matrix far from singular and from symmetric."""
        return self(*batch, n, n) + 3 * np.eye(n)


RULES: list[Rule] = []


def add(forward, backward, draw, mistakes=None, dtypes=ALL):
    rows = tuple(Mistake(name, *about) for name, about in (mistakes or {}).items())
    RULES.append(Rule(forward, backward, draw, dtypes, rows))


def on(i, backward, change):
    """The backward pass with the cotangent of argument i changed: ``change(right, residuals, u)``."""

    def wrong(residuals, u):
        right = list(backward(residuals, u))
        right[i] = change(right[i], residuals, u)
        return tuple(right)

    return wrong


def x_of(*shape):
    return lambda draw: (draw(*shape),)
