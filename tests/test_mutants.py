"""The mutation study: every usual mistake, planted in every kind of layer at the first, a middle and the last place, in costs
and in penalties. The audit's first line has to name the layer and the equation, and its hint the mistake.
"""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn

from .cases import normal, params_of

M = 9
PLACES = ("first", "middle", "last")


@dataclass(frozen=True)
class Mutant:
    """A mistake: ``change(layer, right, params, cache, fed)`` gives what the equation returns instead of ``right``."""

    name: str
    layer: fn.Layer
    equation: str
    leaf: str
    change: Callable
    hint: str

    def __repr__(self) -> str:
        return self.name

    def planted(self) -> fn.Layer:
        change, equation = self.change, self.equation

        def wrong(layer, params, cache, fed):
            right = getattr(super(cls, layer), equation)(params, cache, fed)
            return change(layer, right, params, cache, fed)

        def wrong_forward(layer, params, a_in, *, key=None, train=False, probe=None):
            a, cache = super(cls, layer).forward(params, a_in, key=key, train=train, probe=probe)
            return a, change(layer, None, params, cache, None)

        methods = {equation: wrong_forward if equation == "forward" else wrong}
        cls = fn.layer(type(f"Wrong{type(self.layer).__name__}", (type(self.layer),), methods))
        return cls(**{field.name: getattr(self.layer, field.name) for field in dataclasses.fields(self.layer)})


def on(leaf, change):
    """A change of one leaf of the gradients."""
    return lambda layer, right, *rest: {**right, leaf: change(right[leaf], *rest)}


def twice_the_derivative(layer, right, params, cache, fed):
    _, z, a = cache
    return layer.activation.error(right, z, a)


def derivative_at_a(layer, right, params, cache, fed):
    return layer.activation.error(fed, cache[2])


def stale_derivative(layer, right, params, cache, fed):
    _, z, a = cache
    return layer.activation.error(fed, jnp.roll(z, 1, 0), jnp.roll(a, 1, 0))


def without_the_last_example(layer, right, *rest):
    return right.at[-1].set(0)


def slid(a, axis):
    """Moved by one place, zeros coming in."""
    keep = [slice(None)] * a.ndim
    keep[axis] = slice(0, -1)
    return jnp.concatenate(
        [jnp.zeros_like(a[tuple(keep)][(slice(None),) * axis + (slice(0, 1),)]), a[tuple(keep)]], axis
    )


@fn.layer
class Affine:
    """a = g ⊙ a_in + b: two leaves of the same shape."""

    def init(self, key, input_shape):
        g, b = jax.random.normal(key, (2, *input_shape))
        return {"g": g, "b": b}

    def forward(self, params, a_in, *, probe=None):
        a = params["g"] * a_in + params["b"]
        return a if probe is None else a + probe, (a_in,)

    def propagate(self, params, cache, delta):
        return delta * params["g"]

    def gradients(self, params, cache, delta):
        return {"g": jnp.mean(delta * cache[0], 0), "b": jnp.mean(delta, 0)}


DENSE, SOFTMAX = fn.Dense(6, fn.tanh), fn.Dense(6, fn.softmax)
CONV, MAX, MEAN = fn.Conv(2, 3, fn.tanh, padding="same"), fn.MaxPool(2), fn.MeanPool(2)
DROP, THIN, AFFINE = fn.Dropout(0.6), fn.Dropout(0.6, per="batch"), Affine()

sign = lambda layer, right, *rest: jax.tree.map(jnp.negative, right)  # noqa: E731
times = lambda c: lambda layer, right, *rest: jax.tree.map(lambda a: c * a, right)  # noqa: E731


def wrong_sums(right, params, cache, delta):
    return jnp.einsum("xj,xk->xk", delta, cache[0]) / M


