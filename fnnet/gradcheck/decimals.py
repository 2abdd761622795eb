"""A longer reference: autodiff's program evaluated with 60 decimal digits or more, operation by operation.

Where autodiff itself cancels, saturates or overflows in float64, this says what the derivative is. A program may cancel with
60 digits too, so 80 have to agree, and to find no 0; else it gets as many as the smallest float64 needs. It is slow, so only
small programs are evaluated, and only the operations that a result depends on. An operation that is not known ends it.
"""

import decimal
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.tree_util import tree_leaves_with_path

from .longer import ELEMENTWISE, SLOW, context, larger, power, smaller

MOST = 400
DIGITS = (60, 80), (360, MOST)
AGREE = 1e-13
MOST_WORK, LARGEST = 20_000_000, 1_000_000


class Unknown(Exception):
    """An operation without a longer form, or too much work."""


def precisely(f: Callable, args: tuple[Any, ...], pick: Callable[[Any], Any]) -> list[np.ndarray] | None:
    """The leaves of ``pick(f(*args))`` with more digits, rounded to float64; None where that cannot be had."""
    with jax.enable_x64(True), np.errstate(all="ignore"):
        try:
            program, shape = jax.make_jaxpr(f, return_shape=True)(*args)
            paths = [path for path, _ in tree_leaves_with_path(shape)]
            numbered = jax.tree.unflatten(jax.tree.structure(shape), range(len(paths)))
            wanted = jax.tree.leaves(pick(numbered))
            for some, more in DIGITS:
                less, out = (_evaluated(program, args, wanted, digits) for digits in (some, more))
                if all(map(_agree, less, out)) and (all(map(np.all, out)) or more == MOST):
                    return out
        except Exception:  # an operation that is not known, or a reference that is no program of JAX
            pass
    return None


def _evaluated(program: Any, args: tuple[Any, ...], wanted: list[int], digits: int) -> list[np.ndarray]:
    with decimal.localcontext(context(digits)):
        given = [_longer(np.asarray(a)) if _is_float(a) else a for a in jax.tree.leaves(args)]
        out = _Evaluation(digits).run(program.jaxpr, program.consts, given, frozenset(wanted))
        return [_rounded(out[i]) for i in wanted]


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    return np.allclose(a, b, rtol=0, atol=AGREE * np.max(np.abs(b), initial=0), equal_nan=True)


def _is_float(a: Any) -> bool:
    return jnp.issubdtype(getattr(a, "dtype", type(a)), jnp.floating)


def _longer(a: Any) -> np.ndarray:
    a = np.asarray(a).astype(np.float64)
    return _array([Decimal(float(v)) for v in a.flat], a.shape)


