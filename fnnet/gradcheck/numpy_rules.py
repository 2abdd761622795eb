"""The audit of gradients written in NumPy: pairs of functions, and objects with a state."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from .differences import AT_ONCE, JUDGE, Function, NoJudge, Piece, along_directions, measured
from .measured import Measured, measured_rows
from .function import of_flat
from .mistakes import of_function
from .points import moved
from .report import Report, Row
from .rows import failed, reported
from .state import State, read
from .verdicts import TOLERANCE, distance, wide

NUMBERS = (int, float, np.number, np.bool_)


def audit_numpy(
    f: Any,
    *args: Any,
    gradients: dict[str, str] | None = None,
    reference: Callable | None = None,
    intended: Callable | None = None,
    points: Sequence[tuple] | None = None,
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
        try:
            runner.find_parameters()
            return _audited(runner, reference, intended, points)
        finally:
            runner.state.restore()


class Code(NamedTuple):
    """What was given: two functions, and the object that they belong to."""

    name: str
    forward: Callable
    backward: Callable
    owner: Any = None
    gradients: dict[str, str] | None = None


class Way(NamedTuple):
    """A way to read what forward returns and to call backward: in words, the outputs, the arguments of backward from what
    forward returned, the arguments and the cotangents, and whether the cotangent is 1."""

    words: str
    outputs: Callable[[Any], Any]
    arguments: Callable[[Any, tuple, list], tuple]
    of_one: bool = False


def _code(f: Any, gradients: dict[str, str] | None) -> Code:
    if isinstance(f, tuple | list):
        if len(f) != 2 or not all(map(callable, f)):
            raise ValueError(
                "audit: expected a pair of functions, (value, gradient) or (forward, backward), or an object with the "
                f"methods forward and backward, got {len(f)} of {', '.join(type(one).__name__ for one in f)}"
            )
        owner = getattr(f[1], "__self__", None)
        return Code(_name(f[1] if owner is None else owner), f[0], f[1], owner, gradients)
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
        return Code(_name(f), forward if callable(forward) else f, backward, f, gradients)
    if callable(f):
        return Code(_name(f), lambda *args: _pair(f, args)[0], lambda *args: _pair(f, args)[1])
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

    saved_tensors: tuple = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors


def _of_context(f: Any) -> Code:
    context = Context()
    return Code(f.__name__, functools.partial(f.forward, context), functools.partial(f.backward, context), context)


def _name(f: Any) -> str:
    return _name(f.func) if isinstance(f, functools.partial) else getattr(f, "__name__", type(f).__name__)


def prepared(a: Any) -> Any:
    """An argument with its arrays of floats in float64; lists of numbers are arrays."""
    if isinstance(a, dict):
        return {key: prepared(b) for key, b in a.items()}
    if isinstance(a, list | tuple):
        if a and all(isinstance(n, NUMBERS) for n in np.ravel(np.array(a, object))) and _is_regular(a):
            return prepared(np.array(a))
        parts = map(prepared, a)
        return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)
    if isinstance(a, jax.Array):
        a = np.asarray(a)
    if isinstance(a, np.ndarray):
        return a.astype(np.float64) if _is_floats(a) else a.copy()
    return a


def _is_regular(a: Any) -> bool:
    try:
        return np.array(a).dtype != object
    except ValueError:
        return False


def _is_floats(a: Any) -> bool:
    dtype = getattr(a, "dtype", None)
    return dtype is not None and (np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16")


def named(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """(name, leaf) of every leaf in dicts, lists and tuples."""
    if isinstance(tree, dict):
        for key, b in tree.items():
            yield from named(b, f"{name}[{key!r}]")
    elif isinstance(tree, list | tuple):
        for i, b in enumerate(tree):
            yield from named(b, f"{name}[{i}]")
    else:
        yield name, tree


def replaced(tree: Any, name: str, new: dict[str, Any]) -> Any:
    """The tree with new leaves, by name. Containers are new, so that they can be changed."""
    if isinstance(tree, dict):
        return {key: replaced(b, f"{name}[{key!r}]", new) for key, b in tree.items()}
    if isinstance(tree, list | tuple):
        parts = [replaced(b, f"{name}[{i}]", new) for i, b in enumerate(tree)]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return new.get(name, tree)


def floats_of(out: Any) -> list[np.ndarray]:
    """The arrays of floats in an output."""
    if isinstance(out, np.ndarray) and out.dtype == np.float64:
        return [out]
    found = [np.asarray(leaf) for _, leaf in named(out, "") if isinstance(leaf, NUMBERS) or hasattr(leaf, "dtype")]
    if any(np.iscomplexobj(leaf) for leaf in found):
        raise ValueError(
            "audit: expected real outputs of NumPy code, got complex ones; return real and imaginary parts"
        )
    return [wide(leaf) for leaf in found if _is_floats(leaf)]


def cotangents_of(out: Any, u: Iterator[np.ndarray]) -> Any:
    """u in the structure of an output; zeros for what is no float."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, float) and not _is_floats(leaf):
            return np.zeros(np.shape(leaf))
        return next(u).reshape(np.shape(leaf))[()]

    return replaced(out, "", {name: one(leaf) for name, leaf in named(out, "")})


