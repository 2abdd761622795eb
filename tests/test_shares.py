"""Every example's share against autodiff, one example at a time: gradients, norms, moments, inner products, clipping."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._layer import run_forward

from .cases import BY_CLASS, LAYERS, TOLERANCE, Case, assert_agree, cast, gpt, gpt_block, largest, thorough

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
    squares = jax.tree.map(lambda g: jnp.mean(jnp.square(g.astype(jnp.float64)), axis=0), reference)
    assert jax.tree.structure(moments) == jax.tree.structure(squares)
    jax.tree.map(functools.partial(agree, tolerance=tolerance), moments, squares)
    jax.tree.map(functools.partial(agree, tolerance=tolerance), mean, jax.tree.map(lambda g: g.mean(0), reference))


@pytest.mark.parametrize("case", BY_CLASS, ids=repr)
def test_every_layer_of_the_table(case):
    check(*of_a_layer(case), 1e-12)


@pytest.mark.parametrize("case", thorough(*(case for case in LAYERS if not case.loose)), ids=repr)
def test_every_layer_in_float32(case):
    check(*of_a_layer(case, "float32"), TOLERANCE["float32"])
