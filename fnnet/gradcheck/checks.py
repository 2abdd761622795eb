"""The audits that people call, and how their rows are made.

Each equation is checked by itself (*isolated*: fed with autodiff's δ, for a random cotangent and for this cost's own, so
that an equation which is right only for this cost, or only above the bottom of the network, does not pass) and in its place
(*chained*: the network's errors and gradients for this cost). An isolated failure is a cause; a chained one alone is a
consequence.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import keystr, tree_leaves_with_path

from ..costs import Cost
from ..given import check_batch
from ..layers._composite import Placed, composites, visited, walk
from ..layers._layer import Layer, Params, check_key, run_forward
from ..penalties import Penalty, check_penalty
from .mistakes import Failure, explain, of_cost, of_function, of_layer, of_penalty
from .report import Report, Row
from .sides import (
    Given,
    directions,
    function_gradient,
    function_vjp,
    is_float,
    isolated,
    leaf_at,
    normals,
    penalty_gradient,
    probe_for,
    split_error,
    whole_network,
)
from .verdicts import (
    NAN,
    TOLERANCE,
    Compared,
    Differences,
    Subject,
    between,
    differences,
    exactly,
    in_float64,
    judge,
    largest,
    rounding,
    wide,
)

SUBGRADIENTS = "both valid subgradients"


@jax.transfer_guard("allow")  # it compares on the host
def compare_gradients(
    net: Layer,
    cost: Cost,
    params: Params,
    x: Any,
    y: Any,
    *,
    key: Any = None,
    mask: Any = None,
    weights: Any = None,
    penalty: Penalty | None = None,
    n_examples: Any = None,
    finite_differences: bool = False,
) -> Report:
    """Compare the hand-written backpropagation with autodiff, equation by equation, and say which is wrong, where, and what
    kind of mistake it looks like.

    The arguments are those of `fnnet.backprop`. The comparison runs in the parameters' dtype and in float64.

    A row passes where manual and autodiff agree in float64 (to 1e-10 of the largest entry) and in the parameters' dtype (to
    64 eps in float32, 16 eps in float16, 4 eps in bfloat16). Where only the latter fails, the verdict is "precision" as long
    as manual is at most 4 times as far from float64 as autodiff is, or as these bounds. A layer that rounds to a narrower
    dtype inside is held to that dtype's bound.

    Args:
        finite_differences: whether each derivative is also compared with central differences in float64, along a random
            direction: a third opinion.

    Raises:
        ValueError: for bad input, as `fnnet.backprop`.
    """
    check_penalty(penalty)
    x, y, key, mask, weights = check_batch(net, cost, params, x, y, key, mask, weights)
    check_concrete("compare_gradients", params, x, y, weights)
    given = Given(params, x, y, key, mask, weights)
    rows, dtype = _network_rows(net, cost, given, finite_differences)
    if penalty is not None:
        n = x.shape[0] if n_examples is None else n_examples
        rows += _penalty_rows(penalty, params, n, dtype)
    beside = functools.partial(_beside_network, net, cost, given)
    return _report(_settled(rows, (params, x), beside), dtype)


def _beside_network(net: Layer, cost: Cost | None, given: Given, moved: tuple) -> list[Row]:
    return _network_rows(net, cost, given._replace(params=moved[0], x=moved[1]), False)[0]


def _settled(rows: list[Row], given: Any, audited: Callable[[Any], list[Row]]) -> list[Row]:
    """Consequences of nothing but a choice of subgradients are such a choice too, if there are none beside the kink."""
    verdicts = {row.verdict for row in rows}
    if not {"consequence", SUBGRADIENTS} <= verdicts or "fail" in verdicts:
        return rows
    beside = exactly(audited, _beside(np.random.default_rng(0), given))
    if beside is None or any(row.verdict == "consequence" for row in beside):
        return rows
    return [dataclasses.replace(row, verdict=SUBGRADIENTS) if row.verdict == "consequence" else row for row in rows]


def _failed(row: Row) -> bool:
    return row.verdict == "fail"


def _beside(draw: np.random.Generator, tree: Any) -> Any:
    """In float64, each float moved by about a thousandth, off every kink and tie."""

    def leaf(a: Any) -> Any:
        return a + 1e-3 * (np.mean(np.abs(a)) or 1) * draw.standard_normal(np.shape(a)) if is_float(a) and a.size else a

    return jax.tree.map(leaf, in_float64(tree))


def _with_forward_mode(audited: Callable[[bool], Subject]) -> Subject:
    """With the product ⟨u, Jv⟩, or without it where there is no forward mode: a rule of ``jax.custom_vjp`` inside."""
    try:
        return audited(True)
    except (TypeError, ValueError):
        return audited(False)


def _network_rows(net: Layer, cost: Cost | None, given: Given, finite: bool) -> tuple[list[Row], str]:
    """The rows of every layer, of the network and of the cost, and the audit's dtype."""
    params, x, _, key, mask, _ = given
    for placed in walk(net, params, key):
        for path, leaf in tree_leaves_with_path(placed.params):
            if not is_float(leaf):
                got = f"{jnp.result_type(leaf)} at {keystr(path)}"
                remedy = "make it a field of the layer"
                raise ValueError(f"layer {placed.name}: expected parameters of floats to audit, got {got}; {remedy}")
    dtype, progress = _dtype(params, x), _Progress()
    progress.step("the network")

    def forward(given: Given, *_: Any) -> Any:
        a, cache = run_forward(net, given.params, given.x, key=given.key, train=True, mask=given.mask)
        if cost is None:
            return a
        return cost(a, given.y, weights=given.weights, output=net.output(given.params, cache))

    def audited(cost: Cost | None) -> Subject:
        return _with_forward_mode(
            lambda linear: Subject(
                functools.partial(whole_network, net, cost, linear), [(given, *directions(net, given))], dtype, forward
            )
        )

    broken = None
    try:
        whole = audited(cost)
    except (TypeError, ValueError) as error:  # an equation does not fit its neighbours: look at each by itself
        broken = error
        try:
            whole = audited(None)
        except (TypeError, ValueError):
            raise error from None
    chained = None
    if "errors" in whole:
        chained = Chained(whole.compared("errors")[0], whole.compared("gradients")[0], whole)
    places, rows = list(walk(net, params, key)), []
    das = whole.values[0].get("das", [None] * len(places))
    for i, (placed, a_in, da) in enumerate(zip(places, whole.values[0]["inputs"], das, strict=True)):
        progress.step(f"layer {placed.name} ({i + 1} of {len(places)})")
        rows = _layer_rows(placed, a_in, da, mask, dtype, finite, chained and chained.of(i)) + rows
    rows = _join_rows(net, params, whole, dtype) + rows
    if broken is not None and not any(map(_failed, rows)):
        raise broken
    composed = _composed_rows(whole)
    if not any(map(_failed, rows)) and any(row.verdict == "consequence" for row in [*rows, *composed]):
        rows = _wiring_rows(net, given, dtype) + rows
    for equation in ("output_error", "output_gradient"):
        if cost is not None and equation in whole:
            about = functools.partial(of_cost, net, cost, whole)
            rows.insert(0, _row(f"cost {cost}", whole, equation, about=about))
    return [*rows, *composed, *_product_rows(whole, "network")], dtype


