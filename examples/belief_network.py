"""What pretraining is for: a deep network with few labels, from a deep belief network and from random weights.

    python examples/belief_network.py                          # 5,000 embedded MNIST images, about two minutes
    python examples/belief_network.py --mnist FOLDER --sizes 500,500,2000 --labels 100,1000,5000 --seeds 5
    python examples/belief_network.py --mnist FOLDER --sizes 500,500,2000 --labels 60000 --seeds 1 --pretraining 30 \
        --steps 18000

Restricted Boltzmann machines are trained one on top of the other on all images, without labels; the stack is unrolled into a
network, which backpropagation fine-tunes on the labelled ones. Prints the test error beside that of the same network from
random weights, and writes belief_network.png: receptive fields, what the belief network dreams, and the errors.
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
    sizes: str = "300,300",
    labels: str = "100,1000",
    seeds: int = 2,
    pretraining: int = 20,
    steps: int = 2000,
    rate: float = 1e-3,
    examples: int | None = None,
    output: str = "output",
) -> dict[int, np.ndarray]:
    # %% Data: images as rows of 784 grey values, taken for probabilities.
    data = fn.datasets.mnist(mnist, validation=0) if mnist else fn.datasets.mnist_subset(validation=0)
    x, y = jnp.asarray(data.train[0][:examples]).reshape(-1, 784), jnp.asarray(data.train[1][:examples])
    test = jnp.asarray(data.test[0]).reshape(-1, 784), jnp.asarray(data.test[1])
    units = tuple(int(n) for n in sizes.split(","))
    counts = [min(int(n), len(x)) for n in labels.split(",")]
    print(f"{len(x)} training images, {len(test[0])} test images")

    # %% Both ways of starting, for each seed and each number of labels.
    errors = {n: np.zeros((2, seeds)) for n in counts}
    for seed in range(seeds):
        stack_key, net_key, label_key, fit_key = jax.random.split(jax.random.key(seed), 4)
        stack, _ = dbn.pretrain(
            x, units, key=stack_key, epochs=pretraining, batch_size=100, optimizer=fn.sgd(0.1, momentum=0.5),
            penalty=fn.L2(0.0002 * len(x)), progress=seed == 0,
        )  # fmt: skip
        net, pretrained = dbn.to_network(stack, net_key, fn.Dense(10, fn.softmax))
        starts = pretrained, net.init(net_key, (784,))
        order = jax.random.permutation(label_key, len(x))
        for n in counts:
            labelled = x[order[:n]], y[order[:n]]
            for i, start in enumerate(starts):
                errors[n][i, seed] = fine_tune(net, start, labelled, test, fit_key, steps, rate)
            print(
                f"seed {seed}, {n} labels: test error {errors[n][0, seed]:.2%} pretrained, {errors[n][1, seed]:.2%} random"
            )
        if seed == 0:
            first = stack

    # %% The table.
    print(f"\n{net}\ntest error, mean ± standard deviation over seeds: {seeds}\n")
    print("| labels | pretrained | random weights |\n|---|---|---|")
    for n, both in errors.items():
        cells = (f"{100 * e.mean():.2f} ± {100 * spread(e):.2f} %" for e in both)
        print(f"| {n} | {' | '.join(cells)} |")

    # %% Look.
    samples = dbn.generate(first, jax.random.key(1), x[:20], k=20)
    picture(first, samples, errors, Path(output) / "belief_network.png")
    return errors


def fine_tune(net: fn.Network, params, labelled, test, key, steps: int, rate: float) -> float:
    """The test error after backpropagation from these parameters; the same recipe for all."""
    batch = min(100, len(labelled[0]))
    params, _ = fn.fit(
        net,
        fn.log_likelihood,
        params,
        labelled,
        key=key,
        epochs=-(-steps // -(-len(labelled[0]) // batch)),
        batch_size=batch,
        optimizer=fn.adam(fn.CosineDecay(rate, steps)),
        monitor_training=False,
        progress=False,
    )
    _, accuracy = fn.evaluate(net, fn.log_likelihood, params, test)
    return 1 - accuracy


def spread(values) -> float:
    """The standard deviation over seeds, 0 for one seed."""
    return float(np.std(values, ddof=min(1, len(values) - 1)))


def picture(stack, samples, errors: dict[int, np.ndarray], path: Path) -> None:
    """Receptive fields of the bottom machine, samples of the belief network, and the errors by number of labels."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.8), layout="constrained", width_ratios=(1.15, 1, 1))
    fields = stack[0]["w"][:50].reshape(-1, 28, 28).transpose(1, 2, 0)
    plots.maps(fields, columns=10, ax=axes[0]).set_title("weights of 50 hidden units of the bottom machine")
    plots.digits(np.asarray(samples).reshape(-1, 28, 28), columns=5, ax=axes[1])
    axes[1].set_title("what it generates, 20 steps of Gibbs sampling from a digit")
    for i, name in enumerate(("pretrained", "random weights")):
        mean, bars = (np.array([f(100 * e[i]) for e in errors.values()]) for f in (np.mean, spread))
        axes[2].errorbar(list(errors), mean, bars, marker="o", capsize=3, label=name)
    axes[2].set(xscale="log", yscale="log", xlabel="labelled images", ylabel="test error (%)")
    axes[2].set_title("fine-tuned by backpropagation")
    axes[2].set_xticks(list(errors), [f"{n:,}" for n in errors], minor=False)
    axes[2].set_xticks([], minor=True)
    axes[2].yaxis.set_major_formatter("{x:g}")
    axes[2].yaxis.set_minor_formatter("{x:g}")
    axes[2].grid(alpha=0.3, which="both")
    axes[2].legend()
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--sizes", default="300,300", help="hidden units of each machine")
    parser.add_argument("--labels", default="100,1000", help="numbers of labelled images")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pretraining", type=int, default=20, metavar="EPOCHS", help="for each machine")
    parser.add_argument("--steps", type=int, default=2000, help="mini-batches of fine-tuning")
    parser.add_argument("--rate", type=float, default=1e-3, help="Adam's learning rate at the start of fine-tuning")
    parser.add_argument("--examples", type=int, help="use the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
