"""The usual mistakes of hand-written backpropagation, and what each would have given.

`explain` tries them one after another on an equation that failed and names the first that gives the manual result to
rounding. A mistake is either a transformation of the right result (a sign, a factor, a transposition: these are here), or
one of those that `network_mistakes` and `function_mistakes` know of the equation at hand.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from .verdicts import wide

Ideas = Callable[[], Iterator[tuple[str, Any]]]


class Explanation(NamedTuple):
    """A hint, and the example that it is about."""

    text: str
    example: int | None = None


@dataclass(frozen=True)
class Failure:
    """A leaf of an equation that failed.

    Attributes:
        manual: what the equation gave.
        reference: what it should have given.
        tolerance: how close an explanation must come, relative to the largest entry.
        m: examples in the batch.
        incoming: the δ or ∂C/∂a that the equation was fed; None where it is no single array.
        per_example: whether axis 0 of the result is the example.
        has_mean: whether a mean over the batch has its place near it.
        is_layer: whether features are along the last axis, so that only the others are places or steps.
        numbers: factors that have a name.
        devices: how many devices take part, in words.
        siblings: other leaves' right results, by name.
        each: the right result of each example alone, (m, *shape), of a gradient.
        ideas: (mistake, what it would give) for the equation at hand.
        last_ideas: the same, where nothing else explains it.
    """

    manual: np.ndarray
    reference: np.ndarray
    tolerance: float
    m: int = 1
    incoming: np.ndarray | None = None
    per_example: bool = False
    has_mean: bool = True
    is_layer: bool = True
    numbers: dict[str, float] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    siblings: dict[str, np.ndarray] = field(default_factory=dict)
    each: Callable[[], np.ndarray | None] = lambda: None
    ideas: Ideas = lambda: iter(())
    last_ideas: Ideas = lambda: iter(())

    def gives(self, candidate: Any, manual: np.ndarray | None = None) -> bool:
        """Whether the candidate is the manual result, to rounding."""
        manual = self.manual if manual is None else manual
        candidate = np.asarray(candidate, np.float64)
        if candidate.shape != manual.shape or manual.size == 0:
            return False
        size = np.max(np.abs(manual))
        return bool(0 < size < np.inf and np.max(np.abs(manual - candidate)) <= self.tolerance * size)


def explain(failure: Failure) -> Explanation:
    """The first usual mistake that gives the manual result; an empty text where none does."""
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for finder in FINDERS:
            try:
                found = finder(failure)
            except Exception:  # a layer that refuses what a mistake would feed it: a hint must not cost the report
                continue
            if found is not None:
                return found
    return Explanation("")


def wrong_shape(f: Failure) -> Explanation | None:
    """The same numbers in another shape, sums over other axes, or no reason but the shape."""
    if f.manual.shape == f.reference.shape:
        return None
    shapes = f"shape {f.manual.shape} instead of {f.reference.shape}"
    for text, candidate in f.ideas():
        if f.gives(candidate):
            return Explanation(f"{text} ({shapes})")
    for count in range(1, 1 if f.is_layer else f.manual.ndim + 1):
        for axes in itertools.combinations(range(f.manual.ndim), count):
            if f.manual.sum(axes).size == f.reference.size:
                whole = Failure(f.reference, f.manual.sum(axes).reshape(f.reference.shape), f.tolerance)
                if whole.gives(whole.reference):
                    over = ", ".join(map(str, axes))
                    return Explanation(f"not summed over axis {over}, along which this argument is repeated ({shapes})")
    for order in itertools.permutations(range(f.reference.ndim)):
        if f.gives(f.reference.transpose(order)):
            return Explanation(f"transposed ({shapes})")
    each = f.each()
    if each is not None:
        for count in range(1, each.ndim + 1):
            for axes in itertools.combinations(range(each.ndim), count):
                if any(f.gives(scale * each.sum(axes)) for scale in (1, 1 / f.m)):
                    return Explanation(f"summed over the wrong axes ({shapes})")
        if any(f.gives(scale * each) for scale in (1, 1 / f.m)):
            return Explanation(f"not summed over the examples ({shapes})")
    return Explanation(shapes)


def not_finite(f: Failure) -> Explanation | None:
    known = np.isfinite(f.reference)
    if not known.all():
        where = f"in {known.size - known.sum()} of {known.size} entries" if known.any() else "anywhere"
        apart = np.abs(f.manual - f.reference)[known]
        agree = np.max(apart, initial=0) <= f.tolerance * np.max(np.abs(f.reference[known]), initial=0)
        rest = f"; the others {'agree' if agree else 'differ'}" if known.any() else ""
        return Explanation(
            f"autodiff is not finite {where}: the forward pass is NaN or infinite, or has no derivative there{rest}"
        )
    if not np.isfinite(f.manual).all():
        return Explanation("NaN or infinite where autodiff is finite")
    return None


def left_out(f: Failure) -> Explanation | None:
    if not np.any(f.manual):
        return Explanation("left out: 0 everywhere")
    return None


def another_leaf(f: Failure) -> Explanation | None:
    for name, other in f.siblings.items():
        if f.gives(other) or f.gives(other.T):
            return Explanation(f"swapped: this is the gradient of {name}")
    return None


def wrong_ingredient(f: Failure) -> Explanation | None:
    for text, candidate in f.ideas():
        if f.gives(candidate):
            return Explanation(text)
    return None


def last_resort(f: Failure) -> Explanation | None:
    return next((Explanation(text) for text, candidate in f.last_ideas() if f.gives(candidate)), None)


def mask_scale(f: Failure) -> float | None:
    """s, where the right result is r ⊙ δ with each r either 0 or s, and both occur."""
    if f.incoming is None or f.incoming.shape != f.reference.shape:
        return None
    there = f.incoming != 0
    ratio = f.reference[there] / f.incoming[there]
    kept = ratio != 0
    if kept.all() or not kept.any() or not np.allclose(ratio[kept], ratio[kept][0], rtol=1e-6):
        return None
    return float(ratio[kept][0])


def usual_factor(f: Failure) -> Explanation | None:
    """A factor that has a name, a small number or its inverse."""
    c = _factor(f)
    if c is None:
        return None
    of_batch = {
        float(f.m): f"a factor m = {f.m}: summed over the batch where the mean belongs",
        1 / f.m: f"a factor 1/m = 1/{f.m}: divided by the size of the batch once too often",
    }
    of_batch = of_batch if f.has_mean and f.m > 1 else {}
    names = {1.0: ""} if f.per_example else {1.0: "", **of_batch}
    for name, number in {"1/keep": mask_scale(f) or 1.0, **f.numbers}.items():
        if np.isfinite(number) and number > 0:
            names.setdefault(1 / number, f"a factor {name} = {number:.4g} is missing")
            names.setdefault(number, f"a factor {name} = {number:.4g} too much")
    names = {**of_batch, **names}
    of_devices = {}
    for name, n in f.devices.items():
        of_devices[1 / n] = f"off by {name} ({n}): a psum is missing, or a pmean stands where a psum belongs"
        of_devices[float(n)] = f"off by {name} ({n}): a psum too many, or one that stands where a pmean belongs"
    close = {n: np.isclose(abs(c), n, rtol=max(f.tolerance, 1e-9)) for n in (*of_devices, *names)}
    found = [next((text for n, text in of.items() if close[n]), None) for of in (of_devices, names)]
    if found != [None, None]:
        text = "; or ".join(filter(None, found))
        return Explanation(", and ".join(part for part in ("wrong sign" if c < 0 else "", text) if part))
    if any(np.isclose(ratio, round(ratio), rtol=f.tolerance) and round(ratio) for ratio in (c, 1 / c)):
        return constant_factor(f)
    return None


def constant_factor(f: Failure) -> Explanation | None:
    """Any factor; of a single number every one would do."""
    c = _factor(f)
    if c is None:
        return None
    whole = abs(c) < 1 and np.isclose(1 / c, round(1 / c), rtol=f.tolerance)
    if not whole and not np.isclose(c, round(c), rtol=f.tolerance) and np.count_nonzero(f.reference) < 2:
        return None
    digits = 4 if whole else next((n for n in range(4, 17) if f.gives(float(f"{c:.{n}g}") * f.reference)), 17)
    return Explanation(f"a constant factor {c:.{digits}g}{f' = 1/{round(1 / c)}' if whole else ''}")


def _factor(f: Failure) -> float | None:
    square = float(np.sum(f.reference**2))
    c = float(np.sum(f.manual * f.reference)) / square if square > 0 else 0.0
    return c if c != 0 and f.gives(c * f.reference) else None


def wrong_mask(f: Failure) -> Explanation | None:
    """Other zeros than the right mask's."""
    scale = mask_scale(f)
    if scale is None or f.incoming is None:
        return None
    there = f.incoming != 0
    ours = f.manual[there] / f.incoming[there]
    levels = ours[ours != 0]
    if not levels.size or not np.allclose(levels, levels[0], rtol=1e-6) or not _is_any(levels[0], (scale, 1.0)):
        return None
    if levels.size == ours.size:
        return Explanation("the mask is not applied")
    return Explanation("another mask than the forward pass's: a stale or wrong one")


