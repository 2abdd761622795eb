"""A network: layers one after another, and its backpropagation in two passes, errors and then gradients.

Source: the notes, section 3.
"""

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from .costs import Cost, check_targets
from .layers._layer import (
    Cache,
    Delta,
    ExampleKeys,
    Layer,
    LayerError,
    Params,
    Shape,
    as_array,
    as_data,
    check_key,
    layer,
    located,
    run_forward,
    split_key,
)
from .penalties import Penalty, check_penalty
from .programs import KEPT, placed, program

__all__ = ["Backprop", "Network", "backprop", "objective", "value_and_grad"]


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


class Backprop(NamedTuple):
    """What `backprop` returns.

    Attributes:
        cost: C, penalty included.
        errors: δ of each layer for each example, ∂(Σ_x C_x)/∂z: not divided by m, no penalty in them.
        gradients: ∂C/∂params, means over the batch, penalty included; a pytree like the parameters.
    """

    cost: Array
    errors: tuple[Delta, ...]
    gradients: Params


def backprop(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
    penalty: Penalty | None = None,
    n_examples: Any = None,
    feedback: Params | None = None,
    state: Any = None,
) -> Backprop:
    """Hand-written backpropagation, in training mode: the errors from last layer to first, then the gradients.

    BP1 δ^L = ∇_a C ⊙ σ'(z^L); BP2 δ^l = (δ^{l+1} w^{l+1}) ⊙ σ'(z^l); BP3 ∂C/∂b = (1/m) Σ_x δ; BP4 ∂C/∂w = (1/m) δᵀ a_in.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: from ``net.init``.
        x: inputs (m, ...).
        y: targets shaped like the outputs, or integer labels.
        key: for layers that draw random numbers; a net with dropout needs one.
        mask: (m, T), True for the valid steps of sequences.
        weights: (m,) or (m, T), factors of the terms of C_x.
        penalty: added to cost and gradients.
        n_examples: N of the penalty, the size of the training set; by default the batch size.
        feedback: parameters used in place of ``params`` in BP2's products only (feedback alignment).
        state: the state before the first step of recurrent layers, from ``apply_from`` or ``final_state``; zero by default.

    Raises:
        ValueError: for bad input, naming the layer, what was expected, what came and the remedy.
    """
    check_penalty(penalty)
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights, state)
    check_feedback(params, feedback)
    penalty, n_examples = jax.tree.map(placed, (penalty, n_examples))
    run = program(_backprop, net, cost)
    return run(params, x, y, key, mask, weights, penalty, n_examples, feedback, state)


def _backprop(net, cost, params, x, y, key, mask, weights, penalty, n_examples, feedback, state) -> Backprop:
    x = counted(x, weights)
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask, state=state)
    errors = errors_of(net, cost, params, a, cache, y, weights, params if feedback is None else feedback)
    gradients = net.gradients(params, cache, errors)
    value = cost(a, y, weights=weights, output=net.output(params, cache))
    value, gradients = _completed(value, gradients, params, x, penalty, n_examples)
    return Backprop(value, errors, gradients)


def errors_of(net, cost, params, a, cache, y, weights, back) -> Any:
    """Every layer's δ from what the forward pass gave; BP2's products use ``back``."""
    delta = cost.delta(net.output(params, cache), y, weights=weights)
    if delta is not None:
        return net.output_error(back, cache, delta)
    return net.error(back, cache, cost.output_gradient(a, y, weights=weights))


