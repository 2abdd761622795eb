"""Networks and backpropagation: structure, keywords, feedback, chunks, compilation, many devices."""

import copy
import functools
import itertools
import pickle
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, seed, settings
from hypothesis import strategies as st

import fnnet as fn
from fnnet import backpropagation
from fnnet.programs import program

from .cases import ACTIVATIONS, TOLERANCE, array, assert_agree, cast, largest, normal, params_of, thorough
from .devices import environment

KEY = jax.random.key(11)
CHECKED = itertools.count(1)


def small(dropout=False):
    """A network with a nested one, its parameters, inputs and labels."""
    thinning = (fn.Dropout(0.4), fn.Dropout(0.3, per="batch")) if dropout else ()
    net = fn.Network(
        fn.Flatten(), fn.Dense(9, fn.sigmoid), *thinning, fn.Network(fn.Dense(8, fn.tanh)), fn.Dense(4, fn.softmax)
    )
    params = params_of(net, (2, 5))
    return net, params, normal((13, 2, 5), seed=1), jnp.arange(13) % 4


def probed_cost(net, cost, params, x, y, errors, key):
    """Σ_x C_x as a function of a probe in every layer."""

    def total(probe):
        a, cache = net.forward(params, x, key=key, train=True, probe=probe)
        return len(x) * cost(a, y, output=net.output(params, cache))

    return jax.grad(total)(jax.tree.map(jnp.zeros_like, errors))


@st.composite
def random_networks(draw):
    """(net, cost, input width, batch size, penalty, seed) over depths, widths, activations, costs and dropout."""
    layers = []
    for _ in range(draw(st.integers(0, 5))):
        layers.append(fn.Dense(draw(st.integers(1, 40)), ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))]))
        if draw(st.integers(0, 3)) == 0:
            layers.append(
                fn.Dropout(draw(st.sampled_from([0.1, 0.5, 0.8])), per=draw(st.sampled_from(["example", "batch"])))
            )
    if len(layers) > 2 and draw(st.booleans()):
        layers = [layers[0], fn.Network(*layers[1:])]
    cost = draw(st.sampled_from([fn.quadratic, fn.cross_entropy, fn.log_likelihood]))
    width = draw(st.integers(2 if cost is fn.log_likelihood else 1, 12))
    names = sorted(ACTIVATIONS) if cost is fn.quadratic else ["sigmoid", "softmax"][: min(width, 2)]
    layers.append(fn.Dense(width, ACTIVATIONS[draw(st.sampled_from(names))]))
    penalty = draw(st.sampled_from([None, fn.L2(0.7), fn.L1(0.3)]))
    return (
        fn.Network(*layers),
        cost,
        draw(st.integers(1, 40)),
        draw(st.integers(1, 33)),
        penalty,
        draw(st.integers(0, 2**31)),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def manual_and_autodiff(net, cost, params, x, y, key, penalty):
    """One program: compiled apart, the four cost four times as long."""
    about = {"penalty": penalty, "n_examples": 50}
    value, reference = jax.value_and_grad(fn.objective(net, cost, **about))(params, x, y, key=key)
    bp = fn.backprop(net, cost, params, x, y, key=key, **about)
    errors = probed_cost(net, cost, params, x, y, bp.errors, key)
    _, gradients = fn.value_and_grad(net, cost, **about)(params, x, y, key=key)
    return value, reference, bp, errors, gradients


def check_random_network(drawn, dtype, tolerance):
    net, cost, n_in, m, penalty, seed = drawn
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    params = params_of(net, (n_in,), dtype, (seed, 1))
    x = array(rng.standard_normal((m, n_in)), dtype)
    n_out = net.output_shape((n_in,))[0]
    y = rng.integers(0, n_out, m) if n_out > 1 else array(rng.random((m, 1)), dtype)
    value, reference, bp, errors, gradients = manual_and_autodiff(net, cost, params, x, y, key, penalty)
    np.testing.assert_allclose(bp.cost, value, rtol=tolerance)
    scale = largest(reference)
    assume(scale > 0 and np.isfinite(scale))
    assert_agree(bp.gradients, reference, tolerance, zero=True, scale=scale)
    assert_agree(bp.errors, errors, tolerance, zero=True, scale=largest(errors))
    assert_agree(gradients, reference, tolerance, zero=True, scale=scale)
    if next(CHECKED) % 20 == 0:
        jax.clear_caches()


@pytest.mark.parametrize("shard", [0, *thorough(*range(1, 6))])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(jnp.float64, 1e-10), pytest.param(jnp.float32, 1e-3, marks=pytest.mark.thorough)],
    ids=["float64", "float32"],
)
def test_random_networks_against_autodiff(dtype, tolerance, shard):
    """In shards, which run beside each other.

    float32: chained through up to 6 layers, rounding grows from layer to layer: 1e-3 of the largest entry is 8,000 eps. A
    wrong factor anywhere is far above it.
    """

    @seed(shard)
    @settings(max_examples=min(25, settings.default.max_examples))
    @given(random_networks())
    def check(drawn):
        check_random_network(drawn, dtype, tolerance)

    check()


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "softmax", "relu", "gelu_tanh", "softplus", "elu", "silu"])
@pytest.mark.parametrize("dtype", ["float32", *thorough("float64", "bfloat16")])
def test_saturated_inputs_stay_finite(activation, dtype):
    net = fn.Network(fn.Dense(5, ACTIVATIONS[activation]), fn.Dense(3, fn.softmax))
    params = params_of(net, (4,), dtype)
    x = jnp.array([[1e4, -1e4, 1e4, 0.0], [-1e4, -1e4, 1e4, 1e4], [0.0, 0.0, 0.0, 0.0]], dtype)
    _, reference, bp, _, _ = manual_and_autodiff(net, fn.log_likelihood, params, x, jnp.array([0, 1, 2]), None, None)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(bp))
    assert_agree(bp.gradients, reference, TOLERANCE[dtype], zero=True, scale=largest(reference))


