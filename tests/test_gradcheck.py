"""The audit: clean networks pass in every dtype, and a planted fault is named, equation and layer."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import fnnet as fn

from .cases import LAYERS, cast, normal, params_of, thorough

KEY = jax.random.key(5)


@fn.layer
class NoDerivative(fn.Dense):
    def error(self, params, cache, da_out):
        return da_out


@fn.layer
class DoubledDerivative(fn.Dense):
    def error(self, params, cache, da_out):
        _, z, a = cache
        return self.activation.error(self.activation.error(da_out, z, a), z, a)


@fn.layer
class TransposedProduct(fn.Dense):
    def propagate(self, params, cache, delta):
        return (
            delta @ params["w"].T
            if params["w"].shape[0] == params["w"].shape[1]
            else super().propagate(params, cache, delta)
        )


@fn.layer
class SumForMean(fn.Dense):
    def gradients(self, params, cache, delta):
        return {k: len(delta) * g for k, g in super().gradients(params, cache, delta).items()}


@fn.layer
class WrongSignOfBias(fn.Dense):
    def gradients(self, params, cache, delta):
        grads = super().gradients(params, cache, delta)
        return {"w": grads["w"], "b": -grads["b"]}


@fn.layer
class MeanOfErrors(fn.Dense):
    """The notes' section 3, read loosely: the mean error fed to BP4."""

    def gradients(self, params, cache, delta):
        return {**super().gradients(params, cache, delta), "w": jnp.mean(delta, 0)[:, None] * jnp.mean(cache[0], 0)}


@fn.layer
class LeafForgotten(fn.Dense):
    def gradients(self, params, cache, delta):
        return {"w": super().gradients(params, cache, delta)["w"], "b": jnp.zeros_like(params["b"])}


@fn.layer
class WrongBackward(fn.Dense):
    def backward(self, params, cache, da_out):
        da_in, grads = super().backward(params, cache, da_out)
        return 2 * da_in, grads


@fn.layer
class UnscaledDropout(fn.Dropout):
    def propagate(self, params, cache, delta):
        keep, _ = cache
        return jnp.where(keep, delta, 0)


@fn.layer
class StaleMask(fn.Dropout):
    def propagate(self, params, cache, delta):
        keep, scale = cache
        return jnp.where(jnp.roll(keep, 1, axis=0), delta * jnp.asarray(scale, delta.dtype), 0)


@fn.layer
class ReversedFlatten(fn.Flatten):
    def propagate(self, params, cache, delta):
        return super().propagate(params, cache, delta[:, ::-1])


@fn.layer
class NanGradient(fn.Dense):
    def gradients(self, params, cache, delta):
        grads = super().gradients(params, cache, delta)
        return {"w": grads["w"] * jnp.nan, "b": grads["b"]}


@fn.layer
class OffsetBias(fn.Dense):
    def gradients(self, params, cache, delta):
        grads = super().gradients(params, cache, delta)
        return {"w": grads["w"], "b": 3 * grads["b"] + 1}


@fn.layer
class WrongOutputBackward(fn.Dense):
    def output_backward(self, params, cache, delta):
        da_in, grads = super().output_backward(params, cache, delta)
        return da_in, jax.tree.map(lambda g: 5 * g, grads)


@fn.layer
class WrongOutputError(fn.Dense):
    def output_error(self, params, cache, delta):
        return 2 * delta


@fn.layer
class BernoulliDropout:
    """A mask that is another one with float64 allowed, and a propagate that forgets 1/(1 − rate)."""

    def forward(self, params, a_in, *, key=None, train=False, probe=None):
        keep = jax.random.bernoulli(key, 0.5, a_in.shape) if train else True
        a = jnp.where(keep, 2 * a_in, 0)
        return a if probe is None else a + probe, keep

    def propagate(self, params, cache, delta):
        return jnp.where(cache, delta, 0)


