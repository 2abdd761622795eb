"""``fn.audit``: every form in which a hand-written derivative of a JAX function comes, and what judges it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

import fnnet as fn
from fnnet.gradcheck.points import drawn
from fnnet.gradcheck.rules import rules_in, without_rules

from .cases import normal, thorough

X, Y = normal((4, 3)), normal((4, 3), seed=1)
Z = jax.lax.complex(X, Y)


def by_vjp(f, backward, **options):
    """f with a rule whose forward pass calls the decorated function, as JAX's documentation writes it."""
    decorated = jax.custom_vjp(f, **options)
    decorated.defvjp(lambda *args: (decorated(*args), args), backward)
    return decorated


def by_jvp(f, tangent):
    decorated = jax.custom_jvp(f)
    decorated.defjvp(lambda primals, tangents: (decorated(*primals), tangent(*primals, *tangents)))
    return decorated


def product(x, w):
    return jnp.tanh(x @ w)


def product_back(residuals, g, factor=1.0):
    x, w = residuals
    dz = factor * g * (1 - jnp.tanh(x @ w) ** 2)
    return dz @ w.T, x.T @ dz


def slope(x):
    return 1 - jnp.tanh(x) ** 2


SYMBOLIC = jax.custom_vjp(lambda x, y: x * y)
SYMBOLIC.defvjp(
    lambda x, y: (x.value * y.value, (x.value, y.value)), lambda r, g: (g * r[1], g * r[0]), symbolic_zeros=True
)
SCALED = by_vjp(lambda x, how, n=2: how(x) * n, lambda how, n, r, g: (g * n * slope(r[0]),), nondiff_argnums=(1, 2))
KEY = jax.random.key(3)


def thinned(x, key, step):
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return jnp.where(kept, x, 0), kept


def looped(tangent):
    """A tangent that a loop computes: it cannot be transposed."""

    def of(x, y, tx, ty):
        return jax.lax.while_loop(lambda s: s[1] < 1, lambda s: (tangent(x, y, tx, ty), s[1] + 1), (tx, 0))[0]

    return of