class Runner:
    """Runs the code at chosen values, always from the state in which it was found.

    Args:
        code: what was given.
        args: prepared.
        static: places of arguments that are not differentiated.
    """

    def __init__(self, code: Code, args: tuple, static: set[int]) -> None:
        self.code, self.args, self.static = code, args, static
        self.state, self.fresh = State(code.owner, args), False
        dynamic = [pair for i, a in enumerate(args) if i not in static for pair in named(a, f"args[{i}]")]
        self.given = {name: leaf for name, leaf in dynamic if _is_floats(leaf)}
        self.numbers = {name: np.float64(leaf) for name, leaf in dynamic if isinstance(leaf, float)}
        self.params: dict[str, Any] = {}

    def find_parameters(self) -> None:
        """The object's parameters, which are set with the arguments.

        Raises:
            ValueError: for one that is not there.
        """
        code = self.code
        if code.gradients is None and code.owner is not None:
            found = found_by_running(self)
            self.code = code = code._replace(gradients=found or None)
        for path in code.gradients or {}:
            value = read(code.owner, path)
            if not _is_floats(value) and not isinstance(value, float):
                raise ValueError(
                    f"audit: expected an array of floats in {path} of {code.name}, found {type(value).__name__}"
                )
            self.params[path] = wide(value)

    def start(self) -> None:
        """The object as it was found, its parameters in float64."""
        self.state.restore()
        for path, value in self.params.items():
            old = read(self.code.owner, path)
            if isinstance(old, np.ndarray) and old.dtype == np.float64 and old.flags.writeable:
                continue
            for container, key in [*self.state.places(old)] or [_place(self.code.owner, path)]:
                container[key] = value.copy()[()]

    def called(self, values: dict[str, Any], f: Callable | None = None, once_more: bool = False) -> Any:
        """What forward, or another function of its arguments, returns."""
        if self.fresh and not once_more:
            self.start()
        for path in self.params:
            if path in values:
                container, key = _place(self.code.owner, path)
                old = container[key]
                if isinstance(old, np.ndarray) and old.ndim:
                    old[...] = values[path]
                else:
                    container[key] = values[path]
        args = [replaced(a, f"args[{i}]", values) for i, a in enumerate(self.args)]
        return (f or self.code.forward)(*args)

    def values(self) -> dict[str, np.ndarray]:
        return {name: a.copy()[()] for name, a in (self.given | self.params).items()}

    def settle(self) -> Any:
        """What forward returns; each call from a fresh state if it depends on earlier ones.

        Raises:
            ValueError: where two calls give different numbers all the same.
        """
        for self.fresh in (False, True):
            self.start()
            one, other = (floats_of(self.called(self.values())) for _ in range(2))
            if len(one) == len(other) and all(map(functools.partial(np.array_equal, equal_nan=True), one, other)):
                self.start()
                return self.called(self.values())
        raise ValueError(
            f"audit: two calls of {self.code.name} at the same point give different numbers; if it draws random ones, seed "
            "it inside, or keep what it draws (a mask, say) as an argument"
        )