def _mutants() -> list[Mutant]:
    rows: list[Mutant] = []

    def add(layer, equation, mistakes, leaf="", family=""):
        for name, (change, hint) in mistakes.items():
            label = f"{family or type(layer).__name__} {equation} {leaf}: {name}"
            rows.append(Mutant(label, layer, equation, leaf, change, hint))

    add(DENSE, "error", {
        "σ' missing": (lambda layer, right, params, cache, da: da, "σ' is missing"),
        "σ' doubled": (twice_the_derivative, "σ' is applied twice"),
        "σ' at a": (derivative_at_a, "σ' is taken at a"),
        "stale σ'": (stale_derivative, "σ' of another example"),
        "sign": (sign, "wrong sign"),
        "a factor": (times(3.0), "constant factor 3"),
        "an example left out": (without_the_last_example, "one example is left out"),
    })  # fmt: skip
    add(SOFTMAX, "error", {
        "σ' missing": (lambda layer, right, params, cache, da: da, "σ' is missing"),
        "the diagonal only": (lambda layer, right, p, cache, da: da * cache[2] * (1 - cache[2]), "diagonal"),
        "σ' doubled": (twice_the_derivative, "σ' is applied twice"),
        "sign": (sign, "wrong sign"),
    }, family="Softmax")  # fmt: skip
    add(DENSE, "propagate", {
        "transposed": (lambda layer, right, params, cache, delta: delta @ params["w"].T, "transposed"),
        "σ' once more": (
            lambda layer, right, params, cache, delta: layer.activation.error(delta, cache[1], cache[2]) @ params["w"],
            "σ' is applied once more"),
        "sign": (sign, "wrong sign"),
        "a factor": (times(0.25), "constant factor 0.25 = 1/4"),
        "an example left out": (without_the_last_example, "one example is left out"),
        "examples shifted": (lambda layer, right, *rest: jnp.roll(right, 1, 0), "shifted by one"),
        "reversed": (lambda layer, right, *rest: right[:, ::-1], "reversed along axis 1"),
        "1/m": (times(1 / M), "a factor 1/m"),
    })  # fmt: skip
    add(DENSE, "gradients", {
        "transposed": (on("w", lambda w, *rest: w.T), "transposed"),
        "sign": (on("w", lambda w, *rest: -w), "wrong sign"),
        "sum for mean": (on("w", lambda w, *rest: M * w), "a factor m"),
        "1/m twice": (on("w", lambda w, *rest: w / M), "a factor 1/m"),
        "a factor": (on("w", lambda w, *rest: 7 * w), "constant factor 7"),
        "left out": (on("w", lambda w, *rest: 0 * w), "left out"),
        "the mean error": (
            on("w", lambda w, params, cache, delta: jnp.mean(delta, 0)[:, None] * jnp.mean(cache[0], 0)),
            "mean error is fed to BP4"),
        "an example left out": (
            on("w", lambda w, params, cache, delta: delta[1:].T @ cache[0][1:] / M), "one example is left out"),
        "an example counted twice": (
            on("w", lambda w, params, cache, delta: w + jnp.outer(delta[3], cache[0][3]) / M), "counted twice"),
        "one example only": (on("w", lambda w, params, cache, delta: jnp.outer(delta[0], cache[0][0])), "only one example"),
        "the wrong axis": (on("w", wrong_sums), "summed over the wrong ax"),
        "a_out for a_in": (on("w", lambda w, params, cache, delta: delta.T @ cache[2] / M), "a_out stands where"),
        "σ' once more": (
            lambda layer, right, params, cache, delta: {
                **right, "w": layer.activation.error(delta, cache[1], cache[2]).T @ cache[0] / M},
            "σ' is applied once more"),
    }, leaf="['w']")  # fmt: skip
    add(DENSE, "gradients", {
        "sign": (on("b", lambda b, *rest: -b), "wrong sign"),
        "sum for mean": (on("b", lambda b, *rest: M * b), "a factor m"),
        "left out": (on("b", lambda b, *rest: 0 * b), "left out"),
        "the wrong axis": (on("b", lambda b, params, cache, delta: delta.sum(1) / M), "summed over the wrong ax"),
        "not summed": (on("b", lambda b, params, cache, delta: delta / M), "not summed over the examples"),
        "an example left out": (on("b", lambda b, params, cache, delta: delta[:-1].mean(0)), "one example is left out"),
    }, leaf="['b']")  # fmt: skip
    add(DENSE, "backward", {
        "σ' missing": (
            lambda layer, right, params, cache, da: (da @ params["w"], right[1]), "σ' is missing"),
        "sign": (lambda layer, right, *rest: (-right[0], right[1]), "wrong sign"),
        "transposed": (
            lambda layer, right, params, cache, da: (layer.error(params, cache, da) @ params["w"].T, right[1]),
            "transposed"),
    }, leaf="da_in")  # fmt: skip
    add(AFFINE, "gradients", {
        "two leaves swapped": (lambda layer, right, *rest: {"g": right["b"], "b": right["g"]}, "swapped"),
    }, leaf="['b']")  # fmt: skip
    add(CONV, "error", {
        "σ' missing": (lambda layer, right, params, cache, da: da, "σ' is missing"),
        "σ' doubled": (twice_the_derivative, "σ' is applied twice"),
        "sign": (sign, "wrong sign"),
        "an example left out": (without_the_last_example, "one example is left out"),
    })  # fmt: skip
    flipped = lambda params: {**params, "w": jnp.flip(params["w"], (0, 1))}  # noqa: E731
    swapped = lambda params: {**params, "w": jnp.swapaxes(params["w"], 2, 3)}  # noqa: E731
    conv_propagate = lambda params, cache, delta: fn.Conv.propagate(CONV, params, cache, delta)  # noqa: E731
    add(CONV, "propagate", {
        "not rotated": (
            lambda layer, right, params, cache, delta: conv_propagate(flipped(params), cache, delta), "rotated by 180°"),
        "channels transposed": (
            lambda layer, right, params, cache, delta: conv_propagate(swapped(params), cache, delta), "transposed"),
        "padding off by one": (lambda layer, right, *rest: slid(right, 1), "off by one along axis 1"),
        "padding off by one across": (lambda layer, right, *rest: jnp.roll(right, -1, 2), "off by one along axis 2"),
        "sign": (sign, "wrong sign"),
        "divided by the places": (times(1 / 36), "number of steps or places, = 36 is missing"),
        "an example left out": (without_the_last_example, "one example is left out"),
        "σ' once more": (
            lambda layer, right, params, cache, delta: conv_propagate(
                params, cache, layer.activation.error(delta, cache[1], cache[2])),
            "σ' is applied once more"),
    })  # fmt: skip
    add(CONV, "gradients", {
        "rotated": (on("w", lambda w, *rest: jnp.flip(w, (0, 1))), "rotated by 180°"),
        "channels transposed": (on("w", lambda w, *rest: jnp.swapaxes(w, 2, 3)), "transposed"),
        "height and width transposed": (on("w", lambda w, *rest: jnp.swapaxes(w, 0, 1)), "transposed"),
        "sign": (on("w", lambda w, *rest: -w), "wrong sign"),
        "sum for mean": (on("w", lambda w, *rest: M * w), "a factor m"),
        "mean over the places": (on("w", lambda w, *rest: w / 36), "number of steps or places, = 36 is missing"),
        "padding off by one": (
            lambda layer, right, params, cache, delta: {
                **right, "w": fn.Conv.gradients(CONV, params, (slid(cache[0], 1), *cache[1:]), delta)["w"]},
            "off by one"),
        "a_in rotated": (
            lambda layer, right, params, cache, delta: {
                **right, "w": fn.Conv.gradients(CONV, params, (jnp.flip(cache[0], (1, 2)), *cache[1:]), delta)["w"]},
            "rotated by 180°"),
        "an example left out": (
            lambda layer, right, params, cache, delta: {
                **right, "w": fn.Conv.gradients(CONV, params, cache, delta.at[2].set(0))["w"]},
            "one example is left out"),
        "left out": (on("w", lambda w, *rest: 0 * w), "left out"),
    }, leaf="['w']")  # fmt: skip
    add(CONV, "gradients", {
        "mean over the places": (on("b", lambda b, params, cache, delta: delta.mean((0, 1, 2))), "places, = 36 is missing"),
        "not summed over the places": (
            on("b", lambda b, params, cache, delta: delta.mean(0)), r"shape \(6, 6, 2\) instead of \(2,\)"),
        "sum for mean": (on("b", lambda b, *rest: M * b), "a factor m"),
        "left out": (on("b", lambda b, *rest: 0 * b), "left out"),
        "an example left out": (
            on("b", lambda b, params, cache, delta: delta[:-1].sum((0, 1, 2)) / M), "one example is left out"),
    }, leaf="['b']")  # fmt: skip
    spread = lambda delta, share: jnp.repeat(jnp.repeat(delta * share, 2, 1), 2, 2)  # noqa: E731
    corner = jnp.zeros((1, 6, 6, 1)).at[:, ::2, ::2].set(1)
    add(MAX, "propagate", {
        "spread as a mean": (lambda layer, right, params, cache, delta: spread(delta, 0.25), "spread evenly"),
        "the first place": (
            lambda layer, right, params, cache, delta: spread(delta, 1) * corner.astype(delta.dtype), "first place"),
        "sign": (sign, "wrong sign"),
        "a factor": (times(4.0), r"size of the window, = 4 too much"),
        "off by one": (lambda layer, right, *rest: jnp.roll(right, 1, 1), "off by one along axis 1"),
        "an example left out": (without_the_last_example, "one example is left out"),
        "rotated": (lambda layer, right, *rest: jnp.flip(right, (1, 2)), "rotated by 180°"),
    })  # fmt: skip
    add(MEAN, "propagate", {
        "1/k missing": (times(4.0), "size of the window, = 4 too much"),
        "the first place": (
            lambda layer, right, params, cache, delta: right * corner.astype(delta.dtype), "only the first place"),
        "sign": (sign, "wrong sign"),
        "off by one": (lambda layer, right, *rest: slid(right, 2), "off by one along axis 2"),
        "an example left out": (without_the_last_example, "one example is left out"),
        "1/k twice": (times(0.25), "size of the window, = 4 is missing"),
    })  # fmt: skip
    keep = lambda cache: cache[0].astype(jnp.float32)  # noqa: E731
    add(DROP, "propagate", {
        "1/keep missing": (
            lambda layer, right, p, cache, delta: delta * keep(cache).astype(delta.dtype), "1/keep = 2.5 is missing"),
        "1/keep twice": (times(2.5), "1/keep = 2.5 too much"),
        "the mask missing": (lambda layer, right, p, cache, delta: 2.5 * delta, "the mask is not applied"),
        "stale mask": (
            lambda layer, right, p, cache, delta: jnp.where(jnp.roll(cache[0], 1, 0), 2.5 * delta, 0), "stale or wrong"),
        "sign": (sign, "wrong sign"),
        "an example left out": (without_the_last_example, "one example is left out"),
    })  # fmt: skip
    add(DROP, "forward", {
        "stale mask in the cache": (lambda layer, right, p, cache, fed: (
            None if cache[0] is None else jnp.roll(cache[0], 1, 1), cache[1]), "stale or wrong"),
    })  # fmt: skip
    add(THIN, "propagate", {
        "scaled": (times(2.5), "constant factor 2.5"),
        "the mask missing": (lambda layer, right, p, cache, delta: delta, "the mask is not applied"),
    }, family="Dropout per batch")  # fmt: skip
    return rows


