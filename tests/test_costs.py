"""Costs: values, gradients, matched errors, targets, weights, extremes, errors."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn

from .cases import COSTS, TOLERANCE, array, assert_agree, params_of

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


def numbers(cost, shape):
    """Weighted inputs, targets that the cost can follow, and a weight for every term of C_x but its last axis."""
    rng = np.random.default_rng(0)
    z, y, weights = rng.standard_normal(shape), rng.uniform(size=shape), rng.uniform(size=shape[:-1])
    return z, y / y.sum(axis=-1, keepdims=True) if cost is fn.log_likelihood else y, weights


@pytest.mark.parametrize(("name", "cost", "activation"), COSTS, ids=IDS)
@pytest.mark.parametrize("shape", [(4, 3), (1, 2), (3, 2, 5)])
def test_value_and_derivatives(name, cost, activation, shape):
    z, y, _ = numbers(cost, shape)
    m = shape[0]

    @jax.jit
    def both(z, y):
        a, output = activation(z), (activation, z)
        by_z = jax.grad(lambda z: m * cost(activation(z), y))(z)
        gradient = cost.output_gradient(a, y)
        own, reference = [gradient], [jax.grad(lambda a: m * cost(a, y))(a)]
        if cost.matches(output):
            own += [cost.output_error(z, y), a - y]
            reference += [by_z, by_z]
        return a, (cost(a, y), cost(a, y, output=output)), (own, reference), (activation.error(gradient, z, a), by_z)

    a, values, gradients, errors = both(z, y)
    np.testing.assert_allclose(values, by_hand(cost, a, y), rtol=1e-12)
    assert_agree(*gradients, 1e-12)
    assert_agree(*errors, 1e-11)


@pytest.mark.parametrize(("cost", "activation"), MATCHED, ids=lambda v: repr(v))
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_matched_pairs_are_finite_at_the_extremes(cost, activation, dtype):
    z = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, 1e4], [100.0, 100.0, -100.0]], dtype)

    @jax.jit
    def both(z, y):
        value_and_grad = jax.value_and_grad(lambda z: cost(activation(z), y, output=(activation, z)))
        return value_and_grad(z), cost.output_error(z, y)

    for y in (np.array([1, 2, 0]), np.array([0, 0, 2]), np.eye(3, dtype=dtype)):
        (value, grad), delta = both(z, y)
        assert value.dtype == (jnp.float64 if dtype == "float64" else jnp.float32)
        assert np.isfinite(value)
        assert np.isfinite(np.asarray(grad, float)).all()
        assert delta.dtype == z.dtype
        assert_agree(delta, 3 * np.asarray(grad), TOLERANCE[dtype])


def test_a_confident_right_answer_costs_what_it_should():
    z = jnp.array([[40.0]])
    np.testing.assert_allclose(
        fn.cross_entropy(fn.sigmoid(z), jnp.ones((1, 1)), output=(fn.sigmoid, z)), np.exp(-40), rtol=1e-9
    )


@pytest.mark.parametrize(("name", "cost", "activation"), COSTS, ids=IDS)
def test_labels_are_one_hot_targets(name, cost, activation):
    z, labels = np.random.default_rng(0).standard_normal((5, 4)), np.array([0, 3, 1, 2, 3])

    @jax.jit
    def both(z, y):
        a = activation(z)
        return cost(a, y), cost(a, y, output=(activation, z))

    hot = both(z, np.eye(4)[labels])
    for y in (labels, labels.astype(np.uint8)):
        np.testing.assert_allclose(both(z, y), hot, rtol=1e-13)


@pytest.mark.parametrize(("name", "cost", "activation"), COSTS, ids=IDS)
def test_weights(name, cost, activation):
    z, y, per_step = numbers(cost, (4, 3, 5))

    @jax.jit
    def both(z, y, per_step):
        a = activation(z)
        by_term = jax.vmap(jax.vmap(lambda a, y: cost(a[None], y[None])))(a, y)
        padded = jnp.concatenate([a, a[:2]]), jnp.concatenate([y, y[:2]])
        own = cost(a, y, weights=per_step), cost(*padded, weights=jnp.array([1.5] * 4 + [0.0] * 2))
        reference = jnp.sum(per_step * by_term) / 4, cost(a, y)
        gradients = (
            cost.output_gradient(a, y, weights=per_step),
            jax.grad(lambda a: 4 * cost(a, y, weights=per_step))(a),
        )
        return own, reference, gradients

    own, reference, gradients = both(z, y, per_step)
    np.testing.assert_allclose(own, reference, rtol=1e-12)
    assert_agree(*gradients, 1e-12)


def test_narrow_labels():
    a = np.random.default_rng(0).dirichlet(np.ones(256), 3)
    wide, narrow = (fn.log_likelihood(a, np.array([0, 200, 255], dtype)) for dtype in (int, np.uint8))
    np.testing.assert_allclose(narrow, wide)


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

    def test_a_softmax_of_one_unit(self):
        net = fn.Network(fn.Dense(1, fn.softmax))
        message = (
            r"cross_entropy: expected a softmax of two units or more, .* end with one sigmoid, as in fn\.Dense\(1,"
        )
        with pytest.raises(ValueError, match=message):
            fn.value_and_grad(net, fn.cross_entropy)(params_of(net, (2,)), jnp.ones((2, 2)), jnp.full((2, 1), 0.3))

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


@pytest.mark.parametrize(
    ("cost", "activation"), [*MATCHED, (fn.log_likelihood, fn.sigmoid), (fn.cross_entropy, fn.softmax)]
)
def test_matched_errors_have_the_costs_second_derivative(cost, activation):
    rng = np.random.default_rng(0)
    z, u = 3 * rng.standard_normal((2, 20, 4))  # with outputs on both sides of ½
    y = rng.dirichlet(np.ones(4), 20)

    @jax.jit
    def products(z, u):
        matched = lambda z: cost.delta((activation, z), y)  # noqa: E731
        plain = jax.grad(lambda z: 20 * cost(activation(z), y, output=(activation, z)))
        return [(jax.jvp(f, (z,), (u,))[1], jax.vjp(f, z)[1](u)[0]) for f in (matched, plain)]

    assert_agree(*products(z, u), 1e-12)


@pytest.mark.parametrize("activation", [fn.softmax, fn.sigmoid], ids=repr)
@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)], ids=str)
def test_labels_are_their_one_hot_rows(shape, activation):
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.standard_normal((4, *shape)) * 30)
    y = jnp.asarray(rng.integers(5, size=(4, *shape[:-1])))
    output = activation, z
    rows = jax.nn.one_hot(y, 5)
    for weights in (None, jnp.array([1.0, 0.0, 2.0, 0.5])):
        by_label, by_row = (
            (
                fn.log_likelihood(activation(z), t, output=output, weights=weights),
                fn.log_likelihood.delta(output, t, weights=weights),
            )
            for t in (y, rows)
        )
        np.testing.assert_allclose(by_label[0], by_row[0], rtol=1e-14)
        np.testing.assert_allclose(by_label[1], by_row[1], rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("activation", [fn.softmax, fn.sigmoid], ids=repr)
def test_the_error_of_labels_has_a_derivative(activation):
    z = jnp.array([[30.0, 0.0, -2.0], [0.1, 0.2, 0.3]])
    y = jnp.array([0, 2])
    given = (
        jax.jacfwd(lambda z, t=t: fn.log_likelihood.delta((activation, z), t))(z) for t in (y, jax.nn.one_hot(y, 3))
    )
    hessian = jax.jacfwd(jax.grad(lambda z: 2 * fn.log_likelihood(z, y, output=(activation, z))))(z)
    for jacobian in given:
        np.testing.assert_allclose(jacobian, hessian, rtol=1e-12, atol=1e-15)  # 1e-13 is what autodiff loses 1e-16 of


def test_a_cost_with_another_error_uses_it_for_labels_too():
    wrong = dataclasses.replace(fn.log_likelihood, matched_error=lambda z, y: 0 * z)
    assert not wrong.output_error(jnp.ones((2, 3)), jnp.array([0, 1])).any()


@pytest.mark.parametrize("activation", [fn.softmax, fn.sigmoid], ids=repr)
def test_labels_take_half_the_memory_of_one_hot_rows(activation):
    def both(z, y):
        output = activation, z
        return fn.log_likelihood(z, y, output=output), fn.log_likelihood.delta(output, y)

    z, y = jnp.zeros((512, 1000)), jnp.zeros(512, int)
    temporaries = (
        jax.jit(f).lower(z, y).compile().memory_analysis().temp_size_in_bytes
        for f in (both, lambda z, y: both(z, jax.nn.one_hot(y, 1000)))
    )
    by_label, by_row = temporaries
    assert by_label <= 0.6 * by_row


@pytest.mark.parametrize("activation", [fn.softmax, fn.sigmoid], ids=repr)
def test_a_label_outside_makes_its_own_row_nan(activation):
    z, y = jnp.zeros((3, 4)), jnp.array([1, 4, -1])
    error = jax.jit(lambda z, y: fn.log_likelihood.delta((activation, z), y))(z, y)
    assert jnp.isnan(error).tolist() == [[False] * 4, [True] * 4, [True] * 4]
    assert jnp.isnan(jax.jit(lambda z, y: fn.log_likelihood(activation(z), y, output=(activation, z)))(z, y))


@pytest.mark.parametrize("cost", [fn.log_likelihood, fn.cross_entropy], ids=str)
def test_a_softmax_whose_input_the_compiler_computes_twice(cost):
    """The product with one input is a multiplication, which XLA takes into each sum that needs z, with other roundings: then
    no e^(z − max z) is exactly 1, and its gradient must not hang by that."""
    net = fn.Network(fn.Dense(2, fn.softmax))

    def plain(params, x, y):
        z = x * params[0]["w"].T + params[0]["b"]
        a = jax.nn.softmax(z)
        if cost is fn.log_likelihood:
            return -jnp.mean(jnp.sum(y * jnp.log(a), axis=-1))
        return -jnp.mean(jnp.sum(y * jnp.log(a) + (1 - y) * jnp.log1p(-a), axis=-1))

    reference, autodiff = (jax.jit(jax.grad(f)) for f in (plain, fn.objective(net, cost)))
    by_hand = fn.value_and_grad(net, cost)
    for seed in range(12):
        draw = np.random.default_rng(seed)
        params = params_of(net, (1,), "float32", seed)
        x, y = array(draw.standard_normal((9, 1)), "float32"), array(np.eye(2)[draw.integers(0, 2, 9)], "float32")
        wanted = reference(params, x, y)
        chex.assert_trees_all_close(autodiff(params, x, y), wanted, atol=1e-5)
        chex.assert_trees_all_close(by_hand(params, x, y)[1], wanted, atol=1e-5)
