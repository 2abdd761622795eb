"""fit on mini-batches from a function: the numbers of arrays, runs stopped inside an epoch, and what is refused."""

import functools
import itertools
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn
from fnnet import training
from fnnet.programs import _program_of_run

from .cases import thorough
from .checks import assert_same
from .compiled import collectives
from .devices import on_devices

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((50, 6)), (np.arange(50) % 4).astype(np.int32)
NET = fn.Network(fn.Dropout(0.2), fn.Dense(8, fn.sigmoid), fn.Dense(4, fn.softmax))
CELLS = fn.Network(fn.GRU(5), fn.Dropout(0.2), fn.Dense(4, fn.softmax))
SEQUENCES = RNG.standard_normal((50, 7, 3)), RNG.integers(0, 4, (50, 7)).astype(np.int32)
TRAINING = {"key": KEY, "epochs": 3, "optimizer": fn.adam(0.05), "penalty": fn.L2(0.5), "progress": False}


def batches(data, size=16, to=np.asarray):
    """The mini-batches that fit makes of arrays, in its order."""

    def of_epoch(epoch):
        shuffle_key, _ = jax.random.split(jax.random.fold_in(KEY, epoch))
        order = np.asarray(jax.random.permutation(shuffle_key, 50))
        for start in range(0, 50, size):
            rows = order[start : start + size]
            yield jax.tree.map(lambda a, rows=rows: to(a[rows]), data)

    return of_epoch


def fit(data=None, net=NET, **changes):
    data = batches((X, Y)) if data is None else data
    shape = np.shape(data[0])[1:] if isinstance(data, tuple) else (7, 3) if net is CELLS else (6,)
    params = net.init(jax.random.key(0), shape)
    given = {**TRAINING, **({"n_examples": 50} if callable(data) else {"batch_size": 16}), **changes}
    return fn.fit(net, fn.log_likelihood, params, data, **given)


def assert_close(ours, theirs, tolerance=1e-12):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1e-2, float(np.max(np.abs(b)))))


def assert_same_run(ours, theirs):
    assert_close(ours[0], theirs[0])
    names = ("cost", "validation_cost", "validation_accuracy")
    assert_close([getattr(ours[1], name) for name in names], [getattr(theirs[1], name) for name in names])


EXTRAS = {"weights": RNG.random(50), "mask": np.arange(7) < RNG.integers(1, 8, (50, 1))}


class TestNumbers:
    def test_mini_batches_of_arrays_give_the_numbers_of_arrays(self):
        """Dropout, a penalty, a shorter last mini-batch; arrays of JAX in the place of NumPy's."""
        given = {"validation": (X[:20], Y[:20]), "monitor_training": False}
        one = fit((X, Y), **given)
        for to in (np.asarray, jnp.asarray):
            assert_same_run(fit(batches((X, Y), to=to), **given), one)
        assert fit(epochs=1)[1].accuracy is None

    @pytest.mark.parametrize(
        "change", thorough({}, {"window": 3}, {"early_stopping": fn.EarlyStopping(1, "validation_cost"), "epochs": 6})
    )
    def test_masks_weights_windows_and_early_stopping(self, change):
        data = *SEQUENCES, EXTRAS
        given = {"net": CELLS, "validation": data, "monitor_training": False, **change}
        assert_same_run(fit(batches(data), **given), fit(data, **given))

    def test_one_program_for_each_size(self):
        fit(epochs=1)
        compiled = _program_of_run.cache_info().misses
        fit(epochs=2)
        assert _program_of_run.cache_info().misses == compiled
        fit(batches((X, Y), 25), epochs=2)
        assert _program_of_run.cache_info().misses == compiled + 1

    def test_files_that_are_mapped_and_loaders(self, tmp_path):
        """A memory map is read as it is needed; what can be passed through again and again is a loader."""
        np.save(tmp_path / "x.npy", X)
        mapped = np.load(tmp_path / "x.npy", mmap_mode="r")

        class Loader:
            def __iter__(self):
                return ((mapped[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10))

        loader = Loader()
        one = fit(lambda epoch: [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 50, 10)])
        assert_same(fit(lambda epoch: loader)[0], one[0])

    @pytest.mark.thorough
    def test_nothing_moves_without_a_word(self):
        params = NET.init(jax.random.key(0), (6,))
        source, given = lambda epoch: iter([(X[:10], Y[:10]), (X[:6], Y[:6])]), {**TRAINING, "n_examples": 16}
        with jax.transfer_guard("disallow"):
            fn.fit(NET, fn.log_likelihood, params, source, validation=(X, Y), **given)

    def test_the_next_mini_batches_are_there_before_a_step(self, monkeypatch):
        fetched, seen, original = itertools.count(1), [], training._batch_step

        def source(epoch):
            for batch in batches((X, Y))(epoch):
                source.fetched = next(fetched)
                yield batch

        def step(*given, **options):
            seen.append(source.fetched)
            assert isinstance(given[7].x, jax.Array)
            return original(*given, **options)

        monkeypatch.setattr(training, "_batch_step", step)
        fit(source, epochs=1)
        assert seen == [2, 3, 4, 4]

    def test_a_step_runs_while_the_next_mini_batch_is_read(self, monkeypatch):
        """Steps that take some 50 ms: most are under way when a mini-batch is asked for."""
        net, x = (
            fn.Network(fn.Dense(1000, fn.relu), fn.Dense(1000, fn.relu), fn.Dense(4, fn.softmax)),
            X.repeat(5, axis=0),
        )
        original, costs, running = training._batch_step, [], []

        def step(*given, **options):
            result = original(*given, **options)
            costs.append(result[2])
            return result

        def source(epoch):
            for _ in range(10):
                running.extend(not cost.is_ready() for cost in costs[-1:])
                yield x, Y.repeat(5)

        monkeypatch.setattr(training, "_batch_step", step)
        fit(source, net, epochs=1)
        assert len(running) == 8
        assert sum(running) > 4


