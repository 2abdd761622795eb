"""The networks that the benchmarks measure."""

from collections.abc import Callable, Iterable

import fnnet as fn


def dense(*sizes: int, activation: fn.Activation = fn.sigmoid, output: fn.Activation = fn.softmax) -> fn.Network:
    """Sizes of the layers after the inputs, the outputs last."""
    return fn.Network(*(fn.Dense(n, activation) for n in sizes[:-1]), fn.Dense(sizes[-1], output))


def book(activation: fn.Activation = fn.sigmoid) -> fn.Network:
    """The convolutional network of Nielsen's book, on (28, 28, 1)."""
    return fn.Network(
        fn.Conv(20, 5, activation), fn.MaxPool(2), fn.Conv(40, 5, activation), fn.MaxPool(2), fn.Flatten(),
        fn.Dense(100, activation), fn.Dense(10, fn.softmax),
    )  # fmt: skip


def vgg(*channels: int) -> fn.Network:
    """Two 3×3 convolutions with ReLU and a max-pool for each number of channels, then two dense layers."""
    stages = [(fn.Conv(c, 3, fn.relu, padding=1),) * 2 + (fn.MaxPool(2),) for c in channels]
    body = [part for stage in stages for part in stage]
    return fn.Network(*body, fn.Flatten(), fn.Dense(256, fn.relu), fn.Dense(10, fn.softmax))


def residual(*channels: int) -> fn.Network:
    """A 3×3 convolution, then a residual block with batch normalisation for each number of channels, each block but the first
    on half the size, entered by a convolution of stride 2."""

    def conv(c: int, activation: fn.Activation, stride: int = 1) -> fn.Conv:
        return fn.Conv(c, 3, activation, stride, 1, weight_init=fn.initializers.he_normal(), bias=False)

    body: list[fn.Layer] = []
    for i, c in enumerate(channels):
        body += [fn.BatchNorm(), conv(c, fn.relu, 2)] if i else [conv(c, fn.relu)]
        body += [fn.Residual(fn.BatchNorm(), conv(c, fn.relu), fn.BatchNorm(), conv(c, fn.linear))]
    return fn.Network(*body, fn.BatchNorm(), fn.GlobalMeanPool(), fn.Dense(10, fn.softmax))


def classifier(cell: fn.Layer) -> fn.Network:
    """Of sequences, by the state after the last step."""
    return fn.Network(cell, fn.LastStep(), fn.Dense(10, fn.softmax))


def written_out(block: fn.Network, layers: int) -> list[fn.Layer]:
    return [*block] * layers


def repeated(block: fn.Network, layers: int) -> list[fn.Layer]:
    return [fn.Repeat(block, layers)]


def recomputed(block: fn.Network, layers: int) -> list[fn.Layer]:
    return [fn.Repeat(fn.Recompute(block), layers)]


def gpt(
    characters: int,
    n: int,
    heads: int,
    layers: int,
    dropout: float = 0.0,
    bias: bool = False,
    body: Callable[[fn.Network, int], Iterable[fn.Layer]] = written_out,
) -> fn.Tied:
    """A GPT that reads tokens (m, T), pre-norm, embedding and output layer tied. Initialised as GPT-2: N(0, 0.02), the last
    layer of each branch by 1/√(2·layers) of that. The body says how the block is repeated."""
    drop = [fn.Dropout(dropout)] if dropout else []
    narrow, last = fn.initializers.normal(0.02), fn.initializers.normal(0.02 / (2 * layers) ** 0.5)

    def dense(n_out: int, activation=fn.linear, weight_init=narrow) -> fn.Dense:
        return fn.Dense(n_out, activation, weight_init, bias=bias)

    block = fn.Network(
        fn.Residual(fn.LayerNorm(), dense(3 * n), fn.Attention(heads), dense(n, weight_init=last), *drop),
        fn.Residual(fn.LayerNorm(), dense(4 * n, fn.gelu), dense(n, weight_init=last), *drop),
    )
    start = [fn.Embedding(characters, n, narrow), fn.Position(), *drop]
    head = fn.Dense(characters, fn.softmax, bias=False)
    return fn.Tied(fn.Network(*start, *body(block, layers), fn.LayerNorm(), head), "0.w", "-1.w")


def large_vocabulary(tokens: int, n: int) -> fn.Tied:
    """A residual layer between an embedding and an output layer of many tokens, tied."""
    block = fn.Residual(fn.LayerNorm(), fn.Dense(n, fn.tanh))
    return fn.Tied(fn.Network(fn.Embedding(tokens, n), block, fn.Dense(tokens, fn.softmax)), "0.w", "-1.w")
