"""Activation functions a = σ(z), each beside its hand-written derivative σ'(z).

An `Activation` is a value: hashable, equal by value and static under ``jax.jit``. Calling one applies it.
Every formula is evaluated in at least float32 and rounded once, so half precision and |z| up to 1e4 are safe.

Source: the notes, sections 1 (step, sigmoid), 4.2 (linear) and 4.3 (softmax).
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

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


def differentiate(derivative: Callable) -> Callable:
    """The pullback of a function that acts on each entry alone: da ⊙ σ'(z)."""

    def pullback(da: Array, z: Array, a: Array, **parameters: float) -> Array:
        return da * derivative(z, a, **parameters)

    return pullback


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
        if not isinstance(base, Activation) or base.function is not self.function:
            return super().__reduce__()
        return self.name if base is self else (_variant, (self.name, self.parameters))

    def __repr__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}({', '.join(f'{name}={value:g}' for name, value in self.parameters)})"


def shifted_exp(z: Array) -> tuple[Array, Array, Array]:
    """(e^{z − max z}, its sum, max z) over the last axis, shared by softmax and the log-likelihood."""
    top = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    e = jnp.exp(z - top)
    return e, jnp.sum(e, axis=-1, keepdims=True), top


def _variant(name: str, parameters: tuple[tuple[str, float], ...]) -> Activation:
    return globals()[name].with_(**dict(parameters))


@jax.jit
def sigmoid_function(z: Array) -> Array:
    """σ(z) = 1 / (1 + e^−z)."""
    return jax.lax.logistic(z)


@jax.jit
def sigmoid_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = a (1 − a)."""
    return a * (1 - a)


@jax.jit
def tanh_function(z: Array) -> Array:
    """σ(z) = tanh z."""
    return jnp.tanh(z)


@jax.jit
def tanh_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = 1 − a²."""
    return 1 - a * a


@jax.jit
def relu_function(z: Array) -> Array:
    """σ(z) = max(z, 0), written so that autodiff's σ'(0) is 0 too."""
    return jnp.where(z > 0, z, 0)


@jax.jit
def relu_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = 1 for z > 0, else 0. relu'(0) = 0; ``jax.grad`` of ``jnp.maximum(z, 0)`` takes ½ there."""
    return jnp.where(z > 0, jnp.ones_like(z), 0)


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
    """σ'(z) = 1 for z > 0, else α e^z = a + α."""
    return jnp.where(z > 0, jnp.ones_like(z), a + alpha)


@jax.jit
def softplus_function(z: Array) -> Array:
    """σ(z) = ln(1 + e^z) = max(z, 0) + ln(1 + e^−|z|)."""
    return jnp.logaddexp(z, 0)


@jax.jit
def softplus_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = 1 / (1 + e^−z)."""
    return jax.lax.logistic(z)


@jax.jit
def silu_function(z: Array) -> Array:
    """σ(z) = z s with s = 1 / (1 + e^−z)."""
    return z * jax.lax.logistic(z)


@jax.jit
def silu_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = s + a (1 − s) with s = 1 / (1 + e^−z)."""
    s = jax.lax.logistic(z)
    return s + a * (1 - s)


@jax.jit
def gelu_function(z: Array) -> Array:
    """σ(z) = z Φ(z), Φ the standard normal distribution function (the exact form)."""
    return z * 0.5 * jax.lax.erfc(-z * math.sqrt(0.5))


@jax.jit
def gelu_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = Φ(z) + z φ(z), φ the standard normal density."""
    return 0.5 * jax.lax.erfc(-z * math.sqrt(0.5)) + z * jnp.exp(-0.5 * z * z) * math.sqrt(0.5 / math.pi)


_GELU_SCALE, _GELU_CUBIC = math.sqrt(2 / math.pi), 0.044715


@jax.jit
def gelu_tanh_function(z: Array) -> Array:
    """σ(z) = ½ z (1 + t) with t = tanh(√(2/π) (z + 0.044715 z³)): the approximation, ``jax.nn.gelu``'s default."""
    return 0.5 * z * (1 + jnp.tanh(_GELU_SCALE * (z + _GELU_CUBIC * z**3)))


@jax.jit
def gelu_tanh_derivative(z: Array, a: Array) -> Array:
    """σ'(z) = ½ (1 + t) + ½ z (1 − t²) √(2/π) (1 + 3 · 0.044715 z²)."""
    t = jnp.tanh(_GELU_SCALE * (z + _GELU_CUBIC * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _GELU_SCALE * (1 + 3 * _GELU_CUBIC * z * z)


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
    e, total, _ = shifted_exp(z)
    return e / total


@jax.jit
def softmax_pullback(da: Array, z: Array, a: Array) -> Array:
    """δ_i = Σ_j (∂C/∂a_j) a_j (1[i = j] − a_i) = a_i (da_i − Σ_j da_j a_j).

    The a_j add up to 1, so a number may be taken from all da_j; that of the largest a_j leaves the least to cancel.
    """
    da = da - jnp.take_along_axis(da, jnp.argmax(a, axis=-1, keepdims=True), axis=-1)
    return a * (da - jnp.sum(da * a, axis=-1, keepdims=True))


def _refuse(*_: Any) -> Any:
    raise ValueError(
        "step: expected a differentiable activation, got the threshold unit, whose derivative is 0 everywhere and "
        "undefined at 0, so that nothing could be learnt. Use fn.sigmoid, its smooth form (the notes, section 1)"
    )


@jax.custom_jvp
@jax.jit
def step_function(z: Array) -> Array:
    """σ(z) = 1 for z ≥ 0, else 0: the notes' threshold unit, forward only."""
    return jnp.where(z >= 0, jnp.ones_like(z), 0)


step_function.defjvp(_refuse)


sigmoid = Activation("sigmoid", sigmoid_function, differentiate(sigmoid_derivative), probabilities=True)
tanh = Activation("tanh", tanh_function, differentiate(tanh_derivative))
relu = Activation("relu", relu_function, differentiate(relu_derivative))
leaky_relu = Activation("leaky_relu", leaky_relu_function, differentiate(leaky_relu_derivative), (("slope", 0.01),))
elu = Activation("elu", elu_function, differentiate(elu_derivative), (("alpha", 1.0),))
softplus = Activation("softplus", softplus_function, differentiate(softplus_derivative))
silu = Activation("silu", silu_function, differentiate(silu_derivative))
gelu = Activation("gelu", gelu_function, differentiate(gelu_derivative))
gelu_tanh = Activation("gelu_tanh", gelu_tanh_function, differentiate(gelu_tanh_derivative))
linear = Activation("linear", linear_function, differentiate(linear_derivative))
softmax = Activation("softmax", softmax_function, softmax_pullback, probabilities=True)
step = Activation("step", step_function, _refuse, probabilities=True)
