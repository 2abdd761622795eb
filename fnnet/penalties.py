"""Penalties on the weights, each beside its gradient.

A weight is a leaf whose last key is ``w`` or starts with ``w_``; biases are never penalised. A penalty is a pytree with
its number λ as a leaf, so λ can be traced, vmapped over and changed without compiling again.

Source: the notes, section 5.2.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import Array

from .activations import at_least_float32, wide_dtype

__all__ = ["L1", "L2", "Penalty"]


class Penalty(Protocol):
    """What ``penalty=`` takes: a pytree with these two methods."""

    def value(self, params: Any, n_examples: Any) -> Array:
        """The term added to the cost, for a training set of n_examples."""
        ...

    def gradient(self, params: Any, n_examples: Any) -> Any:
        """Its gradient, a pytree like params."""
        ...


def is_weight(path: tuple[Any, ...]) -> bool:
    """Whether a leaf at this key path is a weight: its last key is ``w`` or starts with ``w_``."""
    last = path[-1] if path else None
    name = str(getattr(last, "key", getattr(last, "name", "")))
    return name == "w" or name.startswith("w_")


def weights_in(params: Any) -> list[Array]:
    """The leaves that are weights, at least in float32.

    Raises:
        ValueError: for weights that are no floats.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return [at_least_float32(_checked(path, leaf)) for path, leaf in leaves if is_weight(path)]


def _checked(path: tuple[Any, ...], w: Any) -> Any:
    if not jnp.issubdtype(dtype := jnp.result_type(w), jnp.floating):
        name = jax.tree_util.keystr(path)
        raise ValueError(
            f"expected weights of a float dtype, got {dtype} at {name}; convert them, jnp.asarray(w, float)"
        )
    return w


def _on_weights(gradient: Any, params: Any) -> Any:
    def leaf(path: tuple[Any, ...], w: Any) -> Array:
        return gradient(_checked(path, w)) if is_weight(path) else jnp.zeros_like(w)

    return jax.tree_util.tree_map_with_path(leaf, params)


def _ratio(lam: Any, n_examples: Any, like: Array) -> Array:
    """λ/N in the dtype of ``like``."""
    dtype = wide_dtype(like.dtype)
    return (jnp.asarray(lam).astype(dtype) / jnp.asarray(n_examples).astype(dtype)).astype(like.dtype)


def check_penalty(penalty: Any) -> None:
    """Raise a ValueError unless the penalty is None or a pytree with ``value`` and ``gradient``."""
    if penalty is None:
        return
    remedy = "use fn.L2(5.0), or register a class of your own with jax.tree_util.register_dataclass or register_static"
    if not (callable(getattr(penalty, "value", None)) and callable(getattr(penalty, "gradient", None))):
        got = type(penalty).__name__
        raise ValueError(f"penalty: expected an object with value and gradient, got {got}; {remedy}")
    if jax.tree_util.all_leaves([penalty]):
        raise ValueError(f"penalty: expected a pytree, got {type(penalty).__name__}, which JAX does not know; {remedy}")


def _check(penalty: Any) -> None:
    if isinstance(penalty.lam, int | float) and not penalty.lam >= 0:
        name = type(penalty).__name__
        raise ValueError(f"{name}: expected λ ≥ 0, got {penalty.lam}; a negative penalty rewards large weights")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class L2:
    """λ/(2N) Σ w², N the size of the training set: weight decay by the factor 1 − ηλ/N a step.

    Raises:
        ValueError: for a negative λ.
    """

    lam: Any

    def __post_init__(self) -> None:
        _check(self)

    def value(self, params: Any, n_examples: Any) -> Array:
        """λ/(2N) Σ w²."""
        total = jnp.asarray(sum(jnp.sum(w * w) for w in weights_in(params)))
        return _ratio(self.lam, n_examples, total) / 2 * total

    def gradient(self, params: Any, n_examples: Any) -> Any:
        """(λ/N) w on weights, 0 on biases."""
        return _on_weights(lambda w: _ratio(self.lam, n_examples, w) * w, params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class L1:
    """λ/N Σ |w|, N the size of the training set.

    Raises:
        ValueError: for a negative λ.
    """

    lam: Any

    def __post_init__(self) -> None:
        _check(self)

    def value(self, params: Any, n_examples: Any) -> Array:
        """λ/N Σ |w|, as max(w, −w), so that autodiff too takes sgn 0 = 0."""
        total = jnp.asarray(sum(jnp.sum(jnp.maximum(w, -w)) for w in weights_in(params)))
        return _ratio(self.lam, n_examples, total) * total

    def gradient(self, params: Any, n_examples: Any) -> Any:
        """(λ/N) sgn w on weights, with sgn 0 = 0; 0 on biases."""
        return _on_weights(lambda w: _ratio(self.lam, n_examples, w) * jnp.sign(w), params)
