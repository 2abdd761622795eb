"""One table of everything public that has an equation: a layer, an activation or a cost is a row here.

The generic tests run over it, and test_coverage fails for a public name without a row. Adding a layer is one row.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fnnet as fn


@dataclass(frozen=True)
class Case:
    """A layer with the shape of one example that it is fed.

    ``loose`` maps a dtype to the tolerance it needs, with ``why``; ``zero`` names equations whose reference is exactly zero;
    ``tokens`` says that the layer takes integers below it.
    """

    name: str
    layer: fn.Layer
    shape: tuple[int, ...]
    loose: dict = field(default_factory=dict)
    why: str = ""
    zero: tuple[str, ...] = ()
    tokens: int = 0

    def inputs(self, m, dtype):
        """m examples: normal numbers, or the integers below ``tokens`` for a layer of tokens."""
        if self.tokens:
            return array(np.random.default_rng(1).integers(self.tokens, size=(m, *self.shape)), jnp.int32)
        return normal((m, *self.shape), dtype, seed=1)

    def params(self, dtype):
        """Parameters with biases that are not zero; nothing is compiled for them."""
        rng = np.random.default_rng(0)
        shapes = jax.eval_shape(lambda: self.layer.init(jax.random.key(0), self.shape))
        return jax.tree.map(lambda leaf: array(0.5 * rng.standard_normal(leaf.shape), dtype), shapes)

    def __repr__(self) -> str:
        return self.name


def gpt_block(n, attention, *, norm=None, wide=4):
    """The two residual branches of a pre-norm block."""
    return (
        fn.Residual(norm or fn.LayerNorm(), fn.Dense(3 * n, fn.linear), attention, fn.Dense(n, fn.linear)),
        fn.Residual(fn.LayerNorm(), fn.Dense(wide * n, fn.gelu), fn.Dense(n, fn.linear)),
    )


def gpt(vocabulary, n, body, *, head=fn.softmax, tied=True):
    """A GPT with biases, so that every leaf has a gradient, of the layers of the body."""
    ends = fn.LayerNorm(), fn.Dense(vocabulary, head, bias=False)
    net = fn.Network(fn.Embedding(vocabulary, n), fn.Position(), *body, *ends)
    return fn.Tied(net, "0.w", "-1.w") if tied else net


def array(a, dtype=float):
    """An array of NumPy on the device, cast on the host: ``jnp.asarray`` compiles a program for each shape."""
    return jax.device_put(np.asarray(a).astype(dtype))


def normal(shape, dtype=float, seed=0):
    """Standard normal numbers, drawn by NumPy: ``jax.random.normal`` takes 45 ms to compile for each shape."""
    return array(np.random.default_rng(seed).standard_normal(shape), dtype)


def params_of(layer, shape, dtype=float, seed=2):
    """Parameters in the size of those that ``init`` draws, N(0, 1/n_in), biases too; nothing is compiled for them. The seed
    is not that of `normal`: w would be x, scaled."""
    rng = np.random.default_rng(seed)

    def leaf(like):
        n_in = like.shape[-1] if len(like.shape) < 3 else np.prod(like.shape[:-1])
        return array(rng.standard_normal(like.shape) / n_in**0.5, dtype)

    return jax.tree.map(leaf, jax.eval_shape(lambda: layer.init(jax.random.key(0), shape)))


def thorough(*values):
    """Parameters of a test that the default run leaves out."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


STATISTICS = ("gradients", "backward")
"""Of the moving statistics of batch normalisation, which no gradient trains."""


