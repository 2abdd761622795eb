"""The phases of the likelihood's gradient, and contrastive divergence by hand.

Legend, parameters and E(v, h) as in `fnnet.rbm`. Source: Hinton (2002), contrastive divergence; Tieleman (2008), persistent
chains.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..devices import Division
from ..given import whole
from ..layers._layer import as_array
from .machine import (
    Params,
    Visible,
    check_batch,
    check_data,
    check_given,
    check_kind,
    draw,
    gibbs_steps,
    hidden_probabilities,
    jit,
)
from .parts import summed

__all__ = ["Contrast", "Sparsity", "contrastive_divergence", "phase"]


@jit
def phase(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Params:
    """(1/m) Σ_x ∂F(v^x)/∂θ, like the parameters. With data it is the positive phase; with samples of the model, to be
    subtracted, the negative one.

    With p = p(h | v): ∂F/∂w_ji = −p_j v_i, ∂F/∂b_i = −v_i (b_i − v_i for Gaussian visible units), ∂F/∂c_j = −p_j.
    """
    return like(params, statistics(params, v, hidden_probabilities(params, v), visible))


def statistics(params: Params, v: Array, p: Array, visible: Visible, share: Array | None = None) -> Params:
    """`phase` for given p = p(h | v), at least in float32. ``share`` (m,) is what each row weighs, 1/m for None."""
    check_kind(visible)
    check_batch(v)
    v = v.astype(p.dtype)
    mean = mean_of_rows(v, share)
    total = 1 if share is None else jnp.sum(share)
    b = total * params["b"].astype(p.dtype) - mean if visible == "gaussian" else -mean
    weighed = p / jnp.asarray(v.shape[0], p.dtype) if share is None else p * share[:, None]
    return {"w": jnp.einsum("xj,xi->ji", -weighed, v), "b": b, "c": -mean_of_rows(p, share)}


def mean_of_rows(a: Array, share: Array | None) -> Array:
    """Σ_x share_x a_x; the mean for None. Shapes (m, n), (m,) -> (n,)."""
    return jnp.sum(a, axis=0) / jnp.asarray(a.shape[0], a.dtype) if share is None else share @ a


def like(params: Params, gradients: Params) -> Params:
    """Gradients in the dtypes of the parameters."""
    return jax.tree.map(lambda g, leaf: g.astype(leaf.dtype), gradients, params)


class Contrast(NamedTuple):
    """What `contrastive_divergence` returns.

    Attributes:
        gradients: like the parameters, to be descended.
        v: the negative phase's samples, k steps from where the chains started.
        h: hidden units drawn from p(h | v): give them as ``chains=`` the next time for persistent CD.
    """

    gradients: Params
    v: Array
    h: Array


def contrastive_divergence(
    params: Params, key: Array, v: Array, chains: Array | None = None, *, k: int = 1, visible: Visible = "bernoulli"
) -> Contrast:
    """CD-k by hand: ∂/∂θ of mean F(v) − mean F(v_k), where v_k is v after k steps of Gibbs sampling and held fixed.

    As k grows it tends to `likelihood_gradient`, the gradient of −(1/m) Σ ln p(v). With ``chains`` the steps start from
    these hidden units instead, however many: persistent CD.

    Args:
        params: {w, b, c}.
        key: drives the sampling.
        v: data (m, n_v), from 0 to 1 for Bernoulli visible units.
        chains: hidden units (any number, n_h), the ``h`` of the last call.
        k: steps of Gibbs sampling.
        visible: "bernoulli" or "gaussian".

    Raises:
        ValueError: for k < 1, an empty batch, other shapes, or data outside [0, 1] for Bernoulli visible units.

    Source: Hinton (2002); Tieleman (2008).
    """
    check_given("rbm.contrastive_divergence", key)
    steps = as_array(whole("rbm.contrastive_divergence", "k", k))
    v = check_data("rbm.contrastive_divergence", "v", params, v, visible)
    return contrast(params, key, v, chains, steps, visible=visible)


@jit
def contrast(params: Params, key: Array, v: Array, chains: Array | None, k: Any, *, visible: Visible) -> Contrast:
    of_batch = difference(params, key, v, chains, k, visible)
    return of_batch._replace(gradients=like(params, of_batch.gradients))


def difference(
    params: Params,
    key: Any,
    v: Array,
    chains: Array | None,
    k: Any,
    visible: Visible,
    shares: tuple[Array | None, Array | None] = (None, None),
) -> Contrast:
    """`contrastive_divergence` with gradients at least in float32; ``shares`` are what the rows of v and of the chains
    weigh."""
    first, key = jax.random.split(key)
    p = hidden_probabilities(params, v)
    end = gibbs_steps(params, key, draw(first, p) if chains is None else chains, k, visible=visible)
    positive = statistics(params, v, p, visible, shares[0])
    negative = statistics(params, end.v, end.p, visible, shares[1])
    return Contrast(jax.tree.map(jnp.subtract, positive, negative), end.v, end.h)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sparsity:
    """The penalty λ Σ_j (ρ − q_j)², q_j the mean of p(h_j = 1 | v) over the mini-batch: hidden units that are on for a share
    ρ of the data.

    Args:
        target: ρ, from 0 to 1.
        cost: λ.

    Raises:
        ValueError: for a target outside [0, 1] or a negative cost.

    Source: Lee, Ekanadham and Ng (2008).
    """

    target: Any
    cost: Any

    def __post_init__(self) -> None:
        if isinstance(self.target, int | float) and not 0 <= self.target <= 1:
            raise ValueError(f"Sparsity: expected a target from 0 to 1, a share of the data, got {self.target}")
        if isinstance(self.cost, int | float) and not self.cost >= 0:
            raise ValueError(f"Sparsity: expected a cost ≥ 0, got {self.cost}; a negative one rewards the distance")

    def value(self, params: Params, v: Array) -> Array:
        """λ Σ_j (ρ − q_j)²."""
        q = jnp.mean(hidden_probabilities(params, v), axis=0)
        return jnp.asarray(self.cost, q.dtype) * jnp.sum((jnp.asarray(self.target, q.dtype) - q) ** 2)

    def gradient(self, params: Params, v: Array) -> Params:
        """δ_xj = (2λ/m)(q_j − ρ) p_xj (1 − p_xj), p = p(h | v^x); then Σ_x δ_xj v_xi for w_ji, Σ_x δ_xj for c_j, 0 for b."""
        check_batch(v)
        return like(params, self.of_part(params, v, None, None))

    def of_part(self, params: Params, v: Array, over: Division | None, share: Array | None) -> Params:
        """The part of one device, at least in float32; q_j is summed over the devices."""
        p = hidden_probabilities(params, v)
        q = summed(over, mean_of_rows(p, share))
        weight = 2 / v.shape[0] if share is None else 2 * share[:, None]
        excess = jnp.asarray(self.cost, p.dtype) * (q - jnp.asarray(self.target, p.dtype))
        delta = weight * excess[None] * p * (1 - p)
        w = jnp.einsum("xj,xi->ji", delta, v.astype(p.dtype))
        return {"w": w, "b": jnp.zeros_like(params["b"], p.dtype), "c": jnp.sum(delta, axis=0)}
