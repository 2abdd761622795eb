"""The measured reference: central differences of fourth order in float64, each with an estimate of its own error.

Along every entry, g(t) = ⟨u, f(x + t eᵢ)⟩ is evaluated at steps h, h/2, h/4, ... of the entry's size.
D(h) = (g(h) − g(−h))/2h, and E(h) = (4 D(h/2) − D(h))/3 is of fourth order (Richardson). The step whose E agrees best with
those of its neighbours is taken, and how far they are apart is the uncertainty. Where the slopes of the two sides differ
there is a kink.
"""

import itertools
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .verdicts import wide

REMEDY = "give reference=, a plain function that can be differentiated, or audit it at another point"
JUDGE = "central differences of fourth order in float64"
EVERY, SAMPLE, DIRECTIONS, FEW = 512, 256, 16, 4
SECONDS = 2
FINE = 26, 36
ROUNDS = (  # the powers of 1/2 that are tried, until an entry is settled
    (*range(7, 12), *FINE),
    tuple(range(12, 25)),
    tuple(range(25, 53)),
    tuple(range(7)),
)
SETTLED, JUDGES = 1e-9, 1e-3
AT_ONCE, BESIDE = 256, 30

Values = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class NoJudge(ValueError):
    """The differences are too uncertain to judge by."""


class Function(NamedTuple):
    """A function of several arrays as one of a vector.

    Attributes:
        x: the entries of all arrays.
        names: of the arrays.
        dtypes: of each array.
        shapes: of each array.
        at_once: the largest P.
        values: points (P, n) -> g (P,) and what it is summed from, Σ |u f| (P,); NaN outside of the domain.
    """

    x: np.ndarray
    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    at_once: int
    values: Values

    def parts(self) -> list[slice]:
        ends = np.cumsum([0, *(int(np.prod(shape)) for shape in self.shapes)])
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]


class Slopes(NamedTuple):
    """Derivatives along directions with their uncertainties, the slopes of both sides where they differ, and the usual
    Σ |u f| around."""

    slope: np.ndarray
    uncertainty: np.ndarray
    left: np.ndarray
    right: np.ndarray
    size: np.ndarray


