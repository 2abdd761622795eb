"""What the audit of networks sees beside the equations: rules inside forward, other points and batches, twins, claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn

from .cases import thorough
from .test_audit import normal

KEY = jax.random.key(5)
LABELS = jnp.arange(6) % 3


def audited(layer, *, dtype="float64", m=6, cost=fn.log_likelihood, **options):
    """A layer between two others."""
    net = fn.Network(fn.Dense(4, fn.tanh), layer, fn.Dense(3, fn.softmax))
    params = jax.tree.map(lambda p: p.astype(dtype), net.init(KEY, (5,)))
    return fn.compare_gradients(net, cost, params, normal((m, 5), dtype), jnp.arange(m) % 3, **options)


def failures(report):
    return [(row.layer, row.equation) for row in report.rows if row.verdict == "fail"]


def rule(name, factor):
    """sin with a hand-written derivative, ``factor`` times the right one."""

    def f(a):
        return jnp.sin(a)

    f.__name__ = f.__qualname__ = name
    f = jax.custom_vjp(f)
    f.defvjp(lambda a: (jnp.sin(a), a), lambda a, g: (factor * g * jnp.cos(a),))
    return f


right_sin, wrong_sin = rule("right_sin", 1.0), rule("wrong_sin", 2.0)


@jax.custom_jvp
def wrong_tanh(a):
    return jnp.tanh(a)


wrong_tanh.defjvp(lambda p, t: (jnp.tanh(p[0]), t[0]))


@jax.custom_gradient
def wrong_square(a):
    return a**2, lambda g: (3 * a * g,)


DERIVATIVES = {
    right_sin: jnp.cos,
    wrong_sin: jnp.cos,
    wrong_tanh: lambda a: 1 - jnp.tanh(a) ** 2,
    wrong_square: lambda a: 2 * a,
}


@fn.layer
class Applied:
    """f(a), f with a hand-written rule, and ``factor`` times its derivative."""

    f: object
    factor: float = 1.0

    def forward(self, params, a_in, *, probe=None):
        a = self.f(a_in)
        return a if probe is None else a + probe, a_in

    def propagate(self, params, cache, delta):
        return self.factor * delta * DERIVATIVES[self.f](cache)


class TestRulesInsideForward:
    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64")])
    def test_a_right_one_passes_and_is_told(self, dtype):
        report = audited(Applied(right_sin), dtype=dtype)
        assert report.ok, str(report)
        assert ("1 Applied", "rule right_sin", "pass") in {(r.layer, r.equation, r.verdict) for r in report.rows}
        assert "hand-written rules inside forward, audited too: right_sin" in str(report)

    @pytest.mark.parametrize("f", [wrong_sin, wrong_tanh, wrong_square])
    def test_a_wrong_one_fails_and_right_equations_pass(self, f):
        report = audited(Applied(f))
        assert len(failures(report)) == 1
        layer, equation = failures(report)[0]
        assert layer == "1 Applied"
        assert equation.startswith("rule ")

    def test_an_equation_that_follows_a_wrong_rule_fails(self):
        assert failures(audited(Applied(wrong_sin, 2.0))) == [
            ("1 Applied", "propagate"),
            ("1 Applied", "rule wrong_sin"),
        ]

    def test_a_trusted_one_is_taken_as_it_is(self):
        assert audited(Applied(wrong_sin, 2.0), trust=(wrong_sin,)).ok
        assert failures(audited(Applied(wrong_sin), trust=(wrong_sin,))) == [("1 Applied", "propagate")]

    def test_rules_deep_inside(self):
        @fn.layer
        class Deep:
            def forward(self, params, a_in):
                f = jax.checkpoint(jax.jit(lambda a: jax.lax.cond(a.sum() > -1e9, wrong_sin, jnp.sin, a)))
                return jax.lax.scan(lambda a, _: (f(a), None), a_in, length=2)[0], a_in

            def propagate(self, params, cache, delta):
                return delta * jnp.cos(jnp.sin(cache)) * jnp.cos(cache)

        net = fn.Network(fn.Residual(fn.Dense(5, fn.tanh), Deep()), fn.Dense(2, fn.linear))
        report = fn.check_layer(net, net.init(KEY, (5,)), normal((6, 5)))
        assert failures(report) == [("0.1.1 Deep", "rule wrong_sin")], str(report)

    def test_a_function_that_cannot_be_differentiated(self):
        @jax.custom_vjp
        def called(a):
            return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(a.shape, a.dtype), a)

        called.defvjp(lambda a: (called(a), a), lambda a, g: (g * jnp.cos(a),))
        DERIVATIVES[called] = jnp.cos
        with pytest.raises(ValueError, match=r"rule of called .* trust=\(called,\), .* finite_differences=True"):
            audited(Applied(called))
        assert audited(Applied(called), trust=(called,)).ok
        assert audited(Applied(called), finite_differences=True).ok
        assert failures(audited(Applied(called, 2.0), finite_differences=True)) == [("1 Applied", "propagate")]


@fn.layer
class Stopped:
    """a σ(a), σ(a) held as a constant; ``whole`` for the derivative of all of it."""

    whole: bool

    def forward(self, params, a_in):
        return a_in * jax.lax.stop_gradient(jax.nn.sigmoid(a_in)), a_in

    def propagate(self, params, cache, delta):
        s = jax.nn.sigmoid(cache)
        return delta * (s + cache * s * (1 - s) if self.whole else s)


class TestCentralDifferences:
    def test_they_decide_against_autodiff(self):
        assert audited(Stopped(False)).ok
        report = audited(Stopped(False), finite_differences=True)
        assert failures(report)[0] == ("1 Stopped", "propagate")
        assert "autodiff itself differs from finite differences: a stop_gradient" in report.rows[0].hint
        assert ("network", "value_and_grad") not in failures(report)

    def test_and_for_manual(self):
        assert not audited(Stopped(True)).ok
        report = audited(Stopped(True), finite_differences=True)
        assert report.ok, str(report)
        row = next(row for row in report.rows if (row.layer, row.equation) == ("1 Stopped", "propagate"))
        assert (row.verdict, row.hint) == ("better than autodiff", "central differences agree with manual")

    def test_at_kinks_and_ties_they_mean_nothing(self):
        x = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (5, 6, 6, 1)), float)
        net = fn.Network(fn.MaxPool(2), fn.Flatten(), fn.Dense(3, fn.relu))
        params = net.init(KEY, (6, 6, 1))
        params = jax.tree.map(lambda p: jnp.round(p), params)
        report = fn.check_layer(net, params, x, finite_differences=True)
        assert report.ok, str(report)

    def test_a_cost_is_compared_too(self):
        stopped = fn.Cost("stopped", lambda a, y: a * jax.lax.stop_gradient(a), lambda a, y: a)
        net = fn.Dense(3, fn.tanh)
        args = net, stopped, net.init(KEY, (4,)), normal((6, 4)), normal((6, 3), seed=1)
        assert fn.compare_gradients(*args).ok
        assert failures(fn.compare_gradients(*args, finite_differences=True))[0] == ("cost stopped", "output_gradient")


class TestWhatIsNotThere:
    def test_a_propagate_that_is_not_defined(self):
        @fn.layer
        class Unpropagated:
            def forward(self, params, a_in):
                return 2 * a_in, None

        for net in (Unpropagated(), fn.Network(Unpropagated(), fn.Dense(3, fn.softmax))):
            report = fn.check_layer(net, net.init(KEY, (4,)), normal((6, 4)))
            assert failures(report) == [("0 Unpropagated", "propagate")]
            assert "not defined: write propagate(params, cache, delta) -> da_in" in report.rows[0].hint
        assert ("1 Unpropagated", "propagate") in failures(audited(Unpropagated()))

    def test_gradients_that_are_not_defined(self):
        @fn.layer
        class Scaled:
            def init(self, key, input_shape):
                return {"g": jnp.full(input_shape, 0.7)}

            def forward(self, params, a_in):
                return params["g"] * a_in, None

            def propagate(self, params, cache, delta):
                return params["g"] * delta

        report = audited(Scaled())
        assert failures(report) == [("1 Scaled", "gradients")]
        assert "not defined: write gradients(params, cache, delta) -> grads" in report.rows[0].hint

    @pytest.mark.parametrize("m", [2, 6])
    def test_a_forward_that_returns_no_pair(self, m):
        @fn.layer
        class Single:
            def forward(self, params, a_in):
                return 2 * a_in

            def propagate(self, params, cache, delta):
                return 2 * delta

        with pytest.raises(
            ValueError, match=r"layer 1 Single\(\): expected a pair \(a_out, cache\) from forward, got one value"
        ):
            audited(Single(), m=m)
        with pytest.raises(ValueError, match=r"Single\(\): expected a pair"):
            fn.check_layer(Single(), {}, normal((m, 4)))

    def test_vacuous_is_no_pass(self):
        net = fn.Network(fn.Dense(3, fn.relu), fn.Dense(2, fn.linear))
        params = net.init(KEY, (4,))
        dead = ({"w": -jnp.ones((3, 4)), "b": -jnp.ones(3)}, params[1])
        report = fn.compare_gradients(net, fn.quadratic, dead, jnp.ones((5, 4)), jnp.zeros((5, 2)))
        assert report.ok
        report.raise_if_failed(vacuous=True)
        with pytest.raises(AssertionError, match=r"comparisons are vacuous: .* raise_if_failed\(vacuous=True\)"):
            report.raise_if_failed()
        assert "vacuous: nothing was tested there." in str(report)
        with pytest.raises(AssertionError, match="nothing was compared"):
            fn.check_layer(fn.Flatten(), {}, jnp.ones((3, 4), int)).raise_if_failed()

    def test_the_dtypes_and_the_judge_are_named(self):
        text = str(audited(fn.Dense(4, fn.tanh), dtype="float32"))
        assert "Judged by autodiff of the forward pass in float32 and in float64." in text
        assert "agree in float32." in text
        assert "Judged by autodiff of the forward pass in float64." in str(audited(fn.Dense(4, fn.tanh)))
