"""An equation replaced: what must hold under every rule, and what each rule is."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.backpropagation import _value_and_grad
from fnnet.gradcheck.replaced import neutral
from fnnet.initializers import orthogonal, scaled_uniform, zeros
from fnnet.layers._swapped import unswapped
from fnnet.programs import program

from .cases import LAYERS, assert_agree, largest, params_of, thorough

KEY = jax.random.key(3)

RULES = [
    fn.FeedbackAlignment(),
    fn.SignSymmetry("uSF"),
    fn.SignSymmetry("brSF"),
    fn.SignSymmetry("frSF"),
    fn.KolenPollack(),
    fn.DirectFeedback(),
    fn.TargetPropagation(),
    fn.TargetPropagation(fn.tanh, beta=0.01),
    fn.EProp(),
    fn.Noise(0.1),
    fn.Clip(0.3),
]
FIXED = [fn.FeedbackAlignment(), fn.SignSymmetry("frSF"), fn.DirectFeedback()]
"""Rules whose arrays never change."""


SMALL = fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax))


def dense_net():
    return fn.Network(fn.Dense(6, fn.tanh), fn.Dropout(0.2), fn.Residual(fn.Dense(6, fn.tanh)), fn.Dense(3, fn.softmax))


def deep_net():
    """Sequences of integers through everything that holds layers."""
    inner = fn.Network(fn.Recompute(fn.Dense(4, fn.tanh)), fn.Repeat(fn.Residual(fn.Dense(4, fn.tanh)), 2))
    body = (
        fn.Embedding(5, 4),
        inner,
        fn.Bidirectional(fn.GRU(2)),
        fn.Dropout(0.2),
        fn.LayerNorm(),
        fn.RNN(4),
        fn.LastStep(),
    )
    return fn.Tied(fn.Network(*body, fn.Dense(5, fn.softmax, bias=False)), "0.w", "-1.w")


def data(m=6, shape=(5,), classes=3):
    rng = np.random.default_rng(0)
    return jax.device_put(rng.standard_normal((m, *shape))), jax.device_put(rng.integers(classes, size=m))


def tokens(m=6, steps=4):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.integers(5, size=(m, steps)), jnp.int32), jax.device_put(rng.integers(5, size=m))


def assert_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def backs(params):
    """The arrays of the rules, by their path."""
    found = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    return {path: leaf for path, leaf in found.items() if "['back']" in path}


def trained(net, params, xy, **options):
    options = {"epochs": 3, "batch_size": 2, "optimizer": fn.sgd(0.1), "key": KEY, "progress": False, **options}
    return fn.fit(net, fn.log_likelihood, params, xy, **options)


# What must hold under every rule.


@pytest.mark.parametrize("case", [c if c.name in ("Dense", "Network") else thorough(c)[0] for c in LAYERS], ids=str)
def test_without_a_rule_it_is_backpropagation_bit_for_bit(case):
    net, swapped = case.layer, fn.Swapped(case.layer, fn.Rule())
    params, x = case.params("float64"), case.inputs(4, "float64")
    own = {"net": params, "back": jax.tree.map(jnp.zeros_like, params_of(swapped, case.shape)["back"])}
    y = jax.device_put(np.random.default_rng(2).uniform(size=jax.eval_shape(net.apply, params, x).shape))
    true, ours = (fn.backprop(n, fn.quadratic, p, x, y, key=KEY) for n, p in ((net, params), (swapped, own)))
    same = assert_bits
    if "Repeat(" in repr(net):  # a loop in the compiled program, which rounds in its own way
        same = functools.partial(assert_agree, tolerance=1e-14, zero=True)
    same(jax.tree.leaves(ours.errors), jax.tree.leaves(true.errors))
    same(ours.gradients["net"], true.gradients)
    cost, gradients = fn.value_and_grad(swapped, fn.quadratic)(own, x, y, key=KEY)
    same((cost, gradients["net"]), fn.value_and_grad(net, fn.quadratic)(params, x, y, key=KEY))


def cut(net):
    """Parameters for which e-prop is backpropagation: nothing from step to step."""
    params = params_of(net, (4,))
    return jax.tree_util.tree_map_with_path(
        lambda path, w: jnp.zeros_like(w) if path[-1] == jax.tree_util.DictKey("w_h") else w, params
    )


NEUTRAL = [
    fn.FeedbackAlignment(), fn.SignSymmetry("frSF"), fn.KolenPollack(), fn.EProp(), fn.Clip(math.inf),
]  # fmt: skip


@pytest.mark.parametrize("rule", thorough(*NEUTRAL), ids=repr)
def test_with_the_weights_for_b_it_is_backpropagation_bit_for_bit(rule):
    net, (x, y) = fn.Swapped(deep_net(), rule), tokens()
    params = cut(net) if isinstance(rule, fn.EProp) else params_of(net, (4,))
    own = params if type(rule) in (fn.EProp, fn.Clip) else neutral(net, params)
    assert own is not None
    ours = fn.backprop(net, fn.log_likelihood, own, x, y, key=KEY)
    true = fn.backprop(unswapped(net), fn.log_likelihood, params, x, y, key=KEY)
    assert_bits(ours.errors, true.errors)
    assert_bits(ours.gradients["net"], true.gradients["net"])
    if type(rule) is fn.FeedbackAlignment:  # in one pass too, to rounding: a cell's is one of its own
        composed = fn.value_and_grad(net, fn.log_likelihood)(own, x, y, key=KEY)[1]
        assert_agree(composed["net"], true.gradients["net"], 1e-14)


@pytest.mark.parametrize("rule", [fn.FeedbackAlignment(), *thorough(fn.TargetPropagation())], ids=repr)
def test_with_the_weights_for_b_a_dense_network_has_the_true_errors(rule):
    net, (x, y) = fn.Swapped(dense_net(), rule), data()
    params = params_of(net, (5,))
    ours = fn.backprop(net, fn.log_likelihood, neutral(net, params), x, y, key=KEY)
    assert_bits(ours.errors, fn.backprop(unswapped(net), fn.log_likelihood, params, x, y, key=KEY).errors)


@pytest.mark.thorough
@pytest.mark.parametrize("rule", [r if r == fn.DirectFeedback() else thorough(r)[0] for r in RULES], ids=repr)
def test_in_one_pass_and_in_chunks_it_is_what_it_is_in_two(rule):
    deep = not isinstance(rule, fn.TargetPropagation)
    net, shape, (x, y) = (deep_net(), (4,), tokens()) if deep else (dense_net(), (5,), data())
    net = fn.Swapped(net, rule)
    params = params_of(net, shape)

    @jax.jit
    def every_way(params, x, y, key):
        ways = [fn.value_and_grad(net, fn.log_likelihood, micro_batch=size) for size in (None, 4)]
        true = fn.backprop(net, fn.log_likelihood, params, x, y, key=key)
        return true, [way(params, x, y, key=key) for way in ways]

    true, found = every_way(params, x, y, KEY)
    for cost, gradients in found:
        np.testing.assert_allclose(cost, true.cost, rtol=1e-15 * 4)
        for path, g in jax.tree_util.tree_leaves_with_path(gradients):
            right = dict(jax.tree_util.tree_leaves_with_path(true.gradients))[path]
            gap = largest(g - right)
            assert gap <= 4e-15 * max(largest(true.gradients), 1), f"{path}: {gap}"


@pytest.mark.thorough
def test_a_swap_leaves_the_key_of_the_network_alone():
    net, (x, y) = dense_net(), data()
    params = params_of(net, (5,))
    swapped = fn.Swapped(net, fn.Noise(0.1))
    own = params_of(swapped, (5,))
    assert_bits(own["net"], params)
    assert fn.backprop(swapped, fn.log_likelihood, own, x, y, key=KEY).cost == (
        fn.backprop(net, fn.log_likelihood, params, x, y, key=KEY).cost
    )


def test_an_equal_rule_compiles_nothing_new():
    (x, y), seen = data(), []
    for seed in range(2):
        net = fn.Swapped(dense_net(), fn.FeedbackAlignment(scaled_uniform()))
        fn.value_and_grad(net, fn.log_likelihood)(params_of(net, (5,), seed=seed), x, y, key=KEY)
        run = program(_value_and_grad, net, fn.log_likelihood, micro_batch="auto", positions=None, carry=False)
        seen.append((net, hash(net), run, run._cache_size()))
    assert seen[0] == seen[1]
    assert fn.Swapped(dense_net(), fn.FeedbackAlignment()) != seen[0][0]


def test_a_rule_for_a_part_of_a_network_only():
    first, inner, last = (
        fn.Dense(6, fn.tanh),
        fn.Network(fn.Dense(5, fn.tanh), fn.Dense(4, fn.tanh)),
        fn.Dense(3, fn.softmax),
    )
    net, (x, y) = fn.Network(first, fn.Swapped(inner, fn.FeedbackAlignment()), last), data()
    params = params_of(net, (5,))
    assert jax.tree.map(jnp.shape, params[1]["back"]) == ({"B_w": (5, 6)}, {"B_w": (4, 5)})
    true = fn.backprop(unswapped(net), fn.log_likelihood, params, x, y)
    ours = fn.backprop(net, fn.log_likelihood, params, x, y)
    assert_bits(ours.errors[1][1], true.errors[1][1])
    a1 = jnp.tanh(x @ params[0]["w"].T + params[0]["b"])
    a2 = jnp.tanh(a1 @ params[1]["net"][0]["w"].T + params[1]["net"][0]["b"])
    b1, b2 = (back["B_w"] for back in params[1]["back"])
    delta = (true.errors[1][1] @ b2) * (1 - a2**2)
    assert_agree(ours.errors[1][0], delta, 1e-14)
    assert_agree(ours.errors[0], (delta @ b1) * (1 - a1**2), 1e-14)
    assert largest(ours.errors[0] - true.errors[0]) > 0.01


def test_a_part_that_is_swapped_keeps_its_own_rule():
    net = fn.Swapped(
        fn.Network(fn.Dense(6, fn.tanh), fn.Swapped(fn.Dense(4, fn.tanh), fn.KolenPollack()), fn.Dense(3, fn.softmax)),
        fn.DirectFeedback(),
    )
    params, (x, y) = params_of(net, (5,)), data()
    assert jax.tree.map(jnp.shape, params["back"]) == ({"B": (3, 5)}, {}, {"B": (3, 4)})
    own = params["net"][1]["back"]["w"]
    ours = fn.backprop(net, fn.log_likelihood, params, x, y)
    a1 = jnp.tanh(x @ params["net"][0]["w"].T + params["net"][0]["b"])
    assert_agree(ours.errors[0], (ours.errors[1][0] @ own) * (1 - a1**2), 1e-14)
    assert_bits(ours.gradients["net"][1]["back"]["w"], ours.gradients["net"][1]["net"]["w"])


@pytest.mark.thorough
def test_a_network_that_is_swapped_already_keeps_its_rule():
    once, (x, y) = fn.Swapped(SMALL, fn.DirectFeedback()), data()
    twice, params = fn.Swapped(once, fn.Noise(1.0)), params_of(once, (5,))
    own = params_of(twice, (5,))
    assert_bits(own, {"net": params, "back": {}})
    ours, true = (fn.backprop(n, fn.log_likelihood, p, x, y, key=KEY) for n, p in ((twice, own), (once, params)))
    assert_bits(ours.errors, (true.errors,))
    assert_bits(ours.gradients["net"], true.gradients)
    assert by_equation(audited(twice, x, y), "replaced") == {("0.0 Dense", "propagate"), ("0.1 Dense", "propagate")}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "around",
    [
        lambda part: fn.Repeat(part, 2),
        fn.Recompute,
        lambda part: fn.Tied(fn.Network(part, fn.Dense(5, fn.tanh)), "0.net.w", "1.w"),
        lambda part: fn.Parallel(fn.Identity(), part),
    ],
    ids=["repeat", "recompute", "tied", "parallel"],
)
def test_a_swap_inside_of_another_composite(around):
    net = fn.Network(around(fn.Swapped(fn.Dense(5, fn.tanh), fn.FeedbackAlignment())), fn.Dense(3, fn.softmax))
    (x, y), params = data(), params_of(net, (5,))
    two = fn.backprop(net, fn.log_likelihood, params, x, y).gradients
    assert_agree(fn.value_and_grad(net, fn.log_likelihood)(params, x, y)[1], two, 1e-14, zero=True)
    assert largest(two[-1]["w"] - fn.backprop(unswapped(net), fn.log_likelihood, params, x, y).gradients[-1]["w"]) == 0
    assert audited(net, x, y).ok


@pytest.mark.parametrize("dtype", ["bfloat16", *thorough("float32", "float16")])
@pytest.mark.parametrize("rule", [fn.FeedbackAlignment(), *thorough(*RULES[1:])], ids=repr)
def test_every_dtype(rule, dtype):
    net, (x, y) = fn.Swapped(dense_net(), rule), data()
    params = params_of(net, (5,), dtype)
    x = x.astype(dtype)
    cost, gradients = fn.value_and_grad(net, fn.log_likelihood)(params, x, y, key=KEY)
    wide = jax.tree.map(lambda p: p.astype("float64"), params)
    true = fn.value_and_grad(net, fn.log_likelihood)(wide, x.astype("float64"), y, key=KEY)[1]
    assert {g.dtype.name for g in jax.tree.leaves(gradients)} == {dtype}
    assert bool(jnp.isfinite(cost))
    if rule.draws:  # other numbers in another dtype
        return
    loose = {"float32": 1e-4, "float16": 0.05, "bfloat16": 0.3}[dtype]
    assert largest(jax.tree.map(lambda g, t: g.astype("float64") - t, gradients, true)) <= loose * largest(true)


def test_under_jit_and_vmap():
    net, (x, y) = fn.Swapped(dense_net()[2:], fn.FeedbackAlignment()), data(shape=(6,))
    of = fn.value_and_grad(net, fn.log_likelihood)
    many = jax.vmap(lambda key: net.init(key, (6,)))(jax.random.split(KEY, 2))
    _, gradients = jax.jit(jax.vmap(of, (0, None, None)))(many, x, y)
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], (many, gradients))
        assert_agree(one[1]["net"], of(one[0], x, y)[1]["net"], 1e-14)


@pytest.mark.thorough
def test_as_an_ordinary_function():
    net, (x, y) = fn.Swapped(dense_net()[2:], fn.FeedbackAlignment()), data(shape=(6,))
    params, f = params_of(net, (6,)), fn.as_function(net)
    gradients = jax.grad(lambda p: -jnp.mean(jnp.log(f(p, x))[jnp.arange(6), y]))(params)
    assert_agree(gradients["net"], fn.backprop(net, fn.log_likelihood, params, x, y).gradients["net"], 1e-13)
    assert largest(gradients["back"]) == 0


# Its arrays are parameters.


@pytest.mark.parametrize(
    "optimizer", [fn.adamw(0.1, weight_decay=0.1), *thorough(fn.sgd(0.1, momentum=0.9), fn.adam(0.1))]
)
@pytest.mark.parametrize("rule", [FIXED[0], *thorough(*FIXED[1:])], ids=repr)
def test_nothing_moves_fixed_arrays(rule, optimizer):
    net = fn.Swapped(fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax)), rule)
    params, xy = params_of(net, (5,)), data()
    assert all(largest(g) == 0 for g in backs(fn.backprop(net, fn.log_likelihood, params, *xy).gradients).values())
    for penalty in (fn.L2(5.0), fn.L1(5.0)):
        after, _ = trained(net, params, xy, penalty=penalty, optimizer=optimizer)
        assert_bits(backs(after), backs(params))
        assert largest(after["net"][0]["w"] - params["net"][0]["w"]) > 1e-3


@pytest.mark.thorough
def test_other_libraries_optimisers_leave_fixed_arrays_alone():
    optax = pytest.importorskip("optax")
    net = fn.Swapped(fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax)), fn.FeedbackAlignment())
    params, xy = params_of(net, (5,)), data()
    with jax.numpy_dtype_promotion("standard"):  # optax promotes
        after, _ = trained(net, params, xy, optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)))
    assert_bits(backs(after), backs(params))


def test_a_layer_that_starts_at_zero_has_a_b_that_does_not():
    net = fn.Swapped(
        fn.Network(fn.Dense(4, fn.tanh, zeros()), fn.Dense(3, fn.softmax, zeros())), fn.FeedbackAlignment()
    )
    params = net.init(KEY, (5,))
    assert largest(params["net"]) == 0
    assert all(largest(b) > 0 for b in backs(params).values())


@pytest.mark.thorough
def test_a_sweep_draws_arrays_for_each_seed():
    net, xy = fn.Swapped(fn.Network(fn.Dense(4, fn.tanh), fn.Dense(3, fn.softmax)), fn.FeedbackAlignment()), data()
    of_runs = {"epochs": 2, "batch_size": 3, "optimizers": [fn.sgd(0.1)], "progress": False}
    swept = fn.sweep(net, fn.log_likelihood, xy, keys=jax.random.split(KEY, 2), **of_runs)
    b = swept.params["back"][1]["B_w"].reshape(2, 3, 4)
    assert largest(b[0] - b[1]) > 0
    init_key, _ = jax.random.split(jax.random.split(KEY, 2)[1])
    assert_bits(b[1], net.init(init_key, (5,))["back"][1]["B_w"])


def test_saved_and_loaded(tmp_path):
    net = fn.Swapped(dense_net(), fn.KolenPollack())
    params = params_of(net, (5,))
    fn.save(tmp_path / "params", params)
    assert_bits(fn.load(tmp_path / "params", params), params)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "rule", [fn.KolenPollack(), *thorough(fn.SignSymmetry("brSF"), fn.TargetPropagation())], ids=repr
)
def test_training_resumes_bit_for_bit(rule):
    net, xy = fn.Swapped(dense_net(), rule), data()
    params = params_of(net, (5,))
    whole, _ = trained(net, params, xy, epochs=4, optimizer=fn.adam(0.01))
    half, history = trained(net, params, xy, epochs=2, optimizer=fn.adam(0.01))
    rest, _ = trained(net, half, xy, epochs=4, optimizer=fn.adam(0.01), resume=history.state)
    assert_bits(rest, whole)


# What each rule is.


def test_feedback_alignment_is_what_feedback_does():
    net, (x, y) = dense_net(), data()
    swapped = fn.Swapped(net, fn.FeedbackAlignment(orthogonal(0.5)))
    params = params_of(swapped, (5,))
    feedback = jax.tree.map(jnp.zeros_like, params["net"])
    b = params["back"]
    feedback = (
        {"w": b[0]["B_w"], "b": feedback[0]["b"]}, {}, ({}, ({"w": b[2][1][0]["B_w"], "b": feedback[2][1][0]["b"]},)),
        {"w": b[3]["B_w"], "b": feedback[3]["b"]},
    )  # fmt: skip
    true = fn.backprop(net, fn.log_likelihood, params["net"], x, y, key=KEY, feedback=feedback)
    ours = fn.backprop(swapped, fn.log_likelihood, params, x, y, key=KEY)
    assert_bits(ours.errors, true.errors)
    assert_bits(ours.gradients["net"], true.gradients)


@pytest.mark.thorough
def test_b_is_drawn_as_weights_are():
    net = fn.Swapped(
        fn.Network(fn.Conv(40, 5, fn.tanh), fn.Flatten(), fn.Dense(300, fn.tanh)),
        fn.FeedbackAlignment(scaled_uniform()),
    )
    back = net.init(KEY, (12, 12, 20))["back"]
    for b, n_in in ((back[0]["B_w"], 500), (back[2]["B_w"], 8 * 8 * 40)):
        bound = n_in**-0.5
        assert 0.99 * bound < largest(b) <= bound
        np.testing.assert_allclose(jnp.std(b), bound / 3**0.5, rtol=0.02)
    b = fn.Swapped(fn.Dense(300, fn.tanh), fn.DirectFeedback(scaled_uniform())).init(KEY, (20, 20))["back"]["B"]
    assert b.shape == (300, 20, 20)
    assert 0.99 / 20 < largest(b) <= 1 / 20


def test_sign_symmetry():
    net, (x, y) = fn.Network(fn.Dense(6, fn.tanh), fn.Dense(3, fn.softmax)), data()
    for kind in ("uSF", "brSF", "frSF"):
        swapped = fn.Swapped(net, fn.SignSymmetry(kind))
        params = swapped.init(KEY, (5,))
        w = params["net"][1]["w"]
        ours = fn.backprop(swapped, fn.log_likelihood, params, x, y, key=KEY)
        sent = ours.errors[0] / (1 - jnp.tanh(x @ params["net"][0]["w"].T) ** 2)
        if kind == "uSF":
            expected = (2 / 9) ** 0.5 * jnp.sign(w)
            assert_agree(sent, ours.errors[1] @ expected, 1e-13)
        elif kind == "frSF":
            m = params["back"][1]["M_w"]
            assert float(m.min()) > 0
            assert_agree(sent, ours.errors[1] @ (m * jnp.sign(w)), 1e-13)
        else:
            again, other = (
                fn.backprop(swapped, fn.log_likelihood, params, x, y, key=jax.random.key(k)) for k in (3, 4)
            )
            assert_bits(again.errors, ours.errors)
            assert largest(other.errors[0] - ours.errors[0]) > 1e-3
            assert jax.tree.leaves(params["back"]) == []


def test_redrawn_magnitudes_are_those_of_the_whole_batch():
    net, (x, y) = fn.Swapped(fn.Dense(3, fn.softmax), fn.SignSymmetry("brSF")), data()
    net = fn.Network(fn.Dense(6, fn.tanh), net)
    params = params_of(net, (5,))
    whole, chunks = (
        fn.value_and_grad(net, fn.log_likelihood, micro_batch=size)(params, x, y, key=KEY)[1] for size in (None, 1)
    )
    assert_agree(chunks[0], whole[0], 1e-14)


@pytest.mark.thorough
def test_the_gap_of_kolen_and_pollack():
    # w and B take the same step and decay alike: after each step the gap is (1 − ηλ/N) times what it was.
    net = fn.Swapped(
        fn.Network(fn.Dense(6, fn.tanh), fn.RNN(4), fn.LastStep(), fn.Dense(3, fn.softmax)), fn.KolenPollack()
    )
    (x, y), params = data(shape=(3, 5)), params_of(net, (3, 5))

    def gap(params):
        net, back = params["net"], params["back"]
        return [net[i][name] - b for i in (0, 1, 3) for name, b in back[i].items()]

    eta, lam, epochs = 0.1, 5.0, 5
    after, _ = trained(net, params, (x, y), epochs=epochs, batch_size=3, optimizer=fn.sgd(eta), penalty=fn.L2(lam))
    factor = (1 - eta * lam / len(x)) ** (epochs * 2)
    for now, before in zip(gap(after), gap(params), strict=True):
        np.testing.assert_allclose(now, factor * before, rtol=0, atol=4e-15)
    after, _ = trained(net, params, (x, y), batch_size=3)
    for now, before in zip(gap(after), gap(params), strict=True):
        np.testing.assert_allclose(now, before, rtol=0, atol=4e-15)


def test_direct_feedback_on_a_linear_network():
    # δ^L through the product of the weights between is what backpropagation sends.
    net = fn.Network(*(fn.Dense(n, fn.linear) for n in (6, 5, 4, 3)))
    swapped, (x, _) = fn.Swapped(net, fn.DirectFeedback()), data()
    params, y = params_of(net, (5,)), jnp.ones((6, 3))
    b = [functools.reduce(jnp.matmul, [p["w"] for p in reversed(params[i:])]) for i in range(4)]
    own = {"net": params, "back": tuple({"B": product} for product in b)}
    true, ours = fn.backprop(net, fn.quadratic, params, x, y), fn.backprop(swapped, fn.quadratic, own, x, y)
    assert_agree(ours.gradients["net"], true.gradients, 2e-15)
    assert_agree(ours.errors, true.errors, 2e-15)


def test_direct_feedback_skips_what_is_between():
    net, (x, y) = fn.Swapped(dense_net(), fn.DirectFeedback()), data()
    params = params_of(net, (5,))
    ours = fn.backprop(net, fn.log_likelihood, params, x, y, key=KEY)
    top, b = ours.errors[3], params["back"]
    assert_agree(ours.errors[2][0], top @ b[3]["B"], 1e-14)
    of_steps = fn.Swapped(fn.Network(fn.RNN(4), fn.Dense(3, fn.softmax)), fn.DirectFeedback())
    (x, _), p = data(shape=(4, 5)), params_of(of_steps, (4, 5))
    y = jnp.zeros((6, 4), int)
    _, (below, top), _ = fn.backprop(of_steps, fn.log_likelihood, p, x, y)
    h = of_steps.net[0].apply(p["net"][0], x)
    w_h = p["net"][0]["w_h"]
    da, delta = jnp.einsum("mtj,jtk->mtk", top, p["back"][1]["B"]), jnp.zeros((6, 4))
    for t in reversed(range(4)):
        delta = (da[:, t] + delta @ w_h) * (1 - h[:, t] ** 2)
        assert_agree(below[:, t], delta, 1e-13)


def conv_net():
    return fn.Network(
        fn.Conv(3, 2, fn.tanh), fn.MaxPool(2), fn.Conv(2, 2, fn.tanh, 1, 1), fn.Flatten(), fn.Dense(3, fn.softmax)
    )


@pytest.mark.parametrize(
    ("net", "shape"),
    [(SMALL, (5,)), pytest.param(conv_net(), (7, 5, 2), marks=pytest.mark.thorough)],
    ids=["dense", "conv"],
)
@pytest.mark.parametrize("activation", [fn.tanh, *thorough(fn.linear, fn.sigmoid)], ids=repr)
def test_target_propagation(net, shape, activation):
    beta, (x, y) = 0.1, data(shape=shape)
    swapped = fn.Swapped(net, fn.TargetPropagation(activation, beta))
    params = jax.tree.map(lambda p: p + 0.1, params_of(swapped, shape))
    layers, net_params, back = swapped.net, params["net"], params["back"]

    def inverse(layer, b, a_in, z):
        """τ(Pz + c), P the transpose of the layer's product with V."""
        product = lambda a: layer.forward({"w": b["V"], "b": jnp.zeros(b["V"].shape[-1 if a.ndim > 2 else 0])}, a)[1][1]  # noqa: E731
        return activation(jax.vjp(product, a_in)[1](z)[0] + b["c"])

    a, at = x, []
    for layer, p in zip(layers, net_params, strict=True):
        a_out, cache = fn.layers._layer.run_forward(layer, p, a)
        at.append((a, cache))
        a = a_out

    def missed(back):
        of_layers = (
            jnp.sum((inverse(layer, b, a, cache[1]) - a) ** 2)
            for layer, b, (a, cache) in zip(layers, back, at, strict=True)
            if b and isinstance(layer, fn.Dense | fn.Conv)
        )
        return sum(of_layers) / 2 / len(x)

    ours = fn.backprop(swapped, fn.log_likelihood, params, x, y)
    assert_agree(ours.gradients["back"], jax.grad(missed)(back), 1e-12)
    a_in, (_, z, _) = at[-1]
    delta = ours.errors[-1]
    sent = (inverse(layers[-1], back[-1], a_in, z) - inverse(layers[-1], back[-1], a_in, z - beta * delta)) / beta
    assert_agree(ours.errors[-2], sent if isinstance(net[-2], fn.Flatten) else sent * (1 - a_in**2), 1e-11)


