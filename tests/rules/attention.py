"""Attention and rotary positions."""

import jax
import jax.numpy as jnp

from .table import add, on


def attention(q, k, v):
    s = q @ k.T / q.shape[-1] ** 0.5
    p = jax.nn.softmax(s)
    return p @ v, (q, k, v, p)


def attention_parts(r, u, diagonal=False):
    q, _, v, p = r
    dp = u @ v.T
    ds = p * (dp - (0 if diagonal else jnp.sum(dp * p, -1, keepdims=True))) / q.shape[-1] ** 0.5
    return ds, p


def attention_back(r, u):
    ds, p = attention_parts(r, u)
    return ds @ r[1], ds.T @ r[0], p.T @ u


def qkv(draw):
    return draw(4, 3), draw(4, 3), draw(4, 3)


add(attention, attention_back, qkv, {
    "no scale": (on(0, attention_back, lambda g, r, u: 3**0.5 * g), "args[0]", r"factor.*√3"),
    "ds not transposed": (on(1, attention_back, lambda g, r, u: attention_parts(r, u)[0] @ r[0]), "args[1]", "transpose"),
    "p not transposed": (on(2, attention_back, lambda g, r, u: r[3] @ u), "args[2]", "transpose"),
    "no sum": (on(0, attention_back, lambda g, r, u: attention_parts(r, u, True)[0] @ r[1]), "args[0]", "left out"),
    "dq and dk swapped": (lambda r, u: (attention_back(r, u)[1], attention_back(r, u)[0], attention_back(r, u)[2]), "args[0]",
        r"swapped.*args\[1\]"),
})  # fmt: skip


def blocked_attention(q, k, v):
    """Like a kernel: nothing but o and ln Σ exp s are kept, the keys are gone through in blocks of two."""
    s = q @ k.T
    high = jax.nn.logsumexp(s, -1)
    o = jax.nn.softmax(s) @ v
    return o, (q, k, v, o, high)


def blocked_attention_back(r, u, with_delta=True):
    q, k, v, o, high = r
    delta = jnp.sum(o * u, -1, keepdims=True) if with_delta else 0
    dq, dk, dv = jnp.zeros_like(q), [], []
    for j in range(0, len(k), 2):
        kj, vj = k[j : j + 2], v[j : j + 2]
        p = jnp.exp(q @ kj.T - high[:, None])
        ds = p * (u @ vj.T - delta)
        dq = dq + ds @ kj
        dk.append(ds.T @ q)
        dv.append(p.T @ u)
    return dq, jnp.concatenate(dk), jnp.concatenate(dv)


add(blocked_attention, blocked_attention_back, qkv, {
    "no delta": (lambda r, u: blocked_attention_back(r, u, False), "args[0]", "left out"),
    "the last block only": (on(0, blocked_attention_back,
        lambda g, r, u: blocked_attention_back((r[0], r[1][2:], r[2][2:], *r[3:]), u)[0]), "args[0]", ""),
})  # fmt: skip


def rotary(x, angle):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1), (x, cos, sin)


def rotary_back(r, u, way=1):
    x, cos, sin = r
    (a, b), (ua, ub) = jnp.split(x, 2, -1), jnp.split(u, 2, -1)
    turned = jnp.concatenate([ua * cos + way * ub * sin, ub * cos - way * ua * sin], -1)
    return turned, jnp.sum(ub * (a * cos - b * sin) - ua * (a * sin + b * cos), 0)


add(rotary, rotary_back, lambda draw: (draw(3, 4), draw(2)), {
    "turned once more": (lambda r, u: rotary_back(r, u, -1), "args[0]", r"args\[1\] comes in with the wrong sign|sin"),
})  # fmt: skip
