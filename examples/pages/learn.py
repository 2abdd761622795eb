"""The pictures of docs/learn."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnnet as fn
from fnnet import diagnostics, rbm

Numbers = dict[str, Any]


# %% Section 1: a neuron's step and its sigmoid.
def neuron() -> Numbers:
    z = jnp.linspace(-6, 6, 61)
    a = fn.sigmoid(z)
    return {"z": z, "step": fn.step(z), "sigmoid": a, "slope": a * (1 - a)}


def draw_neuron(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    ax.plot(numbers["z"], numbers["step"], ":", color="C2", label="step", drawstyle="steps-post")
    ax.plot(numbers["z"], numbers["sigmoid"], color="C0", label="σ(z)")
    ax.plot(numbers["z"], numbers["slope"], color="C1", label="σ'(z), at most ¼")
    ax.axhline(0.25, color="C1", lw=0.6, ls="--")
    ax.set(xlabel="weighted input z", ylabel="activation a")
    ax.legend()


# %% Section 2: a network as the library draws it.
def dense() -> Numbers:
    net = fn.Network(fn.Dense(30, fn.sigmoid), fn.Dense(10, fn.sigmoid))
    return {"parameters": [row.parameters for row in fn.summary(net, (784,)).rows]}


def draw_dense(numbers: Numbers, figure: Any) -> None:
    from fnnet import plots

    figure.set_size_inches(4.2, 3.2)
    net = fn.Network(fn.Dense(30, fn.sigmoid), fn.Dense(10, fn.sigmoid))
    plots.network(net, (784,), ax=figure.add_subplot())


# %% Section 3: gradient descent of one neuron with two parameters.
def descent() -> Numbers:
    """One sigmoid neuron is to answer 0.5 with 0.9 and −1 with 0.2: its cost over w and b, and 120 steps."""
    net, x, y = fn.Dense(1, fn.sigmoid), jnp.array([[0.5], [-1.0]]), jnp.array([[0.9], [0.2]])

    def step(params, _):
        bp = fn.backprop(net, fn.quadratic, params, x, y)
        after = jax.tree.map(lambda p, g: p - 2.0 * g, params, bp.gradients)
        return after, (params["w"][0, 0], params["b"][0], bp.cost)

    w, b, cost = jax.lax.scan(step, {"w": jnp.full((1, 1), -2.0), "b": jnp.full(1, 2.0)}, length=121)[1]
    ws, bs = jnp.linspace(-3, 4, 36), jnp.linspace(-2, 3, 26)
    at = jax.vmap(jax.vmap(lambda w, b: jnp.mean((fn.sigmoid(w * x + b) - y) ** 2) / 2, (0, None)), (None, 0))
    return {"w": w, "b": b, "cost": cost, "ws": ws, "bs": bs, "surface": at(ws, bs)}


def draw_descent(numbers: Numbers, figure: Any) -> None:
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    left.contour(numbers["ws"], numbers["bs"], numbers["surface"], 14, cmap="viridis", linewidths=0.8)
    left.plot(numbers["w"], numbers["b"], ".-", color="C1", ms=4, lw=1)
    left.set(xlabel="weight w", ylabel="bias b", title="120 steps, η = 2")
    right.plot(numbers["cost"], color="C1")
    right.set(xlabel="step", title="cost C")


# %% Section 4.1: a saturated neuron.
def saturation() -> Numbers:
    """(output, δ) of one neuron that is to answer 1 with 0, from w = b = 2, under both costs, η = 0.15."""
    net, x, y, numbers = fn.Dense(1, fn.sigmoid), jnp.ones((1, 1)), jnp.zeros((1, 1)), {}
    for cost in (fn.quadratic, fn.cross_entropy):

        def step(params, _, cost=cost):
            bp = fn.backprop(net, cost, params, x, y)
            after = jax.tree.map(lambda p, g: p - 0.15 * g, params, bp.gradients)
            return after, (net.apply(params, x)[0, 0], bp.errors[0, 0])

        start = {"w": jnp.full((1, 1), 2.0), "b": jnp.full(1, 2.0)}
        numbers[f"{cost.name} output"], numbers[f"{cost.name} error"] = jax.lax.scan(step, start, length=301)[1]
    return numbers


def draw_saturation(numbers: Numbers, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    for i, cost in enumerate(("cross_entropy", "quadratic")):
        left.plot(numbers[f"{cost} output"], color=f"C{i}", label=cost.replace("_", "-"))
        right.plot(numbers[f"{cost} error"], color=f"C{i}")
    left.set(xlabel="step", title="output a (target 0)", ylim=(0, 1))
    right.set(xlabel="step", title="error δ", ylim=(0, 1))
    left.legend()


# %% Section 5: overfitting, and what L2 does to it.
def overfitting() -> Numbers:
    """784-30-10, weights N(0, 1), on 1,000 images, with λ = 0 and 1: accuracies by epoch, and costs without a penalty."""
    data, numbers = fn.datasets.mnist_subset(), {}
    train = data.train[0][:1000], data.train[1][:1000]
    start = fn.initializers.normal()
    net = fn.Network(fn.Flatten(), fn.Dense(30, fn.sigmoid, start), fn.Dense(10, fn.sigmoid, start))
    params = net.init(jax.random.key(0), (28, 28, 1))
    about: Any = {"epochs": 60, "batch_size": 10, "optimizer": fn.sgd(0.5), "validation": data.validation}
    for lam in (0, 1):
        _, history = fn.fit(
            net, fn.cross_entropy, params, train, key=jax.random.key(1), progress=False,
            penalty=fn.L2(float(lam)) if lam else None, **about,
        )  # fmt: skip
        for of in ("cost", "validation_cost") * (lam == 0) + ("accuracy", "validation_accuracy"):
            numbers[f"{of} {lam}"] = getattr(history, of)
    return numbers


def draw_overfitting(numbers: Numbers, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, 61)
    left.plot(epochs, numbers["cost 0"], ":", color="C1", label="training")
    left.plot(epochs, numbers["validation_cost 0"], color="C1", label="validation")
    for lam in (0, 1):
        right.plot(epochs, 100 * np.array(numbers[f"accuracy {lam}"]), ":", color=f"C{1 - lam}")
        right.plot(
            epochs, 100 * np.array(numbers[f"validation_accuracy {lam}"]), color=f"C{1 - lam}", label=f"λ = {lam}"
        )
    left.set(xlabel="epoch", title="cost, λ = 0", ylim=(0, None))
    right.set(xlabel="epoch", title="accuracy (%)", ylim=(65, 101))
    left.legend()
    right.legend(loc="lower right", bbox_to_anchor=(1, 0.02))


# %% Section 6.1: the error vanishes.
def vanishing() -> Numbers:
    """The mean length of δ of each of six hidden layers of 30, before training, on 500 images."""
    data, numbers = fn.datasets.mnist_subset(), {}
    x, y = data.train[0][:500], data.train[1][:500]
    blocks = {
        "sigmoid": fn.Dense(30, fn.sigmoid),
        "tanh": fn.Dense(30, fn.tanh),
        "relu, He": fn.Dense(30, fn.relu, fn.initializers.he_normal()),
    }
    for name, layer in blocks.items():
        net = fn.Network(fn.Flatten(), *[layer] * 6, fn.Dense(10, fn.softmax))
        speed = diagnostics.learning_speed(net, fn.log_likelihood, net.init(jax.random.key(0), (28, 28, 1)), x, y)
        numbers[name] = speed.mean_of_norms[1:]
    return numbers


def draw_vanishing(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    for i, (name, sizes) in enumerate(numbers.items()):
        ax.semilogy(range(1, 8), sizes, ".-", color=f"C{[1, 0, 2][i]}", label=name)
    ax.set(xlabel="layer, from the first to the last", ylabel="mean length of δ")
    ax.legend()


# %% Section 7.1: kernels and feature maps.
def features() -> Numbers:
    """Eight 5 × 5 kernels after two epochs on 2,000 images, and what they and the pooling make of one image."""
    data = fn.datasets.mnist_subset()
    net = fn.Network(
        fn.Conv(8, 5, fn.relu), fn.MaxPool(2), fn.Flatten(), fn.Dense(10, fn.softmax)
    )  # 28 × 28 -> 24 × 24 -> 12 × 12
    params, _ = fn.fit(
        net, fn.log_likelihood, net.init(jax.random.key(0), (28, 28, 1)), (data.train[0][:2000], data.train[1][:2000]),
        key=jax.random.key(1), epochs=2, batch_size=10, optimizer=fn.sgd(0.05), progress=False,
    )  # fmt: skip
    image = data.test[0][:1]
    pooled = net[:2].apply(params[:2], image)[0]
    return {"image": image[0, ::2, ::2, 0], "kernels": params[0]["w"][:, :, 0], "pooled": pooled}


def draw_features(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(6.4, 2.2)
    for i in range(8):
        for row, of in enumerate(("kernels", "pooled")):
            ax = figure.add_subplot(2, 8, 8 * row + i + 1)
            shown = np.array(numbers[of])[:, :, i]
            top = np.abs(np.array(numbers[of])).max()
            of_row = {"cmap": "RdBu_r", "vmin": -top} if row == 0 else {"cmap": "gray", "vmin": 0}
            ax.imshow(shown, interpolation="none", vmax=top, **of_row)
            ax.set_axis_off()


# %% Section 7.2.2: the worked example of pooling.
def pooling() -> Numbers:
    delta = jnp.array([[2.0, 8.0], [4.0, 6.0]])[None, :, :, None]
    a = jnp.array([[9.0, 1, 0, 1], [1, 1, 2, 7], [0, 5, 1, 1], [2, 3, 8, 0]])[None, :, :, None]
    a_out = fn.MaxPool(2).apply({}, a)
    back = {"max": fn.unsample_max(delta, a, a_out, 2), "mean": fn.unsample_mean(delta, (4, 4), 2)}
    return {name: part[0, :, :, 0] for name, part in {"a": a, "pooled": a_out, "δ": delta, **back}.items()}


def draw_pooling(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(6.4, 2.1)
    titles = {
        "a": "a below", "pooled": "maxima", "δ": "δ above", "max": "max: δ at\nthe maximum", "mean": "mean: δ/4\neverywhere",
    }  # fmt: skip
    for ax, (name, title) in zip(figure.subplots(1, 5, width_ratios=[4, 2, 2, 4, 4]), titles.items(), strict=True):
        values = np.array(numbers[name])
        used = np.isin(values, numbers["pooled"]) if name == "a" else values != 0
        cells(ax, values, used, color="C0" if name in ("a", "pooled") else "C1", lines=2 if len(values) == 4 else 1)
        ax.set_title(title, fontsize=10)


def cells(ax: Any, values: Any, used: Any, *, color: str, lines: int = 1) -> None:
    """A matrix of numbers, those that are used on a ground of that colour, with a line after each so many."""
    n = len(values)
    for (j, k), value in np.ndenumerate(values):
        ax.fill([k, k + 1, k + 1, k], [-j, -j, -j - 1, -j - 1], color=color, alpha=0.35 if used[j, k] else 0.05, lw=0)
        ax.text(k + 0.5, -j - 0.5, f"{value:g}", ha="center", va="center", fontsize=9)
    for i in range(0, n + 1, lines):
        ax.plot([0, n], [-i, -i], color=color, lw=1)
        ax.plot([i, i], [0, -n], color=color, lw=1)
    ax.set(aspect="equal", xlim=(-0.05, n + 0.05), ylim=(-n - 0.05, 0.05))
    ax.set_axis_off()


# %% Recurrent networks: how far back the error reaches.
def credit() -> Numbers:
    """‖∂C_T/∂h_t‖ over ‖∂C_T/∂h_T‖ of three cells of 16 units, untrained, and of an LSTM that starts by remembering."""
    rng, numbers = np.random.default_rng(0), {}
    x, labels = jnp.asarray(rng.standard_normal((8, 20, 5)), jnp.float32), jnp.asarray(rng.integers(3, size=(8, 20)))
    for name, cell, bias in (("RNN", fn.RNN(16), 0), ("GRU", fn.GRU(16), 0), ("LSTM", fn.LSTM(16), 0),
                             ("LSTM, forget bias 3", fn.LSTM(16), 3)):  # fmt: skip
        net = fn.Network(cell, fn.Dense(3, fn.softmax))
        params = net.init(jax.random.key(0), (20, 5))
        if bias:
            params = ({**params[0], "b": params[0]["b"].at[16:32].set(bias)}, params[1])
        norms = diagnostics.credit_map(net, fn.log_likelihood, params, x, labels).mean(axis=0)[-1]
        numbers[name] = norms / norms[-1]
    return numbers


def draw_credit(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    for i, (name, sizes) in enumerate(numbers.items()):
        ax.semilogy(range(19, -1, -1), sizes, ".-", color=f"C{[0, 2, 3, 1][i]}", label=name)
    ax.invert_xaxis()
    ax.set(xlabel="steps back from the cost", ylabel="what is left of ∂C/∂h")
    ax.legend()


# %% Deep belief networks: what a Boltzmann machine has learned and what it dreams.
def boltzmann() -> Numbers:
    """Eight of 64 features after eight epochs, and eight chains of 500 steps from noise."""
    images = fn.datasets.mnist_subset().train[0]
    x = jnp.asarray(images.reshape(len(images), 784))
    params = rbm.init(jax.random.key(0), 784, 64, data=x)
    params, _ = rbm.fit(
        params, x, key=jax.random.key(1), epochs=8, batch_size=20, optimizer=fn.sgd(0.1, 0.5), progress=False
    )
    v = jax.random.bernoulli(jax.random.key(2), 0.5, (8, 784)).astype(x.dtype)
    for i in range(500):
        h = rbm.sample_hidden(params, jax.random.fold_in(jax.random.key(3), i), v)
        v = jax.random.bernoulli(jax.random.fold_in(jax.random.key(4), i), rbm.visible_means(params, h)).astype(x.dtype)
    return {
        "features": params["w"][:8].reshape(8, 28, 28),
        "samples": rbm.visible_means(params, h).reshape(8, 28, 28),
    }


def draw_boltzmann(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(6.4, 1.9)
    top = np.abs(np.array(numbers["features"])).max() / 2
    for i, image in enumerate([*numbers["features"], *numbers["samples"]]):
        ax = figure.add_subplot(2, 8, i + 1)
        of = {"cmap": "RdBu_r", "vmin": -top, "vmax": top} if i < 8 else {"cmap": "gray", "vmin": 0, "vmax": 1}
        ax.imshow(image, interpolation="none", **of)
        ax.set_axis_off()
