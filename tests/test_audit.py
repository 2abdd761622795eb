"""What the audit says beside pass and fail: kinks and ties, precision, a layer or a function by itself, a third opinion."""

import dataclasses
import functools
import os
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

import fnnet as fn
from fnnet.gradcheck import network, verdicts
from fnnet.gradcheck.mistakes import Failure, explain

from .cases import array, normal, params_of, thorough
from .test_network import random_networks

KEY = jax.random.key(5)
RANDOM_NETWORKS = 30 if os.environ.get("CI") else 3


def integers(shape, dtype, low=-2, high=3):
    return jnp.asarray(np.random.default_rng(0).integers(low, high, shape), dtype)


@fn.layer
class Maximum:
    """max(z, 0), for which autodiff takes ½ at 0; its error takes ``at_zero`` there, and ``above`` right of it."""

    at_zero: float
    above: float = 1.0

    def forward(self, params, a_in, *, probe=None):
        z = a_in if probe is None else a_in + probe
        return jnp.maximum(z, 0), z

    def error(self, params, cache, da):
        slope = jnp.where(cache > 0, self.above, jnp.where(cache == 0, self.at_zero, 0.0))
        return da * slope.astype(da.dtype)

    def propagate(self, params, cache, delta):
        return delta


@pytest.mark.parametrize("dtype", ["float64", *thorough("float32", "bfloat16")])
@pytest.mark.parametrize(
    ("layer", "verdict"),
    [
        (Maximum(0.5), "pass"),
        (Maximum(0.0), "both valid subgradients"),
        (Maximum(0.3), "both valid subgradients"),
        (Maximum(1.0), "both valid subgradients"),
        (Maximum(2.0), "fail"),
        (Maximum(-0.5), "fail"),
        (Maximum(0.0, above=1.5), "fail"),
    ],
    ids=repr,
)
def test_at_a_kink_every_value_between_is_a_derivative(layer, verdict, dtype):
    x = integers((7, 6), dtype)
    report = fn.check_layer(layer, {}, x)
    row = next(row for row in report.rows if row.equation == "error")
    assert row.verdict == verdict, str(report)
    assert report.ok == (verdict != "fail")
    if verdict == "both valid subgradients":
        assert row.count == int(jnp.sum(x == 0)) > 0
        assert "either value is a derivative" in str(report)


@fn.layer
class LastMaximum(fn.MaxPool):
    """A tie goes to the last maximum."""

    def propagate(self, params, cache, delta):
        turned = (jnp.flip(a, (1, 2)) for a in (delta, *cache))
        return jnp.flip(fn.unsample_max(*turned, self.size), (1, 2))


