"""Sweeps on 8 simulated devices: each trains its networks, the same as on one device."""

import contextlib
import functools
import importlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import fnnet as fn

from .cases import thorough
from .compiled import collectives

MODULE = importlib.import_module("fnnet.sweep")
NETS = {
    "dropout": fn.Network(fn.Flatten(), fn.Dropout(0.2), fn.Dense(12, fn.sigmoid), fn.Dense(10, fn.softmax)),
    "examples mixed": fn.Network(
        fn.Flatten(), fn.Dense(8, fn.linear, bias=False), fn.BatchNorm(), fn.Dense(10, fn.softmax)
    ),
    "convolution": fn.Network(fn.Conv(4, 3, fn.relu), fn.MaxPool(2), fn.Flatten(), fn.Dense(10, fn.softmax)),
    "cells": fn.Network(fn.LSTM(5), fn.GRU(4), fn.LastStep(), fn.Dense(10, fn.softmax)),
}
SHAPES = {"convolution": (6, 6, 1)}
Y = np.arange(50) % 10


def run(kind="dropout", **changes):
    """12 runs, of momentum and a schedule, two penalties and three seeds."""
    x = np.random.default_rng(0).random((50, *SHAPES.get(kind, (6, 2))))
    numbers = (0.1, 0.5), (0.3, 0.9)
    optimizers = [fn.sgd(fn.ExponentialDecay(rate, 0.9, 2), momentum=mu) for rate, mu in numbers]
    given = {
        "data": (x, Y), "keys": jax.random.split(jax.random.key(3), 3), "epochs": 2, "batch_size": 16, "progress": False,
        "optimizers": optimizers, "penalties": [fn.L2(0.0), fn.L2(2.5)], "validation": (x[:20], Y[:20]), **changes,
    }  # fmt: skip
    return fn.sweep(NETS[kind], fn.log_likelihood, **given)


def mesh(kind=AxisType.Auto, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def assert_close(ours, theirs):
    """Relative to the largest entry, but for what is 0 to rounding, as a bias below batch normalisation."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * max(1e-2, float(np.max(np.abs(b)))))


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def one_device(kind):
    """12 networks in two groups of 8 (from 3, rounded up)."""
    several, one = run(kind, mesh=mesh(AxisType.Explicit), at_once=3), run(kind)
    assert several.cost.shape == (2, 2, 3, 2)
    assert_close(several, one)


def all_at_once():
    """12 networks on 16 places, 2 on each device of a mesh of any axes."""
    assert_close(run(mesh=mesh(AxisType.Auto, (2, 4), ("rows", "columns"))), run())


def where_the_data_lie():
    """Divided data mean their mesh, whichever is set; keys, numbers and a smaller sweep on it."""
    explicit = mesh(AxisType.Explicit)
    one = run(data=(np.ones((48, 4)), Y[:48]), validation=None, penalties=None, at_once=1)
    with jax.set_mesh(explicit):
        data = jax.device_put((jnp.ones((48, 4)), jnp.asarray(Y[:48])), P("data"))
        swept = run(data=data, validation=None, penalties=None, at_once=1)
    assert_close(swept, one)


def program():
    """An epoch of 8 networks on 8 devices sends nothing, and is an eighth of the work."""
    flops, seen = [], []
    data = (np.ones((64, 30)), Y[:1].repeat(64))

    def lowered(*given, **options):
        run = functools.partial(original.__wrapped__, *given[:2], **options)
        seen.append(jax.jit(run).lower(*given[2:]).compile())
        return original(*given, **options)

    original = MODULE._epochs
    given = {"data": data, "validation": None, "keys": jax.random.split(jax.random.key(0), 8), "epochs": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "_epochs", lowered)
        for on in (None, mesh()):
            run(**given, optimizers=[fn.sgd(0.1)], penalties=None, mesh=on)
            flops.append(seen[-1].cost_analysis()["flops"])
    assert collectives(seen[-1].as_text()) == []
    assert flops[1] <= 1.15 / 8 * flops[0], flops


def resumed():
    """Stopped after any epoch and resumed it is the uninterrupted sweep bit for bit, and goes on on 4 devices as well."""
    on = mesh(AxisType.Explicit)
    whole = run(mesh=on, at_once=8)
    for number in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder:
            with stopping_at(number), pytest.raises(KeyboardInterrupt):
                run(mesh=on, at_once=8, checkpoint=folder)
            assert_same(run(mesh=on, at_once=8, checkpoint=folder, resume=folder), whole)
            if number == 1:
                half = Mesh(on.devices[:4], ("data",))
                assert_close(run(mesh=half, at_once=8, resume=folder), whole)
                with pytest.raises(ValueError, match=r"a run with the same .* at_once"):
                    run(mesh=on, resume=folder)


@contextlib.contextmanager
def stopping_at(number):
    """Ctrl-C after so many epochs."""

    @contextlib.contextmanager
    def reporter(*given):
        def report(epoch, measured):
            if epoch == number:
                raise KeyboardInterrupt

        yield report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MODULE, "reporter", reporter)
        yield


def refusals():
    with pytest.raises(ValueError, match=r"sweep: expected mesh= a jax.sharding.Mesh, got int; such as jax.make_mesh"):
        run(mesh=8)


CHECKS = {
    **{kind: (one_device, kind) for kind in NETS},
    "all at once": (all_at_once,),
    "where the data lie": (where_the_data_lie,),
    "program": (program,),
    "resumed": (resumed,),
    "refusals": (refusals,),
}


@pytest.mark.parametrize("name", thorough(*CHECKS))
def test_on_eight_devices(name, found):
    assert found[name] is None, found[name]
