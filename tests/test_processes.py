"""Two processes over the loopback address, two devices each, against one process with one device."""

import json
import os
import re
import signal
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fnnet as fn
from fnnet.devices import any_process, check_agreed

from .devices import on_devices

pytestmark = pytest.mark.thorough

NET = fn.Network(fn.Dense(12, fn.sigmoid), fn.Dropout(0.2), fn.Dense(4, fn.softmax))
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((48, 6)), RNG.integers(0, 4, 48).astype(np.int32)


def run(data, params, key, **more):
    about = {"batch_size": 12, "optimizer": fn.adam(0.05), "penalty": fn.L2(0.1), "progress": False}
    return fn.fit(NET, fn.log_likelihood, params, data, key=key, **about, **more)


def gap(tree, other):
    """The largest difference of two pytrees of arrays that every device holds."""
    both = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in both)


def refusal(f):
    try:
        f()
    except ValueError as error:
        return str(error)
    return "nothing"


def both(folder):
    """What each of the two processes finds, printed as JSON."""
    number, folder = jax.process_index(), Path(folder)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    half = slice(24 * number, 24 * number + 24)
    x, y = (jax.make_array_from_process_local_data(rows, a[half]) for a in (X, Y))
    one = NET.init(jax.random.key(0), (6,))
    params = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf), everywhere), one)
    gradient, key, found = fn.value_and_grad(NET, fn.log_likelihood), jax.random.key(7), {}

    found["value_and_grad"] = gap(gradient(params, x, y, key=key), gradient(one, X, Y, key=key))
    found["evaluate"] = gap(*(fn.evaluate(NET, fn.log_likelihood, p, d) for p, d in ((params, (x, y)), (one, (X, Y)))))

    def fit(data, start=one, **more):
        return run(data, start, jax.random.key(5), **more)

    trained, history = fit((x, y), epochs=4, validation=(x, y))
    found["monitors"] = [history.cost.tolist(), history.validation_accuracy.tolist()]
    np.savez(folder / f"trained-{number}.npz", *map(np.asarray, jax.tree.leaves(trained)))

    blocks, _ = fit((x, y), epochs=2, shuffle="block")
    again, _ = fit((x, y), epochs=2, shuffle="block")
    found["blocks"] = gap(blocks, again)

    fit((x, y), epochs=2, checkpoint=folder / "run")
    resumed, _ = fit((x, y), epochs=4, checkpoint=folder / "run", resume=folder / "run")
    straight, _ = fit((x, y), epochs=4)
    found["resumed"] = gap(resumed, straight)

    # A SIGTERM that one process gets stops both after the same epoch, and the first has saved it.
    kept = signal.signal(signal.SIGTERM, lambda *_: None)
    if number:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    _, history = fit((x, y), epochs=100_000, checkpoint=folder / "stopped", every=1000)
    signal.signal(signal.SIGTERM, kept)
    found["stopped after"] = len(history.cost)
    _, history = fit((x, y), epochs=0, resume=folder / "stopped")
    found["goes on after"] = len(history.cost)

    found["own data"] = refusal(lambda: fit((X, Y), epochs=1))
    found["own parameters"] = refusal(lambda: fit((x, y), NET.init(jax.random.key(number), (6,)), epochs=1))
    found["own arguments"] = refusal(lambda: fit((x, y), epochs=1 + number))
    print("found", json.dumps(found), flush=True)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each process found, and their folder."""
    folder = tmp_path_factory.mktemp("processes")
    texts = on_devices(both, str(folder), devices=4, hosts=2)
    return [json.loads(re.search(r"^found (.*)$", text, re.M)[1]) for text in texts], folder


def test_gradients_and_evaluation_are_those_of_one_device(found):
    for process in found[0]:
        assert process["value_and_grad"] < 1e-12
        assert process["evaluate"] < 1e-12


def test_fit_is_that_of_one_device(found):
    one = NET.init(jax.random.key(0), (6,))
    data = X, Y
    trained, history = run(data, one, jax.random.key(5), epochs=4, validation=data)
    for number, process in enumerate(found[0]):
        assert np.allclose(process["monitors"], [history.cost, history.validation_accuracy], rtol=1e-12, atol=1e-12)
        with np.load(found[1] / f"trained-{number}.npz") as theirs:
            assert gap(trained, [theirs[name] for name in theirs.files]) < 1e-12


def test_a_run_in_blocks_repeats_itself(found):
    assert [process["blocks"] for process in found[0]] == [0, 0]


def test_a_resumed_run_is_the_straight_one_bit_for_bit(found):
    assert [process["resumed"] for process in found[0]] == [0, 0]


def test_a_signal_to_one_process_stops_both_after_the_same_epoch(found):
    first, second = (process["stopped after"] for process in found[0])
    assert 0 < first == second < 100_000
    assert [process["goes on after"] for process in found[0]] == [first, first]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own data", r"fit: expected data that the 2 processes share.*make_array_from_process_local_data"),
        ("own parameters", r"fit: expected the same parameters, key and state on every process.*from the same key"),
        ("own arguments", r"fit: expected the 2 processes to come with the same arguments, got another epochs on one"),
    ],
)
def test_what_one_process_has_for_itself_is_refused(found, name, message):
    for process in found[0]:
        assert re.search(message, process[name])


def test_nothing_is_refused_in_one_process():
    assert any_process(True) is True
    check_agreed("fit", ("epochs",), [1])
