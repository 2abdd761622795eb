"""Judging a difference: a comparison in the audit's dtype and in float64, and what the two together mean."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .decimals import precisely
from .devices import Axes, axes_within, numbers_of_devices, on_host
from .rules import parts_of
from .sides import Two, is_float, leaf_at

TOLERANCE = {"float64": 1e-10, "float32": 64 * 2.0**-23, "float16": 16 * 2.0**-10, "bfloat16": 4 * 2.0**-7}
NAN = float("nan")

Sides = dict[str, Any]


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
    autodiff in float64 (NaN without it). Autodiff's largest entry in both; manual's part along autodiff, 1 if right."""

    difference: float
    in_float64: float
    manual_error: float
    autodiff_error: float
    size: float
    size64: float
    along: float


FEW_NUDGES, MOST_NUDGES = 16, 256
ROUNDINGS, SLIGHT, JUMP, FAR = 4, 64, 1e6, 1e-4
"""How many points an eps away are tried; by how many eps of the largest reference manual may move by itself; by how many of
them no rounding moves a side, and by what part in a narrower dtype where float64 is no judge."""


class Subject:
    """Something to audit: a function that computes both sides, run in the audit's dtype and in float64.

    Args:
        run: (*args) -> {equation: Two(manual, autodiff)}; where the reference is no autodiff but measured, also
            {"equation uncertainty": a number for each leaf, relative to its largest entry}.
        cases: the arguments, once for each cotangent.
        dtype: the audit's.
        forward: (*args) -> what is differentiated, the plain program.
        nudged: which of the arguments are perturbed in the search for kinks and ties.
        widened: the cases in float64, where that is more than a cast.
        pairing: (equation, *args) -> (f, tree): the scalar function whose gradient at the tree the equation's reference is,
            for central differences.
        axes: of the mesh that the arrays came from.
    """

    def __init__(
        self,
        run: Callable,
        cases: Sequence[tuple[Any, ...]],
        dtype: str,
        forward: Callable,
        nudged: Sequence[int] = (0,),
        widened: Sequence[tuple[Any, ...]] | None = None,
        pairing: Callable[..., tuple[Callable[..., Any], Any]] | None = None,
        axes: Axes = (),
    ) -> None:
        self.widened: Sequence[tuple[Any, ...]] = [in_float64(args) for args in cases] if widened is None else widened
        self.run = run
        self.cases = cases
        self.dtype = dtype
        self.forward = forward
        self.nudged = nudged
        self.pairing = pairing
        self.axes = axes
        self.values: list[Sides] = [on_host(run(*args)) for args in cases]
        self.exact: list[Sides | None] = [None if dtype == "float64" else self._exactly(args) for args in self.widened]
        self._rounded: dict[int, list[tuple[str, list[list[Sides]]]]] = {}

    def __contains__(self, equation: str) -> bool:
        return equation in self.values[0]

    def best(self, case: int) -> dict[str, Any]:
        """The values in float64 where they can be had, else in the audit's dtype."""
        return self.exact[case] or self.values[case]

    def args(self, case: int) -> tuple[Any, ...]:
        """The arguments in the precision of `best`."""
        as_they_are = self.exact[case] is None and self.dtype != "float64"
        return self.cases[case] if as_they_are else self.widened[case]

    def leaves(self, equation: str, path: Any = None) -> list["Leaf"]:
        """An equation, or its leaf at a path, for each case."""
        get = (lambda side: side) if path is None else functools.partial(leaf_at, path)
        return [Leaf(self, equation, get, case) for case in range(len(self.cases))]

    def compared(self, equation: str, path: Any = None) -> list[Compared]:
        """The sides of an equation, for each case; of the leaf at a path."""
        return [leaf.compared() for leaf in self.leaves(equation, path)]

    def tolerance(self, equation: str, path: Any = None) -> float:
        """How near to the reference in float64 an equation has to come."""
        uncertain = self.best(0).get(f"{equation} uncertainty", {})
        return max(TOLERANCE["float64"], float(leaf_at(path or (), uncertain) or 0))

    def rounded(self, case: int) -> list[tuple[str, list[list[Sides]]]]:
        """In the audit's dtype and in float64, where it can be had: the values, and those for arguments rounded another way,
        each entry as it is or an eps smaller. For a narrower dtype that eps is taken in float64 as well."""
        if case not in self._rounded:
            here, exact = self.values[case], self.exact[case]
            of_dtype = [[here, *self._otherwise(case, self.dtype, self.dtype)]]
            self._rounded[case] = [(self.dtype, of_dtype)]
            if exact is not None:
                of_dtype.append([exact, *self._otherwise(case, "float64", self.dtype)])
                self._rounded[case].append(("float64", [[exact, *self._otherwise(case, "float64", "float64")]]))
        return self._rounded[case]

    def _otherwise(self, case: int, dtype: str, eps_of: str) -> Iterator[Sides]:
        here = dtype == self.dtype
        draw, given = np.random.default_rng(0), self.cases[case] if here else self.widened[case]
        for _ in range(ROUNDINGS):
            shrink = functools.partial(_shrunk, draw, float(jnp.finfo(eps_of).eps))
            args = [jax.tree.map(shrink, arg) if i in self.nudged else arg for i, arg in enumerate(given)]
            sides = on_host(self.run(*args)) if here else self._exactly(args)
            if sides is not None:
                yield sides

    def _exactly(self, args: Sequence[Any]) -> Sides | None:
        return exactly(lambda *a: on_host(self.run(*a)), *args)

    @functools.cached_property
    def inner(self) -> str:
        """The narrowest dtype that a float64 is rounded to, on the way forward or back."""
        found = (name for closed in self._programs() for name in _narrowed(closed.jaxpr))
        return max(found, key=TOLERANCE.__getitem__, default="float64")

    @functools.cached_property
    def devices(self) -> dict[str, int]:
        """How many devices take part, in words: of the mesh, and of those that the programs map over."""
        within = (axis for closed in self._programs() for axis in axes_within(closed))
        return numbers_of_devices(tuple(dict.fromkeys((*self.axes, *within))))

    def _programs(self) -> Iterator[Any]:
        programs = (exactly(jax.make_jaxpr(f), *self.cases[0]) for f in (self.forward, self.run))
        return (closed for closed in programs if closed is not None)

    def truth(self, case: int, equation: str, path: Any) -> np.ndarray | None:
        """The reference with more digits than float64 has; None where it cannot be had."""

        def pick(sides: dict[str, Any]) -> Any:
            return leaf_at(path or (), sides[equation].autodiff)

        found = precisely(self.run, in_float64(self.cases[case]), pick)
        return found[0] if found is not None and len(found) == 1 else None

    def nearby(self, case: int, equation: str, path: Any) -> Iterator[np.ndarray]:
        """Autodiff in float64 at points that are a hair's breadth away, one at random after another."""
        for seed in range(MOST_NUDGES):
            draw = np.random.default_rng(seed)
            alone, way = divmod(seed, 2)
            together = alone >= len(self.nudged)  # first one argument at a time, up and down, then all at random
            nudge = functools.partial(_nudged, draw if together else (1, -1)[way])
            moved = self.nudged if together else self.nudged[alone : alone + 1]
            args = [jax.tree.map(nudge, arg) if i in moved else arg for i, arg in enumerate(self.widened[case])]
            sides = exactly(self.run, *args)
            if sides is None:
                return
            yield wide(leaf_at(path or (), sides[equation].autodiff))