def _place(owner: Any, path: str) -> tuple[Any, Any]:
    """The dict or list that holds what is at a dotted path, and its key."""
    head, _, last = path.rpartition(".")
    holder = read(owner, head) if head else owner
    holder = holder if isinstance(holder, dict | list) else holder.__dict__
    return holder, int(last) if isinstance(holder, list) or (last not in holder and last.isdecimal()) else last


def _ways(code: Code, r: Any) -> Iterator[Way]:
    """How forward's result can be meant, the likeliest first."""
    is_tuple = isinstance(r, tuple | list) and len(r) >= 2
    whole = list(_ways_without_residuals(code, r, is_tuple))
    if not is_tuple:
        yield from whole
        return
    floats = all(isinstance(leaf, float) or _is_floats(leaf) for leaf in r)
    if code.owner is not None and floats:
        yield from whole
    if len(r) == 2:
        yield from _ways_with_residuals(lambda r: r[0], isinstance(r[0], tuple | list))
    else:
        yield from _ways_with_residuals(lambda r: r[:-1], True)
    if code.owner is None or not floats:
        yield from whole


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
            own = next((k for k in (key, *_names_of_gradient(key)) if k in rest), None)
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


def _names_of_gradient(key: Any) -> tuple[str, ...]:
    return (f"d{key}", f"d_{key}", f"grad_{key}", f"{key}_grad", f"grad{key}", f"g_{key}", f"g{key}")


def claims(code: Code, args: tuple, static: set[int], result: Any, like_first: bool) -> dict[str, Any]:
    """{name: gradient} of what backward, or the gradient of a value, returned.

    Raises:
        ValueError: where it cannot be told which gradient belongs to which argument.
    """
    dynamic = [i for i in range(len(args)) if i not in static]
    has_floats = [i for i in dynamic if any(_is_floats(leaf) for _, leaf in named(args[i], ""))]
    arrays = [i for i in dynamic if _is_floats(args[i])]

    def of(pairs: Iterable[tuple[int, Any]]) -> dict[str, Any]:
        return dict(pair for i, g in pairs for pair in _matched(args[i], g, f"args[{i}]"))

    if like_first and _fits(args[0], result):
        return of([(0, result)])
    if isinstance(result, dict):
        places = {name: i for i, name in enumerate(_argument_names(code.forward, len(args)))}
        owns = {k: i for name, i in places.items() for k in (name, *_names_of_gradient(name))}
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


def found_by_running(runner: Runner) -> dict[str, str]:
    """`found_by_name` after a forward and a backward pass, in any way that works."""
    for way in _ways(runner.code, runner.settle()):
        try:
            pulled(runner, way, runner.values())
        except Exception:  # another way of calling than it is meant
            continue
        break
    found = found_by_name(runner.code.owner)
    runner.state.restore()
    return found


def found_by_name(owner: Any) -> dict[str, str]:
    """{path of a parameter: path of its gradient}, by their names: W and dW, w and grad_w, params["w"] and grads["w"]."""
    held = getattr(owner, "__dict__", {})
    pairs = {
        name: other
        for name, a in held.items()
        for other in _names_of_gradient(name)
        if _is_floats(a) and _is_floats(b := held.get(other)) and np.shape(b) == np.shape(a)  # pyright: ignore
    }
    dicts = {name: a for name, a in held.items() if isinstance(a, dict) and a}
    for name, a in dicts.items():
        for other, b in dicts.items():
            if "grad" in other.lower() and "grad" not in name.lower():
                pairs |= {f"{name}.{k}": f"{other}.{k}" for k in a if k in b and _is_floats(a[k]) and _is_floats(b[k])}
                pairs |= {
                    f"{name}.{k}": f"{other}.{d}"
                    for k in a
                    for d in _names_of_gradient(k)
                    if d in b and _is_floats(a[k]) and np.shape(b[d]) == np.shape(a[k])
                }
    return pairs