def step_of(cell):
    """(p, x, h, s) -> (h_t, s_t) of one example, where h enters through w_h and s is what the cell hands on by itself."""

    def rnn(p, x, h, s):
        return jnp.tanh(p["w_x"] @ x + p["w_h"] @ h + p["b"]), 0 * s

    def lstm(p, x, h, s):
        i, f, g, o = jnp.split(p["w_x"] @ x + p["w_h"] @ h + p["b"], 4)
        c = jax.nn.sigmoid(f) * s + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def gru(p, x, h, s):
        (z_r, z_u, z_n), (q_r, q_u, q_n) = (jnp.split(q, 3) for q in (p["w_x"] @ x + p["b"], p["w_h"] @ h))
        r, u = jax.nn.sigmoid(z_r + q_r), jax.nn.sigmoid(z_u + q_u)
        new = (1 - u) * jnp.tanh(z_n + r * (q_n + p["b_h"])) + u * s
        return new, new

    return {fn.RNN: rnn, fn.LSTM: lstm, fn.GRU: gru}[type(cell)]


@pytest.mark.parametrize("cell", [fn.LSTM(3), *thorough(fn.RNN(3), fn.GRU(3))], ids=repr)
def test_eprop_is_what_eligibility_traces_compute(cell):
    (x, _), m, steps = data(2, (4, 2)), 2, 4
    net = fn.Swapped(cell, fn.EProp())
    params = params_of(net, (4, 2))
    da = jax.device_put(np.random.default_rng(5).standard_normal((m, steps, 3)))
    _, cache = net.forward(params, x)
    _, ours = net.backward(params, cache, da)
    step = jax.jit(lambda *args: (step_of(cell)(*args), jax.jacfwd(step_of(cell), (0, 3))(*args)))
    p = params["net"]
    total = jax.tree.map(jnp.zeros_like, p)
    for i in range(m):
        h = s = jnp.zeros(3)
        trace = jax.tree.map(lambda w: jnp.zeros((3, *w.shape)), p)  # ∂s_t/∂p, carried forwards in time
        for t in range(steps):
            (h, s), ((h_p, h_s), (s_p, s_s)) = step(p, x[i, t], h, s)
            total = jax.tree.map(
                lambda g, direct, e, h_s=h_s, l=da[i, t]: g + jnp.tensordot(l, direct + jnp.tensordot(h_s, e, 1), 1),
                total,
                h_p,
                trace,
            )
            trace = jax.tree.map(lambda direct, e, s_s=s_s: direct + jnp.tensordot(s_s, e, 1), s_p, trace)
    assert_agree(ours["net"], jax.tree.map(lambda g: g / m, total), 4e-15)


