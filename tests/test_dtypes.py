"""Numbers are never changed in silence: integers and bools give what the same floats give, complex numbers are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet import diagnostics, rbm
from fnnet.layers._layer import run_forward

from .cases import thorough

KEY = jax.random.key(0)
DTYPES = ["uint8", "int32", "bool"]
NETS = {
    "Dense": (fn.Dense(3, fn.tanh), (4,)),
    "Dropout": (fn.Network(fn.Dropout(0.2), fn.Dense(3, fn.tanh)), (4,)),
    "Dropout alone": (fn.Dropout(0.3), (4,)),
    "Dropout per batch": (fn.Network(fn.Dropout(0.5, per="batch")), (4,)),
    "Flatten": (fn.Flatten(), (3, 2)),
    "Conv": (fn.Conv(2, 2, fn.sigmoid), (3, 3, 2)),
    "ConvTranspose": (fn.ConvTranspose(2, 2, fn.sigmoid), (2, 2, 2)),
    "MaxPool": (fn.MaxPool(2, 1, "same"), (3, 3, 1)),
    "MaxPool by scatter": (fn.MaxPool(2, algorithm="scatter"), (4, 4, 1)),
    "MeanPool": (fn.MeanPool(2, 1), (3, 3, 1)),
    "GlobalMeanPool": (fn.GlobalMeanPool(), (3, 3, 2)),
    "Upsample": (fn.Upsample(2), (2, 2, 1)),
    "RNN": (fn.RNN(2), (3, 2)),
    "LSTM": (fn.LSTM(2), (3, 2)),
    "GRU": (fn.GRU(2), (3, 2)),
    "LastStep": (fn.Network(fn.LastStep(), fn.Dropout(0.5)), (3, 2)),
}


def drawn(dtype, shape, seed=0):
    """Entries over the dtype's whole range (int32: where float32 is exact), the largest among them."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    low, high = (-(2**20), 2**20) if dtype == "int32" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    x = rng.integers(low, high, shape, endpoint=True).astype(dtype)
    x.flat[0] = high
    return x


FIRST = ("Dense", "Dropout", "Dropout per batch", "Conv", "MaxPool", "GRU")


@pytest.mark.parametrize("name", [*FIRST, *thorough(*(name for name in NETS if name not in FIRST))])
def test_integers_and_bools_give_what_floats_give(name):
    """Outputs of training and inference, the errors and gradients for integer targets."""
    net, shape = NETS[name]
    params = net.init(KEY, shape)
    n_out = net.output_shape(shape)
    data = {dtype: (drawn(dtype, (4, *shape)), drawn(dtype, (4, *n_out), 1)) for dtype in DTYPES}

    @jax.jit
    def results(params, data):
        def of(x, y):
            bp = fn.backprop(net, fn.quadratic, params, x, y, key=KEY)
            a, _ = run_forward(net, params, x)
            return a.astype(float), *jax.tree.map(lambda leaf: leaf.astype(float), bp)

        return {dtype: of(*pair) for dtype, pair in data.items()}

    ours = results(params, data)
    floats = results(params, jax.tree.map(lambda leaf: jnp.asarray(leaf, float), data))
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(floats), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=jax.tree_util.keystr(path))


def test_dropout_of_integers_is_of_a_float_dtype():
    x = jnp.full((2, 6), 200, jnp.uint8)
    for drop, kept, at_inference in ((fn.Dropout(0.2), 250, 200), (fn.Dropout(0.5, per="batch"), 200, 100)):
        a, _ = drop.forward({}, x, key=KEY, train=True)
        assert a.dtype == jnp.float64
        assert {kept} <= set(np.unique(a)) <= {0, kept}
        np.testing.assert_array_equal(drop.apply({}, x), np.full((2, 6), at_inference, float))


def test_dropout_scales_half_precision_once_rounded():
    """1/(1 − 0.1) is rounded together with the product, not before it."""
    x = jnp.asarray(jnp.linspace(1, 2, 50)[None], jnp.bfloat16)
    a, _ = fn.Dropout(0.1).forward({}, x, key=KEY, train=True)
    exact = (x.astype(jnp.float32) * np.float32(1 / 0.9)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(a, jnp.where(a == 0, jnp.zeros_like(exact), exact))


@pytest.mark.parametrize("cost", [fn.quadratic, fn.cross_entropy, fn.log_likelihood], ids=repr)
def test_costs_of_integers(cost):
    """Outputs, targets and weights that are integers or bools."""
    a, y = jnp.array([[1, 1], [1, 1]], jnp.uint8), jnp.array([[1, 0], [0, 1]], jnp.uint8)
    floats = [leaf.astype(float) for leaf in (a, y)]
    for weights in (None, jnp.array([2, 3], jnp.uint8), jnp.array([True, False])):
        given = None if weights is None else weights.astype(float)
        np.testing.assert_array_equal(cost(a, y, weights=weights), cost(*floats, weights=given))
        for ours, theirs in ((a, floats[0]), (y > 0, floats[1])):
            gradient = cost.output_gradient(ours, y, weights=weights)
            assert gradient.dtype == jnp.float64
            np.testing.assert_array_equal(gradient, cost.output_gradient(theirs, floats[1], weights=given))
        error = cost.output_error(a, y, weights=weights)
        assert error.dtype == jnp.float64
        np.testing.assert_allclose(error, cost.output_error(floats[0], floats[1], weights=given), rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "leaky_relu", "elu", "softplus", "gelu", "softmax"])
def test_activations_of_integers(name):
    activation, z, da = getattr(fn, name), jnp.array([[-3, 0, 2]], jnp.int8), jnp.array([[0.5, -0.25, 1.5]])
    for ours, floats in (
        (activation(z), activation(z.astype(float))),
        (activation.error(da, z), activation.error(da, z.astype(float))),
    ):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, floats, rtol=1e-12)