def value_and_grad(
    net: Layer,
    cost: Cost,
    *,
    penalty: Penalty | None = None,
    n_examples: Any = None,
    micro_batch: int | Literal["auto"] | None = "auto",
    carry: bool = False,
) -> Callable[..., tuple[Any, Params]]:
    """The function (params, x, y, *, key, mask, weights, state) -> (C, ∂C/∂params), by hand: a drop-in for
    ``jax.value_and_grad(fn.objective(net, cost))`` that runs each layer's ``backward``.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        penalty: added to both.
        n_examples: N of the penalty; by default the batch size.
        micro_batch: examples that are run at a time, which bounds the memory of a large batch. The result is that of the
            whole batch, dropout masks included. "auto" chooses where it pays; None runs the whole batch at once.
        carry: also return the state after the last step, ((C, state), ∂C/∂params), to be given as ``state=`` with the steps
            that follow. No error goes back into a given state: truncated backpropagation through time. The batch runs whole.

    Layers that are not ``independent`` run whole whatever it says.

    Raises:
        ValueError: as `backprop` does; also for a ``micro_batch`` that is not positive.
    """
    check_net(net)
    check_cost(cost)
    check_micro_batch(micro_batch)
    check_penalty(penalty)
    about_penalty = jax.tree.map(placed, (penalty, n_examples))
    run = program(_value_and_grad, net, cost, micro_batch=micro_batch, carry=carry)

    def manual_value_and_grad(params, x, y, *, key=None, mask=None, weights=None, state=None):
        x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights, state)
        return run(params, x, y, key, mask, weights, state, *about_penalty)

    return manual_value_and_grad


def _value_and_grad(net, cost, params, x, y, key, mask, weights, state, penalty, n_examples, *, micro_batch, carry):
    def chunk(x, y, mask, weights, state, key):
        x = counted(x, weights)
        a, cache = run_forward(net, params, x, key=key, train=True, mask=mask, state=state)
        output = net.output(params, cache)
        delta = cost.delta(output, y, weights=weights)
        if delta is not None:
            _, gradients = net.output_backward(params, cache, delta)
        else:
            _, gradients = net.backward(params, cache, cost.output_gradient(a, y, weights=weights))
        value = cost(a, y, weights=weights, output=output)
        return (value, net.final_state(cache)) if carry else value, gradients

    size = x.shape[0] if carry else chunk_size(net, params, x, key, mask, micro_batch)
    value, gradients = mean_over_chunks(chunk, (x, y, mask, weights, state), key, size)
    value, last = value if carry else (value, None)
    value, gradients = _completed(value, gradients, params, x, penalty, n_examples)
    return ((value, last) if carry else value), gradients


def objective(
    net: Layer, cost: Cost, *, penalty: Penalty | None = None, n_examples: Any = None, carry: bool = False
) -> Callable[..., Any]:
    """The function (params, x, y, *, key, mask, weights, state) -> C in training mode: a plain forward pass for ``jax.grad``.

    No hand-written rule takes part in its derivative. Arguments and errors are those of `value_and_grad`; with ``carry`` it
    returns (C, state), for ``jax.value_and_grad(..., has_aux=True)``.
    """
    check_net(net)
    check_cost(cost)
    check_penalty(penalty)
    about_penalty = jax.tree.map(placed, (penalty, n_examples))
    run = program(_objective, net, cost, carry=carry)

    def cost_of_params(params, x, y, *, key=None, mask=None, weights=None, state=None):
        x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights, state)
        return run(params, x, y, key, mask, weights, state, *about_penalty)

    return cost_of_params


def _objective(net, cost, params, x, y, key, mask, weights, state, penalty, n_examples, *, carry):
    x = counted(x, weights)
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask, state=state)
    value = cost(a, y, weights=weights, output=net.output(params, cache))
    if penalty is not None:
        value = value + penalty.value(params, x.shape[0] if n_examples is None else n_examples).astype(value.dtype)
    return (value, net.final_state(cache)) if carry else value


def counted(x: Array, weights: Any) -> Array:
    """x with 0 for what is not finite in an example whose weights are all 0. Its δ is 0, and BP4's 0 · NaN would be NaN."""
    if weights is None or not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    counts = jnp.any(weights.astype(bool), axis=tuple(range(1, weights.ndim)))
    return jnp.where(counts.reshape(-1, *(1,) * (x.ndim - 1)) | jnp.isfinite(x), x, 0)


