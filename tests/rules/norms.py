"""Normalisation, norms and distances."""

import jax.numpy as jnp
from jax import lax

from .table import add, on, x_of

EPS = 1e-3


def layer_norm(x, g, b):
    mu = jnp.mean(x, -1, keepdims=True)
    var = jnp.mean((x - mu) ** 2, -1, keepdims=True)
    r = lax.rsqrt(var + EPS)
    return g * (x - mu) * r + b, (x, g, mu, r)


def layer_norm_back(res, u, mean_u=1.0, mean_ux=1.0, power=1, axis=-1):
    x, g, mu, r = res
    x_hat, v = (x - mu) * r, u * g
    right = v - mean_u * jnp.mean(v, axis, keepdims=True) - mean_ux * x_hat * jnp.mean(v * x_hat, axis, keepdims=True)
    return r**power * right, jnp.sum(u * x_hat, 0), jnp.sum(u, 0)


def normed(draw):
    return draw(4, 5), draw.positive(5), draw(5)


add(layer_norm, layer_norm_back, normed, {
    "no mean(u)": (lambda r, u: layer_norm_back(r, u, mean_u=0.0), "args[0]", r"left out.*jnp.mean\(x, -1"),
    "no mean(u x̂)": (lambda r, u: layer_norm_back(r, u, mean_ux=0.0), "args[0]",
        r"left out.*(x - mu\) \*\* 2|rsqrt|jnp.mean)"),
    "neither": (lambda r, u: layer_norm_back(r, u, mean_u=0.0, mean_ux=0.0), "args[0]", "left out"),
    "mean(u) added": (lambda r, u: layer_norm_back(r, u, mean_u=-1.0), "args[0]", r"sign.*jnp.mean\(x, -1"),
    "no 1/σ": (lambda r, u: layer_norm_back(r, u, power=0), "args[0]", "factor .*rsqrt.* is missing"),
    "1/σ²": (lambda r, u: layer_norm_back(r, u, power=2), "args[0]", "factor .*rsqrt.* too much"),
    "over the examples": (lambda r, u: layer_norm_back(r, u, axis=0), "args[0]", ""),
    "a sum for the mean": (lambda r, u: layer_norm_back(r, u, mean_u=5.0), "args[0]", r"factor 5.*jnp.mean\(x, -1"),
    "x̂ left out of g's": (on(1, layer_norm_back, lambda g, r, u: jnp.sum(u, 0)), "args[1]",
        r"swapped: this is the gradient of args\[2\]"),
    "b's mean": (on(2, layer_norm_back, lambda g, r, u: jnp.mean(u, 0)), "args[2]", "factor.*4"),
    "b's first": (on(2, layer_norm_back, lambda g, r, u: u[0]), "args[2]", "first.*not (their|its) sum"),
    "b not summed": (on(2, layer_norm_back, lambda g, r, u: u), "args[2]", "not summed over"),
})  # fmt: skip


def layer_norm_whole(x):
    """In one formula: the statistics are computed again on the way back."""
    return (x - jnp.mean(x, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + EPS), x


def layer_norm_whole_back(x, u):
    n = x.shape[-1]
    c = x - jnp.mean(x, -1, keepdims=True)
    s = jnp.mean(c * c, -1, keepdims=True) + EPS
    d = u / jnp.sqrt(s) - c * jnp.sum(u * c, -1, keepdims=True) / (n * s * jnp.sqrt(s))
    return (d - jnp.mean(d, -1, keepdims=True),)


add(layer_norm_whole, layer_norm_whole_back, x_of(4, 5), {
    "var held fixed": (lambda x, u: ((u - jnp.mean(u, -1, keepdims=True)) / jnp.sqrt(jnp.var(x, -1, keepdims=True) + EPS),),
        "args[0]", "left out.*jnp.var"),
})  # fmt: skip


def rms_norm(x, g):
    r = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + EPS)
    return g * x * r, (x, g, r)


def rms_norm_back(res, u, projection=1.0):
    x, g, r = res
    v = u * g
    return r * v - projection * r**3 * x * jnp.mean(v * x, -1, keepdims=True), jnp.sum(u * x * r, 0)