def check_layer(
    layer: Layer, params: Params, x: Any, *, key: Any = None, mask: Any = None, finite_differences: bool = False
) -> Report:
    """`compare_gradients` for a layer by itself, without a cost: its equations against autodiff, fed with a random
    ∂C/∂a_out. A network is checked layer by layer.

    Args:
        layer: one of fnnet's, or of your own.
        params: from ``layer.init``.
        x: inputs (m, ...).
        key: for a layer that draws random numbers.
        mask: (m, T), True for the valid steps of sequences.
        finite_differences: as of `compare_gradients`.

    Raises:
        ValueError: for something that is no layer, an empty batch, or what the layer itself refuses.
    """
    if not isinstance(layer, Layer):
        got = type(layer).__name__
        raise ValueError(f"check_layer: expected a layer, got {got}; decorate a class of your own with @fn.layer")
    x, key = jnp.asarray(x), check_key(key)
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"x: expected a batch (m, ...) of at least one example, got shape {x.shape}")
    check_concrete("check_layer", params, x)
    given = Given(params, x, key=key, mask=mask)
    rows, dtype = _network_rows(layer, None, given, finite_differences)
    beside = functools.partial(_beside_network, layer, None, given)
    return _report(_settled(rows, (params, x), beside), dtype)


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
    return _report(_settled(rows, args, functools.partial(_vjp_rows, name, forward, backward)), _dtype(args))


