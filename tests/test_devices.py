"""Every row of the table on eight devices: the numbers of one device, nothing of the batch moved, an eighth of the work each.

The programs run in processes with eight simulated devices (`tests.devices`), many rows in one of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn
from fnnet.forms import varying
from fnnet.layers._layer import LayerError, run_forward

from .cases import FEW, LAYERS, OF_EACH_KIND, largest, thorough
from .compiled import collectives
from .devices import on_devices

M, KEY, COST = 16, jax.random.key(1), fn.quadratic
REST = [case.name for case in LAYERS if case.name not in OF_EACH_KIND]
GROUPS = [sorted(OF_EACH_KIND), *([*REST[i::5]] for i in range(5))]
CHUNKED = {"auto": (None, 8), "explicit": (None, 1), "shard_map": (None, 1)}
"""micro_batch: of the whole batch where the compiler divides it, else of each device's two examples."""


def mesh_of(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def placed(given, mesh):
    """Parameters whole on each device, examples divided."""
    whole, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    return [(jax.device_put(params, whole), *jax.device_put(batch, rows)) for params, *batch in given]


def gradients(net, params, x, y, micro_batch, key=KEY):
    return fn.value_and_grad(net, COST, micro_batch=micro_batch)(params, x, y, key=key)


def in_shard_map(net, params, x, y, micro_batch):
    """Data-parallel training as it is written by hand, with ``shard_map``'s default check."""

    def of_device(params, x, y):
        index = len(x) * jax.lax.axis_index("data").astype(int) + jnp.arange(len(x))
        found = gradients(net, varying(params, x), x, y, micro_batch, fn.ExampleKeys(KEY, index))
        return jax.tree.map(lambda mean: mean / 8, jax.lax.psum(varying(found, x), "data"))

    run = jax.shard_map(of_device, mesh=mesh_of(AxisType.Auto), in_specs=(P(), P("data"), P("data")), out_specs=P())
    return run(params, x, y)


def by_method(net, params, x, y):
    """What each of a layer's methods gives, the batch divided."""
    a, cache = run_forward(net, params, x, key=KEY, train=True)
    delta = net.error(params, cache, a - y)
    da_in, grads = net.backward(params, cache, a - y)
    shares = net.example_gradients(params, cache, delta), net.second_moment(params, cache, delta)
    moments = net.square_norms(params, cache, delta), net._gram(params, cache, delta)
    return net.apply(params, x), a, da_in, grads, net.gradients(params, cache, delta), shares, moments


def run_all(function, nets, given, *more):
    """[function(net, *given, *more), ...] in one program, and its text."""
    run = jax.jit(lambda given: [function(net, *of, *more) for net, of in zip(nets, given, strict=True)])
    compiled = run.lower(given).compile()
    return compiled(given), compiled.as_text()


def moved(text):
    """The collectives of a program that move parts of a batch: all but sums."""
    return [found for found in collectives(text) if found.kind != "all-reduce"]


def assert_same(names, found, reference):
    """To 1e-12 of the largest entry of a row, which a unit that is dropped on one side only is far off."""
    for name, ours, theirs in zip(names, found, reference, strict=True):
        assert jax.tree.structure(ours) == jax.tree.structure(theirs), name
        gap = largest(jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), ours, theirs))
        assert gap <= 1e-12 * largest(theirs), f"{name}: off by {gap} of {largest(theirs)}"


def rows_of(names):
    cases = [case for case in LAYERS if case.name in names]
    given = []
    for case in cases:
        params, x = case.params(jnp.float64), case.inputs(M, jnp.float64)
        params = {**params, "var": jnp.square(params["var"])} if "var" in params else params
        shape = jax.eval_shape(lambda net=case.layer, p=params, x=x: run_forward(net, p, x)[0]).shape
        given.append((params, x, jax.device_put(np.random.default_rng(2).standard_normal(shape))))
    return [case.name for case in cases], [case.layer for case in cases], given


def check_rows(names):
    """In a process with eight devices: each way, whole and in chunks, against one device."""
    names, nets, given = rows_of(names)
    auto, explicit = (placed(given, mesh_of(kind)) for kind in (AxisType.Auto, AxisType.Explicit))
    reference, text = run_all(gradients, nets, given, None)
    assert not collectives(text)
    for micro_batch in CHUNKED["auto"]:
        found, text = run_all(gradients, nets, auto, micro_batch)
        assert_same(names, found, reference)
        assert not moved(text)
    for micro_batch in CHUNKED["explicit"]:
        found, text = run_all(gradients, nets, explicit, micro_batch)
        assert_same(names, found, reference)
        assert not moved(text)
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        found, _ = run_all(by_method, nets, explicit)
    assert_same(names, found, run_all(by_method, nets, given)[0])
    alone = [net.independent for net in nets]
    for net, of, is_alone in zip(nets, auto, alone, strict=True):
        if not is_alone:
            with pytest.raises(LayerError, match="mixes examples"):
                in_shard_map(net, *of, None)
    names, nets, auto, reference = (
        [of for of, is_alone in zip(each, alone, strict=True) if is_alone] for each in (names, nets, auto, reference)
    )
    for micro_batch in CHUNKED["shard_map"]:
        found, text = run_all(in_shard_map, nets, auto, micro_batch)
        assert_same(names, found, reference)
        assert not moved(text)
        sent = sum(leaf.nbytes for leaf in jax.tree.leaves(reference))
        assert sum(one.bytes for one in collectives(text)) == sent


