"""A batch run in chunks: how many examples at a time, and the mean over them."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .forms import CHUNK_BYTES, SMALLEST_CHUNK, WHOLE_BATCH_BYTES, PerPlatform, by_size, devices_of, summed
from .layers._layer import Layer, Params, example_index, keys_of, run_forward


def chunk_size(
    net: Layer,
    params: Params,
    x: Array,
    key: Any,
    mask: Any,
    micro_batch: int | str | None,
    most: int | None = None,
) -> int | PerPlatform:
    """How many examples to run at a time, from static shapes; no more than ``most``.

    "auto" keeps a batch whole where the activations and masks that its backward pass reads fit in 16 MiB, off the CPU,
    and where examples mix; else it takes the power of two that fits in 8 MiB, at least 32.
    """
    m = x.shape[0] if most is None else min(most, x.shape[0])
    if micro_batch is None or not net.independent:
        return m
    if not isinstance(micro_batch, str):
        return min(int(micro_batch), m)
    _, cache = jax.eval_shape(lambda: run_forward(net, params, x, key=key, train=True, mask=mask))
    of_examples = (leaf for leaf in jax.tree.leaves(cache) if len(x) in getattr(leaf, "shape", ()))
    devices = devices_of(x)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in of_examples) // devices
    if total <= WHOLE_BATCH_BYTES:
        return m
    fitting = 2 ** int(np.log2(max(1, CHUNK_BYTES * len(x) // devices // total)))
    return PerPlatform(min(m, max(SMALLEST_CHUNK, fitting) * devices), m)


def mean_over_chunks(f: Callable, batch: tuple[Any, ...], key: Any, size: int | PerPlatform) -> Any:
    """(1/m) Σ size · f(*chunk, key) over chunks of the batch; f returns a pytree of means over its chunk."""
    m = batch[0].shape[0]

    def share(index: Array, *chunk: Any) -> Any:
        means = f(*chunk, keys_of(key, index))
        return jax.tree.map(lambda mean: mean * jnp.asarray(len(index) / m, mean.dtype), means)

    def by(size: int) -> Any:
        return f(*batch, key) if size >= m else summed(share, (example_index(key, m), *batch), size)

    return by_size(by, size)


def check_micro_batch(micro_batch: Any) -> None:
    """Raise a ValueError unless micro_batch is "auto", None or a positive integer."""
    is_whole = isinstance(micro_batch, Integral) and not isinstance(micro_batch, bool)
    if micro_batch is None or micro_batch == "auto" or (is_whole and int(micro_batch) >= 1):
        return
    raise ValueError(f"micro_batch: expected a positive integer, 'auto' or None, got {micro_batch!r}")
