"""Convolution and recurrence."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .table import WIDE, add, on


def convolve(x, w):
    """Σ_l w_l x_{t+l}, written as shifted products."""
    n = x.shape[-1] - len(w) + 1
    return sum(w[i] * x[:, i : i + n] for i in range(len(w))), (x, w)


def convolve_back(r, u):
    x, w = r
    k, n = len(w), u.shape[-1]
    wide = jnp.pad(u, ((0, 0), (k - 1, k - 1)))
    dx = sum(w[k - 1 - i] * wide[:, i : i + x.shape[-1]] for i in range(k))
    return dx, jnp.stack([jnp.sum(u * x[:, i : i + n]) for i in range(k)])


add(convolve, convolve_back, lambda draw: (draw(2, 6), draw(3)), {
    "not flipped": (on(0, convolve_back, lambda g, r, u: convolve_back((r[0], r[1][::-1]), u)[0]), "args[0]",
        r"args\[1\] is reversed"),
    "dw flipped": (on(1, convolve_back, lambda g, r, u: g[::-1]), "args[1]", "reversed|180"),
    "no last tap": (on(0, convolve_back, lambda g, r, u: convolve_back((r[0], r[1].at[2].set(0)), u)[0]), "args[0]",
        "left out"),
})  # fmt: skip


def convolve_2d(x, w):
    """(m, H, W) with (kh, kw), by XLA's own; its own gradient by flipped kernels and by products of windows."""
    y = lax.conv_general_dilated(
        x[..., None], w[..., None, None], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y[..., 0], (x, w)


def convolve_2d_back(r, u):
    x, w = r
    (kh, kw), (h, k) = w.shape, u.shape[1:]
    wide = jnp.pad(u, ((0, 0), (kh - 1,) * 2, (kw - 1,) * 2))
    places = [(i, j) for i in range(kh) for j in range(kw)]
    height, width = x.shape[1:]
    dx = sum(w[kh - 1 - i, kw - 1 - j] * wide[:, i : i + height, j : j + width] for i, j in places)
    return dx, jnp.stack([jnp.sum(u * x[:, i : i + h, j : j + k]) for i, j in places]).reshape(kh, kw)


add(convolve_2d, convolve_2d_back, lambda draw: (draw(2, 4, 5), draw(2, 2)), {
    "not rotated": (on(0, convolve_2d_back, lambda g, r, u: convolve_2d_back((r[0], jnp.flip(r[1])), u)[0]), "args[0]",
        "rotated"),
    "transposed": (on(1, convolve_2d_back, lambda g, r, u: g.T), "args[1]", "transposed"),
})  # fmt: skip


def circular(x, w):
    """The circular convolution, by FFT."""
    n = x.shape[-1]
    return jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(w), n), (x, w)


def circular_back(r, u, conjugate=jnp.conj):
    x, w = r
    n, spectrum = x.shape[-1], jnp.fft.rfft(u)
    dx = jnp.fft.irfft(spectrum * conjugate(jnp.fft.rfft(w)), n)
    return dx, jnp.sum(jnp.fft.irfft(spectrum * conjugate(jnp.fft.rfft(x)), n), 0)


add(circular, circular_back, lambda draw: (draw(2, 6), draw(6)), {
    "not conjugated": (lambda r, u: circular_back(r, u, lambda z: z), "args[0]", "conjugate|direction"),
}, dtypes=WIDE)  # fmt: skip


def rnn(x, w, h0):
    """h_t = tanh(W h_{t−1} + x_t) over the first axis."""

    def step(h, x_t):
        h = jnp.tanh(w @ h + x_t)
        return h, h

    h = lax.scan(step, h0, x)[1]
    return h, (w, h0, h)


def rnn_errors(r, u, through=1.0, transposed=True, derivative=True):
    """δ_t = (u_t + Wᵀδ_{t+1}) ⊙ (1 − h_t²), by hand from the last step to the first."""
    w, _, h = r
    deltas, later = [], jnp.zeros_like(u[0])
    for h_t, u_t in zip(h[::-1], u[::-1], strict=True):
        later = (u_t + through * ((w.T if transposed else w) @ later)) * (1 - h_t * h_t if derivative else 1)
        deltas.append(later)
    return jnp.stack(deltas[::-1])


def rnn_back(r, u, **changed):
    w, h0, h = r
    delta = rnn_errors(r, u, **changed)
    before = jnp.concatenate([h0[None], h[:-1]])
    return delta, delta.T @ before, w.T @ delta[0]


def sequence(draw):
    return draw(4, 3), 0.7 * draw(3, 3), draw(3)


