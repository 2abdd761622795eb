"""Second derivatives of a cost by the parameters: products with the Hessian and with the Gauss-Newton matrix, diagonals and
Kronecker factors, all from the hand-written backward pass.

Legend: m examples, θ the parameters, C = (1/m) Σ_x C_x, z the weighted input of the last layer, J_x = ∂z/∂θ of an example,
H_x = ∂²C_x/∂z∂z, δ the error. The Hessian is ∂²C/∂θ∂θ; the Gauss-Newton matrix G = (1/m) Σ_x J_xᵀ H_x J_x leaves out what the
network's own second derivatives add, and is never negative. For a matched cost it is the Fisher information of the model.

An error of the last layer that is a column s of a root of H_x (S Sᵀ = H_x) comes back as J_xᵀ s, one hand-written backward
pass. So what G is asked for here is a sum over such columns, or a mean over errors that are drawn with E[δ δᵀ] = H_x.

Source: docs/curvature.md; Pearlmutter (1994); Schraudolph (2002); Martens (2014); Dangel et al. (2020).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .activations import at_least_float32
from .backpropagation import counted, errors_of, value_and_grad
from .chunks import chunk_size, mean_over_chunks
from .costs import Cost
from .given import check_batch, check_like, whole
from .layers._layer import ExampleKeys, Layer, Params, batch_key, run_forward
from .layers._swapped import unswapped
from .penalties import Penalty, check_penalty
from .programs import placed, program

__all__ = ["fisher_diagonal", "ggn_diagonal", "ggnvp", "hutchinson_diagonal", "hvp"]


def hvp(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    v: Params,
    *,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
    penalty: Penalty | None = None,
    n_examples: Any = None,
) -> Params:
    """H v with the Hessian H = ∂²C/∂θ∂θ, in training mode: the tangent of the hand-written gradient along v.

    H v = d/dε ∂C/∂θ (θ + ε v) at ε = 0. It costs two to three gradients, and H is never there.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: θ, from ``net.init``.
        x: inputs (m, ...).
        y: targets, as of `backprop`.
        v: a pytree like the parameters.
        key: for layers that draw random numbers; as ``mask`` and ``weights``, see `backprop`.
        mask: see key.
        weights: see key.
        penalty: whose Hessian is added.
        n_examples: N of the penalty; by default the batch size.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: for bad input, or a v that is not like the parameters.

    Source: Pearlmutter (1994).
    """
    check_penalty(penalty)
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    v = _like("hvp", params, v)
    about_penalty = jax.tree.map(placed, (penalty, n_examples))
    return program(hessian_vector, net, cost)(params, x, y, v, key, mask, weights, *about_penalty)


def hessian_vector(
    net: Layer, cost: Cost, params: Params, x: Array, y: Array, v: Params, key: Any, mask: Any, weights: Any,
    penalty: Penalty | None = None, n_examples: Any = None,
) -> Params:  # fmt: skip
    gradient = value_and_grad(unswapped(net), cost, penalty=penalty, n_examples=n_examples)

    def of(params: Params) -> Params:
        return gradient(params, x, y, key=key, mask=mask, weights=weights)[1]

    return jax.jvp(of, (params,), (v,))[1]


def ggnvp(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    v: Params,
    *,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
) -> Params:
    """G v with the Gauss-Newton matrix G = (1/m) Σ_x J_xᵀ H_x J_x, in training mode.

    J v is the tangent of the forward pass; H_x (J v) an error of the last layer, which the hand-written pass takes back.

    The arguments are those of `hvp`.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: for bad input, a v that is not like the parameters, or a cost that is not matched to the last layer.

    Source: Schraudolph (2002).
    """
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    v = _like("ggnvp", params, v)
    return program(gauss_newton_vector, net, cost)(params, x, y, v, key, mask, weights)


def gauss_newton_vector(
    net: Layer, cost: Cost, params: Params, x: Array, y: Array, v: Params, key: Any, mask: Any, weights: Any,
    state: Any = None,
) -> Params:  # fmt: skip
    net = unswapped(net)

    def chunk(x, y, mask, weights, state, key):
        def output(params: Params) -> tuple[Array, Any]:
            given = {"key": key, "train": True, "mask": mask, "state": state}
            cache = run_forward(net, params, counted(x, weights), **given)[1]
            return matched("ggnvp", net, cost, params, cache), cache

        z, dz, cache = jax.jvp(output, (params,), (v,), has_aux=True)
        delta = cost.hessian_product(z, y, dz, weights=weights)
        return net.output_backward(params, cache, delta)[1]

    size = chunk_size(net, params, x, key, mask, "auto")
    return _like_params(mean_over_chunks(chunk, (x, y, mask, weights, state), key, size), params)


def ggn_diagonal(
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
) -> Params:
    """The diagonal of G, in training mode: (1/m) Σ_x Σ_s (J_xᵀ s)² over the columns s of a root of H_x.

    Each column is one backward pass; they run one at a time. There are n of them for n outputs, n T for outputs (m, T, n),
    whose steps share the weights, and as many for each example where layers mix examples (batch normalisation). With
    ``samples`` it is the mean over drawn errors, one pass each for the whole batch: unbiased, whatever T is.

    The arguments are those of `hvp`, and

    Args:
        samples: how many errors to draw for each example; None is exact. Then a key is needed.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: as `ggnvp`; also for samples without a key or below 1.

    Source: Martens (2014); Dangel et al. (2020).
    """
    samples = check_samples("ggn_diagonal", samples, key)
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    return program(_ggn_diagonal, unswapped(net), cost, samples=samples)(params, x, y, key, mask, weights)


def _ggn_diagonal(net, cost, params, x, y, key, mask, weights, *, samples) -> Params:
    def chunk(x, y, mask, weights, key):
        cache = run_forward(net, params, counted(x, weights), key=key, train=True, mask=mask)[1]
        z = matched("ggn_diagonal", net, cost, params, cache)

        def squares(delta: Array) -> Params:
            return _squares(net, params, cache, net.output_error(params, cache, delta))

        return over_root(squares, net, cost, z, y, key, weights, samples)

    return _like_params(in_chunks(chunk, net, params, x, y, key, mask, weights), params)


def fisher_diagonal(
    net: Layer, cost: Cost, params: Params, x: Any, y: Any, *, key: Any = None, mask: Any = None, weights: Any = None
) -> Params:
    """The diagonal of the empirical Fisher matrix, (1/m) Σ_x (∂C_x/∂θ)², in training mode: one backward pass.

    The targets are those that are given. The Fisher matrix of the model, which is G for a matched cost, takes the mean over
    targets that the model draws: `ggn_diagonal`. The two agree where the targets are as the model would draw them, not in
    general: where the targets are fitted the empirical one vanishes, while G stays.

    The arguments are those of `hvp`.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: for bad input.

    Source: Kunstner, Balles and Hennig (2019).
    """
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    return program(_fisher_diagonal, unswapped(net), cost)(params, x, y, key, mask, weights)


def _fisher_diagonal(net, cost, params, x, y, key, mask, weights) -> Params:
    def chunk(x, y, mask, weights, key):
        a, cache = run_forward(net, params, counted(x, weights), key=key, train=True, mask=mask)
        if net.independent:
            return _squares(net, params, cache, errors_of(net, cost, params, a, cache, y, weights, params))

        def of_example(i: Array) -> Params:
            alone = (jnp.arange(len(x)) == i).astype(a.dtype)
            own = alone if weights is None else weights * alone.reshape(-1, *(1,) * (weights.ndim - 1))
            return _squares(net, params, cache, errors_of(net, cost, params, a, cache, y, own, params))

        return _summed(of_example, len(x))

    return _like_params(in_chunks(chunk, net, params, x, y, key, mask, weights), params)


def hutchinson_diagonal(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Any,
    samples: int,
    mask: Any = None,
    weights: Any = None,
) -> Params:
    """An estimate of the Hessian's diagonal, the mean of v ⊙ H v over random signs v: unbiased, the variance of entry i is
    Σ_{j≠i} H_ij² / samples.

    The arguments are those of `hvp`, and

    Args:
        key: the signs are drawn from it, and what the layers draw.
        samples: how many v.

    Returns:
        A pytree like the parameters.

    Raises:
        ValueError: as `hvp`; also for no key, or samples below 1.

    Source: Bekas, Kokiopoulou and Saad (2007).
    """
    samples = check_samples("hutchinson_diagonal", whole("hutchinson_diagonal", "samples", samples), key)
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    return program(_hutchinson_diagonal, net, cost, samples=samples)(params, x, y, key, mask, weights)


def _hutchinson_diagonal(net, cost, params, x, y, key, mask, weights, *, samples) -> Params:
    def one(key_of_signs: Array) -> Params:
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(batch_key(key_of_signs), len(leaves))
        signs = (jax.random.rademacher(k, jnp.shape(p), p.dtype) for k, p in zip(keys, leaves, strict=True))
        v = structure.unflatten(signs)
        return jax.tree.map(jnp.multiply, v, hessian_vector(net, cost, params, x, y, v, key, mask, weights))

    return _mean(lambda i: one(apart(key, i)), samples)


APART = 2**31 - 1
"""Folded into a key for draws of one's own, beside those of the layers."""


