"""Runs that are killed (SIGKILL) at random moments and started again by the same command, compared with undisturbed ones.

``python -m tests.kills KIND RUNS KILLS FOLDER`` with the kinds below prints the figures as JSON: how many processes were
killed, and how many runs ended with every bit of the undisturbed run. Each is forked before JAX has started anything.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet import dbn, rbm

KEY = 3


def data():
    x = np.random.default_rng(0).random((60, 40), np.float32)
    return x, np.arange(60) % 3


def fit(**given):
    net = fn.Network(fn.Dense(300, fn.sigmoid), fn.Dropout(0.2), fn.Dense(3, fn.softmax))
    return fn.fit(
        net, fn.log_likelihood, net.init(jax.random.key(0), (40,)), data(), key=jax.random.key(KEY), epochs=250,
        batch_size=16, optimizer=fn.adam(1e-3), validation=data(), early_stopping=fn.EarlyStopping(1000), progress=False,
        **given,
    )  # fmt: skip


def on_batches(**given):
    """Mini-batches from a function, a last short one too."""
    x, y = data()
    net = fn.Network(fn.Dense(300, fn.sigmoid), fn.Dropout(0.2), fn.Dense(3, fn.softmax))
    return fn.fit(
        net, fn.log_likelihood, net.init(jax.random.key(0), (40,)),
        lambda epoch: ((x[i : i + 16], y[i : i + 16]) for i in range(0, 60, 16)), key=jax.random.key(KEY), epochs=250,
        optimizer=fn.adam(1e-3), validation=data(), progress=False, **given,
    )  # fmt: skip


def sweep(**given):
    net = fn.Network(fn.Dense(100, fn.sigmoid), fn.Dense(3, fn.softmax))
    return fn.sweep(
        net, fn.log_likelihood, data(), keys=jax.random.split(jax.random.key(KEY), 3), epochs=60, batch_size=16,
        optimizers=[fn.sgd(0.1, momentum=0.9), fn.sgd(0.2, momentum=0.9)], at_once=2, progress=False, **given,
    )  # fmt: skip


TRAINING = {"batch_size": 16, "optimizer": fn.sgd(0.01, momentum=0.5), "persistent": True, "progress": False}


def rbm_fit(**given):
    params = rbm.init(jax.random.key(0), 40, 200)
    return rbm.fit(params, data()[0], key=jax.random.key(KEY), epochs=150, validation=data()[0], **TRAINING, **given)


def dbn_pretrain(**given):
    given.setdefault("resume", ())
    return dbn.pretrain(data()[0], (100, 50, 20), key=jax.random.key(KEY), epochs=60, **TRAINING, **given)


KINDS = {"fit": fit, "batches": on_batches, "sweep": sweep, "rbm": rbm_fit, "dbn": dbn_pretrain}


def leaves(result):
    """Every array of a result, keys as their bits."""
    is_key = lambda a: jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)  # noqa: E731
    return [np.asarray(jax.random.key_data(a) if is_key(a) else a) for a in jax.tree.leaves(result)]


def start(kind, target, **given):
    """The pid of a process that runs to the end and saves what comes out."""
    pid = os.fork()
    if pid == 0:
        try:
            np.savez(target, *leaves(KINDS[kind](**given)))
        except BaseException as error:
            print(f"{kind}: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def done(folder):
    """How many epochs the folder holds."""
    return sum(
        max(int(f.stem[11:]) for f in sub.glob("checkpoint-*")) for sub in {f.parent for f in folder.rglob("c*.npz")}
    )


def main(kind, runs, kills, folder):
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    moments, killed, equal = random.Random(0), 0, 0
    assert os.waitpid(start(kind, folder / "whole.npz"), 0)[1] == 0
    whole = np.load(folder / "whole.npz")
    for run in range(runs):
        own, at = folder / f"run-{run}", []
        given = {"checkpoint": own, "resume": own}
        for _ in range(kills):
            pid, wanted = start(kind, folder / "result.npz", **given), done(own) + moments.randint(1, 25)
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if done(own) >= wanted:
                    time.sleep(moments.random() * 0.05)
                    os.kill(pid, signal.SIGKILL)
                    killed += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
                    at.append(done(own))
                    break
                time.sleep(0.002)
        assert os.waitpid(start(kind, folder / "result.npz", **given), 0)[1] == 0
        result = np.load(folder / "result.npz")
        same = result.files == whole.files and all(
            result[name].dtype == whole[name].dtype and result[name].tobytes() == whole[name].tobytes()
            for name in whole
        )
        equal += same
        print(f"{kind}: run {run} killed after {at} epochs, bit for bit the same: {same}", file=sys.stderr, flush=True)
    print(json.dumps({"kind": kind, "runs": runs, "killed": killed, "equal": equal}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
