"""Hand-written gradients held to what `differences` measures of the function itself, where autodiff cannot judge."""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import DictKey, keystr, tree_leaves_with_path

from .differences import (
    AT_ONCE,
    JUDGES,
    REMEDY,
    Function,
    NoJudge,
    Piece,
    along_directions,
    derivatives_beside,
    measured,
)
from .report import Row
from .rows import judged
from .sides import Two, is_float
from .verdicts import NAN, TOLERANCE, Subject, largest, rounding, wide

AT_MOST = 16384
COVERED = re.compile(r" ?\((\d+ of )?\d+ (entries|random directions)\)$")


class Measured(Subject):
    """A hand-written gradient of something measured.

    Args:
        equation: "backward" or "gradient".
        f: what is measured, at the point.
        manual: (*case) -> {name of an array: its hand-written derivative}, None for zero.
        case: the arguments, in the audit's dtype.
        dtype: the audit's.
        forward: (*case) -> anything, in JAX, where narrower dtypes are looked for.
        measure: as `measured`.
    """

    def __init__(
        self,
        equation: str,
        f: Function,
        manual: Callable,
        case: tuple[Any, ...],
        dtype: str = "float64",
        forward: Callable = lambda *_: (),
        measure: Callable[..., list[Piece]] = measured,
    ) -> None:
        self.equation = equation
        self.f = f
        self.manual = manual
        self.pieces: dict[str, tuple[str, Piece]] = {}
        for i, name in enumerate(f.names):
            self.keep(name, measure(f, i))
        super().__init__(self.both, [case], dtype, forward)
        doubted = self.sampled_and_wrong() if measure is not along_directions else {}
        for i, name in doubted.items():
            self.keep(name, measure(f, i, AT_MOST))
        if doubted:
            super().__init__(self.both, [case], dtype, forward)

    def keep(self, array: str, pieces: list[Piece]) -> None:
        self.pieces = {name: pair for name, pair in self.pieces.items() if pair[0] != array}
        self.pieces |= {f"{array} ({one.covered})" if one.covered else array: (array, one) for one in pieces}

    def sampled_and_wrong(self) -> dict[int, str]:
        """The arrays of moderate size of which only a part was measured, and that part is wrong."""
        wrong, (manual, reference) = {}, self.best(0)[self.equation]
        for name, (array, piece) in self.pieces.items():
            if piece.sampled and name in manual and piece.part.stop - piece.part.start <= AT_MOST:
                gap = np.max(np.abs(wide(manual[name]) - wide(reference[name])))
                if not gap <= JUDGES * np.max(np.abs(piece.slopes.slope)):
                    wrong[self.f.names.index(array)] = array
        return wrong

    def both(self, *case: Any) -> dict[str, Any]:
        """Both sides, and how certain the measured one is."""
        by_hand, manual, reference, uncertainty = self.manual(*case), {}, {}, {}
        for name, (array, piece) in self.pieces.items():
            shape = self.f.shapes[self.f.names.index(array)]
            ours = np.zeros(shape) if by_hand.get(array) is None else np.asarray(by_hand[array])
            if ours.shape != shape:
                manual[array], reference[array] = ours, piece.reference(piece.slopes.slope, shape)
                continue
            manual[name] = piece.by_hand(ours)
            slope, *_, one_side, _ = piece.slopes
            slope = np.zeros_like(slope) if piece.zero else slope if np.any(slope) else one_side
            right = piece.reference(slope, shape)
            if piece.zero and np.any(ours):
                right = right + np.finfo(np.float32).tiny
            reference[name] = right.astype(ours.dtype) if is_float(ours) else right
            uncertainty[name] = max(piece.uncertainty, TOLERANCE.get(_precision(ours), 0.0))
        return {self.equation: Two(manual, reference), f"{self.equation} uncertainty": uncertainty}

    def nearby(self, case: int, equation: str, path: Any) -> Iterator[np.ndarray]:
        """The slopes of both sides, then the derivatives at points beside; nothing where the sides do not differ."""
        array, piece = self.pieces.get(path[0].key, ("", None))
        if piece is None or not piece.has_kinks:
            return
        shape = self.f.shapes[self.f.names.index(array)]
        for slope in (piece.slopes.left, piece.slopes.right, *derivatives_beside(self.f, piece)):
            yield piece.reference(slope, shape)


def array_of(row: Row) -> tuple[str, str]:
    """The equation and the array that a row is about, of which a part may have been measured."""
    return row.equation, COVERED.sub("", row.leaf)


def _may_hide(piece: Piece, manual: Any) -> bool:
    """Whether differences would not see a derivative of this size, or the function is 0 all around."""
    return largest(manual) <= piece.hidden or (np.max(piece.slopes.size) < 1e-12 and not np.any(piece.slopes.slope))


def _precision(a: np.ndarray) -> str:
    """The dtype of an array, or float32 where all of its numbers, and not short ones, are such."""
    if a.dtype != np.float64 or not a.size:
        return str(a.dtype)
    with np.errstate(all="ignore"):
        single = a.astype(np.float32)
        short = (single.view(np.uint32) & 0xFF) == 0
    return "float32" if np.array_equal(a, single) and np.mean(short) < 0.5 else "float64"


