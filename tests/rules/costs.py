"""Softmax and costs."""

import jax
import jax.numpy as jnp

from .table import add, on, x_of


def softmax(x):
    e = jnp.exp(x - jnp.max(x, -1, keepdims=True))
    p = e / jnp.sum(e, -1, keepdims=True)
    return p, p


def softmax_back(p, u):
    return (p * (u - jnp.sum(p * u, -1, keepdims=True)),)


add(softmax, softmax_back, x_of(4, 5), {
    "no sum": (lambda p, u: (p * u,), "args[0]", "left out.*jnp.sum"),
    "the diagonal": (lambda p, u: (p * (1 - p) * u,), "args[0]", "diagonal of the Jacobian"),
    "the sum added": (lambda p, u: (p * (u + jnp.sum(p * u, -1, keepdims=True)),), "args[0]", "sign.*jnp.sum"),
    "the sum over the examples": (lambda p, u: (p * (u - jnp.sum(p * u, 0, keepdims=True)),), "args[0]",
        "wrong axis"),
    "no derivative": (lambda p, u: (u,), "args[0]", "local derivative is missing"),
})  # fmt: skip


def log_softmax(x):
    y = x - jax.nn.logsumexp(x, -1, keepdims=True)
    return y, y


add(log_softmax, lambda y, u: (u - jnp.exp(y) * jnp.sum(u, -1, keepdims=True),), x_of(4, 5), {
    "no p": (lambda y, u: (u - jnp.sum(u, -1, keepdims=True),), "args[0]", ""),
    "p u for p Σ u": (lambda y, u: (u - jnp.exp(y) * u,), "args[0]", "diagonal of the Jacobian"),
    "no logsumexp": (lambda y, u: (u,), "args[0]", "local derivative is missing|left out"),
})  # fmt: skip


def logsumexp(x):
    high = jnp.max(x, -1)
    y = high + jnp.log(jnp.sum(jnp.exp(x - high[:, None]), -1))
    return y, (x, y)


add(logsumexp, lambda r, u: (u[:, None] * jnp.exp(r[0] - r[1][:, None]),), x_of(4, 5), {
    "not normalised": (lambda r, u: (u[:, None] * jnp.exp(r[0]),), "args[0]", ""),
})  # fmt: skip


def softmax_cross_entropy(x, y):
    """The mean of −ln p_y."""
    p = jax.nn.softmax(x)
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)), (p, y)


def softmax_cross_entropy_back(r, u):
    p, y = r
    return u / len(y) * (p - jax.nn.one_hot(y, p.shape[-1], dtype=p.dtype)), None


add(softmax_cross_entropy, softmax_cross_entropy_back, lambda draw: (draw(4, 5), draw.below(5, 4)), {
    "not divided by m": (on(0, softmax_cross_entropy_back, lambda g, r, u: 4 * g), "args[0]", "factor.*4"),
    "sign": (on(0, softmax_cross_entropy_back, lambda g, r, u: -g), "args[0]", "^wrong sign$"),
    "no labels": (on(0, softmax_cross_entropy_back, lambda g, r, u: u / 4 * r[0]), "args[0]", "left out"),
    "no u": (on(0, softmax_cross_entropy_back, lambda g, r, u: g / u), "args[0]", "cotangent is ignored"),
})  # fmt: skip


def smoothed_cross_entropy(x, q):
    y = jax.nn.log_softmax(x)
    return -jnp.sum(q * y, -1), (y, q)


def smoothed_cross_entropy_back(r, u):
    y, q = r
    u = u[:, None]
    return u * (jnp.exp(y) * jnp.sum(q, -1, keepdims=True) - q), -u * y


add(smoothed_cross_entropy, smoothed_cross_entropy_back, lambda draw: (draw(4, 5), draw.positive(4, 5)), {
    "Σ q taken for 1": (on(0, smoothed_cross_entropy_back, lambda g, r, u: u[:, None] * (jnp.exp(r[0]) - r[1])), "args[0]",
        ""),
    "no u": (on(1, smoothed_cross_entropy_back, lambda g, r, u: -r[0]), "args[1]", "cotangent is ignored"),
})  # fmt: skip


def sigmoid_cross_entropy(z, y):
    return jnp.mean(jax.nn.softplus(z) - y * z), (z, y)


