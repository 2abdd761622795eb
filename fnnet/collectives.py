"""The collectives of each equation: what a gradient sends between devices, declared before anything is compiled.

The batch is cut over one axis of a mesh. Then the forward pass, BP1 and BP2 are each device's own, since no example needs
another, and the sums over examples, C, BP3 and BP4, are one all-reduce together. Parameters may be cut over other axes; what
that makes the equations send, each layer declares (`Layer.collectives`).

Source: docs/devices.md.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from .activations import wide_dtype
from .given import check_net
from .layers._composite import bottom, composites, is_walked, visited, walk
from .layers._layer import Layer, LayerError, Params, Sends, Shape, Shard, run_forward
from .penalties import L1, L2, is_weight

__all__ = ["Collective", "Collectives", "collectives"]

Place = tuple[int, ...]


class Collective(NamedTuple):
    """What one equation sends.

    Attributes:
        layer: the place and kind of the layer, such as "1.0 Dense"; "cost" and "penalty" for their values.
        equation: such as "BP4 w"; "C" for the cost.
        kind: "all-reduce".
        axis: of the mesh, over which it goes.
        count: how many; 0 for what is added up in one with another of the same axis, as BP3 and BP4 are with C.
        bytes: of what is added up, on one device.
    """

    layer: str
    equation: str
    kind: str
    axis: str
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    bytes: int


@dataclass(frozen=True)
class Collectives:
    """What `collectives` returns; printed, a table.

    Attributes:
        rows: a `Collective` for each equation that sends something, from the first layer to the last, then the cost.
    """

    rows: tuple[Collective, ...]

    @property
    def totals(self) -> dict[tuple[str, str], tuple[int, int]]:
        """(count, bytes) of all rows of a kind over an axis, by (kind, axis)."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for row in self.rows:
            count, size = sums.get((row.kind, row.axis), (0, 0))
            sums[row.kind, row.axis] = count + row.count, size + row.bytes
        return sums

    def __str__(self) -> str:
        sums = [("total", "", *key, *total) for key, total in self.totals.items()]
        lines = [[str(v) if isinstance(v, str) else f"{v:,}" for v in row] for row in (*self.rows, *sums)]
        lines.insert(0, ["layer", "equation", "collective", "axis", "count", "bytes"])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [str.ljust] * 4 + [str.rjust] * 2
        return "\n".join(
            "  ".join(f(t, n) for f, t, n in zip(aligned, line, widths, strict=True)) for line in lines
        )


