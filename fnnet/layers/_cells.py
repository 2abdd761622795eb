"""The recurrent cells, each step and its error by hand: the simple (Elman) network, LSTM and GRU.

Legend: m examples (axis 0), n units, n_in inputs; x_t the input of a step (m, n_in), h_t its state and output (m, n), z its
weighted inputs, gates side by side (m, g·n), δ = ∂(Σ_x C_x)/∂z; dh and dc, ∂C/∂h_t and ∂C/∂c_t.

`_time` runs them over the steps, all alike; a cell says what one step does.

Source: the notes' title "recurrent neural networks"; Elman (1990); Hochreiter and Schmidhuber (1997) with the forget gate
of Gers et al. (2000); Cho et al. (2014) with the reset gate after the product.
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import Activation, tanh
from ..initializers import Initializer, scaled_normal, zeros
from ._layer import Arrays, Params, Products, Shape, check_activation, check_leaf, drawing_key, layer
from ._recurrent import Recurrent
from ._time import Kept

__all__ = ["GRU", "LSTM", "RNN", "gru_step", "gru_step_error", "lstm_step", "lstm_step_error"]


@jax.jit
def lstm_step(z: Array, c_before: Array) -> tuple[Array, Array, Array]:
    """A step of the LSTM from its weighted inputs z = x w_xᵀ + h_{t−1} w_hᵀ + b, gates stacked as (i, f, g, o):

    i, f, o = s(z_i), s(z_f), s(z_o) with s the logistic function, g = tanh(z_g); c = f ⊙ c_{t−1} + i ⊙ g, h = o ⊙ tanh(c).

    Args:
        z: (m, 4n).
        c_before: c_{t−1} (m, n).

    Returns:
        The gates (m, 4n), h and c (m, n).
    """
    i, f, g, o = jnp.split(z, 4, axis=-1)
    i, f, g, o = jax.lax.logistic(i), jax.lax.logistic(f), jnp.tanh(g), jax.lax.logistic(o)
    c = f * c_before + i * g
    return jnp.concatenate([i, f, g, o], axis=-1), o * jnp.tanh(c), c


@jax.jit
def lstm_step_error(gates: Array, c_before: Array, c: Array, dh: Array, dc: Array) -> tuple[Array, Array]:
    """BPTT through a step of the LSTM, from ∂C/∂h and what later steps say of ∂C/∂c.

    With u = tanh(c): ∂C/∂c = dc + dh ⊙ o ⊙ (1 − u²), and
    δ_i = ∂C/∂c ⊙ g ⊙ i(1 − i), δ_f = ∂C/∂c ⊙ c_{t−1} ⊙ f(1 − f), δ_g = ∂C/∂c ⊙ i ⊙ (1 − g²), δ_o = dh ⊙ u ⊙ o(1 − o).

    Args:
        gates: (m, 4n), as of `lstm_step`.
        c_before: and ``c``, ``dh``, ``dc``: (m, n).

    Returns:
        δ (m, 4n), and ∂C/∂c_{t−1} = ∂C/∂c ⊙ f (m, n).
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    u = jnp.tanh(c)
    dc = dc + dh * o * (1 - u * u)
    delta = [dc * g * i * (1 - i), dc * c_before * f * (1 - f), dc * i * (1 - g * g), dh * u * o * (1 - o)]
    return jnp.concatenate(delta, axis=-1), dc * f


@jax.jit
def gru_step(z: Array, q: Array, h_before: Array) -> tuple[Array, Array]:
    """A step of the GRU, gates stacked as (r, z, n), the reset gate applied after the product:

    r, u = s(z_r + q_r), s(z_z + q_z), n = tanh(z_n + r ⊙ q_n), h = (1 − u) ⊙ n + u ⊙ h_{t−1}.

    Args:
        z: x w_xᵀ + b (m, 3n).
        q: h_{t−1} w_hᵀ, with b_h added to its n part (m, 3n).
        h_before: h_{t−1} (m, n).

    Returns:
        The gates r, u, n (m, 3n), and h (m, n).
    """
    (z_r, z_u, z_n), (q_r, q_u, q_n) = (jnp.split(part, 3, axis=-1) for part in (z, q))
    r, u = jax.lax.logistic(z_r + q_r), jax.lax.logistic(z_u + q_u)
    n = jnp.tanh(z_n + r * q_n)
    return jnp.concatenate([r, u, n], axis=-1), (1 - u) * n + u * h_before


@jax.jit
def gru_step_error(gates: Array, q_n: Array, h_before: Array, dh: Array) -> tuple[Array, Array, Array]:
    """BPTT through a step of the GRU, from ∂C/∂h.

    δ_n = dh ⊙ (1 − u) ⊙ (1 − n²), δ_z = dh ⊙ (h_{t−1} − n) ⊙ u(1 − u), δ_r = δ_n ⊙ q_n ⊙ r(1 − r); the error of q_n is
    δ_n ⊙ r.

    Args:
        gates: (m, 3n), as of `gru_step`.
        q_n: and ``h_before``, ``dh``: (m, n).

    Returns:
        δ (m, 3n), the error of q_n (m, n), and the part dh ⊙ u of ∂C/∂h_{t−1} (m, n); the other part is
        (δ_r, δ_z, δ_n ⊙ r) w_h.
    """
    r, u, n = jnp.split(gates, 3, axis=-1)
    delta_n = dh * (1 - u) * (1 - n * n)
    delta_z = dh * (h_before - n) * u * (1 - u)
    delta_r = delta_n * q_n * r * (1 - r)
    return jnp.concatenate([delta_r, delta_z, delta_n], axis=-1), delta_n * r, dh * u


