"""Cost functions: value, gradient and the matched output error, side by side.

The cost of a batch is C = (1/m) Σ_x C_x, and C_x sums over every axis but the first. A cost is a value: hashable, equal
by value and static under ``jax.jit``. After sigmoid and softmax a logarithmic cost is computed from z, in at least float32:
value and δ^L stay finite for |z| up to 1e4, and keep their relative accuracy where an example is nearly certain.

Source: the notes, sections 3 (quadratic), 4.1 (cross-entropy), 4.2 and 4.3 (log-likelihood).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.scipy.special import xlog1py, xlogy

from .activations import (
    Activation,
    at_least_float32,
    both_sides,
    exp_minus_abs,
    integers_as_floats,
    linear,
    sigmoid,
    softmax,
    unwrapped,
    wide_dtype,
)
from .cost_curvature import Curvature, quadratic_curvature, sigmoid_curvature, softmax_curvature
from .forms import stored
from .layers._layer import example_keys

__all__ = ["Cost", "Curvature", "accuracy", "cross_entropy", "log_likelihood", "quadratic"]

Output = tuple[Activation, Array] | None
_Forms = tuple[Any, Any, Callable[..., Array]]
"""(terms, error) in z, and what makes of y what these take."""


class Composed(NamedTuple):
    """A cost after an activation that it is not matched to, written out in z, as one of BP1's factors may be 0 where the
    other is infinite.

    Attributes:
        activation: of the last layer.
        of: the cost's ``terms`` and ``gradient`` that these forms stand for; a cost with others does not use them.
        terms: (z, y) -> the terms that C_x adds up.
        error: (z, y) -> δ^L.
        of_labels: (terms, error) for integer labels (m, ...), whose one-hot rows are then not made, or None.
    """

    activation: Activation
    of: tuple[Callable[..., Array], Callable[..., Array]]
    terms: Callable[[Array, Array], Array]
    error: Callable[[Array, Array], Array]
    of_labels: tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]] | None = None


class OfLabels(NamedTuple):
    """The matched forms for integer labels (m, ...), whose one-hot rows are then not made.

    Attributes:
        of: the cost's ``matched_terms`` and ``matched_error`` that these forms stand for; one with others does not use them.
        terms: (z, y) -> the terms that C_x adds up.
        error: (z, y) -> δ^L.
    """

    of: tuple[Callable[..., Array], Callable[..., Array]]
    terms: Callable[[Array, Array], Array]
    error: Callable[[Array, Array], Array]


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
        probabilities: whether outputs and targets have to lie in [0, 1].
        of_labels: the matched forms for integer labels, or None.
        composed: forms in z for other activations.
        curvature: the second derivative by z of a matched layer, or None.
    """

    name: str
    terms: Callable[[Array, Array], Array]
    gradient: Callable[[Array, Array], Array]
    matched: Activation | None = None
    matched_terms: Callable[[Array, Array], Array] | None = None
    matched_error: Callable[[Array, Array], Array] | None = None
    probabilities: bool = False
    of_labels: OfLabels | None = None
    composed: tuple[Composed, ...] = ()
    curvature: Curvature | None = None

    def __call__(self, a: Any, y: Any, *, weights: Any = None, output: Output = None) -> Array:
        """C = (1/m) Σ_x C_x, a scalar in at least float32.

        Args:
            a: outputs (m, ..., n).
            y: targets shaped like a, or integer labels (m, ...) from 0 to n − 1.
            weights: (m,), (m, T), ...: factors of the terms of C_x; the mean is still over m. Where a weight is 0, output and
                target count for nothing, whatever they are: NaN, or a label such as −100.
            output: the last layer's (activation, z), which lets the cost be computed from z.

        Raises:
            ValueError: for targets or weights of the wrong shape or kind, a concrete target that `check_targets` refuses, or
                an activation that the cost cannot follow. Under ``jit`` such a target makes C NaN.
        """
        a = integers_as_floats(a)
        terms, given, targets = self.terms, a, self.targets
        if self.matches(output):
            given = output[1]  # pyright: ignore
            terms, _, targets = self._matched_forms(given, y)
        elif forms := self._composed_forms(output, y):
            (terms, _, targets), given = forms, output[1]  # pyright: ignore
        return jnp.sum(_weighted(terms, given, targets(a, y, weights), weights)) / a.shape[0]  # pyright: ignore

    def output_gradient(self, a: Any, y: Any, *, weights: Any = None) -> Array:
        """∇_a C_x for each example, shaped like a: the da_out of a last layer whose δ^L is not known from z."""
        a = integers_as_floats(a)
        return _weighted(self.gradient, a, self.targets(a, y, weights), weights).astype(a.dtype)

    def output_error(self, z: Any, y: Any, *, weights: Any = None) -> Array:
        """δ^L of a matched last layer from its weighted input z, shaped like z: a − y, whatever σ'(z) is.

        Raises:
            ValueError: for a cost without a matched activation.
        """
        if self.matched_error is None:
            raise ValueError(f"{self.name}: expected a cost with a matched activation, got none; use output_gradient")
        _, error, targets = self._matched_forms(z, y)
        return self._error(error, z, y, weights, targets)

    def delta(self, output: Output, y: Any, *, weights: Any = None) -> Array | None:
        """δ^L from the last layer's (activation, z) where it is known from z: `output_error` of a matched layer, or a
        composed form; else None, and BP1 takes `output_gradient` and σ'(z).

        Raises:
            ValueError: as `matches`.
        """
        if self.matches(output):
            return self.output_error(output[1], y, weights=weights)  # pyright: ignore
        if forms := self._composed_forms(output, y):
            _, error, targets = forms
            return self._error(error, output[1], y, weights, targets)  # pyright: ignore
        return None

    def hessian_product(self, z: Any, y: Any, u: Any, *, weights: Any = None) -> Array:
        """H u with H = ∂²C_x/∂z∂z of each example (and step) of a matched last layer.

        Args:
            z: its weighted input (m, ..., n).
            y: targets, as of a call.
            u: shaped like z.
            weights: as of a call; they multiply H.

        Returns:
            Shaped like z.

        Raises:
            ValueError: for a cost without `Curvature`, or a u of another shape.
        """
        z, u, curvature = integers_as_floats(z), at_least_float32(u), self._curved()
        if u.shape != z.shape:
            raise ValueError(
                f"{self.name}: expected u of shape {z.shape}, as z, got {u.shape}; it is what H multiplies"
            )
        return _weighted(
            curvature.product, z, self.targets(z, y, weights), weights, u.astype(wide_dtype(z.dtype))
        ).astype(z.dtype)

    def hessian_root(self, z: Any, y: Any, *, weights: Any = None) -> Array:
        """S with S Sᵀ = H, as of `hessian_product`: (m, ..., n, k), its columns on the last axis.

        A column is an error δ^L. Where steps or positions share the weights below, H of the whole example has a column for
        each k *and* each step, which is 0 at the others.

        Raises:
            ValueError: as `hessian_product`. A negative weight has no root: NaN.
        """
        z = integers_as_floats(z)
        return jax.vmap(lambda k: self.root_column(z, y, k, weights=weights), out_axes=-1)(jnp.arange(z.shape[-1]))

    def root_column(self, z: Any, y: Any, k: Any, *, weights: Any = None) -> Array:
        """The k-th column of `hessian_root`, shaped like z."""
        z, curvature, roots = integers_as_floats(z), self._curved(), _roots(weights)
        return _weighted(lambda z, y: curvature.column(z, y, k), z, self.targets(z, y, weights), roots).astype(z.dtype)

    def sampled_error(self, z: Any, key: Any, *, y: Any = None, weights: Any = None) -> Array:
        """δ^L of targets that are drawn from the model, so that E[δ δᵀ] = H, as of `hessian_product`.

        Of softmax a − e_k with the class k ~ a, of sigmoid a − b with b ~ Bernoulli(a), of linear outputs N(0, 1).

        Args:
            z: the weighted input (m, ..., n) of a matched last layer.
            key: each example draws by a key of its own, so that a batch in chunks draws what the whole batch does.
            y: the targets, of whose values only the sum counts: for soft ones that do not add up to 1.
            weights: as of a call.

        Returns:
            Shaped like z.

        Raises:
            ValueError: for a cost without `Curvature`, or no key.
        """
        z, curvature, roots = integers_as_floats(z), self._curved(), _roots(weights)
        if key is None:
            raise ValueError(f"{self.name}: expected a key to draw targets with, got None; give jax.random.key(seed)")
        keys = example_keys(key, z.shape[0])
        targets = jnp.zeros_like(at_least_float32(z)).at[..., 0].set(1) if y is None else self.targets(z, y, weights)
        return _weighted(lambda z, y: curvature.sample(z, y, keys), z, targets, roots).astype(z.dtype)

    def _curved(self) -> Curvature:
        if self.curvature is None:
            raise ValueError(
                f"{self.name}: expected a cost with second derivatives, got none; give Cost(..., curvature=fn.Curvature(...))"
            )
        return self.curvature

    def _error(self, error: Callable, z: Any, y: Any, weights: Any, targets: Callable) -> Array:
        z = integers_as_floats(z)
        return _weighted(error, z, targets(z, y, weights), weights).astype(z.dtype)

    def _matched_forms(self, z: Any, y: Any) -> _Forms:
        """Those of a matched layer; for labels the forms that need no one-hot rows, where the matched forms are those that
        these stand for."""
        matched = self.matched_terms, self.matched_error
        of_labels = self.of_labels
        fitting = (of_labels.terms, of_labels.error) if of_labels and of_labels.of == matched else None
        return self._by_targets(matched, fitting, z, y)

    def _composed_forms(self, output: Output, y: Any) -> _Forms | None:
        """Those of an activation that the cost is not matched to, or None."""
        if output is None:
            return None
        wanted = output[0], (self.terms, self.gradient)
        found = next((form for form in self.composed if (form.activation, form.of) == wanted), None)
        return found and self._by_targets((found.terms, found.error), found.of_labels, output[1], y)

    def _by_targets(self, forms: tuple[Any, Any], of_labels: tuple[Any, Any] | None, z: Any, y: Any) -> _Forms:
        if of_labels and jnp.ndim(y) < jnp.ndim(z):
            return *of_labels, self._checked
        return *forms, self.targets

    def matches(self, output: Output) -> bool:
        """Whether the last layer's activation is the matched one.

        Raises:
            ValueError: for an activation whose values are no probabilities where the cost takes their logarithm, and for
                a softmax of one unit under `cross_entropy`, which is 1 whatever z is, so that C is ∞.
        """
        if output is None:
            return False
        activation, z = output
        if self.probabilities and not activation.probabilities:
            raise ValueError(
                f"{self.name}: expected outputs in [0, 1], got a last layer with the activation {activation}; "
                f"end with {self.matched or softmax}, as in fn.Dense(n_out, fn.{self.matched or softmax})"
            )
        if self.probabilities and activation == softmax != self.matched and z.shape[-1] == 1:
            raise ValueError(
                f"{self.name}: expected a softmax of two units or more, got one, which is always 1; "
                "end with one sigmoid, as in fn.Dense(1, fn.sigmoid)"
            )
        return activation == self.matched

    def targets(self, a: Array, y: Any, weights: Any = None) -> Array:
        """y as floats shaped like a; integer labels become one-hot rows. NaN where a label is outside the classes, or a
        target outside [0, 1] where the cost takes logarithms.

        Raises:
            ValueError: for a wrong shape or kind, or a concrete target that `check_targets` refuses.
        """
        y = self._checked(a, y, weights)
        dtype = wide_dtype(a.dtype)
        if y.shape == a.shape:
            y = y.astype(dtype)
            return jnp.where((y >= -SLACK) & (y <= 1 + SLACK), y, jnp.nan) if self.probabilities else y
        n = a.shape[-1]
        return jnp.where(_is_label(y, n)[..., None], jax.nn.one_hot(y, n, dtype=dtype), jnp.nan)

    def _checked(self, a: Array, y: Any, weights: Any) -> Array:
        """y as an array, labels as they are."""
        shape = jnp.shape(y)
        if shape not in (a.shape, a.shape[:-1]):
            raise ValueError(
                f"{self.name}: expected targets of shape {a.shape} or labels of shape {a.shape[:-1]} for outputs of "
                f"shape {a.shape}, got {shape}; check the last layer's size{_hint(a, shape)}"
            )
        check_targets(self, y, a.shape, weights)
        y = unwrapped(y)
        small = jnp.issubdtype(y.dtype, jnp.integer) and jnp.iinfo(y.dtype).bits <= 32
        return y.astype(jnp.int32) if small and shape != a.shape else y

    def __deepcopy__(self, memo: Any) -> "Cost":
        return self

    def __reduce__(self) -> Any:
        return self.name if globals().get(self.name) is self else super().__reduce__()

    def __repr__(self) -> str:
        return self.name


