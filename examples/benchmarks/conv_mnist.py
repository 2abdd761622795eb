"""The published results of convolutional networks beside fnnet's, over several seeds, on the whole of MNIST.

    FNNET_DATA=FOLDER python examples/benchmarks/conv_mnist.py [--settings dense,one,two,relu] [--seeds 5] [--epochs 60]
    FNNET_DATA=FOLDER python examples/benchmarks/conv_mnist.py --settings expanded                    # for a GPU
    FNNET_DATA=FOLDER python examples/benchmarks/conv_mnist.py --settings dropout --epochs 40         # for a GPU

Mini-batch 10, 50,000 training, 10,000 validation and 10,000 test images; initial weights and biases as in the book's code:
normal, kernels of variance 4 / (c_out k²), dense weights of variance 1 / n_out, biases of variance 1, the softmax layer
from zeros. The figure is the test accuracy of the epoch with the best validation accuracy, as in the book. Published
(Nielsen, Neural Networks and Deep Learning, chapter 6), single runs:

    dense     100, softmax; sigmoid, η 0.1                                                    97.80 %
    one       conv 20@5×5, max-pool 2, 100, softmax; sigmoid, η 0.1                           98.78 %
    two       conv 20@5×5, max-pool 2, conv 40@5×5, max-pool 2, 100, softmax; sigmoid, η 0.1  99.06 %
    relu      two with ReLU, η 0.03, L2 with λ 0.1, which is 1.0 in the form λ/(2N)           99.23 %
    expanded  relu on 250,000 images: also moved by one pixel up, down, left and right        99.37 %
    dropout   the same images, two layers of 1,000 with dropout 0.5 before each layer from    99.60 %
              the first of them on, no L2, 40 epochs; a vote of 5 such networks               99.67 %
"""

# %%
import argparse
import time

import jax
import numpy as np

import fnnet as fn

PUBLISHED = {"dense": 97.80, "one": 98.78, "two": 99.06, "relu": 99.23, "expanded": 99.37, "dropout": 99.60}


def network(setting: str) -> fn.Network:
    normal, activation = fn.initializers.normal, fn.sigmoid if setting in ("dense", "one", "two") else fn.relu

    def conv(features):
        std = (4 / (25 * features)) ** 0.5
        return fn.Conv(features, 5, activation, weight_init=normal(std), bias_init=normal()), fn.MaxPool(2)

    def dense(n):
        return fn.Dense(n, activation, normal(n**-0.5), normal())

    convolutions = {"dense": (), "one": conv(20)}.get(setting, conv(20) + conv(40))
    softmax = fn.Dense(10, fn.softmax, fn.initializers.zeros())
    if setting != "dropout":
        return fn.Network(*convolutions, fn.Flatten(), dense(100), softmax)
    drop = fn.Dropout(0.5)
    return fn.Network(*convolutions, fn.Flatten(), drop, dense(1000), drop, dense(1000), drop, softmax)


def main(settings: str = "dense,one,two,relu", seeds: int = 5, epochs: int = 60, examples: int | None = None) -> dict:
    data, results = fn.datasets.mnist(), {}
    for setting in settings.split(","):
        net, accuracies, votes = network(setting), [], []
        eta = 0.1 if setting in ("dense", "one", "two") else 0.03
        train = tuple(part[:examples] for part in data.train)
        if setting in ("expanded", "dropout"):
            train = fn.datasets.shifted(*train)
        for seed in range(seeds):
            start = time.perf_counter()
            init_key, fit_key = jax.random.split(jax.random.key(seed))
            params, history = fn.fit(
                net,
                fn.log_likelihood,
                net.init(init_key, (28, 28, 1)),
                train,
                key=fit_key,
                epochs=epochs,
                batch_size=10,
                optimizer=fn.sgd(eta),
                penalty=fn.L2(1.0) if setting in ("relu", "expanded") else None,
                validation=data.validation,
                early_stopping=fn.EarlyStopping(patience=epochs),
                monitor_training=False,
                progress=False,
            )
            classes = [net.apply(params, part).argmax(axis=1) for part in np.split(data.test[0], 10)]
            votes.append(np.eye(10)[np.concatenate(classes)])
            accuracies.append(100 * np.mean(votes[-1].argmax(axis=1) == data.test[1]))
            best = int(np.argmax(history.validation_accuracy)) + 1
            took = time.perf_counter() - start
            print(
                f"{setting}, seed {seed}: {accuracies[-1]:.2f} % test, epoch {best} of {epochs} ({took:.0f} s)",
                flush=True,
            )
        mean, std = np.mean(accuracies), np.std(accuracies, ddof=1) if seeds > 1 else float("nan")
        together = 100 * np.mean(sum(votes).argmax(axis=1) == data.test[1])
        results[setting] = float(mean)
        print(f"{setting}: {mean:.2f} ± {std:.2f} % test, {seeds} seeds; published {PUBLISHED[setting]} %; ", end="")
        print(f"a vote of the {seeds}: {together:.2f} %", flush=True)
    return results


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", default="dense,one,two,relu")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    main(**vars(parser.parse_args()))