def _is_any(number: float, others: Sequence[float]) -> bool:
    return any(np.isclose(number, other, rtol=1e-6) for other in others)


def turned(f: Failure) -> Explanation | None:
    """Transposed, rotated by 180° or reversed along an axis."""
    first = 1 if f.per_example else 0
    axes = range(first if f.is_layer else 0, f.reference.ndim)
    spatial = tuple(axes)[: max(0, len(axes) - (1 if f.per_example else 2))]
    if len(spatial) > 1 and f.gives(np.flip(f.reference, spatial)):
        return Explanation("rotated by 180°")
    for i, j in itertools.combinations(axes, 2):
        if f.gives(np.swapaxes(f.reference, i, j)):
            return Explanation(f"transposed: axes {i} and {j} are swapped")
    for axis in axes:
        if f.gives(np.flip(f.reference, axis)):
            return Explanation(f"reversed along axis {axis}")
    return None


def shifted(f: Failure) -> Explanation | None:
    """One place, step or example off: equal where both overlap."""
    last = f.reference.ndim - (1 if f.per_example else 2)
    for axis in range(last if f.is_layer else f.reference.ndim):
        n = f.reference.shape[axis]
        if n < 3:
            continue
        head, tail = (_part(axis, side) for side in (slice(None, -1), slice(1, None)))
        for ours, theirs in ((head, tail), (tail, head)):
            if f.gives(f.reference[theirs], f.manual[ours]):
                if f.per_example and axis == 0:
                    return Explanation("the examples are shifted by one")
                return Explanation(f"off by one along axis {axis}: padding, a step or a place")
    return None


