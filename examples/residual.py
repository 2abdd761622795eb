"""A small residual network with batch normalisation, beside the same network without one of the two, and without both.

    python examples/residual.py                    # 4,000 embedded MNIST images, a minute or two
    python examples/residual.py --mnist FOLDER     # the whole of MNIST, from its four IDX files

Two convolutions halve the image twice; then come blocks of two 3×3 convolutions. relu belongs to a convolution here, so
BatchNorm stands before each convolution of a block, as layer normalisation does in a transformer, and these need no biases.
Prints what the audit says of the first, and the test accuracy of each over the seeds, and writes residual.png.
"""

# %%
import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fnnet as fn
from pictures import pyplot, save
from spread import spread

NETWORKS = {
    "normalised, with skips": (True, True),
    "normalised": (True, False),
    "with skips": (False, True),
    "plain": (False, False),
}


def network(normalised: bool, skips: bool, blocks: int = 4, c: int = 8) -> fn.Network:
    """28×28 → 14×14 → 7×7, blocks, the mean over the places, and a dense layer."""

    def conv(activation: fn.Activation, stride: int = 1) -> list[fn.Layer]:
        kernels = fn.Conv(
            c, 3, activation, stride, "same", weight_init=fn.initializers.he_normal(), bias=not normalised
        )
        return [fn.BatchNorm(), kernels] if normalised else [kernels]

    block = (*conv(fn.relu), *conv(fn.linear if skips else fn.relu))
    block = [fn.Residual(*block)] if skips else block
    norm = [fn.BatchNorm()] if normalised else []
    first, second = conv(fn.relu, 2), conv(fn.relu, 2)
    return fn.Network(*first[-1:], *second, *block * blocks, *norm, fn.GlobalMeanPool(), fn.Dense(10, fn.softmax))


def main(
    mnist: str | None = None,
    seeds: int = 3,
    epochs: int = 5,
    blocks: int = 4,
    examples: int | None = None,
    output: str = "output",
) -> dict[str, dict[str, np.ndarray]]:
    """Training cost and validation accuracy by epoch, (seeds, epochs) each, by network."""
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    x, y = (part[:examples] for part in data.train)
    print(f"{len(x)} training images, {blocks} blocks, {epochs} epochs, {seeds} seeds\n")

    # %% Do the equations agree with autodiff, at their places inside the blocks?
    net = network(True, True, blocks)
    params = net.init(jax.random.key(0), (28, 28, 1))
    report = fn.compare_gradients(net, fn.log_likelihood, params, x[:16], y[:16])
    print(str(report).splitlines()[0], "\n")

    # %% Train.
    found: dict[str, dict[str, np.ndarray]] = {"cost": {}, "accuracy": {}}
    for name, chosen in NETWORKS.items():
        net, histories, accuracies = network(*chosen, blocks), [], []
        for seed in range(seeds):
            params, history = fn.fit(
                net,
                fn.log_likelihood,
                net.init(jax.random.key(seed), (28, 28, 1)),
                (x, y),
                key=jax.random.key(seeds + seed),
                epochs=epochs,
                batch_size=20,
                optimizer=fn.sgd(0.02, momentum=0.9),
                validation=data.validation,
                monitor_training=False,
                progress=False,
            )
            histories.append(history)
            accuracies.append(100 * fn.evaluate(net, fn.log_likelihood, params, data.test)[1])
        found["cost"][name] = np.stack([history.cost for history in histories])
        found["accuracy"][name] = np.stack([history.validation_accuracy for history in histories])
        print(f"{name:24} test accuracy {spread(accuracies)} %", flush=True)

    # %% Look.
    picture(found, Path(output) / "residual.png")
    if not report.ok:
        raise SystemExit("the manual gradients do not agree with autodiff")
    return found


def picture(found: dict, path: Path) -> None:
    if (plt := pyplot()) is None:
        return
    figure = plt.figure(figsize=(10, 4), layout="constrained")
    draw(found, figure)
    save(figure, path)


def draw(found: dict, figure: Any) -> None:
    """Training cost and validation accuracy by epoch: the mean over the seeds, in a band from the lowest to the highest."""
    axes = figure.subplots(1, 2)
    shown = {"cost": ("training cost", 1), "accuracy": ("validation accuracy (%)", 100)}
    for ax, (of, (title, unit)) in zip(axes, shown.items(), strict=True):
        for name, runs in found[of].items():
            runs, epochs = unit * runs, np.arange(1, runs.shape[1] + 1)
            (line,) = ax.plot(epochs, runs.mean(axis=0), marker=".", label=name)
            ax.fill_between(epochs, runs.min(axis=0), runs.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)
        ax.set(xlabel="epoch", title=title)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].legend(loc="lower right", fontsize="small")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=4, help="of two convolutions each")
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