MUTANTS = _mutants()


def network(mutant: Mutant, place: str) -> tuple[fn.Network, int, tuple[int, ...]]:
    """A network with the mutant in a place, the place's index, and the input shape."""
    wrong = mutant.planted()
    others = 2 if place == "middle" else 1
    if isinstance(mutant.layer, fn.Conv):
        layers, shape = [CONV] * others, (6, 6, 2)
    elif isinstance(mutant.layer, fn.MaxPool | fn.MeanPool):
        layers, shape = [fn.Conv(2, 3, fn.tanh, padding="same")], (6, 6, 2)
        layers = [*layers, fn.Conv(2, 1, fn.sigmoid)] if place == "middle" else layers
    else:
        layers, shape = [DENSE] * others, (6,)
    index = {"first": 0, "middle": 1, "last": len(layers)}[place]
    layers.insert(index, wrong)
    return fn.Network(*layers), index, shape


def audit(mutant: Mutant, place: str, dtype: str = "float64") -> tuple[fn.Report, str]:
    net, index, shape = network(mutant, place)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda p: jnp.asarray(p, dtype), net.init(jax.random.key(0), shape))
    x = jnp.asarray(draw.standard_normal((M, *shape)), dtype)
    y = jnp.asarray(draw.uniform(size=(M, *net.output_shape(shape))), dtype)
    report = fn.compare_gradients(net, fn.quadratic, params, x, y, key=jax.random.key(3))
    return report, f"{index} {type(net[index]).__name__}"