def _completed(value, gradients, params, x, penalty, n_examples):
    """Value and gradients with the penalty, the gradients in the structure and the dtypes of the parameters."""
    leaves, treedef = jax.tree.flatten(params)
    if treedef.num_leaves == len(jax.tree.leaves(gradients)):
        gradients = treedef.unflatten(
            g.astype(p.dtype) for g, p in zip(jax.tree.leaves(gradients), leaves, strict=True)
        )
    if penalty is None:
        return value, gradients
    n = x.shape[0] if n_examples is None else n_examples
    gradients = jax.tree.map(jnp.add, gradients, penalty.gradient(params, n))
    return value + penalty.value(params, n).astype(value.dtype), gradients


WHOLE_BATCH_BYTES, CHUNK_BYTES, SMALLEST_CHUNK = 16 * 2**20, 8 * 2**20, 32


def chunk_size(net: Layer, params: Params, x: Array, key: Any, mask: Any, micro_batch: int | str | None) -> int:
    """How many examples to run at a time, from static shapes.

    "auto" keeps a batch whole where the activations and masks that its backward pass reads fit in 16 MiB, off the CPU,
    and where examples mix; else it takes the power of two that fits in 8 MiB, at least 32. (Compiled temporaries above
    about 16 MiB cost page faults at every call on CPU; a GPU likes its batch whole.)
    """
    m = x.shape[0]
    if micro_batch is None or not net.independent:
        return m
    if not isinstance(micro_batch, str):
        return min(int(micro_batch), m)
    if jax.default_backend() != "cpu":
        return m
    _, cache = jax.eval_shape(lambda: run_forward(net, params, x, key=key, train=True, mask=mask))
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache) if hasattr(leaf, "dtype"))
    if total <= WHOLE_BATCH_BYTES:
        return m
    return min(m, max(SMALLEST_CHUNK, 2 ** int(np.log2(max(1, CHUNK_BYTES * m // total)))))


def mean_over_chunks(f: Callable, batch: tuple[Any, ...], key: Any, size: int) -> Any:
    """(1/m) Σ size · f(*chunk, key) over chunks of the batch; f returns a pytree of means over its chunk."""
    m = batch[0].shape[0]
    if size >= m:
        return f(*batch, key)

    def part(start: Any, count: int) -> Any:
        chunk = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, count), batch)
        keys = None if key is None else ExampleKeys(key, start + jnp.arange(count))
        return jax.tree.map(lambda mean: mean * jnp.asarray(count / m, mean.dtype), f(*chunk, keys))

    def body(total: Any, start: Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(start, size)), None

    full = m // size
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda: part(0, size)))
    total, _ = jax.lax.scan(body, zeros, size * jnp.arange(full))
    return jax.tree.map(jnp.add, total, part(full * size, m - full * size)) if m % size else total


def check_micro_batch(micro_batch: Any) -> None:
    """Raise a ValueError unless micro_batch is "auto", None or a positive integer."""
    is_whole = isinstance(micro_batch, Integral) and not isinstance(micro_batch, bool)
    if micro_batch is None or micro_batch == "auto" or (is_whole and int(micro_batch) >= 1):
        return
    raise ValueError(f"micro_batch: expected a positive integer, 'auto' or None, got {micro_batch!r}")


def check_feedback(params: Params, feedback: Params | None) -> None:
    """Raise a ValueError unless feedback is None or a pytree of the parameters' structure and shapes."""
    if feedback is None:
        return
    wanted, got = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, feedback)
    )
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            raise ValueError(
                f"feedback: expected {name} of shape {wanted.get(name)}, as in params, got {got.get(name)}; draw it like the "
                f"parameters, net.init(another_key, input_shape)"
            )


def check_net(net: Any) -> None:
    """Raise a ValueError unless it is a layer."""
    if not isinstance(net, Layer):
        raise ValueError(f"net: expected an fn.Network or another layer, got {type(net).__name__}; see fn.layer")


