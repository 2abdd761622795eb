"""Activations: values, derivatives, extremes, dtypes."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import fnnet as fn

from .cases import ACTIVATIONS, TOLERANCE, assert_agree

REFERENCE = {
    "sigmoid": scipy.special.expit,
    "tanh": np.tanh,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z > 0, z, 0.01 * z),
    "leaky_relu(slope=0.3)": lambda z: np.where(z > 0, z, 0.3 * z),
    "elu": lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
    "elu(alpha=0.5)": lambda z: np.where(z > 0, z, 0.5 * np.expm1(np.minimum(z, 0))),
    "softplus": lambda z: np.logaddexp(0, z),
    "silu": lambda z: z * scipy.special.expit(z),
    "gelu": lambda z: z * scipy.special.ndtr(z),
    "gelu_tanh": lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3))),
    "linear": lambda z: z,
    "softmax": lambda z: scipy.special.softmax(z, axis=-1),
}
Z = np.concatenate([np.linspace(-6, 6, 50), [0.0, -0.0, 1e-8, -1e-8, 30.0, -30.0]]).reshape(7, 8)
EXTREMES = jnp.array([[-1e4, -700.0, -90.0, 0.0, 90.0, 700.0, 1e4]])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_values(name):
    np.testing.assert_allclose(ACTIVATIONS[name](Z), REFERENCE[name](Z), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_derivatives_against_autodiff(name, dtype):
    activation, z = ACTIVATIONS[name], jnp.asarray(Z).astype(dtype)
    da = jax.random.normal(jax.random.key(0), z.shape).astype(dtype)
    a, pull_back = jax.vjp(activation, z)
    assert a.dtype == z.dtype
    assert_agree(activation.error(da, z, a), pull_back(da)[0], TOLERANCE[dtype])
    assert_agree(activation.error(da, z), pull_back(da)[0], TOLERANCE[dtype])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_derivatives_against_finite_differences(name):
    activation, h = ACTIVATIONS[name], 1e-6
    z = jax.device_put(np.linspace(-4, 4, 40).reshape(5, 8) + 0.013)
    da, dz = (jax.random.normal(jax.random.key(i), z.shape) for i in (0, 1))
    slope = jnp.sum(da * (activation(z + h * dz) - activation(z - h * dz))) / (2 * h)
    # Central differences: error h² and rounding eps / h, together about 1e-9.
    np.testing.assert_allclose(jnp.sum(activation.error(da, z) * dz), slope, rtol=1e-7)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_finite_at_the_extremes(name, dtype):
    activation, z = ACTIVATIONS[name], EXTREMES.astype(dtype)
    assert bool(jnp.all(jnp.isfinite(activation(z))))
    assert bool(jnp.all(jnp.isfinite(activation.error(jnp.ones_like(z), z))))


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "elu", "softplus", "gelu", "silu"])
def test_manual_and_autodiff_choose_alike_at_zero(name):
    z = jnp.zeros((1, 2))
    manual = ACTIVATIONS[name].error(jnp.ones_like(z), z)
    np.testing.assert_allclose(manual, jax.vjp(ACTIVATIONS[name], z)[1](jnp.ones_like(z))[0])
    if name == "relu":
        assert float(manual[0, 0]) == 0.0


def test_step_is_forward_only():
    np.testing.assert_array_equal(fn.step(jnp.array([-1.0, -0.0, 0.0, 2.0])), [0, 1, 1, 1])
    with pytest.raises(
        ValueError, match=r"step: expected a differentiable activation, got the threshold unit.*Use fn\.sigmoid"
    ):
        fn.step.error(jnp.ones(2), jnp.ones(2))
    net = fn.Network(fn.Dense(2, fn.step), fn.Dense(2, fn.linear))
    params = net.init(jax.random.key(0), (3,))
    x, y = jnp.ones((1, 3)), jnp.ones((1, 2))
    assert net.apply(params, x).shape == (1, 2)
    for gradient in (fn.value_and_grad(net, fn.quadratic), jax.grad(fn.objective(net, fn.quadratic))):
        with pytest.raises(ValueError, match="step: expected a differentiable activation"):
            gradient(params, x, y)


def test_activations_are_values():
    assert fn.leaky_relu.with_(slope=0.01) == fn.leaky_relu
    assert hash(fn.leaky_relu.with_(slope=0.2)) == hash(fn.leaky_relu.with_(slope=0.2))
    assert fn.leaky_relu.with_(slope=0.2) != fn.leaky_relu
    assert repr(fn.leaky_relu.with_(slope=0.2)) == "leaky_relu(slope=0.2)"
    assert jax.tree.leaves(fn.elu) == []
    with pytest.raises(
        ValueError, match=r"leaky_relu: expected the name of a parameter, got alpha; it has \['slope'\]"
    ):
        fn.leaky_relu.with_(alpha=0.1)
    with pytest.raises(ValueError, match=r"sigmoid: .*it has none"):
        fn.sigmoid.with_(slope=1)


def test_calling_one_takes_integers_and_python_numbers():
    assert fn.sigmoid(0).dtype == jnp.float64
    np.testing.assert_allclose(fn.relu(np.array([-2, 3])), [0, 3])


def test_an_activation_of_ones_own():
    square = fn.Activation("square", lambda z: z * z, lambda da, z, a: da * 2 * z)
    net = fn.Network(fn.Dense(3, square), fn.Dense(2, fn.linear))
    params = net.init(jax.random.key(0), (4,))
    assert fn.compare_gradients(
        net, fn.quadratic, params, jnp.ones((3, 4)) * jnp.arange(1.0, 4.0)[:, None], jnp.ones((3, 2))
    ).ok


class TestSurrogates:
    @pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
    @pytest.mark.parametrize("surrogate", [fn.sigmoid, fn.linear, fn.leaky_relu.with_(slope=0.3), fn.tanh], ids=repr)
    def test_the_value_is_its_own_and_the_error_that_of_the_surrogate(self, surrogate, dtype):
        unit, z = fn.step.with_surrogate(surrogate), jnp.asarray(Z).astype(dtype)
        da = jax.random.normal(jax.random.key(0), z.shape).astype(dtype)
        np.testing.assert_array_equal(unit(z), fn.step(z), strict=True)
        for delta in (unit.error(da, z), unit.error(da, z, unit(z)), unit.error_in_layer(da, z, unit(z))):
            np.testing.assert_array_equal(delta, surrogate.error(da, z), strict=True)
        np.testing.assert_array_equal(jax.vjp(unit, z)[1](da)[0], jnp.zeros_like(z))

    def test_the_derivative_of_another_base_is_replaced_too(self):
        unit, z = fn.leaky_relu.with_(slope=0.2).with_surrogate(fn.linear), jnp.array([-2.0, 3.0])
        np.testing.assert_allclose(unit(z), [-0.4, 3.0])
        np.testing.assert_allclose(unit.error(jnp.ones(2), z), [1, 1])
        np.testing.assert_allclose(jax.vjp(unit, z)[1](jnp.ones(2))[0], [0.2, 1])

    def test_they_are_values(self):
        unit = fn.step.with_surrogate(fn.sigmoid)
        assert unit == fn.step.with_surrogate(fn.sigmoid)
        assert hash(unit) == hash(fn.step.with_surrogate(fn.sigmoid))
        assert unit not in (fn.step, fn.step.with_surrogate(fn.linear))
        assert unit.surrogate is fn.sigmoid
        assert fn.sigmoid.surrogate is None
        assert unit.with_surrogate(fn.linear) == fn.step.with_surrogate(fn.linear)
        assert repr(fn.leaky_relu.with_surrogate(fn.elu)) == "leaky_relu(slope=0.01).with_surrogate(elu(alpha=1))"
        changed = fn.leaky_relu.with_surrogate(fn.elu).with_(slope=0.2)
        assert changed == fn.leaky_relu.with_(slope=0.2).with_surrogate(fn.elu)
        for activation in (unit, changed, fn.Dense(3, unit)):
            assert pickle.loads(pickle.dumps(activation)) == activation
        assert jax.tree.leaves(unit) == []

    @pytest.mark.parametrize(
        ("bad", "message"),
        [
            (0.5, "got 0.5; give fn.sigmoid, or fn.linear for the straight-through estimator"),
            (jnp.tanh, "got <.*tanh"),
            (fn.softmax, "got softmax, which acts on the whole row"),
            (fn.step, "got step, whose derivative is 0"),
        ],
        ids=["number", "function", "softmax", "step"],
    )
    def test_what_is_no_surrogate_is_a_clear_error(self, bad, message):
        with pytest.raises(ValueError, match=rf"step\.with_surrogate: expected an activation .*{message}"):
            fn.step.with_surrogate(bad)

    @pytest.mark.thorough
    def test_a_cost_matched_to_the_base_is_not_matched_to_it(self):
        """δ^L = a − y is sigmoid's; with another derivative BP1 is written out."""
        x, y = jnp.asarray(Z[:3]), jnp.eye(3, 2)
        net = fn.Network(fn.Dense(2, fn.sigmoid.with_surrogate(fn.linear)))
        params = net.init(jax.random.key(0), (8,))
        a = net.apply(params, x)
        delta = fn.backprop(net, fn.cross_entropy, params, x, y).errors[0]
        np.testing.assert_allclose(delta, (a - y) / (a * (1 - a)), rtol=1e-10)

    @pytest.mark.thorough
    def test_a_binarised_network_learns(self):
        """A parity: four threshold units cannot tell it as they are drawn, so they have to move."""
        x = jnp.asarray([[i >> k & 1 for k in range(4)] for i in range(16)], float)
        y = jnp.sum(x[:, :2], axis=1).astype(int) % 2
        net = fn.Network(fn.Dense(4, fn.step.with_surrogate(fn.sigmoid)), fn.Dense(2, fn.softmax))

        def last_layer_only(params, x, y, *, key, weights):
            zeros = jax.tree.map(jnp.zeros_like, params)
            bp = fn.backprop(net, fn.log_likelihood, params, x, y, weights=weights, feedback=zeros)
            return bp.cost, bp.gradients

        def accuracy(gradient=None):
            _, history = fn.fit(
                net, fn.log_likelihood, net.init(jax.random.key(1), (4,)), (x, y), key=jax.random.key(0), epochs=300,
                batch_size=16, optimizer=fn.adam(0.02), gradient=gradient, progress=False,
            )  # fmt: skip
            return history.accuracy[-1]

        assert accuracy() == 1
        assert accuracy(last_layer_only) < 0.8

    def test_straight_through_a_single_unit_is_the_perceptron_rule(self):
        """δ = a − y, one example at a time: it converges where a line parts the classes (Rosenblatt, 1958)."""
        x = jnp.asarray([[i >> k & 1 for k in range(4)] for i in range(16)], float)
        y = (x @ jnp.array([1.0, 2.0, -1.0, -1.0]) > 0.5).astype(float)[:, None]
        net = fn.Network(fn.Dense(1, fn.step.with_surrogate(fn.linear)))
        params = net.init(jax.random.key(0), (4,))
        bp = fn.backprop(net, fn.quadratic, params, x, y)
        np.testing.assert_array_equal(bp.errors[0], net.apply(params, x) - y)
        assert bp.cost > 0.1
        _, history = fn.fit(
            net, fn.quadratic, params, (x, y), key=jax.random.key(0), epochs=10, batch_size=1, optimizer=fn.sgd(1.0),
            progress=False,
        )  # fmt: skip
        assert history.cost[-1] == 0

    @pytest.mark.thorough
    def test_recurrent_and_convolutional_units_take_one(self):
        unit, x = fn.step.with_surrogate(fn.sigmoid), jax.random.normal(jax.random.key(0), (2, 4, 5, 1))
        for layer, inputs in ((fn.RNN(3, unit), x[..., 0]), (fn.Conv(2, 3, unit), x)):
            params = layer.init(jax.random.key(1), inputs.shape[1:])
            a, cache = layer.forward(params, inputs)
            assert set(np.unique(a)) == {0, 1}
            assert np.abs(layer.error(params, cache, jnp.ones_like(a))).min() > 0


@pytest.mark.parametrize("largest", [5.0, 20.0, 60.0])
def test_softmax_keeps_a_saturated_rows_error_in_float32(largest):
    """Against δ_i = a_i Σ_j a_j (da_i − da_j) in float64, where nothing cancels."""
    rng = np.random.default_rng(0)
    z = np.append(largest, rng.standard_normal(4)).astype(np.float32)
    da = rng.standard_normal(5).astype(np.float32)
    a = np.exp(z.astype(float) - largest)
    a /= a.sum()
    exact = a * ((da[:, None] - da.astype(float)) @ a)
    delta = fn.softmax.error(jnp.asarray(da), jnp.asarray(z), fn.softmax(jnp.asarray(z)))
    np.testing.assert_allclose(delta, exact, rtol=1e-5)
