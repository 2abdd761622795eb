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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..costs import Cost
from ..given import check_batch
from ..layers._composite import Placed, composites, visited, walk
from ..layers._layer import Layer, Params, check_key, run_forward
from ..penalties import Penalty, check_penalty
from .function_mistakes import of_function
from .network_mistakes import of_cost, of_layer, of_penalty
from .report import Report, Row
from .rows import (
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
    directions,
    is_float,
    isolated,
    leaf_at,
    normals,
    penalty_gradient,
    probe_for,
    split_error,
    whole_network,
)
from .verdicts import NAN, TOLERANCE, Compared, Subject, differences, in_float64, judge, largest, wide


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
    if broken is not None and not any(map(failed, rows)):
        raise broken
    composed = _composed_rows(whole)
    if not any(map(failed, rows)) and any(row.verdict == "consequence" for row in [*rows, *composed]):
        rows = _wiring_rows(net, given, dtype) + rows
    for equation in ("output_error", "output_gradient"):
        if cost is not None and equation in whole:
            about = functools.partial(of_cost, net, cost, whole)
            rows.insert(0, judged(f"cost {cost}", whole, equation, about=about))
    return [*rows, *composed, *product_rows(whole, "network")], dtype


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
    row = functools.partial(judged, name, subject, about=about, third=third)
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
        about = functools.partial(of_function, subject, case[1].shape[0], None)
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
            row
            for row in _layer_rows(placed, inputs[placed.place], None, given.mask, dtype, False, None)
            if failed(row)
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
    ran = [row for row in rows if _ran(row)]
    if not ran or not all(row.verdict == "fail" for row in ran):
        return [Row(name, "error", "", "pass", joint=True), *rows]
    worst = max(ran, key=lambda row: row.difference)
    consequences = [dataclasses.replace(row, verdict="consequence") if _ran(row) else row for row in rows]
    hint = "everything that it feeds is wrong"
    return [dataclasses.replace(worst, equation="error", leaf="", hint=hint, example=None), *consequences]


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
            rows.append(Row("network", name, "", verdict if found.size else "vacuous", *fields(found)))
    return rows


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