def check_cost(cost: Any) -> None:
    """Raise a ValueError unless it is a cost."""
    if not isinstance(cost, Cost):
        raise ValueError(f"cost: expected an fn.Cost such as fn.cross_entropy, got {type(cost).__name__}")


def check_batch(
    net: Any,
    cost: Any,
    params: Params,
    x: Any,
    y: Any,
    key: Any,
    mask: Any = None,
    weights: Any = None,
    state: Any = None,
) -> tuple[Array, Array, Any, Any, Any]:
    """x, y, key, mask and weights, the data as arrays, or a ValueError that says what is wrong with them.

    It stands in front of every call from a Python loop, so it reads types and shapes only; the targets of an array, which
    have to be fetched from the device for it, are read once.
    """
    check_net(net)
    check_cost(cost)
    given = y
    x, y, mask, weights = as_data("x", x), as_data("y", y), as_array(mask), as_array(weights)
    m = x.shape[:1]
    if m in ((), (0,)):
        raise ValueError(f"x: expected a batch (m, ...) of at least one example, got shape {x.shape}")
    if y.shape[:1] != m:
        raise ValueError(
            f"y: expected as many targets as there are examples in x, got {y.shape} beside {x.shape}; axis 0 of both is "
            f"the example"
        )
    for name, extra in (("mask", mask), ("weights", weights)):
        if extra is not None and extra.shape[:1] != m:
            raise ValueError(f"{name}: expected {m[0]} examples on axis 0, as in x, got shape {extra.shape}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.shape(leaf)[:1] != m:
            raise ValueError(
                f"state: expected arrays with {m[0]} examples on axis 0, as in x, got shape {jnp.shape(leaf)} at "
                f"{jax.tree_util.keystr(path) or 'its top'}; give what apply_from returned for this batch"
            )
    to_check = (cost.probabilities or y.dtype.kind in "iu") and not isinstance(y, Tracer)
    checked = id(y), net, x.shape, cost.probabilities
    if to_check and CHECKED.get(checked) is not y and _targets_are_right(net, cost, params, x, given, mask, weights):
        CHECKED[checked] = y
    return x, y, check_key(key), mask, weights


CHECKED: weakref.WeakValueDictionary[Any, Array] = weakref.WeakValueDictionary()
"""The arrays of targets that were found right for a network: they cannot change, so they are not fetched again."""


SHAPES: dict[Any, Shape] = {}
"""The shapes of outputs by network and inputs."""


def _targets_are_right(net: Layer, cost: Cost, params: Params, x: Array, y: Any, mask: Any, weights: Any) -> bool:
    """`check_targets` for the outputs of this network, of which it needs the shape; False for targets of another shape.

    The shape is traced once for a network and its inputs. A layer whose width is that of its parameters may have been given
    others since, so it is traced again before targets are refused.
    """

    def right(shape: Shape) -> bool:
        return jnp.shape(y) in (shape, shape[:-1]) and check_targets(cost, y, shape, weights)

    def traced() -> Shape:
        if len(SHAPES) >= KEPT:
            SHAPES.clear()
        SHAPES[key] = shape = jax.eval_shape(lambda: run_forward(net, params, x, mask=mask)[0]).shape
        return shape

    key = net, x.shape, x.dtype, None if mask is None else mask.shape
    if (shape := SHAPES.get(key)) is not None and jnp.shape(y) in (shape, shape[:-1]):
        with contextlib.suppress(ValueError):
            return right(shape)
    return right(traced())


def _check_shape(owner: Layer, shape: Any) -> Shape:
    if isinstance(shape, tuple | list) and all(isinstance(n, int | np.integer) and n > 0 for n in shape):
        return tuple(int(n) for n in shape)
    remedy = "give the shape of one example as a tuple, such as (784,)"
    raise LayerError(owner, "an input shape of positive integers", repr(shape), remedy)
