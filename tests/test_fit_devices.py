"""fit and evaluate on 8 simulated devices: one device's numbers, and what is sent."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn
from fnnet.batches import Layout
from fnnet.devices import Division, check_divides, division_of
from fnnet.epochs import monitor
from fnnet.given import Examples
from fnnet.optimizers import traceable
from fnnet.training import _epoch

from .cases import thorough
from .checks import in_a_folder
from .compiled import collectives

DENSE = fn.Network(fn.Dense(12, fn.sigmoid), fn.Dropout(0.3), fn.Dense(10, fn.softmax))
CLIPPED = fn.clipped_value_and_grad(DENSE, fn.log_likelihood, 0.5, 1.0)
NETS = {
    "dense": (DENSE, (7,), {"optimizer": fn.adam(0.05)}),
    "of few examples each": (DENSE, (7,), {"batch_size": 20}),
    "convolution": (fn.Network(fn.Conv(4, 3, fn.relu), fn.MaxPool(2), fn.Flatten(), fn.Dense(10, fn.softmax)), (6, 6, 1), {}),
    "in windows": (fn.Network(fn.LSTM(5), fn.Dense(10, fn.softmax)), (6, 3), {"window": 4}),
    "autodiff": (DENSE, (7,), {"gradient": jax.value_and_grad(fn.objective(DENSE, fn.log_likelihood))}),
    "clipped, with noise": (DENSE, (7,), {"gradient": CLIPPED, "batch_size": 20}),
    "curvature": (DENSE, (7,), {"optimizer": fn.natural_gradient(0.5, iterations=2), "gradient": CLIPPED}),
    "examples mixed": (fn.Network(fn.Dense(8, fn.linear, bias=False), fn.BatchNorm(), fn.Dense(10, fn.softmax)), (7,), {}),
}  # fmt: skip
KEY, FEW = jax.random.key(3), "of few examples each"


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def given(kind):
    """(net, parameters, data, the other arguments) of a run."""
    net, shape, changes = NETS[kind]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (64, *shape[:1] * ("window" in changes)))
    data = rng.standard_normal((64, *shape)), labels, {"weights": rng.random(64)}
    about = {
        "key": KEY,
        "epochs": 2,
        "batch_size": 16,
        "optimizer": fn.sgd(0.5),
        "progress": False,
        "penalty": fn.L2(0.1),
    }
    return net, net.init(jax.random.key(0), shape), data, about | {"validation": (data[0][:30], labels[:30])} | changes


def assert_close(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-12 * max(1, float(np.max(np.abs(b)))))


def seen(trained):
    params, history = trained
    return params, history.cost, history.accuracy, history.validation_cost, history.validation_accuracy


def one_devices_numbers(kind, axes):
    net, params, data, about = given(kind)
    one = seen(fn.fit(net, fn.log_likelihood, params, data, **about))
    on = mesh(getattr(AxisType, axes))
    for spec in (None, P("data"), P()):
        if spec is None:
            many = fn.fit(net, fn.log_likelihood, params, data, mesh=on, **about)
        else:
            many = fn.fit(net, fn.log_likelihood, params, jax.device_put(data, NamedSharding(on, spec)), **about)
        assert_close(seen(many), one)
        assert all(
            leaf.sharding.is_equivalent_to(NamedSharding(on, P()), leaf.ndim) for leaf in jax.tree.leaves(many[0])
        )


def in_blocks():
    """What one device makes of the mini-batches in the order in which eight take them."""
    net, params, (x, y, extras), about = given("dense")
    about |= {"batch_size": 24, "optimizer": fn.sgd(0.5), "epochs": 1}
    on = mesh()
    many, history = fn.fit(net, fn.log_likelihood, params, (x, y, extras), mesh=on, shuffle="block", **about)
    shuffle_key, step_key = jax.random.split(jax.random.fold_in(KEY, 0))
    own = [8 * d + jax.random.permutation(jax.random.fold_in(shuffle_key, d), 8) for d in range(8)]
    gradient = fn.value_and_grad(net, fn.log_likelihood, penalty=fn.L2(0.1), n_examples=64)
    for i, taken in enumerate((slice(0, 3), slice(3, 6), slice(6, 8))):
        rows = np.concatenate([part[taken] for part in own])
        key = jax.random.fold_in(step_key, i)
        _, grads = gradient(params, x[rows], y[rows], key=key, weights=extras["weights"][rows])
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
    assert_close(many, params)
    again = fn.fit(net, fn.log_likelihood, params, (x, y, extras), mesh=on, shuffle="block", **about | {"epochs": 2})
    straight = fn.fit(net, fn.log_likelihood, params, (x, y, extras), mesh=on, shuffle="block", **about)
    resumed = fn.fit(
        net, fn.log_likelihood, params, (x, y, extras), mesh=on, shuffle="block", resume=straight[1].state,
        **about | {"epochs": 2},
    )  # fmt: skip
    for a, b in zip(jax.tree.leaves(again[0]), jax.tree.leaves(resumed[0]), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="one with another batch_size"):
        fn.fit(net, fn.log_likelihood, params, (x, y, extras), resume=straight[1].state, **about)
    assert history.cost.shape == (1,)


def what_is_sent():
    """One all-reduce of gradient and cost in each step; nothing else, but that a mini-batch of divided data is brought to its
    devices where all shuffle; and each device does an eighth of the work."""
    net, params, (x, y, _), _ = given("dense")
    net = fn.Network(fn.Dense(256, fn.sigmoid), fn.Dropout(0.3), fn.Dense(256, fn.sigmoid), fn.Dense(10, fn.softmax))
    params = net.init(jax.random.key(0), (7,))
    on = mesh()
    rows, whole = NamedSharding(on, P("data")), NamedSharding(on, P())
    optimizer = traceable(fn.sgd(0.5))
    data = Examples(np.tile(x, (8, 1)), np.tile(y, 8), {})
    about = {"batch_size": 64, "gradient": None, "micro_batch": "auto", "window": None}

    def compiled(layout, place):
        arguments = jax.device_put((params, optimizer.init(params)), whole), jax.device_put(data, place)
        (p, opt_state), examples = arguments
        lowered = _epoch.lower(
            net, fn.log_likelihood, optimizer, None, p, opt_state, examples, KEY, 0, layout=layout, **about
        )
        return lowered.compile()

    over = division_of("fit", on)
    size = 8 + sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    one = _epoch.lower(
        net, fn.log_likelihood, optimizer, None, params, optimizer.init(params), data, KEY, 0, **about
    ).compile()  # fmt: skip
    for layout, place, others in (
        (Layout(over), whole, []),
        (Layout(over, True, True), rows, []),
        (Layout(over, True), rows, ["reduce-scatter"] * 2),
    ):
        program = compiled(layout, place)
        sent = collectives(program.as_text())
        assert sorted(found.kind for found in sent) == ["all-reduce", *others]
        (reduced,) = (found for found in sent if found.kind == "all-reduce")
        assert (reduced.bytes, reduced.in_loop, reduced.times) == (size, True, 8)
        if not others:
            assert (
                program.cost_analysis()["flops"] < 1.15 / 8 * one.cost_analysis()["flops"] + 512 * 20
            )  # and the order

    def monitored(layout, place):
        p, examples = jax.device_put(params, whole), jax.device_put(data, place)
        return monitor.lower(net, fn.log_likelihood, None, p, examples, 512, classes=True, layout=layout).compile()

    alone = monitor.lower(net, fn.log_likelihood, None, params, data, 512, classes=True).compile()
    for layout, place in ((Layout(over), whole), (Layout(over, True), rows)):
        program = monitored(layout, place)
        assert [found.kind for found in collectives(program.as_text())] == ["all-reduce"]
        assert program.cost_analysis()["flops"] < 1.15 / 8 * alone.cost_analysis()["flops"]


def other_numbers_of_devices(folder):
    """A run goes on elsewhere, and a run that diverges is explained as on one device."""
    net, params, data, about = given("dense")
    about.pop("validation")
    straight = fn.fit(net, fn.log_likelihood, params, data, **about)
    first = fn.fit(net, fn.log_likelihood, params, data, checkpoint=folder, **about | {"epochs": 1})
    resumed = fn.fit(net, fn.log_likelihood, params, data, resume=folder, mesh=mesh(), **about)
    assert_close(resumed[0], straight[0])
    assert_close(
        fn.fit(net, fn.log_likelihood, params, data, resume=first[1].state, mesh=mesh(), **about)[0], straight[0]
    )
    net = fn.Network(fn.Dense(8, fn.relu), fn.Dense(10, fn.softmax))
    params = net.init(jax.random.key(0), (7,))
    about = {"key": KEY, "epochs": 1, "batch_size": 16, "optimizer": fn.sgd(1e200), "progress": False}
    for more in ({}, {"mesh": mesh()}, {"mesh": mesh(AxisType.Explicit)}, {"mesh": mesh(), "shuffle": "block"}):
        with pytest.raises(fn.Diverged) as raised:
            fn.fit(net, fn.log_likelihood, params, data, **about, **more)
        assert (raised.value.step, raised.value.layer) == (2, "the cost of the last layer")


def evaluated():
    net, params, data, _ = given("dense")
    few = tuple(a[:27] for a in data[:2])
    for examples in (data, few):
        one = fn.evaluate(net, fn.log_likelihood, params, examples, penalty=fn.L2(0.3))
        for kind in (AxisType.Auto, AxisType.Explicit):
            assert_close(
                fn.evaluate(net, fn.log_likelihood, params, examples, penalty=fn.L2(0.3), mesh=mesh(kind)), one
            )
    divided = jax.device_put(data, NamedSharding(mesh(), P("data")))
    assert_close(
        fn.evaluate(net, fn.log_likelihood, params, divided), fn.evaluate(net, fn.log_likelihood, params, data)
    )


def any_gradient():
    """Of a gradient function that is told nothing of the devices: its own N of a penalty, its states, products with H."""
    net, params, (x, y, _), _ = given("in windows")
    labels, penalty = y, fn.L2(3.0)
    for gradient in (
        fn.value_and_grad(net, fn.log_likelihood, penalty=penalty),
        fn.value_and_grad(net, fn.log_likelihood, penalty=penalty, micro_batch=4),
        fn.value_and_grad(net, fn.log_likelihood, carry=True),
        jax.value_and_grad(fn.objective(net, fn.log_likelihood, penalty=penalty)),
        lambda p, x, y: (p[0]["b"][0], fn.hvp(net, fn.log_likelihood, p, x, y, params, penalty=penalty)),
    ):
        assert_close(fn.data_parallel(gradient, mesh())(params, x, labels), gradient(params, x, labels))


@jax.jit
def without_weights(params, x, y, *, key, weights):
    return fn.value_and_grad(DENSE, fn.log_likelihood)(params, x, y, key=key)


def gradients_of_ones_own():
    """Noise is drawn once for all devices, N of a penalty is the whole batch's size, own keys number the examples."""
    net, params, (x, y, _), _ = given("dense")
    assert_close(fn.data_parallel(CLIPPED, mesh())(params, x, y, key=KEY), CLIPPED(params, x, y, key=KEY))
    for of in (fn.value_and_grad, lambda *about, **more: jax.value_and_grad(fn.objective(*about, **more))):
        penalised = of(net, fn.log_likelihood, penalty=fn.L2(0.3))
        assert_close(fn.data_parallel(penalised, mesh())(params, x, y, key=KEY), penalised(params, x, y, key=KEY))
    large = np.full(3, 2.0**14, np.float16)  # of which eight are too large
    assert_close(fn.data_parallel(lambda w, x, y: (w[0], w), mesh())(large, x, y), (large[0], large))
    gradient, key = fn.value_and_grad(net, fn.log_likelihood), fn.ExampleKeys(KEY, 3 * jax.numpy.arange(64) + 5)
    one = gradient(params, x, y, key=key)
    for kind in (AxisType.Auto, AxisType.Explicit):
        rows = NamedSharding(mesh(kind), P("data"))
        divided, keys = jax.device_put((x, y), rows), fn.ExampleKeys(KEY, jax.device_put(key.index, rows))
        assert_close(gradient(params, *divided, key=keys), one)
        assert_close(fn.data_parallel(gradient, mesh(kind))(params, *divided, key=keys), one)


