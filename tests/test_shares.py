"""Every example's share against autodiff, one example at a time: gradients, norms, moments, inner products, clipping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._layer import run_forward

from .cases import (
    FEW,
    LAYERS,
    TOLERANCE,
    Case,
    assert_agree,
    cast,
    gpt,
    gpt_block,
    largest,
    normal,
    params_of,
    thorough,
)

M, KEY = 3, jax.random.key(3)


def rows_of(shares, m=M):
    """g_x as rows (m, n_parameters)."""
    leaves = [np.asarray(leaf, np.float64).reshape(m, -1) for leaf in jax.tree.leaves(shares)]
    return np.concatenate(leaves, axis=1) if leaves else np.zeros((m, 0))


def agree(ours, theirs, tolerance=1e-12):
    """No entry of an array further than tolerance times the reference's largest."""
    theirs = np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    assert largest(np.asarray(ours, np.float64) - theirs) <= tolerance * largest(theirs)


def of_a_layer(case: Case, dtype="float64"):
    """(every example's quantities by hand, g_x by autodiff) of Σ (a_out ⊙ r), for a given r, while training."""
    layer, params, x = case.layer, case.params(dtype), case.inputs(M, dtype)
    shape = jax.eval_shape(lambda p, x: run_forward(layer, p, x, key=KEY, train=True)[0], params, x).shape
    da = jnp.asarray(np.random.default_rng(5).standard_normal(shape), dtype)

    @jax.jit
    def by_hand(params, x, da):
        _, cache = run_forward(layer, params, x, key=KEY, train=True)
        delta = layer.error(params, cache, da)
        methods = layer.example_gradients, layer.square_norms, layer.second_moment, layer._gram, layer.gradients
        return tuple(method(params, cache, delta) for method in methods)

    def of_one(i):
        """The part of the gradient that goes through da of example i: its own gradient where examples do not mix."""
        pull_back = jax.vjp(lambda p: run_forward(layer, p, x, key=KEY, train=True)[0], params)[1]
        return pull_back(jnp.where((jnp.arange(M) == i).reshape(-1, *(1,) * (da.ndim - 1)), da, 0))[0]

    return by_hand(params, x, da), jax.jit(jax.vmap(of_one))(jnp.arange(M))


def check(found, reference, tolerance):
    shares, norms, moments, gram, mean = found
    rows = rows_of(reference)
    assert_agree(shares, reference, tolerance, zero=True)
    agree(norms, np.sum(rows**2, axis=1), tolerance)
    agree(gram, rows @ rows.T, tolerance)
    squares = jax.tree.map(lambda g: np.mean(np.square(np.asarray(g, np.float64)), axis=0), reference)
    assert jax.tree.structure(moments) == jax.tree.structure(squares)
    jax.tree.map(functools.partial(agree, tolerance=tolerance), moments, squares)
    jax.tree.map(functools.partial(agree, tolerance=tolerance), mean, jax.tree.map(lambda g: g.mean(0), reference))


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_every_layer_of_the_table(case):
    check(*of_a_layer(case), 1e-12)


@pytest.mark.parametrize("case", thorough(*(case for case in LAYERS if not case.loose)), ids=repr)
def test_every_layer_in_float32(case):
    check(*of_a_layer(case, "float32"), TOLERANCE["float32"])


@fn.layer
class Scale:
    """An own layer with nothing written beyond the contract: a = s ⊙ a_in."""

    independent = True

    def init(self, key, input_shape):
        return {"scale": jnp.ones(input_shape)}

    def forward(self, params, a_in):
        return params["scale"] * a_in, a_in

    def propagate(self, params, cache, delta):
        return params["scale"] * delta

    def gradients(self, params, cache, delta):
        return {"scale": jnp.mean(delta * cache, axis=0)}


@fn.layer
class Doubled(fn.Dense):
    """Dense with an equation replaced: every example's share follows it."""

    def gradients(self, params, cache, delta):
        return jax.tree.map(lambda g: 2 * g, super().gradients(params, cache, delta))


