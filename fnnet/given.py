"""Checks of what a function is given that more than one module makes."""

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable
from numbers import Integral
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from .costs import Cost, bounds, check_targets, is_within
from .devices import check_mixing
from .layers._layer import Layer, Params, Shape, as_array, as_data, check_key, run_forward
from .programs import KEPT

P = ParamSpec("P")
R = TypeVar("R")
ORDER = "net comes first, then cost, params and the data"


def called_as(call: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """The function, whose TypeError for arguments that it does not take says how it is called. Looked at only where it
    raised one: a call costs nothing more."""

    def of(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def checked(*args: P.args, **keywords: P.kwargs) -> R:
            try:
                return function(*args, **keywords)
            except TypeError:
                misfit = _misfit(function, args, keywords)
                if misfit is None:
                    raise
            given = ", ".join([*(type(a).__name__ for a in args), *(f"{name}=..." for name in keywords)])
            raise TypeError(f"{call.partition('(')[0]}: expected {call}, got ({given}): {misfit}")

        return checked

    return of


def _misfit(function: Callable, args: tuple[Any, ...], keywords: dict[str, Any]) -> TypeError | None:
    """Python's reason why these are not the function's arguments; None where they are."""
    try:
        inspect.signature(function).bind(*args, **keywords)
    except TypeError as error:
        return error
    return None


def whole(function: str, name: str, value: Any, least: int = 1) -> Any:
    """The value as an int, or a ValueError unless it is an integer of at least ``least``, which a boolean is not; a tracer
    as it is."""
    if isinstance(value, Tracer):
        return value
    is_array = hasattr(value, "dtype") and np.ndim(value) == 0 and jnp.issubdtype(value.dtype, jnp.integer)
    if isinstance(value, bool) or not (is_array or isinstance(value, Integral)) or value < least:
        raise ValueError(f"{function}: expected {name} to be an integer of at least {least}, got {value!r}")
    return int(value)


def check_number(owner: str, name: str, value: Any, remedy: str, *, positive: bool = False) -> None:
    """Raise a ValueError unless it is one real number that is not negative, or not 0 either; a tracer is taken as it is."""
    kinds = (jnp.integer, jnp.floating)
    dtype, shape = getattr(value, "dtype", None), jnp.shape(value) if hasattr(value, "shape") else None
    is_real = dtype is not None and any(jnp.issubdtype(dtype, kind) for kind in kinds)
    if isinstance(value, bool) or not (isinstance(value, int | float) or (is_real and shape == ())):
        got = repr(value) if dtype is None else f"an array of {dtype} and shape {shape}"
        raise ValueError(f"{owner}: expected {name} to be one number, got {got}; {remedy}")
    if isinstance(value, Tracer):
        return
    number = float(jax.device_get(value))
    if not number >= 0 or (positive and number == 0):
        raise ValueError(f"{owner}: expected {name} {'>' if positive else '≥'} 0, got {value}; {remedy}")


def check_feedback(params: Params, feedback: Params | None) -> None:
    """Raise a ValueError unless feedback is None or a pytree of the parameters' structure and shapes."""
    if feedback is not None:
        remedy = "draw it like the parameters, net.init(another_key, input_shape)"
        check_like("feedback", params, feedback, remedy)


def check_like(what: str, params: Params, tree: Any, remedy: str) -> None:
    """Raise a ValueError unless the tree has the parameters' places and shapes."""
    wanted, got = (
        {jax.tree_util.keystr(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, tree)
    )
    if "" in got and "" not in wanted:
        raise ValueError(f"{what}: expected a pytree like params, got one array of shape {got['']}; {remedy}")
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            expected = f"{name} of shape {wanted[name]}" if name in wanted else f"nothing at {name}"
            raise ValueError(f"{what}: expected {expected}, as in params, got {got.get(name)}; {remedy}")


def check_net(net: Any) -> None:
    """Raise a ValueError unless it is a layer."""
    if not isinstance(net, Layer):
        raise ValueError(f"net: expected an fn.Network or another layer, got {type(net).__name__}; {ORDER}")


def check_cost(cost: Any) -> None:
    """Raise a ValueError unless it is a cost."""
    if not isinstance(cost, Cost):
        got = type(cost).__name__
        raise ValueError(f"cost: expected an fn.Cost such as fn.cross_entropy, got {got}; {ORDER}")


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
    """x, y, key, mask and weights, the data as arrays, or a ValueError that says what is wrong with them."""
    check_net(net)
    check_cost(cost)
    x, y, key, mask, weights, seen = _looked_at(net, cost, params, x, y, key, mask, weights, state)
    if seen is not None:
        seen.look(net, cost, params, x, y, key, mask, weights)
    return x, y, key, mask, weights


def run_checked(
    run: Callable,
    net: Any,
    cost: Any,
    params: Params,
    x: Any,
    y: Any,
    key: Any,
    mask: Any,
    weights: Any,
    state: Any,
    *more: Any,
) -> Any:
    """``run(params, x, y, key, mask, weights, state, *more)`` of a batch that passes `check_batch`, or its ValueError.

    It is every call from a Python loop, so it reads types and shapes only; the numbers of targets, which have to be fetched
    from the device for it, once for each array and while ``run`` computes.
    """
    x, y, key, mask, weights, seen = _looked_at(net, cost, params, x, y, key, mask, weights, state)
    if seen is None:
        return run(params, x, y, key, mask, weights, state, *more)
    try:
        return run(params, x, y, key, mask, weights, state, *more)
    finally:  # also where run raises, as for the NaN of a wrong label under jax_debug_nans
        seen.look(net, cost, params, x, y, key, mask, weights)


def _looked_at(
    net: Any, cost: Any, params: Params, x: Any, y: Any, key: Any, mask: Any, weights: Any, state: Any
) -> tuple[Array, Array, Any, Any, Any, "Seen | None"]:
    """What `check_batch` returns, and what has still to `look` at the numbers of targets, which are an array of a kind that
    was seen before. Others are looked at at once, and all where several processes may share them."""
    check_mixing(net, x)
    given = y
    x, y = as_data("x", x), as_data("y", y)
    m = x.shape[:1]
    if m in ((), (0,)):
        raise ValueError(f"x: expected a batch (m, ...) of at least one example, got shape {x.shape}")
    if y.shape[:1] != m:
        raise ValueError(
            f"y: expected as many targets as there are examples in x, got {y.shape} beside {x.shape}; axis 0 of both is "
            f"the example"
        )
    if not (mask is weights is state is None):
        mask, weights = as_array(mask), as_array(weights)
        _check_beside(m, mask, weights, state)
    seen = None
    if (cost.probabilities or y.dtype.kind in "iu") and not isinstance(y, Tracer):
        seen = SEEN.get(kind := _kind(net, cost, x, y, mask))
        if seen is None or given is not y or jax.process_count() > 1:
            seen = _check_numbers(kind, cost, params, x, given, mask, weights)
        elif seen.right() is y:
            seen = None
    return x, y, check_key(key), mask, weights, seen


def _check_beside(m: Shape, mask: Any, weights: Any, state: Any) -> None:
    for name, extra in (("mask", mask), ("weights", weights)):
        if extra is not None and extra.shape[:1] != m:
            raise ValueError(f"{name}: expected {m[0]} examples on axis 0, as in x, got shape {extra.shape}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.shape(leaf)[:1] != m:
            raise ValueError(
                f"state: expected arrays with {m[0]} examples on axis 0, as in x, got shape {jnp.shape(leaf)} at "
                f"{jax.tree_util.keystr(path) or 'its top'}; give what apply_from returned for this batch"
            )


def check_targets_of(net: Layer, cost: Cost, params: Params, batch: Any) -> None:
    """Raise a ValueError for targets in NumPy arrays that the cost cannot follow; others are not fetched for it."""
    x, y, extras = batch
    if isinstance(y, np.ndarray) and (cost.probabilities or y.dtype.kind in "iu"):
        mask, weights = extras.get("mask"), extras.get("weights")
        _check_numbers(_kind(net, cost, x, y, mask), cost, params, x, y, mask, weights)


def _kind(net: Layer, cost: Cost, x: Any, y: Any, mask: Any) -> Any:
    return net, cost.probabilities, x.shape, x.dtype, y.shape, y.dtype, None if mask is None else mask.shape


class Seen:
    """What is known of a network's batches of one kind.

    Attributes:
        shape: of the outputs.
        bounds: of targets.
        right: a weak reference to the array of targets that was last found right: it cannot change.
    """

    def __init__(self, shape: Shape, bounds: tuple[float, float]) -> None:
        self.shape = shape
        self.bounds = bounds
        self.right: Callable[[], Any] = lambda: None

    def look(self, net: Any, cost: Any, params: Any, x: Any, y: Any, key: Any, mask: Any, weights: Any) -> None:
        """Raise a ValueError for targets that the cost cannot follow."""
        if is_within(np.asarray(y), *self.bounds):
            self.right = weakref.ref(y)
        else:
            _check_numbers(_kind(net, cost, x, y, mask), cost, params, x, y, mask, weights)


SEEN: dict[Any, Seen] = {}
"""At most `KEPT` kinds of batches."""


def _check_numbers(kind: Any, cost: Cost, params: Params, x: Array, y: Any, mask: Any, weights: Any) -> None:
    """`check_targets` for the outputs of a network, of which it needs the shape; targets that do not fit it are left to the
    cost.

    The shape is traced once for a kind of batch. A layer whose width is that of its parameters may have been given others
    since, so it is traced again before targets are refused.
    """
    if (seen := SEEN.get(kind)) is not None:
        with contextlib.suppress(ValueError):
            check_targets(cost, y, seen.shape, weights)
            return
    shape = jax.eval_shape(lambda: run_forward(kind[0], params, x, mask=mask)[0]).shape
    if jnp.shape(y) in (shape, shape[:-1]):
        right = check_targets(cost, y, shape, weights)
        if len(SEEN) >= KEPT:
            SEEN.clear()
        SEEN[kind] = seen = Seen(shape, bounds(jnp.shape(y), shape))
        if right and isinstance(y, Array):
            seen.right = weakref.ref(y)


class Examples(NamedTuple):
    """A data set on the device; every leaf has the examples on axis 0."""

    x: Array
    y: Any
    extras: dict[str, Array]


def check_data(data: Any, name: str) -> None:
    """Raise a ValueError unless it has two or three entries."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        got = f"{len(data)} entries" if isinstance(data, tuple | list) else type(data).__name__
        raise ValueError(f"{name}: expected (x, y) or (x, y, {{'mask': ..., 'weights': ...}}), got {got}")


def examples(net: Layer, cost: Cost, params: Params, data: Any, name: str) -> Examples:
    """A data set as arrays, or a ValueError that says what is wrong with it."""
    x, y, given = entries(data, name)
    extras: dict[str, Any] = {k: as_array(v) for k, v in given.items()}
    for extra, value in extras.items():
        if value.shape[:1] != jnp.shape(x)[:1]:
            raise ValueError(
                f"{name}: expected {extra} for {jnp.shape(x)[0] if jnp.ndim(x) else 0} examples, got shape {value.shape}"
            )
    x, y, *_ = check_batch(net, cost, params, x, y, None, given.get("mask"), given.get("weights"))
    return Examples(x, y, extras)


def entries(data: Any, name: str) -> tuple[Any, Any, dict[str, Any]]:
    """x, y and what is given beside them, or a ValueError."""
    check_data(data, name)
    x, y, *rest = data
    given = rest[0] if rest else {}
    if not isinstance(given, dict):
        raise ValueError(
            f"{name}: expected (x, y, {{'mask': ..., 'weights': ...}}), got {type(given).__name__} for the third"
        )
    if unknown := sorted(given.keys() - {"mask", "weights"}):
        raise ValueError(
            f"{name}: expected the keys 'mask' and 'weights' beside x and y, got {unknown}; params come before the data"
        )
    return x, y, {k: v for k, v in given.items() if v is not None}


def names_classes(net: Layer, params: Params, data: Examples) -> bool:
    """Whether the targets name classes: labels, rows that are distributions, or zeros and ones for a single output."""
    a = jax.eval_shape(lambda: run_forward(net, params, data.x, mask=data.extras.get("mask"))[0])
    y = data.y
    if y.shape != a.shape:
        return True
    if y.ndim == 1:
        return False
    return bool(jax.device_get(_are_classes(y)))


@jax.jit
def _are_classes(y: Array) -> Array:
    if y.shape[-1] == 1:
        return jnp.all((y == 0) | (y == 1))
    return jnp.all(y >= 0) & jnp.all(jnp.abs(jnp.sum(y, axis=-1) - 1) < 1e-3)