RIGHT = {
    "custom_vjp": (by_vjp(product, product_back), X, Y.T),
    "under jit": (jax.jit(by_vjp(product, product_back)), X, Y.T),
    "inside another": (lambda x, w: jnp.sin(by_vjp(product, product_back)(x, w)), X, Y.T),
    "a partial": (functools.partial(by_vjp(product, product_back), X), Y.T),
    "pair": ((lambda x, w: (product(x, w), (x, w)), product_back), X, Y.T),
    "symbolic zeros": (SYMBOLIC, X, Y),
    "static arguments": (SCALED, X, jnp.tanh),
    "custom_jvp": (by_jvp(lambda x, y: jnp.tanh(x) * y, lambda x, y, tx, ty: slope(x) * tx * y + jnp.tanh(x) * ty), X, Y),
    "custom_jvp in a loop": (by_jvp(lambda x, y: x * y, looped(lambda x, y, tx, ty: tx * y + x * ty)), X, Y),
    "custom_gradient": (jax.custom_gradient(lambda x: (x**2, lambda g: (2 * g * x,))), X),
    "complex": (by_vjp(lambda z: z * z * (1 + 2j), lambda r, g: (2 * g * r[0] * (1 + 2j),)), Z),
    "a pair, complex": ((lambda z: (z * z, z), lambda z, g: (2 * g * z,)), Z),
    "real of complex": (by_vjp(lambda z: jnp.abs(z) ** 2, lambda r, g: (jax.lax.complex(2 * g, 0 * g) * jnp.conj(r[0]),)), Z),
    "keys and integers": ((thinned, lambda kept, g: (jnp.where(kept, g, 0), None, None)), X, KEY, jnp.int32(3)),
    "a power": ((lambda x, n: (x**n, (x, n)), lambda r, g: (3 * g * r[0] ** 2, None)), X, 3),
    "value and gradient": ((lambda p, x: jnp.sum((x @ p) ** 2), lambda p, x: 2 * x.T @ (x @ p)), X[0], X),
    "in NumPy": ((lambda p: jnp.sum(p**2), lambda p: 2 * np.asarray(p)), X),
}  # fmt: skip
WRONG = {
    "custom_vjp": (by_vjp(product, functools.partial(product_back, factor=2.0)), X, Y.T),
    "under jit": (jax.jit(by_vjp(product, functools.partial(product_back, factor=2.0))), X, Y.T),
    "inside another": (lambda x, w: jnp.sin(by_vjp(product, lambda r, g: (g @ r[1].T, r[0].T @ g))(x, w)), X, Y.T),
    "symbolic zeros": (by_vjp(lambda x, y: x * y, lambda r, g: (g * r[1], g * r[1])), X, Y),
    "static arguments": (SCALED, X, jnp.sin),
    "custom_jvp": (by_jvp(lambda x, y: jnp.tanh(x) * y, lambda x, y, tx, ty: slope(x) * tx * y + ty), X, Y),
    "custom_jvp in a loop": (by_jvp(lambda x, y: x * y, looped(lambda x, y, tx, ty: tx * y + ty)), X, Y),
    "no linear function": (by_jvp(lambda x: 2 * x, lambda x, tx: 2 * jnp.abs(tx)), X),
    "custom_gradient": (jax.custom_gradient(lambda x: (x**2, lambda g: (g * x,))), X),
    "conjugate": (by_vjp(lambda z: z * z, lambda r, g: (jnp.conj(2 * g * r[0]),)), Z),
    "value and gradient": ((lambda p, x: jnp.mean((x @ p) ** 2), lambda p, x: 2 * x.T @ (x @ p)), X[0], X),
    "in NumPy": ((lambda p: jnp.sum(p**2), lambda p: np.asarray(p)), X),
}  # fmt: skip
DEFAULT = (
    "custom_vjp",
    "static arguments",
    "custom_jvp",
    "custom_jvp in a loop",
    "custom_gradient",
    "complex",
    "in NumPy",
)


def by_level(table):
    names = [name for name in table if name in DEFAULT]
    return [*names, *thorough(*(name for name in table if name not in DEFAULT))]


@pytest.mark.parametrize("name", by_level(RIGHT))
def test_a_right_one_passes(name):
    report = fn.audit(*RIGHT[name])
    assert report.ok, str(report)
    assert {row.verdict for row in report.rows} == {"pass"}


@pytest.mark.parametrize("name", by_level(WRONG))
def test_a_wrong_one_fails(name):
    report = fn.audit(*WRONG[name])
    assert report.rows[0].verdict == "fail", str(report)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_narrow_dtypes(dtype):
    for table, ok in ((RIGHT, True), (WRONG, False)):
        f, *args = table["custom_vjp"]
        assert fn.audit(f, *(a.astype(dtype) for a in args)).ok == ok


def test_keyword_arguments_take_their_places():
    f = by_vjp(product, product_back)
    assert [row.leaf for row in fn.audit(f, w=Y.T, x=X).rows] == ["out", "args[0]", "args[1]"]
    assert fn.audit(SCALED, X, how=jnp.tanh, n=3).ok
    gain = by_vjp(lambda x, n: x * n, lambda n, r, g: (g * n,), nondiff_argnums=(1,))
    assert fn.audit(lambda x, *, n: gain(x, n), X, n=2.0).ok


def test_a_forward_pass_that_returns_another_value():
    f = jax.custom_vjp(jnp.sin)
    f.defvjp(lambda x: (1.01 * jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))
    row = fn.audit(f, X).rows[0]
    assert (row.equation, row.leaf, row.verdict) == ("forward", "out", "fail")
    assert "1.01" in row.hint