def _vjp_rows(name: str, forward: Callable, backward: Callable, args: tuple) -> list[Row]:
    out = jax.eval_shape(forward, *args)[0]
    case, plain = (args, normals(out, 0), normals(args, 1)), lambda args, *_: forward(*args)[0]
    subject = _with_forward_mode(
        lambda linear: Subject(functools.partial(function_vjp, forward, backward, linear), [case], _dtype(args), plain)
    )
    given = subject.values[0]["given"]
    rows = [_structure_row(name, "backward", place) for place in sorted(given.manual.keys() - given.autodiff.keys())]
    m = next((leaf.shape[0] for leaf in jax.tree.leaves(out) if leaf.ndim), 1)
    rows += _function_rows(name, "backward", subject, functools.partial(of_function, subject, m))
    return rows + _product_rows(subject, name)


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
    subject = Subject(run, [(params, args)], _dtype(params), lambda params, args: value(params, *args))
    given = {keystr(path) for path, _ in tree_leaves_with_path(subject.values[0]["gradient"].manual)}
    extra = given - {keystr(path) for path, _ in tree_leaves_with_path(params)}
    shared = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(args) if jnp.ndim(leaf) and is_float(leaf)}
    about = functools.partial(of_function, subject, max(1, *shared) if len(shared) == 1 else 1)
    rows = [_structure_row(name, "gradient", place) for place in sorted(extra)]
    return _report(rows + _function_rows(name, "gradient", subject, about), subject.dtype)


def _structure_row(name: str, equation: str, leaf: str) -> Row:
    return Row(name, equation, leaf, "fail", float("inf"), hint="there is no such leaf to differentiate")


def check_concrete(name: str, *trees: Any) -> None:
    """Raise a ValueError for traced values and for complex ones."""
    for path, leaf in tree_leaves_with_path(trees):
        if isinstance(leaf, Tracer):
            raise ValueError(
                f"{name}: expected arrays, got a traced value; call it outside of jax.jit, jax.vmap and jax.grad"
            )
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise ValueError(f"{name}: expected real arrays, got {jnp.result_type(leaf)} at {keystr(path[1:])}")


def _dtype(*trees: Any) -> str:
    """The narrowest float of the first tree that has one."""
    for tree in trees:
        names = {str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree) if is_float(leaf)}
        if unknown := sorted(names - TOLERANCE.keys()):
            raise ValueError(
                f"expected floats of {', '.join(TOLERANCE)} to audit, got {unknown[0]}; cast the parameters"
            )
        if names:
            return max(names, key=TOLERANCE.__getitem__)
    return str(jnp.result_type(float))


class Chained(NamedTuple):
    """A layer's own error and gradients in its network, or those of all layers, and where they come from."""

    errors: Compared
    gradients: Compared
    subject: Subject

    def of(self, i: int) -> "Chained":
        return Chained(self.errors.of(lambda e: e[i]), self.gradients.of(lambda g: g[i]), self.subject)


