"""A longer reference: autodiff's program evaluated with 60 decimal digits, operation by operation.

Where autodiff itself cancels, saturates or overflows in float64, this says what the derivative is. It is slow, so only small
programs are evaluated, and only the operations that a result depends on. An operation that is not known ends it.
"""

import decimal
import functools
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.tree_util import tree_leaves_with_path

DIGITS, MOST_WORK, LARGEST = 60, 20_000_000, 1_000_000
CONTEXT = decimal.Context(
    prec=DIGITS, Emax=decimal.MAX_EMAX // 4, Emin=decimal.MIN_EMIN // 4, traps=[], rounding=decimal.ROUND_HALF_EVEN
)
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803")


class Unknown(Exception):
    """An operation without a longer form, or too much work."""


def precisely(f: Callable, args: tuple[Any, ...], pick: Callable[[Any], Any]) -> list[np.ndarray] | None:
    """The leaves of ``pick(f(*args))`` with 60 digits, rounded to float64; None where that cannot be had."""
    with jax.enable_x64(True), decimal.localcontext(CONTEXT), np.errstate(all="ignore"):
        try:
            program, shape = jax.make_jaxpr(f, return_shape=True)(*args)
            paths = [path for path, _ in tree_leaves_with_path(shape)]
            numbered = jax.tree.unflatten(jax.tree.structure(shape), range(len(paths)))
            wanted = jax.tree.leaves(pick(numbered))
            given = [_longer(np.asarray(a)) if _is_float(a) else a for a in jax.tree.leaves(args)]
            out = _Evaluation().run(program.jaxpr, program.consts, given, frozenset(wanted))
            return [_rounded(out[i]) for i in wanted]
        except Exception:  # an operation that is not known, or a reference that is no program of JAX
            return None


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

    def __init__(self) -> None:
        self.work = 0

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
        if self.work > MOST_WORK:
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


def _one(f: Callable[[Decimal], Decimal]) -> Callable[[Decimal], Decimal]:
    """f of finite numbers, by the rules of NaN and infinity that its definition gives."""

    @functools.wraps(f)
    def safe(x: Decimal) -> Decimal:
        return x if x.is_nan() else f(x)

    return safe


@_one
def _log(x: Decimal) -> Decimal:
    return x.ln() if x > 0 else Decimal("-Infinity") if x == 0 else Decimal("NaN")


@_one
def _tanh(x: Decimal) -> Decimal:
    if abs(x) > 10_000:
        return Decimal(1).copy_sign(x)
    e = (2 * x).exp()
    return (e - 1) / (e + 1)


@_one
def _logistic(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp())


@_one
def _erf(x: Decimal) -> Decimal:
    if abs(x) > 5:
        return (1 - _erfc(abs(x))).copy_sign(x)
    total = term = x
    n = 0
    while term and abs(term) > Decimal(10) ** -(DIGITS + 5):
        n += 1
        term = -term * x * x / n
        total += term / (2 * n + 1)
    return 2 * total / PI.sqrt()


@_one
def _erfc(x: Decimal) -> Decimal:
    if x <= 5:
        return 1 - _erf(x)
    fraction = x
    for k in range(400, 0, -1):
        fraction = x + Decimal(k) / 2 / fraction
    return (-x * x).exp() / PI.sqrt() / fraction


@_one
def _sin(x: Decimal) -> Decimal:
    x = x % (2 * PI)
    total = term = x
    n = 1
    while term and abs(term) > Decimal(10) ** -(DIGITS + 5):
        term = -term * x * x / ((n + 1) * (n + 2))
        total += term
        n += 2
    return total


def _power(x: Decimal, y: Any) -> Decimal:
    return Decimal(1) if y == 0 else x ** Decimal(int(y) if not isinstance(y, Decimal) else y)


def _larger(a: Decimal, b: Decimal) -> Decimal:
    return a if a.is_nan() or (not b.is_nan() and a >= b) else b


def _smaller(a: Decimal, b: Decimal) -> Decimal:
    return a if a.is_nan() or (not b.is_nan() and a <= b) else b


SLOW = {"exp", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "sin", "cos", "pow", "exp2"}
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "add_any": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": _larger,
    "min": _smaller,
    "neg": lambda a: -a,
    "abs": abs,
    "sign": lambda a: a if a.is_nan() or a == 0 else Decimal(1).copy_sign(a),
    "square": lambda a: a * a,
    "one_minus_square": lambda a: 1 - a * a,
    "sqrt": lambda a: a.sqrt(),
    "rsqrt": lambda a: 1 / a.sqrt(),
    "exp": _one(lambda a: a.exp()),
    "exp2": _one(lambda a: (a * Decimal(2).ln()).exp()),
    "log": _log,
    "log1p": lambda a: _log(1 + a),
    "expm1": _one(lambda a: a.exp() - 1),
    "tanh": _tanh,
    "logistic": _logistic,
    "erf": _erf,
    "erfc": _erfc,
    "sin": _sin,
    "cos": lambda a: _sin(a + PI / 2),
    "pow": _power,
    "floor": _one(lambda a: a.to_integral_value(decimal.ROUND_FLOOR)),
    "ceil": _one(lambda a: a.to_integral_value(decimal.ROUND_CEILING)),
    "round": _one(lambda a: a.to_integral_value(decimal.ROUND_HALF_EVEN)),
    "is_finite": lambda a: a.is_finite(),
    "eq": lambda a, b: bool(a == b),
    "ne": lambda a, b: bool(a != b),
    "lt": lambda a, b: bool(a < b),
    "le": lambda a, b: bool(a <= b),
    "gt": lambda a, b: bool(a > b),
    "ge": lambda a, b: bool(a >= b),
    "copy": lambda a: a,
    "copy_p": lambda a: a,
    "reduce_precision": lambda a: a,
    "stop_gradient": lambda a: a,
}
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
    "reduce_max": _reduced(_larger),
    "reduce_min": _reduced(_smaller),
    "reduce_prod": _reduced(lambda a, b: a * b),
    "argmax": lambda params, a: np.argmax(a, axis=params["axes"][0]).astype(params["index_dtype"]),
    "argmin": lambda params, a: np.argmin(a, axis=params["axes"][0]).astype(params["index_dtype"]),
    "integer_pow": lambda params, a: _mapped(lambda x: _power(x, params["y"]), a),
    "select_n": _selected,
    "clamp": lambda params, low, a, high: _mapped(lambda low, x, high: _larger(low, _smaller(x, high)), low, a, high),
}
