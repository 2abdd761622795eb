"""Numbers, one by one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .table import WIDE, add, on, x_of


def sigmoid(x):
    s = 1 / (1 + jnp.exp(-x))
    return s, s


def sigmoid_back(s, u):
    return (u * s * (1 - s),)


add(sigmoid, sigmoid_back, x_of(3, 4), {
    "no derivative": (lambda s, u: (u,), "args[0]", "local derivative is missing"),
    "derivative twice": (lambda s, u: (u * (s * (1 - s)) ** 2,), "args[0]", "local derivative is applied twice"),
    "at the output": (lambda s, u: (u * jax.nn.sigmoid(s) * (1 - jax.nn.sigmoid(s)),), "args[0]", "at the output"),
    "one entry clipped": (lambda s, u: ((u * s * (1 - s)).at[1, 2].set(0),), "args[0]", "^only this example is wrong$"),
    "a factor near 1": (lambda s, u: (1.0001 * u * s * (1 - s),), "args[0]", r"factor 1\.0001"),
})  # fmt: skip


def tanh(x):
    return jnp.tanh(x), (x,)


add(tanh, lambda r, u: (4 * u / (jnp.exp(r[0]) + jnp.exp(-r[0])) ** 2,), x_of(3, 4))


def softplus(x):
    y = jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))
    return y, (x, y)


add(softplus, lambda r, u: (u * jnp.exp(r[0] - r[1]),), x_of(3, 4), {
    "a half": (lambda r, u: (u * jnp.exp(r[0] - r[1]) / 2,), "args[0]", "factor 0.5"),
})  # fmt: skip


def gelu(x):
    return x * lax.erfc(-x * 0.5**0.5) / 2, x


def gelu_terms(x, u):
    return u * lax.erfc(-x * 0.5**0.5) / 2, u * x * jnp.exp(-x * x / 2) * (2 * np.pi) ** -0.5


add(gelu, lambda x, u: (sum(gelu_terms(x, u)),), x_of(3, 4), {
    "no x φ": (lambda x, u: (gelu_terms(x, u)[0],), "args[0]", "left out.*erfc"),
    "x φ with the wrong sign": (lambda x, u: (gelu_terms(x, u)[0] - gelu_terms(x, u)[1],), "args[0]", "sign.*erfc"),
    "x φ twice": (lambda x, u: (gelu_terms(x, u)[0] + 2 * gelu_terms(x, u)[1],), "args[0]", "twice.*erfc"),
})  # fmt: skip


def gelu_tanh(x):
    t = jnp.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), (x, t)


def gelu_tanh_back(r, u, factor=3.0, rest=1.0):
    x, t = r
    inner = (2 / np.pi) ** 0.5 * (1 + factor * 0.044715 * x * x)
    return (0.5 * u * (rest * (1 + t) + x * (1 - t) * (1 + t) * inner),)


add(gelu_tanh, gelu_tanh_back, x_of(3, 4), {
    "x³ without 3": (lambda r, u: gelu_tanh_back(r, u, factor=1.0), "args[0]", r"factor 0\.3333.*x\*\*3"),
    "no 1 + t": (lambda r, u: gelu_tanh_back(r, u, rest=0.0), "args[0]", "left out"),
})  # fmt: skip


def swiglu(a, b):
    s = jax.nn.sigmoid(a)
    return a * s * b, (a, b)


def swiglu_back(r, u):
    a, b = r
    s = jax.nn.sigmoid(a)
    return u * b * (s + a * s - a * s * s), u * a * s


add(swiglu, swiglu_back, lambda draw: (draw(3, 4), draw(3, 4)), {
    "sigmoid's part left out": (on(0, swiglu_back, lambda g, r, u: u * r[1] * jax.nn.sigmoid(r[0])), "args[0]",
        "left out.*sigmoid"),
    "swapped": (lambda r, u: swiglu_back(r, u)[::-1], "args[0]", r"swapped.*args\[1\]"),
    "no b": (on(0, swiglu_back, lambda g, r, u: g / r[1]), "args[0]", r"factor args\[1\] is missing"),
    "b for a": (on(1, swiglu_back, lambda g, r, u: u * r[1] * jax.nn.sigmoid(r[1])), "args[1]",
        r"args\[1\] stands where args\[0\] belongs"),
    "None": (lambda r, u: (swiglu_back(r, u)[0], None), "args[1]", "left out: 0 everywhere"),
})  # fmt: skip


def logit(x):
    return jnp.log(x) - jnp.log1p(-x), x


add(logit, lambda x, u: (u / (x - x * x),), lambda draw: (draw.random.uniform(0.1, 0.9, (3, 4)),), {
    "sign of x²": (lambda x, u: (u / x - u / (1 - x),), "args[0]", r"sign.*log1p"),
})  # fmt: skip


def log1pexp(x):
    """In the plain form, far from where its exponential overflows."""
    return jnp.log1p(jnp.exp(x)), x


add(log1pexp, lambda x, u: (u / (1 + jnp.exp(-x)),), x_of(3, 4))


def power(x, p):
    y = x**p
    return y, (x, p, y)


def power_back(r, u):
    x, p, y = r
    return u * p * y / x, u * y * jnp.log(x)


add(power, power_back, lambda draw: (draw.positive(3, 4), draw.positive(3, 4)), {
    "no p": (on(0, power_back, lambda g, r, u: g / r[1]), "args[0]", r"factor args\[1\] is missing"),
    "no ln x": (on(1, power_back, lambda g, r, u: u * r[2]), "args[1]", ""),
})  # fmt: skip


def horner(c, x):
    """Σ_k c_k x^k, the highest first."""
    y = jnp.zeros_like(x)
    for c_k in c:
        y = y * x + c_k
    return y, (c, x)


def horner_back(r, u):
    c, x = r
    powers = jnp.stack([x**k for k in range(len(c))][::-1])
    k = jnp.arange(len(c) - 1, 0, -1).astype(x.dtype)
    slope = jnp.einsum("k,k,kj->j", k, c[:-1], powers[1:])
    return powers @ u, u * slope


add(horner, horner_back, lambda draw: (draw(4), draw(5)), {
    "the lowest first": (on(0, horner_back, lambda g, r, u: g[::-1]), "args[0]", "reversed along axis 0"),
})  # fmt: skip


def sinc(x):
    safe = jnp.where(x == 0, 1, x)
    return jnp.where(x == 0, 1, jnp.sin(safe) / safe), x


def sinc_back(x, u):
    safe = jnp.where(x == 0, 1, x)
    return (u * jnp.where(x == 0, 0, (safe * jnp.cos(safe) - jnp.sin(safe)) / safe**2),)


def one_zero(draw):
    x = draw.apart(3, 4)
    x[1, 1] = 0
    return (x,)


add(sinc, sinc_back, one_zero, {
    "the numerator only": (lambda x, u: (u * jnp.where(x == 0, 0, jnp.cos(x)),), "args[0]", ""),
    "no 1/x²": (lambda x, u: (u * jnp.where(x == 0, 0, jnp.cos(x) / jnp.where(x == 0, 1, x)),), "args[0]",
        "left out"),
})  # fmt: skip


def safe_sqrt(x):
    y = jnp.sqrt(jnp.where(x > 0, x, 1))
    return jnp.where(x > 0, y, 0), (x, y)


add(safe_sqrt, lambda r, u: (jnp.where(r[0] > 0, 0.5 * u / r[1], 0),), lambda draw: (draw.apart(3, 4),), {
    "no ½": (lambda r, u: (jnp.where(r[0] > 0, u / r[1], 0),), "args[0]", "factor 2"),
})  # fmt: skip


def clip(x):
    return jnp.clip(x, -1, 1), jnp.abs(x) < 1


add(clip, lambda inside, u: (u * inside.astype(u.dtype),), lambda draw: (draw.apart(3, 4),), {
    "straight through": (lambda inside, u: (u,), "args[0]", "local derivative is missing"),
    "the other side": (lambda inside, u: (u * (~inside).astype(u.dtype),), "args[0]", "another mask"),
})  # fmt: skip


def huber(x, y):
    e = x - y
    size = jnp.abs(e)
    return jnp.where(size < 1, e * e / 2, size - 0.5), e


add(huber, lambda e, u: (u * jnp.clip(e, -1, 1), -u * jnp.clip(e, -1, 1)), lambda draw: (draw.apart(3, 4), draw(3, 4)), {
    "the same sign twice": (lambda e, u: (u * jnp.clip(e, -1, 1),) * 2, "args[1]", "wrong sign"),
})  # fmt: skip


def erf(x):
    return lax.erf(x), x


add(erf, lambda x, u: (u * 2 / np.pi**0.5 * jnp.exp(-x * x),), x_of(3, 4), {
    "no 2/√π": (lambda x, u: (u * jnp.exp(-x * x),), "args[0]", r"factor 0\.8862"),
})  # fmt: skip


def lgamma(x):
    return lax.lgamma(x), x


add(lgamma, lambda x, u: (u * lax.digamma(x),), lambda draw: (1 + draw.positive(3, 4),), dtypes=WIDE)


def i0e(x):
    y = lax.bessel_i0e(x)
    return y, (x, y)


add(i0e, lambda r, u: (u * (lax.bessel_i1e(r[0]) - jnp.sign(r[0]) * r[1]),), lambda draw: (draw.apart(3, 4),),
    dtypes=WIDE)  # fmt: skip


def log_beta(a, b):
    return lax.lgamma(a) + lax.lgamma(b) - lax.lgamma(a + b), (a, b)


def log_beta_back(r, u):
    a, b = map(lax.digamma, r)
    both = lax.digamma(r[0] + r[1])
    return u * (a - both), u * (b - both)


add(log_beta, log_beta_back, lambda draw: (1 + draw.positive(5), 1 + draw.positive(5)), {
    "ψ(a + b) left out": (on(1, log_beta_back, lambda g, r, u: u * lax.digamma(r[1])), "args[1]",
        r"left out.*lgamma\(a \+ b\)"),
    "ψ(a + b) added": (on(0, log_beta_back, lambda g, r, u: u * (lax.digamma(r[0]) + lax.digamma(sum(r)))),
        "args[0]", r"sign.*lgamma\(a \+ b\)"),
}, dtypes=WIDE)  # fmt: skip


def atan2(y, x):
    return jnp.arctan2(y, x), (y, x)


def atan2_back(r, u):
    y, x = r
    s = u / (x * x + y * y)
    return x * s, -y * s


add(atan2, atan2_back, lambda draw: (draw.positive(5), draw.positive(5)), {
    "sign": (on(1, atan2_back, lambda g, r, u: -g), "args[1]", "^wrong sign$"),
    "swapped": (lambda r, u: atan2_back(r, u)[::-1], "args[0]", r"swapped.*args\[1\]"),
})  # fmt: skip


def logaddexp(a, b):
    y = jnp.logaddexp(a, b)
    return y, (a, b, y)


add(logaddexp, lambda r, u: (u * jnp.exp(r[0] - r[2]), u * jnp.exp(r[1] - r[2])), lambda draw: (draw(5), draw(5)))


def interp(x, f):
    """Piecewise linear between the values f at 0, 1, ..., n − 1."""
    i = jnp.clip(jnp.floor(x).astype(int), 0, len(f) - 2)
    t = x - i.astype(x.dtype)
    return (1 - t) * f[i] + t * f[i + 1], (i, t, f)


def interp_back(r, u):
    i, t, f = r
    d_f = jnp.zeros_like(f).at[i].add((1 - t) * u).at[i + 1].add(t * u)
    return u * (f[i + 1] - f[i]), d_f


add(interp, interp_back, lambda draw: (draw.random.uniform(0.1, 3.9, 7), draw(5)), {
    "the right neighbour left out": (on(1, interp_back, lambda g, r, u: jnp.zeros_like(g).at[r[0]].add((1 - r[1]) * u)),
        "args[1]", "left out"),
    "set, not added": (on(1, interp_back, lambda g, r, u: jnp.zeros_like(g).at[r[0]].set((1 - r[1]) * u)
        + jnp.zeros_like(g).at[r[0] + 1].add(r[1] * u)), "args[1]", "not added"),
})  # fmt: skip
