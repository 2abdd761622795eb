"""The one entry for hand-written derivatives of functions: what was given, and what it is held to."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..activations import Activation
from ..costs import Cost
from ..layers._layer import Layer
from .devices import axes_of, gathered
from .differences import JUDGE
from .foreign import audit_numpy, audit_torch, is_torch
from .forms import PAIR, Arguments, Form, Pair, arrays, bound, fits, form_of, is_numpy, name_of
from .function import Rule, audit_rule, by_autodiff, cotangent_of, of_reals, real_leaves
from .network import check_layer
from .points import NEAR, Point, drawn
from .report import Report
from .rules import rules_in
from .sides import is_float, is_inexact, normals


def audit(
    f: Any,
    *args: Any,
    reference: Callable | None = None,
    intended: Callable | None = None,
    points: Sequence[Any] | None = None,
    static_argnums: int | Sequence[int] = (),
    trust: Callable | Sequence[Callable[..., Any]] = (),
    gradients: dict[str, str] | None = None,
    **keywords: Any,
) -> Report:
    """Say whether a hand-written derivative is right, or which argument's is wrong, where, and what kind of mistake it looks
    like.

    Args:
        f: a function of ``jax.custom_vjp``, ``jax.custom_jvp`` or ``jax.custom_gradient``, or one with such rules inside; a
            pair (forward, backward) as ``defvjp`` takes it, or (value, gradient) of a scalar function of parameters, in JAX
            or in NumPy; an object with the methods forward and backward, in NumPy; a ``torch.autograd.Function``; an
            activation or a layer of fnnet.
        args: where to audit it: pytrees of arrays. Integers, booleans and keys are passed on and not differentiated.
        reference: (*args) -> out, the same function written plainly, to be differentiated in its place.
        intended: (*args) -> out, another function, which the rule is meant to be the derivative of: the identity for a
            straight-through estimator, −λx for a reversed gradient, a smooth stand-in for a surrogate.
        points: further arguments to audit it at, a tuple each; () for the given ones only. By default also a larger
            cotangent, a point near by and one far away are tried, where signs, sums to one, masks and order stay as given
            and symmetry does not.
        static_argnums: places of arguments that are no arrays; ``backward`` takes them first. Those of a decorated function
            are known.
        trust: the function or functions whose rules are taken as they are where they occur inside.
        gradients: of an object: {"W": "dW"}, where it keeps each parameter and where its gradient; found by their names
            otherwise.
        keywords: further arguments of f.

    Raises:
        ValueError: for what cannot be audited, with what to write instead.
    """
    trusted = (trust,) if callable(trust) else tuple(trust)
    if isinstance(f, Layer):
        fits("audit: the arguments of a layer do not fit", check_layer, (f, *args), keywords)
        return check_layer(f, *args, trust=trusted, **keywords)
    if isinstance(f, Cost):
        raise ValueError(
            f"audit: {f} is a cost, which is audited with a network: fn.compare_gradients(net, cost, params, x, y)"
        )
    if isinstance(f, Activation):
        f = _of_activation(f)
    if reference is not None and intended is not None:
        raise ValueError("audit: expected reference= or intended=, got both; a reference computes what f computes")
    return _audited("audit", f, args, keywords, static_argnums, Held(reference, intended, points, trusted, gradients))


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
        if not args or not callable(args[0]):
            got = type(args[0]).__name__ if args else "nothing"
            raise ValueError(
                f"check_vjp: expected check_vjp(forward, backward, *args), got {got} where backward belongs"
            )
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


def _of_activation(activation: Activation) -> Pair:
    def forward(z: Any) -> tuple[Any, Any]:
        return activation(z), z

    forward.__name__ = repr(activation)
    return Pair(forward, lambda z, da: (activation.error(da, z),), "backward")


class Held(NamedTuple):
    """What a rule is held to."""

    reference: Callable | None
    intended: Callable | None
    points: Sequence[Any] | None
    trust: tuple[Callable[..., Any], ...] = ()
    gradients: dict[str, str] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What the audits of other libraries take too."""
        return {"reference": self.reference, "intended": self.intended, "points": self.points}


