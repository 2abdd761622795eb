"""Cost functions: value, gradient and the matched output error, side by side.

The cost of a batch is C = (1/m) Σ_x C_x, and C_x sums over every axis but the first. A cost is a value: hashable, equal
by value and static under ``jax.jit``. For its matched activation it is computed from z, in at least float32, and stays
finite (value and gradient) for |z| up to 1e4.

Source: the notes, sections 3 (quadratic), 4.1 (cross-entropy), 4.2 and 4.3 (log-likelihood).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.scipy.special import xlog1py, xlogy

from .activations import (
    Activation,
    at_least_float32,
    integers_as_floats,
    linear,
    shifted_exp,
    sigmoid,
    softmax,
    wide_dtype,
)

__all__ = ["Cost", "accuracy", "cross_entropy", "log_likelihood", "quadratic"]

Output = tuple[Activation, Array] | None


@jax.tree_util.register_static
@dataclass(frozen=True)
class Cost:
    """A cost function of the outputs a and the targets y.

    Args:
        name: shown in tables and messages.
        terms: (a, y) -> the terms that C_x adds up, with axes (m, ...).
        gradient: (a, y) -> ∇_a C_x, shaped like a.
        matched: the activation for which δ^L needs no σ'(z), or None.
        matched_terms: (z, y) -> the same terms from the weighted input of a matched layer.
        matched_error: (z, y) -> δ^L of a matched layer.
        probabilities: whether the outputs have to lie in [0, 1].
    """

    name: str
    terms: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    matched: Activation | None = None
    matched_terms: Callable[[Array, Array], Array] | None = None
    matched_error: Callable[[Array, Array], Array] | None = None
    probabilities: bool = False

    def __call__(self, a: Any, y: Any, *, weights: Any = None, output: Output = None) -> Array:
        """C = (1/m) Σ_x C_x, a scalar in at least float32.

        Args:
            a: outputs (m, ..., n).
            y: targets shaped like a, or integer labels (m, ...) from 0 to n − 1.
            weights: (m,), (m, T), ...: factors of the terms of C_x; the mean is still over m.
            output: the last layer's (activation, z), which lets a matched cost be computed from z.

        Raises:
            ValueError: for targets or weights of the wrong shape or kind, a concrete label outside the classes, or an
                activation that the cost cannot follow. Under ``jit`` a label outside the classes makes C NaN.
        """
        a = integers_as_floats(a)
        y = self.targets(a, y)
        if self.matches(output):
            terms = self.matched_terms(at_least_float32(output[1]), y)  # pyright: ignore
        else:
            terms = self.terms(at_least_float32(a), y)
        return jnp.sum(_weighted(terms, weights)) / a.shape[0]

    def output_gradient(self, a: Any, y: Any, *, weights: Any = None) -> Array:
        """∇_a C_x for each example, shaped like a: the da_out of a last layer that the cost is not matched to."""
        a = integers_as_floats(a)
        gradient = self.gradient(at_least_float32(a), self.targets(a, y))
        return _weighted(gradient, weights).astype(a.dtype)

    def output_error(self, z: Any, y: Any, *, weights: Any = None) -> Array:
        """δ^L of a matched last layer from its weighted input z, shaped like z: a − y, whatever σ'(z) is.

        Raises:
            ValueError: for a cost without a matched activation.
        """
        if self.matched_error is None:
            raise ValueError(f"{self.name}: expected a cost with a matched activation, got none; use output_gradient")
        z = integers_as_floats(z)
        error = self.matched_error(at_least_float32(z), self.targets(z, y))
        return _weighted(error, weights).astype(z.dtype)

    def matches(self, output: Output) -> bool:
        """Whether the last layer's activation is the matched one.

        Raises:
            ValueError: for an activation whose values are no probabilities where the cost takes their logarithm.
        """
        if output is None:
            return False
        activation, _ = output
        if self.probabilities and not activation.probabilities:
            raise ValueError(
                f"{self.name}: expected outputs in [0, 1], got a last layer with the activation {activation}; "
                f"end with {self.matched or softmax}, as in fn.Dense(n_out, fn.{self.matched or softmax})"
            )
        return activation == self.matched

    def targets(self, a: Array, y: Any) -> Array:
        """y as floats shaped like a; integer labels become one-hot rows, NaN where a label is outside the classes.

        Raises:
            ValueError: for a wrong shape or kind, or a concrete label outside the classes.
        """
        y = _real(self.name, "targets", y)
        dtype = wide_dtype(a.dtype)
        if y.shape == a.shape:
            return y.astype(dtype)
        if y.shape != a.shape[:-1]:
            raise ValueError(
                f"{self.name}: expected targets of shape {a.shape} or labels of shape {a.shape[:-1]} for outputs of "
                f"shape {a.shape}, got {y.shape}; check the last layer's size{_hint(a, y)}"
            )
        if not jnp.issubdtype(y.dtype, jnp.integer):
            raise ValueError(
                f"{self.name}: expected integer labels for targets of shape {y.shape} beside outputs of shape "
                f"{a.shape}, got {y.dtype}; use y.astype(int) for labels or targets of shape {a.shape} for values"
            )
        n = a.shape[-1]
        if n == 1:
            raise ValueError(
                f"{self.name}: expected targets of shape {a.shape} for a single output, got labels of shape {y.shape}; "
                f"give y[:, None], 0 or 1 for each example"
            )
        if jnp.iinfo(y.dtype).bits <= 32:
            y = y.astype(jnp.int32)
        check_labels(self.name, y, n)
        inside = (y >= 0) & (y < n)
        return jnp.where(inside[..., None], jax.nn.one_hot(y, n, dtype=dtype), jnp.nan)

    def __deepcopy__(self, memo: Any) -> "Cost":
        return self

    def __reduce__(self) -> Any:
        return self.name if globals().get(self.name) is self else super().__reduce__()

    def __repr__(self) -> str:
        return self.name


def check_labels(name: str, y: Any, n: int) -> None:
    """Raise a ValueError for a concrete integer label outside 0 .. n − 1; traced labels pass."""
    if isinstance(y, Tracer) or not np.issubdtype(y.dtype, np.integer) or y.size == 0:
        return
    labels = np.asarray(y)
    outside = (labels < 0) | (labels >= n)
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(
            f"{name}: expected labels from 0 to {n - 1}, got {labels[where]} at example {where[0]} "
            f"({int(outside.sum())} of {labels.size} are outside); check the labels or the last layer"
        )


def _real(owner: str, name: str, values: Any) -> Array:
    """The values as an array, or a ValueError where they are complex."""
    values = jnp.asarray(values)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"{owner}: expected real {name}, got {values.dtype}; their imaginary part would be lost")
    return values


def _hint(a: Array, y: Array) -> str:
    if y.ndim and a.ndim and y.shape[0] != a.shape[0]:
        return f" and that both have as many examples ({a.shape[0]} and {y.shape[0]})"
    if a.ndim > 2 and y.ndim <= 2:
        return "; fn.Flatten() before a Dense layer makes one row of each example"
    return ""


def _weighted(terms: Array, weights: Any) -> Array:
    if weights is None:
        return terms
    weights = _real("weights", "numbers", weights)
    if weights.shape != terms.shape[: weights.ndim] or weights.ndim == 0:
        raise ValueError(
            f"weights: expected shape ({terms.shape[0]},) or one that begins the shape of the terms {terms.shape}, "
            f"got {weights.shape}; weigh each example or each step"
        )
    return terms * weights.astype(terms.dtype).reshape(weights.shape + (1,) * (terms.ndim - weights.ndim))


@jax.jit
def quadratic_terms(a: Array, y: Array) -> Array:
    """C_x = ½ ‖y − a‖² = Σ_j ½ (y_j − a_j)² (the notes, section 3)."""
    return 0.5 * (y - a) ** 2


@jax.jit
def quadratic_gradient(a: Array, y: Array) -> Array:
    """∇_a C_x = a − y, which is also δ^L for linear outputs (section 4.2)."""
    return a - y


@jax.jit
def cross_entropy_terms(a: Array, y: Array) -> Array:
    """C_x = −Σ_j [y_j ln a_j + (1 − y_j) ln(1 − a_j)], with 0 ln 0 = 0 (section 4.1)."""
    return -xlogy(y, a) - xlog1py(1 - y, -a)


@jax.jit
def cross_entropy_gradient(a: Array, y: Array) -> Array:
    """∇_a C_x = −y / a + (1 − y) / (1 − a) = (a − y) / (a (1 − a)), a term being 0 where its numerator is."""
    return _ratio(1 - y, 1 - a) - _ratio(y, a)


def _ratio(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the numerator is 0."""
    return jnp.where(numerator == 0, 0, numerator / jnp.where(numerator == 0, 1, denominator))


