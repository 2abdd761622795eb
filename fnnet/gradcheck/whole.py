"""A network at one point: the rows of its layers, of joins and wiring, of the composed backward pass and of the cost."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..backpropagation import value_and_grad
from ..costs import Cost
from ..layers._composite import composites, walk
from ..layers._layer import Layer, Params, run_forward
from .central import opinion, supports_manual
from .devices import Lying, gathered, numbers_of_devices, placed_like
from .function_mistakes import of_function
from .layer import Chained, Terms, layer_rows
from .network_mistakes import of_cost
from .report import Row
from .rows import (
    BETTER,
    NOT_EVEN_AUTODIFF,
    dtype_of,
    failed,
    faint,
    fields,
    function_rows,
    judged,
    product_rows,
    with_forward_mode,
)
from .sides import (
    Given,
    Plain,
    Two,
    activation_of,
    compiled_once,
    every_input,
    inputs_of,
    is_float,
    normals,
    split_error,
    two_forms,
    whole_network,
)
from .verdicts import TOLERANCE, Compared, Subject, differences, exactly, judge, largest

MISFITS = (TypeError, ValueError, NotImplementedError)


class Found(NamedTuple):
    """The rows of a network at one point, whether its forward pass is finite there, and what they were read from."""

    rows: list[Row]
    is_finite: bool
    whole: Subject


def network_rows(
    net: Layer, cost: Cost | None, given: Given, u: Any, terms: Terms, told: Callable[[str], None] = lambda _: None
) -> Found:
    """The rows of every layer, of the network and of the cost; ``u`` is a cotangent of the output."""
    params, x, _, key, mask, _ = given
    told("the network")

    def forward(given: Given, *_: Any) -> Any:
        a, cache = run_forward(net, given.params, given.x, key=given.key, train=True, mask=given.mask)
        if cost is None:
            return a
        return cost(a, given.y, weights=given.weights, output=net.output(given.params, cache))

    def audited(cost: Cost | None) -> Subject:
        plain, case = Plain(net, (), terms.trusted), (given, u, normals((params, x), 1))
        return with_forward_mode(
            lambda linear: Subject(
                functools.partial(whole_network, plain, cost, linear),
                [case],
                terms.dtype,
                forward,
                pairing=cost and functools.partial(_pairing, net, cost),
                axes=terms.axes,
            )
        )

    broken = None
    try:
        whole = audited(cost)
    except MISFITS as error:  # an equation does not fit its neighbours: look at each by itself
        broken = error
        try:
            whole = audited(None)
        except MISFITS:
            whole = Subject(functools.partial(inputs_of, net), [(given,)], terms.dtype, forward)
    chained = None
    if "errors" in whole:
        chained = Chained(whole, lambda errors: errors, lambda gradients: gradients)
    places, rows = list(walk(net, params, key)), []
    values = whole.values[0]
    das = values.get("das", [None] * len(places))
    for i, (placed, a_in, da) in enumerate(zip(places, values["inputs"], das, strict=True)):
        told(f"layer {placed.name} ({i + 1} of {len(places)})")
        rows = layer_rows(placed, a_in, da, mask, terms, chained and chained.of(i)) + rows
    rows = _join_rows(net, params, whole, terms) + rows
    if broken is not None and not any(map(failed, rows)):
        raise broken
    composed = _composed_rows(whole, terms.finite)
    if not any(map(failed, rows)) and any(row.verdict == "consequence" for row in [*rows, *composed]):
        rows = _wiring_rows(net, given, terms) + rows
    elif any(map(failed, rows)):
        composed = [dataclasses.replace(row, verdict="consequence") if failed(row) else row for row in composed]
    for equation in ("output_error", "output_gradient"):
        if cost is not None and equation in whole:
            about = functools.partial(of_cost, net, cost, whole)
            rows.insert(0, judged(f"cost {cost}", whole, equation, about=about, finite=terms.finite))
    if cost is not None and "output_error" in whole:
        rows.insert(1, _terms_row(net, cost, given, whole.best(0)["output_error"].autodiff, terms))
    rows += [*composed, *product_rows(whole, "network")]
    if terms.finite and not any(map(failed, rows)) and {row.verdict for row in composed or rows} & {BETTER}:
        rows = [dataclasses.replace(row, verdict=BETTER) if row.verdict == "consequence" else row for row in rows]
    is_finite = bool(np.isfinite(largest([a for a in (*values["inputs"], values["output"]) if is_float(a)])))
    return Found(rows, is_finite, whole)


def _join_rows(net: Layer, params: Params, whole: Subject, terms: Terms) -> list[Row]:
    """How joins of one's own split errors: one row for each branch."""
    rows = []
    for placed in composites(net, params):
        if (outputs := whole.values[0]["branches"].get(placed.place)) is None:
            continue
        join = placed.layer.join  # pyright: ignore[reportAttributeAccessIssue]
        if not all(map(is_float, outputs)):
            continue
        case = outputs, normals(jax.eval_shape(join.value, *outputs), 0)
        run = functools.partial(split_error, join, Plain(placed.layer, (), terms.trusted))
        subject = Subject(run, [case], terms.dtype, lambda outputs, da, j=join: j.value(*outputs))
        about = functools.partial(of_function, subject, case[1].shape[0])
        rows += function_rows(placed.name, "split", subject, about)
    return rows


