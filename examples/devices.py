"""One script for one device, for eight, and for several hosts: training, evaluation and checkpoints.

    python examples/devices.py                       # on all devices that there are
    python examples/devices.py --fake 8              # on a CPU that passes for eight devices
    python examples/devices.py --shuffle block       # each device shuffles its own examples: no data move
    python examples/devices.py --hosts auto          # once on each host of a cluster that JAX knows, such as Slurm's
    python examples/devices.py --hosts 2 --host 0 --address 10.0.0.1:1234         # elsewhere; on the other one with --host 1

Start it again with a larger --epochs and it goes on from its last checkpoint. With shuffle "global" the numbers are those of
one device, up to rounding, whatever there is.
"""

# %%
import argparse

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fnnet as fn

NET = fn.Network(fn.Flatten(), fn.Dense(100, fn.relu), fn.Dropout(0.2), fn.Dense(10, fn.softmax))


def main(
    epochs: int = 4, shuffle: str = "global", examples: int | None = None, folder: str = "output/devices", fake: int = 0,
    hosts: str = "", host: int = 0, address: str = "",
) -> tuple[list[float], float]:  # fmt: skip
    # %% Before anything is computed: which devices there are.
    if fake:
        jax.config.update("jax_num_cpu_devices", fake)
    if hosts == "auto":
        jax.distributed.initialize()
    elif hosts:
        jax.distributed.initialize(address, int(hosts), host)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    is_first = jax.process_index() == 0

    # %% Each host has its own examples; together they are one array, of which each device has a part.
    rows = NamedSharding(mesh, P("data"))

    def shared(images: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        size = len(images[:examples]) // mesh.size * mesh.size // jax.process_count()
        own = slice(jax.process_index() * size, (jax.process_index() + 1) * size)
        parts = (np.asarray(a[own]) for a in (images, labels))
        return tuple(jax.make_array_from_process_local_data(rows, part) for part in parts)

    data = fn.datasets.mnist_subset()
    train, test = shared(*data.train), shared(*data.test)

    # %% All the rest is as on one device. The same key on every host: they draw the same parameters and the same order.
    init_key, key = jax.random.split(jax.random.key(0))
    params, history = fn.fit(
        NET, fn.log_likelihood, NET.init(init_key, (28, 28, 1)), train, key=key, epochs=epochs, batch_size=40,
        optimizer=fn.adam(2e-3), shuffle=shuffle, checkpoint=folder, resume=folder, progress=is_first,
    )  # fmt: skip
    cost, accuracy = fn.evaluate(NET, fn.log_likelihood, params, test)
    if is_first:
        print(
            f"{mesh.size} devices on {jax.process_count()} hosts, {shuffle} shuffle, after {len(history.cost)} epochs:"
        )
        print(
            f"cost {history.cost[-1]:.6f} in training, {cost:.6f} on the test images, of which {accuracy:.1%} are right"
        )
    return history.cost.tolist(), accuracy


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="in all, those of the last checkpoint included")
    parser.add_argument("--shuffle", default="global", choices=("global", "block"))
    parser.add_argument("--examples", type=int, help="use the first so many images only")
    parser.add_argument("--folder", default="output/devices", help="where the checkpoints are, the same for all hosts")
    parser.add_argument("--fake", type=int, default=0, help="how many devices the CPU passes for")
    parser.add_argument("--hosts", default="", help="how many there are, or auto")
    parser.add_argument("--host", type=int, default=0, help="the number of this one, from 0")
    parser.add_argument("--address", default="", help="of host 0, with a free port")
    main(**vars(parser.parse_args()))
