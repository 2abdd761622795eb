"""The audit of gradients written in NumPy: pairs of functions, and objects with a state."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from ..report import Report
from .audited import audited
from .runner import Code, Runner, Way
from .state import names_of_gradient
from .trees import is_floats, named, prepared


def audit_numpy(
    f: Any,
    *args: Any,
    gradients: dict[str, str] | None = None,
    reference: Callable | None = None,
    intended: Callable | None = None,
    points: Sequence[tuple[Any, ...]] | None = None,
    static_argnums: int | Sequence[int] = (),
) -> Report:
    """Hold a gradient written in NumPy, or in anything else that works on NumPy arrays, to central differences.

    Everything runs in float64. What is given is left as it was found: objects, their parameters and gradients, arguments, and
    NumPy's global random numbers.

    Args:
        f: a pair (value, gradient) of a scalar function of parameters, where gradient(params, *args) is like params; a
            pair (forward, backward), where forward(*args) -> (out, residuals), (out, ..., residuals) or out; one function
            that returns (value, gradient); or an object, or a pair of its methods, with forward(*args) -> out and
            backward(cotangent) -> the cotangent of args, or None.
        args: where to audit it. Arrays of floats are differentiated; integers, strings, and what ``static_argnums`` names
            are passed on.
        gradients: of an object: {"W": "dW"}, where it keeps each parameter and where its gradient; dotted paths lead
            through objects, dicts and lists: {"parameters.W": "gradients.W"}. By default they are found by their names.
        reference: (*args) -> out, a function that is measured instead.
        intended: the same, of which the rule is meant to be the derivative.
        points: further arguments to audit it at, a tuple each. By default a point near by and one far away.
        static_argnums: places of arguments that are not differentiated.

    Raises:
        ValueError: for what cannot be audited, with what to write instead.
    """
    with jax.enable_x64(True), np.errstate(all="ignore"):
        static = {i % len(args) for i in np.atleast_1d(np.asarray(static_argnums, int))} if args else set()
        given = tuple(a if i in static else prepared(a) for i, a in enumerate(args))
        runner = Runner(_code(f, gradients), given, static)
        if static:
            runner.code = runner.code._replace(ways=functools.partial(_ways_with_static, sorted(static)))
        try:
            runner.find_parameters()
            return audited(runner, reference, intended, points)
        finally:
            runner.state.restore()


def _code(f: Any, gradients: dict[str, str] | None) -> Code:
    if isinstance(f, tuple | list):
        owner = getattr(f[1], "__self__", None)
        return Code(_name(f[1] if owner is None else owner), f[0], f[1], _ways, claims, owner, gradients)
    if isinstance(f, type):
        if all(isinstance(inspect.getattr_static(f, name, None), staticmethod) for name in ("forward", "backward")):
            return _of_context(f)
        try:
            f = f()
        except TypeError as error:
            raise ValueError(
                f"audit: expected an object, got the class {f.__name__}; write audit({f.__name__}(...), ...)"
            ) from error
    forward, backward = getattr(f, "forward", None), getattr(f, "backward", None)
    if callable(backward) and (callable(forward) or callable(f)):
        return Code(_name(f), forward if callable(forward) else f, backward, _ways, claims, f, gradients)
    if callable(f):
        return Code(_name(f), lambda *args: _pair(f, args)[0], lambda *args: _pair(f, args)[1], _ways, claims)
    raise ValueError(
        f"audit: expected a pair of functions, or an object with the methods forward and backward, got {type(f).__name__}; "
        "give the methods themselves if they have other names: audit((layer.run, layer.pull), x)"
    )


def _pair(f: Callable, args: tuple) -> tuple[Any, Any]:
    """(value, gradient) of a function that returns both."""
    both = f(*args)
    if not isinstance(both, tuple) or len(both) < 2 or np.size(both[0]) != 1:
        raise ValueError(
            f"audit: {_name(f)} is one function and does not return (value, gradient); give a pair (value, gradient) or "
            "(forward, backward)"
        )
    return both[0], both[1] if len(both) == 2 else both[1:]


class Context:
    """What static methods in the manner of PyTorch keep between forward and backward."""

    saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors


def _of_context(f: Any) -> Code:
    context = Context()
    forward, backward = (functools.partial(method, context) for method in (f.forward, f.backward))
    return Code(f.__name__, forward, backward, _ways, claims, context)


def _name(f: Any) -> str:
    return _name(f.func) if isinstance(f, functools.partial) else getattr(f, "__name__", type(f).__name__)


def _ways(code: Code, r: Any) -> Iterator[Way]:
    """How forward's result can be meant, the likeliest first."""
    is_tuple = isinstance(r, tuple | list) and len(r) >= 2
    whole = list(_ways_without_residuals(code, r, is_tuple))
    if not is_tuple:
        yield from whole
        return
    floats = all(isinstance(leaf, float) or is_floats(leaf) for leaf in r)
    if code.owner is not None and floats:
        yield from whole
    if len(r) == 2:
        yield from _ways_with_residuals(lambda r: r[0], isinstance(r[0], tuple | list))
    else:
        yield from _ways_with_residuals(lambda r: r[:-1], True)
    if code.owner is None or not floats:
        yield from whole


def _ways_with_static(static: list[int], code: Code, r: Any) -> Iterator[Way]:
    """`_ways`, then those of ``jax.custom_vjp``, whose backward takes the static arguments first."""
    yield from _ways(code, r)
    for way in _ways(code, r):

        def arguments(r: Any, args: tuple, g: Any, way: Way = way) -> tuple:
            return (*(args[i] for i in static), *way.arguments(r, args, g))

        yield way._replace(words=way.words.replace("(", "(*static, "), arguments=arguments)


