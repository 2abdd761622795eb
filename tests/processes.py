"""What each of two processes runs in tests/test_processes.py. Prints what it found, as JSON."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import fnnet as fn

NET = fn.Network(fn.Dense(12, fn.sigmoid), fn.Dropout(0.2), fn.Dense(4, fn.softmax))
RNG = np.random.default_rng(0)
X, Y = RNG.standard_normal((48, 6)), RNG.integers(0, 4, 48).astype(np.int32)


def run(data, params, key, **more):
    about = {"batch_size": 12, "optimizer": fn.adam(0.05), "penalty": fn.L2(0.1), "progress": False}
    return fn.fit(NET, fn.log_likelihood, params, data, key=key, **about, **more)


def gap(tree, other) -> float:
    """The largest difference of two pytrees of arrays that every device holds."""
    both = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in both)


def refusal(f) -> str:
    try:
        f()
    except ValueError as error:
        return str(error)
    return "nothing"


def main(number: int, port: str, folder: Path) -> dict:
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, number)
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
    return found


if __name__ == "__main__":
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_x64", True)
    print("found", json.dumps(main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))), flush=True)
