"""The usual mistakes in the derivative of one operation of a program."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

LINEAR = frozenset(
    (
        "neg", "convert_element_type", "reshape", "transpose", "broadcast_in_dim", "copy", "squeeze", "slice", "reduce_sum",
        "rev", "pad", "concatenate", "split", "real", "imag", "stop_gradient", "reduce_precision",
    )
)  # fmt: skip
ARITHMETIC = ("add", "sub", "mul", "div", "dot_general", "neg")
LAYOUT = ("broadcast_in_dim", "reshape", "squeeze", "convert_element_type", "copy")
PRODUCTS = ("mul", "dot_general")
EACH = (*ARITHMETIC, "max", "min", "pow", "atan2", "rem", "add_any")
CHOICES = ("max", "min", "select_n", "clamp")


class Case(NamedTuple):
    """A mistake in words. Of a path it is its name: the path may be left out, or have another sign or factor."""

    text: str
    is_path: bool = False


class Back(NamedTuple):
    """What there is on the way back: the cotangents of the outputs, the right ones of ``xs``, what the operation was given
    (``others`` are not differentiated; ``instead`` may stand wrongly in the place of some of xs), its outputs, the operation
    itself as a function of xs, and xs and others in their order."""

    u: Any
    right: Any
    xs: Any
    others: Any
    instead: Any
    out: Any
    bind: Callable
    given: Any

    def pulled(self, xs: Any, u: Any = None) -> Any:
        """The cotangents at other arguments, or of other cotangents."""
        return jax.vjp(lambda *xs: self.bind(*xs), *xs)[1](self.u if u is None else u)

    def with_other(self, i: int, x: Any) -> Any:
        """The cotangents with another i-th argument, of all but that one itself."""
        wrong = self.pulled([x if i == j else own for j, own in enumerate(self.xs)])
        return tuple(r if i == j else w for j, (r, w) in enumerate(zip(self.right, wrong, strict=True)))

    def only(self, i: int, wrong: Any) -> Any:
        """The right cotangents but of the i-th."""
        return tuple(wrong if i == j else r for j, r in enumerate(self.right))


class Way(NamedTuple):
    """A mistake and what it makes of the cotangents of ``xs``, linear in those of the outputs."""

    case: Case
    back: Callable[[Back], Any]


def ways_back(
    equation: Any, text: str, names: list[str], xs: list[Any], instead: list[Any], looped: bool
) -> Iterator[Way]:
    """The mistakes of an operation that is written as ``text``, on arguments of these names. In a loop every step has the
    mistake. ``instead``: (i, its name, what may stand wrongly in the place of the i-th)."""
    name, shapes = equation.primitive.name, [np.shape(x) for x in xs]
    out_shape = tuple(equation.outvars[0].aval.shape)
    what = text if text and name in ARITHMETIC else f"{name} of {text}" if text else name
    yield from _paths(what, names, looped)
    if (
        len(xs) == len(equation.outvars) == 1
        and name not in (*LINEAR, *ARITHMETIC)
        and shapes == [out_shape]
        and not jnp.iscomplexobj(xs[0])
    ):
        yield from _of_numbers(what)
    if name in ("gather", "cumsum", "sort") and shapes[0] == out_shape:
        words = f"{what} is applied to the cotangent, where its transpose belongs"
        yield Way(Case(words), lambda at: at.only(0, at.bind(at.u[0], *at.xs[1:])[0]))
    if name in CHOICES:
        for i, shape in enumerate(shapes):
            if shape == out_shape:
                words = f"the local derivative of {what} is missing: which side was taken is not asked"
                yield Way(Case(words), lambda at, i=i: at.only(i, at.u[0]))
    if name in PRODUCTS:
        yield from _of_products(what, names, xs, out_shape, instead)
    for i, shape in enumerate(shapes) if name in EACH and len(xs) > 1 else ():
        if len(shape) == len(out_shape) and {a for a, b in zip(shape, out_shape, strict=True) if a != b} == {1}:
            yield from _of_repeating(names[i] or what, shape, out_shape, tuple(range(len(shape))), i)
    if name == "broadcast_in_dim" and math.prod(shapes[0]) < math.prod(out_shape):
        yield from _of_repeating(text or name, shapes[0], out_shape, equation.params["broadcast_dimensions"], None)
    if name == "reduce_sum":
        yield from _of_sums(what, shapes[0], out_shape, tuple(equation.params["axes"]))
    if name in ("reduce_max", "reduce_min"):
        words = f"every entry gets the error of {what}, not only the one that was taken"
        yield Way(
            Case(words), lambda at: (jnp.broadcast_to(jnp.expand_dims(at.u[0], equation.params["axes"]), shapes[0]),)
        )
    if name == "custom_linear_solve":
        words = f"solved with the matrix where its transpose belongs, in {what}"
        yield Way(Case(words), lambda at: _solved_untransposed(at, equation.params))
    if name == "gather":
        words = f"set, not added: where {text or name} reads a place twice, its errors overwrite each other"
        yield Way(Case(words), lambda at: at.only(0, _scattered(at, equation.params)))


def _paths(what: str, names: list[str], looped: bool) -> Iterator[Way]:
    several = len(names) > 1
    for i in [None, *range(len(names))] if several else [None]:

        def scaled(at: Back, factor: float = 0.0, i: int | None = i) -> Any:
            return tuple(factor * r if i in (None, j) else r for j, r in enumerate(at.right))

        path = what if i is None or names[i] in ("", what) else f"{names[i]} in {what}"
        if looped:  # the gradient is no longer linear in the size of the mistake
            yield Way(Case(f"left out: the path through {path}, at every step"), scaled)
            if several:
                words = f"wrong sign of the path through {path}, at every step"
                yield Way(Case(words), lambda at, scaled=scaled: scaled(at, -1.0))
        else:
            yield Way(Case(path, is_path=True), scaled)


def _of_numbers(what: str) -> Iterator[Way]:
    """Of a function of each number."""

    def twice(at: Back) -> Any:
        return at.pulled(at.xs, [at.right[0].astype(at.out[0].dtype)])

    yield Way(Case(f"the local derivative of {what} is missing"), lambda at: (at.u[0],))
    yield Way(Case(f"the local derivative of {what} is applied twice"), twice)
    yield Way(Case(f"the derivative of {what} is taken at its output, not at its input"), lambda at: at.pulled(at.out))


def _of_products(what: str, names: list[str], xs: list[Any], out_shape: tuple, instead: list[Any]) -> Iterator[Way]:
    for k, (i, name, _) in enumerate(instead):
        words = f"{name} stands where {names[i] or 'the other factor'} belongs in {what}"
        yield Way(Case(words), lambda at, k=k, i=i: at.with_other(i, at.instead[k]))
    if any(map(jnp.iscomplexobj, xs)):
        for i, own in enumerate(names):
            words = f"{own or 'a factor'} in {what} is not conjugated, or once too often"
            yield Way(Case(words), lambda at, i=i: at.with_other(i, jnp.conj(at.xs[i])))
    for i, own in enumerate(names):
        if _is_square(np.shape(xs[i])):
            words = f"{own or 'a factor'} in {what} stands where its transpose belongs"
            yield Way(Case(words), lambda at, i=i: at.with_other(i, jnp.swapaxes(at.xs[i], -1, -2)))
        if _is_square(out_shape):
            words = f"the cotangent of {what} stands where its transpose belongs"
            yield Way(Case(words), lambda at, i=i: at.only(i, at.pulled(at.xs, [jnp.swapaxes(at.u[0], -1, -2)])[i]))


def _is_square(shape: tuple) -> bool:
    return len(shape) >= 2 and shape[-1] == shape[-2] > 1


def _of_repeating(what: str, shape: tuple, out_shape: tuple, kept: tuple[int, ...], place: int | None) -> Iterator[Way]:
    """The transpose of what repeats is a sum. ``place``: of the one among xs that an operation on several repeats."""
    summed = tuple(axis for axis, n in enumerate(out_shape) if axis not in kept or shape[kept.index(axis)] != n)
    size = math.prod(out_shape[axis] for axis in summed)

    def found(at: Back, one: Callable) -> Any:
        if place is None:
            return (one(at.u[0]).reshape(shape),)
        whole = [jnp.broadcast_to(x, out_shape) if i == place else x for i, x in enumerate(at.xs)]
        return at.only(place, one(at.pulled(whole)[place]).reshape(shape))

    def first(u: Any, k: int) -> Any:
        for axis in reversed(summed):
            u = jnp.take(u, k, axis)
        return u

    for words, k in (("first", 0), ("last", -1)):
        words = f"the {words} of the errors of {what} is taken, which is repeated, not their sum"
        yield Way(Case(words), lambda at, k=k: found(at, lambda u: first(u, k)))
    for axes in itertools.combinations(range(len(out_shape)), len(summed)):
        if axes != summed and math.prod(out_shape[axis] for axis in axes) == size:
            words = f"summed over the wrong axis, {_listed(axes)} instead of {_listed(summed)}: the errors of {what}"
            yield Way(Case(words), lambda at, axes=axes: found(at, lambda u: jnp.sum(u, axes)))


def _of_sums(what: str, shape: tuple, out_shape: tuple, axes: tuple[int, ...]) -> Iterator[Way]:
    """The transpose of a sum repeats."""

    def at_one(at: Back, k: int) -> Any:
        place = tuple(k if axis in axes else slice(None) for axis in range(len(shape)))
        return (jnp.zeros(shape, at.u[0].dtype).at[place].set(at.u[0]),)

    for words, k in (("first", 0), ("last", -1)):
        words = f"only the {words} of what {what} sums gets its error, along axis {_listed(axes)}"
        yield Way(Case(words), lambda at, k=k: at_one(at, k))
    for others in itertools.combinations(range(len(shape)), len(axes)):
        if others != axes and tuple(n for axis, n in enumerate(shape) if axis not in others) == out_shape:
            words = (
                f"laid out along the wrong axis, {_listed(others)} instead of {_listed(axes)}: the cotangent of {what}"
            )
            yield Way(
                Case(words), lambda at, others=others: (jnp.broadcast_to(jnp.expand_dims(at.u[0], others), shape),)
            )


def _scattered(at: Back, params: dict[str, Any]) -> Any:
    """The transpose of reading places, with the last error to come in each."""
    read = params["dimension_numbers"]
    numbers = jax.lax.ScatterDimensionNumbers(
        update_window_dims=read.offset_dims,
        inserted_window_dims=read.collapsed_slice_dims,
        scatter_dims_to_operand_dims=read.start_index_map,
        operand_batching_dims=read.operand_batching_dims,
        scatter_indices_batching_dims=read.start_indices_batching_dims,
    )
    return jax.lax.scatter(jnp.zeros_like(at.xs[0]), at.others[0], at.u[0], numbers, mode=params["mode"])


def _solved_untransposed(at: Back, params: dict[str, Any]) -> Any:
    """With A⁻¹u where A⁻ᵀu belongs: what the right way makes of AᵀA⁻¹u."""
    constants = params["const_lengths"].vecmat
    first = params["const_lengths"].matvec
    solved = at.bind(*at.xs[:-1], at.u[0])
    vecmat = params["jaxprs"].vecmat
    return at.pulled(at.xs, jaxpr_as_fun(vecmat)(*at.given[first : first + constants], *solved))


def _listed(axes: tuple[int, ...]) -> str:
    return ", ".join(map(str, axes))
