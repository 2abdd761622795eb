"""What the diagnostics say of a network, against its definition."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet import diagnostics
from fnnet.diagnostics.alignment import angle_and_ratio
from fnnet.layers._composite import walk
from fnnet.layers._layer import run_forward

from .cases import FEW, cast, thorough

KEY = jax.random.key(4)
NETS = {
    "sigmoid": fn.Network(fn.Dense(7, fn.sigmoid), fn.Dense(6, fn.tanh), fn.Dense(4, fn.sigmoid)),
    "softmax and dropout": fn.Network(fn.Dense(7, fn.relu), fn.Dropout(0.3), fn.Dense(4, fn.softmax)),
    "nested": fn.Network(fn.Network(fn.Dense(7, fn.sigmoid), fn.Dense(6, fn.silu)), fn.Dense(4, fn.linear)),
}
COSTS = {"sigmoid": fn.quadratic, "softmax and dropout": fn.log_likelihood, "nested": fn.quadratic}


@functools.cache
def case(name, m=5):
    net, rng = NETS[name], np.random.default_rng(1)
    y = np.arange(m) % 4 if name == "softmax and dropout" else rng.uniform(size=(m, 4))
    return net, COSTS[name], drawn(net, (8,)), rng.standard_normal((m, 8)), y


def drawn(net, shape, dtype=float, seed=0):
    """Parameters of a net as NumPy arrays: w ~ N(0, 1/n_in), like `fn.Dense`'s own, without compiling ``init``."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) / leaf.shape[-1] ** 0.5).astype(dtype),
        jax.eval_shape(lambda: net.init(KEY, shape)),
    )


def flat(delta):
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in jax.tree.leaves(delta)], axis=1)


@pytest.mark.parametrize("name", ["nested", *thorough("sigmoid", "softmax and dropout")])
def test_learning_speed(name):
    net, cost, params, x, y = case(name)
    speed = diagnostics.learning_speed(net, cost, params, x, y, key=KEY)
    errors = fn.backprop(net, cost, params, x, y, key=KEY).errors
    for l, delta in enumerate(map(flat, errors)):
        np.testing.assert_allclose(speed.norm_of_mean[l], np.sqrt(sum(delta.mean(0) ** 2)), rtol=1e-12)
        np.testing.assert_allclose(speed.mean_of_norms[l], np.mean([np.sqrt(sum(row**2)) for row in delta]), rtol=1e-12)
        np.testing.assert_allclose(speed.rms[l], np.sqrt((delta**2).mean()), rtol=1e-12)
    assert speed.rms.shape == (len(net),)


def test_the_norm_of_the_mean_is_that_of_the_biases_gradient():
    net, cost, params, x, y = case("sigmoid")
    gradients = fn.backprop(net, cost, params, x, y).gradients
    speed = diagnostics.learning_speed(net, cost, params, x, y)
    np.testing.assert_allclose(speed.norm_of_mean, [jnp.linalg.norm(g["b"]) for g in gradients], rtol=1e-12)


@pytest.mark.thorough
def test_update_ratios():
    net, cost, params, x, y = case("softmax and dropout")
    grads = fn.backprop(net, cost, params, x, y, key=KEY).gradients
    updates, _ = fn.sgd(0.1).update(grads, fn.sgd(0.1).init(params), params)
    ratios = diagnostics.update_ratios(params, updates)
    for l in (0, 2):
        expected = 0.1 * jnp.linalg.norm(grads[l]["w"]) / jnp.linalg.norm(params[l]["w"])
        np.testing.assert_allclose(ratios[l], expected, rtol=1e-12)
    assert jnp.isnan(ratios[1])