SLACK = 1e-6
"""What a target may lie outside [0, 1], by rounding."""


def check_targets(cost: Any, y: Any, shape: tuple[int, ...], weights: Any = None) -> bool:
    """Whether all targets were looked at and are right, those of weight 0 too; a ValueError for what the cost cannot follow.

    That are targets which are neither labels nor values for outputs of this shape, a label outside 0 .. n − 1 and, where the
    cost takes logarithms, a target outside [0, 1] or NaN.

    Only concrete numbers are looked at, as they are given (JAX wraps integers of 64 bits), and none of weight 0.

    Args:
        cost: a cost, or a name for the message.
        y: targets shaped like the outputs, or labels.
        shape: of the outputs (m, ..., n).
        weights: as of a cost.
    """
    y = _real(cost, "targets", y)
    labels = y.shape != shape
    if labels and y.dtype.kind not in "iu" and not jnp.issubdtype(y.dtype, jnp.integer):
        raise ValueError(
            f"{cost}: expected integer labels for targets of shape {y.shape} beside outputs of shape {shape}, got {y.dtype}; "
            f"use y.astype(int) for labels or targets of shape {shape} for values"
        )
    if labels and shape[-1] == 1:
        raise ValueError(
            f"{cost}: expected targets of shape {shape} for a single output, got labels of shape {y.shape}; "
            f"give y[:, None], 0 or 1 for each example"
        )
    if not (labels or getattr(cost, "probabilities", False)) or not (_is_here(y) and _is_here(weights)):
        return False
    y, (low, high) = np.asarray(y), bounds(y.shape, shape)
    if is_within(y, low, high):
        return True
    outside = ~((y >= low) & (y <= high)) & _counts(weights, y.shape)
    if not outside.any():
        return False
    where = tuple(int(i) for i in np.argwhere(outside)[0])
    wanted, remedy = f"labels from 0 to {high}", "check the labels or the last layer"
    if not labels:
        wanted, remedy = "targets in [0, 1]", "scale them to [0, 1], or give labels as integers or one-hot rows"
    raise ValueError(
        f"{cost}: expected {wanted}, got {y[where]} at example {where[0]} ({int(outside.sum())} of {y.size} are "
        f"outside); {remedy}"
    )