def small_gpt(block):
    net = gpt(7, 4, (fn.Repeat(fn.Recompute(fn.Network(*block)), 2),))
    return net, (5,), 7


OF_STEPS = fn.Network(fn.Bidirectional(fn.GRU(3)), fn.Dropout(0.3), fn.LSTM(3, recompute=True), fn.Dense(4, fn.softmax))
NETWORKS = {
    "dense": (fn.Network(fn.Dense(5, fn.tanh), fn.Dropout(0.4), Scale(), fn.Dense(3, fn.softmax)), (4,), 0),
    "steps": (OF_STEPS, (4, 2), 0),
    "gpt": small_gpt(gpt_block(4, fn.Attention(2), wide=2)),
    "conv": (
        fn.Network(
            fn.Conv(3, 2, fn.tanh), fn.GroupNorm(3), fn.MaxPool(2), fn.Residual(fn.Conv(3, 1, fn.silu)), fn.Flatten(),
            fn.Dense(3, fn.softmax),
        ),
        (5, 5, 1),
        0,
    ),
    "tied": (fn.Tied(fn.Network(*(fn.Dense(4, fn.tanh),) * 3, fn.Dense(4, fn.softmax)), "0.w", "1.w", "-1.w"), (4,), 0),
}  # fmt: skip


def of_a_network(name, m=M, dtype="float64"):
    """(net, params, x, y, the rest), with masks and weights for sequences, and weights for rows; one weight is 0."""
    net, shape, tokens = NETWORKS[name]
    case = Case(name, net, shape, tokens=tokens)
    params, x = case.params(dtype), case.inputs(m, dtype)
    out = jax.eval_shape(lambda p, x: run_forward(net, p, x)[0], params, x).shape
    y = jnp.asarray(np.random.default_rng(2).integers(out[-1], size=out[:-1]))
    given = {"weights": jnp.asarray(np.random.default_rng(4).uniform(0, 2, out[:-1]), dtype)}
    if len(out) == 3:
        given["mask"] = fn.length_mask(jnp.arange(m) % 2 + out[1] - 1, out[1])
        given["weights"] = jnp.where(given["mask"], given["weights"], 0)
    return net, params, x, y, {"key": KEY, **given}


def one_by_one(net, params, x, y, given, argnums=0):
    """``vmap(jax.grad(objective))``, each example with the keys that it has in the batch."""
    objective = fn.objective(net, fn.log_likelihood)

    def of_one(i, x, y, rest):
        at = lambda params, x: objective(params, x, y[None], key=fn.ExampleKeys(KEY, i[None]), **rest)  # noqa: E731
        return jax.grad(at, argnums)(params, x[None])

    rest = {name: value[:, None] for name, value in given.items() if name != "key"}
    return jax.jit(jax.vmap(of_one))(jnp.arange(len(x)), x, y, rest)


@pytest.mark.parametrize("name", ["tied", *thorough("dense", "steps", "gpt", "conv")])
def test_the_functions_on_networks(name):
    net, params, x, y, given = of_a_network(name)
    reference = one_by_one(net, params, x, y, given)
    rows = rows_of(reference)
    norms = np.linalg.norm(rows, axis=1)
    bound = float(np.median(norms))

    @jax.jit
    def every(params, x, y, given):
        of = net, fn.log_likelihood, params, x, y
        quantities = fn.example_gradients, fn.gradient_norms, fn.gradient_gram, fn.gradient_statistics
        return (
            *(quantity(*of, **given) for quantity in quantities),
            fn.clipped_value_and_grad(net, fn.log_likelihood, bound)(params, x, y, **given),
            fn.objective(net, fn.log_likelihood)(params, x, y, **given),
            fn.input_gradient(*of, **given) if jnp.issubdtype(x.dtype, jnp.floating) else None,
        )

    shares, own_norms, gram, found, (value, gradients), cost, da = every(params, x, y, given)
    assert_agree(shares, reference, 1e-12)
    agree(own_norms, norms, 1e-12)
    agree(gram, rows @ rows.T, 1e-12)
    mean, variance = rows.mean(0), rows.var(0)
    agree(rows_of(found.mean, 1)[0], mean, 1e-12)
    agree(rows_of(found.variance, 1)[0], variance, 1e-12)
    agree(rows_of(found.signal_to_noise, 1)[0] * variance, mean**2, 1e-10)
    agree(found.noise_scale, variance.sum() / (mean**2).sum(), 1e-12)

    agree(value, cost, 1e-12)
    agree(rows_of(gradients, 1)[0], np.mean(np.minimum(1, bound / norms)[:, None] * rows, axis=0), 1e-12)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    if da is not None:
        agree(da, one_by_one(net, params, x, y, given, argnums=1)[:, 0], 1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["dense", *thorough("steps", "gpt", "conv", "tied")])
