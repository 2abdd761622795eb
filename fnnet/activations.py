"""Activation functions a = σ(z), each beside its hand-written derivative σ'(z).

An `Activation` is a value: hashable, equal by value and static under ``jax.jit``. Calling one applies it.
Every formula is evaluated in at least float32 and rounded once. Values and derivatives keep their relative accuracy in the
tails, where one that is written as a difference (1 − a, a + α) would cancel; at ±∞ they are the limits, and NaN stays NaN.

Source: the notes, sections 1 (step, sigmoid), 4.2 (linear) and 4.3 (softmax).
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .programs import placed

__all__ = [
    "Activation",
    "elu",
    "gelu",
    "gelu_tanh",
    "leaky_relu",
    "linear",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "step",
    "tanh",
]


def wide_dtype(dtype: Any) -> Any:
    """float64 for float64, else float32: the precision that formulas and sums are evaluated in."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def at_least_float32(x: Any) -> Array:
    """x in float32 where it is an integer, a bool, float16 or bfloat16; unchanged in float32 and float64.

    Raises:
        ValueError: for complex numbers, which would lose their imaginary part.
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"expected real numbers, got {x.dtype}; give real and imaginary parts as units of their own")
    return x.astype(wide_dtype(x.dtype))


def on_last_axis(b: Array, rank: int) -> Array:
    """b (n,) as (1, ..., 1, n), of the rank of what it is added to: ``jax_numpy_rank_promotion="raise"`` refuses another."""
    return jnp.expand_dims(b, range(rank - 1))


def integers_as_floats(x: Any) -> Array:
    """x, integers and bools in the default float dtype."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))


def unwrapped(x: Any) -> Array:
    """x as an array; NumPy integers of 64 bits that JAX would wrap (2³² to 0) as floats."""
    if isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.integer) and x.size:
        kept = np.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
        if x.min() < kept.min or x.max() > kept.max:
            x = x.astype(np.float64)
    return jnp.asarray(placed(x))


