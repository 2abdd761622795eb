"""How the rows of an audit are made: the verdict on each leaf of an equation, and what explains a failure."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from .central import entries, opinion, supports_manual
from .mistakes import Failure, explain
from .points import drawing, moved
from .report import BY_AUTODIFF, Report, Row
from .sides import is_float, leaf_at
from .verdicts import (
    NAN,
    TOLERANCE,
    Compared,
    Differences,
    Leaf,
    Subject,
    between,
    bound_of,
    differences,
    distance,
    exactly,
    in_float64,
    judge,
    largest,
    rounding,
    wide,
)

SUBGRADIENTS, BETTER, APPROXIMATE = "both valid subgradients", "better than autodiff", "approximate"
NEARLY, ROUGHLY = 1e-8, 1e-7
"""How far off in float64 is approximate, and how far off is what follows from it."""
MODERATE = 0.01, 0.5
FAINT = "off by less than 1e-7 of the largest entry"
NOT_EVEN_AUTODIFF = (
    "autodiff itself differs from finite differences: a stop_gradient, or a hand-written rule inside forward"
)


def check_concrete(name: str, *trees: Any) -> None:
    """Raise a ValueError for traced values and for complex ones."""
    for path, leaf in tree_leaves_with_path(trees):
        if isinstance(leaf, Tracer):
            raise ValueError(
                f"{name}: expected arrays, got a traced value; call it outside of jax.jit, jax.vmap and jax.grad"
            )
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(f"{name}: expected real arrays, got {jnp.result_type(leaf)} at {keystr(path[1:])}")


def dtype_of(*trees: Any) -> str:
    """The narrowest float of the first tree that has one."""
    for tree in trees:
        names = {str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree) if is_float(leaf)}
        if unknown := sorted(names - TOLERANCE.keys()):
            raise ValueError(
                f"expected floats of {', '.join(TOLERANCE)} to audit, got {unknown[0]}; cast the parameters"
            )
        if names:
            return max(names, key=TOLERANCE.__getitem__)
    return str(jnp.result_type(float))


def reported(rows: list[Row], dtype: str, judge: str = BY_AUTODIFF, notes: Sequence[str] = ()) -> Report:
    """The rows in order. Consequences without a cause are those of the composition."""
    order = {"fail": 0, "consequence": 1}
    rows = sorted(rows, key=lambda row: order.get(row.verdict, 2))
    if rows and rows[0].verdict == "consequence":
        hint = "each equation is right by itself: the way they are put together is not"
        rows[0] = dataclasses.replace(rows[0], verdict="fail", hint=hint)
    return Report(tuple(rows), dtype, judge, tuple(notes))


def settled(rows: list[Row], given: Any, audited: Callable[[Any], list[Row]]) -> list[Row]:
    """Consequences of nothing but a choice of subgradients, or of an autodiff that is not exact, are such a choice too, if
    there are none beside the kink, or where numbers are moderate; of an approximate equation, if they are as small."""
    draw = functools.partial(beside, drawing(0))
    for cause, point in ((SUBGRADIENTS, draw), (BETTER, easy)):
        verdicts = {row.verdict for row in rows}
        if not {"consequence", cause} <= verdicts or "fail" in verdicts:
            continue
        there = exactly(audited, point(given))
        if there is not None and not any(row.verdict in ("consequence", "fail") for row in there):
            rows = [dataclasses.replace(row, verdict=cause) if row.verdict == "consequence" else row for row in rows]
    if APPROXIMATE in {row.verdict for row in rows}:
        rows = [
            dataclasses.replace(row, verdict=APPROXIMATE) if (row.verdict, row.hint) == ("consequence", FAINT) else row
            for row in rows
        ]
    return rows


def faint(found: Differences, dtype: str) -> str:
    """`FAINT` for a difference that an approximate equation may have made."""
    apart = found.difference if np.isnan(found.in_float64) else found.in_float64
    return FAINT if apart <= ROUGHLY and found.difference <= 4 * max(ROUGHLY, bound_of(dtype)) else ""


def easy(tree: Any) -> Any:
    """In float64, the floats drawn anew in moderate sizes: nothing saturates there, and nothing is too small to matter."""
    draw = drawing(0)

    def leaf(a: Any) -> Any:
        if not is_float(a) or not np.size(a):
            return a
        new = wide(moved(a, draw, None))
        size = float(np.mean(np.abs(new))) or 1.0
        return new * (min(max(size, MODERATE[0]), MODERATE[1]) / size)

    return jax.tree.map(leaf, tree)


def failed(row: Row) -> bool:
    return row.verdict == "fail"


def told(row: Row, why: str) -> Row:
    """The row with a reason before its hint."""
    return dataclasses.replace(row, hint="; ".join(part for part in (why, row.hint) if part))


def beside(draw: np.random.Generator, tree: Any) -> Any:
    """In float64, each float moved by about a thousandth, off every kink and tie."""

    def leaf(a: Any) -> Any:
        return a + 1e-3 * (np.mean(np.abs(a)) or 1) * draw.standard_normal(np.shape(a)) if is_float(a) and a.size else a

    return jax.tree.map(leaf, in_float64(tree))


def with_forward_mode(audited: Callable[[bool], Subject]) -> Subject:
    """With the product ⟨u, Jv⟩, or without it where there is no forward mode: a rule of ``jax.custom_vjp`` inside."""
    try:
        return audited(True)
    except (TypeError, ValueError):
        return audited(False)


def function_rows(name: str, equation: str, subject: Subject, about: Callable[..., Failure]) -> list[Row]:
    """A row for each leaf of a single equation."""
    rows = []
    for path, right in tree_leaves_with_path(subject.values[0][equation].autodiff):
        leaf = getattr(path[0], "key", keystr(path))
        row = judged(name, subject, equation, leaf, path=path, about=about)
        ours = leaf_at(path, subject.values[0][equation].manual)
        if ours is not None and jnp.result_type(ours) != right.dtype:
            row = dataclasses.replace(row, verdict="fail", hint=f"{jnp.result_type(ours)} instead of {right.dtype}")
        rows.append(row)
    return rows


def extra_rows(name: str, equation: str, leaves: Sequence[str]) -> list[Row]:
    """Derivatives with respect to what is no argument."""
    hint = "there is no such leaf to differentiate"
    return [Row(name, equation, leaf, "fail", float("inf"), hint=hint) for leaf in leaves]


def product_rows(subject: Subject, name: str) -> list[Row]:
    """⟨u, J v⟩ = ⟨Jᵀu, v⟩: forward mode against the composed hand-written backward pass, by one number each."""
    if "product" not in subject:
        return []
    (compared,) = subject.compared("product")
    found = differences(Compared(*(side if side is None else np.array([side, 1.0]) for side in compared)))
    sharp, dtype = (found.difference, subject.dtype) if np.isnan(found.in_float64) else (found.in_float64, "float64")
    if sharp > TOLERANCE[dtype] and sharp > TOLERANCE[subject.inner]:
        verdict = "consequence"
    else:
        verdict = "pass" if found.difference <= bound_of(subject.dtype) else "precision"
        verdict = verdict if np.any(np.asarray(compared.autodiff)) else "vacuous"
    hint = faint(found, subject.dtype) if verdict == "consequence" else ""
    return [Row(name, "backward", "⟨u, Jv⟩", verdict, *fields(found), hint=hint)]


def judged(
    layer: str,
    subject: Subject,
    equation: str,
    leaf: str = "",
    *,
    source: str = "",
    path: Any = None,
    chained: Leaf | None = None,
    scales: Sequence[float] = (0.0, 0.0),
    about: Callable[..., Failure] | None = None,
    finite: bool = False,
) -> Row:
    """The verdict on one leaf of an equation; ``scales`` are the layer's largest gradients, for "zero to rounding"; with
    ``finite`` central differences have a say."""
    source = source or equation
    leaves = subject.leaves(source, path)
    compared = [leaf.compared() for leaf in leaves]
    alone = [differences(one) for one in compared]
    whole = None if chained is None else differences(chained.compared())
    verdicts = [judge(found, subject, scales[0], subject.tolerance(source, path)) for found in alone]
    for i, leaf_of_case in enumerate(leaves):
        if verdicts[i] == "fail" and leaf_of_case.is_rounding():
            verdicts[i] = _of_rounding(alone[i])
    case = verdicts.index("fail") if "fail" in verdicts else int(np.argmax([found.difference for found in alone]))
    found, verdict = alone[case], verdicts[case]
    row = Row(layer, equation, leaf, verdict, *fields(found, NAN if whole is None else whole.difference))
    third = opinion(subject, source, path, case) if finite else None
    if third is not None:
        row = dataclasses.replace(row, finite_difference=third.manual)
        if verdict != "fail" and third.contradicts(third.manual):
            return dataclasses.replace(row, verdict="fail", hint=NOT_EVEN_AUTODIFF)
        if verdict == "fail" and supports_manual(subject, source, path, case):
            return dataclasses.replace(row, verdict=BETTER, hint="central differences agree with manual")
    if verdict == "fail":
        better = _better(row, subject, source, path, case, compared[case], scales[0])
        return better or _explained(row, subject, source, path, case, compared[case], found, about)
    if chained is not None and whole is not None and judge(whole, chained.subject, scales[1]) == "fail":
        if chained.is_rounding():
            return dataclasses.replace(row, verdict=_of_rounding(whole))
        return dataclasses.replace(row, verdict="consequence", hint=faint(whole, subject.dtype))
    if verdict == "precision" and found.manual_error <= bound_of(subject.dtype) < found.autodiff_error:
        return dataclasses.replace(row, verdict=BETTER, hint="nearer to float64 than autodiff is")
    if found.size == 0:
        return dataclasses.replace(row, verdict="vacuous")
    tiny = verdict == "pass" and found.size < rounding(subject.dtype) * scales[0]
    return dataclasses.replace(row, verdict="zero to rounding") if tiny else row


def _of_rounding(found: Differences) -> str:
    """The verdict on sides that are apart by rounding alone: there may be nothing else to compare."""
    return "precision" if found.difference <= 0.01 else "zero to rounding"


def _better(
    row: Row, subject: Subject, source: str, path: Any, case: int, compared: Compared, scale: float
) -> Row | None:
    """The row where autodiff is off and manual is not, as more digits tell, or differences where autodiff is not finite."""
    manual, reference = compared[:2] if compared.autodiff64 is None else compared[2:]
    if np.shape(manual) != np.shape(reference) or not np.size(reference) or not np.isfinite(wide(manual)).all():
        return None
    truth = subject.truth(case, source, path)
    if truth is not None and np.isfinite(truth).all():
        exact = Compared(compared.manual, truth) if compared.autodiff64 is None else compared._replace(autodiff64=truth)
        found, ours, theirs = (
            differences(exact),
            *(distance(side, truth, largest(truth)) for side in (manual, reference)),
        )
        near = judge(found, subject, scale, subject.tolerance(source, path)) != "fail" or ours <= NEARLY
        if (
            near
            and ours < theirs
            and (found.manual_error <= 4 * bound_of(subject.dtype) or np.isnan(found.manual_error))
        ):
            hint = f"with more digits manual is off by {ours:.1g}, autodiff by {theirs:.1g}"
            return dataclasses.replace(row, verdict=BETTER, hint=hint)
    if not distance(compared.manual, manual, largest(manual)) <= 4 * bound_of(subject.dtype):
        return None
    verdict = entries(subject, source, path, case, wide(manual), wide(reference))
    if verdict is None:
        return None
    if verdict == SUBGRADIENTS:
        return dataclasses.replace(row, verdict=verdict, hint="at kinks or ties, where either value is a derivative")
    return dataclasses.replace(
        row, verdict=verdict, hint="central differences agree with manual, autodiff is not finite"
    )


def _explained(
    row: Row,
    subject: Subject,
    source: str,
    path: Any,
    case: int,
    compared: Compared,
    found: Differences,
    about: Callable[..., Failure] | None,
) -> Row:
    """A failed row with the place and, as far as it can be told, the kind of mistake."""
    bound = subject.tolerance(source, path)
    exact = compared.autodiff64 is not None and found.in_float64 > bound
    manual, reference = compared[2:] if exact else compared[:2]
    if jax.tree.structure(manual) != jax.tree.structure(reference):
        return dataclasses.replace(
            row, hint=f"{'nothing' if manual is None else 'another structure'} where an array belongs"
        )
    manual, reference = wide(manual), wide(reference)
    tolerance = max(bound, TOLERANCE["float64" if exact else subject.dtype])
    if manual.shape == reference.shape and manual.size:
        with np.errstate(invalid="ignore"):
            gap = np.nan_to_num(np.abs(manual - reference), nan=np.inf)
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(gap)), gap.shape))
        count = int(np.sum(gap > tolerance * np.max(np.abs(reference))))
        row = dataclasses.replace(row, count=count, index=index, values=(float(manual[index]), float(reference[index])))
    if found.in_float64 <= bound:
        return dataclasses.replace(
            row, hint=f"right in float64, but in {subject.dtype} it overflows or loses precision"
        )
    if between(manual, reference, tolerance, subject.nearby(case, source, path)):
        return dataclasses.replace(
            row, verdict=SUBGRADIENTS, hint="at kinks or ties, where either value is a derivative"
        )
    apart = found.in_float64 if exact else found.difference
    nearly = tolerance < apart <= NEARLY
    failure = Failure(manual, reference, apart / 100 if nearly else max(100 * tolerance, 1e-8), devices=subject.devices)
    text, example = explain(failure if about is None else about(failure, source, path, case))
    if nearly and not text and (np.isnan(found.manual_error) or found.manual_error <= 4 * bound_of(subject.dtype)):
        return dataclasses.replace(row, verdict=APPROXIMATE, hint=f"approximate, to {apart:.0e} of the largest entry")
    return dataclasses.replace(row, hint=text, example=example)


def fields(found: Differences, chained: float = NAN) -> tuple[float, float, float, float, float, float]:
    """The numbers of a `Row`, in order."""
    return found.difference, chained, found.in_float64, found.manual_error, found.autodiff_error, found.size