def sigmoid_cross_entropy_back(r, u):
    z, y = r
    return u / z.size * (jax.nn.sigmoid(z) - y), -u / z.size * z


add(sigmoid_cross_entropy, sigmoid_cross_entropy_back, lambda draw: (draw(4, 3), draw.random.uniform(size=(4, 3))), {
    "the mean over the examples only": (on(0, sigmoid_cross_entropy_back, lambda g, r, u: 3 * g), "args[0]", "factor"),
    "σ' once more": (on(0, sigmoid_cross_entropy_back, lambda g, r, u: g * jax.nn.sigmoid(r[0]) * jax.nn.sigmoid(-r[0])),
        "args[0]", ""),
})  # fmt: skip


def focal(z):
    """−(1 − p)² ln p of p = σ(z)."""
    p = jax.nn.sigmoid(z)
    return -((1 - p) ** 2) * jax.nn.log_sigmoid(z), (p, z)


def focal_terms(r, u):
    p, z = r
    return 2 * u * (1 - p) ** 2 * p * jax.nn.log_sigmoid(z), -u * (1 - p) ** 3


add(focal, lambda r, u: (sum(focal_terms(r, u)),), x_of(3, 4), {
    "the weight held fixed": (lambda r, u: (focal_terms(r, u)[1],), "args[0]", "left out.*(sigmoid|1 - p)"),
})  # fmt: skip


def kl(a, b):
    """Σ p ln(p/q) of p = softmax(a), q = softmax(b)."""
    p, q = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
    d = jnp.sum(jnp.exp(p) * (p - q), -1)
    return d, (p, q, d)


def kl_back(r, u):
    p, q, d = r
    u = u[:, None]
    return u * jnp.exp(p) * (p - q - d[:, None]), u * (jnp.exp(q) - jnp.exp(p))


add(kl, kl_back, lambda draw: (draw(4, 5), draw(4, 5)), {
    "swapped": (lambda r, u: kl_back(r, u)[::-1], "args[0]", r"swapped.*args\[1\]"),
    "a and b exchanged": (on(1, kl_back, lambda g, r, u: -g), "args[1]", "wrong sign"),
    "d left out": (on(0, kl_back, lambda g, r, u: u[:, None] * jnp.exp(r[0]) * (r[0] - r[1])),
        "args[0]", "left out.*log_softmax"),
})  # fmt: skip


def squared_error(a, y):
    return jnp.sum(jnp.mean((a - y) ** 2, -1)), (a, y)


def squared_error_back(r, u):
    d = 2 * u / 5 * (r[0] - r[1])
    return d, -d


add(squared_error, squared_error_back, lambda draw: (draw(3, 5), draw(3, 5)), {
    "no 2": (on(0, squared_error_back, lambda g, r, u: g / 2), "args[0]", "factor 0.5"),
    "no 1/n": (on(0, squared_error_back, lambda g, r, u: 5 * g), "args[0]", "factor.*5"),
    "no y": (on(0, squared_error_back, lambda g, r, u: 2 * u / 5 * r[0]), "args[0]", "left out, or taken for 0"),
})  # fmt: skip


def hinge(a, y):
    return jnp.sum(jnp.maximum(0, 1 - a * y), -1), (a, y)


def hinge_back(r, u):
    a, y = r
    on = (a * y < 1).astype(u.dtype) * u[:, None]
    return -y * on, -a * on


add(hinge, hinge_back, lambda draw: (draw.apart(3, 4), draw(3, 4)), {
    "always on": (on(0, hinge_back, lambda g, r, u: -r[1] * u[:, None]), "args[0]", "local derivative of .*maximum"),
})  # fmt: skip


def contrast(a, b):
    """−Σ_x ln softmax(a bᵀ)_xx."""
    y = jax.nn.log_softmax(a @ b.T)
    return -jnp.trace(y), (a, b, y)


def contrast_back(r, u):
    a, b, y = r
    d = u * (jnp.exp(y) - jnp.eye(len(y), dtype=y.dtype))
    return d @ b, d.T @ a


add(contrast, contrast_back, lambda draw: (draw(4, 3), draw(4, 3)), {
    "not transposed": (on(1, contrast_back, lambda g, r, u: u * (jnp.exp(r[2]) - jnp.eye(4, dtype=u.dtype)) @ r[0]),
        "args[1]", "transpose"),
})  # fmt: skip