@pytest.mark.thorough
def test_finite_differences():
    net, params, x, y = small()
    f = fn.objective(net, fn.log_likelihood, penalty=fn.L2(2.0))
    _, grads = fn.value_and_grad(net, fn.log_likelihood, penalty=fn.L2(2.0))(params, x, y)
    direction = jax.tree.map(lambda p: jnp.cos(jnp.arange(p.size * 1.0)).reshape(p.shape), params)
    h = 1e-5
    ahead, behind = (jax.tree.map(lambda p, d, s=s: p + s * h * d, params, direction) for s in (1, -1))
    slope = (f(ahead, x, y) - f(behind, x, y)) / (2 * h)
    np.testing.assert_allclose(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grads, direction))), slope, rtol=1e-8)


class TestBackprop:
    @pytest.mark.thorough
    def test_two_passes_by_hand_are_backprop(self):
        net, params, x, y = small(dropout=True)
        a, cache = net.forward(params, x, key=KEY, train=True)
        errors = net.output_error(params, cache, a - jnp.eye(4)[y])
        gradients = net.gradients(params, cache, errors)
        bp = fn.backprop(net, fn.log_likelihood, params, x, y, key=KEY)
        assert_agree(errors, bp.errors, 1e-12)
        assert_agree(gradients, bp.gradients, 1e-12)
        unmatched = net.error(params, cache, a - jnp.eye(4)[y])
        assert_agree(unmatched, fn.backprop(net, fn.quadratic, params, x, y, key=KEY).errors, 1e-12)

    def test_errors_are_per_example_and_not_divided_by_m(self):
        net, params, x, y = small()
        together = fn.backprop(net, fn.log_likelihood, params, x, y).errors
        alone = [fn.backprop(net, fn.log_likelihood, params, x[i : i + 1], y[i : i + 1]).errors for i in range(len(x))]
        assert_agree(together, jax.tree.map(lambda *d: jnp.concatenate(d), *alone), 1e-12)

    def test_penalty_is_in_cost_and_gradients_not_in_errors(self):
        net, params, x, y = small()
        plain, penalised = (fn.backprop(net, fn.log_likelihood, params, x, y, penalty=p) for p in (None, fn.L2(3.0)))
        assert_agree(penalised.errors, plain.errors, 0)
        expected = 3.0 / (2 * 13) * sum(jnp.sum(p["w"] ** 2) for p in (params[1], params[2][0], params[3]))
        np.testing.assert_allclose(penalised.cost - plain.cost, expected)
        np.testing.assert_allclose(
            penalised.gradients[3]["w"] - plain.gradients[3]["w"], 3 / 13 * params[3]["w"], atol=1e-14
        )
        np.testing.assert_array_equal(penalised.gradients[3]["b"], plain.gradients[3]["b"])

    def test_weights_leave_examples_out(self):
        net, params, x, y = small()
        weights = jnp.where(jnp.arange(13) < 10, 13 / 10, 0.0)
        padded = fn.backprop(net, fn.log_likelihood, params, x, y, weights=weights)
        alone = fn.backprop(net, fn.log_likelihood, params, x[:10], y[:10])
        np.testing.assert_allclose(padded.cost, alone.cost)
        assert_agree(padded.gradients, alone.gradients, 1e-12)

    def test_feedback_replaces_the_weights_in_bp2_only(self):
        net = fn.Network(fn.Dense(6, fn.sigmoid), fn.Dense(5, fn.tanh), fn.Dense(3, fn.linear))
        params, other = (params_of(net, (4,), seed=3 + i) for i in (0, 1))
        x, y = normal((7, 4), seed=2), jnp.ones((7, 3))
        bp = fn.backprop(net, fn.quadratic, params, x, y, feedback=other)
        a, (c0, c1, _) = net.forward(params, x)
        d2 = a - y
        d1 = (d2 @ other[2]["w"]) * (1 - c1[2] ** 2)
        d0 = (d1 @ other[1]["w"]) * c0[2] * (1 - c0[2])
        assert_agree(bp.errors, (d0, d1, d2), 1e-12)
        np.testing.assert_allclose(bp.gradients[0]["w"], d0.T @ x / 7, atol=1e-14)
        assert_agree(fn.backprop(net, fn.quadratic, params, x, y, feedback=params).gradients,
                     fn.backprop(net, fn.quadratic, params, x, y).gradients, 0)  # fmt: skip

    def test_a_single_layer_is_a_net(self):
        layer = fn.Dense(3, fn.softmax)
        params = params_of(layer, (4,))
        x, y = normal((5, 4), seed=1), jnp.arange(5) % 3
        bp = fn.backprop(layer, fn.log_likelihood, params, x, y)
        assert_agree(bp.gradients, jax.grad(fn.objective(layer, fn.log_likelihood))(params, x, y), 1e-12)

    def test_old_style_keys_work(self):
        net, params, x, y = small(dropout=True)
        assert fn.backprop(net, fn.log_likelihood, params, x, y, key=jax.random.PRNGKey(3)).cost > 0

    @pytest.mark.thorough
    def test_inside_a_users_scan_vmap_and_grad(self):
        net, params, x, y = small()
        gradient = fn.value_and_grad(net, fn.log_likelihood)

        def descend(params, _):
            cost, grads = gradient(params, x, y)
            return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), cost

        _, costs = jax.lax.scan(descend, params, length=20)
        assert costs[-1] < costs[0]
        stacked = jax.vmap(lambda k: net.init(k, (2, 5)))(jax.random.split(KEY, 3))
        _, grads = jax.vmap(lambda p: gradient(p, x, y))(stacked)
        _, second = gradient(jax.tree.map(lambda p: p[1], stacked), x, y)
        assert_agree(jax.tree.map(lambda g: g[1], grads), second, 1e-11)
        plain = fn.objective(net, fn.log_likelihood)
        manual_hvp, autodiff_hvp = (
            jax.jvp(lambda p, f=f: f(p), (params,), (jax.tree.map(jnp.ones_like, params),))[1]
            for f in (lambda p: gradient(p, x, y)[1], lambda p: jax.grad(plain)(p, x, y))
        )
        assert_agree(manual_hvp, autodiff_hvp, 1e-9)


