"""Many networks at once are the networks that fit trains one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fnnet as fn
from fnnet.programs import _program_of_run

from .cases import thorough

NET = fn.Network(fn.Flatten(), fn.Dropout(0.2), fn.Dense(12, fn.sigmoid), fn.Dense(10, fn.softmax))
KEYS = jax.random.split(jax.random.key(3), 2)
SETTINGS = {"epochs": 2, "batch_size": 16, "progress": False}


@pytest.fixture(scope="module")
def data(digits):
    (x, y), (test_x, test_y) = digits
    return (jnp.asarray(x[:50], float), y[:50]), (jnp.asarray(test_x[:20], float), test_y[:20])


def alone(data, i, j, k, optimizers, penalties, **settings):
    init_key, fit_key = jax.random.split(KEYS[k])
    start = NET.init(init_key, (28, 28, 1))
    given = {**SETTINGS, "validation": data[1], **settings}
    return fn.fit(
        NET, fn.log_likelihood, start, data[0], key=fit_key, optimizer=optimizers[i], penalty=penalties[j], **given
    )


@pytest.mark.parametrize("at_once", [5, *thorough(64)])
def test_each_run_is_that_of_fit(data, at_once):
    """Momentum, a schedule, dropout, a penalty, a smaller last mini-batch; 12 runs in one chunk and in chunks of 5."""
    numbers = (0.1, 0.5), (0.3, 0.9), (0.01, 0.1)
    optimizers = [fn.sgd(fn.ExponentialDecay(rate, 0.9, 2), momentum=mu) for rate, mu in numbers]
    penalties = [fn.L2(0), fn.L2(2.5)]
    swept = fn.sweep(
        NET, fn.log_likelihood, data[0], keys=KEYS, optimizers=optimizers, penalties=penalties, validation=data[1],
        at_once=at_once, **SETTINGS,
    )  # fmt: skip
    assert swept.cost.shape == swept.accuracy.shape == swept.validation_cost.shape == (3, 2, 2, 2)
    assert swept.params[2]["w"].shape == (3, 2, 2, 12, 784)
    for i, j, k in ((0, 0, 0), (1, 1, 0), (2, 0, 1)):
        params, history = alone(data, i, j, k, optimizers, penalties)
        own = jax.tree.map(lambda leaf, at=(i, j, k): leaf[at], swept.params)
        for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * float(jnp.max(jnp.abs(b))))
        for name in ("cost", "accuracy", "validation_cost", "validation_accuracy"):
            np.testing.assert_allclose(getattr(swept, name)[i, j, k], getattr(history, name), rtol=1e-10)


def test_it_prints_as_a_table_of_the_last_epoch():
    cost = np.arange(16.0).reshape(2, 2, 2, 2)
    cost[1, 0, 1, 1] = cost[1, 1, :, 1] = np.nan
    assert repr(fn.Sweep((), cost, None, None, None)).splitlines() == [
        "optimizer  penalty       cost  diverged",
        "        0        0  2.000 ± 1         0",
        "        0        1  6.000 ± 1         0",
        "        1        0  9.000 ± 0         1",
        "        1        1   diverged         2",
        "after 2 epochs, 2 keys",
    ]
    many = np.arange(30.0).reshape(15, 2, 1, 1)
    lines = repr(fn.Sweep((), many, None, -many, many / 100)).splitlines()
    assert lines[0].split() == ["optimizer", "penalty", "cost", "validation", "cost", "validation", "accuracy"]
    assert [line.split() for line in lines[1:3]] == [
        ["9", "0", "18.00", "-18.00", "0.1800"],
        ["9", "1", "19.00", "-19.00", "0.1900"],
    ]
    assert lines[-1] == "after 1 epoch, 1 key, the 12 of 30 settings with the lowest validation cost"
    assert repr(fn.Sweep((), cost[0], None, None, None)).startswith("Sweep(params=(), cost=array(")


@pytest.mark.thorough
def test_what_is_not_monitored_is_none(data):
    swept = fn.sweep(
        NET, fn.log_likelihood, data[0], keys=KEYS, optimizers=[optax.sgd(0.1)], monitor_training=False, **SETTINGS
    )
    assert swept.cost.shape == (1, 1, 2, 2)
    assert swept.accuracy is swept.validation_cost is swept.validation_accuracy is None
    _, history = alone(data, 0, 0, 1, [fn.sgd(0.1)], [None], monitor_training=False)
    np.testing.assert_allclose(swept.cost[0, 0, 1], history.cost, rtol=1e-10)


@pytest.mark.thorough
def test_a_network_that_diverges_leaves_the_others_alone(data):
    optimizers = [fn.sgd(0.1), fn.sgd(jnp.inf)]
    swept = fn.sweep(NET, fn.log_likelihood, data[0], keys=KEYS, optimizers=optimizers, **SETTINGS)
    assert np.isnan(swept.cost[1]).all()
    assert np.isnan(swept.accuracy[1]).all()
    assert np.isfinite(swept.cost[0]).all()


def test_other_numbers_compile_nothing(data):
    run = lambda rate: fn.sweep(  # noqa: E731
        NET, fn.log_likelihood, data[0], keys=KEYS, optimizers=[fn.sgd(rate), fn.sgd(2 * rate)], **SETTINGS
    )
    first = run(0.1)
    compiled = _program_of_run.cache_info().misses
    assert (run(0.2).cost != first.cost).all()
    assert _program_of_run.cache_info().misses == compiled


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": jax.random.key(0)}, r"sweep: expected keys of shape \(k,\), got an array of key<fry> and shape \(\)"),
        ({"keys": 3}, r"sweep: expected keys of shape \(k,\), got 3; make them with jax.random.split"),
        ({"optimizers": []}, r"sweep: expected optimizers in a list of at least one, got \[\]"),
        ({"optimizers": fn.sgd(0.1)}, r"sweep: expected optimizers in a list"),
        ({"optimizers": [0.1]}, r"sweep: expected optimizers with init and update, such as fn.sgd\(0.5\), got float"),
        (
            {"optimizers": [fn.sgd(0.1), fn.adam(0.1)]},
            r"sweep: expected optimizers of one kind that differ in their numbers",
        ),
        ({"penalties": [fn.L2(1.0), fn.L1(1.0)]}, r"sweep: expected penalties of one kind .* give fn.L2\(0.0\)"),
        ({"penalties": []}, r"sweep: expected penalties in a list of at least one, got \[\]"),
        (
            {"optimizers": [optax.sgd(0.1), optax.sgd(0.2)]},
            r"sweep: expected optimizers of one kind .* \(an optax transformation keeps its numbers in functions",
        ),
        ({"penalties": [None, fn.L2(1.0)]}, r"for no penalty beside others give fn.L2\(0.0\)"),
        ({"penalties": [0.1]}, r"penalty: expected an object with value and gradient"),
        ({"epochs": -1}, r"sweep: expected epochs to be an integer of at least 0, got -1"),
        ({"epochs": True}, r"sweep: expected epochs to be an integer of at least 0, got True"),
        ({"every": 0}, r"sweep: expected every to be an integer of at least 1, got 0"),
        ({"resume": 3}, r"sweep: expected resume=history.state or a path, got int"),
        ({"batch_size": 0}, r"sweep: expected batch_size to be an integer of at least 1"),
        ({"at_once": 0}, r"sweep: expected at_once to be an integer of at least 1"),
    ],
)
def test_bad_input(change, message, data):
    given = {"keys": KEYS, "optimizers": [fn.sgd(0.1)], **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        fn.sweep(NET, fn.log_likelihood, data[0], **given)


def test_bad_data_is_named_as_in_fit():
    with pytest.raises(ValueError, match=r"data: expected \(x, y\)"):
        fn.sweep(NET, fn.log_likelihood, jnp.ones(3), keys=KEYS, optimizers=[fn.sgd(0.1)], **SETTINGS)
    with pytest.raises(ValueError, match=r"net: expected an fn.Network or another layer, got NoneType"):
        fn.sweep(None, fn.log_likelihood, (jnp.ones(3), jnp.ones(3)), keys=KEYS, optimizers=[fn.sgd(0.1)], **SETTINGS)