add(rnn, rnn_back, sequence, {
    "no later steps": (lambda r, u: rnn_back(r, u, through=0.0), "args[0]", "later"),
    "W for Wᵀ": (lambda r, u: rnn_back(r, u, transposed=False), "args[0]", "transpose"),
    "no derivative": (lambda r, u: rnn_back(r, u, derivative=False), "args[0]", "local derivative of .*tanh"),
    "h_t for h_{t−1}": (on(1, rnn_back, lambda g, r, u: rnn_errors(r, u).T @ r[2]), "args[1]",
        "the new state stands where the state before belongs"),
    "dW: no later steps": (on(1, rnn_back, lambda g, r, u: rnn_back(r, u, through=0.0)[1]), "args[1]", "later"),
    "the last step's dW": (on(1, rnn_back, lambda g, r, u: jnp.outer(rnn_errors(r, u)[-1], r[2][-2])),
        "args[1]", "only the last step is counted"),
    "time reversed": (on(0, rnn_back, lambda g, r, u: g[::-1]), "args[0]", "reversed"),
    "dh0 without W": (on(2, rnn_back, lambda g, r, u: rnn_errors(r, u)[0]), "args[2]", ""),
    "the first step left out of dW": (on(1, rnn_back, lambda g, r, u: rnn_errors(r, u)[1:].T @ r[2][:-1]),
        "args[1]", "the first step is not counted"),
})  # fmt: skip


def lstm_step(x, h, c, w):
    """One step of an LSTM with the gates i, f, g, o."""
    i, f, g, o = jnp.split(w @ jnp.concatenate([x, h]), 4)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    new = f * c + i * g
    return (o * jnp.tanh(new), new), (x, h, c, w, i, f, g, o, jnp.tanh(new))


def lstm_step_back(r, u, forget=True, cell=1.0):
    x, h, c, w, i, f, g, o, t = r
    uh, uc = u
    dc = uc * cell + uh * o * (1 - t * t)
    z = jnp.concatenate([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), uh * t * o * (1 - o)])
    dx = w.T @ z
    return dx[: len(x)], dx[len(x) :], dc * f if forget else dc, jnp.outer(z, jnp.concatenate([x, h]))


add(lstm_step, lstm_step_back, lambda draw: (draw(2), draw(3), draw(3), draw(12, 5)), {
    "the cell's cotangent ignored": (lambda r, u: lstm_step_back(r, u, cell=0.0), "args[0]",
        r"cotangent of out\[1\] is ignored"),
    "no forget gate": (lambda r, u: lstm_step_back(r, u, forget=False), "args[2]", "factor .*sigmoid.* is missing"),
    "no 1 − t²": (on(2, lstm_step_back, lambda g, r, u: (u[1] + u[0] * r[7]) * r[5]), "args[2]",
        "local derivative of .*tanh"),
})  # fmt: skip


def gru_step(x, h, w, v):
    """One step of a GRU with the gates r, z, n; w acts on x, v on h."""
    (a, b, c), (d, e, f) = jnp.split(w @ x, 3), jnp.split(v @ h, 3)
    r, z = jax.nn.sigmoid(a + d), jax.nn.sigmoid(b + e)
    n = jnp.tanh(c + r * f)
    return n + z * (h - n), (x, h, w, v, r, z, n, f)


def gru_step_back(res, u, direct=1.0):
    x, h, w, v, r, z, n, f = res
    dn = u * (1 - z) * (1 - n * n)
    dr, dz = dn * f * r * (1 - r), u * (h - n) * z * (1 - z)
    of_x, of_h = jnp.concatenate([dr, dz, dn]), jnp.concatenate([dr, dz, dn * r])
    return w.T @ of_x, v.T @ of_h + direct * u * z, jnp.outer(of_x, x), jnp.outer(of_h, h)


add(gru_step, gru_step_back, lambda draw: (draw(3), draw(3), draw(9, 3), draw(9, 3)), {
    "no direct path": (lambda r, u: gru_step_back(r, u, 0.0), "args[1]", "left out"),
    "x for h": (on(3, gru_step_back, lambda g, r, u: jnp.outer(g @ r[1] / (r[1] @ r[1]), r[0])), "args[3]",
        r"args\[0\] stands where args\[1\] belongs"),
})  # fmt: skip


def moving_average(x, decay):
    """y_t = d y_{t−1} + (1 − d) x_t over the last axis; its gradient is the same filter, backwards."""

    def step(y, x_t):
        y = decay * y + (1 - decay) * x_t
        return y, y

    y = lax.scan(step, jnp.zeros_like(x[:, 0]), x.T)[1].T
    return y, (x, decay, y)


def moving_average_back(r, u):
    x, decay, y = r
    before = jnp.pad(y, ((0, 0), (1, 0)))[:, :-1]
    filtered = lax.scan(lambda s, u_t: (u_t + decay * s,) * 2, jnp.zeros_like(u[:, 0]), u.T, reverse=True)[1].T
    return (1 - decay) * filtered, jnp.sum(filtered * (before - x))


add(moving_average, moving_average_back, lambda draw: (draw(2, 5), np.asarray(0.7)), {
    "forwards": (on(0, moving_average_back, lambda g, r, u: moving_average(u, r[1])[0]), "args[0]", "direction"),
    "no later steps": (on(0, moving_average_back, lambda g, r, u: (1 - r[1]) * u), "args[0]", "later"),
    "no 1 − d": (on(0, moving_average_back, lambda g, r, u: g / (1 - r[1])), "args[0]", "factor"),
    "−x left out": (on(1, moving_average_back, lambda g, r, u: g + jnp.sum(r[0] * moving_average_back(r, u)[0]) / (1 - r[1])),
        "args[1]", "left out"),
})  # fmt: skip
