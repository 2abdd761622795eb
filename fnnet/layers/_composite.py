"""Composition, said once: what a layer made of layers does, whatever its wiring.

The chain rule needs no tape. A composite runs its parts in some order and hands each one's output on; the errors travel the
same wires in the opposite direction. Where a value goes to several parts, the errors that come back from them add up; where
several values are joined, the error is split among them. So a composite says its parts and two short functions, `wire` and
`unwire`, and all that a layer must do follows from them.

Source: the notes, section 3.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..activations import Activation
from ..forms import below_all_kept
from ._cut import channelwise
from ._layer import (
    Cache,
    Delta,
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    added_up,
    as_floats,
    check_key,
    gram_of,
    layer,
    located,
    run_forward,
    second_moment_of,
    split_key,
    square_norms_of,
)

__all__ = ["Composite", "Identity", "Join", "Network", "Parallel", "Residual", "add", "concatenate"]

RunPart = Callable[[int, Array], Array]
Back = Callable[[int, Any], Any]
Visit = Callable[..., tuple[Array, Cache]]


class Composite(Layer):
    """A layer made of layers. Decorate a subclass with ``@fn.layer``; it says three things.

    - ``layers``: its parts, a tuple (a field, or a property).
    - ``wire(run, a_in) -> (a_out, extra)``: the forward pass, in which ``run(i, a)`` is the output of part i. Each part runs
      once. ``extra`` is what `unwire` has to know beside, None for nothing.
    - ``unwire(back, da_out, extra) -> da_in``: the backward pass, in which ``back(i, da)`` turns ∂C/∂(output of part i) into
      ∂C/∂(its input). It calls `back` once for each part, a part after those that it feeds. ``da_out`` is None where every
      part's error is known already; `unwire` then hands None on.

    ``last`` is the index of the part whose output is the composite's own, through which a matched cost enters; None (the
    default) where the output is made of several.

    Parameters, errors, states and probes are tuples with an entry for each part, and so are caches, with ``extra`` at the end
    where there is one. Each part gets a key of its own. A subclass with parameters of another structure also writes `parts`
    and `joined`; one whose parts share arrays, of which `joined` adds up the gradients, `gathered` as well.
    """

    layers: tuple[Layer, ...]
    last: ClassVar[int | None] = None
    _looped: ClassVar[bool] = False
    """Whether its parts are one loop in the compiled program, in which the first does what the others do."""
    _reruns: ClassVar[bool] = False
    """Whether their forward pass may run more than once."""

    def __post_init__(self) -> None:
        _check_layers(self.layers)

    def wire(self, run: RunPart, a_in: Array) -> tuple[Array, Any]:
        """(a_out, extra) by ``run(i, a)``."""
        raise NotImplementedError(f"{type(self).__name__} defines no wire(run, a_in) -> (a_out, extra)")

    def unwire(self, back: Back, da_out: Any, extra: Any) -> Any:
        """da_in by ``back(i, da)``."""
        raise NotImplementedError(f"{type(self).__name__} defines no unwire(back, da_out, extra) -> da_in")

    def parts(self, params: Params) -> tuple[tuple[Layer, Params], ...]:
        """The parts, each with its parameters."""
        return tuple(zip(self.layers, self._entries("parameters", params, "init"), strict=True))

    def joined(self, of_parts: tuple[Params, ...]) -> Params:
        """The parts' gradients in the structure of the composite's parameters: the transpose of `parts`."""
        return of_parts

    def gathered(self, of_parts: tuple[Params, ...]) -> Params:
        """The parts' parameters in the structure of the composite's: the inverse of `parts`. It is `joined` where the parts
        share no arrays."""
        return self.joined(of_parts)

    def _entries(self, what: str, tree: Any, source: str) -> tuple[Any, ...]:
        n = len(self.layers)
        if tree is None and what != "parameters":
            return (None,) * n
        if not isinstance(tree, tuple | list) or len(tree) != n:
            got = f"{len(tree)} entries" if isinstance(tree, tuple | list) else type(tree).__name__
            remedy = f"use what {source} of an equal network returned"
            raise LayerError(self, f"{what} with {n} entries, one per layer", got, remedy)
        return tuple(tree)

    def _keys(self, key: Any) -> list[Any]:
        """The key of each part."""
        return split_key(key, len(self.layers))

    @property
    def independent(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(getattr(part, "independent", False) for part in self.layers)

    @property
    def kept(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return all(getattr(part, "kept", False) for part in self.layers)

    def _joined_over(self, over: tuple[str | None, ...]) -> str | None:
        """The axis of a mesh over which the last axis of the output is cut, from that of each part's output.

        Raises:
            LayerError: by default, for an output that `wire` makes of some that are cut.
        """
        if self.output_part is not None:
            return over[self.output_part]
        if any(over):
            remedy = "cut the last layer of each by its inputs"
            raise LayerError(self, "outputs of its parts that each device holds whole", str(over), remedy)
        return None

    def in_loop(self) -> Self:
        return self.mapped(lambda part: part.in_loop())

    def mapped(self, change: Callable[[Layer], Layer]) -> Any:
        """This composite of changed parts: every field that is a layer, or a tuple of layers."""
        twin = copy.copy(self)
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if isinstance(value, Layer):
                object.__setattr__(twin, field.name, change(value))
            elif isinstance(value, tuple) and value and all(isinstance(part, Layer) for part in value):
                object.__setattr__(twin, field.name, tuple(change(part) for part in value))
        return twin

    def init(self, key: Array, input_shape: Shape) -> Params:
        """One entry per layer; ``input_shape`` is the shape of one example, such as (784,)."""
        if check_key(key) is None:
            raise ValueError(
                "key: expected one PRNG key to draw parameters with, got None; make one with jax.random.key(seed)"
            )
        shapes, _ = self._shapes(check_shape(self, input_shape))
        params = []
        for i, (part, k) in enumerate(zip(self.layers, split_key(key, len(shapes)), strict=True)):
            with located(i):
                params.append(part.init(k, shapes[i]))
        return self.gathered(tuple(params))

    def output_shape(self, input_shape: Shape) -> Shape:
        if not is_walked(self):
            return super().output_shape(input_shape)
        return self._shapes(check_shape(self, input_shape))[1]

    def _shapes(self, input_shape: Shape) -> tuple[list[Shape], Shape]:
        """The input shape of each part, and the output's."""
        shapes: list[Any] = [None] * len(self.layers)

        def run(i: int, a: Array) -> Array:
            i = range(len(shapes))[i]
            shapes[i] = a.shape[1:]
            with located(i):
                return jnp.zeros((1, *self.layers[i].output_shape(shapes[i])))

        a = jax.ShapeDtypeStruct((1, *input_shape), jnp.result_type(float))
        a_out = jax.eval_shape(lambda a: self.wire(run, a)[0], a)
        self._check_run(shapes)
        return shapes, a_out.shape[1:]

    def forward(
        self, params: Params, a_in: Array, *, key: Key = None, train: bool = False, mask: Array | None = None,
        probe: Delta = None, state: Any = None, run: Visit | None = None,
    ) -> tuple[Array, Cache]:  # fmt: skip
        """``run(i, layer, params, a_in, **given)`` stands for `run_forward` of part i where it is given: what looks inside a
        network (the audit) hands its own down."""
        parts, run = self.parts(params), run or _run_part
        given = zip(
            self._keys(key),
            self._entries("a probe", probe, "error"),
            self._entries("a state", state, "apply_from or final_state"),
            strict=True,
        )
        of_parts = [{"key": k, "probe": q, "state": s, "train": train, "mask": mask} for k, q, s in given]
        outputs: list[Any] = [None] * len(parts)
        caches: list[Any] = [None] * len(parts)

        def run_part(i: int, a: Array) -> Array:
            i = range(len(parts))[i]
            if outputs[i] is not None:
                remedy = "run each part once; weights that are used twice are tied: fn.Tied"
                raise LayerError(parts[i][0], "one run of each part in wire", "two", remedy, (i,))
            with located(i):
                outputs[i], caches[i] = run(i, *parts[i], a, **of_parts[i])
            return outputs[i]

        a_out, extra = self.wire(run_part, a_in)
        self._check_wiring(outputs, a_out)
        return a_out, (*caches, *(() if extra is None else (extra,)))

    def _check_run(self, of_parts: list[Any]) -> None:
        for i, of_one in enumerate(of_parts):
            if of_one is None:
                remedy = "run each part once in wire, or leave it out"
                raise LayerError(self.layers[i], "one run of each part in wire", "none", remedy, (i,))

    def _check_wiring(self, outputs: list[Any], a_out: Array) -> None:
        self._check_run(outputs)
        last, own = self.last, self.output_part
        found = next((i for i in reversed(range(len(outputs))) if outputs[i] is a_out), None)
        if (own is None) != (found is None) or (own is not None and outputs[own] is not a_out):
            expected = f"last = {found}, since wire returns what part {found} gives"
            if found is None:
                expected = "last = None, since wire returns what no part gives"
            raise LayerError(
                self, expected, f"last = {last}", f"write it in {type(self).__name__}: a cost enters there"
            )

    def moving(self, params: Params, cache: Cache) -> Params:
        if not has_moving(self):
            return params
        return self.gathered(tuple(part.moving(p, cache[i]) for i, (part, p) in enumerate(self.parts(params))))

    def final_state(self, cache: Cache) -> Any:
        states = []
        for i, part in enumerate(self.layers):
            with located(i):
                states.append(part.final_state(cache[i]))
        return tuple(states)

    @property
    def output_part(self) -> int | None:
        """``last`` counted from the front."""
        return None if self.last is None else self.last % len(self.layers)

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array] | None:
        if (i := self.output_part) is None:
            return None
        part, p = self.parts(params)[i]
        return part.output(p, cache[i])

    def error(self, params: Params, cache: Cache, da_out: Any) -> tuple[Delta, ...]:
        """Every part's δ, each after those that it feeds."""
        return self._errors(params, cache, da_out, at_output=False)

    def output_error(self, params: Params, cache: Cache, delta: Delta) -> tuple[Delta, ...]:
        """Every part's δ given δ^L."""
        return self._errors(params, cache, delta, at_output=True)

    def propagate(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        return self._backwards(params, cache, None, lambda i, part, p, da: part._propagated(p, cache[i], delta[i]))

    def gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        """Every part's BP3 and BP4."""
        parts = self.parts(params)
        return self.joined(tuple(part.gradients(p, cache[i], delta[i]) for i, (part, p) in enumerate(parts)))

    def example_gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        """Every part's, joined for each example."""
        of_parts = self._of_parts("example_gradients", params, cache, delta)
        return jax.vmap(self.joined)(of_parts) if jax.tree.leaves(of_parts) else self.joined(of_parts)

    def square_norms(self, params: Params, cache: Cache, delta: Delta) -> Array:
        """The sum over the parts, unless they share arrays: then of the joined gradients."""
        if not self._apart:
            return square_norms_of(self.example_gradients(params, cache, delta), delta)
        return added_up(self._of_parts("square_norms", params, cache, delta), delta)

    def second_moment(self, params: Params, cache: Cache, delta: Delta) -> Params:
        """Every part's, unless they share arrays: then of the joined gradients."""
        if not self._apart:
            return second_moment_of(self.example_gradients(params, cache, delta))
        return self.joined(self._of_parts("second_moment", params, cache, delta))

    def factor_rows(self, params: Params, cache: Cache, delta: Delta) -> Any:
        return self._of_parts("factor_rows", params, cache, delta)

    def _gram(self, params: Params, cache: Cache, delta: Delta) -> Array:
        if not self._apart:
            return gram_of(self.example_gradients(params, cache, delta), delta)
        return added_up(self._of_parts("_gram", params, cache, delta), delta, 2)

    @property
    def _apart(self) -> bool:
        """Whether no parts share an array, so that sums over entries are sums over parts; a `joined` of one's own may add."""
        return type(self).joined is Composite.joined

    def _of_parts(self, method: str, params: Params, cache: Cache, delta: Delta) -> tuple[Any, ...]:
        of_parts = []
        for i, (part, p) in enumerate(self.parts(params)):
            with located(i):
                of_parts.append(getattr(part, method)(p, cache[i], delta[i]))
        return tuple(of_parts)

    def backward(self, params: Params, cache: Cache, da_out: Any) -> tuple[Array | None, Params]:
        return self._backward(params, cache, da_out, at_output=False)

    def output_backward(self, params: Params, cache: Cache, delta: Delta) -> tuple[Array | None, Params]:
        return self._backward(params, cache, delta, at_output=True)

    def _errors(self, params: Params, cache: Cache, da: Any, *, at_output: bool) -> tuple[Delta, ...]:
        deltas: list[Any] = [None] * len(self.layers)

        def through(i: int, part: Layer, p: Params, da: Any) -> Any:
            equation = part.output_error if at_output and i == self.output_part else part.error
            deltas[i] = equation(p, cache[i], da)
            return part._propagated(p, cache[i], deltas[i])

        self._backwards(params, cache, da, through)
        return tuple(deltas)

    def _backward(self, params: Params, cache: Cache, da: Any, *, at_output: bool) -> tuple[Any, Params]:
        gradients: list[Any] = [None] * len(self.layers)

        def through(i: int, part: Layer, p: Params, da: Any) -> Any:
            equation = part.output_backward if at_output and i == self.output_part else part.backward
            da, gradients[i] = equation(p, cache[i], da)
            return da

        da_in = self._backwards(params, cache, da, through)
        return da_in, self.joined(tuple(gradients))

    def _backwards(self, params: Params, cache: Cache, da_out: Any, through: Callable[..., Any]) -> Any:
        """`unwire` with the equations of ``through``, which must reach each part once."""
        parts, reached, silent = self.parts(params), set(), []

        def back(i: int, da: Any) -> Any:
            i = range(len(parts))[i]
            if i in reached:
                raise LayerError(
                    parts[i][0], "one back of each part in unwire", "two", "add up what comes back first", (i,)
                )
            if da is None and da_out is not None:
                l = silent[-1] if silent else i
                remedy = "write its propagate(params, cache, delta); a layer of integer inputs must come first"
                raise LayerError(parts[l][0], "∂C/∂a_in for the layer below", "None", remedy, (l,))
            reached.add(i)
            with located(i):
                da = through(i, *parts[i], da)
            if da is None:
                silent.append(i)
            return da

        da_in = self.unwire(back, da_out, cache[len(parts)] if len(cache) > len(parts) else None)
        for i in set(range(len(parts))) - reached:
            raise LayerError(parts[i][0], "one back of each part in unwire", "none", "hand its error back to it", (i,))
        return da_in


def _run_part(i: int, part: Layer, params: Params, a_in: Array, **given: Any) -> tuple[Array, Cache]:
    return run_forward(part, params, a_in, **given)


def is_walked(net: Layer) -> bool:
    """Whether it is a composite whose forward pass is that of its parts: one with a forward pass of its own hides them."""
    return isinstance(net, Composite) and "run" in net._keywords


class Placed(NamedTuple):
    """A layer in its place, such as (2, 0) for the first part of the third layer."""

    place: tuple[int, ...]
    layer: Layer
    params: Params
    key: Any

    @property
    def name(self) -> str:
        return f"{'.'.join(map(str, self.place or (0,)))} {self.layer._title}"


def walk(net: Layer, params: Params, key: Any = None, place: tuple[int, ...] = ()) -> Iterator[Placed]:
    """The layers at the bottom of every composite, in order, each with its parameters and its key."""
    if not is_walked(net):
        yield Placed(place, net, params, key)
        return
    parts = net.parts(params)  # pyright: ignore[reportAttributeAccessIssue]
    for i, ((part, p), k) in enumerate(zip(parts, net._keys(key), strict=True)):  # pyright: ignore
        yield from walk(part, p, k, (*place, i))


class Run(NamedTuple):
    """A part of a composite after a forward pass."""

    layer: Layer
    params: Params
    a_in: Array
    a_out: Array
    cache: Cache


def run_parts(net: Layer, params: Params, a_in: Array, **given: Any) -> dict[int, Run]:
    """The parts of a composite in the order in which a forward pass runs them, by index."""
    seen = {}

    def run(i: int, part: Layer, p: Params, a: Array, **about: Any) -> tuple[Array, Cache]:
        a_out, cache = run_forward(part, p, a, **about)
        seen[i] = Run(part, p, a, a_out, cache)
        return a_out, cache

    run_forward(net, params, a_in, run=run, **given)
    return seen


def composites(net: Layer, params: Params, key: Any = None, place: tuple[int, ...] = ()) -> Iterator[Placed]:
    """The composites that `walk` goes through, the inner ones first."""
    if is_walked(net):
        parts = net.parts(params)  # pyright: ignore[reportAttributeAccessIssue]
        for i, ((part, p), k) in enumerate(zip(parts, net._keys(key), strict=True)):  # pyright: ignore
            yield from composites(part, p, k, (*place, i))
        yield Placed(place, net, params, key)


def visited(net: Layer, params: Params, a_in: Array, visit: Visit, **given: Any) -> Array:
    """The output of a net all of whose layers are run by ``visit(place, layer, params, a_in, **given)`` -> (a_out, cache),
    composites too: they are given a ``run`` that visits their parts."""

    def run(place: tuple[int, ...], part: Layer, p: Params, a: Array, **given: Any) -> tuple[Array, Cache]:
        inner = {"run": lambda i, *args, **about: run((*place, i), *args, **about)} if is_walked(part) else {}
        return visit(place, part, p, a, **given, **inner)

    return run((), net, params, a_in, **given)[0]


def bottom(net: Layer) -> Iterator[Layer]:
    """The layers of `walk`, without parameters."""
    if not is_walked(net):
        yield net
        return
    for part in net.layers:  # pyright: ignore[reportAttributeAccessIssue]
        yield from bottom(part)


def by_layer(net: Layer, errors: Any) -> list[Any]:
    """The errors of each layer of `walk`."""
    if not is_walked(net):
        return [errors]
    layers = net.layers  # pyright: ignore[reportAttributeAccessIssue]
    return [leaf for part, entry in zip(layers, errors, strict=True) for leaf in by_layer(part, entry)]


def has_moving(net: Layer) -> bool:
    """Whether some layer has moving statistics."""
    return any(part._moves for part in bottom(net))


def output_place(net: Layer) -> tuple[int, ...] | None:
    """The place of the layer whose output is the net's, through which a matched cost enters."""
    place: tuple[int, ...] = ()
    while is_walked(net):
        i = net.output_part  # pyright: ignore[reportAttributeAccessIssue]
        if i is None:
            return None
        place, net = (*place, i), net.layers[i]  # pyright: ignore[reportAttributeAccessIssue]
    return place


@layer
class Network(Composite):
    """Layers applied one after another; itself a layer, so networks nest. ``net[0]`` is a layer, ``net[1:]`` a network.

    Parameters, caches and errors are tuples with one entry per layer. Each layer gets a key of its own, split from the
    one key of the call.

    Raises:
        ValueError: for no layers; a LayerError for something that is no layer.
    """

    layers: tuple[Layer, ...]

    last: ClassVar[int | None] = -1

    def __init__(self, *layers: Layer) -> None:
        object.__setattr__(self, "layers", layers)
        if not layers:
            raise ValueError(
                "Network(): expected at least one layer, got none; as in fn.Network(fn.Dense(10, fn.softmax))"
            )
        _check_layers(layers)

    def wire(self, run: RunPart, a_in: Array) -> tuple[Array, Any]:
        return functools.reduce(lambda a, i: run(i, a), range(len(self.layers)), a_in), None

    def unwire(self, back: Back, da_out: Any, extra: Any) -> Any:
        """From last to first: BP1, then BP2 layer by layer."""
        return functools.reduce(lambda da, i: back(i, da), reversed(range(len(self.layers))), da_out)

    def in_loop(self) -> Self:
        kept = below_all_kept(self.layers)
        return self.mapped(lambda part: part.in_loop() if next(kept) else part)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, index: int) -> Layer: ...
    @overload
    def __getitem__(self, index: slice) -> "Network": ...
    def __getitem__(self, index: int | slice) -> "Layer | Network":
        return Network(*self.layers[index]) if isinstance(index, slice) else self.layers[index]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.layers))})"