@pytest.mark.parametrize("rule", [fn.Noise(0.1), fn.TargetPropagation(fn.tanh)], ids=repr)
def test_examples_of_weight_0_count_for_nothing(rule):
    net, (x, y) = fn.Swapped(SMALL, rule), data()
    params, weights = params_of(net, (5,)), jnp.where(jnp.arange(6) < 4, 1.5, 0)
    others = x.at[4:].set(jnp.asarray([[7.0], [jnp.nan]]))
    ours, theirs = (
        fn.value_and_grad(net, fn.log_likelihood)(params, a, y, key=KEY, weights=weights)[1] for a in (x, others)
    )
    assert_bits(ours, theirs)


def test_noise_and_clip():
    net, (x, y) = fn.Network(fn.Dense(6, fn.linear), fn.Dense(3, fn.softmax)), data()
    params = params_of(net, (5,))

    def below(rule, key=KEY):
        swapped = fn.Swapped(net, rule)
        own = {"net": params, "back": params_of(swapped, (5,))["back"]}
        return fn.backprop(swapped, fn.log_likelihood, own, x, y, key=key).errors[0]

    true = below(fn.Rule())
    noise = (below(fn.Noise(0.5)) - true) / 0.5
    assert 0.5 < float(jnp.std(noise)) < 1.5
    assert largest(noise - (below(fn.Noise(0.5), jax.random.key(9)) - true) / 0.5) > 0.1
    norms = jnp.linalg.norm(true, axis=1, keepdims=True)
    bound = float(jnp.median(norms))
    assert_agree(below(fn.Clip(bound)), true * jnp.minimum(1, bound / norms), 1e-14)
    clipped = fn.Swapped(net, fn.Clip(1.0))
    _, cache = clipped.forward({"net": params, "back": ({}, {})}, x)
    below_zero = clipped.error({"net": params, "back": ({}, {})}, cache, jnp.zeros((6, 3)))
    assert largest(below_zero) == 0