class Pulled(NamedTuple):
    """What the code gave at a point: its outputs, the cotangents, and the gradients by name."""

    out: Any
    u: list[np.ndarray]
    gradients: dict[str, Any]


def pulled(runner: Runner, way: Way, values: dict[str, Any]) -> Pulled:
    """Forward and backward, from the state in which the object was found."""
    code = runner.code
    runner.start()
    before = {path: np.copy(read(code.owner, own)) for path, own in (code.gradients or {}).items()}
    r = runner.called(_copies(values))
    out = way.outputs(r)
    draw = np.random.default_rng(0)
    u = [np.ones(a.shape) if way.of_one else draw.standard_normal(a.shape) for a in floats_of(out)]

    def back(r: Any) -> Any:
        args = tuple(replaced(a, f"args[{i}]", _copies(values)) for i, a in enumerate(runner.args))
        return code.backward(*way.arguments(r, args, cotangents_of(out, map(np.copy, u))))

    result = back(r)
    like_first = way.words.startswith("gradient")
    if like_first and isinstance(result, tuple) and len(result) == 2 and np.shape(result[0]) == () == np.shape(r):
        result = result[1] if np.shape(runner.args[0]) != () else result  # (value, gradient) once more
    found = (
        {}
        if result is None and code.owner is not None
        else claims(code, runner.args, runner.static, result, like_first)
    )
    gradients = {name: None if g is None else np.array(g) for name, g in found.items()}
    if code.gradients is None:
        return Pulled(out, u, gradients)

    first = {path: np.copy(read(code.owner, own)) for path, own in code.gradients.items()}
    back(runner.called(_copies(values), once_more=True))
    for path, own in code.gradients.items():
        again = np.copy(read(code.owner, own))
        gradients[path] = _since(before[path], first[path], again)
        if first[path].dtype == object:
            kind = type(read(code.owner, own)).__name__
            raise ValueError(
                f"audit: expected the gradient of {path} in {own} of {code.name} after backward, found {kind}"
            )
    return Pulled(out, u, gradients)


def _copies(values: dict[str, Any]) -> dict[str, Any]:
    return {name: a.copy() for name, a in values.items()}


def _since(before: Any, first: np.ndarray, again: np.ndarray) -> np.ndarray:
    """A gradient that backward sets, or what it adds to the one before."""
    if first.dtype == object or first.shape != again.shape or np.array_equal(first, again, equal_nan=True):
        return first
    start = before if before.dtype != object and before.shape == first.shape else np.zeros_like(first)
    return first - start if np.allclose(again - first, first - start, rtol=1e-6, equal_nan=True) else first


