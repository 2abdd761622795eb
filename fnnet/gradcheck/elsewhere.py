"""What a network is audited on beside the given batch: other numbers, another number of examples, the twin for loops that
``fit`` trains with, and the batch in two halves.

Parameters as ``init`` gives them hide mistakes (scales of ones, biases of zeros), and so does a single size of the batch. All
of it runs in float64. The composed gradients come first; only what is wrong there is looked for layer by layer.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..costs import Cost
from ..layers._composite import Placed, composites, walk
from ..layers._layer import Layer, run_forward
from .composed import WAYS, claimed, composed
from .devices import Axes
from .layer import Terms, layer_rows, without_rule
from .points import ENLARGED, drawing, moved, on_device, structures
from .report import Row
from .rows import BETTER, SUBGRADIENTS, easy, failed, fields, settled, told
from .sides import Given, Plain, every_input, is_float, normals
from .verdicts import TOLERANCE, Compared, Subject, differences, exactly, judge
from .whole import MISFITS, Found, network_rows

NEARLY = "nearly right only at the given point"


class Audited(NamedTuple):
    """A network, its cost and what its audit is held to."""

    net: Layer
    cost: Cost | None
    terms: Terms

    def sharply(self, f: Callable[..., Any], *args: Any) -> Any:
        """f(terms, *args) in float64, or in the audit's dtype where float64 cannot be had."""
        found = exactly(lambda *args: (f(self.terms._replace(dtype="float64"), *args),), *args)
        return f(self.terms, *args) if found is None else found[0]

    def at(self, given: Given, u: Array, scale: float = 1.0) -> Found:
        """The rows at a point."""

        def rows(terms: Terms, given: Given, u: Array) -> Found:
            terms = terms._replace(scale=scale)
            found = network_rows(self.net, self.cost, given, u, terms)

            def there(moved: tuple) -> list[Row]:
                return network_rows(self.net, self.cost, given._replace(params=moved[0], x=moved[1]), u, terms).rows

            return found._replace(rows=settled(found.rows, (given.params, given.x), there))

        return self.sharply(rows, given, u)


def elsewhere_rows(audited: Audited, given: Given, u: Array, tolerance: float) -> tuple[list[Row], list[str]]:
    """The rows of what is wrong elsewhere, and what to say of it. ``tolerance`` is that of float64."""
    notes = list(constant_leaves(audited.net, given))
    for step in (None, 0.1, 1e-3):
        there = _moved(given, step)
        found = audited.at(there, u, ENLARGED)
        if found.is_finite:
            break
    else:
        return [], [*notes, "beside the given point the forward pass is not finite: audited at the given point only"]
    if wrong := _wrong(found.rows):
        why = NEARLY if tolerance > TOLERANCE["float64"] else _only_here(audited, given, there, u, wrong[0])
        return [told(row, why) for row in wrong], notes
    if tolerance > TOLERANCE["float64"] and (wrong := _wrong(audited.at(_easy(given), u).rows)):
        return [told(row, NEARLY) for row in wrong], notes
    if any(row.verdict == BETTER for row in found.rows):
        if audited.terms.finite:
            return [], [*notes, "Autodiff is no judge of the composed gradients: they are not audited with another m."]
        there = _easy(given)
    return composed_rows(audited, there, u, tolerance), notes


def constant_leaves(net: Layer, given: Given) -> Iterator[str]:
    """The parameters that are all 0 or all 1."""
    found = []
    for placed in map(without_rule, walk(net, given.params)):
        for path, leaf in tree_leaves_with_path(placed.params):
            value = np.asarray(leaf).flat[0] if np.size(leaf) else None
            if value in (0, 1) and np.all(np.asarray(leaf) == value):
                found.append(f"{placed.name} {keystr(path)} ({int(value)})")
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        yield f"All 0 or all 1 at the given point, and so audited beside it too: {', '.join(found[:3])}{more}."


def _moved(given: Given, step: float | None) -> Given:
    """Parameters and inputs drawn anew in their sizes, or moved by a part of them."""
    draw = drawing(0)
    params, x = jax.tree.map(lambda a: moved(a, draw, step), (given.params, given.x))
    return given._replace(params=params, x=x)


def _easy(given: Given) -> Given:
    params, x = easy((given.params, given.x))
    return given._replace(params=params, x=x)