def _array(values: list[Any], shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out.reshape(shape)


def _rounded(a: Any) -> np.ndarray:
    return np.asarray(np.vectorize(float, otypes=[float])(a) if np.size(a) else a, np.float64)


def _is_long(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype == object


class _Evaluation:
    """One run, with the work that it has done."""

    def __init__(self, digits: int) -> None:
        self.work = 0
        self.most = MOST_WORK * DIGITS[0][0] // digits

    def run(self, jaxpr: Any, consts: Any, args: Sequence[Any], wanted: frozenset[int]) -> list[Any]:
        """The results whose index is wanted, None for others."""
        needed = {v for i, v in enumerate(jaxpr.outvars) if i in wanted and not isinstance(v, Literal)}
        live = []
        for equation in reversed(jaxpr.eqns):
            if needed.intersection(equation.outvars):
                live.append((equation, frozenset(i for i, v in enumerate(equation.outvars) if v in needed)))
                needed.update(v for v in equation.invars if not isinstance(v, Literal))
        known: dict[Any, Any] = {}
        for v, value in zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True):
            known[v] = _longer(value) if _is_float(value) and not _is_long(value) else value

        def read(v: Any) -> Any:
            if isinstance(v, Literal):
                return _longer(v.val) if _is_float(v.aval) else v.val
            return known[v]

        for equation, of_it in reversed(live):
            out = self.apply(equation, [read(v) for v in equation.invars], of_it)
            for v, value in zip(equation.outvars, out, strict=True):
                known[v] = value
        return [read(v) if i in wanted else None for i, v in enumerate(jaxpr.outvars)]

    def count(self, n: int) -> None:
        self.work += n
        if self.work > self.most:
            raise Unknown("too much work")

    def apply(self, equation: Any, given: list[Any], wanted: frozenset[int]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        if (inner := params.get("jaxpr", params.get("call_jaxpr"))) is not None and name not in ("scan", "while"):
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given, wanted)
        if name == "cond":
            branch = params["branches"][int(np.clip(int(given[0]), 0, len(params["branches"]) - 1))]
            return self.run(branch.jaxpr, branch.consts, given[1:], wanted)
        if name == "scan":
            return self.scanned(equation, given)
        if name == "optimization_barrier":
            return given
        if not any(map(_is_long, given)):
            out = _bound(equation, given)
            return [_longer(o) if _is_float(o) else o for o in out]
        size = max((int(np.prod(v.aval.shape)) for v in equation.outvars), default=1)
        if size > LARGEST:
            raise Unknown("too large")
        self.count(30 * size if name in SLOW else size)
        if name == "dot_general":
            return [self.product(given[0], given[1], params["dimension_numbers"])]
        if name in ELEMENTWISE:
            return [_mapped(ELEMENTWISE[name], *given)]
        if name in MOVING:
            return _moved(equation, given)
        if name in OTHERS:
            return [OTHERS[name](params, *given)]
        if name in LINEAR:
            return [self.linear(equation, given)]
        if name == "convert_element_type":
            return [_converted(given[0], params["new_dtype"])]
        raise Unknown(name)

    def product(self, a: Any, b: Any, dimensions: Any) -> np.ndarray:
        (contract_a, contract_b), (batch_a, batch_b) = dimensions
        free_a = [i for i in range(a.ndim) if i not in (*contract_a, *batch_a)]
        free_b = [i for i in range(b.ndim) if i not in (*contract_b, *batch_b)]
        shape = [*(a.shape[i] for i in batch_a), *(a.shape[i] for i in free_a), *(b.shape[i] for i in free_b)]
        n, k = int(np.prod([a.shape[i] for i in batch_a])), int(np.prod([a.shape[i] for i in contract_a]))
        left = a.transpose([*batch_a, *free_a, *contract_a]).reshape(n, -1, k)
        right = b.transpose([*batch_b, *contract_b, *free_b]).reshape(n, k, -1)
        self.count(n * left.shape[1] * k * right.shape[2])
        return np.matmul(left, right).reshape(shape) if k else _longer(np.zeros(shape))

    def linear(self, equation: Any, given: list[Any]) -> Any:
        """Σ over the entries of the operands of what each alone gives: an operation that adds and moves."""
        total = _longer(np.zeros(equation.outvars[0].aval.shape))
        for i, operand in enumerate(given):
            if not _is_long(operand):
                continue
            self.count(operand.size * total.size)
            zeros = [jnp.zeros(a.shape) if _is_long(a) else a for a in given]

            def one(unit: Any, i: int = i, zeros: list[Any] = zeros) -> Any:
                return _bound(equation, [*zeros[:i], unit, *zeros[i + 1 :]])[0]

            units = np.eye(operand.size).reshape(operand.size, *operand.shape)
            maps = np.asarray(jax.vmap(one)(jnp.asarray(units))).reshape(operand.size, -1)
            for row, value in zip(maps, operand.flat, strict=True):
                for j in np.flatnonzero(row):
                    total.flat[j] += int(row[j]) * value
        return total

    def scanned(self, equation: Any, given: list[Any]) -> list[Any]:
        params, body = equation.params, equation.params["jaxpr"]

        def of_one_step(outside: Any, inside: Any) -> int:
            return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))

        n_carry = of_one_step(equation.outvars, body.jaxpr.outvars)
        n_consts = of_one_step(equation.invars, body.jaxpr.invars) - n_carry
        consts, carry, xs = given[:n_consts], given[n_consts : n_consts + n_carry], given[n_consts + n_carry :]
        steps = range(params["length"])
        rows: list[Any] = []
        for t in reversed(steps) if params["reverse"] else steps:
            out = self.run(
                body.jaxpr,
                body.consts,
                [*consts, *carry, *(np.asarray(x)[t] if not _is_long(x) else _sliced(x, t) for x in xs)],
                frozenset(range(len(body.jaxpr.outvars))),
            )
            carry, ys = out[:n_carry], out[n_carry:]
            rows.append(ys)
        rows = rows[::-1] if params["reverse"] else rows
        return [*carry, *(_stacked(column) for column in zip(*rows, strict=True))]


