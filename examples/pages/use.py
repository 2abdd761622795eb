"""The pictures of the pages under Use, and of what was measured."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

import fnnet as fn

from .learn import Numbers

DOCS = Path(__file__).parent.parent.parent / "docs"


# %% The audit of a network: one wrong sign.
@fn.layer
class WrongSign(fn.Dense):
    def propagate(self, params, cache, delta):
        return -super().propagate(params, cache, delta)


def fault_report() -> fn.Report:
    net = fn.Network(fn.Dense(6, fn.tanh), WrongSign(3, fn.softmax))
    params, x = net.init(jax.random.key(0), (4,)), jax.random.normal(jax.random.key(1), (8, 4))
    return fn.compare_gradients(net, fn.log_likelihood, params, x, jnp.arange(8) % 3)


def fault() -> Numbers:
    """For each row its difference, isolated and in the network, and whether it is a cause (2), a consequence (1) or right."""
    of = {"fail": 2, "consequence": 1}
    return {
        " ".join(filter(None, (row.layer, row.equation, row.leaf))): np.nan_to_num(
            [row.difference, row.chained, of.get(row.verdict, 0)]
        )
        for row in fault_report().rows
    }


def draw_fault(numbers: Numbers, figure: Any) -> None:
    from fnnet import plots

    figure.set_size_inches(4.8, 4.6)
    ax = plots.audit(fault_report(), ax=figure.add_subplot())
    ax.set(title="", xlabel="relative difference")
    ax.set_xticks([1e-18, 1e-12, 1e-6, 1], ["0", "$10^{-12}$", "$10^{-6}$", "1"])
    for label in ax.get_yticklabels():
        if label.get_color() == "C3":
            label.set_color("C1")
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    ax.get_legend().remove()
    figure.legend(loc="outside lower center", fontsize=9)


# %% For authors of kernels: a rule that forgets a path, entry by entry.
def swiglu() -> Numbers:
    """Manual and autodiff gradients of all 32 entries of both arguments of a SwiGLU whose rule leaves a path out."""
    a, b = jax.random.normal(jax.random.key(0), (2, 4, 8))
    s = jax.nn.sigmoid(a)
    _, pull = jax.vjp(lambda a, b: a * jax.nn.sigmoid(a) * b, a, b)
    g = jax.random.normal(jax.random.key(1), (4, 8))
    found = zip("ab", (g * b * s, g * a * s), pull(g), strict=True)
    return {
        f"{name} {by}": of.ravel() for name, *both in found for by, of in zip(("rule", "autodiff"), both, strict=True)
    }


def draw_swiglu(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(5.2, 2.8)
    axes = figure.subplots(1, 2)
    for ax, (name, color, verdict) in zip(axes, (("a", "C1", "fail"), ("b", "C0", "pass")), strict=True):
        ax.axline((0, 0), slope=1, lw=0.8, color=ax.xaxis.label.get_color(), alpha=0.6)
        ax.plot(numbers[f"{name} autodiff"], numbers[f"{name} rule"], "o", color=color, ms=4, mfc="none")
        ax.set(xlabel=f"∂C/∂{name} by autodiff", ylabel="by the rule", title=f"args[{'ab'.index(name)}]: {verdict}")
        ax.set(aspect="equal", adjustable="datalim")


# %% The audit: what finite differences can see, and what it sees.
def differences() -> Numbers:
    """log10 of the relative error of central differences by their step, and of the gradient by hand, in both precisions: the
    median over 32 random directions, against the gradient by hand in float64."""
    net = fn.Network(fn.Dense(30, fn.tanh), fn.Dense(10, fn.softmax))
    objective, gradient = fn.objective(net, fn.log_likelihood), fn.value_and_grad(net, fn.log_likelihood)
    steps, exact = 10.0 ** np.arange(-12, 0.5, 0.5), None
    numbers: Numbers = {"step": steps}
    for dtype in (jnp.float64, jnp.float32):
        with jax.enable_x64(True):
            keys = jax.random.split(jax.random.key(1), 33)
            params, x, *directions = jax.tree.map(
                lambda p, dtype=dtype: p.astype(dtype),
                [net.init(keys[0], (20,)), jax.random.normal(jax.random.key(0), (16, 20))]
                + [net.init(key, (20,)) for key in keys[1:]],
            )
            y, v = jnp.arange(16) % 10, jax.tree.map(lambda *parts: jnp.stack(parts), *directions)

            def change(v, h, params=params, x=x, y=y):
                def cost(h):
                    return objective(jax.tree.map(lambda p, u: p + h.astype(p.dtype) * u, params, v), x, y)

                return (cost(h) - cost(-h)).astype(h.dtype) / (2 * h)

            by_difference = jax.jit(jax.vmap(jax.vmap(change, (0, None)), (None, 0)))(v, jnp.asarray(steps))
            leaves = zip(jax.tree.leaves(gradient(params, x, y)[1]), jax.tree.leaves(v), strict=True)
            by_hand = sum(jnp.tensordot(d, g, g.ndim) for g, d in leaves)
        exact = np.asarray(by_hand) if exact is None else exact
        numbers[f"{jnp.dtype(dtype)}"] = deviation(by_difference, exact)
        numbers["by hand"] = [*numbers.get("by hand", []), deviation(by_hand, exact)]
    return numbers


def deviation(found: Any, exact: np.ndarray) -> np.ndarray:
    """log10 of the relative deviation, the median over the last axis."""
    return np.log10(np.maximum(np.median(np.abs(np.asarray(found, float) / exact - 1), axis=-1), 1e-16))


def draw_differences(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    for name, color in (("float32", "C1"), ("float64", "C0")):
        ax.loglog(numbers["step"], 10 ** np.array(numbers[name]), ".-", color=color, label=f"differences, {name}")
    ax.axhline(10 ** numbers["by hand"][1], color="C1", ls="--", lw=1.2, label="by hand, float32")
    ax.set(xlabel="step h of the difference", ylabel="relative error", ylim=(1e-12, 30))
    figure.legend(loc="outside upper center", ncols=2, fontsize=10)


# %% An own layer: the gated residual of the page as the library draws it.
def gated_network() -> fn.Layer:
    product = fn.Join("×", lambda s, t: s * t, lambda da, s, t: (da * t, da * s))
    gate = fn.Parallel(fn.Dense(5, fn.sigmoid), fn.Dense(5, fn.tanh), join=product)
    return fn.Residual(gate)


def gated() -> Numbers:
    return {"parameters": [row.parameters for row in fn.summary(gated_network(), (5,)).rows]}


def draw_gated(numbers: Numbers, figure: Any) -> None:
    from fnnet import plots

    figure.set_size_inches(5.2, 3.1)
    plots.network(gated_network(), (5,), ax=figure.add_subplot()).set_title("")


# %% An own cost: Huber's, and a line through points with two outliers.
def huber_cost() -> fn.Cost:
    def terms(a, y):
        r = jnp.abs(a - y)
        return jnp.where(r <= 1, r**2 / 2, r - 0.5)

    return fn.Cost("huber", terms, lambda a, y: jnp.clip(a - y, -1, 1))


def huber() -> Numbers:
    """Both costs and their slopes over a − y; twenty points, two of them moved, and the lines that both costs fit."""
    r, zero = jnp.linspace(-3, 3, 61)[:, None], jnp.zeros((61, 1))
    x = jnp.linspace(-1, 1, 20)[:, None]
    y = (2 * x + 0.3 * jax.random.normal(jax.random.key(0), x.shape)).at[jnp.array([2, 4])].add(6.0)
    net, numbers = fn.Dense(1, fn.linear), {"r": r[:, 0], "x": x[:, 0], "y": y[:, 0]}
    for cost in (fn.quadratic, huber_cost()):
        gradient, params = fn.value_and_grad(net, cost), {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
        params = jax.lax.fori_loop(
            0, 500,
            lambda _, p, gradient=gradient: jax.tree.map(lambda p, g: p - 0.3 * g, p, gradient(p, x, y)[1]), params,
        )  # fmt: skip
        numbers |= {f"{cost.name} slope": cost.gradient(r, zero)[:, 0], f"{cost.name} line": net.apply(params, x)[:, 0]}
    return numbers


def draw_huber(numbers: Numbers, figure: Any) -> None:
    left, right = figure.subplots(1, 2)
    right.plot(numbers["x"], numbers["y"], "o", color=left.xaxis.label.get_color(), ms=3.5, mfc="none")
    for name, color, style in (("quadratic", "C1", "--"), ("huber", "C0", "-")):
        left.plot(numbers["r"], numbers[f"{name} slope"], style, color=color, label=name.capitalize())
        right.plot(numbers["x"], numbers[f"{name} line"], style, color=color)
    left.set(xlabel="a − y", ylabel="∂C/∂a")
    right.set(xlabel="x", ylabel="y, and the fitted line")
    left.legend()


# %% Long runs: stopped after five epochs and gone on with, beside the undisturbed run and one that forgot its state.
def resumed() -> Numbers:
    """The training cost by epoch, Adam and dropout: undisturbed, resumed, and restarted from the parameters alone."""
    data = fn.datasets.mnist_subset()
    net = fn.Network(fn.Flatten(), fn.Dense(30, fn.sigmoid), fn.Dropout(0.2), fn.Dense(10, fn.softmax))
    start = net.init(jax.random.key(0), (28, 28, 1))

    def run(epochs, params=start, **given):
        params, history = fn.fit(
            net, fn.log_likelihood, params, (data.train[0][:500], data.train[1][:500]), key=jax.random.key(1),
            epochs=epochs, batch_size=10, optimizer=fn.adam(1e-2), progress=False, **given,
        )  # fmt: skip
        return params, np.asarray(history.cost)

    with tempfile.TemporaryDirectory() as folder:
        params, before = run(5, checkpoint=folder)
        _, resumed = run(12, checkpoint=folder, resume=folder)
    return {"undisturbed": run(12)[1], "before": before, "resumed": resumed[5:], "restarted": run(7, params)[1]}


def draw_resumed(numbers: Numbers, figure: Any) -> None:
    ax, after = figure.add_subplot(), range(6, 13)
    ax.semilogy(range(1, 13), numbers["undisturbed"], color="C0", label="undisturbed", lw=1)
    ax.semilogy(range(1, 6), numbers["before"], "o", color="C2", ms=5, label="before the stop")
    ax.semilogy(after, numbers["resumed"], "o", color="C0", ms=6, mfc="none", label="resumed")
    ax.semilogy(after, numbers["restarted"], "x:", color="C1", ms=6, label="parameters only")
    ax.axvline(5.5, lw=0.8, ls="--", color=ax.xaxis.label.get_color())
    ax.set(xlabel="epoch", ylabel="training cost C (nats)", xticks=[1, 5, 6, 12])
    figure.legend(loc="outside right upper", fontsize=10)


# %% Many devices: what is sent in a step, by the size of the batch.
BATCHES = 2 ** np.arange(3, 15)


def sent() -> Numbers:
    """Bytes that a device sends in a step of 784-1000-1000-10, float32: on 8 × 1, and on 4 × 2 with the parameters cut."""
    net = fn.Network(fn.Dense(1000, fn.relu), fn.Dense(1000, fn.relu), fn.Dense(10, fn.softmax))
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), (784,)))
    cut = ({"w": P("model", None), "b": P("model")}, {"w": P(None, "model"), "b": P()}, P())
    numbers: Numbers = {"batch": BATCHES}
    for name, specs, mesh in (
        ("whole", P(), {"data": 8}), ("cut", cut, {"data": 4, "model": 2}), ("model only", cut, {"data": 1, "model": 8}),
    ):  # fmt: skip
        numbers[name] = [
            sum(row.bytes for row in fn.collectives(net, params, specs, shape=(int(m), 784), mesh=mesh).rows)
            for m in BATCHES
        ]
    return numbers


def draw_sent(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    labels = {"whole": "data 8", "cut": "data 4 × model 2", "model only": "model 8"}
    for i, (name, label) in enumerate(labels.items()):
        ax.loglog(numbers["batch"], np.array(numbers[name]) / 2**20, ".-", color=f"C{i}", label=label)
    ax.set(xlabel="examples in the batch", ylabel="sent in a step (MiB)")
    ax.legend(title="mesh")


# %% From other libraries: what a decay touches.
def decay() -> Numbers:
    """The size of w, b and g over 100 steps of AdamW (η 0.1, decay 0.1) without any gradient, over that at the start."""
    import optax

    net = fn.Network(fn.Dense(5, fn.tanh), fn.LayerNorm(), fn.Dense(3, fn.softmax))
    ones = jax.tree.map(jnp.ones_like, net.init(jax.random.key(0), (4,)))
    zero, numbers = jax.tree.map(jnp.zeros_like, ones), {}
    for name, optimizer in (("fnnet", fn.adamw(0.1, weight_decay=0.1)), ("optax", optax.adamw(0.1, weight_decay=0.1))):

        def step(given, _, optimizer=optimizer):
            params, state = given
            updates, state = optimizer.update(zero, state, params)
            after = fn.apply_updates(params, updates)
            return (after, state), (after[0]["w"][0, 0], after[0]["b"][0], after[1]["g"][0])

        sizes = jax.lax.scan(step, (ones, optimizer.init(ones)), length=100)[1]
        numbers |= {f"{name} {leaf}": size for leaf, size in zip("wbg", sizes, strict=True)}
    return numbers


def draw_decay(numbers: Numbers, figure: Any) -> None:
    for ax, name in zip(figure.subplots(1, 2, sharey=True), ("fnnet", "optax"), strict=True):
        for i, (leaf, style) in enumerate(zip("wbg", ("-", "--", ":"), strict=True)):
            ax.plot(range(1, 101), numbers[f"{name} {leaf}"], style, color=f"C{i}", lw=2, label=f"{leaf}")
        ax.set(xlabel="step", title=f"{name}.adamw", ylim=(0, 1.1))
        ax.legend(loc="lower left")
    figure.axes[0].set_ylabel("size (1 at the start)")


# %% As an ordinary function: what crosses the border.
def inside() -> Numbers:
    """Shapes at the border of the page's network, and m, by which its gradients are multiplied on their way out."""
    net = fn.Network(fn.Conv(4, 3, fn.tanh), fn.MaxPool(2), fn.Flatten(), fn.Dense(3, fn.sigmoid))
    params, x = net.init(jax.random.key(0), (8, 8, 1)), jax.random.normal(jax.random.key(1), (5, 8, 8, 1))
    a, pull = jax.vjp(fn.as_function(net), params, x)
    g = jax.random.normal(jax.random.key(2), a.shape)
    by_hand = net.backward(params, net.forward(params, x, train=True)[1], g)[1]
    ratio = jnp.vdot(pull(g)[0][0]["w"], by_hand[0]["w"]) / jnp.vdot(by_hand[0]["w"], by_hand[0]["w"])
    return {"x": x.shape, "a": a.shape, "factor": [ratio]}


