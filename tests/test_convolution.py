"""Convolution and pooling: random configurations against autodiff, the notes' examples, every form, clear errors."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import fnnet as fn
from fnnet.layers import _conv, _pool
from fnnet.layers._window import window

from .cases import TOLERANCE, array, assert_agree, cast, largest, thorough

KEY = jax.random.key(3)
SPACE = "DHW"


def many(dev, ci):
    """How many random configurations a property is tried on."""
    return settings(max_examples=ci if os.environ.get("CI") else dev)


@st.composite
def geometries(draw, largest=9):
    """(spatial sizes, size, stride, padding, dilation) whose window fits."""
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))  # noqa: E731
    size, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    padding = draw(st.sampled_from(["same", "valid", "sides"]))
    if padding == "sides":
        padding = tuple((draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in size)
    n_in = tuple(d * (k - 1) + 1 + extra for k, d, extra in zip(size, dilation, each(0, largest - 5), strict=True))
    return n_in, size, stride, padding, dilation


def sides_of(n_in, size, stride, padding, dilation):
    """Explicit padding, by JAX's own rule for "same"."""
    if isinstance(padding, str):
        spans = [d * (k - 1) + 1 for k, d in zip(size, dilation, strict=True)]
        return tuple(map(tuple, lax.padtype_to_pads(n_in, spans, stride, padding.upper())))
    return padding


def normal(seed, shape, dtype=jnp.float64):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def axes_of(rank):
    space = SPACE[-rank:]
    return f"N{space}C", f"{space}IO", f"N{space}C"


@functools.partial(jax.jit, static_argnums=(0, 1))
def convolution_and_autodiff(layer, geometry, params, a_in):
    """What the layer says and what autodiff of XLA's convolution says, by name."""
    n_in, _, stride, _, dilation = geometry

    def plain(params, a_in):
        z = lax.conv_general_dilated(
            a_in, params["w"], stride, sides_of(*geometry), rhs_dilation=dilation, dimension_numbers=axes_of(len(n_in)),
            feature_group_count=layer.groups,
        )  # fmt: skip
        return jnp.tanh(z + jnp.expand_dims(params["b"], range(z.ndim - 1)))

    a_out, pull_back = jax.vjp(plain, params, a_in)
    da_out = jnp.cos(jnp.arange(a_out.size, dtype=jnp.float32)).reshape(a_out.shape).astype(a_out.dtype)
    ours, cache = layer.forward(params, a_in)
    da_in, grads = layer.backward(params, cache, da_out)
    d_params, d_a_in = pull_back(da_out)
    mean = jax.tree.map(lambda g: (g / a_in.shape[0]).astype(g.dtype), d_params)
    return {"forward": (ours, a_out), "propagate": (da_in, d_a_in), "gradients": (grads, mean)}


def check_convolution(geometry, channels, m, algorithm, dtype):
    n_in, size, stride, padding, dilation = geometry
    c_in, groups, features = channels
    layer = fn.Conv(features * groups, size, fn.tanh, stride, padding, dilation, groups, algorithm=algorithm)
    params = {
        "w": 0.3 * normal(0, (*size, c_in, features * groups), jnp.float32),
        "b": normal(1, (features * groups,), jnp.float32),
    }
    given = cast(params, dtype), normal(2, (m, *n_in, c_in * groups), dtype)
    for ours, autodiff in convolution_and_autodiff(layer, geometry, *given).values():
        assert_agree(ours, autodiff, TOLERANCE[str(jnp.dtype(dtype))])


algorithms = st.sampled_from(["auto", "gemm", "library"])
channels = st.tuples(st.integers(1, 3), st.sampled_from([1, 1, 2]), st.integers(1, 3))


@pytest.mark.thorough
@many(dev=12, ci=120)
@given(geometries(), channels, st.integers(1, 4), algorithms)
def test_random_convolutions_against_autodiff_in_float64(geometry, channels, m, algorithm):
    check_convolution(geometry, channels, m, algorithm, jnp.float64)


