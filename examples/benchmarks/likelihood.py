"""The log-likelihood of a restricted Boltzmann machine on MNIST, by annealed importance sampling.

    python examples/benchmarks/likelihood.py                  # 4,000 embedded images, 16 hidden units: enumerated as well
    python examples/benchmarks/likelihood.py --mnist FOLDER --hidden 500 --epochs 100

Images are binarised once, by a draw whose probability is the grey value. Training is contrastive divergence with more and
more steps of Gibbs sampling, from 1 in the first epoch to --k in the last, at a learning rate that falls to 0.
"""

# %%
import argparse
import time

import jax
import jax.numpy as jnp

import fnnet as fn
from fnnet import rbm


def main(
    mnist: str | None = None,
    hidden: int = 16,
    epochs: int = 20,
    batch: int = 100,
    rate: float = 0.05,
    k: int = 25,
    persistent: bool = False,
    chains: int = 100,
    examples: int | None = None,
    seed: int = 0,
) -> float:
    # %% Data: 0 or 1, drawn with the stated key.
    data = fn.datasets.mnist(mnist, validation=0) if mnist else fn.datasets.mnist_subset()
    keys = jax.random.split(jax.random.key(seed), 5)
    flat = (images.reshape(len(images), -1) for images in (data.train[0][:examples], data.test[0]))
    x, test = (rbm.draw(key, jnp.asarray(images)) for key, images in zip(keys, flat, strict=False))
    print(f"{len(x)} training and {len(test)} test images, binarised with keys split from jax.random.key({seed})")

    # %% Train.
    start = time.perf_counter()
    params, _ = rbm.fit(
        rbm.init(keys[2], x.shape[1], hidden, data=x),
        x,
        key=keys[3],
        epochs=epochs,
        batch_size=batch,
        optimizer=fn.sgd(fn.CosineDecay(rate, epochs * -(-len(x) // batch))),
        k=lambda epoch: 1 + round((k - 1) * epoch / max(1, epochs - 1)),
        persistent=persistent,
        validation=test,
    )
    trained = time.perf_counter()

    # %% ln Z: 14,500 intermediate machines, most of them near the end, as in the paper.
    betas = jnp.concatenate(
        [jnp.linspace(0, 0.5, 501)[:-1], jnp.linspace(0.5, 0.9, 4001)[:-1], jnp.linspace(0.9, 1, 10001)]
    )
    log_z, error, _ = rbm.annealed_importance_sampling(
        params, keys[4], chains=chains, betas=betas, base=rbm.data_biases(x)
    )
    low, high = (float(log_z + s * error) for s in (-3, 3))
    print(f"training {trained - start:.0f} s, annealed importance sampling {time.perf_counter() - trained:.0f} s")
    print(f"ln Z {float(log_z):.2f}, three standard errors {low:.2f} to {high:.2f}")
    if hidden <= 20:
        print(f"ln Z by enumeration {float(rbm.log_partition(params)):.2f}")
    for name, v in (("training", x), ("test", test)):
        print(f"{name}: mean ln p(v) = {float(jnp.mean(rbm.log_probability(params, v, log_z))):.2f} nats")
    return float(jnp.mean(rbm.log_probability(params, test, log_z)))


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.05, help="the learning rate at the start")
    parser.add_argument("--k", type=int, default=25, help="steps of Gibbs sampling in the last epoch")
    parser.add_argument("--persistent", action="store_true", help="persistent chains")
    parser.add_argument("--chains", type=int, default=100, help="of annealed importance sampling")
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
