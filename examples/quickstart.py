"""The main job: build a network, compare its hand-written gradients with ``jax.grad``, train it on real digits, look.

    python examples/quickstart.py                    # 4,000 embedded MNIST images, under a minute
    python examples/quickstart.py --mnist FOLDER     # the whole of MNIST, from its four IDX files

Prints the table of gradients and the test accuracy, and writes quickstart.png (learning curves, digits with predictions)
where matplotlib is installed. Each kind of work is compiled first, for a few seconds.
"""

# %%
import argparse
from pathlib import Path

if __name__ == "__main__":
    print("importing JAX ...", flush=True)

import jax
import numpy as np

import fnnet as fn
from pictures import pyplot, save


def main(mnist: str | None = None, epochs: int = 20, examples: int | None = None, output: str = "output") -> float:
    # %% Data: images (m, 28, 28, 1) from 0 to 1, integer labels.
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    (x, y), (x_test, y_test) = (pair[:examples] for pair in data.train), data.test
    print(f"{len(x)} training, {len(data.validation[0])} validation and {len(x_test)} test images\n", flush=True)

    # %% A network is a pure function over a pytree of parameters.
    net = fn.Network(fn.Flatten(), fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.softmax))
    params = net.init(jax.random.key(0), (28, 28, 1))
    print(net)

    # %% Its backpropagation is written by hand. Does it agree with autodiff?
    print("comparing its hand-written gradients with jax.grad ...\n", flush=True)
    report = fn.compare_gradients(net, fn.log_likelihood, params, x[:32], y[:32], penalty=fn.L2(5.0))
    print(report, "\n")

    # %% Train: each epoch is one compiled scan over shuffled mini-batches.
    print("training ...", flush=True)
    params, history = fn.fit(
        net,
        fn.log_likelihood,
        params,
        (x, y),
        key=jax.random.key(1),
        epochs=epochs,
        batch_size=10,
        optimizer=fn.sgd(0.1),
        penalty=fn.L2(1e-4 * len(x)),
        validation=data.validation,
    )
    _, accuracy = fn.evaluate(net, fn.log_likelihood, params, data.test)
    print(f"\ntest accuracy {accuracy:.2%}")

    # %% Look.
    predictions = np.argmax(net.apply(params, x_test), axis=-1)
    picture(history, x_test, y_test, predictions, Path(output) / "quickstart.png")
    if not report.ok:
        raise SystemExit("the manual gradients do not agree with autodiff")
    return accuracy


def picture(history: fn.History, images, labels, predictions, path: Path) -> None:
    """Learning curves, and digits with their predictions: some that are right, then some that are wrong."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    wrong = np.flatnonzero(predictions != labels)[:16]
    shown = np.concatenate([np.flatnonzero(predictions == labels)[: 40 - len(wrong)], wrong])
    figure = plt.figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.3))
    plots.learning_curves(history, ax=figure.add_subplot(grid[0, 0]))
    plots.learning_curves(history, of="accuracy", ax=figure.add_subplot(grid[1, 0]))
    ax = plots.digits(images[shown], labels[shown], predictions[shown], ax=figure.add_subplot(grid[:, 1]))
    ax.set_title(f"Test images: {np.mean(predictions == labels):.1%} right\nsome of those, then {len(wrong)} mistakes")
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
