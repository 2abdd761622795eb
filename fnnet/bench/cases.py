"""The rows: every layer that matters, every cost, whole networks and energy models, each at its full and at a small size."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn

from ..layers._layer import run_forward
from . import networks, plain
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
        inputs: (net, cost, params, x, y) of a whole network, for peers.
    """

    kinds: dict[str, dict[str, Contender]]
    equal: Callable[[], Any]
    steps: int = 1
    comparable: bool = True
    alike: Callable[[Any], Any] = lambda result: result
    inputs: Any = None


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        name: of the row.
        group: of rows that are measured and shown together.
        problem: (quick, dtype) -> its `Problem`; (quick, dtype, steps) for other than its usual number of steps.
        more: how many times the FLOPs of ``jax.grad`` of the same forward pass the hand-written value and gradient may have,
            and why.
        quick: whether it is in the quick run; not where another row is the same at the small size.
    """

    name: str
    group: str
    problem: Callable[..., Problem]
    more: tuple[float, str] = (1.0, "")
    quick: bool = True


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
) -> dict:
    """The three functions (params, x, y) -> (C, ∂C/∂params)."""
    return {
        HAND: fn.value_and_grad(net.in_loop() if in_loop else net, cost, **settings),
        SAME: jax.value_and_grad(fn.objective(net, cost)),
        PLAIN: jax.value_and_grad(plain.objective(net, cost, activation)),
    }


def of_steps(net, cost, activation, params, x, y, m, steps, **settings) -> dict[str, Contender]:
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
    return Problem(kinds, lambda: twice(make(), params, x, da), steps, comparable=not draws)


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


# %% The table


def layer(name, group, make, shape, tiny, small=None, tokens=0, steps=4, **about) -> Case:
    """``small`` makes the layer that is measured at the small size, where it is another one; so in `network`."""

    def problem(quick, dtype, steps=steps):
        chosen, size = (small or make, tiny) if quick else (make, shape)
        return of_layer(chosen, size, tokens, steps, dtype)

    return Case(name, group, problem, **about)


def network(
    name, group, make, shape, tiny, small=None, cost=fn.log_likelihood, activation=fn.softmax, classes=10, tokens=0,
    steps=4, settings=None, **about,
) -> Case:  # fmt: skip
    def problem(quick, dtype, steps=steps):
        chosen, size = (small or make, tiny) if quick else (make, shape)
        used = min(tokens, 97) if quick else tokens
        limit = min(classes, 97) if quick else classes
        return of_network(chosen, cost, activation, size, limit, used, steps, settings or {}, dtype)

    return Case(name, group, problem, **about)


def _layers() -> list[Case]:
    rows, images = "layers", (64, 16, 16, 64)
    few = (2, 4, 4, 8)
    cases = [
        layer("LayerNorm", rows, fn.LayerNorm, (32, 64, 128), (2, 3, 8)),
        layer("RMSNorm", rows, fn.RMSNorm, (32, 64, 128), (2, 3, 8)),
        layer("GroupNorm", rows, lambda: fn.GroupNorm(8), images, few),
        layer("BatchNorm", rows, fn.BatchNorm, images, few),
        layer("Dense, rows", rows, lambda: fn.Dense(512, fn.relu), (128, 784), (20, 30)),
        layer("Dense, rows, no bias", rows, lambda: fn.Dense(512, fn.relu, bias=False), (128, 784), (20, 30)),
        layer("Dense, sequences", rows, lambda: fn.Dense(512, fn.gelu), (12, 64, 128), (2, 3, 8)),
        layer("Dense, sequences, no bias", rows, lambda: fn.Dense(512, fn.gelu, bias=False), (12, 64, 128), (2, 3, 8)),
        layer("Conv 5×5", rows, lambda: fn.Conv(20, 5, fn.sigmoid), (32, 28, 28, 1), (2, 9, 9, 1), steps=2),
        layer("Conv 5×5 of 20 channels", rows, lambda: fn.Conv(40, 5, fn.sigmoid), (32, 12, 12, 20), (2, 8, 8, 3), steps=2),
        layer("Conv 3×3", rows, lambda: fn.Conv(64, 3, fn.relu, padding="same"), (16, 32, 32, 32), (2, 5, 5, 3), steps=2),
        layer("Conv 3×3, stride 2", rows, lambda: fn.Conv(64, 3, fn.relu, 2, 1), (16, 32, 32, 32), (2, 6, 6, 3), steps=2),
        layer("Conv 3×3, 4 groups", rows, lambda: fn.Conv(64, 3, fn.relu, 1, 1, groups=4), (16, 32, 32, 32), few, steps=2),
        layer("MaxPool", rows, lambda: fn.MaxPool(2), (32, 24, 24, 20), few),
        layer("MeanPool", rows, lambda: fn.MeanPool(2), (32, 24, 24, 20), few),
        layer("Attention, T = 64", rows, lambda: fn.Attention(4), (12, 64, 384), (2, 4, 12)),
        layer("Attention, T = 1,024", rows, lambda: fn.Attention(4), (4, 1024, 384), (2, 6, 12), quick=False),
        layer("Attention in blocks, T = 64", rows, lambda: fn.Attention(4, block=32), (12, 64, 384), (2, 64, 12)),
        layer(
            "Attention in blocks, T = 1,024", rows, lambda: fn.Attention(4, block=128), (4, 1024, 384), (2, 256, 12),
            quick=False,
        ),
        layer("Embedding", rows, lambda: fn.Embedding(10_000, 128), (32, 64), (2, 5), tokens=10_000),
        layer("Position", rows, fn.Position, (32, 64, 128), (2, 3, 8)),
        layer("Dropout", rows, lambda: fn.Dropout(0.5), (128, 1024), (4, 16)),
        layer("Residual", rows, lambda: fn.Residual(fn.Dense(256, fn.tanh), fn.Dense(256, fn.linear)), (128, 256), (4, 256)),
        layer(
            "Parallel", rows,
            lambda: fn.Parallel(fn.Dense(128, fn.tanh), fn.Dense(128, fn.relu), join=fn.concatenate), (128, 256), (4, 16),
        ),
    ]  # fmt: skip
    sizes = {"28": (28, 32, 128, 28), "100": (100, 32, 256, 64), "256": (256, 16, 256, 128), "784": (784, 32, 128, 1)}
    for cell in (fn.LSTM, fn.GRU, fn.RNN):
        for name, (steps, m, n, n_in) in sizes.items():
            make, small = functools.partial(cell, n), functools.partial(cell, n // 16)
            shapes = (m, steps, n_in), (2, min(steps, 30), n_in)
            about = f"{cell.__name__}, T = {name}"
            cases.append(
                layer(about, "recurrent", make, *shapes, small, steps=1 if steps > 28 else 4, quick=steps == 28)
            )
    return cases


def _costs() -> list[Case]:
    pairs = [
        (fn.quadratic, fn.linear), (fn.quadratic, fn.sigmoid), (fn.quadratic, fn.softmax), (fn.cross_entropy, fn.sigmoid),
        (fn.cross_entropy, fn.softmax), (fn.log_likelihood, fn.softmax), (fn.log_likelihood, fn.sigmoid),
    ]  # fmt: skip
    return [
        network(
            f"{cost.name} of {activation.name}", "costs", functools.partial(fn.Dense, 1000, activation), (256, 32), (4, 5),
            functools.partial(fn.Dense, 6, activation), cost, activation, classes=6,
        )
        for cost, activation in pairs
    ]  # fmt: skip


def _networks() -> list[Case]:
    cases = []
    of = functools.partial
    for m in (10, 128, 1024):
        make = of(networks.dense, 100, 10, output=fn.sigmoid)
        about = {"cost": fn.cross_entropy, "activation": fn.sigmoid, "steps": 8 if m < 1024 else 4, "quick": m < 1024}
        cases.append(network(f"784-100-10, m = {m:,}", "dense networks", make, (m, 784), (min(m, 20), 784), **about))
    deep, slim = (of(networks.dense, *[n] * 6, 10, activation=fn.relu) for n in (1024, 16))
    cases.append(network("6×1,024 ReLU, m = 128", "dense networks", deep, (128, 784), (20, 30), slim))
    belief, less = (of(networks.unrolled_belief_network, *n) for n in ((784, 500, 500, 2000), (30, 20, 20, 40)))
    cases.append(
        network("DBN 784-500-500-2000-10, fine-tuning, m = 100", "dense networks", belief, (100, 784), (20, 30), less)
    )
    for m in (10, 32, 128, 512):
        images = (m, 28, 28, 1), (4, 28, 28, 1)
        cases.append(
            network(
                f"book's conv net, m = {m}",
                "convolutional networks",
                networks.book,
                *images,
                steps=4 if m < 512 else 2,
                quick=m == 10,
            )
        )
    images = (32, 32, 32, 3), (2, 8, 8, 3)
    vgg, small_vgg = of(networks.vgg, 32, 64, 128), of(networks.vgg, 4, 8)
    cases.append(network("VGG-like 3×3 net, m = 32", "convolutional networks", vgg, *images, small_vgg, steps=2))
    resnet, small_resnet = of(networks.residual, 16, 32, 64), of(networks.residual, 4, 8)
    cases.append(
        network("ResNet with BatchNorm, m = 32", "convolutional networks", resnet, *images, small_resnet, steps=2)
    )
    for cell in (fn.LSTM, fn.GRU):
        make, small = (lambda cell=cell, n=n: networks.classifier(cell(n)) for n in (128, 16))
        for m in (32, 128):
            name = f"{cell.__name__} classifier, T = 28, m = {m}"
            cases.append(network(name, "recurrent networks", make, (m, 28, 28), (3, 5, 28), small, quick=m == 32))
    about = {"classes": 65, "tokens": 65, "steps": 2}
    for name, body in (
        ("written out", networks.written_out), ("repeated", networks.repeated), ("recomputed", networks.recomputed),
    ):  # fmt: skip
        gpt, small = of(networks.gpt, 65, 128, 4, 4, body=body), of(networks.gpt, 65, 16, 2, 2, body=body)
        cases.append(network(f"GPT of 4×128, {name}", "GPTs", gpt, (12, 64), (2, 6), small, **about))
    gpt, small = of(networks.gpt, 65, 384, 6, 6), of(networks.gpt, 65, 16, 2, 3)
    cases.append(network("GPT of 6×384", "GPTs", gpt, (4, 128), (2, 6), small, **about))
    wide, narrow = of(networks.large_vocabulary, 32_768, 64), of(networks.large_vocabulary, 97, 8)
    about = {"classes": 32_768, "tokens": 32_768, "steps": 1, "settings": {"positions": 128}}
    cases.append(network("vocabulary of 32,768, positions=128", "GPTs", wide, (1, 1024), (2, 256), narrow, **about))
    return cases


def _machines() -> list[Case]:
    def problem(quick, dtype, steps=4):
        return of_machine(*((20, 12, 10) if quick else (784, 500, 100)), steps, dtype)

    return [Case("RBM 784-500, CD-1, m = 100", "energy models", problem)]


CASES = [*_layers(), *_costs(), *_networks(), *_machines()]


def chosen(wanted: list[str] | tuple[str, ...]) -> list[Case]:
    """The cases with one of these in their name or group; all for none.

    Raises:
        ValueError: for a word that no case has.
    """
    lower = [word.lower() for word in wanted]
    for word in lower:
        if not any(word in f"{case.group}: {case.name}".lower() for case in CASES):
            raise ValueError(f"bench: expected a part of a case's name or group, got {word!r}; --list shows them")
    return [c for c in CASES if not lower or any(word in f"{c.group}: {c.name}".lower() for word in lower)]
