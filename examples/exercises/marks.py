"""What each exercise is held against: a function of the learner's module for each, that says what is wrong with it, or "".

``check.py`` runs them.
"""

import itertools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn

ONE_HOT = np.eye(3, dtype=np.float32)[[0, 1, 2, 1, 0]]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers, rounded to eighths: sums of their products are exact, in whatever order."""
    return np.float32(np.round(8 * np.random.default_rng([seed, *shape]).standard_normal(shape)) / 8)


def like(layer: fn.Layer, *shape: int) -> dict[str, np.ndarray]:
    """Parameters of the layer in which nothing is 0 or 1 by chance."""
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), shape))
    return {name: draw(*leaf.shape, seed=i) for i, (name, leaf) in enumerate(sorted(shapes.items()))}


def same(name: str, got: Any, right: Any, mistakes: dict[str, Any]) -> str:
    """What is wrong with a value, with the first of the usual mistakes that gives the same; "" if nothing is."""
    got, right = np.asarray(got), np.asarray(right)
    if got.shape != right.shape:
        return f"{name}: expected the shape {right.shape}, got {got.shape}"
    if np.allclose(got, right, rtol=1e-5, atol=1e-6):
        return ""
    place = np.unravel_index(np.abs(got - right).argmax(), right.shape)
    told = f"{name}: yours {got[place]:.4g} at {[int(i) for i in place]}, right {right[place]:.4g}"
    return told + next((f"; {hint}" for hint, wrong in mistakes.items() if np.allclose(got, wrong, rtol=1e-4)), "")


def fault(report: fn.Report, **written: str) -> str:
    """The first row that fails, in words; "" if none does. ``written``: for each argument the function that the learner
    wrote for it, and the argument's name."""
    functions = list(written)
    for row in report.rows:
        if row.verdict == "fail":
            name, told = f"{row.equation}{row.leaf}", row.note
            if row.equation == "gradient":
                name = functions[0] + row.leaf
            for i, argument in enumerate(written.values()):
                name, told = name.replace(f"backwardargs[{i}]", functions[i]), told.replace(f"args[{i}]", argument)
            told = told.replace("n (the length of an axis: 5)", "m (the number of examples)")
            return f"{name}: {told}"
    return ""


def at_the_end(own: ModuleType, z: np.ndarray, y: Any) -> str:
    """The fault of ``output_error``, the derivative of each example's cost by its z."""

    def backward(z, weights):
        return (weights[:, None] * own.output_error(z, y),)

    return fault(fn.audit((lambda z: (own.cost(z, y), z), backward), z), output_error="z")


def hinted(told: str, got: Any, mistakes: dict[str, Any]) -> str:
    """A fault that the audit found, with the first of the usual mistakes that gives the same, where it named none."""
    if not told or "; " in told:
        return told
    shape = np.shape(got)
    given = (
        hint for hint, wrong in mistakes.items() if np.shape(wrong) == shape and np.allclose(got, wrong, rtol=1e-4)
    )
    return told + next((f"; {hint}" for hint in given), "")


# %% Exercise by exercise.
def sigmoid(own: ModuleType) -> Iterator[str]:
    def backward(z, da):
        return (da * own.derivative(z),)

    z = draw(4, 5)
    told = fault(fn.audit((lambda z: (own.sigmoid(z), z), backward), z), derivative="z")
    a = fn.sigmoid(z)
    yield hinted(
        told, own.derivative(z), {"the factor 1 − σ(z) is missing": a, "z stands where σ(z) belongs": z * (1 - z)}
    )


def forward(own: ModuleType) -> Iterator[str]:
    w, b, a_in = draw(3, 4), draw(3), draw(5, 4)
    z = a_in @ w.T + b
    mistakes = {
        "b is left out": z - b,
        "b is subtracted": z - 2 * b,
        "σ comes later": fn.sigmoid(z),
        "no mean is taken here": z / 5,
    }
    yield same("weighted_inputs", own.weighted_inputs(w, b, a_in), z, mistakes)


def bp1(own: ModuleType) -> Iterator[str]:
    z, y = draw(5, 3), ONE_HOT
    a = fn.sigmoid(z)
    mistakes = {
        "the factor 1 − a of σ'(z) is missing": (a - y) * a,
        "z stands where σ(z) belongs": (a - y) * z * (1 - z),
        "one error for each example, not their mean": np.mean((a - y) * a * (1 - a), axis=0),
    }
    yield hinted(at_the_end(own, z, y), own.output_error(z, y), mistakes)


def bp2(own: ModuleType) -> Iterator[str]:
    w = draw(3, 4)

    def backward(z, delta):
        return (own.hidden_error(z, w, delta),)

    z, above = draw(5, 4), draw(5, 3, seed=1)
    told = fault(fn.audit((lambda z: (own.forward(z, w), z), backward), z), hidden_error="z")
    a = fn.sigmoid(z)
    mistakes = {
        "the factor 1 − a of σ'(z) is missing": above @ w * a,
        "z stands where σ(z) belongs": above @ w * z * (1 - z),
    }
    yield hinted(told, own.hidden_error(z, w, above), mistakes)


