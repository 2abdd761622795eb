"""How far contrastive divergence is from the likelihood's gradient, by steps of Gibbs sampling and stage of training.

    python examples/contrastive_divergence.py     # embedded MNIST images, 12 hidden units: about a minute

The exact gradient is had by enumeration of the hidden units. Prints the relative bias of CD-k with its standard error, and
writes contrastive_divergence.png.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet import rbm
from pictures import pyplot, save


def main(
    hidden: int = 12, stages: str = "2,5,40", steps: str = "1,2,5,10,25,50", examples: int = 100, chains: int = 20,
    groups: int = 10, output: str = "output",
) -> dict[int, np.ndarray]:  # fmt: skip
    # %% Data, binarised once, and a machine that is small enough to enumerate.
    (images, _), _, _ = fn.datasets.mnist_subset()
    x = rbm.draw(jax.random.key(0), jnp.asarray(images.reshape(-1, 784)))
    params, state = rbm.init(jax.random.key(1), 784, hidden, data=x), None
    ks, bias = [int(k) for k in steps.split(",")], {}

    # %% At each stage: the exact gradient, and the mean of CD-k over many chains.
    for epochs in (int(n) for n in stages.split(",")):
        params, history = rbm.fit(
            params,
            x,
            key=jax.random.key(2),
            epochs=epochs,
            batch_size=100,
            optimizer=fn.sgd(0.1),
            resume=state,
            progress=False,
        )
        state = history.state
        exact = rbm.likelihood_gradient(params, x[:examples])["w"]
        starts = jnp.tile(x[:examples], (chains, 1))
        bias[epochs] = np.array([relative_bias(params, starts, exact, k, groups) for k in ks])
        fit = float(jnp.mean(rbm.log_probability(params, x, rbm.log_partition(params))))
        largest = float(jnp.max(jnp.abs(params["w"])))
        print(f"after epoch {epochs}: mean ln p(v) = {fit:.1f} nats, largest weight {largest:.1f}")
        for k, (value, error) in zip(ks, bias[epochs], strict=True):
            print(f"    CD-{k}: relative bias {value:.4f} ± {error:.4f}")

    # %% Look.
    picture(ks, bias, Path(output) / "contrastive_divergence.png")
    return bias


def relative_bias(params, starts, exact, k: int, groups: int) -> tuple[float, float]:
    """‖E[CD-k] − g‖ / ‖g‖ and its standard error, from independent groups of chains: products of two different groups are
    free of the variance that each has, so the mean of them is an unbiased estimate of the squared bias.
    """
    keys = jax.random.split(jax.random.key(k), groups)
    off = jnp.stack([rbm.contrastive_divergence(params, key, starts, k=k).gradients["w"] - exact for key in keys])
    products = jnp.einsum("aji,bji->ab", off, off) / jnp.sum(exact**2)
    # Leave one group out at a time: the jackknife's standard error.
    total, own = jnp.sum(products), jnp.diagonal(products)
    squared = (total - jnp.sum(own)) / (groups * (groups - 1))
    without = (total - 2 * jnp.sum(products, axis=1) + own - (jnp.sum(own) - own)) / ((groups - 1) * (groups - 2))
    value = float(jnp.sqrt(jnp.maximum(squared, 0)))
    spread = float(jnp.sqrt((groups - 1) * jnp.var(without)))
    return value, spread / (2 * max(value, spread**0.5))


def picture(ks, bias: dict[int, np.ndarray], path: Path) -> None:
    """The bias by k, a line for each stage, where it is more than two standard errors from 0."""
    if (plt := pyplot()) is None:
        return

    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for epochs, values in bias.items():
        seen = values[:, 0] > 2 * values[:, 1]
        ax.errorbar(np.array(ks)[seen], *values[seen].T, marker="o", capsize=3, label=f"after epoch {epochs}")
    ax.set(
        xscale="log", yscale="log", xlabel="k (steps of Gibbs sampling)", ylabel="relative bias of the gradient by w"
    )
    ax.set_title("Contrastive divergence against the likelihood's gradient")
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3, which="both")
    ax.legend()
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=12, help="at most 20, to be enumerated")
    parser.add_argument("--stages", default="2,5,40", metavar="EPOCHS", help="when to measure")
    parser.add_argument("--steps", default="1,2,5,10,25,50", metavar="K", help="of Gibbs sampling")
    parser.add_argument("--examples", type=int, default=100, help="the gradient is that of the first so many images")
    parser.add_argument("--chains", type=int, default=20, help="for each of them, in each of the groups")
    parser.add_argument("--groups", type=int, default=10)
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
