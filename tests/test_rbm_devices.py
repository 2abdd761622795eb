"""Boltzmann machines on 8 simulated devices are those that one device trains: all checks run in one process."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn
from fnnet import dbn, rbm
from fnnet.batches import ONE, Layout
from fnnet.devices import Division
from fnnet.rbm import training
from fnnet.rbm.parts import key_of_part

from .cases import thorough
from .compiled import collectives
from .devices import on_devices

KEY = jax.random.key(3)
X = np.random.default_rng(0).random((46, 12))
TRAINING = {
    "key": KEY, "epochs": 2, "batch_size": 16, "optimizer": fn.sgd(0.1, momentum=0.5), "penalty": fn.L2(0.3),
    "progress": False,
}  # fmt: skip
PERSISTENT = "persistent, sparse, 10 at a time"
CHANGES = {
    "CD-2": {"k": 2, "validation": X[:9]},
    PERSISTENT: {
        "persistent": True, "sparsity": rbm.Sparsity(0.2, 0.5), "batch_size": 10, "validation": X[:16],
    },
    "Gaussian, any number of examples monitored": {"visible": "gaussian", "batch_size": 5, "optimizer": fn.adam(0.01)},
}  # fmt: skip


def mesh(kind=AxisType.Auto, shape=(8,), names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(names))


def fit(x=X, start=None, **changes):
    start = rbm.init(jax.random.key(0), 12, 7) if start is None else start
    return rbm.fit(start, x, **{**TRAINING, **changes})


def assert_close(ours, theirs, tolerance=1e-12):
    """Of each leaf the largest difference, relative to the largest parameter or monitor."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1e-2, float(np.max(np.abs(b)))))


def same_run(change, **on):
    (params, history), (one, of_one) = fit(**change, **on), fit(**change)
    assert_close(params, one)
    assert_close((history[:3], history.state.chains), (of_one[:3], of_one.state.chains))
    return params, history


def one_device(kind):
    """As on one device, and what comes out lies on the mesh that was given."""
    params, _ = same_run(CHANGES[kind], mesh=mesh(AxisType.Explicit))
    assert params["w"].sharding == NamedSharding(mesh(AxisType.Explicit), P())


def one_of_two_axes():
    same_run(CHANGES["CD-2"], mesh=mesh(AxisType.Auto, (2, 4), ("model", "data")))


def where_the_data_lie(kind):
    """Divided data are trained on where they lie, in the order of one device, their rows exchanged."""
    x = jax.device_put(X[:40], NamedSharding(mesh(AxisType.Explicit), P("data")))
    params, history = fit(x, **CHANGES[kind])
    one, of_one = fit(X[:40], **CHANGES[kind])
    assert_close(params, one)
    assert_close((history[:3], history.state.chains), (of_one[:3], of_one.state.chains))


def blocks(persistent):
    """Blocks on the mesh that the data lie on, an Explicit one that is set: one device that takes the same mini-batches."""
    x, start, settings = X[:40], rbm.init(jax.random.key(0), 12, 7), {"persistent": persistent, "k": 2}
    explicit = mesh(AxisType.Explicit)
    with jax.set_mesh(explicit):
        cut = jax.device_put(x, P("data"))
        params, history = fit(cut, shuffle="block", optimizer=fn.sgd(0.1), **settings)
    assert params["w"].sharding.mesh == explicit
    here, chains = start, None
    if persistent:
        _, state = fit(x, epochs=0, **settings)
        chains = state.state.chains
    for epoch in (1, 2):
        shuffle_key, step_key = jax.random.split(jax.random.fold_in(KEY, epoch))
        parts = [5 * d + jax.random.permutation(jax.random.fold_in(shuffle_key, d), 5) for d in range(8)]
        for i in range(3):
            v = jnp.asarray(x[np.concatenate([part[2 * i : 2 * i + 2] for part in parts])])
            found = rbm.contrastive_divergence(here, jax.random.fold_in(step_key, i), v, chains, k=2)
            chains = found.h if persistent else None
            decay = TRAINING["penalty"].gradient(here, 40)
            here = jax.tree.map(lambda p, g, d: p - 0.1 * (g + d), here, found.gradients, decay)
    assert_close(params, here)
    error = rbm.reconstruction_error(here, x)
    assert_close(history.reconstruction_error[-1], error)


OF_GRADIENT = "all-reduce", 8 * (200 * 100 + 200 + 100), 2
LAYOUTS = {
    "whole": ({}, [OF_GRADIENT]),
    "blocks": ({"cut": True, "block": True}, [OF_GRADIENT]),
    "divided": ({"cut": True}, [("reduce-scatter", 8 * 16 * 200, 2), OF_GRADIENT]),
}