class Piece(NamedTuple):
    """What was measured of one array, in its shape or along directions.

    Attributes:
        covered: how much of it, to be added to its name; "" for all.
        part: where the array is in `Function.x`.
        directions: the entries, (k,) positions in the array, or dense directions (k, n).
        slopes: along them.
        zero: below what a derivative is zero to rounding, where nothing larger was seen in the whole array; else 0.
        hidden: how large it may be there all the same.
    """

    covered: str
    part: slice
    directions: np.ndarray
    slopes: Slopes
    zero: float = 0.0
    hidden: float = 0.0

    @property
    def uncertainty(self) -> float:
        """Relative to the largest slope."""
        size = np.max(np.abs(self.slopes.slope), initial=0)
        return 0.0 if self.zero or not size else float(np.max(self.slopes.uncertainty) / size)

    @property
    def sampled(self) -> bool:
        """Whether it is not the array in its own shape."""
        return bool(self.covered)

    @property
    def has_kinks(self) -> bool:
        return bool(np.any(self.slopes.left != self.slopes.right))

    def by_hand(self, manual: np.ndarray) -> np.ndarray:
        """The hand-written side in this form: 0 where nothing was measured."""
        if self.directions.ndim == 2:
            return self.directions @ wide(manual).ravel()
        return self.reference(manual.ravel()[self.directions], manual.shape)

    def reference(self, slope: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Slopes in the shape of the array, 0 where nothing was measured; those along directions as they are."""
        if self.directions.ndim == 2:
            return slope
        found = np.zeros(int(np.prod(shape)), slope.dtype)
        found[self.directions] = slope
        return found.reshape(shape)


def measured(f: Function, array: int, every: int = EVERY) -> list[Piece]:
    """The derivative of f with respect to one of its arrays: all of it up to ``every`` entries, else a sample and random
    directions.

    Raises:
        NoJudge: where it cannot be told to a thousandth.
    """
    (base,), _ = f.values(f.x[None])
    if not np.isfinite(base):
        raise NoJudge("the function is not finite at this point: there is nothing to differentiate; audit it elsewhere")
    return [_trusted(f, piece) for piece in _pieces(f, f.parts()[array], min(every, _affordable(f)))]


def _affordable(f: Function) -> int:
    """How many entries can be measured in a few seconds: a power of 2, and some in any case."""
    points = np.tile(f.x, (f.at_once, 1))
    took = []
    for _ in range(2):  # the first compiles
        start = time.perf_counter()
        f.values(points)
        took.append(time.perf_counter() - start)
    entries = SECONDS * f.at_once / (min(took) * 2 * len(ROUNDS[0]))
    return int(2 ** np.clip(np.log2(max(entries, 1)) // 1, 6, 20))


def along_directions(f: Function, array: int, *_: int) -> list[Piece]:
    """A few directional derivatives only."""
    part = f.parts()[array]
    ways = _ways(f, part, FEW)
    return [_trusted(f, Piece(f"{FEW} random directions", part, ways, slopes(f, part, ways)))]


def _ways(f: Function, part: slice, count: int) -> np.ndarray:
    """Random directions, each entry in its size."""
    size = np.abs(f.x[part])
    usual = np.median(size[size > 0]) if np.any(size > 0) else 1.0
    draw = np.random.default_rng(part.start)
    return np.maximum(size, usual) * draw.standard_normal((count, part.stop - part.start))


def _pieces(f: Function, part: slice, every: int) -> Iterator[Piece]:
    n, draw = part.stop - part.start, np.random.default_rng(part.start)
    if n <= every:
        yield Piece("", part, np.arange(n), slopes(f, part, np.arange(n)))
        return
    count = min(SAMPLE, every)
    some = np.sort(draw.choice(n, count, replace=False))
    yield Piece(f"{count} of {n} entries", part, some, slopes(f, part, some))
    ways = _ways(f, part, DIRECTIONS)
    yield Piece(f"{DIRECTIONS} random directions", part, ways, slopes(f, part, ways))


def _trusted(f: Function, piece: Piece) -> Piece:
    """Without the entries that could not be measured."""
    slope, uncertainty, *_, size = piece.slopes
    if not slope.size:
        return piece
    natural, largest = size / _sizes(f, piece.part, piece.directions), _largest(piece.slopes)
    sure, small = uncertainty <= JUDGES * largest, uncertainty <= 1e-6 * natural
    worst = float(np.max(uncertainty, where=small, initial=0))
    if largest <= 10 * worst and np.mean(small) >= 0.5:
        piece = piece._replace(zero=float(10 * np.finfo(float).eps * np.max(natural)), hidden=20 * worst)
        sure = small
    if sure.all():
        return piece
    if np.mean(sure) < 0.5:
        name = f.names[f.parts().index(piece.part)]
        raise NoJudge(
            f"no independent judge: the derivative with respect to {name} cannot be measured by differences at this point "
            f"(the function is noisy, coarse, or not differentiable there); {REMEDY}"
        )
    kept = np.flatnonzero(sure)
    dense = piece.directions.ndim == 2
    total = len(sure) if dense else piece.part.stop - piece.part.start
    return piece._replace(
        covered=f"{len(kept)} of {total} {'random directions' if dense else 'entries'}",
        directions=piece.directions[kept],
        slopes=Slopes(*(a[kept] for a in piece.slopes)),
    )


def _largest(found: Slopes) -> float:
    """The largest slope that stands out of its uncertainty."""
    steepest = np.max(np.abs([found.slope, found.left, found.right]), axis=0)
    clear = np.isfinite(steepest) & (found.uncertainty <= 0.1 * steepest)
    return float(np.max(steepest, initial=0, where=clear))


def slopes(f: Function, part: slice, directions: np.ndarray) -> Slopes:
    """Derivatives at f.x along entries of a part, (k,) positions in it, or along dense directions (k, n)."""
    k, columns, sizes = len(directions), 1 + max(map(max, ROUNDS)), _sizes(f, part, directions)
    rise, size, t = (np.full((k, columns, 2), np.nan) for _ in range(3))
    (base,), (base_size,) = f.values(f.x[None])
    stands_still = _stands_still(f, part)
    found = Slopes(*(np.full(k, np.nan) for _ in Slopes._fields))
    left = np.arange(k)  # those that are not settled
    for powers in ROUNDS:
        asked = sizes[left, None] * 0.5 ** np.array(powers)
        at = left[:, None], np.array(powers)[None]
        rise[at], size[at], t[at] = _evaluated(f, part, directions[left], np.stack([asked, -asked], axis=-1))
        rise[at] -= base
        now = _settled(rise[left], np.fmax(size[left], base_size), t[left], stands_still)
        for whole, new in zip(found, now, strict=True):
            whole[left] = new
        largest = _largest(found)
        left = np.flatnonzero(~(found.uncertainty <= SETTLED * largest) | (found.left != found.right))
        if not left.size:
            break
    known = found.uncertainty[np.isfinite(found.uncertainty)]
    least = np.full(k, np.median(known) if known.size else 0.0)
    if directions.ndim == 1:  # what happens at the scale of an entry far below the others' shows to this at best
        own = np.abs(f.x[part][directions])
        far_below = (own > 0) & (own < 1e-3 * sizes)
        least[far_below] = np.fmax(least, np.finfo(float).eps * found.size / np.where(own > 0, own, 1))[far_below]
    return found._replace(uncertainty=np.maximum(found.uncertainty, least))


def _sizes(f: Function, part: slice, directions: np.ndarray) -> np.ndarray:
    """The step to start from: about the entry's size, at least the usual one of its array. Not a power of 2, at which whole
    numbers and rounding would look smooth."""
    if directions.ndim == 2:
        return np.full(len(directions), np.pi / 3)
    size = np.abs(f.x[part])
    usual = np.median(size[size > 0]) if np.any(size > 0) else 1.0
    return np.pi / 3 * np.maximum(size[directions], usual)


def _stands_still(f: Function, part: slice) -> bool:
    """Whether the function moves at moderate steps and not at tiny ones: it rounds to a narrower dtype."""
    way = np.maximum(np.abs(f.x[part]), 1e-300) * np.random.default_rng(0).choice([-1, 1], part.stop - part.start)
    (base,), _ = f.values(f.x[None])
    g = _evaluated(f, part, way[None], np.array([[2.0**-40, 2.0**-36, 2.0**-8]]), rounded=False)[0][0]
    return bool(np.all(g[:2] == base) and g[2] != base)


def _evaluated(
    f: Function, part: slice, directions: np.ndarray, steps: np.ndarray, *, rounded: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """g and Σ |u f| at the points x + t d of steps (k, ...), and t as the rounding of x + t leaves it."""
    which = np.repeat(np.arange(len(directions)), steps[0].size)
    t = steps.ravel()
    cast = _rounding(f, part) if rounded else lambda a: a
    one_entry = directions.ndim == 1
    old = f.x[part][directions[which]] if one_entry else np.zeros(0)
    moved = cast(old + t) if one_entry else old

    def points(piece: slice) -> np.ndarray:
        rows = np.tile(f.x, (len(t[piece]), 1))
        if one_entry:
            rows[np.arange(len(rows)), part.start + directions[which[piece]]] = moved[piece]
        else:
            rows[:, part] = cast(rows[:, part] + t[piece, None] * directions[which[piece]])
        return rows

    pieces = [f.values(points(slice(i, i + f.at_once))) for i in range(0, len(t), f.at_once)]
    g, size = (np.concatenate(side) for side in zip(*pieces, strict=True))
    actual = moved - old if one_entry else t
    return g.reshape(steps.shape), size.reshape(steps.shape), actual.reshape(steps.shape)


def _rounding(f: Function, part: slice) -> Callable[[np.ndarray], np.ndarray]:
    dtype = f.dtypes[f.parts().index(part)]
    return (lambda a: a) if dtype == "float64" else (lambda a: a.astype(jnp.dtype(dtype)).astype(np.float64))


def _settled(rise: np.ndarray, size: np.ndarray, t: np.ndarray, stands_still: bool) -> Slopes:
    """The best estimates from g(t) − g(0), Σ |u f| and t, each (k, steps, 2), the last axis forward and backward."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where nothing was evaluated
        rise = np.where(t == 0, np.nan, rise)
        noise = 4 * np.finfo(float).eps * np.nanmedian(size, axis=(1, 2))
        if stands_still:
            noise = np.nanmin(np.where(rise != 0, np.abs(rise), np.nan), axis=(1, 2))
        noise = np.asarray(noise)[:, None] / np.abs(t[..., 0])
        central = (rise[..., 0] - rise[..., 1]) / (t[..., 0] - t[..., 1])
        slope, error = _best((4 * _shifted(central, 1) - central) / 3, noise)
        for fine in FINE if np.isnan(t[:, FINE[0] - 1, 0]).any() else ():  # the first round: nothing happens in between
            off = np.abs(slope - central[:, fine])
            error = np.where(off > 0.4 * np.abs(slope) + 16 * noise[:, fine], np.fmax(error, off), error)
        sides = []
        for side in (1, 0):
            one = rise[..., side] / t[..., side]
            second = 2 * _shifted(one, 1) - one
            sides.append(_best((4 * _shifted(second, 1) - second) / 3, 4 * noise))
        (left, left_error), (right, right_error) = sides
        outside: np.ndarray = ~np.any(np.isfinite(rise), axis=1)
        for side, other, other_error in ((0, left, left_error), (1, right, right_error)):
            edge = outside[:, side] & ~outside[:, 1 - side]
            slope, error = np.where(edge, other, slope), np.where(edge, other_error, error)
        apart = np.abs(left - right)
        kink = (apart > 10 * (left_error + right_error)) & (apart > 1e-6 * np.fmax(np.abs(left), np.abs(right)))
        error = np.where(kink, error, np.fmax(error, _cusp(rise, t, noise)))
        usual = np.nanmedian(size[:, 7:12], axis=(1, 2))
        return Slopes(slope, error, np.where(kink, left, slope), np.where(kink, right, slope), usual)


def _shifted(a: np.ndarray, steps: int) -> np.ndarray:
    """The same at so many times half the step."""
    new = np.full_like(a, np.nan)
    if steps > 0:
        new[:, :-steps] = a[:, steps:]
    else:
        new[:, -steps:] = a[:, :steps]
    return new


def _best(estimates: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The estimate (k, steps) that agrees best with its neighbours, and its uncertainty; infinite where there is none.

    The derivative is the limit of small steps: an estimate is as far off as it is from any at finer steps, but for their own
    noise, which shows in how they scatter.
    """
    apart = np.maximum(np.abs(estimates - _shifted(estimates, 1)), np.abs(estimates - _shifted(estimates, -1)))
    scatter = np.fmax(apart, np.fmax(_shifted(apart, 1), _shifted(apart, -1)))
    known = np.flatnonzero(np.isfinite(apart).any(axis=0))
    error = np.full_like(estimates, np.inf)
    for k in known:
        finer = known[known > k]
        off = np.abs(estimates[:, finer] - estimates[:, k, None]) - 4 * scatter[:, finer] - 16 * noise[:, finer]
        error[:, k] = np.fmax(4 * apart[:, k] + noise[:, k], np.nanmax(off, axis=1, initial=0))
    error = np.where(np.isfinite(error) & np.isfinite(apart), error, np.inf)
    rows, best = np.arange(len(estimates)), np.argmin(error, axis=1)
    return estimates[rows, best], error[rows, best]


def _cusp(rise: np.ndarray, t: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """How much the slopes of both sides differ at the finest steps where that is no noise, if it does not vanish there; else
    0."""
    right, left = rise[..., 0] / t[..., 0], rise[..., 1] / t[..., 1]
    jump, before = np.abs(right - left), np.abs(_shifted(right - left, -3))
    clear = (jump > 64 * noise) & np.isfinite(before)
    last = clear.shape[1] - 1 - np.argmax(clear[:, ::-1], axis=1)
    at = np.arange(len(jump)), last
    stays = clear[at] & (jump[at] > 0.5 * before[at]) & (jump[at] > 0.05 * (np.abs(right[at]) + np.abs(left[at])))
    return np.where(stays, jump[at], 0)


def derivatives_beside(f: Function, piece: Piece) -> Iterator[np.ndarray]:
    """Plain central differences at points a millionth away, one at random after another, to find which way kinks go."""
    for seed in range(BESIDE):
        draw = np.random.default_rng(seed)
        away = np.concatenate([_sizes(f, part, np.arange(part.stop - part.start)) for part in f.parts()])
        moved = f._replace(x=f.x + 1e-6 * away * draw.uniform(-1, 1, f.x.size))
        steps = 2.0**-24 * _sizes(f, piece.part, piece.directions)[:, None] * np.array([1, -1])
        g, _, t = _evaluated(moved, piece.part, piece.directions, steps)
        yield (g[:, 0] - g[:, 1]) / (t[:, 0] - t[:, 1])
