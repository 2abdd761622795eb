"""Differentially private SGD: each image's gradient is clipped, and noise is added to their sum.

    python examples/private.py                               # 784-100-10 on the embedded MNIST images, under a minute
    python examples/private.py --noise 2.0 --bound 0.5
    python examples/private.py --epochs 3 --examples 500

Three networks start from the same parameters: one is trained by plain SGD, one by gradients that are clipped, image by image,
to the norm ``--bound``, and one by clipped gradients with noise of ``--noise`` times that bound added to their sum (Abadi et
al., 2016). The script prints their accuracy on the validation images and the norms of single images' gradients before and
after training; where matplotlib is installed, it writes private.png.

What a noise multiplier means as (ε, δ) is for an accountant to say, such as the library ``dp-accounting``, from the
multiplier, the mini-batch's share of the data and the number of steps. (It assumes mini-batches drawn at random for each
step; ``fit`` shuffles and takes them in turn.)
"""

# %%
import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from pictures import pyplot, save

COST = fn.log_likelihood


def main(
    epochs: int = 40,
    examples: int | None = None,
    hidden: int = 100,
    batch: int = 200,
    rate: float = 2.0,
    bound: float = 1.0,
    noise: float = 1.0,
    output: str = "output",
) -> dict:
    data = fn.datasets.mnist_subset()
    train, held_out = tuple(a[:examples] for a in data.train), data.validation
    net = fn.Network(fn.Flatten(), fn.Dense(hidden, fn.sigmoid), fn.Dense(10, fn.softmax))
    params = net.init(jax.random.key(0), (28, 28, 1))

    # %% A private gradient is one more gradient for ``fit``.
    gradients = {
        "plain": None,
        "clipped": fn.clipped_value_and_grad(net, COST, bound),
        f"private, noise {noise:g}": fn.clipped_value_and_grad(net, COST, bound, noise),
    }

    # %% Train the three, and look at the norms that the bound is about.
    accuracy, norms = {}, {"before": fn.gradient_norms(net, COST, params, *train)}
    for name, gradient in gradients.items():
        trained, history = fn.fit(
            net, COST, params, train, key=jax.random.key(1), epochs=epochs, batch_size=batch, optimizer=fn.sgd(rate),
            validation=held_out, gradient=gradient, monitor_training=False, progress=False,
        )  # fmt: skip
        accuracy[name] = np.asarray(history.validation_accuracy)
        norms[name] = fn.gradient_norms(net, COST, trained, *train)

    steps = epochs * -(-len(train[0]) // batch)
    print(f"{len(train[0])} training images, mini-batches of {batch}, {steps} steps, bound {bound:g}\n")
    print(f"accuracy on {len(held_out[0])} validation images\n{'epoch':>5}  " + "  ".join(accuracy))
    for epoch in sorted({1, *range(5, epochs, 5), epochs}):
        print(f"{epoch:5d}  " + "  ".join(f"{of[epoch - 1]:{len(name)}.1%}" for name, of in accuracy.items()))
    print(f"\nnorm of an image's gradient\n{'':>20}  median  largest  above the bound")
    for name, of in norms.items():
        above = float(jnp.mean(of > bound))
        print(f"{name:>20}  {float(jnp.median(of)):6.3f}  {float(jnp.max(of)):7.2f}  {above:15.1%}")

    result = {"accuracy": accuracy, "norms": {name: np.asarray(of) for name, of in norms.items()}, "bound": bound}
    picture(result, Path(output) / "private.png")
    return result


def picture(result: dict, path: Path) -> None:
    """The accuracies by epoch and the norms of single gradients; nothing without matplotlib."""
    if (plt := pyplot()) is None:
        return

    figure = plt.figure(figsize=(10, 4), layout="constrained")
    draw(result, figure)
    save(figure, path)


def draw(result: dict, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    for name, values in result["accuracy"].items():
        left.plot(np.arange(1, len(values) + 1), 100 * values, label=name)
    left.set(xlabel="epoch", ylabel="validation accuracy (%)", title="Training with private gradients")
    left.xaxis.get_major_locator().set_params(integer=True)
    for name, of in result["norms"].items():
        share = 100 * np.arange(1, len(of) + 1) / len(of)
        right.plot(np.sort(of), share, label=name)
    right.axvline(result["bound"], color="0.6", ls=":", label="bound")
    right.set(xscale="log", xlim=(1e-4, 1e2), xlabel=r"$\|g_x\|$", ylabel="training images with less (%)")
    right.set_title("Norms of images' gradients, before and after")
    right.minorticks_off()
    for ax, place in ((left, "lower right"), (right, "upper left")):
        ax.grid(alpha=0.3)
        ax.legend(loc=place, fontsize="small")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--hidden", type=int, default=100, help="hidden neurons")
    parser.add_argument("--batch", type=int, default=200, help="images in a mini-batch")
    parser.add_argument("--rate", type=float, default=2.0, help="learning rate")
    parser.add_argument("--bound", type=float, default=1.0, help="the largest norm of an image's gradient")
    parser.add_argument("--noise", type=float, default=1.0, help="the noise multiplier")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
