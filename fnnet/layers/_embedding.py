"""Embedding: a row of parameters for each token.

Legend: m examples (axis 0), V tokens, n features; w the table (V, n), one row for each token.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32
from ..forms import concatenated, contraction, examples_at_a_time, rowwise
from ..initializers import Initializer, normal
from ._layer import Cache, Layer, LayerError, Params, Sends, Shape, Shard, check_leaf, drawing_key, layer, whole_number
from ._products import places

__all__ = ["Embedding", "rows", "rows_gradient"]


@jax.jit
def rows(w: Array, tokens: Array) -> Array:
    """a = w_token: the product of a one-hot vector with w, without the product. NaN for a token outside 0 … V − 1.

    Args:
        w: (V, n).
        tokens: integers (m, ...).

    Returns:
        (m, ..., n).
    """
    return rowwise(lambda tokens, w: w.at[_index(tokens, len(w))].get(mode="fill", fill_value=jnp.nan))(tokens, w)


def _index(tokens: Array, size: int) -> Array:
    """The tokens, with a negative one, which would count from the end, moved behind the end."""
    tokens = tokens.astype(jnp.int32) if tokens.dtype.itemsize < 4 else tokens
    return jnp.where(tokens < 0, size, tokens)


@jax.jit
def rows_gradient(delta: Array, tokens: Array, like: Array) -> Array:
    """BP4 with a one-hot a_in: ∂C/∂w_v = (1/m) Σ δ over the places where the token is v, a sum by segments.

    Args:
        delta: (m, ..., n).
        tokens: integers (m, ...).
        like: w (V, n), for its shape.

    Returns:
        (V, n).
    """
    return added_to_rows(at_least_float32(delta) / len(delta), _index(tokens, len(like)), like).astype(delta.dtype)


@contraction
def added_to_rows(terms: Array, tokens: Array, like: Array) -> Array:
    """The sums of the terms (m, ..., n) of each token, (V, n)."""
    return jnp.zeros(like.shape, terms.dtype).at[tokens].add(terms, mode="drop")


@jax.jit
@rowwise
def rows_square_norms(delta: Array, tokens: Array, like: Array) -> Array:
    """‖g_x‖² = Σ_{p,q} δ_p·δ_q over the pairs of places with the same token: no g_x, which has V rows, is made.

    Args:
        delta: and ``tokens``, ``like``: as of `rows_gradient`.

    Returns:
        (m,).
    """
    delta, tokens = places(delta), _index(tokens, len(like)).reshape(len(tokens), -1)

    def of_chunk(delta: Array, tokens: Array) -> Array:
        same = (tokens[:, :, None] == tokens[:, None, :]) & (tokens < len(like))[:, None, :]
        return jnp.sum(jnp.where(same, jnp.einsum("mpj,mqj->mpq", delta, delta), 0), axis=(1, 2))

    return jnp.maximum(concatenated(of_chunk, (delta, tokens), examples_at_a_time(delta, tokens.shape[1] ** 2)), 0)


@jax.jit
@rowwise
def rows_gram(delta: Array, tokens: Array, like: Array) -> Array:
    """⟨g_x, g_y⟩ = Σ_{p,q} δ_xp·δ_yq over the places with the same token. Arguments as `rows_square_norms`; (m, m)."""
    delta, tokens = places(delta), _index(tokens, len(like)).reshape(len(tokens), -1)
    steps = tokens.shape[1]

    def rows(of_some: Array, theirs: Array) -> Array:
        def of_chunk(delta: Array, tokens: Array) -> Array:
            same = (tokens[:, :, None, None] == theirs[None, None]) & (tokens < len(like))[:, :, None, None]
            return jnp.sum(jnp.where(same, jnp.einsum("yqj,xpj->yqxp", delta, of_some), 0), axis=(1, 3))

        return concatenated(of_chunk, (delta, tokens), examples_at_a_time(delta, steps * theirs.size)).T

    return concatenated(rows, (delta, tokens), examples_at_a_time(delta, steps * tokens.size))


@jax.jit
@contraction
def rows_second_moment(delta: Array, tokens: Array, like: Array) -> Array:
    """(1/m) Σ_x g_x²: a place adds δ_p ⊙ (the sum of δ over the example's places with its token) to the token's row.

    Args:
        delta: and ``tokens``, ``like``: as of `rows_gradient`.

    Returns:
        (V, n).
    """
    delta, tokens = places(delta), _index(tokens, len(like)).reshape(len(tokens), -1)

    def of_chunk(delta: Array, tokens: Array) -> Array:
        same = (tokens[:, :, None] == tokens[:, None, :]).astype(delta.dtype)
        return delta * jnp.einsum("mpq,mqj->mpj", same, delta)

    m, steps = tokens.shape
    terms = concatenated(of_chunk, (delta, tokens), examples_at_a_time(delta, steps**2)) / m
    return added_to_rows(terms, tokens, like)


@layer
class Embedding(Layer):
    """A row of w for each token. Parameters {w (V, n)}. Inputs: integers (m, ...), outputs (m, ..., n).

    It has no activation, so δ is ∂C/∂a_out. Integers have no derivative: `propagate` gives None, and it must come first.

    Args:
        tokens: V, how many there are; tokens are 0 … V − 1, and any other gives NaN.
        n: features.
        weight_init: initialiser of w, N(0, 1) by default.

    Raises:
        LayerError: for sizes that are no positive integers, inputs that are no integers, or parameters of another shape.
    """

    tokens: int
    n: int
    weight_init: Initializer = normal(1.0)

    independent = True
    _example = "fn.Embedding(10000, 64)"

    def __post_init__(self) -> None:
        for name in ("tokens", "n"):
            whole_number(self, name, f"a positive number {name}")

    def init(self, key: Array, input_shape: Shape) -> dict[str, Array]:
        return {"w": self.weight_init(drawing_key(self, key), (self.tokens, self.n), jnp.result_type(float))}

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.n)

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        w = check_leaf(self, params, "w", (self.tokens, self.n))
        if not jnp.issubdtype(a_in.dtype, jnp.integer):
            remedy = "give tokens as integers, and put it first; fn.Dense takes other features"
            raise LayerError(self, "integer inputs", str(a_in.dtype), remedy)
        a = rows(w, a_in)
        return a if probe is None else a + probe, a_in

    def propagate(self, params: Params, cache: Cache, delta: Array) -> None:
        return None

    def gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return {"w": rows_gradient(delta, cache, params["w"]).astype(params["w"].dtype)}

    def collectives(self, params: Params, a_in: Shard, a_out: Shard) -> Sends:
        """Cut by tokens, a device has a row or nothing for each place, and one all-reduce adds them up."""
        w = params["w"]
        by_token, by_feature = w.cut
        if by_token and by_feature:
            raise LayerError(self, "w cut by tokens or by features", f"P{w.cut}", "cut one of them")
        return Sends(None, by_feature, forward=(("a", by_token, a_out.shape, a_out.dtype),) if by_token else ())

    def example_gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        w = params["w"]
        return {"w": jax.vmap(lambda d, t: rows_gradient(d[None], t[None], w))(delta, cache).astype(w.dtype)}

    def square_norms(self, params: Params, cache: Cache, delta: Array) -> Array:
        return rows_square_norms(delta, cache, params["w"])

    def second_moment(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return {"w": rows_second_moment(delta, cache, params["w"])}

    def _gram(self, params: Params, cache: Cache, delta: Array) -> Array:
        return rows_gram(delta, cache, params["w"])