class Problem:
    """A way of calling the code, at a point.

    Args:
        runner: of the code.
        way: how backward is called.
        values: of all arrays of floats, by name.
        plain: what is measured instead of forward.
    """

    def __init__(self, runner: Runner, way: Way, values: dict[str, Any], plain: Callable | None) -> None:
        self.runner, self.way, self.values, self.plain = runner, way, values, plain
        self.out, self.u, gradients = pulled(runner, way, values)
        self.outputs = floats_of(self.out)
        if way.of_one and sum(a.size for a in self.outputs) != 1:
            raise ValueError(f"audit: {runner.code.name} is no scalar")
        known = {name for i, a in enumerate(runner.args) for name, _ in named(a, f"args[{i}]")} | values.keys()
        self.extra = sorted(name for name, g in gradients.items() if name not in known and g is not None)
        self.gradients = {
            name: g
            for name, g in gradients.items()
            if name in values or (name in runner.numbers and g is not None and g.dtype != object)
        }
        if not self.gradients:
            raise ValueError(
                f"audit: expected an argument or a parameter of {runner.code.name} with an array of floats, got none"
            )
        self.equation = "gradient" if way.words.startswith("gradient") else "backward"

    @functools.cached_property
    def shapes_agree(self) -> bool:
        return all(g is None or g.shape == np.shape(self.at(name)) for name, g in self.gradients.items())

    def at(self, name: str) -> np.ndarray:
        return np.asarray(self.values.get(name, self.runner.numbers.get(name)))

    @functools.cached_property
    def function(self) -> Function:
        """⟨u, forward⟩ of the arrays that have a gradient."""
        names = tuple(self.gradients)
        shapes = tuple(self.at(name).shape for name in names)
        x = np.concatenate([self.at(name).ravel() for name in names])
        f = Function(x, names, ("float64",) * len(names), shapes, AT_ONCE, self.measured_at)
        self.parts = list(zip(names, f.parts(), shapes, strict=True))
        return f

    def measured_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.full((2, len(points)), np.nan)
        for i, point in enumerate(points.copy()):  # which forward may write to
            values = _copies(self.values)
            values.update({name: point[part].reshape(shape)[()] for name, part, shape in self.parts})
            try:
                if self.plain is None:
                    out = floats_of(self.way.outputs(self.runner.called(values)))
                else:
                    out = floats_of(self.runner.called(values, self.plain))
                terms = [u * o for u, o in zip(self.u, out, strict=True)]
            except Exception:  # whatever a function raises outside of its domain
                continue
            found[:, i] = sum(float(t.sum()) for t in terms), sum(float(np.abs(t).sum()) for t in terms)
        return found[0], found[1]

    def rows(self, measure: Callable = measured) -> list[Row]:
        self.runner.start()
        leaves = [self.at(name) for name in self.gradients]
        subject = Measured(self.equation, self.function, lambda *_: self.gradients, (leaves, self.u), measure=measure)
        rows = measured_rows(self.runner.code.name, subject, functools.partial(of_function, subject, self.examples))
        if not any(np.any(piece.slopes.slope) for _, piece in subject.pieces.values()):
            rows = [of_flat(row) if failed(row) else row for row in rows]
        return [self._told(row) for row in rows] + [
            Row(
                self.runner.code.name,
                self.equation,
                name,
                "fail",
                float("inf"),
                hint="there is no such leaf to differentiate",
            )
            for name in self.extra
        ]

    def _told(self, row: Row) -> Row:
        """With what is known of a failure beside its numbers."""
        name = row.leaf.partition(" (")[0]
        if failed(row) and name in self.gradients and self.gradients[name] is None:
            hint = "no gradient was given, which counts as 0: name the argument in static_argnums= if it is not to have one"
            row = dataclasses.replace(row, hint=hint)
        only_first = self.equation == "gradient" and all(
            n.startswith("args[0]") for n in (*self.gradients, *self.extra)
        )
        return dataclasses.replace(row, leaf=row.leaf.removeprefix("args[0]").strip()) if only_first else row

    @property
    def examples(self) -> int:
        """How many there seem to be."""
        if self.equation == "backward":
            return next((a.shape[0] for a in self.outputs if a.ndim), 1)
        shared = {a.shape[0] for name, a in self.values.items() if name not in self.gradients and np.ndim(a)}
        return max(1, *shared) if len(shared) == 1 else 1


def _audited(
    runner: Runner, reference: Callable | None, intended: Callable | None, points: Sequence[tuple] | None
) -> Report:
    plain = intended or reference
    r = runner.settle()
    problem, rows = _likeliest(runner, r, plain)
    if reference is not None and not intended:
        rows = [*rows, _forward_row(problem, reference)]
    if not any(map(failed, rows)):
        rows = _elsewhere(problem, rows, points)
    if intended:
        rows = [dataclasses.replace(row, verdict="intended") if row.verdict == "pass" else row for row in rows]
    about = f"{JUDGE} of {'what is intended' if intended else 'the reference' if reference else runner.code.name}"
    if problem.way.words != next(_ways(runner.code, r)).words:
        about += f"; called as {problem.way.words}"
    if problem.equation == "backward" and (without := runner.given.keys() - problem.gradients.keys()):
        about += f"; of {', '.join(sorted(without))} no gradient was given"
    return reported(rows, "float64", about)


