"""The forms in which a hand-written derivative of a JAX function comes, each made one of `jax.vjp`'s form."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import keystr

from .devices import lying_like
from .foreign.state import State
from .function import is_complex
from .sides import is_float

NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)
PAIR = "a pair (forward, backward) as defvjp of jax.custom_vjp takes it, or (value, gradient) of a scalar function"


class Pair(NamedTuple):
    """A function and its derivative, "backward" or "gradient" or, where it shows in what the first returns, ""."""

    first: Callable
    second: Callable
    kind: str = ""


class Arguments(NamedTuple):
    """All arguments of a function; those that are no arrays, at ``static``, are None in ``dynamic``, where the others lie on
    one device."""

    args: tuple[Any, ...]
    dynamic: tuple[Any, ...]
    static: tuple[int, ...]

    def of(self, f: Callable) -> Callable:
        """f of the dynamic arguments, which it gets where they lay."""

        def called(*dynamic: Any) -> Any:
            given = zip(self.args, dynamic, strict=True)
            return f(*(a if i in self.static else lying_like(b, a) for i, (a, b) in enumerate(given)))

        return called

    def by_two(self, by: str, forward: Callable, backward: Callable) -> Callable:
        """`jax.vjp` of the dynamic arguments by the two functions that ``defvjp`` takes."""

        def vjp(*dynamic: Any) -> tuple[Any, Callable]:
            out, residuals = self.of(forward)(*dynamic)
            return out, lambda cotangent: self.pulled(by, backward)(residuals, cotangent)

        return vjp

    def pulled(self, by: str, backward: Callable) -> Callable:
        """(residuals, cotangent) -> a cotangent for each argument, None in the places of those that are static."""

        def called(residuals: Any, cotangent: Any) -> tuple:
            given = (*(self.args[i] for i in self.static), residuals, cotangent)
            fits(
                f"{by}: backward(" + "static, " * bool(self.static) + "residuals, cotangent) does not fit",
                backward,
                given,
            )
            found = backward(*given)
            n = len(self.args) - len(self.static)
            if not isinstance(found, tuple | list) or len(found) != n:
                got = f"a tuple of {len(found)}" if isinstance(found, tuple | list) else type(found).__name__
                raise ValueError(f"{by}: expected a tuple of {n} cotangents from backward, got {got}")
            rest = iter(found)
            return tuple(None if i in self.static else next(rest) for i in range(len(self.args)))

        return called

    def like(self, by: str, point: Any, i: int) -> tuple[Any, ...]:
        """The dynamic arguments at another point."""
        args = tuple(point) if isinstance(point, tuple | list) else (point,)
        n = len(self.args) - len(self.static)
        if len(args) not in (len(self.args), n):
            raise ValueError(f"{by}: expected a tuple of {n} arguments at points[{i}], got {len(args)}")
        moved = [j for j in range(len(self.args)) if j not in self.static]
        for j, a in zip(moved, args if len(args) == n else [args[j] for j in moved], strict=True):
            own, other = jax.tree.structure(self.args[j]), jax.tree.structure(a)
            if own != other:
                raise ValueError(
                    f"{by}: expected args[{j}] at points[{i}] to be like the given one, {own}, got {other}"
                )
        rest = iter(args)
        every = [None if j in self.static and len(args) == n else next(rest) for j in range(len(self.args))]
        return tuple(None if j in self.static else arrays(by, a, f"points[{i}][{j}]", j) for j, a in enumerate(every))


class Form(NamedTuple):
    """A hand-written derivative of a function of the dynamic arguments.

    Attributes:
        name: what rows call it.
        equation: "backward", "jvp" or "gradient".
        value: (*args) -> out, the function.
        vjp: (*args) -> (out, pull), by the rule.
        has_forward: whether the rule computes ``out`` in a way of its own.
        is_gradient: whether it is the derivative for the first argument only.
        must_have_rules: whether the rule is one inside ``value``.
        decorated: the function with its rule.
    """

    name: str
    equation: str
    value: Callable
    vjp: Callable
    has_forward: bool = True
    is_gradient: bool = False
    must_have_rules: bool = False
    decorated: Callable = lambda *_: None


def is_numpy(f: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether it is an object with a backward pass, or gives no JAX arrays where it is given none."""
    if isinstance(f, jax.custom_vjp | jax.custom_jvp):
        return False
    if callable(getattr(f, "backward", None)):
        return True
    if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((args, keywords))):
        return False
    f = f.first if isinstance(f, Pair) else f
    state = State(getattr(f, "__self__", None), args)
    try:
        out = f(*args, **keywords)
    except Exception:  # whatever it raises: it is traced next, which says more
        return False
    finally:
        state.restore()
    return not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(out))