def test_rules_inside_are_named():
    inner = by_vjp(jnp.tanh, lambda r, g: (g,))
    report = fn.audit(by_vjp(lambda x: inner(x) * 2, lambda r, g: (2 * g * slope(r[0]),)), X)
    assert report.ok
    assert "the bodies of tanh in place of their rules" in report.judge
    assert not fn.audit(by_vjp(lambda x: inner(x) * 2, lambda r, g: (2 * g,)), X).ok
    assert fn.audit(by_vjp(lambda x: inner(x) * 2, lambda r, g: (2 * g,)), X, trust=(inner,)).ok


class TestWithoutRules:
    """A program is the same function after its rules are replaced, and differentiable as it is written."""

    doubled = by_jvp(jnp.tanh, lambda x, tx: 2 * slope(x) * tx)

    @pytest.mark.parametrize(
        "around",
        [
            lambda f: lambda x: jax.lax.scan(lambda c, s: (f(c) + s, f(s)), x, X, reverse=True, unroll=2),
            *thorough(
                lambda f: lambda x: jax.lax.fori_loop(0, 3, lambda i, c: f(c) * i, x),
                lambda f: lambda x: jax.lax.cond(x.sum() > 100, f, lambda x: f(2 * x), x),
                lambda f: lambda x: jax.lax.switch(1, [f, lambda x: f(2 * x)], x),
                lambda f: lambda x: jax.checkpoint(jax.jit(f))(x),
                lambda f: lambda x: jax.vmap(f)(X * x),
                lambda f: lambda x: jax.lax.map(f, X * x),
                lambda f: lambda x: f(X[:, :1] * x) @ jnp.ones(3),
            ),
        ],
    )
    def test_inside(self, around):
        x = normal((3,), seed=4)
        assert rules_in(around(self.doubled), x) == ["tanh"]
        plain = without_rules(around(self.doubled))
        for f in (lambda g: g, lambda g: jax.jacfwd(g)):
            np.testing.assert_allclose(
                *(np.concatenate([np.ravel(a) for a in jax.tree.leaves(f(g)(x))]) for g in (plain, around(jnp.tanh)))
            )

    def test_those_of_jax_stay(self):
        assert not rules_in(lambda x: jax.nn.relu(x) + jax.nn.logsumexp(x), X)
        assert jax.grad(without_rules(jax.nn.relu))(0.0) == 0  # of max(x, 0) it is ½


ROUNDED = (lambda x: (jnp.round(x), None)), (lambda _, g: (g,))


def test_wrong_on_purpose():
    report = fn.audit(ROUNDED, X, intended=lambda x: x)
    assert [row.verdict for row in report.rows] == ["intended"]
    assert "what is intended" in report.judge
    assert not fn.audit((ROUNDED[0], lambda _, g: (-g,)), X, intended=lambda x: x).ok
    row = fn.audit(ROUNDED, X).rows[0]
    assert row.verdict == "fail"
    assert "surrogate of a flat function" in row.hint
    assert np.isnan(row.difference)


@pytest.mark.thorough
def test_a_reversed_gradient():
    reverse = by_vjp(lambda x, r: x, lambda r, res, g: (-r * g,), nondiff_argnums=(1,))
    assert fn.audit(reverse, X, 0.5, intended=lambda x, r: -r * x).ok
    assert "wrong sign" in fn.audit(reverse, X, 1.0).rows[0].hint


