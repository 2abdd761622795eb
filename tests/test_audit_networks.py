"""What the audit of networks sees beside the equations: rules inside forward, other points and batches, twins, claims."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn

from .cases import normal, params_of, thorough

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
    @pytest.mark.thorough
    @pytest.mark.parametrize("dtype", ["float64", *thorough("float32")])
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
        assert "to take the rule as it is: trust=(" in report.rows[0].hint

    def test_an_equation_that_follows_a_wrong_rule_fails(self):
        assert failures(audited(Applied(wrong_sin, 2.0))) == [
            ("1 Applied", "propagate"),
            ("1 Applied", "rule wrong_sin"),
        ]

    @pytest.mark.thorough
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
        report = fn.check_layer(net, params_of(net, (5,)), normal((6, 5)))
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

    @pytest.mark.thorough
    def test_where_nothing_can_judge(self):
        @jax.custom_vjp
        def rounded(a):
            return jax.pure_callback(lambda a: np.round(a, 3), jax.ShapeDtypeStruct(a.shape, a.dtype), a)

        rounded.defvjp(lambda a: (rounded(a), a), lambda a, g: (g,))
        DERIVATIVES[rounded] = jnp.ones_like
        report = audited(Applied(rounded), finite_differences=True)
        row = next(row for row in report.rows if (row.layer, row.equation) == ("1 Applied", "propagate"))
        assert (row.verdict, row.hint) == ("vacuous", "neither autodiff nor central differences can judge it")


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

    @pytest.mark.thorough
    def test_and_for_manual(self):
        assert not audited(Stopped(True)).ok
        report = audited(Stopped(True), finite_differences=True)
        assert report.ok, str(report)
        row = next(row for row in report.rows if (row.layer, row.equation) == ("1 Stopped", "propagate"))
        assert (row.verdict, row.hint) == ("better than autodiff", "central differences agree with manual")

    @pytest.mark.thorough
    def test_at_kinks_and_ties_they_mean_nothing(self):
        x = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (5, 6, 6, 1)), float)
        net = fn.Network(fn.MaxPool(2), fn.Flatten(), fn.Dense(3, fn.relu))
        params = params_of(net, (6, 6, 1))
        params = jax.tree.map(lambda p: jnp.round(p), params)
        report = fn.check_layer(net, params, x, finite_differences=True)
        assert report.ok, str(report)

    def test_a_cost_is_compared_too(self):
        stopped = fn.Cost("stopped", lambda a, y: a * jax.lax.stop_gradient(a), lambda a, y: a)
        net = fn.Dense(3, fn.tanh)
        args = net, stopped, params_of(net, (4,)), normal((6, 4)), normal((6, 3), seed=1)
        assert fn.compare_gradients(*args).ok
        assert failures(fn.compare_gradients(*args, finite_differences=True))[0] == ("cost stopped", "output_gradient")


class TestWhatIsNotThere:
    def test_a_propagate_that_is_not_defined(self):
        @fn.layer
        class Unpropagated:
            def forward(self, params, a_in):
                return 2 * a_in, None

        for net in (Unpropagated(), fn.Network(Unpropagated(), fn.Dense(3, fn.softmax))):
            report = fn.check_layer(net, params_of(net, (4,)), normal((6, 4)))
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
        params = params_of(net, (4,))
        dead = ({"w": -jnp.ones((3, 4)), "b": -jnp.ones(3)}, params[1])
        report = fn.compare_gradients(net, fn.quadratic, dead, jnp.ones((5, 4)), jnp.zeros((5, 2)))
        assert report.ok
        report.raise_if_failed(vacuous=True)
        with pytest.raises(AssertionError, match=r"comparisons are vacuous: .* raise_if_failed\(vacuous=True\)"):
            report.raise_if_failed()
        assert "vacuous: nothing was tested there." in str(report)
        with pytest.raises(AssertionError, match="nothing was compared"):
            fn.check_layer(fn.Flatten(), {}, jnp.ones((3, 4), int)).raise_if_failed()

    @pytest.mark.thorough
    def test_the_dtypes_and_the_judge_are_named(self):
        text = str(audited(fn.Dense(4, fn.tanh), dtype="float32"))
        assert "Judged by autodiff of the forward pass in float32 and in float64." in text
        assert "agree in float32:" in text
        assert "Judged by autodiff of the forward pass in float64." in str(audited(fn.Dense(4, fn.tanh)))


@fn.layer
class Backwards(fn.Dense):
    def gradients(self, params, cache, delta):
        return jax.tree.map(jnp.negative, super().gradients(params, cache, delta))


@fn.layer
class Doubled(fn.Dense):
    def forward(self, params, a_in, *, probe=None):
        return super().forward({**params, "w": 2 * params["w"]}, a_in, probe=probe)


@fn.layer
class WithTwin(fn.Dense):
    twin: type = fn.Dense

    def in_loop(self):
        return self.twin(self.n_out, self.activation)


class TestTwins:
    """What `fit` trains with."""

    def test_a_right_one(self):
        assert audited(WithTwin(4, fn.tanh)).ok

    @pytest.mark.parametrize(
        "around", [fn.Residual, *thorough(lambda layer: layer, lambda layer: fn.Network(fn.Identity(), layer))]
    )
    def test_a_wrong_one_is_named(self, around):
        report = audited(around(WithTwin(4, fn.tanh, twin=Backwards)))
        assert not report.ok
        assert {row.layer.split()[1] for row in report.rows if row.verdict == "fail"} == {"WithTwin"}
        assert report.rows[0].equation == "in_loop gradients"
        assert "in_loop(), the twin that fit trains with; wrong sign" in report.rows[0].hint

    @pytest.mark.thorough
    def test_one_with_another_forward(self):
        report = audited(WithTwin(4, fn.tanh, twin=Doubled))
        assert report.first == "1 WithTwin"
        assert report.rows[0].equation.startswith("in_loop ")

    @pytest.mark.thorough
    def test_that_of_a_composite(self):
        @fn.layer
        class Shortened(fn.Network):
            def in_loop(self):
                return Crossed(*self.layers)

        @fn.layer
        class Crossed(fn.Network):
            def _backward(self, params, cache, da, **about):
                da, gradients = super()._backward(params, cache, da, **about)
                return da, (*gradients[:-1], jax.tree.map(jnp.zeros_like, gradients[-1]))

        report = audited(Shortened(fn.Dense(4, fn.tanh), fn.Dense(4, fn.tanh)))
        assert report.first == "1 Shortened", str(report)
        assert "in_loop" in report.rows[0].equation

    def test_of_a_layer_by_itself(self):
        layer = WithTwin(4, fn.tanh, twin=Backwards)
        report = fn.check_layer(layer, params_of(layer, (3,)), normal((6, 3)))
        assert (report.rows[0].layer, report.rows[0].equation) == ("0 WithTwin", "in_loop gradients")


@fn.layer
class Centred:
    """a − mean over the batch."""

    independent = True

    def forward(self, params, a_in, *, probe=None):
        a = a_in - a_in.mean(0)
        return a if probe is None else a + probe, None

    def propagate(self, params, cache, delta):
        return delta - delta.mean(0)


@fn.layer
class Shared:
    """One mask for the whole batch, drawn with one key."""

    independent = True

    def forward(self, params, a_in, *, key=None, train=False):
        keep = jnp.ones_like(a_in) if key is None else jax.random.bernoulli(key, 0.5, a_in.shape).astype(a_in.dtype)
        return keep * a_in, keep

    def propagate(self, params, cache, delta):
        return cache * delta


@fn.layer
class Claiming(fn.Network):
    independent = True


class TestIndependence:
    @pytest.mark.parametrize("m", [3, *thorough(2, 6)])
    def test_a_false_claim_is_named(self, m):
        report = audited(Centred(), m=m)
        assert failures(report) == [("1 Centred", "independent")]
        assert "independent = True does not hold: a batch in two halves gives another output" in report.rows[0].hint

    @pytest.mark.thorough
    def test_inside_composites_and_by_itself(self):
        report = audited(fn.Residual(fn.Dense(4, fn.tanh), Centred()))
        assert failures(report) == [("1.1.1 Centred", "independent")]
        assert failures(fn.check_layer(Centred(), {}, normal((6, 4)))) == [("0 Centred", "independent")]

    @pytest.mark.thorough
    def test_beside_a_layer_that_claims_nothing(self):
        report = audited(fn.Network(Centred(), fn.BatchNorm()))
        assert failures(report) == [("1.0 Centred", "independent")]

    @pytest.mark.thorough
    def test_of_a_composite(self):
        report = audited(Claiming(fn.Dense(4, fn.tanh), fn.BatchNorm()))
        assert failures(report) == [("1 Claiming", "independent")]

    @pytest.mark.thorough
    def test_a_key_for_the_whole_batch(self):
        report = audited(Shared(), key=KEY)
        assert failures(report) == [("1 Shared", "independent")]

    @pytest.mark.parametrize(
        "layer", [fn.Dropout(0.5), *thorough(fn.Dropout(0.5, per="batch"), fn.LayerNorm())], ids=repr
    )
    def test_true_ones(self, layer):
        report = audited(layer, key=jax.random.key(0))  # of a key that drops all units nothing would be tested
        assert report.ok
        assert not any(row.verdict == "vacuous" for row in report.rows)


@fn.layer
class Even(fn.Dense):
    """Wrong in one equation for even m only."""

    wrong: str = "gradients"

    def gradients(self, params, cache, delta):
        factor = 2 if self.wrong == "gradients" and len(delta) % 2 == 0 else 1
        return jax.tree.map(lambda g: factor * g, super().gradients(params, cache, delta))

    def propagate(self, params, cache, delta):
        factor = 2 if self.wrong == "propagate" and len(delta) % 2 == 0 else 1
        return factor * super().propagate(params, cache, delta)


class TestAnotherBatch:
    @pytest.mark.thorough
    @pytest.mark.parametrize("wrong", ["gradients", *thorough("propagate")])
    @pytest.mark.parametrize("m", [7, *thorough(1)])
    def test_wrong_for_even_m(self, wrong, m):
        report = audited(Even(4, fn.tanh, wrong=wrong), m=m)
        assert set(failures(report)) == {("1 Even", wrong)}, str(report)
        assert f"wrong at m = {6 if m == 7 else 2}, right at m = {m}; a" in report.rows[0].hint

    @pytest.mark.thorough
    def test_at_the_bottom(self):
        net = fn.Network(Even(4, fn.tanh, wrong="propagate"), fn.Dense(3, fn.softmax))
        report = fn.compare_gradients(net, fn.log_likelihood, params_of(net, (5,)), normal((7, 5)), jnp.arange(7) % 3)
        assert failures(report) == [("0 Even", "propagate")]
        assert not fn.check_layer(net, params_of(net, (5,)), normal((7, 5))).ok

    @pytest.mark.thorough
    @pytest.mark.parametrize("wrong", [False, True])
    def test_a_layer_of_one_size_of_batch(self, wrong):
        @fn.layer
        class Offsets:
            """A parameter for each of six examples."""

            def init(self, key, input_shape):
                return {"b": jnp.linspace(-1, 1, 6)[:, None] * jnp.ones(input_shape)}

            def forward(self, params, a_in):
                return a_in + (params["b"] if len(a_in) > 1 else 0 * params["b"][:1]), len(a_in)

            def propagate(self, params, cache, delta):
                return delta

            def gradients(self, params, cache, delta):
                return {"b": delta if wrong else delta / cache}

        assert audited(Offsets()).ok == (not wrong)

    @pytest.mark.thorough
    @pytest.mark.parametrize("weights", [jnp.linspace(0.5, 1.5, 6), *thorough(None)], ids=["weights", "none"])
    def test_masks_and_weights_are_cut_too(self, weights):
        net = fn.Network(fn.LSTM(4), fn.LastStep(), fn.Dense(3, fn.softmax))
        mask = jnp.arange(5) < jnp.array([5, 3, 2, 4, 1, 5])[:, None]
        params = params_of(net, (5, 2))
        args = net, fn.log_likelihood, params, normal((6, 5, 2)), LABELS
        assert fn.compare_gradients(*args, mask=mask, weights=weights).ok


@fn.layer
class Scaled:
    """g ⊙ a + b and more, with equations that are right for g = 1, b = 0 or small errors only."""

    wrong: str = ""

    def init(self, key, input_shape):
        return {"b": jnp.zeros(input_shape), "g": jnp.ones(input_shape)}

    def forward(self, params, a_in, *, probe=None):
        a = params["g"] * a_in + params["b"] * a_in**2
        return a if probe is None else a + probe, a_in

    def propagate(self, params, cache, delta):
        g, b = params["g"], params["b"]
        if self.wrong == "g":
            return delta * (1 + 2 * b * cache)
        if self.wrong == "b":
            return delta * g
        right = delta * (g + 2 * b * cache)
        return jnp.clip(right, -10, 10) if self.wrong == "clipped" else right

    def gradients(self, params, cache, delta):
        return {"b": jnp.mean(delta * cache**2, 0), "g": jnp.mean(delta * cache, 0)}


class TestBesideTheGivenPoint:
    @pytest.mark.parametrize("dtype", ["float64", *thorough("float32")])
    @pytest.mark.parametrize(
        ("wrong", "hint"),
        [
            ("g", "right only at the given point: leaf ['g'] is all 1"),
            pytest.param("b", "right only at the given point: leaf ['b'] is all 0", marks=pytest.mark.thorough),
            ("clipped", "not linear in the error: right for a usual one, wrong for one 100 times as large"),
        ],
    )
    def test_what_init_hides(self, wrong, hint, dtype):
        report = audited(Scaled(wrong), dtype=dtype)
        assert failures(report) == [("1 Scaled", "propagate")], str(report)
        assert hint in report.rows[0].hint
        params = jax.tree.map(lambda p: p.astype(dtype), Scaled(wrong).init(KEY, (4,)))
        by_itself = fn.check_layer(Scaled(wrong), params, normal((6, 4), dtype))
        assert failures(by_itself) == [("0 Scaled", "propagate")]

    def test_what_the_input_hides(self):
        @fn.layer
        class Squared:
            def forward(self, params, a_in):
                return a_in**2, a_in

            def propagate(self, params, cache, delta):
                return 2 * delta

        report = fn.check_layer(Squared(), {}, jnp.ones((6, 4)))
        assert "right only at the given point: x is all 1" in report.rows[0].hint

    def test_constant_leaves_are_told(self):
        report = audited(Scaled())
        assert report.ok
        text = (
            "All 0 or all 1 at the given point, and so audited beside it too: 0 Dense ['b'] (0), 1 Scaled ['b'] (0), "
        )
        assert text in str(report)

    def test_a_domain_is_not_left(self):
        @fn.layer
        class Logarithm:
            def forward(self, params, a_in):
                return jnp.log(a_in), a_in

            def propagate(self, params, cache, delta):
                return delta / cache

        assert fn.check_layer(Logarithm(), {}, jnp.exp(normal((6, 4)))).ok

        @fn.layer
        class Narrow(Logarithm):
            def forward(self, params, a_in):
                return jnp.where(jnp.abs(a_in - 1) < 1e-9, jnp.log(a_in), jnp.nan), a_in

        report = fn.check_layer(Narrow(), {}, jnp.ones((6, 4)))
        assert report.ok
        assert "beside the given point the forward pass is not finite" in str(report)