@dataclass(frozen=True)
class Elementwise:
    """The pullback of a function that acts on each entry alone: da ⊙ σ'(z).

    Args:
        derivative: (z, a) -> σ'(z).
        of_output: a -> σ'(z) where it follows from a, up to the rounding of a.
    """

    derivative: Callable[..., Array]
    of_output: Callable[[Array], Array] | None = None

    def __call__(self, da: Array, z: Array, a: Array, **parameters: float) -> Array:
        return da * self.derivative(z, a, **parameters)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Activation:
    """An activation function and its derivative.

    Args:
        name: shown in tables and messages.
        function: z -> a, any shape.
        pullback: (da, z, a) -> ∂C/∂z given da = ∂C/∂a; ``da * derivative(z, a)`` where σ acts on each entry alone.
        parameters: constants of the formula, as (name, value) pairs; `with_` replaces them.
        probabilities: whether a always lies in [0, 1], which the logarithmic costs need.
    """

    name: str
    function: Callable[..., Array]
    pullback: Callable[..., Array]
    parameters: tuple[tuple[str, float], ...] = ()
    probabilities: bool = False

    def __call__(self, z: Any) -> Array:
        """a = σ(z), in z's dtype (integers: the default float dtype)."""
        z = integers_as_floats(z)
        return self.function(at_least_float32(z), **dict(self.parameters)).astype(z.dtype)

    def error(self, da: Array, z: Array, a: Array | None = None) -> Array:
        """δ = ∇_a C ⊙ σ'(z) (BP1); for softmax the product with its whole Jacobian. All shapes alike.

        ``a = σ(z)`` may be given where it is at hand, which saves computing it again. In half precision it is computed from z
        all the same: a is rounded there, and 1 − a would keep little of it.
        """
        z, wide = integers_as_floats(z), at_least_float32
        a = self.function(wide(z), **dict(self.parameters)) if a is None or z.dtype.itemsize < 4 else wide(a)
        return self.pullback(wide(da), wide(z), a, **dict(self.parameters)).astype(z.dtype)

    def error_in_layer(self, da: Array, z: Array, a: Array) -> Array:
        """`error` as a layer computes it: from a alone where σ' follows from a.

        The layer above keeps a, its input, for BP4; where z is not needed as well, the compiler keeps one array and not two.
        As a is rounded, σ' is then right up to eps absolutely, not relatively: at z = 20 it is 0 for the sigmoid in float32.
        In half precision it comes from z.
        """
        of_output = getattr(self.pullback, "of_output", None)
        if of_output is None or z.dtype.itemsize < 4:
            return self.error(da, z, a)
        return (at_least_float32(da) * of_output(a)).astype(z.dtype)

    @property
    def surrogate(self) -> "Activation | None":
        """The activation whose derivative is used in place of this one's, see `with_surrogate`; None for its own."""
        return self.pullback.activation if isinstance(self.pullback, Surrogate) else None

    def with_surrogate(self, activation: "Activation") -> "Activation":
        """This activation with the derivative of another one: a = σ(z), but δ = ∇_a C ⊙ σ̃'(z) in BP1 and BP2.

        So a threshold unit learns: ``fn.step.with_surrogate(fn.sigmoid)``; with ``fn.linear``, σ̃' = 1, it is the
        straight-through estimator. Autodiff of the forward pass still gives σ', 0 for `step`.

        Args:
            activation: σ̃, which acts on each unit alone.

        Raises:
            ValueError: for something that is no activation, one that acts on the whole row (softmax), or one without a
                derivative (`step` itself).

        Source: Bengio, Léonard and Courville (2013); Neftci, Mostafa and Zenke (2019).
        """
        expected = f"{self!r}.with_surrogate: expected an activation with a derivative that acts on each unit alone"
        remedy = "give fn.sigmoid, or fn.linear for the straight-through estimator"
        if not isinstance(activation, Activation):
            raise ValueError(f"{expected}, got {activation!r}; {remedy}")
        if activation.pullback is softmax_pullback:
            raise ValueError(f"{expected}, got {activation!r}, which acts on the whole row; {remedy}")
        if activation.pullback is _refuse:
            raise ValueError(f"{expected}, got {activation!r}, whose derivative is 0; {remedy}")
        function = threshold if self.function is step_function else self.function
        return dataclasses.replace(self, function=function, pullback=Surrogate(activation))

    def with_(self, **parameters: float) -> "Activation":
        """This activation with other constants, as in ``leaky_relu.with_(slope=0.1)``.

        Raises:
            ValueError: for a name that the formula does not have.
        """
        known = dict(self.parameters)
        if unknown := sorted(parameters.keys() - known.keys()):
            has = f"it has {sorted(known)}" if known else "it has none"
            raise ValueError(f"{self.name}: expected the name of a parameter, got {', '.join(unknown)}; {has}")
        merged = {**known, **{name: float(value) for name, value in parameters.items()}}
        return dataclasses.replace(self, parameters=tuple(merged.items()))

    def __deepcopy__(self, memo: Any) -> "Activation":
        return self

    def __reduce__(self) -> Any:
        base = globals().get(self.name)
        if isinstance(base, Activation) and self.surrogate is not None:
            base = base.with_surrogate(self.surrogate)
        if not isinstance(base, Activation) or base.function is not self.function:
            return super().__reduce__()
        return self.name if base is self else (_variant, (self.name, self.parameters, self.surrogate))

    def __repr__(self) -> str:
        name = self.name
        if self.parameters:
            name += f"({', '.join(f'{name}={value:g}' for name, value in self.parameters)})"
        return name if self.surrogate is None else f"{name}.with_surrogate({self.surrogate!r})"


@dataclass(frozen=True)
class Surrogate:
    """The pullback of `Activation.with_surrogate`: da ⊙ σ̃'(z) with the derivative of another activation."""

    activation: Activation

    def __call__(self, da: Array, z: Array, a: Array, **parameters: float) -> Array:
        return self.activation.error(da, z)


def _variant(name: str, parameters: tuple[tuple[str, float], ...], surrogate: Activation | None = None) -> Activation:
    activation = globals()[name].with_(**dict(parameters))
    return activation if surrogate is None else activation.with_surrogate(surrogate)


def both_sides(z: Array) -> tuple[Array, Array]:
    """σ(z) and σ(−z) = 1 − σ(z) of the sigmoid, by one e^−|z| and without a difference: both keep their relative accuracy."""
    e = exp_minus_abs(z)
    return jnp.where(z >= 0, 1, e) / (1 + e), jnp.where(z >= 0, e, 1) / (1 + e)