def _wiring_rows(net: Layer, given: Given, terms: Terms) -> list[Row]:
    """The composite inside the network whose parts are right and which is wrong as a layer: the innermost one."""
    inputs = every_input(net, given)
    for placed in composites(net, given.params, given.key):
        if placed.place == ():
            continue
        wrong = [row for row in layer_rows(placed, inputs[placed.place], None, given.mask, terms) if failed(row)]
        if wrong:
            hint = "its parts are right by themselves: the way their errors are handed on (unwire) is not"
            return [dataclasses.replace(wrong[0], hint=hint)]
    return []


def _terms_row(net: Layer, cost: Cost, given: Given, z: Any, terms: Terms) -> Row:
    """The two forms of a cost, from a and from z, at moderate z, where neither loses precision."""
    activation = activation_of(net, given)
    case = np.random.default_rng(0).standard_normal((2, *np.shape(z))), given.y, given.weights
    run = functools.partial(two_forms, cost, activation)
    found, dtype = exactly(run, *case), "float64"
    if found is None:
        found, dtype = run(*jax.tree.map(lambda a: a.astype(terms.dtype) if is_float(a) else a, case)), terms.dtype
    compared = Compared(*found["terms"])
    apart = differences(compared)
    if dtype != terms.dtype:
        apart = apart._replace(in_float64=apart.difference, manual_error=apart.difference, autodiff_error=0.0)
    if apart.difference <= TOLERANCE[dtype]:
        return Row(f"cost {cost}", "terms", "", "pass", *fields(apart))
    manual, reference = (float(side[0]) for side in compared[:2])
    hint = f"two different costs: C = {manual:.6g} from z and C = {reference:.6g} from a"
    return Row(f"cost {cost}", "terms", "", "fail", *fields(apart), hint=hint)


def _pairing(net: Layer, cost: Cost, source: str, given: Given, *_: Any) -> tuple[Callable, Any]:
    """C as a function of the parameters, or m C as one of what the cost is a function of, a or z."""
    params, x, y, key, mask, weights = given
    if source in ("backprop", "value_and_grad"):
        return lambda params: _value(net, cost, given._replace(params=params)), params
    m = x.shape[0]
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    output = net.output(params, cache)
    if source == "output_gradient" or output is None:
        return lambda a: m * cost(a, y, weights=weights), a
    activation, z = output
    return lambda z: m * cost(activation(z), y, weights=weights, output=(activation, z)), z


@compiled_once(fixed=2)
def _value(net: Layer, cost: Cost, given: Given) -> Array:
    params, x, y, key, mask, weights = given
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    return cost(a, y, weights=weights, output=net.output(params, cache))


def _composed_rows(whole: Subject, finite: bool = False) -> list[Row]:
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
        hint = faint(found, whole.dtype) if verdict == "consequence" else ""
        row = Row("network", name, "", verdict if found.size else "vacuous", *fields(found), hint=hint)
        third = opinion(whole, name, None, 0) if finite else None
        if third is not None:
            row = dataclasses.replace(row, finite_difference=third.manual)
            if verdict != "consequence" and third.contradicts(third.manual):
                row = dataclasses.replace(row, verdict="fail", hint=NOT_EVEN_AUTODIFF)
            if verdict == "consequence" and supports_manual(whole, name, None, 0):
                row = dataclasses.replace(row, verdict=BETTER)
        if name == "value_and_grad" or row.verdict in ("consequence", "fail", BETTER):
            rows.append(row)
    return rows


def rows_in_place(
    lying: Lying, cost: Cost, given: Given, whole: Subject, terms: Terms, is_cause: bool
) -> tuple[list[Row], list[str]]:
    """``value_and_grad`` on the arrays where they lie against autodiff on one device: a row, or one for each leaf that is
    wrong; and what to say where it cannot be run. ``is_cause``: whether nothing else is wrong."""
    if "value_and_grad" not in whole:
        return [], []
    (right,) = whole.compared("value_and_grad")
    gradient = value_and_grad(lying.net, cost)

    def run(given: Given) -> dict[str, Any]:
        params, x, y, key, mask, weights = placed_like(given, lying.there)
        found = gradient(params, x, y, key=key, mask=mask, weights=weights)[1]
        doubled = right.autodiff64 is not None and dtype_of(params, x) == "float64"
        return {"value_and_grad": Two(gathered(found), right.autodiff64 if doubled else right.autodiff)}

    devices = f"on {max(numbers_of_devices(terms.axes).values())} devices"
    try:
        subject = Subject(run, [(given,)], terms.dtype, whole.forward, axes=terms.axes)
    except Exception as error:  # whatever a layer or the compiler raises for divided arrays
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return [], [f"Not audited {devices}, where value_and_grad raises {reason}"]
    scales = (largest(right.autodiff), 0.0)
    rows = [
        judged("network", subject, "value_and_grad", f"{keystr(path)} {devices}", path=path, scales=scales)
        for path, _ in tree_leaves_with_path(given.params)
    ]
    wrong = [row for row in rows if failed(row)]
    if wrong:
        return [row if is_cause else dataclasses.replace(row, verdict="consequence", hint="") for row in wrong], []
    (compared,) = subject.compared("value_and_grad")
    found = differences(compared)
    return [Row("network", "value_and_grad", devices, judge(found, subject, found.size), *fields(found))], []