FAULTS = [
    (NoDerivative(6, fn.sigmoid), "error", ""),
    (DoubledDerivative(6, fn.tanh), "error", ""),
    (TransposedProduct(6, fn.tanh), "propagate", ""),
    (SumForMean(6, fn.tanh), "gradients", "['b']"),
    (WrongSignOfBias(6, fn.tanh), "gradients", "['b']"),
    (MeanOfErrors(6, fn.tanh), "gradients", "['w']"),
    (LeafForgotten(6, fn.tanh), "gradients", "['b']"),
    (WrongBackward(6, fn.tanh), "backward", "da_in"),
    (UnscaledDropout(0.5), "propagate", ""),
    (StaleMask(0.5), "propagate", ""),
    (ReversedFlatten(), "propagate", ""),
    (NanGradient(6, fn.tanh), "gradients", "['w']"),
    (OffsetBias(6, fn.tanh), "gradients", "['b']"),
    (WrongOutputBackward(6, fn.tanh), "output_backward", "['b']"),
    (WrongOutputError(6, fn.tanh), "output_error", ""),
    (BernoulliDropout(), "propagate", ""),
]


def with_fault(layer, place):
    layers = [fn.Dense(6, fn.sigmoid), fn.Dense(6, fn.tanh), fn.Dense(6, fn.softmax)]
    layers.insert(place, layer)
    return fn.Network(*layers)


AGAIN = [fault[0] for fault in FAULTS[:7]]
"""By default the mutants are enough for these."""
PLANTED = [
    pytest.param(
        *fault,
        place,
        dtype,
        id=f"{type(fault[0]).__name__}-{place}-{dtype}",
        marks=() if fault[0] not in AGAIN and (place, dtype) == (i % 3, "float64") else pytest.mark.thorough,
    )
    for i, fault in enumerate(FAULTS)
    for place in (0, 1, 2)
    for dtype in ("float64", "float32")
]


@pytest.mark.parametrize(("layer", "equation", "leaf", "place", "dtype"), PLANTED)
def test_a_planted_fault_is_named(layer, equation, leaf, place, dtype):
    net = with_fault(layer, place)
    params = params_of(net, (6,), dtype)
    x, y = normal((9, 6), dtype, seed=1), jnp.arange(9) % 6
    report = fn.compare_gradients(net, fn.log_likelihood, params, x, y, key=KEY)
    name = f"{place} {type(layer).__name__}"
    top = report.rows[0]
    assert not report.ok
    assert (top.layer, top.equation, top.leaf, top.verdict) == (name, equation, leaf, "fail")
    assert report.first == name
    assert {row.layer for row in report.rows if row.verdict == "fail"} == {name}
    assert f"layer {name}, {equation}" in str(report)


def fault_in_cost(**changes):
    return dataclasses.replace(fn.log_likelihood, **changes)


@pytest.mark.parametrize(
    ("cost", "activation", "equation"),
    [
        (fault_in_cost(matched_error=lambda z, y: y - fn.softmax(z)), fn.softmax, "output_error"),
        (fault_in_cost(matched_error=lambda z, y: fn.softmax(z)), fn.softmax, "output_error"),
        (fault_in_cost(gradient=lambda a, y: -y), fn.sigmoid, "output_gradient"),
    ],
)
def test_a_fault_in_the_cost_is_named(cost, activation, equation):
    net = fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, activation))
    params = params_of(net, (5,))
    report = fn.compare_gradients(net, cost, params, normal((6, 5)), jnp.arange(6) % 3)
    assert (report.rows[0].layer, report.rows[0].equation, report.rows[0].verdict) == (
        "cost log_likelihood",
        equation,
        "fail",
    )
    assert all(row.verdict in ("consequence", "pass") for row in report.rows[1:])
    assert any(row.verdict == "consequence" for row in report.rows)


def test_a_fault_in_an_activation_is_named():
    swapped = dataclasses.replace(fn.sigmoid, pullback=lambda da, z, a: da * z * (1 - z))
    net = fn.Network(fn.Dense(4, swapped), fn.Dense(3, fn.softmax))
    params = params_of(net, (5,))
    report = fn.compare_gradients(net, fn.log_likelihood, params, normal((6, 5)), jnp.arange(6) % 3)
    assert (report.rows[0].layer, report.rows[0].equation) == ("0 Dense", "error")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BiasPenalised(fn.L2):
    def gradient(self, params, n_examples):
        return jax.tree.map(lambda p: self.lam / n_examples * p, params)


