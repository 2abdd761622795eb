"""The spectrum of the Hessian of a small network on real digits, before and after training.

    python examples/spectrum.py                    # 784-30-10 on the embedded MNIST images, under a minute
    python examples/spectrum.py --epochs 2 --examples 500 --steps 20

Lanczos's algorithm on products with the Hessian finds the extreme eigenvalues and the density of all of them; the Hessian
itself (24,000 × 24,000) is never there. Nearly all eigenvalues are near 0 at both times. Training makes all of them smaller,
the negative ones most of all, and the Gauss-Newton matrix then is nearly the Hessian (Sagun et al., 2016; Ghorbani et al.,
2019). It prints a table and, where matplotlib is installed, writes spectrum.png.
"""

# %%
import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fnnet as fn
from pictures import pyplot, save

COST = fn.log_likelihood


def main(
    epochs: int = 20, examples: int | None = None, hidden: int = 30, steps: int = 80, output: str = "output"
) -> dict[str, fn.Spectrum]:
    data = fn.datasets.mnist_subset()
    train = tuple(a[:examples] for a in data.train)
    net = fn.Network(fn.Flatten(), fn.Dense(hidden, fn.tanh), fn.Dense(10, fn.softmax))
    start = net.init(jax.random.key(0), (28, 28, 1))
    size = sum(leaf.size for leaf in jax.tree.leaves(start))
    trained, _ = fn.fit(
        net, COST, start, train, key=jax.random.key(1), epochs=epochs, batch_size=10, optimizer=fn.sgd(0.1), progress=False
    )  # fmt: skip

    # %% Both matrices at both points: the Gauss-Newton matrix is the part of the Hessian that is never negative.
    print(f"{size:,} parameters, {len(train[0]):,} images, {steps} steps of Lanczos's algorithm, 3 starts\n")
    print(
        f"{'':25s} {'cost':>6s} {'accuracy':>8s} {'smallest':>9s} {'largest':>8s} {'10th':>7s} {'20th':>7s} {'near 0':>7s}"
    )
    found = {}
    for when, params in (("before", start), ("after", trained)):
        cost, accuracy = fn.evaluate(net, COST, params, train)
        for of, name in (("hessian", "Hessian"), ("ggn", "Gauss-Newton")):
            seen = fn.spectrum(net, COST, params, *train, key=jax.random.key(2), steps=steps, starts=3, of=of)
            largest = top(seen, 3)
            near = float(np.sum(seen.weights[np.abs(seen.values) < seen.largest / 100]))
            found[f"{name} {when} training"] = seen
            print(
                f"{name + ' ' + when:25s} {cost:6.3f} {accuracy:8.1%} {seen.smallest:9.4f} {seen.largest:8.4f} "
                f"{largest[9]:7.4f} {largest[19]:7.4f} {near:7.1%}"
            )
    picture(found, Path(output) / "spectrum.png")
    return found


def top(seen: fn.Spectrum, starts: int) -> np.ndarray:
    """The Ritz values from the largest down, each once: every start finds the large ones."""
    return np.sort(np.asarray(seen.values))[::-1][::starts]


def picture(found: dict, path: Path) -> None:
    """The densities; nothing without matplotlib."""
    if (plt := pyplot()) is None:
        return

    figure = plt.figure(figsize=(11, 4), layout="constrained")
    draw(found, figure)
    save(figure, path)


def draw(found: dict, figure: Any) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    for ax, when in zip(axes, ("before", "after"), strict=True):
        for (name, seen), style in zip(
            ((name, seen) for name, seen in found.items() if f" {when} " in name), ("-", "--"), strict=True
        ):
            width = (seen.largest - seen.smallest) / 150
            grid = np.linspace(seen.smallest - 5 * width, seen.largest + 5 * width, 1000)
            ax.semilogy(grid, seen.density(grid, width), style, label=name.removesuffix(f" {when} training"))
        ax.axvline(0, color="0.7", lw=0.8)
        ax.set(xlabel="eigenvalue", title=f"{when.capitalize()} training", ylim=(1e-6, 1e3))
        ax.grid(alpha=0.3)
        ax.legend()
    axes[0].set_ylabel("density")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, help="the first so many images only")
    parser.add_argument("--hidden", type=int, default=30, help="hidden neurons")
    parser.add_argument("--steps", type=int, default=80, help="of Lanczos's algorithm")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