def apart(key: Any, i: Any) -> Any:
    """The i-th key for draws beside those that the layers make from this one."""
    if isinstance(key, ExampleKeys):
        return ExampleKeys(apart(key.key, i), key.index)
    return jax.random.fold_in(jax.random.fold_in(key, APART), i)


def over_root(
    f: Callable[[Array], Any], net: Layer, cost: Cost, z: Array, y: Array, key: Any, weights: Any, samples: int | None
) -> Any:
    """Σ_s f(s) over the columns of a root of H, each an error δ^L shaped like z; or the mean of f over drawn ones."""
    if samples is not None:
        return _mean(lambda i: f(cost.sampled_error(z, apart(key, i), y=y, weights=weights)), samples)
    axes = range(1 if net.independent else 0, z.ndim - 1)
    places = [z.shape[axis] for axis in axes]
    n = z.shape[-1]

    def column(i: Array) -> Any:
        place, k = jnp.divmod(i, n)
        s = cost.root_column(z, y, k, weights=weights)
        for axis, index in zip(axes, jnp.unravel_index(place, places) if places else (), strict=True):
            here = jnp.arange(z.shape[axis]) == index
            s = jnp.where(here.reshape([-1 if a == axis else 1 for a in range(z.ndim)]), s, 0)
        return f(s)

    return _summed(column, n * math.prod(places))