def bounds(shape: tuple[int, ...], of_outputs: tuple[int, ...]) -> tuple[float, float]:
    """The least and the greatest target of this shape: 0 and n − 1 for labels, 0 and 1, but for rounding, for values."""
    return (-SLACK, 1 + SLACK) if shape == of_outputs else (0, of_outputs[-1] - 1)


def is_within(numbers: np.ndarray, low: float, high: float) -> bool:
    """Whether all are from low to high, in one pass for each; NaN is not."""
    return not numbers.size or bool(low <= numbers.min() and numbers.max() <= high)


def _real(owner: Any, name: str, values: Any) -> Array | np.ndarray:
    """The values as an array, or a ValueError where they are complex."""
    values = values if isinstance(values, (Array, np.ndarray)) else jnp.asarray(values)
    if values.dtype.kind == "c":
        raise ValueError(f"{owner}: expected real {name}, got {values.dtype}; their imaginary part would be lost")
    return values


def _is_here(array: Any) -> bool:
    """Whether the numbers can be looked at: not traced, and all on this process's devices."""
    if not isinstance(array, Array):
        return True
    return not isinstance(array, Tracer) and (jax.process_count() == 1 or array.is_fully_addressable)


def _counts(weights: Any, shape: tuple[int, ...]) -> Any:
    """Where a target counts: its weight, or one of its terms' weights, is not 0."""
    counts = np.asarray(True if weights is None else weights) != 0
    counts = counts.any(axis=tuple(range(len(shape), counts.ndim)))
    if counts.shape != shape[: counts.ndim]:  # an error that names the weights follows
        return True
    return counts.reshape(counts.shape + (1,) * (len(shape) - counts.ndim))