FIRST = {mutant.hint: i for i, mutant in reversed(list(enumerate(MUTANTS)))}
"""By default each kind of mistake, which is what its hint says, is planted once."""
PLANTED = [
    pytest.param(
        mutant,
        place,
        id=f"{mutant}, {place}",
        marks=() if FIRST[mutant.hint] == i and place == PLACES[i % 3] else pytest.mark.thorough,
    )
    for i, mutant in enumerate(MUTANTS)
    for place in PLACES
]


@pytest.mark.parametrize(("mutant", "place"), PLANTED)
def test_a_mutant_is_named_and_explained(mutant, place):
    report, name = audit(mutant, place)
    top = report.rows[0]
    equation = "propagate" if mutant.equation == "forward" else mutant.equation
    assert (top.layer, top.equation, top.leaf, top.verdict) == (name, equation, mutant.leaf, "fail"), str(report)
    assert {row.layer for row in report.rows if row.verdict == "fail"} == {name}, str(report)
    assert re.search(mutant.hint, top.hint), f"{top.hint!r}\n{report}"


def test_there_are_enough_mutants():
    assert len(MUTANTS) + len(COST_MUTANTS) + len(PENALTY_MUTANTS) >= 80
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert {type(mutant.layer) for mutant in MUTANTS} == {
        fn.Dense,
        Affine,
        fn.Conv,
        fn.MaxPool,
        fn.MeanPool,
        fn.Dropout,
    }


