"""Learning rates that are too small, right and too large; and a search over η and λ in one call.

    python examples/hyperparameters.py                    # embedded MNIST images, a minute
    python examples/hyperparameters.py --mnist FOLDER     # the published rows on the whole of MNIST, 5 seeds

Sigmoid networks, cross-entropy unless said. Prints training cost and accuracy by learning rate, then the validation
accuracy of a grid of η and λ on 1,000 images, and writes hyperparameters.png.
"""

# %%
import argparse
from pathlib import Path

import jax
import numpy as np

import fnnet as fn
from fnnet.initializers import normal, scaled_normal
from pictures import pyplot, save
from spread import spread

ROWS = [  # hidden units, cost, weights, λ of 50,000 images, η, epochs, what is measured, published
    (30, fn.cross_entropy, scaled_normal(), 5.0, 0.025, 30, "training cost", "0.339"),
    (30, fn.cross_entropy, scaled_normal(), 5.0, 0.25, 30, "training cost", "0.339"),
    (30, fn.cross_entropy, scaled_normal(), 5.0, 2.5, 30, "training cost", "0.861, oscillates"),
    (100, fn.quadratic, normal(), 0.0, 0.001, 30, "test accuracy", "21.42 %"),
    (30, fn.quadratic, normal(), 0.0, 100.0, 30, "test accuracy", "10.09 %, stuck"),
    (100, fn.cross_entropy, normal(), 5.0, 0.5, 30, "best validation accuracy", "97.92 %"),
    (100, fn.cross_entropy, normal(), 5.0, 0.1, 60, "best validation accuracy", "98.04 %"),
]
GRID = [0.03, 0.1, 0.3, 1.0, 3.0], [0.0, 0.01, 0.1, 1.0, 10.0]  # η, λ


def network(hidden: int, weights: fn.initializers.Initializer) -> fn.Network:
    given = {"weight_init": weights, "bias_init": normal()}
    return fn.Network(fn.Flatten(), fn.Dense(hidden, fn.sigmoid, **given), fn.Dense(10, fn.sigmoid, **given))


def main(
    mnist: str | None = None,
    seeds: int = 5,
    epochs: float = 1.0,
    search: int = 60,
    examples: int | None = None,
    output: str = "output",
) -> fn.Sweep:
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    train = data.train[0][:examples], data.train[1][:examples]
    keys = jax.random.split(jax.random.key(0), seeds)

    # %% The published learning rates.
    print(f"{len(train[0])} training images, {seeds} seeds")
    print("network     cost           λ/N      η      epochs  measured                  fnnet             published")
    curves = {}
    for hidden, cost, weights, lam, rate, full, what, published in ROWS:
        swept = fn.sweep(
            network(hidden, weights),
            cost,
            train,
            keys=keys,
            epochs=max(1, round(epochs * full)),
            batch_size=10,
            optimizers=[fn.sgd(rate)],
            penalties=[fn.L2(lam / 50_000 * len(train[0]))],
            validation=data.test if what == "test accuracy" else data.validation,
            monitor_training=what == "training cost",
            progress=False,
        )
        curves[rate] = swept
        accuracy = 100 * swept.validation_accuracy[0, 0]
        if what == "training cost":
            told = spread(swept.cost[0, 0, :, -1], 3)
        else:
            told = f"{spread(accuracy.max(axis=1) if 'best' in what else accuracy[:, -1])} %"
        used = f"{lam / 50_000:.4f}" if lam else "0"
        print(
            f"784-{hidden}-10".ljust(11),
            f"{cost.name:13}  {used:8} {rate:<6} {swept.cost.shape[-1]:<7} {what:25} {told:17} {published}",
        )
    print("(published on 50,000 images)")

    # %% A search: every η with every λ, several seeds, in one call.
    few = data.train[0][:1000][:examples], data.train[1][:1000][:examples]
    rates, lams = GRID
    found = fn.sweep(
        network(30, scaled_normal()),
        fn.cross_entropy,
        few,
        keys=keys,
        epochs=search,
        batch_size=10,
        optimizers=[fn.sgd(rate) for rate in rates],
        penalties=[fn.L2(lam) for lam in lams],
        validation=data.validation,
        monitor_training=False,
        progress=False,
    )
    mean = 100 * found.validation_accuracy[..., -1].mean(axis=-1)
    print(f"\n{len(few[0])} images, {search} epochs, validation accuracy in per cent, mean of {seeds} seeds")
    print("η      " + "".join(f"λ {lam:<6}" for lam in lams))
    for rate, row in zip(rates, mean, strict=True):
        print(f"{rate:<6} " + "".join(f"{value:<8.1f}" for value in row))
    i, j = np.unravel_index(np.nanargmax(mean), mean.shape)
    print(f"best: η {rates[i]}, λ {lams[j]}")

    picture(curves, mean, Path(output) / "hyperparameters.png")
    return found


def picture(curves: dict[float, fn.Sweep], mean: np.ndarray, path: Path) -> None:
    """Training cost by learning rate, and the grid of the search."""
    if (plt := pyplot()) is None:
        return

    figure = plt.figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for rate in [row[4] for row in ROWS if row[6] == "training cost"]:
        costs = curves[rate].cost[0, 0]
        (line,) = left.plot(np.arange(1, costs.shape[1] + 1), costs.mean(axis=0), marker=".", label=f"η = {rate}")
        left.fill_between(
            np.arange(1, costs.shape[1] + 1), costs.min(axis=0), costs.max(axis=0), color=line.get_color(), alpha=0.2
        )
    left.set(xlabel="epoch", ylabel="training cost (nats)", title="784-30-10: mean and range over seeds")
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    shown = right.imshow(mean, cmap="viridis", aspect="auto", vmin=np.nanmax(mean) - 10)
    for (i, j), value in np.ndenumerate(mean):
        dark = value < np.nanmax(mean) - 5
        right.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black", fontsize=8)
    rates, lams = GRID
    right.set_yticks(range(len(rates)), [f"{rate}" for rate in rates])
    right.set_xticks(range(len(lams)), [f"{lam}" for lam in lams])
    right.set(xlabel="λ", ylabel="learning rate η", title="Search on a thousand images: validation accuracy")
    figure.colorbar(shown, ax=right, label="validation accuracy (%)", extend="min")
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=float, default=1.0, help="a factor for the epochs of the first table")
    parser.add_argument("--search", type=int, default=60, metavar="EPOCHS", help="of the search")
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
