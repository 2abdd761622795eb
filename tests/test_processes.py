"""Two processes over the loopback address, two devices each, against one process with one device."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import fnnet as fn

from . import processes

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each of the two processes printed, and their folder."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-m", "tests.processes"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    both = [subprocess.Popen([*command, str(number), port, str(folder)], **pipes) for number in range(2)]
    try:
        texts = [process.communicate(timeout=240)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    lines = [re.search(r"^found (.*)$", text, re.M) for text in texts]
    assert all(lines), "\n".join(text[-3000:] for text in texts)
    return [json.loads(line[1]) for line in lines], folder


def test_gradients_and_evaluation_are_those_of_one_device(found):
    for process in found[0]:
        assert process["value_and_grad"] < 1e-12
        assert process["evaluate"] < 1e-12


def test_fit_is_that_of_one_device(found):
    one = processes.NET.init(jax.random.key(0), (6,))
    data = processes.X, processes.Y
    trained, history = processes.run(data, one, jax.random.key(5), epochs=4, validation=data)
    for number, process in enumerate(found[0]):
        assert np.allclose(process["monitors"], [history.cost, history.validation_accuracy], rtol=1e-12, atol=1e-12)
        with np.load(found[1] / f"trained-{number}.npz") as theirs:
            assert processes.gap(trained, [theirs[name] for name in theirs.files]) < 1e-12


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
    assert fn.devices.any_process(True) is True
    fn.devices.check_agreed("fit", ("epochs",), [1])