def test_a_fault_in_the_penalty_is_named():
    net = fn.Network(fn.Dense(3, fn.softmax, bias_init=fn.initializers.normal()))
    params = params_of(net, (5,))
    args = (net, fn.log_likelihood, params, normal((6, 5)), jnp.arange(6) % 3)
    assert fn.compare_gradients(*args, penalty=fn.L2(2.0), n_examples=10).ok
    report = fn.compare_gradients(*args, penalty=BiasPenalised(2.0))
    assert (report.rows[0].layer, report.rows[0].equation) == ("penalty BiasPenalised", "gradient")


@fn.layer
class Squash:
    """A user's layer without a probe: a = tanh(w ⊙ a_in). ``fault`` names the equation that is wrong."""

    fault: str = ""

    def init(self, key, input_shape):
        return {"w": jnp.ones(input_shape)}

    def forward(self, params, a_in):
        a = jnp.tanh(params["w"] * a_in)
        return a, (a_in, a)

    def error(self, params, cache, da_out):
        return da_out if self.fault == "error" else da_out * (1 - cache[1] ** 2)

    def propagate(self, params, cache, delta):
        return delta * (1 if self.fault == "propagate" else params["w"])

    def gradients(self, params, cache, delta):
        return {"w": jnp.mean(delta * cache[0], 0) * (3 if self.fault == "gradients" else 1)}


@pytest.mark.parametrize("fault", ["", "gradients", *thorough("error", "propagate")])
def test_a_layer_without_a_probe_is_judged_jointly(fault):
    net = fn.Network(fn.Dense(4, fn.tanh), Squash(fault), fn.Dense(3, fn.softmax))
    params = params_of(net, (5,))
    params = (params[0], {"w": jnp.array([0.5, -1.0, 2.0, 1.5])}, params[2])
    report = fn.compare_gradients(net, fn.log_likelihood, params, normal((6, 5)), jnp.arange(6) % 3)
    assert report.ok == (fault == "")
    if fault:
        assert (report.rows[0].layer, report.rows[0].equation, report.rows[0].joint) == ("1 Squash", fault, True)


@fn.layer
class ErrorForgotten:
    """A tanh inside forward and no ``error``: judged jointly, ``error`` is named."""

    def init(self, key, input_shape):
        return {"w": jnp.linspace(0.5, 2, input_shape[0])}

    def forward(self, params, a_in):
        return jnp.tanh(params["w"] * a_in), a_in

    def propagate(self, params, cache, delta):
        return delta * params["w"]

    def gradients(self, params, cache, delta):
        return {"w": jnp.mean(delta * cache, 0)}


def test_an_error_that_was_forgotten_is_named():
    net = fn.Network(ErrorForgotten(), fn.Dense(3, fn.softmax))
    params = params_of(net, (5,))
    report = fn.compare_gradients(net, fn.log_likelihood, params, normal((6, 5)), jnp.arange(6) % 3)
    assert (report.rows[0].layer, report.rows[0].equation, report.rows[0].joint) == ("0 ErrorForgotten", "error", True)


def test_gradients_that_are_all_nan_do_not_pass():
    net = fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax))
    params = jax.tree.map(lambda p: p * jnp.nan, params_of(net, (5,)))
    assert not fn.compare_gradients(net, fn.log_likelihood, params, jnp.ones((6, 5)), jnp.arange(6) % 3).ok


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [0, *thorough(1, 2, 3)])
@pytest.mark.parametrize("name", ["softmax", *thorough("sigmoid", "tanh", "elu")])
@pytest.mark.parametrize("dtype", ["float32", *thorough("bfloat16", "float16")])
def test_saturated_networks_raise_no_alarm(name, dtype, seed):
    net = fn.Network(fn.Dense(4, getattr(fn, name), bias_init=fn.initializers.normal()), fn.Dense(3, fn.softmax))
    params = params_of(net, (5,), dtype, seed + 2)
    x = 6 * jax.random.normal(jax.random.key(seed + 50), (2, 5), dtype)
    report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(2))
    assert report.ok, str(report)


