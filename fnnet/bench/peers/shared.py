"""What the other libraries' sides share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn

from .. import plain
from ..problems import GRADIENT, RATE, STEP, Problem

TOLERANCE = 1e-3
"""Of a peer's cost at the start in float32, relative to fnnet's."""


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


def through(layer: Any, a: Any, apply: Callable, place: tuple[int, ...] = (), last: bool = True) -> Any:
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
    last: Any = net.net if isinstance(net, fn.Tied) else net
    activation = last[-1].activation
    terms = plain.TERMS[cost, activation]
    return lambda z, y: jnp.sum(terms(z, y)) / len(y)


def optax_calls(problem: Problem, name: str, variables: Any, loss: Callable) -> dict[str, Callable[..., Any]]:
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