def draw_inside(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(4.9, 2.5)
    ax = figure.add_subplot()
    ink = ax.xaxis.label.get_color()
    for x, text, color, style in ((0, "their model\nbefore", ink, ":"), (4, "fn.as_function(net)\n\nby hand", "C0", "-"),
                                  (8, "their model\nafter", ink, ":")):  # fmt: skip
        width = 3 if style == "-" else 1.9
        ax.fill(
            [x - width / 2, x + width / 2, x + width / 2, x - width / 2],
            [-0.9, -0.9, 0.9, 0.9],
            fill=False,
            ec=color,
            ls=style,
        )
        ax.text(x, 0, text, ha="center", va="center", fontsize=9.5, color=color)
    for x, name, back in ((1, "x", r"\partial C/\partial x"), (5.6, "a", r"\partial C/\partial a")):
        shape, end = "×".join(f"{n:g}" for n in numbers[name]), x + 1.4
        for y, start, stop, color in ((0.45, x, end, "C0"), (-0.45, end, x, "C1")):
            ax.annotate("", (stop, y), (start, y), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.3})
        ax.text(x + 0.7, 0.72, f"${name}$", ha="center", color="C0", fontsize=12)
        ax.text(x + 0.7, 0, shape, ha="center", va="center", fontsize=8.5)
        ax.text(x + 0.7, -1, f"${back}$", ha="center", color="C1", fontsize=12)
    ax.annotate("", (4, -1.9), (4, -0.95), arrowprops={"arrowstyle": "-|>", "color": "C1", "lw": 1.3})
    factor = f"{numbers['factor'][0]:g}"
    ax.text(4, -2.3, f"∂C/∂params = {factor} × gradients", ha="center", fontsize=10, color="C1")
    ax.annotate("", (4, 0.95), (4, 1.7), arrowprops={"arrowstyle": "-|>", "color": "C0", "lw": 1.3})
    ax.text(4, 1.85, "params", ha="center", fontsize=10, color="C0")
    ax.set(xlim=(-1.1, 9.1), ylim=(-2.5, 2.3))
    ax.set_axis_off()


