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

from .cases import thorough
from .devices import on_devices

MISSING = "off by the number of devices (8): a psum is missing"
TOO_MANY = "off by the number of devices (8): a psum too many"


def placed(mesh, tree, *spec):
    """The tree on the mesh, of which each process places its part."""
    return jax.tree.map(
        lambda a: jax.make_array_from_callback(a.shape, NamedSharding(mesh, P(*spec)), lambda i: np.asarray(a)[i]), tree
    )


def small():
    net = fn.Network(fn.Dropout(0.2), fn.Dense(8, fn.softmax))
    return net, net.init(jax.random.key(0), (5,)), jax.random.normal(jax.random.key(1), (16, 5)), jnp.arange(16) % 8


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

    axis: str = "data"

    def gradients(self, params, cache, delta):
        means = {"w": delta.T @ cache / len(delta), "b": delta.mean(0)}
        if self.fault == "missing":
            return jax.tree.map(lambda g: g / jax.lax.axis_size(self.axis), means)
        add = jax.lax.psum if self.fault == "too many" else jax.lax.pmean
        return {**means, "w": add(means["w"], self.axis)}


@fn.layer
class HardCoded(Own):
    """Right for a batch of 16 on one device."""

    def gradients(self, params, cache, delta):
        return {"w": delta.T @ cache / 16, "b": delta.sum(0) / 16}


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


def one_host(every):
    """The networks with own layers on an Auto mesh, or on ``every`` kind of mesh."""
    net, params, x, y = small()
    about = {"key": jax.random.key(2), "weights": jnp.linspace(0.5, 2, 16)}
    alone = fn.compare_gradients(net, fn.log_likelihood, params, x, y, **about)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        there, rows = placed(mesh, params), placed(mesh, (x, y), "data")
        report = fn.compare_gradients(net, fn.log_likelihood, there, *rows, **about)
        assert report.ok, report
        assert [row.verdict for row in report.rows if row.leaf == "on 8 devices"] == ["pass"], report
        assert tuple(row for row in report.rows if row.leaf != "on 8 devices") == alone.rows
        assert fn.check_layer(net, there, rows[0], key=about["key"]).ok
        if every or kind == AxisType.Auto:
            of_own_layers(mesh, rows, every)


def refusals():
    """What a layer by hand needs, where it is not: examples over its axis."""
    _, _, x, _ = small()
    divided = placed(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,)), x, "data")
    refused = (
        "compare_gradients: expected x divided over the axis .*unbound axis.* {}.*, got it {}; give jax.device_put"
    )
    net = ByName(8)
    for layer, examples, named, got in (
        (net, x, "data", "on one device"),
        (ByName(8, "", "model"), divided, "model", "divided over data"),
    ):
        with pytest.raises(ValueError, match=refused.format(named, got)):
            fn.compare_gradients(layer, fn.quadratic, net.init(jax.random.key(0), (5,)), examples, jnp.ones((16, 8)))


def by_name(fault):
    return fn.Network(ByName(3, fault), fn.Dense(8, fn.softmax))


def of_own_layers(mesh, rows, every):
    params = placed(mesh, by_name("").init(jax.random.key(0), (5,)))
    faults = {"missing": (MISSING, ["['b']", "['w']"]), "too many": (TOO_MANY, ["['w']"])}
    for fault, (said, leaves) in faults.items() if every else [("missing", faults["missing"])]:
        report = fn.compare_gradients(by_name(fault), fn.log_likelihood, params, *rows)
        found = hints(report)
        assert list(found) == [("0 ByName", "gradients", leaf) for leaf in leaves], report
        assert all(said in hint for hint in found.values()), report
        assert "8 parts over 'data'" in str(report)
    if not every:
        return
    assert fn.compare_gradients(by_name(""), fn.log_likelihood, params, *rows).ok
    net = fn.Network(HardCoded(3), fn.Dense(8, fn.softmax))
    report = fn.compare_gradients(net, fn.log_likelihood, params, *rows)
    places = [("network", "value_and_grad", f"[0]['{name}'] on 8 devices") for name in "bw"]
    assert list(found := hints(report)) == places, report
    assert all(MISSING in hint for hint in found.values()), report
    mixing = lambda fault: fn.Network(fn.Dense(4, fn.tanh), Centred(fault), fn.Dense(8, fn.softmax))  # noqa: E731
    params = placed(mesh, mixing("").init(jax.random.key(0), (5,)))
    for fault in ("", "local"):
        report = fn.compare_gradients(mixing(fault), fn.log_likelihood, params, *rows)
        assert list(hints(report)) == [("1 Centred", "propagate", "")] * bool(fault), report