# A rule of one's own.


@dataclasses.dataclass(frozen=True)
class Sparse(fn.Rule):
    """BP2 through the weights that a random mask keeps; the mask learns nothing."""

    keep: float

    def init(self, key, layer, params, input_shape, n_top):
        return (
            {"kept": jax.random.bernoulli(key, self.keep, params["w"].shape).astype(params["w"].dtype)}
            if "w" in params
            else {}
        )

    def weights(self, layer, params, back):
        return {**params, "w": params["w"] * back["kept"]} if back else params


def test_a_rule_of_ones_own():
    net, (x, y) = fn.Swapped(dense_net(), Sparse(0.5)), data()
    params = params_of(net, (5,))
    ours = fn.backprop(net, fn.log_likelihood, params, x, y, key=KEY)
    assert_agree(ours.errors[2][0], ours.errors[3] @ (params["net"][3]["w"] * params["back"][3]["kept"]), 1e-14)


class Summed(fn.KolenPollack):
    def learn(self, layer, params, back, cache, delta):
        return jax.tree.map(lambda g: len(delta) * g, super().learn(layer, params, back, cache, delta))


class Whole(fn.KolenPollack):
    def learn(self, layer, params, back, cache, delta):
        return layer.gradients(params, cache, delta)


class Narrow(fn.Rule):
    def propagate(self, layer, params, back, cache, delta, top):
        return delta


