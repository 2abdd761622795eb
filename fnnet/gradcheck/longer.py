"""The elementwise operations on decimal numbers: to as many digits as the context has, by the rules of NaN and infinity."""

import decimal
import functools
from collections.abc import Callable
from decimal import Decimal
from typing import Any


def context(digits: int) -> decimal.Context:
    Emax, Emin = decimal.MAX_EMAX // 4, decimal.MIN_EMIN // 4
    return decimal.Context(prec=digits, Emax=Emax, Emin=Emin, traps=[], rounding=decimal.ROUND_HALF_EVEN)


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


def _digits() -> int:
    return decimal.getcontext().prec


@functools.cache
def _pi(digits: int) -> Decimal:
    """By the mean of Gauss and Legendre, which doubles the digits in each step."""
    with decimal.localcontext(context(digits + 10)):
        a, b, t, p = Decimal(1), 1 / Decimal(2).sqrt(), Decimal("0.25"), 1
        for _ in range(digits.bit_length()):
            mean = (a + b) / 2
            b, t, a, p = (a * b).sqrt(), t - p * (a - mean) ** 2, mean, 2 * p
        return (a + b) ** 2 / (4 * t)


@_one
def _erf(x: Decimal) -> Decimal:
    if abs(x) > 5:
        return (1 - _erfc(abs(x))).copy_sign(x)
    total = term = x
    n = 0
    while term and abs(term) > Decimal(10) ** -(_digits() + 5):
        n += 1
        term = -term * x * x / n
        total += term / (2 * n + 1)
    return 2 * total / _pi(_digits()).sqrt()


@_one
def _erfc(x: Decimal) -> Decimal:
    if x <= 5:
        return 1 - _erf(x)
    fraction = x
    for k in range(5 * _digits(), 0, -1):
        fraction = x + Decimal(k) / 2 / fraction
    return (-x * x).exp() / _pi(_digits()).sqrt() / fraction


@_one
def _sin(x: Decimal) -> Decimal:
    x = x % (2 * _pi(_digits()))
    total = term = x
    n = 1
    while term and abs(term) > Decimal(10) ** -(_digits() + 5):
        term = -term * x * x / ((n + 1) * (n + 2))
        total += term
        n += 2
    return total


def power(x: Decimal, y: Any) -> Decimal:
    return Decimal(1) if y == 0 else x ** Decimal(int(y) if not isinstance(y, Decimal) else y)


def larger(a: Decimal, b: Decimal) -> Decimal:
    return a if a.is_nan() or (not b.is_nan() and a >= b) else b


def smaller(a: Decimal, b: Decimal) -> Decimal:
    return a if a.is_nan() or (not b.is_nan() and a <= b) else b


SLOW = {"exp", "log", "log1p", "expm1", "tanh", "logistic", "erf", "erfc", "sin", "cos", "pow", "exp2"}
ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "add_any": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": larger,
    "min": smaller,
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
    "cos": lambda a: _sin(a + _pi(_digits()) / 2),
    "pow": power,
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
