"""Feedback alignment: BP2's product with a fixed random matrix B instead of the weights, and the angle this makes.

    python examples/feedback_alignment.py                    # 784-100-10 on the embedded MNIST images, under a minute
    python examples/feedback_alignment.py --epochs 5 --examples 1000

Three networks start from the same parameters: one trained by backpropagation, one by feedback alignment (Lillicrap et al.,
2016), and one whose feedback is 0, so that only its last layer learns (the control). After each epoch the script measures,
on the validation images, the angle between the hidden layer's gradient by feedback alignment and its true gradient at the
same parameters. It prints a table and, where matplotlib is installed, writes angle.png.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from pictures import pyplot, save

COST = fn.log_likelihood


# %% An own gradient function for ``fit``: backpropagation with other matrices in BP2.
def with_feedback(net, feedback):
    def gradient(params, x, y, *, key, weights):
        bp = fn.backprop(net, COST, params, x, y, key=key, weights=weights, feedback=feedback)
        return bp.cost, bp.gradients

    return gradient


# %% Angles in degrees, between all entries of two pytrees.
def angle(one, other) -> float:
    a, b = (jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]) for tree in (one, other))
    cosine = jnp.vdot(a, b) / (jnp.linalg.norm(a) * jnp.linalg.norm(b))
    return float(jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1))))


def main(epochs: int = 20, examples: int | None = None, hidden: int = 100, output: str = "output") -> dict:
    data = fn.datasets.mnist_subset()
    train, held_out = tuple(a[:examples] for a in data.train), data.validation
    net = fn.Network(fn.Flatten(), fn.Dense(hidden, fn.sigmoid), fn.Dense(10, fn.softmax))
    params = net.init(jax.random.key(0), (28, 28, 1))
    random = net.init(jax.random.key(42), (28, 28, 1))  # B: drawn once, as the weights were, and never changed
    feedbacks = {"backpropagation": None, "feedback": random, "last layer only": jax.tree.map(jnp.zeros_like, random)}
    gradients = {name: with_feedback(net, feedback) for name, feedback in feedbacks.items()}

    # %% Both angles: of the hidden layer's gradient, and of the matrices of the last layer.
    def angles(params) -> tuple[float, float]:
        (_, _, true), (_, _, aligned) = (
            fn.backprop(net, COST, params, *held_out, feedback=feedback) for feedback in (None, random)
        )
        return angle(aligned[1], true[1]), angle(params[2]["w"], random[2]["w"])

    # %% Train the three, an epoch at a time: ``resume`` goes on exactly where the last call stopped.
    accuracy, measured, states = {name: [] for name in feedbacks}, [angles(params)], dict.fromkeys(feedbacks)
    print(f"{len(train[0])} training images; accuracy on {len(held_out[0])} validation images\n")
    print(f"{'epoch':>5}  {'angle of gradients':>18}  {'angle of w and B':>16}  " + "  ".join(feedbacks))
    print(f"{0:5d}  {measured[0][0]:17.1f}°  {measured[0][1]:15.1f}°")
    for epoch in range(1, epochs + 1):
        for name, gradient in gradients.items():
            trained, history = fn.fit(
                net, COST, params, train, key=jax.random.key(1), epochs=epoch, batch_size=10, optimizer=fn.sgd(0.1),
                validation=held_out, gradient=gradient, monitor_training=False, resume=states[name], progress=False,
            )  # fmt: skip
            states[name] = history.state
            accuracy[name].append(float(history.validation_accuracy[-1]))
            if name == "feedback":
                measured.append(angles(trained))
        shown = "  ".join(f"{values[-1]:{len(name)}.1%}" for name, values in accuracy.items())
        print(f"{epoch:5d}  {measured[-1][0]:17.1f}°  {measured[-1][1]:15.1f}°  {shown}")

    result = {"angle": [a for a, _ in measured], "angle_of_weights": [a for _, a in measured], "accuracy": accuracy}
    picture(result, Path(output) / "angle.png")
    return result


def picture(result: dict, path: Path) -> None:
    """The angles and the accuracies by epoch; nothing without matplotlib."""
    if (plt := pyplot()) is None:
        return

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    epochs = np.arange(len(result["angle"]))
    left.plot(epochs, result["angle"], marker=".", label="hidden layer's gradient, feedback against true")
    left.plot(epochs, result["angle_of_weights"], marker=".", label="w of the last layer against B")
    left.axhline(90, color="0.6", ls=":", label="no relation (90°)")
    left.set(xlabel="epoch", ylabel="angle (degrees)", ylim=(0, 100), title="Angles under feedback alignment")
    for name, values in result["accuracy"].items():
        right.plot(epochs[1:], 100 * np.array(values), marker=".", label=name)
    right.set(xlabel="epoch", ylabel="validation accuracy (%)", title="Accuracy by epoch")
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
        ax.legend()
    save(figure, path)


# %%
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--examples", type=int, help="train on the first so many images only")
    parser.add_argument("--hidden", type=int, default=100, help="hidden neurons")
    parser.add_argument("--output", default="output", metavar="FOLDER", help="where the picture goes")
    main(**vars(parser.parse_args()))
