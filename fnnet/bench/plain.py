"""Every layer's forward pass as a careful user of JAX writes it, without fnnet: given to ``jax.grad`` to differentiate."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

import fnnet as fn

Params = dict[str, Array]
Equation = Callable[[Any, Params, Array, Any], Array]

ACTIVATIONS: dict[fn.Activation, Callable[[Array], Array]] = {
    fn.linear: lambda z: z,
    fn.sigmoid: jax.nn.sigmoid,
    fn.tanh: jnp.tanh,
    fn.relu: jax.nn.relu,
    fn.silu: jax.nn.silu,
    fn.gelu: lambda z: jax.nn.gelu(z, approximate=False),
    fn.softmax: jax.nn.softmax,
}


def dense(layer: fn.Dense, p: Params, a: Array, key: Any) -> Array:
    z = a @ p["w"].T
    return z + p["b"] if layer.bias else z


def conv(layer: fn.Conv, p: Params, a: Array, key: Any) -> Array:
    n = a.ndim - 2
    dimensions = "N" + "HW"[:n] + "C", "HW"[:n] + "IO", "N" + "HW"[:n] + "C"
    z = lax.conv_general_dilated(
        a, p["w"], several(layer.stride, n), padding(layer.padding, n), dimension_numbers=dimensions,
        feature_group_count=layer.groups,
    )  # fmt: skip
    return z + p["b"] if layer.bias else z


def several(size: Any, n: int) -> tuple[int, ...]:
    return (size,) * n if isinstance(size, int) else tuple(size)


def padding(given: Any, n: int) -> Any:
    return given.upper() if isinstance(given, str) else [(p, p) for p in several(given, n)]


def pooled(layer: fn.MaxPool | fn.MeanPool, a: Array, start: float, add: Callable) -> Array:
    n = a.ndim - 2
    size = several(layer.size, n)
    stride = size if layer.stride is None else several(layer.stride, n)
    return lax.reduce_window(a, start, add, (1, *size, 1), (1, *stride, 1), "VALID")


def max_pool(layer: fn.MaxPool, p: Params, a: Array, key: Any) -> Array:
    return pooled(layer, a, -jnp.inf, lax.max)


def mean_pool(layer: fn.MeanPool, p: Params, a: Array, key: Any) -> Array:
    k = several(layer.size, a.ndim - 2)
    return pooled(layer, a, 0.0, lax.add) / jnp.prod(jnp.array(k)).astype(a.dtype)


def normalised(a: Array, axes: int | tuple[int, ...], eps: float) -> Array:
    mean = jnp.mean(a, axes, keepdims=True)
    return (a - mean) * lax.rsqrt(jnp.var(a, axes, keepdims=True) + eps)


def layer_norm(layer: fn.LayerNorm, p: Params, a: Array, key: Any) -> Array:
    return normalised(a, -1, layer.eps) * p["g"] + p["b"]


def rms_norm(layer: fn.RMSNorm, p: Params, a: Array, key: Any) -> Array:
    return a * lax.rsqrt(jnp.mean(a**2, -1, keepdims=True) + layer.eps) * p["g"]


def group_norm(layer: fn.GroupNorm, p: Params, a: Array, key: Any) -> Array:
    groups = a.reshape(len(a), -1, layer.groups, a.shape[-1] // layer.groups)
    return normalised(groups, (1, 3), layer.eps).reshape(a.shape) * p["g"] + p["b"]


def batch_norm(layer: fn.BatchNorm, p: Params, a: Array, key: Any) -> Array:
    return normalised(a, tuple(range(a.ndim - 1)), layer.eps) * p["g"] + p["b"]


def recurrent(step: Callable, states: int) -> Equation:
    """h of every step: one product with all inputs, then the scan."""

    def run(layer, p, a, key):
        z = jnp.einsum("mtk,jk->tmj", a, p["w_x"]) + p["b"]
        zeros = jnp.zeros((len(a), layer.n), a.dtype)
        _, h = lax.scan(lambda s, z: step(layer, p, s, z), (zeros,) * states, z)
        return jnp.swapaxes(h, 0, 1)

    return run


def rnn_step(layer: fn.RNN, p: Params, states: tuple[Array, ...], z: Array) -> tuple[tuple[Array, ...], Array]:
    h = ACTIVATIONS[layer.activation](z + states[0] @ p["w_h"].T)
    return (h,), h


def lstm_step(layer: fn.LSTM, p: Params, states: tuple[Array, ...], z: Array) -> tuple[tuple[Array, ...], Array]:
    h, c = states
    i, f, g, o = jnp.split(z + h @ p["w_h"].T, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def gru_step(layer: fn.GRU, p: Params, states: tuple[Array, ...], z: Array) -> tuple[tuple[Array, ...], Array]:
    (h,) = states
    (z_r, z_u, z_n), (q_r, q_u, q_n) = jnp.split(z, 3, -1), jnp.split(h @ p["w_h"].T, 3, -1)
    r, u = jax.nn.sigmoid(z_r + q_r), jax.nn.sigmoid(z_u + q_u)
    h = (1 - u) * jnp.tanh(z_n + r * (q_n + p["b_h"])) + u * h
    return (h,), h


def attention(layer: fn.Attention, p: Params, a: Array, key: Any) -> Array:
    m, steps, width = a.shape
    q, k, v = jnp.split(a.reshape(m, steps, 3 * layer.heads, width // 3 // layer.heads), 3, axis=2)
    scores = jnp.einsum("mthd,mshd->mhts", q, k) / q.shape[-1] ** 0.5
    if layer.causal:
        scores = jnp.where(jnp.tri(steps, dtype=bool), scores, -jnp.inf)
    return jnp.einsum("mhts,mshd->mthd", jax.nn.softmax(scores), v).reshape(m, steps, width // 3)


def dropout(layer: fn.Dropout, p: Params, a: Array, key: Any) -> Array:
    return jnp.where(jax.random.bernoulli(key, 1 - layer.rate, a.shape), a / (1 - layer.rate), 0)


EQUATIONS: dict[type[fn.Layer], Equation] = {
    fn.Dense: dense,
    fn.Conv: conv,
    fn.MaxPool: max_pool,
    fn.MeanPool: mean_pool,
    fn.GlobalMeanPool: lambda layer, p, a, key: jnp.mean(a, axis=tuple(range(1, a.ndim - 1))),
    fn.Flatten: lambda layer, p, a, key: a.reshape(len(a), -1),
    fn.LayerNorm: layer_norm,
    fn.RMSNorm: rms_norm,
    fn.GroupNorm: group_norm,
    fn.BatchNorm: batch_norm,
    fn.RNN: recurrent(rnn_step, 1),
    fn.LSTM: recurrent(lstm_step, 2),
    fn.GRU: recurrent(gru_step, 1),
    fn.LastStep: lambda layer, p, a, key: a[:, -1],
    fn.Attention: attention,
    fn.Embedding: lambda layer, p, a, key: p["w"][a],
    fn.Position: lambda layer, p, a, key: a + p["w"][: a.shape[1]],
    fn.Dropout: dropout,
    fn.Identity: lambda layer, p, a, key: a,
}


def forward(layer: Any, params: Any, a: Array, key: Any = None, activated: bool = True) -> Array:
    """What the layer gives in training mode, its parameters as `parameters` lays them out; the last layer's weighted input
    where ``activated`` is False. What is repeated is written out."""
    match layer:
        case fn.Network():
            keys = [None] * len(layer) if key is None else jax.random.split(key, len(layer))
            for i, (part, p, k) in enumerate(zip(layer, params, keys, strict=True)):
                a = forward(part, p, a, k, activated or i < len(layer) - 1)
            return a
        case fn.Parallel():
            outputs = [forward(part, p, a, key) for part, p in zip(layer.layers, params, strict=True)]
            return sum(outputs[1:], outputs[0]) if layer.join is fn.add else jnp.concatenate(outputs, axis=-1)
        case fn.Tied():
            return forward(layer.net, layer.expanded(params), a, key, activated)
        case fn.Repeat():
            for p in params:
                a = forward(layer.layer, p, a, key)
            return a
        case fn.Recompute():
            return forward(layer.net, params, a, key, activated)
    z = EQUATIONS[type(layer)](layer, params, a, key)
    follows = isinstance(layer, fn.Dense | fn.Conv) and activated
    return ACTIVATIONS[layer.activation](z) if follows else z


def parameters(layer: fn.Layer, params: Any) -> Any:
    """The parameters, or gradients, of a layer with those of each repetition by themselves."""
    match layer:
        case fn.Network() | fn.Parallel():
            return tuple(parameters(part, p) for part, p in zip(layer.layers, params, strict=True))
        case fn.Tied() | fn.Recompute():
            return parameters(layer.net, params)
        case fn.Repeat():
            of_each = (jax.tree.map(lambda p, i=i: p[i], params) for i in range(layer.n))
            return tuple(parameters(layer.layer, p) for p in of_each)
    return params


def picked(log_p: Array, y: Array) -> Array:
    return jnp.take_along_axis(log_p, y[..., None], axis=-1)


def bernoulli(log_p: Array, log_not: Array, y: Array) -> Array:
    return y * log_p + (1 - y) * log_not


TERMS: dict[tuple[fn.Cost, fn.Activation], Callable[[Array, Array], Array]] = {
    (fn.log_likelihood, fn.softmax): lambda z, y: -picked(jax.nn.log_softmax(z), y),
    (fn.log_likelihood, fn.sigmoid): lambda z, y: -picked(jax.nn.log_sigmoid(z), y),
    (fn.cross_entropy, fn.sigmoid): lambda z, y: -bernoulli(jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z), y),
    (fn.cross_entropy, fn.softmax): lambda z, y: -bernoulli(jax.nn.log_softmax(z), jnp.log1p(-jax.nn.softmax(z)), y),
}


def objective(net: fn.Layer, cost: fn.Cost, activation: fn.Activation) -> Callable[..., Array]:
    """(params, x, y) -> C, computed from the last layer's weighted input as jax.nn and optax do."""

    def half_square(z: Array, y: Array) -> Array:
        return (ACTIVATIONS[activation](z) - y) ** 2 / 2

    terms = TERMS.get((cost, activation), half_square)
    return lambda params, x, y: jnp.sum(terms(forward(net, params, x, activated=False), y)) / len(x)