def test_in_chunks_as_the_whole_batch(name, monkeypatch):
    net, params, x, y, given = of_a_network(name, 5)
    clip = functools.partial(fn.clipped_value_and_grad, net, fn.log_likelihood, 0.3, 0.5)
    whole, *parts = jax.jit(lambda *of: [clip(micro_batch=size)(*of, **given) for size in (None, 1, 2)])(params, x, y)
    for part in parts:
        jax.tree.map(functools.partial(agree, tolerance=1e-12), part, whole)

    def measured(*of):
        fn.programs.program.cache_clear()
        of = net, fn.log_likelihood, *of
        return fn.gradient_norms(*of, **given), fn.gradient_statistics(*of, **given)

    norms, statistics = jax.jit(lambda *of: measured(*of))(params, x, y)
    monkeypatch.setattr("fnnet.shares.chunk_size", lambda *given: 2)
    chunked_norms, chunked = jax.jit(lambda *of: measured(*of))(params, x, y)
    agree(chunked_norms, norms, 1e-12)
    for ours, theirs in ((chunked.mean, statistics.mean), (chunked.variance, statistics.variance)):
        agree(rows_of(ours, 1), rows_of(theirs, 1), 1e-12)
    agree(chunked.noise_scale, statistics.noise_scale, 1e-12)
    fn.programs.program.cache_clear()


@pytest.mark.parametrize("name", ["dense", *thorough("steps", "gpt", "conv", "tied")])
def test_in_float32_and_of_one_example(name):
    net, params, x, y, given = of_a_network(name, 1, "float32")
    shares = fn.example_gradients(net, fn.log_likelihood, params, x, y, **given)
    _, gradients = fn.value_and_grad(net, fn.log_likelihood)(params, x, y, **given)
    assert_agree(jax.tree.map(lambda g: g[0], shares), gradients, 1e-5)
    norms = fn.gradient_norms(net, fn.log_likelihood, params, x, y, **given)
    assert norms.dtype == jnp.float32
    agree(norms, np.linalg.norm(rows_of(shares, 1), axis=1), 1e-5)


@pytest.mark.thorough
def test_under_jit_and_vmap():
    net, params, x, y, given = of_a_network("dense")
    several = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    clip = lambda p, bound: fn.clipped_value_and_grad(net, fn.log_likelihood, bound, 0.1)(p, x, y, **given)[1]  # noqa: E731
    functions = (
        lambda p: fn.gradient_norms(net, fn.log_likelihood, p, x, y, **given),
        lambda p: fn.gradient_gram(net, fn.log_likelihood, p, x, y, **given),
        lambda p: fn.gradient_statistics(net, fn.log_likelihood, p, x, y, **given),
        lambda p: clip(p, 0.2),
    )
    together = jax.jit(jax.vmap(lambda p: [f(p) for f in functions]))(several)
    for i in range(2):
        alone = [f(jax.tree.map(lambda p, i=i: np.asarray(p)[i], several)) for f in functions]
        jax.tree.map(lambda a, b, i=i: agree(a[i], b, 1e-10), together, alone)
    traced = jax.jit(jax.vmap(clip, (None, 0)))(params, np.array([0.1, 0.3]))
    jax.tree.map(lambda a, b: agree(a[1], b, 1e-12), traced, clip(params, 0.3))