def _hint(a: Array, shape: tuple[int, ...]) -> str:
    if shape and a.ndim and shape[0] != a.shape[0]:
        return f" and that both have as many examples ({a.shape[0]} and {shape[0]})"
    if a.ndim > 2 and len(shape) <= 2:
        return "; fn.Flatten() before a Dense layer makes one row of each example"
    return ""


def _roots(weights: Any) -> Any:
    """√weights, for what is squared later."""
    return None if weights is None else jnp.sqrt(at_least_float32(_real("weights", "numbers", weights)))


def _weighted(f: Callable[..., Array], a: Array, y: Array, weights: Any, u: Any = None) -> Array:
    """weights ⊙ f(a, y) or f(a, y, u), in at least float32. Where a weight is 0 f is given ordinary numbers instead, as
    0 · NaN is NaN, in f and in its derivative."""
    a, more = at_least_float32(a), () if u is None else (u,)
    if weights is None:
        return f(a, y, *more)
    weights = _real("weights", "numbers", weights)
    terms = jax.eval_shape(f, a, y, *more)
    if weights.shape != terms.shape[: weights.ndim] or weights.ndim == 0:
        raise ValueError(
            f"weights: expected shape ({terms.shape[0]},) or one that begins the shape of the terms {terms.shape}, "
            f"got {weights.shape}; weigh each example or each step"
        )

    def beside(array: Any) -> Array:
        return weights.reshape(weights.shape + (1,) * (len(array.shape) - weights.ndim))

    given = zip((a, y, *more), (0.5, 0.25, 0.0), strict=False)
    ordinary = (jnp.where(beside(b).astype(bool), b, jnp.asarray(number, b.dtype)) for b, number in given)
    return f(*ordinary) * beside(terms).astype(terms.dtype)


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
    """The terms from z for a = σ(z): −y ln σ(z) − (1 − y) ln σ(−z) = y max(−z, 0) + (1 − y) max(z, 0) + ln(1 + e^−|z|).

    No logarithm of a rounded a, and no difference where the example is nearly certain.
    """
    return y * jnp.maximum(-z, 0) + (1 - y) * jnp.maximum(z, 0) + jnp.log1p(exp_minus_abs(z))


