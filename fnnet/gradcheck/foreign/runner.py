"""Runs code of other libraries at chosen values, and reads what its backward pass gives."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ..points import drawing
from ..verdicts import wide
from .state import State, found_by_name, held_by, read
from .trees import cotangents_of, floats_of, is_floats, named, replaced


class Code(NamedTuple):
    """What was given.

    Attributes:
        name: of the rule.
        forward: (*args) -> anything.
        backward: called as a `Way` says.
        ways: what forward returned -> how it and backward can be meant, the likeliest first.
        claims: (code, args, static, result of backward, whether args[0] are parameters) -> {name: gradient}.
        owner: the object that the functions are methods of.
        gradients: {path of a parameter in it: path of its gradient}.
    """

    name: str
    forward: Callable
    backward: Callable
    ways: Callable[["Code", Any], Iterator["Way"]]
    claims: Callable[..., dict[str, Any]]
    owner: Any = None
    gradients: dict[str, str] | None = None


class Way(NamedTuple):
    """A way to read what forward returns and to call backward: in words, the outputs, the arguments of backward from what
    forward returned, the arguments and the cotangents, and whether the cotangent is 1."""

    words: str
    outputs: Callable[[Any], Any]
    arguments: Callable[[Any, tuple, list], tuple]
    of_one: bool = False


class Runner:
    """Runs the code at chosen values, always from the state in which it was found.

    Args:
        code: what was given.
        args: prepared.
        static: places of arguments that are not differentiated.
    """

    def __init__(self, code: Code, args: tuple[Any, ...], static: set[int]) -> None:
        self.code: Code = code
        self.args = args
        self.static = static
        self.state: State = State(code.owner, args)
        self.fresh: bool = False
        dynamic = [pair for i, a in enumerate(args) if i not in static for pair in named(a, f"args[{i}]")]
        self.given: dict[str, Any] = {name: leaf for name, leaf in dynamic if is_floats(leaf)}
        self.numbers: dict[str, np.float64] = {
            name: np.float64(leaf) for name, leaf in dynamic if isinstance(leaf, float)
        }
        self.params: dict[str, Any] = {}
        self.unclaimed: list[str] = []

    def find_parameters(self) -> None:
        """The object's parameters, which are set with the arguments.

        Raises:
            ValueError: for one that is not there.
        """
        code = self.code
        if code.gradients is None and code.owner is not None:
            self.code = code = code._replace(gradients=self._gradients_by_name() or None)
            self.unclaimed = self._used(code.gradients or {})
        for path in code.gradients or {}:
            value = read(code.owner, path)
            if not is_floats(value) and not isinstance(value, float):
                raise ValueError(
                    f"audit: expected an array of floats in {path} of {code.name}, found {type(value).__name__}"
                )
            self.params[path] = wide(value)

    def _gradients_by_name(self) -> dict[str, str]:
        """`found_by_name` after a forward and a backward pass, in any way that works."""
        for way in self.code.ways(self.code, self.settle()):
            try:
                pulled(self, way, self.values())
            except Exception:  # another way of calling than it is meant
                continue
            break
        found = self._left_alone(found_by_name(self.code.owner, is_floats))
        self.state.restore()
        return found

    def _left_alone(self, found: dict[str, str]) -> dict[str, str]:
        """Those among them that forward does not set itself, as it does what it keeps of its input for the way back.

        Raises:
            ValueError: for a parameter that the first call of forward creates.
        """
        self.state.restore()
        late = [path for path in found if not is_floats(read(self.code.owner, path))]
        try:
            if late:
                self.called(self.values())
            marks = {path: self._marked(path) for path in found}
            self.called(self.values())
        except Exception:  # outside of its domain
            return found
        left = {path: found[path] for path, mark in marks.items() if np.array_equal(read(self.code.owner, path), mark)}
        if new := [path for path in late if path in left]:
            raise ValueError(
                f"audit: {self.code.name} has its parameters ({', '.join(new)}) only after the first call of forward; call "
                "it once, empty what it keeps for the way back, and audit it then"
            )
        return left

    def _marked(self, path: str) -> np.ndarray:
        """Other values in the place of a parameter."""
        container, key = _place(self.code.owner, path)
        old = np.asarray(container[key])
        container[key] = (old + 1e-3 * (np.abs(old) + 1)).astype(old.dtype)
        return np.copy(container[key])

    def _used(self, gradients: dict[str, str]) -> list[str]:
        """Arrays of the object that its output depends on, and of which no gradient was found."""
        paths = [path + name for path, held in held_by(self.code.owner) for name, a in held.items() if is_floats(a)]
        known = [np.asarray(read(self.code.owner, path)) for path in (*gradients, *gradients.values())]
        found = []
        try:
            right = floats_of(self.called(self.values()))
            self.state.restore()
            for path in paths:
                own = np.asarray(read(self.code.owner, path))
                if not own.size or any(np.shares_memory(own, other) for other in known):
                    continue
                self._marked(path)
                if not all(map(np.array_equal, floats_of(self.called(self.values())), right)):
                    found.append(path)
                self.state.restore()
        except Exception:  # outside of its domain
            self.state.restore()
        return found

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


class Pulled(NamedTuple):
    """What the code gave at a point: its outputs, the cotangents, and the gradients by name."""

    out: Any
    u: list[np.ndarray]
    gradients: dict[str, Any]


def pulled(runner: Runner, way: Way, values: dict[str, Any], scale: float = 1.0) -> Pulled:
    """Forward and backward, from the state in which the object was found, of a random cotangent of this size."""
    code = runner.code
    runner.start()
    before = {path: np.copy(read(code.owner, own)) for path, own in (code.gradients or {}).items()}
    r = runner.called(copies(values))
    out = way.outputs(r)
    draw = drawing(0)
    u = [np.ones(a.shape) if way.of_one else scale * draw.standard_normal(a.shape) for a in floats_of(out)]

    def back(r: Any) -> Any:
        args = tuple(replaced(a, f"args[{i}]", copies(values)) for i, a in enumerate(runner.args))
        return code.backward(*way.arguments(r, args, cotangents_of(out, map(np.copy, u))))

    result = back(r)
    like_first = way.words.startswith("gradient")
    if like_first and isinstance(result, tuple) and len(result) == 2 and np.shape(result[0]) == () == np.shape(r):
        result = result[1] if np.shape(runner.args[0]) != () else result  # (value, gradient) once more
    found = (
        {}
        if result is None and code.owner is not None
        else code.claims(code, runner.args, runner.static, result, like_first)
    )
    gradients = {name: None if g is None else np.array(g) for name, g in found.items()}
    if code.gradients is None:
        return Pulled(out, u, gradients)

    first = {path: np.copy(read(code.owner, own)) for path, own in code.gradients.items()}
    back(runner.called(copies(values), once_more=True))
    for path, own in code.gradients.items():
        again = np.copy(read(code.owner, own))
        gradients[path] = _since(before[path], first[path], again)
        if first[path].dtype == object:
            kind = type(read(code.owner, own)).__name__
            raise ValueError(
                f"audit: expected the gradient of {path} in {own} of {code.name} after backward, found {kind}"
            )
    return Pulled(out, u, gradients)


def copies(values: dict[str, Any]) -> dict[str, Any]:
    return {name: a.copy() for name, a in values.items()}


def _since(before: Any, first: np.ndarray, again: np.ndarray) -> np.ndarray:
    """A gradient that backward sets, or what it adds to the one before."""
    if first.dtype == object or first.shape != again.shape or np.array_equal(first, again, equal_nan=True):
        return first
    start = before if before.dtype != object and before.shape == first.shape else np.zeros_like(first)
    return first - start if np.allclose(again - first, first - start, rtol=1e-6, equal_nan=True) else first