def _layer_rows(
    placed: Placed, a_in: Array, da_real: Array | None, mask: Any, dtype: str, finite: bool, chained: Chained | None
) -> list[Row]:
    _, layer, params, key = placed
    name = placed.name
    a_out = jax.eval_shape(lambda p, a: run_forward(layer, p, a, key=key, train=True, mask=mask)[0], params, a_in)
    if not is_float(a_out):  # integers passed through: nothing to differentiate
        return [Row(name, "propagate", "", "vacuous")]
    das = [normals(a_out, 0)]
    if da_real is not None and np.isfinite(largest(da_real)) and largest(da_real) > 0:
        das.append(da_real)

    def forward(params: Params, a_in: Array, key: Any, mask: Any, *_: Any) -> Array:
        return run_forward(layer, params, a_in, key=key, train=True, mask=mask)[0]

    def audited(probe: Any) -> Subject:
        cases = [(params, a_in, key, mask, da, probe) for da in das]
        return Subject(functools.partial(isolated, layer), cases, dtype, forward, (5, 1, 0))

    subject = audited(probe_for(layer, params, a_in, key, mask, das[0]))
    unused = "error" in subject and largest(subject.values[0]["error"].autodiff) == 0
    if unused and largest(subject.values[0]["error"].manual) > 0 and largest(subject.values[0]["gradients"]) > 0:
        subject, chained = audited(None), None
    shown = subject.values[0]["gradients"]
    about = functools.partial(of_layer, layer, subject)
    third = functools.partial(central_difference, layer, subject) if finite else None
    row = functools.partial(_row, name, subject, about=about, third=third)
    paths = [path for path, _ in tree_leaves_with_path(params)]
    whole = None if chained is None else chained.gradients
    scales = [largest(shown.autodiff), 0.0 if whole is None else largest(whole.autodiff)]

    def in_place(sides: Compared | None, path: Any) -> tuple[Compared, Subject] | None:
        if chained is None or sides is None or sides.autodiff is None:
            return None
        return sides.of(functools.partial(leaf_at, path)), chained.subject

    rows = []
    if "error" in subject:
        for path, _ in tree_leaves_with_path(subject.values[0]["error"].autodiff):
            there = in_place(chained and chained.errors, path)
            rows.append(row("error", keystr(path), path=path, chained=there))
    rows.append(row("propagate") if "propagate" in subject else Row(name, "propagate", "", "vacuous"))
    if jax.tree.structure(shown.manual) != jax.tree.structure(params):
        hint = f"a pytree {jax.tree.structure(shown.manual)} where params is {jax.tree.structure(params)}"
        rows.append(Row(name, "gradients", "structure", "fail", float("inf"), hint=hint))
    for path in paths:
        rows.append(row("gradients", keystr(path), path=path, chained=in_place(whole, path), scales=scales))
    if "output_error" in subject:
        rows.append(row("output_error"))
    for equation in ("backward", "output_backward"):
        if f"{equation} da_in" not in subject:
            continue
        if jax.tree.leaves(subject.values[0][f"{equation} da_in"].autodiff):
            rows.append(row(equation, "da_in", source=f"{equation} da_in"))
        for path in paths:
            rows.append(row(equation, keystr(path), source=f"{equation} gradients", path=path, scales=scales))
    alone = "error" in subject or (type(layer).error is Layer.error and sum(map(_ran, rows)) < 2)
    return rows if alone else _judged_jointly(name, rows)


def _join_rows(net: Layer, params: Params, whole: Subject, dtype: str) -> list[Row]:
    """How joins of one's own split errors: one row for each branch."""
    rows = []
    for placed in composites(net, params):
        if (outputs := whole.values[0]["branches"].get(placed.place)) is None:
            continue
        join = placed.layer.join  # pyright: ignore[reportAttributeAccessIssue]
        if not all(map(is_float, outputs)):
            continue
        case = outputs, normals(jax.eval_shape(join.value, *outputs), 0)
        subject = Subject(
            functools.partial(split_error, join), [case], dtype, lambda outputs, da, j=join: j.value(*outputs)
        )
        about = functools.partial(of_function, subject, case[1].shape[0])
        rows += _function_rows(placed.name, "split", subject, about)
    return rows


