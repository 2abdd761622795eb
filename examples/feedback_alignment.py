"""Feedback alignment: BP2's product with a fixed random matrix B instead of the weights, and how the weights turn towards it.

    python examples/feedback_alignment.py                    # 784-100-100-10 on the embedded MNIST images, under a minute
    python examples/feedback_alignment.py --epochs 5 --examples 1000

Networks that start from the same parameters are trained by backpropagation, by feedback alignment (Lillicrap et al., 2016),
by direct feedback alignment (Nøkland, 2016), and with B = 0, so that only the last layer learns (the control). After each
epoch ``fit`` records, on the validation images, the angle of each layer's gradient to the true one at the same parameters.
The script prints a table and, where matplotlib is installed, writes alignment.png.
"""

# %%
import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

import fnnet as fn
from pictures import pyplot, save

COST = fn.log_likelihood
RULES = {
    "backpropagation": fn.Rule(),
    "feedback": fn.FeedbackAlignment(),
    "direct": fn.DirectFeedback(),
    "last layer only": fn.FeedbackAlignment(fn.initializers.zeros()),
}


def main(epochs: int = 20, examples: int | None = None, hidden: int = 100, output: str = "output") -> dict:
    data = fn.datasets.mnist_subset()
    train, held_out = tuple(a[:examples] for a in data.train), data.validation
    net = fn.Network(fn.Flatten(), fn.Dense(hidden, fn.tanh), fn.Dense(hidden, fn.tanh), fn.Dense(10, fn.softmax))
    accuracy, angles = {}, {}
    for name, rule in RULES.items():
        swapped = fn.Swapped(net, rule)
        params = swapped.init(jax.random.key(0), (28, 28, 1))

        # %% The angles of the two hidden layers, before training and after each epoch.
        def gradient_angles(params, net=swapped):
            return fn.diagnostics.alignment(net, COST, params, *held_out).gradient_angle[1:3]

        _, history = fn.fit(
            swapped, COST, params, train, key=jax.random.key(1), epochs=epochs, batch_size=10, optimizer=fn.sgd(0.05),
            validation=held_out, monitor_training=False, watch=gradient_angles, progress=False,
        )  # fmt: skip
        accuracy[name] = np.asarray(history.validation_accuracy)
        angles[name] = np.vstack([gradient_angles(params), history.watched])

    print(f"{len(train[0])} training images; accuracy on {len(held_out[0])} validation images\n")
    print(
        f"{'':5}  {'angle of the gradient, layers 1 and 2':^37}\n{'epoch':>5}  {'feedback':>17}  {'direct':>18}  ",
        *RULES,
    )
    for epoch in range(epochs + 1):
        of_rules = "  ".join(f"{a:8.1f}° {b:7.1f}°" for a, b in (angles[n][epoch] for n in ("feedback", "direct")))
        shown = "  ".join(f"{accuracy[name][epoch - 1]:{len(name)}.1%}" for name in RULES) if epoch else ""
        print(f"{epoch:5d}  {of_rules}   {shown}".rstrip())
    result = {"angles": angles, "accuracy": accuracy}
    picture(result, Path(output) / "alignment.png")
    return result


def picture(result: dict, path: Path) -> None:
    """The angles and the accuracies by epoch; nothing without matplotlib."""
    if (plt := pyplot()) is None:
        return

    figure = plt.figure(figsize=(10, 4), layout="constrained")
    draw(result, figure)
    save(figure, path)


def draw(result: dict, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    for i, name in enumerate(("feedback", "direct")):
        for layer, style in enumerate(("-", "--")):
            values = result["angles"][name][:, layer]
            left.plot(values, style, color=f"C{i + 1}", label=f"{name}, layer {layer + 1}")
    left.axhline(90, color="0.6", ls=":", label="no relation (90°)")
    left.set(xlabel="epoch", ylabel="angle (degrees)", ylim=(0, 100), title="The rule's gradient against the true one")
    for i, (name, values) in enumerate(result["accuracy"].items()):
        right.plot(np.arange(1, len(values) + 1), 100 * values, color=f"C{i}", label=name)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)", title="Accuracy by epoch")
    for ax, place in ((left, "lower left"), (right, "lower right")):
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend(loc=place, fontsize="small")


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--hidden", type=int, default=100, help="neurons in each hidden layer")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