def measured_rows(name: str, subject: Measured, about: Callable | None = None) -> list[Row]:
    """A row for each array of ``subject``; ``about`` is what `judged` takes for hints."""
    rows, equation = [], subject.equation
    for leaf in subject.values[0][equation].autodiff:
        _, piece = subject.pieces.get(leaf, ("", None))
        scale = piece.zero / rounding("float64") if piece else 0.0
        row = judged(name, subject, equation, leaf, path=(DictKey(leaf),), scales=(scale, 0.0), about=about)
        if row.verdict == "fail" and piece and piece.zero and _may_hide(piece, subject.best(0)[equation].manual[leaf]):
            raise NoJudge(f"no independent judge: a derivative with respect to {leaf} is lost in rounding; {REMEDY}")
        if row.verdict == "vacuous" and np.any(subject.best(0)[equation].manual[leaf]):
            row = dataclasses.replace(row, verdict="zero to rounding")
        if row.verdict == "zero to rounding":
            row = dataclasses.replace(row, difference=NAN, in_float64=NAN, manual_error=NAN, autodiff_error=NAN)
        rows.append(row)
    return rows


def of_program(plain: Callable, args: tuple[Any, ...], cotangent: Any) -> Function:
    """⟨u, plain(*args)⟩ as a function of the floats of args, which are named "args[0]['w']". It is run in float64, or in the
    arguments' own dtypes where it takes no others; many points at once where it can be batched."""
    leaves, structure = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]
    names = tuple(f"args{keystr(path)}" for path, leaf in tree_leaves_with_path(args) if is_float(leaf))
    shapes = tuple(np.shape(leaves[i]) for i in places)
    own = tuple(str(jnp.result_type(leaves[i])) for i in places)
    u = [wide(leaf).ravel() for leaf in jax.tree.leaves(cotangent) if is_float(leaf)]
    x = np.concatenate([np.zeros(0), *(wide(leaves[i]).ravel() for i in places)])
    at_once = int(np.clip(2**22 // max(x.size, *(v.size for v in u), 1), 1, AT_ONCE))

    def outputs(dtypes: tuple[str, ...], x: Array) -> list[Array]:
        new, split = list(leaves), jnp.split(x, np.cumsum([np.prod(shape, dtype=int) for shape in shapes])[:-1])
        for i, flat, shape, dtype in zip(places, split, shapes, dtypes, strict=True):
            new[i] = flat.reshape(shape).astype(dtype)
        return [leaf.ravel() for leaf in jax.tree.leaves(plain(*structure.unflatten(new))) if is_float(leaf)]

    def values_by(run: Callable, x64: bool, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with jax.enable_x64(x64):
            out = run(points)
        terms = [v * wide(o) for v, o in zip(u, out, strict=True)]
        return np.sum([t.sum(axis=1) for t in terms], axis=0), np.sum([np.abs(t).sum(axis=1) for t in terms], axis=0)

    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    failure: Exception | None = None
    for x64, dtypes in ((True, ("float64",) * len(own)), (True, own), (jax.config.jax_enable_x64, own)):  # pyright: ignore
        for batched in (_at_once, _one_by_one):
            run = batched(functools.partial(outputs, dtypes), at_once, options)
            values = functools.partial(values_by, run, x64)
            try:
                values(x[None])
            except Exception as error:  # whatever a function raises that takes no such dtype, or cannot be batched
                failure = error
            else:
                return Function(x, names, dtypes, shapes, at_once, values)
    raise failure or AssertionError


def _at_once(outputs: Callable, count: int, options: Any) -> Callable:
    """Over points (P, n), P ≤ count, in one compiled program."""
    run = jax.jit(jax.vmap(outputs), compiler_options=options)

    def padded(points: np.ndarray) -> list[Any]:
        rows = np.concatenate([points, np.tile(points[:1], (count - len(points), 1))])
        return [o[: len(points)] for o in run(jnp.asarray(rows))]

    return padded


def _one_by_one(outputs: Callable, count: int, options: Any) -> Callable:
    run = jax.jit(outputs, compiler_options=options)
    return lambda points: [
        np.stack(o) for o in zip(*(map(np.asarray, run(jnp.asarray(p))) for p in points), strict=True)
    ]


def measured_vjp(
    plain: Callable,
    args: tuple[Any, ...],
    cotangent: Any,
    manual: Callable,
    dtype: str,
    measure: Callable[..., list[Piece]] = measured,
) -> Measured:
    """The subject of an audit of a hand-written rule by differences, for `measured_rows`.

    Args:
        plain: (*args) -> out, without hand-written rules; it need not be differentiable by JAX.
        args: where, in the audit's dtype.
        cotangent: of out.
        manual: (args, cotangent) -> {"args[0]['w']": the rule's cotangent of that leaf}; called in float64 as well.
        dtype: the audit's.
        measure: as `measured`, or `along_directions`, which is less work.

    Raises:
        NoJudge: where the differences are too uncertain.
    """
    f = of_program(plain, args, cotangent)
    return Measured("backward", f, manual, (args, cotangent), dtype, lambda args, _: plain(*args), measure)
