"""Find the bug: an own layer with two mistakes, the audit that names them, the mend.

    python examples/find_the_bug.py                          # on the embedded MNIST images, under a minute
    python examples/find_the_bug.py --epochs 2 --examples 500

Layer normalisation has a forward pass of one line and a backward pass that nearly everybody gets wrong the first time. The
network trains all the same: a wrong gradient often still points downhill, so a falling cost proves nothing. The script trains
with the first draft, audits it, mends one mistake after another as the report names them, and trains again. Where matplotlib
is installed it writes find_the_bug.png.
"""

# %%
import argparse
from pathlib import Path

import jax
import jax.numpy as jnp

import fnnet as fn
from pictures import pyplot, save

COST = fn.log_likelihood


# %% The layer: n = (a_in − mean) / sd over the features of each example, a = g ⊙ n + b. The forward pass and its cache are
# right in every draft.
@fn.layer
class FirstDraft:
    """Layer normalisation, with the backward pass as one might write it down at first."""

    def init(self, key, input_shape):
        return {"g": jnp.ones(input_shape), "b": jnp.zeros(input_shape)}

    def forward(self, params, a_in, *, probe=None):
        centred = a_in - jnp.mean(a_in, -1, keepdims=True)
        scale = jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)
        a = params["g"][None] * centred * scale + params["b"][None]
        return a if probe is None else a + probe, (centred * scale, scale)

    def propagate(self, params, cache, delta):
        _, scale = cache
        return delta * params["g"][None] * scale  # the mean and the sd taken for constants

    def gradients(self, params, cache, delta):
        n, _ = cache
        return {"g": jnp.sum(delta * n, 0), "b": jnp.sum(delta, 0)}  # summed over the batch


# %% The first mend: a gradient is the mean over the batch.
@fn.layer
class SecondDraft(FirstDraft):
    def gradients(self, params, cache, delta):
        n, _ = cache
        return {"g": jnp.mean(delta * n, 0), "b": jnp.mean(delta, 0)}


# %% The second mend: the mean and the sd depend on a_in as well. With e = δ ⊙ g,
# ∂C/∂a_in = (e − mean(e) − n mean(e ⊙ n)) / sd.
@fn.layer
class LayerNorm(SecondDraft):
    def propagate(self, params, cache, delta):
        n, scale = cache
        e = delta * params["g"][None]
        return scale * (e - jnp.mean(e, -1, keepdims=True) - n * jnp.mean(e * n, -1, keepdims=True))


def network(norm):
    return fn.Network(fn.Flatten(), fn.Dense(60, fn.relu), norm, fn.Dense(10, fn.softmax))


def main(epochs: int = 12, examples: int | None = None, output: str = "output") -> dict:
    data = fn.datasets.mnist_subset()
    train, held_out = tuple(a[:examples] for a in data.train), data.validation

    # %% Audit each draft on a small batch. g = 1 and b = 0 could hide a missing factor, so the parameters are moved.
    reports = {}
    for norm in (FirstDraft(), SecondDraft(), LayerNorm()):
        net = network(norm)
        params = net.init(jax.random.key(0), (28, 28, 1))
        g, b = 1 + 0.3 * jax.random.normal(jax.random.key(1), (2, 60))
        moved = (*params[:2], {"g": g, "b": b}, params[3])
        report = fn.compare_gradients(net, COST, moved, train[0][:16], train[1][:16])
        reports[type(norm).__name__] = report
        print(f"\n## {type(norm).__name__}\n\n{report}")

    # %% Train with each. The first draft's cost falls too.
    histories = {}
    for norm in (FirstDraft(), SecondDraft(), LayerNorm()):
        net = network(norm)
        params, history = fn.fit(
            net, COST, net.init(jax.random.key(0), (28, 28, 1)), train, key=jax.random.key(1), epochs=epochs,
            batch_size=10, optimizer=fn.sgd(0.05), validation=held_out, progress=False,
        )  # fmt: skip
        histories[type(norm).__name__] = history

    print(f"\n{'draft':<12}  {'first to disagree':<32}  cost on training data  accuracy on validation data")
    for name, history in histories.items():
        row = reports[name].rows[0]
        wrong = "-" if reports[name].ok else f"{row.layer}, {row.equation} {row.leaf}"
        print(f"{name:<12}  {wrong:<32}  {history.cost[-1]:21.4f}  {history.validation_accuracy[-1]:27.1%}")
    picture(reports, histories, Path(output) / "find_the_bug.png")
    return {name: (report.ok, float(histories[name].cost[-1])) for name, report in reports.items()}


def picture(reports: dict, histories: dict, path: Path) -> None:
    if (plt := pyplot()) is None:
        return
    from fnnet import plots

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", width_ratios=(3, 2))
    plots.audit(reports["FirstDraft"], ax=left)
    left.set_title(f"The audit of the first draft\n{left.get_title()}")
    for name, history in histories.items():
        right.plot(range(1, len(history.cost) + 1), history.cost, label=name)
    right.set(xlabel="epoch", ylabel="cost C on the training data (nats)", yscale="log", title="All three drafts learn")
    right.grid(alpha=0.3)
    right.legend()
    print()
    save(figure, path, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--examples", type=int, default=None)
    parser.add_argument("--output", default="output")
    main(**vars(parser.parse_args()))