add(rms_norm, rms_norm_back, lambda draw: (draw(4, 5), draw.positive(5)), {
    "no projection": (lambda r, u: rms_norm_back(r, u, 0.0), "args[0]", r"left out.*(x \* x|jnp.mean|rsqrt)"),
    "the projection twice": (lambda r, u: rms_norm_back(r, u, 2.0), "args[0]", "twice"),
    "g's not summed": (on(1, rms_norm_back, lambda g, r, u: (u * r[0] * r[2])[0]), "args[1]", "first.*not (their|its) sum"),
})  # fmt: skip


def batch_norm(x):
    mu, sigma = jnp.mean(x, 0), jnp.std(x, 0)
    return (x - mu) / sigma, (x, mu, sigma)


def batch_norm_back(res, u):
    x, mu, sigma = res
    y = (x - mu) / sigma
    return ((len(x) * u - jnp.sum(u, 0) - y * jnp.sum(u * y, 0)) / (len(x) * sigma),)


add(batch_norm, batch_norm_back, x_of(5, 3), {
    "running statistics": (lambda r, u: (u / r[2],), "args[0]", "left out"),
    "σ held fixed": (lambda r, u: ((u - jnp.mean(u, 0)) / r[2],), "args[0]", "left out.*jnp.std"),
    "over the features": (lambda r, u: ((u - jnp.mean(u, 1, keepdims=True)) / r[2],), "args[0]", ""),
})  # fmt: skip


def unit(x):
    size = jnp.sqrt(jnp.sum(x * x, -1, keepdims=True))
    return x / size, (x, size)


def unit_back(r, u):
    x, size = r
    y = x / size
    return ((u - y * jnp.sum(u * y, -1, keepdims=True)) / size,)


add(unit, unit_back, x_of(3, 4), {
    "no projection": (lambda r, u: (u / r[1],), "args[0]", r"left out.*(x \* x|jnp.sum|sqrt)"),
    "the projection added": (lambda r, u: (2 * u / r[1] - unit_back(r, u)[0],), "args[0]", "sign"),
})  # fmt: skip


def safe_norm(x):
    square = jnp.sum(x * x, -1)
    size = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return size, (x, size)


def safe_norm_back(r, u):
    x, size = r
    return (jnp.where(size > 0, u / jnp.where(size > 0, size, 1), 0)[:, None] * x,)


def one_empty(draw):
    x = draw(4, 3)
    x[2] = 0
    return (x,)


add(safe_norm, safe_norm_back, one_empty, {
    "x/‖x‖²": (lambda r, u: (safe_norm_back((r[0], r[1] ** 2), u)[0],), "args[0]", "factor .*sqrt.* is missing"),
})  # fmt: skip


def cosine(a, b):
    na, nb = (jnp.sqrt(jnp.sum(x * x, -1, keepdims=True)) for x in (a, b))
    c = jnp.sum(a * b, -1, keepdims=True) / (na * nb)
    return c[:, 0], (a, b, na, nb, c)


def cosine_back(r, u):
    a, b, na, nb, c = r
    u = u[:, None]
    return u * (b / nb - c * a / na) / na, u * (a / na - c * b / nb) / nb


add(cosine, cosine_back, lambda draw: (draw(3, 4), draw(3, 4)), {
    "norms held fixed": (on(0, cosine_back, lambda g, r, u: u[:, None] * r[1] / (r[2] * r[3])), "args[0]", "left out"),
})  # fmt: skip


def distances(a, b):
    """‖a_i − b_j‖², by a² − 2ab + b²."""
    return jnp.sum(a * a, 1)[:, None] - 2 * a @ b.T + jnp.sum(b * b, 1)[None], (a, b)


def distances_back(r, u):
    a, b = r
    return 2 * (jnp.sum(u, 1)[:, None] * a - u @ b), 2 * (jnp.sum(u, 0)[:, None] * b - u.T @ a)


add(distances, distances_back, lambda draw: (draw(4, 3), draw(4, 3)), {
    "summed over the wrong axis": (on(0, distances_back, lambda g, r, u: 2 * (jnp.sum(u, 0)[:, None] * r[0] - u @ r[1])),
        "args[0]", "wrong axis"),
    "not transposed": (on(1, distances_back, lambda g, r, u: 2 * (jnp.sum(u, 0)[:, None] * r[1] - u @ r[0])), "args[1]",
        "transpose"),
    "no a²": (on(0, distances_back, lambda g, r, u: -2 * u @ r[1]), "args[0]", r"left out.*(a \* a|jnp.sum)"),
})  # fmt: skip
