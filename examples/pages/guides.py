"""The pictures of the guides."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet import dbn, diagnostics

from .learn import Numbers, cells


# %% Home: the example of the front page, as it learns and what it says of digits.
def first() -> Numbers:
    """784-100-10 trained for ten epochs: accuracies (%), and sixteen test images, the last four taken for something else."""
    data = fn.datasets.mnist_subset()
    net = fn.Network(fn.Flatten(), fn.Dense(100, fn.sigmoid), fn.Dense(10, fn.softmax))
    params, history = fn.fit(
        net, fn.log_likelihood, net.init(jax.random.key(0), (28, 28, 1)), data.train, key=jax.random.key(1), epochs=10,
        batch_size=10, optimizer=fn.sgd(0.1), validation=data.validation, progress=False,
    )  # fmt: skip
    images, labels = data.test
    predictions = np.argmax(net.apply(params, images), axis=-1)
    right = predictions == labels
    shown = np.concatenate([np.flatnonzero(right)[:12], np.flatnonzero(~right)[:4]])
    return {
        "training": 100 * np.array(history.accuracy),
        "validation": 100 * np.array(history.validation_accuracy),
        "images": images[shown, ..., 0],
        "labels": labels[shown],
        "predictions": predictions[shown],
    }


def draw_first(numbers: Numbers, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    left.plot(range(1, 11), numbers["training"], ":", color="C0", label="training")
    left.plot(range(1, 11), numbers["validation"], color="C0", label="validation")
    left.set(xlabel="epoch", ylabel="accuracy (%)", xticks=[1, 5, 10])
    left.legend(loc="lower right")
    right.set_axis_off()
    for i, (image, label, taken) in enumerate(
        zip(numbers["images"], numbers["labels"], numbers["predictions"], strict=True)
    ):
        x, y = 42 * (i % 4), -42 * (i // 4)
        right.imshow(image, cmap="gray_r", extent=(x, x + 28, y - 28, y), interpolation="none")
        text, color = (f"{taken:g}", "C0") if taken == label else (f"{taken:g}, is {label:g}", "C1")
        right.text(x + 14, y + 1.5, text, ha="center", fontsize=9, color=color)
    right.set(xlim=(-6, 160), ylim=(-156, 12))


# %% The dense network: where a, z and δ live, and what takes one to the next.
def equations() -> Numbers:
    """The shapes of 784-30-10 at ten examples."""
    net = fn.Network(fn.Dense(30, fn.sigmoid), fn.Dense(10, fn.softmax))
    params, x, y = net.init(jax.random.key(0), (784,)), jnp.zeros((10, 784)), jnp.arange(10)
    bp = fn.backprop(net, fn.log_likelihood, params, x, y)
    _, caches = net.forward(params, x)
    found: Numbers = {"a0": x.shape}
    for l, ((_, z, a), delta, of) in enumerate(zip(caches, bp.errors, bp.gradients, strict=True), 1):
        found |= {f"z{l}": z.shape, f"a{l}": a.shape, f"delta{l}": delta.shape, f"w{l}": of["w"].shape}
    return found


def draw_equations(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(4.9, 3.1)
    ax = figure.add_subplot()

    def put(x: float, y: float, name: str, color: str, of: str) -> None:
        shape = "×".join(f"{n:g}" for n in numbers[of])
        ax.text(x, y, f"${name}$", ha="center", va="center", fontsize=15, color=color)
        ax.text(x, y - 0.5, shape, ha="center", va="center", fontsize=8.5, alpha=0.8)

    def arrow(start: tuple, end: tuple, text: str, color: str, at: tuple = (0, 0.22)) -> None:
        ax.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.3})
        x, y = (start[0] + end[0]) / 2 + at[0], (start[1] + end[1]) / 2 + at[1]
        ax.text(x, y, text, ha="center", va="center", fontsize=9.5, color=color)

    put(0, 0, "a^0", "C0", "a0")
    for l, x in ((1, 2.1), (2, 5.7)):
        put(x, 0, f"z^{l}", "C0", f"z{l}")
        put(x + 1.5, 0, f"a^{l}", "C0", f"a{l}")
        put(x, -2.1, f"\\delta^{l}", "C1", f"delta{l}")
        put(x, -4.2, f"\\partial C/\\partial w^{l}", "C1", f"w{l}")
        arrow((x - 1.7, 0), (x - 0.4, 0), f"$w^{l}, b^{l}$", "C0")
        arrow((x + 0.4, 0), (x + 1.1, 0), "σ", "C0")
        arrow((x, -2.9), (x, -3.75), "BP3, BP4", "C1", (0.9, 0))
        arrow((x - 1.9, -0.75), (x - 0.65, -3.75), "", "C0")
    ax.text(8.9, 0, "$C$", ha="center", va="center", fontsize=15)
    arrow((7.6, 0), (8.6, 0), "cost", "C0")
    arrow((8.8, -0.4), (6.2, -2.1), "BP1", "C1", (0.2, -0.35))
    arrow((5.2, -2.1), (2.6, -2.1), "BP2, $w^2$", "C1", (-0.55, 0.27))
    ax.set(xlim=(-0.7, 9.3), ylim=(-4.95, 0.6))
    ax.set_axis_off()


# %% The convolutional network: the error through a kernel.
def rotation() -> Numbers:
    delta, w = jnp.array([[2.0, 1], [0, 3]]), jnp.array([[1.0, 2], [3, 4]])
    padded, turned = fn.pad_full(delta, (2, 2)), fn.rot180(w)
    return {"δ": delta, "padded": padded, "w": w, "turned": turned, "back": fn.cross_correlate(padded, turned)}


def draw_rotation(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(5.6, 1.9)
    titles = {"δ": "δ", "padded": "pad(δ)", "w": "w", "turned": "rot180(w)", "back": "∂C/∂a"}
    axes = figure.subplots(1, 5, width_ratios=[2, 4, 2, 2, 3])
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        values = np.array(numbers[name])
        cells(ax, values, values != 0, color="C0" if name in ("w", "turned") else "C1")
        ax.set_title(title, fontsize=10)


# %% The recurrent network: which cost knows of which state.
def reach() -> Numbers:
    """‖∂C_τ/∂h_t‖ over the largest, (τ, t), of a simple network and of an LSTM that starts by remembering; 16 units."""
    rng, numbers = np.random.default_rng(0), {}
    x, labels = jnp.asarray(rng.standard_normal((8, 20, 5)), jnp.float32), jnp.asarray(rng.integers(3, size=(8, 20)))
    for name, cell in (("RNN", fn.RNN(16)), ("LSTM", fn.LSTM(16))):
        net = fn.Network(cell, fn.Dense(3, fn.softmax))
        params = net.init(jax.random.key(0), (20, 5))
        if name == "LSTM":
            params = ({**params[0], "b": params[0]["b"].at[16:32].set(3)}, params[1])
        norms = diagnostics.credit_map(net, fn.log_likelihood, params, x, labels).mean(axis=0)
        numbers[name] = norms / norms.max()
    return numbers


def draw_reach(numbers: Numbers, figure: Any) -> None:
    from matplotlib.colors import LogNorm

    figure.set_size_inches(5.2, 2.7)
    axes = figure.subplots(1, 2, sharey=True)
    for ax, (name, norms) in zip(axes, numbers.items(), strict=True):
        shown = ax.imshow(
            np.where(np.array(norms) > 0, norms, np.nan), norm=LogNorm(1e-4, 1), cmap="viridis",
            extent=(0.5, 20.5, 20.5, 0.5), interpolation="none",
        )  # fmt: skip
        ax.set(xlabel="state of step t", title="LSTM, forget bias 3" if name == "LSTM" else "simple network")
        ax.set(xticks=[1, 10, 20], yticks=[1, 10, 20])
    axes[0].set_ylabel("cost of step τ")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="‖∂C$_τ$/∂h$_t$‖ (largest = 1)")


# %% Composition: a network as the library draws it, with a skip and one array in two places.
def tied_network() -> fn.Layer:
    block = fn.Residual(fn.LayerNorm(), fn.Dense(16, fn.gelu), fn.Dense(8, fn.linear))
    return fn.Tied(fn.Network(fn.Embedding(11, 8), block, fn.Dense(11, fn.softmax)), "0.w", "-1.w")


def tied() -> Numbers:
    return {"parameters": [row.parameters for row in fn.summary(tied_network(), (4,)).rows]}


def draw_tied(numbers: Numbers, figure: Any) -> None:
    from fnnet import plots

    figure.set_size_inches(4, 5.2)
    plots.network(tied_network(), (4,), ax=figure.add_subplot()).set_title("")


# %% The deep belief network: the digits in the autoencoder's plane.
def plane() -> Numbers:
    """The codes of 200 test images: 784-128-32-2, a stack of machines unrolled and fine-tuned for six epochs."""
    (images, _), _, (test, labels) = fn.datasets.mnist_subset(validation=0)
    x, test = (jnp.asarray(part, jnp.float32).reshape(-1, 784) for part in (images, test))
    settings: Any = {"key": jax.random.key(0), "batch_size": 50, "optimizer": fn.sgd(0.1, 0.5), "progress": False}
    stack, _ = dbn.pretrain(x, (128, 32, 2), epochs=4, **settings)
    net, params = dbn.to_autoencoder(stack, code=fn.linear)
    params, _ = fn.fit(
        net, fn.cross_entropy, params, (x, x), key=jax.random.key(1), epochs=6, batch_size=50,
        optimizer=fn.adam(2e-3), monitor_training=False, progress=False,
    )  # fmt: skip
    return {"codes": net[:3].apply(params[:3], test[:200]), "labels": labels[:200]}


def draw_plane(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(5.2, 3.9)
    ax = figure.add_subplot()
    codes = np.array(numbers["codes"])
    for (x, y), label in zip(codes, numbers["labels"], strict=True):
        ax.text(x, y, f"{label:g}", color=f"C{label % 4:g}", fontsize=9, ha="center", va="center")
    low, high = codes.min(axis=0), codes.max(axis=0)
    room = 0.05 * (high - low)
    ax.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))
    ax.set(xlabel="first number of the code", ylabel="second number")


# %% Training: four learning rates in one call.
RATES = (0.01, 0.1, 1.0, 10.0)


def rates() -> Numbers:
    """784-30-10 on 1,000 images, three seeds: log10 of the training cost of each rate, (rates, seeds, epochs)."""
    data = fn.datasets.mnist_subset()
    swept = fn.sweep(
        fn.Network(fn.Flatten(), fn.Dense(30, fn.sigmoid), fn.Dense(10, fn.sigmoid)), fn.cross_entropy,
        (data.train[0][:1000], data.train[1][:1000]), keys=jax.random.split(jax.random.key(0), 3), epochs=15,
        batch_size=10, optimizers=[fn.sgd(rate) for rate in RATES], progress=False,
    )  # fmt: skip
    return {"log cost": np.log10(swept.cost).reshape(len(RATES), 3, 15)}


def draw_rates(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    for i, (rate, costs) in enumerate(zip(RATES, 10 ** np.array(numbers["log cost"]), strict=True)):
        ax.semilogy(range(1, 16), costs.mean(axis=0), color=f"C{i}", label=f"η = {rate:g}")
        ax.fill_between(range(1, 16), costs.min(axis=0), costs.max(axis=0), color=f"C{i}", alpha=0.2, lw=0)
    ax.set(xlabel="epoch", ylabel="training cost C (nats)", xticks=[1, 5, 10, 15])
    figure.legend(loc="outside right upper")


# %% Diagnostics: where a layer's error is lost, and where its units sit.
def growth() -> Numbers:
    """The four parts of ln ‖δ^l‖/‖δ^(l+1)‖ in networks of four hidden layers of 30, on 1,000 images."""
    data, numbers = fn.datasets.mnist_subset(), {}
    x, y = data.train[0][:1000], data.train[1][:1000]
    for name, activation, start in (
        ("sigmoid", fn.sigmoid, fn.initializers.scaled_normal()), ("ReLU", fn.relu, fn.initializers.he_normal()),
    ):  # fmt: skip
        hidden = [fn.Dense(30, activation, start) for _ in range(4)]
        net = fn.Network(fn.Flatten(), *hidden, fn.Dense(10, fn.sigmoid, start))
        parts = diagnostics.error_growth(net, fn.cross_entropy, net.init(jax.random.key(0), (28, 28, 1)), x, y)
        numbers |= {f"{name} {part}": size[1:4] for part, size in parts._asdict().items()}
    return numbers


def draw_growth(numbers: Numbers, figure: Any) -> None:
    shown = {"weights": "C0", "weight_alignment": "C2", "slopes": "C1", "slope_alignment": "C3"}
    axes = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(axes, ("sigmoid", "ReLU"), strict=True):
        for i, (part, color) in enumerate(shown.items()):
            places = np.arange(3) + 0.2 * i - 0.3
            label = part.replace("_", "s' ") if name == "ReLU" else None
            ax.bar(places, numbers[f"{name} {part}"], 0.18, color=color, label=label)
        ax.axhline(0, lw=0.8, color=ax.xaxis.label.get_color())
        ax.axhline(np.log(0.25), lw=0.8, ls="--", color="C1")
        ax.set(title=name, xticks=range(3), xlabel="between layers")
        ax.set_xticklabels([f"{l} ← {l + 1}" for l in (1, 2, 3)])
    axes[0].set_ylabel("ln of the error's factor")
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)


def hidden() -> Numbers:
    """How the outputs of 30 hidden units spread over 1,000 images, at two sizes of the weights at the start."""
    x, numbers = fn.datasets.mnist_subset().train[0][:1000], {}
    for name, start in (("1", fn.initializers.normal()), ("1/n", fn.initializers.scaled_normal())):
        net = fn.Network(fn.Flatten(), fn.Dense(30, fn.sigmoid, start))
        values = diagnostics.activations(net, net.init(jax.random.key(0), (28, 28, 1)), x)[1]
        numbers[name] = 100 * np.histogram(values, np.linspace(0, 1, 41))[0] / np.size(values)
    return numbers


def draw_hidden(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    for i, (name, label) in enumerate((("1/n", r"weights $N(0, 1/n_{\rm in})$"), ("1", "weights $N(0, 1)$"))):
        ax.stairs(numbers[name], np.linspace(0, 1, 41), fill=True, color=f"C{i}", alpha=0.25)
        ax.stairs(numbers[name], np.linspace(0, 1, 41), color=f"C{i}", lw=1.4, label=label)
    ax.set(xlabel="activation a of a hidden unit", ylabel="share of all outputs (%)", xlim=(0, 1))
    ax.legend(loc="upper center")
