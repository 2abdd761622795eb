"""Restricted Boltzmann machines: energies, conditionals, Gibbs sampling by explicit keys, contrastive divergence by hand, and
the likelihood, exact or by annealed importance sampling.

Legend: m examples (axis 0), n_v visible and n_h hidden units; v visible (m, n_v), h hidden (m, n_h); s the logistic function.
Parameters are {w (n_h, n_v), b (n_v) of the visible, c (n_h) of the hidden units}. Hidden units are 0 or 1. Visible units are
0 or 1, and a probability in between where data is grey (``visible="bernoulli"``), or real with unit variance
(``visible="gaussian"``: standardise the data first).

E(v, h) = −b·v − c·h − h w vᵀ, with ½‖v − b‖² in place of −b·v for Gaussian visible units; p(v, h) = e^{−E(v, h)} / Z.

Sources: the notes' title "deep belief networks"; Smolensky (1986); Hinton (2002), contrastive divergence; Tieleman (2008),
persistent chains; Salakhutdinov and Murray (2008), annealed importance sampling; Hinton (2010), a practical guide.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from .activations import at_least_float32, on_last_axis, sigmoid_function, wide_dtype
from .checkpoints import fingerprint, keeping, resumed
from .given import whole
from .layers._layer import as_array, check_key
from .optimizers import Optimizer, apply_updates, is_transformation, traceable, updated
from .penalties import Penalty, check_penalty
from .programs import for_each_structure
from .training import Diverged, fold_in, initial, reporter

__all__ = [
    "Contrast",
    "Estimate",
    "History",
    "Sparsity",
    "State",
    "annealed_importance_sampling",
    "contrastive_divergence",
    "data_biases",
    "draw",
    "energy",
    "fit",
    "free_energy",
    "gibbs",
    "hidden_inputs",
    "hidden_probabilities",
    "init",
    "likelihood_gradient",
    "log_partition",
    "log_probability",
    "phase",
    "pseudo_likelihood",
    "reconstruct",
    "reconstruction_error",
    "sample_hidden",
    "sample_visible",
    "visible_inputs",
    "visible_means",
]

Params = dict[str, Array]
Visible = Literal["bernoulli", "gaussian"]
ENUMERABLE = 20
BLOCK = 2**12
MONITORED = 5000
WORSE = 2.0

_jit = functools.partial(jax.jit, static_argnames="visible")


@jax.transfer_guard("allow")  # its constants
def init(key: Array, n_visible: int, n_hidden: int, *, data: Any = None, std: float = 0.01) -> Params:
    """w ~ N(0, std²), c = 0, and b = 0, or the `data_biases` of ``data`` (for Bernoulli visible units).

    Raises:
        ValueError: for numbers of units that are not positive integers, or data of another width or outside [0, 1].
    """
    check_given("rbm.init", key)
    for name, value in (("n_visible", n_visible), ("n_hidden", n_hidden)):
        whole("rbm.init", name, value)
    dtype = jnp.result_type(float)
    b = jnp.zeros(n_visible, dtype) if data is None else data_biases(data).astype(dtype)
    if b.shape != (n_visible,):
        raise ValueError(
            f"rbm.init: expected data (m, {n_visible}) for n_visible={n_visible}, got {b.shape[0]} columns"
        )
    w = jnp.asarray(std, dtype) * jax.random.normal(key, (n_hidden, n_visible), dtype)
    return {"w": w, "b": b, "c": jnp.zeros(n_hidden, dtype)}


def data_biases(data: Any) -> Array:
    """ln(p/(1 − p)) for the mean p of each unit over the data, kept within [0.01, 0.99]: the visible biases of a machine
    without weights that fits 0/1 data best. Shapes (m, n_v) -> (n_v,). Source: Hinton (2010), section 8.

    Raises:
        ValueError: for an empty batch, or data outside [0, 1].
    """
    data = _check_values("rbm.data_biases", "data", data, "bernoulli")
    p = jnp.clip(jnp.mean(data, axis=0, dtype=jnp.result_type(float)), 0.01, 0.99)
    return jnp.log(p) - jnp.log1p(-p)


@jax.jit
def hidden_inputs(params: Params, v: Array) -> Array:
    """c_j + Σ_i w_ji v_i, at least in float32. Shapes (m, n_v) -> (m, n_h)."""
    _check_units(params, "v", v, 1)
    return _product("...i,ji->...j", v, params["w"]) + on_last_axis(at_least_float32(params["c"]), v.ndim)


@jax.jit
def visible_inputs(params: Params, h: Array) -> Array:
    """b_i + Σ_j h_j w_ji, at least in float32. Shapes (m, n_h) -> (m, n_v)."""
    _check_units(params, "h", h, 0)
    return _product("...j,ji->...i", h, params["w"]) + on_last_axis(at_least_float32(params["b"]), h.ndim)


def _product(equation: str, units: Array, w: Array) -> Array:
    return jnp.einsum(equation, units.astype(w.dtype), w, preferred_element_type=wide_dtype(w.dtype))


@_jit
def energy(params: Params, v: Array, h: Array, *, visible: Visible = "bernoulli") -> Array:
    """E(v, h) = −b·v − c·h − h w vᵀ in nats; the first term is ½‖v − b‖² for Gaussian visible units. Shape (m,)."""
    _check_units(params, "h", h, 0)
    z = hidden_inputs(params, v)
    return _visible_energy(params["b"], v, visible) - jnp.sum(z * h.astype(z.dtype), axis=-1)


@_jit
def free_energy(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Array:
    """F(v) = −ln Σ_h e^{−E(v, h)} = −b·v − Σ_j ln(1 + e^{c_j + w_j·v}) in nats; the first term is ½‖v − b‖² for Gaussian
    visible units. Shapes (m, n_v) -> (m,).
    """
    z = hidden_inputs(params, v)
    return _visible_energy(params["b"], v, visible) - jnp.sum(jax.nn.softplus(z), axis=-1)


def _visible_energy(b: Array, v: Array, visible: Visible) -> Array:
    """The part of E that is the visible units' own."""
    check_kind(visible)
    b = on_last_axis(at_least_float32(b), v.ndim)
    if visible == "gaussian":
        return jnp.sum((v.astype(b.dtype) - b) ** 2, axis=-1) / 2
    return -jnp.sum(b * v.astype(b.dtype), axis=-1)