def test_saturation():
    net, _, params, x, _ = case("softmax and dropout")
    params = ({"w": params[0]["w"], "b": np.where(np.arange(7) == 2, -100.0, params[0]["b"])}, *params[1:])
    z = x @ params[0]["w"].T + params[0]["b"][None]
    share, dead = diagnostics.saturation(net, params, x, bound=0.0)
    np.testing.assert_allclose(share[0], np.mean(z <= 0), rtol=1e-12)
    np.testing.assert_allclose(dead[0], np.mean((z <= 0).all(axis=0)), rtol=1e-12)
    assert 0 < dead[0] < share[0] < 1
    assert jnp.isnan(share[1:]).all()
    assert jnp.isnan(dead[1:]).all()
    net, _, params, x, _ = case("sigmoid")
    a = net[:1].apply(params[:1], x)
    share, dead = diagnostics.saturation(net, params, x, bound=0.2)
    np.testing.assert_allclose(share[0], np.mean(np.asarray(a * (1 - a)) <= 0.2), rtol=1e-12)
    assert 0 < share[0] < 1
    steep = jax.tree.map(lambda p: 1000 * p, params)
    assert diagnostics.saturation(net, steep, x).share[0] > 0.9


@pytest.mark.thorough
def test_saturation_over_a_large_data_set_is_run_in_chunks():
    net = fn.Network(fn.Dense(400, fn.relu), fn.Dense(3, fn.sigmoid))
    params = drawn(net, (4,))
    params = ({"w": params[0]["w"], "b": np.where(np.arange(400) < 7, -1000.0, params[0]["b"])}, params[1])
    x = np.random.default_rng(1).standard_normal((30_001, 4))
    share, dead = diagnostics.saturation(net, params, x)
    z = x @ params[0]["w"].T + params[0]["b"][None]
    np.testing.assert_allclose(share[0], np.mean(z <= 0), rtol=1e-10)
    np.testing.assert_allclose(dead[0], 7 / 400, rtol=1e-12)
    lowered = jax.jit(lambda x: diagnostics.saturation(net, params, x)).lower(x).compile()
    assert lowered.memory_analysis().temp_size_in_bytes < 400 * 30_001 * 8


def test_activations():
    net, _, params, x, _ = case("softmax and dropout")
    outputs = diagnostics.activations(net, params, x)
    assert [a.shape for a in outputs] == [(5, 7), (5, 7), (5, 4)]
    np.testing.assert_allclose(outputs[0], net[:1].apply(params[:1], x), rtol=1e-12)
    np.testing.assert_array_equal(outputs[1], outputs[0])  # no dropout
    np.testing.assert_allclose(outputs[2], net.apply(params, x), rtol=1e-12)


def test_histograms():
    net, cost, params, x, y = case("softmax and dropout")
    for values in (
        params,
        fn.backprop(net, cost, params, x, y, key=KEY).errors,
        diagnostics.activations(net, params, x),
    ):
        found = diagnostics.histograms(values, bins=9)
        for l, layer in enumerate(values):
            if not jax.tree.leaves(layer):
                assert found.counts[l].sum() == 0
                assert jnp.isnan(found.edges[l]).all()
                continue
            flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(layer)])
            counts, edges = np.histogram(flat, 9)
            np.testing.assert_array_equal(found.counts[l], counts)
            np.testing.assert_allclose(found.edges[l], edges, rtol=1e-12, atol=1e-12)


def test_histograms_leave_out_what_is_not_finite():
    values = jnp.array([0.0, 1.0, jnp.nan, 4.0, jnp.inf]), jnp.full(3, jnp.nan), jnp.full(2, 5.0, jnp.bfloat16)
    found = diagnostics.histograms(values, bins=4)
    assert found.counts.tolist() == [[1, 1, 0, 1], [0, 0, 0, 0], [0, 0, 2, 0]]
    np.testing.assert_allclose(found.edges[0], [0, 1, 2, 3, 4])
    assert jnp.isnan(found.edges[1]).all()


@pytest.mark.thorough
def test_histograms_count_beyond_the_integers_of_float32():
    found = diagnostics.histograms((jnp.zeros(2**24 + 5, jnp.bfloat16),), bins=1)
    assert found.counts.tolist() == [[2**24 + 5]]


def history(**monitors):
    given = dict.fromkeys(fn.History._fields) | {n: np.array(v) for n, v in monitors.items()}
    return fn.History(**given)


