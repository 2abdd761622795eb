"""Composites whose parameters or caches are not one entry for each part: tied, repeated and recomputed layers."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..activations import Activation, at_least_float32
from ..forms import after, rowwise
from ._composite import Back, Composite, Network, RunPart, Visit, is_walked
from ._layer import (
    Cache,
    Delta,
    ExampleKeys,
    Key,
    Layer,
    LayerError,
    Params,
    Shape,
    added_up,
    layer,
    located,
    run_forward,
    second_moment_of,
    whole_number,
)

__all__ = ["Recompute", "Repeat", "Tied"]


@layer
class Around(Composite):
    """A composite around another, whose parts and wiring are that one's; by itself, the ordinary passes over them, with a
    cache for each, whatever the other one does."""

    net: Composite

    @property
    def layers(self) -> tuple[Layer, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.net.layers

    @property
    def last(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.net.last

    @property
    def output_part(self) -> int | None:
        return self.net.output_part

    def parts(self, params: Params) -> tuple[tuple[Layer, Params], ...]:
        return self.net.parts(params)

    def joined(self, of_parts: tuple[Params, ...]) -> Params:
        return self.net.joined(of_parts)

    def gathered(self, of_parts: tuple[Params, ...]) -> Params:
        return self.net.gathered(of_parts)

    def wire(self, run: RunPart, a_in: Array) -> tuple[Array, Any]:
        return self.net.wire(run, a_in)

    def unwire(self, back: Back, da_out: Any, extra: Any) -> Any:
        return self.net.unwire(back, da_out, extra)

    def _shapes(self, input_shape: Shape) -> tuple[list[Shape], Shape]:
        return self.net._shapes(input_shape)


@layer
class Tied(Around):
    """A network in which several places use the same array: one leaf of the parameters, in the first place.

    Inside, each place sees the array as its own, so nothing else changes; the gradient of the array is the sum over its uses,
    ∂C/∂w = Σ_places ∂C/∂w_place. Everything else (errors, names in the audit) is the network's.

    Args:
        net: a composite, such as an `Network`.
        places: paths to leaves of its parameters of one shape, entries joined by dots: ``"0.w", "-1.w"``.

    Raises:
        LayerError: for something that is no composite or has a forward pass of its own, fewer than two places, a place
            without a leaf or given twice, or leaves of different shapes.
    """

    net: Composite
    places: tuple[str, ...]

    _example = 'fn.Tied(net, "0.w", "-1.w")'

    def __init__(self, net: Composite, *places: str) -> None:
        object.__setattr__(self, "net", net)
        object.__setattr__(self, "places", places)
        if not isinstance(net, Composite):
            raise LayerError(self, "a network", repr(net), f"as in {self._example}")
        if not is_walked(net):
            remedy = "tie the layers inside it, or put what it does into wire and unwire"
            raise LayerError(self, "a network without a forward pass of its own", type(net).__name__, remedy)
        if len(set(places)) < max(2, len(places)) or not all(
            isinstance(place, str) and "." in place for place in places
        ):
            raise LayerError(self, "two places or more, an entry and a leaf", repr(places), f"as in {self._example}")

    def _at(self, tree: Any, place: str) -> list[Any]:
        """The keys from the top to the leaf."""
        keys: list[Any] = []
        for name in place.split("."):
            found = dict(enumerate(tree)) if isinstance(tree, tuple | list) else tree if isinstance(tree, dict) else {}
            key = int(name) % max(len(found), 1) if name.removeprefix("-").isdecimal() else name
            if key not in found or (key != name and not -len(found) <= int(name) < len(found)):
                remedy = "the places are those of net.init(key, input_shape): entries, then the leaf's name"
                raise LayerError(self, f"parameters with a place {place!r}", f"{sorted(found)} at {name!r}", remedy)
            keys.append(key)
            tree = found[key]  # pyright: ignore[reportArgumentType]
        return keys

    def _changed(self, tree: Any, keys: list[Any], change: Callable[[dict], dict]) -> Any:
        """The tree with the dict that holds the leaf changed."""
        if len(keys) == 1:
            return change(tree)
        if isinstance(tree, dict):
            return {**tree, keys[0]: self._changed(tree[keys[0]], keys[1:], change)}
        return tuple(self._changed(t, keys[1:], change) if i == keys[0] else t for i, t in enumerate(tree))

    def _where(self, tree: Any, place: str) -> list[Any]:
        """As `_at`, for a tree from which the leaf is missing."""
        above, name = place.rsplit(".", 1)
        return [*self._at(tree, above), name]

    def init(self, key: Array, input_shape: Shape) -> Params:
        params = self.net.init(key, input_shape)
        found = [self._at(params, place) for place in self.places]
        first = _leaf(params, found[0])
        for place, keys in zip(self.places, found, strict=True):
            leaf = _leaf(params, keys)
            if not isinstance(keys[-1], str) or not jax.tree_util.all_leaves([leaf]):
                remedy = "end each place with the name of an array, such as w"
                raise LayerError(self, f"an array with a name at {place!r}", type(leaf).__name__, remedy)
            if found.count(keys) > 1:
                raise LayerError(self, "places that differ", f"{place!r} twice", f"as in {self._example}")
            if jnp.shape(leaf) != jnp.shape(first):
                got = f"{jnp.shape(leaf)} in {place!r}"
                remedy = "tie leaves of one shape: an embedding w (V, n) with a Dense(V) on n units, say"
                raise LayerError(self, f"{jnp.shape(first)} as in {self.places[0]!r}", got, remedy)
        return self._once(params)

    def _once(self, params: Params) -> Params:
        """The parameters of ``net`` without the tied leaf in all places but the first."""
        for place in self.places[1:]:
            keys = self._at(params, place)
            params = self._changed(params, keys, functools.partial(_without, name=keys[-1]))
        return params

    def expanded(self, params: Params) -> Params:
        """The parameters of ``net``: the tied leaf in each of its places."""
        leaf = _leaf(params, self._at(params, self.places[0]))
        for place in self.places[1:]:
            keys = self._where(params, place)
            params = self._changed(params, keys, lambda leaves, name=keys[-1]: {**leaves, name: leaf})
        return params

    def collapsed(self, gradients: Params) -> Params:
        """The sum over the places, in the first: the transpose of `expanded`."""
        total = functools.reduce(jnp.add, (_leaf(gradients, self._at(gradients, place)) for place in self.places))
        gradients = self._once(gradients)
        first = self._at(gradients, self.places[0])
        return self._changed(gradients, first, lambda leaves: {**leaves, first[-1]: total})

    def parts(self, params: Params) -> tuple[tuple[Layer, Params], ...]:
        return self.net.parts(self.expanded(params))

    def joined(self, of_parts: tuple[Params, ...]) -> Params:
        return self.collapsed(self.net.joined(of_parts))

    def gathered(self, of_parts: tuple[Params, ...]) -> Params:
        return self._once(self.net.gathered(of_parts))

    def forward(
        self, params: Params, a_in: Array, *, key: Key = None, train: bool = False, mask: Array | None = None,
        probe: Delta = None, state: Any = None, run: Visit | None = None,
    ) -> tuple[Array, Cache]:  # fmt: skip
        given = {"key": key, "train": train, "mask": mask, "probe": probe, "state": state, "run": run}
        return self.net.forward(self.expanded(params), a_in, **given)

    def moving(self, params: Params, cache: Cache) -> Params:
        return self._once(self.net.moving(self.expanded(params), cache))

    def final_state(self, cache: Cache) -> Any:
        return self.net.final_state(cache)

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array] | None:
        return self.net.output(self.expanded(params), cache)

    def error(self, params: Params, cache: Cache, da_out: Any) -> tuple[Delta, ...]:
        return self.net.error(self.expanded(params), cache, da_out)

    def output_error(self, params: Params, cache: Cache, delta: Delta) -> tuple[Delta, ...]:
        return self.net.output_error(self.expanded(params), cache, delta)

    def propagate(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        return self.net.propagate(self.expanded(params), cache, delta)

    def gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        return self.collapsed(self.net.gradients(self.expanded(params), cache, delta))

    def example_gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        return jax.vmap(self.collapsed)(self.net.example_gradients(self.expanded(params), cache, delta))

    def square_norms(self, params: Params, cache: Cache, delta: Delta) -> Array:
        """‖Σ_places g‖² = Σ ‖g‖² + 2 Σ_{p<q} ⟨g_p, g_q⟩: the network's, and what the places have in common."""
        params = self.expanded(params)
        apart, own = self.net.square_norms(params, cache, delta), self._own(params, cache, delta)
        pairs = itertools.combinations(map(at_least_float32, own), 2)
        common = [2 * jnp.einsum("m...,m...->m", one, other) for one, other in pairs]
        return jnp.maximum(added_up([apart, *common], delta), 0)

    def second_moment(self, params: Params, cache: Cache, delta: Delta) -> Params:
        """The network's, that of the array from the sum over its places."""
        params = self.expanded(params)
        total = functools.reduce(jnp.add, self._own(params, cache, delta))
        moments = self._once(self.net.second_moment(params, cache, delta))
        first = self._at(moments, self.places[0])
        return self._changed(moments, first, lambda leaves: {**leaves, first[-1]: second_moment_of(total)})

    def factor_rows(self, params: Params, cache: Cache, delta: Delta) -> Any:
        """The network's. In the first place the array is taken with the mean of its inputs and the sum of its errors over the
        places, in the others what is left of their layers; None in the first where some place's layer has no such form."""
        params = self.expanded(params)
        rows = self.net.factor_rows(params, cache, delta)
        keys = [[key for key in self._at(params, place) if isinstance(key, int)] for place in self.places]
        names = [place.rpartition(".")[2] for place in self.places]
        uses, errors = [], []
        for place, at, name in zip(self.places, keys, names, strict=True):
            own = functools.reduce(lambda tree, key: tree[key] if isinstance(tree, tuple) else None, at, rows)
            if own is None:
                continue
            if not isinstance(own[0], dict):
                remedy = "tie layers that stand by themselves in a network"
                raise LayerError(
                    self, "a single layer for the factors of a tied array", f"several at {place!r}", remedy
                )
            uses.append(own[0][name])
            errors.append(own[1])
            left = _without(own[0], name)
            rows = _put(rows, at, (left, own[1]) if left else None)
        if len(uses) < len(self.places):
            return rows
        mean, total = functools.reduce(jnp.add, uses) / len(uses), functools.reduce(jnp.add, errors)
        rest = _leaf(rows, keys[0])
        return _put(rows, keys[0], ({names[0]: mean, **(rest[0] if rest else {})}, total))

    def _gram(self, params: Params, cache: Cache, delta: Delta) -> Array:
        params = self.expanded(params)
        own = [at_least_float32(g).reshape(len(g), -1) for g in self._own(params, cache, delta)]
        product = rowwise(lambda one, other: one @ other.T)
        common = [product(one, other) for one, other in itertools.permutations(own, 2)]
        return added_up([self.net._gram(params, cache, delta), *common], delta, 2)

    def _own(self, params: Params, cache: Cache, delta: Any) -> list[Any]:
        """The array's g_x in each of its places; the compiler leaves the other leaves out."""
        shares = self.net.example_gradients(params, cache, delta)
        return [_leaf(shares, self._at(shares, place)) for place in self.places]

    def backward(self, params: Params, cache: Cache, da_out: Any) -> tuple[Array | None, Params]:
        da_in, gradients = self.net.backward(self.expanded(params), cache, da_out)
        return da_in, self.collapsed(gradients)

    def output_backward(self, params: Params, cache: Cache, delta: Delta) -> tuple[Array | None, Params]:
        da_in, gradients = self.net.output_backward(self.expanded(params), cache, delta)
        return da_in, self.collapsed(gradients)

    def __repr__(self) -> str:
        return f"Tied({self.net!r}, {', '.join(map(repr, self.places))})"


