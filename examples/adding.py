"""The adding problem: which cells learn what lies T steps back?

    python examples/adding.py                        # T = 50 and 200, all three cells: several minutes
    python examples/adding.py --steps 50 --cells GRU

A sequence of T pairs: a number from 0 to 1, and a mark that is 1 at two steps, one in each half. The target is the sum of the
two marked numbers. Whoever always answers 1 has a mean squared error of 1/6 = 0.167. Prints each cell's error on new
sequences, and writes adding.png: the error by epoch, and how much the state at each step counts in the cost at the start.

Source: Hochreiter and Schmidhuber (1997).
"""

# %%
import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from pictures import pyplot, save

CELLS = {"RNN": fn.RNN, "LSTM": fn.LSTM, "GRU": fn.GRU}
BASELINE = 1 / 6


def sequences(key, m: int, steps: int):
    """m sequences (m, T, 2) and their targets (m, 1)."""
    numbers, first, second = jax.random.split(key, 3)
    values = jax.random.uniform(numbers, (m, steps))
    half = steps // 2
    marked = [jax.random.randint(first, (m,), 0, half), jax.random.randint(second, (m,), half, steps)]
    marks = sum(jax.nn.one_hot(where, steps) for where in marked)
    return jnp.stack([values, marks], axis=-1), jnp.sum(values * marks, axis=1, keepdims=True)


def main(
    steps: str = "50,200",
    cells: str = "RNN,LSTM,GRU",
    units: int = 64,
    epochs: int = 20,
    examples: int = 20_000,
    rate: float = 2e-3,
    seed: int = 0,
    output: str = "output",
) -> dict[tuple[str, int], float]:
    # %% The mean squared error is twice the quadratic cost.
    errors, histories, credits = {}, {}, {}
    for length in map(int, steps.split(",")):
        keys = jax.random.split(jax.random.key(seed), 5)
        train, validation, test = (sequences(k, m, length) for k, m in zip(keys, (examples, 1000, 5000), strict=False))
        for cell in cells.split(","):
            net = fn.Network(CELLS[cell](units), fn.LastStep(), fn.Dense(1, fn.linear))
            params = net.init(keys[3], (length, 2))
            norms = fn.diagnostics.credit_map(net, fn.quadratic, params, *(part[:64] for part in train))
            credits[cell, length] = jnp.mean(norms, axis=0)
            start = time.perf_counter()
            params, history = fn.fit(
                net,
                fn.quadratic,
                params,
                train,
                key=keys[4],
                epochs=epochs,
                batch_size=50,
                optimizer=fn.chain(fn.clip_by_global_norm(1.0), fn.adam(rate)),
                validation=validation,
                early_stopping=fn.EarlyStopping(patience=epochs, monitor="validation_cost"),
                monitor_training=False,
            )
            cost, _ = fn.evaluate(net, fn.quadratic, params, test)
            errors[cell, length], histories[cell, length] = 2 * cost, 2 * history.validation_cost
            took = time.perf_counter() - start
            print(
                f"T = {length}, {cell}: mean squared error {2 * cost:.5f} of {BASELINE:.3f} ({took:.0f} s)", flush=True
            )

    # %% Look.
    picture(histories, credits, Path(output) / "adding.png")
    return errors


def picture(histories: dict, credits: dict, path: Path) -> None:
    """The error by epoch, and the credit of each step before training."""
    if (plt := pyplot()) is None:
        return
    from matplotlib.ticker import MaxNLocator

    from fnnet import plots

    lengths = sorted({length for _, length in histories})
    figure, axes = plt.subplots(2, len(lengths), figsize=(5.5 * len(lengths), 8), layout="constrained", squeeze=False)
    for (top, bottom), length in zip(axes.T, lengths, strict=True):
        for (cell, own), history in histories.items():
            if own == length:
                top.semilogy(np.arange(1, len(history) + 1), history, marker=".", label=cell)
                plots.credit_map(credits[cell, own], label=cell, ax=bottom)
        top.axhline(BASELINE, color="#999999", linestyle="--", label="always 1")
        top.set(xlabel="epoch", ylabel="mean squared error", title=f"The adding problem, T = {length}")
        top.xaxis.set_major_locator(MaxNLocator(integer=True))
        top.grid(alpha=0.3)
        top.legend()
        bottom.set_title("before training: what h at step t counts")
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="50,200", help="T, one or more")
    parser.add_argument("--cells", default="RNN,LSTM,GRU")
    parser.add_argument("--units", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, default=20_000, help="training sequences")
    parser.add_argument("--rate", type=float, default=2e-3, help="Adam's learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