def _summed(f: Callable[[Array], Any], n: int) -> Any:
    """Σ_i f(i) for i < n, one at a time."""
    zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(f, jax.ShapeDtypeStruct((), jnp.result_type(int))))
    return jax.lax.fori_loop(0, n, lambda i, total: jax.tree.map(jnp.add, total, f(i)), zeros)


def _mean(f: Callable[[Array], Any], n: int) -> Any:
    return jax.tree.map(lambda total: total / n, _summed(f, n))


def _squares(net: Layer, params: Params, cache: Any, delta: Any) -> Params:
    """(1/m) Σ_x g_x² of the examples' gradients; where examples mix, of the one gradient m g of all of them, (1/m) (m g)²."""
    if net.independent:
        return net.second_moment(params, cache, delta)
    m = len(jax.tree.leaves(delta)[0])
    return jax.tree.map(lambda g: m * jnp.square(at_least_float32(g)), net.gradients(params, cache, delta))


def in_chunks(
    chunk: Callable, net: Layer, params: Params, x: Array, y: Array, key: Any, mask: Any, weights: Any
) -> Any:
    """chunk(x, y, mask, weights, key), a mean over examples, of the whole batch, in pieces where that pays."""
    size = chunk_size(net, params, x, key, mask, "auto")
    return mean_over_chunks(chunk, (x, y, mask, weights), key, size)


def matched(function: str, net: Layer, cost: Cost, params: Params, cache: Any) -> Array:
    """z of the last layer, or a ValueError unless its activation is the cost's matched one."""
    output = net.output(params, cache)
    if cost.matches(output):
        return output[1]  # pyright: ignore[reportOptionalSubscript]
    got = "a last layer without an activation" if output is None else f"the activation {output[0]}"
    if cost.matched is None:
        raise ValueError(f"{function}: expected a cost with a matched activation, got {cost}, which has none")
    raise ValueError(
        f"{function}: expected {cost} after {cost.matched}, the pair of which H = ∂²C/∂z∂z is known, got {got}; end the "
        f"network with fn.Dense(n_out, fn.{cost.matched})"
    )


def _like(function: str, params: Params, v: Any) -> Params:
    """v in the structure and the dtypes of the parameters, or a ValueError where it is not like them."""
    check_like(f"{function}: v", params, v, "give a pytree like the parameters, such as a gradient")
    leaves, structure = jax.tree.flatten(params)
    vs = jax.tree.leaves(v)
    return structure.unflatten(jnp.asarray(placed(u), jnp.result_type(p)) for u, p in zip(vs, leaves, strict=True))


def _like_params(tree: Params, params: Params) -> Params:
    """The tree in the structure and the dtypes of the parameters."""
    leaves, structure = jax.tree.flatten(params)
    return structure.unflatten(g.astype(p.dtype) for g, p in zip(jax.tree.leaves(tree), leaves, strict=True))


def check_samples(function: str, samples: Any, key: Any) -> Any:
    if samples is None:
        return None
    samples = whole(function, "samples", samples)
    if key is None:
        raise ValueError(
            f"{function}: expected a key to draw {samples} samples with, got None; give jax.random.key(seed)"
        )
    return samples