@jax.jit
def hidden_probabilities(params: Params, v: Array) -> Array:
    """p(h_j = 1 | v) = s(c_j + w_j·v). Shapes (m, n_v) -> (m, n_h)."""
    return sigmoid_function(hidden_inputs(params, v))


@_jit
def visible_means(params: Params, h: Array, *, visible: Visible = "bernoulli") -> Array:
    """E[v_i | h] = s(b_i + Σ_j h_j w_ji), without s for Gaussian visible units. Shapes (m, n_h) -> (m, n_v)."""
    check_kind(visible)
    z = visible_inputs(params, h)
    return z if visible == "gaussian" else sigmoid_function(z)


@jax.jit
def draw(key: Array, p: Array) -> Array:
    """1 with probability p, else 0: a float32 uniform below p, the same with and without x64."""
    wide = at_least_float32(p)
    return (jax.random.uniform(key, p.shape, jnp.float32).astype(wide.dtype) < wide).astype(p.dtype)


@jax.jit
def sample_hidden(params: Params, key: Array, v: Array) -> Array:
    """h drawn from p(h | v). Shapes (m, n_v) -> (m, n_h)."""
    return draw(key, hidden_probabilities(params, v))


@_jit
def sample_visible(params: Params, key: Array, h: Array, *, visible: Visible = "bernoulli") -> Array:
    """v drawn from p(v | h). Shapes (m, n_h) -> (m, n_v)."""
    mean = visible_means(params, h, visible=visible)
    return mean + jax.random.normal(key, mean.shape, mean.dtype) if visible == "gaussian" else draw(key, mean)