class TestNetwork:
    def test_indexing_and_nesting(self):
        net, params, x, _ = small()
        assert net[1] == fn.Dense(9, fn.sigmoid)
        assert net[1:] == fn.Network(*list(net)[1:])
        assert len(net) == 4
        hidden = net[:2].apply(params[:2], x)
        np.testing.assert_allclose(net[2:].apply(params[2:], hidden), net.apply(params, x))
        flat = fn.Network(fn.Flatten(), net[1], net[2][0], net[3])
        np.testing.assert_allclose(flat.apply((params[0], params[1], params[2][0], params[3]), x), net.apply(params, x))
        assert repr(net[1:3]) == "Network(Dense(9, sigmoid), Network(Dense(8, tanh)))"
        with pytest.raises(ValueError, match="expected at least one layer"):
            net[4:]

    def test_parameters_have_one_entry_per_layer(self):
        _, params, _, _ = small(dropout=True)
        assert [sorted(p) if isinstance(p, dict) else "nested" for p in params] == [
            [],
            ["b", "w"],
            [],
            [],
            "nested",
            ["b", "w"],
        ]
        assert params[1]["w"].shape == (9, 10)
        assert bool(jnp.any(params[1]["w"][:8, :9] != params[4][0]["w"]))

    def test_parameters_as_a_list_work(self):
        net, params, x, y = small()
        np.testing.assert_array_equal(net.apply(list(params), x), net.apply(params, x))
        _, grads = fn.value_and_grad(net, fn.log_likelihood, penalty=fn.L2(1.0))(list(params), x, y)
        assert jax.tree.structure(grads) == jax.tree.structure(list(params))

    def test_copies_are_equal(self):
        net, *_ = small(dropout=True)
        variant = fn.Network(net, fn.Dense(3, fn.leaky_relu.with_(slope=0.2)))
        for copied in (copy.deepcopy(variant), pickle.loads(pickle.dumps(variant))):
            assert copied == variant
            assert hash(copied) == hash(variant)
        assert copy.deepcopy(fn.cross_entropy) is pickle.loads(pickle.dumps(fn.cross_entropy)) is fn.cross_entropy

    def test_a_subclass_stays_one_inside_a_loop(self):
        @fn.layer
        class Tripled(fn.Network):
            def forward(self, params, a_in, **given):
                a, cache = super().forward(params, a_in, **given)
                return 3 * a, cache

        net = Tripled(fn.Dense(3, fn.tanh))
        assert type(net.in_loop()) is Tripled
        assert net.in_loop()[0] == fn.Dense(3, fn.tanh).in_loop()
        assert repr(net) == "Tripled(Dense(3, tanh))"

    @pytest.mark.thorough
    def test_integer_inputs_and_a_first_layer_without_propagate(self):
        @fn.layer
        class Table:
            def init(self, key, input_shape):
                return {"w": jax.random.normal(key, (9, 4))}

            def forward(self, params, a_in, *, probe=None):
                a = params["w"][a_in]
                return a if probe is None else a + probe, a_in

            def gradients(self, params, cache, delta):
                return {"w": jnp.zeros_like(params["w"]).at[cache].add(delta / len(delta))}

        net = fn.Network(Table(), fn.Flatten(), fn.Dense(3, fn.softmax))
        params = params_of(net, (5,))
        x, y = jax.random.randint(KEY, (6, 5), 0, 9), jnp.arange(6) % 3
        _, grads = fn.value_and_grad(net, fn.log_likelihood)(params, x, y)
        assert_agree(grads, jax.grad(fn.objective(net, fn.log_likelihood))(params, x, y), 1e-12)
        assert fn.compare_gradients(net, fn.log_likelihood, params, x, y).ok
        below = fn.Network(fn.Flatten(), Table(), fn.Flatten(), fn.Dense(3, fn.softmax))
        for run in (fn.backprop, lambda *args: fn.value_and_grad(*args[:2])(*args[2:])):
            with pytest.raises((fn.LayerError, NotImplementedError), match="propagate"):
                run(below, fn.log_likelihood, ({}, *params), x, y)

    def test_gradients_have_the_parameters_dtype(self):
        net, params, x, y = small()
        half = cast(params, jnp.bfloat16)
        with jax.numpy_dtype_promotion("standard"):
            _, grads = fn.value_and_grad(net, fn.log_likelihood)(half, x, y)
        assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.bfloat16)}