def changed(cost, **fields):
    return dataclasses.replace(cost, **fields)


def sigmoid_error(z, y):
    return fn.sigmoid(z) - y


COST_MUTANTS = [
    (
        "cross-entropy, sign",
        changed(fn.cross_entropy, matched_error=lambda z, y: y - fn.sigmoid(z)),
        fn.sigmoid,
        "wrong sign",
    ),
    (
        "cross-entropy, σ' applied",
        changed(fn.cross_entropy, matched_error=lambda z, y: sigmoid_error(z, y) * fn.sigmoid(z) * (1 - fn.sigmoid(z))),
        fn.sigmoid,
        "σ' is applied here",
    ),
    (
        "cross-entropy, 1/m",
        changed(fn.cross_entropy, matched_error=lambda z, y: sigmoid_error(z, y) / M),
        fn.sigmoid,
        "1/m",
    ),
    ("cross-entropy, no y", changed(fn.cross_entropy, matched_error=lambda z, y: fn.sigmoid(z)), fn.sigmoid, "targets"),
    (
        "cross-entropy, no a",
        changed(fn.cross_entropy, matched_error=lambda z, y: -y),
        fn.sigmoid,
        "the outputs are left out",
    ),
    (
        "softmax, sign",
        changed(fn.log_likelihood, matched_error=lambda z, y: y - fn.softmax(z)),
        fn.softmax,
        "wrong sign",
    ),
    ("softmax, no y", changed(fn.log_likelihood, matched_error=lambda z, y: fn.softmax(z)), fn.softmax, "targets"),
    (
        "softmax, a factor",
        changed(fn.log_likelihood, matched_error=lambda z, y: 2 * (fn.softmax(z) - y)),
        fn.softmax,
        "constant factor 2",
    ),
    (
        "softmax, an example",
        changed(fn.log_likelihood, matched_error=lambda z, y: (fn.softmax(z) - y).at[0].set(0)),
        fn.softmax,
        "one example is left out",
    ),
    ("quadratic, factor", changed(fn.quadratic, gradient=lambda a, y: 2 * (a - y)), fn.tanh, "constant factor 2"),
    ("quadratic, sign", changed(fn.quadratic, gradient=lambda a, y: y - a), fn.tanh, "wrong sign"),
    (
        "quadratic, σ'",
        changed(fn.quadratic, gradient=lambda a, y: (a - y) * (1 - a * a)),
        fn.tanh,
        "σ' is applied here",
    ),
    ("log-likelihood, sign", changed(fn.log_likelihood, gradient=lambda a, y: y / a), fn.sigmoid, "wrong sign"),
    (
        "log-likelihood, no 1/a",
        changed(fn.log_likelihood, gradient=lambda a, y: -y),
        fn.sigmoid,
        "the outputs are left out",
    ),
]


