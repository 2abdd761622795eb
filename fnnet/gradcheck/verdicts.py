"""Judging a difference: a comparison in the audit's dtype and in float64, and what the two together mean."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .sides import is_float, leaf_at

TOLERANCE = {"float64": 1e-10, "float32": 64 * 2.0**-23, "float16": 16 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
NAN = float("nan")


class Compared(NamedTuple):
    """Both sides in the audit's dtype and in float64 (None where that is the audit's dtype or cannot be had)."""

    manual: Any
    autodiff: Any
    manual64: Any = None
    autodiff64: Any = None

    def of(self, get: Callable[[Any], Any]) -> "Compared":
        return Compared(*(None if side is None else get(side) for side in self))


class Differences(NamedTuple):
    """Relative to the largest entry: manual against autodiff in the audit's dtype and in float64, each of the audit's against
    autodiff in float64 (NaN without it); and autodiff's largest entry."""

    difference: float
    in_float64: float
    manual_error: float
    autodiff_error: float
    size: float


class Subject:
    """Something to audit: a function that computes both sides, run in the audit's dtype and in float64.

    Args:
        run: (*args) -> {equation: Two(manual, autodiff)}.
        cases: the arguments, once for each cotangent.
        dtype: the audit's.
        nudged: which of the arguments are perturbed in the search for kinks and ties.
    """

    def __init__(self, run: Callable, cases: Sequence[tuple], dtype: str, nudged: Sequence[int] = (0,)) -> None:
        self.run, self.cases, self.dtype, self.nudged = run, cases, dtype, nudged
        self.values = [run(*args) for args in cases]
        self.exact = [None if dtype == "float64" else exactly(run, *args) for args in cases]

    def __contains__(self, equation: str) -> bool:
        return equation in self.values[0]

    def best(self, case: int) -> dict[str, Any]:
        """The values in float64 where they can be had, else in the audit's dtype."""
        return self.exact[case] or self.values[case]

    def compared(self, equation: str, path: Any = None) -> list[Compared]:
        """The sides of an equation, for each case; of the leaf at a path."""
        get = (lambda side: side) if path is None else functools.partial(leaf_at, path)
        return [
            Compared(*here[equation], *(exact[equation] if exact else (None, None))).of(get)
            for here, exact in zip(self.values, self.exact, strict=True)
        ]

    @functools.cached_property
    def inner(self) -> str:
        """The narrowest dtype that a float64 is rounded to inside."""
        closed = exactly(jax.make_jaxpr(_plain(self.run)), *self.cases[0])
        if closed is None:
            return "float64"
        return max(_narrowed(closed.jaxpr), key=TOLERANCE.__getitem__, default="float64")

    def nearby(self, case: int, equation: str, path: Any) -> Iterator[np.ndarray]:
        """Autodiff in float64 at points that are a hair's breadth away, one at random after another."""
        for seed in range(MOST_NUDGES):
            draw = np.random.default_rng(seed)
            args = [
                jax.tree.map(functools.partial(_nudged, draw), arg) if i in self.nudged else arg
                for i, arg in enumerate(in_float64(self.cases[case]))
            ]
            sides = exactly(self.run, *args)
            if sides is None:
                return
            yield np.asarray(leaf_at(path or (), sides[equation].autodiff), np.float64)


FEW_NUDGES, MOST_NUDGES = 16, 256


def _plain(f: Any) -> Callable:
    """The function that was compiled."""
    return functools.partial(_plain(f.func), *f.args) if isinstance(f, functools.partial) else inspect.unwrap(f)


def _nudged(draw: np.random.Generator, a: Any) -> Any:
    if not is_float(a) or not np.size(a):
        return a
    return a + 1e-7 * (np.max(np.abs(a)) or 1) * draw.uniform(-1, 1, np.shape(a))


