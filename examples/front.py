"""The picture of README: digits and what a network takes them for, beside the audit of the same network with one wrong sign.

    python examples/front.py --output docs/pictures

Trains a small network on the embedded MNIST images, plants the sign error, audits, and writes front.png where matplotlib is
installed.
"""

# %%
import argparse
from pathlib import Path

import jax
import numpy as np

import fnnet as fn
from pictures import pyplot, save


# %% The fault: a wrong sign in BP2's product. It raises no error; trained so, the network reads 12 % of the digits, not 89 %.
@fn.layer
class Faulty(fn.Dense):
    def propagate(self, params, cache, delta):
        return -super().propagate(params, cache, delta)


def network(last):
    return fn.Network(fn.Flatten(), fn.Dense(100, fn.sigmoid), last(10, fn.softmax))


def main(epochs: int = 20, examples: int | None = None, output: str = "output") -> fn.Report:
    data = fn.datasets.mnist_subset()
    (x, y), (x_test, y_test) = (pair[:examples] for pair in data.train), data.test
    net = network(fn.Dense)
    params, _ = fn.fit(
        net,
        fn.log_likelihood,
        net.init(jax.random.key(0), (28, 28, 1)),
        (x, y),
        key=jax.random.key(1),
        epochs=epochs,
        batch_size=10,
        optimizer=fn.sgd(0.1),
        progress=False,
    )
    report = fn.compare_gradients(network(Faulty), fn.log_likelihood, params, x[:32], y[:32])
    print(report)
    predictions = np.argmax(net.apply(params, x_test), axis=-1)
    picture(report, x_test, y_test, predictions, Path(output) / "front.png")
    return report


def picture(report: fn.Report, images, labels, predictions, path: Path) -> None:
    """Digits on the left; on the right what the report says, in its colours."""
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    wrong = np.flatnonzero(predictions != labels)[:6]
    shown = np.concatenate([np.flatnonzero(predictions == labels)[:34], wrong])
    figure = plt.figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.9))
    plots.digits(images[shown], labels[shown], predictions[shown], ax=left)
    left.set_title("Digits of the test data, and what it takes them for", fontsize=10)
    right.set_facecolor("#16202b")
    right.set(xticks=[], yticks=[], title="The same network with one wrong sign, audited")
    right.title.set_fontsize(10)
    lines, colours = told(report)
    for i, (line, colour) in enumerate(zip(lines, colours, strict=True)):
        right.text(0.02, 0.97 - 0.95 * i / len(lines), line, family="monospace", fontsize=9, color=colour, va="top")
    save(figure, path, dpi=100)


def told(report: fn.Report) -> tuple[list[str], list[str]]:
    """What there is to show, line by line, and in which colour."""
    row = report.rows[0]
    lines = [">>> print(fn.compare_gradients(net, fn.log_likelihood, params, x, y))"]
    lines += [
        "The first to disagree, on the way back from the cost:",
        f"layer {row.layer}, {row.equation}: {row.hint}",
        "",
    ]
    lines += [f"{'layer':<22}{'equation':<18}{'leaf':<8}{'verdict':<13}difference"]
    colours = ["#8fa3b8", *["#ff7b72"] * 2, "white", "#8fa3b8"]
    paints = {"fail": "#ff7b72", "consequence": "#e3b341", "pass": "#7ee787"}
    for row in report.rows[:11]:
        apart = row.difference if np.isnan(row.chained) else max(row.difference, row.chained)
        lines.append(f"{row.layer:<22}{row.equation:<18}{row.leaf or '-':<8}{row.verdict:<13}{apart:.1e}")
        colours.append(paints.get(row.verdict, "white"))
    return lines, colours


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