def nothing_moves_without_a_word():
    """Under ``jax.transfer_guard``, the validation data on a device of their own, with an explicit mesh in use or not."""
    net, params, (x, y, _), about = given("dense")
    about |= {"batch_size": 20, "epochs": 1}
    one = seen(fn.fit(net, fn.log_likelihood, params, (x, y), **about))
    elsewhere = {"validation": jax.device_put(about.pop("validation"), jax.devices()[3])}
    for kind in (AxisType.Auto, AxisType.Explicit):
        with jax.transfer_guard("disallow"):
            many = fn.fit(net, fn.log_likelihood, params, (x, y), mesh=mesh(kind), **about, **elsewhere)
            fn.evaluate(net, fn.log_likelihood, params, (x, y), penalty=fn.L2(0.1), mesh=mesh(kind))
        assert_close(seen(many), one)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        many = fn.fit(net, fn.log_likelihood, params, (x, y), mesh=mesh(AxisType.Explicit), **about, **elsewhere)
    assert_close(seen(many), one)


def refused():
    net, params, data, about = given("dense")
    alone = {"mesh": mesh(), "batch_size": 20, "gradient": without_weights}
    split = fn.data_parallel(fn.value_and_grad(net, fn.log_likelihood), mesh())
    mixing, mixed, of_mixing, _ = given("examples mixed")
    fit = lambda *start, **more: fn.fit(*start, **about | more)  # noqa: E731
    dense = net, fn.log_likelihood, params, data
    for start, more, message in (
        (dense, {"mesh": 8}, r"fit: expected mesh= a jax.sharding.Mesh, got int; such as jax.make_mesh"),
        (dense, {"mesh": mesh(), "shuffle": "all"}, r"fit: expected shuffle='global' or 'block', got 'all'"),
        (dense, {"mesh": mesh(), "shuffle": "block", "batch_size": 20}, r"fit: expected a batch_size that the 8 devices"),
        ((*dense[:3], (data[0][:60], data[1][:60])), {"mesh": mesh(), "shuffle": "block"}, r"fit: expected data that the 8"),
        (dense, {"shuffle": "block"}, r"fit: expected mesh= or divided data for shuffle='block', got one device"),
        (dense, alone, r"multiplies each example's cost by weights=, got one that does not read them; a mini"),
        (dense, {"mesh": mesh(), "gradient": split}, r"data_parallel: expected the whole batch, got one device's part over"),
        (
            (mixing, fn.log_likelihood, mixed, of_mixing), {"mesh": mesh(AxisType.Explicit), "shuffle": "global"},
            r"BatchNorm\(\): expected the whole batch, since it mixes examples, got 8 devices to divide it among",
        ),
        ((mixing, fn.log_likelihood, mixed, of_mixing), {"mesh": mesh(), "shuffle": "block"}, r"BatchNorm\(\): expected the"),
        (
            (*dense[:2], jax.device_put(params, NamedSharding(jax.make_mesh((2,), ("data",)), P("data"))), data),
            {"mesh": mesh(AxisType.Explicit)}, r"fit: expected parameters that each device has whole, got \[0\]\['b'\]",
        ),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            fit(*start, **more)
    split = fn.data_parallel(fn.value_and_grad(mixing, fn.log_likelihood), mesh())
    with pytest.raises(
        fn.LayerError, match=r"BatchNorm\(\): expected the whole batch.*got one device's part over data"
    ):
        split(mixed, *of_mixing[:2])
    with pytest.raises(
        ValueError, match=r"data_parallel: expected a batch that the 8 devices of 'data' divide, got 30 examples"
    ):
        fn.data_parallel(fn.value_and_grad(net, fn.log_likelihood), mesh())(params, data[0][:30], data[1][:30])


CHECKS = {
    **{f"{kind}, {axes}": (one_devices_numbers, kind, axes) for kind in NETS for axes in ("Auto", "Explicit")},
    **{
        check.__name__: (check,)
        for check in (
            in_blocks, any_gradient, gradients_of_ones_own, nothing_moves_without_a_word, evaluated, refused, what_is_sent,
        )
    },
    "other numbers of devices": (in_a_folder, other_numbers_of_devices),
}  # fmt: skip
del CHECKS["examples mixed, Explicit"]  # refused, as `refused` sees to


@pytest.mark.parametrize("name", thorough(*CHECKS))
def test_on_eight_devices(name, found):
    assert found[name] is None, found[name]


class TestWithoutDevices:
    def test_a_mesh_of_several_axes_needs_one_called_data(self):
        assert division_of("fit", AbstractMesh((2, 4), ("model", "data"))) == Division(
            AbstractMesh((2, 4), ("model", "data")), "data"
        )
        assert division_of("fit", AbstractMesh((4,), ("rows",))).axis == "rows"
        with pytest.raises(ValueError, match=r"fit: expected a mesh with the axis 'data', got one with \('a', 'b'\)"):
            division_of("fit", AbstractMesh((2, 4), ("a", "b")))

    def test_what_is_no_gradient_is_refused(self):
        with pytest.raises(ValueError, match="data_parallel: expected a gradient function, got int"):
            fn.data_parallel(1, AbstractMesh((8,), ("data",)))

    def test_a_number_that_is_not_divided_names_those_that_are(self):
        over = Division(AbstractMesh((8,), ("data",)), "data")
        with pytest.raises(
            ValueError, match="give 24, or fill up to 32 with examples of weight 0, whose mean is over 32"
        ):
            check_divides("fit", 30, over)
        assert over.n == 8