def collectives(
    net: Layer,
    params: Params,
    specs: Any,
    *,
    batch: str | None = "data",
    shape: Shape | None = None,
    mesh: Any = None,
    penalty: L1 | L2 | None = None,
) -> Collectives:
    """The collectives of value and gradients, declared equation by equation, of arrays that live on a mesh so.

    With the batch cut over d devices, each has C, ∂C/∂w and ∂C/∂b of its m/d examples, and their mean over devices is one
    all-reduce of them all. A product whose summed axis is cut over other devices leaves partial sums, of which there is one
    all-reduce: of z where w is cut by n_in, of BP2's δ w where it is cut by n_out. `data_parallel` compiles to the former,
    ``jax.jit`` with these ``in_shardings`` to both.

    Args:
        net: a network or a single layer.
        params: from ``net.init``, or ``jax.ShapeDtypeStruct`` in their place; nothing is computed.
        specs: how they are cut, a ``jax.sharding.PartitionSpec`` or ``NamedSharding`` for each, or a prefix of the structure
            as of ``jax.jit``'s ``in_shardings``: ``P()`` for all of them whole on every device.
        batch: the axis of the mesh over which the examples are cut; None for a batch that is whole on every device.
        shape: the batch's, (m, ...), of all devices together: of use where more is sent than gradients.
        mesh: a ``jax.sharding.Mesh``, an ``AbstractMesh``, or sizes of axes such as {"data": 4, "model": 2}; by default that of
            a ``NamedSharding`` among the specs, or the one that is set.
        penalty: whose value is part of C, an `L1` or `L2`.

    Raises:
        ValueError: for specs that do not fit the parameters or the mesh, and for a mesh or a shape that is missing.
        LayerError: for a cut under which the compiled program would move data that the equations need not move.

    Source: docs/devices.md.
    """
    check_net(net)
    if penalty is not None and not isinstance(penalty, L1 | L2):
        raise ValueError(f"penalty: expected fn.L1, fn.L2 or None, got {penalty!r}; count one of your own by hand")
    params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(jnp.shape(p), jnp.result_type(p)), params)
    sizes, specs = _mesh(mesh, specs, params)
    if sizes and batch is not None and batch not in sizes:
        raise ValueError(
            f"batch: expected an axis of the mesh, {', '.join(map(repr, sizes))}, or None, got {batch!r}; "
            f"name the axis over which the examples are cut"
        )
    batch = batch if sizes.get(batch or "", 2) > 1 else None
    shards = _shards(params, specs, sizes, batch)
    leaves, dtype = jax.tree.leaves(shards), wide_dtype(jnp.result_type(*jax.tree.leaves(params) or [float]))
    rows, over, fixed = [], None, []
    if any(any(leaf.cut) for leaf in leaves) or any(_declares(part) for part in bottom(net)):
        rows, over, fixed = _sent(net, params, shards, sizes, batch, _input(net, params, shape, sizes, batch))
    if batch is not None:
        for (place, name, path), leaf in zip(_owners(net, params), leaves, strict=True):
            leaf_name = jax.tree_util.keystr(path, simple=True, separator=".")
            last = leaf_name.rpartition(".")[2]
            if not any(at[: len(place)] == place and last in names for at, names in fixed):
                equation = "BP3" if last == "b" or last.startswith("b_") else "BP4"
                rows.append((place, 2, _row(name, f"{equation} {leaf_name}", batch, 0, leaf.shape, leaf.dtype)))
    rows = [row for *_, row in sorted(rows, key=lambda row: row[:2])]
    if batch is not None:
        rows.append(_row("cost", "C", batch, 1, (), dtype))
    values = [("cost", "C", over)] if over else []
    if penalty is not None:
        for (path, _), leaf in zip(jax.tree_util.tree_leaves_with_path(params), leaves, strict=True):
            name = f"{type(penalty).__name__} {jax.tree_util.keystr(path, simple=True, separator='.')}"
            values += [("penalty", name, axis) for axis in filter(None, leaf.cut) if is_weight(path)]
    for layer, equation, axis in values:
        alone = not any(row.axis == axis and row.count for row in rows)
        rows.append(_row(layer, equation, axis, int(alone), (), dtype))
    return Collectives(tuple(rows))


def _row(layer: str, equation: str, axis: str, count: int, shape: Shape, dtype: Any) -> Collective:
    return Collective(layer, equation, "all-reduce", axis, count, math.prod(shape) * jnp.dtype(dtype).itemsize)


def _declares(part: Layer) -> bool:
    """Whether a layer mixes examples and says what that sends."""
    return not part.independent and type(part).collectives is not Layer.collectives


def _mesh(mesh: Any, specs: Any, params: Params) -> tuple[dict[str, int], list[PartitionSpec]]:
    """The sizes of the mesh's axes, {} where none is known, and the spec of each leaf."""
    is_leaf = lambda s: s is None or isinstance(s, PartitionSpec | NamedSharding)  # noqa: E731
    try:
        whole = jax.tree.leaves(jax.tree.broadcast(specs, params, is_leaf=is_leaf), is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            "specs: expected a PartitionSpec or NamedSharding for each parameter, or for a part of their structure, got "
            f"another structure; as in P(), or jax.tree.map(lambda p: P(), params). {error}"
        ) from None
    for spec in whole:
        if not is_leaf(spec):
            got = type(spec).__name__
            raise ValueError(f"specs: expected a PartitionSpec or NamedSharding, got {got}; as in P('model', None)")
    if mesh is None:
        meshes = [spec.mesh for spec in whole if isinstance(spec, NamedSharding)]
        mesh = meshes[0] if meshes else jax.sharding.get_abstract_mesh()
    sizes = dict(mesh if isinstance(mesh, Mapping) else mesh.shape)
    return sizes, [spec.spec if isinstance(spec, NamedSharding) else spec or PartitionSpec() for spec in whole]