@pytest.mark.thorough
@many(dev=6, ci=40)
@given(geometries(), channels, st.integers(1, 4), algorithms, st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_random_convolutions_against_autodiff_in_other_dtypes(geometry, channels, m, algorithm, dtype):
    check_convolution(geometry, channels, m, algorithm, dtype)


@functools.partial(jax.jit, static_argnums=(0, 1))
def pooling_and_autodiff(layer, geometry, a_in):
    _, size, stride, _, _ = geometry
    sides = ((0, 0), *sides_of(*geometry), (0, 0))
    windows = (1, *size, 1), (1, *stride, 1), sides

    def plain(a):
        if isinstance(layer, fn.MaxPool):
            return lax.reduce_window(a, np.asarray(-np.inf, a.dtype), lax.max, *windows)
        return lax.reduce_window(a, np.zeros((), a.dtype), lax.add, *windows) / np.asarray(np.prod(size), a.dtype)

    a_out, pull_back = jax.vjp(plain, a_in)
    da_out = jnp.cos(jnp.arange(a_out.size, dtype=jnp.float32)).reshape(a_out.shape).astype(a_out.dtype)
    ours, cache = layer.forward({}, a_in)
    return {"forward": (ours, a_out), "propagate": (layer.propagate({}, cache, da_out), pull_back(da_out)[0])}


@st.composite
def pools(draw):
    n_in, size, stride, padding, _ = draw(geometries())
    geometry = n_in, size, stride, padding, (1,) * len(n_in)
    layer = draw(
        st.sampled_from(
            [fn.MaxPool(size, stride, padding, a) for a in ("auto", "slices", "scatter")]
            + [fn.MeanPool(size, stride, padding)]
        )
    )
    return layer, geometry, (draw(st.integers(1, 4)), *n_in, draw(st.integers(1, 3)))


@pytest.mark.thorough
@many(dev=12, ci=100)
@given(pools(), st.booleans())
def test_random_pools_against_autodiff_in_float64(drawn, ties):
    layer, geometry, shape = drawn
    a_in = normal(0, shape)
    a_in = jnp.round(a_in) if ties else a_in
    for ours, autodiff in pooling_and_autodiff(layer, geometry, a_in).values():
        assert_agree(ours, autodiff, 1e-10, zero=ties)


@pytest.mark.thorough
@many(dev=6, ci=30)
@given(pools(), st.sampled_from([jnp.float32, jnp.bfloat16]))
def test_random_pools_against_autodiff_in_other_dtypes(drawn, dtype):
    layer, geometry, shape = drawn
    for ours, autodiff in pooling_and_autodiff(layer, geometry, normal(0, shape, dtype)).values():
        assert_agree(ours, autodiff, TOLERANCE[str(jnp.dtype(dtype))])


class TestTheNotesWords:
    @pytest.mark.parametrize(("a", "w"), [((7,), (3,)), ((6, 5), (3, 2)), ((4, 5, 6), (2, 3, 2))])
    def test_single_channel_forms_against_scipy(self, a, w):
        signal = pytest.importorskip("scipy.signal")  # slow to import
        a, w = normal(0, a), normal(1, w)
        np.testing.assert_allclose(fn.convolve(a, w), signal.convolve(a, w, "valid"), atol=1e-12)
        np.testing.assert_allclose(fn.cross_correlate(a, w), signal.correlate(a, w, "valid"), atol=1e-12)
        full = signal.convolve(a, w, "full")
        np.testing.assert_allclose(fn.convolve(fn.pad_full(a, w.shape), w), full, atol=1e-12)

    def test_which_rotation_is_right(self):
        """Section 7.2.4's rot180(a) * δ needs a forward pass that is a true convolution; 7.2.3 holds under both readings."""
        a, w, v = normal(0, (6, 5)), normal(1, (3, 2)), normal(2, (4, 4))
        for product, other in ((fn.cross_correlate, fn.convolve), (fn.convolve, fn.cross_correlate)):
            cost = lambda a, w, product=product: jnp.sum(v * product(a, w))  # noqa: E731
            da, dw = jax.grad(cost, (0, 1))(a, w)
            np.testing.assert_allclose(product(fn.pad_full(v, w.shape), fn.rot180(w)), da, atol=1e-12)
            assert float(jnp.max(jnp.abs(other(fn.pad_full(v, w.shape), fn.rot180(w)) - da))) > 0.1
            rotated, plain = product(fn.rot180(a), v), product(a, v)
            right, wrong = (plain, rotated) if product is fn.cross_correlate else (rotated, plain)
            np.testing.assert_allclose(right, dw, atol=1e-12)
            assert float(jnp.max(jnp.abs(wrong - dw))) > 0.1

    def test_the_layer_is_the_sum_over_channels(self):
        a, w, b = normal(0, (1, 6, 5, 2)), normal(1, (3, 2, 2, 3)), normal(2, (3,))
        z = fn.Conv(3, (3, 2), fn.linear).apply({"w": w, "b": b}, a)
        for o in range(3):
            one = sum(fn.cross_correlate(a[0, ..., c], w[..., c, o]) for c in range(2)) + b[o]
            np.testing.assert_allclose(z[0, ..., o], one, atol=1e-12)

    def test_the_worked_example_of_unsample(self):
        delta = jnp.array([[2.0, 8.0], [4.0, 6.0]])[None, :, :, None]
        # maxima at the upper left, lower right, upper right and lower left of their windows
        a = jnp.array([[9.0, 1, 0, 1], [1, 1, 2, 7], [0, 5, 1, 1], [2, 3, 8, 0]])[None, :, :, None]
        for algorithm in ("slices", "scatter"):
            found = fn.unsample_max(delta, a, _pool.max_pool(a, 2), 2, algorithm=algorithm)[0, :, :, 0]
            np.testing.assert_array_equal(found, [[2, 0, 0, 0], [0, 0, 0, 8], [0, 4, 0, 0], [0, 0, 6, 0]])
        mean = fn.unsample_mean(delta, (4, 4), 2)[0, :, :, 0]
        np.testing.assert_array_equal(mean, [[0.5, 0.5, 2, 2], [0.5, 0.5, 2, 2], [1, 1, 1.5, 1.5], [1, 1, 1.5, 1.5]])

    def test_the_notes_numbers(self):
        net = fn.Network(fn.Conv(20, 5, fn.sigmoid), fn.MaxPool(2))
        params = net.init(KEY, (28, 28, 1))
        assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 520
        assert net[0].output_shape((28, 28, 1)) == (24, 24, 20)
        assert net.output_shape((28, 28, 1)) == (12, 12, 20)

    def test_ranks_must_agree(self):
        with pytest.raises(
            ValueError, match=r"cross_correlate.*expected a and w of the same rank, got \(3,\) and \(2, 2\)"
        ):
            fn.cross_correlate(jnp.ones(3), jnp.ones((2, 2)))
        with pytest.raises(ValueError, match=r"cross_correlate.*expected inputs of at least \(4,\)"):
            fn.convolve(jnp.ones(3), jnp.ones(4))


class TestMaxima:
    @pytest.mark.parametrize("algorithm", ["slices", "scatter"])
    @pytest.mark.parametrize("layer", [fn.MaxPool(2), fn.MaxPool(3, 1), fn.MaxPool(3, 2, "same")])
    def test_a_tie_goes_to_the_first_maximum(self, layer, algorithm):
        a = jnp.zeros((1, 6, 6, 1))
        win = window(layer, (6, 6), layer.size, layer.stride or layer.size, layer.padding)
        delta = 1.0 + jnp.arange(np.prod(win.n_out), dtype=jnp.float64).reshape(1, *win.n_out, 1)
        found = fn.unsample_max(delta, a, jnp.zeros(delta.shape), layer.size, layer.stride, layer.padding, algorithm)
        expected = np.zeros((6, 6))
        for j in np.ndindex(*win.n_out):
            first = tuple(max(0, s * i - low) for s, i, (low, _) in zip(win.stride, j, win.padding, strict=True))
            expected[first] += delta[0, *j, 0]
        np.testing.assert_array_equal(found[0, :, :, 0], expected)

    def test_autodiff_of_the_forward_pass_chooses_alike(self):
        a = jnp.round(normal(0, (3, 8, 6, 2)))
        pool = fn.MaxPool(3, 2)
        a_out, cache = pool.forward({}, a)
        _, pull_back = jax.vjp(lambda a: pool.forward({}, a)[0], a)
        np.testing.assert_allclose(pool.propagate({}, cache, 1 + a_out), pull_back(1 + a_out)[0], atol=1e-12)

    @pytest.mark.parametrize("algorithm", ["slices", "scatter"])
    def test_nan_gets_the_error(self, algorithm):
        a = jnp.array([1.0, jnp.nan, 3.0, 2.0, 4.0, 7.0, jnp.nan, jnp.nan])[None, :, None]
        pool = fn.MaxPool(4, algorithm=algorithm)
        _, cache = pool.forward({}, a)
        delta = jnp.array([5.0, 6.0])[None, :, None]
        found = pool.propagate({}, cache, delta)[0, :, 0]
        np.testing.assert_array_equal(found, [0, 5, 0, 0, 0, 0, 6, 0])
        _, pull_back = jax.vjp(lambda a: pool.forward({}, a, train=True)[0], a)
        np.testing.assert_array_equal(pull_back(delta)[0][0, :, 0], found)

    @pytest.mark.parametrize("dtype", [float, "bfloat16", jnp.uint8, bool])
    @pytest.mark.parametrize("pool", [fn.MaxPool(2), fn.MaxPool((3, 2), (2, 1), "same"), fn.MaxPool((2, 3))], ids=repr)
    def test_forward_alone_it_is_the_same(self, pool, dtype):
        numbers = 3 * np.random.default_rng(0).standard_normal((2, 5, 7, 2))
        numbers[0, 0, 0] = np.nan if dtype is float else 1
        a = array(numbers if dtype is float else abs(numbers.round()), dtype)
        trained, alone = (pool.forward({}, a, train=train)[0] for train in (True, False))
        assert alone.dtype == trained.dtype
        np.testing.assert_array_equal(alone, trained)
        if dtype is float:
            gradients = [
                jax.grad(lambda a, t=t: jnp.sum(pool.forward({}, a, train=t)[0] ** 2))(a[1:]) for t in (True, False)
            ]
            np.testing.assert_array_equal(*gradients)

    @pytest.mark.parametrize("algorithm", ["slices", "scatter"])
    @pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int32, bool])
    def test_padding_never_gets_an_error(self, dtype, algorithm):
        a = jnp.zeros((1, 4, 1), dtype)
        a_out = _pool.max_pool(a, 2, 2, 1)
        found = fn.unsample_max(jnp.ones((1, 3, 1)), a, a_out, 2, 2, 1, algorithm)
        np.testing.assert_array_equal(found[0, :, 0], [1, 1, 0, 1])

    def test_padding_never_wins_and_nan_does(self):
        pool = fn.MaxPool(2, 2, 1)
        a = jnp.full((1, 2, 2, 1), -jnp.inf)
        a_out, cache = pool.forward({}, a)
        np.testing.assert_array_equal(a_out, -jnp.inf)
        np.testing.assert_array_equal(pool.propagate({}, cache, jnp.ones_like(a_out)), jnp.ones_like(a))
        for at in range(4):
            broken = jnp.zeros((1, 2, 2, 1)).at[0, at // 2, at % 2].set(jnp.nan)
            assert np.isnan(fn.MaxPool(2).apply({}, broken)).all()

    def test_integers(self):
        a = jnp.arange(16, dtype=jnp.uint8).reshape(1, 4, 4, 1)
        np.testing.assert_array_equal(fn.MaxPool(2).apply({}, a)[0, :, :, 0], [[5, 7], [13, 15]])
        assert fn.MaxPool(2).apply({}, a).dtype == jnp.uint8
        assert fn.MeanPool(2).apply({}, a)[0, 0, 0, 0] == 2.5
        assert fn.GlobalMeanPool().apply({}, a)[0, 0] == 7.5
        np.testing.assert_array_equal(fn.cross_correlate(jnp.arange(4), jnp.arange(2)), [1, 2, 3])
        layer = fn.Conv(2, 2, fn.tanh)
        params = layer.init(KEY, (4, 4, 1))
        np.testing.assert_array_equal(layer.apply(params, a), layer.apply(params, a.astype(jnp.float64)))


@pytest.mark.parametrize("algorithm", ["gemm", "library"])
def test_the_transpose_is_the_adjoint(algorithm):
    kind = {"stride": 2, "padding": ((1, 0), (2, 1)), "dilation": (1, 2), "groups": 2, "algorithm": algorithm}
    down, up = fn.Conv(4, 3, fn.linear, **kind), fn.ConvTranspose(6, 3, fn.linear, **kind)
    x = normal(0, (2, 10, 10, 6))
    w, none = normal(1, (3, 3, 3, 4)), jnp.zeros
    z = down.apply({"w": w, "b": none(4)}, x)
    y = normal(2, z.shape)
    back = up.apply({"w": _conv.swapped(w, 2), "b": none(6)}, y)
    assert back.shape == x.shape
    np.testing.assert_allclose(jnp.vdot(z, y), jnp.vdot(x, back), rtol=1e-12)


@pytest.mark.thorough
@many(dev=6, ci=30)
@given(geometries(), channels, algorithms)
def test_random_transposes_against_autodiff_of_the_convolution(geometry, channels, algorithm):
    """What `ConvTranspose` computes is autodiff's pull-back of XLA's convolution."""
    n_in, size, stride, padding, dilation = geometry
    features, groups, c_in = channels
    win = window("", *geometry)
    if padding == "same" and any(q * s != n for q, s, n in zip(win.n_out, stride, n_in, strict=True)):
        padding = win.padding
    layer = fn.ConvTranspose(features * groups, size, fn.linear, stride, padding, dilation, groups, algorithm=algorithm)
    y = normal(0, (2, *win.n_out, c_in * groups))
    w = normal(1, (*size, c_in, features * groups))

    def convolution(x):
        return lax.conv_general_dilated(
            x, _conv.swapped(w, groups), stride, win.padding, rhs_dilation=dilation, dimension_numbers=axes_of(len(n_in)),
            feature_group_count=groups,
        )  # fmt: skip

    x = jnp.zeros((2, *n_in, features * groups))
    expected = jax.vjp(convolution, x)[1](y)[0]
    ours = layer.apply({"w": w, "b": jnp.zeros(features * groups)}, y)
    reached = tuple(slice(n) for n in ours.shape[1:-1])  # places behind the last window get nothing
    np.testing.assert_allclose(ours, expected[:, *reached], atol=1e-12)
    assert largest(expected) == pytest.approx(largest(ours))


def test_large_windows_are_not_unrolled():
    text = jax.jit(fn.cross_correlate).lower(jnp.ones((64, 64)), jnp.ones((60, 60))).as_text()
    assert text.count("slice") < 10
    layer = fn.Conv(2, 12, fn.relu)
    params = layer.init(KEY, (14, 14, 1))
    step = jax.jit(lambda p, x: layer.backward(p, layer.forward(p, x)[1], jnp.ones((1, 3, 3, 2))))
    assert step.lower(params, jnp.ones((1, 14, 14, 1))).as_text().count("slice") < 20


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_same_shapes(size, stride):
    assert fn.Conv(2, size, fn.relu, stride, "same").output_shape((7, 8, 1)) == (-(-7 // stride), -(-8 // stride), 2)
    assert fn.ConvTranspose(2, size, fn.relu, stride, "same").output_shape((7, 8, 1)) == (7 * stride, 8 * stride, 2)
    padded = fn.Conv(1, size, fn.linear, stride, "same").apply(
        {"w": jnp.ones((size, 1, 1)), "b": jnp.zeros(1)}, jnp.ones((1, 7, 1))
    )
    lax_same = lax.conv_general_dilated(
        jnp.ones((1, 7, 1)), jnp.ones((size, 1, 1)), (stride,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )
    np.testing.assert_array_equal(padded, lax_same)


def book():
    return fn.Network(
        fn.Conv(20, 5, fn.sigmoid), fn.MaxPool(2), fn.Conv(40, 5, fn.sigmoid), fn.MaxPool(2), fn.Flatten(),
        fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.softmax),
    )  # fmt: skip


def plain_book(params, x, y):
    """The same network as one would write it without fnnet."""

    def block(p, a):
        z = lax.conv_general_dilated(a, p["w"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        a = jax.nn.sigmoid(z + p["b"][None, None, None])
        return lax.reduce_window(a, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    a = block(params[2], block(params[0], x)).reshape(len(x), -1)
    a = jax.nn.sigmoid(a @ params[5]["w"].T + params[5]["b"][None])
    z = a @ params[6]["w"].T + params[6]["b"][None]
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], axis=1))


class TestTheBooksNetwork:
    def params_and_batch(self, m, dtype):
        params = cast(book().init(KEY, (28, 28, 1)), dtype)
        return (
            params,
            jnp.asarray(np.random.default_rng(0).random((m, 28, 28, 1)), dtype),
            jnp.arange(m, dtype=jnp.int32) % 10,
        )

    @pytest.mark.thorough
    def test_against_autodiff_without_fnnet(self):
        batch = self.params_and_batch(6, jnp.float64)
        value, grads = fn.value_and_grad(book(), fn.log_likelihood)(*batch)
        reference = jax.jit(jax.value_and_grad(plain_book))(*batch)
        assert_agree((value, grads), reference, 1e-10)

    def test_temporaries_at_128(self):
        batch = self.params_and_batch(128, jnp.float32)
        spaces = [
            jax.jit(f).lower(*batch).compile().memory_analysis().temp_size_in_bytes
            for f in (fn.value_and_grad(book(), fn.log_likelihood), jax.value_and_grad(plain_book))
        ]
        assert spaces[0] <= 0.4 * spaces[1]

    def test_temporaries_do_not_grow_with_the_batch(self):
        manual = jax.jit(fn.value_and_grad(book(), fn.log_likelihood))

        def space(m):
            return manual.lower(*self.params_and_batch(m, jnp.float32)).compile().memory_analysis().temp_size_in_bytes

        assert space(512) <= 1.1 * space(128)

    @pytest.mark.thorough
    def test_chunks_give_the_whole_batchs_gradient(self):
        batch = self.params_and_batch(130, jnp.float32)
        chunked = fn.value_and_grad(book(), fn.log_likelihood)(*batch)
        whole = fn.value_and_grad(book(), fn.log_likelihood, micro_batch=None)(*batch)
        assert_agree(chunked, whole, 1e-4)  # float32: sums of 130 · 576 terms that largely cancel

    def test_above_a_max_pool_the_dense_layers_keep_their_products(self):
        inside = book().in_loop()
        assert not any(getattr(layer, "loop", False) for layer in inside)
        below = fn.Network(fn.Flatten(), fn.Dense(4, fn.sigmoid)).in_loop()
        assert below[1].loop

    @pytest.mark.thorough
    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64", "bfloat16")])
    def test_it_is_audited_clean(self, dtype):
        net = fn.Network(
            fn.Conv(3, 3, fn.sigmoid), fn.MaxPool(2), fn.Conv(4, 3, fn.relu, padding="same", stride=2), fn.MeanPool(2, 1),
            fn.Flatten(), fn.Dense(5, fn.softmax),
        )  # fmt: skip
        params = cast(net.init(KEY, (12, 12, 1)), dtype)
        x, y = normal(0, (4, 12, 12, 1), dtype), jnp.arange(4) % 5
        fn.compare_gradients(net, fn.log_likelihood, params, x, y).raise_if_failed()


@fn.layer
class RotatedGradient(fn.Conv):
    """The notes' section 7.2.4 beside a forward pass that does not rotate."""

    def gradients(self, params, cache, delta):
        grads = super().gradients(params, cache, delta)
        return {**grads, "w": jnp.flip(grads["w"], (0, 1))}


@fn.layer
class UnrotatedError(fn.Conv):
    def propagate(self, params, cache, delta):
        return super().propagate({"w": jnp.flip(params["w"], (0, 1))}, cache, delta)


@fn.layer
class UndividedMean(fn.MeanPool):
    def propagate(self, params, cache, delta):
        return 4 * super().propagate(params, cache, delta)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("layer", "equation", "place"),
    [
        (RotatedGradient(3, 3, fn.tanh, padding="same"), "gradients", 0),
        (UnrotatedError(3, 3, fn.tanh, padding="same"), "propagate", 2),
        (UndividedMean(2), "propagate", 1),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, fn.Layer) else str(v),
)
def test_a_planted_fault_is_named(layer, equation, place):
    layers = [
        fn.Conv(3, 3, fn.relu),
        fn.MaxPool(2),
        fn.Conv(3, 3, fn.tanh, padding="same"),
        fn.Flatten(),
        fn.Dense(4, fn.softmax),
    ]
    layers[place] = layer
    net = fn.Network(*layers)
    params = net.init(KEY, (8, 8, 1))
    report = fn.compare_gradients(net, fn.log_likelihood, params, normal(0, (5, 8, 8, 1)), jnp.arange(5) % 4)
    assert not report.ok
    assert (report.rows[0].layer, report.rows[0].equation) == (f"{place} {type(layer).__name__}", equation)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: fn.Conv(0, 3, fn.relu),
            r"Conv\(0, 3, relu\): expected a positive number of features, got 0; give features",
        ),
        (
            lambda: fn.Conv(4, 0, fn.relu),
            r"expected size to be a positive integer or a tuple of them, got 0; give one for all",
        ),
        (lambda: fn.Conv(4, 3, fn.relu, stride=(1, 0)), r"expected stride to be a positive integer"),
        (
            lambda: fn.Conv(4, 3, fn.relu, padding="full"),
            r"expected padding to be an integer ≥ 0, .* got 'full'; as in padding=2",
        ),
        (lambda: fn.Conv(4, 3, fn.relu, padding=-1), r"expected padding to be an integer ≥ 0"),
        (lambda: fn.Conv(4, 3, fn.relu, dilation=1.5), r"expected dilation to be a positive integer"),
        (lambda: fn.Conv(4, 3, fn.relu, groups=3), r"expected features that groups divide, got 4 features in 3 groups"),
        (lambda: fn.Conv(4, 3, jnp.tanh), r"expected an fn\.Activation"),
        (lambda: fn.Conv(4, 3, fn.relu, algorithm="fft"), r"expected algorithm 'auto', 'gemm' or 'library', got 'fft'"),
        (
            lambda: fn.Conv(4, 3, fn.relu, groups=2).init(KEY, (8, 8, 3)),
            r"expected input channels that groups divide, got 3",
        ),
        (
            lambda: fn.Conv(4, (3, 3), fn.relu).init(KEY, (8, 3)),
            r"expected size to be a positive integer or 1 of them, got \(3, 3\)",
        ),
        (
            lambda: fn.Conv(4, 3, fn.relu).init(KEY, (8,)),
            r"expected inputs \(m, \*n, c\) with 1 to 3 spatial axes, got \(1, 8\)",
        ),
        (
            lambda: fn.Network(fn.Flatten(), fn.Network(fn.Conv(4, 3, fn.relu))).init(KEY, (8, 8, 1)),
            r"layer 1\.0 Conv\(4, 3, relu\): expected inputs \(m, \*n, c\) with 1 to 3 spatial axes, got \(1, 64\)",
        ),
        (
            lambda: fn.Network(fn.Conv(4, 9, fn.relu)).init(KEY, (8, 8, 1)),
            r"layer 0 Conv\(4, 9, relu\): expected inputs of at least \(9, 9\) places, padding included, got \(8, 8\); use",
        ),
        (
            lambda: applied(fn.Conv(4, 3, fn.relu), (8, 8, 1), (8, 8, 1)),
            r"expected inputs .* got \(8, 8, 1\); give a batch: x\[None\]",
        ),
        (
            lambda: applied(fn.Conv(4, 3, fn.relu), (8, 8, 1), (5, 8, 8)),
            r"got \(5, 8, 8\); add the axis of channels: x\[\.\.\., None\]",
        ),
        (
            lambda: applied(fn.Conv(4, 3, fn.relu), (8, 8, 1), (2, 8, 8, 3)),
            r"expected inputs \(m, \*n, 1\) with 2 spatial axes",
        ),
        (
            lambda: fn.Conv(4, 3, fn.relu).apply(
                {"w": jnp.ones((3, 2, 1, 4)), "b": jnp.ones(4)}, jnp.ones((1, 8, 8, 1))
            ),
            r"expected parameters with a leaf 'w' of shape \(3, 3, any, 4\), got \(3, 2, 1, 4\)",
        ),
        (lambda: fn.Conv(4, 3, fn.relu).apply({}, jnp.ones((1, 8, 8, 1))), r"a leaf 'w' of shape .* got the keys \[\]"),
        (
            lambda: fn.ConvTranspose(4, 3, fn.relu, padding=9).output_shape((8, 8, 1)),
            r"expected padding that leaves some of the output, got 9 of \(10, 10\)",
        ),
        (lambda: fn.MaxPool(0), r"MaxPool\(0\): expected size to be a positive integer"),
        (lambda: fn.MaxPool(2, 0), r"expected stride to be a positive integer"),
        (lambda: fn.MaxPool(2, algorithm="sort"), r"expected algorithm 'auto', 'scatter' or 'slices', got 'sort'"),
        (
            lambda: fn.MeanPool(2, padding=2).apply({}, jnp.ones((1, 4, 4, 1))),
            r"expected padding smaller than the window \(2, 2\)",
        ),
        (lambda: fn.MaxPool(3).apply({}, jnp.ones((1, 2, 2, 1))), r"expected inputs of at least \(3, 3\) places"),
        (lambda: fn.MaxPool(2).apply({}, jnp.ones((4, 4))), r"MaxPool\(2\): expected inputs \(m, \*n, c\)"),
        (lambda: fn.GlobalMeanPool().apply({}, jnp.ones((4, 4))), r"GlobalMeanPool\(\): expected inputs \(m, \*n, c\)"),
        (
            lambda: fn.unsample_max(jnp.ones((1, 1, 2, 1)), jnp.ones((1, 4, 4, 1)), jnp.ones((1, 2, 2, 1)), 2),
            r"unsample_max.*expected an error \(m, \*\(2, 2\), c\), got \(1, 1, 2, 1\); δ has one entry for each window",
        ),
        (
            lambda: fn.unsample_max(*[jnp.ones((1, 2, 1))] * 3, 1, algorithm="scater"),
            r"unsample_max.*expected algorithm 'auto', 'scatter' or 'slices', got 'scater'",
        ),
        (lambda: fn.unsample_mean(jnp.ones((2, 2)), (4, 4), 2), r"unsample_mean.*expected an error"),
        (lambda: fn.unsample_mean(jnp.ones((1, 2, 2, 1)), (9, 9), 2), r"unsample_mean.*expected an error"),
        (lambda: fn.Upsample(-1), r"Upsample\(-1\): expected size to be a positive integer"),
        (
            lambda: fn.Upsample((2, 2)).apply({}, jnp.ones((1, 4, 1))),
            r"expected size to be a positive integer or 1 of them",
        ),
    ],
)
def test_bad_input_is_a_clear_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def applied(layer, input_shape, shape):
    return layer.apply(layer.init(KEY, input_shape), jnp.ones(shape))