@layer
class Identity(Layer):
    """a = a_in: the wire past the other branches of `Residual`. No parameters; its error δ is ∂C/∂a_out."""

    independent = True
    collectives = channelwise

    def forward(self, params: Params, a_in: Array, *, probe: Array | None = None) -> tuple[Array, Cache]:
        return a_in if probe is None else a_in + probe, ()

    def propagate(self, params: Params, cache: Cache, delta: Array) -> Array:
        return delta


@jax.tree_util.register_static
@dataclass(frozen=True)
class Join:
    """How several outputs become one, and how its error is split among them.

    Attributes:
        name: shown in errors and pictures.
        value: (*outputs) -> a_out; it raises a ValueError that says what it expects of them.
        split: (da_out, *outputs) -> a tuple with ∂C/∂a of each output.
    """

    name: str
    value: Callable[..., Array]
    split: Callable[..., tuple[Array, ...]]

    def __repr__(self) -> str:
        return self.name


def _sum(*outputs: Array) -> Array:
    if len({a.shape for a in outputs}) > 1:
        raise ValueError("outputs of one shape, to add them")
    return functools.reduce(jnp.add, outputs)


def _side_by_side(*outputs: Array) -> Array:
    if outputs[0].ndim < 2 or len({a.shape[:-1] for a in outputs}) > 1:
        raise ValueError("outputs of one shape but for the last axis, to put them side by side")
    return jnp.concatenate(outputs, axis=-1)