def _audited(by: str, f: Any, args: tuple, keywords: dict[str, Any], static_argnums: Any, held: Held) -> Report:
    for name, other in (("reference", held.reference), ("intended", held.intended)):
        if other is not None and not callable(other):
            raise ValueError(f"{by}: expected {name}= to be a function, (*args) -> out, got {type(other).__name__}")
    if held.points is not None and not isinstance(held.points, tuple | list):
        got = type(held.points).__name__
        raise ValueError(f"{by}: expected points= to be a list of tuples of arguments, got {got}")
    static = (static_argnums,) if isinstance(static_argnums, int) else tuple(static_argnums)
    if isinstance(f, tuple | list) and len(f) == 2 and all(map(callable, f)):
        f = Pair(*f)
    if isinstance(f, functools.partial) and isinstance(f.func, jax.custom_vjp | jax.custom_jvp):
        f, args, keywords = f.func, (*f.args, *args), {**f.keywords, **keywords}
    if is_torch(f, args):
        return audit_torch(f, *args, static_argnums=static, **held.options)
    if is_numpy(f, args, keywords):
        return _audited_in_numpy(f, args, keywords, static, held)
    if not callable(f) and not isinstance(f, Pair):
        raise ValueError(f"{by}: expected a function with a hand-written derivative or {PAIR}, got {type(f).__name__}")
    if isinstance(f, jax.custom_vjp | jax.custom_jvp):
        static = (*static, *f.nondiff_argnums)
        if not (f.jvp if isinstance(f, jax.custom_jvp) else f.fwd):
            kind = type(f).__name__
            raise ValueError(f"{by}: {name_of(f)} is a {kind} without a rule; give it one with defvjp or defjvp")
    given_f, given_args = f, args
    f, args = bound(f, args, keywords)
    static = tuple(sorted({i % len(args) for i in static})) if args else ()
    given = gathered(tuple(None if i in static else arrays(by, a, f"args[{i}]", i) for i, a in enumerate(args)))
    if not any(map(is_inexact, jax.tree.leaves(given))):
        raise ValueError(f"{by}: expected an argument of {name_of(f)} with an array of floats, got none")
    arguments = Arguments(args, given, static)
    try:
        form = form_of(by, f, arguments)
    except jax.errors.TracerArrayConversionError:
        return _audited_in_numpy(given_f, given_args, keywords, static, held)
    rule = _judged_by(_rule(by, form, arguments, held), given)
    alone = []
    for only in _each_alone(arguments) if getattr(f, "symbolic_zeros", False) else ():
        of_one = _judged_by(_rule(by, form_of(by, f, only), only, held), only.dynamic)
        alone.append((of_one, only.dynamic))
    if held.points is None:
        points = [point for point in drawn(given) if point.name == NEAR or not rule.measured]
    else:
        points = [Point(f"points[{i}]", arguments.like(by, p, i)) for i, p in enumerate(held.points)]
    return audit_rule(rule, given, points, alone)


def _each_alone(arguments: Arguments) -> list[Arguments]:
    """With one argument to differentiate: a rule with ``symbolic_zeros`` is told which ones are."""
    args, dynamic, _ = arguments
    places = [i for i, a in enumerate(dynamic) if any(map(is_inexact, jax.tree.leaves(a)))]
    return [
        Arguments(args, tuple(a if i == j else None for j, a in enumerate(dynamic)), tuple(set(range(len(args))) - {i}))
        for i in (places if len(places) > 1 else ())
    ]


def _audited_in_numpy(f: Any, args: tuple, keywords: dict[str, Any], static: tuple[int, ...], held: Held) -> Report:
    f, args = bound(f, args, keywords) if callable(f) or isinstance(f, Pair) else (f, args)
    f = f[:2] if isinstance(f, Pair) else f
    return audit_numpy(f, *args, gradients=held.gradients, static_argnums=static, **held.options)