def test_a_layer_with_an_equation_replaced():
    net = Doubled(3, fn.softmax)
    params, x, y = params_of(net, (4,)), normal((M, 4)), jnp.array([0, 1, 2])
    plain = fn.gradient_norms(fn.Dense(3, fn.softmax), fn.log_likelihood, params, x, y)
    agree(fn.gradient_norms(net, fn.log_likelihood, params, x, y), 2 * plain)
    statistics = fn.gradient_statistics(net, fn.log_likelihood, params, x, y)
    agree(statistics.mean["w"], fn.value_and_grad(net, fn.log_likelihood)(params, x, y)[1]["w"])


class Mixed:
    """BP4 of another equation, for a class that names it before its layer."""

    def gradients(self, params, cache, delta):
        return jax.tree.map(lambda g: 2 * g, super().gradients(params, cache, delta))  # pyright: ignore


@fn.layer
class OfAMixin(Mixed, fn.Dense):
    """A dense layer with the mixin's gradients."""


def test_a_mixin_replaces_an_equation():
    net, given = OfAMixin(3, fn.softmax), (normal((M, 4)), jnp.array([0, 1, 2]))
    params = params_of(net, (4,))
    plain = fn.gradient_norms(fn.Dense(3, fn.softmax), fn.log_likelihood, params, *given)
    agree(fn.gradient_norms(net, fn.log_likelihood, params, *given), 2 * plain)


@pytest.mark.thorough
def test_the_keys_of_a_part_of_a_batch(monkeypatch):
    """A part with its `ExampleKeys` draws what it draws in the whole batch, in chunks too."""
    net = fn.Network(fn.Dense(6, fn.tanh), fn.Dropout(0.5), fn.Dense(3, fn.softmax))
    params, x, y = params_of(net, (4,)), normal((8, 4)), jnp.arange(8) % 3
    given, part = (net, fn.log_likelihood, params), fn.ExampleKeys(KEY, jnp.arange(3, 8))
    whole = fn.gradient_norms(*given, x, y, key=KEY)[3:]
    by_part = [fn.value_and_grad(*given[:2], micro_batch=size)(params, x[3:], y[3:], key=part) for size in (None, 2)]
    jax.tree.map(agree, *by_part)
    monkeypatch.setattr(fn.shares, "chunk_size", lambda *_: 2)
    agree(fn.shares._gradient_norms(*given, x[3:], y[3:], None, None, part), whole)


@fn.layer
class Twice(fn.Composite):
    """An own composite whose parts share all parameters."""

    inner: fn.Layer

    last = -1

    @property
    def layers(self):
        return self.inner, self.inner

    def init(self, key, input_shape):
        return self.inner.init(key, input_shape)

    def parts(self, params):
        return (self.inner, params), (self.inner, params)

    def joined(self, of_parts):
        return jax.tree.map(jnp.add, *of_parts)

    def wire(self, run, a_in):
        return run(1, run(0, a_in)), None

    def unwire(self, back, da_out, extra):
        return back(0, back(1, da_out))


def test_an_own_composite_that_shares():
    case = Case("Twice", Twice(fn.Dense(4, fn.tanh)), (4,))
    check(*of_a_layer(case), 1e-12)


@fn.layer
class Centred:
    """A layer whose cache holds a mean of the batch."""

    def init(self, key, input_shape):
        return {"scale": jnp.ones(input_shape)}

    def forward(self, params, a_in):
        mean = jnp.mean(a_in, axis=0, keepdims=True)
        return params["scale"] * (a_in - mean), (a_in, mean)

    def gradients(self, params, cache, delta):
        return {"scale": jnp.mean(delta * (cache[0] - cache[1]), axis=0)}