@_jit
def reconstruct(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Array:
    """E[v | h] with h = p(h | v): up and down once, without sampling. Shapes (m, n_v) -> (m, n_v)."""
    return visible_means(params, hidden_probabilities(params, v), visible=visible)


class Step(NamedTuple):
    """Where a chain is: v, p(h | v) and h drawn from it."""

    v: Array
    p: Array
    h: Array


@_jit
def _steps(params: Params, key: Array, h: Array, k: Any, *, visible: Visible) -> Step:
    """k steps from h on: v ~ p(v | h), then h ~ p(h | v). The last one stands outside the loop, where XLA can fuse it."""

    def step(h: Array, i: Any) -> Step:
        visible_key, hidden_key = jax.random.split(jax.random.fold_in(key, i))
        v = jax.lax.optimization_barrier(sample_visible(params, visible_key, h, visible=visible))
        p = jax.lax.optimization_barrier(hidden_probabilities(params, v))
        return Step(v, p, draw(hidden_key, p))

    h, k = h.astype(wide_dtype(params["w"].dtype)), jnp.asarray(k).astype(jnp.int32)
    return step(jax.lax.fori_loop(0, k - 1, lambda i, h: step(h, i).h, h), k - 1)


def gibbs(params: Params, key: Array, v: Array, *, k: int = 1, visible: Visible = "bernoulli") -> Array:
    """v after k steps of Gibbs sampling: h ~ p(h | v), then v ~ p(v | h), k times. Shapes (m, n_v) -> (m, n_v).

    Raises:
        ValueError: for k < 1.
    """
    check_given("rbm.gibbs", key)
    return _gibbs(params, key, as_array(v), as_array(whole("rbm.gibbs", "k", k)), visible=visible)


@_jit
def _gibbs(params: Params, key: Array, v: Array, k: Any, *, visible: Visible) -> Array:
    first, key = jax.random.split(key)
    return _steps(params, key, sample_hidden(params, first, v), k, visible=visible).v


@_jit
def phase(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Params:
    """(1/m) Σ_x ∂F(v^x)/∂θ, like the parameters. With data it is the positive phase; with samples of the model, to be
    subtracted, the negative one.

    With p = p(h | v): ∂F/∂w_ji = −p_j v_i, ∂F/∂b_i = −v_i (b_i − v_i for Gaussian visible units), ∂F/∂c_j = −p_j.
    """
    return _like(params, _statistics(params, v, hidden_probabilities(params, v), visible))


def _statistics(params: Params, v: Array, p: Array, visible: Visible) -> Params:
    """`phase` for given p = p(h | v), at least in float32."""
    check_kind(visible)
    _check_batch(v)
    m, v = jnp.asarray(v.shape[0], p.dtype), v.astype(p.dtype)
    mean = jnp.sum(v, axis=0) / m
    b = params["b"].astype(p.dtype) - mean if visible == "gaussian" else -mean
    return {"w": jnp.einsum("xj,xi->ji", -p / m, v), "b": b, "c": -jnp.sum(p, axis=0) / m}


def _like(params: Params, gradients: Params) -> Params:
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
    v = _check_data("rbm.contrastive_divergence", "v", params, v, visible)
    return _contrast(params, key, v, chains, steps, visible=visible)


@_jit
def _contrast(params: Params, key: Array, v: Array, chains: Array | None, k: Any, *, visible: Visible) -> Contrast:
    first, key = jax.random.split(key)
    p = hidden_probabilities(params, v)
    end = _steps(params, key, draw(first, p) if chains is None else chains, k, visible=visible)
    positive, negative = _statistics(params, v, p, visible), _statistics(params, end.v, end.p, visible)
    return Contrast(_like(params, jax.tree.map(jnp.subtract, positive, negative)), end.v, end.h)


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
        _check_batch(v)
        p = hidden_probabilities(params, v)
        scale = jnp.asarray(self.cost, p.dtype) * (2 / v.shape[0])
        delta = scale * (jnp.mean(p, axis=0, keepdims=True) - jnp.asarray(self.target, p.dtype)) * p * (1 - p)
        w = jnp.einsum("xj,xi->ji", delta, v.astype(p.dtype))
        return _like(params, {"w": w, "b": jnp.zeros(params["b"].shape, p.dtype), "c": jnp.sum(delta, axis=0)})


@_jit
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


@_jit
def log_probability(params: Params, v: Array, log_z: Any, *, visible: Visible = "bernoulli") -> Array:
    """ln p(v) = −F(v) − ln Z in nats, with ln Z from `log_partition` or the ``log_partition`` of
    `annealed_importance_sampling`. Shape (m,).
    """
    if isinstance(log_z, Estimate):
        raise ValueError("rbm.log_probability: expected ln Z, got an Estimate; give its .log_partition")
    free = free_energy(params, v, visible=visible)
    return -free - jnp.asarray(log_z).astype(free.dtype)


@_jit
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
    return _like(params, jax.tree.map(jnp.add, _statistics(params, v, hidden_probabilities(params, v), visible), model))


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
    return jnp.arange(max(1, 2 ** machine["c"].shape[0] // BLOCK))


def _states(machine: Params, block: Array) -> Array:
    """The states of the hidden units whose numbers, read in binary, are block·BLOCK and those that follow."""
    n = machine["c"].shape[0]
    number = block * BLOCK + jnp.arange(min(BLOCK, 2**n))
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
        own = _visible_energy(base, v, visible) - _visible_energy(wide["b"], v, visible)
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
    n_v = v.shape[-1]
    v = at_least_float32(v)
    flip = jax.nn.one_hot(jax.random.randint(key, v.shape[:-1], 0, n_v), n_v, dtype=v.dtype)
    other = v + flip * (1 - 2 * v)
    return n_v * jax.nn.log_sigmoid(free_energy(params, other) - free_energy(params, v))


@_jit
def reconstruction_error(params: Params, v: Array, *, visible: Visible = "bernoulli") -> Array:
    """(1/m) Σ_x ‖v − E[v | h]‖² with h = p(h | v); a scalar."""
    _check_batch(v)
    back = reconstruct(params, v, visible=visible)
    return jnp.mean(jnp.sum((v.astype(back.dtype) - back) ** 2, axis=-1))


class State(NamedTuple):
    """All that a run needs to go on: give it to ``fit(..., resume=state)``, or to `fnnet.save` first.

    Attributes:
        params: the parameters after ``epoch`` epochs.
        optimizer: the optimiser's state.
        chains: hidden units of the persistent chains; None without any.
        key: the run's key.
        epoch: how many epochs are done.
        records: the monitors so far, by name.
        fingerprint: as in `fnnet.TrainingState`.
    """

    params: Params
    optimizer: Any
    chains: Array | None
    key: Any
    epoch: Array
    records: dict[str, Any]
    fingerprint: Array | None = None


FINGERPRINT = "data", "validation data", "visible", "batch_size", "penalty", "sparsity"


class History(NamedTuple):
    """Monitors after each epoch, as arrays with one entry per epoch, over up to 5,000 examples drawn once by the key.

    Attributes:
        reconstruction_error: see the function of this name.
        pseudo_likelihood: the mean of `pseudo_likelihood` in nats; None for Gaussian visible units.
        free_energy_gap: mean F(validation) − mean F(training) in nats; it grows when the machine overfits. None without
            validation data.
        state: to continue from; see `State`.
    """

    reconstruction_error: np.ndarray
    pseudo_likelihood: np.ndarray | None
    free_energy_gap: np.ndarray | None
    state: State


def fit(
    params: Params,
    data: Any,
    *,
    key: Any,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer,
    k: int | Callable[[int], int] = 1,
    persistent: bool = False,
    penalty: Penalty | None = None,
    sparsity: Sparsity | None = None,
    visible: Visible = "bernoulli",
    validation: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: State | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[Params, History]:
    """Train by contrastive divergence and return (params, history); each epoch is one compiled scan.

    Ctrl-C returns what the finished epochs gave; so does SIGTERM where there is a ``checkpoint``.

    Args:
        params: from `init`.
        data: (m, n_v), from 0 to 1 for Bernoulli visible units, standardised for Gaussian ones.
        key: drives shuffling and sampling; the same key gives the same run.
        epochs: passes over the data in all, those of ``resume`` included.
        batch_size: examples in a mini-batch, and persistent chains.
        optimizer: as in `fnnet.fit`: ``fn.sgd(0.05, momentum=0.9)``, ``fn.adam``, any optax transformation of gradients
            alone: contrastive divergence has no cost.
        k: steps of Gibbs sampling, or a function of the epoch (0, 1, 2, ...) that gives them.
        persistent: whether the chains of one mini-batch go on in the next (PCD-k) or start from its data (CD-k).
        penalty: ``fn.L2`` (weight decay), ``fn.L1`` or your own; N is the size of the training set.
        sparsity: a target for the hidden units' activity.
        visible: "bernoulli" or "gaussian".
        validation: held-out data, for the free-energy gap.
        checkpoint: as in `fnnet.fit`.
        every: how many epochs lie between two checkpoints.
        resume: ``history.state`` of an earlier run with the same arguments, or a path, as in `fnnet.fit`; ``params`` and
            ``key`` are then taken from it, and the result is bit for bit that of one uninterrupted run. ``epochs``, ``k`` and
            the optimizer's numbers may differ.
        progress: as in `fnnet.fit`.

    Raises:
        ValueError: for bad input, naming what was expected, what came and the remedy.
        fnnet.Diverged: when a parameter is no longer finite, or the machine models the data worse than one whose
            parameters are all 0, and twice as badly as it did before: in pseudo-likelihood, or in reconstruction error for
            Gaussian visible units.
    """
    states = training(
        params, data, key=key, epochs=epochs, batch_size=batch_size, optimizer=optimizer, k=k, persistent=persistent,
        penalty=penalty, sparsity=sparsity, visible=visible, validation=validation, checkpoint=checkpoint, resume=resume,
        progress=progress,
    )  # fmt: skip
    state, every = next(states), whole("rbm.fit", "every", every)
    with contextlib.suppress(KeyboardInterrupt), keeping(checkpoint, every) as keep:
        for state in states:
            keep(state)
            if keep.stopped():
                break
    return state.params, history_of(state)


def training(
    params, data, *, key, epochs, batch_size, optimizer, k: Any = 1, persistent=False, penalty=None, sparsity=None,
    visible: Visible = "bernoulli", validation=None, checkpoint=None, resume=None, progress=True, source=None,
) -> Iterator[State]:  # fmt: skip
    """The states of a run of `fit`: the first one, then one after each epoch. ``source`` is what the data and the validation
    data were computed from, where they were."""
    params = jax.tree.map(as_array, params)
    data = _check_data("rbm.fit", "data", params, data, visible)
    validation = None if validation is None else _check_data("rbm.fit", "validation", params, validation, visible)
    _check_run(key, optimizer, penalty, sparsity, resume)
    epochs, batch_size = whole("rbm.fit", "epochs", epochs, least=0), whole("rbm.fit", "batch_size", batch_size)

    optimizer = traceable(optimizer)
    names = ["reconstruction_error", "pseudo_likelihood", "free_energy_gap"]
    absent = {"pseudo_likelihood": visible == "gaussian", "free_energy_gap": validation is None}
    records = {name: np.zeros(0, jnp.result_type(float)) for name in names if not absent.get(name)}
    bottom = source or (data, validation)
    own = fingerprint(
        dict(zip(FINGERPRINT, bottom, strict=False)), visible=visible, batch_size=batch_size,
        penalty=penalty, sparsity=sparsity,
    )  # fmt: skip
    chains = _chains(jax.random.key(0) if key is None else key, params, data, batch_size) if persistent else None
    start = State(params, initial(optimizer, params), chains, key, jax.device_put(0), records, own)
    state = resumed("rbm.fit", resume, checkpoint, start, "sizes, optimizer, chains and monitors", FINGERPRINT)
    check_given("rbm.fit", state.key)
    data_key, validation_key, _, _, zero_key, proxy_key = _keys(state.key)
    watched = _some(data_key, data), None if validation is None else _some(validation_key, validation)
    epoch_of = functools.partial(_epoch, optimizer, penalty, sparsity, batch_size=batch_size, visible=visible)
    monitor = functools.partial(_monitor, visible=visible)
    judge = "pseudo_likelihood" if visible == "bernoulli" else "reconstruction_error"
    of_zero, _ = jax.device_get(monitor(_zeros_like(params), zero_key, watched[0]))
    yield state

    with reporter(progress, epochs, int(state.epoch)) as report:
        while int(state.epoch) < epochs:
            steps = whole("rbm.fit", "k", k(int(state.epoch)) if callable(k) else k)
            epoch = jax.device_put(np.asarray(int(state.epoch) + 1, state.epoch.dtype))
            epoch_key, monitor_key = (fold_in(of_run, epoch) for of_run in (state.key, proxy_key))
            given = state.params, state.optimizer, state.chains
            params, opt_state, chains = epoch_of(*given, data, epoch_key, jax.device_put(steps))
            measured, finite = jax.device_get(monitor(params, monitor_key, *watched))
            past = state.records[judge]
            if not len(past):
                past = jax.device_get(monitor(state.params, fold_in(proxy_key, jax.device_put(0)), *watched)[0][judge])
            with np.errstate(divide="ignore", invalid="ignore"):  # where a machine of zeros is right already
                ratio, best = float(measured[judge] / of_zero[judge]), float(np.min(past / of_zero[judge]))
            if not (finite and ratio <= max(1, WORSE * best)):
                raise _diverged(state, finite, ratio)
            records = {n: np.append(r, np.asarray(measured[n], r.dtype)) for n, r in state.records.items()}
            state = State(params, opt_state, chains, state.key, epoch, records, state.fingerprint)
            yield state
            report(int(state.epoch), {name: float(value) for name, value in measured.items()})


_zeros_like = jax.jit(functools.partial(jax.tree.map, jnp.zeros_like))


@jax.jit
def _keys(key: Array) -> tuple[Array, ...]:
    """The keys of a run: for the monitored examples, those of the validation data, the chains and the examples they start
    from, and the monitors at zero and after the epochs."""
    return tuple(jax.random.split(jax.random.fold_in(key, 0), 6))


@functools.partial(jax.jit, static_argnums=3)
def _chains(key: Array, params: Params, data: Array, number: int) -> Array:
    _, _, chain_key, rows_key, *_ = _keys(key)
    return sample_hidden(params, chain_key, data[jax.random.randint(rows_key, (number,), 0, len(data))])


@for_each_structure
def _epoch(optimizer, penalty, sparsity, params, opt_state, chains, data, key, k, *, batch_size, visible):
    """(params, optimiser state, chains) after one shuffled pass."""
    n = data.shape[0]
    shuffle_key, step_key = jax.random.split(key)
    order = jax.random.permutation(shuffle_key, n)

    def step(carry: tuple, batch: tuple[Array, Array]) -> tuple[tuple, None]:
        params, opt_state, chains = carry
        rows, i = batch
        v = data.at[rows].get(mode="promise_in_bounds", unique_indices=True)
        grads, _, h = _contrast(params, jax.random.fold_in(step_key, i), v, chains, k, visible=visible)
        if sparsity is not None:
            grads = jax.tree.map(jnp.add, grads, sparsity.gradient(params, v))
        if penalty is not None:
            grads = jax.tree.map(jnp.add, grads, penalty.gradient(params, n))
        updates, opt_state = updated("rbm.fit", optimizer, grads, opt_state, params)
        return (apply_updates(params, updates), opt_state, None if chains is None else h), None

    full, rest = divmod(n, batch_size)
    batches = order[: full * batch_size].reshape(full, batch_size), jnp.arange(full)
    carry, _ = jax.lax.scan(step, (params, opt_state, chains), batches)
    if rest:
        carry, _ = step(carry, (order[full * batch_size :], jnp.asarray(full)))
    return carry


@_jit
def _monitor(
    params: Params, key: Array, v: Array, validation: Array | None = None, *, visible: Visible
) -> tuple[dict[str, Array], Array]:
    """The monitors, and whether all parameters are finite."""
    measured = {"reconstruction_error": reconstruction_error(params, v, visible=visible)}
    if visible == "bernoulli":
        # One unit is drawn for each example, so a few examples alone say little.
        many = jnp.tile(v, (max(1, MONITORED // len(v)), 1))
        measured["pseudo_likelihood"] = jnp.mean(pseudo_likelihood(params, key, many))
    if validation is not None:
        free = functools.partial(free_energy, params, visible=visible)
        measured["free_energy_gap"] = jnp.mean(free(validation)) - jnp.mean(free(v))
    return measured, jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _diverged(state: State, finite: Any, ratio: float) -> Diverged:
    what = (
        f"it models the data {ratio:.3g} times worse than parameters of 0 do" if finite else "a parameter is not finite"
    )
    return Diverged(
        f"rbm.fit: training diverged in epoch {int(state.epoch) + 1}: {what}; lower the learning rate, or scale the data. "
        f".params and .history hold the last good epoch",
        int(state.epoch) + 1,
        state.params,
        history_of(state),
    )


def history_of(state: State) -> History:
    """The monitors up to a state, and the state."""
    monitors = jax.tree.map(np.asarray, {name: state.records.get(name) for name in History._fields if name != "state"})
    return History(**monitors, state=state)


def _some(key: Array, data: Array) -> Array:
    """All examples, or as many as are monitored, without replacement."""
    return data if len(data) <= MONITORED else _drawn(key, data, MONITORED)


@functools.partial(jax.jit, static_argnums=2)
def _drawn(key: Array, data: Array, number: int) -> Array:
    return data[jax.random.permutation(key, len(data))[:number]]


def _check_run(key, optimizer, penalty, sparsity, resume) -> None:
    check_penalty(penalty)
    check_key(key)
    if resume is None:
        check_given("rbm.fit", key)
    if not is_transformation(optimizer):
        got = type(optimizer).__name__
        raise ValueError(f"rbm.fit: expected an optimizer with init and update, such as fn.sgd(0.05), got {got}")
    if sparsity is not None and not isinstance(sparsity, Sparsity):
        raise ValueError(f"rbm.fit: expected sparsity=rbm.Sparsity(target, cost), got {sparsity!r}")


def check_given(function: str, key: Any) -> None:
    """Raise a ValueError unless it is a PRNG key."""
    if check_key(key) is None:
        raise ValueError(f"{function}: expected a key to draw with, got None; make one with jax.random.key(seed)")


def check_kind(visible: Any) -> None:
    """Raise a ValueError unless visible is one of the two kinds."""
    if visible not in ("bernoulli", "gaussian"):
        raise ValueError(f"rbm: expected visible='bernoulli' or 'gaussian', got {visible!r}")


def _check_batch(v: Any) -> None:
    if not hasattr(v, "ndim") or v.ndim != 2 or v.shape[0] == 0:
        raise ValueError(
            f"rbm: expected a batch (m, n_v) of at least one example, got {_shape(v)}; flatten images with "
            f"x.reshape(len(x), -1)"
        )


def _shape(a: Any) -> str:
    return f"shape {a.shape}" if hasattr(a, "shape") else type(a).__name__


def check_machine(params: Any, owner: str = "rbm") -> None:
    """Raise a ValueError unless params are {w (n_h, n_v), b (n_v), c (n_h)}."""
    is_dict = isinstance(params, dict)
    got = {name: _shape(leaf) for name, leaf in params.items()} if is_dict else type(params).__name__
    fits = is_dict and params.keys() == {"w", "b", "c"} and all(hasattr(leaf, "shape") for leaf in params.values())
    if not fits or params["w"].ndim != 2 or params["w"].shape != params["c"].shape + params["b"].shape:
        raise ValueError(
            f"{owner}: expected parameters {{w (n_h, n_v), b (n_v), c (n_h)}}, got {got}; make them with rbm.init"
        )
    for name, leaf in params.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{owner}: expected parameters of a float dtype, got {leaf.dtype} for {name}; convert it")


def _check_units(params: Any, name: str, units: Array, axis: int) -> None:
    """Raise a ValueError unless params are a machine's, and units as many as its w has along an axis."""
    check_machine(params)
    if not hasattr(units, "ndim") or units.ndim == 0 or units.shape[-1] != params["w"].shape[axis]:
        which = "hidden" if axis == 0 else "visible"
        raise ValueError(
            f"rbm: expected {name} with the machine's {params['w'].shape[axis]} {which} units on the last axis, got "
            f"{_shape(units)}; flatten images to (m, n_v) with x.reshape(len(x), -1)"
        )
    if jnp.issubdtype(units.dtype, jnp.complexfloating):
        raise ValueError(
            f"rbm: expected real {name}, got {units.dtype}; real and imaginary parts are units of their own"
        )


def _check_data(function: str, name: str, params: Params, data: Any, visible: Visible) -> Array:
    """Data as an array, or a ValueError where its shape or its values do not suit the machine."""
    check_kind(visible)
    data = as_array(data)
    _check_units(params, name, data, 1)
    return _check_values(function, name, data, visible)


_range = jax.jit(lambda data: (jnp.min(data), jnp.max(data)))
_all_finite = jax.jit(lambda data: jnp.all(jnp.isfinite(data)))


def _check_values(function: str, name: str, data: Any, visible: Visible) -> Array:
    data = as_array(data)
    _check_batch(data)
    if isinstance(data, Tracer):
        return data
    with jax.ensure_compile_time_eval():  # data that a function under jit closes over is concrete
        seen = jax.device_get((_all_finite if visible == "gaussian" else _range)(data))
    if visible == "gaussian":
        if not seen:
            raise ValueError(f"{function}: expected finite {name}, got NaN or infinity")
        return data
    low, high = map(float, seen)
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"{function}: expected {name} from 0 to 1 for Bernoulli visible units, got values from {low:.4g} to {high:.4g}; "
            f"scale it, or standardise it and use visible='gaussian'"
        )
    return data