def bp3_bp4(own: ModuleType) -> Iterator[str]:
    layer, delta, a_in = own.Dense(3), draw(5, 3), draw(5, 4)
    told = fault(fn.check_layer(layer, like(layer, 4), a_in))
    product = {
        "the product of the means, not the mean of the products": np.outer(delta.mean(axis=0), a_in.mean(axis=0))
    }
    yield hinted(told, layer.gradients(like(layer, 4), (a_in, draw(5, 3, seed=1)), delta)["w"], product)


def cross_entropy(own: ModuleType) -> Iterator[str]:
    z, y = draw(5, 3), ONE_HOT
    a = fn.sigmoid(z)
    uncancelled = np.allclose(own.output_error(z, y), (a - y) * a * (1 - a))
    yield at_the_end(own, z, y) + "; σ'(z) is still in it, but it cancels" * uncancelled


def softmax(own: ModuleType) -> Iterator[str]:
    def value(z):
        a = own.softmax(z)
        return a, a

    yield fault(fn.audit((value, lambda a, da: (own.pull_back(a, da),)), draw(5, 4)), pull_back="z")
    yield at_the_end(own, draw(5, 4), np.float32(np.eye(4)[[0, 1, 2, 3, 0]] / 2 + 1 / 8))


def l2(own: ModuleType) -> Iterator[str]:
    params, gradients, of = {"w": draw(3, 4), "b": draw(3)}, {"w": draw(3, 4, seed=1), "b": draw(3, seed=1)}, (7.0, 50)

    def cost(params):  # whose gradients are those above
        return sum((gradients[name] * params[name]).sum() for name in params)

    biases = own.add_penalty(params, gradients, *of)["b"]
    yield same(
        "add_penalty['b']", biases, gradients["b"], {"biases are not punished": gradients["b"] + 0.14 * params["b"]}
    )

    def alone(params):
        return {name: got - gradients[name] for name, got in own.add_penalty(params, gradients, *of).items()}

    told = fault(fn.check_gradient(lambda params: own.penalty(params, *of), alone, params), add_penalty="params")
    added, forgotten = alone(params)["w"], 0.14 * params["w"] - gradients["w"]
    told = hinted(told, added, {"the gradient of the old cost is left out": forgotten})
    yield told + "; not divided by N" * np.allclose(added, 7 * params["w"])

    def value(params):
        return cost(params) + own.penalty(params, *of)

    report = fn.check_gradient(value, lambda params: own.add_penalty(params, gradients, *of), params)
    yield fault(report, add_penalty="params")


def dropout(own: ModuleType) -> Iterator[str]:
    """The expectation over all 2³ masks, exactly."""
    a, rate = draw(2, 3), 0.3
    masks = np.array(list(itertools.product([0.0, 1.0], repeat=3)), np.float32)
    chances = np.prod(np.where(masks == 1, 1 - rate, rate), axis=1)

    def expected(form):
        return sum(chance * np.asarray(form(a, mask, rate)) for chance, mask in zip(chances, masks, strict=True))

    kept = np.array([1.0, 0.0, 1.0], np.float32)
    scaled = {"the units that stay are not scaled up": kept * a, "scaled by the rate, not by 1 − rate": kept * a / rate}
    scaled["multiplied by 1 − rate, not divided"] = kept * a * (1 - rate)
    notes = {"no scaling here in the notes' form": kept * a / (1 - rate)}
    yield same("train_as_in_the_notes", own.train_as_in_the_notes(a, kept, rate), kept * a, notes)
    halved = {"multiplied by the share that was dropped": a * rate, "not scaled": a, "divided": a / (1 - rate)}
    halved["halved, whatever the rate is"] = a / 2
    right = expected(own.train_as_in_the_notes)
    yield same("use_as_in_the_notes", own.use_as_in_the_notes(a, rate), right, halved)
    yield same("train", own.train(a, kept, rate), kept * a / (1 - rate), scaled)
    yield same("train, expected over all masks", expected(own.train), a, {})
    keep = np.array([[1, 0, 1], [0, 1, 1]], np.float32)
    pair = (lambda a: (own.train(a, keep, rate), None), lambda _, da: (own.pull_back(da, keep, rate),))
    yield fault(fn.audit(pair, a), pull_back="a")