@pytest.mark.parametrize("every", thorough(False, True))
def test_one_host(every):
    on_devices(one_host, every)


def mapped():
    _, _, x, y = small()
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        for fault, said in (("", ""), ("missing", MISSING), ("too many", TOO_MANY)):
            net = fn.Network(by_shard_map(mesh, 3, fault), fn.Dense(8, fn.softmax))
            params = net.init(jax.random.key(0), (5,))
            for tree, rows in ((params, (x, y)), (placed(mesh, params), placed(mesh, (x, y), "data"))):
                if kind == AxisType.Explicit and tree is params:  # which JAX refuses
                    continue
                report = fn.compare_gradients(net, fn.log_likelihood, tree, *rows)
                found = {place: hint for place, hint in hints(report).items() if place[0] == "0 Mapped"}
                assert list(found) == [("0 Mapped", "gradients", leaf) for leaf in ("['b']", "['w']") if fault], report
                assert all(said in hint for hint in found.values()), report
                assert report.ok == (not fault), report


@pytest.mark.thorough
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


def of_one_device():
    """A rule inside a ``shard_map``, of a sum over devices: each device gets the whole of the error, or once more the sum."""
    x = jax.random.normal(jax.random.key(1), (16, 5))
    psum = functools.partial(jax.lax.psum, axis_name="data")
    transposes = {
        (True, ""): lambda u: jax.lax.pcast(u, "data", to="varying"),
        (True, TOO_MANY): lambda u: jax.lax.pcast(psum(jax.lax.pcast(u, "data", to="varying")), "data", to="varying"),
        (False, ""): psum,
        (False, MISSING): lambda u: u,
    }
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        for (checked, said), transpose in transposes.items():
            total = jax.custom_vjp(psum)
            total.defvjp(lambda a: (psum(a), None), lambda _, u, transpose=transpose: (transpose(u),))
            f = jax.shard_map(
                lambda x, total=total: jnp.sin(total(jnp.sum(x**2, 0))),
                mesh=mesh, in_specs=P("data"), out_specs=P(), check_vma=checked,
            )  # fmt: skip
            report = fn.audit(f, placed(mesh, x, "data"))
            assert report.ok == (not said), report
            assert "Judged by autodiff" in str(report), report
            assert all(said in hint for hint in hints(report).values()), report


@pytest.mark.thorough
def test_a_rule_inside_a_shard_map():
    on_devices(of_one_device)


@pytest.mark.thorough
def test_functions():
    on_devices(functions)


def gradient_of_a_part():
    """A gradient function of one's own under `data_parallel`, and m = D, where the factor is another usual one too."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    _, (_, params), x, y = small()
    net, x, y = fn.Dense(8, fn.softmax), x[:8], y[:8]
    cost = fn.objective(net, fn.log_likelihood)

    def of_whole(factor):
        def of_part(params, x, y):
            value, grads = fn.value_and_grad(net, fn.log_likelihood)(params, x, y)
            return value, jax.tree.map(lambda g: factor * g, grads)

        return fn.data_parallel(of_part, mesh, "data")

    for factor, said in ((1, ""), (8, TOO_MANY), (1 / 8, MISSING)):
        gradient = functools.partial(lambda of_whole, *given: of_whole(*given)[1], of_whole(factor))
        report = fn.audit((cost, gradient), placed(mesh, params), *placed(mesh, (x, y), "data"))
        assert report.ok == (factor == 1), report
        for hint in hints(report).values():
            assert said in hint
            assert "a factor m = 8" in hint or "a factor 1/m = 1/8" in hint


@pytest.mark.thorough
def test_a_gradient_function():
    on_devices(gradient_of_a_part)


def two_hosts(every):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    net, params, x, y = small()
    net, params = (net, params) if every else (net[1:], params[1:])
    there, rows = placed(mesh, params), placed(mesh, (x, y), "data")
    key = jax.random.wrap_key_data(placed(mesh, jax.random.key_data(jax.random.key(2))))
    report = fn.compare_gradients(net, fn.log_likelihood, there, *rows, key=key)
    assert report.ok, report
    assert ("on 4 devices", "pass") in {(row.leaf, row.verdict) for row in report.rows}
    if every:
        assert fn.check_layer(net, there, rows[0], key=key).ok
        report = fn.audit(function(mesh, lambda g: g), placed(mesh, jnp.ones((3, 5))), rows[0])
        (hint,) = hints(report).values()
        assert MISSING.replace("8", "4") in hint
    sync_global_devices("audited")
    print("done")


@pytest.mark.parametrize("every", thorough(False, True))
def test_two_hosts(every):
    assert all("done" in printed for printed in on_devices(two_hosts, every, devices=4, hosts=2))
