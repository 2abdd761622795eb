"""Overfitting, and four remedies: L2, dropout, early stopping, more data.

    python examples/overfitting.py                                        # embedded MNIST images, two minutes
    python examples/overfitting.py --mnist FOLDER --presented 1500000     # the published rows, 5 seeds

A network of 30 hidden units learns the first 1,000 images for 400 epochs (η 0.5, cross-entropy). Prints where the test
cost turns and where the accuracies end, with λ 0 and λ 0.1; what early stopping and dropout make of it; what more images
do, without and with L2; and writes overfitting.png.
"""

# %%
import argparse
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

import fnnet as fn
from fnnet import diagnostics
from pictures import pyplot, save
from spread import spread

PUBLISHED = {  # of --mnist; the book's single runs
    0.0: "accuracy 82.27 % at best, 82.23 % at the end; training 100 % from epoch 67; cost 1.203 at epoch 14, 1.773 at "
    "the end; training cost 0.0042",
    0.1: "accuracy 87.10 % at best, 86.95 % at the end; cost 0.884 at best",
}
PUBLISHED_SIZES = {
    100: 69.09, 200: 76.37, 500: 85.29, 1000: 88.85, 2000: 91.27, 5000: 93.24, 10_000: 94.89, 20_000: 95.85, 50_000: 95.97
}  # fmt: skip


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BookL2(fn.L2):
    """L2 whose value is λ/(2n) Σ w² with n = 10,000 test images, as the book's code shows the cost of test data."""

    def value(self, params, n_examples):
        return super().value(params, 10_000.0)


def network(
    hidden: int = 30, init: fn.initializers.Initializer | None = None, dropout: float | None = None
) -> fn.Network:
    given = {"weight_init": init or fn.initializers.normal(), "bias_init": fn.initializers.normal()}
    dropped = () if dropout is None else (fn.Dropout(dropout),)
    return fn.Network(fn.Flatten(), fn.Dense(hidden, fn.sigmoid, **given), *dropped, fn.Dense(10, fn.sigmoid, **given))


