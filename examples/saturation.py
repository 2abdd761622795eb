"""A saturated neuron learns slowly under the quadratic cost, and at once under the cross-entropy.

    python examples/saturation.py                    # one neuron, then networks on 4,000 embedded MNIST images: half a minute
    python examples/saturation.py --mnist FOLDER     # the published rows on the whole of MNIST, 5 seeds

A sigmoid neuron is to answer the input 1 with 0. BP1 of the quadratic cost is (a − y) σ'(z): from w = b = 2 it is small
although the answer is very wrong. The cross-entropy's is a − y. Writes saturation.png.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet import diagnostics
from pictures import pyplot, save
from spread import spread

NEURON = [  # cost, w, b, learning rate, as in the book
    (fn.quadratic, 0.6, 0.9, 0.15),
    (fn.quadratic, 2.0, 2.0, 0.15),
    (fn.cross_entropy, 0.6, 0.9, 0.005),
    (fn.cross_entropy, 2.0, 2.0, 0.005),
]
PUBLISHED = {
    ("quadratic", 30): 95.42,
    ("quadratic", 100): 96.59,
    ("cross_entropy", 30): 95.49,
    ("cross_entropy", 100): 96.82,
}
RATES = {fn.quadratic: 3.0, fn.cross_entropy: 0.5}


def descend(cost: fn.Cost, w: float, b: float, rate: float, epochs: int = 300) -> tuple[jax.Array, jax.Array]:
    """(output, δ) of one neuron, before each of so many steps and after the last."""
    net, x, y = fn.Dense(1, fn.sigmoid), jnp.ones((1, 1)), jnp.zeros((1, 1))

    def step(params, _):
        bp = fn.backprop(net, cost, params, x, y)
        params_after = jax.tree.map(lambda p, g: p - rate * g, params, bp.gradients)
        return params_after, (net.apply(params, x)[0, 0], bp.errors[0, 0])

    return jax.lax.scan(step, {"w": jnp.full((1, 1), w), "b": jnp.full(1, b)}, length=epochs + 1)[1]


def network(hidden: int) -> fn.Network:
    """Weights and biases N(0, 1), as the book starts."""
    start = {"weight_init": fn.initializers.normal(), "bias_init": fn.initializers.normal()}
    return fn.Network(fn.Flatten(), fn.Dense(hidden, fn.sigmoid, **start), fn.Dense(10, fn.sigmoid, **start))


def main(
    mnist: str | None = None, seeds: int = 5, epochs: int = 30, examples: int | None = None, output: str = "output"
) -> dict[tuple[str, int], np.ndarray]:
    # %% One neuron.
    runs = {(cost.name, w): descend(cost, w, b, rate) for cost, w, b, rate in NEURON}
    print("cost           w    b    η      output  δ       after 150  after 300 epochs")
    for cost, w, b, rate in NEURON:
        a, delta = runs[cost.name, w]
        print(f"{cost.name:13}  {w}  {b}  {rate:<5}  {a[0]:.2f}    {delta[0]:.4f}  {a[150]:.2f}       {a[300]:.2f}")

    for cost in ("quadratic", "cross_entropy"):
        slow, fast = (float(runs[cost, w][1][0]) for w in (2.0, 0.6))
        print(
            f"{cost}: from w = 2.0 the first step is {slow / fast:.2f} times the one from w = 0.6, where a is less wrong"
        )
    print("(the rates are the book's and 30 times apart, so compare the two starts of a cost, not the costs' outputs)")

    # %% Whole networks: how many units are saturated at the start, and what the two costs make of them.
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    train = data.train[0][:examples], data.train[1][:examples]
    keys = jax.random.split(jax.random.key(0), seeds)
    hidden, outputs = diagnostics.saturation(network(30), network(30).init(keys[0], (28, 28, 1)), train[0]).share[1:]
    print(f"\n784-30-10 at the start, share of units with σ' ≤ 0.01: hidden {hidden:.0%}, outputs {outputs:.0%}")
    print(f"\n{len(train[0])} training images, {epochs} epochs, test accuracy of the best epoch, {seeds} seeds")
    print("network     cost           η    fnnet            published (50,000 images)")
    swept = {}
    for cost, rate in RATES.items():
        for size in (30, 100):
            swept[cost.name, size] = fn.sweep(
                network(size),
                cost,
                train,
                keys=keys,
                epochs=epochs,
                batch_size=10,
                optimizers=[fn.sgd(rate)],
                validation=data.test,
                monitor_training=False,
                progress=False,
            )
            best = 100 * swept[cost.name, size].validation_accuracy[0, 0].max(axis=-1)
            print(
                f"784-{size}-10".ljust(10),
                f" {cost.name:13}  {rate}  {spread(best)} %  {PUBLISHED[cost.name, size]} %",
            )

    # %% Where the quadratic cost falls behind: an output near 0 for every image has σ' near 0, and stays there.
    print(
        "\nruns by the number of outputs that no test image takes above 0.5, and their test accuracy of the best epoch"
    )
    for (cost, size), sweep in swept.items():
        tops = [
            network(size).apply(params, data.test[0]).max(axis=0)
            for params in (jax.tree.map(lambda leaf, k=k: leaf[0, 0, k], sweep.params) for k in range(seeds))
        ]
        stuck, best = (np.array(tops) < 0.5).sum(axis=1), 100 * sweep.validation_accuracy[0, 0].max(axis=-1)
        groups = [f"{n}: {sum(stuck == n)} runs, {spread(best[stuck == n])} %" for n in np.unique(stuck)]
        print(f"784-{size}-10".ljust(11), f"{cost:13}", ";  ".join(groups))

    picture(runs, swept, Path(output) / "saturation.png")
    return {name: sweep.validation_accuracy[0, 0] for name, sweep in swept.items()}


def picture(runs: dict, swept: dict, path: Path) -> None:
    """The neuron's output and error, and the networks' learning curves."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure = plt.figure(figsize=(13, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for i, ((cost, w), (a, delta)) in enumerate(runs.items()):
        style = {"color": f"C{i // 2}", "ls": "--" if i % 2 else "-"}
        left.plot(a, **style)
        middle.plot(delta, label=f"{cost.replace('_', '-')}, from w = {w}", **style)
    left.set(xlabel="epoch", ylabel="output a (target 0)", title="One neuron", ylim=(0, 1))
    middle.set(xlabel="epoch", ylabel="δ = ∂C/∂z", title="Its error: what it learns from", ylim=(0, 1))
    for cost in RATES:
        plots.learning_curves(swept[cost.name, 30], of="accuracy", label=cost.name.replace("_", "-"), ax=right)
    middle.legend(fontsize=8, loc=(0.02, 0.2))
    right.set_title("784-30-10: test accuracy by epoch")
    for ax in (left, middle):
        ax.grid(alpha=0.3)
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
