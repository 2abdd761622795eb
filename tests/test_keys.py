"""Random numbers are those of the key alone: the same in chunks, in sweeps and for every kind of key."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers import ExampleKeys, example_keys

from .cases import thorough

KINDS = ["threefry2x32", "rbg", "unsafe_rbg"]


def in_chunks(layer, key, x, size):
    keys = [ExampleKeys(key, jnp.arange(i, min(i + size, len(x)))) for i in range(0, len(x), size)]
    parts = [layer.forward({}, x[k.index[0] :][: len(k.index)], key=k, train=True)[0] for k in keys]
    return jnp.concatenate(parts)


@pytest.mark.parametrize(
    ("kind", "typed"), [*((kind, True) for kind in KINDS), ("rbg", False), ("threefry2x32", False)]
)
def test_a_chunk_has_the_masks_of_the_whole_batch(kind, typed):
    with jax.default_prng_impl(kind):
        key = jax.random.key(7) if typed else jax.random.PRNGKey(7)
        x = jnp.ones((8, 5))
        for layer in (fn.Dropout(0.5), fn.Dropout(0.5, per="batch")):
            whole, _ = layer.forward({}, x, key=key, train=True)
            assert 0 < float(jnp.mean(whole == 0)) < 1
            np.testing.assert_array_equal(in_chunks(layer, key, x, 3), whole)
        other, _ = fn.Dropout(0.5).forward({}, x, key=jax.random.split(key)[0], train=True)
        assert (other != fn.Dropout(0.5).forward({}, x, key=key, train=True)[0]).any()


@pytest.mark.parametrize("partitionable", [True, False])
def test_the_keys_of_examples(partitionable):
    with jax.threefry_partitionable(partitionable):
        key = jax.random.key(3)
        by_one = [jax.random.key_data(jax.random.fold_in(key, i)) for i in range(4)]
        np.testing.assert_array_equal(jax.random.key_data(example_keys(key, 4)), jnp.stack(by_one))
        drawn = jax.vmap(lambda k: jax.random.normal(k, (3,)))(example_keys(key, 4))
        np.testing.assert_array_equal(drawn[2], jax.random.normal(jax.random.fold_in(key, 2), (3,)))


@pytest.mark.parametrize("kind", ["rbg", *thorough("unsafe_rbg")])
def test_a_batch_in_chunks_has_the_gradient_of_the_whole(kind):
    net = fn.Network(fn.Dropout(0.5), fn.Dense(3, fn.softmax))
    params = net.init(jax.random.key(0, impl=kind), (4,))
    x, y, key = jax.random.normal(jax.random.key(1), (8, 4)), jnp.arange(8) % 3, jax.random.key(7, impl=kind)
    whole, parts = (fn.value_and_grad(net, fn.log_likelihood, micro_batch=m)(params, x, y, key=key) for m in (None, 3))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_a_sweep_takes_threefry_keys_only():
    net, data = fn.Dense(2, fn.softmax), (jnp.ones((4, 3)), jnp.zeros(4, int))
    given = {"epochs": 1, "batch_size": 2, "optimizers": [fn.sgd(0.1)], "progress": False}
    for kind in KINDS[1:]:
        keys = jax.random.split(jax.random.key(0, impl=kind), 2)
        with pytest.raises(
            ValueError, match=rf"sweep: expected threefry keys, got keys of {kind}.*impl='threefry2x32'"
        ):
            fn.sweep(net, fn.log_likelihood, data, keys=keys, **given)


BAD = {
    "nothing": (None, "got NoneType None"),
    "a seed": (3, "got int 3"),
    "many keys": (jax.random.split(jax.random.key(0), 3), r"got an array of key<fry> and shape \(3,\)"),
    "words too many": (jnp.zeros(4, jnp.uint32), r"got an array of uint32 and shape \(4,\)"),
    "no words": (jnp.zeros(2), r"got an array of float64 and shape \(2,\)"),
}


@pytest.mark.parametrize(("key", "message"), BAD.values(), ids=BAD)
def test_what_is_no_key_is_a_clear_error(key, message):
    layers = [(fn.Dense(3, fn.relu), (2,)), (fn.Conv(2, 2, fn.relu), (3, 3, 1)), (fn.Embedding(4, 2), (3,))]
    layers += [(cell, (4, 2)) for cell in (fn.RNN(3), fn.LSTM(3), fn.GRU(3), fn.Bidirectional(fn.LSTM(3)))]
    for layer, shape in layers:
        with pytest.raises(
            fn.LayerError, match=rf"{type(layer).__name__}\(.*one PRNG key to draw .*{message}; make one"
        ):
            layer.init(key, shape)
    expected = (
        contextlib.nullcontext() if key is None else pytest.raises(ValueError, match=rf"PRNG key, {message}; make")
    )
    with expected:
        fn.Dropout(0.5).forward({}, jnp.ones((2, 3)), key=key, train=key is not None)