class Thin(fn.Rule):
    def weights(self, layer, params, back):
        return {"w": params["w"]} if "w" in params else params


@fn.layer
class LeftLoop(fn.Dense):
    """Its twin for loops is wrong."""

    def in_loop(self):
        return Uniform(self.n_out, self.activation)


@fn.layer
class Uniform(fn.Dense):
    """Its gradient is wrong."""

    def gradients(self, params, cache, delta):
        grads = super().gradients(params, cache, delta)
        return {**grads, "w": 2 * grads["w"]}


@fn.layer
class Crossed(fn.Dense):
    """Its BP2 is wrong."""

    def propagate(self, params, cache, delta):
        return -super().propagate(params, cache, delta)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda x, y: fn.Swapped(jnp.tanh, fn.Rule()), r"Swapped\(.*expected a layer whose equation is repl"),
        (lambda x, y: fn.Swapped(SMALL, fn.FeedbackAlignment), r"expected an fn\.Rule, got <class.*FeedbackAlignment\(\)"),
        (lambda x, y: fn.Swapped(SMALL, "FA"), r"expected an fn\.Rule, got 'FA'; make one"),
        (lambda x, y: fn.FeedbackAlignment(0.1), r"FeedbackAlignment\(weight_init=0\.1\): expected an initialiser, got 0\.1"),
        (lambda x, y: fn.DirectFeedback("normal"), r"DirectFeedback\(.*expected an initialiser, got 'normal'"),
        (lambda x, y: fn.KolenPollack(None), r"KolenPollack\(.*expected an initialiser, got None"),
        (lambda x, y: fn.SignSymmetry("SF"), r"expected a kind \"uSF\", \"brSF\" or \"frSF\", got 'SF'"),
        (lambda x, y: fn.SignSymmetry(weight_init=1), r"SignSymmetry\(.*expected an initialiser, got 1"),
        (lambda x, y: fn.TargetPropagation("tanh"), r"expected an fn\.Activation, got 'tanh'; .*fn\.tanh"),
        (lambda x, y: fn.TargetPropagation(beta=0), r"expected a positive beta, got 0; give beta as a number"),
        (lambda x, y: fn.TargetPropagation(weight_init=1), r"TargetPropagation\(.*expected an initialiser"),
        (lambda x, y: fn.Noise(-1.0), r"Noise\(-1\.0\): expected a scale of 0 or more, got -1\.0"),
        (lambda x, y: fn.Noise(float("nan")), r"expected a scale of 0 or more, got nan"),
        (lambda x, y: fn.Clip(0), r"Clip\(0\): expected a positive bound, got 0"),
        (lambda x, y: fn.Clip(True), r"expected a positive bound, got True"),
        (lambda x, y: run(fn.Swapped(SMALL, fn.Noise(0.1)), x, y), r"layer 0 Dense\(4, tanh\): expected a key, since Noise"),
        (lambda x, y: run(fn.Swapped(SMALL, fn.SignSymmetry("brSF")), x, y), r"a key, since SignSymmetry\(kind='brSF'\)"),
        (lambda x, y: run(fn.Swapped(fn.Residual(fn.Dense(5, fn.tanh)), fn.DirectFeedback()), x, x, fn.quadratic),
         r"layer 1\.0 Dense.*expected the error of one last layer, for DirectFeedback, got an output made of several; end"),
        (lambda x, y: run(fn.Swapped(fn.Network(fn.RNN(4), fn.LSTM(3)), fn.DirectFeedback()), x[:, None], jnp.ones((6, 1, 3)),
                          fn.quadratic), r"expected δ\^L of shape \(m, 3\) or \(m, 1, 3\), got \(6, 1, 12\)"),
        (lambda x, y: fn.Swapped(fn.Network(fn.Dense(3, fn.tanh), fn.GRU(3)), fn.TargetPropagation()).init(KEY, (4, 5)),
         r"layer 1 GRU\(3\): expected dense and convolutional layers, for Targ.*, got GRU; .*Swapped\(b, rule\)"),
        (lambda x, y: run(fn.Swapped(SMALL, Narrow()), x, y), r"an error of shape \(6, 4\).*got \(6, 3\); mend propagate"),
        (lambda x, y: run(fn.Swapped(SMALL, Thin()), x, y), r"a pytree of shapes \{.*from weights, got .*; mend weights"),
        (lambda x, y: run(fn.Swapped(SMALL, Whole()), x, y), r"a pytree of shapes \{.*from learn, got .*; mend learn of"),
        (lambda x, y: fn.Swapped(SMALL, fn.Rule()).apply(SMALL.init(KEY, (5,)), x), r"parameters with the keys net and"),
        (lambda x, y: fn.Swapped(SMALL, fn.Rule()).apply({"net": (), "back": ()}, x), r"expected parameters with 2 entries"),
    ],
)  # fmt: skip
def test_bad_input_is_told(act, message):
    with pytest.raises(fn.LayerError, match=message):
        act(*data())


