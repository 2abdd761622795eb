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
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from .columns import aligned
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
        count: how many, or fewer, since the compiler joins those that do not wait for each other (of two branches, say); 0
            for what goes in one with another over the same axis, as BP3 and BP4 do with C.
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
        return "\n".join(aligned(lines, right=2))


def collectives(
    net: Layer,
    params: Params,
    specs: Any,
    *,
    batch: str | tuple[str, ...] | None = "data",
    shape: Shape | None = None,
    mesh: Any = None,
    penalty: L1 | L2 | None = None,
) -> Collectives:
    """The collectives of value and gradients, declared equation by equation, of arrays that live on a mesh so.

    With the batch cut over d devices, each has C, ∂C/∂w and ∂C/∂b of its m/d examples, and their mean over the devices is
    one all-reduce of them all. A product whose summed axis is cut over other devices leaves partial sums, of which there is
    one all-reduce: of z where w is cut by n_in, of BP2's δ w where it is cut by n_out. `data_parallel` compiles to this, with
    parameters that live so. (``jax.jit`` with these ``in_shardings`` does too, but for what it sends more than once: a tied
    array's gradient for each place, those of `Repeat` in each repetition, of a cell that recomputes for each segment, and
    with ``micro_batch=`` all of them for each chunk.)

    Args:
        net: a network or a single layer.
        params: from ``net.init``, or ``jax.ShapeDtypeStruct`` in their place; nothing is computed.
        specs: how they are cut, a ``jax.sharding.PartitionSpec`` or ``NamedSharding`` for each, or a prefix of the structure
            as of ``jax.jit``'s ``in_shardings``: ``P()`` for all of them whole on every device.
        batch: the axis of the mesh over which the examples are cut, or a tuple of axes; None for a batch that is whole on
            every device. Where the first layer is cut by n_in, the examples are, too.
        shape: the batch's, (m, ...), of all devices together: needed where more is sent than gradients.
        mesh: a ``jax.sharding.Mesh``, an ``AbstractMesh``, or sizes of axes such as {"data": 4, "model": 2}; by default that
            of a ``NamedSharding`` among the specs, or the one that is set.
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
    specs = _specs(specs, params)
    on = _mesh(mesh, specs, batch)
    shards = _shards(params, specs, on)
    leaves = jax.tree_util.tree_leaves_with_path(shards)
    dtypes = [leaf.dtype for _, leaf in leaves] or [jnp.result_type(float)]
    dtype = jnp.float64 if jnp.float64 in dtypes else jnp.float32
    sent = _Sent([], None, [], set())
    if any(any(leaf.cut) for _, leaf in leaves) or any(map(_declares, bottom(net))):
        sent = _sent(net, params, shards, on, _input(net, params, shape, on))
    placed = sent.rows + (_sums(net, params, shards, on.batch, sent.fixed) if on.batch else [])
    rows = [row for *_, row in sorted(placed, key=lambda placed: placed[:2])]
    if on.batch:
        rows.append(_row("cost", "C", on.batch, 1, (), dtype))
    values = [("cost", "C", sent.output)] if sent.output else []
    if penalty is not None:
        of = lambda path: f"{type(penalty).__name__} {_name(path)}"  # noqa: E731
        cut = [(path, axis) for path, leaf in leaves for axis in leaf.cut if axis and is_weight(path)]
        values += [("penalty", of(path), axis) for path, axis in cut]
    joining = set(sent.joining)
    for layer, equation, axis in values:
        rows.append(_row(layer, equation, axis, int(axis not in joining), (), dtype))
        joining.add(axis)
    return Collectives(tuple(rows))


def _row(layer: str, equation: str, axis: str, count: int, shape: Shape, dtype: Any) -> Collective:
    return Collective(layer, equation, "all-reduce", axis, count, math.prod(shape) * jnp.dtype(dtype).itemsize)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _declares(part: Layer) -> bool:
    """Whether a layer mixes examples and says what that sends."""
    return not part.independent and type(part).collectives is not Layer.collectives


class _On(NamedTuple):
    """A mesh: the sizes of its axes, {} where none is known; the axis of the batch, "" where it is not cut; its parts."""

    sizes: dict[str, int]
    batch: str
    parts: int


def _mesh(mesh: Any, specs: Sequence[Any], batch: str | tuple[str, ...] | None) -> _On:
    if mesh is None:
        meshes = [spec.mesh for spec in specs if isinstance(spec, NamedSharding)]
        mesh = meshes[0] if meshes else jax.sharding.get_abstract_mesh()
    if not isinstance(mesh, Mapping | Mesh | AbstractMesh):
        got = type(mesh).__name__
        raise ValueError(f"mesh: expected a jax.sharding.Mesh or the sizes of its axes, got {got}; as in {{'data': 8}}")
    sizes = dict(mesh if isinstance(mesh, Mapping) else mesh.shape)
    axes = () if batch is None else batch if isinstance(batch, tuple) else (batch,)
    if missing := [axis for axis in axes if sizes and axis not in sizes]:
        raise ValueError(
            f"batch: expected an axis of the mesh, {', '.join(map(repr, sizes))}, or None, got {missing[0]!r}; name the "
            f"axis over which the examples are cut"
        )
    cut = [axis for axis in axes if sizes.get(axis) != 1]
    return _On(sizes, ",".join(cut), math.prod(sizes.get(axis, 1) for axis in cut))


def _specs(specs: Any, params: Params) -> list[Any]:
    """The spec of each parameter."""
    is_leaf = lambda s: s is None or isinstance(s, PartitionSpec | NamedSharding)  # noqa: E731
    expected = "specs: expected a PartitionSpec or NamedSharding for each parameter, or for a part of their structure"
    try:
        found = jax.tree.leaves(jax.tree.broadcast(specs, params, is_leaf=is_leaf), is_leaf=is_leaf)
    except ValueError as error:
        raise ValueError(
            f"{expected}, got another structure; P() cuts none of them. {str(error).splitlines()[0]}"
        ) from None
    if others := [spec for spec in found if not is_leaf(spec)]:
        raise ValueError(f"{expected}, got {type(others[0]).__name__}; as in P('model', None)")
    return [PartitionSpec() if spec is None else spec for spec in found]


def _shards(params: Params, specs: Sequence[Any], on: _On) -> Params:
    """What a device holds of each parameter."""

    def shard(path: Any, leaf: Any, spec: Any) -> Shard:
        spec = spec.spec if isinstance(spec, NamedSharding) else spec
        name, cut = f"specs{jax.tree_util.keystr(path)}", (*spec, *(None,) * (len(leaf.shape) - len(spec)))
        if len(spec) > len(leaf.shape) or not all(axis is None or isinstance(axis, str) for axis in cut):
            remedy = "as in P('model', None)"
            raise ValueError(
                f"{name}: expected at most one axis of a mesh for each axis of {leaf.shape}, got {spec}; {remedy}"
            )
        for n, axis in ((n, axis) for n, axis in zip(leaf.shape, cut, strict=True) if axis is not None):
            if axis not in on.sizes:
                known = f"a mesh of {', '.join(map(repr, on.sizes))}" if on.sizes else "no mesh"
                remedy = "give mesh=, a Mesh or the sizes of its axes such as {'data': 4, 'model': 2}"
                raise ValueError(f"{name}: expected an axis of the mesh, got {axis!r} with {known}; {remedy}")
            if axis in on.batch.split(","):
                remedy = "cut parameters over another one, or not at all"
                raise ValueError(f"{name}: expected another axis than the batch's, got {axis!r}; {remedy}")
            if n % on.sizes[axis]:
                got = f"{n} entries for the {on.sizes[axis]} devices of {axis!r}"
                raise ValueError(f"{name}: expected a number that the devices divide, got {got}; cut another axis")
        parts = tuple(n // (1 if axis is None else on.sizes[axis]) for n, axis in zip(leaf.shape, cut, strict=True))
        return Shard(parts, leaf.dtype, tuple(a if a and on.sizes[a] > 1 else None for a in cut))

    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    return structure.unflatten(shard(*leaf, spec) for leaf, spec in zip(leaves, specs, strict=True))


Rows = list[tuple[Place, int, Collective]]
"""Each with the place of its layer, and 0 for the forward pass, 1 for BP2 and 2 for BP3 and BP4."""


def _sums(net: Layer, params: Params, shards: Params, axis: str, fixed: list[tuple[Place, str]]) -> Rows:
    """BP3 and BP4 of each leaf, in the innermost layer that holds it: in the first that does where several share it."""
    owners: list[tuple[Place, str, Any]] = []

    def look(params: Params) -> tuple[()]:
        found: dict[int, tuple[Place, str, Any]] = {}
        for node in (*walk(net, params), *composites(net, params)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(node.params):
                found.setdefault(id(leaf), (node.place, node.name, path))
        owners.extend(found[id(leaf)] for leaf in jax.tree.leaves(params))
        return ()

    jax.eval_shape(look, params)
    rows = []
    for (place, layer, path), leaf in zip(owners, jax.tree.leaves(shards), strict=True):
        name = _name(path)
        last = name.rpartition(".")[2]
        if not any(at[: len(place)] == place and last == leaf for at, leaf in fixed):
            equation = "BP3" if last == "b" or last.startswith("b_") else "BP4"
            rows.append((place, 2, _row(layer, f"{equation} {name}", axis, 0, leaf.shape, leaf.dtype)))
    return rows


def _input(net: Layer, params: Params, shape: Any, on: _On) -> jax.ShapeDtypeStruct:
    """The batch: of floats, or of integers where the net takes those."""
    if not isinstance(shape, tuple | list) or not shape or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(
            f"shape: expected the shape (m, ...) of the batch, as more is sent than gradients, got {shape!r}; as in "
            f"fn.collectives(net, params, specs, shape=(128, 784))"
        )
    if shape[0] % on.parts:
        got = f"{shape[0]} for the {on.parts} devices of {on.batch!r}"
        raise ValueError(f"shape: expected a number of examples that the devices divide, got {got}")
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


class _Sent(NamedTuple):
    """What the layers send themselves; the axis over which the output is cut; the leaves that no gradient trains; the axes
    over which something is sent outside of loops, with which values go."""

    rows: Rows
    output: str | None
    fixed: list[tuple[Place, str]]
    joining: set[str]


def _sent(net: Layer, params: Params, shards: Params, on: _On, x: jax.ShapeDtypeStruct) -> _Sent:
    """From a forward pass that computes nothing, in which each layer is asked with its inputs as they come."""
    held = {node.place: node for node in walk(net, shards)}
    ran: list[_Ran] = []
    loops: list[Place] = []
    reruns: list[Place] = []
    over: dict[int, tuple[Any, str | None]] = {}  # by the array's id, which is kept with it
    outputs: dict[Place, str | None] = {}

    def shard(a: Any, axis: str | None) -> Shard:
        parts = [on.parts] + [1] * (a.ndim - 1)
        cut = [on.batch or None] + [None] * (a.ndim - 1)
        if axis is not None:
            parts[-1], cut[-1] = on.sizes[axis], axis
        return Shard(tuple(n // d for n, d in zip(a.shape, parts, strict=True)), a.dtype, tuple(cut))

    def visit(place: Place, part: Layer, p: Params, a: Any, **given: Any) -> tuple[Any, Any]:
        if id(a) not in over and any(axis for _, axis in over.values()):
            remedy = "leave what comes before whole"
            raise LayerError(part, "what another layer gives as the input, where one is cut", "another array", remedy)
        _, axis = over.setdefault(id(a), (a, None))
        a_out, cache = run_forward(part, p, a, **given)
        if is_walked(part):
            outputs[place] = part._joined_over(tuple(outputs[*place, i] for i in range(len(part.layers))))  # pyright: ignore
            loops.extend([place] if part._looped else [])  # pyright: ignore[reportAttributeAccessIssue]
            reruns.extend([place] if part._reruns else [])  # pyright: ignore[reportAttributeAccessIssue]
        else:
            sends = part.collectives(held[place].params, shard(a, axis), shard(a_out, None))
            ran.append(_Ran(place, held[place].name, part, a, axis, sends))
            outputs[place] = sends.a_out
        over[id(a_out)] = a_out, outputs[place]
        return a_out, cache

    def inputs(params: Params, x: Any) -> list[Any]:
        visited(net, params, x, visit)
        return [layer.a_in for layer in ran]

    needed = _depends(inputs, params, x)
    below = {layer.place: depends for layer, depends in zip(ran, needed, strict=True)}
    for loop in loops:  # all repetitions do what the second needs
        for place in [place for place in below if place[: len(loop) + 1] == (*loop, 0)]:
            below[place] |= below.get((*loop, 1, *place[len(loop) + 1 :]), False)
    rows = []
    for place, name, layer, _, axis, sends in ran:
        if sends.a_in != axis and (axis or below[place]):
            wanted, got = (f"cut over {a!r} along their last axis" if a else "whole" for a in (sends.a_in, axis))
            remedy = "cut the outputs of one layer and the inputs of the next over the same axis"
            raise LayerError(layer, f"inputs that are {wanted}", f"inputs that are {got}", remedy, place)
        if any(place[: len(around)] == around for around in reruns) and (sends.forward or sends.propagate):
            remedy = "take Recompute away, or leave what is in it whole"
            raise LayerError(layer, "a layer whose forward pass runs once", "one inside Recompute", remedy, place)
        for order, psums in enumerate((sends.forward, sends.propagate if below[place] else ())):
            rows += [(place, order, _row(name, equation, over, 1, *about)) for equation, over, *about in psums]
    in_loop = lambda place: any(place[: len(loop)] == loop for loop in loops)  # noqa: E731
    fixed = [(layer.place, name) for layer in ran for name in layer.sends.fixed]
    return _Sent(rows, outputs[()], fixed, {row.axis for place, _, row in rows if not in_loop(place)})


def _depends(f: Callable, params: Params, x: Any) -> list[bool]:
    """Whether each array that f(params, x) returns depends on the parameters."""
    jaxpr = jax.make_jaxpr(f)(params, x).jaxpr
    known = set(map(id, jaxpr.invars[: len(jax.tree.leaves(params))]))
    for equation in jaxpr.eqns:
        if any(id(v) in known for v in equation.invars):
            known.update(map(id, equation.outvars))
    return [id(v) in known for v in jaxpr.outvars]