def test_overfitting():
    found = diagnostics.overfitting(
        history(
            cost=[3.0, 2.0, 1.0, 0.5],
            accuracy=[0.5, 0.7, 0.9, 1.0],
            validation_cost=[3.0, 2.5, 2.0, 2.2],
            validation_accuracy=[0.5, 0.8, 0.7, 0.8],
        )
    )
    assert (found.cost_turns, found.accuracy_turns) == (3, 2)
    np.testing.assert_allclose(found.cost_gap, [0, 0.5, 1, 1.7])
    np.testing.assert_allclose(found.accuracy_gap, [0, -0.1, 0.2, 0.2])


def test_overfitting_of_many_networks_and_of_none():
    nan = np.nan
    many = history(
        cost=[[1.0, 1.0]] * 2, validation_cost=[[2.0, 1.0], [nan, nan]], validation_accuracy=[[0.5, nan]] * 2
    )
    found = diagnostics.overfitting(many)
    assert found.cost_turns.tolist() == [2, 0]
    assert found.accuracy_turns.tolist() == [1, 1]
    assert found.cost_gap is None
    with pytest.raises(ValueError, match="overfitting: expected a history with validation data, got none"):
        diagnostics.overfitting(history(cost=[1.0]))
    with pytest.raises(ValueError, match="overfitting: expected a history of at least one epoch, got none"):
        diagnostics.overfitting(history(validation_cost=[], validation_accuracy=[]))


@pytest.mark.thorough
def test_overfitting_is_that_of_a_sweep():
    x = np.random.default_rng(1).standard_normal((20, 3))
    runs = fn.sweep(
        fn.Network(fn.Dense(2, fn.softmax)),
        fn.log_likelihood,
        (x, np.arange(20) % 2),
        keys=jax.random.split(KEY, 3),
        epochs=4,
        batch_size=5,
        optimizers=[fn.sgd(0.1), fn.sgd(1.0)],
        validation=(x[:10], np.arange(10) % 2),
        progress=False,
    )
    found = diagnostics.overfitting(runs)
    np.testing.assert_array_equal(found.cost_turns, runs.validation_cost.argmin(axis=-1) + 1)
    np.testing.assert_allclose(found.accuracy_gap, runs.accuracy - runs.validation_accuracy)


@pytest.mark.parametrize("name", NETS)
def test_the_parts_of_the_growth_add_up(name):
    net, cost, params, x, y = case(name)
    growth = diagnostics.error_growth(net, cost, params, x, y, key=KEY)
    sizes = [np.log(np.linalg.norm(flat(d))) for d in fn.backprop(net, cost, params, x, y, key=KEY).errors]
    np.testing.assert_allclose(growth.total, -np.diff(sizes), rtol=1e-10)
    np.testing.assert_allclose(sum(growth[1:]), growth.total, rtol=1e-10)


def test_the_parts_of_the_growth_are_what_they_say():
    net, cost, params, x, y = case("sigmoid")
    growth = diagnostics.error_growth(net, cost, params, x, y)
    for l in (0, 1):
        w = np.asarray(params[l + 1]["w"])
        np.testing.assert_allclose(growth.weights[l], np.log(np.sqrt((w**2).sum() / w.shape[0])), rtol=1e-12)
    a = np.asarray(net[:1].apply(params[:1], x))
    np.testing.assert_allclose(growth.slopes[0], np.log(np.sqrt(np.mean((a * (1 - a)) ** 2))), rtol=1e-12)
    square = {"weight_init": fn.initializers.orthogonal()}
    rotation = fn.Network(fn.Dense(4, fn.linear, **square), fn.Dense(4, fn.linear, **square))
    still = diagnostics.error_growth(rotation, fn.quadratic, rotation.init(KEY, (4,)), x[:, :4], y)
    np.testing.assert_allclose(jnp.stack(still), 0, atol=1e-12)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_singular_values_are_those_of_the_jacobian(layer):
    """Of a^L by z^l, example by example: autodiff through the layer's probe."""
    net, _, params, x, _ = case("sigmoid")
    own = diagnostics.singular_values(net, params, x, layer=layer)
    n = (7, 6, 4)[layer]

    def output(probe, x):
        probes = [None, None, None]
        probes[layer] = probe[None]
        return net.forward(params, x[None], probe=tuple(probes))[0][0]

    jacobians = jax.jit(jax.vmap(lambda x: jax.jacrev(output)(jnp.zeros(n), x)))(x)
    np.testing.assert_allclose(own, np.linalg.svd(np.asarray(jacobians), compute_uv=False), rtol=1e-9, atol=1e-14)


