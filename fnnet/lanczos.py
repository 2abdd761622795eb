"""The eigenvalues of a symmetric matrix that is known by its products only: Lanczos's algorithm, and the density of the whole
spectrum from it.

Legend: A (n, n) symmetric, V (k, n) orthonormal rows, T (k, k) tridiagonal with the diagonal α and β beside it, V A Vᵀ = T.

Source: Lanczos (1950); Golub and Meurant (1994) and Lin, Saad and Yang (2016) for the density; Ghorbani et al. (2019).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from .activations import at_least_float32, on_last_axis
from .costs import Cost
from .curvature import apart, gauss_newton_vector, hessian_vector
from .forms import varying
from .given import check_batch, whole
from .layers._layer import Layer, Params, batch_key
from .programs import program

__all__ = ["Spectrum", "lanczos", "spectrum"]


class Spectrum(NamedTuple):
    """What `spectrum` returns.

    Attributes:
        smallest: the smallest eigenvalue.
        largest: the largest.
        values: the Ritz values of all start vectors (starts · steps,), sorted; those at both ends are eigenvalues.
        weights: the share of the spectrum that each stands for; they add up to 1.
    """

    smallest: Array
    largest: Array
    values: Array
    weights: Array

    def density(self, grid: Any, width: Any = None) -> Array:
        """φ(t) = Σ_i weights_i N(t; values_i, width²), the spectrum's density, broadened.

        Args:
            grid: t, any shape.
            width: standard deviation of the bells; by default 1/100 of the distance from the smallest to the largest; to
                be given where those are equal.

        Returns:
            Shaped like grid.
        """
        grid = jnp.asarray(grid).astype(self.values.dtype)
        width = (self.largest - self.smallest) / 100 if width is None else jnp.asarray(width).astype(self.values.dtype)
        values, weights = (on_last_axis(a, grid.ndim + 1) for a in (self.values, self.weights))
        return jnp.sum(weights * jax.scipy.stats.norm.pdf(grid[..., None], values, width), axis=-1)


def lanczos(product: Callable[[Array], Array], start: Array, key: Array, steps: int) -> tuple[Array, Array]:
    """T of A in the Krylov space of the start vector: w = A v_i, α_i = v_i · w, β_i v_{i+1} = w − α_i v_i − β_{i−1} v_{i−1}.

    Each new vector is made orthogonal to *all* before it, twice: in floating point the three terms alone lose that, and
    eigenvalues come more than once. Where the space is exhausted (β = 0) it goes on from a random vector outside of it.

    Args:
        product: v (n,) -> A v.
        start: (n,), not 0.
        key: for the random vectors.
        steps: k, at most n.

    Returns:
        α (k,) and β (k − 1,).
    """
    eps = jnp.finfo(start.dtype).eps

    def outside(w: Array, vs: Array) -> Array:
        for _ in range(2):
            w = w - vs.T @ (vs @ w)
        return w

    def unit(w: Array) -> Array:
        return w / jnp.linalg.norm(w)

    def step(carry: tuple, i: Array) -> tuple[tuple, tuple]:
        vs, v, size = carry
        vs = vs.at[i].set(v)
        w = product(v)
        alpha = v @ w
        w = outside(w, vs)
        beta = jnp.linalg.norm(w)
        size = jnp.maximum(size, jnp.abs(alpha) + beta)
        over = beta <= 100 * eps * size
        fresh = outside(jax.random.normal(jax.random.fold_in(key, i), v.shape, v.dtype), vs)
        v = unit(outside(unit(jnp.where(over, fresh, w)), vs))
        return (vs, v, size), (alpha, jnp.where(over, 0, beta))

    carry = jnp.zeros((steps, *start.shape), start.dtype), unit(start), jnp.zeros((), start.dtype)
    carry = varying(carry, jax.eval_shape(product, start))
    _, (alpha, beta) = jax.lax.scan(step, carry, jnp.arange(steps))
    return alpha, beta[:-1]


def spectrum(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Any,
    steps: int = 64,
    starts: int = 1,
    of: Literal["hessian", "ggn"] = "hessian",
    mask: Any = None,
    weights: Any = None,
) -> Spectrum:
    """The extreme eigenvalues of the Hessian, or of the Gauss-Newton matrix, and the density of all of them.

    Lanczos's algorithm with full reorthogonalisation, a product (`hvp` or `ggnvp`) each step. The Ritz values, the
    eigenvalues of T, reach both ends of the spectrum first; with their weights, the squared first components of T's
    eigenvectors, they are a quadrature of the density as the start vector sees it; the mean over random starts is it.

    It keeps ``steps`` vectors like the parameters. As many steps as there are parameters give every eigenvalue.

    Args:
        net: and ``cost``, ``params``, ``x``, ``y``, ``mask``, ``weights``: as of `hvp`.
        key: draws the start vectors, and what the layers draw, the same at each step.
        steps: of Lanczos's algorithm; no more than parameters are taken.
        starts: random start vectors, which the density is a mean over.
        of: "hessian" or "ggn".

    Raises:
        ValueError: as `hvp` and `ggnvp`; also for no key, steps or starts below 1, or another matrix.

    Source: Lanczos (1950); Ghorbani, Krishnan and Xiao (2019).
    """
    if of not in ("hessian", "ggn"):
        raise ValueError(f"spectrum: expected of to be 'hessian' or 'ggn', got {of!r}")
    steps, starts = whole("spectrum", "steps", steps), whole("spectrum", "starts", starts)
    if key is None:
        raise ValueError("spectrum: expected a key to draw start vectors with, got None; give jax.random.key(seed)")
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    if not jax.tree.leaves(params):
        raise ValueError(
            f"spectrum: expected a network with parameters, got none in {net!r}; it has no second derivatives"
        )
    run = program(_spectrum, net, cost, steps=steps, starts=starts, of=of)
    return run(params, x, y, key, mask, weights)


def _spectrum(net, cost, params, x, y, key, mask, weights, *, steps, starts, of) -> Spectrum:
    flat, unflat = ravel_pytree(params)
    product = {"hessian": hessian_vector, "ggn": gauss_newton_vector}[of]
    wide = at_least_float32(flat).dtype
    steps = min(steps, flat.size)

    def times(v: Array) -> Array:
        product_of_tree = product(net, cost, params, x, y, unflat(v.astype(flat.dtype)), key, mask, weights)
        return ravel_pytree(product_of_tree)[0].astype(wide)

    def from_start(i: Array) -> tuple[Array, Array]:
        of_start, of_fresh = jax.random.split(batch_key(apart(key, i)))
        start = jax.random.normal(of_start, flat.shape, wide)
        alpha, beta = lanczos(times, start, of_fresh, steps)
        values, vectors = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta, 1) + jnp.diag(beta, -1))
        return values, jnp.square(vectors[0]) / starts

    values, shares = (a.ravel() for a in jax.lax.map(from_start, jnp.arange(starts)))
    order = jnp.argsort(values)
    values = values[order]
    return Spectrum(values[0], values[-1], values, shares[order])