def run(net, x, y, cost=fn.log_likelihood):
    return fn.backprop(net, cost, params_of(net, x.shape[1:]), x, y)


# The audit.


def audited(net, x, y, **options):
    return fn.compare_gradients(net, fn.log_likelihood, params_of(net, x.shape[1:]), x, y, key=KEY, **options)


def by_equation(report, verdict):
    return {(row.layer, row.equation) for row in report.rows if row.verdict == verdict}


def test_the_audit_shows_what_is_replaced_and_judges_the_rest():
    net, (x, y) = fn.Swapped(SMALL, fn.FeedbackAlignment()), data()
    report = audited(net, x, y)
    report.raise_if_failed()
    assert by_equation(report, "replaced") == {("0 Dense", "propagate"), ("1 Dense", "propagate")}
    (row,) = (row for row in report.rows if (row.layer, row.verdict) == ("1 Dense", "replaced"))
    params = params_of(net, (5,))
    delta = fn.backprop(net, fn.log_likelihood, params, x, y).errors[1]
    ours, true = (np.ravel(delta @ w) for w in (params["back"][1]["B_w"], params["net"][1]["w"]))
    np.testing.assert_allclose(row.ratio, np.linalg.norm(ours) / np.linalg.norm(true), rtol=1e-12)
    cosine = ours @ true / np.linalg.norm(ours) / np.linalg.norm(true)
    np.testing.assert_allclose(row.angle, np.degrees(np.arccos(cosine)), rtol=1e-9)
    assert f"1 Dense, propagate: by FeedbackAlignment(): {row.angle:.1f}° from the true one" in str(report)
    assert "2 replaced: another equation is used there" in str(report)
    leaves = {(row.layer, row.leaf) for row in report.rows if row.equation == "gradients"}
    assert leaves == {("0 Dense", "['w']"), ("0 Dense", "['b']"), ("1 Dense", "['w']"), ("1 Dense", "['b']")}
    assert {row.leaf for row in report.rows if row.layer == "network"} >= {"B := w", "in one pass", "as fit runs it"}