class TestPoints:
    inverse = (lambda a: (jnp.linalg.inv(a),) * 2), (lambda y, g: (-y @ g @ y,))  # the transposes are missing
    a = X[:3] + X[:3].T

    def test_symmetry_hides_a_transpose(self):
        row = fn.audit(self.inverse, self.a).rows[0]
        assert row.verdict == "fail"
        assert "right only where args[0] is symmetric, A = Aᵀ, as at the given point" in row.hint
        assert fn.audit(self.inverse, self.a, points=()).ok
        assert not fn.audit(self.inverse, self.a, points=[X[:3]]).ok

    def test_a_gain_of_one_hides_that_it_is_forgotten(self):
        gain = (lambda x, g: (x * g, (x, g))), (lambda r, ct: (ct, (ct * r[0]).sum(0)))
        assert "right only where args[1] is 1 as at the given point" in fn.audit(gain, X, jnp.ones(3)).rows[0].hint

    def test_a_clipped_cotangent(self):
        row = fn.audit(((lambda x: (2 * x, None)), (lambda _, g: (jnp.clip(2 * g, -10, 10),))), X).rows[0]
        assert "not linear in the cotangent" in row.hint

    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64", "bfloat16")])
    def test_probabilities_stay_such(self, dtype):
        def forward(z, y):
            log_p = jax.nn.log_softmax(z)
            return -(log_p * y).sum(), (log_p, y)

        def backward(r, g):
            return g * (jnp.exp(r[0]) - r[1]), -g * r[0]

        z = X.astype(dtype)
        for y in (jax.nn.softmax(Y.astype(dtype)), jax.nn.one_hot(jnp.array([0, 2, 1, 0]), 3, dtype=dtype)):
            assert fn.audit((forward, backward), z, y).ok

    def test_what_a_function_may_ask_for_stays(self):
        given = {
            "positive": jnp.abs(X), "negative": -jnp.abs(X), "unit": jax.nn.sigmoid(X), "sorted": jnp.sort(X.ravel()),
            "mask": (X > 0).astype(float), "rows": jax.nn.softmax(X), "integers": jnp.arange(3), "key": KEY,
        }  # fmt: skip
        for point in drawn((given,)):
            (there,) = point.args
            assert (there["positive"] > 0).all()
            assert (there["negative"] < 0).all()
            assert ((there["unit"] >= 0) & (there["unit"] <= 1)).all()
            assert (jnp.diff(there["sorted"]) >= 0).all()
            assert (there["mask"] == given["mask"]).all()
            np.testing.assert_allclose(there["rows"].sum(-1), 1)
            assert (there["integers"] == given["integers"]).all()

    def test_outside_of_the_domain_nothing_is_said(self):
        root = (lambda x: (jnp.sqrt(x), jnp.sqrt(x))), (lambda y, g: (g / (2 * y),))
        assert fn.audit(root, jnp.abs(X), points=[-jnp.abs(X)]).ok
        with pytest.raises(ValueError, match="expected a finite output at the given point"):
            fn.audit(root, -jnp.abs(X))


def kernel_of(f):
    def kernel(x_ref, o_ref):
        o_ref[...] = f(x_ref[...])

    def run(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=shape, grid=(1,), interpret=True)(x)

    return run


def solve(a, b):
    def step(s):
        return s[0] - 0.1 * (a @ s[0] - b), s[1] + 1

    def goes_on(s):
        return (jnp.linalg.norm(a @ s[0] - b) > 1e-13) & (s[1] < 2000)

    return jax.lax.while_loop(goes_on, step, (jnp.zeros_like(b), 0))[0]