def stopping_at(step, stop, data=(X, Y)):
    """A source that calls ``stop`` before it gives the mini-batch of this number, over all epochs, from 0."""
    numbers = itertools.count()

    def source(epoch):
        for batch in batches(data)(epoch):
            if next(numbers) == step:
                stop()
            yield batch

    return source


def interrupt():
    raise KeyboardInterrupt


class TestStopping:
    @pytest.mark.parametrize("step", [6, *thorough(0, 1, 3, 4, 7, 11)])
    def test_a_signal_stops_inside_an_epoch_and_the_run_goes_on_from_there(self, step, tmp_path):
        """Of 3 epochs of 4 mini-batches, 2 of which are fetched ahead."""
        whole, before = fit(validation=(X[:20], Y[:20])), signal.signal(signal.SIGTERM, lambda *given: None)
        given = {"validation": (X[:20], Y[:20]), "checkpoint": tmp_path / "run"}
        try:
            source = stopping_at(step, lambda: os.kill(os.getpid(), signal.SIGTERM))
            params, history = fit(source, **given)
        finally:
            signal.signal(signal.SIGTERM, before)
        state = history.state
        done = 4 * int(state.epoch) + int(state.step)
        assert max(1, step - 2) <= done <= step + 1
        assert len(history.cost) == int(state.epoch)
        assert_same(params, state.params)
        assert_same(fit(resume=tmp_path / "run", **given), whole)
        assert_same(fit(validation=(X[:20], Y[:20]), resume=state), whole)

    @pytest.mark.parametrize("step", [6, *thorough(2, 4, 9)])
    def test_ctrl_c_gives_what_there_is(self, step, tmp_path):
        params, history = fit(stopping_at(step, interrupt), checkpoint=tmp_path / "run")
        assert 4 * int(history.state.epoch) + int(history.state.step) == max(0, step - 1 if step % 4 else step)
        assert_same(fit(resume=history.state, key=None), fit())
        assert_same(fit(resume=tmp_path / "run", checkpoint=tmp_path / "run"), fit())
        assert_same(params, history.state.params)

    @pytest.mark.thorough
    def test_a_run_that_is_killed_goes_on(self, tmp_path):
        """SIGKILL in the second epoch: from the end of the first on it is the run that was not killed."""
        code = "import sys; from tests.test_streams import killed; killed(sys.argv[1])"
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert_same(fit(checkpoint=tmp_path / "run", resume=tmp_path / "run"), fit())

    def test_a_checkpoint_of_before_there_were_steps(self, tmp_path):
        whole, (_, half) = fit((X, Y)), fit((X, Y), epochs=2)
        assert int(half.state.step) == 0
        old = half.state._replace(step=None, costs=None)
        fn.save(tmp_path / "old.npz", old)
        for resume in (tmp_path / "old.npz", fn.load(tmp_path / "old.npz", like=old)):
            assert_same(fit((X, Y), resume=resume), whole)


def killed(folder):
    jax.config.update("jax_enable_x64", True)
    fit(stopping_at(6, lambda: os.kill(os.getpid(), signal.SIGKILL)), checkpoint=folder)