def _wiring_rows(net: Layer, given: Given, dtype: str) -> list[Row]:
    """The composite inside the network whose parts are right and which is wrong as a layer: the innermost one."""
    inputs = {}

    def visit(place: tuple[int, ...], layer: Layer, params: Params, a_in: Array, **about: Any) -> Any:
        inputs[place] = a_in
        return run_forward(layer, params, a_in, **about)

    visited(net, given.params, given.x, visit, key=given.key, train=True, mask=given.mask)
    for placed in composites(net, given.params, given.key):
        if placed.place == ():
            continue
        wrong = [
            row
            for row in _layer_rows(placed, inputs[placed.place], None, given.mask, dtype, False, None)
            if _failed(row)
        ]
        if wrong:
            hint = "its parts are right by themselves: the way their errors are handed on (unwire) is not"
            return [dataclasses.replace(wrong[0], hint=hint)]
    return []


def _ran(row: Row) -> bool:
    return not np.isnan(row.difference)


def _judged_jointly(name: str, rows: list[Row]) -> list[Row]:
    """Without a probe ``error`` shows only in what it feeds: where all of that fails, ``error`` is the one that is wrong."""
    rows = [dataclasses.replace(row, joint=True) for row in rows]
    judged = [row for row in rows if _ran(row)]
    if not judged or not all(row.verdict == "fail" for row in judged):
        return [Row(name, "error", "", "pass", joint=True), *rows]
    worst = max(judged, key=lambda row: row.difference)
    consequences = [dataclasses.replace(row, verdict="consequence") if _ran(row) else row for row in rows]
    hint = "everything that it feeds is wrong"
    return [dataclasses.replace(worst, equation="error", leaf="", hint=hint, example=None), *consequences]


def _penalty_rows(penalty: Penalty, params: Params, n_examples: Any, dtype: str) -> list[Row]:
    """One row for all leaves, or one for each leaf that is wrong."""
    subject = Subject(penalty_gradient, [(params, penalty, n_examples)], dtype, lambda p, by, n: by.value(p, n))
    name, about = f"penalty {type(penalty).__name__}", functools.partial(of_penalty, penalty, n_examples, params)
    rows = [
        _row(name, subject, "gradient", keystr(path), path=path, about=about)
        for path, _ in tree_leaves_with_path(params)
    ]
    wrong = [row for row in rows if row.verdict in ("fail", SUBGRADIENTS)]
    (compared,) = subject.compared("gradient")
    found = differences(compared)
    return wrong or [Row(name, "gradient", "", "pass" if found.size else "vacuous", *_fields(found))]


def _function_rows(name: str, equation: str, subject: Subject, about: Callable[..., Failure]) -> list[Row]:
    """A row for each leaf of a single equation."""
    rows = []
    for path, right in tree_leaves_with_path(subject.values[0][equation].autodiff):
        row = _row(
            name, subject, equation, path[0].key if equation == "backward" else keystr(path), path=path, about=about
        )
        ours = leaf_at(path, subject.values[0][equation].manual)
        if ours is not None and jnp.result_type(ours) != right.dtype:
            row = dataclasses.replace(row, verdict="fail", hint=f"{jnp.result_type(ours)} instead of {right.dtype}")
        rows.append(row)
    return rows