def main(
    mnist: str | None = None,
    seeds: int = 5,
    long: int = 400,
    epochs: int = 30,
    presented: int = 150_000,
    examples: int | None = None,
    output: str = "output",
) -> fn.Sweep:
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    train, (x, y) = (data.train[0][:examples], data.train[1][:examples]), data.train
    few = x[:1000][:examples], y[:1000][:examples]
    keys = jax.random.split(jax.random.key(0), seeds)
    common = {"keys": keys, "batch_size": 10, "optimizers": [fn.sgd(0.5)], "progress": False}

    # %% A thousand images.
    penalties = [BookL2(lam) for lam in PUBLISHED]
    swept = fn.sweep(network(), fn.cross_entropy, few, epochs=long, penalties=penalties, validation=data.test, **common)
    turns = diagnostics.overfitting(swept)
    print(f"{len(few[0])} images, {long} epochs, {seeds} seeds")
    for i, lam in enumerate(PUBLISHED):
        test, cost = 100 * swept.validation_accuracy[0, i], swept.validation_cost[0, i]
        learned = swept.accuracy[0, i] == 1
        when = learned.argmax(axis=1)[learned.any(axis=1)] + 1
        whole = f"100 % from epoch {spread(when, 0)}" if len(when) == seeds else f"100 % in {len(when)} of {seeds} runs"
        print(f"  λ {lam}: test accuracy {spread(test.max(axis=1))} % at best, {spread(test[:, -1])} % at the end")
        print(f"         training accuracy {spread(100 * swept.accuracy[0, i, :, -1])} %, {whole}")
        print(
            f"         test cost {spread(cost.min(axis=1), 3)} at epoch {spread(turns.cost_turns[0, i], 0)}, "
            f"{spread(cost[:, -1], 3)} at the end"
        )
        if lam == 0:
            print(f"         training cost {spread(swept.cost[0, i, :, -1], 4)} at the end")
        print(f"         published: {PUBLISHED[lam]}")

    # %% Stop early: the epoch is chosen on validation images, the accuracy measured on test images.
    accuracies = []
    for key in keys:
        init_key, fit_key = jax.random.split(key)
        stopped, _ = fn.fit(
            network(),
            fn.cross_entropy,
            network().init(init_key, (28, 28, 1)),
            few,
            key=fit_key,
            epochs=long,
            batch_size=10,
            optimizer=fn.sgd(0.5),
            validation=data.validation,
            early_stopping=fn.EarlyStopping(patience=10, monitor="validation_cost"),
            monitor_training=False,
            progress=False,
        )
        accuracies.append(100 * fn.evaluate(network(), fn.cross_entropy, stopped, data.test)[1])
    print(f"  stopped early: test accuracy {spread(np.array(accuracies))} %")

    # %% Drop half of the hidden units, of 30 and of 100.
    dropped = {}
    for size, rate in ((30, 0.5), (100, None), (100, 0.5)):
        net = network(size, dropout=rate)
        dropped[size, rate] = fn.sweep(net, fn.cross_entropy, few, epochs=long, validation=data.test, **common)
        accuracy = 100 * dropped[size, rate].validation_accuracy[0, 0, :, -1]
        print(f"  {size} hidden units, {f'dropout {rate}' if rate else 'no dropout'}: {spread(accuracy)} % at the end")

    # %% More images.
    print(f"{len(train[0])} images, {epochs} epochs, {seeds} seeds")
    more = fn.sweep(
        network(),
        fn.cross_entropy,
        train,
        epochs=epochs,
        penalties=[fn.L2(0.0), fn.L2(1e-4 * len(train[0]))],
        validation=data.test,
        **common,
    )
    published = ("95.33 % at best, training 97.86 %", "96.49 % at best")
    for i, lam in enumerate(("0", "5 of 50,000")):
        test, training = 100 * more.validation_accuracy[0, i], 100 * more.accuracy[0, i, :, -1]
        print(
            f"  λ {lam}: test accuracy {spread(test.max(axis=1))} % at best, training {spread(training)} % at the end"
        )
        print(f"         published (50,000 images): {published[i]}")

    print(
        f"{presented} images presented in all, weights N(0, 1/n_in), λ 0.0001 of the images; validation accuracy at the end"
    )
    sizes = {}
    for n in (size for size in PUBLISHED_SIZES if size <= len(train[0])):
        net = network(init=fn.initializers.scaled_normal())
        part = x[:n], y[:n]
        run = fn.sweep(
            net,
            fn.cross_entropy,
            part,
            epochs=max(1, presented // n),
            penalties=[fn.L2(1e-4 * n)],
            monitor_training=False,
            **common,
        )
        ends = [jax.tree.map(lambda leaf, k=k: leaf[0, 0, k], run.params) for k in range(seeds)]
        sizes[n] = 100 * np.array([fn.evaluate(net, fn.cross_entropy, end, data.validation)[1] for end in ends])
        print(f"  {n:6} images: {spread(sizes[n])} %, published (1,500,000 presented) {PUBLISHED_SIZES[n]} %")

    picture(swept, len(few[0]), more, len(train[0]), sizes, Path(output) / "overfitting.png")
    return swept


def picture(swept: fn.Sweep, n_few: int, more: fn.Sweep, n: int, sizes: dict, path: Path) -> None:
    """Costs and accuracies on a thousand images and on many, and the accuracy by number of images."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure = plt.figure(figsize=(13, 8), layout="constrained")
    axes = figure.subplots(2, 3)
    for column, lam in enumerate(PUBLISHED):
        own = fn.Sweep(swept.params, *(monitor[:, column] for monitor in swept[1:]))
        for row, of in enumerate(("cost", "accuracy")):
            ax = plots.learning_curves(own, of=of, ax=axes[row, column])
            ax.set_title(f"{n_few:,} images, λ {lam}: {of}, test as validation")
    own = fn.Sweep(more.params, *(monitor[:, 0] for monitor in more[1:]))
    plots.learning_curves(own, of="accuracy", ax=axes[0, 2]).set_title(f"{n:,} images, λ 0: accuracy")
    means = [accuracy.mean() for accuracy in sizes.values()]
    deviations = [accuracy.std(ddof=1) if len(accuracy) > 1 else 0 for accuracy in sizes.values()]
    axes[1, 2].errorbar(list(sizes), means, deviations, marker="o", label="fnnet")
    axes[1, 2].plot(list(sizes), [PUBLISHED_SIZES[size] for size in sizes], "x", label="published")
    axes[1, 2].set(
        xscale="log",
        xlabel="training images",
        ylabel="validation accuracy (%)",
        title="More images instead of more epochs",
    )
    axes[1, 2].grid(alpha=0.3)
    axes[1, 2].legend(fontsize=8)
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--long", type=int, default=400, metavar="EPOCHS", help="on a thousand images")
    parser.add_argument("--epochs", type=int, default=30, help="on all images")
    parser.add_argument("--presented", type=int, default=150_000, help="images, in the runs by number of images")
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