# %% Benchmarks: every row of the tables, from their files.
def ratios() -> Numbers:
    """jax.grad's time over the time by hand: value and gradient, the same forward pass, all rows, both versions of JAX."""
    found: dict[str, dict[str, list[float]]] = {}
    for path in sorted((DOCS / "benchmarks").glob("*.json")):
        document = json.loads(path.read_text())
        for row in (row for run in document["runs"] for row in run["rows"]):
            measured = row["kinds"].get("value and gradient", {}).get("jax.grad, same forward")
            if measured:
                of_group = found.setdefault(row["group"], {}).setdefault(document["machine"]["jax"], [])
                of_group.append(measured["ratio"][1])
    return {f"{group}, {jax}": sorted(values) for group, versions in found.items() for jax, values in versions.items()}


def draw_ratios(numbers: Numbers, figure: Any) -> None:
    ax = figure.add_subplot()
    groups = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in numbers))
    versions = list(dict.fromkeys(name.rsplit(", ", 1)[1] for name in numbers))
    for i, version in enumerate(versions):
        places = [groups.index(name.rsplit(", ", 1)[0]) + 0.24 * i - 0.12 for name in numbers if name.endswith(version)]
        values = [values for name, values in numbers.items() if name.endswith(version)]
        xs, ys = np.concatenate(values), np.repeat(places, [len(v) for v in values])
        ax.semilogx(xs, ys, "o", color=f"C{1 - i}", ms=5, mfc="none", label=f"JAX {version}")
    ax.axvline(1, lw=0.8, ls="--", color=ax.xaxis.label.get_color())
    ax.set_yticks(range(len(groups)), groups)
    ax.set_xticks([0.5, 1, 2, 4, 8], ["0.5", "1", "2", "4", "8"])
    ax.minorticks_off()
    ax.invert_yaxis()
    ax.set(xlabel="jax.grad's time over the time by hand")
    figure.legend(loc="outside upper right", ncols=2, fontsize=10)