def _likeliest(runner: Runner, r: Any, plain: Callable | None) -> tuple[Problem, list[Row]]:
    """The first way of calling that gives the right gradients; where none does, the first that gives some."""
    kept: dict[Any, list[Piece]] = {}
    found, refusals = [], []
    for way in _ways(runner.code, r):
        try:
            problem = Problem(runner, way, runner.values(), plain)
            rows = problem.rows(functools.partial(_measured_once, kept, problem))
        except Exception as error:  # whatever backward raises that is called in another way than it is meant to be
            if isinstance(error, NoJudge) and not found:
                raise
            refusals.append((way, error))
            continue
        if not any(map(failed, rows)) and any(row.verdict != "vacuous" for row in rows):
            return problem, rows
        found.append((problem, rows))
    if not found:
        way, error = next((pair for pair in refusals if str(pair[1]).startswith("audit: ")), refusals[0])
        if str(error).startswith("audit: "):
            raise error
        raise ValueError(
            f"audit: {runner.code.name} could be called in none of the usual ways; as {way.words}: {type(error).__name__}: "
            f"{error}"
        ) from error
    return next((pair for pair in found if pair[0].shapes_agree), found[0])


def _measured_once(kept: dict[Any, list[Piece]], problem: Problem, f: Function, i: int, *every: int) -> list[Piece]:
    """`measured`, for all ways of calling that take the same outputs."""
    key = problem.way.of_one, f.names[i], *every, *(a.shape for a in problem.outputs)
    if key not in kept:
        kept[key] = measured(f, i, *every)
    return kept[key]


def _forward_row(problem: Problem, reference: Callable) -> Row:
    """Whether the function gives what the reference gives."""
    runner = problem.runner
    runner.start()
    right = floats_of(runner.called(_copies(problem.values), reference))
    size = max((float(np.max(np.abs(a), initial=0)) for a in right), default=0.0)
    apart = distance(problem.outputs, right, size)
    verdict = "pass" if apart <= TOLERANCE["float64"] else "fail"
    hint = "" if verdict == "pass" else "the function gives another value than the reference"
    return Row(runner.code.name, "forward", "out", verdict, apart, size=size, hint=hint)


def _elsewhere(problem: Problem, rows: list[Row], points: Sequence[tuple] | None) -> list[Row]:
    """The rows, with what is wrong at other points, along random directions there."""
    for name, values in _points(problem, points):
        try:
            there = Problem(problem.runner, problem.way, values, problem.plain)
            wrong = {row.leaf.partition(" (")[0]: row for row in there.rows(along_directions) if failed(row)}
        except Exception:  # outside of the domain, or nothing to judge by
            continue
        if wrong:
            return [_wrong_there(row, wrong.get(row.leaf.partition(" (")[0]), name) for row in rows]
    return rows


def _wrong_there(row: Row, other: Row | None, place: str) -> Row:
    hint = f"right at the given point, wrong at {place}"
    return row if other is None else dataclasses.replace(row, verdict="fail", difference=other.difference, hint=hint)


def _points(problem: Problem, points: Sequence[tuple] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    runner = problem.runner
    if points is None:
        for seed, (name, step) in enumerate({"a point near by": 0.1, "a point far away": None}.items()):
            draw = np.random.default_rng(seed)
            yield name, {path: wide(moved(a, draw, step))[()] for path, a in runner.values().items()}
        return
    for i, point in enumerate(points):
        args = tuple(map(prepared, point if isinstance(point, tuple | list) else (point,)))
        there = {name: a for j, b in enumerate(args) for name, a in named(b, f"args[{j}]") if _is_floats(a)}
        if there.keys() != runner.given.keys():
            raise ValueError(f"audit: expected arguments like the given ones at points[{i}]: {', '.join(runner.given)}")
        yield f"points[{i}]", runner.values() | there