@fn.layer
class SharedMaximum(fn.MaxPool):
    """Maxima that tie share the error, ``share`` of it in all."""

    share: float = 1.0

    def propagate(self, params, cache, delta):
        a_in, a_out = cache
        up = lambda a: jnp.repeat(jnp.repeat(a, 2, 1), 2, 2)  # noqa: E731
        ties = (a_in == up(a_out)).astype(delta.dtype)
        m, height, width, c = ties.shape
        count = ties.reshape(m, height // 2, 2, width // 2, 2, c).sum((2, 4))
        return ties * up(delta / count) * jnp.asarray(self.share, delta.dtype)


@fn.layer
class DoubledMaximum(fn.MaxPool):
    """Every maximum that ties gets the whole error."""

    def propagate(self, params, cache, delta):
        a_in, a_out = cache
        up = lambda a: jnp.repeat(jnp.repeat(a, 2, 1), 2, 2)  # noqa: E731
        return jnp.where(a_in == up(a_out), up(delta), 0)


@pytest.mark.parametrize("dtype", ["float64", *thorough("float32", "bfloat16")])
@pytest.mark.parametrize(
    ("layer", "verdict", "hint"),
    [
        (fn.MaxPool(2), "pass", ""),
        (LastMaximum(2), "both valid subgradients", "kinks or ties"),
        (SharedMaximum(2), "both valid subgradients", "kinks or ties"),
        (SharedMaximum(2, share=0.5), "fail", ""),
        (DoubledMaximum(2), "fail", "every entry that ties"),
    ],
    ids=repr,
)
def test_at_a_tie_the_error_may_go_to_any_maximum_but_only_once(layer, verdict, hint, dtype):
    report = fn.check_layer(layer, {}, integers((5, 6, 6, 2), dtype, 0, 3))
    row = next(row for row in report.rows if row.equation == "propagate")
    assert row.verdict == verdict, str(report)
    assert hint in row.hint
    assert report.ok == (verdict != "fail")


@pytest.mark.thorough
def test_what_follows_from_a_choice_of_subgradients_is_no_failure():
    net = fn.Network(fn.Conv(2, 3, fn.tanh), LastMaximum(2), fn.Flatten(), fn.Dense(3, fn.softmax))
    params = params_of(net, (6, 6, 1))
    report = fn.compare_gradients(net, fn.log_likelihood, params, jnp.ones((5, 6, 6, 1)), jnp.arange(5) % 3)
    assert report.ok, str(report)
    chosen = {(row.layer, row.equation) for row in report.rows if row.verdict == "both valid subgradients"}
    assert {("1 LastMaximum", "propagate"), ("0 Conv", "error"), ("network", "backward")} <= chosen


@fn.layer
class Narrow(fn.Dense):
    """Products of operands that are rounded to bfloat16, as an accelerator may do by default; ``error`` rounds elsewhere."""

    wrong: float = 1.0

    def forward(self, params, a_in, *, probe=None):
        w, a = (jnp.asarray(v, jnp.bfloat16).astype(v.dtype) for v in (params["w"], a_in))
        return super().forward({**params, "w": w}, a, probe=probe)

    def propagate(self, params, cache, delta):
        return self.wrong * (jnp.asarray(delta, jnp.bfloat16) @ params["w"].astype(jnp.bfloat16)).astype(delta.dtype)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", *thorough("float64")])
def test_a_layer_that_rounds_inside_is_held_to_that_dtype(dtype):
    params = params_of(Narrow(6, fn.tanh), (30,), dtype)
    for wrong, verdict in ((1.0, "precision"), (1.2, "fail")):
        report = fn.check_layer(Narrow(6, fn.tanh, wrong=wrong), params, normal((7, 30), dtype))
        row = next(row for row in report.rows if row.equation == "propagate")
        assert row.verdict == verdict, str(report)
        assert report.ok == (verdict == "precision")
        assert row.difference > verdicts.TOLERANCE[dtype]


@fn.layer
class Cancelling(fn.Dense):
    """Right in exact arithmetic; ``size`` is added and subtracted again."""

    size: float = 0.0

    def propagate(self, params, cache, delta):
        right, size = super().propagate(params, cache, delta), jnp.asarray(self.size, delta.dtype)
        return jax.lax.optimization_barrier(right + size) - size


@pytest.mark.parametrize(
    ("size", "verdict"), [(0.0, "pass"), (256.0, "precision"), (1e5, "fail")], ids=["none", "some", "much"]
)
def test_precision_is_judged_against_float64(size, verdict):
    layer = Cancelling(6, fn.tanh, size=size)
    params = jax.tree.map(lambda p: p.astype("float32"), layer.init(KEY, (30,)))
    report = fn.check_layer(layer, params, normal((7, 30), "float32"))
    row = next(row for row in report.rows if row.equation == "propagate")
    assert row.in_float64 < 1e-10
    assert row.verdict == verdict, str(report)
    assert ("loses precision" in row.hint) == (verdict == "fail")


@fn.layer
class Float32Only(fn.Dense):
    """Cannot be run in float64."""

    wrong: float = 1.0

    def forward(self, params, a_in, *, probe=None):
        if a_in.dtype != jnp.float32:
            raise TypeError("float32 only")
        return super().forward(params, a_in, probe=probe)

    def propagate(self, params, cache, delta):
        return super().propagate(params, cache, delta) * jnp.asarray(self.wrong, delta.dtype)


def test_without_float64_the_dtype_itself_is_the_judge():
    for wrong in (1.0, 1.01):
        layer = Float32Only(6, fn.tanh, wrong=wrong)
        params = params_of(layer, (30,), "float32")
        report = fn.check_layer(layer, params, normal((7, 30), "float32"))
        assert report.ok == (wrong == 1.0)
        assert all(np.isnan(row.in_float64) for row in report.rows)
        assert wrong == 1.0 or report.rows[0].hint == "a constant factor 1.01"


@pytest.mark.parametrize("dtype", ["float64", *thorough("bfloat16")])
def test_forward_mode_finds_a_network_that_is_put_together_wrongly(dtype):
    @fn.layer
    class Short(fn.Network):
        def _backward(self, params, cache, da, **about):
            da, gradients = super()._backward(params, cache, da, **about)
            return da, (*gradients[:-1], jax.tree.map(jnp.zeros_like, gradients[-1]))

    for cls, ok in ((fn.Network, True), (Short, False)):
        net = cls(fn.Dense(5, fn.tanh), fn.Dense(3, fn.softmax))
        params = params_of(net, (4,), dtype)
        report = fn.compare_gradients(net, fn.log_likelihood, params, normal((6, 4), dtype), jnp.arange(6) % 3)
        assert report.ok == ok, str(report)
        if not ok:
            wrong = [(row.layer, row.equation) for row in report.rows if row.verdict in ("fail", "consequence")]
            assert wrong == [("network", "value_and_grad"), ("network", "backward")]
            assert "put together" in report.rows[0].hint


@pytest.mark.thorough
def test_where_float64_is_off():
    """As for most users: the audit allows it for itself alone."""

    class Wrong(fn.Dense):
        def gradients(self, params, cache, delta):
            return {**super().gradients(params, cache, delta), "b": jnp.mean(delta[1:], 0)}

    with jax.enable_x64(False):
        net = fn.Network(fn.Dense(5, fn.tanh), fn.layer(Wrong)(3, fn.softmax))
        x, y = normal((6, 4), "float32"), jnp.arange(6) % 3
        report = fn.compare_gradients(net, fn.log_likelihood, params_of(net, (4,)), x, y, finite_differences=True)
        assert report.dtype == "float32"
        assert (report.rows[0].leaf, report.rows[0].hint, report.rows[0].example) == (
            "['b']",
            "one example is left out",
            0,
        )
        assert fn.check_vjp(norm_forward, norm_backward, {"gain": jnp.ones(4)}, x).ok
        assert jnp.zeros(3).dtype == jnp.float32


class TestCheckLayer:
    @pytest.mark.thorough
    def test_it_names_the_layer_of_a_network(self):
        class Wrong(fn.Dense):
            def gradients(self, params, cache, delta):
                return {**super().gradients(params, cache, delta), "b": delta[0]}

        net = fn.Network(fn.Dense(5, fn.tanh), fn.Network(fn.layer(Wrong)(4, fn.tanh)))
        report = fn.check_layer(net, params_of(net, (3,)), normal((7, 3)))
        assert report.first == "1.0 Wrong"
        assert (report.rows[0].hint, report.rows[0].example) == ("only one example is counted", 0)
        with pytest.raises(AssertionError, match=r"example 0; only one example"):
            report.raise_if_failed()

    def test_dropout_needs_a_key(self):
        with pytest.raises(ValueError, match="key"):
            fn.check_layer(fn.Dropout(0.5), {}, normal((3, 4)))
        assert fn.check_layer(fn.Dropout(0.5), {}, normal((3, 4)), key=KEY).ok

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"check_layer: expected a layer, got function; decorate .* @fn.layer"):
            fn.check_layer(lambda x: x, {}, normal((3, 4)))
        with pytest.raises(ValueError, match=r"x: expected a batch .* got shape \(0, 4\)"):
            fn.check_layer(fn.Flatten(), {}, normal((0, 4)))


