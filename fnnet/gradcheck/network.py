"""The audit of networks and layers.

Each equation is checked by itself (*isolated*: fed with autodiff's δ, for a random cotangent and for this cost's own, so
that an equation which is right only for this cost, or only above the bottom of the network, does not pass) and in its place
(*chained*: the network's errors and gradients for this cost). An isolated failure is a cause; a chained one alone is a
consequence.
"""

import functools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from ..costs import Cost
from ..given import called_as, check_batch
from ..layers._composite import walk
from ..layers._layer import Layer, Params, check_key
from ..penalties import Penalty, check_penalty
from .devices import Lying, on_one_device
from .elsewhere import Audited, elsewhere_rows
from .layer import Terms
from .network_mistakes import of_penalty
from .replaced import standing, with_replaced
from .report import Report, Row
from .rows import APPROXIMATE, ROUGHLY, SUBGRADIENTS, check_concrete, dtype_of, fields, judged, reported, settled
from .rules import name_of, sources, sources_in
from .sides import Given, gradient_without_rules, is_float, normals, penalty_gradient, traced
from .verdicts import TOLERANCE, Subject, differences
from .whole import network_rows, rows_in_place


@called_as("compare_gradients(net, cost, params, x, y)")
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
    trust: Sequence[Callable[..., Any]] = (),
) -> Report:
    """Compare the hand-written backpropagation with autodiff, equation by equation, and say which is wrong, where, and what
    kind of mistake it looks like.

    The arguments are those of `fnnet.backprop`. The comparison runs in the parameters' dtype and in float64.

    A row passes where manual and autodiff agree in float64 (to 1e-10 of the largest entry) and in the parameters' dtype (to
    64 eps in float32, 16 eps in float16, 4 eps in bfloat16). Where only the latter fails, the verdict is "precision" as long
    as manual is at most 4 times as far from float64 as autodiff is, or as these bounds. A layer that rounds to a narrower
    dtype inside is held to that dtype's bound.

    Arrays may lie on a mesh, of one process or several that all call it: the equations are compared on one device, and the
    gradients of `value_and_grad` also where the arrays lie.

    Of a `fnnet.Swapped` network true backpropagation is judged, on the same parameters; what its rules replace is shown
    beside it ("replaced") and held to itself. Of an activation with a surrogate the surrogate is judged.

    Args:
        finite_differences: whether each derivative is also compared with central differences in float64, along a random
            direction: a third opinion, which decides.
        trust: functions with a hand-written rule inside a forward pass, whose rule is taken as it is. Any other is audited,
            and autodiff differentiates the function in its place.

    Raises:
        ValueError: for bad input, as `fnnet.backprop`; for a rule inside forward whose function cannot be differentiated; for
            a layer that names the axis of a mesh, and examples that are not divided over one.
    """
    check_penalty(penalty)
    net, (params, *batch), lying = on_one_device("compare_gradients", net, Given(params, x, y, key, mask, weights))
    x, y, key, mask, weights = check_batch(net, cost, params, *batch)
    check_concrete("compare_gradients", params, x, y, weights)
    given = Given(params, x, y, key, mask, weights)
    extra = [] if penalty is None else [(penalty, x.shape[0] if n_examples is None else n_examples)]
    return _audited(net, cost, given, lying, finite_differences, trust, extra)


def check_layer(
    layer: Layer,
    params: Params,
    x: Any,
    *,
    key: Any = None,
    mask: Any = None,
    finite_differences: bool = False,
    trust: Sequence[Callable[..., Any]] = (),
) -> Report:
    """`compare_gradients` for a layer by itself, without a cost: its equations against autodiff, fed with a random
    ∂C/∂a_out. A network is checked layer by layer.

    Args:
        layer: one of fnnet's, or of your own.
        params: from ``layer.init``.
        x: inputs (m, ...).
        key: for a layer that draws random numbers.
        mask: (m, T), True for the valid steps of sequences.
        finite_differences: as of `compare_gradients`, as is ``trust``.

    Raises:
        ValueError: for something that is no layer, an empty batch, a rule inside forward whose function cannot be
            differentiated, or what the layer itself refuses.
    """
    if not isinstance(layer, Layer):
        got = type(layer).__name__
        raise ValueError(f"check_layer: expected a layer, got {got}; decorate a class of your own with @fn.layer")
    layer, (params, x, _, key, mask, _), lying = on_one_device("check_layer", layer, Given(params, x, None, key, mask))
    x, key = jnp.asarray(x), check_key(key)
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"x: expected a batch (m, ...) of at least one example, got shape {x.shape}")
    check_concrete("check_layer", params, x)
    return _audited(layer, None, Given(params, x, key=key, mask=mask), lying, finite_differences, trust)