def _layers() -> list[Case]:
    return [
        Case("Dense", fn.Dense(7, fn.tanh), (5,)),
        Case("Dense one unit", fn.Dense(1, fn.sigmoid), (1,)),
        Case("Dense softmax", fn.Dense(6, fn.softmax), (5,)),
        Case("Dense on steps", fn.Dense(4, fn.gelu), (3, 5)),
        Case("Dense to more units on steps", fn.Dense(7, fn.tanh), (3, 4)),
        Case("Dense on images", fn.Dense(3, fn.silu), (4, 2, 5)),
        Case("Dense in a loop", fn.Dense(7, fn.tanh).in_loop(), (5,)),
        Case("Dense wide", fn.Dense(70, fn.elu), (80,)),
        Case("Dense without a bias", fn.Dense(7, fn.tanh, bias=False), (5,)),
        Case("Flatten", fn.Flatten(), (3, 4, 2)),
        Case("Flatten a row", fn.Flatten(), (3,)),
        Case("Flatten a number", fn.Flatten(), ()),
        Case("Conv", fn.Conv(3, 2, fn.sigmoid), (5, 4, 2)),
        Case("Conv of one channel", fn.Conv(3, (3, 2), fn.tanh), (6, 5, 1)),
        Case("Conv by gemm", fn.Conv(3, 3, fn.tanh, padding="same", algorithm="gemm"), (5, 4, 3)),
        Case("Conv by library", fn.Conv(3, 3, fn.tanh, 2, ((2, 1), (0, 1)), algorithm="library"), (6, 5, 2)),
        Case("Conv in groups", fn.Conv(6, 3, fn.tanh, (2, 1), (1, 2), groups=2, algorithm="library"), (6, 5, 4)),
        Case("Conv in groups by gemm", fn.Conv(6, 3, fn.tanh, (2, 1), (1, 2), groups=2, algorithm="gemm"), (6, 5, 4)),
        Case("Conv dilated", fn.Conv(2, 2, fn.silu, dilation=(2, 3), stride=2), (8, 9, 3)),
        Case("Conv 1-D", fn.Conv(4, 3, fn.gelu, stride=2, padding="same"), (9, 3)),
        Case("Conv 3-D", fn.Conv(2, 2, fn.tanh, (1, 2, 1)), (3, 4, 3, 2)),
        Case("ConvTranspose", fn.ConvTranspose(3, 3, fn.tanh, stride=2, padding="same"), (4, 3, 2)),
        Case("ConvTranspose in groups", fn.ConvTranspose(4, (3, 2), fn.tanh, (1, 3), 1, groups=2), (4, 3, 6)),
        Case("ConvTranspose 1-D", fn.ConvTranspose(2, 2, fn.sigmoid, 3, "same", algorithm="library"), (5, 3)),
        Case("Conv without a bias", fn.Conv(3, 2, fn.tanh, bias=False), (5, 4, 2)),
        Case("ConvTranspose without a bias", fn.ConvTranspose(3, 2, fn.tanh, 2, bias=False), (3, 2, 2)),
        Case("MaxPool", fn.MaxPool(2), (6, 4, 3)),
        Case("MaxPool with a remainder", fn.MaxPool((2, 3)), (5, 7, 2)),
        Case("MaxPool overlapping", fn.MaxPool(3, 2, "same"), (7, 6, 2)),
        Case("MaxPool by scatter", fn.MaxPool(3, 2, ((1, 0), (2, 1)), "scatter"), (7, 6, 2)),
        Case("MaxPool of a wide window", fn.MaxPool(9), (9, 9, 1)),
        Case("MaxPool 1-D", fn.MaxPool(2, 3), (8, 2)),
        Case("MaxPool 3-D", fn.MaxPool(2, 1), (3, 3, 3, 2)),
        Case("MeanPool", fn.MeanPool(2), (6, 4, 3)),
        Case("MeanPool overlapping", fn.MeanPool((3, 2), (2, 1), "same"), (7, 5, 2)),
        Case("MeanPool 1-D", fn.MeanPool(3, 2, ((1, 0),)), (8, 2)),
        Case("GlobalMeanPool", fn.GlobalMeanPool(), (3, 4, 2)),
        Case("GlobalMeanPool 1-D", fn.GlobalMeanPool(), (5, 2)),
        Case("Upsample", fn.Upsample(2), (3, 4, 2)),
        Case("Upsample 3-D", fn.Upsample((2, 1, 3)), (2, 3, 2, 2)),
        Case("Embedding", fn.Embedding(6, 3), (4,), tokens=6),
        Case("Attention", fn.Attention(2), (5, 12)),
        Case("Attention of one head both ways", fn.Attention(1, causal=False), (4, 9)),
        Case("Attention of one step", fn.Attention(2, block=3), (1, 12)),
        Case("Attention turned", fn.Attention(2, rotary=100.0), (5, 24)),
        Case("Attention in blocks", fn.Attention(2, block=2), (5, 12)),
        Case("Attention in blocks both ways", fn.Attention(3, causal=False, block=4), (6, 9)),
        Case("Attention in blocks turned", fn.Attention(1, True, 3, 10_000.0), (6, 12)),
        Case("Position", fn.Position(), (4, 3)),
        Case("LayerNorm", fn.LayerNorm(), (6,)),
        Case("LayerNorm on steps", fn.LayerNorm(0.1), (3, 5)),
        Case("RMSNorm", fn.RMSNorm(), (6,)),
        Case("RMSNorm on steps", fn.RMSNorm(0.1), (3, 5)),
        Case("GroupNorm", fn.GroupNorm(3), (4, 3, 6)),
        Case("GroupNorm of one group", fn.GroupNorm(1), (5,)),
        Case("GroupNorm of each channel", fn.GroupNorm(2, 0.1), (7, 2)),
        Case("BatchNorm", fn.BatchNorm(), (4, 3), zero=STATISTICS),
        Case("BatchNorm on images", fn.BatchNorm(eps=0.1), (3, 2, 5), zero=STATISTICS),
        Case("RNN", fn.RNN(4), (5, 3)),
        Case("RNN cut", fn.RNN(3, fn.silu, truncate=2), (5, 2)),
        Case("LSTM", fn.LSTM(4), (5, 3)),
        Case("LSTM recomputed", fn.LSTM(3, truncate=2, recompute=True), (5, 2)),
        Case("GRU", fn.GRU(4), (5, 3)),
        Case("Bidirectional", fn.Bidirectional(fn.GRU(3)), (4, 2)),
        Case("Bidirectional to the last", fn.Bidirectional(fn.RNN(3), last=True), (4, 2)),
        Case("LastStep", fn.LastStep(), (4, 3)),
        Case("Dropout", fn.Dropout(0.4), (6,)),
        Case("Dropout per batch", fn.Dropout(0.4, per="batch"), (6,)),
        Case("Dropout on images", fn.Dropout(0.3), (4, 3, 2)),
        Case("Dropout of nothing", fn.Dropout(0.0), (5,)),
        Case("Identity", fn.Identity(), (4,)),
        Case(
            "Parallel", fn.Parallel(fn.Dense(3, fn.tanh), fn.Network(fn.Dense(5, fn.silu), fn.Dense(3, fn.tanh))), (4,)
        ),
        Case(
            "Parallel side by side",
            fn.Parallel(fn.Identity(), fn.Dense(3, fn.tanh), fn.Dropout(0.3), join=fn.concatenate),
            (2, 4),
        ),
        Case("Residual", fn.Residual(fn.Dense(6, fn.gelu), fn.Dropout(0.3), fn.Dense(4, fn.linear)), (4,)),
        Case("Tied", fn.Tied(fn.Network(fn.Dense(4, fn.tanh), fn.Dense(4, fn.sigmoid)), "0.w", "-1.w"), (4,)),
        Case(
            "Tied embedding",
            fn.Tied(fn.Network(fn.Embedding(6, 3), fn.Dense(3, fn.tanh), fn.Dense(6, fn.softmax)), "0.w", "2.w"),
            (4,),
            loose={"bfloat16": 0.15},
            why="δ of a softmax sums to 0 over its units, and cancels in the gradient of the b below",
            tokens=6,
        ),
        Case("Repeat", fn.Repeat(fn.Residual(fn.Dense(4, fn.tanh), fn.Dropout(0.3)), 3), (4,)),
        Case("Repeat a softmax", fn.Repeat(fn.Dense(3, fn.softmax), 2), (3,)),
        Case("Repeat a cell", fn.Repeat(fn.RNN(3), 2), (4, 3)),
        Case(
            "Recompute", fn.Recompute(fn.Network(fn.Dense(6, fn.tanh), fn.Dropout(0.3), fn.Dense(4, fn.softmax))), (5,)
        ),
        Case("Recompute a layer", fn.Recompute(fn.LSTM(3)), (4, 2)),
        Case(
            "Swapped",
            fn.Swapped(fn.Network(fn.Dense(5, fn.tanh), fn.Dropout(0.3), fn.Dense(3, fn.tanh)), fn.Rule()),
            (4,),
        ),
        Case(
            "Nested three deep",
            fn.Network(
                fn.Dense(4, fn.tanh),
                fn.Residual(fn.Repeat(fn.Recompute(fn.Residual(fn.Dense(4, fn.silu), fn.Dropout(0.2))), 2)),
                fn.Parallel(fn.Dense(2, fn.tanh), fn.Residual(fn.Dense(4, fn.sigmoid)), join=fn.concatenate),
            ),
            (5,),
        ),
        Case(
            "Network",
            fn.Network(
                fn.Flatten(),
                fn.Dense(6, fn.sigmoid),
                fn.Dropout(0.5),
                fn.Network(fn.Dense(4, fn.relu), fn.Dense(3, fn.tanh)),
            ),
            (2, 3),
        ),
    ]