def program(name):
    """An epoch sends one all-reduce of the gradient for each mini-batch, and, of divided data in one device's order, the rows
    of it: nothing else. It is an eighth of the work."""
    (changes, sent), on = LAYOUTS[name], mesh()
    x, start, optimizer = jnp.ones((256, 200)), rbm.init(KEY, 200, 100), fn.sgd(jnp.ones(()))
    given = optimizer, None, None, start, optimizer.init(start), jnp.ones((128, 100)), x, KEY, jnp.asarray(1)
    rows, whole = NamedSharding(on, P("data")), NamedSharding(on, P())
    placed = [jax.device_put(a, whole) for a in given]
    placed[5], placed[6] = jax.device_put(given[5], rows), jax.device_put(x, rows if changes else whole)
    programs = []
    for layout, arguments in ((ONE, given), (Layout(Division(on, "data"), **changes), placed)):
        run = functools.partial(training._epoch.__wrapped__, batch_size=128, visible="bernoulli", layout=layout)
        programs.append(jax.jit(run).lower(*arguments).compile())
    assert [(f.kind, f.bytes, f.times) for f in collectives(programs[1].as_text())] == sent
    one, several = (compiled.cost_analysis()["flops"] for compiled in programs)
    assert several <= 1.15 / 8 * one


def monitored_in_part():
    """More examples than are monitored: the same ones, wherever they lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rbm.training, "MONITORED", 13)
        same_run(CHANGES["CD-2"], mesh=mesh())
        x = X[:40]
        one, several = fit(x, validation=X[:16]), fit(x, validation=X[:16], mesh=mesh(), shuffle="block")
    assert_close(several[1].reconstruction_error[0], one[1].reconstruction_error[0], 0.1)


def resumed():
    """A run of 8 devices resumes bit for bit, from a file too; on one device to rounding, unless it was in blocks."""
    change = {**CHANGES[PERSISTENT], "mesh": mesh(AxisType.Explicit), "epochs": 4}
    whole = fit(**change)
    with tempfile.TemporaryDirectory() as folder:
        _, half = fit(**{**change, "epochs": 2, "checkpoint": folder})
        for resume in (half.state, folder):
            params, history = fit(**{**change, "resume": resume, "key": None})
            assert_same((params, history[:3], history.state.chains), (whole[0], whole[1][:3], whole[1].state.chains))
        on_one = fit(**{**change, "mesh": None, "resume": folder})
        assert_close(on_one[0], whole[0])
    in_blocks = {**change, "batch_size": 16, "shuffle": "block"}
    _, half = fit(X[:40], **{**in_blocks, "epochs": 2})
    with pytest.raises(
        ValueError, match=r"rbm.fit: expected resume= a state of the same run, got one with another batch_size"
    ):
        fit(X[:40], **{**in_blocks, "mesh": None, "shuffle": "global", "resume": half.state})


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)


def stacks(shuffle):
    """A stack of machines, its data cut over the mesh or given whole."""
    x = X[:40]
    given = {**TRAINING, "validation": X[40:], "mesh": mesh(AxisType.Explicit), "shuffle": shuffle}
    stack, histories = dbn.pretrain(x, (7, 5), **given)
    assert stack[1]["w"].sharding == NamedSharding(mesh(AxisType.Explicit), P())
    if shuffle == "global":
        one, of_one = dbn.pretrain(x, (7, 5), **{**given, "mesh": None})
        assert_close((stack, [h[:3] for h in histories]), (one, [h[:3] for h in of_one]), 1e-11)
        return
    first, _ = fit(x, rbm.init(jax.random.split(jax.random.fold_in(KEY, 0))[0], 12, 7, data=x), **{
        **given, "key": jax.random.split(jax.random.fold_in(KEY, 0))[1],
    })  # fmt: skip
    assert_close(stack[0], first)
    cut = jax.device_put(x, NamedSharding(mesh(AxisType.Explicit), P("data")))
    again, _ = dbn.pretrain(cut, (7, 5), **{**given, "mesh": None})
    assert_same(again, stack)


def random_numbers():
    """A device's rows of every distribution, dtype and derived key are those of the whole batch."""

    def draws(key, m):
        first, second = jax.random.split(jax.random.fold_in(key, 3))
        return {
            "uniform": jax.random.uniform(first, (m, 3), jnp.float32),
            "normal": jax.random.normal(second, (m, 3), jnp.float64),
            "half": jax.random.normal(second, (m, 3), jnp.bfloat16),
            "whole": jax.random.randint(first, (m,), 0, 1000),
            "wide": jax.random.randint(first, (m, 2, 2), 0, 2**40),
        }

    for key in (jax.random.key(5), jax.random.PRNGKey(5)):
        of_part = lambda key: draws(key_of_part(Division(mesh(), "data"), key, 24), 3)  # noqa: E731
        ours = jax.jit(jax.shard_map(of_part, mesh=mesh(), in_specs=P(), out_specs=P("data")))(key)
        assert_same(ours, draws(key, 24))


