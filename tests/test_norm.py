"""Normalisation: PyTorch's numbers, moving statistics, what the parts of u lose, memory, error messages."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._layer import run_forward
from fnnet.layers._norm import input_error, mean_over_channels, normalised

from .cases import assert_agree, normal, thorough
from .test_layers import equations

KEY = jax.random.key(3)
SHAPES = {"rows": (6, 8), "steps": (4, 5, 8), "images": (4, 3, 5, 8)}


def drawn(layer, shape):
    """Parameters with a gain and a bias of their own, inputs and ∂C/∂a_out."""
    rng = np.random.default_rng(0)
    params = layer.init(KEY, shape[1:])
    moved = {name: leaf + 0.5 * rng.standard_normal(leaf.shape) for name, leaf in params.items() if name in "gb"}
    return {**params, **moved}, *(jnp.asarray(3 + 2 * rng.standard_normal(shape)) for _ in range(2))


class TestTorch:
    def compare(self, theirs, layer, shape):
        torch = pytest.importorskip("torch")
        params, x, da = drawn(layer, shape)
        first = lambda a: np.moveaxis(np.asarray(a), -1, 1) if isinstance(layer, fn.GroupNorm | fn.BatchNorm) else a  # noqa: E731
        names = {"weight": params["g"], "bias": params["b"]} if "b" in params else {"weight": params["g"]}
        with torch.no_grad():
            for name, leaf in names.items():
                getattr(theirs, name).copy_(torch.tensor(np.asarray(leaf)))
        inputs = torch.tensor(np.asarray(first(x)), requires_grad=True)
        out = theirs(inputs)
        out.backward(torch.tensor(np.asarray(first(da))))
        a, cache = run_forward(layer, params, x, train=True)
        da_in, grads = layer.backward(params, cache, da)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
        close(first(a), out.detach().numpy())
        close(first(da_in), inputs.grad.numpy())
        for name, ours in zip(names, ("g", "b"), strict=False):
            close(len(x) * grads[ours], getattr(theirs, name).grad.numpy())
        return params, x, cache, inputs

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_layer_norm(self, shape):
        torch = pytest.importorskip("torch")
        self.compare(torch.nn.LayerNorm(8, eps=1e-3, dtype=torch.float64), fn.LayerNorm(1e-3), shape)

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_rms_norm(self, shape):
        torch = pytest.importorskip("torch", "2.4")
        self.compare(torch.nn.RMSNorm(8, eps=1e-3, dtype=torch.float64), fn.RMSNorm(1e-3), shape)

    @pytest.mark.parametrize("groups", [1, 4])
    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_group_norm(self, shape, groups):
        torch = pytest.importorskip("torch")
        self.compare(torch.nn.GroupNorm(groups, 8, 1e-3, dtype=torch.float64), fn.GroupNorm(groups, 1e-3), shape)

    @pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
    def test_batch_norm_and_its_moving_statistics(self, shape):
        torch = pytest.importorskip("torch")
        kind = torch.nn.BatchNorm2d if len(shape) == 4 else torch.nn.BatchNorm1d
        theirs = kind(8, 1e-3, momentum=0.2, dtype=torch.float64)
        layer = fn.BatchNorm(0.2, 1e-3)
        params, x, cache, inputs = self.compare(theirs, layer, shape)
        moved = layer.moving(params, cache)
        np.testing.assert_allclose(moved["mean"], theirs.running_mean.numpy(), rtol=1e-12)
        np.testing.assert_allclose(moved["var"], theirs.running_var.numpy(), rtol=1e-12)
        out = theirs.eval()(inputs).detach().numpy()
        np.testing.assert_allclose(np.moveaxis(layer.apply(moved, x), -1, 1), out, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (fn.LayerNorm(1e-12), (3,)),
        (fn.GroupNorm(1, 1e-12), (1, 2, 3)),
        (fn.GroupNorm(8, 1e-12), (1, 2)),
        (fn.BatchNorm(eps=1e-12), (0, 1, 2)),
    ],
    ids=repr,
)
def test_what_is_normalised_together_has_mean_0_and_variance_1(layer, axes):
    x = 5 + 3 * np.random.default_rng(0).standard_normal(SHAPES["images"])
    a, _ = run_forward(layer, layer.init(KEY, x.shape[1:]), jnp.asarray(x), train=True)
    np.testing.assert_allclose(np.mean(a, axes), 0, atol=1e-12)
    np.testing.assert_allclose(np.var(a, axes), 1, rtol=1e-10)


def test_rms_norm_is_layer_norm_of_what_has_no_mean():
    x = np.random.default_rng(0).standard_normal((4, 6))
    x = jnp.asarray(x - x.mean(1, keepdims=True))
    g = jnp.linspace(1, 2, 6)
    np.testing.assert_allclose(
        fn.RMSNorm().apply({"g": g}, x), fn.LayerNorm().apply({"g": g, "b": 0 * g}, x), rtol=1e-12, atol=1e-14
    )


def test_the_input_error_has_no_part_along_1_and_x_hat():
    a, u = np.random.default_rng(0).standard_normal((2, 3, 7))
    mu = mean_over_channels(jnp.asarray(a))
    x_hat = normalised(a, mu, 1 / jnp.std(a, 1, keepdims=True))
    means = mean_over_channels(jnp.asarray(u)), mean_over_channels(u * x_hat)
    da = input_error(u, x_hat, jnp.ones((3, 1)), *means)
    np.testing.assert_allclose(jnp.sum(da, 1), 0, atol=1e-13)
    np.testing.assert_allclose(jnp.sum(da * x_hat, 1), 0, atol=1e-13)


def test_large_means_and_half_precision():
    x = (np.random.default_rng(0).standard_normal((4, 64)) + 300).astype(np.float16)
    for layer in (fn.LayerNorm(), fn.GroupNorm(4), fn.RMSNorm()):
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), layer.init(KEY, (64,)))
        wide = layer.apply(jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params), jnp.asarray(x, float))
        np.testing.assert_allclose(layer.apply(params, jnp.asarray(x)), wide, rtol=2e-3, atol=2e-3)


class TestBatchNorm:
    def test_of_rows(self):
        layer, x = fn.BatchNorm(), jax.device_put(np.random.default_rng(0).standard_normal((7, 5)))
        for manual, autodiff in equations(layer, layer.init(KEY, (5,)), x).values():
            assert_agree(manual, autodiff, 1e-10, zero=True)

    def test_inference_uses_the_moving_statistics(self):
        layer = fn.BatchNorm(eps=0.5)
        params = {"g": jnp.array([2.0]), "b": jnp.array([1.0]), "mean": jnp.array([3.0]), "var": jnp.array([3.5])}
        np.testing.assert_allclose(layer.apply(params, jnp.array([[3.0], [5.0], [9.0]])), [[1.0], [3.0], [7.0]])

    def test_backward_at_inference_is_autodiffs(self):
        layer = fn.BatchNorm()
        params, x, da = drawn(layer, (4, 3, 5))
        _, cache = layer.forward(params, x)
        d_params, da_in = jax.vjp(lambda p, x: layer.forward(p, x)[0], params, x)[1](da)
        manual = layer.backward(params, cache, da)
        assert_agree(manual, (da_in, jax.tree.map(lambda g: g / len(x), d_params)), 1e-12, zero=True)

    def test_moving_statistics(self):
        layer, x = fn.BatchNorm(momentum=0.25), jnp.array([[1.0, 2.0], [3.0, 2.0], [5.0, 8.0]])
        params = layer.init(KEY, (2,))
        _, cache = layer.forward(params, x, train=True)
        moved = jax.jit(layer.moving)(params, cache)
        np.testing.assert_allclose(moved["mean"], 0.25 * np.array([3, 4]))
        np.testing.assert_allclose(moved["var"], 0.75 + 0.25 * np.array([4, 12]))  # over 2, not 3
        assert_agree((moved["g"], moved["b"]), (params["g"], params["b"]), 0, zero=True)

    def test_nothing_moves_at_inference_or_in_other_layers(self):
        for layer in (fn.BatchNorm(), fn.LayerNorm()):
            params = layer.init(KEY, (2,))
            _, cache = layer.forward(params, jnp.ones((3, 2)))
            assert layer.moving(params, cache) is params

    def test_they_come_to_the_statistics_of_the_data(self):
        layer = fn.BatchNorm()
        params = layer.init(KEY, (3,))

        @jax.jit
        def step(params, x):
            return layer.moving(params, layer.forward(params, x, train=True)[1]), None

        x = 4 + 2 * np.random.default_rng(0).standard_normal((200, 64, 3))
        params, _ = jax.lax.scan(step, params, jnp.asarray(x))
        # The last ten batches or so, 640 numbers: standard errors 2/√640 = 0.08 and 4 √(2/640) = 0.22; 5 of them.
        np.testing.assert_allclose(params["mean"], 4, atol=0.4)
        np.testing.assert_allclose(params["var"], 4, atol=1.1)

    def test_half_precision_statistics_keep_their_dtype(self):
        layer = fn.BatchNorm()
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layer.init(KEY, (2,)))
        _, cache = layer.forward(params, jnp.ones((3, 2), jnp.bfloat16), train=True)
        assert {leaf.dtype for leaf in layer.moving(params, cache).values()} == {jnp.dtype(jnp.bfloat16)}

    def test_a_batch_in_chunks_is_another_batch(self):
        net = fn.Network(fn.Dense(4, fn.tanh), fn.BatchNorm(), fn.Dense(2, fn.softmax))
        assert not net.independent


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (fn.LayerNorm(), (16, 64, 64)),
        (fn.RMSNorm(), (16, 64, 64)),
        (fn.GroupNorm(8), (16, 8, 8, 64)),
        (fn.BatchNorm(), (16, 8, 8, 64)),
    ],
    ids=repr,
)
def test_temporaries_are_statistics_only(layer, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    params = jax.eval_shape(lambda: layer.init(KEY, shape[1:]))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), params)

    @jax.jit
    def run(params, x, da):
        a, cache = run_forward(layer, params, x, train=True)
        return a, layer.backward(params, cache, da)

    space = run.lower(params, x, x).compile().memory_analysis().temp_size_in_bytes
    assert space <= 0.1 * 4 * np.prod(shape)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fn.LayerNorm(0), r"LayerNorm\(eps=0\): expected a positive number eps, got 0; it is added to the variance"),
        (lambda: fn.RMSNorm("1e-5"), r"expected a positive number eps, got '1e-5'"),
        (lambda: fn.BatchNorm(eps=float("nan")), r"expected a positive number eps, got nan"),
        (lambda: fn.BatchNorm(1.5), r"BatchNorm\(momentum=1\.5\): expected a momentum from 0 to 1, got 1\.5; it is"),
        (lambda: fn.BatchNorm(True), r"expected a momentum from 0 to 1, got True"),
        (lambda: fn.GroupNorm(0), r"GroupNorm\(0\): expected a positive number of groups, got 0; give groups as an integer"),
        (lambda: fn.GroupNorm(), r"GroupNorm: missing a required argument: 'groups'.*as in fn\.GroupNorm\(8\)"),
        (
            lambda: fn.GroupNorm(4).init(KEY, (5, 6)),
            r"expected channels that groups divide, got 6 channels in 4 groups; each group takes c / groups channels",
        ),
        (
            lambda: fn.GroupNorm(4).apply({"g": jnp.ones(6), "b": jnp.ones(6)}, jnp.ones((2, 6))),
            r"expected channels that groups divide, got 6 channels in 4 groups",
        ),
        (lambda: fn.LayerNorm().init(KEY, ()), r"expected an input shape \(\.\.\., c\) with c ≥ 1, got \(\); give the shape"),
        (
            lambda: fn.LayerNorm().apply({"g": jnp.ones(6), "b": jnp.ones(6)}, jnp.ones((2, 5))),
            r"expected inputs of shape \(m, 6\), got \(2, 5\); initialise with",
        ),
        (
            lambda: fn.LayerNorm().apply({"g": jnp.ones(5)}, jnp.ones((2, 5))),
            r"expected parameters with a leaf 'b' of shape \(5\), got the keys \['g'\]",
        ),
        (
            lambda: fn.BatchNorm().apply({"g": jnp.ones(5), "b": jnp.ones(5), "mean": jnp.ones(4)}, jnp.ones((2, 5))),
            r"expected parameters with a leaf 'mean' of shape \(5\), got \(4,\)",
        ),
        (
            lambda: fn.BatchNorm().forward(fn.BatchNorm().init(KEY, (5,)), jnp.ones((1, 5)), train=True),
            r"expected at least 2 numbers of each channel while training, got \(1, 5\); a single number has no variance",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_a_clear_error(build, message):
    with pytest.raises((TypeError, fn.LayerError), match=message):
        build()


def test_the_place_of_a_batch_of_one_is_named():
    net = fn.Network(fn.Dense(4, fn.tanh), fn.BatchNorm(), fn.Dense(2, fn.softmax))
    params = net.init(KEY, (3,))
    with pytest.raises(fn.LayerError, match=r"layer 1 BatchNorm\(\): expected at least 2 numbers of each channel"):
        fn.backprop(net, fn.log_likelihood, params, jnp.ones((1, 3)), jnp.array([1]))


@pytest.mark.thorough
@pytest.mark.parametrize("layer", [fn.BatchNorm(), *thorough(fn.LayerNorm(), fn.GroupNorm(2), fn.RMSNorm())], ids=repr)
def test_the_audit_of_a_network(layer):
    net = fn.Network(fn.Dense(4, fn.tanh), layer, fn.Dense(3, fn.softmax))
    x = np.random.default_rng(0).standard_normal((6, 5))
    report = fn.compare_gradients(net, fn.log_likelihood, net.init(KEY, (5,)), x, jnp.arange(6) % 3)
    assert report.ok, str(report)


class TestMasks:
    """Padded steps count nowhere: not in statistics, nor in errors and gradients, whatever stands there."""

    MASK = fn.length_mask([5, 2, 1, 4], 5)

    def data(self, dtype=float):
        rng = np.random.default_rng(2)
        x = np.where(self.MASK[..., None], rng.standard_normal((4, 5, 6)), np.nan)
        return jnp.asarray(x, dtype), {
            "g": jax.device_put(rng.standard_normal(6)),
            "b": jax.device_put(rng.standard_normal(6)),
        }

    def test_groups_of_a_padded_sequence_are_those_of_the_sequence_alone(self):
        x, params = self.data()
        a = fn.GroupNorm(3).apply(params, x, mask=self.MASK)
        for i, steps in enumerate((5, 2, 1, 4)):
            np.testing.assert_allclose(a[i, :steps], fn.GroupNorm(3).apply(params, x[i : i + 1, :steps])[0], rtol=1e-12)
            assert not np.any(a[i, steps:])

    def test_batch_statistics_are_those_of_the_valid_steps(self):
        x, params = self.data()
        norm = fn.BatchNorm()
        params = {**params, "mean": jnp.zeros(6), "var": jnp.ones(6)}
        a, cache = norm.forward(params, x, train=True, mask=self.MASK)
        rows = x[self.MASK]
        alone, cache_alone = norm.forward(params, rows, train=True)
        np.testing.assert_allclose(a[self.MASK], alone, rtol=1e-12)
        assert_agree(norm.moving(params, cache), norm.moving(params, cache_alone), 1e-12)
        da = jax.device_put(np.random.default_rng(3).standard_normal(x.shape))
        da_in, grads = norm.backward(params, cache, da)
        da_alone, grads_alone = norm.backward(params, cache_alone, da[self.MASK])
        np.testing.assert_allclose(da_in[self.MASK], da_alone, rtol=1e-11, atol=1e-14)
        assert not np.any(da_in[~self.MASK])
        for name in "g", "b":
            np.testing.assert_allclose(4 * grads[name], 12 * grads_alone[name], rtol=1e-12)
        assert not np.any(norm.apply(params, x, mask=self.MASK)[~self.MASK])

    @pytest.mark.thorough
    @pytest.mark.parametrize("norm", [fn.GroupNorm(2), *thorough(fn.BatchNorm())], ids=repr)
    def test_the_audit_with_a_mask(self, norm):
        net = fn.Network(fn.Dense(4, fn.tanh), norm, fn.LastStep(), fn.Dense(3, fn.softmax))
        params, mask = net.init(KEY, (5, 2)), fn.length_mask([5, 0, 1, 4], 5)
        x = normal((4, 5, 2))
        report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(4) % 3, mask=mask)
        assert report.ok, str(report)
        moved = jnp.where(mask[..., None], x, 100.0)
        gradient = fn.value_and_grad(net, fn.log_likelihood)
        y = jnp.arange(4) % 3
        padded, clean = (gradient(params, given, y, mask=mask) for given in (moved, x))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), padded, clean)

    @pytest.mark.parametrize("norm", [fn.GroupNorm(2), fn.BatchNorm()], ids=repr)
    def test_a_mask_of_another_shape(self, norm):
        params = jax.tree.map(jnp.ones_like, norm.init(KEY, (5, 6)))
        with pytest.raises(fn.LayerError, match=r"Norm\(2?\): expected a mask of shape \(4, 5\), got \(4, 3\)"):
            norm.apply(params, jnp.ones((4, 5, 6)), mask=jnp.ones((4, 3)))
