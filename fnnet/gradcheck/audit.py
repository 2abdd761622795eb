"""The one entry for hand-written derivatives of functions: what was given, and what it is held to."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.tree_util import keystr

from ..layers._layer import Layer
from .function import Rule, audit_rule, by_autodiff, is_complex, is_inexact
from .network import check_layer
from .points import Point, drawn
from .report import Report
from .rules import rules_in, without_rules
from .sides import is_float

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
PAIR = "a pair (forward, backward) as defvjp of jax.custom_vjp takes it, or (value, gradient) of a scalar function"


def audit(
    f: Any,
    *args: Any,
    reference: Callable | None = None,
    intended: Callable | None = None,
    points: Sequence[Any] | None = None,
    static_argnums: int | Sequence[int] = (),
    trust: Sequence[Callable] = (),
    **keywords: Any,
) -> Report:
    """Say whether a hand-written derivative is right, or which argument's is wrong, where, and what kind of mistake it looks
    like.

    Args:
        f: a function of ``jax.custom_vjp``, ``jax.custom_jvp`` or ``jax.custom_gradient``, or one with such rules inside; a
            pair (forward, backward) as ``defvjp`` takes it, or (value, gradient) of a scalar function of parameters.
        args: where to audit it: pytrees of arrays. Integers, booleans and keys are passed on and not differentiated.
        reference: (*args) -> out, the same function written plainly, to be differentiated in its place.
        intended: (*args) -> out, another function, which the rule is meant to be the derivative of: the identity for a
            straight-through estimator, −λx for a reversed gradient, a smooth stand-in for a surrogate.
        points: further arguments to audit it at, a tuple each; () for the given ones only. By default also a larger
            cotangent, a point near by and one far away are tried, where signs, sums to one, masks and order stay as given
            and symmetry does not.
        static_argnums: places of arguments that are no arrays; ``backward`` takes them first. Those of a decorated function
            are known.
        trust: functions whose rules are taken as they are where they occur inside.
        keywords: further arguments of f.

    Raises:
        ValueError: for what cannot be audited, with what to write instead.
    """
    if isinstance(f, Layer):
        return check_layer(f, *args, **keywords)
    return _audited("audit", f, args, keywords, static_argnums, Held(reference, intended, points, tuple(trust)))


def check_vjp(
    forward: Any,
    *args: Any,
    reference: Callable | None = None,
    intended: Callable | None = None,
    points: Sequence[Any] | None = None,
    nondiff_argnums: int | Sequence[int] = (),
) -> Report:
    """`audit` of a hand-written vector-Jacobian product: ``check_vjp(forward, backward, *args)``, or ``check_vjp(f, *args)``
    of a decorated function.

    Args:
        forward: (*args) -> (out, residuals).
        args: ``backward``: (residuals, cotangent of out) -> a tuple with one cotangent for each argument, None for zero; then
            where to check it: pytrees of arrays. Integers are passed on and not differentiated.
        reference: as of `audit`, as are ``intended`` and ``points``.
        nondiff_argnums: ``static_argnums`` of `audit`.

    Raises:
        ValueError: for a ``forward`` that returns no pair, a ``backward`` that returns no tuple of this length, or no
            argument with an array of floats.
    """
    held = Held(reference, intended, points)
    if not isinstance(forward, jax.custom_vjp | jax.custom_jvp):
        forward, args = Pair(forward, args[0], "backward"), args[1:]
    return _audited("check_vjp", forward, args, {}, nondiff_argnums, held)


def check_gradient(
    value: Callable,
    gradient: Callable,
    params: Any,
    *args: Any,
    reference: Callable | None = None,
    points: Sequence[Any] | None = None,
) -> Report:
    """Compare a hand-written gradient with ``jax.grad`` of a scalar function, leaf by leaf.

    Also for energy models: the two phases of contrastive divergence are the gradient of ``mean(F(params, v0)) −
    mean(F(params, vk))`` with respect to the parameters, for given samples.

    Args:
        value: (params, *args) -> a scalar.
        gradient: (params, *args) -> a pytree like params.
        params: where to check it: a pytree of arrays.
        args: further arguments of both.
        reference: as of `audit`, as are ``points``.

    Raises:
        ValueError: for a value that is no scalar, or parameters without an array of floats.
    """
    if not jax.tree.leaves(params) or not all(is_float(leaf) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            "check_gradient: expected parameters of floats, got none or others; nothing can be differentiated"
        )
    pair = Pair(value, gradient, "gradient")
    return _audited("check_gradient", pair, (params, *args), {}, (), Held(reference, None, points))


class Held(NamedTuple):
    """What a rule is held to."""

    reference: Callable | None
    intended: Callable | None
    points: Sequence[Any] | None
    trust: tuple[Callable, ...] = ()


class Pair(NamedTuple):
    """A function and its derivative, "backward" or "gradient" or, where it shows in what the first returns, ""."""

    first: Callable
    second: Callable
    kind: str = ""


def _audited(by: str, f: Any, args: tuple, keywords: dict[str, Any], static_argnums: Any, held: Held) -> Report:
    static = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if isinstance(f, tuple | list) and len(f) == 2 and all(map(callable, f)):
        f = Pair(*f)
    if not callable(f) and not isinstance(f, Pair):
        raise ValueError(f"{by}: expected a function with a hand-written derivative or {PAIR}, got {type(f).__name__}")
    if isinstance(f, jax.custom_vjp | jax.custom_jvp):
        static = (*static, *f.nondiff_argnums)
    first = f.first if isinstance(f, Pair) else f
    f, args, names = _bound(f, first, args, keywords)
    static = tuple(sorted({i % len(args) for i in static})) if args else ()
    given = tuple(None if i in static else _arrays(by, a, names[i], i) for i, a in enumerate(args))
    if not any(map(is_inexact, jax.tree.leaves(given))):
        raise ValueError(f"{by}: expected an argument of {_name(first)} with an array of floats, got none")
    statics = tuple(args[i] for i in static)

    def whole(dynamic: tuple) -> list[Any]:
        return [args[i] if i in static else a for i, a in enumerate(dynamic)]

    def of_dynamic(f: Callable) -> Callable:
        return lambda *dynamic: f(*whole(dynamic))

    rule = _rule(by, f, given, names, static, statics, of_dynamic, held)
    if held.points is None:
        points = drawn(given)
    else:
        points = [Point(f"points[{i}]", _like(by, p, given, static, i)) for i, p in enumerate(held.points)]
    return audit_rule(rule, _judge(rule, given), given, points)


def _rule(
    by: str, f: Any, given: tuple, names: tuple, static: tuple, statics: tuple, of_dynamic: Callable, held: Held
) -> Rule:
    first = f.first if isinstance(f, Pair) else f
    name = _name(f.second if isinstance(f, Pair) and f.kind == "gradient" else first)
    shape = _shape(by, first, of_dynamic(first), given)

    def expanded(cotangents: Any) -> Any:
        """With None in the places of static arguments."""
        if isinstance(cotangents, list):
            cotangents = tuple(cotangents)
        n = len(given) - len(static)
        if not isinstance(cotangents, tuple) or len(cotangents) != n:
            got = f"a tuple of {len(cotangents)}" if isinstance(cotangents, tuple) else type(cotangents).__name__
            raise ValueError(f"{by}: expected a tuple of {n} cotangents from backward, got {got}")
        rest = iter(cotangents)
        return tuple(None if i in static else next(rest) for i in range(len(given)))

    def by_two(forward: Callable, backward: Callable) -> Callable:
        def vjp(*dynamic: Any) -> tuple[Any, Callable]:
            out, residuals = of_dynamic(forward)(*dynamic)
            return out, lambda cotangent: expanded(backward(*statics, residuals, cotangent))

        return vjp

    equation, value, audited, has_forward = "backward", first, None, True
    if isinstance(f, jax.custom_vjp):
        if f.fwd is None or f.bwd is None:
            raise ValueError(f"{by}: {name} is a jax.custom_vjp without a rule; give it one with defvjp")
        value = f.fun
        plainly = not f.symbolic_zeros and not any(map(is_complex, jax.tree.leaves(given)))
        plainly = plainly and not getattr(f, "with_logs", False) and not getattr(f, "with_accums", False)
        vjp = by_two(f.fwd, f.bwd) if plainly else functools.partial(jax.vjp, of_dynamic(f))
    elif isinstance(f, Pair) and (f.kind == "backward" or (not f.kind and _is_pair(shape))):
        if not _is_pair(shape):
            got = f"{len(shape)} values" if isinstance(shape, tuple) else type(shape).__name__
            raise ValueError(f"{by}: expected {name}(*args) to return (out, residuals), got {got}")
        value, has_forward = lambda *args: f.first(*args)[0], False
        vjp = by_two(f.first, f.second)
        if any(map(is_complex, jax.tree.leaves(given))):
            decorated = jax.custom_vjp(of_dynamic(value))
            decorated.defvjp(of_dynamic(f.first), lambda *of: expanded(f.second(*statics, *of)))
            vjp = functools.partial(jax.vjp, decorated)
    elif isinstance(f, Pair):
        if getattr(shape, "shape", None) != () or not is_float(shape):
            both = "" if f.kind else f", or {name}(*args) to return (out, residuals)"
            raise ValueError(f"{by}: expected value(params, *args) to be a scalar{both}, got {shape}")
        equation, audited, has_forward = "gradient", (0,), False

        def vjp(*dynamic: Any) -> tuple[Any, Callable]:
            return of_dynamic(f.first)(*dynamic), lambda _: (of_dynamic(f.second)(*dynamic), *(None for _ in given[1:]))
    else:
        equation = "jvp" if isinstance(f, jax.custom_jvp) else "backward"
        value = f.fun if isinstance(f, jax.custom_jvp) else f
        vjp = functools.partial(jax.vjp, of_dynamic(f))
        if value is f and held.reference is None and held.intended is None and not _rules(of_dynamic(f), given, held):
            raise ValueError(
                f"{by}: {name} has no hand-written derivative inside, so that there is nothing to audit; give {PAIR}, or "
                "reference=, the same function written plainly"
            )
    plain = held.intended or held.reference or value
    inside = [rule for rule in _rules(of_dynamic(plain), given, held) if rule != name]
    about = f"autodiff of {'what is intended' if held.intended else 'the reference' if held.reference else name}"
    about += f", the bodies of {', '.join(inside)} in place of their rules" if inside else ""
    return Rule(
        name,
        equation,
        tuple("" for _ in names) if equation == "gradient" else names,
        of_dynamic(value),
        vjp,
        without_rules(of_dynamic(plain), held.trust),
        about,
        has_forward or held.reference is not None,
        held.intended is not None,
        audited,
    )


def _rules(f: Callable, given: tuple, held: Held) -> list[str]:
    return rules_in(f, *given, trust=held.trust)


def _is_pair(shape: Any) -> bool:
    return isinstance(shape, tuple) and len(shape) == 2


def _shape(by: str, f: Callable, dynamic: Callable, given: tuple) -> Any:
    """What f returns, in shapes."""
    try:
        return jax.eval_shape(dynamic, *given)
    except NEEDS_VALUES as error:
        raise ValueError(
            f"{by}: {_name(f)} uses the value of an argument in Python, which JAX does not know while it traces; name that "
            f"argument in static_argnums=, or write the choice with jnp.where or jax.lax.cond ({str(error).splitlines()[0]})"
        ) from error


def _judge(rule: Rule, given: tuple) -> Callable:
    return by_autodiff


def _name(f: Any) -> str:
    return (
        getattr(f, "__name__", None) or _name(f.func)
        if hasattr(f, "func")
        else getattr(f, "__name__", type(f).__name__)
    )


def _bound(f: Any, first: Callable, args: tuple, keywords: dict[str, Any]) -> tuple[Any, tuple, tuple[str, ...]]:
    """The function of positional arguments, these, and what each is called."""
    plain = first.fun if isinstance(first, jax.custom_vjp | jax.custom_jvp) else first
    try:
        binding = inspect.signature(plain).bind(*args, **keywords)
    except (ValueError, TypeError):
        binding = None
    if binding is not None and (keywords or isinstance(first, jax.custom_vjp | jax.custom_jvp)):
        binding.apply_defaults()
    if binding is not None and not binding.kwargs:
        return f, binding.args, tuple(f"args[{i}]" for i in range(len(binding.args)))
    n, words = len(args), tuple(keywords)
    names = (*(f"args[{i}]" for i in range(n)), *words)

    def positional(f: Callable) -> Callable:
        @functools.wraps(f)
        def called(*all_args: Any) -> Any:
            return f(*all_args[:n], **dict(zip(words, all_args[n:], strict=True)))

        return called

    if not keywords:
        return f, args, names
    if isinstance(f, Pair):
        f = Pair(positional(f.first), f.second if f.kind == "backward" else positional(f.second), f.kind)
    else:
        f = positional(f)
    return f, (*args, *keywords.values()), names


def _arrays(by: str, tree: Any, name: str, i: int) -> Any:
    """The arrays of an argument."""

    def leaf(path: Any, a: Any) -> Any:
        if isinstance(a, Tracer):
            raise ValueError(
                f"{by}: expected arrays, got a traced value; call it outside of jax.jit, jax.vmap and jax.grad"
            )
        try:
            return jnp.asarray(a)
        except TypeError as error:
            remedy = f"name it in static_argnums=({i},), so that backward takes it first"
            raise ValueError(f"{by}: {name}{keystr(path)} is {a!r}, which is no array; {remedy}") from error

    return jax.tree_util.tree_map_with_path(leaf, tree)


def _like(by: str, point: Any, given: tuple, static: tuple[int, ...], i: int) -> tuple:
    """A point's arguments."""
    args = tuple(point) if isinstance(point, tuple | list) else (point,)
    dynamic = len(given) - len(static)
    if len(args) not in (len(given), dynamic):
        raise ValueError(f"{by}: expected a tuple of {dynamic} arguments at points[{i}], got {len(args)}")
    rest = iter(args)
    kept = [None if j in static and len(args) == dynamic else next(rest) for j in range(len(given))]
    return tuple(None if j in static else _arrays(by, a, f"points[{i}][{j}]", j) for j, a in enumerate(kept))