@jax.jit
def cross_entropy_error_of_sigmoid(z: Array, y: Array) -> Array:
    """δ^L = a − y: the σ'(z) of BP1 cancels (section 4.1).

    Computed as (1 − y) a − y (1 − a), the same number: where a is nearly y = 1 the difference a − y would keep nothing of it,
    while 1 − a = σ(−z) is known from z.
    """
    a, rest = both_sides(z)
    return (1 - y) * a - y * rest


@jax.jit
def log_likelihood_terms(a: Array, y: Array) -> Array:
    """C_x = −Σ_j y_j ln a_j over the classes, with 0 ln 0 = 0; −ln a_y for a one-hot y (section 4.3)."""
    return -jnp.sum(xlogy(y, a), axis=-1)


@jax.jit
def log_likelihood_gradient(a: Array, y: Array) -> Array:
    """∇_a C_x = −y / a, and 0 where y = 0."""
    return -_ratio(y, a)


def shifted_exp(z: Array) -> tuple[Array, Array, Array, Array]:
    """(d, e^d, Σ e^d, Σ e^d − 1) over the last axis, with d = z − max z.

    The 1 is the largest entry's own e^0. While it outweighs the others (Σ e^d < 1.5) it is taken from that entry and not from
    the sum, so that others of 1e-9 are not lost beside it: e − ⌊e + ½⌋ is 0 for the largest and e for the others. (A select
    there would be stored by the compiler; arithmetic is part of the sum.) Nothing here asks for an e of exactly 1: a compiler
    may compute z once more, with other roundings, and then no entry has it.
    """
    d = z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    e = jnp.exp(d)
    total = jnp.sum(e, axis=-1, keepdims=True)
    others = jnp.sum(e - jnp.floor(e + 0.5), axis=-1, keepdims=True)
    return d, e, total, jnp.where(total < 1.5, others, total - 1)