def norm_forward(w, x):
    """Layer normalisation without a shift."""
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return w["gain"] * centred * scale, (w["gain"], centred * scale, scale)


def norm_backward(residuals, g):
    gain, y, scale = residuals
    e = g * gain
    dx = scale * (e - e.mean(-1, keepdims=True) - y * (e * y).mean(-1, keepdims=True))
    return {"gain": (g * y).sum(0)}, dx


def changed(**changes):
    """norm_backward with other results."""

    def backward(residuals, g):
        gain, y, scale = residuals
        dw, dx = norm_backward(residuals, g)
        place = {"dw": dw["gain"], "dx": dx, "g": g, "y": y, "e": g * gain, "scale": scale}
        new = {name: change(place) for name, change in changes.items()}
        return {"gain": new.get("dw", dw["gain"])}, new.get("dx", dx)

    return backward


class TestCheckVjp:
    args = ({"gain": normal((6,), seed=1)}, normal((9, 6), seed=2))

    @pytest.mark.parametrize("dtype", ["float64", *thorough("float32", "bfloat16", "float16")])
    def test_a_right_one(self, dtype):
        args = jax.tree.map(lambda a: a.astype(dtype), self.args)
        report = fn.check_vjp(norm_forward, norm_backward, *args)
        assert report.ok, str(report)
        assert report.dtype == dtype
        assert {(row.layer, row.leaf) for row in report.rows} == {
            ("norm_forward", "args[0]['gain']"),
            ("norm_forward", "args[1]"),
        }

    @pytest.mark.parametrize(
        ("backward", "leaf", "hint"),
        [
            (changed(dx=lambda p: -p["dx"]), "args[1]", "wrong sign"),
            (changed(dx=lambda p: p["dx"].at[4].set(0)), "args[1]", "one example is left out"),
            (changed(dx=lambda p: p["g"]), "args[1]", "this is the cotangent itself"),
            (changed(dx=lambda p: jnp.roll(p["dx"], 1, 0)), "args[1]", "the examples are shifted"),
            (changed(dx=lambda p: p["e"] * p["scale"]), "args[1]", "left out: the path through"),
            (changed(dw=lambda p: p["dw"] / 9), "args[0]['gain']", "a constant factor 0.1111 = 1/9"),
            (changed(dw=lambda p: p["dw"][::-1]), "args[0]['gain']", "reversed along axis 0"),
            (changed(dw=lambda p: p["g"] * p["y"]), "args[0]['gain']", r"shape (9, 6) instead of (6,)"),
            (changed(dw=lambda p: p["dw"] * jnp.nan), "args[0]['gain']", "NaN"),
        ],
    )
    def test_a_wrong_one(self, backward, leaf, hint):
        report = fn.check_vjp(norm_forward, backward, *self.args)
        top = report.rows[0]
        assert (top.layer, top.equation, top.leaf, top.verdict) == ("norm_forward", "backward", leaf, "fail"), str(
            report
        )
        assert hint in top.hint

    def test_integers_none_and_pytrees(self):
        def forward(table, index, scale):
            rows = scale * table[index]
            return {"rows": rows, "sum": rows.sum()}, (table.shape, index, scale, table[index])

        def backward(residuals, g):
            shape, index, scale, rows = residuals
            g = g["rows"] + g["sum"]
            return jnp.zeros(shape, g.dtype).at[index].add(scale * g), None, (g * rows).sum()

        args = normal((7, 3)), jnp.array([2, 0, 2, 5]), jnp.asarray(1.5)
        assert fn.check_vjp(forward, backward, *args).ok
        wrong = fn.check_vjp(forward, lambda r, g: (*backward(r, g)[:2], None), *args)
        assert (wrong.rows[0].leaf, wrong.rows[0].hint) == ("args[2]", "left out: 0 everywhere")

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"norm_forward with an array of floats, got none"):
            fn.check_vjp(norm_forward, norm_backward, jnp.arange(3))
        with pytest.raises(ValueError, match=r"return \(out, residuals\), got ShapeDtypeStruct"):
            fn.check_vjp(lambda x: x, lambda r, g: (g,), normal((3,)))
        with pytest.raises(ValueError, match=r"return \(out, residuals\), got 3 values"):
            fn.check_vjp(lambda x: (x, x, x), lambda r, g: (g,), normal((3,)))
        with pytest.raises(ValueError, match=r"a tuple of 1 cotangents from backward, got a tuple of 2"):
            fn.check_vjp(lambda x: (x, None), lambda r, g: (g, g), normal((3,)))
        with pytest.raises(ValueError, match=r"a tuple of 1 cotangents from backward, got \w*Tracer"):
            fn.check_vjp(lambda x: (x, None), lambda r, g: g, normal((3,)))


