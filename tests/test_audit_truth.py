"""Where autodiff is no good judge: it cancels, overflows or is not finite; dtypes narrower inside; what is nearly right."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.gradcheck import verdicts
from fnnet.gradcheck.decimals import precisely

from .cases import params_of, thorough
from .test_audit import normal
from .test_audit_networks import KEY, audited, failures


def grad_of_sum(f):
    """A scalar's gradient that has every operation of f in it, and of its derivative."""
    return jax.grad(lambda x: sum(jnp.sum(o * jnp.cos(o)) for o in jax.tree.leaves(f(x))))


FUNCTIONS = {
    "activations": lambda x: [f(x) for f in (jnp.tanh, jax.nn.sigmoid, jax.nn.softplus, jax.nn.elu, jax.nn.silu)],
    "softmax": lambda x: [jax.nn.softmax(x), jax.nn.log_softmax(x)],
    "gelu": jax.nn.gelu,
    "powers": lambda x: x**3 / jnp.sqrt(jnp.abs(x)) ** 1.5 + jax.lax.rsqrt(x * x) + jnp.exp2(x) + jnp.expm1(x),
    "products": lambda x: [x @ x.T, jnp.einsum("ij,kj->ik", x, x), jnp.einsum("ij,ij->i", x, x)],
    "reductions": lambda x: [x.max(0), x.min(), x.var(-1), jnp.linalg.norm(x), jnp.prod(x, 1)],
    "moves": lambda x: [x[jnp.array([2, 0, 2])], jnp.pad(x, 1)[::2, ::-1], x.T.reshape(2, -1), jnp.concatenate([x, x])],
    "additions": lambda x: [x.at[jnp.array([1, 1])].add(1.5 * x[:2]), jnp.cumsum(x, 0)],
    "choices": lambda x: [jnp.where(jax.random.bernoulli(KEY, 0.5, x.shape), x, 0), jnp.clip(x, -0.5, 0.5)],
    "loops": lambda x: jax.lax.scan(lambda c, r: (jnp.tanh(c + r), c * r), x[0], x, reverse=True),
    "branches": lambda x: jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, jax.checkpoint(jnp.sin)(x)),
}


class TestManyDigits:
    @pytest.mark.parametrize("name", ["activations", "products", "loops", *thorough(*sorted(FUNCTIONS))])
    def test_they_agree_with_float64(self, name):
        f, x = grad_of_sum(FUNCTIONS[name]), normal((4, 6))
        (found,) = precisely(f, (x,), lambda out: out)
        np.testing.assert_allclose(found, f(x), rtol=0, atol=1e-13 * float(jnp.max(jnp.abs(f(x)))))

    def test_beyond_float64(self):
        z = jnp.array([1000.0, 2.0, -1000.0])
        (found,) = precisely(jax.grad(lambda z: jnp.sum(jnp.log1p(jnp.exp(z)))), (z,), lambda out: out)
        np.testing.assert_allclose(found, jax.nn.sigmoid(z), rtol=1e-15)
        z = jnp.array([60.0, 150.0, 700.0])  # the last two are 0 with 60 and with 80 digits
        (found,) = precisely(lambda z: jnp.log1p(jnp.exp(z)) - z, (z,), lambda out: out)
        np.testing.assert_allclose(found, np.exp(-z), rtol=1e-13)
        (found,) = precisely(lambda z: z - z, (z,), lambda out: out)
        np.testing.assert_array_equal(found, 0)
        (found,) = precisely(lambda z: jnp.sin(z) ** 2 + jnp.cos(z) ** 2 - 1, (z,), lambda out: out)
        np.testing.assert_allclose(found, 0, atol=1e-55)

    def test_what_is_not_known_or_too_much(self):
        assert precisely(jnp.sort, (normal((4,)),), lambda out: out) is None
        assert precisely(lambda x: x @ x, (normal((400, 400)),), lambda out: out) is None
        (found,) = precisely(lambda x: (jnp.sort(x), 2 * x), (normal((4,)),), lambda out: out[1])
        np.testing.assert_array_equal(found, 2 * normal((4,)))


