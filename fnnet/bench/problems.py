"""What is measured of a network, a layer or a machine: its three forms, each with what it is given."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn

from ..layers._layer import run_forward
from . import plain
from .measure import Contender

HAND, SAME, PLAIN = "by hand", "jax.grad, same forward", "jax.grad, plain forward"
FORWARD, GRADIENT, STEP = "forward", "value and gradient", "training step"
RATE = 0.01
Shape = tuple[int, ...]


class Problem(NamedTuple):
    """What a row measures, with its arrays.

    Attributes:
        kinds: for each kind (forward, value and gradient, training step) its contenders by name, by hand first.
        equal: calls the hand-written gradient of an equal network built anew, compiled as a user has it.
        steps: of training in one call.
        comparable: whether the plain form computes the same, up to the layout of `alike`; not where it draws other numbers.
        alike: lays a hand-written result out as the plain form's.
        inputs: for peers: (net, cost, params, x, y, m, steps) of a network, (layer, params, x, ∂C/∂a_out) of a layer.
    """

    kinds: dict[str, dict[str, Contender]]
    equal: Callable[[], Any]
    steps: int = 1
    comparable: bool = True
    alike: Callable[[Any], Any] = lambda result: result
    inputs: Any = None


def drawn(layer: fn.Layer, shape: Shape, dtype: Any, seed: int = 0) -> Any:
    """Parameters of the usual sizes, drawn by NumPy: nothing is compiled for them."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, like: Any) -> jax.Array:
        if like.ndim > 1:
            fan_in = like.shape[-1] if like.ndim < 4 else math.prod(like.shape[:-1])
            value = rng.standard_normal(like.shape) / math.sqrt(fan_in)
        else:
            value = 0.1 * rng.standard_normal(like.shape) + (path[-1].key in ("g", "var"))
        return jax.device_put(value.astype(dtype))

    return jax.tree_util.tree_map_with_path(leaf, jax.eval_shape(lambda: layer.init(jax.random.key(0), shape)))


def inputs(shape: Shape, dtype: Any, tokens: int = 0, seed: int = 1) -> jax.Array:
    rng = np.random.default_rng(seed)
    given = rng.integers(tokens, size=shape).astype(np.int32) if tokens else rng.standard_normal(shape).astype(dtype)
    return jax.device_put(given)


def scan_of_steps(gradient: Callable) -> Callable:
    """(params, x, y, rows) -> (params, values) after a step of gradient descent for each row of indices, by a function
    (params, x, y) -> (value, gradients): what `fnnet.fit` compiles, without its optimiser's state and monitors."""

    def run(params, x, y, rows):
        def step(params, rows):
            value, gradients = gradient(params, x[rows], y[rows])
            return jax.tree.map(lambda p, g: p - jnp.asarray(RATE, p.dtype) * g, params, gradients), value

        return jax.lax.scan(step, params, rows)

    return run


def order(m: int, steps: int) -> jax.Array:
    return jax.device_put(np.random.default_rng(2).permutation(m * steps).reshape(steps, m).astype(np.int32))


# %% A whole network, or a layer as one


def gradients_of(
    net: fn.Layer, cost: fn.Cost, activation: fn.Activation, in_loop: bool = False, **settings: Any
) -> dict[str, Callable[..., Any]]:
    """The three functions (params, x, y) -> (C, ∂C/∂params)."""
    return {
        HAND: fn.value_and_grad(net.in_loop() if in_loop else net, cost, **settings),
        SAME: jax.value_and_grad(fn.objective(net, cost)),
        PLAIN: jax.value_and_grad(plain.objective(net, cost, activation)),
    }


def of_steps(
    net: fn.Layer, cost: fn.Cost, activation: fn.Activation, params: Any, x: jax.Array, y: jax.Array, m: int, steps: int,
    **settings: Any,
) -> dict[str, Contender]:  # fmt: skip
    given, apart = (params, x, y, order(m, steps)), (plain.parameters(net, params), x, y, order(m, steps))
    return {
        name: Contender(scan_of_steps(gradient), apart if name == PLAIN else given)
        for name, gradient in gradients_of(net, cost, activation, in_loop=True, **settings).items()
    }


def of_network(
    make: Callable[[], fn.Layer],
    cost: fn.Cost,
    activation: fn.Activation,
    shape: Shape,
    classes: int,
    tokens: int,
    steps: int,
    settings: dict[str, Any],
    dtype: Any,
) -> Problem:
    """A network on inputs of the shape (m, ...), tokens below ``tokens`` unless that is 0, with labels below ``classes``."""
    net, m = make(), shape[0]
    params = drawn(net, shape[1:], dtype)
    all_of = inputs((m * steps, *shape[1:]), dtype, tokens)
    targets = (m * steps, *net.output_shape(shape[1:]))
    soft = cost is not fn.log_likelihood
    y = jax.nn.sigmoid(inputs(targets, dtype, seed=3)) if soft else inputs(targets[:-1], dtype, classes, seed=3)
    x, labels = all_of[:m], y[:m]
    given, apart = (params, x, labels), (plain.parameters(net, params), x, labels)
    gradients = gradients_of(net, cost, activation, **settings)
    forwards = {HAND: fn.objective(net, cost), PLAIN: plain.objective(net, cost, activation)}
    contenders = lambda functions: {n: Contender(f, apart if n == PLAIN else given) for n, f in functions.items()}  # noqa: E731
    kinds = {
        FORWARD: contenders(forwards),
        GRADIENT: contenders(gradients),
        STEP: of_steps(net, cost, activation, params, all_of, y, m, steps, **settings),
    }
    return Problem(
        kinds,
        equal=lambda: fn.value_and_grad(make(), cost, **settings)(*given),
        steps=steps,
        alike=lambda result: tuple(
            plain.parameters(net, part) if jax.tree.leaves(part) != [part] else part for part in result
        ),
        inputs=(net, cost, params, all_of, y, m, steps),
    )


