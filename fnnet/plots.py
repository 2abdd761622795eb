"""Pictures, by matplotlib (the extra ``fnnet[examples]``). Each function takes an ``ax`` and returns it. Colours are those of
matplotlib's style, so that ``plt.style.use("dark_background")`` is all that a dark screen needs."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .diagnostics import Alignment, Histograms
from .gradcheck import Report
from .layers import Layer
from .sweep import Sweep
from .training import History

try:
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import MaxNLocator
except ImportError as _error:
    raise ImportError(
        "fnnet.plots: expected matplotlib, got none; install it with pip install 'fnnet[examples]'"
    ) from _error

from .diagram import network

__all__ = [
    "alignment",
    "audit",
    "credit_map",
    "digits",
    "histograms",
    "learning_curves",
    "learning_speed",
    "maps",
    "misclassified",
    "network",
    "spectra",
]


def audit(report: Report, *, ax: Axes | None = None) -> Axes:
    """A report as a picture: for each equation of each layer the relative difference of manual and autodiff, and of each from
    float64, on a log scale; what failed in red. Exact agreement stands at the left edge.

    Args:
        report: from ``compare_gradients``, ``check_layer``, ``check_vjp`` or ``check_gradient``.
        ax: where to draw; a new figure by default.
    """
    rows = [row for row in report.rows if not np.isnan(row.difference)]
    if ax is None:
        ax = plt.figure(figsize=(7.5, 1.4 + 0.22 * len(rows)), layout="constrained").add_subplot()
    kinds = [
        ("difference", "isolated: manual against autodiff", "o", "C0"),
        ("chained", "in the network: manual against autodiff", "x", "C1"),
        ("manual_error", "manual against float64", "|", "C2"),
        ("autodiff_error", "autodiff against float64", "_", "C4"),
    ]
    places, exact = np.arange(len(rows)), 1e-18
    for name, label, marker, colour in kinds:
        values = np.array([getattr(row, name) for row in rows])
        if np.isfinite(values).any():
            shown = np.clip(np.where(np.isnan(values), np.nan, np.nan_to_num(values, posinf=10)), exact, 10)
            style: dict[str, Any] = {"mfc": "none"} if marker == "o" else {}
            ax.plot(shown, places, marker, color=colour, label=label, ms=7, **style)
    ax.set_xscale("log")
    ax.set_xlim(exact / 3, 30)
    ax.set_xticks(
        [exact, 1e-15, 1e-12, 1e-9, 1e-6, 1e-3, 1], ["0", *(f"$10^{{{n}}}$" for n in (-15, -12, -9, -6, -3)), "1"]
    )
    ax.set_yticks(places, [" ".join(filter(None, (row.layer, row.equation, row.leaf))) for row in rows], fontsize=8)
    for label, row in zip(ax.get_yticklabels(), rows, strict=True):
        if row.verdict in ("fail", "consequence"):
            label.set(color="C3", weight="bold" if row.verdict == "fail" else "normal")
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.08 - 0.6 / (3 + len(rows))), ncols=2, frameon=False
    )
    failed = sum(row.verdict == "fail" for row in report.rows)
    verdict = "all agree" if report.ok else f"{failed} failed"
    ax.set(
        xlabel="relative difference (of the largest entry)",
        title=f"Manual against autodiff in {report.dtype}: {verdict}",
    )
    return ax


def learning_curves(
    history: History | Sweep, *, of: str = "cost", label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Cost or accuracy by epoch, on training (dotted) and, where monitored, validation data, with the epoch marked at which
    validation turns. Of many networks the mean, in a band of one standard deviation, without those that diverged.

    Args:
        history: from ``fit``; or from ``sweep``, all its networks together.
        of: "cost" (in nats or squared units, as the cost is) or "accuracy" (in per cent).
        label: a name for a single line, before those of two, to draw several histories into one ``ax``.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for another ``of``, or a history without it.
    """
    if of not in ("cost", "accuracy"):
        raise ValueError(f"learning_curves: expected of='cost' or of='accuracy', got {of!r}")
    curves = {"training": getattr(history, of), "validation": getattr(history, f"validation_{of}")}
    curves = {name: np.asarray(values) for name, values in curves.items() if values is not None and np.size(values)}
    if not curves:
        raise ValueError(f"learning_curves: expected a history with {of}, got none; let fit monitor it")
    ax = plt.figure(figsize=(5, 3.5), layout="constrained").add_subplot() if ax is None else ax
    scale, colour = (100 if of == "accuracy" else 1), None
    for name, values in reversed(curves.items()):
        runs = scale * values.reshape(-1, values.shape[-1])
        finished = np.isfinite(runs).all(axis=1)
        some, total = 0 < finished.sum() < len(runs), len(runs)
        runs = runs[finished] if some else runs
        epochs, mean = np.arange(1, runs.shape[1] + 1), runs.mean(axis=0)
        style = "-" if name == "validation" or len(curves) == 1 else ":"
        shown = name if label is None else label if len(curves) == 1 else f"{label}, {name}"
        shown += f", {len(runs)} of {total} networks" if some else ""
        (line,) = ax.plot(epochs, mean, style, marker="." if len(mean) < 40 else "", label=shown, color=colour)
        colour = line.get_color()
        if len(runs) > 1:
            spread = runs.std(axis=0, ddof=1)
            ax.fill_between(epochs, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
        if name == "validation" and np.isfinite(mean).any():
            turn = (np.nanargmax if of == "accuracy" else np.nanargmin)(mean)
            ax.plot(turn + 1, mean[turn], "o", color=colour, mfc="none", ms=10)
            best = f"{mean[turn]:.4g}{' %' * (of == 'accuracy')}, epoch {turn + 1}"
            line.set_label(f"{shown} (best {best})")
    ax.set(xlabel="epoch", ylabel="accuracy (%)" if of == "accuracy" else "cost C", title=f"{of.capitalize()} by epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def alignment(
    watched: Alignment, *, of: str = "gradient", labels: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """The angle between each layer's gradient (or error) and the true one by epoch, with a line at 90°, below which a rule's
    gradient lowers the cost. Layers without an angle are left out.

    Args:
        watched: ``history.watched`` of ``fit(..., watch=f)`` where f returns `fnnet.diagnostics.alignment`.
        of: "gradient" or "error".
        labels: the layers' names; "layer 0", ... by default.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for another ``of``, something else than a watched alignment, or another number of labels.
    """
    if of not in ("gradient", "error"):
        raise ValueError(f"alignment: expected of='gradient' or of='error', got {of!r}")
    if not isinstance(watched, Alignment) or np.ndim(watched.error_angle) != 2:
        got = f"angles of shape {np.shape(watched.error_angle)}" if isinstance(watched, Alignment) else repr(watched)
        raise ValueError(
            f"alignment: expected angles (epochs, layers), got {got}; give history.watched of fit(..., watch=lambda params: "
            f"fn.diagnostics.alignment(net, cost, params, x, y))"
        )
    angles = np.asarray(getattr(watched, f"{of}_angle"), float)
    names = _names("alignment", labels, angles.shape[1])
    ax = plt.figure(figsize=(5, 3.5), layout="constrained").add_subplot() if ax is None else ax
    epochs = np.arange(1, len(angles) + 1)
    for name, line in zip(names, angles.T, strict=True):
        if np.isfinite(line).any():
            ax.plot(epochs, line, marker="." if len(line) < 40 else "", label=name)
    ax.axhline(90, color="0.6", ls=":", label="no relation (90°)")
    ax.set(xlabel="epoch", ylabel="angle (degrees)", title=f"{of.capitalize()} against the true one", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def learning_speed(
    sizes: Any, *, epochs: Any = None, labels: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """The size of each layer's error over training, on a log scale: which layers learn and which hardly do.

    Args:
        sizes: (times, L), one of the fields of `fnnet.diagnostics.learning_speed` at several times.
        epochs: (times,), when; 0, 1, 2, ... by default.
        labels: the layers' names; "layer 0", ... by default.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for sizes of another rank, or another number of labels.
    """
    sizes = np.asarray(sizes, float)
    if sizes.ndim != 2:
        raise ValueError(f"learning_speed: expected sizes (times, layers), got {sizes.shape}; stack them over time")
    ax = plt.figure(figsize=(5, 3.5), layout="constrained").add_subplot() if ax is None else ax
    when = np.arange(len(sizes)) if epochs is None else np.asarray(epochs)
    for name, size in zip(_names("learning_speed", labels, sizes.shape[1]), sizes.T, strict=True):
        ax.semilogy(when, np.where(size > 0, size, np.nan), marker="." if len(when) < 40 else "", label=name)
    ax.set(xlabel="epoch", ylabel="size of δ (cost per unit of z)", title="Learning speed by layer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def histograms(histograms: Histograms, *, labels: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """The values of each layer, one above the other, each scaled to its own highest bin; layers without values are left out.

    Args:
        histograms: from `fnnet.diagnostics.histograms`.
        labels: the layers' names; "layer 0", ... by default.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: where no layer has values, or for another number of labels.
    """
    counts, edges = np.asarray(histograms.counts, float), np.asarray(histograms.edges)
    filled = np.flatnonzero(counts.sum(axis=1) > 0).tolist()
    if not filled:
        raise ValueError("histograms: expected values in at least one layer, got none")
    if ax is None:
        ax = plt.figure(figsize=(5, 1 + 0.8 * len(filled)), layout="constrained").add_subplot()
    for row, l in enumerate(filled):
        ax.stairs(
            row + 0.9 * counts[l] / counts[l].max(), edges[l], baseline=row, fill=True, color=f"C{row}", alpha=0.7
        )
        ax.axhline(row, color=f"C{row}", lw=0.8)
    names = _names("histograms", labels, len(counts))
    ax.set_yticks(np.arange(len(filled)), [names[l] for l in filled])
    ax.set(xlabel="value", ylabel="count (over the highest bin's)", title="Values by layer", ylim=(-0.05, len(filled)))
    ax.grid(axis="x", alpha=0.3)
    return ax


def spectra(values: Any, *, label: str | None = None, ax: Axes | None = None) -> Axes:
    """Singular values by rank on a log scale: the median over examples, in a band from the lowest tenth to the highest.
    Examples whose values are not finite are left out.

    Args:
        values: (m, k), from `fnnet.diagnostics.singular_values`.
        label: the line's name, to draw several layers into one ``ax``.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for values of another rank, or that are not finite for any example.
    """
    values = np.asarray(values, float)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all(axis=1).any():
        raise ValueError(f"spectra: expected finite singular values (m, k), got\n{values} of shape {values.shape}")
    ax = plt.figure(figsize=(5, 3.5), layout="constrained").add_subplot() if ax is None else ax
    low, middle, high = np.quantile(values[np.isfinite(values).all(axis=1)], [0.1, 0.5, 0.9], axis=0)
    middle = np.where(middle > 0, middle, np.nan)
    rank = np.arange(1, values.shape[1] + 1)
    (line,) = ax.semilogy(rank, middle, marker=".", label=label)
    ax.fill_between(rank, low, high, color=line.get_color(), alpha=0.2, lw=0)
    ax.set(xlabel="rank", ylabel="singular value", title="What backpropagation does to an error")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    if label is not None:
        ax.legend(fontsize=8)
    return ax


def digits(
    images: Any, labels: Any = None, predictions: Any = None, *, columns: int = 8, ax: Axes | None = None
) -> Axes:
    """Images in a grid, each with its prediction, and its label where the prediction is wrong.

    Args:
        images: (m, H, W, 1) or (m, H, W), from 0 to 1.
        labels: (m,) true classes.
        predictions: (m,) predicted classes.
        columns: images in a row.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for images of another rank.
    """
    images = np.asarray(images)
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (1,)):
        raise ValueError(f"digits: expected images (m, H, W, 1) or (m, H, W), got {images.shape}")
    m, height, width = images.shape[:3]
    rows, gap = -(-m // columns), height // 3
    if ax is None:
        ax = plt.figure(figsize=(columns * 0.9, rows * 1.15), layout="constrained").add_subplot()
    canvas = np.full((rows * (height + gap), columns * (width + 2)), np.nan)
    for i, image in enumerate(images.reshape(m, height, width)):
        top, left = i // columns * (height + gap) + gap, i % columns * (width + 2)
        canvas[top : top + height, left : left + width] = 1 - image
        if predictions is None and labels is None:
            continue
        shown = labels if predictions is None else predictions
        wrong = labels is not None and predictions is not None and labels[i] != predictions[i]
        text = f"{shown[i]}, is {labels[i]}" if wrong else f"{shown[i]}"  # pyright: ignore[reportOptionalSubscript]
        style: dict[str, Any] = {"color": "C3", "weight": "bold"} if wrong else {}
        ax.text(left + width / 2, top - 1, text, ha="center", va="bottom", fontsize=8, **style)
    ax.imshow(canvas, cmap="gray", vmin=0, vmax=1)
    ax.set_axis_off()
    if labels is not None and predictions is not None:
        right = np.sum(np.asarray(labels) == np.asarray(predictions))
        ax.set_title(f"Predicted classes: {right} of {m} right")
    return ax


def misclassified(
    net: Layer, params: Any, data: tuple[Any, Any], *, most: int = 40, columns: int = 8, ax: Axes | None = None
) -> Axes:
    """The images that a network takes for something else, those first of which it is surest.

    Args:
        net: a network whose outputs are scores of classes.
        params: its parameters.
        data: (images, labels), images (m, H, W, 1).
        most: how many to show at most.
        columns: images in a row.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for labels that are no integers (m,), or no images.
    """
    images, labels = (np.asarray(part) for part in data[:2])
    if not len(images) or labels.shape != images.shape[:1]:
        raise ValueError(
            f"misclassified: expected images and a label for each, got shapes {images.shape} and {labels.shape}"
        )
    scores = np.concatenate([np.asarray(net.apply(params, images[i : i + 1000])) for i in range(0, len(images), 1000)])
    predictions = np.where(np.isnan(scores).any(axis=1), -1, scores.argmax(axis=1))  # NaN names no class
    wrong = np.flatnonzero(predictions != labels)
    surest = wrong[np.argsort(-scores.max(axis=1)[wrong], kind="stable")][:most]
    if surest.size:
        ax = digits(images[surest], labels[surest], predictions[surest], columns=columns, ax=ax)
    elif ax is None:
        ax = plt.figure(figsize=(5, 1), layout="constrained").add_subplot()
    ax.set_axis_off()
    ax.set_title(f"{len(wrong)} of {len(images)} images taken for something else")
    return ax


def _names(function: str, labels: Sequence[str] | None, n: int) -> Sequence[str]:
    """The layers' names."""
    if labels is not None and len(labels) != n:
        raise ValueError(f"{function}: expected labels for {n} layers, got {len(labels)}")
    return [f"layer {l}" for l in range(n)] if labels is None else labels


def maps(values: Any, *, columns: int = 10, ax: Axes | None = None) -> Axes:
    """Kernels or feature maps side by side in one grid and on one scale: blue below 0, red above, or grey where none is
    negative.

    Args:
        values: (H, W, n), as ``params[0]["w"][:, :, 0]`` or one image of a layer's outputs are.
        columns: maps in a row.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for values of another rank.
    """
    values = np.asarray(values)
    if values.ndim != 3:
        raise ValueError(f"maps: expected values (H, W, n), got {values.shape}")
    height, width, n = values.shape
    columns = min(columns, n)
    rows, gap = -(-n // columns), max(1, width // 12)
    if ax is None:
        ax = plt.figure(figsize=(columns * 0.8, rows * 0.85), layout="constrained").add_subplot()
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i in range(n):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = values[:, :, i]
    largest = float(np.abs(values).max(initial=0))
    signed = bool((values < 0).any())
    shown = ax.imshow(canvas, cmap="RdBu_r" if signed else "gray", vmin=-largest if signed else 0, vmax=largest)
    ax.figure.colorbar(shown, ax=ax, shrink=0.8)
    ax.set_axis_off()
    return ax


def credit_map(
    norms: Any, *, label: str | None = None, span: tuple[float, float] | None = None, ax: Axes | None = None
) -> Axes:
    """‖∂C_τ/∂h_t‖ on a log scale: an image with a row for each step τ whose cost it is and a column for each step t, or a
    line over t where there is one cost only.

    Args:
        norms: (τ, t): an example of `fnnet.diagnostics.credit_map`, or the mean over examples.
        label: the line's name.
        span: the colour scale's ends; by default six decades below the largest norm.
        ax: where to draw; a new figure by default.

    Raises:
        ValueError: for norms of another rank.
    """
    norms = np.asarray(norms, float)
    if norms.ndim != 2:
        raise ValueError(
            f"credit_map: expected norms (τ, t), got {norms.shape}; take an example or the mean over axis 0"
        )
    ax = plt.figure(figsize=(5, 4), layout="constrained").add_subplot() if ax is None else ax
    if len(norms) == 1:
        ax.semilogy(np.arange(1, norms.shape[1] + 1), np.where(norms[0] > 0, norms[0], np.nan), label=label)
        ax.set(xlabel="step t", ylabel="‖∂C/∂h_t‖", title="What the state at step t counts")
        ax.grid(alpha=0.3)
        if label is not None:
            ax.legend(fontsize=8)
        return ax
    top = max(float(norms[np.isfinite(norms)].max(initial=0)), 1e-30)
    low, high = (1e-6 * top, top) if span is None else span
    shown = ax.imshow(
        np.where((norms > 0) & np.isfinite(norms), norms, np.nan),
        norm=LogNorm(low, high),
        cmap="viridis",
        extent=(0.5, norms.shape[1] + 0.5, len(norms) + 0.5, 0.5),
    )
    ax.figure.colorbar(shown, ax=ax, shrink=0.8)
    ax.set(xlabel="step t", ylabel="cost of step τ", title="‖∂C_τ/∂h_t‖" if label is None else label)
    return ax
