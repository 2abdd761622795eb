"""The library's exceptions cross from one process into another, as those of a multiprocessing.Pool must, and keep all."""

import copy
import importlib
import pickle
import pkgutil

import chex
import jax
import jax.numpy as jnp
import pytest

import fnnet as fn
from fnnet.gradcheck import command, decimals, differences, rules


def bad_layer():
    fn.Dense(0, fn.sigmoid)


def bad_input():
    net = fn.Network(fn.Network(fn.Flatten(), fn.Dense(3, fn.relu)), fn.Dense(2, fn.softmax))
    net.apply(net.init(jax.random.key(0), (4,)), jnp.ones((2, 5)))


def divergence():
    net, x = fn.Network(fn.Dense(3, fn.linear)), jnp.ones((8, 4))
    fn.fit(
        net, fn.quadratic, net.init(jax.random.key(0), (4,)), (x, 1e3 * jnp.ones((8, 3))), key=jax.random.key(1), epochs=50,
        batch_size=4, optimizer=fn.sgd(1e30), progress=False,
    )  # fmt: skip


def said(error):
    """An exception that holds nothing but its words."""

    def raising():
        raise error("in words")

    return raising


IN_WORDS = (command.Usage, decimals.Unknown, differences.NoJudge, rules.Unseen)
RAISED = {
    bad_layer: fn.LayerError,
    bad_input: fn.LayerError,
    divergence: fn.Diverged,
    **{said(error): error for error in IN_WORDS},
}


@pytest.mark.parametrize("raising", RAISED)
@pytest.mark.parametrize("duplicate", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy])
def test_an_exception_keeps_all(raising, duplicate):
    with pytest.raises(RAISED[raising]) as caught:
        raising()
    caught.value.add_note("seen in worker 3")
    other = duplicate(caught.value)
    assert type(other) is RAISED[raising]
    assert str(other) == str(caught.value)
    assert vars(other).keys() == vars(caught.value).keys()
    for name, value in vars(caught.value).items():
        chex.assert_trees_all_equal(jax.tree.map(data, getattr(other, name)), jax.tree.map(data, value))


def data(leaf):
    typed = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if typed else leaf


def test_every_exception_of_the_library_is_tried():
    found = set()
    for module in pkgutil.walk_packages(fn.__path__, "fnnet."):
        values = vars(importlib.import_module(module.name)).values()
        found |= {
            v for v in values if isinstance(v, type) and issubclass(v, Exception) and v.__module__.startswith("fnnet")
        }
    assert found == set(RAISED.values())
