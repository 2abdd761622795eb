"""Central differences in float64: a third opinion, beside the hand-written equations and autodiff.

They are of fourth order, D(h) = [8 (f(h) − f(−h)) − (f(2h) − f(−2h))] / 12h along a random direction, and count for something
only where those of two steps, h and h/2, agree, and where the slopes to the left and to the right do: beside kinks, ties and
noise they mean nothing.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from .points import on_device
from .verdicts import Subject, arrays, in_float64

AGREE, DISAGREE, MOST_ENTRIES = 1e-7, 1e-6, 64
"""How near two steps have to come to each other, and how far a derivative may be from them, relative to its size; how many
entries are looked at one by one."""


class Opinion(NamedTuple):
    """How far each side's derivative along a direction is from central differences, relative to their size."""

    manual: float
    autodiff: float

    @staticmethod
    def contradicts(distance: float) -> bool:
        """Whether a side at this distance is wrong."""
        return distance > DISAGREE


def opinion(subject: Subject, source: str, path: Any, case: int, seed: int = 0) -> Opinion | None:
    """Of one leaf of an equation, or of all where the path is None; None where differences mean nothing or there are none."""
    best = subject.exact[case] or (subject.values[case] if subject.dtype == "float64" else None)
    if subject.pairing is None or best is None:
        return None
    one = subject.compared(source, path)[case]
    manual, reference = one[:2] if one.autodiff64 is None else one[2:]
    ours, right = arrays(manual), arrays(reference)
    shapes = [side.shape for side in right]
    if [side.shape for side in ours] != shapes or not sum(side.size for side in right):
        return None
    if not all(np.isfinite(side).all() for side in [*ours, *right]):
        return None
    with jax.enable_x64(True):
        f, tree = subject.pairing(source, *jax.tree.map(_placed, in_float64(subject.cases[case])))
        places = [
            i for i, (at, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)) if path is None or at == path
        ]
        leaves, treedef = jax.tree.flatten(tree)
        if len(places) != len(right) or [np.shape(leaves[i]) for i in places] != shapes:
            return None
        v = _direction(right, seed)
        size = max(1.0, *(float(np.max(np.abs(leaves[i]), initial=0)) for i in places))

        def along(h: float) -> float:
            moved = list(leaves)
            for i, step in zip(places, v, strict=True):
                moved[i] = on_device(np.asarray(leaves[i]) + h * step, np.float64)
            return float(f(treedef.unflatten(moved)))

        measured = slope(along, size / max(float(np.max(np.abs(step), initial=0)) for step in v))
    if measured is None:
        return None
    manual, autodiff = (sum(float(np.sum(g * step)) for g, step in zip(side, v, strict=True)) for side in (ours, right))
    scale = max(abs(measured), np.finfo(float).tiny)
    return Opinion(abs(manual - measured) / scale, abs(autodiff - measured) / scale)


def supports_manual(subject: Subject, source: str, path: Any, case: int) -> bool:
    """Whether differences contradict autodiff and agree with the hand-written side, along each of four directions."""
    for seed in range(4):
        found = opinion(subject, source, path, case, seed)
        if found is None or found.contradicts(found.manual) or (seed == 0 and not found.contradicts(found.autodiff)):
            return False
    return True


def entries(
    subject: Subject, source: str, path: Any, case: int, manual: np.ndarray, reference: np.ndarray
) -> str | None:
    """The verdict where autodiff is not finite in some entries, and central differences of each of these are; None where
    manual is wrong, or nothing can be said."""
    places = np.argwhere(~np.isfinite(reference))
    size = max(np.max(np.abs(manual)), np.max(np.abs(reference[np.isfinite(reference)]), initial=0), 1e-30)
    elsewhere = np.abs(manual - reference)[np.isfinite(reference)]
    if subject.pairing is None or not 0 < len(places) <= MOST_ENTRIES or np.max(elsewhere, initial=0) > 1e-10 * size:
        return None
    verdict = "better than autodiff"
    with jax.enable_x64(True):
        f, tree = subject.pairing(source, *jax.tree.map(_placed, in_float64(subject.cases[case])))
        at = [i for i, (where, _) in enumerate(jax.tree_util.tree_leaves_with_path(tree)) if where == (path or ())]
        leaves, treedef = jax.tree.flatten(tree)
        if len(at) != 1 or np.shape(leaves[at[0]]) != manual.shape:
            return None
        leaf = np.asarray(leaves[at[0]], np.float64)
        for place in map(tuple, places):

            def along(h: float, place: tuple = place) -> float:
                moved = leaf.copy()
                moved[place] += h
                return float(
                    f(treedef.unflatten([*leaves[: at[0]], on_device(moved, np.float64), *leaves[at[0] + 1 :]]))
                )

            near = max(1.0, abs(float(leaf[place])))
            measured, step = slope(along, near), 1e-6 * near
            left, right = (sign * (along(sign * step) - along(0.0)) / step for sign in (-1, 1))
            if measured is not None and abs(measured - manual[place]) <= DISAGREE * max(size, abs(measured)):
                continue
            if max(abs(left - manual[place]), abs(right - manual[place])) <= 1e-5 * size:  # smooth, and flat
                continue
            slack = 1e-4 * max(abs(left), abs(right))
            if (
                not abs(left - right) > slack
                or not min(left, right) - slack <= manual[place] <= max(left, right) + slack
            ):
                return None
            verdict = "both valid subgradients"
    return verdict


def slope(f: Callable[[float], float], size: float) -> float | None:
    """f'(0), by the step at which two of them agree best; None where they do not, or at a kink."""
    best = None
    for h in (1e-2, 1e-3, 1e-4):
        values = {k: f(k * h * size) for k in (-2, -1, -0.5, 0, 0.5, 1, 2)}
        wide, narrow = (_fourth_order(values, k) / (h * size) for k in (1, 0.5))
        left_and_right = [(values[k] - 2 * values[0] + values[-k]) / (k * h * size) for k in (1, 0.5)]
        jump = 2 * left_and_right[1] - left_and_right[0]
        apart = max(abs(wide - narrow), abs(jump))
        if np.isfinite(apart) and (best is None or apart < best[0]):
            best = apart, narrow
    return best[1] if best is not None and best[0] <= AGREE * abs(best[1]) else None


def _fourth_order(values: dict[float, float], k: float) -> float:
    return (8 * (values[k] - values[-k]) - (values[2 * k] - values[-2 * k])) / (12 * k)


def _direction(reference: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """A random direction of length 1 and that of the reference."""
    draw = np.random.default_rng(seed)
    noise = [draw.standard_normal(side.shape) for side in reference]
    return [n / (_norm(noise) or 1) + r / (_norm(reference) or 1) for n, r in zip(noise, reference, strict=True)]


def _norm(sides: list[np.ndarray]) -> float:
    return float(np.sqrt(sum(float(np.sum(side**2)) for side in sides)))


def _placed(a: Any) -> Any:
    return jax.device_put(a) if isinstance(a, np.ndarray) else a
