"""Costs: values, gradients, matched errors, targets, weights, extremes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn

from .cases import COSTS, TOLERANCE, assert_agree, targets

IDS = [f"{name}-{activation}" for name, _, activation in COSTS]
MATCHED = [(fn.quadratic, fn.linear), (fn.cross_entropy, fn.sigmoid), (fn.log_likelihood, fn.softmax)]


def by_hand(cost, a, y):
    """C in NumPy, straight from the formulas."""
    a, y = np.asarray(a, np.float64), np.asarray(y, np.float64)
    terms = {
        fn.quadratic: lambda: 0.5 * (y - a) ** 2,
        fn.cross_entropy: lambda: -(y * np.log(a) + (1 - y) * np.log(1 - a)),
        fn.log_likelihood: lambda: -y * np.log(a),
    }[cost]()
    return terms.reshape(len(a), -1).sum(1).mean()


@pytest.mark.parametrize(("name", "cost", "activation"), COSTS, ids=IDS)
@pytest.mark.parametrize("shape", [(4, 3), (1, 2), (3, 2, 5)])
def test_value_and_derivatives(name, cost, activation, shape):
    z = jax.random.normal(jax.random.key(0), shape)
    y = targets(jax.random.key(1), cost, shape, jnp.float64)
    a, output, m = activation(z), (activation, z), shape[0]
    np.testing.assert_allclose(cost(a, y), by_hand(cost, a, y), rtol=1e-12)
    np.testing.assert_allclose(cost(a, y, output=output), by_hand(cost, a, y), rtol=1e-12)
    assert_agree(cost.output_gradient(a, y), jax.grad(lambda a: m * cost(a, y))(a), 1e-12)
    delta = jax.grad(lambda z: m * cost(activation(z), y))(z)
    if cost.matches(output):
        assert_agree(cost.output_error(z, y), delta, 1e-12)
        assert_agree(cost.output_error(z, y), a - y, 1e-12)
    assert_agree(activation.error(cost.output_gradient(a, y), z, a), delta, 1e-11)


@pytest.mark.parametrize(("cost", "activation"), MATCHED, ids=lambda v: repr(v))
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_matched_pairs_are_finite_at_the_extremes(cost, activation, dtype):
    z = jnp.array([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [100.0, 100.0, -100.0]], dtype)
    for y in (jnp.array([1, 2, 0]), jnp.array([0, 0, 2]), jnp.eye(3, dtype=dtype)):
        value, grad = jax.value_and_grad(lambda z, y=y: cost(activation(z), y, output=(activation, z)))(z)
        assert value.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        assert bool(jnp.isfinite(value))
        assert bool(jnp.all(jnp.isfinite(grad)))
        delta = cost.output_error(z, y)
        assert delta.dtype == z.dtype
        assert_agree(delta, 3 * grad, TOLERANCE[dtype])


def test_a_confident_right_answer_costs_what_it_should():
    z = jnp.array([[40.0]])
    np.testing.assert_allclose(
        fn.cross_entropy(fn.sigmoid(z), jnp.ones((1, 1)), output=(fn.sigmoid, z)), np.exp(-40), rtol=1e-9
    )


@pytest.mark.parametrize(("name", "cost", "activation"), COSTS, ids=IDS)
def test_labels_are_one_hot_targets(name, cost, activation):
    z = jax.random.normal(jax.random.key(0), (5, 4))
    labels = jnp.array([0, 3, 1, 2, 3])
    for y in (labels, labels.astype(jnp.uint8), np.asarray(labels)):
        for output in (None, (activation, z)):
            hot = cost(activation(z), jnp.eye(4)[labels], output=output)
            np.testing.assert_allclose(cost(activation(z), y, output=output), hot, rtol=1e-13)


@pytest.mark.parametrize(("name", "cost", "activation"), COSTS, ids=IDS)
def test_weights(name, cost, activation):
    z = jax.random.normal(jax.random.key(0), (4, 3, 5))
    a, y = activation(z), targets(jax.random.key(1), cost, (4, 3, 5), jnp.float64)
    per_step = jax.random.uniform(jax.random.key(2), (4, 3))
    by_term = (
        sum(float(per_step[x, t]) * cost(a[x : x + 1, t], y[x : x + 1, t]) for x in range(4) for t in range(3)) / 4
    )
    np.testing.assert_allclose(cost(a, y, weights=per_step), by_term, rtol=1e-12)
    gradient = cost.output_gradient(a, y, weights=per_step)
    assert_agree(gradient, jax.grad(lambda a: 4 * cost(a, y, weights=per_step))(a), 1e-12)
    padded = cost(jnp.concatenate([a, a[:2]]), jnp.concatenate([y, y[:2]]), weights=jnp.array([1.5] * 4 + [0.0] * 2))
    np.testing.assert_allclose(padded, cost(a, y), rtol=1e-12)


def test_narrow_labels():
    z = jax.random.normal(jax.random.key(0), (3, 256))
    wide = fn.log_likelihood(fn.softmax(z), jnp.array([0, 200, 255]))
    np.testing.assert_allclose(fn.log_likelihood(fn.softmax(z), jnp.array([0, 200, 255], jnp.uint8)), wide)


class TestErrors:
    def test_the_logits_habit(self):
        net = fn.Network(fn.Dense(3, fn.linear))
        params = net.init(jax.random.key(0), (2,))
        x, y = jnp.ones((2, 2)), jnp.array([0, 1])
        for cost, end in ((fn.log_likelihood, "softmax"), (fn.cross_entropy, "sigmoid")):
            for run in (fn.backprop, lambda *args: fn.objective(*args[:2])(*args[2:])):
                with pytest.raises(
                    ValueError, match=rf"{cost}: expected outputs in \[0, 1\], got .* linear; end with {end}"
                ):
                    run(net, cost, params, x, y)

    @pytest.mark.parametrize("cost", [fn.quadratic, fn.cross_entropy, fn.log_likelihood], ids=repr)
    def test_labels_outside_the_classes(self, cost):
        net = fn.Network(fn.Dense(3, cost.matched))
        params = net.init(jax.random.key(0), (2,))
        x, y = jnp.ones((3, 2)), jnp.array([0, -1, 7])
        for run in (fn.backprop, lambda *args: fn.value_and_grad(*args[:2])(*args[2:])):
            with pytest.raises(
                ValueError, match=r"expected labels from 0 to 2, got -1 at example 1 \(2 of 3 are outside\)"
            ):
                run(net, cost, params, x, y)
        for label in (-1, 3, 100):
            value = jax.jit(fn.objective(net, cost))(params, x, jnp.array([0, 1, label]))
            assert bool(jnp.isnan(value)), (
                "a label outside the classes must make the cost NaN, never a plausible number"
            )

    @pytest.mark.parametrize(
        ("a_shape", "y", "message"),
        [
            (
                (4, 3),
                np.ones((4, 2)),
                r"expected targets of shape \(4, 3\) or labels of shape \(4,\) .* got \(4, 2\); check",
            ),
            ((4, 3), np.ones(5, int), r"got \(5,\); check .* as many examples \(4 and 5\)"),
            (
                (4, 3),
                np.ones(4),
                r"expected integer labels for targets of shape \(4,\) .* got float64; use y\.astype\(int\)",
            ),
            (
                (4, 7, 3),
                np.ones(4, int),
                r"expected targets of shape \(4, 7, 3\) or labels of shape \(4, 7\).*fn\.Flatten\(\)",
            ),
            ((2, 1), np.array([0, 1]), r"expected targets of shape \(2, 1\) for a single output, .*give y\[:, None\]"),
        ],
    )
    def test_targets_of_the_wrong_shape_or_kind(self, a_shape, y, message):
        with pytest.raises(ValueError, match=message):
            fn.quadratic(jnp.ones(a_shape), y)

    def test_weights_of_the_wrong_shape(self):
        with pytest.raises(
            ValueError, match=r"weights: expected shape \(4,\) or one that begins .* got \(3,\); weigh each"
        ):
            fn.quadratic(jnp.ones((4, 2)), jnp.ones((4, 2)), weights=jnp.ones(3))

    def test_a_cost_without_a_matched_activation(self):
        cost = fn.Cost("absolute", lambda a, y: jnp.abs(a - y), lambda a, y: jnp.sign(a - y))
        with pytest.raises(ValueError, match="absolute: expected a cost with a matched activation, got none"):
            cost.output_error(jnp.ones((1, 1)), jnp.ones((1, 1)))
        net = fn.Network(fn.Dense(3, fn.tanh))
        params = net.init(jax.random.key(0), (2,))
        assert fn.compare_gradients(net, cost, params, jnp.array([[1.0, -2.0], [0.5, 2.0]]), jnp.ones((2, 3))).ok


def test_accuracy():
    a = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    assert float(fn.accuracy(a, jnp.array([1, 1, 1]))) == pytest.approx(2 / 3)
    assert float(fn.accuracy(a, jnp.eye(2)[jnp.array([1, 0, 0])])) == pytest.approx(2 / 3)
    assert float(fn.accuracy(jnp.array([[0.7], [0.2]]), jnp.array([[1.0], [1.0]]))) == 0.5
    assert float(fn.accuracy(a, jnp.array([1, 1, 1]), jnp.array([1.0, 0.0, 1.0]))) == 1.0
    with pytest.raises(ValueError, match=r"accuracy: expected targets of shape \(3, 2\) or \(3,\), got \(2,\)"):
        fn.accuracy(a, jnp.array([1, 1]))