def leading(e: Array, total: Array) -> Array:
    """Where an entry outweighs all others, a > ⅔."""
    return (e > 0.5) & (total < 1.5)


@jax.jit
def log_likelihood_terms_of_softmax(z: Array, y: Array) -> Array:
    """The terms from z for a = softmax(z): Σ_j y_j (ln Σ_k e^{z_k} − z_j), by log-sum-exp."""
    d, _, _, others = shifted_exp(z)
    return jnp.sum(y * (jnp.log1p(others) - d), axis=-1)


@jax.jit
def log_likelihood_error_of_softmax(z: Array, y: Array) -> Array:
    """δ^L = a Σ_j y_j − y, which is the notes' a − y where the targets of an example add up to 1 (section 4.3).

    For an output a_k > ⅔ computed as a_k (Σ_j y_j − y_k) − y_k (1 − a_k), the same number: where a_k is nearly y_k = 1 the
    difference a_k − y_k would keep nothing of it, while 1 − a_k = others / total is known from z. There a_k = 1 / total.
    """
    _, e, total, others = shifted_exp(z)
    targets = jnp.sum(y, axis=-1, keepdims=True)
    return jnp.where(leading(e, total), (e * targets - y - y * others) / total, e * (targets / total) - y)


def beside_label(z: Array, y: Array) -> tuple[Array, Array, Array]:
    """(d_y, e, Σ_{k≠y} e_k) with e = exp(z − max z) and d_y = z_y − max z, for labels y: each example's own entry is left out
    of the sum by its place, so that others of 1e-9 are not lost beside its 1."""
    z = stored(z)
    largest = jax.lax.stop_gradient(jnp.max(z, axis=-1))
    e = jnp.exp(z - largest[..., None])
    return at_label(z, y) - largest, e, jnp.sum(jnp.where(is_own(z, y), 0, e), axis=-1)


@jax.jit
def log_likelihood_terms_of_labels(z: Array, y: Array) -> Array:
    """−ln a_y from z for a = softmax(z) and labels y: ln Σ_k e^{z_k} − z_y = ln(1 + (e_y − 1) + Σ_{k≠y} e_k) − d_y."""
    own, _, others = beside_label(z, y)
    return jnp.log1p(others + jnp.expm1(own)) - own


@jax.jit
def log_likelihood_error_of_labels(z: Array, y: Array) -> Array:
    """δ^L_j = a_j = e_j / Σ_k e_k, and at the label a_y − 1 = −Σ_{k≠y} e_k / Σ_k e_k."""
    own, e, others = beside_label(z, y)
    total = others + jnp.exp(own)
    return jnp.where(is_own(z, y), -others[..., None], e) / total[..., None]


