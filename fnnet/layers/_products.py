"""Every example's share of a gradient that is a sum of products, as BP3's and BP4's are.

Legend: m examples (axis 0), P places (the axes between the first and the last; 1 for a row), n_out and n_in; δ the error, a
what it is multiplied with, g_x = Σ_p δ_p a_pᵀ the gradient of example x; g_x = Σ_p δ_p where nothing is multiplied (a bias).

A norm or an inner product has two forms. From the g_x it takes P · n_out · n_in products; from inner products of errors and
of activations, ⟨δ_p a_pᵀ, δ_q a_qᵀ⟩ = (δ_p·δ_q)(a_p·a_q), it takes P² (n_out + n_in). For a row the latter is ‖δ‖² ‖a‖², and
nothing of a gradient's size is ever there. Half precision is summed in float32.

Source: Goodfellow (2015), the norm of a row; Rochette et al. (2019), convolutions; docs/shares.md.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import at_least_float32
from ..forms import (
    by_inner_products,
    concatenated,
    contraction,
    examples_at_a_time,
    mean_of_products,
    rowwise,
    summed_squares,
)
from ._layer import Cache, Layer, Params, Products, added_up, gram_of

__all__ = ["SumsOfProducts", "share", "share_gram", "share_second_moment", "share_square_norms"]


@jax.jit
def share(delta: Array, a: Array | None) -> Array:
    """BP4 of each example: g_x = Σ_p δ_p a_pᵀ; BP3 of each where there is no a: g_x = Σ_p δ_p.

    Args:
        delta: (m, ..., n_out).
        a: (m, ..., n_in), or None.

    Returns:
        (m, n_out, n_in) or (m, n_out).
    """
    delta = places(delta)
    return jnp.sum(delta, axis=1) if a is None else jnp.einsum("mpj,mpk->mjk", delta, places(a))


@jax.jit
def share_square_norms(delta: Array, a: Array | None) -> Array:
    """‖g_x‖² = Σ_{p,q} (δ_p·δ_q)(a_p·a_q), of rows ‖δ‖² ‖a‖²; or from g_x, whichever takes less. Never below 0 by rounding.

    Args:
        delta: and ``a``: as of `share`.

    Returns:
        (m,).
    """
    delta = places(delta)
    if a is None:
        return jnp.sum(jnp.square(jnp.sum(delta, axis=1)), axis=1)
    a = places(a)
    if delta.shape[1] == 1:
        return jnp.sum(jnp.square(delta), axis=(1, 2)) * jnp.sum(jnp.square(a), axis=(1, 2))
    if by_inner_products(delta, a):
        pairs = jnp.einsum("mpj,mqj->mpq", delta, delta) * jnp.einsum("mpk,mqk->mpq", a, a)
        return jnp.maximum(jnp.sum(pairs, axis=(1, 2)), 0)
    of_chunk = lambda delta, a: jnp.sum(jnp.square(share(delta, a)), axis=(1, 2))  # noqa: E731
    return concatenated(of_chunk, (delta, a), examples_at_a_time(a, delta.shape[-1] * a.shape[-1]))


@jax.jit
@contraction
def share_second_moment(delta: Array, a: Array | None) -> Array:
    """(1/m) Σ_x g_x² entry by entry, of rows BP4 of squares, (1/m) Σ_x δ_j² a_k².

    Args:
        delta: and ``a``: as of `share`.

    Returns:
        (n_out, n_in) or (n_out,).
    """
    delta = places(delta)
    if a is None:
        return jnp.mean(jnp.square(jnp.sum(delta, axis=1)), axis=0)
    a = places(a)
    if delta.shape[1] == 1:
        return mean_of_products(jnp.square(delta[:, 0]), jnp.square(a[:, 0]))
    return summed_squares(delta, a) / len(a)


@jax.jit
@rowwise
def share_gram(delta: Array, a: Array | None) -> Array:
    """⟨g_x, g_y⟩ = Σ_{p,q} (δ_xp·δ_yq)(a_xp·a_yq), of rows (δ δᵀ) ⊙ (a aᵀ); or from g_x, whichever takes less.

    Args:
        delta: and ``a``: as of `share`.

    Returns:
        (m, m).
    """
    delta = places(delta)
    if a is None:
        total = jnp.sum(delta, axis=1)
        return total @ total.T
    a = places(a)
    if not (delta.shape[1] == 1 or by_inner_products(delta, a)):
        return gram_of(share(delta, a), delta)

    def of_chunk(of_some: Array, theirs: Array) -> Array:
        both = jnp.einsum("xpj,yqj->xpyq", of_some, delta) * jnp.einsum("xpk,yqk->xpyq", theirs, a)
        return jnp.sum(both, axis=(1, 3))

    size = examples_at_a_time(a, a.shape[1] ** 2 * len(a))
    return concatenated(of_chunk, (delta, a), size)


def places(a: Array) -> Array:
    """(m, P, n) from (m, ..., n), in at least float32."""
    a = at_least_float32(a)
    return a[:, None] if a.ndim == 2 else jax.lax.collapse(a, 1, a.ndim - 1)


class SumsOfProducts(Layer):
    """A layer each of whose gradients is one sum of products: it says of what, and every example's share follows."""

    def products(self, params: Params, cache: Cache, delta: Array) -> Products:
        """(δ, a) for each leaf, (m, ..., n_out) and (m, ..., n_in); (δ, None) for a sum of δ alone."""
        raise NotImplementedError(f"{type(self).__name__} defines no products(params, cache, delta)")

    one_error: ClassVar[bool] = True
    """Whether the leaves have the same δ."""

    def factor_rows(self, params: Params, cache: Cache, delta: Array) -> tuple[dict[str, Array], Array] | None:
        products = self.products(params, cache, delta)
        error = next((delta for delta, a in products.values() if a is not None), None)
        if error is None or not self.one_error:
            return None
        error = places(error)
        ones = jnp.ones((len(error), 1), error.dtype)
        rows = {name: ones if a is None else jnp.mean(places(a), axis=1) for name, (_, a) in products.items()}
        return rows, jnp.sum(error, axis=1)

    def example_gradients(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        shares = self._of_products(share, params, cache, delta)
        return {name: g.astype(params[name].dtype) for name, g in shares.items()}

    def square_norms(self, params: Params, cache: Cache, delta: Array) -> Array:
        return added_up(list(self._of_products(share_square_norms, params, cache, delta).values()), delta)

    def second_moment(self, params: Params, cache: Cache, delta: Array) -> dict[str, Array]:
        return self._of_products(share_second_moment, params, cache, delta)

    def _gram(self, params: Params, cache: Cache, delta: Array) -> Array:
        return added_up(list(self._of_products(share_gram, params, cache, delta).values()), delta, 2)

    def _of_products(self, equation: Callable, params: Any, cache: Any, delta: Any) -> dict[str, Array]:
        return {name: equation(*of) for name, of in self.products(params, cache, delta).items()}