def refusals():
    several, with_data = mesh(shape=(4, 2), names=("rows", "columns")), {"mesh": mesh()}
    for change, message in (
        (
            {"mesh": several},
            r"rbm.fit: expected a mesh with the axis 'data', got one with \('rows', 'columns'\); name",
        ),
        ({"shuffle": "block"}, r"rbm.fit: expected mesh= or divided data for shuffle='block', got one device"),
        ({"mesh": 8}, r"rbm.fit: expected mesh= a jax.sharding.Mesh, got int; such as jax.make_mesh"),
        ({**with_data, "shuffle": "rows"}, r"rbm.fit: expected shuffle='global' or 'block', got 'rows'"),
        (
            {**with_data, "shuffle": "block"},
            r"expected data of a number of examples that the mesh's 8 devices divide .*, got 46; leave 6 out, or use shuffle",
        ),
        (
            {**with_data, "shuffle": "block", "x": X[:40], "batch_size": 12},
            r"rbm.fit: expected batch_size= that the mesh's 8 devices divide for shuffle='block', got 12; give 16, or use",
        ),
        (
            {**with_data, "key": jax.random.key(0, impl="rbg")},
            r"rbm.fit: expected threefry keys .*, got keys of rbg, .*; make one with jax.random.key\(seed, impl=",
        ),
        ({**with_data, "x": X[0]}, r"rbm: expected a batch \(m, n_v\) of at least one example"),
        ({**with_data, "x": 2 * X}, r"rbm.fit: expected data from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(**change)
    with pytest.raises(ValueError, match=r"dbn.pretrain: expected a mesh with the axis 'data'"):
        dbn.pretrain(X, (7,), **TRAINING, mesh=several)
    with (
        jax.threefry_partitionable(False),
        pytest.raises(ValueError, match=r"got jax_threefry_partitionable=False, of which"),
    ):
        fit(**with_data)


def divergence():
    with pytest.raises(fn.Diverged, match="a parameter is not finite") as caught:
        fit(mesh=mesh(AxisType.Explicit), optimizer=fn.sgd(jnp.inf))
    assert caught.value.params["w"].sharding.mesh == mesh(AxisType.Explicit)


def hosts(folder):
    """On two hosts the data are each one's part of a global array, whatever the shuffle."""
    on, host = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), jax.process_index()
    part = X[20 * host : 20 * host + 20]
    x = jax.make_array_from_process_local_data(NamedSharding(on, P("data")), part)
    for shuffle in ("global", "block"):
        given = {**CHANGES[PERSISTENT], "batch_size": 12, "shuffle": shuffle}
        params, history = fit(x, **given)
        found = [*params.values(), *history[:3]]
        if host == 0:
            np.savez(Path(folder) / f"{shuffle}.npz", *map(np.asarray, found))
        run = Path(folder) / shuffle
        fit(x, **given, checkpoint=run, epochs=1)
        params, history = fit(x, **given, checkpoint=run, resume=run)
        assert_same([*params.values(), *history[:3]], found)
    with pytest.raises(ValueError, match=r"rbm.fit: expected data that the 2 processes share"):
        fit(part, mesh=on)


@pytest.mark.thorough
def test_two_processes(tmp_path):
    on_devices(hosts, str(tmp_path), devices=4, hosts=2)
    params, history = fit(X[:40], **{**CHANGES[PERSISTENT], "batch_size": 12})
    with np.load(tmp_path / "global.npz") as theirs:
        assert_close([theirs[name] for name in theirs.files], [*params.values(), *history[:3]])


CHECKS = {
    **{kind: (one_device, kind) for kind in CHANGES},
    **{f"{kind}, divided": (where_the_data_lie, kind) for kind in CHANGES},
    "blocks": (blocks, False),
    "blocks, persistent": (blocks, True),
    **{f"program, {name}": (program, name) for name in LAYOUTS},
    "monitored in part": (monitored_in_part,),
    "resumed": (resumed,),
    "stack": (stacks, "global"),
    "stack in blocks": (stacks, "block"),
    "random numbers": (random_numbers,),
    "one of two axes": (one_of_two_axes,),
    "divergence": (divergence,),
    "refusals": (refusals,),
}


@pytest.mark.parametrize("name", thorough(*CHECKS))
def test_on_eight_devices(name, found):
    assert found[name] is None, found[name]
