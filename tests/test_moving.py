"""Statistics that follow the data: moved by fit after each update, taken at once by calibrate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn
from fnnet.layers._layer import run_forward

from .cases import assert_agree, thorough

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (24, 5)) * jnp.arange(1.0, 6)[None, :] + 2
Y = jnp.arange(24) % 3
NET = fn.Network(
    fn.Dense(6, fn.linear, bias=False),
    fn.BatchNorm(momentum=0.3),
    fn.Repeat(fn.Residual(fn.Dense(6, fn.tanh), fn.BatchNorm()), 2),
    fn.Recompute(fn.Network(fn.BatchNorm(), fn.Dropout(0.2))),
    fn.Dense(3, fn.softmax),
)


def fitted(net, params, **changes):
    given = {"key": KEY, "epochs": 2, "batch_size": 8, "optimizer": fn.sgd(0.1), "progress": False, **changes}
    return fn.fit(net, fn.log_likelihood, params, (X, Y), **given)


def test_fit_moves_them_after_each_update():
    """As a loop by hand does: the cache of the batch, with the parameters before the update."""
    params = NET.init(KEY, (5,))
    ours, history = fitted(NET, params, epochs=1)
    shuffle, steps = jax.random.split(jax.random.fold_in(history.state.key, 0))
    order = jax.random.permutation(shuffle, 24)

    @jax.jit
    def step(params, i, rows):
        x, y, key = X[rows], Y[rows], jax.random.fold_in(steps, i)
        _, grads = fn.value_and_grad(NET, fn.log_likelihood)(params, x, y, key=key)
        _, cache = NET.forward(params, x, key=key, train=True)
        return NET.moving(jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), cache)

    for i, rows in enumerate(np.asarray(order).reshape(3, 8)):
        params = step(params, i, rows)
    assert_agree(ours, params, 1e-10)
    assert float(jnp.max(jnp.abs(ours[1]["mean"]))) > 0.1


def test_a_net_without_any_is_left_alone():
    net = fn.Network(fn.Dense(3, fn.softmax))
    params = net.init(KEY, (5,))
    assert net.moving(params, net.forward(params, X, train=True)[1]) == params
    assert fn.calibrate(net, params, X) is params


def test_calibrated_inference_is_training_on_the_whole():
    net = fn.Network(*NET.layers[:3], fn.BatchNorm(), fn.Dense(3, fn.softmax))
    params = net.init(KEY, (5,))
    exact = fn.calibrate(net, params, X)
    trained, _ = run_forward(net, params, X, train=True)
    # var is the unbiased one: 24/23 of the batch's.
    assert float(jnp.max(jnp.abs(net.apply(exact, X) - trained))) < 0.03
    assert float(jnp.max(jnp.abs(net.apply(params, X) - trained))) > 0.1
    np.testing.assert_allclose(exact[1]["mean"], jnp.mean(X @ params[0]["w"].T, axis=0), rtol=1e-10)
    np.testing.assert_allclose(exact[1]["var"], jnp.var(X @ params[0]["w"].T, axis=0, ddof=1), rtol=1e-10)
    assert_agree(exact[0], params[0], 0.0)


def test_calibration_draws_no_masks():
    params = NET.init(KEY, (5,))
    assert_agree(fn.calibrate(NET, params, X), jax.jit(lambda p: fn.calibrate(NET, p, X))(params), 1e-12, zero=True)


@pytest.mark.thorough
def test_a_run_resumed_and_a_sweep():
    params = NET.init(KEY, (5,))
    whole, _ = fitted(NET, params)
    _, half = fitted(NET, params, epochs=1)
    resumed, _ = fitted(NET, params, resume=half.state)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    given = {
        "keys": jax.random.split(KEY, 2),
        "optimizers": [fn.sgd(0.1)],
        "epochs": 1,
        "batch_size": 8,
        "progress": False,
    }
    swept = fn.sweep(NET, fn.log_likelihood, (X, Y), **given)
    assert float(jnp.min(jnp.abs(swept.params[1]["mean"]))) > 0


@pytest.mark.parametrize("decay", [*thorough(0.0), 0.1])
def test_adamw_against_optax(decay):
    optax = pytest.importorskip("optax")
    params = NET.init(KEY, (5,))
    masked = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "w", params)
    ours, theirs = (
        fn.adamw(1e-2, 0.9, 0.99, weight_decay=decay),
        optax.adamw(1e-2, 0.9, 0.99, weight_decay=decay, mask=masked),
    )
    own, other, mine, yours = params, params, ours.init(params), theirs.init(params)

    @jax.jit
    def step(i, own, mine, other, yours):
        grads = jax.tree.map(lambda p: jnp.cos(p + i), params)
        updates, mine = ours.update(grads, mine, own)
        own = fn.apply_updates(own, updates)
        updates, yours = theirs.update(grads, yours, other)
        return own, mine, optax.apply_updates(other, updates), yours

    with jax.numpy_dtype_promotion("standard"):
        for i in range(4):
            own, mine, other, yours = step(i, own, mine, other, yours)
    assert_agree(own, other, 1e-10)
    with pytest.raises(ValueError, match="adamw: expected the parameters, which it decays, got None"):
        ours.update(params, mine)
    with pytest.raises(ValueError, match="weight_decay"):
        fn.adamw(weight_decay=-1.0)