BATCH = X[:10], Y[:10]


def once(*given):
    return lambda epoch: iter(given)


USED_UP = iter([BATCH])


@pytest.mark.parametrize(
    ("source", "change", "message"),
    [
        (once(BATCH), {"n_examples": None}, r"fit: expected n_examples=, the number N of training examples, for a penalty"),
        (once(BATCH), {"n_examples": 0}, r"fit: expected n_examples to be an integer of at least 1, got 0"),
        ((X, Y), {"n_examples": 50}, r"fit: expected n_examples= only with data from a function, got 50 beside 50 examples"),
        ((X, Y), {"batch_size": None}, r"fit: expected batch_size to be an integer of at least 1, got None"),
        (once(), {}, r"fit: expected data\(0\) to give at least one batch, got 0; an iterator is used up after one pass"),
        (lambda epoch: USED_UP, {}, r"fit: expected data\(1\) to give at least one batch, got 0"),
        (lambda epoch: None, {}, r"fit: expected data\(epoch\) to return an iterator of batches \(x, y\), got NoneType"),
        (once(X), {}, r"fit: batch 1 of epoch 1: data: expected \(x, y\) or .*, got ndarray"),
        (once((*BATCH, {"mark": Y})), {}, r"fit: batch 1 of epoch 1: data: expected the keys 'mask' and 'weights'"),
        (once((X[:10], Y[:9])), {}, r"fit: batch 1 of epoch 1: y: expected as many targets as there are examples"),
        (once(BATCH, (X[:10], Y[:10] + 1)), {}, r"fit: batch 2 of epoch 1: .*: expected labels from 0 to 3, got 4"),
        (
            once(BATCH, (X[:10, :5], Y[:10])), {},
            r"batch 2 of epoch 1: expected x float64 \(m, 6\), y int32 \(m\) as in the first batch, got x float64 \(m, 5\)",
        ),
        (
            once(BATCH, (X[:10].astype(np.float32), Y[:10])), {},
            r"fit: batch 2 of epoch 1: expected .* as in the first batch, got x float32",
        ),
        (once(BATCH, (*BATCH, {"weights": X[:10, 0]})), {}, r"fit: batch 2 of epoch 1: expected .*, weights float64 \(m\)"),
        (once((X[:10, :5], Y[:10])), {}, r"expected inputs of shape \(m, 6\), got \(10, 5\)"),
        (once(BATCH), {"window": 2}, r"fit: batch 1 of epoch 1: fit: expected x and y with as many steps on axis 1"),
        (once(BATCH), {"shuffle": "block"}, r"fit: expected no shuffle= with data from a function, .*, got 'block'"),
    ],
)  # fmt: skip
def test_bad_input(source, change, message):
    with pytest.raises(ValueError, match=message):
        fit(source, **change)


def test_another_run_is_refused(tmp_path):
    fit(epochs=1, checkpoint=tmp_path / "run")
    for change in ({"n_examples": 49}, {"penalty": fn.L2(0.4)}):
        with pytest.raises(ValueError, match="got one with another penalty"):
            fit(resume=tmp_path / "run", **change)
    with pytest.raises(ValueError, match="got one with another data, batch_size"):
        fit((X, Y), monitor_training=False, resume=tmp_path / "run")
    _, history = fit(stopping_at(2, interrupt))
    inside = history.state._replace(fingerprint=None)
    with pytest.raises(ValueError, match="a state between two epochs for data in arrays, got one after 1 mini-batches"):
        fit((X, Y), monitor_training=False, resume=inside)
    with pytest.raises(ValueError, match=r"expected data\(0\) to give the 1 batches that are done, got 0"):
        fit(once(), resume=history.state)


@pytest.mark.parametrize("at", [2, *thorough(0, 3)])
def test_divergence_names_the_mini_batch_and_the_layer(at):
    def source(epoch):
        for number, (x, y) in enumerate(batches((X, Y))(epoch)):
            yield x * (np.nan if (epoch, number) == (1, at) else 1), y

    with pytest.raises(
        fn.Diverged, match=f"in epoch 2, mini-batch {at + 1}: the cost is not finite, first in the input data"
    ):
        fit(source)
    with pytest.raises(fn.Diverged, match=r"in epoch 1, mini-batch 2: .* first in layer 1 Dense") as caught:
        fit(optimizer=fn.sgd(jnp.inf))
    assert caught.value.step == 2


def mesh(kind):
    return jax.make_mesh((8,), ("data",), axis_types=(kind,))


