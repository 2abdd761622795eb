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

from .devices import Axes, typed_like
from .differences import NoJudge, along_directions, measured
from .function_mistakes import Program, of_function
from .measured import array_of, measured_rows, measured_vjp
from .points import Point, on_device, structures, why_there, widened
from .report import Report, Row
from .rows import APPROXIMATE, dtype_of, extra_rows, failed, function_rows, reported, settled, told
from .rules import without_rules
from .sides import Two, compiled_once, is_inexact, leaf_at, normals
from .verdicts import Subject, exactly, in_float64, largest

FAINT = 1e-4
OF_LOOP = (
    "as little may come from a while_loop that stops at a tolerance, before its limit: give the limit, of which the rule is "
    "the derivative, as intended=, the same function with a fixed number of steps"
)
OUTSIDE = 1e4  # how much larger than at the given point an output is where a solver diverges


@dataclass(frozen=True)
class Rule:
    """A hand-written derivative, and what it is held to.

    Attributes:
        name: of the function.
        equation: "backward", "jvp" or "gradient".
        arguments: what each is called.
        value: (*args) -> out.
        vjp: (*args) -> (out, pull) as of `jax.vjp`, by the rule; pull returns a tuple like args, None for zero.
        plain: (*args) -> out, what is differentiated in its place, without the rules inside it.
        about: how that is done, in words.
        has_forward: whether the rule computes ``out`` in a way of its own.
        intended: whether ``plain`` is another function, of which the rule is meant to be the derivative.
        audited: the places of the arguments that it is a derivative for; None for all.
        forward_mode: whether ``vjp`` is the function with its rule for `jax.jvp`, which cannot be transposed.
        trust: functions whose rules stay in ``plain``.
        measured: whether ``plain`` is held to differences, as JAX cannot differentiate it.
        size: of the tangents that a rule for forward mode is given.
        axes: of the mesh that the arguments came from.
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
    forward_mode: bool = False
    trust: tuple[Callable[..., Any], ...] = ()
    measured: bool = False
    size: float = 1.0
    axes: Axes = ()

    def called(self, path: Any) -> str:
        """What rows call the leaf at a path in the arguments."""
        return self.arguments[path[0].idx] + keystr(path[1:])


def is_complex(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.complexfloating)


def to_real(a: Any, sign: int = 1) -> Any:
    """A complex array as (real, imaginary) along a last axis."""
    return jnp.stack([jnp.real(a), sign * jnp.imag(a)], axis=-1) if is_complex(a) else a


def from_real(a: Any, like: Any, sign: int = 1) -> Any:
    return jax.lax.complex(a[..., 0], sign * a[..., 1]) if is_complex(like) else a


def real_leaves(tree: Any) -> list[Any]:
    """The arrays of floats, complex ones as pairs of reals."""
    return [to_real(leaf) for leaf in jax.tree.leaves(tree) if is_inexact(leaf)]


def of_reals(f: Callable, args: tuple[Any, ...]) -> Callable:
    """f from the real arrays among its arguments to those among its results."""
    leaves, treedef = jax.tree.flatten(args)

    def real(floats: list[Any]) -> list[Any]:
        given = iter(floats)
        new = [from_real(next(given), leaf) if is_inexact(leaf) else leaf for leaf in leaves]
        return real_leaves(f(*treedef.unflatten(new)))

    return real


def paths_of(tree: Any) -> list[Any]:
    """Where the arrays of `real_leaves` are."""
    return [path for path, leaf in tree_leaves_with_path(tree) if is_inexact(leaf)]


def names_of(rule: Rule, args: tuple[Any, ...]) -> list[tuple[Any, str]]:
    """(path, name) of every array of floats among the arguments that the rule has a derivative for."""
    audited = [path for path in paths_of(args) if rule.audited is None or path[0].idx in rule.audited]
    return [(path, rule.called(path)) for path in audited]


def cotangent_of(out: Any, u: list[Any]) -> Any:
    """The cotangent of an output: ``u`` for its arrays of floats, nothing for others. JAX's of a complex number holds
    ∂C/∂Re − i ∂C/∂Im."""
    given = iter(u)

    def leaf(o: Any) -> Any:
        return (
            typed_like(from_real(next(given), o, -1), o) if is_inexact(o) else np.zeros(jnp.shape(o), jax.dtypes.float0)
        )

    return jax.tree.map(leaf, out)


@compiled_once(fixed=1)
def by_hand(rule: Rule, args: tuple, u: list[Any]) -> dict[str, Any]:
    """Every cotangent by the rule, and the output as it computes it."""
    if rule.forward_mode:
        return {**_tangents(rule, rule.vjp, args), "places": {}}
    out, pull = rule.vjp(*args)
    manual = pull(cotangent_of(out, u))
    found = {}
    for path, name in names_of(rule, args):
        zero = jnp.zeros_like(leaf_at(path, args))
        found[name] = zero if manual[path[0].idx] is None else leaf_at(path, manual)
    found = {name: leaf if leaf is None else to_real(leaf, -1) for name, leaf in found.items()}
    places = {rule.called(path): 0 for path, _ in tree_leaves_with_path(manual)}
    return {rule.equation: found, "places": places, "forward": numbered(real_leaves(out))}


@compiled_once(fixed=1)
def by_autodiff(rule: Rule, args: tuple, u: list[Any]) -> dict[str, Any]:
    """The same of the plain function."""
    plain = without_rules(rule.plain, rule.trust)
    if rule.forward_mode:
        return _tangents(rule, plain, args)
    out, pull = jax.vjp(of_reals(plain, args), real_leaves(args))
    right = dict(zip(paths_of(args), pull(list(map(typed_like, u, out)))[0], strict=True))
    return {rule.equation: {name: right[path] for path, name in names_of(rule, args)}, "forward": numbered(out)}


@compiled_once(fixed=1)
def values(rule: Rule, args: tuple) -> list[Any]:
    """What the plain function gives."""
    return real_leaves(rule.plain(*args))


def _tangents(rule: Rule, f: Callable, args: tuple) -> dict[str, Any]:
    """The tangents of the output for a random tangent of each argument by itself."""
    floats, real = real_leaves(args), of_reals(f, args)
    found, out = {}, []
    for path, name in names_of(rule, args):
        tangents = zip(paths_of(args), normals(floats, 1, rule.size), strict=True)
        only = [n if p == path else jnp.zeros_like(n) for p, n in tangents]
        out, moved = jax.jvp(real, (floats,), (only,))
        found[name] = moved[0] if len(moved) == 1 else jnp.concatenate([jnp.ravel(leaf) for leaf in moved])
    return {rule.equation: found, "forward": numbered(out)}


def numbered(out: list[Any]) -> dict[str, Any]:
    return {f"out[{i}]" if len(out) > 1 else "out": leaf for i, leaf in enumerate(out)}


def manual_side(rule: Rule, args: tuple[Any, ...], u: list[Any]) -> dict[str, Any]:
    """`by_hand`, compiled where it is JAX."""
    try:
        return by_hand(rule, args, u)
    except jax.errors.TracerArrayConversionError:  # written in NumPy
        return _as_arrays(inspect.unwrap(by_hand)(rule, *jax.tree.map(np.asarray, (args, u))), u)


def both_sides(rule: Rule, args: tuple[Any, ...], u: list[Any]) -> dict[str, Any]:
    """What the rule gives beside what it should."""
    manual, right = manual_side(rule, args, u), by_autodiff(rule, args, u)
    return {**{name: Two(manual[name], right[name]) for name in (rule.equation, "forward")}, "places": manual["places"]}


def _as_arrays(found: Any, u: list[Any]) -> Any:
    """NumPy computes in float64 what it likes."""
    dtype = jnp.result_type(u[0])
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a, found
    )


def rows_at(rule: Rule, args: tuple[Any, ...], scale: float = 1.0, bound: float = np.inf) -> list[Row] | None:
    """The rows at a point; None where the function itself is not finite there, or larger than ``bound``."""
    out = jax.eval_shape(of_reals(rule.plain, args), real_leaves(args))
    u = normals(out, 0, scale)
    if rule.equation == "gradient":
        u = [on_device(np.ones(n.shape), n.dtype) for n in u]
    rule = dataclasses.replace(rule, size=scale) if rule.forward_mode else rule
    rows = (_measured_rows if rule.measured else _judged_rows)(rule, args, u, bound)
    if rows is not None and rule.intended:
        rows = [dataclasses.replace(row, verdict="intended") if row.verdict == "pass" else row for row in rows]
    return rows


def _judged_rows(rule: Rule, args: tuple, u: list[Any], bound: float) -> list[Row] | None:
    """By autodiff of the plain function."""
    dtype, wide = dtype_of(real_leaves(args)), (jax.tree.map(widened, args), in_float64(u))
    run = functools.partial(both_sides, rule)
    pairing = None if rule.forward_mode else functools.partial(_scalar, rule)
    about = {"widened": [wide], "pairing": pairing, "axes": rule.axes}
    subject = Subject(run, [(args, u)], dtype, lambda args, *_: rule.value(*args), **about)
    if not largest(subject.best(0)["forward"].autodiff) < bound:
        return None
    m = _batch(rule, args, u)
    complex_ones = frozenset(name for path, name in names_of(rule, args) if is_complex(leaf_at(path, args)))
    program = functools.partial(program_of, rule)
    about = functools.partial(of_function, subject, m, program=program, complex_ones=complex_ones)
    rows = _extra_rows(rule, args, subject.values[0]["places"])
    if rule.has_forward and not rule.intended:
        rows += function_rows(rule.name, "forward", subject, functools.partial(of_function, subject, m))
    return rows + function_rows(rule.name, rule.equation, subject, about)


def _scalar(rule: Rule, equation: str, args: tuple, u: list[Any]) -> tuple[Callable, dict[str, Any]]:
    """⟨u, plain⟩ as a function of the arrays that the rule has a derivative for, by name, and these."""
    names = dict(names_of(rule, args))
    floats = list(zip(paths_of(args), real_leaves(args), strict=True))

    def f(moved: dict[str, Any]) -> Any:
        given = [moved[names[path]] if path in names else leaf for path, leaf in floats]
        return sum(jnp.sum(a * b) for a, b in zip(u, of_reals(rule.plain, args)(given), strict=True))

    return jax.jit(f), {names[path]: leaf for path, leaf in floats if path in names}


def _measured_rows(rule: Rule, args: tuple, u: list[Any], bound: float) -> list[Row] | None:
    """By differences of the function itself."""
    names = [name for _, name in names_of(rule, args)]
    audited = tuple(a if rule.audited is None or i in rule.audited else None for i, a in enumerate(args))

    def whole(floats: tuple) -> tuple:
        """The arguments, with these real arrays in place of those audited."""
        given = iter(floats)
        leaves, treedef = jax.tree.flatten(audited)
        new = treedef.unflatten(from_real(next(given), leaf) if is_inexact(leaf) else leaf for leaf in leaves)
        return tuple(a if b is None else b for a, b in zip(args, new, strict=True))

    def manual(floats: tuple, u: list[Any]) -> dict[str, Any]:
        found = manual_side(rule, whole(floats), u)[rule.equation]
        return {f"args[{i}]": found[name] for i, name in enumerate(names)}

    def plain(*floats: Any) -> list[Any]:
        return real_leaves(rule.plain(*whole(floats)))

    dtype, floats = dtype_of(real_leaves(args)), tuple(real_leaves(audited))
    value = values(rule, args)
    if not largest(value) < bound:
        return None
    measure = measured if bound == np.inf else along_directions
    subject = measured_vjp(plain, floats, u, manual, dtype, measure)
    found = manual_side(rule, args, u)
    about = functools.partial(of_function, subject, _batch(rule, args, u))
    rows = _extra_rows(rule, args, found["places"])
    if rule.has_forward and not rule.intended:
        sides = {"forward": Two(found["forward"], numbered(value))}
        rows += function_rows(rule.name, "forward", Subject(lambda *_: sides, [((), ())], dtype, lambda *_: ()), about)
    for row in measured_rows(rule.name, subject, about):
        place, _, rest = row.leaf.removeprefix("args[").partition("]")
        row = dataclasses.replace(row, equation=rule.equation, leaf=names[int(place)] + rest)
        faint = failed(row) and not row.hint and row.difference < FAINT
        if faint and "while[" in str(jax.make_jaxpr(lambda *given, rule=rule: rule.plain(*given))(*args)):
            row = dataclasses.replace(row, hint=OF_LOOP)
        rows.append(row)
    return rows


def _extra_rows(rule: Rule, args: tuple, places: dict[str, Any]) -> list[Row]:
    known = {rule.called(path) for path, _ in tree_leaves_with_path(args)}
    return extra_rows(rule.name, rule.equation, sorted(places.keys() - known))


def program_of(rule: Rule, args: tuple[Any, ...], u: list[Any]) -> Program:
    """What the rule is held to, for those who look for a mistake."""
    names = list(map(rule.called, paths_of(args)))
    outs = [f"out{keystr(path)}" for path in paths_of(jax.eval_shape(rule.plain, *args))]
    return Program(of_reals(rule.plain, args), real_leaves(args), u, names, outs)


def _batch(rule: Rule, args: tuple, u: list[Any]) -> int:
    return batch_of(rule.equation, u, real_leaves(args[1:]))


def batch_of(equation: str, outputs: list[Any], others: list[Any]) -> int:
    """How many examples there seem to be: the outputs', or of a gradient those that all of its other arguments share."""
    if equation != "gradient":
        return next((a.shape[0] for a in outputs if a.ndim), 1)
    shared = {a.shape[0] for a in others if np.ndim(a)}
    return max(1, *shared) if len(shared) == 1 else 1


