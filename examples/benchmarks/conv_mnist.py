"""The published convolutional results beside fnnet's, over several seeds, on the whole of MNIST.

    FNNET_DATA=FOLDER python examples/benchmarks/conv_mnist.py [--settings one,two,relu] [--seeds 3] [--epochs 60]

Mini-batch 10, 50,000 training, 10,000 validation and 10,000 test images; initial weights and biases as in the book's code:
normal, kernels of variance 4 / (c_out k²), dense weights of variance 1 / n_out, biases of variance 1, the softmax layer
from zeros. The figure is the test accuracy of the epoch with the best validation accuracy, as in the book. Published
(Nielsen, Neural Networks and Deep Learning, chapter 6), single runs:

    one   conv 20@5×5, max-pool 2, 100, softmax; sigmoid, η 0.1                           98.78 %
    two   conv 20@5×5, max-pool 2, conv 40@5×5, max-pool 2, 100, softmax; sigmoid, η 0.1  99.06 %
    relu  two with ReLU, η 0.03, L2 with λ 0.1, which is 1.0 in the form λ/(2N)           99.23 %
"""

# %%
import argparse
import time

import jax
import numpy as np

import fnnet as fn

PUBLISHED = {"one": 98.78, "two": 99.06, "relu": 99.23}


def network(setting: str) -> fn.Network:
    normal, activation = fn.initializers.normal, fn.relu if setting == "relu" else fn.sigmoid

    def conv(features):
        std = (4 / (25 * features)) ** 0.5
        return fn.Conv(features, 5, activation, weight_init=normal(std), bias_init=normal())

    second = () if setting == "one" else (conv(40), fn.MaxPool(2))
    return fn.Network(
        conv(20),
        fn.MaxPool(2),
        *second,
        fn.Flatten(),
        fn.Dense(100, activation, normal(0.1), normal()),
        fn.Dense(10, fn.softmax, fn.initializers.zeros()),
    )


def main(settings: str = "one,two,relu", seeds: int = 3, epochs: int = 60, examples: int | None = None) -> dict:
    data, results = fn.datasets.mnist(), {}
    for setting in settings.split(","):
        net, accuracies = network(setting), []
        eta, penalty = (0.03, fn.L2(1.0)) if setting == "relu" else (0.1, None)
        for seed in range(seeds):
            start = time.perf_counter()
            init_key, fit_key = jax.random.split(jax.random.key(seed))
            params, history = fn.fit(
                net,
                fn.log_likelihood,
                net.init(init_key, (28, 28, 1)),
                tuple(part[:examples] for part in data.train),
                key=fit_key,
                epochs=epochs,
                batch_size=10,
                optimizer=fn.sgd(eta),
                penalty=penalty,
                validation=data.validation,
                early_stopping=fn.EarlyStopping(patience=epochs),
                monitor_training=False,
                progress=False,
            )
            _, accuracy = fn.evaluate(net, fn.log_likelihood, params, data.test)
            accuracies.append(100 * accuracy)
            best = int(np.argmax(history.validation_accuracy)) + 1
            took = time.perf_counter() - start
            print(
                f"{setting}, seed {seed}: {100 * accuracy:.2f} % test, epoch {best} of {epochs} ({took:.0f} s)",
                flush=True,
            )
        mean, std = np.mean(accuracies), np.std(accuracies, ddof=1) if seeds > 1 else float("nan")
        results[setting] = float(mean)
        print(f"{setting}: {mean:.2f} ± {std:.2f} % test, {seeds} seeds; published {PUBLISHED[setting]} %", flush=True)
    return results


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="one,two,relu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    main(**vars(parser.parse_args()))