@pytest.mark.parametrize(
    ("cost", "activation", "hint"),
    [
        pytest.param(
            *row[1:], id=row[0], marks=pytest.mark.thorough if row[3] in {r[3] for r in COST_MUTANTS[:i]} else ()
        )
        for i, row in enumerate(COST_MUTANTS)
    ],
)
def test_a_mutant_of_a_cost_is_named_and_explained(cost, activation, hint):
    net = fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, activation))
    params = params_of(net, (5,))
    draw = np.random.default_rng(0)
    y = draw.dirichlet(np.ones(3), M)
    report = fn.compare_gradients(net, cost, params, draw.standard_normal((M, 5)), y)
    top = report.rows[0]
    matched = activation == cost.matched
    assert (top.layer, top.verdict) == (f"cost {cost}", "fail")
    assert top.equation == ("output_error" if matched else "output_gradient")
    assert re.search(hint, top.hint), f"{top.hint!r}\n{report}"
    assert [row for row in report.rows if row.verdict == "fail"] == [top]


def weights_forgotten(cost):
    class Forgetful(type(cost)):
        def output_error(self, z, y, *, weights=None):
            return super().output_error(z, y)

    return jax.tree_util.register_static(Forgetful)(**{f.name: getattr(cost, f.name) for f in dataclasses.fields(cost)})


def test_forgotten_weights_of_a_cost_are_named():
    net = fn.Network(fn.Dense(3, fn.softmax))
    params = params_of(net, (5,))
    x, weights = normal((M, 5), seed=1), jnp.linspace(0.5, 2, M)
    report = fn.compare_gradients(
        net, weights_forgotten(fn.log_likelihood), params, x, jnp.arange(M) % 3, weights=weights
    )
    assert (report.rows[0].equation, report.rows[0].verdict) == ("output_error", "fail")
    assert "weights of the examples are left out" in report.rows[0].hint


def penalty(base, change):
    """A penalty whose gradient is change(lam, n, is_weight, p)."""

    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Wrong(base):
        def gradient(self, params, n_examples):
            def leaf(path, p):
                return change(self.lam, n_examples, float(path[-1].key == "w"), p)

            return jax.tree_util.tree_map_with_path(leaf, params)

    return Wrong(2.0)


PENALTY_MUTANTS = [
    ("L2, λ/N missing", fn.L2, lambda lam, n, w, p: w * p, "['w']", "λ/N = 0.1 is missing"),
    ("L2, 1/N missing", fn.L2, lambda lam, n, w, p: w * lam * p, "['w']", "1/N = 0.05 is missing"),
    ("L2, λ missing", fn.L2, lambda lam, n, w, p: w * p / n, "['w']", "λ = 2 is missing"),
    ("L2, a factor", fn.L2, lambda lam, n, w, p: w * 3 * lam / n * p, "['w']", "constant factor 3"),
    ("L2, sign", fn.L2, lambda lam, n, w, p: -w * lam / n * p, "['w']", "wrong sign"),
    ("L2, left out", fn.L2, lambda lam, n, w, p: 0 * p, "['w']", "left out"),
    ("L2, bias penalised", fn.L2, lambda lam, n, w, p: lam / n * p, "['b']", "a bias is penalised"),
    ("L1, bias penalised", fn.L1, lambda lam, n, w, p: lam / n * jnp.sign(p), "['b']", "a bias is penalised"),
    ("L1, 1/N missing", fn.L1, lambda lam, n, w, p: w * lam * jnp.sign(p), "['w']", "1/N = 0.05 is missing"),
    ("L1, λ/N missing", fn.L1, lambda lam, n, w, p: w * jnp.sign(p), "['w']", "λ/N = 0.1 is missing"),
]


@pytest.mark.parametrize(("base", "change", "leaf", "hint"), [pytest.param(*r[1:], id=r[0]) for r in PENALTY_MUTANTS])
def test_a_mutant_of_a_penalty_is_named_and_explained(base, change, leaf, hint):
    net = fn.Dense(3, fn.softmax, bias_init=fn.initializers.normal())
    params = params_of(net, (5,))
    x = normal((M, 5), seed=1)
    wrong = penalty(base, change)
    report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(M) % 3, penalty=wrong, n_examples=20)
    top = report.rows[0]
    assert (top.layer, top.equation, top.leaf, top.verdict) == ("penalty Wrong", "gradient", leaf, "fail")
    assert hint in top.hint, f"{top.hint!r}\n{report}"