class TestMoreData:
    def test_shifted_by_one_pixel(self, digits):
        (images, labels), _ = digits
        x, y = fn.datasets.shifted(images[:10], labels[:10])
        assert x.shape == (50, 28, 28, 1)
        np.testing.assert_array_equal(y, np.tile(labels[:10], 5))
        whole, up, down, left, right = x.reshape(5, 10, 28, 28, 1)
        np.testing.assert_array_equal(whole, images[:10])
        np.testing.assert_array_equal(up[:, :-1], images[:10, 1:])
        np.testing.assert_array_equal(down[:, 1:], images[:10, :-1])
        np.testing.assert_array_equal(left[:, :, :-1], images[:10, :, 1:])
        np.testing.assert_array_equal(right[:, :, 1:], images[:10, :, :-1])
        assert not up[:, -1].any()
        assert not right[:, :, 0].any()

    def test_jitter_turns_and_moves(self):
        image = np.zeros((1, 11, 11, 1))
        image[0, 3:8, 4:6, 0] = np.arange(1, 11).reshape(5, 2)
        draws = np.asarray(jax.random.uniform(KEY, (1, 3), jnp.float32, -1, 1), float)[0]
        jitter = fn.datasets.jitter
        np.testing.assert_allclose(jitter(KEY, image, degrees=0.0, pixels=0.0), image, atol=1e-12)
        turned = jitter(KEY, image, degrees=90 / draws[0], pixels=0.0)[0, :, :, 0]
        np.testing.assert_allclose(turned, np.rot90(image[0, :, :, 0]), atol=1e-5)
        moved = np.asarray(jitter(KEY, image, degrees=0.0, pixels=2.0)[0, :, :, 0])
        centre = lambda a: np.tensordot(np.indices(a.shape), a, 2) / a.sum()  # noqa: E731
        np.testing.assert_allclose(centre(moved) - centre(image[0, :, :, 0]), 2 * draws[1:], atol=1e-6)

    def test_jitter_draws_by_key_and_keeps_dtypes(self, digits):
        (images, _), _ = digits
        few = images[:3]
        one, other = (fn.datasets.jitter(jax.random.key(k), few) for k in (0, 1))
        np.testing.assert_array_equal(one, fn.datasets.jitter(jax.random.key(0), few))
        assert float(jnp.max(jnp.abs(one - other))) > 0.1
        assert one.dtype == jnp.float32
        assert fn.datasets.jitter(KEY, few.astype(np.float64)).dtype == jnp.float64
        assert fn.datasets.jitter(KEY, (255 * few).astype(np.uint8)).dtype == jnp.float32
        assert fn.datasets.jitter(KEY, few[:0]).shape == (0, 28, 28, 1)

    def test_bad_images(self):
        with pytest.raises(
            ValueError, match=r"shifted: expected images \(m, H, W, c\), got shape \(28, 28\); add axes"
        ):
            fn.datasets.shifted(np.zeros((28, 28)), np.zeros(28))
        with pytest.raises(ValueError, match=r"shifted: expected 2 labels, one for each image, got shape \(3,\)"):
            fn.datasets.shifted(np.zeros((2, 4, 4, 1)), np.zeros(3))
        with pytest.raises(ValueError, match=r"jitter: expected images"):
            fn.datasets.jitter(KEY, np.zeros((4, 4)))


def test_maps_are_drawn_on_one_scale():
    plt = pytest.importorskip("matplotlib.pyplot")
    plots = pytest.importorskip("fnnet.plots")

    ax = plots.maps(np.stack([np.full((3, 2), v) for v in (-1.0, 0.5, 0.25)], -1), columns=2)
    shown = ax.images[0]
    assert shown.get_array().shape == (3 + 1 + 3, 2 + 1 + 2)
    assert (shown.norm.vmin, shown.norm.vmax) == (-1.0, 1.0)
    assert plots.maps(np.ones((3, 2, 1))).images[0].norm.vmin == 0
    with pytest.raises(ValueError, match=r"maps: expected values \(H, W, n\), got \(3, 2\)"):
        plots.maps(np.ones((3, 2)))
    plt.close("all")