def form_of(by: str, f: Any, arguments: Arguments) -> Form:
    """The form of a decorated function, a `Pair` or a function with rules inside."""
    if isinstance(f, Pair):
        shape = shape_of(by, f.first, arguments)
        is_rule = isinstance(shape, tuple) and len(shape) == 2
        if f.kind == "backward" or (not f.kind and is_rule):
            return _of_rule(by, f, arguments, shape)
        return _of_gradient(by, f, arguments, shape)
    shape_of(by, f, arguments)
    if isinstance(f, jax.custom_vjp):
        vjp = functools.partial(jax.vjp, arguments.of(f))
        others = f.symbolic_zeros or getattr(f, "with_logs", False) or getattr(f, "with_accums", False)
        if f.fwd and f.bwd and not others and not _any_complex(arguments):
            vjp = arguments.by_two(by, f.fwd, f.bwd)
        return Form(name_of(f), "backward", arguments.of(f.fun), vjp)
    decorated, is_jvp = arguments.of(f), isinstance(f, jax.custom_jvp)
    value, equation = (arguments.of(f.fun), "jvp") if is_jvp else (decorated, "backward")
    vjp = functools.partial(jax.vjp, decorated)
    return Form(name_of(f), equation, value, vjp, must_have_rules=not is_jvp, decorated=decorated)


def _of_rule(by: str, f: Pair, arguments: Arguments, shape: Any) -> Form:
    if not isinstance(shape, tuple) or len(shape) != 2:
        got = f"{len(shape)} values" if isinstance(shape, tuple) else type(shape).__name__
        raise ValueError(f"{by}: expected {name_of(f)}(*args) to return (out, residuals), got {got}")
    value = arguments.of(lambda *args: f.first(*args)[0])
    vjp = arguments.by_two(by, f.first, f.second)
    if _any_complex(arguments):
        decorated = jax.custom_vjp(value)
        decorated.defvjp(arguments.of(f.first), arguments.pulled(by, f.second))
        vjp = functools.partial(jax.vjp, decorated)
    return Form(name_of(f), "backward", value, vjp, has_forward=False)


def _of_gradient(by: str, f: Pair, arguments: Arguments, shape: Any) -> Form:
    if getattr(shape, "shape", None) != () or not is_float(shape):
        both = "" if f.kind else f", or {name_of(f)}(*args) to return (out, residuals)"
        raise ValueError(f"{by}: expected value(params, *args) to be a scalar{both}, got {shape}")
    value, gradient, n = arguments.of(f.first), arguments.of(f.second), len(arguments.args)
    if _is_of_both(gradient, arguments):  # value_and_grad
        gradient = arguments.of(lambda *args: f.second(*args)[1])
    every = not f.kind and _is_for_every_argument(gradient, arguments)

    def vjp(*dynamic: Any) -> tuple[Any, Callable]:
        found = gradient(*dynamic)
        return value(*dynamic), lambda _: tuple(found) if every else (found, *(None for _ in range(n - 1)))

    return Form(name_of(f.second), "gradient", value, vjp, has_forward=False, is_gradient=not every)


def _is_of_both(gradient: Callable, arguments: Arguments) -> bool:
    """Whether a gradient comes with the value once more."""
    first = arguments.args[0]
    if isinstance(first, tuple | list) or getattr(first, "shape", None) == ():
        return False
    shape = _shape_of_gradient(gradient, arguments)
    return isinstance(shape, tuple) and len(shape) == 2 and getattr(shape[0], "shape", None) == ()