class TestWhereAutodiffCannotJudge:
    def test_a_kernel(self):
        tanh = kernel_of(jnp.tanh)
        report = fn.audit(by_vjp(tanh, lambda r, g: (g * slope(r[0]),)), X)
        assert report.ok, str(report)
        wrong = by_vjp(tanh, lambda r, g: (g * (1 - tanh(r[0])),))
        assert not fn.audit(wrong, X).ok
        assert fn.audit(by_vjp(tanh, lambda r, g: (g * slope(r[0]),)), X, reference=jnp.tanh).judge == (
            "autodiff of the reference"
        )

    def test_a_solver(self):
        a, b = 3 * jnp.eye(3) + X[:3], jnp.ones(3)

        def forward(a, b):
            x = solve(a, b)
            return x, (a, x)

        def backward(r, g, transposed=True):
            u = jnp.linalg.solve(r[0].T if transposed else r[0], g)
            return -jnp.outer(u, r[1]), u

        report = fn.audit((forward, backward), a, b)
        assert report.ok, str(report)
        assert "central differences" in report.judge
        assert not fn.audit((forward, functools.partial(backward, transposed=False)), a, b).ok

    @pytest.mark.thorough
    def test_an_implicit_root(self):
        def root(a):
            newton = lambda f, x: jax.lax.fori_loop(0, 40, lambda _, x: x - f(x) / (2 * x), x)  # noqa: E731
            return jax.lax.custom_root(
                lambda x: x**2 - a, jnp.ones_like(a), newton, lambda g, y: y / g(jnp.ones_like(y))
            )

        assert fn.audit(root, jnp.asarray(2.5)).ok


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((jnp.tanh, X), "tanh has no hand-written derivative inside"),
        ((3, X), "or a pair .forward, backward. as defvjp of jax.custom_vjp takes it, .* got int"),
        (((lambda x, m: (x, m), lambda r, g: (g, None)), X, "a"), r"args\[1\] is 'a', .* static_argnums=\(1,\)"),
        (((lambda x, n: (jnp.tile(x, n), 0), lambda r, g: (g, None)), X, 3), r"name args\[1\], static_argnums=\(1,\)"),
        (
            ((lambda x: (x if x.sum() > 0 else 2 * x, 0), lambda r, g: (g,)), X),
            "uses the value of an argument in Python",
        ),
        (((lambda x: (x, "a"), lambda r, g: (g,)), X), "to return arrays, residuals too"),
        (((lambda x: x, lambda x: x), X), r"to be a scalar, or <lambda>\(\*args\) to return \(out, residuals\)"),
        ((jax.custom_vjp(jnp.tanh), X), "is a custom_vjp without a rule; give it one with defvjp"),
        ((RIGHT["custom_vjp"][0], jnp.arange(3), jnp.arange(3)), "product with an array of floats, got none"),
    ],
)
def test_what_cannot_be_audited_is_told_what_to_write(given, message):
    with pytest.raises(ValueError, match=message):
        fn.audit(*given)


