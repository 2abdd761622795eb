"""Hand-written derivatives inside a program, and the program without them.

JAX keeps a rule of ``custom_vjp``, ``custom_jvp`` or ``custom_gradient`` as one operation with a body, the plain function.
With each replaced by its body, also inside loops, branches, ``jit``, ``checkpoint`` and ``shard_map``, autodiff knows nothing
of the rules: it is then a judge of them.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import Literal

from .. import activations
from ..layers import _layer

RULES = ("custom_jvp_call", "custom_vjp_call")
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "eval_jaxpr")
OURS = (
    os.path.dirname(jax.__file__) + os.sep,
    os.path.dirname(_layer.__file__) + os.sep,
    activations.__file__,
)
OF_USERS = ("custom_derivatives.py", "solves.py")  # where JAX wraps functions of custom_gradient and custom_root


class Unseen(Exception):
    """A rule inside an operation that cannot be taken apart."""


def without_rules(f: Callable, trust: tuple[Callable[..., Any] | str, ...] = ()) -> Callable:
    """f with the body of every hand-written rule in its place, but of those of JAX, of this library and of ``trust``.

    Raises:
        Unseen: when it is traced, for a rule inside an operation that is no call, loop, branch or ``shard_map``.
    """

    @functools.wraps(f)
    def plain(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        out = _evaluated(closed.jaxpr, closed.consts, jax.tree.leaves(args), sources(trust))
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    return plain


def rules_in(f: Callable, *args: Any, trust: tuple[Callable[..., Any], ...] = ()) -> list[str]:
    """The names of the hand-written rules in f's program, but of those of JAX, of this library and of ``trust``."""
    return list(dict.fromkeys(map(name_of, rule_sources(f, *args, trust=trust))))


def rule_sources(f: Callable, *args: Any, trust: tuple[Callable[..., Any] | str, ...] = ()) -> list[str]:
    """The same, each with the place where it is written."""
    return sources_in(jax.make_jaxpr(f)(*args), trust)


def sources_in(program: Any, trust: tuple[Callable[..., Any] | str, ...] = ()) -> list[str]:
    return list(dict.fromkeys(_rules(program.jaxpr, sources(trust))))


def name_of(source: str) -> str:
    return source.partition(" at ")[0] or "a function"


def sources(functions: tuple[Callable[..., Any] | str, ...]) -> frozenset[str]:
    """Where functions are written, as JAX says it: "name at file:line"; such texts as they are."""
    found = {f for f in functions if isinstance(f, str)}
    for f in functions:
        f: Any = inspect.unwrap(f) if callable(f) else None
        if (code := getattr(f, "__code__", None)) is not None:
            found.add(f"{f.__name__} at {code.co_filename}:{code.co_firstlineno}")
    return frozenset(found)