def _narrowed(jaxpr: Any) -> Iterator[str]:
    """The dtypes narrower than float64 that a float64 is converted to, in sub-programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type":
            before, after = (str(v.aval.dtype) for v in (equation.invars[0], equation.outvars[0]))
            if before == "float64" and after in TOLERANCE and after != "float64":
                yield after
        for value in equation.params.values():
            for sub in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(sub, "jaxpr", sub)
                if hasattr(inner, "eqns"):
                    yield from _narrowed(inner)


def in_float64(tree: Any) -> Any:
    """The tree with its floats as NumPy arrays of float64."""
    return jax.tree.map(lambda a: np.asarray(a).astype(np.float64) if is_float(a) else a, tree)


def exactly(f: Callable, *args: Any) -> Any:
    """f with the floats of its arguments in float64; None where it cannot be run in that dtype."""
    with jax.enable_x64(True):
        try:
            return f(*jax.tree.map(lambda a: jnp.asarray(a) if isinstance(a, np.ndarray) else a, in_float64(args)))
        except (TypeError, NotImplementedError):
            return None


def differences(compared: Compared) -> Differences:
    """How far the sides are apart."""
    manual, autodiff, manual64, autodiff64 = compared
    size = largest(autodiff)
    here = distance(manual, autodiff, size)
    if autodiff64 is None:
        return Differences(here, NAN, NAN, NAN, size)
    truth = largest(autodiff64)
    exact, ours, theirs = (distance(side, autodiff64, truth) for side in (manual64, manual, autodiff))
    return Differences(here, exact, ours, theirs, size)


def judge(found: Differences, subject: Subject, scale: float = 0.0) -> str:
    """ "pass", "precision" or "fail". ``scale`` is the layer's largest gradient: what is below 100 eps of it is rounding."""
    difference, in_double, manual_error, autodiff_error, size = found
    bound, floor = TOLERANCE[subject.dtype], rounding(subject.dtype) * scale
    agrees = difference <= bound or (0 < size < floor and difference * size <= floor)
    if np.isnan(in_double):
        return "pass" if agrees else "precision" if difference <= TOLERANCE[subject.inner] else "fail"
    floor = rounding("float64") * scale
    right = in_double <= TOLERANCE["float64"] or (0 < size < floor and in_double * size <= floor)
    if not right and in_double > TOLERANCE[subject.inner]:
        return "fail"
    if agrees:
        return "pass"
    bound = max(
        bound, TOLERANCE["float64" if right else subject.inner], *([autodiff_error] if autodiff_error < np.inf else [])
    )
    return "precision" if manual_error <= 4 * bound else "fail"


def rounding(dtype: str) -> float:
    """100 eps, at most 1 %."""
    return min(100 * float(jnp.finfo(dtype).eps), 0.01)


def between(manual: np.ndarray, reference: np.ndarray, tolerance: float, nearby: Iterator[np.ndarray]) -> bool:
    """Whether manual is a subgradient as good as autodiff's: it differs only where autodiff's value jumps between points a
    hair's breadth away, lies between the values there, and has their sum over each example where they all have the same."""
    size = np.max(np.abs(reference), initial=0)
    if manual.shape != reference.shape or not 0 < size < np.inf or not np.isfinite(manual).all():
        return False
    differ = np.abs(manual - reference) > tolerance * size
    low = high = reference
    same_sums = True
    for i, other in enumerate(nearby, start=1):
        low, high = np.minimum(low, other), np.maximum(high, other)
        same_sums = same_sums and bool(np.all(np.abs(_sums(other - reference)) <= 1e-4 * size))
        jumps = (high - low)[differ] > 1e-3 * size
        if i == FEW_NUDGES and np.mean(jumps) < 0.5:
            return False
        inside = (low - 1e-5 * size <= manual) & (manual <= high + 1e-5 * size)
        if i >= FEW_NUDGES and jumps.all() and inside.all():
            return not same_sums or bool(np.all(np.abs(_sums(manual - reference)) <= 1e-4 * size))
    return False


def _sums(a: np.ndarray) -> np.ndarray:
    return a.sum(axis=tuple(range(1, max(a.ndim, 1))))


def arrays(tree: Any) -> list[np.ndarray]:
    """The leaves in float64."""
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]


def largest(tree: Any) -> float:
    """The largest absolute entry; NaN where there is one."""
    return float(np.max([np.max(np.abs(a), initial=0) for a in arrays(tree)], initial=0))


def distance(ours: Any, reference: Any, size: float) -> float:
    """The largest difference over the largest entry of the reference; infinite for NaN or another structure or shape."""
    a, b = arrays(ours), arrays(reference)
    if [x.shape for x in a] != [x.shape for x in b]:
        return float("inf")
    with np.errstate(invalid="ignore"):
        gap = float(np.max([np.max(np.abs(x - y), initial=0) for x, y in zip(a, b, strict=True)], initial=0))
    if gap == 0 and np.isfinite(size):
        return 0.0
    return gap / size if 0 < size < np.inf and np.isfinite(gap) else float("inf")
