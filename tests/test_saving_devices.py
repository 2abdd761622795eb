"""save and load where arrays lie on several devices: what comes back is where ``like`` is, on one host and on two."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn

from .devices import on_devices

NET = fn.Network(fn.Dense(16, fn.sigmoid), fn.Dense(8, fn.softmax))


def on_host(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def assert_same(loaded, given):
    """The same bits in the same places, committed where those are."""
    assert jax.tree.structure(loaded) == jax.tree.structure(given)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(given), strict=True):
        assert (a.dtype, a.shape, a.committed) == (b.dtype, b.shape, b.committed)
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
        if a.is_fully_addressable:
            assert on_host(a).tobytes() == on_host(b).tobytes()
        for one, two in zip(a.addressable_shards, b.addressable_shards, strict=True):
            assert (one.device, one.index) == (two.device, two.index)
            assert on_host(one.data).tobytes() == on_host(two.data).tobytes()


def trees(mesh):
    """Parameters and keys, cut along either axis, replicated, on one device, in dtypes that NumPy has and that it lacks."""
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))  # noqa: E731
    first, last = NET.init(jax.random.key(0), (4,))
    return {
        "params": (
            {"w": place(first["w"], "data"), "b": place(first["b"])},
            {"w": place(last["w"], None, "data"), "b": place(last["b"], "data")},
        ),
        "narrow": place(jnp.arange(16, dtype=jnp.int4).reshape(8, 2), "data"),
        "bfloat16": place(jnp.arange(16, dtype=jnp.bfloat16), "data"),
        "keys": place(jax.random.split(jax.random.key(1), 8), "data"),
        "key": place(jax.random.key(2, impl="rbg")),
        "here": jax.device_put(jnp.ones(3), jax.devices()[-1]),
        "anywhere": jnp.ones(3),
        "count": place(jnp.int32(3)),
    }


def one_host(folder):
    path = Path(folder) / "tree.npz"
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        tree = trees(mesh)
        fn.save(path, tree)
        assert_same(fn.load(path, like=tree), tree)
        assert_same(fn.load(path), jax.tree.map(one_device, tree))
        about = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding if a.committed else None)  # noqa: E731
        assert_same(fn.load(path, like=jax.tree.map(about, tree)), tree)
        numbers = fn.load(path, like=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree))
        assert_same(numbers, jax.tree.map(one_device, tree))
        for leaf in jax.tree.leaves(tree):
            leaf.delete()
        assert all(leaf.committed for leaf in jax.tree.leaves(fn.load(path, like=tree)["params"]))

        fewer = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(kind,))
        there = fn.load(path, like=trees(fewer))
        assert there["params"][0]["w"].sharding.mesh.size == 4


def without_its_mesh(folder):
    """An array that is said to be divided, of a mesh that is not set."""
    path, mesh = Path(folder) / "w.npz", jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    abstract = jax.eval_shape(lambda tree: tree, {"w": trees(mesh)["params"][0]["w"]})
    fn.save(path, {"w": trees(mesh)["params"][0]["w"]})
    with pytest.raises(ValueError, match=r"on which devices \['w'\] is, got .* load it under jax\.set_mesh\(mesh\)"):
        fn.load(path, like=abstract)
    with jax.set_mesh(mesh):
        assert_same(fn.load(path, like=abstract), {"w": trees(mesh)["params"][0]["w"]})


def resumed(folder):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    params = jax.device_put(NET.init(jax.random.key(0), (4,)), NamedSharding(mesh, P()))
    data = jax.random.normal(jax.random.key(3), (16, 4)), jnp.arange(16) % 8

    def run(epochs, **more):
        return fn.fit(
            NET, fn.log_likelihood, params, data, key=jax.random.key(4), epochs=epochs, batch_size=8,
            optimizer=fn.adam(1e-2), monitor_training=False, progress=False, **more,
        )  # fmt: skip

    run(1, checkpoint=folder)
    for leaf in jax.tree.leaves(run(1, resume=folder)[1].state.params):
        assert leaf.committed
        assert leaf.sharding == NamedSharding(mesh, P())
    assert_same(run(2, resume=folder)[0], run(2)[0])


def one_device(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(on_host(leaf)), impl=str(jax.random.key_impl(leaf)))
    return jnp.asarray(np.asarray(leaf))


@pytest.mark.thorough
def test_what_is_loaded_lies_where_like_does(tmp_path):
    on_devices(one_host, str(tmp_path))


@pytest.mark.thorough
def test_a_resumed_run_stays_on_its_devices(tmp_path):
    on_devices(resumed, str(tmp_path / "run"))


def two_hosts(folder):
    mesh = jax.make_mesh((2, 2), ("host", "data"), axis_types=(AxisType.Auto,) * 2)
    me = jax.process_index()

    def place(a, *spec):
        data = jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        made = jax.make_array_from_callback(
            data.shape, NamedSharding(mesh, P(*spec)), lambda index: np.asarray(data)[index]
        )
        return made if data is a else jax.random.wrap_key_data(made)

    w = jnp.arange(32.0).reshape(8, 4)
    held = {
        "replicated": jax.tree.map(place, NET.init(jax.random.key(0), (4,))),
        "on each host": place(w, "data"),
        "keys": place(jax.random.split(jax.random.key(1), 8), "data"),
        "key": place(jax.random.key(2)),
        "own": jnp.ones(3),
        "narrow": place(jnp.arange(8, dtype=jnp.int4), "data"),
    }
    spread = {"w": place(w, ("host", "data")), "b": place(jnp.ones(4))}
    keys = {"keys": place(jax.random.split(jax.random.key(1), 8), "host")}

    path = Path(folder) / "p.npz"
    if me == 1:  # alone
        fn.save(path, held)
    sync_global_devices("saved")
    assert_same(fn.load(path, like=held), held)
    np.testing.assert_array_equal(fn.load(path)["on each host"], w)

    for name, tree in (("w", spread), ("keys", keys)):
        refused = (
            rf"save: expected arrays .* whole, got \['{name}'\] spread over hosts, .*; save it with orbax\.checkpoint"
        )
        with pytest.raises(ValueError, match=refused):
            fn.save(path, tree)
        with pytest.raises(ValueError, match=refused):
            fn.save(path.with_name("new.npz"), tree)
    sync_global_devices("refused")
    assert [file.name for file in Path(folder).iterdir()] == ["p.npz"]
    sync_global_devices("looked")
    assert_same(fn.load(path, like=held), held)

    whole = {"w": w, "b": jnp.ones(4)}
    fn.save(Path(folder) / f"whole-{me}.npz", whole)
    assert_same(fn.load(Path(folder) / f"whole-{me}.npz", like=spread), spread)
    print("done")


@pytest.mark.thorough
def test_two_hosts(tmp_path):
    """One of them saves what it holds whole, both read their parts; what is spread over them is refused."""
    assert all("done" in printed for printed in on_devices(two_hosts, str(tmp_path), devices=4, hosts=2))
