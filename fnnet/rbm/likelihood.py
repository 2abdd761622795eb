"""The likelihood: exact, by enumerating the states of the smaller side; estimated, by annealed importance sampling; and a
stochastic proxy.

Legend, parameters and E(v, h) as in `fnnet.rbm`. Source: Salakhutdinov and Murray (2008), annealed importance sampling; Besag
(1975), pseudo-likelihood.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from ..activations import at_least_float32, on_last_axis, sigmoid_function, wide_dtype
from ..forms import STATES
from ..given import whole
from ..layers._layer import as_array
from .contrast import like, statistics
from .machine import (
    Params,
    Visible,
    check_given,
    check_kind,
    check_machine,
    draw,
    free_energy,
    hidden_inputs,
    hidden_probabilities,
    jit,
    visible_energy,
    visible_inputs,
    visible_means,
)

__all__ = [
    "Estimate",
    "annealed_importance_sampling",
    "likelihood_gradient",
    "log_partition",
    "log_probability",
    "pseudo_likelihood",
]

ENUMERABLE = 20


@jit
def log_partition(params: Params, *, visible: Visible = "bernoulli") -> Array:
    """ln Z, the sum over all states of the smaller side (of the hidden units for Gaussian visible ones), in blocks.

    Raises:
        ValueError: for more than 20 units on that side: see `annealed_importance_sampling`.
    """
    machine, _ = _enumerable(params, visible)

    def block(total: Array, i: Array) -> tuple[Array, None]:
        terms = _log_sum_over_visible(machine, _states(machine, i), visible)
        return jnp.logaddexp(total, jax.nn.logsumexp(terms)), None

    return jax.lax.scan(block, jnp.full((), -jnp.inf, wide_dtype(params["w"].dtype)), _blocks(machine))[0]


@jit
def log_probability(params: Params, v: Array, log_z: Any, *, visible: Visible = "bernoulli") -> Array:
    """ln p(v) = −F(v) − ln Z in nats, with ln Z from `log_partition` or the ``log_partition`` of
    `annealed_importance_sampling`. Shape (m,).
    """
    if isinstance(log_z, Estimate):
        raise ValueError("rbm.log_probability: expected ln Z, got an Estimate; give its .log_partition")
    free = free_energy(params, v, visible=visible)
    return -free - jnp.asarray(log_z).astype(free.dtype)


@jit
def likelihood_gradient(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Params:
    """∂/∂θ of −(1/m) Σ_x ln p(v^x), exact: the positive `phase`, and the negative one by enumeration,
    ∂ln Z/∂w_ji = Σ_h p(h) h_j E[v_i | h], ∂ln Z/∂b_i = Σ_h p(h) E[v_i | h] (− b_i for Gaussian visible units), ∂ln Z/∂c_j =
    Σ_h p(h) h_j.

    Raises:
        ValueError: for more than 20 units on the smaller side.
    """
    machine, swapped = _enumerable(params, visible)
    log_z = log_partition(params, visible=visible)

    def block(total: Params, i: Array) -> tuple[Params, None]:
        h = _states(machine, i)
        share = jnp.exp(_log_sum_over_visible(machine, h, visible) - log_z)
        mean = visible_means(machine, h, visible=visible)
        w = jnp.einsum("x,xj,xi->ji", share, h, mean)
        return jax.tree.map(jnp.add, total, {"w": w, "b": share @ mean, "c": share @ h}), None

    start = jax.tree.map(lambda leaf: jnp.zeros_like(at_least_float32(leaf)), machine)
    model = jax.lax.scan(block, start, _blocks(machine))[0]
    if visible == "gaussian":
        model = {**model, "b": model["b"] - at_least_float32(params["b"])}
    model = _transposed(model) if swapped else model
    return like(params, jax.tree.map(jnp.add, statistics(params, v, hidden_probabilities(params, v), visible), model))


def _transposed(params: Params) -> Params:
    """The machine whose visible units are the other's hidden ones."""
    return {"w": params["w"].T, "b": params["c"], "c": params["b"]}