def _composed_rows(whole: Subject) -> list[Row]:
    """The gradients as ``value_and_grad`` computes them, by each layer's composed backward pass, and those of ``backprop``
    where they are wrong: the layers' own rows show them otherwise."""
    rows = []
    for name in ("backprop", "value_and_grad"):
        if name not in whole:
            continue
        (compared,) = whole.compared(name)
        found = differences(compared)
        verdict = judge(found, whole, found.size)
        if verdict == "fail":
            rounded = found.in_float64 <= TOLERANCE["float64"] and np.isfinite(found.difference)
            verdict = "precision" if rounded else "consequence"
        if name == "value_and_grad" or verdict == "consequence":
            rows.append(Row("network", name, "", verdict if found.size else "vacuous", *_fields(found)))
    return rows


def _product_rows(subject: Subject, name: str) -> list[Row]:
    """⟨u, J v⟩ = ⟨Jᵀu, v⟩: forward mode against the composed hand-written backward pass, by one number each."""
    if "product" not in subject:
        return []
    (compared,) = subject.compared("product")
    found = differences(Compared(*(side if side is None else np.array([side, 1.0]) for side in compared)))
    sharp, dtype = (found.difference, subject.dtype) if np.isnan(found.in_float64) else (found.in_float64, "float64")
    if sharp > TOLERANCE[dtype] and sharp > TOLERANCE[subject.inner]:
        verdict = "consequence"
    else:
        verdict = "pass" if found.difference <= TOLERANCE[subject.dtype] else "precision"
    return [Row(name, "backward", "⟨u, Jv⟩", verdict, *_fields(found))]


def _report(rows: list[Row], dtype: str) -> Report:
    """The rows in order. Consequences without a cause are those of the composition."""
    order = {"fail": 0, "consequence": 1}
    rows = sorted(rows, key=lambda row: order.get(row.verdict, 2))
    if rows and rows[0].verdict == "consequence":
        hint = "each equation is right by itself: the way they are put together is not"
        rows[0] = dataclasses.replace(rows[0], verdict="fail", hint=hint)
    return Report(tuple(rows), dtype)


def _fields(found: Differences, chained: float = NAN) -> tuple[float, float, float, float, float, float]:
    """The numbers of a `Row`, in order."""
    return found.difference, chained, found.in_float64, found.manual_error, found.autodiff_error, found.size


def _row(
    layer: str,
    subject: Subject,
    equation: str,
    leaf: str = "",
    *,
    source: str = "",
    path: Any = None,
    chained: tuple[Compared, Subject] | None = None,
    scales: Sequence[float] = (0.0, 0.0),
    about: Callable[..., Failure] | None = None,
    third: Callable[..., float] | None = None,
) -> Row:
    """The verdict on one leaf of an equation; ``scales`` are the layer's largest gradients, for "zero to rounding"."""
    source = source or equation
    compared = subject.compared(source, path)
    alone = [differences(one) for one in compared]
    whole = None if chained is None else differences(chained[0])
    verdicts = [judge(found, subject, scales[0]) for found in alone]
    case = verdicts.index("fail") if "fail" in verdicts else int(np.argmax([found.difference for found in alone]))
    found, verdict = alone[case], verdicts[case]
    row = Row(layer, equation, leaf, verdict, *_fields(found, NAN if whole is None else whole.difference))
    if third is not None:
        row = dataclasses.replace(row, finite_difference=third(source, path, case))
    if verdict == "fail":
        return _explained(row, subject, source, path, case, compared[case], found, about)
    if chained is not None and whole is not None and judge(whole, chained[1], scales[1]) == "fail":
        return dataclasses.replace(row, verdict="consequence")
    if found.size == 0:
        return dataclasses.replace(row, verdict="vacuous")
    tiny = verdict == "pass" and found.size < rounding(subject.dtype) * scales[0]
    return dataclasses.replace(row, verdict="zero to rounding") if tiny else row