def free_energy(params, v):
    """F(v) = −b·v − Σ_j ln(1 + e^{c_j + w_j·v}) of a restricted Boltzmann machine."""
    return -v @ params["b"] - jax.nn.softplus(v @ params["w"].T + params["c"]).sum(-1)


def contrast(params, v0, vk):
    return jnp.mean(free_energy(params, v0)) - jnp.mean(free_energy(params, vk))


def phases(params, v0, vk, sign=1.0, wrong=None):
    """The negative phase minus the positive one, by hand."""

    def phase(v):
        h = jax.nn.sigmoid(v @ params["w"].T + params["c"])
        return {"w": h.T @ v / len(v), "b": v.mean(0), "c": h.mean(0)}

    grads = jax.tree.map(lambda model, data: sign * (model - data), phase(vk), phase(v0))
    return wrong(grads) if wrong else grads


class TestCheckGradient:
    params = {"w": normal((4, 4)), "b": normal((4,), seed=1), "c": normal((4,), seed=2)}  # noqa: RUF012
    samples = tuple((normal((9, 4), seed=s) > 0).astype(jnp.float64) for s in (3, 4))

    def test_contrastive_divergence(self):
        report = fn.check_gradient(contrast, phases, self.params, *self.samples)
        assert report.ok, str(report)
        assert [row.leaf for row in report.rows] == ["['b']", "['c']", "['w']"]
        assert max(row.difference for row in report.rows) < 1e-10

    @pytest.mark.parametrize(
        ("wrong", "leaf", "hint"),
        [
            (functools.partial(phases, sign=-1.0), "['b']", "wrong sign"),
            (functools.partial(phases, wrong=lambda g: {**g, "w": g["w"].T}), "['w']", "transposed"),
            (functools.partial(phases, wrong=lambda g: {**g, "b": g["c"], "c": g["b"]}), "['b']", "gradient of ['c']"),
            (functools.partial(phases, wrong=lambda g: {**g, "w": 9 * g["w"]}), "['w']", "a factor m = 9"),
        ],
    )
    def test_a_wrong_one(self, wrong, leaf, hint):
        report = fn.check_gradient(contrast, wrong, self.params, *self.samples)
        assert (report.rows[0].leaf, report.rows[0].verdict) == (leaf, "fail"), str(report)
        assert hint in report.rows[0].hint

    def test_a_local_derivative_left_out_is_named(self):
        """The cotangent of a scalar is 1 at every point that an explanation has to hold at."""
        y = normal((9, 4), seed=5)

        def value(p, x):
            return jnp.mean(jnp.sum((jnp.tanh(x @ p["w"] + p["b"]) - y) ** 2, axis=1)) / 2

        def gradient(p, x):
            delta = jnp.tanh(x @ p["w"] + p["b"]) - y
            return {"w": x.T @ delta / len(x), "b": delta.mean(0)}

        params = {"w": self.params["w"], "b": self.params["b"]}
        rows = fn.check_gradient(value, gradient, params, normal((9, 4), seed=3)).rows
        assert [row.leaf for row in rows] == ["['b']", "['w']"]
        for row in rows:
            assert re.match(r"the local derivative of tanh of `.*` is missing", row.hint), row.hint

    def test_bad_input(self):
        with pytest.raises(ValueError, match="to be a scalar"):
            fn.check_gradient(free_energy, phases, self.params, self.samples[0])
        with pytest.raises(ValueError, match="expected parameters of floats"):
            fn.check_gradient(contrast, phases, {})
        report = fn.check_gradient(contrast, lambda *a: {"w": phases(*a)["w"]}, self.params, *self.samples)
        assert (report.rows[0].verdict, report.rows[0].hint) == ("fail", "nothing where an array belongs")


@pytest.mark.thorough
def test_finite_differences_are_a_third_opinion():
    class Wrong(fn.Dense):
        def propagate(self, params, cache, delta):
            return 2 * super().propagate(params, cache, delta)

    net = fn.Network(fn.Conv(2, 3, fn.tanh), fn.MaxPool(2), fn.Flatten(), fn.layer(Wrong)(4, fn.sigmoid))
    params, x, y = params_of(net, (6, 6, 1)), normal((5, 6, 6, 1)), normal((5, 4), seed=1) > 0
    without = fn.compare_gradients(net, fn.quadratic, params, x, y.astype(float))
    assert all(np.isnan(row.finite_difference) for row in without.rows)
    assert "finite" not in str(without)
    report = fn.compare_gradients(net, fn.quadratic, params, x, y.astype(float), finite_differences=True)
    third = {(row.layer, row.equation, row.leaf): row.finite_difference for row in report.rows}
    of_layers = {place: number for place, number in third.items() if place[0][0].isdigit()}
    assert len(of_layers) == 12
    assert of_layers.pop(("3 Wrong", "propagate", "")) == pytest.approx(1, rel=1e-6)
    assert max(of_layers.values()) < 1e-6
    assert "finite diff." in str(report)