def chain(own: ModuleType) -> Iterator[str]:
    args = draw(4), draw(4, seed=1), np.float32(0.8), np.float32(0.2)
    got = own.bias_gradients(*args)
    if np.ndim(got) == 1 and isinstance(got, list | tuple):
        yield f"bias_gradients: expected one array (4,), got a {type(got).__name__} of numbers, as in jnp.stack(...)"
    a = np.asarray(own.activations(*args[:3]))
    slopes, w = a[1:] * (1 - a[1:]), args[1]

    def through(factors):
        """From BP1 down, one of the factors for each layer."""
        return np.multiply.accumulate(np.append((a[-1] - args[3]) * slopes[-1], factors[::-1]))[::-1]

    mistakes = {
        "a layer's own w stands where that of the layer above belongs": through((w * slopes)[:-1]),
        "σ' of the layer above stands where the layer's own belongs": through(w[1:] * slopes[1:]),
        "σ' of the layer below stands where the layer's own belongs": through(w[1:] * (a * (1 - a))[:-2]),
        "the layers' own σ' are left out": through(w[1:]),
        "the weights are left out": through(slopes[:-1]),
    }
    told = fault(fn.check_gradient(own.cost, own.bias_gradients, *args), bias_gradients="b")
    yield hinted(told, got, mistakes)


def gate(own: ModuleType) -> Iterator[str]:
    layer, a_in = own.Highway(), draw(5, 4)
    told = fault(fn.check_layer(layer, params := like(layer, 4), a_in))
    if told.startswith("error") and "; " not in told:
        cache, da = layer.forward(params, a_in)[1], draw(5, 4, seed=1)
        _, h, g = cache
        got = layer.error(params, cache, da)
        for place, mistakes in {
            "h": {
                "the gate g is left out": da * (1 - h**2),
                "1 − g stands where g belongs": da * (1 - g) * (1 - h**2),
                "tanh' is left out": da * g,
                "tanh' is 1 − h², not 1 − h": da * g * (1 - h),
            },
            "g": {
                "g takes from a_in what it gives to h": da * h * g * (1 - g),
                "σ' is left out": da * (h - a_in),
            },
        }.items():
            told = hinted(told, got[place], mistakes) if told.startswith(f"error['{place}']") else told
    yield told


def convolution(own: ModuleType) -> Iterator[str]:
    def backward(residuals, delta):
        a, w = residuals
        return own.input_error(delta, w), own.kernel_gradient(delta, a), own.bias_gradient(delta)

    pair = (lambda a, w, b: (own.forward(a, w, b), (a, w)), backward)
    report = fn.audit(pair, draw(6, 6), draw(3, 3), np.float32(0.3))
    yield fault(report, input_error="a", kernel_gradient="w", bias_gradient="b")


def max_pooling(own: ModuleType) -> Iterator[str]:
    a = np.float32(np.random.default_rng(0).permutation(24).reshape(4, 6) / 8)  # no ties
    largest = (lambda a: (own.max_pool(a), a), lambda a, delta: (own.unsample_max(delta, a),))
    delta = draw(2, 3)
    everywhere, best = own.spread(delta), a == own.spread(own.max_pool(a))
    mistakes = {
        "every place gets the error, not the largest alone": everywhere,
        "shared by the four places, as the mean's is": everywhere / 4,
        "to all but the largest": everywhere * ~best,
        "a factor a too much": everywhere * a,
    }
    yield hinted(fault(fn.audit(largest, a), unsample_max="a"), own.unsample_max(delta, a), mistakes)
    mean = (lambda a: (own.mean_pool(a), None), lambda _, delta: (own.unsample_mean(delta),))
    yield fault(fn.audit(mean, a), unsample_mean="a")


def bptt(own: ModuleType) -> Iterator[str]:
    layer, x = own.RNN(3), draw(5, 4, 2)
    params = like(layer, 4, 2)

    def step(h, z):
        h = jnp.tanh(z + h @ params["w_h"].T)
        return h, h

    def in_a_loop(probe):
        z = x @ params["w_x"].T + params["b"] + probe
        return jax.lax.scan(step, jnp.zeros_like(z[:, 0]), z.swapaxes(0, 1))[1].swapaxes(0, 1)

    def value(probe):
        return in_a_loop(probe), layer.forward(params, x, probe=probe)[1]

    pair = (value, lambda cache, da: (layer.error(params, cache, da),))
    yield fault(fn.audit(pair, draw(5, 4, 3)), error="z")
    yield fault(fn.check_layer(layer, params, x))


def contrast(own: ModuleType) -> Iterator[str]:
    params = {"w": draw(3, 4), "b": draw(4), "c": draw(3)}
    data, samples = (np.float32(draw(6, 4, seed=seed) > 0) for seed in (1, 2))
    yield fault(fn.check_gradient(own.free_energy, own.phase, params, data), phase="params")
    yield fault(fn.check_gradient(own.cost, own.gradient, params, data, samples), gradient="params")


MARKS: dict[str, Callable[[ModuleType], Iterator[str]]] = {
    f.__name__: f
    for f in (
        sigmoid, forward, bp1, bp2, bp3_bp4, cross_entropy, softmax, l2, dropout,
        chain, gate, convolution, max_pooling, bptt, contrast,
    )
}  # fmt: skip