def _parted(da: Array, *outputs: Array) -> tuple[Array, ...]:
    return tuple(jnp.split(da, np.cumsum([a.shape[-1] for a in outputs])[:-1], axis=-1))


def _to_each(da: Array, *outputs: Array) -> tuple[Array, ...]:
    return (da,) * len(outputs)


add: Join = Join("add", _sum, _to_each)
concatenate: Join = Join("concatenate", _side_by_side, _parted)


@layer
class Parallel(Composite):
    """Branches that all read the same input, their outputs joined: a = join(a_1, a_2, …).

    The error of a_out is split among the branches, and what they send back adds up, since each of them read a_in:
    ∂C/∂a_in = Σ_b ∂C/∂a_in of branch b. Parameters and errors are tuples with one entry per branch.

    Args:
        branches: two layers or more.
        join: ``fn.add`` (outputs of one shape; the default), ``fn.concatenate`` (along the last axis), or a `Join` of your
            own. Integers beside floats become floats.

    Raises:
        LayerError: for a single branch, something that is no layer or no join, outputs that do not fit each other, and a
            join whose errors do not fit the outputs.
    """

    layers: tuple[Layer, ...]
    join: Join = add

    _example = "fn.Parallel(fn.Identity(), fn.Dense(10, fn.tanh), join=fn.add)"

    def __init__(self, *branches: Layer, join: Join = add) -> None:
        object.__setattr__(self, "layers", branches)
        object.__setattr__(self, "join", join)
        _check_layers(branches)
        if len(branches) < 2:
            raise LayerError(self, "two branches or more", f"{len(branches)}", f"as in {self._example}")
        if not isinstance(join, Join):
            raise LayerError(self, "a join", repr(join), "give fn.add, fn.concatenate or an fn.Join of your own")

    def wire(self, run: RunPart, a_in: Array) -> tuple[Array, Any]:
        outputs = tuple(run(i, a_in) for i in range(len(self.layers)))
        if floats := [a.dtype for a in outputs if jnp.issubdtype(a.dtype, jnp.floating)]:
            outputs = tuple(as_floats(self, a, floats[0]) for a in outputs)
        try:
            return self.join.value(*outputs), outputs
        except ValueError as error:
            shapes = " and ".join(str(("m", *a.shape[1:])).replace("'", "") for a in outputs)
            raise LayerError(self, str(error), shapes, "give the last layers of the branches as many units") from None

    def unwire(self, back: Back, da_out: Any, extra: Any) -> Any:
        das = (None,) * len(self.layers) if da_out is None else self._split(da_out, extra)
        back_in = [back(i, da) for i, da in enumerate(das)]
        return None if any(da is None for da in back_in) else functools.reduce(jnp.add, back_in)

    def _joined_over(self, over: tuple[str | None, ...]) -> str | None:
        return over[0] if self.join is add and len(set(over)) == 1 else super()._joined_over(over)

    def _split(self, da_out: Any, outputs: tuple[Array, ...]) -> tuple[Array, ...]:
        das = self.join.split(da_out, *outputs)
        wanted, got = [a.shape for a in outputs], [jnp.shape(da) for da in das]
        if got != wanted:
            remedy = f"mend the split of {self.join!r}: one error for each output, shaped like it"
            raise LayerError(self, f"errors of shapes {wanted}", str(got), remedy)
        return das

    def __repr__(self) -> str:
        return f"Parallel({', '.join(map(repr, self.layers))}, join={self.join!r})"


def Residual(*layers: Layer) -> Parallel:
    """a = a_in + f(a_in), with f the layers one after another: ``Parallel(Identity(), Network(*layers))``.

    The error goes back through f and past it: ∂C/∂a_in = δ + (∂f/∂a_in)ᵀ δ.

    Source: He et al. (2015).
    """
    return Parallel(Identity(), Network(*layers))


def _check_layers(layers: tuple[Any, ...]) -> None:
    for i, part in enumerate(layers):
        if not isinstance(part, Layer):
            remedy = "build a layer, as in fn.Dense(10, fn.softmax); decorate a class of your own with @fn.layer"
            raise LayerError(part, "a layer", type(part).__name__, remedy, (i,))


def check_shape(owner: Layer, shape: Any) -> Shape:
    if isinstance(shape, tuple | list) and all(isinstance(n, int | np.integer) and n > 0 for n in shape):
        return tuple(int(n) for n in shape)
    remedy = "give the shape of one example as a tuple, such as (784,)"
    raise LayerError(owner, "an input shape of positive integers", repr(shape), remedy)