class TestReport:
    def report(self, wrong=True):
        class Wrong(fn.Dense):
            def propagate(self, params, cache, delta):
                return -super().propagate(params, cache, delta)

        layer = fn.layer(Wrong)(4, fn.tanh) if wrong else fn.Dense(4, fn.tanh)
        return fn.check_layer(layer, params_of(layer, (3,)), normal((7, 3)))

    def test_rows_are_records(self):
        row = self.report().rows[0]
        record = dataclasses.asdict(row)
        assert record["verdict"] == "fail"
        assert record["count"] == 21
        manual, autodiff = record["values"]
        assert manual == -autodiff
        assert len(record["index"]) == 2
        assert (
            row.note
            == f"21 entries differ, most at {list(row.index)}: manual {manual:.4g}, autodiff {autodiff:.4g}; wrong sign"
        )

    def test_where_all_agree_it_says_so_and_names_the_equations(self):
        report = self.report(wrong=False)
        found, empty, head, line, *layers = str(report).splitlines()
        number = max(row.difference for row in report.rows)
        assert found == (
            f"All {len(report.rows)} comparisons agree in float64: "
            f"the hand-written gradients are those of jax.grad, to {number:.1e} of the largest entry."
        )
        assert (empty, head, set(line)) == ("", "layer    verdict  equations", {"-"})
        assert layers[0] == "0 Dense  pass     error, propagate, gradients ['b'], ['w']"
        assert "print(report.full())" in layers[-1]
        full = report.full().splitlines()
        assert full[0] == found
        assert sum(re.match("0 Dense +(error|propagate|gradients)", line) is not None for line in full) == 4
        assert "e-1" not in str(report)[len(found) :]

    def test_where_something_failed_it_shows_those_rows_whole(self):
        report = self.report()
        shown, full = str(report).splitlines(), report.full().splitlines()
        assert shown[0].endswith("layer 0 Wrong, propagate")
        assert shown[1] == f"0 Wrong, propagate: {report.rows[0].note}"
        failed = [row for row in report.rows if row.verdict in ("fail", "consequence")]
        of_rows = [line for line in shown if re.search("  (fail|consequence|pass)  ", line)]
        assert len(of_rows) == len(failed) < len(report.rows)
        assert [line.split() for line in of_rows] == [
            line.split() for line in full if re.search("  (fail|consequence)  ", line)
        ]
        assert shown[-1].endswith(f"All {len(report.rows)} comparisons in numbers: print(report.full())")
        with pytest.raises(AssertionError) as error:
            report.raise_if_failed()
        assert report.full() in str(error.value)

    def test_a_claim_is_made_of_what_was_compared_only(self):
        row = fn.Row("0 Dense", "error", "", "pass", difference=1e-9, chained=3e-9)

        def say(*verdicts):
            return str(fn.Report(tuple(dataclasses.replace(row, verdict=v) for v in verdicts), "float32"))

        claim = "All 2 comparisons agree in float32: the hand-written gradients are those of jax.grad, to 3.0e-09"
        assert say("pass", "pass").startswith(claim)
        for verdict in ("both valid subgradients", "better than autodiff", "approximate", "replaced"):
            assert "jax.grad" not in say("pass", verdict)
        assert say("pass", "replaced").startswith(
            "All 1 comparisons agree in float32. 1 replaced: another equation is used there."
        )
        assert say("vacuous").startswith("Nothing was compared in float32. 1 vacuous: nothing was tested there.")
        exact = fn.Report((dataclasses.replace(row, difference=0.0, chained=0.0),), "float32")
        assert "those of jax.grad, exactly." in str(exact)

    def test_colour_on_a_terminal_only(self, monkeypatch):
        report = self.report()
        assert "\033" not in str(report)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\033[31;1m0 Wrong" in str(report)
        assert "\033[31;1m0 Wrong" in report.full()
        assert "\033" not in report.to_markdown()
        with pytest.raises(AssertionError) as error:
            report.raise_if_failed()
        assert "\033" not in str(error.value)
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\033" not in str(report)

    def test_a_picture(self):
        from fnnet import plots

        for wrong in (False, True):
            ax = plots.audit(self.report(wrong))
            labels = [label.get_text() for label in ax.get_yticklabels()]
            assert len(labels) == 5
            assert ("0 Wrong propagate" if wrong else "0 Dense error") in labels[0]
            assert ax.get_title().endswith("1 failed" if wrong else "all agree")
            ax.figure.clear()

    @pytest.mark.thorough
    def test_progress_is_told_when_it_takes_long(self, monkeypatch, capsys):
        net = fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax))
        args = (net, fn.log_likelihood, params_of(net, (4,)), normal((6, 4)), jnp.arange(6) % 3)
        clock = iter(range(0, 100, 3))
        monkeypatch.setattr(network, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        assert fn.compare_gradients(*args).ok
        told = capsys.readouterr().err.splitlines()
        assert told == [
            "auditing layer 0 Dense (1 of 2), 6 s so far",
            "auditing other numbers and another number of examples, 12 s so far",
        ]


@pytest.mark.parametrize("change", ["noise", "offset"])
def test_what_nothing_explains_gets_no_hint(change):
    reference = np.asarray(normal((5, 4)))
    wrong = reference + (np.asarray(normal((5, 4), seed=1)) if change == "noise" else 1)
    assert explain(Failure(wrong, reference, 1e-8, m=9)).text == ""


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_no_random_network_raises_a_false_alarm(dtype):
    @settings(max_examples=RANDOM_NETWORKS)
    @given(random_networks())
    def check(drawn):
        net, cost, n_in, m, penalty, seed = drawn
        params, x = params_of(net, (n_in,), dtype, (seed, 1)), normal((m, n_in), dtype, seed)
        draw, n_out, key = np.random.default_rng(seed), net.output_shape((n_in,))[0], jax.random.key(seed)
        y = draw.integers(0, n_out, m) if n_out > 1 else array(draw.random((m, 1)), dtype)
        report = fn.compare_gradients(net, cost, params, x, y, key=key, penalty=penalty)
        assert report.ok, f"{net} {cost}\n{report}"
        jax.clear_caches()

    check()


class TestHardCases:
    """What a careful user's layers do: the audit has to give a report, and the right one."""

    @fn.layer
    class Squared:
        """A rule of jax.custom_vjp inside: no forward mode."""

        def forward(self, params, a_in, *, probe=None):
            a = squared(a_in)
            return a if probe is None else a + probe, a_in

        def propagate(self, params, cache, delta):
            return 2 * cache * delta

    @pytest.mark.thorough
    def test_a_custom_vjp_inside(self):
        report = fn.check_layer(self.Squared(), {}, normal((5, 4)), finite_differences=True)
        assert report.ok
        assert ("rule squared", "pass") in {(row.equation, row.verdict) for row in report.rows}
        assert fn.check_vjp(lambda x: (squared(x), x), lambda r, g: (2 * r * g,), normal((5, 4))).ok
        wrong = fn.check_layer(self.WronglySquared(), {}, normal((5, 4)))
        assert [row.equation for row in wrong.rows if row.verdict == "fail"] == ["propagate", "rule wrongly_squared"]
        trusted = fn.check_layer(self.WronglySquared(), {}, normal((5, 4)), trust=(wrongly_squared,))
        assert trusted.ok  # autodiff runs the wrong rule too ...
        third = fn.check_layer(
            self.WronglySquared(), {}, normal((5, 4)), trust=(wrongly_squared,), finite_differences=True
        )
        row = next(row for row in third.rows if row.equation == "propagate")
        assert row.finite_difference == pytest.approx(0.5, rel=1e-5)  # ... and central differences tell
        assert (row.verdict, third.ok) == ("fail", False)
        assert "autodiff itself differs from finite differences" in row.hint

    @fn.layer
    class WronglySquared:
        def forward(self, params, a_in, *, probe=None):
            a = wrongly_squared(a_in)
            return a if probe is None else a + probe, a_in

        def propagate(self, params, cache, delta):
            return 3 * cache * delta

    @fn.layer
    class Masked:
        def init(self, key, input_shape):
            return {"w": jax.random.normal(key, input_shape[-1:])}

        def forward(self, params, a_in, *, mask=None, probe=None):
            a = a_in * params["w"] * mask[..., None].astype(a_in.dtype)
            return a if probe is None else a + probe, (a_in, mask[..., None].astype(a_in.dtype))

        def propagate(self, params, cache, delta):
            return delta * params["w"] * cache[1]

        def gradients(self, params, cache, delta):
            return {"w": 3.7 * jnp.mean(jnp.sum(delta * delta * cache[0], 1), 0)}

    @pytest.mark.thorough
    def test_hints_never_cost_the_report(self):
        mask = jnp.asarray(np.random.default_rng(0).random((6, 7)) < 0.6)
        report = fn.check_layer(self.Masked(), self.Masked().init(KEY, (7, 4)), normal((6, 7, 4)), mask=mask)
        assert (report.rows[0].leaf, report.rows[0].verdict, report.rows[0].hint) == ("['w']", "fail", "")

    def test_an_equation_that_does_not_fit_its_neighbours(self):
        @fn.layer
        class Unpropagated(fn.Dense):
            def propagate(self, params, cache, delta):
                return delta

        net = fn.Network(fn.Dense(5, fn.tanh), Unpropagated(4, fn.tanh), fn.Dense(3, fn.softmax))
        report = fn.compare_gradients(net, fn.log_likelihood, params_of(net, (4,)), normal((6, 4)), jnp.arange(6) % 3)
        top = report.rows[0]
        assert (top.layer, top.equation, top.verdict) == ("1 Unpropagated", "propagate", "fail")
        assert top.hint == "the product is left out: this is δ itself (shape (6, 4) instead of (6, 5))"

    def test_a_delta_that_is_a_tree(self):
        @fn.layer
        class Pair:
            wrong: float = 1.0

            def forward(self, params, a_in, *, probe=None):
                p, q = (0, 0) if probe is None else (probe["p"], probe["q"])
                return (jnp.sin(a_in) + p) * (jnp.cos(a_in) + q), a_in

            def error(self, params, cache, da):
                return {"p": da * jnp.cos(cache), "q": self.wrong * da * jnp.sin(cache)}

            def propagate(self, params, cache, delta):
                return delta["p"] * jnp.cos(cache) - delta["q"] * jnp.sin(cache)

        assert fn.check_layer(Pair(), {}, normal((5, 4))).ok
        report = fn.check_layer(Pair(2.0), {}, normal((5, 4)))
        assert [(row.equation, row.leaf, row.hint) for row in report.rows if row.verdict == "fail"] == [
            ("error", "['q']", "a constant factor 2")
        ]

    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64")])
    def test_gradients_that_cancel_to_rounding(self, dtype):
        @fn.layer
        class Centred:
            def forward(self, params, a_in, *, probe=None):
                a = a_in - jnp.mean(a_in, 0)
                return a if probe is None else a + probe, len(a_in)

            def propagate(self, params, cache, delta):
                return (jnp.eye(cache, dtype=delta.dtype) - 1 / cache) @ delta

        net = fn.Network(fn.Dense(5, fn.linear), Centred(), fn.Dense(3, fn.softmax))
        params = params_of(net, (4,), dtype)
        report = fn.compare_gradients(net, fn.log_likelihood, params, normal((6, 4), dtype), jnp.arange(6) % 3)
        assert report.ok, str(report)

    @pytest.mark.thorough
    def test_ties_below_a_kink_count_once(self):
        @fn.layer
        class RectifiedMaximum(fn.MaxPool):
            share: float = 1.0

            def forward(self, params, a_in, *, probe=None):
                a, (_, pooled) = super().forward(params, jax.nn.relu(a_in), probe=probe)
                return a, (a_in, pooled)

            def propagate(self, params, cache, delta):
                up = lambda a: jnp.repeat(jnp.repeat(a, 2, 1), 2, 2)  # noqa: E731
                return jnp.where(jax.nn.relu(cache[0]) == up(cache[1]), self.share * up(delta), 0)

        x = integers((5, 6, 6, 2), "float64").at[:, :4].set(0)
        assert not fn.check_layer(RectifiedMaximum(2), {}, x).ok
        shared = fn.check_layer(RectifiedMaximum(2, share=0.25), {}, 0 * x)
        verdicts = {row.equation: row.verdict for row in shared.rows}
        assert verdicts["propagate"] == "both valid subgradients"
        assert verdicts["backward"] == "fail"  # a quarter is wrong everywhere else

    def test_kinks_of_a_function(self):
        def forward(x, b):
            return jnp.maximum(x + b, 0), x + b

        def backward(z, g):
            dz = jnp.where(z > 0, g, 0)
            return dz, dz.sum(0)

        x = normal((12, 3)).at[:6].set(0)
        report = fn.check_vjp(forward, backward, x, jnp.zeros(3))
        assert report.ok, str(report)
        assert {row.verdict for row in report.rows} == {"both valid subgradients"}
        assert not fn.check_vjp(forward, lambda z, g: (backward(z, g)[0], 2 * backward(z, g)[1]), x, jnp.zeros(3)).ok
        assert not fn.check_vjp(lambda x: (x.astype(complex), x), lambda r, g: (g,), x).ok

    @pytest.mark.thorough
    def test_a_large_feature_is_no_kink(self):
        @fn.layer
        class Off(fn.Dense):
            def error(self, params, cache, da):
                return 0.98 * super().error(params, cache, da)

        params = params_of(Off(6, fn.tanh), (5,))
        params = {**params, "w": params["w"].at[:, 0].divide(1e6)}
        report = fn.check_layer(Off(6, fn.tanh), params, normal((7, 5)).at[:, 0].multiply(1e6))
        assert (report.rows[0].equation, report.rows[0].hint) == ("error", "a constant factor 0.98")

    @pytest.mark.parametrize("method", ["_backward", *thorough("output_backward")])
    def test_a_kink_hides_no_wrong_composition(self, method):
        def doubled(self, params, cache, given, **about):
            da, gradients = getattr(super(Doubled, self), method)(params, cache, given, **about)
            return da, jax.tree.map(lambda g: 2 * g, gradients)

        Doubled = fn.layer(type("Doubled", (fn.Network,), {method: doubled}))
        kink = Maximum(0.0)
        for first, cls, ok in ((kink, fn.Network, True), (kink, Doubled, False), (fn.Flatten(), Doubled, False)):
            net = cls(first, fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax))
            x = normal((6, 5)).at[:, 0].set(0)
            report = fn.compare_gradients(net, fn.log_likelihood, params_of(net, (5,)), x, jnp.arange(6) % 3)
            assert report.ok == ok, str(report)
            assert ok or report.rows[0].layer == "network"

    def test_a_cast_somewhere_excuses_no_factor(self):
        @fn.layer
        class Cast(fn.Dense):
            wrong: float = 1.0

            def forward(self, params, a_in, *, probe=None):
                a, cache = super().forward(params, a_in, probe=probe)
                return jnp.where(jnp.any(jnp.isnan(a.astype(jnp.bfloat16))), 0, a), cache

            def propagate(self, params, cache, delta):
                return self.wrong * super().propagate(params, cache, delta)

        for wrong, ok in ((1.0, True), (1.02, False)):
            layer = Cast(6, fn.tanh, wrong=wrong)
            assert fn.check_layer(layer, params_of(layer, (5,)), normal((7, 5))).ok == ok

    @pytest.mark.thorough
    def test_a_layer_that_rounds_inside_blames_no_other(self):
        net = fn.Network(fn.Dense(8, fn.tanh), Narrow(6, fn.tanh), fn.Dense(3, fn.softmax))
        report = fn.compare_gradients(net, fn.log_likelihood, params_of(net, (30,)), normal((7, 30)), jnp.arange(7) % 3)
        assert report.ok, str(report)

    def test_a_probe_that_is_not_used(self):
        @fn.layer
        class Ignores(fn.Dense):
            def forward(self, params, a_in, **given):
                return super().forward(params, a_in)

        params = params_of(Ignores(6, fn.tanh), (5,))
        report = fn.check_layer(Ignores(6, fn.tanh), params, normal((7, 5)))
        assert report.ok, str(report)
        assert all(row.joint for row in report.rows if row.layer == "0 Ignores")

    def test_a_probe_at_the_wrong_place(self):
        @fn.layer
        class Misplaced(fn.Dense):
            def forward(self, params, a_in, *, probe=None):
                a, cache = super().forward(params, a_in)
                return a if probe is None else a + probe, cache

        report = fn.check_layer(Misplaced(6, fn.tanh), params_of(Misplaced(6, fn.tanh), (5,)), normal((7, 5)))
        assert any("adds the probe to a, not to z" in row.hint for row in report.rows)

    def test_parameters_of_integers(self):
        @fn.layer
        class Table(fn.Flatten):
            def init(self, key, input_shape):
                return {"order": jnp.arange(3)}

        with pytest.raises(
            ValueError, match=r"layer 0 Table: expected parameters of floats .* got int\d\d at \['order'\]"
        ):
            fn.check_layer(Table(), Table().init(KEY, (3,)), normal((2, 3)))

    def test_functions_of_integers_and_of_nothing(self):
        def forward(x):
            return (x**2, jnp.argmax(x)), x

        assert fn.check_vjp(forward, lambda r, g: (2 * r * g[0],), normal((6,))).ok
        report = fn.check_gradient(lambda p, x: jnp.sum(p**2), lambda p, x: -2 * p, normal((3,)), jnp.zeros((0, 3)))
        assert report.rows[0].hint == "wrong sign"

    def test_other_leaves_dtypes_and_kinds(self):
        x = normal((6,), "float32")
        extra = fn.check_gradient(lambda p: jnp.sum(p["w"] ** 2), lambda p: {"w": 2 * p["w"], "v": x}, {"w": x})
        assert (extra.rows[0].leaf, extra.rows[0].hint) == ("['v']", "there is no such leaf to differentiate")
        extra = fn.check_vjp(
            lambda p: (jnp.sin(p["w"]), p), lambda r, g: ({"w": g * jnp.cos(r["w"]), "v": g},), {"w": x}
        )
        assert extra.rows[0].leaf == "args[0]['v']"
        narrow = fn.check_vjp(lambda x: (x, None), lambda r, g: (g.astype(jnp.bfloat16),), x)
        assert narrow.rows[0].hint == "bfloat16 instead of float32"
        with pytest.raises(ValueError, match="check_gradient: expected arrays, got a traced value"):
            jax.jit(lambda p: fn.check_gradient(jnp.sum, jnp.ones_like, p).ok)(x)