def test_batch_normalisation():
    net = fn.Network(fn.Dense(4, fn.tanh), fn.BatchNorm(), fn.Dense(3, fn.softmax))
    params, x, y = params_of(net, (4,)), normal((M, 4)), jnp.array([0, 1, 2])
    shares = fn.example_gradients(net, fn.log_likelihood, params, x, y)
    _, gradients = fn.value_and_grad(net, fn.log_likelihood)(params, x, y)
    jax.tree.map(lambda g, mean: agree(jnp.mean(g, axis=0), mean), shares, gradients)
    agree(fn.gradient_norms(net, fn.log_likelihood, params, x, y), np.linalg.norm(rows_of(shares), axis=1))
    message = (
        r"layer 1 BatchNorm\(\): expected an independent layer, .* use fn.GroupNorm or fn.LayerNorm for fn.BatchNorm"
    )
    with pytest.raises(fn.LayerError, match=message):
        fn.clipped_value_and_grad(net, fn.log_likelihood, 1.0)
    with pytest.raises(fn.LayerError, match=r"layer 0 Centred\(\): .* says so by independent = True in its class"):
        fn.clipped_value_and_grad(fn.Network(Centred(), fn.Dense(3, fn.softmax)), fn.log_likelihood, 1.0)


def test_a_cache_without_examples_on_axis_0():
    params, x, y = params_of(Centred(), (3,)), normal((M, 3)), jnp.zeros((M, 3))
    message = (
        r"Centred\(\): expected a cache of arrays with 3 examples on axis 0, got \(1, 3\); write example_gradients"
    )
    with pytest.raises(fn.LayerError, match=message):
        fn.gradient_norms(Centred(), fn.quadratic, params, x, y)


def test_clipping_and_noise():
    net, params, x, y, given = of_a_network("dense", 4)
    plain = fn.value_and_grad(net, fn.log_likelihood)(params, x, y, **given)
    make = functools.partial(fn.clipped_value_and_grad, net, fn.log_likelihood)
    same = functools.partial(jax.tree.map, functools.partial(agree, tolerance=1e-12))
    same(make(1e9)(params, x, y, **given), plain)
    same(make(10**9, 0)(params, x, y, **given), plain)
    same(make(np.inf)(params, x, y, **given), plain)

    _, zero = make(1.0)(params, x, y, key=KEY, weights=jnp.zeros(4))
    assert all(not leaf.any() for leaf in jax.tree.leaves(zero))  # a norm of 0 has the factor 1

    keys = jax.random.split(KEY, 400)
    sums = lambda bound, noise: rows_of(  # noqa: E731
        jax.vmap(lambda k: make(bound, noise)(params, x, y, key=k, weights=jnp.zeros(4))[1])(keys), 400
    )
    drawn = sums(0.5, 2.0)
    assert abs(drawn.std() / (2.0 * 0.5 / 4) - 1) < 4 / np.sqrt(2 * drawn.size)
    assert abs(drawn.mean()) < 4 * 0.25 / np.sqrt(drawn.size)
    assert np.unique(drawn).size == drawn.size
    np.testing.assert_array_equal(sums(0.5, 2.0)[:1], drawn[:1])


def test_equal_arguments_are_one_function():
    net, params, x, y, given = of_a_network("dense")
    clip = fn.clipped_value_and_grad(net, fn.log_likelihood, 0.5, 1.0)
    for noise in (1, np.float32(1)):
        assert clip is fn.clipped_value_and_grad(fn.Network(*net), fn.log_likelihood, np.float64(0.5), noise)
    given.pop("weights")
    compiled = fn.programs.program(fn.shares._clipped, net, fn.log_likelihood, micro_batch="auto")
    sizes = []
    for bound in (0.5, 0.7):
        fn.clipped_value_and_grad(net, fn.log_likelihood, bound, 1.0)(params, x, y, **given)
        sizes.append(compiled._cache_size())
    assert sizes[0] == sizes[1]


