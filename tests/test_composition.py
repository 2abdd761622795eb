"""Composition: own wirings and joins, branches, ties, repetitions and recomputation; what the generic tests don't show."""

import collections
import copy
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn

KEY = jax.random.key(3)


def drawn(net, shape, m=5, seed=0):
    """Parameters with biases that are not zero, and inputs."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape)),
        jax.eval_shape(lambda: net.init(jax.random.key(0), shape)),
    )
    return params, jnp.asarray(rng.standard_normal((m, *shape)))


def operations(f, *args):
    """How often each operation stands in the program of f."""
    return collections.Counter(re.findall(r"= ([\w.]+)", jax.jit(f).lower(*args).as_text()))


class TestRepeat:
    BLOCK = fn.Residual(fn.Dense(4, fn.tanh), fn.Dropout(0.3))

    @pytest.mark.parametrize(("last", "cost"), [(fn.linear, fn.quadratic), (fn.softmax, fn.log_likelihood)])
    def test_its_program_does_not_grow(self, last, cost):
        def program(n):
            net = fn.Network(fn.Repeat(self.BLOCK, n), fn.Repeat(fn.Dense(4, last), n))
            params, x = drawn(net, (4,))
            return operations(lambda p: fn.value_and_grad(net, cost)(p, x, jnp.ones((5, 4)) / 4, key=KEY), params)

        assert program(3) == program(30)

    def test_the_audit_names_each_repetition(self):
        net = fn.Repeat(fn.Network(fn.Dense(3, fn.softmax)), 2)
        params, x = drawn(net, (3,))
        report = fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(5) % 3)
        assert report.ok, str(report)
        assert {"0.0 Dense", "1.0 Dense"} < {row.layer for row in report.rows}


@pytest.mark.parametrize(
    "net",
    [
        fn.Residual(fn.Dense(4, fn.tanh)),
        fn.Parallel(fn.Identity(), fn.Identity(), join=fn.concatenate),
        fn.Tied(fn.Network(fn.Dense(4, fn.tanh), fn.Dense(4, fn.tanh)), "0.w", "1.w"),
        fn.Repeat(fn.Residual(fn.Dense(4, fn.tanh)), 2),
        fn.Recompute(fn.LSTM(3)),
    ],
    ids=lambda net: type(net).__name__,
)
def test_copies_and_pickles_are_equal(net):
    hash(net)
    for twin in (copy.copy(net), copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert twin == net
        assert hash(twin) == hash(net)
        assert repr(twin) == repr(net)
    other = fn.Network(net, fn.Flatten())
    assert other != net