def _wrong(rows: list[Row]) -> list[Row]:
    """What fails; consequences of nothing are a fault of the composition."""
    if wrong := [row for row in rows if failed(row)]:
        return wrong
    hint = "each equation is right by itself: the way they are put together is not"
    return [dataclasses.replace(row, verdict="fail", hint=hint) for row in rows if row.verdict == "consequence"][:1]


def _only_here(audited: Audited, given: Given, there: Given, u: Array, row: Row) -> str:
    """Why a row fails there and not at the given point."""

    def fails(given: Given, scale: float = ENLARGED) -> bool:
        return any((r.layer, r.equation, r.leaf) == (row.layer, row.equation, row.leaf) for r in failing(given, scale))

    def failing(given: Given, scale: float) -> list[Row]:
        return _wrong(audited.at(given, u, scale).rows)

    if not fails(there, 1.0):
        return f"not linear in the error: right for a usual one, wrong for one {ENLARGED:.0f} times as large"
    places = [placed for placed in walk(audited.net, given.params) if placed.name == row.layer]
    own = {id(leaf) for placed in places for leaf in jax.tree.leaves(placed.params)}
    leaves, treedef = jax.tree.flatten((given.params, given.x))
    others = jax.tree.leaves((there.params, there.x))
    names = [keystr(path[1:]) or "x" for path, _ in tree_leaves_with_path((given.params, given.x))]
    if places:
        names = ["x" if name == "x" else f"leaf {name[name.rindex('[') :]}" for name in names]
    for i, leaf in enumerate(leaves):
        if own and id(leaf) not in own and leaf is not given.x:
            continue
        for words, made in structures(leaf, others[i]):
            params, x = treedef.unflatten([*others[:i], made, *others[i + 1 :]])
            if not fails(there._replace(params=params, x=x)):
                words = {"is 0": "is all 0", "is 1": "is all 1"}.get(words, words)
                return f"right only at the given point: {names[i]} {words}"
    return "right at the given point, wrong at one beside it"


def resized(given: Given, n: int = 1) -> Given:
    """With n examples less, or n more where there are no more than 2n."""
    m = given.x.shape[0]
    if m > 2 * n:
        return given._replace(**{name: _each(getattr(given, name), lambda a: a[:-n]) for name in BATCHED})
    more = given._replace(
        **{name: _each(getattr(given, name), lambda a: np.concatenate([a, a[:n]])) for name in BATCHED}
    )
    new = moved(given.x[:n], drawing(1), None)
    return more._replace(x=on_device(np.concatenate([given.x, new]), new.dtype))


def _runnable(net: Layer, given: Given, axes: Axes) -> Given:
    """`resized`, or as it is for a network of one size of batch. Each half of the batch is to be divisible among devices."""
    devices = math.prod(n for _, n in axes)
    try:
        other = resized(given, 1 if devices == 1 else 2 * devices)
        jax.eval_shape(
            lambda g: run_forward(net, g.params, g.x, key=g.key, train=True, mask=g.mask)[0],
            other,
        )
    except Exception:  # whatever its layers raise for another size
        return given
    return other


BATCHED = ("x", "y", "mask", "weights")


def _each(tree: Any, f: Callable) -> Any:
    return jax.tree.map(lambda a: jax.device_put(f(np.asarray(a))), tree)


def composed_rows(audited: Audited, given: Given, u: Array, tolerance: float) -> list[Row]:
    """What is wrong in the composed gradients with another number of examples, and whose fault it is."""
    net, cost, terms = audited
    other, twin = _runnable(net, given, terms.axes), net.in_loop()
    m, n = given.x.shape[0], other.x.shape[0]
    u = normals(jax.ShapeDtypeStruct((n, *u.shape[1:]), u.dtype), 0)

    def ways(halves: bool) -> list[str]:
        def wrong(terms: Terms, given: Given, u: Array) -> list[str]:
            run = functools.partial(composed, Plain(net, (), terms.trusted), cost, twin, halves)
            subject = Subject(run, [(given, u)], terms.dtype, run)
            return [way for way in WAYS if way in subject and _differs(subject, way, tolerance)]

        return audited.sharply(wrong, other, u)

    rows: list[Row] = []
    try:
        wrong = ways(net.independent)
    except MISFITS:  # of a layer that cannot be run in halves, or that has another twin
        try:
            wrong = [*ways(False), WAYS[-1]]
        except MISFITS:
            wrong = list(WAYS)
    if {"in two passes", "in one pass"} & set(wrong):
        try:
            there = audited.at(other, u).rows
            chosen = any(row.verdict == SUBGRADIENTS for row in there)
            rows = _wrong(there) or ([] if chosen else [Row("network", "backward", "", "fail", float("inf"))])
        except MISFITS as error:
            rows = [Row("network", "backward", "", "fail", float("inf"), hint=f"{error}")]
        rows = [told(row, f"wrong at m = {n}, right at m = {m}") for row in rows]
        return rows
    if wrong or not net.independent:
        rows = audited.sharply(lambda terms, given: _claim_rows(audited, given, terms, bool(wrong)), other)
    if wrong and not rows:
        rows = audited.sharply(lambda terms, given: _twin_rows(audited, twin, given, terms), other)
    if wrong and not rows:
        rows = [
            Row("network", "in_loop", "", "fail", float("inf"), hint="in_loop() gives other gradients than the network")
        ]
    return rows