LAYERS = _layers()
FIRST = {type(case.layer): case for case in reversed(LAYERS)}
OF_EACH_KIND = {"Dense", "Embedding", "Attention", "BatchNorm", "LSTM", "Dropout", "Tied", "Network"}
FEW = [case if case.name in OF_EACH_KIND else thorough(case)[0] for case in LAYERS]
"""The table for a test of what is written once for all layers: by default it is made for a few of them."""
BY_CLASS = [case if case is FIRST[type(case.layer)] else thorough(case)[0] for case in LAYERS]
"""The table for a test that the default run makes once for each class."""


def equal_layer(case: Case) -> fn.Layer:
    """The same layer, built anew."""
    return next(other.layer for other in _layers() if other.name == case.name)


ACTIVATIONS = {
    "sigmoid": fn.sigmoid,
    "tanh": fn.tanh,
    "relu": fn.relu,
    "leaky_relu": fn.leaky_relu,
    "leaky_relu(slope=0.3)": fn.leaky_relu.with_(slope=0.3),
    "elu": fn.elu,
    "elu(alpha=0.5)": fn.elu.with_(alpha=0.5),
    "softplus": fn.softplus,
    "silu": fn.silu,
    "gelu": fn.gelu,
    "gelu_tanh": fn.gelu_tanh,
    "linear": fn.linear,
    "softmax": fn.softmax,
}
FORWARD_ONLY = {"step": fn.step}

