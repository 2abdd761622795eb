"""The last layer and the cost on a few steps at a time: the whole's numbers, a fraction of its memory."""

import jax
import jax.numpy as jnp
import pytest

import fnnet as fn

from .cases import assert_agree, params_of, thorough

KEY = jax.random.key(0)


def network(vocabulary=7, n=4, activation=fn.softmax):
    layers = (
        fn.Embedding(vocabulary, n),
        fn.Residual(fn.Dense(n, fn.tanh), fn.Dropout(0.2)),
        fn.Dense(vocabulary, activation),
    )
    return fn.Tied(fn.Network(*layers), "0.w", "-1.w")


def problem(vocabulary=7, n=4, steps=10, m=3):
    net = network(vocabulary, n)
    x = jax.random.randint(jax.random.key(1), (m, steps), 0, vocabulary)
    return net, params_of(net, (steps,)), x, jnp.roll(x, -1, axis=1)


@pytest.mark.parametrize("size", [3, *thorough(1, 5, 99)])
def test_it_is_the_whole(size):
    _, params, x, y = problem()
    of_steps, of_examples = jax.random.uniform(KEY, x.shape), jnp.array([0.5, 2.0, 1.0])
    soft = jax.nn.one_hot(y, 7) * 0.9 + 0.1 / 7
    kinds = (
        (fn.softmax, fn.log_likelihood, y, None),
        (fn.softmax, fn.log_likelihood, soft, of_steps),
        (fn.sigmoid, fn.cross_entropy, soft, of_examples),
        (fn.tanh, fn.quadratic, soft, of_steps),
    )

    def both(params, activation, cost, targets, weights):
        net, given = network(activation=activation), {"key": KEY, "weights": weights}
        whole = jax.value_and_grad(fn.objective(net, cost, penalty=fn.L2(0.1)))(params, x, targets, **given)
        pieces = fn.value_and_grad(net, cost, penalty=fn.L2(0.1), positions=size)(params, x, targets, **given)
        return pieces, whole

    for pieces, whole in jax.jit(lambda params: [both(params, *kind) for kind in kinds])(params):
        assert_agree(pieces, whole, 1e-12)


@pytest.mark.thorough
def test_it_carries_states_and_goes_in_chunks():
    net = fn.Network(fn.Embedding(5, 3), fn.LSTM(4), fn.Dense(5, fn.softmax))
    params, x = params_of(net, (6,)), jax.random.randint(jax.random.key(1), (4, 6), 0, 5)
    for settings in ({"carry": True}, {"micro_batch": 3}):
        whole = fn.value_and_grad(net, fn.log_likelihood, **settings)(params, x, x)
        assert_agree(fn.value_and_grad(net, fn.log_likelihood, positions=4, **settings)(params, x, x), whole, 1e-12)


@pytest.mark.thorough
def test_a_fraction_of_the_memory():
    net, params, x, y = problem(vocabulary=4096, n=16, steps=128, m=2)

    def temporaries(**settings):
        run = jax.jit(fn.value_and_grad(net, fn.log_likelihood, micro_batch=None, **settings))
        return run.lower(params, x, y, key=KEY).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(positions=8) < temporaries() / 6


def test_bad_input():
    net = network()
    with pytest.raises(ValueError, match=r"value_and_grad: expected positions to be an integer of at least 1, got 0"):
        fn.value_and_grad(net, fn.log_likelihood, positions=0)
    with pytest.raises(fn.LayerError, match=r"expected a network that ends in a Dense layer, for positions=, got LSTM"):
        fn.value_and_grad(fn.LSTM(3), fn.log_likelihood, positions=2)
    rows = fn.Network(fn.Dense(3, fn.tanh), fn.Dense(3, fn.softmax))
    with pytest.raises(fn.LayerError, match=r"expected sequences \(m, T, n\) for positions=, got \(4, 3\)"):
        fn.value_and_grad(rows, fn.log_likelihood, positions=2)(
            params_of(rows, (2,)), jnp.ones((4, 2)), jnp.zeros(4, int)
        )
