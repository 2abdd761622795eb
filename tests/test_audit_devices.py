"""The audit of what lies on a mesh: on one host and on two, with psums that are missing and psums too many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.multihost_utils import sync_global_devices
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn

from .devices import on_devices

MISSING = "off by the number of devices (8): a psum is missing"
TOO_MANY = "off by the number of devices (8): a psum too many"


def placed(mesh, tree, *spec):
    """The tree on the mesh, of which each process places its part."""
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, NamedSharding(mesh, P(*spec)), lambda i: np.asarray(a)[i]), tree
    )


def small(n_out=8):
    net = fn.Network(fn.Dense(6, fn.tanh), fn.Dropout(0.2), fn.Dense(n_out, fn.softmax))
    return net, net.init(jax.random.key(0), (5,)), jax.random.normal(jax.random.key(1), (16, 5)), jnp.arange(16) % n_out


@fn.layer
class Own:
    """A dense layer of one's own, which adds its gradients up over the devices itself."""

    n_out: int
    fault: str = ""
    independent = True

    def init(self, key, input_shape):
        return {"w": jax.random.normal(key, (self.n_out, *input_shape)), "b": jnp.ones(self.n_out)}

    def forward(self, params, a_in, *, probe=None):
        z = a_in @ params["w"].T + params["b"]
        return z if probe is None else z + probe, a_in

    def propagate(self, params, cache, delta):
        return delta @ params["w"]


@fn.layer
class ByName(Own):
    """By an axis that ``shard_map`` binds: the mean, a sum of means, or each device's sum over the size of the batch."""

    def gradients(self, params, cache, delta):
        means = {"w": delta.T @ cache / len(delta), "b": delta.mean(0)}
        if self.fault == "missing":
            return jax.tree.map(lambda g: g / jax.lax.axis_size("data"), means)
        add = jax.lax.psum if self.fault == "too many" else jax.lax.pmean
        return {**means, "w": add(means["w"], "data")}


@fn.layer
class Centred:
    """Mixes the examples of all devices: a − mean(a)."""

    fault: str = ""

    def output_shape(self, input_shape):
        return input_shape

    def forward(self, params, a_in, *, probe=None):
        a = a_in - jax.lax.pmean(a_in.mean(0), "data")
        return a if probe is None else a + probe, ()

    def propagate(self, params, cache, delta):
        mean = delta.mean(0)
        return delta - (mean if self.fault else jax.lax.pmean(mean, "data"))


def by_shard_map(mesh, n_out, fault):
    """The layer's gradients by a ``shard_map`` of its own, without the check that would see what is missing."""

    @fn.layer
    class Mapped(Own):
        independent = False

        def gradients(self, params, cache, delta):
            def of_device(a, delta):
                sums = {"w": delta.T @ a, "b": delta.sum(0)}
                total = sums if fault == "missing" else jax.lax.psum(sums, "data")
                total = jax.lax.psum(total, "data") if fault == "too many" else total
                return jax.tree.map(lambda g: g / (8 * len(a)), total)

            run = jax.shard_map(of_device, mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=False)
            return run(cache, delta)

    return Mapped(n_out)


def hints(report):
    return {(row.layer, row.equation, row.leaf): row.hint for row in report.rows if row.verdict == "fail"}


def one_host():
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        net, params, x, y = small()
        there, rows = placed(mesh, params), placed(mesh, (x, y), "data")
        about = {"key": jax.random.key(2), "weights": jnp.linspace(0.5, 2, 16)}
        report = fn.compare_gradients(net, fn.log_likelihood, there, *rows, **about, penalty=fn.L2(0.1))
        assert report.ok, report
        assert ("value_and_grad", "on 8 devices", "pass") in {(r.equation, r.leaf, r.verdict) for r in report.rows}
        alone = fn.compare_gradients(net, fn.log_likelihood, params, x, y, **about, penalty=fn.L2(0.1))
        assert [r for r in report.rows if r.leaf != "on 8 devices"] == list(alone.rows)
        assert fn.check_layer(net, there, rows[0], key=about["key"]).ok

        spoken = lambda fault: fn.Network(fn.Dense(4, fn.tanh), ByName(3, fault), fn.Dense(8, fn.softmax))  # noqa: E731
        params = spoken("").init(jax.random.key(0), (5,))
        for fault, said in (("missing", MISSING), ("too many", TOO_MANY)):
            report = fn.compare_gradients(spoken(fault), fn.log_likelihood, placed(mesh, params), *rows)
            found = hints(report)
            leaves = ["['b']", "['w']"] if fault == "missing" else ["['w']"]
            assert [key for key in found if key[0] == "1 ByName"] == [
                ("1 ByName", "gradients", leaf) for leaf in leaves
            ], report
            assert len(found) == len(leaves), report
            assert all(said in hint for hint in found.values()), report
            assert "1 ByName" in str(report)
            assert "8 parts over 'data'" in str(report)
        assert fn.compare_gradients(spoken(""), fn.log_likelihood, placed(mesh, params), *rows).ok
        with pytest.raises(
            ValueError, match=r"compare_gradients: expected x divided over the axis .*unbound axis.* data"
        ):
            fn.compare_gradients(spoken(""), fn.log_likelihood, params, x, y)

    mixing = lambda fault="": fn.Network(fn.Dense(4, fn.tanh), Centred(fault), fn.Dense(8, fn.softmax))  # noqa: E731
    params = mixing().init(jax.random.key(0), (5,))
    report = fn.compare_gradients(mixing(), fn.log_likelihood, placed(mesh, params), *rows)
    assert report.ok, report
    assert list(hints(fn.compare_gradients(mixing("local"), fn.log_likelihood, placed(mesh, params), *rows))) == [
        ("1 Centred", "propagate", "")
    ]