def _explained(
    row: Row,
    subject: Subject,
    source: str,
    path: Any,
    case: int,
    compared: Compared,
    found: Differences,
    about: Callable[..., Failure] | None,
) -> Row:
    """A failed row with the place and, as far as it can be told, the kind of mistake."""
    exact = compared.autodiff64 is not None and found.in_float64 > TOLERANCE["float64"]
    manual, reference = compared[2:] if exact else compared[:2]
    if jax.tree.structure(manual) != jax.tree.structure(reference):
        return dataclasses.replace(
            row, hint=f"{'nothing' if manual is None else 'another structure'} where an array belongs"
        )
    manual, reference = wide(manual), wide(reference)
    tolerance = TOLERANCE["float64" if exact else subject.dtype]
    if manual.shape == reference.shape and manual.size:
        with np.errstate(invalid="ignore"):
            gap = np.nan_to_num(np.abs(manual - reference), nan=np.inf)
        index = tuple(int(i) for i in np.unravel_index(int(np.argmax(gap)), gap.shape))
        count = int(np.sum(gap > tolerance * np.max(np.abs(reference))))
        row = dataclasses.replace(row, count=count, index=index, values=(float(manual[index]), float(reference[index])))
    if found.in_float64 <= TOLERANCE["float64"]:
        return dataclasses.replace(
            row, hint=f"right in float64, but in {subject.dtype} it overflows or loses precision"
        )
    if between(manual, reference, tolerance, subject.nearby(case, source, path)):
        return dataclasses.replace(
            row, verdict=SUBGRADIENTS, hint="at kinks or ties, where either value is a derivative"
        )
    failure = Failure(manual, reference, max(100 * tolerance, 1e-8))
    text, example = explain(failure if about is None else about(failure, source, path, case))
    return dataclasses.replace(row, hint=text, example=example)


def central_difference(layer: Layer, subject: Subject, source: str, path: Any, case: int) -> float:
    """The manual derivative of ⟨da_out, a_out⟩ along a random direction against (f(h) − f(−h)) / 2h, in float64."""
    one = subject.compared(source, path)[case]
    manual, reference = one[:2] if one.autodiff64 is None else one[2:]
    if subject.best(case) is not subject.exact[case] and subject.dtype != "float64":
        return NAN
    if manual is None or jnp.shape(manual) != jnp.shape(reference) or not jnp.size(reference):
        return NAN
    params, a_in, key, mask, da, probe = in_float64(subject.cases[case])
    manual, reference = wide(manual), wide(reference)
    noise = np.random.default_rng(0).standard_normal(reference.shape)
    v = noise / np.linalg.norm(noise) + reference / (np.linalg.norm(reference) or 1)
    moves = {"error": probe, "output_error": probe}.get(source, a_in if path is None else params)
    step = jax.tree_util.tree_map_with_path(lambda p, leaf: v if p == (path or ()) else np.zeros_like(leaf), moves)
    size = max(1.0, *(float(np.max(np.abs(leaf), initial=0)) for leaf in jax.tree.leaves(moves)))
    h = 1e-5 * size / np.max(np.abs(v))

    def f(h: float) -> float:
        moved = jax.tree.map(lambda leaf, s: jnp.asarray(leaf + h * s), moves, step)
        p, a, q = (moved if given is moves else given for given in (params, a_in, probe))
        given = {"key": key, "train": True, "mask": mask, "probe": q}
        return float(np.sum(wide(run_forward(layer, *jax.tree.map(jnp.asarray, (p, a)), **given)[0]) * da))

    with jax.enable_x64(True):
        measured = (f(h) - f(-h)) / (2 * h)
    ours = float(np.sum(manual * v)) * (a_in.shape[0] if "gradients" in source else 1)
    return abs(ours - measured) / max(abs(measured), np.finfo(float).tiny)


class _Progress:
    """Where an audit is, on stderr, every few seconds of a long one."""

    def __init__(self) -> None:
        self.start = self.told = time.monotonic()

    def step(self, what: str) -> None:
        now = time.monotonic()
        if now - self.told > 4:
            self.told = now
            print(f"auditing {what}, {now - self.start:.0f} s so far", file=sys.stderr, flush=True)