class Leaf(NamedTuple):
    """One array of an equation of a subject: ``get`` of either side. ``terms`` is another that it is a sum of."""

    subject: Subject
    equation: str
    get: Callable[[Any], Any]
    case: int = 0
    terms: "Leaf | None" = None

    def compared(self) -> Compared:
        here, exact = self.subject.values[self.case], self.subject.exact[self.case]
        return Compared(*here[self.equation], *(exact[self.equation] if exact else (None, None))).of(self.get)

    def is_rounding(self) -> bool:
        """Whether the sides are apart by no more than they move for arguments that are rounded another way: what cancels to
        nothing, as the gradient of a bias before BatchNorm does, is the rounding of a sum. The reference is the one to move,
        or the terms of the sum; manual as well, where the reference is nothing beside that, or that is nothing beside the
        largest reference."""
        return all(self._as_rounded(*rounded) for rounded in self.subject.rounded(self.case))

    def _as_rounded(self, dtype: str, runs: list[list[Sides]]) -> bool:
        here = runs[0][0]
        manual, reference = (self.get(side) for side in here[self.equation])
        gap, size, eps = _gap(manual, reference), largest(reference), float(jnp.finfo(dtype).eps)
        if gap <= TOLERANCE[dtype] * size:
            return True
        factor, most = rounding(dtype) / eps, largest([two.autodiff for two in here.values() if isinstance(two, Two)])
        ours, theirs = (self._moved(i, runs[:1]) for i in (0, 1))
        moved = max(ours, theirs) if size <= factor * ours or ours <= SLIGHT * eps * most else theirs
        conditioned = max(0.0 if self.terms is None else self.terms._moved(1, runs), self._moved(1, runs[1:]))
        judged = dtype != "float64" and self.subject.exact[self.case] is not None
        jump = np.inf if judged else JUMP * eps if dtype == "float64" else FAR
        return max(moved, conditioned) <= jump * most and gap <= max(factor * moved, 4 * conditioned)

    def _moved(self, i: int, runs: list[list[Sides]]) -> float:
        """How far manual (0) or the reference (1) moves at most, from the first of a run on."""
        sides = ([self.get(sides[self.equation][i]) for sides in run] for run in runs)
        return max((_gap(side, other) for side, *others in sides for other in others), default=0.0)


