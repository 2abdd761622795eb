"""Kronecker factors of the Gauss-Newton matrix, layer by layer.

Legend: a the inputs of a layer with a 1 for its bias (m, k), δ its errors (m, n) for a column s of a root of H at the output
(see `fnnet.curvature`). J_xᵀ s of the weights [w b] is δ aᵀ, so that their block of the matrix is
(1/m) Σ_x Σ_s (δ δᵀ) ⊗ (a aᵀ). The factors take the means apart: ≈ [(1/m) Σ_x Σ_s δ δᵀ] ⊗ [(1/m) Σ_x a aᵀ], exact at m = 1.

Source: Martens and Grosse (2015); Grosse and Martens (2016); Eschenhagen et al. (2023), "reduce", for weights in many places.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .backpropagation import counted
from .costs import Cost
from .curvature import check_samples, in_chunks, matched, over_root
from .given import check_batch
from .layers._layer import Layer, Params, run_forward
from .layers._swapped import unswapped
from .programs import program

__all__ = ["Factors", "kfac_factors"]


class Factors(NamedTuple):
    """The two factors of a layer's block of the Gauss-Newton matrix.

    The block of the matrix [w b] (n, k) is A ⊗ G with its columns one below the other, and G ⊗ A row by row, as ``ravel`` has
    it: ``jnp.kron(G, A)``.

    Attributes:
        A: (1/m) Σ_x a aᵀ (k, k), symmetric.
        G: (1/m) Σ_x Σ_s δ δᵀ (n, n), symmetric.
    """

    A: Array
    G: Array


def kfac_factors(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
    samples: int | None = None,
) -> Any:
    """The Kronecker factors of each layer with one error for all its weights, in training mode.

    Of `Dense`, a is (a_in, 1); of `RNN` and `LSTM`, (x_t, h_{t−1}, 1), the columns of [w_x w_h b]; of `Conv`, a window's
    entries in the order of w's rows, and 1. Where steps, positions or tied places share the weights, a is the mean over them
    and δ the sum, before the product. None for a layer without such a form: norms, embeddings, convolutions in groups, the
    GRU (whose w_h has errors of its own) and those without weights.

    Args:
        net: and ``cost``, ``params``, ``x``, ``y``, ``mask``, ``weights``: as of `hvp`.
        key: for layers that draw, and for samples.
        samples: None sums over the root's columns; else so many errors are drawn for each example, as in `ggn_diagonal`.

    Returns:
        `Factors` or None; of a composite a tuple with an entry for each part, as the errors of `backprop`.

    Raises:
        ValueError: as `ggn_diagonal`.

    Source: Martens and Grosse (2015).
    """
    samples = check_samples("kfac_factors", samples, key)
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    return program(_kfac_factors, unswapped(net), cost, samples=samples)(params, x, y, key, mask, weights)


def _kfac_factors(net, cost, params, x, y, key, mask, weights, *, samples) -> Any:
    def chunk(x, y, mask, weights, key):
        cache = run_forward(net, params, counted(x, weights), key=key, train=True, mask=mask)[1]
        z = matched("kfac_factors", net, cost, params, cache)

        def rows(delta: Array) -> Any:
            return net.factor_rows(params, cache, net.output_error(params, cache, delta))

        def of_errors(delta: Array) -> Any:
            return _each(lambda _, delta: second(delta), rows(delta))

        of_inputs = _each(lambda a, _: second(jnp.concatenate(list(a.values()), axis=1)), rows(jnp.zeros_like(z)))
        return of_inputs, over_root(of_errors, net, cost, z, y, key, weights, samples)

    of_inputs, of_errors = in_chunks(chunk, net, params, x, y, key, mask, weights)
    return jax.tree.map(Factors, of_inputs, of_errors)


def second(rows: Array) -> Array:
    """(1/m) Σ_x r rᵀ (k, k) from rows (m, k)."""
    return rows.T @ rows / len(rows)


def _each(f: Any, rows: Any) -> Any:
    """f(a, δ) of each layer's rows; None where there are none."""
    if rows is None:
        return None
    if isinstance(rows, tuple) and len(rows) == 2 and isinstance(rows[0], dict):
        return f(*rows)
    return tuple(_each(f, part) for part in rows)
