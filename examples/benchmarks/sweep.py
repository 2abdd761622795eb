"""64 networks 784-30-10 trained by one call of ``fn.sweep``, and one after another by ``fn.fit``.

    python examples/benchmarks/sweep.py [--rounds 5] [--epochs 5] [--at-once 4,8,16,32,64]

8 learning rates × 8 seeds, 1,000 embedded MNIST images, cross-entropy, mini-batch 10, λ 0.1, no validation. Runs alternate,
compilation is not counted. Prints seconds, and the median of the ratios to ``fit``.
"""

# %%
import argparse

import jax
import numpy as np

import fnnet as fn
from fnnet.bench.measure import alternating


def main(rounds: int = 5, epochs: int = 5, at_once: str = "4,8,16,32,64", rates: int = 8, seeds: int = 8) -> None:
    (x, y), _, _ = fn.datasets.mnist_subset()
    data = jax.numpy.asarray(x[:1000]), jax.numpy.asarray(y[:1000])
    net = fn.Network(fn.Flatten(), fn.Dense(30, fn.sigmoid), fn.Dense(10, fn.sigmoid))
    optimizers = [fn.sgd(float(rate)) for rate in np.geomspace(0.03, 1, rates)]
    keys = jax.random.split(jax.random.key(0), seeds)
    common = {"epochs": epochs, "batch_size": 10, "monitor_training": False, "progress": False}
    init = jax.jit(lambda key: net.init(key, (28, 28, 1)))

    def one_after_another():
        ends = []
        for optimizer in optimizers:
            for init_key, fit_key in map(jax.random.split, keys):
                given = {"key": fit_key, "optimizer": optimizer, "penalty": fn.L2(0.1)}
                ends.append(fn.fit(net, fn.cross_entropy, init(init_key), data, **given, **common)[0])
        return ends

    def together(count: int):
        given = {"keys": keys, "optimizers": optimizers, "penalties": [fn.L2(0.1)], "at_once": count}
        return lambda: fn.sweep(net, fn.cross_entropy, data, **given, **common).params

    contenders = {"fit, one after another": one_after_another}
    contenders |= {f"sweep, {count} at once": together(int(count)) for count in at_once.split(",")}
    times = alternating(contenders, rounds, 1)
    ratios = np.median(times[:, :1] / times, axis=0)
    print(
        f"{rates * seeds} networks, {epochs} epochs of 1,000 images\n\n| | seconds | times as fast as fit |\n|---|---|---|"
    )
    for name, seconds, ratio in zip(contenders, np.median(times, axis=0), ratios, strict=True):
        print(f"| {name} | {seconds:.2f} | {ratio:.2f} |")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--at-once", default="4,8,16,32,64", metavar="NUMBERS", help="networks beside each other")
    parser.add_argument("--rates", type=int, default=8, help="learning rates")
    parser.add_argument("--seeds", type=int, default=8)
    main(**vars(parser.parse_args()))
