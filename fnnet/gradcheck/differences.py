"""The measured reference: central differences of fourth order in float64, each with an estimate of its own error.

Along every entry, g(t) = ⟨u, f(x + t eᵢ)⟩ is evaluated at steps h, h/2, h/4, ... of the entry's size.
D(h) = (g(h) − g(−h))/2h, and E(h) = (4 D(h/2) − D(h))/3 is of fourth order (Richardson). The step whose E agrees best with
those of its neighbours is taken, and how far they are apart is the uncertainty. Where the slopes of the two sides differ
there is a kink.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from .verdicts import wide

JUDGE = "central differences of fourth order in float64"
EVERY, SAMPLE, DIRECTIONS, FEW = 512, 256, 16, 4
FINE = 26
ROUNDS = (  # the powers of 1/2 that are tried, until an entry is settled
    (*range(7, 12), FINE),
    tuple(range(12, 25)),
    tuple(range(7)),
    tuple(range(25, 53)),
)
FINER = 6
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
    """Derivatives along directions with their uncertainties, and the slopes of both sides where they differ."""

    slope: np.ndarray
    uncertainty: np.ndarray
    left: np.ndarray
    right: np.ndarray


class Piece(NamedTuple):
    """What was measured of one array, in its shape or along directions.

    Attributes:
        covered: how much of it, to be added to its name; "" for all.
        part: where the array is in `Function.x`.
        directions: the entries, (k,) positions in the array, or dense directions (k, n).
        slopes: along them.
        zero: below what a derivative is zero to rounding, where the whole array is; else 0.
    """

    covered: str
    part: slice
    directions: np.ndarray
    slopes: Slopes
    zero: float = 0.0

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
        """The hand-written side in this form."""
        return manual if self.directions.ndim == 1 else self.directions @ wide(manual).ravel()

    def reference(self, manual: np.ndarray, slope: np.ndarray) -> np.ndarray:
        """The slopes in the shape of the hand-written side, whose own entries stand where nothing was measured."""
        if self.directions.ndim == 2:
            return slope
        found = wide(manual).ravel()
        found[self.directions] = slope
        return found.reshape(manual.shape)


def measured(f: Function, array: int, every: int = EVERY) -> list[Piece]:
    """The derivative of f with respect to one of its arrays: all of it up to ``every`` entries, else a sample and random
    directions.

    Raises:
        NoJudge: where it cannot be told to a thousandth.
    """
    (base,), (size,) = f.values(f.x[None])
    if not np.isfinite(base):
        raise NoJudge("the function is not finite at this point: there is nothing to differentiate; audit it elsewhere")
    return [_trusted(f, piece, size) for piece in _pieces(f, f.parts()[array], every)]


def along_directions(f: Function, array: int, *_: int) -> list[Piece]:
    """A few directional derivatives only."""
    part = f.parts()[array]
    (_,), (size,) = f.values(f.x[None])
    ways = _ways(f, part, FEW)
    return [_trusted(f, Piece(f"{FEW} random directions", part, ways, slopes(f, part, ways)), size)]


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
    some = np.sort(draw.choice(n, SAMPLE, replace=False))
    yield Piece(f"{SAMPLE} of {n} entries", part, some, slopes(f, part, some))
    ways = _ways(f, part, DIRECTIONS)
    yield Piece(f"{DIRECTIONS} random directions", part, ways, slopes(f, part, ways))


def _trusted(f: Function, piece: Piece, size: float) -> Piece:
    """Without the entries that could not be measured."""
    slope, uncertainty, *_ = piece.slopes
    if not slope.size:
        return piece
    largest = np.nanmax(np.abs(slope), initial=0)
    natural = size / _sizes(f, piece.part, piece.directions)
    worst = np.max(uncertainty)
    if largest <= 10 * worst and np.all(uncertainty <= 1e-6 * natural):
        return piece._replace(zero=float(20 * worst))
    sure = uncertainty <= JUDGES * np.max(np.abs(slope[np.isfinite(uncertainty)]), initial=0)
    if sure.all():
        return piece
    if np.mean(sure) < 0.5:
        name = f.names[f.parts().index(piece.part)]
        raise NoJudge(
            f"no independent judge: the derivative with respect to {name} cannot be measured by differences at this point "
            "(the function is noisy, coarse, or not differentiable there); give reference=, a plain function that can be "
            "differentiated, or audit it at another point"
        )
    kept = np.flatnonzero(sure)
    of = "entries" if piece.directions.ndim == 1 else "random directions"
    return piece._replace(
        covered=f"{len(kept)} of {piece.part.stop - piece.part.start} {of}",
        directions=piece.directions[kept],
        slopes=Slopes(*(a[kept] for a in piece.slopes)),
    )


def slopes(f: Function, part: slice, directions: np.ndarray) -> Slopes:
    """Derivatives at f.x along entries of a part, (k,) positions in it, or along dense directions (k, n)."""
    k, columns, sizes = len(directions), 1 + max(map(max, ROUNDS)), _sizes(f, part, directions)
    rise, size, t = (np.full((k, columns, 2), np.nan) for _ in range(3))
    (base,), (base_size,) = f.values(f.x[None])
    stands_still = _stands_still(f, part)
    found = Slopes(*(np.full(k, np.nan) for _ in range(4)))
    left = np.arange(k)  # those that are not settled
    for powers in ROUNDS:
        asked = sizes[left, None] * 0.5 ** np.array(powers)
        at = left[:, None], np.array(powers)[None]
        rise[at], size[at], t[at] = _evaluated(f, part, directions[left], np.stack([asked, -asked], axis=-1))
        rise[at] -= base
        now = _settled(rise[left], np.fmax(size[left], base_size), t[left], stands_still)
        for whole, new in zip(found, now, strict=True):
            whole[left] = new
        largest = np.nanmax(np.abs(found.slope), initial=0)
        left = np.flatnonzero(~(found.uncertainty <= SETTLED * largest) | (found.left != found.right))
        if not left.size:
            break
    known = found.uncertainty[np.isfinite(found.uncertainty)]
    usual = np.median(known) if known.size else 0.0
    return found._replace(uncertainty=np.maximum(found.uncertainty, usual))


def _sizes(f: Function, part: slice, directions: np.ndarray) -> np.ndarray:
    """The step to start from, a power of 2: the entry's size, at least the usual one of its array."""
    if directions.ndim == 2:
        return np.ones(len(directions))
    size = np.abs(f.x[part])
    usual = np.median(size[size > 0]) if np.any(size > 0) else 1.0
    return 2.0 ** np.round(np.log2(np.maximum(size[directions], usual)))


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
        slope, error = _best((4 * _finer(central) - central) / 3, noise)
        if np.isnan(t[:, FINE - 1, 0]).any():  # after the first round: nothing happens between these steps
            off = np.abs(slope - central[:, FINE])
            error = np.where(off > 0.5 * np.abs(slope) + 16 * noise[:, FINE], np.fmax(error, off), error)
        sides = []
        for side in (1, 0):
            one = rise[..., side] / t[..., side]
            second = 2 * _finer(one) - one
            sides.append(_best((4 * _finer(second) - second) / 3, 4 * noise))
        (left, left_error), (right, right_error) = sides
        outside: np.ndarray = ~np.any(np.isfinite(rise), axis=1)
        for side, other, other_error in ((0, left, left_error), (1, right, right_error)):
            edge = outside[:, side] & ~outside[:, 1 - side]
            slope, error = np.where(edge, other, slope), np.where(edge, other_error, error)
        apart = np.abs(left - right)
        kink = (apart > 10 * (left_error + right_error)) & (apart > 1e-6 * np.fmax(np.abs(left), np.abs(right)))
        return Slopes(slope, error, np.where(kink, left, slope), np.where(kink, right, slope))