# A cost with an activation of the last layer that it can follow.
COSTS = [
    ("quadratic", fn.quadratic, fn.linear),
    ("quadratic", fn.quadratic, fn.sigmoid),
    ("quadratic", fn.quadratic, fn.softmax),
    ("quadratic", fn.quadratic, fn.gelu),
    ("cross_entropy", fn.cross_entropy, fn.sigmoid),
    ("cross_entropy", fn.cross_entropy, fn.softmax),
    ("log_likelihood", fn.log_likelihood, fn.softmax),
    ("log_likelihood", fn.log_likelihood, fn.sigmoid),
]

TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "float16": 2e-2, "bfloat16": 5e-2}
"""Relative to the largest entry of the reference leaf: 64 eps or so in float32; a few eps in half precision, where a_in, z
and a are themselves rounded."""


def largest(tree) -> float:
    """The largest absolute entry of a pytree."""
    return max(
        (float(np.max(np.abs(np.asarray(leaf, np.float64)), initial=0)) for leaf in jax.tree.leaves(tree)), default=0.0
    )


def assert_agree(manual, reference, tolerance, *, zero: bool = False, scale: float = 0.0) -> None:
    """Leaf by leaf: the same structure, shape and dtype, and no entry further than tolerance times the reference's largest.

    A reference that is exactly zero fails unless ``zero`` says so; one below 100 eps of ``scale`` (its layer's largest
    gradient) is zero to rounding, and the manual side must be so too.
    """
    assert jax.tree.structure(manual) == jax.tree.structure(reference)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(manual), jax.tree.leaves(reference), strict=True
    ):
        name = jax.tree_util.keystr(path) or "the array"
        assert ours.shape == theirs.shape, f"{name}: {ours.shape} against {theirs.shape}"
        assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype} against {theirs.dtype}"
        size, floor = largest(theirs), 100 * float(jnp.finfo(theirs.dtype).eps) * scale
        if size <= floor:
            assert zero or size > 0, f"{name}: the reference is zero, which tests nothing"
            assert largest(ours) <= floor, f"{name}: {largest(ours)} where the reference is zero"
            continue
        gap = largest(np.asarray(ours, np.float64) - np.asarray(theirs, np.float64))
        assert gap <= tolerance * size, f"{name}: off by {gap / size:.2e} of the largest entry {size:.2e}"


def cast(tree, dtype):
    """The floats of a pytree in dtype."""
    return jax.tree.map(lambda a: array(a, dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, tree)


def targets(key, cost, shape, dtype):
    """Soft targets that the cost can follow, shaped like the outputs."""
    y = jax.random.uniform(key, shape, dtype)
    return y / jnp.sum(y, axis=-1, keepdims=True) if cost is fn.log_likelihood else y
