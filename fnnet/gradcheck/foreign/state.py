"""What a foreign object holds, so that it can be run many times and left as it was found."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ATOMS = (str, bytes, int, float, complex, bool, type(None), type, np.dtype)


class State:
    """Everything that is reachable from some objects, and NumPy's global random numbers.

    Arrays are restored in place, so that views and aliases stay what they are.
    """

    def __init__(self, *roots: Any) -> None:
        self.containers: list[tuple[Any, Any]] = []
        self.arrays: list[tuple[np.ndarray, np.ndarray]] = []
        self.generators: list[tuple[Any, Any]] = []
        self.random: Any = np.random.get_state()  # noqa: NPY002
        seen: dict[int, Any] = {}
        for root in roots:
            self._visit(root, seen)

    def _visit(self, a: Any, seen: dict[int, Any]) -> None:
        if isinstance(a, ATOMS) or (callable(a) and not hasattr(a, "__dict__")) or id(a) in seen:
            return
        seen[id(a)] = a
        if isinstance(a, np.ndarray):
            if a.flags.writeable and a.dtype != object:
                self.arrays.append((a, a.copy()))
        elif isinstance(a, np.random.Generator):
            self.generators.append((a.bit_generator, a.bit_generator.state))
        elif isinstance(a, np.random.RandomState):
            self.generators.append((a, a.get_state()))
        elif isinstance(a, dict | list):
            self.containers.append((a, a.copy()))
            for b in list(a.values()) if isinstance(a, dict) else a:
                self._visit(b, seen)
        elif isinstance(a, tuple | set | frozenset):
            for b in a:
                self._visit(b, seen)
        elif isinstance(getattr(a, "__dict__", None), dict) and not _is_module(a):
            self._visit(a.__dict__, seen)

    def restore(self) -> None:
        for container, kept in self.containers:
            container.clear()
            container.update(kept) if isinstance(container, dict) else container.extend(kept)
        for array, kept in self.arrays:
            array[...] = kept
        for generator, kept in self.generators:
            if isinstance(generator, np.random.RandomState):
                generator.set_state(kept)
            else:
                generator.state = kept
        np.random.set_state(self.random)  # noqa: NPY002

    def places(self, a: Any) -> Iterator[tuple[Any, Any]]:
        """(container, key) of every place where this very object is held."""
        for container, kept in self.containers:
            for key, b in kept.items() if isinstance(kept, dict) else enumerate(kept):
                if b is a:
                    yield container, key


def _is_module(a: Any) -> bool:
    """What belongs to the program rather than to the object: modules, functions, classes."""
    return type(a).__name__ in ("module", "function", "method", "builtin_function_or_method") or isinstance(a, type)


def read(obj: Any, path: str) -> Any:
    """The value at a dotted path through attributes, keys of dicts and places in lists; None where there is none."""
    for part in path.split("."):
        if isinstance(obj, dict):
            obj = obj.get(part, obj.get(int(part)) if part.isdecimal() else None)
        elif isinstance(obj, list | tuple) and part.isdecimal():
            obj = obj[int(part)] if int(part) < len(obj) else None
        else:
            obj = getattr(obj, part, None)
        if obj is None:
            return None
    return obj


def held_by(owner: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """(its dotted path and a dot, what it holds by name) of an object and of every object, dict and list inside it, once."""
    seen, waiting = set(), [("", owner)]
    while waiting:
        path, a = waiting.pop(0)
        held = dict(enumerate(a)) if isinstance(a, list | tuple) else a if isinstance(a, dict) else _attributes(a)
        if isinstance(a, ATOMS) or id(a) in seen or not held:
            continue
        seen.add(id(a))
        held = {str(key): b for key, b in held.items() if isinstance(key, str | int) and "." not in str(key)}
        yield path, held
        waiting += [(f"{path}{key}.", b) for key, b in held.items()]


def _attributes(a: Any) -> dict[str, Any]:
    found = getattr(a, "__dict__", {})
    return found if isinstance(found, dict) and not isinstance(a, np.ndarray) and not _is_module(a) else {}


def found_by_name(owner: Any, is_floats: Callable[[Any], bool]) -> dict[str, str]:
    """{path of a parameter: path of its gradient}, by their names: W and dW, w and grad_w, params["w"] and grads["w"], w.data
    and w.grad, also in objects inside the object."""
    pairs: dict[str, str] = {}
    for path, held in held_by(owner):
        groups = {name: _by_key(a) for name, a in held.items() if isinstance(a, dict | list) and a}
        beside = {"": held, **{f"{name}.": b for name, b in groups.items() if "grad" in name.lower()}}
        for name, a in held.items():
            for place, b in beside.items():
                for other in (*names_of_gradient(name), *([name] if place else [])):
                    if is_floats(a) and is_floats(b.get(other)) and np.shape(b[other]) == np.shape(a):
                        pairs[f"{path}{name}"] = f"{path}{place}{other}"
        for name, a in groups.items():
            for other, b in groups.items():
                if "grad" not in other.lower() or "grad" in name.lower():
                    continue
                for k in a:
                    for d in (k, *names_of_gradient(k)):
                        fits = d == k or getattr(b.get(d), "shape", None) == np.shape(a[k])
                        if fits and is_floats(a[k]) and is_floats(b.get(d)):
                            pairs[f"{path}{name}.{k}"] = f"{path}{other}.{d}"
    return pairs


def _by_key(group: Any) -> dict[Any, Any]:
    return group if isinstance(group, dict) else dict(enumerate(group))


def names_of_gradient(key: Any) -> tuple[str, ...]:
    start, end = ("d", "d_", "grad_", "grad", "g_", "g", "delta_", "nabla_"), ("_grad", "_gradient")
    bare = str(key).lstrip("_")
    named = [*(before + bare for before in start), *(bare + after for after in end)]
    hidden = ["_" + name for name in named] if bare != str(key) else []
    return (*named, *hidden, *(("grad", "gradient") if bare in ("data", "value") else ()))
