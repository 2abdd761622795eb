"""Reductions, sorting, gathering and laying out."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .table import add, on, x_of


def mean(x):
    return jnp.mean(x, 0), x.shape


add(mean, lambda shape, u: (jnp.broadcast_to(u / shape[0], shape),), x_of(3, 4), {
    "a sum's": (lambda shape, u: (jnp.broadcast_to(u, shape),), "args[0]", "factor.*3"),
})  # fmt: skip


def variance(x):
    return jnp.var(x, -1), x


add(variance, lambda x, u: (2 / 4 * u[:, None] * (x - jnp.mean(x, -1, keepdims=True)),), x_of(3, 4), {
    "not centred": (lambda x, u: (2 / 4 * u[:, None] * x,), "args[0]", ""),
    "n − 1": (lambda x, u: (2 / 3 * u[:, None] * (x - jnp.mean(x, -1, keepdims=True)),), "args[0]", r"factor 1\.333"),
})  # fmt: skip


def deviation(x):
    s = jnp.std(x, -1)
    return s, (x, s)


add(deviation, lambda r, u: ((u / r[1])[:, None] * (r[0] - jnp.mean(r[0], -1, keepdims=True)) / 4,), x_of(3, 4), {
    "no 1/σ": (lambda r, u: (u[:, None] * (r[0] - jnp.mean(r[0], -1, keepdims=True)) / 4,), "args[0]",
        "factor .*std.* too much|local derivative of .*sqrt"),
})  # fmt: skip


def product(x):
    y = jnp.prod(x, -1, keepdims=True)
    return y[:, 0], (x, y)


add(product, lambda r, u: (u[:, None] * r[1] / r[0],), x_of(3, 4), {
    "not divided": (lambda r, u: (u[:, None] * r[1] * jnp.ones_like(r[0]),), "args[0]", r"factor.*args\[0\]"),
})  # fmt: skip


def maximum(x):
    i = jnp.argmax(x, -1)
    return jnp.take_along_axis(x, i[:, None], -1)[:, 0], (i, x.shape)


def maximum_back(r, u):
    i, shape = r
    return (jnp.zeros(shape, u.dtype).at[jnp.arange(len(i)), i].set(u),)


add(maximum, maximum_back, lambda draw: (draw.apart(3, 4),), {
    "to all": (lambda r, u: (jnp.broadcast_to(u[:, None], r[1]),), "args[0]", ""),
    "the first place": (lambda r, u: (jnp.zeros(r[1], u.dtype).at[:, 0].set(u),), "args[0]", "taken for 0"),
})  # fmt: skip


def running_sum(x):
    return jnp.cumsum(x, -1), None


add(running_sum, lambda _, u: (jnp.sum(u, -1, keepdims=True) - jnp.cumsum(u, -1) + u,), x_of(3, 4), {
    "forwards": (lambda _, u: (jnp.cumsum(u, -1),), "args[0]", "direction|transpose"),
    "itself left out": (lambda _, u: (jnp.cumsum(u[..., ::-1], -1)[..., ::-1] - u,), "args[0]", "off by one"),
})  # fmt: skip


def running_product(x):
    y = jnp.cumprod(x, -1)
    return y, (x, y)


def running_product_back(r, u):
    x, y = r
    return (jnp.cumsum((u * y)[..., ::-1], -1)[..., ::-1] / x,)


add(running_product, running_product_back, lambda draw: (draw.positive(3, 4),), {
    "not divided": (lambda r, u: (r[0] * running_product_back(r, u)[0],), "args[0]", r"factor args\[0\]"),
})  # fmt: skip


def sort(x):
    i = jnp.argsort(x, -1)
    return jnp.take_along_axis(x, i, -1), i


add(sort, lambda i, u: (jnp.take_along_axis(u, jnp.argsort(i, -1), -1),), lambda draw: (draw.apart(3, 5),), {
    "not put back": (lambda i, u: (u,), "args[0]", "local derivative is missing"),
    "permuted once more": (lambda i, u: (jnp.take_along_axis(u, i, -1),), "args[0]", "transpose"),
})  # fmt: skip


def top_two(x):
    """Values and, as integers, their places."""
    values, i = lax.top_k(x, 2)
    return (values, i), (i, x.shape)


def top_two_back(r, u):
    i, shape = r
    return (jnp.einsum("xk,xkn->xn", u[0], jax.nn.one_hot(i, shape[-1], dtype=u[0].dtype)),)


add(top_two, top_two_back, lambda draw: (draw.apart(3, 5),), {
    "the first only": (lambda r, u: top_two_back(r, (u[0].at[:, 1].set(0), u[1])),
        "args[0]", "only the first entry along axis 1"),
})  # fmt: skip


def max_pool(x):
    """Windows of two, by the place of the maximum."""
    pairs = x.reshape(len(x), -1, 2)
    i = jnp.argmax(pairs, -1)
    return jnp.max(pairs, -1), i


def max_pool_back(i, u):
    return ((u[..., None] * jax.nn.one_hot(i, 2, dtype=u.dtype)).reshape(len(u), -1),)


add(max_pool, max_pool_back, lambda draw: (draw.apart(3, 6),), {
    "to both": (lambda i, u: (jnp.repeat(u, 2, -1),), "args[0]", "every entry gets the error"),
})  # fmt: skip


def mean_pool(x):
    return jnp.mean(x.reshape(len(x), -1, 2), -1), None


add(mean_pool, lambda _, u: (jnp.repeat(u / 2, 2, -1),), x_of(3, 6), {
    "the first of each window": (lambda _, u: (jnp.stack([u, 0 * u], -1).reshape(len(u), -1) / 2,), "args[0]",
        "first.*window|along axis"),
})  # fmt: skip


def upsampled(x):
    return jnp.repeat(x, 2, -1), None


add(upsampled, lambda _, u: (u[..., ::2] + u[..., 1::2],), x_of(3, 4), {
    "the first of each window": (lambda _, u: (u[..., ::2],), "args[0]", "first.*not (their|its) sum"),
    "the mean": (lambda _, u: ((u[..., ::2] + u[..., 1::2]) / 2,), "args[0]", "factor"),
})  # fmt: skip


def embedding(w, tokens):
    return w[tokens], (tokens, w.shape)


def embedding_back(r, u):
    tokens, shape = r
    chosen = jax.nn.one_hot(tokens, shape[0], dtype=u.dtype)
    return jnp.einsum("xtv,xtn->vn", chosen, u), None


def repeated_tokens(draw):
    return draw(4, 3), np.asarray([[0, 1, 1], [3, 1, 0]])


add(embedding, embedding_back, repeated_tokens, {
    "set, not added": (on(0, embedding_back, lambda g, r, u: jnp.zeros(r[1], u.dtype).at[r[0]].set(u)), "args[0]",
        "not added"),
    "the mean": (on(0, embedding_back, lambda g, r, u: g / jnp.asarray([2, 3, 1, 1], u.dtype)[:, None]), "args[0]", ""),
})  # fmt: skip


def segment_sum(x, segments):
    return jax.ops.segment_sum(x, segments, 3), segments


add(segment_sum, lambda segments, u: (u[segments], None), lambda draw: (draw(5, 2), np.asarray([0, 2, 2, 0, 0])), {
    "by place": (lambda segments, u: (jnp.concatenate([u, u[:2]]), None), "args[0]", ""),
})  # fmt: skip


def padded(x):
    return jnp.pad(x, ((0, 0), (2, 1))), None


add(padded, lambda _, u: (u[:, 2:-1],), x_of(3, 4), {
    "off by one": (lambda _, u: (u[:, 1:-2],), "args[0]", "off by one"),
})  # fmt: skip


def rolled(x):
    return jnp.roll(x, 1, -1), None


add(rolled, lambda _, u: (jnp.concatenate([u[:, 1:], u[:, :1]], -1),), x_of(3, 5), {
    "rolled once more": (lambda _, u: (jnp.roll(u, 1, -1),), "args[0]", "the wrong direction"),
    "not rolled back": (lambda _, u: (u,), "args[0]", "local derivative is missing"),
})  # fmt: skip


def lower_triangle(x):
    return jnp.tril(x), None


add(lower_triangle, lambda _, u: (jnp.where(jnp.arange(4)[:, None] >= jnp.arange(4), u, 0),), x_of(4, 4), {
    "the upper": (lambda _, u: (jnp.triu(u),), "args[0]", "another mask"),
    "not masked": (lambda _, u: (u,), "args[0]", "local derivative is missing"),
})  # fmt: skip


def joined(a, b):
    return jnp.concatenate([a, 2 * b], -1), a.shape[-1]


add(joined, lambda n, u: (u[:, :n], 2 * u[:, n:]), lambda draw: (draw(3, 2), draw(3, 2)), {
    "swapped": (lambda n, u: (u[:, n:], 2 * u[:, :n]), "args[0]", ""),
})  # fmt: skip


def chosen(condition, a, b):
    return jnp.where(condition, a, b), condition


add(chosen, lambda yes, u: (None, jnp.where(yes, u, 0), jnp.where(yes, 0, u)),
    lambda draw: (np.asarray(draw(3, 4) > 0), draw(3, 4), draw(3, 4)), {
    "b gets all": (lambda yes, u: (None, jnp.where(yes, u, 0), u), "args[2]", "local derivative is missing"),
    "exchanged": (lambda yes, u: (None, jnp.where(yes, 0, u), jnp.where(yes, u, 0)), "args[1]",
        r"swapped.*args\[2\]"),
})  # fmt: skip
