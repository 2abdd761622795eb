"""The audit of networks and layers.

Each equation is checked by itself (*isolated*: fed with autodiff's δ, for a random cotangent and for this cost's own, so
that an equation which is right only for this cost, or only above the bottom of the network, does not pass) and in its place
(*chained*: the network's errors and gradients for this cost). An isolated failure is a cause; a chained one alone is a
consequence.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..costs import Cost
from ..given import check_batch
from ..layers._composite import composites, visited, walk
from ..layers._layer import Layer, Params, check_key, run_forward
from ..penalties import Penalty, check_penalty
from .central import opinion
from .layer import Chained, layer_rows
from .mistakes import of_cost, of_function, of_penalty
from .report import Report, Row
from .rows import (
    NOT_EVEN_AUTODIFF,
    SUBGRADIENTS,
    check_concrete,
    dtype_of,
    failed,
    fields,
    function_rows,
    judged,
    product_rows,
    reported,
    settled,
    with_forward_mode,
)
from .sides import (
    Given,
    compiled_once,
    directions,
    is_float,
    normals,
    penalty_gradient,
    split_error,
    whole_network,
)
from .verdicts import TOLERANCE, Subject, differences, judge


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
    return reported(settled(rows, (params, x), beside), dtype)


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
    return reported(settled(rows, (params, x), beside), dtype)


def _beside_network(net: Layer, cost: Cost | None, given: Given, moved: tuple) -> list[Row]:
    return _network_rows(net, cost, given._replace(params=moved[0], x=moved[1]), False)[0]


def _network_rows(net: Layer, cost: Cost | None, given: Given, finite: bool) -> tuple[list[Row], str]:
    """The rows of every layer, of the network and of the cost, and the audit's dtype."""
    params, x, _, key, mask, _ = given
    for placed in walk(net, params, key):
        for path, leaf in tree_leaves_with_path(placed.params):
            if not is_float(leaf):
                got = f"{jnp.result_type(leaf)} at {keystr(path)}"
                remedy = "make it a field of the layer"
                raise ValueError(f"layer {placed.name}: expected parameters of floats to audit, got {got}; {remedy}")
    dtype, progress = dtype_of(params, x), _Progress()
    progress.step("the network")

    def forward(given: Given, *_: Any) -> Any:
        a, cache = run_forward(net, given.params, given.x, key=given.key, train=True, mask=given.mask)
        if cost is None:
            return a
        return cost(a, given.y, weights=given.weights, output=net.output(given.params, cache))

    def audited(cost: Cost | None) -> Subject:
        return with_forward_mode(
            lambda linear: Subject(
                functools.partial(whole_network, net, cost, linear),
                [(given, *directions(net, given))],
                dtype,
                forward,
                pairing=cost and functools.partial(_pairing, net, cost),
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
        rows = layer_rows(placed, a_in, da, mask, dtype, finite, chained and chained.of(i)) + rows
    rows = _join_rows(net, params, whole, dtype) + rows
    if broken is not None and not any(map(failed, rows)):
        raise broken
    composed = _composed_rows(whole, finite)
    if not any(map(failed, rows)) and any(row.verdict == "consequence" for row in [*rows, *composed]):
        rows = _wiring_rows(net, given, dtype) + rows
    for equation in ("output_error", "output_gradient"):
        if cost is not None and equation in whole:
            about = functools.partial(of_cost, net, cost, whole)
            rows.insert(0, judged(f"cost {cost}", whole, equation, about=about, finite=finite))
    return [*rows, *composed, *product_rows(whole, "network")], dtype


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
        rows += function_rows(placed.name, "split", subject, about)
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
            row for row in layer_rows(placed, inputs[placed.place], None, given.mask, dtype, False, None) if failed(row)
        ]
        if wrong:
            hint = "its parts are right by themselves: the way their errors are handed on (unwire) is not"
            return [dataclasses.replace(wrong[0], hint=hint)]
    return []


def _penalty_rows(penalty: Penalty, params: Params, n_examples: Any, dtype: str) -> list[Row]:
    """One row for all leaves, or one for each leaf that is wrong."""
    subject = Subject(penalty_gradient, [(params, penalty, n_examples)], dtype, lambda p, by, n: by.value(p, n))
    name, about = f"penalty {type(penalty).__name__}", functools.partial(of_penalty, penalty, n_examples, params)
    rows = [
        judged(name, subject, "gradient", keystr(path), path=path, about=about)
        for path, _ in tree_leaves_with_path(params)
    ]
    wrong = [row for row in rows if row.verdict in ("fail", SUBGRADIENTS)]
    (compared,) = subject.compared("gradient")
    found = differences(compared)
    return wrong or [Row(name, "gradient", "", "pass" if found.size else "vacuous", *fields(found))]


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
        row = Row("network", name, "", verdict if found.size else "vacuous", *fields(found))
        third = opinion(whole, name, None, 0) if finite else None
        if third is not None:
            row = dataclasses.replace(row, finite_difference=third.manual)
            if verdict != "consequence" and third.contradicts(third.manual):
                row = dataclasses.replace(row, verdict="fail", hint=NOT_EVEN_AUTODIFF)
        if name == "value_and_grad" or row.verdict in ("consequence", "fail"):
            rows.append(row)
    return rows


class _Progress:
    """Where an audit is, on stderr, every few seconds of a long one."""

    def __init__(self) -> None:
        self.start = self.told = time.monotonic()

    def step(self, what: str) -> None:
        now = time.monotonic()
        if now - self.told > 4:
            self.told = now
            print(f"auditing {what}, {now - self.start:.0f} s so far", file=sys.stderr, flush=True)
