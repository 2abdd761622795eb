"""The mistakes of functions: another argument or cotangent put in, or the derivative of one operation wrong."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from .mistakes import Failure
from .planted import Planted
from .sides import is_float, leaf_at, quickly
from .verdicts import Subject, exactly, in_float64, wide
from .ways import Case

MOST = 250  # planted mistakes: of a larger program nothing is told in one line
LARGEST = 2**20  # numbers in the arguments: of a larger point nothing is told that takes many gradients
NOTHING = 1e-9


class Program(NamedTuple):
    """What is differentiated: a function from a list of arrays to a list of arrays, where, and the cotangents."""

    f: Callable
    leaves: list[Any]
    u: list[Any]
    names: list[str]
    outs: list[str]


CONJUGATE = "the complex conjugate of it: JAX's cotangent of a + bi holds ∂C/∂a − i ∂C/∂b"


class Try(NamedTuple):
    """A gradient with something else put in; ``made`` makes the candidate of it; ``late`` ones are tried last."""

    text: str
    leaves: list[Any]
    u: list[Any]
    made: Callable = lambda g: g
    late: bool = False


def of_function(
    subject: Subject,
    m: int,
    failure: Failure,
    source: str,
    path: Any,
    case: int,
    program: Callable | None = None,
    complex_ones: frozenset[str] = frozenset(),
) -> Failure:
    """What can be tried on a function that nothing is known about but its program, and which arguments are complex."""
    right = subject.best(case)[source].autodiff
    cotangents = jax.tree.leaves(subject.cases[case][1]) if source == "backward" else []
    incoming = wide(cotangents[0]) if len(cotangents) == 1 else None
    lengths = {n for n in failure.reference.shape if n > 2}
    factors = {f"√{n}": n**0.5 for n in lengths if not (n**0.5).is_integer()}
    factors |= {f"n (the length of an axis: {n})": float(n) for n in lengths}

    def ideas() -> Iterator[tuple[str, Any]]:
        if path and getattr(path[0], "key", None) in complex_ones:
            yield CONJUGATE, failure.reference * np.array([1, -1])
        if incoming is not None and incoming.shape == failure.reference.shape:
            yield "the local derivative is missing: this is the cotangent itself", incoming
            yield "the local derivative is applied twice", failure.reference**2 / incoming
        if program is None or failure.manual.shape != failure.reference.shape or failure.manual.size > LARGEST:
            return
        made = program(*subject.args(case))
        search = Search(made, made.names.index(path[0].key))
        for text, candidate in search(made, failure):
            if failure.gives(candidate) and holds_elsewhere(text, search, program):
                yield text, candidate

    def holds_elsewhere(text: str, search: Search, program: Callable) -> bool:
        """Whether it explains the difference at another point too; what is 0 or 1 by chance is no explanation."""
        args = moved(subject.args(case))
        if source == "gradient":  # which is given no cotangent
            args = *args[:-1], in_float64(subject.args(case)[-1])
        sides = exactly(subject.run, *args)
        if sides is None:
            return True
        manual, reference = (wide(leaf_at(path, side)) for side in sides[source])
        there = dataclasses.replace(failure, manual=manual, reference=reference)
        if not (np.isfinite(manual).all() and np.isfinite(reference).all() and np.any(reference)):
            return True
        return there.gives(reference) or any(
            words == text and there.gives(candidate) for words, candidate in search(program(*args), there)
        )

    return dataclasses.replace(
        failure,
        m=m,
        incoming=incoming,
        per_example=source == "backward" and failure.reference.shape[:1] == (m,),
        has_mean=source != "backward",
        is_layer=False,
        numbers=factors,
        siblings={getattr(p[0], "key", keystr(p)): wide(leaf) for p, leaf in tree_leaves_with_path(right) if p != path},
        ideas=ideas,
    )


def moved(args: Any) -> Any:
    """The floats made larger and smaller at random; zeros and signs stay."""
    draw = np.random.default_rng(1)
    return jax.tree.map(lambda a: a * draw.uniform(0.5, 1.5, np.shape(a)) if is_float(a) else a, in_float64(args))


class Search:
    """The candidates for the gradient of one leaf of a program, compiled once for several points."""

    def __init__(self, program: Program, of: int) -> None:
        self.of = of
        self.planted: Planted = Planted(program.f, program.leaves, program.names)
        if len(self.planted.cases) > MOST:
            self.planted.cases.clear()
        self.values: Callable[..., Any] = quickly(self.planted.all_values)
        self.forwards: Callable[..., Any] = quickly(lambda leaves, u: self.planted.moved(of, leaves, u))
        self.gradients: Callable[..., Any] = quickly(jax.vmap(lambda *given: self.planted.gradient(of, *given)))

    def __call__(self, program: Program, failure: Failure) -> Iterator[tuple[str, Any]]:
        """(mistake, what it would give)."""
        cases = self.planted.cases
        values = [
            (name or "a value on the way", wide(v))
            for (name, _), v in zip(self.planted.values, self.values(program.leaves), strict=True)
            if not np.iscomplexobj(v)
        ]
        tries = list(_tries(program, self.of, values))
        n = len(cases)
        picked = np.concatenate([np.zeros((len(tries), len(cases))), np.eye(n, len(cases))])
        us, leaves = (
            [np.stack([*each, *[a] * n]) for *each, a in zip(*tried, right, strict=True)]
            for tried, right in (([t.u for t in tries], program.u), ([t.leaves for t in tries], program.leaves))
        )
        found = wide(self.gradients(picked, leaves, us))
        made = [(this, this.made(g)) for this, g in zip(tries, found[: len(tries)], strict=True)]
        yield from ((this.text, candidate) for this, candidate in made if not this.late)
        if n:
            right, planted = failure.reference, found[len(tries) :]
            size = NOTHING * np.max(np.abs(right))
            small = [np.max(np.abs(g - right)) <= size for g in planted]
            idle = np.array([case.is_path and s for case, s in zip(cases, small, strict=True)], bool)
            if idle.any():  # such as the maximum that softmax subtracts: without the other paths it would count
                picked[:, idle] = 1
                others = wide(self.gradients(picked, leaves, us))
                if np.max(np.abs(others[0] - right)) <= size:
                    planted = others[len(tries) :]
            yield from _of_cases(cases, planted, failure, values)
        yield from ((this.text, candidate) for this, candidate in made if this.late)
        yield from _factors(program, values, failure.reference)
        if len(program.u) == 1 and np.shape(program.u[0]) == failure.reference.shape:
            words = "J u stands where Jᵀu belongs: the derivative itself is applied to the cotangent, not its transpose"
            yield words, wide(self.forwards(program.leaves, program.u[0]))


def _tries(program: Program, of: int, values: list[tuple[str, np.ndarray]]) -> Iterator[Try]:
    """Another argument, another cotangent."""
    _, leaves, u, names, outs = program
    leaves, u = (list(map(np.asarray, arrays)) for arrays in (leaves, u))

    def with_leaf(text: str, j: int, a: Any) -> Try:
        return Try(text, [*leaves[:j], a, *leaves[j + 1 :]], u, late=True)

    def with_u(text: str, j: int, a: Any, late: bool = False) -> Try:
        return Try(text, leaves, [*u[:j], a, *u[j + 1 :]], late=late)

    yield Try("", leaves, u)
    for j, out in enumerate(outs):
        own = f"of {out} " if len(outs) > 1 else ""
        if own:
            yield with_u(f"the cotangent {own}is ignored", j, 0 * u[j])
            yield with_u(f"the cotangent {own}comes in with the wrong sign", j, -u[j])
        yield with_u(f"the cotangent {own}is ignored, as if it were 1", j, np.ones_like(u[j]))
        for axis, n in enumerate(u[j].shape):
            for words, k in (("first", 0), ("last", -1)) if n > 1 else ():
                place = (*(slice(None),) * axis, k)
                alone, rest = np.zeros_like(u[j]), np.array(u[j])
                alone[place], rest[place] = u[j][place], 0
                yield with_u(
                    f"only the {words} entry along axis {axis} of the cotangent {own}is counted", j, alone, True
                )
                yield with_u(f"the {words} entry along axis {axis} of the cotangent {own}is left out", j, rest, True)
        if u[j].ndim == 2 and u[j].shape[0] == u[j].shape[1]:
            yield with_u(f"the cotangent {own}stands where its transpose belongs", j, u[j].T)
    for i, j in itertools.combinations(range(len(outs)), 2):
        if u[i].shape == u[j].shape:
            swapped = [u[j] if k == i else u[i] if k == j else a for k, a in enumerate(u)]
            yield Try(f"the cotangents of {outs[i]} and {outs[j]} are exchanged", leaves, swapped)
    for j, leaf in enumerate(leaves):
        for k, other in enumerate(leaves):
            if j != k and leaf.shape == other.shape:
                yield with_leaf(f"{names[k]} stands where {names[j]} belongs", j, other)
        if leaf.ndim >= 2 and leaf.shape[-1] == leaf.shape[-2]:
            yield with_leaf(f"{names[j]} stands where its transpose belongs", j, np.swapaxes(leaf, -1, -2))
        for axis in range(leaf.ndim) if leaf.size > 1 else ():
            yield with_leaf(f"{names[j]} is reversed along axis {axis}", j, np.flip(leaf, axis))
        if leaf.ndim > 1:
            yield with_leaf(f"{names[j]} is rotated by 180°", j, np.flip(leaf))
        yield with_leaf(f"{names[j]} comes in with the wrong sign", j, -leaf)
        yield with_leaf(f"{names[j]} is left out, or taken for 0", j, np.zeros_like(leaf))
    if len(u) == 1:
        shape, own = u[0].shape, leaves[of].shape
        for axis in range(min(len(shape), len(own))):
            if shape[axis] == own[axis] > 1:
                words = f"the wrong direction: the errors go the way of the function along axis {axis}, not backwards"
                yield Try(words, leaves, [np.flip(u[0], axis)], lambda g, axis=axis: np.flip(g, axis), late=True)
        out = [v for _, v in values if v.shape == shape][-1:]
        if out and shape == own:
            yield with_leaf("the derivative is taken at the output, not at the input", of, out[0])
        if shape == own and u[0].size <= 64:
            yield from _diagonal(leaves, u[0])


def _diagonal(leaves: list[Any], u: np.ndarray) -> Iterator[Try]:
    """J_ii u_i, from as many gradients as there are numbers."""
    found: list[np.ndarray] = []
    for i in range(u.size):

        def made(g: np.ndarray, i: int = i) -> Any:
            found.append(g.ravel()[i])
            return np.reshape(found, u.shape) * u if len(found) == u.size else np.zeros(0)

        one = np.eye(1, u.size, i, dtype=u.dtype).reshape(u.shape)
        yield Try("only the diagonal of the Jacobian is used", leaves, [one], made, late=True)


def _of_cases(
    cases: list[Case], found: np.ndarray, failure: Failure, values: list[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, Any]]:
    """A path left out or of another weight, where the rest of the gradient is right; then the other planted mistakes."""
    right, ours = failure.reference, failure.manual
    size = NOTHING * np.max(np.abs(right))
    paths: list[tuple[str, np.ndarray]] = []
    for case, g in reversed(list(zip(cases, found, strict=True))):  # of those in a row the last says where it is joined
        differences = [g, right - g, *(other - (right - g) for _, other in paths)]
        if case.is_path and np.isfinite(g).all() and all(np.max(np.abs(d)) > size for d in differences):
            paths.append((case.text, right - g))
    for words, factor in (("left out:", 0.0), ("wrong sign of", -1.0), ("counted twice:", 2.0)):
        for text, part in paths:
            yield f"{words} the path through {text}", right + (factor - 1) * part
    for case, g in zip(cases, found, strict=True):
        if not case.is_path:
            yield case.text, g
    for (one, a), (other, b) in itertools.combinations(paths, 2):
        yield f"left out: the path through {one}, and the one through {other}", right - a - b
    for text, part in paths:
        factor = 1 + np.sum((ours - right) * part) / np.sum(part * part)
        if np.sum(np.abs(part) > size) > 2 and abs(factor) > 1e-6:
            yield f"a factor {factor:.4g} on the path through {text}", right + (factor - 1) * part
    yield from _along_another_axis(paths, right, values)


def _along_another_axis(
    paths: list[tuple[str, np.ndarray]], right: np.ndarray, values: list[tuple[str, np.ndarray]]
) -> Iterator[tuple[str, Any]]:
    """A path that is s ⊙ w ⊙ Σ h, or its mean, over one axis, with s constant along it and h the rest of the gradient, or w ⊙
    that, by s: over another axis instead."""
    whole, shape = [v for _, v in values if v.shape == right.shape], right.shape
    if right.size > 2**12 or right.ndim < 2 or len(whole) > 32:
        return

    def turned(part: np.ndarray, rest: np.ndarray, a: int, b: int) -> Iterator[np.ndarray]:
        one = np.ones((1,) * right.ndim)
        fits = [
            v
            for _, v in values
            if v.ndim == right.ndim and all(n in (1, k) for n, k in zip(v.shape, shape, strict=True))
        ]
        thin = [v for v in fits if v.shape[a] == 1]
        for s, w in itertools.product([one, *thin], [one, *whole, *(v * t for v in whole for t in thin)]):
            for h in (rest / s, w * rest / s):
                over = s * w * h.sum(a, keepdims=True)
                k = np.sum(over * part) / np.sum(over * over)
                if np.max(np.abs(k * over - part)) <= 1e-8 * np.max(np.abs(part)):
                    for scale in (k, k * shape[a] / shape[b]):
                        yield scale * s * w * h.sum(b, keepdims=True)

    for n in (1, 2):
        for several in itertools.combinations(paths, n):
            rest = right - sum(part for _, part in several)
            for a, b in itertools.permutations(range(right.ndim), 2):
                for new in itertools.product(*(turned(part, rest, a, b) for _, part in several)):
                    through = ", and the one through ".join(text for text, _ in several)
                    yield f"summed over the wrong axis, {b} instead of {a}: the path through {through}", rest + sum(new)


def _factors(program: Program, values: list[tuple[str, np.ndarray]], right: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Something that is computed on the way is a factor that is missing, or one too many."""
    named = [*zip(program.names, map(wide, program.leaves), strict=True), *values]
    if len(program.u) == 1:
        named.append(("the cotangent", wide(program.u[0])))
    for name, value in named:
        for shape in {value.shape, (*value.shape, *(1,) * (right.ndim - value.ndim))}:
            if len(shape) <= right.ndim and all(
                n in (1, k) for n, k in zip(shape[::-1], right.shape[::-1], strict=False)
            ):
                yield f"a factor {name} is missing", right / value.reshape(shape)
                yield f"a factor {name} too much", right * value.reshape(shape)
