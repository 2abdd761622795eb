"""The same networks and steps in other libraries, and parameters: Flax and Equinox with optax, PyTorch, scikit-learn.

Each library's function takes a problem's inputs and gives, for a network that it is written for, its calls by kind. A library
that is not installed, and a network that one has no layers for, are left out.
"""

import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn

from ..layers._composite import walk
from . import plain
from .cases import GRADIENT, RATE, STEP, Problem

Calls = dict[str, Callable[[], Any]]
TOLERANCE = 1e-3
"""Of a peer's cost and first step in float32, relative to fnnet's."""


class Unknown(Exception):
    """The library's side of this layer is not written."""


def peers(problem: Problem) -> dict[str, dict[str, Callable[[], Any]]]:
    """kind: name: the call, of each library that is installed and computes the same."""
    found: dict[str, dict[str, Callable[[], Any]]] = {GRADIENT: {}, STEP: {}}
    if problem.inputs is None:
        return found
    for name, needs, calls in LIBRARIES:
        if all(importlib.util.find_spec(module) for module in needs):
            try:
                for kind, call in calls(problem).items():
                    found[kind][name] = call
            except Unknown:
                continue
    return found


def reference(problem: Problem) -> float:
    """The cost at the start, by hand."""
    hand = next(iter(problem.kinds[GRADIENT].values()))
    return float(jax.jit(hand.run)(*hand.given)[0])


def check(problem: Problem, name: str, cost: Any) -> None:
    """Raise a ValueError unless the peer's cost at the start is fnnet's."""
    own = reference(problem)
    if not abs(float(cost) - own) <= TOLERANCE * abs(own):
        raise ValueError(f"bench: expected {name} to compute the cost {own:.6g}, got {float(cost):.6g}")


def is_network(problem: Problem) -> bool:
    return isinstance(problem.inputs[0], fn.Network | fn.Tied)


# %% What Flax and Equinox share: a network as a forward pass over modules by place


def through(layer: fn.Layer, a: Any, apply: Callable, place: tuple[int, ...] = (), last: bool = True) -> Any:
    """The weighted input of the last layer, each layer at the bottom run by ``apply(place, layer, a)``."""
    match layer:
        case fn.Tied():
            return through(layer.net, a, apply, place, last)
        case fn.Network():
            for i, part in enumerate(layer):
                a = through(part, a, apply, (*place, i), last and i == len(layer) - 1)
            return a
        case fn.Parallel() if layer.join is fn.add:
            outputs = [through(part, a, apply, (*place, i), False) for i, part in enumerate(layer.layers)]
            return sum(outputs[1:], outputs[0])
    a = apply(place, layer, a)
    follows = isinstance(layer, fn.Dense | fn.Conv) and not last
    return plain.ACTIVATIONS[layer.activation](a) if follows else a


def cost_of(problem: Problem) -> Callable[[Any, Any], Any]:
    """(z, y) -> C, as `fnnet.bench.plain` has it."""
    net, cost, *_ = problem.inputs
    activation = (net.net if isinstance(net, fn.Tied) else net)[-1].activation
    terms = plain.TERMS[cost, activation]
    return lambda z, y: jnp.sum(terms(z, y)) / len(y)


def optax_calls(problem: Problem, name: str, variables: Any, loss: Callable) -> dict[str, Callable]:
    """Value and gradient, and steps by ``optax.sgd`` in a compiled scan, of loss(variables, x, y)."""
    import optax

    _, _, _, x, y, m, _ = problem.inputs
    optimizer = optax.sgd(RATE)
    rows = next(iter(problem.kinds[STEP].values())).given[3]

    def run(variables, x, y, rows):
        def step(carry, rows):
            variables, state = carry
            value, gradients = jax.value_and_grad(loss)(variables, x[rows], y[rows])
            updates, state = optimizer.update(gradients, state, variables)
            return (optax.apply_updates(variables, updates), state), value

        return jax.lax.scan(step, (variables, optimizer.init(variables)), rows)

    gradient = jax.jit(jax.value_and_grad(loss)).lower(variables, x[:m], y[:m]).compile()
    scanned = jax.jit(run).lower(variables, x, y, rows).compile()
    check(problem, name, gradient(variables, x[:m], y[:m])[0])
    return {GRADIENT: lambda: gradient(variables, x[:m], y[:m]), STEP: lambda: scanned(variables, x, y, rows)}