def audit_rule(
    rule: Rule, args: tuple[Any, ...], points: Iterable[Point], alone: Iterable[tuple[Rule, tuple[Any, ...]]] = ()
) -> Report:
    """The rule at the given point and at others; ``alone``: what it is for one argument only, where that may differ."""
    rows = rows_at(rule, args)
    if rows is None:
        raise ValueError(
            f"{rule.name}: expected a finite output at the given point, got NaN or infinity; audit it elsewhere"
        )
    rows = settled(rows, args, lambda moved: rows_at(rule, moved) or [])
    points, bound = list(points), OUTSIDE * max(largest(values(rule, args)), 1.0)
    for point in () if any(map(failed, rows)) else points:
        wrong = [row for row in _elsewhere(rule, point, bound) or () if failed(row)]
        if wrong:
            nearly = {array_of(row) for row in rows if row.verdict == APPROXIMATE}
            there = {array_of(row): _told(row, rule, args, point, array_of(row) in nearly) for row in wrong}
            rows = [*there.values(), *(row for row in rows if array_of(row) not in there)]
            break
    for of_one, given in () if any(map(failed, rows)) else alone:
        wrong = [row for row in rows_at(of_one, given) or () if failed(row)]
        hint = "right with every argument differentiated, wrong with this one alone"
        rows = [
            *(told(row, hint) for row in wrong),
            *(row for row in rows if array_of(row) not in map(array_of, wrong)),
        ]
    flat = any(map(failed, rows)) and _is_flat(rule, rows)
    if flat and all(_is_flat(rule, _elsewhere(rule, point, bound) or []) for point in points):
        rows = [of_flat(row) if row.size == 0 and failed(row) else row for row in rows]
    return reported(rows, dtype_of(real_leaves(args)), rule.about)


