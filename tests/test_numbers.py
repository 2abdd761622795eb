"""Numbers where floating point fails silently: tails, nearly certain examples, what counts for nothing, bad targets, NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import fnnet as fn

from .cases import assert_agree, largest, thorough

s = scipy.special.expit
SCALE, CUBIC = 2 * np.sqrt(2 / np.pi), 0.044715


def elu(z):
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


# Value and derivative in float64, without a difference that cancels.
ACTIVATIONS = {
    "sigmoid": (s, lambda z: s(z) * s(-z)),
    "tanh": (np.tanh, lambda z: 4 * s(2 * z) * s(-2 * z)),
    "relu": (lambda z: np.maximum(z, 0), lambda z: np.where(z > 0, 1.0, 0)),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1, 0.01)),
    "elu": (elu, lambda z: np.exp(np.minimum(z, 0))),
    "softplus": (lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), s),
    "silu": (lambda z: z * s(z), lambda z: s(z) * (1 + z * s(-z))),
    "gelu": (
        lambda z: z * scipy.special.ndtr(z),
        lambda z: scipy.special.ndtr(z) + z * np.exp(-z * z / 2) / np.sqrt(2 * np.pi),
    ),
    "gelu_tanh": (
        lambda z: z * s(SCALE * (z + CUBIC * z**3)),
        lambda z: (
            s(SCALE * (z + CUBIC * z**3)) * (1 + z * s(-SCALE * (z + CUBIC * z**3)) * SCALE * (1 + 3 * CUBIC * z**2))
        ),
    ),
    "linear": (lambda z: z, np.ones_like),
}
SIZES = np.concatenate([np.geomspace(1e-30, 1e-2, 15), np.linspace(0.02, 80, 400), [1e2, 1e3, 6e4]])


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_and_derivatives_keep_their_relative_accuracy(name, dtype):
    activation, z = getattr(fn, name), jnp.concatenate([jnp.asarray(SIZES), -jnp.asarray(SIZES)]).astype(dtype)
    wide, info = np.asarray(z, np.float64), jnp.finfo(dtype)
    a, slope = jax.jit(lambda z: (activation(z), activation.error(jnp.ones_like(z), z, activation(z))))(z)
    # A relative change of z by eps moves a gelu by about z² eps in its tail. Float32 flushes what is below its smallest
    # normal number, also on the way: a product with z from 1e-36 down.
    moves = np.where(np.abs(wide) < 20, 4 * wide**2 if "gelu" in name else 0, 0)
    for got, right in zip((a, slope), ACTIVATIONS[name], strict=True):
        right = right(wide)
        bound = (4 + moves) * float(info.eps) * np.abs(right) + max(float(info.tiny), 1e-35)
        if name in ("silu", "gelu", "gelu_tanh") and got is slope:  # crosses 0 near z = −1: relative to its terms there
            bound += 8 * float(info.eps) * ((wide > -3) & (wide < 0))
        gap = np.abs(np.asarray(got, np.float64) - right)
        worst = int(np.argmax(gap - bound))
        assert np.all(gap <= bound), f"{name}({wide[worst]}): {got[worst]} where {right[worst]} is right"


def test_the_tails_in_float64():
    z = jnp.array([-500.0, -200.0, -40.0, 40.0, 200.0, 500.0])
    for name in ("sigmoid", "tanh", "elu", "softplus", "silu"):
        slope = getattr(fn, name).error(jnp.ones_like(z), z)
        tail = np.abs(slope) > 1e-300
        right = ACTIVATIONS[name][1](np.asarray(z))
        np.testing.assert_allclose(slope[tail], right[tail], rtol=1e-13)
        assert np.all(tail == (np.abs(right) > 1e-300))


def test_limits_and_nan():
    z = jnp.array([-jnp.inf, jnp.inf, jnp.nan], jnp.float32)
    limits = {"sigmoid": (0, 1), "tanh": (-1, 1), "elu": (-1, np.inf), "step": (0, 1), "linear": (-np.inf, np.inf)}
    limits |= dict.fromkeys(("relu", "softplus", "silu", "gelu", "gelu_tanh"), (0, np.inf))
    for name, limit in limits.items():
        np.testing.assert_array_equal(getattr(fn, name)(z), [*limit, np.nan], err_msg=name)
        if name != "step":
            slope = getattr(fn, name).error(jnp.ones_like(z), z)[:2]
            low, high = (limit[0] == -np.inf), (limit[1] == np.inf)
            np.testing.assert_array_equal(slope, [low, high], err_msg=name)
    np.testing.assert_array_equal(fn.softmax(jnp.array([1.0, jnp.inf, -jnp.inf])), [0, 1, 0])
    assert np.all(np.isnan(fn.softmax(jnp.array([1.0, jnp.nan]))))


@pytest.mark.parametrize("activation", [fn.sigmoid, fn.tanh], ids=repr)
def test_a_layer_needs_a_and_not_z(activation):
    """The layer above keeps a anyway; in half precision, where a says little, z is kept."""
    z, da = jnp.array([[-2.0, 0.5, 3.0]]), jnp.ones((1, 3))
    np.testing.assert_allclose(
        activation.error_in_layer(da, jnp.nan * z, activation(z)), activation.error(da, z), rtol=1e-12
    )
    z, da = jnp.full((1, 3), 10, jnp.bfloat16), jnp.ones((1, 3), jnp.bfloat16)
    np.testing.assert_array_equal(activation.error_in_layer(da, z, activation(z)), activation.error(da, z))


ENDS = jnp.array([-100.0, -40, -20, -5, -1, 0, 1, 5, 20, 40, 100])
LOGITS = jnp.stack([ENDS, 0 * ENDS, -ENDS / 2, ENDS, 0 * ENDS + 3], -1)


def rounding(dtype):
    """(a few eps, the smallest number that is kept) of a dtype."""
    info = jnp.finfo(dtype)
    return 6 * float(info.eps), max(float(info.tiny), 1e-37)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_nearly_certain_sigmoid_keeps_its_cost_and_error(dtype):
    z, (rtol, atol) = ENDS.astype(dtype)[:, None], rounding(dtype)
    wide = np.asarray(z, np.float64)
    for y in (0.0, 1.0, 0.25):
        target = jnp.full_like(z, y)
        right = (1 - y) * s(wide) - y * s(-wide)
        np.testing.assert_allclose(fn.cross_entropy.output_error(z, target).astype(float), right, rtol=rtol, atol=atol)

        def value(z, target=target):
            return 11 * fn.cross_entropy(z, target, output=(fn.sigmoid, z))

        np.testing.assert_allclose(jax.grad(value)(z).astype(float), right, rtol=rtol, atol=atol)
    alone = fn.cross_entropy(z[9:10], jnp.ones((1, 1), dtype), output=(fn.sigmoid, z[9:10]))
    np.testing.assert_allclose(float(alone), np.log1p(np.exp(-40.0)), rtol=1e-6)


def error_of_softmax(z, y):
    """a Σ y − y in float64, as a_k Σ_{j≠k} y_j − y_k Σ_{j≠k} a_j."""
    e, others = np.exp(z - z.max(-1, keepdims=True)), ~np.eye(z.shape[-1], dtype=bool)
    e_beside, y_beside = ((array[..., None, :] * others).sum(-1) for array in (e, y))
    return (e * y_beside - y * e_beside) / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_nearly_certain_softmax_keeps_its_cost_and_error(dtype):
    z, (rtol, atol) = LOGITS.astype(dtype), rounding(dtype)
    wide, error = np.asarray(z, np.float64), jax.jit(fn.log_likelihood.output_error)
    for y in (*np.eye(5), np.array([1, 1, 0, 0, 1])):
        y = np.broadcast_to(y, z.shape)
        np.testing.assert_allclose(
            error(z, y.astype(dtype)).astype(float), error_of_softmax(wide, y), rtol=rtol, atol=atol
        )
    for gap in (20, 40, 80):
        z = jnp.array([[gap, 0, 0]], dtype)
        value = fn.log_likelihood(z, jnp.array([0]), output=(fn.softmax, z))
        np.testing.assert_allclose(float(value), np.log1p(2 * np.exp(-float(gap))), rtol=1e-6)


PAIRS = [
    (fn.cross_entropy, fn.sigmoid),
    (fn.cross_entropy, fn.softmax),
    (fn.log_likelihood, fn.softmax),
    (fn.log_likelihood, fn.sigmoid),
]


@pytest.mark.parametrize(("cost", "activation"), PAIRS, ids=repr)
@pytest.mark.parametrize("dtype", ["float32", *thorough("bfloat16", "float16")])
def test_logarithmic_costs_are_finite_and_right_far_out(cost, activation, dtype):
    """Against the same cost in float64, from a where that is not rounded to 0 or 1; |z| itself far out."""
    layer = fn.Dense(3, activation)
    x, y = jnp.ones((1, 1), dtype), jnp.array([1])

    @jax.jit
    def both(b):
        params = {"w": jnp.zeros((3, 1), b.dtype), "b": b}
        by_hand = fn.value_and_grad(layer, cost)(params, x.astype(b.dtype), y)
        return by_hand, jax.value_and_grad(fn.objective(layer, cost))(params, x.astype(b.dtype), y)

    for b in ([200.0, 0, 0], [0, 200, 0], [-8, 12, 4], [0, 0, 0], [1e4, -1e4, 1e4], [-1e4, 5e3, -1e4], [9, 9, -9]):
        b = jnp.asarray(b, dtype)
        (value, grads), (objective, autodiff) = both(b)
        (wide, wide_grads), _ = both(b.astype(jnp.float64))
        np.testing.assert_allclose([value, objective], wide, rtol=2e-6, atol=1e-30)
        for found in (grads, autodiff):
            np.testing.assert_allclose(found["b"].astype(float), wide_grads["b"], atol=4 * float(jnp.finfo(dtype).eps))
        if largest(b) < 20:
            a = activation(b.astype(jnp.float64))[None]
            np.testing.assert_allclose(wide, cost(a, y), rtol=1e-10)
            delta = activation.error(cost.output_gradient(a, y), b.astype(jnp.float64)[None], a)
            np.testing.assert_allclose(wide_grads["b"], delta[0], rtol=1e-9, atol=1e-15)


def test_softmax_and_cross_entropy_by_hand():
    """−ln a_1 − ln(1 − a_0) − ln(1 − a_2) = 200 + (200 − ln 2) + e^−200 for z = (200, 0, 0) and the label 1."""
    z = jnp.array([[200.0, 0, 0]], jnp.float32)
    value = fn.cross_entropy(fn.softmax(z), jnp.array([1]), output=(fn.softmax, z))
    np.testing.assert_allclose(value, 400 - np.log(2), rtol=1e-7)
    np.testing.assert_allclose(fn.cross_entropy.delta((fn.softmax, z), jnp.array([1])), [[2, -1.5, -0.5]], rtol=1e-6)


def test_a_cost_with_another_gradient_does_not_use_the_composed_form():
    other = dataclasses.replace(fn.log_likelihood, gradient=lambda a, y: -y)
    assert other.delta((fn.sigmoid, LOGITS), jnp.zeros(11, int)) is None


NET = fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.sigmoid))
PARAMS = NET.init(jax.random.key(0), (2,))
X = jax.device_put(np.random.default_rng(0).standard_normal((3, 2)))


def absolute(a, y):
    return jnp.sqrt(jnp.sum((a - y) ** 2, axis=-1))


DISTANCE = fn.Cost("distance", absolute, lambda a, y: (a - y) / absolute(a, y)[..., None])


@pytest.mark.parametrize("cost", [fn.log_likelihood, DISTANCE, *thorough(fn.quadratic, fn.cross_entropy)], ids=repr)
def test_an_example_of_weight_zero_counts_for_nothing(cost):
    y = jnp.array([[1.0, 0, 0], [0, 0.5, 0.5], [0, 1, 0]])
    weights, kept = jnp.array([1.5, 0, 1.5]), jnp.array([0, 2])
    by_hand, autodiff = fn.value_and_grad(NET, cost), jax.value_and_grad(fn.objective(NET, cost))
    right = by_hand(PARAMS, X[kept], y[kept])
    for x, target in (
        (X, y.at[1].set(jnp.nan)),
        (X, y.at[1, 2].set(-jnp.inf)),
        (X.at[1].set(jnp.nan), y.at[1].set(1e30)),
        (X.at[1, 0].set(jnp.inf), jnp.array([0, -100, 1])),
        (X, np.array([0, 2**40, 1])),
    ):
        alone = right if target.ndim > 1 else by_hand(PARAMS, X[kept], y[kept].at[:].set(jnp.eye(3)[:2]))
        for found in (by_hand, autodiff):
            assert_agree(found(PARAMS, x, target, weights=weights), alone, 1e-12)
    bp = fn.backprop(NET, cost, PARAMS, X, jnp.array([0, -100, 1]), weights=weights)
    assert not any(np.any(delta[1]) for delta in bp.errors)


@pytest.mark.thorough
def test_a_step_of_weight_zero_counts_for_nothing():
    net = fn.Network(fn.RNN(3), fn.Dense(4, fn.softmax))
    params, x = net.init(jax.random.key(0), (5, 2)), jnp.ones((2, 5, 2))
    weights = jnp.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    right = fn.value_and_grad(net, fn.log_likelihood)(params, x, jnp.ones((2, 5), int), weights=weights.astype(float))
    ignored = jnp.where(weights == 0, -100, 1)
    for given in (weights, weights == 1, weights.astype(jnp.float16)):
        for gradient in (fn.value_and_grad, lambda *net: jax.value_and_grad(fn.objective(*net))):
            assert_agree(gradient(net, fn.log_likelihood)(params, x, ignored, weights=given), right, 1e-12)
    with pytest.raises(ValueError, match=r"expected labels from 0 to 3, got -100 at example 0 \(4 of 10 are outside\)"):
        fn.value_and_grad(net, fn.log_likelihood)(params, x, ignored)
    data = (x, ignored, {"weights": weights})
    cost, share = fn.evaluate(net, fn.log_likelihood, params, data)
    np.testing.assert_allclose(cost, right[0])
    assert 0 <= share <= 1


@pytest.mark.parametrize("cost", [fn.cross_entropy, fn.log_likelihood], ids=repr)
@pytest.mark.parametrize(
    ("y", "got"),
    [
        (np.array([[1.0, 0, 0], [-1, 1, 1]]), r"-1\.0 at example 1 \(1 of 6"),
        (jnp.array([[255, 0, 0], [0, 255, 0]], jnp.uint8), r"255 at example 0 \(2 of 6"),
        (np.array([[1, 0, 0], [0, np.nan, 0]]), r"nan at example 1"),
        (jnp.array([[1, 0, 0], [0, 1.5, 0]], jnp.bfloat16), r"1\.5 at example 1"),
    ],
    ids=["-1 and 1", "bytes", "NaN", "bfloat16"],
)
def test_targets_outside_zero_to_one(cost, y, got):
    message = rf"{cost}: expected targets in \[0, 1\], got {got}.*scale them to \[0, 1\], or give labels"
    for run in (
        lambda: fn.backprop(NET, cost, PARAMS, X[:2], y),
        lambda: cost(jnp.full((2, 3), 0.5), y),
        lambda: fn.evaluate(NET, cost, PARAMS, (X[:2], y)),
    ):
        with pytest.raises(ValueError, match=message):
            run()
    assert np.isnan(jax.jit(cost)(jnp.full((2, 3), 0.5), y))


def test_targets_that_may_be():
    a = jnp.full((2, 3), 0.5)
    for y in ([[0.2, 0.3, 0.4], [1, 1, 1]], [[1 + 1e-7, 0, 0], [0, -1e-7, 1]]):
        assert np.isfinite(fn.log_likelihood(a, jnp.array(y)))
    assert np.isfinite(fn.quadratic(a, np.array([[-1.0, 1, 1], [255, 3, 4]])))
    assert np.isfinite(fn.cross_entropy(a, np.ones((2, 3), bool)))


@pytest.mark.parametrize("bits", [32, 64])
def test_labels_are_judged_as_they_are_given(bits):
    with jax.enable_x64(bits == 64):
        a = jnp.full((3, 3), 0.3)
        for y in (np.array([0, 1, 2**32]), np.array([0, 1, 2**64 - 1], np.uint64), np.array([0, 1, 255], np.uint8)):
            for run in (fn.log_likelihood, fn.accuracy):
                with pytest.raises(ValueError, match=rf"expected labels from 0 to 2, got {y[2]} at example 2"):
                    run(a, y)
        for y in (np.array([0, 1.7, 2]), np.array([True, False, True])):
            for run in (fn.log_likelihood, fn.accuracy):
                with pytest.raises(ValueError, match=rf"expected integer labels .* got {y.dtype}"):
                    run(a, y)
        # Whole numbers as values: 3·10⁹ is no 32-bit integer.
        np.testing.assert_allclose(fn.quadratic(0 * a[:1, :1], np.array([[3_000_000_000]])), 4.5e18, rtol=1e-6)


def test_an_output_with_nan_names_no_class():
    a = jnp.array([[jnp.nan, 0.1, 0.2], [0.1, jnp.nan, 0.9], [0.7, 0.2, 0.1]])
    assert float(fn.accuracy(a, jnp.array([0, 2, 0]))) == pytest.approx(1 / 3)
    assert float(fn.accuracy(a, jnp.eye(3)[jnp.array([0, 2, 0])])) == pytest.approx(1 / 3)
    assert float(fn.accuracy(a[2:], jnp.full((1, 3), jnp.nan))) == 0
    assert float(fn.accuracy(jnp.array([[jnp.nan], [0.9]]), jnp.array([[0], [1]]))) == 0.5
    assert float(fn.accuracy(jnp.array([[0.2], [0.9]]), jnp.array([1, 1]))) == 0.5
    lost = jax.tree.map(lambda w: w * jnp.nan, PARAMS)
    assert fn.evaluate(NET, fn.log_likelihood, lost, (X, jnp.zeros(3, int)))[1] == 0


def test_counts_in_half_precision_are_exact():
    """4,097 is no float16, and 300 · 1 adds up to 256 in bfloat16."""
    m = 4097
    a = jnp.tile(jnp.array([[0.2, 0.8]], jnp.float16), (m, 1))
    for dtype in (jnp.float16, jnp.bfloat16, bool, jnp.int8):
        weights = (jnp.arange(m) > 0).astype(dtype)
        y = jnp.ones(m, int).at[0].set(0)
        assert float(fn.accuracy(a, y, weights)) == 1.0
        np.testing.assert_allclose(
            fn.quadratic(a, a + jnp.asarray(1, a.dtype), weights=weights), (m - 1) / m, rtol=1e-3
        )
