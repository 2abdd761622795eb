"""Equinox: one example at a time, channels first, under ``jax.vmap``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fnnet as fn

from ...layers._composite import walk
from .. import plain
from ..problems import Problem
from .shared import channels_first, channels_when_flattened, cost_of, is_network, label, optax_calls, through


def equinox(problem: Problem) -> dict[str, Callable[..., Any]]:
    import equinox as eqx

    if not is_network(problem):
        raise NotImplementedError
    net, _, params, x, *_ = problem.inputs
    channels = channels_when_flattened(net, x.shape[1:])
    modules = {label(place): equinox_module(layer, p, channels) for place, layer, p, _ in walk(net, params) if p}
    tied, cost = isinstance(net, fn.Tied), cost_of(problem)
    if tied:
        head = next(reversed(modules))
        modules.pop(head)
    pools = {2: eqx.nn.MaxPool2d(2, 2)}
    images = x.ndim == 4

    def of_one(modules, a):
        def apply(place, layer, a):
            module = modules.get(label(place))
            match layer:
                case fn.Dense() if tied and module is None:
                    return a @ modules[next(iter(modules))].weight.T
                case fn.Dense():
                    return jax.vmap(module)(a) if a.ndim == 2 else module(a)
                case fn.Conv():
                    return module(a)
                case fn.MaxPool() if layer.size in pools:
                    return pools[layer.size](a)
                case fn.LayerNorm() | fn.Embedding():
                    return jax.vmap(module)(a)
                case fn.Position():
                    return a + module
                case fn.LSTM() | fn.GRU():
                    zeros = jnp.zeros(layer.n, a.dtype)
                    start = (zeros, zeros) if isinstance(layer, fn.LSTM) else zeros

                    def step(state, a):
                        state = module(a, state)
                        return state, state[0] if isinstance(state, tuple) else state

                    return jax.lax.scan(step, start, a)[1]
                case fn.Attention():
                    q, k, v = jnp.split(a.reshape(len(a), 3 * layer.heads, -1), 3, axis=1)
                    o = jax.nn.dot_product_attention(q, k, v, is_causal=True)
                    return o.reshape(len(a), -1)
                case fn.Flatten():
                    return a.reshape(-1)
                case fn.LastStep():
                    return a[-1]
                case fn.Identity():
                    return a
            raise NotImplementedError

        return through(net, a, apply)

    def loss(modules, x, y):
        x = jnp.moveaxis(x, -1, 1) if images else x
        return cost(jax.vmap(of_one, in_axes=(None, 0))(modules, x), y)

    return optax_calls(problem, "Equinox", modules, loss)


def equinox_module(layer: fn.Layer, p: Any, images: tuple[int, ...]) -> Any:
    import equinox as eqx

    key = jax.random.key(0)

    def filled(module, **leaves):
        for name, leaf in leaves.items():
            module = eqx.tree_at(lambda m, name=name: getattr(m, name), module, leaf)
        return module

    match layer:
        case fn.Dense():
            module = eqx.nn.Linear(p["w"].shape[1], layer.n_out, layer.bias, key=key)
            return filled(module, weight=channels_first(p["w"], images), **({"bias": p["b"]} if layer.bias else {}))
        case fn.Conv():
            w = p["w"].transpose(3, 2, 0, 1)
            pad = plain.padding(layer.padding, 2)
            module = eqx.nn.Conv2d(w.shape[1], w.shape[0], w.shape[2:], layer.stride, pad, use_bias=layer.bias, key=key)
            return filled(module, weight=w, **({"bias": p["b"][:, None, None]} if layer.bias else {}))
        case fn.LayerNorm():
            return filled(eqx.nn.LayerNorm(p["g"].shape, layer.eps), weight=p["g"], bias=p["b"])
        case fn.Embedding():
            return eqx.nn.Embedding(weight=p["w"])
        case fn.Position():
            return p["w"]
        case fn.LSTM():
            cell = eqx.nn.LSTMCell(p["w_x"].shape[1], layer.n, key=key)
            return filled(cell, weight_ih=p["w_x"], weight_hh=p["w_h"], bias=p["b"])
        case fn.GRU():
            cell = eqx.nn.GRUCell(p["w_x"].shape[1], layer.n, key=key)
            return filled(cell, weight_ih=p["w_x"], weight_hh=p["w_h"], bias=p["b"], bias_n=p["b_h"])
    raise NotImplementedError