def exp_minus_abs(z: Array) -> Array:
    """e^−|z|. At 0 autodiff takes the mean of both sides of a minimum or maximum, so that max(z, 0) + ln(1 + e^−|z|)
    differentiates to ½; for the absolute value it takes 1 there, which would be wrong."""
    return jnp.exp(jnp.minimum(z, -z))


_FAR = 1e3
"""Beyond ±_FAR e^−|z| is 0 in every dtype."""


def within(z: Array) -> Array:
    """z between ±_FAR, for a product with e^−|z|: 0 at ±∞, not 0 · ∞."""
    return jnp.clip(z, -_FAR, _FAR)


@jax.jit
def sigmoid_function(z: Array) -> Array:
    """σ(z) = 1 / (1 + e^−z)."""
    return jax.lax.logistic(z)


@jax.jit
def sigmoid_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = σ(z) σ(−z), which is a (1 − a)."""
    a, rest = both_sides(z)
    return a * rest


@jax.jit
def sigmoid_derivative_of_output(a: Array) -> Array:
    """σ'(z) = a (1 − a)."""
    return a * (1 - a)


@jax.jit
def tanh_function(z: Array) -> Array:
    """σ(z) = tanh z."""
    return jnp.tanh(z)


@jax.jit
def tanh_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = 1 / cosh² z = 4 s(2z) s(−2z) with s the sigmoid, which is 1 − a²."""
    s, rest = both_sides(2 * z)
    return 4 * s * rest


@jax.jit
def tanh_derivative_of_output(a: Array) -> Array:
    """σ'(z) = 1 − a²."""
    return 1 - a * a


@jax.jit
def relu_function(z: Array) -> Array:
    """σ(z) = max(z, 0), written so that autodiff's σ'(0) is 0 too, and that NaN stays NaN."""
    return jnp.where(z <= 0, 0, z)


@jax.jit
def relu_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = 1 for z > 0, else 0. relu'(0) = 0; ``jax.grad`` of ``jnp.maximum(z, 0)`` takes ½ there."""
    return jnp.where(z <= 0, 0, jnp.ones_like(z))


@jax.jit
def leaky_relu_function(z: Array, slope: float) -> Array:
    """σ(z) = z for z > 0, else slope · z."""
    return jnp.where(z > 0, z, slope * z)


@jax.jit
def leaky_relu_derivative(z: Array, a: Array, slope: float) -> Array:
    """σ'(z) = 1 for z > 0, else slope."""
    return jnp.where(z > 0, jnp.ones_like(z), slope)


@jax.jit
def elu_function(z: Array, alpha: float) -> Array:
    """σ(z) = z for z > 0, else α (e^z − 1)."""
    return jnp.where(z > 0, z, alpha * jnp.expm1(jnp.where(z > 0, 0, z)))


@jax.jit
def elu_derivative(z: Array, a: Array, alpha: float) -> Array:
    """σ'(z) = 1 for z > 0, else α e^z."""
    return jnp.where(z > 0, jnp.ones_like(z), alpha * jnp.exp(jnp.minimum(z, 0)))


@jax.jit
def softplus_function(z: Array) -> Array:
    """σ(z) = ln(1 + e^z) = max(z, 0) + ln(1 + e^−|z|)."""
    return jnp.maximum(z, 0) + jnp.log1p(exp_minus_abs(z))


@jax.jit
def softplus_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = 1 / (1 + e^−z)."""
    return jax.lax.logistic(z)


@jax.jit
def silu_function(z: Array) -> Array:
    """σ(z) = z s with s = 1 / (1 + e^−z)."""
    return jnp.maximum(z, -_FAR) * jax.lax.logistic(z)


@jax.jit
def silu_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = s (1 + z (1 − s)) with s = 1 / (1 + e^−z)."""
    s, rest = both_sides(z)
    return s * (1 + within(z) * rest)


@jax.jit
def gelu_function(z: Array) -> Array:
    """σ(z) = z Φ(z), Φ the standard normal distribution function (the exact form)."""
    return jnp.maximum(z, -_FAR) * 0.5 * jax.lax.erfc(-z * math.sqrt(0.5))