def _enumerable(params: Params, visible: Visible) -> tuple[Params, bool]:
    """The machine or its transpose, the hidden side being the one to enumerate, and whether it is the transpose."""
    check_kind(visible)
    check_machine(params)
    n_h, n_v = params["w"].shape
    swapped = visible == "bernoulli" and n_v < n_h
    if (n_v if swapped else n_h) > ENUMERABLE:
        side = "hidden" if visible == "gaussian" else "hidden or visible"
        raise ValueError(
            f"rbm: expected at most {ENUMERABLE} {side} units to enumerate, got {n_h} hidden and {n_v} visible ones; "
            f"estimate ln Z with rbm.annealed_importance_sampling"
        )
    return (_transposed(params) if swapped else params), swapped


def _blocks(machine: Params) -> Array:
    return jnp.arange(max(1, 2 ** machine["c"].shape[0] // STATES))


def _states(machine: Params, block: Array) -> Array:
    """The states of the hidden units whose numbers, read in binary, are block·`STATES` and those that follow."""
    n = machine["c"].shape[0]
    number = block * STATES + jnp.arange(min(STATES, 2**n))
    return ((number[:, None] >> jnp.arange(n)[None, :]) & 1).astype(wide_dtype(machine["w"].dtype))


def _log_sum_over_visible(params: Params, h: Array, visible: Visible) -> Array:
    """ln Σ_v e^{−E(v, h)} = c·h + Σ_i ln(1 + e^{b_i + (h w)_i}), or c·h + ½‖b + h w‖² − ½‖b‖² + (n_v/2) ln 2π."""
    z = visible_inputs(params, h)
    b, c = (on_last_axis(at_least_float32(params[name]), h.ndim) for name in ("b", "c"))
    if visible == "gaussian":
        own = jnp.sum(z**2 - b**2 + math.log(2 * math.pi), axis=-1) / 2
    else:
        own = jnp.sum(jax.nn.softplus(z), axis=-1)
    return own + jnp.sum(h * c, axis=-1)


class Estimate(NamedTuple):
    """What `annealed_importance_sampling` returns.

    Attributes:
        log_partition: ln of the mean of the chains' weights, an estimate of ln Z.
        standard_error: of ``log_partition``: the relative standard error of that mean. Near 1 it is not to be trusted, as few
            chains have most of the weight; take more ``betas``.
        log_weights: each chain's estimate of ln Z, (chains,).
    """

    log_partition: Array
    standard_error: Array
    log_weights: Array


def annealed_importance_sampling(
    params: Params,
    key: Array,
    *,
    chains: int = 100,
    betas: Any = 1000,
    base: Any = None,
    visible: Visible = "bernoulli",
) -> Estimate:
    """ln Z from chains that are warmed up from a machine without weights, whose ln Z is known.

    Between the two, for β from 0 to 1,
    p*_β(v) = e^{((1−β) a + β b)·v} Π_j (1 + e^{β(c_j + w_j·v)}), a the base's visible biases; for Gaussian visible units the
    first factor is e^{−(1−β)‖v−a‖²/2 − β‖v−b‖²/2}. A chain draws v_0 from p_0 and goes on by a Gibbs step that leaves p_β as
    it is, for each β; its weight is w = Π_k p*_{β_k}(v_{k−1}) / p*_{β_{k−1}}(v_{k−1}), and E[w] = Z/Z_0.

    Args:
        params: {w, b, c}.
        key: drives the sampling.
        chains: how many, run side by side.
        betas: how many steps of equal length β goes from 0 to 1 in, or the increasing sequence itself.
        base: visible biases (n_v,) of the machine without weights; zeros by default. The closer to the data the better:
            `data_biases` of the training data, or its mean for Gaussian visible units.
        visible: "bernoulli" or "gaussian".

    Raises:
        ValueError: for fewer than 2 chains, ``betas`` that do not lead from 0 to 1, or a base of another shape.

    Source: Neal (2001); Salakhutdinov and Murray (2008).
    """
    check_kind(visible)
    check_machine(params)
    check_given("rbm.annealed_importance_sampling", key)
    dtype, n_v = wide_dtype(params["w"].dtype), params["w"].shape[1]
    chains = whole("rbm.annealed_importance_sampling", "chains", chains, least=2)
    if np.ndim(betas) == 0:
        betas = np.linspace(0, 1, whole("rbm.annealed_importance_sampling", "betas", betas) + 1)
    leads = np.ndim(betas) == 1 and len(betas) > 1
    if leads and not isinstance(betas, Tracer):
        given = np.asarray(betas, np.float64)
        leads = given[0] == 0 and given[-1] == 1 and bool(np.all(np.diff(given) >= 0))
    if not leads:
        raise ValueError(
            f"rbm.annealed_importance_sampling: expected betas that increase from 0 to 1, got {betas}; give a number of "
            f"steps or a sequence such as np.linspace(0, 1, 1001)"
        )
    betas = as_array(betas).astype(dtype)
    base = as_array(np.zeros(n_v) if base is None else base).astype(dtype)
    if base.shape != (n_v,):
        raise ValueError(
            f"rbm.annealed_importance_sampling: expected base biases of shape ({n_v},), got {base.shape}; "
            f"rbm.data_biases(data) gives those of Bernoulli units"
        )
    return _annealed(params, key, betas, base, chains=chains, visible=visible)


@functools.partial(jax.jit, static_argnames=("chains", "visible"))
def _annealed(params: Params, key: Array, betas: Array, base: Array, *, chains: int, visible: Visible) -> Estimate:
    wide = jax.tree.map(at_least_float32, params)
    n_h, n_v = wide["w"].shape
    start, key = jax.random.split(key)

    def sample(key: Array, mean: Array) -> Array:
        if visible == "gaussian":
            return mean + jax.random.normal(key, mean.shape, mean.dtype)
        return draw(key, sigmoid_function(mean))

    def step(carry: tuple[Array, Array], now: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        v, log_w = carry
        before, beta, i = now
        z = hidden_inputs(wide, v)
        gain = jnp.sum(jax.nn.softplus(beta * z) - jax.nn.softplus(before * z), axis=-1)
        own = visible_energy(base, v, visible) - visible_energy(wide["b"], v, visible)
        hidden_key, visible_key = jax.random.split(jax.random.fold_in(key, i))
        h = draw(hidden_key, sigmoid_function(beta * z))
        v = sample(visible_key, base[None, :] + beta * (visible_inputs(wide, h) - base[None, :]))
        return (v, log_w + gain + (beta - before) * own), None

    v = sample(start, jnp.broadcast_to(base, (chains, n_v)))
    steps = betas[:-1], betas[1:], jnp.arange(len(betas) - 1)
    (_, log_w), _ = jax.lax.scan(step, (v, jnp.zeros(chains, v.dtype)), steps)
    own = n_v * math.log(2 * math.pi) / 2 if visible == "gaussian" else jnp.sum(jax.nn.softplus(base))
    log_w = log_w + n_h * math.log(2) + own
    ratio = jnp.exp(log_w - jnp.max(log_w))
    error = jnp.std(ratio, ddof=1) / (jnp.mean(ratio) * math.sqrt(chains))
    return Estimate(jnp.max(log_w) + jnp.log(jnp.mean(ratio)), error, log_w)


@jax.jit
def pseudo_likelihood(params: Params, key: Array, v: Array) -> Array:
    """A stochastic proxy of ln p(v) for Bernoulli visible units: Σ_i ln p(v_i | the other units), by one unit i drawn for
    each example, as n_v ln s(F(v with v_i flipped) − F(v)). Shapes (m, n_v) -> (m,), in nats. Source: Besag (1975).
    """
    return pseudo_likelihood_of(params, v, jax.random.randint(key, v.shape[:-1], 0, v.shape[-1]))


def pseudo_likelihood_of(params: Params, v: Array, unit: Array) -> Array:
    """`pseudo_likelihood` by the given unit of each example, (m,)."""
    n_v = v.shape[-1]
    v = at_least_float32(v)
    flip = jax.nn.one_hot(unit, n_v, dtype=v.dtype)
    other = v + flip * (1 - 2 * v)
    return n_v * jax.nn.log_sigmoid(free_energy(params, other) - free_energy(params, v))
