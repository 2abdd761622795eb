"""The composed backward passes of a network in one program: in two passes, in one, and as ``fit`` runs it, by its twin for
loops and in two halves where it is independent."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..backpropagation import counted, errors_of
from ..costs import Cost
from ..head import from_cost
from ..layers._layer import ExampleKeys, Layer, Params, run_forward
from .sides import Given, Plain, Two, compiled_once, is_float

WAYS = ("in two passes", "in one pass", "as fit runs it")


@compiled_once(fixed=4)
def composed(plain: Plain, cost: Cost | None, twin: Layer, halves: bool, given: Given, u: Array) -> dict[str, Two]:
    """m C, or ⟨u, a⟩ without a cost, and its derivatives with respect to parameters and inputs, in each of `WAYS`."""
    net, (params, x, y, key, mask, weights) = plain.layer, given
    x = counted(x, weights)
    m = x.shape[0]

    def value(params: Params, moving: Any) -> Array:
        a, cache = run_forward(net, params, x if moving is None else moving, key=key, train=True, mask=mask)
        if cost is None:
            return jnp.sum(u * a)
        return m * cost(a, y, weights=weights, output=net.output(params, cache))

    total, pull_back = jax.vjp(plain.of(value), params, x if is_float(x) else None)
    d_params, dx = pull_back(jnp.ones_like(total))
    right = {"value": total, "params": d_params, "x": dx}

    def two_passes(net: Layer, a: Array, cache: Any, y: Any, weights: Any, u: Array) -> tuple[Any, Any, Any]:
        if cost is None:
            errors, value = net.error(params, cache, u), jnp.sum(u * a) / len(a)
        else:
            errors = errors_of(net, cost, params, a, cache, y, weights, params)
            value = cost(a, y, weights=weights, output=net.output(params, cache))
        return value, net._propagated(params, cache, errors), net.gradients(params, cache, errors)

    def one_pass(net: Layer, a: Array, cache: Any, y: Any, weights: Any, u: Array) -> tuple[Any, Any, Any]:
        if cost is None:
            return jnp.sum(u * a) / len(a), *net.backward(params, cache, u)
        return from_cost(net, cost, params, a, cache, y, weights)

    def by_hand(net: Layer, way: Callable, batch: tuple, key: Any) -> dict[str, Any]:
        x, y, mask, weights, u = batch
        a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
        value, da_in, gradients = way(net, a, cache, y, weights, u)
        sums = jax.tree.map(lambda g: x.shape[0] * g, gradients)
        return {"value": x.shape[0] * value, "params": sums, "x": None if dx is None else da_in}

    batch = x, y, mask, weights, u
    manual = [by_hand(net, two_passes, batch, key), by_hand(net, one_pass, batch, key)]
    if halves:
        manual.append(in_halves(lambda batch, key: by_hand(twin, one_pass, batch, key), batch, key, m, ("x",)))
    elif twin != net:
        manual.append(by_hand(twin, one_pass, batch, key))
    return {way: Two(found, right) for way, found in zip(WAYS, manual, strict=False)}


def in_halves(f: Callable, batch: Any, key: Any, m: int, of_examples: tuple[str, ...]) -> dict[str, Any]:
    """f of the two halves of a batch, as a batch is run in chunks: entries of examples put together, others added up."""

    def part(start: int, end: int) -> dict[str, Any]:
        keys = None if key is None else ExampleKeys(key, jnp.arange(start, end))
        return f(jax.tree.map(lambda a: a[start:end], batch), keys)

    first, second = part(0, m // 2), part(m // 2, m)
    return {
        name: jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first[name], second[name])
        if name in of_examples
        else jax.tree.map(jnp.add, first[name], second[name])
        for name in first
    }


@compiled_once(fixed=1)
def claimed(layer: Layer, params: Params, a_in: Array, key: Any, mask: Any, da: Array) -> dict[str, Two]:
    """What a layer gives for two halves of the batch, and for the whole."""

    def run(batch: tuple, key: Any) -> dict[str, Any]:
        a_in, mask, da = batch
        a_out, cache = run_forward(layer, params, a_in, key=key, train=True, mask=mask)
        da_in, gradients = layer.backward(params, cache, da)
        return {"output": a_out, "∂C/∂a_in": da_in, "gradient": jax.tree.map(lambda g: len(a_in) * g, gradients)}

    batch, m = (a_in, mask, da), a_in.shape[0]
    halves, whole = in_halves(run, batch, key, m, ("output", "∂C/∂a_in")), run(batch, key)
    return {name: Two(halves[name], whole[name]) for name in whole}