def test_options_are_checked():
    with pytest.raises(ValueError, match="expected reference= or intended=, got both"):
        fn.audit(ROUNDED, X, reference=jnp.tanh, intended=jnp.tanh)
    with pytest.raises(ValueError, match=r"expected a tuple of 2 arguments at points\[0\], got 1"):
        fn.audit(*RIGHT["custom_vjp"], points=[X])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": True}, r"expected reference= to be a function, \(\*args\) -> out, got bool"),
        ({"intended": X}, "expected intended= to be a function"),
        ({"reference": lambda x: x}, "reference= cannot be called with the arguments of product: .* 1 positional"),
        ({"reference": lambda x, y: (x, y)}, r"to give what product gives, shape \(4, 4\), got \(4, 3\), \(3, 4\)"),
        (
            {"intended": lambda x, y: x[:2]},
            r"expected intended= to give what product gives, shape \(4, 4\), got \(2, 3\)",
        ),
        ({"reference": lambda x, y: np.sin(x) * y}, "reference= is written in NumPy, and product in JAX"),
        ({"points": 3}, "expected points= to be a list of tuples of arguments, got int"),
        ({"points": X}, "expected points= to be a list of tuples of arguments"),
        ({"points": [(X, {"y": Y})]}, r"expected args\[1\] at points\[0\] to be like the given one"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        fn.audit(*RIGHT["custom_vjp"], **options)


def test_calls_that_do_not_fit():
    with pytest.raises(ValueError, match=r"a call with 3 arguments does not fit product\(x, w\): too many"):
        fn.audit(*RIGHT["custom_vjp"], X)
    with pytest.raises(ValueError, match=r"backward\(residuals, cotangent\) does not fit <lambda>\(g\)"):
        fn.audit((lambda x: (x, None), lambda g: (g,)), X)
    with pytest.raises(
        ValueError, match=r"the arguments of a layer do not fit check_layer.*: missing a required argument"
    ):
        fn.audit(fn.Dense(2, fn.tanh), X)
    with pytest.raises(ValueError, match=r"expected check_vjp\(forward, backward, \*args\), got nothing where"):
        fn.check_vjp(lambda x: (x, None))


def test_one_trusted_function_by_itself():
    def outer(x):
        return 2 * wrong(x)

    wrong = by_vjp(jnp.tanh, lambda args, g: (g,))
    rule = by_vjp(outer, lambda args, g: (2 * g,))
    assert fn.audit(rule, X, trust=wrong).ok
    assert not fn.audit(rule, X).ok


@pytest.mark.parametrize(
    ("gradient", "ok"), [(lambda x, y: (y * y, 2 * x * y), True), (lambda x, y: (y * y, x * y), False)]
)
def test_a_gradient_that_comes_with_its_value(gradient, ok):
    value = lambda x, y: jnp.sum(x * y * y)  # noqa: E731
    for second in (lambda x, y: (value(x, y), gradient(x, y)), gradient):
        assert fn.audit((value, second), X, Y).ok == ok
    assert fn.audit((value, lambda x, y: (value(x, y), y * y)), X, Y).ok


class TestSymbolicZeros:
    """A rule that is told which arguments are differentiated is audited for each alone."""

    @staticmethod
    def vjp(share):
        def backward(residuals, g):
            x, y, x_too = residuals
            return g * y, g * x if x_too else share * g * x

        decorated = jax.custom_vjp(lambda x, y: x * y)
        decorated.defvjp(
            lambda x, y: (x.value * y.value, (x.value, y.value, x.perturbed)), backward, symbolic_zeros=True
        )
        return decorated

    @staticmethod
    def jvp(share):
        def rule(primals, tangents):
            (x, y), (dx, dy) = primals, tangents
            zero = jax.custom_derivatives.SymbolicZero
            along_x = 0 if isinstance(dx, zero) else dx * y
            along_y = 0 if isinstance(dy, zero) else x * dy * (share if isinstance(dx, zero) else 1)
            return x * y, along_x + along_y

        decorated = jax.custom_jvp(lambda x, y: x * y)
        decorated.defjvp(rule, symbolic_zeros=True)
        return decorated

    @pytest.mark.parametrize("of", ["vjp", "jvp"])
    def test_both(self, of):
        rule = getattr(self, of)
        assert fn.audit(rule(1.0), X, Y).ok
        report = fn.audit(rule(0.5), X, Y)
        assert [row.leaf for row in report.rows if row.verdict == "fail"] == ["args[1]"], str(report)
        assert "wrong with this one alone; a constant factor 0.5" in report.rows[0].hint


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (1.001, False)])
def test_a_loop_that_stops_at_a_tolerance(factor, ok):
    """The rule is the derivative of the limit, the function stops before it."""

    def step(a, x):
        return jnp.tanh(a @ x + 1)

    def start(a):
        return jnp.zeros(3, a.dtype)

    @jax.custom_vjp
    def fixed_point(a):
        def goes_on(xs):
            return jnp.max(jnp.abs(xs[0] - xs[1])) > 1e-6

        return jax.lax.while_loop(goes_on, lambda xs: (step(a, xs[0]), xs[0]), (step(a, start(a)), start(a)))[0]

    def backward(residuals, g):
        a, x = residuals
        slope = jax.jacobian(lambda x: step(a, x))(x)
        v = jnp.linalg.solve(jnp.eye(3, dtype=a.dtype) - slope.T, g)
        return (jnp.asarray(factor, a.dtype) * jax.vjp(lambda a: step(a, x), a)[1](v)[0],)

    def limit(a):
        return jax.lax.scan(lambda x, _: (step(a, x), None), start(a), length=60)[0]

    fixed_point.defvjp(lambda a: (fixed_point(a), (a, limit(a))), backward)
    a = 0.3 * normal((3, 3))
    assert ("may come from a while_loop" in fn.audit(fixed_point, a).rows[0].hint) == ok
    assert fn.audit(fixed_point, a, intended=limit).ok == ok