class TestChunks:
    @pytest.mark.thorough
    @pytest.mark.parametrize("size", [4, *thorough(1, 12, 13, 50)])
    def test_the_result_is_that_of_the_whole_batch(self, size):
        net, params, x, y = small(dropout=True)
        given = {"key": KEY, "weights": jnp.linspace(0.5, 1.5, 13)}
        whole, chunked = (
            fn.value_and_grad(net, fn.log_likelihood, penalty=fn.L2(1.0), micro_batch=b)(params, x, y, **given)
            for b in (None, size)
        )
        assert_agree(chunked, whole, 1e-12)

    def test_auto_runs_a_large_batch_in_less_memory(self):
        net = fn.Network(fn.Dense(64, fn.sigmoid), fn.Dense(10, fn.softmax))
        params = params_of(net, (8,))
        x, y = jnp.zeros((2**16, 8)), jnp.zeros(2**16, int)

        def temporaries(micro_batch):
            f = jax.jit(fn.value_and_grad(net, fn.log_likelihood, micro_batch=micro_batch))
            return f.lower(params, x, y).compile().memory_analysis().temp_size_in_bytes

        if jax.default_backend() == "cpu":
            assert temporaries("auto") < 0.3 * temporaries(None)
        assert temporaries(1024) < 0.1 * temporaries(None)

    def test_layers_that_draw_for_the_whole_batch_switch_it_off(self):
        @fn.layer
        class Noise:
            def forward(self, params, a_in, *, key=None, train=False):
                return (a_in + jax.random.normal(key, a_in.shape) if train else a_in), None

            def propagate(self, params, cache, delta):
                return delta

        @fn.layer
        class Center:
            def forward(self, params, a_in):
                return a_in - jnp.mean(a_in, 0), None

            def propagate(self, params, cache, delta):
                return delta - jnp.mean(delta, 0)

        for layer in (Noise(), Center()):
            net = fn.Network(fn.Dense(3, fn.tanh), layer, fn.Dense(2, fn.softmax))
            assert not net.independent
            params = params_of(net, (4,))
            x, y = normal((6, 4)), jnp.arange(6) % 2
            gradients = [fn.value_and_grad(net, fn.log_likelihood, micro_batch=b) for b in (None, 2)]
            whole, chunked = (gradient(params, x, y, key=KEY) for gradient in gradients)
            assert_agree(chunked, whole, 0)

    @pytest.mark.parametrize("size", [0, -3, 2.5, "all"])
    def test_a_bad_size(self, size):
        with pytest.raises(ValueError, match="micro_batch: expected a positive integer, 'auto' or None, got"):
            fn.value_and_grad(small()[0], fn.log_likelihood, micro_batch=size)


