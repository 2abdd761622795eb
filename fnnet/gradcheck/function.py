"""The audit of functions: a hand-written derivative of any JAX function against autodiff of the function without it."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from .function_mistakes import Program, of_function
from .points import Point, structures
from .report import Report, Row
from .rows import dtype_of, failed, function_rows, reported, settled
from .sides import Two, compiled_once, leaf_at, normals
from .verdicts import Subject, exactly, largest


@dataclass(frozen=True)
class Rule:
    """A hand-written derivative, and what it is held to.

    Attributes:
        name: of the function.
        equation: "backward", "jvp" or "gradient".
        arguments: what each is called.
        value: (*args) -> out.
        vjp: (*args) -> (out, pull) as of `jax.vjp`, by the rule; pull returns a tuple like args, None for zero.
        plain: (*args) -> out, what is differentiated in its place.
        about: how that is done, in words.
        has_forward: whether the rule computes ``out`` in a way of its own.
        intended: whether ``plain`` is another function, of which the rule is meant to be the derivative.
        audited: the places of the arguments that it is a derivative for; None for all.
    """

    name: str
    equation: str
    arguments: tuple[str, ...]
    value: Callable
    vjp: Callable
    plain: Callable
    about: str
    has_forward: bool = True
    intended: bool = False
    audited: tuple[int, ...] | None = None


def is_complex(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.complexfloating)


def is_inexact(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


def to_real(a: Any, sign: int = 1) -> Any:
    """A complex array as (real, imaginary) along a last axis."""
    return jnp.stack([jnp.real(a), sign * jnp.imag(a)], axis=-1) if is_complex(a) else a


def from_real(a: Any, like: Any, sign: int = 1) -> Any:
    return jax.lax.complex(a[..., 0], sign * a[..., 1]) if is_complex(like) else a


def real_leaves(tree: Any) -> list[Any]:
    """The arrays of floats, complex ones as pairs of reals."""
    return [to_real(leaf) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]


def of_reals(f: Callable, args: tuple) -> Callable:
    """f from the real arrays among its arguments to those among its results."""
    leaves, treedef = jax.tree.flatten(args)

    def real(floats: list[Any]) -> list[Any]:
        given = iter(floats)
        new = [from_real(next(given), leaf) if is_inexact(leaf) else leaf for leaf in leaves]
        return real_leaves(f(*treedef.unflatten(new)))

    return real


def names_of(rule: Rule, args: tuple) -> list[tuple[Any, str]]:
    """(path, name) of every array of floats among the arguments."""
    return [
        (path, rule.arguments[path[0].idx] + keystr(path[1:]))
        for path, leaf in tree_leaves_with_path(args)
        if is_inexact(leaf) and (rule.audited is None or path[0].idx in rule.audited)
    ]


def cotangent_of(out: Any, u: list[Any]) -> Any:
    """The cotangent of an output: ``u`` for its arrays of floats, nothing for others. JAX's of a complex number holds
    ∂C/∂Re − i ∂C/∂Im."""
    given = iter(u)

    def leaf(o: Any) -> Any:
        return from_real(next(given), o, -1) if is_inexact(o) else np.zeros(jnp.shape(o), jax.dtypes.float0)

    return jax.tree.map(leaf, out)


@compiled_once(fixed=1)
def by_hand(rule: Rule, args: tuple, u: list[Any]) -> dict[str, Any]:
    """Every cotangent by the rule, and the output as it computes it."""
    out, pull = rule.vjp(*args)
    manual = pull(cotangent_of(out, u))
    if isinstance(manual, list) and len(manual) == len(args):
        manual = tuple(manual)
    if not isinstance(manual, tuple) or len(manual) != len(args):
        got = f"a tuple of {len(manual)}" if isinstance(manual, tuple) else type(manual).__name__
        raise ValueError(f"check_vjp: expected a tuple of {len(args)} cotangents from backward, got {got}")
    found = {}
    for path, name in names_of(rule, args):
        zero = jnp.zeros_like(leaf_at(path, args))
        found[name] = zero if manual[path[0].idx] is None else leaf_at(path, manual)
    found = {name: leaf if leaf is None else to_real(leaf, -1) for name, leaf in found.items()}
    places = {rule.arguments[path[0].idx] + keystr(path[1:]): 0 for path, _ in tree_leaves_with_path(manual)}
    return {rule.equation: found, "places": places, "forward": numbered(real_leaves(out))}


@compiled_once(fixed=1)
def by_autodiff(rule: Rule, args: tuple, u: list[Any]) -> dict[str, Any]:
    """The same of the plain function."""
    out, pull = jax.vjp(of_reals(rule.plain, args), real_leaves(args))
    floats = [path for path, leaf in tree_leaves_with_path(args) if is_inexact(leaf)]
    right = dict(zip(floats, pull(u)[0], strict=True))
    return {rule.equation: {name: right[path] for path, name in names_of(rule, args)}, "forward": numbered(out)}


def numbered(out: list[Any]) -> dict[str, Any]:
    return {f"out[{i}]" if len(out) > 1 else "out": leaf for i, leaf in enumerate(out)}


def both_sides(rule: Rule, reference: Callable, args: tuple, u: list[Any]) -> dict[str, Any]:
    """What the rule gives beside what it should."""
    try:
        manual = by_hand(rule, args, u)
    except jax.errors.TracerArrayConversionError:  # written in NumPy
        manual = _as_arrays(inspect.unwrap(by_hand)(rule, *jax.tree.map(np.asarray, (args, u))), u)
    right = reference(rule, args, u)
    sides = {name: Two(manual[name], right[name]) for name in (rule.equation, "forward")}
    return {**right, **sides, "places": manual["places"]}


def _as_arrays(found: Any, u: list[Any]) -> Any:
    """NumPy computes in float64 what it likes."""
    dtype = jnp.result_type(u[0])
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, found
    )


def rows_at(rule: Rule, reference: Callable, args: tuple, scale: float = 1.0) -> list[Row] | None:
    """The rows at a point; None where the function itself is not finite there."""
    out = jax.eval_shape(of_reals(rule.plain, args), real_leaves(args))
    u = jax.tree.map(lambda n: jnp.asarray(scale, n.dtype) * n, normals(out, 0))
    if rule.equation == "gradient":
        u = [jnp.ones_like(n) for n in u]
    run = functools.partial(both_sides, rule, reference)
    subject = Subject(run, [(args, u)], dtype_of(real_leaves(args)), lambda args, *_: rule.value(*args))
    if not np.isfinite(largest(subject.best(0)["forward"].autodiff)):
        return None
    known = {rule.arguments[path[0].idx] + keystr(path[1:]) for path, _ in tree_leaves_with_path(args)}
    hint = "there is no such leaf to differentiate"
    rows = [
        Row(rule.name, rule.equation, name, "fail", float("inf"), hint=hint)
        for name in sorted(subject.values[0]["places"].keys() - known)
    ]
    about = functools.partial(of_function, subject, _batch(rule, args, out), None)
    if rule.has_forward and not rule.intended:
        rows += function_rows(rule.name, "forward", subject, about)
    about = functools.partial(of_function, subject, _batch(rule, args, out), functools.partial(program_of, rule))
    rows += function_rows(rule.name, rule.equation, subject, about)
    if rule.intended:
        rows = [dataclasses.replace(row, verdict="intended") if row.verdict == "pass" else row for row in rows]
    return rows


def program_of(rule: Rule, args: tuple, u: list[Any]) -> Program:
    """What the rule is held to, for those who look for a mistake."""
    plain = inspect.unwrap(rule.plain)
    names = [
        rule.arguments[path[0].idx] + keystr(path[1:]) for path, leaf in tree_leaves_with_path(args) if is_inexact(leaf)
    ]
    shape = jax.eval_shape(plain, *args)
    outs = [f"out{keystr(path)}" for path, leaf in tree_leaves_with_path(shape) if is_inexact(leaf)]
    return Program(of_reals(plain, args), real_leaves(args), u, names, outs)


def _batch(rule: Rule, args: tuple, out: list[Any]) -> int:
    """How many examples there seem to be."""
    if rule.equation != "gradient":
        return next((leaf.shape[0] for leaf in out if leaf.ndim), 1)
    shared = {leaf.shape[0] for leaf in real_leaves(args[1:]) if leaf.ndim}
    return max(1, *shared) if len(shared) == 1 else 1


def audit_rule(rule: Rule, reference: Callable, args: tuple, points: Iterable[Point]) -> Report:
    """The rule at the given point and at others."""
    rows = rows_at(rule, reference, args)
    if rows is None:
        raise ValueError(
            f"{rule.name}: expected a finite output at the given point, got NaN or infinity; audit it elsewhere"
        )
    rows = settled(rows, args, lambda moved: rows_at(rule, reference, moved) or [])
    for point in () if any(map(failed, rows)) else points:
        there = _in_float64(rows_at, rule, reference, point)
        wrong = [row for row in there or () if failed(row)]
        if wrong:
            rows = [_there(row, wrong, rule, reference, args, point) for row in rows]
            break
    if all(row.size == 0 for row in rows if row.equation == rule.equation) and any(map(failed, rows)):
        rows = [_flat(row) if row.size == 0 and failed(row) else row for row in rows]
    return reported(rows, dtype_of(real_leaves(args)), rule.about)


def _in_float64(rows_at: Callable, rule: Rule, reference: Callable, point: Point) -> list[Row] | None:
    found = exactly(lambda args: (rows_at(rule, reference, args, point.scale),), point.args)
    return rows_at(rule, reference, point.args, point.scale) if found is None else found[0]


def _there(row: Row, wrong: list[Row], rule: Rule, reference: Callable, args: tuple, point: Point) -> Row:
    """A row with what was found at another point, and where alone the rule holds."""
    for other in wrong:
        if (other.equation, other.leaf) == (row.equation, row.leaf):
            why = _right_only_where(other, rule, reference, args, point)
            place = f"right at the given point, wrong at {point.name}"
            return dataclasses.replace(other, hint="; ".join(part for part in (why or place, other.hint) if part))
    return row


def _right_only_where(row: Row, rule: Rule, reference: Callable, args: tuple, point: Point) -> str:
    """The structure of the given point that the rule rests on; "" where none is found."""
    if point.scale != 1:
        return f"not linear in the cotangent: right for a usual one, wrong for one {point.scale:.0f} times as large"
    given, there = (tree_leaves_with_path(tree) for tree in (args, point.args))
    if [np.shape(leaf) for _, leaf in given] != [np.shape(leaf) for _, leaf in there]:
        return ""
    for i, (path, leaf) in enumerate(given):
        for words, made in structures(leaf, there[i][1]):
            leaves = [made if i == j else other for j, (_, other) in enumerate(there)]
            restored = jax.tree.unflatten(jax.tree.structure(args), leaves)
            rows = _in_float64(rows_at, rule, reference, point._replace(args=restored))
            if rows is not None and not any(
                failed(r) and (r.equation, r.leaf) == (row.equation, row.leaf) for r in rows
            ):
                return f"right only where {rule.arguments[path[0].idx]}{keystr(path[1:])} {words} as at the given point"
    return ""


def _flat(row: Row) -> Row:
    """A function that is flat everywhere has a derivative that nothing can be compared with."""
    hint = "surrogate of a flat function: its own derivative is 0 everywhere; say what the rule is meant to be, intended=..."
    nan = float("nan")
    return dataclasses.replace(row, difference=nan, in_float64=nan, manual_error=nan, autodiff_error=nan, hint=hint)