def _ways_with_residuals(outputs: Callable, several: bool) -> Iterator[Way]:
    def way(words: str, arguments: Callable) -> Way:
        return Way(f"backward({words})", outputs, lambda r, args, g: arguments(r[-1], g))

    yield way("residuals, g", lambda kept, g: (kept, g))
    yield way("g, residuals", lambda kept, g: (g, kept))
    if several:
        yield way("*g, residuals", lambda kept, g: (*g, kept))
        yield way("residuals, *g", lambda kept, g: (kept, *g))
    yield way("g", lambda kept, g: (g,))
    yield way("g, *residuals", lambda kept, g: (g, *kept))


def _ways_without_residuals(code: Code, r: Any, several: bool) -> Iterator[Way]:
    def way(words: str, arguments: Callable, of_one: bool = False) -> Way:
        return Way(f"backward({words})", lambda r: r, arguments, of_one)

    is_scalar = not several and np.size(r) == 1
    gradient = way("*args", lambda r, args, g: args, of_one=True)
    if is_scalar and code.owner is None:
        yield gradient._replace(words="gradient(*args)")
    if code.owner is not None:
        if several:
            yield way("*g", lambda r, args, g: tuple(g))
        yield way("g", lambda r, args, g: (g,))
        if is_scalar:
            yield way("", lambda r, args, g: (), of_one=True)
            yield gradient
    yield way("g, *args", lambda r, args, g: (g, *args))
    yield way("*args, g", lambda r, args, g: (*args, g))
    yield way("args, g", lambda r, args, g: (args, g))
    yield way("g, out", lambda r, args, g: (g, r))
    yield way("out, g", lambda r, args, g: (r, g))
    if several:
        yield way("*g, *args", lambda r, args, g: (*g, *args))


def _matched(target: Any, gradient: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(name, gradient) of each leaf of an argument, and of what the gradient has beside."""
    if isinstance(target, dict) and isinstance(gradient, dict):
        rest = dict(gradient)
        for key, b in target.items():
            own = next((k for k in (key, *names_of_gradient(key)) if k in rest), None)
            yield from _matched(b, None if own is None else rest.pop(own), f"{name}[{key!r}]")
        yield from ((f"{name}[{key!r}]", b) for key, b in rest.items())
    elif isinstance(target, list | tuple) and isinstance(gradient, list | tuple):
        for i, (b, g) in enumerate(zip(target, gradient, strict=False)):
            yield from _matched(b, g, f"{name}[{i}]")
        yield from ((f"{name}[{i}]", g) for i, g in enumerate(gradient) if i >= len(target))
        yield from (
            pair for i, b in enumerate(target) if i >= len(gradient) for pair in _matched(b, None, f"{name}[{i}]")
        )
    elif isinstance(target, dict | list | tuple):
        if gradient is not None:
            raise ValueError(
                f"audit: expected the gradient of {name} to be like it, a {type(target).__name__}, got "
                f"{type(gradient).__name__}"
            )
        yield from ((leaf, None) for leaf, _ in named(target, name))
    else:
        yield name, gradient


def claims(code: Code, args: tuple[Any, ...], static: set[int], result: Any, like_first: bool) -> dict[str, Any]:
    """{name: gradient} of what backward, or the gradient of a value, returned.

    Raises:
        ValueError: where it cannot be told which gradient belongs to which argument.
    """
    dynamic = [i for i in range(len(args)) if i not in static]
    has_floats = [i for i in dynamic if any(is_floats(leaf) for _, leaf in named(args[i], ""))]
    arrays = [i for i in dynamic if is_floats(args[i])]

    def of(pairs: Iterable[tuple[int, Any]]) -> dict[str, Any]:
        return dict(pair for i, g in pairs for pair in _matched(args[i], g, f"args[{i}]"))

    if like_first and isinstance(result, list) and is_floats(args[0]) and args[0].shape == _shape(result):
        result = np.array(result, np.float64)  # a list of numbers, as the argument is one
    if like_first and _fits(args[0], result):
        return of([(0, result)])
    if isinstance(result, dict):
        places = {name: i for i, name in enumerate(_argument_names(code.forward, len(args)))}
        owns = {k: i for name, i in places.items() for k in (name, *names_of_gradient(name))}
        if not result.keys() <= owns.keys():
            raise ValueError(
                f"audit: {code.name} returned a dict of gradients with the keys {', '.join(map(str, result))}, which are no "
                f"names of its arguments ({', '.join(places)}); return a tuple with one for each argument"
            )
        return of((owns[key], g) for key, g in result.items())
    parts = tuple(result) if isinstance(result, list | tuple) else (result,)
    first_only = like_first or code.owner is not None  # parameters, or the input of a layer or a cost
    for places in (dynamic, arrays, has_floats, *([has_floats[:1]] if first_only else [])):
        if len(places) == len(parts):
            return of(zip(places, parts, strict=True))
    of_arrays = ", ".join(f"args[{i}]" for i in has_floats)
    raise ValueError(
        f"audit: {code.name} returned {len(parts)} gradients for {len(has_floats)} arguments with arrays of floats "
        f"({of_arrays}); "
        "return a tuple with one for each, None for zero, and name in static_argnums= those that are not differentiated"
    )


def _shape(numbers: list) -> tuple[int, ...]:
    try:
        return np.array(numbers, np.float64).shape
    except (TypeError, ValueError):
        return ()


def _fits(target: Any, gradient: Any) -> bool:
    if isinstance(target, dict):
        return isinstance(gradient, dict)
    sequences = isinstance(target, list | tuple) and isinstance(gradient, list | tuple)
    return sequences and len(gradient) == len(target)


def _argument_names(forward: Callable, count: int) -> list[str]:
    try:
        return list(inspect.signature(forward).parameters)[:count]
    except (TypeError, ValueError):
        return []
