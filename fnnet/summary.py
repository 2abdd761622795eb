"""What a network is made of: shapes and numbers of parameters, layer by layer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from .columns import aligned
from .layers import Layer, LayerError, Repeat
from .layers._composite import Placed, check_shape, is_walked, visited
from .layers._layer import Params, Shape, run_forward

__all__ = ["LayerSummary", "Summary", "summary"]


class LayerSummary(NamedTuple):
    """A layer in its place; a composite's parameters are those of its parts together."""

    name: str
    """As the audit names it, such as "2 Dense", or "1.0 Conv" for the first part of the second layer."""
    layer: Layer
    input_shape: tuple[int, ...]
    """Of one example, as is ``output_shape``."""
    output_shape: tuple[int, ...]
    parameters: int
    """How many numbers. What is shared with another place is counted at both."""
    times: int
    """How often in a row; the numbers of the parts of what is repeated are those of one repetition."""


class Summary(NamedTuple):
    """``print`` shows it as a table."""

    rows: tuple[LayerSummary, ...]
    """In order, each composite before its parts; of a composite that the network itself is, its parts only."""
    parameters: int
    """How many numbers there are in all, each counted once."""
    nbytes: int
    """How many bytes they take."""
    shared: int
    """How many numbers the rows count more often than once."""

    def __str__(self) -> str:
        lines = [("layer", "input", "output", "parameters")]
        for name, _, shape, out, count, times in self.rows:
            indent = "  " * name.split()[0].count(".")
            lines.append((indent + name + f" × {times}" * (times > 1), str(shape), str(out), f"{count:,}"))
        text = aligned(lines, right=1)
        text.insert(1, "-" * len(text[0]))
        size, unit = (self.nbytes / 1e6, "MB") if self.nbytes >= 1e6 else (self.nbytes / 1e3, "kB")
        total = f"{self.parameters:,} parameters, {size:.1f} {unit}"
        return "\n".join([*text, total + f"; {self.shared:,} of them in two places or more" * (self.shared > 0)])


def summary(net: Layer, input_shape: tuple[int, ...]) -> Summary:
    """The layers of a network with the shapes of what goes in and comes out, and how many parameters each has. Nothing is
    computed: the shapes are those that ``init`` would give.

    Args:
        net: any layer, composites (branches, repetitions, shared arrays) included.
        input_shape: the shape of one example, such as (28, 28, 1).

    Raises:
        LayerError: where a layer cannot take what comes to it, as in ``init``.

    Example:
        >>> print(fn.summary(fn.Network(fn.Flatten(), fn.Dense(10, fn.softmax)), (28, 28, 1)))
        layer      input        output  parameters
        ------------------------------------------
        0 Flatten  (28, 28, 1)  (784,)           0
        1 Dense    (784,)       (10,)        7,850
        7,850 parameters, 31.4 kB
    """
    shape = check_shape(net, input_shape)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), shape))
    try:
        rows, shared = _seen(net, params, shape, jnp.result_type(float))
    except LayerError as error:
        try:
            rows, shared = _seen(net, params, shape, jnp.int32)
        except LayerError:
            raise error from None
    leaves = jax.tree.leaves(params)
    return Summary(rows, _size(params), sum(leaf.size * leaf.dtype.itemsize for leaf in leaves), shared)


def _seen(net: Layer, params: Params, shape: Shape, dtype: Any) -> tuple[tuple[LayerSummary, ...], int]:
    """The rows in the order in which a forward pass runs them, and how many numbers they count more often than once."""
    rows: dict[tuple[int, ...], LayerSummary] = {}
    shared, repeats = 0, {}

    def visit(place: tuple[int, ...], part: Layer, p: Params, a: Array, **given: Any) -> tuple[Array, Any]:
        nonlocal shared
        times = repeats.get(place[:-1], 1) if place else 1
        rows[place] = LayerSummary(Placed(place, part, p, None).name, part, a.shape[1:], (), _size(p), times)
        if is_walked(part):
            inside = part.parts(p)  # pyright: ignore[reportAttributeAccessIssue]
            shared += max(0, sum(_size(of_part) for _, of_part in inside) - _size(p))
        if isinstance(part, Repeat):
            repeats[place] = part.n
        a_out, cache = run_forward(part, p, a, **given)
        rows[place] = rows[place]._replace(output_shape=a_out.shape[1:])
        return a_out, cache

    a = jax.ShapeDtypeStruct((1, *shape), dtype)
    jax.eval_shape(lambda params, a: visited(net, params, a, visit), params, a)
    again = [place for place in rows if any(i and place[:n] in repeats for n, i in enumerate(place))]
    for place in (*again, *([()] if is_walked(net) else [])):
        del rows[place]
    return tuple(rows.values()), shared


def _size(params: Params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