# %% A layer, for a given ∂C/∂a_out


def of_layer(make: Callable[[], fn.Layer], shape: Shape, tokens: int, steps: int, dtype: Any) -> Problem:
    """A layer's output, gradients and ∂C/∂a_in on inputs of the shape (m, ...) for a given ∂C/∂a_out. A layer with parameters
    also takes steps along its gradients, in which ∂C/∂a_in is what the layer below would be given."""
    layer, m = make(), shape[0]
    draws = isinstance(layer, fn.Dropout)
    key = jax.random.key(4) if draws else None
    params, x = drawn(layer, shape[1:], dtype), inputs(shape, dtype, tokens)
    out = layer.output_shape(shape[1:])
    da = inputs((m, *out), dtype, seed=3)

    def value(layer, params, x):
        return run_forward(layer, params, x, key=key, train=True)[0]

    def plainly(layer, params, x):
        return plain.forward(layer, params, x, key)

    def by_hand(layer, params, x, da):
        a, cache = run_forward(layer, params, x, key=key, train=True)
        return a, layer.backward(params, cache, da)

    def autodiff(f, layer, params, x, da):
        if tokens:
            a, pull = jax.vjp(lambda params: f(layer, params, x), params)
            return a, (None, mean(*pull(da)))
        a, pull = jax.vjp(functools.partial(f, layer), params, x)
        of_params, da_in = pull(da)
        return a, (da_in, mean(of_params))

    def mean(of_params):
        return jax.tree.map(lambda g: g / jnp.asarray(m, g.dtype), of_params)

    apart = plain.parameters(layer, params)
    of = functools.partial
    kinds = {
        FORWARD: {HAND: Contender(of(value, layer), (params, x)), PLAIN: Contender(of(plainly, layer), (apart, x))},
        GRADIENT: {
            HAND: Contender(of(by_hand, layer), (params, x, da)),
            SAME: Contender(of(autodiff, value, layer), (params, x, da)),
            PLAIN: Contender(of(autodiff, plainly, layer), (apart, x, da)),
        },
    }
    if jax.tree.leaves(params):
        many, errors = inputs((m * steps, *shape[1:]), dtype, tokens), inputs((m * steps, *out), dtype, seed=3)
        about, looped = (many, errors, order(m, steps)), of(by_hand, layer.in_loop())
        runs = {name: looped if name == HAND else contender.run for name, contender in kinds[GRADIENT].items()}
        kinds[STEP] = {
            name: Contender(
                scan_of_steps(lambda *given, run=run: run(*given)[1]), (apart if name == PLAIN else params, *about)
            )
            for name, run in runs.items()
        }
    twice = jax.jit(by_hand, static_argnums=0)
    equal = lambda: twice(make(), params, x, da)  # noqa: E731
    return Problem(kinds, equal, steps, comparable=not draws, inputs=(layer, params, x, da))


# %% A restricted Boltzmann machine


def of_machine(visible: int, hidden: int, m: int, steps: int, dtype: Any) -> Problem:
    """A gradient of CD-1, and steps along it, against ``jax.grad`` of mean F(v) − mean F(v_1) with the same samples."""
    rng = np.random.default_rng(0)
    params = {
        "w": jax.device_put((0.1 * rng.standard_normal((hidden, visible))).astype(dtype)),
        "b": jax.device_put(rng.standard_normal(visible).astype(dtype)),
        "c": jax.device_put(rng.standard_normal(hidden).astype(dtype)),
    }
    data = jax.device_put(rng.random((m * steps, visible)).astype(dtype))
    keys = jax.random.split(jax.random.key(0), steps)

    def by_hand(params, key, v):
        return fn.rbm.contrastive_divergence(params, key, v).gradients

    def same(params, key, v):
        samples = jax.lax.stop_gradient(fn.rbm.gibbs(params, key, v, k=1))
        mean = lambda params, v: jnp.mean(fn.rbm.free_energy(params, v))  # noqa: E731
        return jax.grad(lambda params: mean(params, v) - mean(params, samples))(params)

    def plainly(params, key, v):
        def draw(key, z):
            return (jax.random.uniform(key, z.shape, jnp.float32).astype(z.dtype) < jax.nn.sigmoid(z)).astype(z.dtype)

        def mean(params, v):
            return -jnp.mean(v @ params["b"] + jnp.sum(jax.nn.softplus(v @ params["w"].T + params["c"]), axis=1))

        first, key = jax.random.split(key)
        h = draw(first, v @ params["w"].T + params["c"])
        samples = draw(jax.random.split(jax.random.fold_in(key, 0))[0], h @ params["w"] + params["b"])
        return jax.grad(lambda params: mean(params, v) - mean(params, samples))(params)

    def scan_of(gradient):
        def run(params, keys, data, rows):
            def step(params, given):
                key, rows = given
                gradients = gradient(params, key, data[rows])
                return jax.tree.map(lambda p, g: p - jnp.asarray(RATE, p.dtype) * g, params, gradients), None

            return jax.lax.scan(step, params, (keys, rows))[0]

        return run

    forms = {HAND: by_hand, SAME: same, PLAIN: plainly}
    given, all_of = (params, keys[0], data[:m]), (params, keys, data, order(m, steps))
    kinds = {
        GRADIENT: {name: Contender(f, given) for name, f in forms.items()},
        STEP: {name: Contender(scan_of(f), all_of) for name, f in forms.items()},
    }
    return Problem(kinds, lambda: by_hand(*given), steps, inputs=("rbm", params, data, m, steps))
