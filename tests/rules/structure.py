"""Trees, keys, integers, several outputs, nothing."""

import jax
import jax.numpy as jnp
import numpy as np

from .table import add, on


def dropout(x, mask):
    return jnp.where(mask, x / 0.75, 0), mask


add(dropout, lambda mask, u: (u * mask.astype(u.dtype) / 0.75, None),
    lambda draw: (draw(3, 4), np.asarray(draw(3, 4) > -0.7)), {
    "no scale": (lambda mask, u: (u * mask.astype(u.dtype), None), "args[0]", r"factor 1/keep = 1\.333 is missing"),
    "no mask": (lambda mask, u: (u / 0.75, None), "args[0]", "mask"),
})  # fmt: skip


def noisy(key, x):
    """A mask that is drawn again from the key on the way back."""
    return x * jax.random.bernoulli(key, 0.5, x.shape).astype(x.dtype), (key, x.shape)


add(noisy, lambda r, u: (None, u * jax.random.bernoulli(r[0], 0.5, r[1]).astype(u.dtype)),
    lambda draw: (jax.random.key(0), draw(3, 4)), {
    "another key": (lambda r, u: (None, u * jax.random.bernoulli(jax.random.key(5), 0.5, r[1]).astype(u.dtype)), "args[1]",
        "mask"),
})  # fmt: skip


def in_trees(params, x):
    """A pytree in and out: a scaled input, and its sum."""
    y = params["scale"]["g"] * x + params["b"]
    return {"y": y, "sum": jnp.sum(y)}, (params, x)


def in_trees_back(r, u):
    params, x = r
    v = u["y"] + u["sum"]
    return {"scale": {"g": jnp.sum(v * x, 0)}, "b": jnp.sum(v, 0)}, v * params["scale"]["g"]


add(in_trees, in_trees_back, lambda draw: ({"scale": {"g": draw(4)}, "b": draw(4)}, draw(3, 4)), {
    "the sum's cotangent ignored": (lambda r, u: in_trees_back(r, {**u, "sum": jnp.zeros_like(u["sum"])}),
        "args[0]['b']", r"cotangent of out\['sum'\] is ignored"),
    "g and b swapped": (on(0, in_trees_back, lambda g, r, u: {"scale": {"g": g["b"]}, "b": g["scale"]["g"]}),
        "args[0]['b']", r"swapped.*\['g'\]"),
    "the sum's cotangent with the wrong sign": (lambda r, u: in_trees_back(r, {**u, "sum": -u["sum"]}), "args[0]['b']",
        r"cotangent of out\['sum'\].*sign"),
})  # fmt: skip


def with_aux(x, n):
    """A value, an integer and a count that no gradient is asked of."""
    return (jnp.sin(x), n + 1, jnp.sum(x > 0)), x


add(with_aux, lambda x, u: (u[0] * jnp.sin(x + np.pi / 2), None), lambda draw: (draw(4), np.asarray(3)), {
    "sign": (lambda x, u: (-u[0] * jnp.cos(x), None), "args[0]", "^wrong sign$"),
})  # fmt: skip


def unused(x, y):
    """Of two arguments one; the other's cotangent is None."""
    return jnp.exp(x), (jnp.exp(x),)


add(unused, lambda r, u: (u * r[0], None), lambda draw: (draw(4), draw(4)), {
    "not left alone": (lambda r, u: (u * r[0], u), "args[1]", "cotangent itself"),
})  # fmt: skip


def scalar(x):
    return x * x * x, (x,)


add(scalar, lambda r, u: (3 * u * r[0] * r[0],), lambda draw: (np.asarray(1.3),), {
    "no 3": (lambda r, u: (u * r[0] * r[0],), "args[0]", "factor 0.3333"),
})  # fmt: skip


def empty(x, nothing):
    return jnp.sin(x) + jnp.sum(nothing), x


add(empty, lambda x, u: (u * jnp.cos(x), jnp.zeros((0, 3), u.dtype)), lambda draw: (draw(4), draw(0, 3)))


def two_ways(a, b):
    """Two outputs, each of both arguments."""
    return a * b, a - b * b


def two_ways_forward(a, b):
    return two_ways(a, b), (a, b)


def two_ways_back(r, u):
    a, b = r
    return u[0] * b + u[1], u[0] * a - 2 * b * u[1]


add(two_ways_forward, two_ways_back, lambda draw: (draw(3, 2), draw(3, 2)), {
    "the second ignored": (lambda r, u: two_ways_back(r, (u[0], 0 * u[1])), "args[0]",
        r"cotangent of out\[1\] is ignored"),
    "the first ignored": (on(1, two_ways_back, lambda g, r, u: two_ways_back(r, (0 * u[0], u[1]))[1]), "args[1]",
        r"cotangent of out\[0\] is ignored"),
    "exchanged": (lambda r, u: two_ways_back(r, u[::-1]), "args[0]", "cotangents.*exchanged"),
    "b² without 2": (on(1, two_ways_back, lambda g, r, u: g + r[1] * u[1]), "args[1]", r"factor 0\.5|left out"),
    "the sign of a": (on(1, two_ways_back, lambda g, r, u: g - 2 * u[0] * r[0]), "args[1]", "sign"),
})  # fmt: skip
