"""Flax, in its linen modules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import fnnet as fn

from ...layers._composite import walk
from .. import plain
from ..problems import Problem
from .shared import cost_of, is_network, label, optax_calls, through


def flax(problem: Problem) -> dict[str, Callable[..., Any]]:
    from flax import linen as nn

    if not is_network(problem):
        raise NotImplementedError
    net, _, params, x, *_ = problem.inputs
    tied = isinstance(net, fn.Tied)

    class Net(nn.Module):
        @nn.compact
        def __call__(self, a):
            table: list[Any] = []

            def apply(place, layer, a):
                name = label(place)
                match layer:
                    case fn.Dense() if tied and not layer.bias and layer.activation is fn.softmax:
                        return table[0].attend(a)
                    case fn.Dense():
                        return nn.Dense(layer.n_out, use_bias=layer.bias, name=name)(a)
                    case fn.Conv():
                        size, stride = (plain.several(s, 2) for s in (layer.size, layer.stride))
                        pad = plain.padding(layer.padding, 2)
                        return nn.Conv(layer.features, size, stride, pad, use_bias=layer.bias, name=name)(a)
                    case fn.MaxPool():
                        size = plain.several(layer.size, 2)
                        return nn.max_pool(a, size, size)
                    case fn.LayerNorm():
                        return nn.LayerNorm(layer.eps, name=name)(a)
                    case fn.BatchNorm():
                        return nn.BatchNorm(False, momentum=1 - layer.momentum, epsilon=layer.eps, name=name)(a)
                    case fn.LSTM():
                        return nn.RNN(nn.OptimizedLSTMCell(layer.n, name=name))(a)
                    case fn.GRU():
                        return nn.RNN(nn.GRUCell(layer.n, name=name))(a)
                    case fn.Embedding():
                        table.append(nn.Embed(layer.tokens, layer.n, name=name))
                        return table[0](a)
                    case fn.Position():
                        return a + self.param(name, nn.initializers.zeros, a.shape[1:])
                    case fn.Attention():
                        q, k, v = jnp.split(a.reshape(*a.shape[:2], 3 * layer.heads, -1), 3, axis=2)
                        o = nn.dot_product_attention(q, k, v, mask=nn.make_causal_mask(a[..., 0]))
                        return o.reshape(*a.shape[:2], -1)
                    case fn.Flatten() | fn.GlobalMeanPool() | fn.LastStep() | fn.Identity():
                        return plain.EQUATIONS[type(layer)](layer, {}, a, None)
                raise NotImplementedError

            return through(net, a, apply)

    module, cost = Net(), cost_of(problem)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x[:1])
    leaves = {}
    for place, layer, p, _ in walk(net, params):
        if p and label(place) in shapes["params"]:
            leaves[label(place)] = flax_leaves(layer, p)
    rest = {
        name: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), tree)
        for name, tree in shapes.items()
        if name != "params"
    }

    def loss(variables, x, y):
        z, _ = module.apply({"params": variables, **rest}, x, mutable=list(rest))
        return cost(z, y)

    return optax_calls(problem, "Flax", leaves, loss)


def flax_leaves(layer: fn.Layer, p: Any) -> Any:
    match layer:
        case fn.Dense() | fn.Conv():
            kernel = p["w"].T if isinstance(layer, fn.Dense) else p["w"]
            return {"kernel": kernel} | ({"bias": p["b"]} if layer.bias else {})
        case fn.LayerNorm() | fn.BatchNorm():
            return {"scale": p["g"], "bias": p["b"]}
        case fn.Embedding():
            return {"embedding": p["w"]}
        case fn.Position():
            return p["w"]
        case fn.LSTM():
            w_x, w_h, b = (jnp.split(p[name], 4) for name in ("w_x", "w_h", "b"))
            inner = {f"i{gate}": {"kernel": w.T} for gate, w in zip("ifgo", w_x, strict=True)}
            return inner | {f"h{gate}": {"kernel": w.T, "bias": c} for gate, w, c in zip("ifgo", w_h, b, strict=True)}
        case fn.GRU():
            w_x, w_h, b = (jnp.split(p[name], 3) for name in ("w_x", "w_h", "b"))
            inner = {f"i{gate}": {"kernel": w.T, "bias": c} for gate, w, c in zip("rzn", w_x, b, strict=True)}
            return (
                inner
                | {f"h{gate}": {"kernel": w.T} for gate, w in zip("rzn", w_h, strict=True)}
                | {"hn": {"kernel": w_h[2].T, "bias": p["b_h"]}}
            )
    raise NotImplementedError
