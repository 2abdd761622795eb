"""The rows: every layer that matters, every cost, whole networks and energy models, each at its full and at a small size."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

import fnnet as fn

from . import networks
from .problems import Problem, Shape, of_layer, of_machine, of_network


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        name: of the row.
        group: of rows that are measured and shown together.
        problem: (quick, dtype) -> its `Problem`; (quick, dtype, steps) for other than its usual number of steps.
        more: how many times the FLOPs of ``jax.grad`` of the same forward pass the hand-written value and gradient may have,
            and why.
        quick: whether it is in the quick run; not where another row is the same at the small size.
    """

    name: str
    group: str
    problem: Callable[..., Problem]
    more: tuple[float, str] = (1.0, "")
    quick: bool = True


LOOP = "XLA counts the body of a loop once, and the backward loop of autodiff holds products that are outside of it by hand"
TAPS = 1.01, "a product over all windows' entries, padding included, which XLA leaves out of its count of a convolution"
BOOK = TAPS if jax.__version_info__ < (0, 11) else (1.0, "")  # JAX 0.12 makes 2 % less of what is no product
CHOSEN = (
    1.03,
    "a comparison and a choice for each entry beside the label's, where autodiff adds to one place, and 1/m for each of δ",
)
AGAIN = 1.2, "what the backward pass needs is computed again, in exchange for memory"


def layer(
    name: str, group: str, make: Callable[[], fn.Layer], shape: Shape, tiny: Shape,
    small: Callable[[], fn.Layer] | None = None, tokens: int = 0, steps: int = 4, **about: Any,
) -> Case:  # fmt: skip
    """``small`` makes the layer that is measured at the small size, where it is another one; so in `network`."""

    def problem(quick, dtype, steps=steps):
        chosen, size = (small or make, tiny) if quick else (make, shape)
        return of_layer(chosen, size, tokens, steps, dtype)

    return Case(name, group, problem, **about)


def network(
    name: str, group: str, make: Callable[[], fn.Layer], shape: Shape, tiny: Shape,
    small: Callable[[], fn.Layer] | None = None, cost: fn.Cost = fn.log_likelihood, activation: fn.Activation = fn.softmax,
    classes: int = 10, tokens: int = 0, steps: int = 4, settings: dict[str, Any] | None = None, **about: Any,
) -> Case:  # fmt: skip
    def problem(quick, dtype, steps=steps):
        chosen, size = (small or make, tiny) if quick else (make, shape)
        used = min(tokens, 97) if quick else tokens
        limit = min(classes, 97) if quick else classes
        return of_network(chosen, cost, activation, size, limit, used, steps, settings or {}, dtype)

    return Case(name, group, problem, **about)


