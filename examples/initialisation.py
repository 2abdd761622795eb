"""Small initial weights: hidden units that are not saturated learn from the first epoch on.

    python examples/initialisation.py                    # 4,000 embedded MNIST images, half a minute
    python examples/initialisation.py --mnist FOLDER     # the published rows on the whole of MNIST, 5 seeds

Sigmoid networks, cross-entropy, from weights N(0, 1) and N(0, 1/n_in), biases N(0, 1). Prints how z is spread at the
start, how many units are saturated and the validation accuracy of the first and the last epoch, and writes
initialisation.png.
"""

# %%
import argparse
from pathlib import Path

import jax
import numpy as np

import fnnet as fn
from fnnet import diagnostics
from pictures import pyplot, save
from spread import spread

STARTS = {"N(0, 1)": fn.initializers.normal(), "N(0, 1/n_in)": fn.initializers.scaled_normal()}
PUBLISHED = {
    ("N(0, 1)", 30): (86.43, 96.37),
    ("N(0, 1/n_in)", 30): (92.70, 96.50),
    ("N(0, 1)", 100): (89.94, 97.42),
    ("N(0, 1/n_in)", 100): (92.95, 97.81),
}


def network(start: str, hidden: int, activation: fn.Activation = fn.sigmoid) -> fn.Network:
    given = {"weight_init": STARTS[start], "bias_init": fn.initializers.normal()}
    return fn.Network(fn.Flatten(), fn.Dense(hidden, activation, **given), fn.Dense(10, fn.sigmoid, **given))


def main(
    mnist: str | None = None, seeds: int = 5, epochs: int = 30, examples: int | None = None, output: str = "output"
) -> dict[tuple[str, int], np.ndarray]:
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    train = data.train[0][:examples], data.train[1][:examples]
    keys = jax.random.split(jax.random.key(0), seeds)

    # %% The hidden units before training.
    print("784-30-10 at the start   standard deviation of z   σ' ≤ 0.01")
    hidden = {}
    for start in STARTS:
        net, params = network(start, 30), network(start, 30).init(keys[0], (28, 28, 1))
        z = diagnostics.activations(network(start, 30, fn.linear), params, train[0])[1]
        share = diagnostics.saturation(net, params, train[0]).share[1]
        hidden[start] = diagnostics.activations(net, params, train[0])[1]
        print(f"{start:23}  {z.std(axis=1).mean():23.2f}   {share:9.0%}")

    # %% Training.
    print(f"\n{len(train[0])} training images, η 0.1, {epochs} epochs, validation accuracy, {seeds} seeds")
    print("network     weights       first epoch      published  last epoch       published (50,000 images, λ 5)")
    swept = {}
    for start, size in PUBLISHED:
        swept[start, size] = fn.sweep(
            network(start, size),
            fn.cross_entropy,
            train,
            keys=keys,
            epochs=epochs,
            batch_size=10,
            optimizers=[fn.sgd(0.1)],
            penalties=[fn.L2(1e-4 * len(train[0]))],
            validation=data.validation,
            monitor_training=False,
            progress=False,
        )
        accuracy = 100 * swept[start, size].validation_accuracy[0, 0]
        texts = [f"{spread(a)} %" for a in (accuracy[:, 0], accuracy[:, -1])]
        first, last = PUBLISHED[start, size]
        print(f"784-{size}-10".ljust(11), f"{start:13} {texts[0]:16} {first:.2f} %    {texts[1]:16} {last:.2f} %")

    picture(hidden, swept, Path(output) / "initialisation.png")
    return {name: sweep.validation_accuracy[0, 0] for name, sweep in swept.items()}


def picture(hidden: dict, swept: dict, path: Path) -> None:
    """The hidden activations at the start, and the learning curves."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure = plt.figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    plots.histograms(diagnostics.histograms(tuple(hidden.values())), labels=list(hidden), ax=axes[0])
    axes[0].set(xlabel="activation a of a hidden unit", title="784-30-10 at the start: activations")
    for size, ax in zip((30, 100), axes[1:], strict=True):
        for start in STARTS:
            plots.learning_curves(swept[start, size], of="accuracy", label=start, ax=ax)
        ax.set_title(f"784-{size}-10: validation accuracy by epoch")
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