@jax.jit
def cross_entropy_terms_of_sigmoid(z: Array, y: Array) -> Array:
    """The terms from z for a = σ(z): max(z, 0) − y z + ln(1 + e^−|z|), without the logarithm of a rounded a."""
    return jnp.maximum(z, 0) - y * z + jnp.log1p(_exp_minus_abs(z))


def _exp_minus_abs(z: Array) -> Array:
    """e^−|z|. At 0 autodiff takes the mean of both sides of a minimum or maximum, so the terms differentiate to σ(0) − y;
    for the absolute value it takes 1 there, which would be wrong."""
    return jnp.exp(jnp.minimum(z, -z))


@jax.jit
def cross_entropy_error_of_sigmoid(z: Array, y: Array) -> Array:
    """δ^L = a − y: the σ'(z) of BP1 cancels (section 4.1). a = σ(z) by the e^−|z| that the value needs too."""
    e = _exp_minus_abs(z)
    return jnp.where(z >= 0, 1, e) / (1 + e) - y


@jax.jit
def log_likelihood_terms(a: Array, y: Array) -> Array:
    """C_x = −Σ_j y_j ln a_j over the classes, with 0 ln 0 = 0; −ln a_y for a one-hot y (section 4.3)."""
    return -jnp.sum(xlogy(y, a), axis=-1)