def test_fit_takes_the_clipped_gradient(digits):
    (x, y), _ = digits
    x, y = x[:50].reshape(50, -1), y[:50]
    net = fn.Network(fn.Dense(5, fn.tanh), fn.Dropout(0.2), fn.Dense(10, fn.softmax))
    params = cast(params_of(net, (784,)), x.dtype)
    run = functools.partial(
        fn.fit, net, fn.log_likelihood, params, (x, y), key=KEY, epochs=2, batch_size=20, optimizer=fn.sgd(0.1),
        monitor_training=False, progress=False,
    )  # fmt: skip
    private, history = run(gradient=fn.clipped_value_and_grad(net, fn.log_likelihood, 1.0, 0.5))
    assert history.cost.shape == (2,)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(private))
    plain, _ = run()
    unbound, _ = run(gradient=fn.clipped_value_and_grad(net, fn.log_likelihood, 1e6))
    assert_agree(unbound, plain, TOLERANCE[str(plain[0]["w"].dtype)])


def test_a_run_with_another_bound_is_another_run():
    net, x, y = fn.Dense(3, fn.softmax), normal((4, 2)), jnp.array([0, 1, 2, 0])
    run = functools.partial(
        fn.fit, net, fn.log_likelihood, params_of(net, (2,)), (x, y), key=KEY, batch_size=4, optimizer=fn.sgd(0.1),
        monitor_training=False, progress=False,
    )  # fmt: skip
    _, history = run(epochs=1, gradient=fn.clipped_value_and_grad(net, fn.log_likelihood, 1.0))
    run(epochs=2, gradient=fn.clipped_value_and_grad(net, fn.log_likelihood, 1), resume=history.state)
    with pytest.raises(ValueError, match="gradient"):
        run(epochs=2, gradient=fn.clipped_value_and_grad(net, fn.log_likelihood, 2.0), resume=history.state)


def test_windows_need_a_gradient_that_carries_the_state():
    net = fn.Network(fn.RNN(3), fn.Dense(2, fn.softmax))
    params, x, y = params_of(net, (6, 2)), normal((4, 6, 2)), jnp.zeros((4, 6), int)
    message = r"fit: expected a gradient= that takes state= .* for window=3, got clipped_value_and_grad\(bound=1.0,"
    with pytest.raises(ValueError, match=message):
        fn.fit(
            net, fn.log_likelihood, params, (x, y), key=KEY, epochs=1, batch_size=4, optimizer=fn.sgd(0.1), window=3,
            gradient=fn.clipped_value_and_grad(net, fn.log_likelihood, 1.0), progress=False,
        )  # fmt: skip


def test_bad_input():
    net, params, x, y, given = of_a_network("dense")
    make = functools.partial(fn.clipped_value_and_grad, net, fn.log_likelihood)
    for bound in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"clipped_value_and_grad: expected bound > 0, got .* the largest norm of"):
            make(bound)
    for bound in ("1", None, True, jnp.ones(2)):
        with pytest.raises(ValueError, match=r"clipped_value_and_grad: expected bound to be one number, got"):
            make(bound)
    with pytest.raises(ValueError, match=r"clipped_value_and_grad: expected a finite bound with noise, .* got inf"):
        make(float("inf"), 1.0)
    with pytest.raises(ValueError, match=r"expected noise ≥ 0, got -0.1; it multiplies the bound; None adds none"):
        make(1.0, -0.1)
    with pytest.raises(ValueError, match="micro_batch: expected a positive integer, 'auto' or None, got 0"):
        make(1.0, micro_batch=0)
    with pytest.raises(ValueError, match=r"expected a key to draw the noise with, got None; pass key=jax.random.key"):
        make(1.0, 1.0)(params, x, y)
    with pytest.raises(ValueError, match=r"net: expected an fn.Network or another layer, got str"):
        fn.clipped_value_and_grad("net", fn.log_likelihood, 1.0)
    with pytest.raises(ValueError, match=r"cost: expected an fn.Cost such as fn.cross_entropy, got str"):
        fn.clipped_value_and_grad(net, "cost", 1.0)
    for function in (
        fn.example_gradients, fn.gradient_norms, fn.gradient_statistics, fn.gradient_gram, fn.input_gradient
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"y: expected as many targets as there are examples in x"):
            function(net, fn.log_likelihood, params, x, y[:2], **given)
        with pytest.raises(ValueError, match=r"net: expected an fn.Network or another layer, got str"):
            function("net", fn.log_likelihood, params, x, y)
        with pytest.raises(ValueError, match=r"a key while training, got key=None"):
            function(net, fn.log_likelihood, params, x, y)
    tokens, params, x, y, given = of_a_network("gpt")
    with pytest.raises(
        ValueError, match=r"input_gradient: expected inputs of a float dtype, got int32: integers have no"
    ):
        fn.input_gradient(tokens, fn.log_likelihood, params, x, y, **given)
    with pytest.raises(
        ValueError, match=r"expected a first layer with a propagate\(params, cache, delta\), got none in"
    ):
        fn.input_gradient(Centred(), fn.quadratic, {"scale": jnp.ones(3)}, jnp.ones((2, 3)), jnp.ones((2, 3)))


