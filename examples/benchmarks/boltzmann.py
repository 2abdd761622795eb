"""Training a restricted Boltzmann machine by fnnet and by scikit-learn: persistent contrastive divergence with one step of
Gibbs sampling, the same algorithm, on MNIST's grey values.

    python examples/benchmarks/boltzmann.py                  # 5,000 embedded images
    python examples/benchmarks/boltzmann.py --mnist FOLDER   # all 60,000

Runs alternate, compilation is not counted. Prints seconds per epoch, the median of the ratios, and the pseudo-likelihood
after training, both by the same function on the same examples.
"""

# %%
import argparse

import jax
import jax.numpy as jnp
import numpy as np
from timing import alternating

import fnnet as fn
from fnnet import rbm


def main(
    mnist: str | None = None,
    hidden: int = 500,
    batch: int = 100,
    rate: float = 0.05,
    epochs: int = 2,
    rounds: int = 5,
    examples: int | None = None,
) -> None:
    from sklearn.neural_network import BernoulliRBM

    data = fn.datasets.mnist(mnist, validation=0) if mnist else fn.datasets.mnist_subset(validation=0)
    images = data.train[0][:examples].reshape(-1, 784)
    x = jnp.asarray(images)
    print(f"{len(x)} images, {hidden} hidden units, mini-batches of {batch}, learning rate {rate}, {epochs} epochs")
    machines = {}

    def fnnet(name: str, impl: str):
        def run() -> None:
            key = jax.random.key(0, impl=impl)
            machines[name], _ = rbm.fit(
                rbm.init(key, 784, hidden),
                x,
                key=key,
                epochs=epochs,
                batch_size=batch,
                optimizer=fn.sgd(rate),
                persistent=True,
                progress=False,
            )

        return run

    def sklearn(name: str, dtype: type):
        own = images.astype(dtype)

        def run() -> None:
            model = BernoulliRBM(hidden, learning_rate=rate, batch_size=batch, n_iter=epochs, random_state=0).fit(own)
            leaves = {"w": model.components_, "b": model.intercept_visible_, "c": model.intercept_hidden_}
            machines[name] = {leaf: jnp.asarray(value, jnp.float32) for leaf, value in leaves.items()}

        return run

    contenders = {
        name: make(name, kind)
        for name, make, kind in (
            ("fnnet, key of threefry (the default)", fnnet, "threefry2x32"),
            ("fnnet, key of rbg", fnnet, "rbg"),
            ("scikit-learn, float64 (its default)", sklearn, np.float64),
            ("scikit-learn, float32", sklearn, np.float32),
        )
    }
    times = alternating(contenders, rounds, 1) / epochs
    ratios = np.median(times / times[:, :1], axis=0)
    print("| | seconds per epoch | ratio | pseudo-likelihood (nats) |\n|---|---|---|---|")
    for name, seconds, ratio in zip(contenders, np.median(times, axis=0), ratios, strict=True):
        proxy = jnp.mean(rbm.pseudo_likelihood(machines[name], jax.random.key(1), x[:10_000]))
        print(f"| {name} | {seconds:.2f} | {ratio:.2f} | {float(proxy):.1f} |")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--hidden", type=int, default=500)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.05)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--examples", type=int, help="use the first so many images only")
    main(**vars(parser.parse_args()))