@pytest.mark.parametrize("names", thorough(*GROUPS), ids=lambda names: names[0])
def test_each_row_on_eight_devices(names):
    on_devices(check_rows, names, timeout=900)


NETS = {
    "dense": (fn.Network(fn.Dense(64, fn.tanh), fn.Dense(48, fn.softmax)), (80,)),
    "images": (
        fn.Network(fn.Conv(8, 3, fn.tanh), fn.MaxPool(2), fn.Flatten(), fn.Dense(10, fn.softmax)),
        (10, 10, 3),
    ),
    "sequences": (fn.Network(fn.LSTM(32), fn.LastStep(), fn.Dense(10, fn.softmax)), (8, 24)),
}


@fn.layer
class Turned:
    """The batch in reverse: it cannot be divided, and moves on its way."""

    def forward(self, params, a_in):
        return a_in[::-1], ()

    def propagate(self, params, cache, delta):
        return delta[::-1]


def flops_and_text(net, shape, mesh, micro_batch, m=256):
    params = net.init(KEY, shape)
    given = [(params, jnp.ones((m, *shape)), jnp.ones((m, *net.output_shape(shape))))]
    given = given if mesh is None else placed(given, mesh)
    compiled = jax.jit(lambda given: gradients(net, *given[0], micro_batch)).lower(given).compile()
    return compiled.cost_analysis()["flops"], compiled.as_text()


def check_work(name):
    """An eighth of one device's work on each, whole and in chunks; and what moves rows does not pass for it."""
    net, shape = NETS[name]
    whole, chunked = (flops_and_text(net, shape, None, size)[0] for size in (None, 128))
    for kind, micro_batch in ((AxisType.Auto, 128), (AxisType.Explicit, 16)):
        for of_one_device, size in ((whole, None), (chunked, micro_batch)):
            flops, text = flops_and_text(net, shape, mesh_of(kind), size)
            assert flops <= 1.15 / 8 * of_one_device, (kind, size)
            assert not moved(text)
    assert moved(flops_and_text(fn.Network(Turned(), *net.layers), shape, mesh_of(AxisType.Auto), None)[1])


@pytest.mark.parametrize("name", thorough(*NETS))
def test_each_device_does_its_part(name):
    on_devices(check_work, name, timeout=300)


def operations(net, shape, m, platform):
    """How often each of these is in the program of value and gradient for a platform, exported from this one."""
    params = net.init(KEY, shape)
    run = jax.jit(lambda *given: gradients(net, *given, "auto"))
    exported = jax.export.export(run, platforms=[platform])
    x = jnp.zeros((m, *shape), jnp.float32)
    params, y = jax.tree.map(lambda a: a.astype(jnp.float32), (params, jnp.zeros((m, *net.output_shape(shape)))))
    text = exported(params, x, y).mlir_module()
    return {name: text.count(f"stablehlo.{name}") for name in ("while", "dot_general")}


SMALL = fn.Network(fn.Dense(30, fn.tanh), fn.Dense(10, fn.softmax)), (20,)
LARGE = fn.Network(fn.Dense(4096, fn.tanh), fn.Dense(10, fn.softmax)), (20,)
LONG = fn.Network(fn.LSTM(4), fn.LastStep()), (64, 3)


@pytest.mark.parametrize("platform", ["cuda", "tpu", "rocm"])
def test_a_program_for_another_platform_has_no_choice_of_the_cpu_in_it(platform):
    """Chunks, sums written out and blocks of steps: of a batch of 1,024, of one of 8, and of 64 sequences."""
    assert operations(*SMALL, 8, platform)["dot_general"] == 5 > operations(*SMALL, 8, "cpu")["dot_general"]
    assert operations(*LARGE, 1024, platform)["while"] == 0 < operations(*LARGE, 1024, "cpu")["while"]
    assert operations(*LONG, 64, platform)["while"] == 2 < operations(*LONG, 64, "cpu")["while"]


@pytest.mark.parametrize("case", FEW, ids=repr)
def test_a_row_is_lowered_for_other_platforms(case):
    """Forward and backward in float32, for a GPU and for a TPU."""

    def run(params, a_in):
        a_out, cache = run_forward(case.layer, params, a_in, key=KEY, train=True)
        return a_out, case.layer.backward(params, cache, a_out)

    given = case.params("float32"), case.inputs(20, "float32")
    of_cpu = jax.eval_shape(run, *given)
    for platform in ("cuda", "tpu"):
        exported = jax.export.export(jax.jit(run), platforms=[platform])(*given)
        assert [(a.shape, a.dtype) for a in exported.out_avals] == [(a.shape, a.dtype) for a in jax.tree.leaves(of_cpu)]