def _sliced(x: np.ndarray, t: int) -> np.ndarray:
    part = np.empty(x.shape[1:], object)
    part[...] = x[t]
    return part


def _stacked(values: Sequence[Any]) -> Any:
    return np.stack(values) if _is_long(values[0]) else jnp.stack(values)


def _bound(equation: Any, given: list[Any]) -> list[Any]:
    bound = equation.primitive.get_bind_params(equation.params)
    functions, bound = bound if isinstance(bound, tuple) else ((), bound)  # a pair in older versions of JAX
    out = equation.primitive.bind(*functions, *map(jnp.asarray, given), **bound)
    return list(out) if equation.primitive.multiple_results else [out]


def _mapped(f: Callable, *given: Any) -> Any:
    out = np.frompyfunc(f, len(given), 1)(*(np.asarray(a, object) if _is_long(a) else np.asarray(a) for a in given))
    if not isinstance(out, np.ndarray):
        out = _array([out], ()) if isinstance(out, Decimal) else np.asarray(out)
    first = out.flat[0] if out.size else None
    return out.astype(bool) if isinstance(first, bool | np.bool_) else out


def _moved(equation: Any, given: list[Any]) -> list[Any]:
    """An operation that only moves entries, by where each comes from."""
    places, start, values = [], 1, [np.full(1, Decimal(0), object)]
    for a in given:
        if _is_long(a):
            places.append(np.arange(start, start + a.size).reshape(a.shape))
            values.append(a.ravel())
            start += a.size
        else:
            places.append(a)
    out = []
    for index in _bound(equation, places):
        index, source = np.asarray(index), np.concatenate(values)
        out.append(_array([source[i] if 0 <= i < start else Decimal("NaN") for i in index.flat], index.shape))
    return out


def _converted(a: Any, dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return a if _is_long(a) else _longer(a)
    return jnp.asarray(np.vectorize(float, otypes=[float])(a)).astype(dtype)


MOVING = {
    "reshape",
    "transpose",
    "broadcast_in_dim",
    "squeeze",
    "expand_dims",
    "slice",
    "rev",
    "dynamic_slice",
    "dynamic_update_slice",
    "gather",
    "concatenate",
    "pad",
    "split",
}
LINEAR = {"scatter-add", "scatter_add", "reduce_window_sum", "cumsum"}


def _reduced(f: Callable) -> Callable:
    def reduce(params: dict[str, Any], a: np.ndarray) -> Any:
        for axis in sorted(params["axes"], reverse=True):
            a = np.frompyfunc(f, 2, 1).reduce(a, axis=axis)
        return a if isinstance(a, np.ndarray) else _array([a], ())

    return reduce


def _selected(params: dict[str, Any], which: Any, *cases: Any) -> Any:
    which = np.broadcast_to(np.asarray(which).astype(int), np.shape(cases[0]))
    return np.choose(which, [np.asarray(case, object) for case in cases]) if which.ndim else cases[int(which)]


def _sum(params: dict[str, Any], a: np.ndarray) -> Any:
    for axis in sorted(params["axes"], reverse=True):
        a = np.add.reduce(a, axis=axis) if a.shape[axis] else _longer(np.zeros(np.delete(a.shape, axis)))
    return a if isinstance(a, np.ndarray) else _array([a], ())


OTHERS: dict[str, Callable[..., Any]] = {
    "reduce_sum": _sum,
    "reduce_max": _reduced(larger),
    "reduce_min": _reduced(smaller),
    "reduce_prod": _reduced(lambda a, b: a * b),
    "argmax": lambda params, a: np.argmax(a, axis=params["axes"][0]).astype(params["index_dtype"]),
    "argmin": lambda params, a: np.argmin(a, axis=params["axes"][0]).astype(params["index_dtype"]),
    "integer_pow": lambda params, a: _mapped(lambda x: power(x, params["y"]), a),
    "select_n": _selected,
    "clamp": lambda params, low, a, high: _mapped(lambda low, x, high: larger(low, smaller(x, high)), low, a, high),
}