class TestBetterThanAutodiff:
    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64")])
    @pytest.mark.parametrize("cost", [fn.log_likelihood, fn.quadratic], ids=str)
    @pytest.mark.parametrize("size", [20.0, *thorough(60.0)])
    def test_a_saturated_softmax(self, size, cost, dtype):
        net = fn.Network(fn.Dense(2, fn.tanh), fn.Dense(3, fn.softmax))
        params = params_of(net, (2,))
        params = (params[0], {"w": jnp.zeros((3, 2)), "b": jnp.array([size, 0, 0])})
        params = jax.tree.map(lambda p: p.astype(dtype), params)
        for label in (0, 1):
            report = fn.compare_gradients(net, cost, params, jnp.ones((1, 2), dtype), jnp.array([label]))
            assert report.ok, str(report)
        layer = fn.check_layer(net, params, jnp.ones((1, 2), dtype))
        assert layer.ok, str(layer)

    @pytest.mark.parametrize("cost", [fn.log_likelihood, *thorough(fn.quadratic)])
    @pytest.mark.parametrize("size", [300.0, *thorough(125.0, 700.0)])
    def test_a_softmax_beyond_60_digits(self, size, cost):
        params = {"w": jnp.zeros((3, 2)), "b": jnp.array([size, 0, 0])}
        report = fn.compare_gradients(fn.Dense(3, fn.softmax), cost, params, jnp.ones((1, 2)), jnp.array([0]))
        assert report.ok, str(report)
        assert "better than autodiff" in {row.verdict for row in report.rows}

    @pytest.mark.thorough
    def test_a_wrong_one_is_not_better(self):
        @fn.layer
        class Wrong(fn.Dense):
            def error(self, params, cache, da):
                return 1.01 * super().error(params, cache, da)

        for cls, size, verdict in (
            (fn.Dense, 20.0, "better than autodiff"),
            (Wrong, 20.0, "fail"),
            (fn.Dense, 300.0, "better than autodiff"),
            (Wrong, 300.0, "fail"),
        ):
            params = {"w": jnp.zeros((3, 2)), "b": jnp.array([size, 0, 0])}
            report = fn.check_layer(cls(3, fn.softmax), params, jnp.ones((1, 2)))
            row = next(row for row in report.rows if row.equation == "error")
            assert row.verdict == verdict, str(report)
            assert verdict == "fail" or "with more digits manual is off by" in row.hint

    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64")])
    def test_the_tail_of_elu(self, dtype):
        net = fn.Dense(3, fn.elu)
        params = {"w": jnp.zeros((3, 2), dtype), "b": jnp.array([-30.0, -40, -50], dtype)}
        report = fn.check_layer(net, params, jnp.ones((2, 2), dtype))
        assert report.ok, str(report)

    def test_finite_where_autodiff_is_not(self):
        @fn.layer
        class Softplus:
            factor: float = 1.0

            def forward(self, params, a_in):
                return jnp.log1p(jnp.exp(a_in)), a_in

            def propagate(self, params, cache, delta):
                return self.factor * delta * jax.nn.sigmoid(cache)

        x = jnp.array([[1000.0, 2.0], [-1.0, -1000.0]])
        row = next(row for row in fn.check_layer(Softplus(), {}, x).rows if row.equation == "propagate")
        assert row.verdict == "better than autodiff"
        assert not fn.check_layer(Softplus(1.001), {}, x).ok

    @pytest.mark.parametrize(("factor", "at_zero", "ok"), [(1.0, 0.0, True), (1.0, 7.0, False), (1.01, 0.0, False)])
    def test_a_norm_at_zero(self, factor, at_zero, ok):
        @fn.layer
        class Norm:
            def forward(self, params, a_in):
                return jnp.sqrt(jnp.sum(a_in**2, -1, keepdims=True)), a_in

            def propagate(self, params, cache, delta):
                size = jnp.sqrt(jnp.sum(cache**2, -1, keepdims=True))
                return factor * delta * jnp.where(size > 0, cache / jnp.where(size > 0, size, 1), at_zero)

        report = fn.check_layer(Norm(), {}, normal((4, 3)).at[1].set(0))
        assert report.ok == ok, str(report)
        row = next(row for row in report.rows if row.equation == "propagate")
        assert row.verdict == ("both valid subgradients" if ok else "fail")

    def test_in_float32_float64_is_the_judge(self):
        @fn.layer
        class Square:
            """(1 + a)² − 1 − 2a, whose derivative autodiff computes by cancellation."""

            def forward(self, params, a_in):
                return (1 + a_in) ** 2 - 2 * a_in, a_in

            def propagate(self, params, cache, delta):
                return 2 * cache * delta

        report = fn.check_layer(Square(), {}, 1e-5 * normal((4, 3), "float32"))
        row = next(row for row in report.rows if row.equation == "propagate")
        assert (row.verdict, row.hint) == ("better than autodiff", "nearer to float64 than autodiff is"), str(report)