def compiled(f, *given):
    return jax.jit(f).lower(*given).compile()


def test_statistics_without_any_gradient():
    """Where every target is met there is no noise, not 0/0."""
    net, x = fn.Dense(2, fn.linear), normal((M, 4))
    params = params_of(net, (4,))
    found = fn.gradient_statistics(net, fn.quadratic, params, x, net.apply(params, x))
    assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(found))


def test_memory_and_work_of_a_dense_network():
    net, m = fn.Network(fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.softmax)), 128
    params = cast(params_of(net, (784,)), jnp.float32)
    given = params, jnp.ones((m, 784), jnp.float32), jnp.zeros(m, jnp.int32)
    objective = fn.objective(net, fn.log_likelihood)
    of_each = jax.vmap(jax.grad(lambda p, x, y: objective(p, x[None], y[None])), (None, 0, 0))

    def by_autodiff(*given):
        shares = of_each(*given)
        norms = jnp.sqrt(sum(jnp.sum(g.reshape(m, -1) ** 2, axis=1) for g in jax.tree.leaves(shares)))
        return jax.tree.map(lambda g: jnp.tensordot(jnp.minimum(1, 1 / norms), g, 1) / m, shares)

    clip = compiled(fn.clipped_value_and_grad(net, fn.log_likelihood, 1.0), *given)
    plain = compiled(fn.value_and_grad(net, fn.log_likelihood), *given)
    theirs = compiled(by_autodiff, *given)
    bytes_of = lambda program: program.memory_analysis().temp_size_in_bytes  # noqa: E731
    assert 50 * bytes_of(clip) <= bytes_of(theirs)
    assert clip.cost_analysis()["flops"] <= 1.1 * plain.cost_analysis()["flops"]
    norms = compiled(functools.partial(fn.gradient_norms, net, fn.log_likelihood), *given)
    assert bytes_of(norms) <= 2 * bytes_of(plain)
    assert norms.cost_analysis()["flops"] <= plain.cost_analysis()["flops"]


def test_memory_of_an_embedding():
    """Pairs of places, T² of them for each example, are there for a few examples at a time."""
    w, delta, tokens = ((9, 8), jnp.float32), ((32, 256, 8), jnp.float32), ((32, 256), jnp.int32)
    w, delta, tokens = (jax.ShapeDtypeStruct(*of) for of in (w, delta, tokens))
    layer = fn.Embedding(9, 8)
    for equation in (layer.square_norms, layer.second_moment, layer._gram):
        memory = compiled(lambda w, *of, equation=equation: equation({"w": w}, *of), w, tokens, delta).memory_analysis()
        assert memory.temp_size_in_bytes < 32 * 256**2 * 4 / 2


@pytest.mark.thorough
def test_memory_of_a_recurrent_network():
    net, shape = fn.Network(fn.LSTM(64), fn.LastStep(), fn.Dense(10, fn.softmax)), (28, 28)
    params = cast(params_of(net, shape), jnp.float32)
    given = params, jnp.ones((32, *shape), jnp.float32), jnp.zeros(32, jnp.int32)
    objective = fn.objective(net, fn.log_likelihood)
    of_each = jax.vmap(jax.grad(lambda p, x, y: objective(p, x[None], y[None])), (None, 0, 0))
    square = lambda g: jnp.sum(g.reshape(32, -1) ** 2, axis=1)  # noqa: E731
    theirs = compiled(lambda *given: sum(map(square, jax.tree.leaves(of_each(*given)))), *given)
    norms = compiled(functools.partial(fn.gradient_norms, net, fn.log_likelihood), *given)
    bytes_of = lambda program: program.memory_analysis().temp_size_in_bytes  # noqa: E731
    assert bytes_of(norms) <= 0.8 * bytes_of(theirs)