def _layers() -> list[Case]:
    rows, images = "layers", (64, 16, 16, 64)
    few = (2, 4, 4, 8)
    cases = [
        layer("LayerNorm", rows, fn.LayerNorm, (32, 64, 128), (2, 3, 8)),
        layer("RMSNorm", rows, fn.RMSNorm, (32, 64, 128), (2, 3, 8)),
        layer("GroupNorm", rows, lambda: fn.GroupNorm(8), images, few),
        layer("BatchNorm", rows, fn.BatchNorm, images, few),
        layer("Dense, rows", rows, lambda: fn.Dense(512, fn.relu), (128, 784), (20, 30)),
        layer("Dense, rows, no bias", rows, lambda: fn.Dense(512, fn.relu, bias=False), (128, 784), (20, 30)),
        layer("Dense, sequences", rows, lambda: fn.Dense(512, fn.gelu), (12, 64, 128), (2, 3, 8)),
        layer("Dense, sequences, no bias", rows, lambda: fn.Dense(512, fn.gelu, bias=False), (12, 64, 128), (2, 3, 8)),
        layer("Conv 5×5", rows, lambda: fn.Conv(20, 5, fn.sigmoid), (32, 28, 28, 1), (2, 9, 9, 1), steps=2),
        layer("Conv 5×5 of 20 channels", rows, lambda: fn.Conv(40, 5, fn.sigmoid), (32, 12, 12, 20), (2, 8, 8, 3), steps=2),
        layer("Conv 3×3", rows, lambda: fn.Conv(64, 3, fn.relu, padding="same"), (16, 32, 32, 32), (2, 5, 5, 3), steps=2),
        layer("Conv 3×3, stride 2", rows, lambda: fn.Conv(64, 3, fn.relu, 2, 1), (16, 32, 32, 32), few, steps=2),
        layer("Conv 3×3, 4 groups", rows, lambda: fn.Conv(64, 3, fn.relu, 1, 1, groups=4), (16, 32, 32, 32), few, steps=2),
        layer("MaxPool", rows, lambda: fn.MaxPool(2), (32, 24, 24, 20), few),
        layer("MeanPool", rows, lambda: fn.MeanPool(2), (32, 24, 24, 20), few),
        layer("Attention, T = 64", rows, lambda: fn.Attention(4), (12, 64, 384), (2, 4, 12)),
        layer("Attention, T = 1,024", rows, lambda: fn.Attention(4), (4, 1024, 384), (2, 6, 12), quick=False),
        layer("Attention in blocks, T = 64", rows, lambda: fn.Attention(4, block=32), (12, 64, 384), (2, 64, 12), more=AGAIN),
        layer(
            "Attention in blocks, T = 1,024", rows, lambda: fn.Attention(4, block=128), (4, 1024, 384), (2, 256, 12),
            quick=False,
        ),
        layer("Embedding", rows, lambda: fn.Embedding(10_000, 128), (32, 64), (2, 5), tokens=10_000),
        layer("Position", rows, fn.Position, (32, 64, 128), (2, 3, 8)),
        layer("Dropout", rows, lambda: fn.Dropout(0.5), (128, 1024), (4, 16)),
        layer("Residual", rows, lambda: fn.Residual(fn.Dense(256, fn.tanh), fn.Dense(256, fn.linear)), (128, 256), (4, 256)),
        layer(
            "Parallel", rows,
            lambda: fn.Parallel(fn.Dense(128, fn.tanh), fn.Dense(128, fn.relu), join=fn.concatenate), (128, 256), (4, 16),
        ),
    ]  # fmt: skip
    sizes = {"28": (28, 32, 128, 28), "100": (100, 32, 256, 64), "256": (256, 16, 256, 128), "784": (784, 32, 128, 1)}
    for cell in (fn.LSTM, fn.GRU, fn.RNN):
        for name, (steps, m, n, n_in) in sizes.items():
            make, small = functools.partial(cell, n), functools.partial(cell, n // 16)
            shapes = (m, steps, n_in), (2, min(steps, 30), n_in)
            about = f"{cell.__name__}, T = {name}"
            row: dict[str, Any] = {"steps": 1 if steps > 28 else 4, "quick": steps == 28, "more": (2.3, LOOP)}
            cases.append(layer(about, "recurrent", make, *shapes, small, **row))
    return cases


def _costs() -> list[Case]:
    pairs = [
        (fn.quadratic, fn.linear), (fn.quadratic, fn.sigmoid), (fn.quadratic, fn.softmax), (fn.cross_entropy, fn.sigmoid),
        (fn.cross_entropy, fn.softmax), (fn.log_likelihood, fn.softmax), (fn.log_likelihood, fn.sigmoid),
    ]  # fmt: skip
    return [
        network(
            f"{cost.name} of {activation.name}", "costs", functools.partial(fn.Dense, 1000, activation), (256, 32), (4, 5),
            functools.partial(fn.Dense, 6, activation), cost, activation, classes=6,
            more=CHOSEN if cost is fn.log_likelihood else (1.0, ""),
        )
        for cost, activation in pairs
    ]  # fmt: skip


def _networks() -> list[Case]:
    cases = []
    of = functools.partial
    for m in (10, 128, 1024):
        make = of(networks.dense, 100, 10, output=fn.sigmoid)
        about: dict[str, Any] = {"cost": fn.cross_entropy, "activation": fn.sigmoid, "steps": 8 if m < 1024 else 4}
        cases.append(
            network(
                f"784-100-10, m = {m:,}", "dense networks", make, (m, 784), (min(m, 20), 784), quick=m < 1024, **about
            )
        )
    deep, slim = (of(networks.dense, *[n] * 6, 10, activation=fn.relu) for n in (1024, 16))
    cases.append(network("6×1,024 ReLU, m = 128", "dense networks", deep, (128, 784), (20, 30), slim))
    belief, less = (of(networks.dense, *n, 10) for n in ((500, 500, 2000), (20, 20, 40)))
    cases.append(
        network("DBN 784-500-500-2000-10, fine-tuning, m = 100", "dense networks", belief, (100, 784), (20, 30), less)
    )
    for m in (10, 32, 128, 512):
        images = (m, 28, 28, 1), (4, 28, 28, 1)
        cases.append(
            network(
                f"book's conv net, m = {m}",
                "convolutional networks",
                networks.book,
                *images,
                steps=4 if m < 128 else 2,
                more=BOOK,
                quick=m == 10,
            )
        )
    images = (32, 32, 32, 3), (2, 8, 8, 3)
    vgg, small_vgg = of(networks.vgg, 32, 64, 128), of(networks.vgg, 4, 8)
    cases.append(network("VGG-like 3×3 net, m = 32", "convolutional networks", vgg, *images, small_vgg, steps=2))
    resnet, small_resnet = of(networks.residual, 16, 32, 64), of(networks.residual, 4, 8)
    cases.append(
        network("ResNet with BatchNorm, m = 32", "convolutional networks", resnet, *images, small_resnet, steps=2)
    )
    for cell in (fn.LSTM, fn.GRU):
        make, small = (lambda cell=cell, n=n: networks.classifier(cell(n)) for n in (128, 16))
        for m in (32, 128):
            name = f"{cell.__name__} classifier, T = 28, m = {m}"
            row = {"quick": m == 32, "more": (2.8, LOOP)}
            cases.append(network(name, "recurrent networks", make, (m, 28, 28), (3, 5, 28), small, **row))
    about: dict[str, Any] = {"classes": 65, "tokens": 65, "steps": 2}
    for name, body in (
        ("written out", networks.written_out), ("repeated", networks.repeated), ("recomputed", networks.recomputed),
    ):  # fmt: skip
        more = AGAIN if body is networks.recomputed else (1.0, "")
        gpt, small = of(networks.gpt, 65, 128, 4, 4, body=body), of(networks.gpt, 65, 16, 2, 2, body=body)
        cases.append(network(f"GPT of 4×128, {name}", "GPTs", gpt, (12, 64), (2, 6), small, more=more, **about))
    gpt, small = of(networks.gpt, 65, 384, 6, 6), of(networks.gpt, 65, 16, 2, 3)
    cases.append(network("GPT of 6×384", "GPTs", gpt, (4, 128), (2, 6), small, **about))
    wide, narrow = of(networks.large_vocabulary, 32_768, 64), of(networks.large_vocabulary, 97, 8)
    about = {"classes": 32_768, "tokens": 32_768, "steps": 1, "settings": {"positions": 128}}
    cases.append(network("vocabulary of 32,768, positions=128", "GPTs", wide, (1, 1024), (2, 256), narrow, **about))
    return cases


def _machines() -> list[Case]:
    def problem(quick, dtype, steps=4):
        return of_machine(*((20, 12, 10) if quick else (784, 500, 100)), steps, dtype)

    return [Case("RBM 784-500, CD-1, m = 100", "energy models", problem)]


CASES = [*_layers(), *_costs(), *_networks(), *_machines()]


def chosen(wanted: list[str] | tuple[str, ...]) -> list[Case]:
    """The cases with one of these in their name or group; all for none.

    Raises:
        ValueError: for a word that no case has.
    """
    lower = [word.lower() for word in wanted]
    for word in lower:
        if not any(word in f"{case.group}: {case.name}".lower() for case in CASES):
            raise ValueError(f"bench: expected a part of a case's name or group, got {word!r}; --list shows them")
    return [c for c in CASES if not lower or any(word in f"{c.group}: {c.name}".lower() for word in lower)]
