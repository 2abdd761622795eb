"""Gradients written by hand in other libraries, held to what is measured of the function."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..differences import AT_ONCE, JUDGE, Function, NoJudge, Piece, along_directions, measured
from ..function import batch_of, of_flat
from ..function_mistakes import of_function
from ..measured import Measured, array_of, measured_rows
from ..points import ENLARGED, FAR, LARGER, NEAR, drawing, moved, why_there
from ..report import Report, Row
from ..rows import APPROXIMATE, extra_rows, failed, reported
from ..verdicts import TOLERANCE, distance, wide
from .runner import Runner, Way, copies, pulled
from .trees import floats_of, is_floats, named, prepared


class Problem:
    """A way of calling the code, at a point.

    Args:
        runner: of the code.
        way: how backward is called.
        values: of all arrays of floats, by name.
        plain: what is measured instead of forward.
        scale: of the cotangent.
    """

    def __init__(
        self, runner: Runner, way: Way, values: dict[str, Any], plain: Callable | None, scale: float = 1.0
    ) -> None:
        self.runner = runner
        self.way = way
        self.values = values
        self.plain = plain
        self.out: Any
        self.u: list[np.ndarray]
        self.out, self.u, gradients = pulled(runner, way, values, scale)
        self.outputs: list[np.ndarray] = floats_of(self.out)
        shapes = [a.shape for a in self.outputs]
        if plain is not None and (other := self._shapes_of(plain)) != shapes:
            raise ValueError(
                f"audit: expected reference= or intended= to give what {runner.code.name} gives, shapes {shapes}, got {other}"
            )
        if way.of_one and sum(a.size for a in self.outputs) != 1:
            raise ValueError(f"audit: {runner.code.name} is no scalar")
        known = {name for i, a in enumerate(runner.args) for name, _ in named(a, f"args[{i}]")} | values.keys()
        self.extra: list[str] = sorted(name for name, g in gradients.items() if name not in known and g is not None)
        self.gradients: dict[str, Any] = {
            name: g
            for name, g in gradients.items()
            if name in values or (name in runner.numbers and g is not None and g.dtype != object)
        }
        if not self.gradients:
            raise ValueError(
                f"audit: expected an argument or a parameter of {runner.code.name} with an array of floats, got none"
            )
        self.equation = "gradient" if way.words.startswith("gradient") else "backward"

    def _shapes_of(self, plain: Callable) -> list[tuple[int, ...]]:
        self.runner.start()
        return [a.shape for a in floats_of(self.runner.called(copies(self.values), plain))]

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
        self.parts: list[tuple[str, slice, tuple[int, ...]]] = list(zip(names, f.parts(), shapes, strict=True))
        return f

    def measured_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = np.full((2, len(points)), np.nan)
        for i, point in enumerate(points.copy()):  # which forward may write to
            values = copies(self.values)
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
            rows = [of_flat(row) if failed(row) and row.values and np.isfinite(row.values[0]) else row for row in rows]
        return [self._told(row) for row in rows] + extra_rows(self.runner.code.name, self.equation, self.extra)

    def _told(self, row: Row) -> Row:
        """With what is known of a failure beside its numbers."""
        _, name = array_of(row)
        if failed(row) and name in self.gradients and self.gradients[name] is None:
            hint = "no gradient was given, which counts as 0: name the argument in static_argnums= if it is not to have one"
            row = dataclasses.replace(row, hint=hint)
        only_first = self.equation == "gradient" and all(
            n.startswith("args[0]") for n in (*self.gradients, *self.extra)
        )
        return dataclasses.replace(row, leaf=row.leaf.removeprefix("args[0]").strip()) if only_first else row

    @property
    def examples(self) -> int:
        others = [a for name, a in self.values.items() if name not in self.gradients]
        return batch_of(self.equation, self.outputs, others)


def audited(
    runner: Runner, reference: Callable | None, intended: Callable | None, points: Sequence[tuple[Any, ...]] | None
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
    if problem.way.words != next(runner.code.ways(runner.code, r)).words:
        about += f"; called as {problem.way.words}"
    if problem.equation == "backward" and (without := runner.given.keys() - problem.gradients.keys()):
        about += f"; of {', '.join(sorted(without))} no gradient was given"
    for path in runner.unclaimed:
        hint = f'forward uses it, and no gradient of it was found: say where it is kept, gradients={{"{path}": "..."}}'
        rows = [*rows, Row(runner.code.name, problem.equation, path, "vacuous", float("nan"), hint=hint)]
    return reported(rows, "float64", about)


def _likeliest(runner: Runner, r: Any, plain: Callable | None) -> tuple[Problem, list[Row]]:
    """The first way of calling that gives the right gradients; where none does, the first that gives some."""
    kept: dict[Any, list[Piece]] = {}
    found, refusals = [], []
    for way in runner.code.ways(runner.code, r):
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
        if (unwritten := next((e for _, e in refusals if isinstance(e, NotImplementedError)), None)) is not None:
            raise ValueError(
                f"audit: write the backward of {runner.code.name} first, it raised NotImplementedError: {unwritten}"
            ) from unwritten
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
    right = floats_of(runner.called(copies(problem.values), reference))
    size = max((float(np.max(np.abs(a), initial=0)) for a in right), default=0.0)
    apart = distance(problem.outputs, right, size)
    verdict = "pass" if apart <= TOLERANCE["float64"] else "fail"
    hint = "" if verdict == "pass" else "the function gives another value than the reference"
    return Row(runner.code.name, "forward", "out", verdict, apart, size=size, hint=hint)


def _elsewhere(problem: Problem, rows: list[Row], points: Sequence[tuple] | None) -> list[Row]:
    """The rows, with what is wrong at other points, along random directions there."""
    for name, values, scale in _points(problem, points):
        try:
            there = Problem(problem.runner, problem.way, values, problem.plain, scale)
            wrong = {array_of(row): row for row in there.rows(along_directions) if failed(row)}
        except Exception:  # outside of the domain, or nothing to judge by
            continue
        if wrong:
            hint = why_there(name, scale, any(row.verdict == APPROXIMATE for row in rows))
            leaves = {array_of(row): row.leaf for row in rows}
            told = [dataclasses.replace(row, hint=hint, leaf=leaves.get(at, row.leaf)) for at, row in wrong.items()]
            return [*told, *(row for row in rows if array_of(row) not in wrong)]
    return rows


def _points(problem: Problem, points: Sequence[tuple] | None) -> Iterator[tuple[str, dict[str, Any], float]]:
    """(name, values, by how much the cotangent is enlarged)."""
    runner = problem.runner
    if points is None:
        if not problem.way.of_one:
            yield LARGER, runner.values(), ENLARGED
        for seed, (name, step) in enumerate({NEAR: 0.1, FAR: None}.items()):
            draw = drawing(seed)
            yield name, {path: wide(moved(a, draw, step))[()] for path, a in runner.values().items()}, 1.0
        return
    for i, point in enumerate(points):
        args = tuple(map(prepared, point if isinstance(point, tuple | list) else (point,)))
        there = {name: a for j, b in enumerate(args) for name, a in named(b, f"args[{j}]") if is_floats(a)}
        if there.keys() != runner.given.keys():
            raise ValueError(f"audit: expected arguments like the given ones at points[{i}]: {', '.join(runner.given)}")
        yield f"points[{i}]", runner.values() | there, 1.0
