"""The measured reference: as exact as it says, at any scale, and silent where it cannot judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.gradcheck import differences
from fnnet.gradcheck.differences import AT_ONCE, Function, NoJudge, measured
from fnnet.gradcheck.measured import measured_rows, measured_vjp
from fnnet.gradcheck.sides import normals

RANDOM = np.random.default_rng(3)
NORMAL, WILD = RANDOM.standard_normal(12), RANDOM.standard_normal(12) * 10.0 ** RANDOM.uniform(-8, 8, 12)


def function(f, x):
    """⟨u, f(x)⟩, f for each row."""
    u = np.random.default_rng(0).standard_normal(np.shape(x))

    def values(points):
        with np.errstate(all="ignore"):
            terms = (u * np.asarray(f(points), np.float64)).reshape(len(points), -1)
        return terms.sum(1), np.abs(terms).sum(1)

    return Function(np.asarray(x), ("x",), ("float64",), (np.shape(x),), AT_ONCE, values), u


SMOOTH = {
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "exp": (lambda x: np.exp(np.minimum(x, 30)), lambda x: np.exp(x)),
    "log": (lambda x: np.log(np.abs(x)), lambda x: 1 / x),
    "sine": (np.sin, np.cos),
    "cube": (lambda x: x**3, lambda x: 3 * x**2),
    "inverse": (lambda x: 1 / x, lambda x: -1 / x**2),
    "logarithm of the sum": (lambda x: np.log1p(x**2), lambda x: 2 * x / (1 + x**2)),
    "in float32": (lambda x: np.tanh(x.astype("float32")), lambda x: 1 - np.tanh(x) ** 2),
    "a staircase on a slope": (lambda x: x + np.floor(x), np.ones_like),
    "a large offset": (lambda x: (x + 1e6) ** 2, lambda x: 2 * (x + 1e6)),
    "fast": (lambda x: np.sin(1e4 * x), lambda x: 1e4 * np.cos(1e4 * x)),
}


@pytest.mark.parametrize("x", [NORMAL, WILD], ids=["normal", "wild"])
@pytest.mark.parametrize("name", SMOOTH)
def test_it_is_as_exact_as_it_says(name, x):
    f, derivative = SMOOTH[name]
    if name == "exp":
        x = np.minimum(x, 20)
    g, u = function(f, x)
    if x is WILD and name in ("a staircase on a slope", "fast"):
        with pytest.raises(NoJudge):  # steps of 1 at 1e8: too near to rounding
            measured(g, 0)
        return
    (piece,) = measured(g, 0)
    assert len(piece.directions) >= len(x) / 2
    slope, uncertainty, *_ = piece.slopes
    right = (u * derivative(x))[piece.directions]
    assert np.all(np.abs(slope - right) <= np.max(uncertainty))
    assert not piece.has_kinks
    if x is NORMAL and name not in ("in float32", "a large offset", "a staircase on a slope", "fast"):
        assert piece.uncertainty < 1e-9


@pytest.mark.parametrize(("f", "left", "right"), [(lambda x: np.maximum(x, 0), 0, 1), (np.abs, -1, 1)])
def test_kinks_have_two_slopes(f, left, right):
    x = np.array([0.0, 1.0, -2.0, 1e-5])
    g, u = function(f, x)
    (piece,) = measured(g, 0)
    np.testing.assert_allclose(piece.slopes.left[0], left * u[0], atol=1e-9)
    np.testing.assert_allclose(piece.slopes.right[0], right * u[0], atol=1e-9)
    np.testing.assert_array_equal(piece.slopes.left[1:], piece.slopes.right[1:])
    np.testing.assert_allclose(piece.slopes.slope[3], u[3], rtol=1e-6)  # 1e-5 beside the kink


def test_the_edge_of_a_domain():
    def f(x):
        return np.where((x >= 0) & (x <= 1), x**2 + np.sin(x), np.nan)

    x = np.array([0.0, 0.3, 1.0])
    g, u = function(f, x)
    (piece,) = measured(g, 0)
    np.testing.assert_allclose(piece.slopes.slope, u * (2 * x + np.cos(x)), rtol=1e-6)
    assert not piece.covered
    g, u = function(np.sqrt, np.array([0.0, 1.0, 4.0]))
    (piece,) = measured(g, 0)
    assert piece.covered == "2 of 3 entries"
    np.testing.assert_array_equal(piece.directions, [1, 2])


@pytest.mark.parametrize(
    ("f", "x"),
    [
        (lambda x: np.tanh(x.astype("float16")), NORMAL),
        (lambda x: np.sqrt(np.abs(x)), np.zeros(3)),
        (lambda x: x + np.floor(x), np.arange(3.0)),
        (lambda x: x + 1e-3 * np.random.default_rng(abs(hash(x.tobytes()))).standard_normal(x.shape), NORMAL),
        (lambda x: np.log(-np.abs(x)), NORMAL),
    ],
    ids=["coarse", "cusp", "jump", "noise", "not finite"],
)
def test_where_it_cannot_judge_it_says_so(f, x):
    with pytest.raises(NoJudge, match=r"no independent judge: .* give reference=|not finite at this point"):
        measured(function(f, x)[0], 0)


def test_what_is_covered_of_a_large_array_is_said():
    x = RANDOM.standard_normal(3000)
    g, u = function(np.tanh, x)
    some, ways = measured(g, 0)
    assert (some.covered, ways.covered) == ("256 of 3000 entries", "16 random directions")
    right = u * (1 - np.tanh(x) ** 2)
    np.testing.assert_allclose(some.slopes.slope, right[some.directions], rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(ways.slopes.slope, ways.directions @ right, rtol=1e-7)


def test_a_zero_derivative_is_zero_to_rounding():
    g, _ = function(lambda x: np.exp(x) / np.exp(x), NORMAL)
    assert measured(g, 0)[0].zero > 0
    g, _ = function(np.sign, NORMAL)
    assert not np.any(measured(g, 0)[0].slopes.slope)


def solve(a, b):
    """A loop up to a tolerance."""

    def step(state):
        x, i = state
        return x - 0.1 * (a @ x - b), i + 1

    def goes_on(state):
        return (jnp.linalg.norm(a @ state[0] - b) > 1e-12) & (state[1] < 3000)

    return jax.lax.while_loop(goes_on, step, (jnp.zeros_like(b), 0))[0]


def solve_rule(transposed=True):
    def forward(a, b):
        x = solve(a, b)
        return x, (a, x)

    def backward(residuals, g):
        a, x = residuals
        error = jnp.linalg.solve(a.T if transposed else a, g)
        return -jnp.outer(error, x), error

    return forward, backward


A = 2 * np.eye(4, dtype="float32") + 0.3 * RANDOM.standard_normal((4, 4)).astype("float32")


def test_a_loop_that_jax_cannot_differentiate():
    args = jnp.asarray(A), jnp.ones(4, "float32")
    report = fn.audit(solve_rule(), *args, points=())
    assert report.ok, report
    assert differences.JUDGE in report.judge
    assert not fn.audit(solve_rule(transposed=False), *args, points=()).ok


def test_a_callback_is_run_point_by_point():
    def f(x):
        return jax.pure_callback(lambda x: np.tanh(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    def manual(args, u):
        return {"args[0]": u * (1 - jnp.tanh(args[0]) ** 2)}

    x = jnp.asarray(NORMAL, "float32")
    subject = measured_vjp(f, (x,), normals(x, 0), manual, "float32")
    assert [row.verdict for row in measured_rows("f", subject)] == ["pass"]


def test_a_function_for_float32_only():
    def f(x):
        assert x.dtype == jnp.float32
        return jnp.tanh(x)

    def manual(args, u):
        return {"args[0]": u * (1 - jnp.tanh(args[0]) ** 2)}

    def wrong(args, u):
        return {"args[0]": 1.02 * manual(args, u)["args[0]"]}

    x = jnp.asarray(NORMAL, "float32")
    for by_hand, verdict in ((manual, "pass"), (wrong, "fail")):
        subject = measured_vjp(f, (x,), normals(x, 0), by_hand, "float32")
        assert [row.verdict for row in measured_rows("f", subject)] == [verdict]
        assert 1e-8 < subject.pieces["args[0]"][1].uncertainty < 1e-3


@pytest.mark.parametrize(
    ("at_zero", "verdict"),
    [(0.0, "both valid subgradients"), (0.5, "pass"), (1.0, "both valid subgradients"), (2.0, "fail")],
)
def test_subgradients_at_kinks(at_zero, verdict):
    def manual(args, u):
        slope = jnp.where(args[0] > 0, 1, jnp.where(args[0] == 0, at_zero, 0))
        return {"args[0]": u * slope.astype(u.dtype)}

    x = jnp.asarray([0.0, 1.0, -1.0, 0.0])
    subject = measured_vjp(lambda x: jnp.maximum(x, 0), (x,), normals(x, 0), manual, "float64")
    assert [row.verdict for row in measured_rows("f", subject)] == [verdict]


@pytest.mark.thorough
def test_a_wrong_large_array_is_measured_whole():
    x = jnp.asarray(RANDOM.standard_normal((40, 30)))

    def manual(factor):
        return lambda args, u: {"args[0]": factor * u * (1 - jnp.tanh(args[0]) ** 2)}

    u = normals(x, 0)
    rows = measured_rows("f", measured_vjp(jnp.tanh, (x,), u, manual(1), "float64"))
    assert [row.leaf for row in rows] == ["args[0] (256 of 1200 entries)", "args[0] (16 random directions)"]
    assert {row.verdict for row in rows} == {"pass"}
    (row,) = measured_rows("f", measured_vjp(jnp.tanh, (x,), u, manual(1.02), "float64"))
    assert (row.leaf, row.verdict, row.count) == ("args[0]", "fail", 1200)

    def one_wrong(args, u):
        right = manual(1)(args, u)["args[0]"]
        return {"args[0]": right.at[7, 11].multiply(1.02)}

    rows = measured_rows("f", measured_vjp(jnp.tanh, (x,), u, one_wrong, "float64"))
    assert "fail" in {row.verdict for row in rows}  # a sample may miss it, random directions do not


def test_assert_gradients():
    if not hasattr(fn, "assert_gradients"):
        pytest.skip("to come")
    fn.assert_gradients((lambda x: (np.tanh(x), x), lambda x, g: g * (1 - np.tanh(x) ** 2)), NORMAL)
    with pytest.raises(AssertionError, match=r"args\[0\] +fail"):
        fn.assert_gradients((lambda x: (np.tanh(x), x), lambda x, g: g * (1 - np.tanh(x))), NORMAL)