class TestCompilation:
    def test_an_equal_network_compiles_nothing(self):
        def run(scale):
            net, params, x, y = small(dropout=True)
            given = {"key": KEY, "penalty": fn.L2(scale)}
            fn.backprop(net, fn.log_likelihood, params, x, y, **given)
            fn.value_and_grad(net, fn.log_likelihood, penalty=fn.L2(scale))(params, x, y, key=KEY)
            fn.objective(net, fn.log_likelihood, penalty=fn.L2(scale))(params, x, y, key=KEY)
            net.apply(params, x)

        run(1.0)
        net, built = small(dropout=True)[0], program.cache_info().misses
        over = {"over": None}
        options = (over, {"micro_batch": "auto", "positions": None, "carry": False, **over}, {"carry": False, **over})
        functions = (backpropagation._backprop, backpropagation._value_and_grad, backpropagation._objective)
        programs = [program(f, net, fn.log_likelihood, **o) for f, o in zip(functions, options, strict=True)]
        before = [run._cache_size() for run in programs]
        run(2.0)
        assert [run._cache_size() for run in programs] == before
        assert program.cache_info().misses == built

    @pytest.mark.parametrize("m", [128, *thorough(10, 1024)])
    @pytest.mark.parametrize("cost", [fn.cross_entropy, *thorough(fn.quadratic)], ids=repr)
    def test_flops_and_temporaries_are_no_more_than_autodiffs(self, m, cost):
        net = fn.Network(fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.sigmoid))
        params = cast(params_of(net, (784,)), jnp.float32)
        x, y = jnp.zeros((m, 784), jnp.float32), jnp.zeros((m, 10), jnp.float32)
        manual, autodiff = (
            jax.jit(f).lower(params, x, y).compile()
            for f in (fn.value_and_grad(net, cost), jax.value_and_grad(fn.objective(net, cost)))
        )
        assert manual.cost_analysis()["flops"] <= 1.01 * autodiff.cost_analysis()["flops"]
        assert manual.memory_analysis().temp_size_in_bytes <= autodiff.memory_analysis().temp_size_in_bytes

    def test_importing_fnnet_imports_nothing_that_is_not_needed(self):
        heavy = ("matplotlib", "tqdm", "optax", "chex", "urllib.request", "fnnet.bench")

        def imported(module):
            code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
            return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

        assert imported("fnnet") == imported("jax")


