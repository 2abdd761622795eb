"""What a network replaces: BP2 by a rule, σ' by that of a surrogate.

The audit judges the network that is left when nothing is replaced: true backpropagation in the place of rules, and the
surrogate itself in the place of an activation that has one. What is replaced is shown beside it, by its angle to the true one
and the ratio of their norms, and held to itself: in two passes, in one and in halves it must be the same.
"""

import copy
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..activations import Activation
from ..backpropagation import errors_of
from ..costs import Cost
from ..layers._composite import Composite, Placed, is_walked, output_place, visited, walk
from ..layers._layer import Layer, Params, run_forward
from ..layers._swapped import Ruled, Swapped, unswapped
from .composed import WAYS, composed
from .layer import Terms, without_rule
from .points import on_device
from .report import Row
from .rows import failed, fields
from .sides import Given, Plain, Two, compiled_once, is_float
from .verdicts import Subject, arrays, differences, exactly, judge
from .whole import MISFITS

REPLACED = "replaced"
OF_SURROGATE = "the derivative of"
NOT_EVEN_ITSELF = (
    "the rule gives other results {way} than in two passes: its methods must give the same for the same, each example by "
    "itself, and learn a mean over the batch"
)


def standing(net: Layer) -> Layer:
    """The network with nothing replaced, on the same parameters: the one that is judged."""
    return _smooth(unswapped(net))


def _smooth(net: Layer) -> Layer:
    """The network with surrogates in the place of the activations that have one."""
    if isinstance(net, Composite):
        return net.mapped(_smooth)
    twin = copy.copy(net)
    for name, activation in _replaced_activations(net):
        object.__setattr__(twin, name, activation.surrogate)
    return twin


def _replaced_activations(layer: Layer) -> Iterator[tuple[str, Activation]]:
    """The fields of a layer with an activation that has a surrogate."""
    for field in dataclasses.fields(layer):  # pyright: ignore[reportArgumentType]
        value = getattr(layer, field.name)
        if isinstance(value, Activation) and value.surrogate is not None:
            yield field.name, value


def with_replaced(rows: list[Row], net: Layer, cost: Cost | None, given: Given, u: Array, terms: Terms) -> list[Row]:
    """The rows, those of what is replaced, and what that is held to. An error by a surrogate takes its layer's own place."""
    surrogates = list(_surrogate_rows(net, given.params))
    instead = {row.layer for row in surrogates}
    rows = [row for row in rows if (row.equation, row.verdict) != ("error", "pass") or row.layer not in instead]
    _insert(rows, surrogates)
    try:
        _insert(rows, _rule_rows(net, cost, given, u))
        rows += _rows_of_passes(net, cost, given, u, terms, "consequence" if any(map(failed, rows)) else "fail")
    except MISFITS:  # an equation that is wrong already does not fit its neighbours
        if not any(map(failed, rows)):
            raise
    return rows


def _insert(rows: list[Row], more: list[Row]) -> None:
    """Each below those of its layer."""
    for row in more:
        after = [i for i, other in enumerate(rows) if other.layer == row.layer]
        rows.insert(after[-1] + 1 if after else len(rows), row)


def _surrogate_rows(net: Layer, params: Params) -> Iterator[Row]:
    for placed in walk(net, params):
        for _, activation in _replaced_activations(without_rule(placed).layer):
            hint = f"the derivative of {activation.surrogate!r} in place of that of {activation.name}"
            yield Row(placed.name, "error", "", REPLACED, hint=hint)


def _rule_rows(net: Layer, cost: Cost | None, given: Given, u: Array) -> list[Row]:
    """From the last layer to the first."""
    run = functools.partial(sent_down, _smooth(net), standing(net), cost)
    found, rows = exactly(run, given, u) or run(given, u), []
    for placed in walk(net, given.params):
        for equation, (ours, right) in found.get(placed.place, {}).items():
            same = all(map(np.array_equal, arrays(ours), arrays(right)))
            if not same or (equation == "propagate" and jax.tree.leaves(placed.params["back"])):
                rows.insert(0, _replaced_row(placed, equation, ours, right))
    return rows


def _replaced_row(placed: Placed, equation: str, ours: Any, right: Any) -> Row:
    angle, ratio = _angle_and_ratio(ours, right)
    where = "" if np.isnan(angle) else f"{angle:.1f}° from the true one, "
    size = "the true one is 0" if np.isnan(ratio) else f"{ratio:.3g} times its norm"
    hint = f"by {placed.layer.rule!r}: {where}{size}"  # pyright: ignore[reportAttributeAccessIssue]
    return Row(placed.name, equation, "", REPLACED, angle=angle, ratio=ratio, hint=hint)


def _angle_and_ratio(ours: Any, right: Any) -> tuple[float, float]:
    """In degrees, by Kahan's formula; NaN where a vector is 0."""
    a, b = (np.concatenate([leaf.ravel() for leaf in arrays(side)]) for side in (ours, right))
    of_a, of_b = np.linalg.norm(a), np.linalg.norm(b)
    if not of_a * of_b > 0:
        return float("nan"), float(of_a / of_b) if of_b > 0 else float("nan")
    u, v = a / of_a, b / of_b
    angle = 2 * np.arctan2(np.linalg.norm(u - v), np.linalg.norm(u + v))
    return float(np.degrees(angle)), float(of_a / of_b)