class TestNarrowerInside:
    @fn.layer
    class Kernel(fn.Dense):
        """Products of float32 by name on the way back, as kernels have them."""

        wrong: float = 1.0

        def propagate(self, params, cache, delta):
            da = super().propagate(jax.tree.map(narrow, params), jax.tree.map(narrow, cache), narrow(delta))
            return (self.wrong * da).astype(delta.dtype)

    @pytest.mark.thorough
    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64")])
    def test_on_the_way_back(self, dtype):
        for wrong, ok in ((1.0, True), (1.0001, False)):
            report = audited(self.Kernel(4, fn.tanh, wrong=wrong), dtype=dtype)
            assert report.ok == ok, str(report)

    def test_of_a_function(self):
        def forward(x):
            y = jnp.tanh(x)
            return y, y

        def backward(y, g, wrong=1.0):
            y32, g32 = y.astype("float32"), g.astype("float32")
            return ((wrong * g32 * (1 - y32 * y32)).astype(y.dtype),)

        for dtype in ("float32", "float64"):
            x = normal((64,), dtype)
            assert fn.check_vjp(forward, backward, x).ok
            assert not fn.check_vjp(forward, lambda y, g: backward(y, g, 1.0001), x).ok

    @pytest.mark.parametrize("error", [*thorough(0.0), 1e-3])
    def test_the_precision_of_products_is_part_of_the_bound(self, error, monkeypatch):
        monkeypatch.setattr(verdicts, "product_error", lambda: error)

        @fn.layer
        class Coarse(fn.Dense):
            """As if products were those of TF32, here on the way back only."""

            def propagate(self, params, cache, delta):
                da = super().propagate(params, cache, delta)
                noise = normal(da.shape, "float32", 3) if da.dtype == jnp.float32 else jnp.zeros_like(da)
                return da + 5e-4 * noise.astype(da.dtype)

        report = audited(Coarse(4, fn.tanh), dtype="float32")
        row = next(row for row in report.rows if (row.layer, row.equation) == ("1 Coarse", "propagate"))
        assert row.verdict == ("pass" if error else "fail"), str(report)

    def test_of_this_backend(self):
        assert 0 < verdicts.product_error() < 1e-6


def narrow(a):
    return a.astype("float32") if hasattr(a, "dtype") and jnp.issubdtype(a.dtype, jnp.floating) else a


class TestApproximate:
    @fn.layer
    class Nearly(fn.Dense):
        """An equation with a small error that nothing explains."""

        size: float = 0.0

        def propagate(self, params, cache, delta):
            da = super().propagate(params, cache, delta)
            return da + self.size * jnp.sin(7 * da)

    @pytest.mark.parametrize(
        ("size", "verdict"),
        [(1e-12, "pass"), (1e-9, "approximate"), pytest.param(1e-6, "fail", marks=pytest.mark.thorough)],
        ids=["tiny", "small", "large"],
    )
    def test_of_a_small_error(self, size, verdict):
        report = audited(self.Nearly(4, fn.tanh, size=size))
        row = next(row for row in report.rows if (row.layer, row.equation) == ("1 Nearly", "propagate"))
        assert row.verdict == verdict, str(report)
        assert report.ok == (verdict != "fail"), str(report)
        assert verdict != "approximate" or row.hint.startswith("approximate, to ")

    @pytest.mark.parametrize(
        ("slope", "hint"),
        [
            (lambda g, a: 1.0, "left out: the path through `jnp.sin("),
            (lambda g, a: 1 + g * jnp.sin(7 * a), "nearly right only at the given point"),
        ],
        ids=["named", "that nothing names"],
    )
    def test_one_that_grows_elsewhere_fails(self, slope, hint):
        @fn.layer
        class Scaled:
            def init(self, key, input_shape):
                return {"g": jnp.full(input_shape, 1e-9)}

            def forward(self, params, a_in):
                return a_in + jnp.sin(params["g"] * a_in), a_in

            def propagate(self, params, cache, delta):
                return delta * slope(params["g"], cache)

            def gradients(self, params, cache, delta):
                return {"g": jnp.mean(delta * cache * jnp.cos(params["g"] * cache), 0)}

        report = fn.check_layer(Scaled(), {"g": 5e-9 * jnp.array([-0.5, 0.2, 1.0, -1.0])}, normal((6, 4)))
        assert (report.rows[0].equation, report.rows[0].verdict) == ("propagate", "fail"), str(report)
        assert report.rows[0].hint.startswith(hint)


