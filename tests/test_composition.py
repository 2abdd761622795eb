"""Composition: own wirings and joins, branches, ties, repetitions and recomputation; what the generic tests don't show."""

import collections
import copy
import functools
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.chunks import chunk_size
from fnnet.layers._composite import output_place

from .cases import assert_agree

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


class TestRecompute:
    NET = fn.Network(fn.Dense(6, fn.tanh), fn.Dropout(0.3), fn.Residual(fn.Dense(6, fn.silu)), fn.Dense(3, fn.softmax))

    def test_it_is_the_layer_itself(self):
        params, x = drawn(self.NET, (4,))
        given = params, x, jnp.arange(5) % 3

        @functools.partial(jax.jit, static_argnums=0)
        def run(net, feedback):
            about = {"key": KEY, "feedback": feedback}
            return (
                net.apply(params, x),
                fn.backprop(net, fn.log_likelihood, *given, **about),
                fn.value_and_grad(net, fn.log_likelihood)(*given, key=KEY),
                fn.value_and_grad(net, fn.log_likelihood, micro_batch=2)(*given, key=KEY),
            )

        feedback = drawn(self.NET, (4,), seed=7)[0]
        assert_agree(run(fn.Recompute(self.NET), feedback), run(self.NET, feedback), 1e-14)

    def test_a_matched_cost_enters_through_it(self):
        assert output_place(fn.Network(fn.Flatten(), fn.Recompute(self.NET))) == (1, 3)

    def test_a_state_goes_through_it(self):
        net = fn.Network(fn.Recompute(fn.LSTM(3)), fn.Recompute(fn.Network(fn.Dense(3, fn.tanh), fn.GRU(2))))
        params, x = drawn(net, (6, 2))
        first, state = net.apply_from(params, x[:, :2])
        rest, _ = net.apply_from(params, x[:, 2:], state)
        np.testing.assert_allclose(jnp.concatenate([first, rest], 1), net.apply(params, x), atol=1e-14)

    def test_its_temporaries_are_fewer(self):
        block = fn.Residual(fn.Dense(64, fn.tanh), fn.Dense(16, fn.tanh))

        def temporaries(net):
            params, x = drawn(net, (16,), m=256)
            f = jax.jit(lambda p: fn.value_and_grad(net, fn.quadratic, micro_batch=None)(p, x, x))
            return f.lower(params).compile().memory_analysis().temp_size_in_bytes

        plain, again = temporaries(fn.Repeat(block, 12)), temporaries(fn.Repeat(fn.Recompute(block), 12))
        kept = 12 * 256 * 16 * 8  # a_in of each repetition
        assert kept < again < 0.4 * plain
        assert again < kept + temporaries(fn.Repeat(block, 1)) * 1.5

    def test_its_parameters_do_not_count_as_activations(self):
        wide = fn.Network(fn.Dense(3000, fn.tanh), fn.Dense(2, fn.tanh))
        for net in (wide, fn.Recompute(wide)):
            params = jax.eval_shape(lambda net=net: net.init(KEY, (1000,)))
            x = jax.ShapeDtypeStruct((48, 1000), jnp.float64)
            size = functools.partial(chunk_size, net, key=None, mask=None, micro_batch="auto")
            assert jax.eval_shape(lambda p, x, size=size: jnp.zeros(size(p, x)), params, x).shape == (48,)
