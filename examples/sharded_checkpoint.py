"""Parameters that lie in parts on several devices: checkpointed with orbax, and resumed on another number of devices.

    python examples/sharded_checkpoint.py                     # on 8 fake devices, then on 4: half a minute
    python examples/sharded_checkpoint.py --on 2 6 --epochs 3
    python examples/sharded_checkpoint.py --here              # on this machine's own devices: run it again to go on

``fnnet.save`` writes what one host holds. Where the parameters are spread over hosts, or are too large for one of them, each
host writes its own parts: that is what orbax is for (``pip install orbax-checkpoint``). Every array of this run, optimiser's
state included, is cut over all devices along the first axis that they divide, as is each mini-batch. orbax is told how the
arrays are to lie on the devices that there are now, and reads the parts that each of them needs.

The script prints the cost by epoch of a run that changes devices after ``--epochs`` epochs and of one that does not.
"""

# %%
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn

NET = fn.Network(fn.Flatten(), fn.Dense(240, fn.sigmoid), fn.Dropout(0.2), fn.Dense(10, fn.softmax))
COST = fn.log_likelihood


def main(on: list[int], epochs: int, examples: int | None, folder: str, here: bool = False) -> None:
    if here:
        train(epochs, examples, Path(folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        for devices in on:
            on_fake_devices(devices, epochs, examples, f"{folder}/changing")
        print("\nthe same run without a change:")
        on_fake_devices(on[0], len(on) * epochs, examples, f"{folder}/steady")


def on_fake_devices(devices: int, epochs: int, examples: int | None, folder: str) -> None:
    """This script in a process that takes its CPU for so many devices."""
    command = [sys.executable, __file__, "--here", "--epochs", str(epochs), "--folder", folder]
    command += [] if examples is None else ["--examples", str(examples)]
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}  # threads: waiting takes some
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE)
    print(done.stdout.decode(), end="", flush=True)
    done.check_returncode()


def train(epochs: int, examples: int | None, folder: Path, batch: int = 120, seed: int = 0) -> None:
    """So many epochs more than the last checkpoint in the folder has."""
    import orbax.checkpoint as ocp

    # %% Every array is cut along the first axis that the devices divide; one without such an axis is on each of them.
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), axis_types=(AxisType.Auto,))

    def sharding(a: jax.Array) -> NamedSharding:
        cut = next((axis for axis, n in enumerate(a.shape) if n % mesh.size == 0), None)
        return NamedSharding(mesh, P() if cut is None else P(*[None] * cut, "devices"))

    # %% What a run is: its parameters, its optimiser's state and how far it got.
    optimizer = fn.adam(1e-3)

    def start(key: jax.Array) -> dict:
        params = NET.init(key, (28, 28, 1))
        return {"params": params, "optimizer": optimizer.init(params), "epoch": np.int32(0)}

    # %% orbax restores into arrays that are described, not made: shapes, dtypes, and where each part is to be.
    described = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding(a)),
        jax.eval_shape(start, jax.random.key(seed)),
    )
    shardings = jax.tree.map(lambda a: a.sharding, described)
    manager = ocp.CheckpointManager(folder.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=2))
    if (last := manager.latest_step()) is None:
        state = jax.jit(start, out_shardings=shardings)(jax.random.key(seed))
    else:
        state = manager.restore(last, args=ocp.args.StandardRestore(described))
    w = state["params"][1]["w"]
    parts = (
        f"the first weights, {w.shape}, are {len(w.addressable_shards)} parts of {w.addressable_shards[0].data.shape}"
    )
    print(f"epoch {int(state['epoch'])} on {mesh.size} devices: {parts}")

    # %% Train: the compiler sees where the arrays are, and sends what has to be sent.
    gradient = fn.value_and_grad(NET, COST)

    @jax.jit
    def step(state: dict, x: jax.Array, y: jax.Array, key: jax.Array) -> tuple[dict, jax.Array]:
        cost, gradients = gradient(state["params"], x, y, key=key)
        updates, kept = optimizer.update(gradients, state["optimizer"], state["params"])
        new = {**state, "params": fn.apply_updates(state["params"], updates), "optimizer": kept}
        return jax.lax.with_sharding_constraint(new, shardings), cost

    x, y = (np.asarray(a[:examples]) for a in fn.datasets.mnist_subset().train)
    rows = NamedSharding(mesh, P("devices"))
    for epoch in range(int(state["epoch"]), int(state["epoch"]) + epochs):
        costs = []
        order = np.random.default_rng((seed, epoch)).permutation(len(x))
        for i, chosen in enumerate(np.split(order[: len(x) // batch * batch], len(x) // batch)):
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), epoch), i)
            state, cost = step(state, *jax.device_put((x[chosen], y[chosen]), rows), key)
            costs.append(cost)
        state["epoch"] = jax.device_put(np.int32(epoch + 1), shardings["epoch"])
        manager.save(epoch + 1, args=ocp.args.StandardSave(state))
        print(f"epoch {epoch + 1}: cost {np.mean(jax.device_get(costs)):.6f}")
    manager.wait_until_finished()


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--on", type=int, nargs="+", default=[8, 4], help="fake devices, which divide a mini-batch of 120"
    )
    parser.add_argument("--epochs", type=int, default=2, help="epochs on each number of devices")
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--here", action="store_true", help="on the devices that there are")
    parser.add_argument("--folder", default="output/sharded", help="where the checkpoints go with --here")
    main(**vars(parser.parse_args()))