class TestTwoFormsOfACost:
    def test_they_must_be_one(self):
        off = dataclasses.replace(
            fn.log_likelihood, matched_terms=lambda z, y: 2 * fn.log_likelihood.matched_terms(z, y)
        )
        off = dataclasses.replace(off, matched_error=lambda z, y: 2 * fn.log_likelihood.matched_error(z, y))
        report = audited(fn.Dense(4, fn.tanh), cost=off)
        assert failures(report) == [("cost log_likelihood", "terms")]
        assert "two different costs: C = " in report.rows[0].hint
        shifted = dataclasses.replace(fn.quadratic, terms=lambda a, y: fn.quadratic.terms(a, y) + 1)
        net = fn.Dense(3, fn.linear)
        args = net, shifted, params_of(net, (4,)), normal((6, 4)), normal((6, 3), seed=1)
        assert failures(fn.compare_gradients(*args)) == [("cost quadratic", "terms")]

    @pytest.mark.parametrize(
        ("cost", "activation"),
        [
            (fn.log_likelihood, fn.softmax),
            pytest.param(fn.cross_entropy, fn.sigmoid, marks=pytest.mark.thorough),
            pytest.param(fn.quadratic, fn.linear, marks=pytest.mark.thorough),
        ],
        ids=str,
    )
    def test_right_ones(self, cost, activation):
        net = fn.Dense(3, activation)
        for dtype in ("float32", "float64"):
            params = params_of(net, (4,), dtype)
            y = jax.nn.softmax(normal((6, 3), dtype, seed=1))
            weights = jnp.linspace(0, 1, 6).astype(dtype)
            report = fn.compare_gradients(net, cost, params, normal((6, 4), dtype), y, weights=weights)
            assert ("terms", "pass") in {(row.equation, row.verdict) for row in report.rows}, str(report)


NORMED = {
    "a bias before BatchNorm": (fn.Network(fn.Dense(3, fn.linear), fn.BatchNorm(), fn.Dense(2, fn.softmax)), (2,), 4),
    "BatchNorm of two": (fn.Network(fn.Dense(3, fn.linear), fn.BatchNorm(), fn.Dense(2, fn.softmax)), (2,), 2),
    "LayerNorm of two": (fn.Network(fn.Dense(2, fn.linear), fn.LayerNorm(), fn.Dense(2, fn.softmax)), (2,), 1),
    "deep": (
        fn.Network(*4 * (fn.Dense(5, fn.linear), fn.BatchNorm(), fn.Dense(5, fn.tanh)), fn.Dense(2, fn.softmax)),
        (3,),
        4,
    ),
}


def normed(net, shape, m, seed, dtype):
    with jax.enable_x64(dtype == "float64"):
        params = net.init(jax.random.key(seed), shape)
        x = jax.random.normal(jax.random.key(seed + 100), (m, *shape))
    return fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(m) % 2, key=KEY)


class TestRoundingAlone:
    """Gradients that cancel to nothing: the two sides differ by as much as they are."""

    @pytest.mark.parametrize("dtype", ["float64", *thorough("float32")])
    @pytest.mark.parametrize(
        "name", ["BatchNorm of two", *thorough("a bias before BatchNorm", "LayerNorm of two", "deep")]
    )
    def test_it_does_not_fail(self, name, dtype):
        first = 15 if name == "LayerNorm of two" else 0  # 26 in float32 needs what manual moves by itself
        reports = [normed(*NORMED[name], seed, dtype) for seed in range(first, first + 12)]
        assert all(report.ok for report in reports), next(str(report) for report in reports if not report.ok)

    @pytest.mark.parametrize("factor", [2.0, *thorough(0.0, 1.001)])
    def test_a_wrong_one_does(self, factor):
        @fn.layer
        class Wrong(fn.Dense):
            def gradients(self, params, cache, delta):
                grads = super().gradients(params, cache, delta)
                return {**grads, "b": factor * grads["b"]}

        @fn.layer
        class Slope(fn.BatchNorm):
            def propagate(self, params, cache, delta):
                return super().propagate(params, cache, delta) + 1e-6 * delta

        last = fn.Dense(2, fn.softmax)
        report = normed(fn.Network(Wrong(3, fn.linear), fn.BatchNorm(), last), (2,), 2, 0, "float64")
        assert failures(report) == [("0 Wrong", "gradients")]
        report = normed(fn.Network(fn.Dense(3, fn.linear), Slope(), last), (2,), 4, 0, "float64")
        assert failures(report) == [("1 Slope", "propagate")]

    @pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.01, False)])
    def test_of_a_function(self, factor, ok):
        def cost(p, x, y):
            z = x @ p["w"].T + p["b"]
            a = (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5)
            return jnp.mean((a - y) ** 2)

        def gradient(p, x, y):
            z = x @ p["w"].T + p["b"]
            s = jnp.sqrt(z.var(0) + 1e-5)
            a = (z - z.mean(0)) / s
            d = 2 * (a - y) / a.size
            delta = factor * (d - d.mean(0) - a * (d * a).mean(0)) / s
            return {"w": delta.T @ x, "b": delta.sum(0)}

        for seed in (1, 7):
            w, x, y = (normal(shape, seed=seed + i) for i, shape in enumerate([(3, 2), (2, 2), (2, 3)]))
            assert fn.check_gradient(cost, gradient, {"w": w, "b": jnp.ones(3)}, x, y).ok == ok
