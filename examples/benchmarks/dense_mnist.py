"""The published dense result beside fnnet's, over several seeds, on the whole of MNIST.

    FNNET_DATA=FOLDER python examples/benchmarks/dense_mnist.py [--seeds 5] [--epochs 30] [--init normal]

784-100-10, sigmoid, cross-entropy, λ = 5, η = 0.5, mini-batch 10, 50,000 training and 10,000 validation images. Published
(Nielsen, Neural Networks and Deep Learning): 97.92 % validation, the best of 30 epochs, single run, N(0,1) weights.
"""

# %%
import argparse
import time

import jax
import numpy as np

import fnnet as fn

INITIALISERS = {
    "normal": {"weight_init": fn.initializers.normal(), "bias_init": fn.initializers.normal()},
    "scaled_normal": {"weight_init": fn.initializers.scaled_normal(), "bias_init": fn.initializers.normal()},
}


def main(seeds: int = 5, epochs: int = 30, init: str = "normal") -> np.ndarray:
    data = fn.datasets.mnist()
    chosen = INITIALISERS[init]
    net = fn.Network(fn.Flatten(), fn.Dense(100, fn.sigmoid, **chosen), fn.Dense(10, fn.sigmoid, **chosen))
    curves = []
    for seed in range(seeds):
        start = time.perf_counter()
        init_key, fit_key = jax.random.split(jax.random.key(seed))
        _, history = fn.fit(
            net,
            fn.cross_entropy,
            net.init(init_key, (28, 28, 1)),
            data.train,
            key=fit_key,
            epochs=epochs,
            batch_size=10,
            optimizer=fn.sgd(0.5),
            penalty=fn.L2(5.0),
            validation=data.validation,
            progress=False,
        )
        curve = 100 * history.validation_accuracy
        curves.append(curve)
        print(
            f"seed {seed}: best {curve.max():.2f} %, last {curve[-1]:.2f} % ({time.perf_counter() - start:.1f} s)",
            flush=True,
        )
    best, last = np.max(curves, axis=1), np.array(curves)[:, -1]
    for name, values in (("best epoch", best), ("last epoch", last)):
        print(
            f"{name}: {values.mean():.2f} ± {values.std(ddof=1):.2f} % validation, {seeds} seeds, {init}, {epochs} epochs"
        )
    return best


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--init", choices=INITIALISERS, default="normal")
    main(**vars(parser.parse_args()))
