"""Attention: every step of a sequence reads the steps that it may see; and learned positions.

Legend: m examples (axis 0), T steps, n features, h heads of d = n / h features; q queries, k keys, v values (m, T, h, d), t a
query's step and s a key's; z scores and p probabilities (m, h, T, T), o output (m, T, h, d); a leading d is a derivative of
the cost. Scores, softmax and sums are taken in at least float32.

Two forms: plain, which keeps p, and in blocks, which keeps one number for each query and computes p again on the way back.

Source: docs/attention.md; Vaswani et al. (2017), Su et al. (2021), Dao et al. (2022).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..activations import at_least_float32, wide_dtype
from ..forms import stored
from ..initializers import Initializer, normal
from ._layer import (
    Cache,
    Layer,
    LayerError,
    Params,
    Sends,
    Shape,
    Shard,
    as_floats,
    at_valid_steps,
    check_leaf,
    check_mask,
    drawing_key,
    layer,
    real_number,
    whole_number,
)

__all__ = [
    "Attention",
    "Position",
    "attend",
    "attend_error",
    "attend_in_blocks",
    "attend_in_blocks_error",
    "join_heads",
    "position_gradient",
    "rotated",
    "rotations",
    "score_error",
    "split_heads",
]


@functools.partial(jax.jit, static_argnames="heads")
def split_heads(a: Array, heads: int) -> tuple[Array, Array, Array]:
    """q, k and v from [q | k | v], each n wide with its heads side by side.

    Args:
        a: (m, T, 3n).
        heads: h.

    Returns:
        q, k, v, each (m, T, h, d).
    """
    m, steps, n3 = a.shape
    q, k, v = (part.reshape(m, steps, heads, n3 // 3 // heads) for part in jnp.split(a, 3, axis=-1))
    return q, k, v


@jax.jit
def join_heads(q: Array, k: Array, v: Array) -> Array:
    """[q | k | v] (m, T, 3n) from its parts (m, T, h, d): `split_heads` undone, and its BP2."""
    return jax.lax.collapse(jnp.stack([q, k, v], axis=2), 2)


@functools.partial(jax.jit, static_argnames=("steps", "size", "base"))
def rotations(steps: int, size: int, base: float) -> tuple[Array, Array]:
    """cos and sin of the angles t base^(−2i/d) by which step t turns the pair i.

    Args:
        steps: T.
        size: d, even.
        base: of the frequencies.

    Returns:
        cos, sin (T, d/2). Source: Su et al. (2021), section 3.2.
    """
    angles = np.arange(steps)[:, None] * base ** (-2.0 * np.arange(size // 2) / size)
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


@jax.jit
def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """Each pair (x_i, x_{i + d/2}) turned by the angle of its step: the first half's features pair with the second's. Its
    BP2, the transpose, turns back: ``rotated(dx, cos, −sin)``.

    Args:
        x: (m, T, h, d).
        cos: (T, d/2).
        sin: see cos.

    Returns:
        (m, T, h, d).
    """
    wide = at_least_float32(x)
    first, second = jnp.split(wide, 2, axis=-1)
    cos, sin = (f.astype(wide.dtype)[None, :, None, :] for f in (cos, sin))
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def scaled(q: Array) -> Array:
    """q / √d, so that q·k has the variance 1 where q and k have."""
    return q / math.sqrt(q.shape[-1])


def dot(form: str, x: Array, y: Array) -> Array:
    """``einsum`` of x in the dtype of y and y, summed in at least float32."""
    return jnp.einsum(form, x.astype(y.dtype), y, preferred_element_type=wide_dtype(y.dtype))


def allowed(t: Array, s: Array, valid: tuple[Array, Array] | None, causal: bool) -> Array:
    """Which of the queries at steps t (T,) read which of the keys at steps s (S,), (m or 1, 1, T, S): valid both, with (m, T)
    and (m, S), and s ≤ t where it is causal."""
    pairs = ((s[None, :] <= t[:, None]) | (not causal))[None, None]
    if valid is None:
        return pairs
    valid_t, valid_s = valid
    return pairs & valid_t[:, None, :, None] & valid_s[:, None, None, :]


@functools.partial(jax.jit, static_argnames="causal")
def attend(q: Array, k: Array, v: Array, valid: Array | None, causal: bool) -> tuple[Array, Array]:
    """p_ts = e^{z_ts} / Σ_s e^{z_ts} over the keys that t may see, z_ts = q_t·k_s / √d; o_t = Σ_s p_ts v_s. A query without
    any key gets 0.

    Args:
        q: (m, T, h, d).
        k: see q.
        v: see q.
        valid: (m, T), or None for all: others are no keys, and get 0 as queries.
        causal: whether t sees steps up to t only.

    Returns:
        o (m, T, h, d), p (m, h, T, T). Source: Vaswani et al. (2017), section 3.2.
    """
    steps, both = jnp.arange(q.shape[1]), None if valid is None else (valid, valid)
    scores = jnp.where(allowed(steps, steps, both, causal), dot("mthd,mshd->mhts", scaled(q), k), -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True, initial=jnp.finfo(scores.dtype).min)
    e = jnp.exp(scores - jax.lax.stop_gradient(top))
    p = e / unless_zero(jnp.sum(e, axis=-1, keepdims=True))
    return dot("mhts,mshd->mthd", p, v), p


def unless_zero(total: Array) -> Array:
    """The total of a softmax, which is 1 or more, and not 0 where there is no key at all. (Not a choice by total == 0: XLA on
    a CPU then stores the exponentials once more, and the forward pass over 1,024 steps takes 1.5 times as long.)"""
    return jnp.maximum(total, 0.5)


@jax.jit
def score_error(p: Array, dp: Array, correction: Array) -> Array:
    """Softmax's pullback, dz_ts = p_ts (dp_ts − Σ_s p_ts dp_ts).

    The sum is do_t·o_t, since dp_ts = do_t·v_s and o_t = Σ_s p_ts v_s: d products for each query instead of T.

    Args:
        p: (m, h, T, S).
        dp: see p.
        correction: Σ_s p_ts dp_ts = do_t·o_t (m, h, T).

    Returns:
        dz (m, h, T, S). Source: Dao et al. (2022), appendix B.2.
    """
    return p * (dp - correction[..., None])


@jax.jit
def attend_error(q: Array, k: Array, v: Array, p: Array, o: Array, do: Array) -> tuple[Array, Array, Array]:
    """BP2: dv_s = Σ_t p_ts do_t, dp_ts = do_t·v_s, dz of `score_error`, dq_t = Σ_s dz_ts k_s / √d, dk_s = Σ_t dz_ts q_t / √d.

    Args:
        q: (m, T, h, d).
        k: see q.
        v: see q.
        p: from `attend`.
        o: see p.
        do: ∂C/∂o (m, T, h, d).

    Returns:
        dq, dk, dv, each (m, T, h, d). Source: docs/attention.md.
    """
    dp, correction = dot("mthd,mshd->mhts", do, v), dot("mthd,mthd->mht", do, o)
    dz = score_error(p, dp, correction)
    dq, dk = scaled(dot("mhts,mshd->mthd", dz, k)), dot("mhts,mthd->mshd", dz, scaled(q))
    return dq, dk, dot("mhts,mthd->mshd", p, do)


@functools.partial(jax.jit, static_argnames=("causal", "block"))
def attend_in_blocks(
    q: Array, k: Array, v: Array, valid: Array | None, causal: bool, block: int
) -> tuple[Array, Array]:
    """`attend` block by block, with the largest score μ, the sum l and the output o so far:

    μ' = max(μ, max_s z_ts), l' = e^{μ − μ'} l + Σ_s e^{z_ts − μ'}, o' = e^{μ − μ'} o + Σ_s e^{z_ts − μ'} v_s, and at the end
    o / l.

    Args:
        q: as of `attend`.
        k: see q.
        v: see q.
        valid: see q.
        causal: see q.
        block: steps in a block of queries and of keys; the last one may be short.

    Returns:
        o (m, T, h, d), and ln Σ_s e^{z_ts} (m, T, h), ∞ for a query without any key. Source: Dao et al. (2022), algorithm 1.
    """
    steps, block = q.shape[1], min(block, q.shape[1])
    valid = valid_blocks(valid, steps, block)
    q, k, v = stored(tuple(in_blocks(x, block) for x in (scaled(q), k, v)))

    def step(so_far, pair):
        (i, j), (o, top, total) = pair, so_far
        scores = block_scores(q, k, valid, causal, i, j)
        new = jnp.maximum(top[i], jax.lax.stop_gradient(jnp.max(scores, axis=-1)))
        e, shrink = stored((jnp.exp(scores - new[..., None]), jnp.exp(top[i] - new)))
        o = o.at[i].set(shrink[..., None] * o[i] + dot("mhts,mhsd->mhtd", e, v[j]))
        return (o, top.at[i].set(new), total.at[i].set(shrink * total[i] + jnp.sum(e, axis=-1))), None

    zero = jnp.zeros_like(q, wide_dtype(q.dtype))
    start = zero, zero[..., 0] + jnp.finfo(zero.dtype).min, zero[..., 0]
    (o, top, total), _ = jax.lax.scan(step, start, pairs_of_blocks(len(q), causal))
    o, total = o / unless_zero(total)[..., None], jnp.where(total == 0, jnp.inf, top + jnp.log(unless_zero(total)))
    return out_of_blocks(o, steps), out_of_blocks(total[..., None], steps)[..., 0]


@functools.partial(jax.jit, static_argnames=("causal", "block"))
def attend_in_blocks_error(
    q: Array, k: Array, v: Array, valid: Array | None, o: Array, total: Array, do: Array, causal: bool, block: int
) -> tuple[Array, Array, Array]:
    """`attend_error` block by block, p_ts = e^{z_ts − ln Σ_s e^{z_ts}} computed again.

    Args:
        q: as of `attend_in_blocks`.
        k: see q.
        v: see q.
        valid: see q.
        causal: see q.
        block: see q.
        o: from it.
        total: see o.
        do: ∂C/∂o (m, T, h, d).

    Returns:
        dq, dk, dv, each (m, T, h, d). Source: Dao et al. (2022), algorithm 4.
    """
    steps, block = q.shape[1], min(block, q.shape[1])
    valid = valid_blocks(valid, steps, block)
    correction = dot("mthd,mthd->mth", do, o)
    parts = (
        *(in_blocks(x, block) for x in (scaled(q), k, v, do)),
        *(in_blocks(x[..., None], block) for x in (total, correction)),
    )
    q, k, v, do, total, correction = stored(parts)

    def step(so_far, pair):
        (i, j), (dq, dk, dv) = pair, so_far
        p = jnp.exp(block_scores(q, k, valid, causal, i, j) - total[i])
        dz = score_error(p, dot("mhtd,mhsd->mhts", do[i], v[j]), correction[i][..., 0])
        p, dz = stored((p, dz))
        dq = dq.at[i].add(dot("mhts,mhsd->mhtd", dz, k[j]))
        dk = dk.at[j].add(dot("mhts,mhtd->mhsd", dz, q[i]))
        return (dq, dk, dv.at[j].add(dot("mhts,mhtd->mhsd", p, do[i]))), None

    start = (jnp.zeros_like(q, wide_dtype(q.dtype)),) * 3
    (dq, dk, dv), _ = jax.lax.scan(step, start, pairs_of_blocks(len(q), causal))
    return out_of_blocks(scaled(dq), steps), out_of_blocks(dk, steps), out_of_blocks(dv, steps)


def pairs_of_blocks(blocks: int, causal: bool) -> tuple[Array, Array]:
    """The blocks of queries and of keys that meet, row by row: where it is causal, those up to the diagonal."""
    i, j = np.tril_indices(blocks) if causal else np.indices((blocks, blocks)).reshape(2, -1)
    return jnp.asarray(i), jnp.asarray(j)


def block_scores(q: Array, k: Array, valid: Array | None, causal: bool, i: Array, j: Array) -> Array:
    """z_ts = q_t·k_s, q scaled, of the i-th block of queries and the j-th of keys, −∞ where t may not see s."""
    scores, steps = dot("mhtd,mhsd->mhts", q[i], k[j]), jnp.arange(q.shape[3])
    both = None if valid is None else (valid[i], valid[j])
    pairs = allowed(i * len(steps) + steps, j * len(steps) + steps, both, causal)
    return jnp.where(pairs, scores, -jnp.inf)


def in_blocks(x: Array, block: int) -> Array:
    """(blocks, m, h, block, d) from x (m, T, h, d), padded with zeros."""
    m, steps, heads, size = x.shape
    x = jnp.pad(x, ((0, 0), (0, -steps % block), (0, 0), (0, 0)))
    return x.reshape(m, x.shape[1] // block, block, heads, size).transpose(1, 0, 3, 2, 4)


def out_of_blocks(x: Array, steps: int) -> Array:
    """(m, T, h, d) from its blocks: `in_blocks` undone."""
    blocks, m, heads, block, size = x.shape
    return x.transpose(1, 0, 3, 2, 4).reshape(m, blocks * block, heads, size)[:, :steps]


def valid_blocks(valid: Array | None, steps: int, block: int) -> Array | None:
    """(blocks, m or 1, block) from the valid steps (m, T), those of the padding not; None where all are valid."""
    if valid is None and steps % block == 0:
        return None
    valid = jnp.ones((1, steps), bool) if valid is None else valid
    valid = jnp.pad(valid, ((0, 0), (0, -steps % block)))
    return valid.reshape(len(valid), valid.shape[1] // block, block).swapaxes(0, 1)


@layer
class Attention(Layer):
    """Scaled dot-product attention of several heads: (m, T, 3n), the last axis [q | k | v], to (m, T, n). No parameters.

    Self-attention is ``Dense(3 * n, linear), Attention(heads), Dense(n, linear)``. It has no activation, so δ is ∂C/∂a_out. A
    ``mask`` (m, T) marks the valid steps: no query reads another step, and another step's output is 0.

    Args:
        heads: h; they divide n, and each has d = n / h features, side by side.
        causal: whether a step sees itself and the steps before it only.
        block: steps in a block: probabilities are computed block by block, and again on the way back, instead of kept. None
            keeps them, (m, h, T, T). Blocks of 128 are faster from about 512 causal steps on; below, and where nothing is
            hidden, they are for memory (docs/attention.md).
        rotary: base of the frequencies by which pairs of q's and k's features, i and i + d/2, are turned according to their
            step, such as 10_000.0; None leaves them.

    Raises:
        LayerError: for heads or a block that are no positive integers, a base that is no positive number, heads that do not
            divide n, an odd d with ``rotary``, or inputs or a mask of another shape.

    Source: Vaswani et al. (2017), Dao et al. (2022), Su et al. (2021); docs/attention.md.
    """

    heads: int
    causal: bool = True
    block: int | None = None
    rotary: float | None = None

    independent = True
    _example = "fn.Attention(8)"

    def __post_init__(self) -> None:
        whole_number(self, "heads", "a positive number of heads")
        if self.block is not None:
            whole_number(self, "block", "a block of a positive number of steps, or None")
        if not isinstance(self.causal, bool):
            raise LayerError(self, "causal to be True or False", repr(self.causal), "True lets no step see a later one")
        if self.rotary is not None:
            remedy = "it is the base of the frequencies; 10_000.0 is usual"
            real_number(self, "rotary", lambda base: 0 < base < math.inf, "a positive number rotary, or None", remedy)

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        self.check_sequences((1, *input_shape) if isinstance(input_shape, tuple) else input_shape)
        return {}

    def check_sequences(self, shape: tuple[int, ...]) -> None:
        """Raise a LayerError unless it is (m, T, 3n), with n that the heads divide."""
        if not isinstance(shape, tuple) or len(shape) != 3 or shape[1] < 1 or shape[2] % 3 or shape[2] < 3:
            remedy = "put fn.Dense(3 * n, fn.linear) before it, which makes [q | k | v] of each step"
            raise LayerError(self, "inputs of shape (m, T, 3n) with T ≥ 1", str(shape), remedy)
        n = shape[2] // 3
        if n % self.heads:
            got = f"n = {n} and {self.heads} heads"
            raise LayerError(self, "heads that divide n", got, "each head takes n / heads features")
        if self.rotary is not None and n // self.heads % 2:
            got = f"{n // self.heads}"
            raise LayerError(self, "an even number of features in a head", got, "rotary turns pairs of them")

    def forward(
        self, params: Params, a_in: Array, *, mask: Array | None = None, probe: Array | None = None
    ) -> tuple[Array, Cache]:
        self.check_sequences(a_in.shape)
        check_mask(self, mask, a_in.shape[:2])
        mask = None if mask is None else jnp.asarray(mask).astype(bool)
        a_in = at_valid_steps(as_floats(self, a_in, jnp.result_type(float)), mask)
        q, k, v = self.turned(a_in)
        if self.block is None:
            o, kept = attend(q, k, v, mask, self.causal)
        else:
            o, kept = attend_in_blocks(q, k, v, mask, self.causal, self.block)
        a = jax.lax.collapse(o, 2).astype(a_in.dtype)
        return a if probe is None else a + probe, (a_in, mask, a, kept)

    def turned(self, a_in: Array) -> tuple[Array, Array, Array]:
        """q and k, turned where it is rotary, and v."""
        q, k, v = split_heads(a_in, self.heads)
        if self.rotary is None:
            return q, k, v
        cos, sin = rotations(q.shape[1], q.shape[-1], self.rotary)
        return rotated(q, cos, sin), rotated(k, cos, sin), v

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        a_in, mask, a, kept = cache
        q, k, v = self.turned(a_in)
        o, do = (x.reshape(q.shape) for x in (a, at_valid_steps(delta, mask)))
        if self.block is None:
            dq, dk, dv = attend_error(q, k, v, kept, o, do)
        else:
            dq, dk, dv = attend_in_blocks_error(q, k, v, mask, o, kept, do, self.causal, self.block)
        if self.rotary is not None:
            cos, sin = rotations(q.shape[1], q.shape[-1], self.rotary)
            dq, dk = rotated(dq, cos, -sin), rotated(dk, cos, -sin)
        return join_heads(dq, dk, dv).astype(delta.dtype)


@functools.partial(jax.jit, static_argnames="steps")
def position_gradient(delta: Array, steps: int) -> Array:
    """∂C/∂w_t = (1/m) Σ_x δ_t, 0 for the steps of the table that the inputs do not reach.

    Args:
        delta: (m, T, n).
        steps: of the table.

    Returns:
        (steps, n).
    """
    mean = jnp.sum(at_least_float32(delta), axis=0) / delta.shape[0]
    return jnp.pad(mean, ((0, steps - len(mean)), (0, 0)))


@layer
class Position(Layer):
    """Learned positions: a = a_in + w, a row of w for each step. Parameters {w (T, n)}, T that of ``init``'s input shape.

    Inputs and outputs (m, T, n), T as long as the table or shorter. It has no activation, so δ is ∂C/∂a_out.

    Args:
        weight_init: initialiser of w, N(0, 0.02²) by default.

    Raises:
        LayerError: for inputs that are no such sequences or longer than the table, or parameters of another shape.

    Source: Radford et al. (2018).
    """

    weight_init: Initializer = normal(0.02)

    independent = True
    _example = "fn.Position()"

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        if not isinstance(input_shape, tuple) or len(input_shape) != 2:
            remedy = "give the longest sequence's shape, as in net.init(key, (256, 64))"
            raise LayerError(self, "an input shape (T, n)", str(input_shape), remedy)
        return {"w": self.weight_init(drawing_key(self, key), input_shape, jnp.result_type(float))}

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        w = check_leaf(self, params, "w", (None, None))
        if a_in.ndim != 3 or a_in.shape[2] != w.shape[1]:
            remedy = "give sequences (m, T, n); x[None] for a single one"
            raise LayerError(self, f"inputs of shape (m, T, {w.shape[1]})", str(a_in.shape), remedy)
        if a_in.shape[1] > len(w):
            remedy = "initialise with the shape of the longest sequence, or cut the inputs"
            raise LayerError(self, f"at most {len(w)} steps, the rows of w", f"{a_in.shape[1]}", remedy)
        a_in = as_floats(self, a_in, w.dtype)
        a = a_in + w[None, : a_in.shape[1]]
        return a if probe is None else a + probe, None

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return delta

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        by_step, over = params["w"].cut
        if by_step:
            raise LayerError(
                self, "w cut by features", f"P{params['w'].cut}", "every device needs all steps: give it P()"
            )
        return Sends(over, over)

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return {"w": position_gradient(delta, len(params["w"])).astype(params["w"].dtype)}
