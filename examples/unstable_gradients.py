"""Unstable gradients: in a deep sigmoid network each layer learns more slowly than the one above it.

    python examples/unstable_gradients.py                    # 1,000 embedded MNIST images, a minute
    python examples/unstable_gradients.py --mnist FOLDER     # also trains 1 to 4 hidden layers on the whole of MNIST

Layers of 30 units, cross-entropy, weights N(0, 1/n_in), biases N(0, 1). Prints the norm of the mean error of each layer at
the start and after 499 steps on the whole batch (η 0.1, λ 5) beside the published ones; where the shrinking comes from; a
chain of single neurons; what ReLU and weights of variance 2/n_in change; and writes unstable_gradients.png.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet import diagnostics, initializers
from pictures import pyplot, save
from spread import spread

NORMAL, SCALED = initializers.normal(), initializers.scaled_normal()
PUBLISHED = {2: (0.0657, 0.3092), 3: (0.0118, 0.0600, 0.2831), 4: (0.0030, 0.0171, 0.0695, 0.2851)}
PUBLISHED_LATER = (8.2e-6, 2.6e-5, 1.8e-4, 9.2e-4)
PUBLISHED_ACCURACY = {1: 96.48, 2: 96.90, 3: 96.57, 4: 96.53}


def network(
    hidden: int,
    activation: fn.Activation = fn.sigmoid,
    weights: initializers.Initializer = SCALED,
    biases: initializers.Initializer = NORMAL,
) -> fn.Network:
    given = {"weight_init": weights, "bias_init": biases}
    layers = [fn.Dense(30, activation, **given) for _ in range(hidden)]
    return fn.Network(fn.Flatten(), *layers, fn.Dense(10, fn.sigmoid, **given))


def speeds(net: fn.Network, key: jax.Array, x: jax.Array, y: jax.Array, steps: int) -> jax.Array:
    """‖mean of δ^l‖ of every hidden layer before each of so many steps on the whole batch, and after the last."""
    optimizer, penalty = fn.sgd(0.1), fn.L2(5.0)

    def step(params, _):
        size = diagnostics.learning_speed(net, fn.cross_entropy, params, x, y).norm_of_mean[1:-1]
        gradients = fn.backprop(net, fn.cross_entropy, params, x, y, penalty=penalty).gradients
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return fn.apply_updates(params, updates), size

    return jax.lax.scan(step, net.init(key, x.shape[1:]), length=steps + 1)[1]


def row(values) -> str:
    return "  ".join(f"{value:8.3g}" for value in values)


def main(
    mnist: str | None = None,
    seeds: int = 20,
    steps: int = 499,
    epochs: int = 30,
    examples: int = 1000,
    output: str = "output",
) -> dict[int, np.ndarray]:
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    x, y = jnp.asarray(data.train[0][:examples]), jnp.asarray(data.train[1][:examples])
    keys = jax.random.split(jax.random.key(0), seeds)

    # %% The size of every layer's error, at the start.
    print(f"‖mean of δ‖ by hidden layer, from the first to the last; {len(x)} images, {seeds} seeds")
    over_time = {}
    for hidden, published in PUBLISHED.items():
        over_time[hidden] = np.asarray(
            jax.lax.map(lambda key, h=hidden: speeds(network(h), key, x, y, steps if h == 4 else 0), keys)
        )
        told(f"{hidden} hidden layers, at the start", over_time[hidden][:, 0], published)
    told(f"4 hidden layers, after {steps} steps", over_time[4][:, -1], PUBLISHED_LATER)

    # %% Why: ln ‖δ^l‖/‖δ^{l+1}‖ in its parts, for sigmoid and for the remedy, ReLU with weights of variance 2/n_in.
    nets = {
        "sigmoid": network(4),
        "relu": network(4, fn.relu, initializers.he_normal(), initializers.zeros()),
    }
    print("\nln ‖δ^l‖/‖δ^(l+1)‖, 4 hidden layers, at the start, mean over seeds")
    print("          from layer    total   weights  their alignment   slopes σ'  their alignment")
    spectra = {}
    for name, net in nets.items():
        start = jax.vmap(lambda key, net=net: net.init(key, (28, 28, 1)))(keys)
        growth = jax.vmap(lambda p, net=net: diagnostics.error_growth(net, fn.cross_entropy, p, x, y))(start)
        for l in (3, 2, 1):
            parts = [part[:, l].mean() for part in growth]
            numbers = "".join(f"{part:{width}.2f}" for part, width in zip(parts, (9, 10, 17, 12, 17), strict=True))
            print(f"{name:9} {l + 1} to {l}    {numbers}")
        one = jax.tree.map(lambda leaf: leaf[0], start)
        spectra[name] = {l: diagnostics.singular_values(net, one, x[:100], layer=l) for l in (1, 4)}

    # %% A chain of single neurons: δ^1/δ^4 is the product of three factors w σ'(z).
    print(
        "\na chain of four neurons, weights and biases N(0, 1): |w σ'(z)| of its three links, and their product |δ^1/δ^4|"
    )
    given = {"weight_init": initializers.normal(), "bias_init": initializers.normal()}
    chain = fn.Network(*[fn.Dense(1, fn.sigmoid, **given) for _ in range(4)])
    start = jax.vmap(lambda key: chain.init(key, (1,)))(jax.random.split(jax.random.key(1), 1000))
    errors = jax.vmap(lambda p: fn.backprop(chain, fn.quadratic, p, jnp.ones((1, 1)), jnp.zeros((1, 1))).errors)(start)
    sizes = np.abs(np.stack([np.asarray(delta).ravel() for delta in errors]))
    links, product = sizes[:-1] / sizes[1:], sizes[0] / sizes[-1]
    print(f"median of 1,000 chains: {row(np.median(links, axis=1))}, product {np.median(product):.1g}")
    print(
        f"largest:                {row(links.max(axis=1))}, product {product.max():.1g}; above 1: {(links > 1).mean():.1%}"
    )

    # %% The same steps, sigmoid against ReLU.
    remedy = np.asarray(speeds(nets["relu"], keys[0], x, y, steps))
    if mnist:
        train_depths(data, epochs)
    picture(over_time[4], remedy, spectra, Path(output) / "unstable_gradients.png")
    return {hidden: values[:, 0] for hidden, values in over_time.items()}


def told(name: str, values: np.ndarray, published: tuple[float, ...]) -> None:
    """A row of the table: mean, range over seeds, published, and how far that is from the mean in standard deviations."""
    away = (np.array(published) - values.mean(axis=0)) / values.std(axis=0, ddof=1) if len(values) > 1 else np.nan
    print(f"{name}\n  mean        {row(values.mean(axis=0))}\n  smallest    {row(values.min(axis=0))}")
    print(f"  largest     {row(values.max(axis=0))}\n  published   {row(published)}")
    print(f"  away by     {row(np.broadcast_to(away, len(published)))} standard deviations")


def train_depths(data: fn.datasets.Dataset, epochs: int, seeds: int = 5) -> None:
    """Validation accuracy with 1 to 4 hidden layers."""
    print(f"\n{len(data.train[0])} images, η 0.1, λ 5, {epochs} epochs, validation accuracy at the end, {seeds} seeds")
    for hidden, published in PUBLISHED_ACCURACY.items():
        swept = fn.sweep(
            network(hidden),
            fn.cross_entropy,
            data.train,
            keys=jax.random.split(jax.random.key(0), seeds),
            epochs=epochs,
            batch_size=10,
            optimizers=[fn.sgd(0.1)],
            penalties=[fn.L2(5.0)],
            validation=data.validation,
            monitor_training=False,
            progress=False,
        )
        accuracy = 100 * swept.validation_accuracy[0, 0]
        print(
            f"{hidden} hidden: {spread(accuracy[:, -1])} %, best epoch {spread(accuracy.max(axis=1))} %, "
            f"published {published} %"
        )


def picture(over_time: np.ndarray, remedy: np.ndarray, spectra: dict, path: Path) -> None:
    """Learning speed by layer over training, sigmoid and ReLU, and the singular values of the product behind it."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure = plt.figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    labels = [f"hidden layer {l}" for l in range(1, 5)]
    plots.learning_speed(np.median(over_time, axis=0), labels=labels, ax=axes[0])
    axes[0].set_title(f"Sigmoid: ‖mean of δ‖, median of {len(over_time)} seeds")
    plots.learning_speed(remedy, labels=labels, ax=axes[1]).set_title(
        "ReLU, weights N(0, 2/n_in): ‖mean of δ‖, one seed"
    )
    axes[1].sharey(axes[0])
    for name, values in spectra.items():
        for l, of_layer in values.items():
            plots.spectra(of_layer, label=f"{name}, from the output to hidden layer {l}", ax=axes[2])
    axes[2].set_title("Singular values of Σ'(w)ᵀΣ'…, at the start")
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=499, help="on the whole batch")
    parser.add_argument("--epochs", type=int, default=30, help="of training on the whole of MNIST")
    parser.add_argument("--examples", type=int, default=1000, help="use the first so many images")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