@pytest.mark.parametrize("places", [1, 2, 9])
def test_the_forms_of_products(places, monkeypatch):
    """From inner products, and from the gradients, in chunks with and without a rest."""
    from fnnet.layers import _products

    monkeypatch.setattr("fnnet.forms.SHARE_BYTES", 2 * 8 * 6)
    delta, a = normal((5, places, 2)), normal((5, places, 3))
    for other in (a, None):
        g = np.asarray(_products.share(delta, other)).reshape(5, -1)
        agree(_products.share_square_norms.__wrapped__(delta, other), (g**2).sum(1))
        agree(_products.share_second_moment.__wrapped__(delta, other).ravel(), (g**2).mean(0))
        agree(_products.share_gram.__wrapped__(delta, other), g @ g.T)


def test_shares_that_cancel_have_no_negative_norm():
    keys = jax.random.split(KEY, 3)
    delta = jax.random.normal(keys[0], (200, 3, 4), jnp.float32)
    delta = delta.at[:, 2].set(-delta[:, 0] - delta[:, 1])
    a_in = jnp.repeat(jax.random.normal(keys[1], (200, 1, 5), jnp.float32), 3, axis=1)
    dense, table = fn.Dense(4, fn.linear), fn.Embedding(2, 4)
    params = {"w": jnp.ones((4, 5), jnp.float32), "b": jnp.ones(4, jnp.float32)}
    for norms in (
        dense.square_norms(params, (a_in, delta, delta), delta),
        table.square_norms({"w": params["w"][:2, :4]}, jnp.ones((200, 3), jnp.int32), delta),
    ):
        assert jnp.min(norms) >= 0
        assert jnp.max(norms) < 1e-4


def test_half_precision_is_summed_in_float32():
    layer = fn.Dense(3, fn.tanh)
    params = cast(params_of(layer, (300,)), jnp.bfloat16)
    x, y = jnp.ones((2, 300), jnp.bfloat16), jnp.zeros((2, 3), jnp.bfloat16)
    norms = fn.gradient_norms(layer, fn.quadratic, params, x, y)
    assert norms.dtype == jnp.float32
    agree(norms, np.linalg.norm(rows_of(fn.example_gradients(layer, fn.quadratic, params, x, y), 2), axis=1), 1e-2)
    found = fn.gradient_statistics(layer, fn.quadratic, params, x, y)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.variance)} == {jnp.dtype(jnp.float32)}


def test_what_a_rule_learns_or_keeps_fixed_has_no_share():
    net = fn.Network(fn.Dense(3, fn.tanh), fn.Dense(2, fn.softmax))
    x, y = jnp.ones((4, 3)), jnp.zeros(4, int)
    learns = fn.Swapped(net, fn.KolenPollack())
    params = params_of(learns, (3,))
    with pytest.raises(
        fn.LayerError, match=r"expected a rule with fixed arrays, for the examples' shares, got KolenPol"
    ):
        fn.gradient_norms(learns, fn.log_likelihood, params, x, y)
    fixed = fn.Swapped(net, fn.FeedbackAlignment())
    with pytest.raises(
        fn.LayerError, match=r"expected parameters that are all trained, to add noise, got FeedbackAlig"
    ):
        fn.clipped_value_and_grad(fixed, fn.log_likelihood, 1.0, noise=1.0)
    params = params_of(fixed, (3,))
    _, clipped = fn.clipped_value_and_grad(fixed, fn.log_likelihood, 1e-3)(params, x, y)
    assert largest(clipped["back"]) == 0 < largest(clipped["net"])