@pytest.mark.thorough
@pytest.mark.parametrize("layer", [0, *thorough(1)])
@pytest.mark.parametrize("dtype", [jnp.float32, *thorough(jnp.float64, jnp.bfloat16)])
def test_the_largest_without_the_matrix(layer, dtype):
    net = fn.Network(fn.Dense(30, fn.tanh), fn.Dense(25, fn.sigmoid), fn.Dense(20, fn.linear))
    params, x = drawn(net, (8,), dtype=dtype), np.random.default_rng(1).standard_normal((3, 8)).astype(dtype)
    dense = diagnostics.singular_values(net, params, x, layer=layer)
    rtol = 1e-5 if dtype == jnp.float64 else 1e-4
    np.testing.assert_allclose(diagnostics.singular_values(net, params, x, layer=layer, k=3), dense[:, :3], rtol=rtol)


@pytest.mark.thorough
def test_deep_networks_do_not_vanish_in_float32():
    """Errors of 1e-26 have squares below float32's range: their sizes must not be 0."""
    net = fn.Network(*[fn.Dense(16, fn.sigmoid) for _ in range(8)])
    x, y = np.random.default_rng(1).standard_normal((4, 16)), np.full((4, 16), 0.9)

    @jax.jit
    def found(params, x, y):
        return (
            diagnostics.learning_speed(net, fn.quadratic, params, x, y),
            diagnostics.error_growth(net, fn.quadratic, params, x, y),
            diagnostics.singular_values(net, params, x)[:, 0],
            diagnostics.singular_values(net, params, x, k=1)[:, 0],
        )

    params = tuple({"w": 1e-3 * layer["w"], "b": 4 * layer["b"]} for layer in drawn(net, (16,)))
    wide = found(params, x, y)
    own = found(*jax.tree.map(lambda a: a.astype(np.float32), (params, x, y)))
    assert float(wide[0].rms[0]) ** 2 < np.finfo(np.float32).smallest_subnormal
    assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype("float32")}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-30), own, wide)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(wide))


COMPOSED = {
    "learning_speed": lambda net, cost, p, x, y: diagnostics.learning_speed(net, cost, p, x, y),
    "update_ratios": lambda net, cost, p, x, y: diagnostics.update_ratios(p, p),
    "saturation": lambda net, cost, p, x, y: diagnostics.saturation(net, p, x),
    "activations": lambda net, cost, p, x, y: diagnostics.activations(net, p, x),
    "histograms": lambda net, cost, p, x, y: diagnostics.histograms(p, bins=5),
    "error_growth": lambda net, cost, p, x, y: diagnostics.error_growth(net, cost, p, x, y),
    "singular_values": lambda net, cost, p, x, y: diagnostics.singular_values(net, p, x),
}


@pytest.mark.parametrize("dtype", [jnp.float64, *thorough(jnp.float32, jnp.bfloat16)])
@pytest.mark.parametrize("name", ["learning_speed", *thorough(*list(COMPOSED)[1:])])
def test_jit_vmap_and_scan(name, dtype):
    net, cost, _, x, y = case("sigmoid")
    many = jax.tree.map(lambda *leaves: np.stack(leaves), *(drawn(net, (8,), seed=i) for i in range(3)))
    many, x, y = jax.tree.map(lambda a: a.astype(dtype), (many, x, y))

    def of(params):
        return COMPOSED[name](net, cost, params, x, y)

    one_by_one = [of(jax.tree.map(lambda leaf, i=i: leaf[i], many)) for i in range(3)]
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *one_by_one)

    @jax.jit
    def together(many):
        return jax.vmap(of)(many), jax.lax.scan(lambda carry, params: (carry, of(params)), None, many)[1]

    rtol = {8: 1e-9, 4: 1e-4, 2: 0.03}[jnp.dtype(dtype).itemsize]
    for own in together(many):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), own, expected)