def _finer(a: np.ndarray) -> np.ndarray:
    """The same at half the step."""
    return np.concatenate([a[:, 1:], np.full_like(a[:, :1], np.nan)], axis=1)


def _best(estimates: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The estimate (k, steps) that agrees best with its neighbours, and its uncertainty; infinite where there is none. Finer
    steps that show another slope add to it, but for their own noise."""
    finer = [_finer(estimates)]
    while len(finer) < FINER:
        finer.append(_finer(finer[-1]))
    coarser = np.full_like(estimates, np.nan)
    coarser[:, 1:] = estimates[:, :-1]
    apart = np.maximum(np.abs(estimates - finer[0]), np.abs(estimates - coarser))
    others = np.abs(np.stack(finer) - estimates)
    allowed = 0.5 * np.abs(estimates) + 16 * noise * 2.0 ** np.arange(1, FINER + 1)[:, None, None]
    error = 4 * apart + noise + np.nanmax(np.where(others > allowed, others, 0), axis=0)
    error = np.where(np.isfinite(error), error, np.inf)
    rows, best = np.arange(len(estimates)), np.argmin(error, axis=1)
    return estimates[rows, best], error[rows, best]


def derivatives_beside(f: Function, piece: Piece) -> Iterator[np.ndarray]:
    """Plain central differences at points a millionth away, one at random after another, to find which way kinks go."""
    for seed in range(BESIDE):
        draw = np.random.default_rng(seed)
        away = np.concatenate([_sizes(f, part, np.arange(part.stop - part.start)) for part in f.parts()])
        moved = f._replace(x=f.x + 1e-6 * away * draw.uniform(-1, 1, f.x.size))
        steps = 2.0**-24 * _sizes(f, piece.part, piece.directions)[:, None] * np.array([1, -1])
        g, _, t = _evaluated(moved, piece.part, piece.directions, steps)
        yield (g[:, 0] - g[:, 1]) / (t[:, 0] - t[:, 1])