@pytest.mark.thorough
def test_boltzmann_machines_of_integers():
    params = jax.tree.map(lambda leaf: leaf + 0.3, rbm.init(KEY, 5, 3))
    v = drawn("bool", (6, 5))
    floats = rbm.contrastive_divergence(params, KEY, jnp.asarray(v, float)), rbm.free_energy(params, v.astype(float))
    for dtype in ("uint8", "bool"):
        ours = rbm.contrastive_divergence(params, KEY, v.astype(dtype)), rbm.free_energy(params, v.astype(dtype))
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(floats), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def imaginary(*shape):
    return jnp.full(shape, 1 + 5j)


COMPLEX = {
    "x": (lambda: fn.Dense(3, fn.softmax).apply(DENSE, imaginary(2, 4)), r"Dense\(3, softmax\): expected real inputs"),
    "x of a network": (
        lambda: fn.Network(fn.Flatten(), fn.Dense(3, fn.softmax)).apply(({}, DENSE), imaginary(2, 4)),
        r"layer 1 Dense\(3, softmax\): expected real inputs, got complex128; give real and imaginary parts",
    ),
    "Conv": (lambda: apply(fn.Conv(2, 2, fn.relu), (3, 3, 1)), r"Conv\(2, 2, relu\): expected real inputs"),
    "ConvTranspose": (lambda: apply(fn.ConvTranspose(2, 2, fn.relu), (3, 3, 1)), r"ConvTranspose.*expected real inputs"),
    "MaxPool": (lambda: apply(fn.MaxPool(2), (4, 4, 1)), "max_pool.*expected real inputs"),
    "MeanPool": (lambda: apply(fn.MeanPool(2), (4, 4, 1)), "mean_pool.*expected real inputs"),
    "Dropout": (lambda: apply(fn.Dropout(0.5), (4,)), r"Dropout\(0\.5\): expected real inputs"),
    "Embedding": (lambda: apply(fn.Embedding(3, 2), (4,)), r"Embedding\(3, 2\): expected integer inputs"),
    "LSTM": (lambda: apply(fn.LSTM(2), (3, 2)), r"LSTM\(2\): expected real inputs"),
    "params": (
        lambda: gradient(params={"w": imaginary(3, 4), "b": DENSE["b"]}),
        r"Dense\(3, softmax\): expected a leaf 'w' of a float dtype, got complex128; this layer computes with real",
    ),
    "integer params": (
        lambda: gradient(params={"w": DENSE["w"], "b": jnp.zeros(3, int)}),
        r"expected a leaf 'b' of a float dtype, got int64; integers cannot be trained: convert them",
    ),
    "y": (lambda: gradient(y=imaginary(2, 3)), "log_likelihood: expected real targets, got complex128"),
    "weights": (lambda: gradient(weights=imaginary(2)), "weights: expected real numbers, got complex128"),
    "mask": (
        lambda: fn.RNN(2).apply(fn.RNN(2).init(KEY, (3, 2)), jnp.ones((1, 3, 2)), mask=imaginary(1, 3)),
        r"RNN\(2\): expected real masks",
    ),
    "state": (
        lambda: fn.RNN(2).apply_from(fn.RNN(2).init(KEY, (3, 2)), jnp.ones((1, 3, 2)), (imaginary(1, 2),)),
        r"RNN\(2\): expected real states",
    ),
    "z": (lambda: fn.tanh(imaginary(2)), "expected real numbers, got complex128"),
    "outputs": (lambda: fn.quadratic(imaginary(2, 3), jnp.ones((2, 3))), "expected real numbers, got complex128"),
    "convolve": (lambda: fn.convolve(imaginary(3, 3), jnp.ones((2, 2))), "expected real matrices"),
    "penalty": (lambda: fn.L2(1.0).gradient({"w": imaginary(2)}, 3), r"of a float dtype, got complex128 at \['w'\]"),
    "integer penalty": (lambda: fn.L1(1.0).value({"w": jnp.ones(2, int)}, 3), "weights of a float dtype, got int64"),
    "rbm": (lambda: rbm.free_energy(rbm.init(KEY, 4, 2), imaginary(2, 4)), "rbm: expected real v, got complex128"),
    "rbm params": (
        lambda: rbm.free_energy(jax.tree.map(lambda a: a.astype(int), rbm.init(KEY, 4, 2)), jnp.ones((2, 4))),
        "rbm: expected parameters of a float dtype, got int64 for",
    ),
    "saturation": (
        lambda: diagnostics.saturation(fn.Network(fn.Dense(3, fn.softmax)), (DENSE,), imaginary(2, 4)),
        "expected real inputs",
    ),
    "fit": (
        lambda: fn.fit(
            fn.Dense(3, fn.softmax), fn.log_likelihood, DENSE, (imaginary(2, 4), jnp.zeros(2, int)), key=KEY, epochs=1,
            batch_size=1, optimizer=fn.sgd(0.1),
        ),
        "expected real inputs",
    ),
}  # fmt: skip
DENSE = fn.Dense(3, fn.softmax).init(KEY, (4,))


def apply(layer, shape):
    return layer.apply(layer.init(KEY, shape), imaginary(2, *shape))


def gradient(**change):
    given = {"params": DENSE, "x": jnp.ones((2, 4)), "y": jnp.zeros(2, int)} | change
    return fn.value_and_grad(fn.Dense(3, fn.softmax), fn.log_likelihood)(
        given.pop("params"), given.pop("x"), given.pop("y"), **given
    )


@pytest.mark.parametrize(("call", "message"), COMPLEX.values(), ids=COMPLEX)
def test_what_would_be_changed_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