def _evaluated(jaxpr: Any, consts: Any, args: Any, trusted: frozenset[str]) -> list[Any]:
    """The results of a jaxpr, rules replaced by their bodies."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, Literal) else known[v]

    def run(sub: Any) -> Callable:
        inner = getattr(sub, "jaxpr", sub)
        return lambda *args: _evaluated(inner, getattr(sub, "consts", ()), args, trusted)

    for equation in _needed(jaxpr):
        name, params, given = equation.primitive.name, equation.params, [read(v) for v in equation.invars]
        with equation.ctx.manager:
            if name in RULES and not _is_trusted(equation, trusted):
                out = run(params["call_jaxpr"])(*given)
            elif not any(True for sub in parts_of(equation) for _ in _rules(sub, trusted)):
                out = bound_to(equation, given)
            elif name in CALLS:
                out = run(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"])(*given)
            elif name == "cond":
                out = jax.lax.switch(given[0], [run(branch) for branch in params["branches"]], *given[1:])
            elif name == "scan":
                out = scanned(run(params["jaxpr"]), equation, given)
            elif name == "while":
                out = _looped(run(params["cond_jaxpr"]), run(params["body_jaxpr"]), params, given)
            elif name == "shard_map":
                out = _mapped(run(params["jaxpr"]), params, given)
            else:
                raise Unseen(f"a hand-written rule stands inside {name}, where it cannot be replaced by its function")
        known.update(zip(equation.outvars, out, strict=True))
    return [read(v) for v in jaxpr.outvars]


def bound_to(equation: Any, given: Sequence[Any]) -> list[Any]:
    """The results of one operation."""
    bound = equation.primitive.get_bind_params(equation.params)
    functions, params = bound if isinstance(bound, tuple) else ((), bound)  # a pair in older versions of JAX
    with equation.ctx.manager:
        out = equation.primitive.bind(*functions, *given, **params)
    return list(out) if equation.primitive.multiple_results else [out]


def _needed(jaxpr: Any) -> list[Any]:
    """The operations that the results depend on: residuals of a rule may come from a kernel that cannot be differentiated."""
    wanted, kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}, []
    for equation in reversed(jaxpr.eqns):
        if wanted.intersection(equation.outvars):
            kept.append(equation)
            wanted.update(v for v in equation.invars if not isinstance(v, Literal))
    return kept[::-1]


def scan_split(equation: Any) -> tuple[int, int]:
    """How many constants and how many carries a scan has: its operands are constants, carry and inputs, its results carry and
    outputs; inputs and outputs have an axis more than in its body."""
    inside = getattr(equation.params["jaxpr"], "jaxpr", equation.params["jaxpr"])

    def of_one_step(outside: Any, inside: Any) -> int:
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))

    n_carry = of_one_step(equation.outvars, inside.outvars)
    return of_one_step(equation.invars, inside.invars) - n_carry, n_carry


def scanned(body: Callable, equation: Any, given: list[Any]) -> list[Any]:
    """A scan with another body, a function of constants, carry and inputs."""
    n, n_carry = scan_split(equation)
    constants, carry, xs = given[:n], given[n : n + n_carry], given[n + n_carry :]

    def step(carry: Any, x: Any) -> tuple[list[Any], list[Any]]:
        out = body(*constants, *carry, *x)
        return out[:n_carry], out[n_carry:]

    names = ("length", "reverse", "unroll")
    carry, ys = jax.lax.scan(step, carry, xs, **{name: equation.params[name] for name in names})
    return [*carry, *ys]


def _looped(test: Callable, body: Callable, params: dict[str, Any], given: list[Any]) -> list[Any]:
    """``while``'s operands are constants of the test, constants of the body and the state."""
    i, j = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    return jax.lax.while_loop(
        lambda state: test(*given[:i], *state)[0], lambda state: body(*given[i:j], *state), given[j:]
    )


def _mapped(body: Callable, params: dict[str, Any], given: list[Any]) -> list[Any]:
    """A ``shard_map`` with another body."""
    names = next(params[name] for name in ("newly_manual_axes", "manual_axes") if name in params)
    about = {name: params[name] for name in ("mesh", "in_specs", "out_specs", "check_vma")}
    return list(jax.shard_map(lambda *args: tuple(body(*args)), axis_names=set(names), **about)(*given))


def _rules(jaxpr: Any, trusted: frozenset[str]) -> Iterator[str]:
    """The names of the rules in a jaxpr that are not trusted. What is inside a trusted one is trusted."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in RULES:
            if _is_trusted(equation, trusted):
                continue
            yield _source(equation.params["call_jaxpr"])
        for sub in parts_of(equation):
            yield from _rules(sub, trusted)


def parts_of(equation: Any) -> Iterator[Any]:
    """The jaxprs inside an operation."""
    for value in equation.params.values():
        for sub in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(sub, "jaxpr", sub)
            if hasattr(inner, "eqns"):
                yield inner


def _source(part: Any) -> str:
    return getattr(getattr(getattr(part, "jaxpr", part), "debug_info", None), "func_src_info", "") or ""


def _is_trusted(equation: Any, trusted: frozenset[str]) -> bool:
    """Where the function and its rule both are JAX's or this library's."""
    params = equation.params
    rule = next((params[name] for name in ("bwd", "jvp_jaxpr_fun") if name in params), None)
    function, rule = _source(params["call_jaxpr"]), _source(rule)
    return function in trusted or (_is_ours(function, but=OF_USERS) and _is_ours(rule))


def _is_ours(source: str, but: tuple[str, ...] = ()) -> bool:
    path = source.partition(" at ")[2].rpartition(":")[0]
    return path.startswith(OURS) and os.path.basename(path) not in but