def _differs(subject: Subject, way: str, tolerance: float) -> bool:
    (compared,) = subject.compared(way)
    for part in compared.autodiff:
        found = differences(compared.of(lambda side, part=part: side[part]))
        if np.isfinite(found.size) and judge(found, subject, found.size, tolerance) == "fail":
            return True
    return False


def _twin_rows(audited: Audited, twin: Layer, given: Given, terms: Terms) -> list[Row]:
    """The layer whose own ``in_loop()`` is wrong, else the innermost composite."""
    net, key = audited.net, given.key
    inputs, about = every_input(net, given), {"key": None, "train": True, "mask": given.mask}
    for parts in (walk, composites):
        for placed, other in zip(parts(net, given.params, key), parts(twin, given.params, key), strict=False):
            if placed.layer == other.layer:
                continue
            try:
                rows = _rows_of_twin(placed, other.layer, inputs[placed.place], {**about, "key": placed.key}, terms)
            except MISFITS as error:
                if terms.dtype != audited.terms.dtype:
                    raise
                rows = [Row(placed.name, "in_loop", "", "fail", float("inf"), hint=f"{OF_TWIN}: {error}")]
            if rows:
                return rows
    return []


OF_TWIN = "wrong in in_loop(), the twin that fit trains with"


def _rows_of_twin(placed: Placed, twin: Layer, a_in: Array, about: dict[str, Any], terms: Terms) -> list[Row]:
    rows = layer_rows(placed._replace(layer=twin), a_in, None, about["mask"], terms, differentiated=placed.layer)
    outputs = [run_forward(layer, placed.params, a_in, **about)[0] for layer in (twin, placed.layer)]
    found = differences(Compared(*outputs))
    rows = [row for row in rows if failed(row)]
    if not rows and found.difference > TOLERANCE[terms.dtype]:
        rows = [Row(placed.name, "forward", "", "fail", *fields(found))]
    return [
        dataclasses.replace(told(row, OF_TWIN), layer=placed.name, equation=f"in_loop {row.equation}") for row in rows
    ]


def _claim_rows(audited: Audited, given: Given, terms: Terms, every: bool) -> list[Row]:
    """The first layer that says ``independent = True`` and is not, the inner ones first; only of users' unless ``every``."""
    net = audited.net
    inputs = every_input(net, given)
    for placed in [*walk(net, given.params, given.key), *composites(net, given.params, given.key)]:
        placed, a_in = without_rule(placed), inputs[placed.place]
        layer = placed.layer
        own = type(layer).__module__.startswith("fnnet.")
        if not getattr(layer, "independent", False) or (own and not every):
            continue
        a_out = jax.eval_shape(
            lambda p, a, of=placed: run_forward(of.layer, p, a, key=of.key, train=True, mask=given.mask)[0],
            placed.params,
            a_in,
        )
        if not is_float(a_out):
            continue
        case = placed.params, a_in, placed.key, given.mask, normals(a_out, 0)
        run = functools.partial(claimed, layer)
        row = Row(placed.name, "independent", "", "fail", float("inf"))
        try:
            subject = Subject(run, [case], terms.dtype, run)
        except MISFITS as error:
            if terms.dtype != audited.terms.dtype:
                raise
            return [_claim(row, f"a batch in two halves raises {error}")]
        for name in subject.values[0]:
            (compared,) = subject.compared(name)
            found = differences(compared)
            if judge(found, subject, found.size) == "fail":
                row = dataclasses.replace(
                    row, difference=found.difference, in_float64=found.in_float64, size=found.size
                )
                return [_claim(row, f"a batch in two halves gives another {name} than the whole")]
    return []


def _claim(row: Row, why: str) -> Row:
    return dataclasses.replace(row, hint=f"independent = True does not hold: {why}")