def _shards(params: Params, specs: Sequence[PartitionSpec], sizes: dict[str, int], batch: str | None) -> Params:
    """What a device holds of each parameter."""

    def shard(path: Any, leaf: Any, spec: PartitionSpec) -> Shard:
        name, cut = f"specs{jax.tree_util.keystr(path)}", (*spec, *(None,) * (len(leaf.shape) - len(spec)))
        if len(spec) > len(leaf.shape) or not all(axis is None or isinstance(axis, str) for axis in cut):
            raise ValueError(f"{name}: expected at most one axis of the mesh for each of {leaf.shape}, got {spec}")
        parts = []
        for n, axis in zip(leaf.shape, cut, strict=True):
            if axis is not None and axis not in sizes:
                known = ", ".join(map(repr, sizes)) or "no mesh"
                remedy = "give mesh=, a Mesh or the sizes of its axes such as {'data': 4, 'model': 2}"
                raise ValueError(f"{name}: expected an axis of the mesh, got {axis!r} with {known}; {remedy}")
            if axis is not None and axis == batch:
                remedy = "cut them over another axis, or not at all"
                raise ValueError(f"{name}: expected another axis than the batch's, got {axis!r}; {remedy}")
            d = 1 if axis is None else sizes[axis]
            if n % d:
                remedy = "choose a number that the devices divide"
                raise ValueError(f"{name}: expected an axis that {axis!r} of {d} devices divides, got {n}; {remedy}")
            parts.append(n // d)
        return Shard(tuple(parts), leaf.dtype, tuple(a if a and sizes[a] > 1 else None for a in cut))

    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    return structure.unflatten(shard(*leaf, spec) for leaf, spec in zip(leaves, specs, strict=True))


def _owners(net: Layer, params: Params) -> list[tuple[Place, str, Any]]:
    """(place, name, path) of the innermost layer that holds each leaf: of the first that does where several share it."""
    found = []

    def look(params: Params) -> tuple[()]:
        owners: dict[int, tuple[Place, str, Any]] = {}
        for node in (*walk(net, params), *composites(net, params)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(node.params):
                owners.setdefault(id(leaf), (node.place, node.name, path))
        found.extend(owners[id(leaf)] for leaf in jax.tree.leaves(params))
        return ()

    jax.eval_shape(look, params)
    return found


def _input(net: Layer, params: Params, shape: Any, sizes: dict[str, int], batch: str | None) -> jax.ShapeDtypeStruct:
    """The batch: of floats, or of integers where the net takes those."""
    if not isinstance(shape, tuple | list) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"shape: expected the shape (m, ...) of the batch, since more is sent than gradients, got {shape!r}; "
            f"as in fn.collectives(net, params, specs, shape=(128, 784))"
        )
    if shape[0] % (d := sizes.get(batch or "", 1)):
        raise ValueError(f"shape: expected examples that the {d} devices of {batch!r} divide, got {shape[0]}")
    refused = None
    for dtype in (jnp.result_type(float), jnp.int32):
        try:
            x = jax.ShapeDtypeStruct(tuple(shape), dtype)
            jax.eval_shape(lambda p, x: run_forward(net, p, x)[0], params, x)
            return x
        except (TypeError, LayerError) as error:
            refused = refused or error
    raise refused  # pyright: ignore[reportGeneralTypeIssues]


class _Ran(NamedTuple):
    """A layer that the forward pass has run: its place and name, its input and how that is cut, and what it sends."""

    place: Place
    name: str
    layer: Layer
    a_in: Any
    over: str | None
    sends: Sends


def _sent(
    net: Layer, params: Params, shards: Params, sizes: dict[str, int], batch: str | None, x: jax.ShapeDtypeStruct
) -> tuple[list[tuple[Place, int, Collective]], str | None, list[tuple[Place, tuple[str, ...]]]]:
    """What the layers send, with the place and 0 forwards, 1 in BP2; the axis over which the output is cut; the leaves of each that no gradient trains."""
    held = {node.place: node for node in walk(net, shards)}
    ran: list[_Ran] = []
    loops: list[Place] = []
    over: dict[int, tuple[Any, str | None]] = {}  # by the array's id, which is kept with it
    outputs: dict[Place, str | None] = {}

    def shard(a: Any, axis: str | None) -> Shard:
        m, *inner, n = (*a.shape, 1) if a.ndim == 1 else a.shape
        n = n if axis is None else n // sizes[axis]
        cut = (batch, *(None for _ in inner), axis)
        return Shard((m // sizes.get(batch or "", 1), *inner, n)[: a.ndim], a.dtype, cut[: a.ndim])

    def visit(place: Place, part: Layer, p: Params, a: Any, **given: Any) -> tuple[Any, Any]:
        if id(a) not in over and any(axis for _, axis in over.values()):
            remedy = "leave what comes before whole"
            raise LayerError(part, "what another layer gives as the input, where one is cut", "another array", remedy)
        _, axis = over.setdefault(id(a), (a, None))
        a_out, cache = run_forward(part, p, a, **given)
        if not is_walked(part):
            sends = part.collectives(held[place].params, shard(a, axis), shard(a_out, None))
            ran.append(_Ran(place, held[place].name, part, a, axis, sends))
            over[id(a_out)] = a_out, sends.a_out
        elif id(a_out) not in over:
            of_parts = tuple(outputs[*place, i] for i in range(len(part.layers)))  # pyright: ignore
            over[id(a_out)] = a_out, part.joined_over(of_parts)  # pyright: ignore[reportAttributeAccessIssue]
        if getattr(part, "looped", False):
            loops.append(place)
        outputs[place] = over[id(a_out)][1]
        return a_out, cache

    def inputs(params: Params, x: Any) -> list[Any]:
        visited(net, params, x, visit)
        return [layer.a_in for layer in ran]

    depends = _depends(inputs, params, x)
    below = {layer.place: needed for layer, needed in zip(ran, depends, strict=True)}
    for loop in loops:
        first = len(loop)
        for place in [p for p in below if p[:first] == loop and p[first : first + 1] == (0,)]:
            below[place] |= below.get((*loop, 1, *place[first + 1 :]), False)
    rows = []
    for place, name, layer, _, axis, sends in ran:
        if sends.a_in != axis and (axis or below[place]):
            wanted, got = (f"cut over {a!r} along their last axis" if a else "whole" for a in (sends.a_in, axis))
            remedy = "cut the outputs of one layer and the inputs of the next over the same axis"
            raise LayerError(layer, f"inputs that are {wanted}", f"inputs that are {got}", remedy, place)
        for order, psums in enumerate((sends.forward, sends.propagate if below[place] else ())):
            rows += [(place, order, _row(name, equation, over, 1, *about)) for equation, over, *about in psums]
    return rows, outputs[()], [(layer.place, layer.sends.fixed) for layer in ran]


def _depends(f: Callable, params: Params, x: Any) -> list[bool]:
    """Whether each array that f(params, x) returns depends on the parameters."""
    jaxpr = jax.make_jaxpr(f)(params, x).jaxpr
    known = set(map(id, jaxpr.invars[: len(jax.tree.leaves(params))]))
    for equation in jaxpr.eqns:
        if any(id(v) in known for v in equation.invars):
            known.update(map(id, equation.outvars))
    return [id(v) in known for v in jaxpr.outvars]