def on_eight(kind):
    """Each mini-batch is divided: a last one of 2 examples is filled up."""
    given = {"validation": (X[:20], Y[:20]), "monitor_training": False}
    on, one = mesh(getattr(AxisType, kind)), fit((X, Y), **given)
    assert_same_run(fit(mesh=on, **given), one)
    rows = NamedSharding(on, P("data"))
    to = lambda a: jax.device_put(a, rows) if len(a) == 16 else jnp.asarray(a)  # noqa: E731
    assert_same_run(fit(batches((X, Y), to=to), mesh=on, **given), one)
    _, stopped = fit(stopping_at(6, interrupt), mesh=on, **given)
    assert int(stopped.state.step) == 1
    assert_same(fit(mesh=on, resume=stopped.state, **given), fit(mesh=on, **given))
    with pytest.raises(fn.Diverged, match=r"in epoch 1, mini-batch 2: .* first in layer 1 Dense"):
        fit(mesh=on, optimizer=fn.sgd(jnp.inf))
    with pytest.raises(ValueError, match="fit: expected a mesh with the axis 'data'"):
        fit(mesh=jax.make_mesh((4, 2), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2))


def cells():
    """Masks, weights and windows, filled up."""
    data = *SEQUENCES, EXTRAS
    given = {"net": CELLS, "monitor_training": False, "window": 3}
    assert_same_run(fit(batches(data), mesh=mesh(AxisType.Explicit), **given), fit(data, **given))


def mixing():
    """The compiler divides a network that mixes examples."""
    net = fn.Network(fn.Dense(8, fn.linear, bias=False), fn.BatchNorm(), fn.Dense(4, fn.softmax))
    given = {"net": net, "monitor_training": False, "optimizer": fn.sgd(0.1)}
    assert_same_run(fit(mesh=mesh(AxisType.Auto), **given), fit((X, Y), **given))
    with pytest.raises(fn.LayerError, match="the whole batch, since it mixes examples"):
        fit(net=net, mesh=mesh(AxisType.Explicit))


def program():
    """A step sends the gradient and the cost once, of a filled-up mini-batch too."""
    programs, original = [], training._batch_step

    def step(*given, **options):
        run = functools.partial(original.__wrapped__, *given[:4], **options)
        programs.append(jax.jit(run).lower(*given[4:]).compile().as_text())
        return original(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_batch_step", step)
        params, _ = fit(once((X[:16], Y[:16]), (X[:5], Y[:5])), penalty=None, epochs=1, mesh=mesh(AxisType.Auto))
    size = 8 * (1 + sum(leaf.size for leaf in jax.tree.leaves(params)))
    for text in programs:
        assert [(found.kind, found.bytes) for found in collectives(text)] == [("all-reduce", size)]


CHECKS = {
    "program": (program,),
    "Auto": (on_eight, "Auto"),
    "Explicit": (on_eight, "Explicit"),
    "cells": (cells,),
    "mixing": (mixing,),
}


@pytest.mark.parametrize("name", thorough(*CHECKS))
def test_on_eight_devices(name, found):
    assert found[name] is None, found[name]


def hosts(folder):
    """Each process gives its half of every mini-batch, in one order; a signal to one stops both."""
    on, host = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)), jax.process_index()

    def half(epoch):
        for i in range(0, 48, 16):
            yield X[i + 8 * host : i + 8 * host + 8], Y[i + 8 * host : i + 8 * host + 8]

    params, history = fit(half, mesh=on, n_examples=48, epochs=2)
    if host == 0:
        np.savez(Path(folder) / "hosts.npz", history.cost, *map(np.asarray, jax.tree.leaves(params)))
    with pytest.raises(ValueError, match="fit: expected mesh= for batches from 2 processes"):
        fit(half)
    uneven = lambda epoch: iter([(X[:7], Y[:7])])  # noqa: E731
    with pytest.raises(
        ValueError, match="expected a process's part of a batch that its 2 devices divide, got 7 examples"
    ):
        fit(uneven, mesh=on)


@pytest.mark.thorough
def test_two_processes():
    with tempfile.TemporaryDirectory() as folder:
        on_devices(hosts, folder, devices=4, hosts=2)
        params, history = fit(
            lambda e: ((X[i : i + 16], Y[i : i + 16]) for i in range(0, 48, 16)), n_examples=48, epochs=2
        )
        with np.load(Path(folder) / "hosts.npz") as theirs:
            assert_close([theirs[name] for name in theirs.files], [history.cost, *jax.tree.leaves(params)])
