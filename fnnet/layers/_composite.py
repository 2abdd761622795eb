"""Composition: layers made of layers.

Source: the notes, section 3.
"""

import copy
from collections.abc import Iterator
from typing import Any, overload

import numpy as np
from jax import Array

from ._layer import (
    Cache,
    Delta,
    Layer,
    LayerError,
    Params,
    Shape,
    check_key,
    layer,
    located,
    run_forward,
    split_key,
)

__all__ = ["Network"]


@layer
class Network(Layer):
    """Layers applied one after another; itself a layer, so networks nest. ``net[0]`` is a layer, ``net[1:]`` a network.

    Parameters, caches and errors are tuples with one entry per layer. Each layer gets a key of its own, split from the
    one key of the call.

    Raises:
        ValueError: for no layers; a LayerError for something that is no layer.
    """

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer) -> None:
        object.__setattr__(self, "layers", layers)
        for name in ("independent", "kept"):
            object.__setattr__(self, name, all(getattr(part, name, False) for part in layers))
        if not layers:
            raise ValueError(
                "Network(): expected at least one layer, got none; as in fn.Network(fn.Dense(10, fn.softmax))"
            )
        for i, part in enumerate(layers):
            if not isinstance(part, Layer):
                remedy = "build a layer, as in fn.Dense(10, fn.softmax); decorate a class of your own with @fn.layer"
                raise LayerError(part, "a layer", type(part).__name__, remedy, (i,))

    def in_loop(self):
        layers, kept = [], True
        for part in self.layers:
            layers.append(part.in_loop() if kept else part)
            kept = kept and part.kept
        twin = copy.copy(self)
        object.__setattr__(twin, "layers", tuple(layers))
        return twin

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

    def init(self, key: Array, input_shape: Shape) -> tuple[Params, ...]:
        """One entry per layer; ``input_shape`` is the shape of one example, such as (784,)."""
        if check_key(key) is None:
            raise ValueError(
                "key: expected one PRNG key to draw parameters with, got None; make one with jax.random.key(seed)"
            )
        shape, params = _check_shape(self, input_shape), []
        for i, (part, k) in enumerate(zip(self.layers, split_key(key, len(self)), strict=True)):
            with located(i):
                params.append(part.init(k, shape))
                shape = part.output_shape(shape)
        return tuple(params)

    def forward(self, params, a_in, *, key=None, train=False, mask=None, probe=None, state=None):
        if not isinstance(params, tuple | list) or len(params) != len(self):
            got = f"{len(params)} entries" if isinstance(params, tuple | list) else type(params).__name__
            remedy = "use what init of an equal network returned"
            raise LayerError(self, f"parameters with {len(self)} entries, one per layer", got, remedy)
        if state is not None and (not isinstance(state, tuple | list) or len(state) != len(self)):
            got = f"{len(state)} entries" if isinstance(state, tuple | list) else type(state).__name__
            remedy = "use what apply_from or final_state of an equal network returned"
            raise LayerError(self, f"a state with {len(self)} entries, one per layer", got, remedy)
        nothing = [None] * len(self)
        given = zip(split_key(key, len(self)), probe or nothing, state or nothing, strict=True)
        a, caches = a_in, []
        for i, (part, p, (k, q, s)) in enumerate(zip(self.layers, params, given, strict=True)):
            with located(i):
                a, cache = run_forward(part, p, a, key=k, train=train, mask=mask, probe=q, state=s)
            caches.append(cache)
        return a, tuple(caches)

    def final_state(self, cache):
        states = []
        for i, (part, c) in enumerate(zip(self.layers, cache, strict=True)):
            with located(i):
                states.append(part.final_state(c))
        return tuple(states)

    def output(self, params, cache):
        return self.layers[-1].output(params[-1], cache[-1])

    def error(self, params, cache, da_out):
        """Every layer's δ, from last to first: BP1, then BP2 layer by layer."""
        return self._errors(params, cache, self.layers[-1].error(params[-1], cache[-1], da_out))

    def output_error(self, params, cache, delta):
        """Every layer's δ given δ^L."""
        return self._errors(params, cache, self.layers[-1].output_error(params[-1], cache[-1], delta))

    def _errors(self, params: Params, cache: Cache, last: Delta) -> tuple[Delta, ...]:
        deltas = [last]
        for l in range(len(self) - 1, 0, -1):
            da = self._needed(l, self.layers[l].propagate(params[l], cache[l], deltas[0]))
            deltas.insert(0, self.layers[l - 1].error(params[l - 1], cache[l - 1], da))
        return tuple(deltas)

    def propagate(self, params, cache, delta):
        return self.layers[0].propagate(params[0], cache[0], delta[0])

    def gradients(self, params, cache, delta):
        """Every layer's BP3 and BP4."""
        return tuple(part.gradients(p, c, d) for part, p, c, d in zip(self.layers, params, cache, delta, strict=True))

    def backward(self, params, cache, da_out):
        return self._backward(params, cache, self.layers[-1].backward(params[-1], cache[-1], da_out))

    def output_backward(self, params, cache, delta):
        return self._backward(params, cache, self.layers[-1].output_backward(params[-1], cache[-1], delta))

    def _backward(self, params: Params, cache: Cache, last: tuple[Any, Params]) -> tuple[Any, tuple[Params, ...]]:
        da, grads = last
        gradients = [grads]
        for l in range(len(self) - 2, -1, -1):
            da, grads = self.layers[l].backward(params[l], cache[l], self._needed(l + 1, da))
            gradients.insert(0, grads)
        return da, tuple(gradients)

    def _needed(self, l: int, da: Any) -> Any:
        """What layer l propagates to the one below it, or a LayerError for None."""
        if da is None:
            remedy = "write its propagate(params, cache, delta); a layer of integer inputs must come first"
            raise LayerError(self.layers[l], "∂C/∂a_in for the layer below", "None", remedy, (l,))
        return da


def _check_shape(owner: Layer, shape: Any) -> Shape:
    if isinstance(shape, tuple | list) and all(isinstance(n, int | np.integer) and n > 0 for n in shape):
        return tuple(int(n) for n in shape)
    remedy = "give the shape of one example as a tuple, such as (784,)"
    raise LayerError(owner, "an input shape of positive integers", repr(shape), remedy)