def _audited(
    net: Layer,
    cost: Cost | None,
    given: Given,
    lying: Lying,
    finite: bool,
    trust: Sequence[Callable],
    penalties: Sequence = (),
) -> Report:
    for placed in walk(net, given.params, given.key):
        for path, leaf in tree_leaves_with_path(placed.params):
            if not is_float(leaf):
                got = f"{jnp.result_type(leaf)} at {keystr(path)}"
                remedy = "make it a field of the layer"
                raise ValueError(f"layer {placed.name}: expected parameters of floats to audit, got {got}; {remedy}")
    own, net = net, standing(net)
    program, a = traced(net, cost, given)
    progress, u = _Progress(), normals(a, 0)
    trusted, believed, said = _judged_by(net, cost, given, program, tuple(trust), finite)
    notes = [*lying.notes, *said]
    terms = Terms(dtype_of(given.params, given.x), finite, trusted, believed=believed, axes=lying.axes)
    rows, _, whole = network_rows(net, cost, given, u, terms, progress.step)
    for penalty, n in penalties:
        rows += _penalty_rows(penalty, given.params, n, terms.dtype)
    rows = settled(rows, (given.params, given.x), functools.partial(_beside, net, cost, given, u, terms))
    if cost is not None and lying.runs:
        more, said = rows_in_place(lying, cost, given, whole, terms, is_cause=not any(map(wrong, rows)))
        rows, notes = rows + more, notes + said
    if not any(map(wrong, rows)):
        progress.step("other numbers and another number of examples")
        tolerance = ROUGHLY if any(row.verdict == APPROXIMATE for row in rows) else TOLERANCE["float64"]
        found, more = elsewhere_rows(Audited(net, cost, terms), given, u, tolerance)
        places = {(row.layer, row.equation, row.leaf) for row in found}
        rows = found + [row for row in rows if (row.layer, row.equation, row.leaf) not in places]
        notes += more
    if own != net:
        rows = with_replaced(rows, own, cost, given, u, terms)
    return reported(rows, terms.dtype, notes=notes)


def wrong(row: Row) -> bool:
    return row.verdict in ("fail", "consequence")


def _beside(net: Layer, cost: Cost | None, given: Given, u: Any, terms: Terms, moved: tuple) -> list[Row]:
    there = given._replace(params=moved[0], x=moved[1])
    return network_rows(net, cost, there, u.astype("float64"), terms._replace(dtype="float64", finite=False)).rows


def _judged_by(
    net: Layer, cost: Cost | None, given: Given, program: Any, trust: tuple[Callable, ...], finite: bool
) -> tuple[tuple[str, ...] | None, tuple[str, ...], list[str]]:
    """Where the rules are written that are trusted, None where there are no others to replace; that are believed, since they
    cannot be replaced; and what to say of them."""
    trusted = tuple(sources(trust))
    found = sources_in(program, trusted)
    if not found:
        return None, (), []
    names = ", ".join(map(name_of, found))
    try:
        jax.eval_shape(functools.partial(gradient_without_rules, net, cost, trusted), given)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if finite:
            said = f"hand-written rules inside forward, taken as they are: {names} ({reason}); finite differences judge them"
            return None, tuple(found), [said]
        raise ValueError(
            f"the hand-written rule of {names} inside a forward pass: expected a function that autodiff can differentiate in "
            f"its place, got one that it cannot ({reason}); take the rule as it is with trust=({name_of(found[0])},), or "
            "let differences judge with finite_differences=True"
        ) from error
    said = f"hand-written rules inside forward, audited too: {names}; autodiff differentiates their functions"
    return trusted, (), [said]


def _penalty_rows(penalty: Penalty, params: Params, n_examples: Any, dtype: str) -> list[Row]:
    """One row for all leaves, or one for each leaf that is wrong."""
    subject = Subject(penalty_gradient(), [(params, penalty, n_examples)], dtype, lambda p, by, n: by.value(p, n))
    name, about = f"penalty {type(penalty).__name__}", functools.partial(of_penalty, penalty, n_examples, params)
    rows = [
        judged(name, subject, "gradient", keystr(path), path=path, about=about)
        for path, _ in tree_leaves_with_path(params)
    ]
    wrong = [row for row in rows if row.verdict in ("fail", SUBGRADIENTS)]
    (compared,) = subject.compared("gradient")
    found = differences(compared)
    return wrong or [Row(name, "gradient", "", "pass" if found.size else "vacuous", *fields(found))]


class _Progress:
    """Where an audit is, on stderr, every few seconds of a long one."""

    def __init__(self) -> None:
        self.start = self.told = time.monotonic()

    def step(self, what: str) -> None:
        now = time.monotonic()
        if now - self.told > 4:
            self.told = now
            print(f"auditing {what}, {now - self.start:.0f} s so far", file=sys.stderr, flush=True)