@layer
class RNN(Recurrent):
    """A simple recurrent (Elman) layer: h_t = σ(x_t w_xᵀ + h_{t−1} w_hᵀ + b), h_0 = 0.

    Parameters {w_x (n, n_in), w_h (n, n), b (n)}. Inputs (m, T, n_in), outputs (m, T, n): h of every step.

    Args:
        n: units.
        activation: σ.
        weight_init: initialiser of w_x and w_h.
        bias_init: initialiser of b.
        truncate: the error is cut before every ``truncate``-th step (truncated BPTT); None cuts nothing.
        recompute: keep the states at the bounds of √T segments only, and run each segment again on the way back: less memory,
            half as much work again.

    Raises:
        LayerError: for an n that is no positive integer, or inputs, parameters or a mask of another shape.

    Source: the notes' title "recurrent neural networks"; Elman (1990).
    """

    n: int
    activation: Activation = tanh
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    truncate: int | None = None
    recompute: bool = False

    n_gates: ClassVar[int] = 1
    _example = "fn.RNN(64)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_activation(self, self.activation)

    def step(self, params: Params, z: Array, q: Array, states: Arrays) -> tuple[Array, Arrays, Arrays]:
        z = z + q + params["b"][None, :]
        return z, (), (self.activation(z),)

    def step_error(
        self, gates: Array, extra: Arrays, before: Arrays, after: Arrays, d_states: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        delta = self.activation.error_in_layer(d_states[0], gates, after[0])
        return delta, (), (jnp.zeros_like(delta),)


@layer
class LSTM(Recurrent):
    """A long short-term memory, `lstm_step` at every step, h_0 = c_0 = 0.

    Parameters {w_x (4n, n_in), w_h (4n, n), b (4n)}, gates stacked as i, f, g, o. Inputs (m, T, n_in), outputs (m, T, n): h
    of every step.

    Args:
        n: units.
        weight_init: initialiser of w_x and w_h.
        bias_init: initialiser of b.
        forget_bias: added to the forget gate's part of b at the start, so that the state is kept at first.
        truncate: and ``recompute``: as `RNN`.

    Raises:
        LayerError: as `RNN`.

    Source: Hochreiter and Schmidhuber (1997); Gers et al. (2000).
    """

    n: int
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    forget_bias: float = 1.0
    truncate: int | None = None
    recompute: bool = False

    n_gates: ClassVar[int] = 4
    n_states: ClassVar[int] = 2
    _example = "fn.LSTM(64)"

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        params = super().init(key, input_shape)
        with jax.transfer_guard("allow"):  # a constant
            return {**params, "b": params["b"].at[self.n : 2 * self.n].add(self.forget_bias)}

    def step(self, params: Params, z: Array, q: Array, states: Arrays) -> tuple[Array, Arrays, Arrays]:
        gates, h, c = lstm_step(z + q + params["b"][None, :], states[1])
        return gates, (), (h, c)

    def step_error(
        self, gates: Array, extra: Arrays, before: Arrays, after: Arrays, d_states: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        delta, dc = lstm_step_error(gates, before[1], after[1], *d_states)
        return delta, (), (jnp.zeros_like(dc), dc)


@layer
class GRU(Recurrent):
    """A gated recurrent unit, `gru_step` at every step, h_0 = 0.

    Parameters {w_x (3n, n_in), w_h (3n, n), b (3n), b_h (n)}, gates stacked as r, z, n. Inputs (m, T, n_in), outputs
    (m, T, n): h of every step.

    Args:
        n: units.
        weight_init: initialiser of w_x and w_h.
        bias_init: initialiser of b and b_h.
        truncate: and ``recompute``: as `RNN`.

    Raises:
        LayerError: as `RNN`.

    Source: Cho et al. (2014), with the reset gate after the product.
    """

    n: int
    weight_init: Initializer = scaled_normal()
    bias_init: Initializer = zeros()
    truncate: int | None = None
    recompute: bool = False

    n_gates: ClassVar[int] = 3
    one_error: ClassVar[bool] = False
    _example = "fn.GRU(64)"

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        key, own = jax.random.split(drawing_key(self, key))
        params = super().init(key, input_shape)
        return {**params, "b_h": self.bias_init(own, (self.n,), params["b"].dtype)}

    def check_params(self, params: Params) -> None:
        super().check_params(params)
        check_leaf(self, params, "b_h", (self.n,))

    def step(self, params: Params, z: Array, q: Array, states: Arrays) -> tuple[Array, Arrays, Arrays]:
        q = q.at[:, 2 * self.n :].add(params["b_h"][None, :])
        gates, h = gru_step(z + params["b"][None, :], q, states[0])
        return gates, (q[:, 2 * self.n :],), (h,)

    def step_error(
        self, gates: Array, extra: Arrays, before: Arrays, after: Arrays, d_states: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        delta, of_q, dh = gru_step_error(gates, extra[0], before[0], d_states[0])
        return delta, (of_q,), (dh,)

    def of_states(self, delta: Array, extra: Arrays) -> Array:
        return jnp.concatenate([delta[..., : 2 * self.n], extra[0]], axis=-1)

    def extra_errors(self, kept: Kept, delta: Array) -> Arrays:
        return (delta[..., 2 * self.n :] * kept.gates[..., : self.n],)

    def terms(self, x: Array, h_before: Array, delta: Array, extra: Arrays) -> Products:
        return {**super().terms(x, h_before, delta, extra), "b_h": (extra[0], None)}
