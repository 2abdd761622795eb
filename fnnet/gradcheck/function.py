"""The audit of functions: a hand-written rule, or a hand-written gradient, of any JAX function."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from .mistakes import of_function
from .report import Report, Row
from .rows import check_concrete, dtype_of, function_rows, product_rows, reported, settled, with_forward_mode
from .sides import Two, compiled_once, is_float, leaf_at, normals, products
from .verdicts import Subject


def check_vjp(forward: Callable, backward: Callable, *args: Any) -> Report:
    """Compare a hand-written vector-Jacobian product of any JAX function with autodiff, leaf by leaf of each argument.

    The two functions are those that ``defvjp`` of ``jax.custom_vjp`` takes. Autodiff differentiates ``forward`` itself, so it
    has to be made of operations that JAX can differentiate.

    Args:
        forward: (*args) -> (out, residuals).
        backward: (residuals, cotangent of out) -> a tuple with one cotangent for each argument, None for zero.
        args: where to check it: pytrees of arrays. Integers are passed on and not differentiated.

    Raises:
        ValueError: for a ``forward`` that returns no pair, a ``backward`` that returns no tuple of this length, or no
            argument with an array of floats.
    """
    args = jax.tree.map(jnp.asarray, args)
    check_concrete("check_vjp", args)
    name = getattr(forward, "__name__", type(forward).__name__)
    if not any(is_float(leaf) for leaf in jax.tree.leaves(args)):
        raise ValueError(f"check_vjp: expected an argument of {name} with an array of floats, got none")
    both = jax.eval_shape(forward, *args)
    if not isinstance(both, tuple) or len(both) != 2:
        got = f"{len(both)} values" if isinstance(both, tuple) else type(both).__name__
        raise ValueError(f"check_vjp: expected {name}(*args) to return (out, residuals), got {got}")

    check_concrete(f"check_vjp: {name}", both[0])
    rows = _vjp_rows(name, forward, backward, args)
    return reported(settled(rows, args, functools.partial(_vjp_rows, name, forward, backward)), dtype_of(args))


def _vjp_rows(name: str, forward: Callable, backward: Callable, args: tuple) -> list[Row]:
    out = jax.eval_shape(forward, *args)[0]
    case, plain = (args, normals(out, 0), normals(args, 1)), lambda args, *_: forward(*args)[0]
    subject = with_forward_mode(
        lambda linear: Subject(
            functools.partial(function_vjp, forward, backward, linear), [case], dtype_of(args), plain
        )
    )
    given = subject.values[0]["given"]
    rows = [_structure_row(name, "backward", place) for place in sorted(given.manual.keys() - given.autodiff.keys())]
    m = next((leaf.shape[0] for leaf in jax.tree.leaves(out) if leaf.ndim), 1)
    rows += function_rows(name, "backward", subject, functools.partial(of_function, subject, m))
    return rows + product_rows(subject, name)


def check_gradient(value: Callable, gradient: Callable, params: Any, *args: Any) -> Report:
    """Compare a hand-written gradient with ``jax.grad`` of a scalar function, leaf by leaf.

    Also for energy models: the two phases of contrastive divergence are the gradient of ``mean(F(params, v0)) −
    mean(F(params, vk))`` with respect to the parameters, for given samples.

    Args:
        value: (params, *args) -> a scalar.
        gradient: (params, *args) -> a pytree like params.
        params: where to check it: a pytree of arrays.
        args: further arguments of both.

    Raises:
        ValueError: for a value that is no scalar, or parameters without an array of floats.
    """
    params, args = jax.tree.map(jnp.asarray, (params, args))
    check_concrete("check_gradient", params, args)
    name = getattr(gradient, "__name__", type(gradient).__name__)
    if not jax.tree.leaves(params) or not all(map(is_float, jax.tree.leaves(params))):
        raise ValueError(
            "check_gradient: expected parameters of floats, got none or others; nothing can be differentiated"
        )
    shape = jax.eval_shape(value, params, *args)
    if getattr(shape, "shape", None) != ():
        raise ValueError(f"check_gradient: expected value(params, *args) to be a scalar, got {shape}")

    run = functools.partial(function_gradient, value, gradient)
    subject = Subject(run, [(params, args)], dtype_of(params), lambda params, args: value(params, *args))
    given = {keystr(path) for path, _ in tree_leaves_with_path(subject.values[0]["gradient"].manual)}
    extra = given - {keystr(path) for path, _ in tree_leaves_with_path(params)}
    shared = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(args) if jnp.ndim(leaf) and is_float(leaf)}
    about = functools.partial(of_function, subject, max(1, *shared) if len(shared) == 1 else 1)
    rows = [_structure_row(name, "gradient", place) for place in sorted(extra)]
    return reported(rows + function_rows(name, "gradient", subject, about), subject.dtype)


def _structure_row(name: str, equation: str, leaf: str) -> Row:
    return Row(name, equation, leaf, "fail", float("inf"), hint="there is no such leaf to differentiate")


@compiled_once(fixed=2)
def function_gradient(value: Callable, gradient: Callable, params: Any, args: tuple) -> dict[str, Two]:
    """A hand-written gradient of a scalar function."""
    return {"gradient": Two(gradient(params, *args), jax.grad(value)(params, *args))}


@compiled_once(fixed=3)
def function_vjp(
    forward: Callable, backward: Callable, linear: bool, args: tuple, cotangent: Any, tangents: tuple
) -> dict[str, Two]:
    """A hand-written rule for a vector-Jacobian product, of the floats among arguments and outputs; with forward mode
    (``linear``) its product too."""
    out, residuals = forward(*args)
    given = jax.tree.map(lambda u, o: u if is_float(o) else np.zeros(o.shape, jax.dtypes.float0), cotangent, out)
    manual = backward(residuals, given)
    if not isinstance(manual, tuple) or len(manual) != len(args):
        got = f"a tuple of {len(manual)}" if isinstance(manual, tuple) else type(manual).__name__
        raise ValueError(f"check_vjp: expected a tuple of {len(args)} cotangents from backward, got {got}")
    leaves, treedef = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def of_floats(floats: list[Array]) -> list[Array]:
        new = dict(zip(places, floats, strict=True))
        out = forward(*treedef.unflatten(new.get(i, leaf) for i, leaf in enumerate(leaves)))[0]
        return [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]

    floats, tangent = ([jax.tree.leaves(tree)[i] for i in places] for tree in (args, tangents))
    u = [leaf for leaf in jax.tree.leaves(cotangent) if is_float(leaf)]
    autodiff = jax.vjp(of_floats, floats)[1](u)[0]
    paths = [path for path, leaf in tree_leaves_with_path(args) if is_float(leaf)]
    by_hand = [
        jnp.zeros_like(g) if manual[path[0].idx] is None else leaf_at(path, manual)
        for path, g in zip(paths, autodiff, strict=True)
    ]
    names = [f"args{keystr(path)}" for path in paths]
    sides = {"backward": Two(*(dict(zip(names, side, strict=True)) for side in (by_hand, autodiff)))}
    sides["given"] = Two(*({f"args{keystr(p)}": 0 for p, _ in tree_leaves_with_path(tree)} for tree in (manual, args)))
    if linear:
        sides["product"] = products(u, jax.jvp(of_floats, (floats,), (tangent,))[1], by_hand, tangent)
    return sides