def _ruled(net: Layer, params: Params, key: Any, place: tuple = (), top: Any = ...) -> Iterator[tuple[Placed, Any]]:
    """`walk`, each layer with the place of the one whose δ is its rule's δ^L."""
    if not is_walked(net):
        yield Placed(place, net, params, key), None if top is ... else top
        return
    inner = net.inner if isinstance(net, Swapped) else None
    if inner is not None and top is ...:
        last = output_place(net)
        top = None if last is None else (*place, *last)
    parts = net.parts(params)  # pyright: ignore[reportAttributeAccessIssue]
    for i, ((part, p), k) in enumerate(zip(parts, net._keys(key), strict=True)):  # pyright: ignore
        mine = inner is None or not isinstance(inner[i], Swapped)
        yield from _ruled(part, p, k, (*place, i), top if mine else ...)


@compiled_once(fixed=3)
def sent_down(net: Layer, true: Layer, cost: Cost | None, given: Given, u: Array) -> dict[tuple, dict[str, Two]]:
    """Of each layer with a rule that changes it, by place: its δ, and what it sends down for its true δ, beside the true
    ones."""
    params, x, y, key, mask, weights = given
    places = list(_ruled(net, params, key))
    inputs: dict[tuple, Array] = {}

    def value(taps: dict[tuple, Array]) -> Array:
        """m C; what is added to each output has ∂(m C)/∂a_out for its derivative."""

        def visit(place: tuple, layer: Layer, p: Params, a: Array, **about: Any) -> tuple[Array, Any]:
            inputs[place] = a
            a_out, cache = run_forward(layer, p, a, **about)
            return a_out + taps[place] if place in taps else a_out, cache

        a = visited(true, params, x, visit, key=key, train=True, mask=mask)
        return jnp.sum(u * a) if cost is None else x.shape[0] * cost(a, y, weights=weights)

    outputs = jax.eval_shape(lambda: _outputs(true, given))
    taps = {place: on_device(np.zeros(a.shape), a.dtype) for place, a in outputs.items() if is_float(a)}
    das = jax.grad(value)(taps)
    value({})
    deltas, caches = {}, {}
    for placed, _ in places:
        place, layer, p, k = placed
        if place in das:
            _, cache = run_forward(layer, p, inputs[place], key=k, train=True, mask=mask)
            caches[place] = cache
            bare, mine = without_rule(placed), cache[0] if isinstance(layer, Ruled) else cache
            deltas[place] = bare.layer.error(bare.params, mine, das[place])
    found = {}
    for (place, layer, p, _), top in places:
        if place not in das or not isinstance(layer, Ruled) or layer.is_plain(p, caches[place]):
            continue
        cache, delta = caches[place], deltas[place]
        right = layer.layer._propagated(p["net"], cache[0], delta)
        ours = layer.propagate({**p, "top": deltas.get(top)}, cache, delta)
        found[place] = {"error": Two(layer.error(p, cache, das[place]), delta)}
        if right is not None:
            found[place]["propagate"] = Two(ours, right)
    return found


def _outputs(net: Layer, given: Given) -> dict[tuple, Array]:
    """What each layer of `walk` gives."""
    outputs = {}

    def visit(place: tuple, layer: Layer, p: Params, a: Array, **about: Any) -> tuple[Array, Any]:
        a_out, cache = run_forward(layer, p, a, **about)
        if "run" not in about:
            outputs[place] = a_out
        return a_out, cache

    visited(net, given.params, given.x, visit, key=given.key, train=True, mask=given.mask)
    return outputs


def _rows_of_passes(
    net: Layer, cost: Cost | None, given: Given, u: Array, terms: Terms, otherwise: Literal["fail", "consequence"]
) -> list[Row]:
    """In one pass and as ``fit`` runs it against two passes; and with arrays that make it backpropagation, against that. A
    difference is ``otherwise``: a consequence where a layer is wrong already."""
    run = functools.partial(_passes, net, cost)
    subject, rows = Subject(run, [(given, u)], terms.dtype, run), []
    for name in subject.values[0]:
        (compared,) = subject.compared(name)
        found = differences(compared)
        verdict = judge(found, subject, found.size)
        verdict = otherwise if verdict == "fail" else verdict
        hint = NOT_EVEN_ITSELF.format(way=name) if name in WAYS else "with B := w it is not backpropagation"
        rows.append(Row("network", "backward", name, verdict, *fields(found), hint=hint * (verdict == "fail")))
    return rows


@compiled_once(fixed=2)
def _passes(net: Layer, cost: Cost | None, given: Given, u: Array) -> dict[str, Two]:
    ways = composed(Plain(net), cost, net.in_loop(), net.independent and given.x.shape[0] > 1, given, u)
    first, *others = ((way, two.manual) for way, two in ways.items())
    found = {way: Two(other, first[1]) for way, other in others}
    own, true = neutral(net, given.params), unswapped(net)
    if own is not None and true != net:
        found["B := w"] = Two(_errors(net, cost, given._replace(params=own), u), _errors(true, cost, given, u))
    return found


def _errors(net: Layer, cost: Cost | None, given: Given, u: Array) -> Any:
    params, x, y, key, mask, weights = given
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    if cost is None:
        return net.error(params, cache, u)
    return errors_of(net, cost, params, a, cache, y, weights, params)


def neutral(net: Layer, params: Params) -> Params | None:
    """The parameters with arrays of the rules that make them backpropagation, as B := w does; None where a rule has none."""
    if isinstance(net, Ruled):
        back = net.rule._neutral(net.layer, params["net"], params["back"])
        return None if back is None else {**params, "back": back}
    if not is_walked(net):
        return params
    parts = tuple(neutral(part, p) for part, p in net.parts(params))  # pyright: ignore[reportAttributeAccessIssue]
    if any(p is None for p in parts):
        return None
    return net.gathered(parts)  # pyright: ignore[reportAttributeAccessIssue]