def _shrunk(draw: np.random.Generator, eps: float, a: Any) -> Any:
    if not is_float(a):
        return a
    less = np.asarray(1 - eps * draw.integers(0, 2, np.shape(a)), a.dtype)
    return np.asarray(a) * less if np.size(a) else a


def _nudged(way: np.random.Generator | int, a: Any) -> Any:
    """Each entry moved by a billionth of itself (of the median for small ones), all one way or each at random."""
    if not is_float(a) or not np.size(a):
        return a
    size = np.abs(a)
    usual = np.median(size[size > 0]) if np.any(size > 0) else 1.0
    step = way if isinstance(way, int) else way.uniform(-1, 1, np.shape(a))
    return a + 1e-9 * np.maximum(size, usual) * step


def _narrowed(jaxpr: Any) -> Iterator[str]:
    """The dtypes narrower than float64 that a float64 is converted to, in sub-programs too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type":
            before, after = (str(v.aval.dtype) for v in (equation.invars[0], equation.outvars[0]))
            if before == "float64" and after in TOLERANCE and after != "float64":
                yield after
        for part in parts_of(equation):
            yield from _narrowed(part)


def in_float64(tree: Any) -> Any:
    """The tree with its floats as NumPy arrays of float64."""
    return jax.tree.map(lambda a: wide(a) if is_float(a) else a, tree)


def exactly(f: Callable, *args: Any) -> Any:
    """f with the floats of its arguments in float64; None where it cannot be run in that dtype."""
    with jax.enable_x64(True):
        try:
            return f(*jax.tree.map(lambda a: jax.device_put(a) if isinstance(a, np.ndarray) else a, in_float64(args)))
        except Exception:  # a layer for one dtype: whatever it raises, it did run in the audit's own
            return None


def differences(compared: Compared) -> Differences:
    """How far the sides are apart."""
    manual, autodiff, manual64, autodiff64 = compared
    size = largest(autodiff)
    here = distance(manual, autodiff, size)
    if autodiff64 is None:
        return Differences(here, NAN, NAN, NAN, size, size, _along(manual, autodiff))
    truth = largest(autodiff64)
    exact, ours, theirs = (distance(side, autodiff64, truth) for side in (manual64, manual, autodiff))
    return Differences(here, exact, ours, theirs, size, truth, _along(manual64, autodiff64))


def _along(manual: Any, autodiff: Any) -> float:
    """⟨manual, autodiff⟩ / ⟨autodiff, autodiff⟩; NaN for other shapes."""
    ours, right = arrays(manual), arrays(autodiff)
    square = sum(float(np.sum(a * a)) for a in right)
    if [a.shape for a in ours] != [a.shape for a in right] or not square > 0:
        return NAN
    return sum(float(np.sum(a * b)) for a, b in zip(ours, right, strict=True)) / square


def judge(found: Differences, subject: Subject, scale: float = 0.0, inner: float = TOLERANCE["float64"]) -> str:
    """ "pass", "precision" or "fail". ``scale`` is the layer's largest gradient: what is below 100 eps of it is rounding;
    ``inner`` is the tolerance in float64."""
    bound = max(bound_of(subject.dtype), inner)
    agrees = _agree(found.difference, found.size, bound, rounding(subject.dtype) * scale)
    doubled = not np.isnan(found.in_float64)
    apart = found.in_float64 if doubled else found.difference
    right = _agree(apart, found.size64, inner if doubled else bound, rounding("float64") * scale)
    if not right:
        inner = max(inner, TOLERANCE[subject.inner])
        if not (apart <= inner and abs(found.along - 1) <= inner / 4):  # rounding has no direction
            return "fail"
    if agrees:
        return "pass"
    if not doubled:
        return "precision"
    bound = max(bound, inner)
    if found.autodiff_error > 0.1:  # too coarse to judge by, or other random numbers in float64
        return "precision" if min(found.difference, found.manual_error) <= 4 * bound else "fail"
    return "precision" if found.manual_error <= 4 * max(bound, found.autodiff_error) else "fail"


def _agree(apart: float, size: float, bound: float, floor: float) -> bool:
    """Within the bound, or both below the floor."""
    return apart <= bound or (0 < size < floor and apart * size <= floor)


def bound_of(dtype: str) -> float:
    """How far apart rounding puts two right results; in float32 the products may be those of TF32 or bfloat16."""
    return max(TOLERANCE[dtype], 8 * product_error()) if dtype == "float32" else TOLERANCE[dtype]


def product_error() -> float:
    """How exact a product of float32 is, by the precision in force on this backend."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    return _product_error(jax.default_backend(), str(precision))