@pytest.mark.thorough
def test_convolutions_have_them_too():
    net = fn.Network(fn.Conv(2, 3, fn.sigmoid), fn.MaxPool(2), fn.Flatten(), fn.Dense(10, fn.softmax))
    params, x = drawn(net, (6, 6, 1)), np.random.default_rng(1).standard_normal((2, 6, 6, 1))
    a = net[:1].apply(params[:1], x)
    jacobians = jax.jit(jax.vmap(jax.jacrev(lambda a: net[1:].apply(params[1:], a[None])[0])))(a)
    by_z = np.asarray(jacobians * (a * (1 - a))[:, None]).reshape(2, 10, -1)
    own = diagnostics.singular_values(net, params, x)
    np.testing.assert_allclose(own, np.linalg.svd(by_z, compute_uv=False), rtol=1e-9, atol=1e-14)
    speed = diagnostics.learning_speed(net, fn.log_likelihood, params, x, jnp.array([1, 2]))
    assert speed.rms.shape == (4,)
    assert jnp.isnan(diagnostics.saturation(net, params, x).share).tolist() == [False, True, True, True]


BRANCH = ({}, ({"w": np.ones((8, 8)), "b": np.ones(8)},))


@pytest.mark.parametrize("wrap", [fn.Recompute, *thorough(lambda net: fn.Tied(net, "1.w", "2.w"))])
def test_growth_and_singular_values_of_a_chain_however_it_is_wrapped(wrap):
    net = fn.Network(fn.Dense(5, fn.tanh), fn.Dense(5, fn.sigmoid), fn.Dense(5, fn.sigmoid))
    wrapped, x, y = wrap(net), np.random.default_rng(1).standard_normal((3, 8)), np.full((3, 5), 0.4)
    params = drawn(wrapped, (8,))
    same = tuple(p for _, p in wrapped.parts(params))
    for f in (
        lambda net, params: diagnostics.error_growth(net, fn.cross_entropy, params, x, y),
        lambda net, params: diagnostics.singular_values(net, params, x, layer=-2),
    ):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), f(wrapped, params), f(net, same))


def test_growth_of_repetitions():
    block, x, y = fn.Dense(4, fn.tanh), np.random.default_rng(1).standard_normal((3, 4)), np.full((3, 4), 0.4)
    repeated, net = fn.Repeat(block, 3), fn.Network(block, block, block)
    params = drawn(repeated, (4,))
    own = diagnostics.error_growth(repeated, fn.quadratic, params, x, y)
    same = diagnostics.error_growth(net, fn.quadratic, tuple(p for _, p in repeated.parts(params)), x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), own, same)