def test_one_host():
    on_devices(one_host)


def mapped():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    _, _, x, y = small(3)
    for fault, said in (("", ""), ("missing", MISSING), ("too many", TOO_MANY)):
        net = fn.Network(fn.Dense(4, fn.tanh), by_shard_map(mesh, 3, fault), fn.Dense(3, fn.softmax))
        params = net.init(jax.random.key(0), (5,))
        for tree, rows in ((params, (x, y)), (placed(mesh, params), placed(mesh, (x, y), "data"))):
            report = fn.compare_gradients(net, fn.log_likelihood, tree, *rows)
            assert report.ok != bool(fault), report
            assert all(said in hint for hint in hints(report).values()), report
            leaves = {("1 Mapped", "gradients", leaf) for leaf in ("['w']", "['b']")} if fault else set()
            assert set(hints(report)) == leaves, report


def test_a_shard_map_in_a_layer():
    on_devices(mapped)


def function(mesh, add):
    """Σ tanh(x wᵀ) over all examples, which the devices share, with a hand-written rule."""

    def value(w, x):
        of_device = lambda w, x: jax.lax.psum(jnp.sum(jnp.tanh(x @ w.T)), "data")  # noqa: E731
        return jax.shard_map(of_device, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())(w, x)

    def backward(kept, u):
        def of_device(w, x, u):
            delta = u * (1 - jnp.tanh(x @ w.T) ** 2)
            return add(delta.T @ x), delta @ w

        specs = {"in_specs": (P(), P("data"), P()), "out_specs": (P(), P("data"))}
        return jax.shard_map(of_device, mesh=mesh, **specs, check_vma=False)(*kept, u)

    f = jax.custom_vjp(value)
    f.defvjp(lambda w, x: (value(w, x), (w, x)), backward)
    return f


def functions():
    psum = functools.partial(jax.lax.psum, axis_name="data")
    w, x = jax.random.normal(jax.random.key(0), (3, 5)), jax.random.normal(jax.random.key(1), (16, 5))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        there = placed(mesh, w), placed(mesh, x, "data")
        for add, said in ((psum, ""), (lambda g: g, MISSING), (lambda g: psum(psum(g)), TOO_MANY)):
            for args in ([(w, x)] if kind == AxisType.Auto else []) + [there]:
                report = fn.audit(function(mesh, add), *args)
                assert report.ok == (not said), report
                assert said in hints(report).get(("value", "backward", "args[0]"), ""), report
                assert "float64" in str(report) or report.dtype == "float64"


def test_functions():
    on_devices(functions)


def gradient_of_a_part():
    """A gradient function of one's own under `data_parallel`, and m = D, where the factor is another usual one too."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    net, params, x, y = small()
    x, y = x[:8], y[:8]
    plain = fn.Network(*net[0:1].layers, *net[2:].layers)
    params = (params[0], params[2])
    cost = fn.objective(plain, fn.log_likelihood)

    def of_whole(factor):
        def of_part(params, x, y):
            value, grads = fn.value_and_grad(plain, fn.log_likelihood)(params, x, y)
            return value, jax.tree.map(lambda g: factor * g, grads)

        return fn.data_parallel(of_part, mesh, "data")

    for factor, said in ((1, ""), (8, TOO_MANY), (1 / 8, MISSING)):
        gradient = functools.partial(lambda of_whole, *given: of_whole(*given)[1], of_whole(factor))
        report = fn.audit((cost, gradient), placed(mesh, params), *placed(mesh, (x, y), "data"))
        assert report.ok == (factor == 1), report
        for hint in hints(report).values():
            assert said in hint
            assert "a factor m = 8" in hint or "a factor 1/m = 1/8" in hint


def test_a_gradient_function():
    on_devices(gradient_of_a_part)


def two_hosts():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    net, params, x, y = small()
    there, rows = placed(mesh, params), placed(mesh, (x, y), "data")
    report = fn.compare_gradients(net, fn.log_likelihood, there, *rows, key=jax.random.key(2))
    assert report.ok, report
    assert ("on 4 devices", "pass") in {(row.leaf, row.verdict) for row in report.rows}
    assert fn.check_layer(
        net, there, rows[0], key=placed(mesh, {"key": jax.random.key_data(jax.random.key(2))})["key"]
    ).ok
    sync_global_devices("audited")
    print("done")


def test_two_hosts():
    assert all("done" in printed for printed in on_devices(two_hosts, devices=4, hosts=2))