@functools.cache
def _product_error(backend: str, precision: str) -> float:
    a, b = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    exact = wide(a) @ wide(b)
    return float(np.max(np.abs(wide(jnp.asarray(a) @ jnp.asarray(b)) - exact)) / np.max(np.abs(exact)))


def rounding(dtype: str) -> float:
    """100 eps, at most 1 %."""
    return min(100 * float(jnp.finfo(dtype).eps), 0.01)


def between(manual: np.ndarray, reference: np.ndarray, tolerance: float, nearby: Iterator[np.ndarray]) -> bool:
    """Whether manual is a subgradient as good as autodiff's: it differs only where autodiff's value jumps between points a
    hair's breadth away, and lies, as its sum over each example does, between the values there."""
    size = max(np.max(np.abs(side), initial=0) for side in (manual, reference))
    if manual.shape != reference.shape or not 0 < size < np.inf:
        return False
    differ = np.abs(manual - reference) > tolerance * size
    if not differ.any():
        return False
    low = high = reference
    least = most = _sums(reference)
    for i, other in enumerate(nearby, start=1):
        low, high = np.minimum(low, other), np.maximum(high, other)
        least, most = np.minimum(least, _sums(other)), np.maximum(most, _sums(other))
        jumps = (high - low)[differ] > 1e-3 * size
        if i == FEW_NUDGES and np.mean(jumps) < 0.5:
            return False
        inside = _inside(manual, low, high, 1e-5 * size) and _inside(_sums(manual), least, most, 1e-5 * size)
        if i >= FEW_NUDGES and jumps.all() and inside:
            return True
    return False


def _inside(a: np.ndarray, low: np.ndarray, high: np.ndarray, slack: float) -> bool:
    return bool(np.all((low - slack <= a) & (a <= high + slack)))


def _sums(a: np.ndarray) -> np.ndarray:
    return a.sum(axis=tuple(range(1, max(a.ndim, 1))))


def wide(a: Any) -> np.ndarray:
    """A NumPy array of float64."""
    return np.asarray(a).astype(np.float64)


def arrays(tree: Any) -> list[np.ndarray]:
    """The leaves in float64."""
    return [wide(leaf) for leaf in jax.tree.leaves(tree)]


def largest(tree: Any) -> float:
    """The largest absolute entry; NaN where there is one."""
    return float(np.max([np.max(np.abs(a), initial=0) for a in arrays(tree)], initial=0))


def distance(ours: Any, reference: Any, size: float) -> float:
    """The largest difference over the largest entry of the reference; infinite for NaN or another structure or shape."""
    gap = _gap(ours, reference)
    if gap == 0 and np.isfinite(size):
        return 0.0
    return gap / size if 0 < size < np.inf and np.isfinite(gap) else float("inf")


def _gap(a: Any, b: Any) -> float:
    """The largest difference of two arrays or trees; infinite for another structure or shape."""
    ours, others = arrays(a), arrays(b)
    if [x.shape for x in ours] != [x.shape for x in others]:
        return float("inf")
    with np.errstate(invalid="ignore"):
        return float(np.max([np.max(np.abs(x - y), initial=0) for x, y in zip(ours, others, strict=True)], initial=0))
