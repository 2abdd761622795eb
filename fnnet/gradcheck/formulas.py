"""What the backward passes of normalisation and attention give with a part wrong: the usual mistakes, each with its name.

Legend as in `fnnet.layers._norm` and `fnnet.layers._attention`.
"""

from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..layers._attention import (
    Attention,
    at_valid_steps,
    attend,
    attend_error,
    dot,
    join_heads,
    rotated,
    rotations,
    scaled,
    score_error,
)
from ..layers._dense import bias_gradient
from ..layers._norm import Normalisation, RMSNorm, gain_gradient, product
from ..layers._norm import scaled as times_gain

Mistakes = Iterator[tuple[str, Any]]


def normalisation_errors(layer: Normalisation, params: Any, cache: Any, delta: Array) -> Mistakes:
    """Of ∂C/∂a = r (u − mean(u) − x̂ mean(u x̂)) with u = g δ; RMS normalisation has no mean(u)."""
    g, x_hat, has_mean = params["g"], layer.x_hat(cache), not isinstance(layer, RMSNorm)
    r, u = cache[2 if has_mean else 1], times_gain(g, delta)

    def means(u: Array) -> tuple[Array, Array]:
        return layer.mean(u) if has_mean else jnp.zeros_like(r), layer.mean(u * x_hat)

    mean_u, mean_ux = means(u)
    right = u - mean_u - x_hat * mean_ux
    if has_mean:
        yield "mean(u) is left out: μ depends on a too", r * (right + mean_u)
        yield "the statistics are taken for constants: this is g δ/σ", r * u
    yield "x̂ mean(u x̂) is left out: σ depends on a too", r * (u - mean_u)
    for text, v in (("g is left out", delta), ("g is applied twice", times_gain(g, u))):
        mean_v, mean_vx = means(v)
        yield text, r * (v - mean_v - x_hat * mean_vx)
    yield "1/σ is left out", right
    yield "1/σ² stands where 1/σ belongs", r * r * right
    n = 1 / jnp.max(layer.mean(jnp.zeros_like(u).at[(0,) * u.ndim].set(1)))
    yield "sums stand where the means of what is normalised belong", r * (u - n * (mean_u + x_hat * mean_ux))
    for step in (1, -1):
        stale, text = jnp.roll(r, step, axis=0), "1/σ of another example: a stale or shifted cache"
        x_stale = x_hat / r * stale
        yield text, stale * right
        yield text, stale * (u - mean_u - x_stale * layer.mean(u * x_stale))


def gain_gradients(layer: Normalisation, cache: Any, delta: Array) -> Mistakes:
    """Of ∂C/∂g = (1/m) Σ δ x̂."""
    yield "x̂ is left out: this is the gradient of a bias", bias_gradient(delta)
    yield "a stands where x̂ belongs: it is not normalised", gain_gradient(product(delta, cache[0]))
    if not isinstance(layer, RMSNorm):
        yield "1/σ is left out of x̂", gain_gradient(product(delta, cache[0] - cache[1]))


def attention_errors(layer: Attention, a_in: Array, mask: Array | None, delta: Array) -> Mistakes:
    """Of dv_s = Σ_t p_ts do_t, ds_ts = p_ts (do_t·v_s − do_t·o_t), dq_t = Σ_s ds_ts k_s/√d, dk_s = Σ_t ds_ts q_t/√d."""
    q, k, v = layer.turned(at_valid_steps(a_in, mask))
    do, root = at_valid_steps(delta, mask).reshape(q.shape), q.shape[-1] ** 0.5
    o, p = attend(q, k, v, mask, layer.causal)
    dq, dk, dv = attend_error(q, k, v, p, o, do)
    dp = dot("mthd,mshd->mhts", do, v)
    ds = score_error(p, dp, dot("mthd,mthd->mht", do, o))

    def joined(*parts: Array, way: int = -1) -> Array:
        """[dq | dk | dv], dq and dk turned back where it is rotary."""
        dq, dk, dv = parts
        if layer.rotary is not None:
            cos, sin = rotations(q.shape[1], q.shape[-1], layer.rotary)
            dq, dk = (rotated(x, cos, way * sin) for x in (dq, dk))
        return join_heads(dq, dk, dv)

    def from_scores(ds: Array) -> Array:
        return joined(scaled(dot("mhts,mshd->mthd", ds, k)), dot("mhts,mthd->mshd", ds, scaled(q)), dv)

    if layer.rotary is not None:
        yield "dq and dk are not turned back: rotary's transpose is left out", join_heads(dq, dk, dv)
        yield "dq and dk are turned once more, not back: rotary's transpose turns by −sin", joined(dq, dk, dv, way=1)
    if layer.causal:
        o_open, p_open = attend(q, k, v, mask, False)
        text = "the causal mask is left out on the way back"
        yield text, joined(*attend_error(q, k, v, p_open, o_open, do))
        yield text, joined(*attend_error(q, k, v, p_open, o, do))
    yield "the scale 1/√d is left out of dq and dk", joined(root * dq, root * dk, dv)
    yield "the scale 1/√d is applied twice to dq and dk", joined(dq / root, dk / root, dv)
    yield "dq and dk are swapped", joined(dk, dq, dv)
    yield "dk and dv are swapped", joined(dq, dv, dk)
    yield "dq and dv are swapped", joined(dv, dk, dq)
    for i, name in enumerate(("dq", "dk", "dv")):
        yield f"{name} is left out", joined(*(0 * x if i == j else x for j, x in enumerate((dq, dk, dv))))
    yield "only the diagonal of softmax's Jacobian is used: p ⊙ dp without − p Σ p dp", from_scores(p * dp)
    yield "softmax's derivative is left out: dp stands where ds belongs", from_scores(jnp.where(p > 0, dp, 0))
    yield "p is not transposed in dv", joined(dq, dk, dot("mhts,mshd->mthd", p, do))
    yield "ds is not transposed in dk", joined(dq, scaled(dot("mhts,mshd->mthd", ds, q)), dv)
    yield "ds is transposed in dq", joined(scaled(dot("mhts,mthd->mshd", ds, k)), dk, dv)
    heads = "the heads are mixed up on the way back"
    parts = dq, dk, dv
    yield heads, joined(*(jnp.swapaxes(x, 2, 3).reshape(x.shape) for x in parts))
    yield heads, joined(*(jnp.swapaxes(x, 1, 2).reshape(x.shape) for x in parts))
    of_other_heads = delta.reshape(*q.shape[:2], q.shape[3], q.shape[2]).swapaxes(2, 3)
    yield heads, joined(*attend_error(q, k, v, p, o, of_other_heads))
    for step in (1, -1):
        yield heads, joined(*(jnp.roll(x, step, axis=2) for x in parts))
        yield heads, joined(*attend_error(q, k, v, p, o, jnp.roll(do, step, axis=2)))