@pytest.mark.parametrize("rule", [fn.DirectFeedback(), *thorough(*RULES)], ids=repr)
@pytest.mark.parametrize("wrong", [Uniform, *thorough(Crossed)])
def test_a_mistake_inside_is_found_as_ever(rule, wrong):
    equation, leaf, hint = (
        ("gradients", "['w']", "a constant factor 2") if wrong is Uniform else ("propagate", "", "sign")
    )
    inner = fn.Network(fn.Dense(5, fn.tanh), wrong(4, fn.tanh), fn.Dense(3, fn.softmax))
    report = audited(fn.Swapped(inner, rule), *data())
    first = report.rows[0]
    assert (first.layer, first.equation, first.leaf, first.verdict) == (
        f"1 {wrong.__name__}",
        equation,
        leaf,
        "fail",
    )
    assert hint in first.hint
    assert bool(by_equation(report, "replaced")) == (rule != fn.EProp())


@pytest.mark.parametrize("rule", thorough(*RULES), ids=repr)
def test_no_rule_raises_an_alarm(rule):
    deep = not isinstance(rule, fn.TargetPropagation)
    net, (x, y) = (deep_net(), tokens()) if deep else (conv_net(), data(shape=(7, 5, 2)))
    report = audited(fn.Swapped(net, rule), x, y)
    assert report.ok, report
    assert by_equation(report, "replaced")