@pytest.mark.parametrize("net", thorough("dense", "cells"))
def test_many_devices(net):
    """Data-parallel on 8 simulated devices: the sharded batch gives the same gradients."""
    code = """
        import sys, jax, jax.numpy as jnp, numpy as np, fnnet as fn
        from jax.sharding import NamedSharding, PartitionSpec as P
        assert jax.device_count() == 8
        dense = fn.Network(fn.Dense(16, fn.sigmoid), fn.Dropout(0.5), fn.Dense(4, fn.softmax))
        cells = fn.Network(fn.LSTM(5), fn.GRU(4), fn.Bidirectional(fn.RNN(3), last=True), fn.Dense(4, fn.softmax))
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        rows = NamedSharding(mesh, P("batch"))
        net, shape = {"dense": (dense, (6,)), "cells": (cells, (7, 6))}[sys.argv[1]]
        params = net.init(jax.random.key(0), shape)
        x, y = jax.random.normal(jax.random.key(1), (32, *shape)), jnp.arange(32) % 4
        gradient = fn.value_and_grad(net, fn.log_likelihood)
        one = gradient(params, x, y, key=jax.random.key(2))
        many = gradient(params, jax.device_put(x, rows), jax.device_put(y, rows), key=jax.random.key(2))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        print("the same")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), net], capture_output=True, text=True, env=environment(8)
    )
    assert done.stdout == "the same\n", done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": "net"}, r"net: expected an fn\.Network or another layer, got str"),
        ({"cost": jnp.mean}, r"cost: expected an fn\.Cost such as fn\.cross_entropy, got function"),
        (
            {"x": jnp.ones((0, 2, 5)), "y": jnp.ones((0,), int)},
            r"x: expected a batch \(m, \.\.\.\) of at least one example, got shape \(0, ",
        ),
        (
            {"y": jnp.zeros(4, int)},
            r"y: expected as many targets as there are examples in x, got \(4,\) beside \(13, 2, 5\)",
        ),
        (
            {"x": jnp.ones((13, 3, 5))},
            r"layer 1 Dense\(9, sigmoid\): expected inputs of shape \(m, 10\), got \(13, 15\)",
        ),
        ({"weights": jnp.ones(20)}, r"weights: expected 13 examples on axis 0, as in x, got shape \(20,\)"),
        ({"mask": jnp.ones((12, 2))}, r"mask: expected 13 examples on axis 0, as in x, got shape \(12, 2\)"),
        ({"key": 7}, r"key: expected one PRNG key, got int 7; make one with jax\.random\.key\(seed\)"),
        ({"key": jnp.ones(2)}, r"key: expected one PRNG key, got an array of float64 and shape \(2,\)"),
    ],
)
def test_bad_input_is_a_clear_error(change, message):
    net, params, x, y = small()
    args = {"net": net, "cost": fn.log_likelihood, "params": params, "x": x, "y": y, **change}
    with pytest.raises(ValueError, match=message):
        fn.backprop(**args)
    if "net" not in change:
        rest = {k: v for k, v in args.items() if k not in ("net", "cost")}
        with pytest.raises(ValueError, match=message):
            fn.value_and_grad(args["net"], args["cost"])(**rest)


def test_a_call_with_other_arguments_says_how_it_is_called():
    net, params, x, y = small()
    cost, options = fn.log_likelihood, {"key": jax.random.key(0), "epochs": 1, "optimizer": fn.sgd(0.5)}
    of = r"fit\(net, cost, params, \(x, y\), key=key, .*\), got \(Network, Cost, tuple, ArrayImpl, ArrayImpl"
    with pytest.raises(TypeError, match=rf"fit: expected {of}, key=.*, optimizer=\.\.\.\): too many positional"):
        fn.fit(net, cost, params, x, y, **options)
    with pytest.raises(TypeError, match=r"fit: expected fit\(.*\): got an unexpected keyword argument 'lr'"):
        fn.fit(net, cost, params, (x, y), lr=0.5, **options)
    with pytest.raises(TypeError, match=r"sweep: expected sweep\(net, cost, \(x, y\), keys=keys, .*\): too many"):
        fn.sweep(net, cost, params, (x, y), **options)
    with pytest.raises(
        TypeError, match=r"evaluate\(net, cost, params, \(x, y\)\), got \(Network, tuple, tuple\): missing"
    ):
        fn.evaluate(net, params, (x, y))
    for function in (fn.backprop, fn.compare_gradients):
        with pytest.raises(TypeError, match=r"\(net, cost, params, x, y\), got \(Network, Cost, tuple, tuple\): .*'y'"):
            function(net, cost, params, (x, y))
    for function in (fn.value_and_grad, fn.objective):
        called = rf"{function.__name__}\(net, cost\)\(params, x, y"
        with pytest.raises(
            TypeError, match=rf"{called}\), got \(Network, Cost, tuple, ArrayImpl, ArrayImpl\): too many"
        ):
            function(net, cost, params, x, y)
        with pytest.raises(TypeError, match=rf"{called}, key=key\), got \(tuple, tuple\): missing .*'y'"):
            function(net, cost)(params, (x, y))
    mixed = r"got tuple; net comes first, then cost, params and the data"
    with pytest.raises(ValueError, match=rf"cost: expected an fn\.Cost such as fn\.cross_entropy, {mixed}"):
        fn.fit(net, params, cost, (x, y), **options)
    with pytest.raises(ValueError, match=rf"net: expected an fn\.Network or another layer, {mixed}"):
        fn.value_and_grad(params, net)
    with pytest.raises(ValueError, match=r"beside x and y, got \['b', 'w'\]; params come before the data"):
        fn.evaluate(net, cost, (x, y), ({}, {}, params[-1]))