@pytest.mark.parametrize("case", [case for case in LAYERS if case.name == "LayerNorm"], ids=repr)
def test_no_false_alarm_about_a_layer(case):
    report = fn.check_layer(case.layer, case.params("float32"), case.inputs(7, "float32"), key=KEY)
    assert report.ok, str(report)
    assert report.first is None
    assert "agree in float32" in str(report)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("case", LAYERS, ids=repr)
def test_no_false_alarm(case, dtype):
    net = fn.Network(case.layer, fn.Flatten(), fn.Dense(3, fn.softmax))
    params = cast(net.init(jax.random.key(0), case.shape), jnp.dtype(dtype))
    x = case.inputs(7, dtype)
    report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(7) % 3, key=KEY, penalty=fn.L2(1.0))
    assert report.ok, str(report)
    assert report.first is None
    assert f"agree in {dtype}" in str(report)
    assert (
        all(row.manual_error == row.manual_error for row in report.rows if row.verdict == "pass") or dtype == "float64"
    )


def test_places_of_nested_layers_and_vacuous_rows():
    net = fn.Network(fn.Network(fn.Dense(3, fn.relu)), fn.Dense(2, fn.linear))
    params = params_of(net, (4,))
    dead = ((({"w": -jnp.ones((3, 4)), "b": -jnp.ones(3)}),), params[1])
    report = fn.compare_gradients(net, fn.quadratic, dead, jnp.ones((5, 4)), jnp.zeros((5, 2)))
    assert report.ok
    verdicts = {(row.layer, row.equation): row.verdict for row in report.rows}
    assert verdicts["0.0 Dense", "error"] == "vacuous"
    assert verdicts["1 Dense", "error"] == "pass"


def test_weights_and_integer_inputs():
    net = fn.Network(fn.Dense(3, fn.sigmoid))
    params = params_of(net, (4,))
    x, y = jnp.arange(20).reshape(5, 4) % 3, jnp.zeros((5, 3))
    report = fn.compare_gradients(net, fn.cross_entropy, params, x, y, weights=jnp.linspace(0, 1, 5))
    assert report.ok
    assert "propagate" not in {row.equation for row in report.rows}


def test_a_report_in_markdown_and_as_an_assertion():
    x, y = normal((3, 4)), jnp.array([0, 1, 1])
    for layer in (fn.Dense(2, fn.softmax), SumForMean(2, fn.softmax)):
        params = params_of(layer, (4,))
        report = fn.compare_gradients(layer, fn.log_likelihood, params, x, y)
        lines = report.to_markdown().splitlines()
        assert lines[:2] == [
            "| layer | equation | leaf | verdict | isolated | chained | in float64 | manual | autodiff |",
            "| --- " * 9 + "|",
        ]
        assert [line.count("|") for line in lines[: 2 + len(report.rows)]] == [10] * (2 + len(report.rows))
        notes = lines[3 + len(report.rows) :]
        assert notes == (
            [f"- {note}" for note in report.notes]
            if report.ok
            else [f"- 0 SumForMean, gradients {r.leaf}: {r.note}" for r in report.rows[:2]]
        )
        if report.ok:
            report.raise_if_failed()
        else:
            with pytest.raises(AssertionError, match=r"(?s)manual gradients disagree .*SumForMean +gradients .*fail"):
                report.raise_if_failed()
    assert not report.ok


@pytest.mark.thorough
@pytest.mark.parametrize("first", [fn.MaxPool(2), *thorough(fn.Flatten(), fn.Upsample(2))], ids=repr)
def test_layers_that_pass_integers_through_have_nothing_to_check(first):
    net = fn.Network(first, fn.Flatten(), fn.Dense(3, fn.softmax, fn.initializers.normal(1e-3)))
    params = net.init(jax.random.key(0), (6, 6, 1))
    x = jax.random.randint(KEY, (4, 6, 6, 1), 0, 255).astype(jnp.uint8)
    with jax.numpy_dtype_promotion("standard"):
        report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(4) % 3)
    report.raise_if_failed()
    assert {row.layer for row in report.rows if row.layer[0] in "01"} == set()