@jax.jit
def gelu_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = Φ(z) + z φ(z), φ the standard normal density."""
    z = within(z)
    x = -z * math.sqrt(0.5)
    return 0.5 * jax.lax.erfc(x) + z * jnp.exp(-jnp.square(x)) * math.sqrt(0.5 / math.pi)


_GELU_SCALE, _GELU_CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


@jax.jit
def gelu_tanh_function(z: Array) -> Array:
    """σ(z) = ½ z (1 + tanh u) = z s(2u), s the sigmoid, 2u = 2 √(2/π) (z + 0.044715 z³): the approximation, ``jax.nn.gelu``'s
    default. 1 + tanh u would cancel."""
    near = within(z)
    return jnp.maximum(z, -_FAR) * jax.lax.logistic(_GELU_SCALE * (near + _GELU_CUBIC * near**3))


@jax.jit
def gelu_tanh_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = s + z s (1 − s) 2u' with s = s(2u) and 2u' = 2 √(2/π) (1 + 3 · 0.044715 z²)."""
    z = within(z)
    s, rest = both_sides(_GELU_SCALE * (z + _GELU_CUBIC * z**3))
    return s * (1 + z * rest * _GELU_SCALE * (1 + 3 * _GELU_CUBIC * z * z))


@jax.jit
def linear_function(z: Array) -> Array:
    """σ(z) = z."""
    return z


@jax.jit
def linear_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = 1."""
    return jnp.ones_like(z)


@jax.jit
def softmax_function(z: Array) -> Array:
    """a_j = e^{z_j} / Σ_k e^{z_k} over the last axis (the notes' section 4.3)."""
    z = jnp.minimum(z, jnp.finfo(z.dtype).max)  # ∞ − ∞ is NaN
    e = jnp.exp(z - jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True)))
    return e / jnp.sum(e, axis=-1, keepdims=True)


@jax.jit
def softmax_pullback(da: Array, z: Array, a: Array) -> Array:
    """δ_i = Σ_j (∂C/∂a_j) a_j (1[i = j] − a_i) = a_i (da_i − Σ_j da_j a_j).

    The a_j add up to 1, so a number may be taken from all da_j. Their mean is, so that where one a_j is nearly 1 the sum is
    not the difference of two numbers as large as its da_j.
    """
    da = da - jax.lax.stop_gradient(jnp.sum(da * a, axis=-1, keepdims=True))
    return a * (da - jnp.sum(da * a, axis=-1, keepdims=True))


def _refuse(*_: Any) -> Any:
    raise ValueError(
        "step: expected a differentiable activation, got the threshold unit, whose derivative is 0 everywhere and "
        "undefined at 0, so that nothing could be learnt. Use fn.sigmoid, its smooth form (the notes, section 1), or "
        "fn.step.with_surrogate(fn.sigmoid), which backpropagates through that form"
    )


@jax.jit
def threshold(z: Array) -> Array:
    """σ(z) = 1 for z ≥ 0, else 0: the notes' threshold unit."""
    return jnp.where(z < 0, 0, jnp.where(z >= 0, 1, z))


step_function: jax.custom_jvp[Array] = jax.custom_jvp(threshold)
"""`threshold`, forward only: autodiff is refused."""
step_function.defjvp(_refuse)


sigmoid: Activation = Activation(
    "sigmoid", sigmoid_function, Elementwise(sigmoid_derivative, sigmoid_derivative_of_output), probabilities=True
)
tanh: Activation = Activation("tanh", tanh_function, Elementwise(tanh_derivative, tanh_derivative_of_output))
relu: Activation = Activation("relu", relu_function, Elementwise(relu_derivative))
leaky_relu: Activation = Activation(
    "leaky_relu", leaky_relu_function, Elementwise(leaky_relu_derivative), (("slope", 0.01),)
)
elu: Activation = Activation("elu", elu_function, Elementwise(elu_derivative), (("alpha", 1.0),))
softplus: Activation = Activation("softplus", softplus_function, Elementwise(softplus_derivative))
silu: Activation = Activation("silu", silu_function, Elementwise(silu_derivative))
gelu: Activation = Activation("gelu", gelu_function, Elementwise(gelu_derivative))
gelu_tanh: Activation = Activation("gelu_tanh", gelu_tanh_function, Elementwise(gelu_tanh_derivative))
linear: Activation = Activation("linear", linear_function, Elementwise(linear_derivative))
softmax: Activation = Activation("softmax", softmax_function, softmax_pullback, probabilities=True)
step: Activation = Activation("step", step_function, _refuse, probabilities=True)