def test_a_conjugate_is_named():
    rule = by_vjp(lambda z: jnp.real(z * jnp.conj(z)), lambda args, g: (2 * g.astype(args[0].dtype) * args[0],))
    assert fn.audit(rule, Z).rows[0].hint.startswith("the complex conjugate of it")


def test_an_approximation_is_not_called_right():
    rule = by_vjp(jnp.square, lambda args, g: (2 * g * args[0] * (1 + 2e-9 * args[0]),))
    hint = fn.audit(rule, X, points=[(10 * X,)]).rows[0].hint
    assert hint.startswith("approximate at the given point, too far off at points[0]")


def test_a_rule_for_forward_mode_that_is_not_linear():
    decorated = jax.custom_jvp(lambda x: x * x)
    decorated.defjvp(lambda primals, tangents: (primals[0] ** 2, 2 * primals[0] * jnp.clip(tangents[0], -9, 9)))
    report = fn.audit(decorated, X)
    assert "not linear in the tangent: right for a usual one" in report.rows[0].hint


def safe_norm(factor=1.0, at_zero=0.0):
    def backward(residuals, g):
        x, n = residuals
        some = n[:, None] > 0
        return (jnp.where(some, factor * g[:, None] * x / jnp.where(some, n[:, None], 1), at_zero),)

    norm = jax.custom_vjp(lambda x: jnp.sqrt(jnp.sum(x * x, -1)))
    norm.defvjp(lambda x: (norm(x), (x, norm(x))), backward)
    return norm


class TestWhereAutodiffIsNotFinite:
    """The function's own differences decide."""

    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64")])
    @pytest.mark.parametrize(
        ("rule", "verdict"),
        [
            (safe_norm(), "both valid subgradients"),
            (safe_norm(at_zero=7.0), "fail"),
            (safe_norm(factor=1.01), "fail"),
            (safe_norm(at_zero=jnp.nan), "fail"),
        ],
        ids=["right", "wrong at 0", "wrong elsewhere", "NaN too"],
    )
    def test_a_norm_at_zero(self, rule, verdict, dtype):
        row = fn.audit(rule, normal((4, 3), dtype).at[1].set(0)).rows[0 if verdict == "fail" else 1]
        assert (row.equation, row.verdict) == ("backward", verdict), row

    @pytest.mark.parametrize(("at_zero", "verdict"), [(0.0, "better than autodiff"), (1.0, "fail")])
    def test_a_smooth_function(self, at_zero, verdict):
        def sinc(x):
            return jnp.where(x == 0, 1.0, jnp.sin(x) / x)

        def backward(args, g):
            x = jnp.where(args[0] == 0, 1.0, args[0])
            return (g * jnp.where(args[0] == 0, at_zero, jnp.cos(x) / x - jnp.sin(x) / x**2),)

        report = fn.audit(by_vjp(sinc, backward), jnp.array([0.0, 1.0, -2.0]))
        row = next(row for row in report.rows if row.equation == "backward")
        assert row.verdict == verdict, str(report)
        if verdict == "fail":
            assert "autodiff is not finite in 1 of 3 entries" in row.hint
            assert row.hint.endswith("the others agree")


def test_a_layer_is_audited_as_one():
    layer = fn.Dense(2, fn.tanh)
    assert {row.layer for row in fn.audit(layer, layer.init(KEY, (3,)), X).rows} == {"0 Dense", "network"}


def test_in_a_test():
    fn.assert_gradients(*RIGHT["pair"])
    with pytest.raises(AssertionError, match=r"args\[0\].*fail"):
        fn.assert_gradients(*WRONG["custom_vjp"])
    with pytest.raises(AssertionError, match="vacuous"):
        fn.assert_gradients(((lambda x: (0 * x, None)), (lambda _, g: (0 * g,))), X)
