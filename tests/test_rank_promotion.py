"""Everything runs where JAX refuses arithmetic on arrays of different rank, ``jax_numpy_rank_promotion="raise"``.

The check is made while tracing, so most of it compiles nothing.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

import fnnet as fn
from fnnet import dbn, diagnostics, rbm
from fnnet.layers._layer import run_forward

from .cases import ACTIVATIONS, BY_CLASS, COSTS, thorough

KEY = jax.random.key(0)
OPTIMIZER = fn.chain(fn.clip(1.0), fn.clip_by_global_norm(1.0), fn.sgd(fn.CosineDecay(0.1, 10), 0.9, True))


@pytest.fixture(autouse=True)
def refused():
    with jax.numpy_rank_promotion("raise"):
        yield


def test_it_is_refused():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)


@pytest.mark.parametrize("case", BY_CLASS, ids=repr)
def test_layers_penalties_and_optimizers(case):
    def run(x):
        params = case.layer.init(KEY, case.shape)
        a, cache = run_forward(case.layer, params, x, key=KEY, train=True)
        delta = case.layer.error(params, cache, a)
        grads = case.layer.gradients(params, cache, delta)
        for penalty in (fn.L1(0.1), fn.L2(0.1)):
            grads = jax.tree.map(jnp.add, grads, penalty.gradient(params, penalty.value(params, 3)))
        for optimizer in (OPTIMIZER, fn.adam()):
            params = fn.apply_updates(params, optimizer.update(grads, optimizer.init(params), params)[0])
        layer = case.layer
        shares = [f(params, cache, delta) for f in (layer.example_gradients, layer.square_norms, layer.second_moment)]
        return params, layer.propagate(params, cache, delta), layer.backward(params, cache, a), shares

    jax.eval_shape(run, case.inputs(5, "float64"))


def test_curvature():
    net = fn.Network(fn.LSTM(3), fn.Dropout(0.3), fn.Dense(2, fn.softmax))
    x, y, weights = jnp.ones((3, 4, 2)), jnp.zeros((3, 4), int), jnp.ones((3, 4))

    def run(key):
        params = net.init(KEY, (4, 2))
        batch, given = (net, fn.log_likelihood, params, x, y), {"key": key, "weights": weights}
        products = [f(*batch, params, **given) for f in (fn.hvp, fn.ggnvp)]
        diagonals = [f(*batch, **given) for f in (fn.ggn_diagonal, fn.fisher_diagonal, fn.kfac_factors)]
        drawn = [f(*batch, samples=2, **given) for f in (fn.ggn_diagonal, fn.hutchinson_diagonal)]
        density = fn.spectrum(*batch, steps=3, **given).density(jnp.ones((2, 2)))
        updates = fn.natural_gradient().update(params, jnp.asarray(0), params, ggnvp=lambda v: v)
        return products, diagonals, drawn, density, updates

    jax.eval_shape(run, KEY)


def test_activations():
    for activation in ACTIVATIONS.values():
        for shape in ((3,), (2, 3), (2, 3, 4)):
            jax.eval_shape(lambda z, f=activation: (f(z), f.error(z, z), f.error(z, z, f(z))), jnp.ones(shape))


@pytest.mark.parametrize("shape", [*thorough((4,)), (5, 4)])
def test_costs(shape):
    x = jnp.ones((6, *shape))
    labels = jnp.zeros(x.shape[:-1], int)
    for _, cost, activation in COSTS:
        net = fn.Network(fn.Dense(3, activation))

        def run(x, labels, weights, net=net, cost=cost):
            params = net.init(KEY, x.shape[1:])
            for y in (labels, jax.nn.one_hot(labels, 3)):
                for size in (None, 4):
                    fn.value_and_grad(net, cost, micro_batch=size, penalty=fn.L2(0.1))(params, x, y, weights=weights)
                fn.backprop(net, cost, params, x, y, weights=weights)
                fn.objective(net, cost)(params, x, y, weights=weights)
                fn.accuracy(net.apply(params, x), y, weights)
            return 0

        for weights in (None, jnp.ones(6), jnp.ones(labels.shape)):
            jax.eval_shape(run, x, labels, weights)


@pytest.mark.parametrize("cell", [fn.RNN(3), fn.LSTM(3, recompute=True), fn.GRU(3, truncate=2)], ids=repr)
def test_sequences(cell):
    net = fn.Network(cell, fn.Dense(2, fn.softmax))
    x, y, weights = jnp.ones((4, 7, 2)), jnp.zeros((4, 7), int), jnp.ones((4, 7))

    def run(x, y, lengths):
        params, mask = net.init(KEY, (7, 2)), fn.length_mask(lengths, 7)
        for settings in ({"carry": True}, {"micro_batch": 3}):
            fn.value_and_grad(net, fn.log_likelihood, **settings)(params, x, y, mask=mask, weights=weights)
        diagnostics.credit_map(net, fn.log_likelihood, params, x, y, mask=mask, weights=weights)
        jax.grad(lambda p: jnp.sum(fn.as_function(net)(p, x, mask=mask)))(params)
        return net.apply_from(params, x, net.apply_from(params, x)[1])

    jax.eval_shape(run, x, y, jnp.array([1, 4, 7, 7]))


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_energy_models(visible):
    def run(v, h):
        params = rbm.init(KEY, 6, 4)
        kind = {"visible": visible}
        for chains in (None, h):
            rbm.contrastive_divergence(params, KEY, v, chains, k=2, **kind)
        rbm.annealed_importance_sampling(params, KEY, chains=5, betas=10, **kind)
        rbm.log_probability(params, v, rbm.log_partition(params, **kind), **kind)
        rbm.likelihood_gradient(params, v, **kind)
        rbm.Sparsity(0.1, 0.1).gradient(params, v)
        for one in (v, v[0]):
            rbm.energy(params, one, rbm.hidden_probabilities(params, one), **kind)
            rbm.free_energy(params, one, **kind)
        dbn.generate((params, rbm.init(KEY, 4, 3)), KEY, v, k=2, **kind)
        return rbm.reconstruction_error(params, v, **kind), rbm.pseudo_likelihood(params, KEY, v)

    jax.eval_shape(run, jnp.ones((5, 6)), jnp.ones((7, 4)))


def test_diagnostics_and_images():
    net = fn.Network(fn.Dense(6, fn.sigmoid), fn.Dropout(0.5), fn.Dense(7, fn.softmax))

    def run(x, y):
        params = net.init(KEY, (4,))
        for f in (diagnostics.learning_speed, diagnostics.error_growth):
            f(net, fn.log_likelihood, params, x, y, key=KEY)
        diagnostics.saturation(net, params, x)
        diagnostics.update_ratios(params, params)
        fn.datasets.jitter(KEY, jnp.ones((3, 5, 5, 1)))
        for k in (None, 1):
            diagnostics.singular_values(net, params, x, k=k)
        return diagnostics.histograms(diagnostics.activations(net, params, x))

    jax.eval_shape(run, jnp.ones((5, 4)), jnp.zeros(5, int))


@pytest.mark.thorough
def test_runs():
    net, x, y = fn.Dense(3, fn.softmax), jnp.ones((5, 4)), jnp.arange(5) % 3
    given = {"epochs": 1, "batch_size": 2, "progress": False}
    params = net.init(KEY, (4,))
    fn.fit(net, fn.log_likelihood, params, (x, y), key=KEY, optimizer=OPTIMIZER, validation=(x, y), **given)
    fitting = functools.partial(rbm.fit, rbm.init(KEY, 4, 2), x, key=KEY, optimizer=fn.adam(), validation=x, **given)
    fitting(persistent=True, sparsity=rbm.Sparsity(0.1, 0.1), penalty=fn.L1(0.1))
    assert fn.check_layer(fn.Dense(2, fn.tanh), params | {"w": params["w"][:2], "b": params["b"][:2]}, x).ok


def test_shares():
    net = fn.Network(fn.Embedding(5, 3), fn.LSTM(2), fn.Dense(4, fn.softmax))
    params, x, y = net.init(KEY, (3,)), jnp.zeros((2, 3), int), jnp.zeros((2, 3), int)
    functions = fn.example_gradients, fn.gradient_norms, fn.gradient_statistics, fn.gradient_gram
    jax.eval_shape(lambda p: [f(net, fn.log_likelihood, p, x, y) for f in functions], params)
    jax.eval_shape(lambda p: fn.clipped_value_and_grad(net, fn.log_likelihood, 1.0, 1.0)(p, x, y, key=KEY), params)
    jax.eval_shape(lambda p, x: fn.input_gradient(net[1:], fn.log_likelihood, p, x, y), params[1:], jnp.ones((2, 3, 3)))
