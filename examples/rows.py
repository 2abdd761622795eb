"""Digits read row by row: a recurrent network sees one of the 28 rows at each step and names the digit after the last.

    python examples/rows.py                          # 4,000 embedded MNIST images, about a minute
    python examples/rows.py --mnist FOLDER           # the whole of MNIST, from its four IDX files
    python examples/rows.py --cell GRU --units 64

Prints the table of gradients and the test accuracy, and writes rows.png: learning curves, and how much the state after each
row counts in the cost, for an untrained cell of each kind and for the trained one.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

import fnnet as fn
from pictures import pyplot, save

CELLS = {"RNN": fn.RNN, "LSTM": fn.LSTM, "GRU": fn.GRU}


def network(cell: str, units: int) -> fn.Network:
    return fn.Network(CELLS[cell](units), fn.LastStep(), fn.Dense(10, fn.softmax))


def main(
    mnist: str | None = None,
    cell: str = "LSTM",
    units: int = 128,
    epochs: int = 12,
    batch: int = 50,
    rate: float = 2e-3,
    examples: int | None = None,
    seed: int = 0,
    output: str = "output",
) -> float:
    # %% Data: an image (28, 28, 1) is a sequence of 28 rows with 28 features each.
    data = fn.datasets.mnist(mnist) if mnist else fn.datasets.mnist_subset()
    train, validation, test = ((images[..., 0], labels) for images, labels in data)
    x, y = (part[:examples] for part in train)
    print(f"{len(x)} training, {len(validation[0])} validation and {len(test[0])} test images\n")

    # %% The cell gives its state after every row; LastStep takes the last.
    net = network(cell, units)
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    start = net.init(init_key, (28, 28))
    print(net)

    # %% Backpropagation through time by hand. Does it agree with autodiff?
    report = fn.compare_gradients(net, fn.log_likelihood, start, x[:8], y[:8])
    print(report, "\n")

    # %% Train. Gradients through many steps can be large, so their norm is clipped; the steps get smaller towards the end.
    schedule = fn.CosineDecay(rate, epochs * -(-len(x) // batch))
    params, history = fn.fit(
        net,
        fn.log_likelihood,
        start,
        (x, y),
        key=fit_key,
        epochs=epochs,
        batch_size=batch,
        optimizer=fn.chain(fn.clip_by_global_norm(1.0), fn.adam(schedule)),
        validation=validation,
    )
    _, accuracy = fn.evaluate(net, fn.log_likelihood, params, test)
    print(f"\ntest accuracy {accuracy:.2%}")

    # %% Look.
    credits = {}
    for name in CELLS:
        other = network(name, units)
        credits[f"{name}, untrained"] = credit(other, other.init(init_key, (28, 28)), x, y)
    credits[f"{cell}, trained"] = credit(net, params, x, y)
    picture(history, credits, Path(output) / "rows.png")
    if not report.ok:
        raise SystemExit("the manual gradients do not agree with autodiff")
    return accuracy


def credit(net: fn.Network, params, x, y):
    """‖∂C/∂h_t‖ for each row t, the mean over 64 images."""
    return jnp.mean(fn.diagnostics.credit_map(net, fn.log_likelihood, params, x[:64], y[:64]), axis=0)


def picture(history: fn.History, credits: dict, path: Path) -> None:
    """Learning curves, and what the state after each row contributes."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    plots.learning_curves(history, ax=axes[0])
    plots.learning_curves(history, of="accuracy", ax=axes[1])
    for name, norms in credits.items():
        plots.credit_map(norms, label=name, ax=axes[2])
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="FOLDER", help="a folder with MNIST's four IDX files")
    parser.add_argument("--cell", choices=CELLS, default="LSTM")
    parser.add_argument("--units", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--rate", type=float, default=2e-3, help="Adam's learning rate at the start")
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