def label(place: tuple[int, ...]) -> str:
    return "at_" + "_".join(map(str, place))


# %% Flax


def flax(problem: Problem) -> dict[str, Callable]:
    from flax import linen as nn

    if not is_network(problem):
        raise Unknown
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
                raise Unknown

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
    raise Unknown


# %% Equinox: one example at a time, channels first, under vmap


def equinox(problem: Problem) -> dict[str, Callable]:
    import equinox as eqx

    if not is_network(problem):
        raise Unknown
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
            raise Unknown

        return through(net, a, apply)

    def loss(modules, x, y):
        x = jnp.moveaxis(x, -1, 1) if images else x
        return cost(jax.vmap(of_one, in_axes=(None, 0))(modules, x), y)

    return optax_calls(problem, "Equinox", modules, loss)


def channels_when_flattened(net: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """(h, w, c) of what a convolutional network flattens; () for another."""
    for layer in net if isinstance(net, fn.Network) else ():
        if isinstance(layer, fn.Flatten):
            return shape
        shape = layer.output_shape(shape)
    return ()


def channels_first(w: Any, images: tuple[int, ...]) -> Any:
    """The weights of the dense layer behind a flattened image, for one with its channels first."""
    if images and w.shape[1] == np.prod(images):
        return jnp.moveaxis(w.reshape(-1, *images), -1, 1).reshape(w.shape)
    return w


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
    raise Unknown


# %% PyTorch


def torch_calls(problem: Problem, name: str, compiled: bool) -> dict[str, Callable]:
    import torch

    if not is_network(problem):
        raise Unknown
    net, cost, params, x, y, m, _ = problem.inputs
    module = torch_module(net, params, channels_when_flattened(net, x.shape[1:]))
    inputs, targets = (torch.tensor(np.asarray(a)) for a in (x, y))
    if inputs.ndim == 4:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    targets = targets.long() if cost is fn.log_likelihood else targets
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    rows = torch.tensor(np.asarray(next(iter(problem.kinds[STEP].values())).given[3])).long()
    forward: Any = torch.compile(module) if compiled else module

    def value(x, y):
        z = forward(x)
        if cost is fn.cross_entropy:
            return torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(x)
        return torch.nn.functional.cross_entropy(z.flatten(0, -2), y.flatten(), reduction="sum") / len(x)

    def gradient():
        module.zero_grad()
        value(inputs[:m], targets[:m]).backward()
        return ()

    def step():
        for of_step in rows:
            optimizer.zero_grad()
            value(inputs[of_step], targets[of_step]).backward()
            optimizer.step()
        return ()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(problem, name, value(inputs[:m], targets[:m]).detach())
        gradient()
    return {GRADIENT: gradient, STEP: step}


def torch_module(net: Any, params: Any, images: tuple[int, ...]) -> Any:
    import torch
    from torch import nn

    tensor = lambda a: torch.tensor(np.asarray(a))  # noqa: E731

    def set_to(module, **leaves):
        module.load_state_dict({name: tensor(leaf) for name, leaf in leaves.items()}, strict=False)
        return module

    class Last(nn.Module):
        def forward(self, a):
            return a[:, -1]

    class Cell(nn.Module):
        def __init__(self, cell, p):
            super().__init__()
            kind = getattr(nn, type(cell).__name__)
            self.cell = set_to(kind(p["w_x"].shape[1], cell.n, batch_first=True), **fn.to_torch(cell, p))

        def forward(self, a):
            return self.cell(a)[0]

    class Attend(nn.Module):
        def __init__(self, heads):
            super().__init__()
            self.heads = heads

        def forward(self, a):
            m, steps, width = a.shape
            parts = a.view(m, steps, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
            o = nn.functional.scaled_dot_product_attention(*parts, is_causal=True)
            return o.transpose(1, 2).reshape(m, steps, width // 3)

    class Positions(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.w = nn.Parameter(tensor(w))

        def forward(self, a):
            return a + self.w

    class Skip(nn.Module):
        def __init__(self, branch):
            super().__init__()
            self.branch = branch

        def forward(self, a):
            return a + self.branch(a)

    activations = {fn.sigmoid: nn.Sigmoid, fn.relu: nn.ReLU, fn.tanh: nn.Tanh, fn.gelu: nn.GELU}

    def parts_of(layer, p, last):
        match layer:
            case fn.Network():
                return [
                    part for i, (inner, q) in enumerate(zip(layer, p, strict=True))
                    for part in parts_of(inner, q, last and i == len(layer) - 1)
                ]  # fmt: skip
            case fn.Parallel() if isinstance(layer.layers[0], fn.Identity):
                return [Skip(nn.Sequential(*parts_of(layer.layers[1], p[1], False)))]
            case fn.Dense():
                module = nn.Linear(p["w"].shape[1], layer.n_out, layer.bias)
                bias = {"bias": p["b"]} if layer.bias else {}
                own = [set_to(module, weight=channels_first(p["w"], images), **bias)]
            case fn.Conv():
                w = p["w"].transpose(3, 2, 0, 1)
                module = nn.Conv2d(w.shape[1], w.shape[0], w.shape[2:], layer.stride, layer.padding, bias=layer.bias)
                own = [set_to(module, weight=w, **({"bias": p["b"]} if layer.bias else {}))]
            case fn.MaxPool():
                return [nn.MaxPool2d(layer.size)]
            case fn.Flatten():
                return [nn.Flatten()]
            case fn.LayerNorm():
                return [set_to(nn.LayerNorm(len(p["g"]), layer.eps), weight=p["g"], bias=p["b"])]
            case fn.BatchNorm():
                return [set_to(nn.BatchNorm2d(len(p["g"]), layer.eps, layer.momentum), weight=p["g"], bias=p["b"])]
            case fn.GlobalMeanPool():
                return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            case fn.LSTM() | fn.GRU():
                return [Cell(layer, p)]
            case fn.LastStep():
                return [Last()]
            case fn.Embedding():
                return [set_to(nn.Embedding(layer.tokens, layer.n), weight=p["w"])]
            case fn.Position():
                return [Positions(p["w"])]
            case fn.Attention():
                return [Attend(layer.heads)]
            case _:
                raise Unknown
        follows = not last and layer.activation is not fn.linear
        return [*own, activations[layer.activation]()] if follows else own

    inner, expanded = (net.net, net.expanded(params)) if isinstance(net, fn.Tied) else (net, params)
    module = nn.Sequential(*parts_of(inner, expanded, True))
    if isinstance(net, fn.Tied):
        module[-1].weight = module[0].weight
    return module


def torch_eager(problem: Problem) -> dict[str, Callable]:
    return torch_calls(problem, "PyTorch", False)


def torch_compiled(problem: Problem) -> dict[str, Callable]:
    return torch_calls(problem, "torch.compile", True)


# %% scikit-learn


def scikit_learn(problem: Problem) -> dict[str, Callable]:
    """A step of its Boltzmann machine, by persistent chains, which are as much work as new ones."""
    if problem.inputs[0] != "rbm":
        raise Unknown
    from sklearn.neural_network import BernoulliRBM

    _, params, data, m, steps = problem.inputs
    batches = np.asarray(data).reshape(steps, m, -1)
    model = BernoulliRBM(len(params["c"]), learning_rate=RATE, batch_size=m, random_state=0)

    def step():
        for batch in batches:
            model.partial_fit(batch)
        return ()

    return {STEP: step}


LIBRARIES: list[tuple[str, tuple[str, ...], Callable[[Problem], dict[str, Callable]]]] = [
    ("Flax + optax", ("flax", "optax"), flax),
    ("Equinox + optax", ("equinox", "optax"), equinox),
    ("PyTorch", ("torch",), torch_eager),
    ("torch.compile", ("torch",), torch_compiled),
    ("scikit-learn", ("sklearn",), scikit_learn),
]