# %% Results: training sets of n images, the published curve and this library's.
def sizes() -> Numbers:
    """The table of results.md: validation accuracies (%), published and of twenty seeds with their standard deviation."""
    page = (DOCS / "results.md").read_text()

    def row(name):
        cells = re.search(rf"^\| {re.escape(name)} \|(.*)\|$", page, re.MULTILINE)[1].split("|")
        return [[float(v) for v in cell.replace(",", "").split("±")] for cell in cells]

    mean, deviation = zip(*row("fnnet (%)"), strict=True)
    return {"n": np.ravel(row("n")), "published": np.ravel(row("published (%)")), "mean": mean, "deviation": deviation}


def draw_sizes(numbers: Numbers, figure: Any) -> None:
    figure.set_size_inches(5.2, 3.8)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    n, mean, published = (np.array(numbers[name]) for name in ("n", "mean", "published"))
    top.plot(n, mean, ".-", color="C0", label="fnnet, mean of 20 seeds")
    top.plot(n, published, "x", color="C1", ms=7, label="published, one run")
    top.set(xscale="log", ylabel="accuracy (%)")
    top.legend(loc="lower right")
    bottom.errorbar(n, 0 * n, 2 * np.array(numbers["deviation"]), fmt=".", color="C0", capsize=3)
    bottom.plot(n, published - mean, "x", color="C1", ms=7)
    bottom.axhline(0, color="C0", lw=0.8)
    bottom.set(xlabel="training images", ylabel="difference\n(points)", ylim=(-1, 1))
    bottom.set_xticks([100, 1000, 10000, 50000], ["100", "1,000", "10,000", "50,000"])
    bottom.minorticks_off()