@jax.custom_vjp
def squared(a):
    return a**2


squared.defvjp(lambda a: (a**2, a), lambda a, g: (2 * a * g,))


@jax.custom_vjp
def wrongly_squared(a):
    return a**2


wrongly_squared.defvjp(lambda a: (a**2, a), lambda a, g: (3 * a * g,))


class TestComposites:
    """Nobody's part is wrong: the join is, or the wiring."""

    @staticmethod
    def audited(layer):
        net = fn.Network(fn.Dense(4, fn.tanh), fn.Residual(layer), fn.Dense(3, fn.softmax))
        return fn.compare_gradients(net, fn.log_likelihood, params_of(net, (5,)), normal((6, 5)), jnp.arange(6) % 3)

    @pytest.mark.parametrize("wrong", [*thorough(False), True])
    def test_a_join_of_ones_own(self, wrong):
        def split(da, t, h, a):
            return da * (h - a), da * t, da * (t if wrong else 1 - t)

        gate = fn.Join("gate", lambda t, h, a: t * h + (1 - t) * a, split)
        report = self.audited(fn.Parallel(fn.Dense(4, fn.sigmoid), fn.Dense(4, fn.tanh), fn.Identity(), join=gate))
        rows = [row for row in report.rows if row.equation == "split"]
        assert [row.leaf for row in rows] == (["[2]", "[0]", "[1]"] if wrong else ["[0]", "[1]", "[2]"])
        assert {row.layer for row in rows} == {"1.1.0 Parallel"}
        assert report.ok != wrong
        assert not wrong or (report.rows[0].equation, report.rows[0].verdict) == ("split", "fail")

    @pytest.mark.parametrize("wrong", [*thorough(False), True])
    def test_wiring_of_ones_own(self, wrong):
        @fn.layer
        class Product(fn.Composite):
            layers: tuple
            wrong: bool

            def wire(self, run, a_in):
                b, c = run(0, a_in), run(1, a_in)
                return b * c + b, (b, c)

            def unwire(self, back, da_out, extra):
                if da_out is None:
                    return back(0, None) + back(1, None)
                b, c = extra
                return back(0, da_out * (c if self.wrong else c + 1)) + back(1, da_out * b)

        report = self.audited(Product((fn.Dense(4, fn.sigmoid), fn.Dense(4, fn.tanh)), wrong))
        assert report.ok != wrong
        if wrong:
            top = report.rows[0]
            assert (top.layer, top.equation, top.verdict) == ("1.1.0 Product", "error", "fail")
            assert "the way their errors are handed on (unwire) is not" in top.hint
            assert {row.layer for row in report.rows if row.verdict == "fail"} == {"1.1.0 Product"}


def test_an_activation_is_audited_by_itself():
    z = normal((4, 3))
    report = fn.audit(fn.leaky_relu.with_(slope=0.3), z)
    assert (report.ok, report.rows[0].layer) == (True, "leaky_relu(slope=0.3)")
    wrong = dataclasses.replace(fn.sigmoid, pullback=lambda da, z, a: da * a)
    assert [row.verdict for row in fn.audit(wrong, z).rows] == ["fail"]
    surrogate = fn.step.with_surrogate(fn.sigmoid)
    assert [row.verdict for row in fn.audit(surrogate, z, intended=fn.sigmoid).rows] == ["intended"]
    with pytest.raises(
        ValueError, match=r"audit: quadratic is a cost, .* fn\.compare_gradients\(net, cost, params, x, y\)"
    ):
        fn.audit(fn.quadratic, z, z)