def is_own(z: Array, y: Array) -> Array:
    """Which entry of each row is the label's."""
    return y[..., None] == jax.lax.broadcasted_iota(y.dtype, z.shape, z.ndim - 1)


def at_label(values: Array, y: Array) -> Array:
    """values_y of each row, NaN for a y outside of it."""
    inside = _is_label(y, values.shape[-1])
    found = jnp.take_along_axis(values, jnp.where(inside, y, 0).astype(jnp.int32)[..., None], axis=-1)
    return jnp.where(inside, found[..., 0], jnp.nan)


def _is_label(y: Array, n: int) -> Array:
    return (y >= 0) & (y < n)


@jax.jit
def log_likelihood_terms_of_sigmoid(z: Array, y: Array) -> Array:
    """The terms from z for a = σ(z): −Σ_j y_j ln σ(z_j) = Σ_j y_j (max(−z_j, 0) + ln(1 + e^−|z_j|))."""
    return jnp.sum(y * (jnp.maximum(-z, 0) + jnp.log1p(exp_minus_abs(z))), axis=-1)


@jax.jit
def log_likelihood_error_of_sigmoid(z: Array, y: Array) -> Array:
    """δ^L = −y (1 − a): the a of ∇_a C_x = −y / a and of σ'(z) = a (1 − a) cancels."""
    return -y * both_sides(z)[1]


@jax.jit
def log_likelihood_terms_of_sigmoid_and_labels(z: Array, y: Array) -> Array:
    """−ln a_y from z for a = σ(z) and labels y: max(−z_y, 0) + ln(1 + e^−|z_y|)."""
    own = at_label(z, y)
    return jnp.maximum(-own, 0) + jnp.log1p(exp_minus_abs(own))


@jax.jit
def log_likelihood_error_of_sigmoid_and_labels(z: Array, y: Array) -> Array:
    """δ^L = −(1 − a_y) at the label y, 0 elsewhere."""
    own = at_label(z, y)[..., None]
    return jnp.where(is_own(z, y), -both_sides(own)[1], jnp.where(jnp.isnan(own), jnp.nan, 0))


def odds_of_softmax(z: Array) -> tuple[Array, Array, Array, Array, Array]:
    """(u, e, s, q, lead) with u_j = z_j − ln Σ_{k≠j} e^{z_k}, so that softmax is a sigmoid of each u_j: a_j = σ(u_j).

    ∂u_j/∂z_i = 1 for i = j, else −e^{z_i} / Σ_{k≠j} e^{z_k}, which is −e_i / s_j where j does not outweigh the others, and
    −q_i where it is the ``lead``: then the others are summed relative to their own largest.
    """
    d, e, total, _ = shifted_exp(z)
    lead = leading(e, total)
    beside = jnp.where(lead, -1e30, d)
    second = jax.lax.stop_gradient(jnp.max(beside, axis=-1, keepdims=True))
    q = jnp.exp(beside - second)
    s, all_q = jnp.where(lead, 1, total - e), jnp.sum(q, axis=-1, keepdims=True)
    return d - jnp.where(lead, second + jnp.log(all_q), jnp.log(s)), e, s, q / all_q, lead


@jax.jit
def cross_entropy_terms_of_softmax(z: Array, y: Array) -> Array:
    """The terms from z for a = softmax(z), which is σ(u) by `odds_of_softmax`."""
    return cross_entropy_terms_of_sigmoid(odds_of_softmax(z)[0], y)


@jax.jit
def cross_entropy_error_of_softmax(z: Array, y: Array) -> Array:
    """δ_i = Σ_j (a_j − y_j) ∂u_j/∂z_i for a = softmax(z) = σ(u): (a − y) of the sigmoid, through `odds_of_softmax`."""
    u, e, s, q, lead = odds_of_softmax(z)
    error = cross_entropy_error_of_sigmoid(u, y)
    share = jnp.where(lead, 0, error / s)
    of_lead = jnp.sum(jnp.where(lead, error, 0), axis=-1, keepdims=True)
    return error - e * (jnp.sum(share, axis=-1, keepdims=True) - share) - jnp.where(lead, 0, q * of_lead)