def _put(tree: tuple, keys: list[int], value: Any) -> Any:
    """The tuples with another value in the place of these keys."""
    if not keys:
        return value
    return tuple(_put(t, keys[1:], value) if i == keys[0] else t for i, t in enumerate(tree))


def _without(leaves: dict, name: str) -> dict:
    return {k: leaf for k, leaf in leaves.items() if k != name}


def _leaf(tree: Any, keys: list[Any]) -> Any:
    return functools.reduce(lambda tree, key: tree[key], keys, tree)


@layer
class Repeat(Composite):
    """The same layer n times in a row, each time with parameters of its own, as one loop in the compiled program.

    Its parameters are those of the layer with a first axis of length n, so that compilation takes as long as that of one
    layer. Errors and states are tuples with one entry per repetition, as a network's; in a cache the repetitions are on axis
    0 and the examples on axis 1.

    Args:
        layer: what is repeated; its outputs are shaped like its inputs.
        n: how often.

    Raises:
        LayerError: for an n that is no positive integer, something that is no layer, a layer whose outputs are of another
            shape than its inputs, and parameters without the first axis.
    """

    layer: Layer
    n: int

    last: ClassVar[int | None] = -1
    _looped = True
    _example = "fn.Repeat(fn.Residual(fn.Dense(64, fn.tanh)), 12)"

    def __post_init__(self) -> None:
        whole_number(self, "n", "a positive number of repetitions")
        if not isinstance(self.layer, Layer):
            raise LayerError(self, "a layer", repr(self.layer), f"as in {self._example}")

    @property
    def layers(self) -> tuple[Layer, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (self.layer,) * self.n

    def _shapes(self, input_shape: Shape) -> tuple[list[Shape], Shape]:
        with located(0):
            out = self.layer.output_shape(input_shape)
        if out != input_shape:
            remedy = "end with a layer of as many units as come in, or put it into fn.Residual"
            raise LayerError(self, f"outputs of shape {input_shape}, as the inputs", str(out), remedy)
        return [input_shape] * self.n, out

    def parts(self, params: Params) -> tuple[tuple[Layer, Params], ...]:
        self._check(params)
        return tuple((self.layer, _sliced(params, i)) for i in range(self.n))

    def joined(self, of_parts: tuple[Params, ...]) -> Params:
        return _stacked(of_parts)

    wire: ClassVar[Callable[..., tuple[Array, Any]]] = Network.wire  # for what looks inside
    unwire: ClassVar[Callable[..., Any]] = Network.unwire

    def _check(self, params: Params) -> None:
        for leaf in jax.tree.leaves(params):
            if jnp.shape(leaf)[:1] != (self.n,):
                remedy = "use the parameters that init of an equal layer returned"
                raise LayerError(
                    self, f"parameters with a first axis of {self.n} repetitions", str(jnp.shape(leaf)), remedy
                )

    def forward(
        self, params: Params, a_in: Array, *, key: Key = None, train: bool = False, mask: Array | None = None,
        probe: Delta = None, state: Any = None, run: Visit | None = None,
    ) -> tuple[Array, Cache]:  # fmt: skip
        given = {"key": key, "train": train, "mask": mask, "probe": probe, "state": state}
        if run is not None:
            return super().forward(params, a_in, **given, run=run)
        self._check(params)
        key, index = (key.key, key.index) if isinstance(key, ExampleKeys) else (key, None)
        keys = None if key is None else jax.random.split(key, self.n)
        probes = _stacked(self._entries("a probe", probe, "error"))
        states = _stacked(self._entries("a state", state, "apply_from or final_state"))

        def step(a: Any, given: tuple) -> tuple[Any, Cache]:
            p, k, q, s = given
            k = k if index is None else ExampleKeys(k, index)
            with located(0):
                return run_forward(self.layer, p, a, key=k, train=train, mask=mask, probe=q, state=s)

        given = (params, keys, probes, states)
        a = jax.eval_shape(lambda a, g: step(a, _sliced(g, 0))[0], a_in, given)
        if a.shape != a_in.shape:
            remedy = "give inputs of the shape for which the parameters were drawn"
            raise LayerError(self, f"outputs of shape {a_in.shape}, as the inputs", str(a.shape), remedy)
        return jax.lax.scan(step, a_in.astype(a.dtype), given, length=self.n)

    def final_state(self, cache: Cache) -> Any:
        return tuple(self.layer.final_state(_sliced(cache, i)) for i in range(self.n))

    def moving(self, params: Params, cache: Cache) -> Params:
        return jax.vmap(self.layer.moving)(params, cache)

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array] | None:
        return self.layer.output(_sliced(params, -1), _sliced(cache, -1))

    def propagate(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        return self.layer._propagated(_sliced(params, 0), _sliced(cache, 0), delta[0])

    def gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        return self._of_each(self.layer.gradients, params, cache, delta)

    def example_gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        shares = self._of_each(self.layer.example_gradients, params, cache, delta)
        return jax.tree.map(lambda g: jnp.swapaxes(g, 0, 1), shares)

    def square_norms(self, params: Params, cache: Cache, delta: Delta) -> Array:
        return jnp.sum(self._of_each(self.layer.square_norms, params, cache, delta), axis=0)

    def second_moment(self, params: Params, cache: Cache, delta: Delta) -> Params:
        return self._of_each(self.layer.second_moment, params, cache, delta)

    def factor_rows(self, params: Params, cache: Cache, delta: Delta) -> Any:
        given = ((_sliced(params, i), _sliced(cache, i), delta[i]) for i in range(self.n))
        return tuple(self.layer.factor_rows(*of_one) for of_one in given)

    def _gram(self, params: Params, cache: Cache, delta: Delta) -> Array:
        return jnp.sum(self._of_each(self.layer._gram, params, cache, delta), axis=0)

    def _of_each(self, equation: Callable, params: Params, cache: Cache, delta: Any) -> Any:
        """What the equation gives for each repetition, stacked."""
        return jax.lax.map(lambda given: equation(*given), (params, cache, _stacked(delta)))

    def _errors(self, params: Params, cache: Cache, da: Any, *, at_output: bool) -> tuple[Delta, ...]:
        def back(equation: Callable, p: Params, c: Cache, da: Any) -> tuple[Any, Any]:
            delta = equation(p, c, da)
            return self.layer._propagated(p, c, delta), delta

        equations = [functools.partial(back, e) for e in (self.layer.error, self.layer.output_error)]
        _, deltas, of_last = self._through(params, cache, da, equations, at_output)
        return (*(_sliced(deltas, i) for i in range(self.n - len(of_last))), *of_last)

    def _backward(self, params: Params, cache: Cache, da: Any, *, at_output: bool) -> tuple[Any, Params]:
        equations = [self.layer.backward, self.layer.output_backward]
        da_in, gradients, of_last = self._through(params, cache, da, equations, at_output)
        return da_in, jax.tree.map(lambda *g: jnp.concatenate(g), gradients, *(_stacked((g,)) for g in of_last))

    def _through(
        self, params: Params, cache: Cache, da: Any, equations: Any, at_output: bool
    ) -> tuple[Any, Any, tuple]:
        """From the last repetition to the first: (da_in, what each gave besides, stacked, without that of a last one whose
        δ is given, which comes by itself)."""
        inner, at_the_end = equations
        rest, of_last = (params, cache), ()
        if at_output:
            da, given = at_the_end(_sliced(params, -1), _sliced(cache, -1), da)
            rest, of_last = jax.tree.map(lambda leaf: leaf[:-1], rest), (given,)

        def step(da: Any, of_one: tuple) -> tuple[Any, Any]:
            with located(0):
                da, given = inner(*of_one, da)
            if da is None:
                remedy = "write its propagate(params, cache, delta); a layer of integer inputs cannot be repeated"
                raise LayerError(self.layer, "∂C/∂a_in for the layer below", "None", remedy, (0,))
            return da, given

        da, given = jax.lax.scan(step, da, rest, length=self.n - len(of_last), reverse=True)
        return da, given, of_last


def _sliced(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _stacked(trees: tuple[Any, ...]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Fixed:
    """A Python value in a cache that is no array to a transformation."""

    value: Any


@layer
class Recompute(Around):
    """A layer that keeps its input only and runs its forward pass again for the backward pass: less memory, one more forward
    pass. Same numbers, and the parameters and errors are those of the layer (of a network of it, for one that is no
    composite). Compiled for a CPU it saves memory inside a loop only, such as that of `Repeat`, as ``jax.checkpoint`` does.

    The second forward pass waits for ∂C/∂a_out, so that the compiler neither shares it with the first nor runs it early. Its
    parameters are in the cache as well, since those given to `error` may be others (``feedback=``, or after an update);
    `backward` leaves them there, and the compiler leaves them out.

    Raises:
        LayerError: for something that is no layer.

    Source: Chen et al. (2016).
    """

    net: Composite

    _reruns = True
    _example = "fn.Recompute(fn.Network(fn.Dense(64, fn.tanh), fn.Dense(64, fn.tanh)))"

    def __init__(self, layer: Layer) -> None:
        if not isinstance(layer, Layer):
            raise LayerError(layer, "a layer to recompute", type(layer).__name__, f"as in {self._example}")
        object.__setattr__(self, "net", layer if is_walked(layer) else Network(layer))

    def init(self, key: Array, input_shape: Shape) -> Params:
        return self.net.init(key, input_shape)

    def forward(
        self, params: Params, a_in: Array, *, key: Key = None, train: bool = False, mask: Array | None = None,
        probe: Delta = None, state: Any = None, run: Visit | None = None,
    ) -> tuple[Array, Cache]:  # fmt: skip
        given = {"key": key, "mask": mask, "probe": probe, "state": state}
        a, _ = self.net.forward(params, a_in, **given, train=train, run=run)
        return a, (params, a_in, given, Fixed(train))

    def moving(self, params: Params, cache: Cache) -> Params:
        return self.net.moving(params, self._again(cache[0], cache))

    def final_state(self, cache: Cache) -> Any:
        return self.net.final_state(self._again(cache[0], cache))

    def output(self, params: Params, cache: Cache) -> tuple[Activation, Array] | None:
        return self.net.output(params, self._again(params, cache))

    def _again(self, params: Params, cache: Cache) -> Cache:
        _, a_in, given, train = cache
        return self.net.forward(params, a_in, **given, train=train.value)[1]

    def _after(self, params: Params, cache: Cache, d: Any) -> tuple[Cache, Any]:
        """The layer's cache, computed once an error is there."""
        d, a_in = after(d, cache[1])
        return self._again(params, (params, a_in, *cache[2:])), d

    def error(self, params: Params, cache: Cache, da_out: Any) -> tuple[Delta, ...]:
        return self.net.error(params, *self._after(cache[0], cache, da_out))

    def output_error(self, params: Params, cache: Cache, delta: Delta) -> tuple[Delta, ...]:
        return self.net.output_error(params, *self._after(cache[0], cache, delta))

    def propagate(self, params: Params, cache: Cache, delta: Delta) -> Array | None:
        return self.net.propagate(params, *self._after(cache[0], cache, delta))

    def gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        return self.net.gradients(params, *self._after(params, cache, delta))

    def example_gradients(self, params: Params, cache: Cache, delta: Delta) -> Params:
        return self.net.example_gradients(params, *self._after(params, cache, delta))

    def square_norms(self, params: Params, cache: Cache, delta: Delta) -> Array:
        return self.net.square_norms(params, *self._after(params, cache, delta))

    def second_moment(self, params: Params, cache: Cache, delta: Delta) -> Params:
        return self.net.second_moment(params, *self._after(params, cache, delta))

    def factor_rows(self, params: Params, cache: Cache, delta: Delta) -> Any:
        return self.net.factor_rows(params, *self._after(params, cache, delta))

    def _gram(self, params: Params, cache: Cache, delta: Delta) -> Array:
        return self.net._gram(params, *self._after(params, cache, delta))

    def backward(self, params: Params, cache: Cache, da_out: Any) -> tuple[Array | None, Params]:
        return self.net.backward(params, *self._after(params, cache, da_out))

    def output_backward(self, params: Params, cache: Cache, delta: Delta) -> tuple[Array | None, Params]:
        return self.net.output_backward(params, *self._after(params, cache, delta))
