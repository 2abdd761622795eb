"""Initialisers of weights and biases: arguments ``weight_init=`` and ``bias_init=`` of the layers.

An `Initializer` is a value, hashable and equal by value. ``n_in`` and ``n_out`` of a weight are the sizes of its
input and output axes, times the receptive field where there is one. The two that the notes name are `normal` and
`scaled_normal`; the others are ``jax.nn.initializers``, by their usual names.

Source: the notes, section 4.4.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from jax import Array

__all__ = [
    "Initializer",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "orthogonal",
    "scaled_normal",
    "scaled_uniform",
    "zeros",
]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Initializer:
    """Draws an array: ``initializer(key, shape, dtype, in_axis, out_axis)``.

    Args:
        name: shown in the layer's repr.
        draw: (key, shape, dtype, in_axis, out_axis, *parameters) -> array.
        parameters: constants, such as the standard deviation.
    """

    name: str
    draw: Callable[..., Array]
    parameters: tuple[float, ...] = ()

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any, in_axis: int = -1, out_axis: int = 0) -> Array:
        with jax.transfer_guard("allow"):  # the constants of the formulas
            return self.draw(key, shape, dtype, in_axis, out_axis, *self.parameters)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(f'{p:g}' for p in self.parameters)})"


def _draw_normal(key: Array, shape: tuple[int, ...], dtype: Any, in_axis: int, out_axis: int, std: float) -> Array:
    return std * jax.random.normal(key, shape, dtype)


def _draw_scaled_normal(key: Array, shape: tuple[int, ...], dtype: Any, in_axis: int, out_axis: int) -> Array:
    n_in = math.prod(shape) // shape[out_axis]
    return jax.random.normal(key, shape, dtype) / math.sqrt(n_in)


def _draw_orthogonal(key: Array, shape: tuple[int, ...], dtype: Any, in_axis: int, out_axis: int, gain: float) -> Array:
    return jax.nn.initializers.orthogonal(gain, column_axis=out_axis)(key, shape, dtype)


def _draw_zeros(key: Array, shape: tuple[int, ...], dtype: Any, in_axis: int, out_axis: int) -> Array:
    return jax.numpy.zeros(shape, dtype)


@dataclass(frozen=True)
class _VarianceScaling:
    scale: float
    mode: Literal["fan_in", "fan_avg"]
    kind: Literal["truncated_normal", "uniform"]

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Any, in_axis: int, out_axis: int) -> Array:
        draw = jax.nn.initializers.variance_scaling(self.scale, self.mode, self.kind, in_axis, out_axis)
        return draw(key, shape, dtype)


def normal(std: float = 1.0) -> Initializer:
    """N(0, std²): the notes' first choice, which saturates: z has standard deviation √(n_in' + 1) for n_in' inputs of 1."""
    return Initializer("normal", _draw_normal, (float(std),))


def scaled_normal() -> Initializer:
    """N(0, 1/n_in), standard deviation 1/√n_in: the notes' remedy and the layers' default."""
    return Initializer("scaled_normal", _draw_scaled_normal)


def scaled_uniform() -> Initializer:
    """Uniform on ±1/√n_in, variance 1/(3 n_in): PyTorch's default and Nøkland's (2016) for feedback weights, whose fan_out is
    the n_in of the weights that they stand in for."""
    return Initializer("scaled_uniform", _VarianceScaling(1 / 3, "fan_in", "uniform"))


def glorot_normal() -> Initializer:
    """Truncated normal of variance 2/(n_in + n_out). Source: Glorot and Bengio (2010)."""
    return Initializer("glorot_normal", _VarianceScaling(1.0, "fan_avg", "truncated_normal"))


def glorot_uniform() -> Initializer:
    """Uniform of variance 2/(n_in + n_out). Source: Glorot and Bengio (2010)."""
    return Initializer("glorot_uniform", _VarianceScaling(1.0, "fan_avg", "uniform"))


def he_normal() -> Initializer:
    """Truncated normal of variance 2/n_in, for relu. Source: He et al. (2015)."""
    return Initializer("he_normal", _VarianceScaling(2.0, "fan_in", "truncated_normal"))


def he_uniform() -> Initializer:
    """Uniform of variance 2/n_in, for relu. Source: He et al. (2015)."""
    return Initializer("he_uniform", _VarianceScaling(2.0, "fan_in", "uniform"))


def lecun_normal() -> Initializer:
    """Truncated normal of variance 1/n_in. Source: LeCun et al. (1998)."""
    return Initializer("lecun_normal", _VarianceScaling(1.0, "fan_in", "truncated_normal"))


def lecun_uniform() -> Initializer:
    """Uniform of variance 1/n_in. Source: LeCun et al. (1998)."""
    return Initializer("lecun_uniform", _VarianceScaling(1.0, "fan_in", "uniform"))


def orthogonal(gain: float = 1.0) -> Initializer:
    """gain times a matrix with orthonormal rows or columns, whichever are fewer. Source: Saxe et al. (2014)."""
    return Initializer("orthogonal", _draw_orthogonal, (float(gain),))


def zeros() -> Initializer:
    """0 everywhere, as the notes allow for biases."""
    return Initializer("zeros", _draw_zeros)