quadratic: Cost = Cost(
    "quadratic",
    quadratic_terms,
    quadratic_gradient,
    matched=linear,
    matched_terms=quadratic_terms,
    matched_error=quadratic_gradient,
    curvature=quadratic_curvature,
)
cross_entropy: Cost = Cost(
    "cross_entropy",
    cross_entropy_terms,
    cross_entropy_gradient,
    matched=sigmoid,
    matched_terms=cross_entropy_terms_of_sigmoid,
    matched_error=cross_entropy_error_of_sigmoid,
    probabilities=True,
    composed=(
        Composed(
            softmax,
            (cross_entropy_terms, cross_entropy_gradient),
            cross_entropy_terms_of_softmax,
            cross_entropy_error_of_softmax,
        ),
    ),
    curvature=sigmoid_curvature,
)
log_likelihood: Cost = Cost(
    "log_likelihood",
    log_likelihood_terms,
    log_likelihood_gradient,
    matched=softmax,
    matched_terms=log_likelihood_terms_of_softmax,
    matched_error=log_likelihood_error_of_softmax,
    of_labels=OfLabels(
        (log_likelihood_terms_of_softmax, log_likelihood_error_of_softmax),
        log_likelihood_terms_of_labels,
        log_likelihood_error_of_labels,
    ),
    probabilities=True,
    composed=(
        Composed(
            sigmoid,
            (log_likelihood_terms, log_likelihood_gradient),
            log_likelihood_terms_of_sigmoid,
            log_likelihood_error_of_sigmoid,
            (log_likelihood_terms_of_sigmoid_and_labels, log_likelihood_error_of_sigmoid_and_labels),
        ),
    ),
    curvature=softmax_curvature,
)


def accuracy(a: Any, y: Any, weights: Any = None) -> Array:
    """The share of outputs that name the right class. An output with a NaN in it names none.

    Args:
        a: outputs (m, ..., n); the class is the largest of the n, or a ≥ ½ where n is 1.
        y: integer labels (m, ...), or targets shaped like a.
        weights: (m, ...): what each example (or step) counts.

    Raises:
        ValueError: for targets of another shape, labels that are no integers, or a concrete label outside the classes.
    """
    a, shape = jnp.asarray(a), jnp.shape(y)
    if shape not in (a.shape, a.shape[:-1]):
        raise ValueError(f"accuracy: expected targets of shape {a.shape} or {a.shape[:-1]}, got {shape}")
    check_targets("accuracy", y, (*a.shape[:-1], max(2, a.shape[-1])) if shape != a.shape else shape, weights)
    return _accuracy(a, unwrapped(y), None if weights is None else jnp.asarray(weights))


@jax.jit
def _accuracy(a: Array, y: Array, weights: Array | None) -> Array:
    chosen, known = classes(a)
    right, named = (y, True) if y.shape != a.shape else classes(at_least_float32(y))
    hits = ((chosen == right.astype(chosen.dtype)) & known & named).astype(jnp.result_type(float))
    if weights is None:
        return jnp.mean(hits)
    counts = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (hits.ndim - weights.ndim)), hits.shape)
    counts = counts.astype(hits.dtype)
    return jnp.sum(hits * counts) / jnp.sum(counts)


def classes(scores: Array) -> tuple[Array, Array]:
    """(class, whether there is one) of each row of scores: the largest, or whether a single one is ≥ ½; none for NaN."""
    chosen = jnp.argmax(scores, axis=-1) if scores.shape[-1] > 1 else (scores[..., 0] >= 0.5).astype(int)
    return chosen, ~jnp.any(scores != scores, axis=-1)