@jax.jit
def log_likelihood_gradient(a: Array, y: Array) -> Array:
    """∇_a C_x = −y / a, and 0 where y = 0."""
    return -_ratio(y, a)


@jax.jit
def log_likelihood_terms_of_softmax(z: Array, y: Array) -> Array:
    """The terms from z for a = softmax(z): Σ_j y_j (ln Σ_k e^{z_k} − z_j), by log-sum-exp."""
    _, total, top = shifted_exp(z)
    return jnp.sum(y * (jnp.log(total) - (z - top)), axis=-1)


@jax.jit
def log_likelihood_error_of_softmax(z: Array, y: Array) -> Array:
    """δ^L = a Σ_j y_j − y, which is the notes' a − y where the targets of an example add up to 1 (section 4.3)."""
    e, total, _ = shifted_exp(z)
    return e / total * jnp.sum(y, axis=-1, keepdims=True) - y


quadratic = Cost(
    "quadratic",
    quadratic_terms,
    quadratic_gradient,
    matched=linear,
    matched_terms=quadratic_terms,
    matched_error=quadratic_gradient,
)
cross_entropy = Cost(
    "cross_entropy",
    cross_entropy_terms,
    cross_entropy_gradient,
    matched=sigmoid,
    matched_terms=cross_entropy_terms_of_sigmoid,
    matched_error=cross_entropy_error_of_sigmoid,
    probabilities=True,
)
log_likelihood = Cost(
    "log_likelihood",
    log_likelihood_terms,
    log_likelihood_gradient,
    matched=softmax,
    matched_terms=log_likelihood_terms_of_softmax,
    matched_error=log_likelihood_error_of_softmax,
    probabilities=True,
)


@jax.jit
def accuracy(a: Array, y: Array, weights: Array | None = None) -> Array:
    """The share of outputs that name the right class.

    Args:
        a: outputs (m, ..., n); the class is the largest of the n, or a ≥ ½ where n is 1.
        y: integer labels (m, ...), or targets shaped like a.
        weights: (m, ...): what each example (or step) counts.
    """
    a, y = jnp.asarray(a), jnp.asarray(y)
    chosen = jnp.argmax(a, axis=-1)
    if y.shape == a.shape:
        hits = (
            chosen == jnp.argmax(y, axis=-1) if a.shape[-1] > 1 else ((a >= 0.5) == (y.astype(a.dtype) >= 0.5))[..., 0]
        )
    elif y.shape == a.shape[:-1]:
        hits = chosen == y.astype(chosen.dtype)
    else:
        raise ValueError(f"accuracy: expected targets of shape {a.shape} or {a.shape[:-1]}, got {y.shape}")
    hits = hits.astype(jnp.result_type(float))
    if weights is None:
        return jnp.mean(hits)
    weights = jnp.asarray(weights).astype(hits.dtype)
    counts = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (hits.ndim - weights.ndim)), hits.shape)
    return jnp.sum(hits * counts) / jnp.sum(counts)