def _elsewhere(rule: Rule, point: Point, bound: float = np.inf) -> list[Row] | None:
    """The rows at a point, in float64 where that can be had; None where the function is out of its domain."""
    try:
        found = exactly(lambda args: (rows_at(rule, args, point.scale, bound),), jax.tree.map(widened, point.args))
        return rows_at(rule, point.args, point.scale, bound) if found is None else found[0]
    except NoJudge:
        return None


def _is_flat(rule: Rule, rows: list[Row]) -> bool:
    return all(row.size == 0 for row in rows if row.equation == rule.equation)


def _told(row: Row, rule: Rule, args: tuple, point: Point, nearly: bool) -> Row:
    """What is wrong at another point, with where alone the rule holds; ``nearly``: whether only to an approximation."""
    why = why_there(point.name, point.scale, nearly, "tangent" if rule.forward_mode else "cotangent")
    if not nearly and point.scale == 1:
        why = _right_only_where(row, rule, args, point) or why
    return told(row, why)


def _right_only_where(row: Row, rule: Rule, args: tuple, point: Point) -> str:
    """The structure of the given point that the rule rests on; "" where none is found."""
    given, there = (tree_leaves_with_path(tree) for tree in (args, point.args))
    if [np.shape(leaf) for _, leaf in given] != [np.shape(leaf) for _, leaf in there]:
        return ""
    for i, (path, leaf) in enumerate(given):
        for words, made in structures(leaf, there[i][1]):
            leaves = [made if i == j else other for j, (_, other) in enumerate(there)]
            restored = jax.tree.unflatten(jax.tree.structure(args), leaves)
            rows = _elsewhere(rule, point._replace(args=restored))
            if rows is not None and not any(failed(r) and array_of(r) == array_of(row) for r in rows):
                return f"right only where {rule.called(path)} {words} as at the given point"
    return ""


def of_flat(row: Row) -> Row:
    """A function that is flat everywhere has a derivative that nothing can be compared with."""
    hint = "surrogate of a flat function: its own derivative is 0 everywhere; say what the rule is meant to be, intended=..."
    nan = float("nan")
    return dataclasses.replace(row, difference=nan, in_float64=nan, manual_error=nan, autodiff_error=nan, hint=hint)