def one_example(f: Failure) -> Explanation | None:
    """An example left out, counted twice, alone, or the only one that is wrong."""
    if f.m < 2:
        return None
    if f.per_example:
        size = np.max(np.abs(f.reference))
        gap = np.abs(f.manual - f.reference).reshape(len(f.reference), -1).max(axis=1, initial=0)
        wrong = np.flatnonzero(gap > f.tolerance * size)
        if len(wrong) == 1:
            i = int(wrong[0])
            left = not np.any(f.manual[i]) and np.count_nonzero(f.reference[i]) > 1  # one entry may have been clipped
            return Explanation("one example is left out" if left else "only this example is wrong", i)
        return None
    each = f.each()
    if each is None:
        return None
    total = each.sum(axis=0)
    for i, own in enumerate(each):
        if not np.any(own):
            continue
        if f.gives((total - own) / f.m) or f.gives((total - own) / (f.m - 1)):
            return Explanation("one example is left out", i)
        if f.gives((total + own) / f.m):
            return Explanation("one example is counted twice", i)
        if f.gives(own) or f.gives(own / f.m):
            return Explanation("only one example is counted", i)
    return None


def wrong_axes(f: Failure) -> Explanation | None:
    """Sums of the examples' gradients over other axes that happen to have the right shape."""
    each = f.each()
    if each is None:
        return None
    for axis in range(1, each.ndim):
        if any(f.gives(scale * each.sum(axis)) for scale in (1, 1 / f.m, 1 / each.shape[axis])):
            return Explanation(f"summed over the wrong axis: {axis} of each example's gradient, not the examples")
    return None


def _part(axis: int, part: slice) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, part)


FINDERS = (
    wrong_shape,
    not_finite,
    left_out,
    usual_factor,
    wrong_ingredient,
    constant_factor,
    another_leaf,
    one_example,
    wrong_mask,
    turned,
    shifted,
    wrong_axes,
    last_resort,
)


def siblings(tree: Any, path: Any) -> dict[str, np.ndarray]:
    """The other leaves, by name."""
    return {keystr(other): wide(leaf) for other, leaf in tree_leaves_with_path(tree) if other != path}