def _rule(by: str, form: Form, arguments: Arguments, held: Held) -> Rule:
    """A form and what it is held to."""
    plain, what = form.value, form.name
    if (other := held.intended or held.reference) is not None:
        plain, what = arguments.of(other), "what is intended" if held.intended else "the reference"
        _check_output(by, "intended" if held.intended else "reference", plain, form, arguments)
    elif form.must_have_rules and not rules_in(form.value, *arguments.dynamic, trust=held.trust):
        raise ValueError(
            f"{by}: {form.name} has no hand-written derivative inside but JAX's own, so that there is nothing to audit; give "
            f"{PAIR}, or reference=, the same function written plainly"
        )
    forward_mode = form.equation == "jvp" and not _is_transposable(form.vjp, arguments.dynamic)
    inside = [rule for rule in rules_in(plain, *arguments.dynamic, trust=held.trust) if rule != form.name]
    return Rule(
        form.name,
        form.equation,
        tuple("" if form.is_gradient else f"args[{i}]" for i in range(len(arguments.args))),
        form.value,
        form.decorated if forward_mode else form.vjp,
        plain,
        f"autodiff of {what}" + (f", the bodies of {', '.join(inside)} in place of their rules" if inside else ""),
        has_forward=form.has_forward or held.reference is not None,
        intended=held.intended is not None,
        audited=(0,) if form.is_gradient else None,
        forward_mode=forward_mode,
        trust=held.trust,
        axes=axes_of(arguments.args),
    )


def _check_output(by: str, option: str, plain: Callable, form: Form, arguments: Arguments) -> None:
    """Raise a ValueError for a reference, or what is intended, that cannot be run on the arguments or gives other shapes."""
    try:
        other = jax.eval_shape(plain, *arguments.dynamic)
    except jax.errors.TracerArrayConversionError as error:
        raise ValueError(
            f"{by}: {option}= is written in NumPy, and {form.name} in JAX; write it with jax.numpy"
        ) from error
    except TypeError as error:
        raise ValueError(f"{by}: {option}= cannot be called with the arguments of {form.name}: {error}") from error
    own = jax.eval_shape(form.value, *arguments.dynamic)
    shapes = [[leaf.shape for leaf in jax.tree.leaves(out) if is_inexact(leaf)] for out in (own, other)]
    if shapes[0] != shapes[1]:
        texts = [", ".join(map(str, of)) or "no floats" for of in shapes]
        raise ValueError(f"{by}: expected {option}= to give what {form.name} gives, shape {texts[0]}, got {texts[1]}")


def _is_transposable(vjp: Callable, given: tuple) -> bool:
    """Whether a rule for forward mode works backwards too: it may hold a loop, or be no linear function of the tangents."""

    def pulled(given: tuple) -> Any:
        out, pull = vjp(*given)
        return pull(cotangent_of(out, [jnp.zeros_like(leaf) for leaf in real_leaves(out)]))

    try:
        jax.eval_shape(pulled, given)
    except Exception:  # whatever a rule raises that is not meant to be transposed
        return False
    return True


def _judged_by(rule: Rule, given: tuple) -> Rule:
    """Held to differences where the function cannot be differentiated."""
    u = normals(jax.eval_shape(of_reals(rule.plain, given), real_leaves(given)), 0)
    try:
        by_autodiff(rule, given, u)
    except Exception as error:  # whatever JAX or a kernel raises that has no derivative
        reason = " ".join(str(error).split())[:60]
        about = f"{JUDGE}, as {rule.about.removeprefix('autodiff of ')} cannot be differentiated by JAX ({reason} ...)"
        return dataclasses.replace(rule, measured=True, about=about)
    return rule


def assert_gradients(f: Any, *args: Any, **options: Any) -> None:
    """For tests: `audit`, with its table as the message of the failure.

    Raises:
        AssertionError: where a derivative is wrong, or nothing was tested.
        ValueError: as `audit`.
    """
    __tracebackhide__ = True
    audit(f, *args, **options).raise_if_failed()