def _is_for_every_argument(gradient: Callable, arguments: Arguments) -> bool:
    """Whether a gradient is one for each argument, not for the first."""
    n = len(arguments.args)
    if n < 2 or arguments.static or isinstance(arguments.args[0], tuple | list):
        return False
    shape = _shape_of_gradient(gradient, arguments)
    return isinstance(shape, tuple | list) and len(shape) == n


def _shape_of_gradient(gradient: Callable, arguments: Arguments) -> Any:
    """None for one written in NumPy."""
    try:
        return jax.eval_shape(gradient, *arguments.dynamic)
    except jax.errors.TracerArrayConversionError:
        return None


def _any_complex(arguments: Arguments) -> bool:
    return any(map(is_complex, jax.tree.leaves(arguments.dynamic)))


def fits(what: str, f: Callable, args: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> None:
    """Raise a ValueError for a function that does not take these arguments."""
    try:
        signature = inspect.signature(f)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(*args, **(keywords or {}))
    except TypeError as error:
        raise ValueError(f"{what} {name_of(f)}{signature}: {error}") from error


def shape_of(by: str, f: Callable, arguments: Arguments) -> Any:
    """What f returns, in shapes."""
    fits(f"{by}: a call with {len(arguments.args)} arguments does not fit", getattr(f, "fun", f), arguments.args)
    try:
        return jax.eval_shape(arguments.of(f), *arguments.dynamic)
    except (TypeError, ValueError) as error:
        numbers = [i for i, a in enumerate(arguments.args) if isinstance(a, int) and i not in arguments.static]
        if "not a valid JAX type" in str(error):
            raise ValueError(f"{by}: expected {name_of(f)} to return arrays, residuals too: {error}") from error
        if not isinstance(error, NEEDS_VALUES) and not numbers:
            raise
        which = (
            f"args[{numbers[0]}], static_argnums=({numbers[0]},)," if numbers else "that argument in static_argnums="
        )
        raise ValueError(
            f"{by}: {name_of(f)} uses the value of an argument in Python, which JAX does not know while it traces; name "
            f"{which} or write the choice with jnp.where or jax.lax.cond ({str(error).splitlines()[0]})"
        ) from error


def name_of(f: Any) -> str:
    if isinstance(f, Pair | functools.partial):
        return name_of(f.first if isinstance(f, Pair) else f.func)
    return getattr(f, "__name__", type(f).__name__)


def bound(f: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The function and its positional arguments. Keyword arguments become such where the signature tells their place; others
    are passed on and not differentiated, as by ``jax.grad``."""
    first = f.first if isinstance(f, Pair) else f
    decorated = isinstance(first, jax.custom_vjp | jax.custom_jvp)
    if not keywords and not decorated:
        return f, args
    try:
        binding = inspect.signature(first.fun if decorated else first).bind(*args, **keywords)
        binding.apply_defaults()
    except (ValueError, TypeError):
        binding = None
    if binding is not None and not binding.kwargs:
        return f, binding.args
    if isinstance(f, Pair):
        rest = (f.second if f.kind == "backward" else functools.partial(f.second, **keywords)), f.kind
        return Pair(functools.partial(f.first, **keywords), *rest), args
    return functools.partial(f, **keywords), args


def arrays(by: str, tree: Any, name: str, i: int) -> Any:
    """The arrays of an argument."""

    def leaf(path: Any, a: Any) -> Any:
        if isinstance(a, Tracer):
            raise ValueError(
                f"{by}: expected arrays, got a traced value; call it outside of jax.jit, jax.vmap and jax.grad"
            )
        if not isinstance(a, jax.Array) and np.asarray(a).dtype.kind in "OSU":
            remedy = f"name it in static_argnums=({i},), so that backward takes it first"
            raise ValueError(f"{by}: {name}{keystr(path)} is {a!r}, which is no array; {remedy}")
        return jnp.asarray(a)

    return jax.tree_util.tree_map_with_path(leaf, tree)
