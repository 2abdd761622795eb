"""A deep autoencoder from a deep belief network: 784 grey values through a code of 30 numbers and back, beside PCA's.

    python examples/autoencoder.py                          # 5,000 embedded MNIST images, about a minute
    python examples/autoencoder.py --mnist FOLDER --sizes 1000,500,250,30 --pretraining 20 --epochs 50

A stack of restricted Boltzmann machines is unrolled into an encoder and the transposed decoder, which backpropagation
fine-tunes on the cross-entropy of the reconstruction. Prints the squared error of test images beside that of as many
principal components, and writes autoencoder.png: reconstructions, and a map of the digits by a code of 2 numbers.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet import dbn
from pictures import pyplot, save


def main(
    mnist: str | None = None,
    sizes: str = "300,100,30",
    pretraining: int = 10,
    epochs: int = 60,
    rate: float = 2e-3,
    batch: int = 50,
    examples: int | None = None,
    output: str = "output",
) -> dict[str, float]:
    # %% Data: images as rows of 784 grey values, taken for probabilities.
    data = fn.datasets.mnist(mnist, validation=0) if mnist else fn.datasets.mnist_subset(validation=0)
    x, test = (jnp.asarray(part[0]).reshape(-1, 784) for part in (data.train, data.test))
    x = x[:examples]
    units = tuple(int(n) for n in sizes.split(","))
    print(f"{len(x)} training images, {len(test)} test images")

    # %% Pretrain. For the map the top machine alone is another one, of 2 units.
    settings = {
        "key": jax.random.key(0),
        "epochs": pretraining,
        "batch_size": 100,
        "optimizer": fn.sgd(0.1, momentum=0.5),
        "penalty": fn.L2(0.0002 * len(x)),
    }
    stack, _ = dbn.pretrain(x, units, **settings)
    below = stack[:-1]
    plane = below + dbn.pretrain(dbn.up(below, x) if below else x, (2,), **settings)[0]

    # %% Unroll, fine-tune, compare with as many principal components.
    errors, shown, codes = {}, {}, {}
    for machines, code in ((stack, fn.sigmoid), (plane, fn.linear)):
        n = machines[-1]["w"].shape[0]
        net, params = dbn.to_autoencoder(machines, code=code)
        errors[f"unrolled, {n} numbers, before fine-tuning"] = squared_error(net.apply(params, test), test)
        params, _ = fn.fit(
            net,
            fn.cross_entropy,
            params,
            (x, x),
            key=jax.random.key(1),
            epochs=epochs,
            batch_size=batch,
            optimizer=fn.adam(fn.CosineDecay(rate, epochs * -(-len(x) // batch))),
            monitor_training=False,
        )
        half = len(machines)
        codes[f"autoencoder, {n} numbers"] = net[:half].apply(params[:half], test)
        shown[f"autoencoder, {n} numbers"] = net.apply(params, test)
        axes, mean = principal_axes(x, n)
        codes[f"{n} principal components"] = (test - mean) @ axes.T
        shown[f"{n} principal components"] = mean + (test - mean) @ axes.T @ axes
    errors |= {name: squared_error(images, test) for name, images in shown.items()}
    print("\n| code | squared error of a test image |\n|---|---|")
    for name, error in errors.items():
        print(f"| {name} | {error:.2f} |")

    # %% Look.
    picture(test, shown, codes, data.test[1], Path(output) / "autoencoder.png")
    return errors


def squared_error(images, originals) -> float:
    """(1/m) Σ ‖v − v̂‖²."""
    return float(jnp.mean(jnp.sum((images - originals) ** 2, axis=1)))


def principal_axes(x, n: int):
    """The n directions of largest variance as rows, and the mean."""
    mean = jnp.mean(x, axis=0, keepdims=True)
    _, vectors = jnp.linalg.eigh(jnp.cov(x.T))
    return vectors[:, ::-1][:, :n].T, mean


def picture(test, shown: dict, codes: dict, labels, path: Path) -> None:
    """Ten digits and their reconstructions; the digits in the plane of both codes of 2 numbers."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure = plt.figure(figsize=(15, 8.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(1, 1.35))
    first = [int(np.flatnonzero(np.asarray(labels) == digit)[0]) for digit in range(10)]
    for column, n in enumerate(sorted((int(name.split()[0]) for name in shown if name[0].isdigit()), reverse=True)):
        names = (f"autoencoder, {n} numbers", f"{n} principal components")
        rows = jnp.concatenate(
            [test[jnp.array(first)], *(jnp.clip(shown[name][jnp.array(first)], 0, 1) for name in names)]
        )
        ax = plots.digits(np.asarray(rows).reshape(-1, 28, 28), columns=10, ax=figure.add_subplot(grid[0, column]))
        ax.set_title(f"test digits, their reconstructions from {n} numbers:\nautoencoder, then principal components")
    for column, name in enumerate(("autoencoder, 2 numbers", "2 principal components")):
        ax = figure.add_subplot(grid[1, column])
        points = ax.scatter(
            *np.asarray(codes[name]).T, c=np.asarray(labels), cmap="tab10", vmin=-0.5, vmax=9.5, s=5, lw=0
        )
        ax.set(title=name, xlabel="first number", ylabel="second number")
    figure.colorbar(points, ax=ax, ticks=range(10), label="digit")
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument(
        "--sizes", default="300,100,30", help="hidden units of each machine, the last ones being the code"
    )
    parser.add_argument("--pretraining", type=int, default=10, metavar="EPOCHS", help="for each machine")
    parser.add_argument("--epochs", type=int, default=60, help="of fine-tuning")
    parser.add_argument("--rate", type=float, default=2e-3, help="Adam's learning rate at the start of fine-tuning")
    parser.add_argument("--batch", type=int, default=50, help="mini-batches of fine-tuning")
    parser.add_argument("--examples", type=int, help="use the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