@pytest.mark.thorough
def test_only_what_a_rule_changes_is_replaced():
    net = fn.Swapped(fn.Network(fn.Dense(4, fn.tanh), fn.RNN(3), fn.LastStep(), fn.Dense(3, fn.softmax)), fn.EProp())
    (x, y) = data(shape=(3, 5))
    report = audited(net, x, y)
    assert report.ok
    assert by_equation(report, "replaced") == {("1 RNN", "error")}
    params = params_of(net, (3, 5))
    assert by_equation(fn.check_layer(net, params, x), "replaced") == {("1 RNN", "error")}


@pytest.mark.thorough
def test_a_mistake_in_the_twin_for_loops_is_not_the_rules():
    inner = fn.Network(LeftLoop(4, fn.tanh), fn.Dense(3, fn.softmax))
    report = audited(fn.Swapped(inner, fn.FeedbackAlignment()), *data())
    assert {(row.layer, row.equation) for row in report.rows if row.verdict == "fail"} == {
        ("0 LeftLoop", "in_loop gradients")
    }
    assert ("network", "backward") in by_equation(report, "consequence")


def test_a_rule_whose_methods_disagree_fails():
    net = fn.Swapped(SMALL, Summed())
    report = audited(net, *data())
    first = report.rows[0]
    assert (first.layer, first.leaf, first.verdict) == ("network", "as fit runs it", "fail")
    assert "learn a mean over the batch" in first.hint


def test_a_surrogate_is_replaced_and_the_rest_is_judged():
    net = fn.Network(fn.Dense(5, fn.step.with_surrogate(fn.sigmoid)), fn.Dense(3, fn.softmax))
    report = audited(net, *data())
    report.raise_if_failed()
    assert by_equation(report, "replaced") == {("0 Dense", "error")}
    assert ("0 Dense", "error") not in by_equation(report, "pass")
    assert "0 Dense, error: the derivative of sigmoid in place of that of step" in str(report)


@pytest.mark.thorough
def test_a_mistake_beside_a_surrogate_is_found_as_ever():
    wrong = fn.Network(Uniform(5, fn.step.with_surrogate(fn.sigmoid)), fn.Dense(3, fn.softmax))
    row = audited(wrong, *data()).rows[0]
    assert (row.layer, row.leaf, row.verdict) == ("0 Uniform", "['w']", "fail")