@pytest.mark.parametrize("place", [(1, 1, 0), *thorough((0,), (1, 0), -1)])
def test_singular_values_of_a_branch(place):
    net = fn.Network(
        fn.Dense(9, fn.tanh), fn.Residual(fn.Dense(7, fn.sigmoid), fn.Dense(9, fn.tanh)), fn.Dense(11, fn.tanh)
    )
    params, x = drawn(net, (8,)), np.random.default_rng(1).standard_normal((3, 8))
    own = diagnostics.singular_values(net, params, x, layer=place)
    n = {(1, 1, 0): 7, -1: 11}.get(place, 9)

    def output(probe, x):
        inner = (None, (probe if place == (1, 1, 0) else None, None))
        inner = (probe, (None, None)) if place == (1, 0) else inner
        probes = {(0,): (probe, inner, None), -1: (None, inner, probe)}.get(place, (None, inner, None))
        return net.forward(params, x[None], probe=probes)[0][0]

    jacobians = jax.jit(jax.vmap(lambda x: jax.jacrev(output)(jnp.zeros((1, n)), x)))(x)[:, :, 0]
    expected = np.linalg.svd(np.asarray(jacobians), compute_uv=False)
    np.testing.assert_allclose(own, expected, rtol=1e-9, atol=1e-14)
    largest = diagnostics.singular_values(net, params, x, layer=place, k=2)
    np.testing.assert_allclose(largest, expected[:, :2], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda net, c, p, x, y: diagnostics.singular_values(net, p, x, layer=3),
            r"one of 3 layers, not a network, got 3",
        ),
        (
            lambda net, c, p, x, y: diagnostics.singular_values(net, p, x, k=2),
            r"expected no k for 4 outputs, got 2; leave k out",
        ),
        (
            lambda net, c, p, x, y: diagnostics.saturation(net[0], p[0], x),
            r"saturation: expected a network, got Dense\(7",
        ),
        (
            lambda net, c, p, x, y: diagnostics.activations(net, p[:1], x),
            r"parameters with 3 entries, one per layer, got 1 entries",
        ),
        (
            lambda net, c, p, x, y: diagnostics.saturation(net, p, x[:0]),
            r"at least one example, got x of shape \(0, 8\)",
        ),
        (
            lambda net, c, p, x, y: diagnostics.update_ratios(p[0], p[0]),
            r"update_ratios: expected .* tuple .* got dict",
        ),
        (lambda net, c, p, x, y: diagnostics.histograms(()), r"histograms: expected an entry for each layer, got none"),
        (
            lambda net, c, p, x, y: diagnostics.singular_values(fn.Network(net), (p,), x),
            r"expected a layer, not a network, got 0, which is Network.*; give the place of a layer in it, such as \(0, 0\)",
        ),
        (
            lambda net, c, p, x, y: diagnostics.singular_values(fn.Network(net), (p,), x, layer=(0, 1, 0)),
            r"one of 0 layers, not a network, got \(0, 1, 0\), where \(0, 1\) is Dense\(6, ",
        ),
        (
            lambda net, c, p, x, y: diagnostics.error_growth(fn.Residual(fn.Dense(8, fn.tanh)), c, BRANCH, x, x),
            r"error_growth: expected layers one after another, got Parallel\(.*; give one branch of it",
        ),
        (lambda net, c, p, x, y: diagnostics.error_growth(net[:1], c, p[:1], x, y), r"at least two layers"),
        (lambda net, c, p, x, y: diagnostics.learning_speed(net, c, p, x, y[:2]), r"y: expected"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(*case("sigmoid"))


@dataclasses.dataclass(frozen=True)
class Random(fn.Rule):
    """BP2 multiplies with other parameters, drawn like the layer's own: feedback alignment."""

    def init(self, key, layer, params, input_shape, n_top):
        return {"fixed": layer.init(key, input_shape)}

    def weights(self, layer, params, back):
        return back["fixed"]


def angle_of(one, other):
    """In degrees, by the arc cosine, in float64."""
    a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    sizes = np.linalg.norm(a), np.linalg.norm(b)
    return np.degrees(np.arccos(np.clip(a @ b / sizes[0] / sizes[1], -1, 1))), sizes[0] / sizes[1]


class TestAlignment:
    @pytest.mark.parametrize("name", ["softmax and dropout", *thorough("sigmoid")])
    def test_feedback_is_measured_against_backpropagation(self, name):
        net, cost, params, x, y = case(name)
        about = {"key": KEY, "weights": np.linspace(0.5, 2, 5)}
        feedback = drawn(net, (8,), seed=3)
        found = diagnostics.alignment(net, cost, params, x, y, feedback=feedback, **about)
        true = fn.backprop(net, cost, params, x, y, **about)
        ours = fn.backprop(net, cost, params, x, y, feedback=feedback, **about)
        for l in range(len(net)):
            angle, ratio = angle_of(ours.errors[l], true.errors[l])
            np.testing.assert_allclose([found.error_angle[l], found.error_ratio[l]], [angle, ratio], atol=1e-5)
            if params[l]:
                angle, ratio = angle_of(ours.gradients[l], true.gradients[l])
                np.testing.assert_allclose(
                    [found.gradient_angle[l], found.gradient_ratio[l]], [angle, ratio], atol=1e-5
                )
            else:
                assert np.isnan(found.gradient_angle[l])
                assert np.isnan(found.gradient_ratio[l])
        assert found.error_angle[0] > 20

    @pytest.mark.thorough
    def test_a_rule_is_measured_against_backpropagation_at_the_same_parameters(self):
        """In the order of the layers at the bottom; the rule's own arrays do not count among the gradients."""
        inner = fn.Network(fn.Dense(7, fn.tanh), fn.Dense(8, fn.tanh))
        net = fn.Network(
            fn.Residual(fn.Swapped(inner, Random())), fn.Repeat(fn.Dense(8, fn.tanh), 2), fn.Dense(4, fn.linear)
        )
        _, cost, _, x, y = case("sigmoid")
        params = drawn(net, (8,))
        of_inner = params[0][1][0]
        plain = fn.Network(fn.Residual(inner), *net[1:])
        true = fn.backprop(plain, cost, ((params[0][0], (of_inner["net"],)), *params[1:]), x, y)
        ours = fn.backprop(net, cost, params, x, y)
        found = diagnostics.alignment(net, cost, params, x, y)
        assert found.error_angle.shape == (6,)  # Identity, two of the inner network, two repetitions, the last
        (identity, (of_ours,)), (true_identity, (of_true,)) = ours.errors[0], true.errors[0]
        pairs = [(identity, true_identity), *zip(of_ours, of_true, strict=True)]
        for l, pair in enumerate(pairs):
            np.testing.assert_allclose([found.error_angle[l], found.error_ratio[l]], angle_of(*pair), atol=1e-5)
        pairs = zip(ours.gradients[0][1][0]["net"], true.gradients[0][1][0], strict=True)
        for l, pair in enumerate(pairs, 1):
            np.testing.assert_allclose([found.gradient_angle[l], found.gradient_ratio[l]], angle_of(*pair), atol=1e-5)
        assert found.error_angle[1] > 20
        np.testing.assert_allclose(found.error_angle[2:], 0, atol=1e-6)  # the swap is below them
        np.testing.assert_allclose(found.gradient_ratio[2:], 1, rtol=1e-12)

    @pytest.mark.parametrize("dtype", ["float32", *thorough("float64", "bfloat16")])
    @pytest.mark.parametrize("swap", [False, True])
    def test_without_a_rule_it_is_exactly_zero(self, swap, dtype):
        net, cost, _, x, y = case("sigmoid")
        net = fn.Network(fn.Swapped(net[:1], fn.Rule()), *net[1:]) if swap else net
        params = cast(drawn(net, (8,)), dtype)
        found = diagnostics.alignment(net, cost, params, x.astype(dtype), y.astype(dtype))
        assert found.error_angle.dtype == ("float64" if dtype == "float64" else "float32")
        for angles, ratios in (found[:2], found[2:]):
            np.testing.assert_array_equal(angles, 0)
            np.testing.assert_array_equal(ratios, 1)

    def test_the_angle_is_exact_near_0_and_180_and_for_any_size(self):
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((2, 50))
        b = b - a * (a @ b) / (a @ a)
        b = b * np.linalg.norm(a) / np.linalg.norm(b)
        for angle in (1e-9, 1e-4, 45, 90, 120, 180 - 1e-6):
            turned = np.cos(np.radians(angle)) * a + np.sin(np.radians(angle)) * b
            for scale in (1, 1e-180, 1e180):
                found, ratio = angle_and_ratio(jnp.asarray(turned), jnp.asarray(scale * a))
                np.testing.assert_allclose(found, angle, rtol=0, atol=1e-10)
                np.testing.assert_allclose(ratio * scale, 1, rtol=1e-12)
        assert angle_and_ratio(jnp.asarray(a), jnp.asarray(a))[0] == 0
        assert angle_and_ratio(jnp.asarray(a), jnp.asarray(-a))[0] == 180

    def test_nothing_to_compare_is_nan(self):
        a, zero, empty = jnp.ones(3), jnp.zeros(3), jnp.zeros(0)
        for one, other, ratio in ((zero, a, 0), (a, zero, np.inf), (zero, zero, np.nan), (empty, empty, np.nan)):
            found = angle_and_ratio(one, other)
            assert np.isnan(found[0])
            np.testing.assert_array_equal(found[1], ratio)

    @pytest.mark.parametrize("case", FEW, ids=str)
    def test_every_kind_of_layer_has_one(self, case):
        """With the network's own weights as feedback it is at 0° up to rounding, by itself exactly."""
        net, x = case.layer, case.inputs(3, float)
        params = case.params(float)
        shape = jax.eval_shape(lambda: run_forward(net, params, x, train=True, key=KEY)[0]).shape
        y = np.random.default_rng(2).standard_normal(shape)
        given = {"key": KEY}
        alone = diagnostics.alignment(net, fn.quadratic, params, x, y, **given)
        same = diagnostics.alignment(net, fn.quadratic, params, x, y, feedback=jax.tree.map(jnp.copy, params), **given)
        assert len(alone.error_angle) == len(list(walk(net, params)))
        np.testing.assert_array_equal(alone.error_angle, 0)
        for one, other in zip(alone, same, strict=True):
            np.testing.assert_allclose(other, one, atol=1e-6)
        swapped = fn.Swapped(net, Random())
        found = diagnostics.alignment(swapped, fn.quadratic, drawn(swapped, case.shape), x, y, **given)
        for one, other in zip(alone, found, strict=True):
            np.testing.assert_array_equal(np.isnan(one), np.isnan(other))

    @pytest.mark.thorough
    def test_watched_while_feedback_alignment_learns(self):
        net = fn.Swapped(fn.Network(fn.Dense(9, fn.tanh), fn.Dense(4, fn.softmax)), Random())
        x = jax.random.normal(KEY, (64, 8))
        y = jnp.argmax(x[:, :4], axis=1)

        def watch(params):
            return diagnostics.alignment(net, fn.log_likelihood, params, x, y)

        trained, history = fn.fit(
            net, fn.log_likelihood, net.init(jax.random.key(1), (8,)), (x, y), key=KEY, epochs=30, batch_size=16,
            optimizer=fn.sgd(0.5), watch=watch, progress=False,
        )  # fmt: skip
        assert isinstance(history.watched, diagnostics.Alignment)
        assert history.watched.error_angle.shape == (30, 2)
        for values, last in zip(history.watched, watch(trained), strict=True):
            np.testing.assert_allclose(values[-1], last, rtol=1e-6, atol=1e-6)
        assert history.watched.gradient_angle[-1, 0] < min(90, history.watched.gradient_angle[0, 0])

    @pytest.mark.thorough
    def test_sequences_with_a_mask(self):
        net = fn.Network(fn.Swapped(fn.RNN(3), Random()), fn.LastStep(), fn.Dense(2, fn.softmax))
        params, x = drawn(net, (4, 3)), np.random.default_rng(0).standard_normal((5, 4, 3))
        mask = np.arange(4) < np.array([1, 2, 3, 4, 4])[:, None]
        found = diagnostics.alignment(net, fn.log_likelihood, params, x, np.arange(5) % 2, mask=mask)
        assert found.error_angle[0] > 1  # through w_h
        np.testing.assert_allclose(found.error_angle[1:], 0, atol=1e-6)

    def test_bad_input(self):
        net, cost, params, x, y = case("sigmoid")
        with pytest.raises(
            ValueError, match=r"feedback: expected \[1\]\['b'\] of shape .* draw it like the parameters"
        ):
            diagnostics.alignment(net, cost, params, x, y, feedback=params[:1])
        with pytest.raises(ValueError, match="y: expected as many targets as there are examples"):
            diagnostics.alignment(net, cost, params, x, y[:2])
