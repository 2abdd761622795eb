"""The book's convolutional network: learn, compare its hand-written gradients with ``jax.grad``, look at what it has learned.

    python examples/convolutional.py                    # 4,000 embedded MNIST images, well under a minute
    python examples/convolutional.py --mnist FOLDER     # the whole of MNIST, from its four IDX files
    python examples/convolutional.py --shift            # train on five times as many images, moved by one pixel

Prints the table of gradients and the test accuracy, and writes convolutional.png (learning curves, the kernels of the
first layer, the feature maps of one digit).
"""

# %%
import argparse
from pathlib import Path

import jax

import fnnet as fn
from pictures import pyplot, save


def main(
    mnist: str | None = None, epochs: int = 15, examples: int | None = None, shift: bool = False, output: str = "output"
) -> float:
    # %% Data: images (m, 28, 28, 1) from 0 to 1, integer labels.
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    x, y = (part[:examples] for part in data.train)
    if shift:
        x, y = fn.datasets.shifted(x, y)
    print(f"{len(x)} training, {len(data.validation[0])} validation and {len(data.test[0])} test images\n")

    # %% 28×28 → 24×24 → 12×12 → 8×8 → 4×4, then two dense layers.
    net = fn.Network(
        fn.Conv(20, 5, fn.relu),
        fn.MaxPool(2),
        fn.Conv(40, 5, fn.relu),
        fn.MaxPool(2),
        fn.Flatten(),
        fn.Dense(100, fn.relu),
        fn.Dense(10, fn.softmax),
    )
    params = net.init(jax.random.key(0), (28, 28, 1))
    print(net)

    # %% Convolution and pooling have equations of their own. Do they agree with autodiff?
    report = fn.compare_gradients(net, fn.log_likelihood, params, x[:16], y[:16])
    print(report, "\n")

    # %% Train.
    params, history = fn.fit(
        net,
        fn.log_likelihood,
        params,
        (x, y),
        key=jax.random.key(1),
        epochs=epochs,
        batch_size=10,
        optimizer=fn.sgd(0.03),
        penalty=fn.L2(2e-5 * len(x)),
        validation=data.validation,
    )
    _, accuracy = fn.evaluate(net, fn.log_likelihood, params, data.test)
    print(f"\ntest accuracy {accuracy:.2%}")

    # %% Look.
    picture(net, params, history, data.test[0][0], Path(output) / "convolutional.png")
    if not report.ok:
        raise SystemExit("the manual gradients do not agree with autodiff")
    return accuracy


def picture(net: fn.Network, params, history: fn.History, digit, path: Path) -> None:
    """Learning curves; the kernels of the first layer; a digit, its feature maps and what pooling leaves of them."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    features = net[:1].apply(params[:1], digit[None])[0]
    pooled = net[:2].apply(params[:2], digit[None])[0]
    figure = plt.figure(figsize=(12, 8), layout="constrained")
    grid = figure.add_gridspec(3, 2, width_ratios=(1, 1.5))
    plots.learning_curves(history, ax=figure.add_subplot(grid[0, 0]))
    plots.learning_curves(history, of="accuracy", ax=figure.add_subplot(grid[1, 0]))
    plots.maps(digit, ax=figure.add_subplot(grid[2, 0])).set_title("a test image, 28×28")
    kernels = params[0]["w"][:, :, 0]
    plots.maps(kernels, ax=figure.add_subplot(grid[0, 1])).set_title("layer 0: 20 kernels, 5×5")
    plots.maps(features, ax=figure.add_subplot(grid[1, 1])).set_title("layer 0: its feature maps, 24×24")
    plots.maps(pooled, ax=figure.add_subplot(grid[2, 1])).set_title("layer 1: their maxima, 12×12")
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--shift", action="store_true", help="add the images moved by one pixel")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
