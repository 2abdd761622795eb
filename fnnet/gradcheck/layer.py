"""The audit of one layer: each of its equations by itself, fed with autodiff's δ, and in its place in the network."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..layers._composite import Placed
from ..layers._layer import Layer, Params, run_forward
from ..layers._swapped import Ruled
from .devices import Axes
from .network_mistakes import of_layer
from .report import Row
from .rows import failed, judged
from .rules import name_of, rule_sources
from .sides import Plain, compiled_once, is_float, isolated, leaf_at, normals, probe_for
from .verdicts import Leaf, Subject, largest


class Terms(NamedTuple):
    """What an audit is held to.

    Attributes:
        dtype: the audit's.
        finite: whether central differences have a say.
        trusted: where the rules are written that are taken as they are; None where the forward pass holds no others.
        scale: by how much the random cotangents are enlarged.
        believed: where the rules are written that are taken as they are for want of a function to differentiate: autodiff
            is no judge of a layer with one, central differences alone are.
        axes: of the mesh that the arrays came from.
    """

    dtype: str
    finite: bool = False
    trusted: tuple[str, ...] | None = None
    scale: float = 1.0
    believed: tuple[str, ...] = ()
    axes: Axes = ()


class Chained(NamedTuple):
    """A layer's own error and gradients in its network, or those of all layers: where they come from, and which they are."""

    subject: Subject
    error: Callable[[Any], Any]
    gradients: Callable[[Any], Any]

    def of(self, i: int) -> "Chained":
        return Chained(self.subject, lambda e: self.error(e)[i], lambda g: self.gradients(g)[i])

    def without_rule(self) -> "Chained":
        """Of the layer inside a `Ruled` one."""
        return self._replace(gradients=lambda g: self.gradients(g)["net"])


def without_rule(placed: Placed) -> Placed:
    """The layer inside a `Ruled` one, or the layer itself."""
    if not isinstance(placed.layer, Ruled):
        return placed
    return placed._replace(layer=placed.layer.layer, params=placed.params["net"])


def layer_rows(
    placed: Placed,
    a_in: Array,
    da_real: Array | None,
    mask: Any,
    terms: Terms,
    chained: Chained | None = None,
    differentiated: Layer | None = None,
) -> list[Row]:
    """The rows of a layer; ``differentiated`` is the layer whose forward pass is, another one for a twin."""
    if differentiated is not None:
        differentiated = without_rule(placed._replace(layer=differentiated)).layer
    if isinstance(placed.layer, Ruled):
        chained = chained and chained.without_rule()
    _, layer, params, key = placed = without_rule(placed)
    name = placed.name
    plain_layer = differentiated or layer

    def forward(params: Params, a_in: Array, key: Any, mask: Any, *_: Any) -> Array:
        return run_forward(plain_layer, params, a_in, key=key, train=True, mask=mask)[0]

    a_out = jax.eval_shape(forward, params, a_in, key, mask)
    if not is_float(a_out):  # integers passed through: nothing to differentiate
        return []
    das = [normals(a_out, 0, terms.scale)]
    if da_real is not None and np.isfinite(largest(da_real)) and largest(da_real) > 0:
        das.append(da_real)
    plain = Plain(plain_layer)
    if terms.trusted is not None:
        rules = tuple(rule_sources(forward, params, a_in, key, mask, trust=terms.trusted))
        plain = Plain(plain_layer, rules, terms.trusted)

    def audited(probe: Any) -> Subject:
        cases = [(params, a_in, key, mask, da, probe) for da in das]
        pairing = functools.partial(_pairing, plain_layer)
        run = functools.partial(isolated, layer, plain)
        return Subject(run, cases, terms.dtype, forward, (5, 1, 0), pairing=pairing, axes=terms.axes)

    subject = audited(probe_for(layer, params, a_in, key, mask, das[0]))
    unused = "error" in subject and largest(subject.values[0]["error"].autodiff) == 0
    shown = subject.values[0].get("gradients")
    if unused and largest(subject.values[0]["error"].manual) > 0 and largest(shown) > 0:
        subject, chained = audited(None), None
    about = functools.partial(of_layer, layer, subject)
    row = functools.partial(judged, name, subject, about=about, finite=terms.finite)
    paths = [path for path, _ in tree_leaves_with_path(params)]

    def in_place(equation: str, path: Any) -> Leaf | None:
        if chained is None:
            return None
        whole, error, gradients = chained
        if equation == "gradients":
            terms = Leaf(whole, "errors", error)
            return Leaf(whole, equation, lambda side: leaf_at(path, gradients(side)), terms=terms)
        if error(whole.values[0]["errors"].autodiff) is None:
            return None
        return Leaf(whole, equation, lambda side: leaf_at(path, error(side)))

    of_whole = None if chained is None else chained.gradients(chained.subject.values[0]["gradients"].autodiff)
    scales = [0.0 if shown is None else largest(shown.autodiff), 0.0 if of_whole is None else largest(of_whole)]

    rows = []
    if "error" in subject:
        for path, _ in tree_leaves_with_path(subject.values[0]["error"].autodiff):
            rows.append(row("error", keystr(path), path=path, chained=in_place("errors", path)))
    if "propagate" in subject:
        rows.append(row("propagate"))
    elif is_float(a_in):
        rows.append(_undefined(name, "propagate", "da_in"))
    if shown is None:
        rows.append(_undefined(name, "gradients", "grads"))
    elif jax.tree.structure(shown.manual) != jax.tree.structure(params):
        hint = f"a pytree {jax.tree.structure(shown.manual)} where params is {jax.tree.structure(params)}"
        rows.append(Row(name, "gradients", "structure", "fail", float("inf"), hint=hint))
    for path in paths if shown is not None else ():
        rows.append(row("gradients", keystr(path), path=path, chained=in_place("gradients", path), scales=scales))
    if "output_error" in subject:
        for path, _ in tree_leaves_with_path(subject.values[0]["output_error"].autodiff):
            rows.append(row("output_error", keystr(path), path=path))
    for equation in ("backward", "output_backward"):
        if f"{equation} da_in" not in subject:
            continue
        if jax.tree.leaves(subject.values[0][f"{equation} da_in"].autodiff):
            rows.append(row(equation, "da_in", source=f"{equation} da_in"))
        for path in paths:
            rows.append(row(equation, keystr(path), source=f"{equation} gradients", path=path, scales=scales))
    alone = "error" in subject or (type(layer).error is Layer.error and sum(map(was_run, rows)) < 2)
    if terms.believed and set(rule_sources(forward, params, a_in, key, mask)).intersection(terms.believed):
        rows = [_by_differences_alone(row) for row in rows]
    rows = rows if alone else judged_jointly(name, rows)
    return rows + [_rule_row(name, subject, source, terms) for source in plain.rules]


def _by_differences_alone(row: Row) -> Row:
    if failed(row) or not np.isnan(row.finite_difference):
        return row
    return dataclasses.replace(row, verdict="vacuous", hint="neither autodiff nor central differences can judge it")


def _undefined(name: str, equation: str, result: str) -> Row:
    hint = f"not defined: write {equation}(params, cache, delta) -> {result}"
    return Row(name, equation, "", "fail", float("inf"), hint=hint)


def _rule_row(name: str, subject: Subject, source: str, terms: Terms) -> Row:
    """A hand-written rule inside forward against its function: the leaf that is wrong, or the one furthest off."""
    equation, rows = f"rule {source}", []
    for path, _ in tree_leaves_with_path(subject.values[0][equation].autodiff):
        leaf = {0: "params", 1: "da_in", 2: "probe"}[path[0].idx] + keystr(path[1:])
        rows.append(judged(name, subject, f"rule {name_of(source)}", leaf, source=equation, path=path))
    if wrong := [row for row in rows if failed(row)]:
        taken = f"to take the rule as it is: trust=({name_of(source)},)"
        return dataclasses.replace(wrong[0], hint="; ".join(part for part in (wrong[0].hint, taken) if part))
    return max(rows, key=lambda row: (row.size > 0, row.difference))


def _pairing(
    layer: Layer, source: str, params: Params, a_in: Array, key: Any, mask: Any, da: Array, probe: Any
) -> tuple[Callable, Any]:
    """⟨da, a_out⟩ as a function of the probe, of a_in or, over m, of the parameters."""
    given = {"probe": probe, "a_in": a_in, "params": params}
    moves = "probe" if source in ("error", "output_error") else "params" if "gradients" in source else "a_in"
    m = a_in.shape[0] if moves == "params" else 1
    return lambda moved: _paired(layer, key, mask, da, {**given, moves: moved}) / m, given[moves]


@compiled_once(fixed=1)
def _paired(layer: Layer, key: Any, mask: Any, da: Array, given: dict[str, Any]) -> Array:
    about = {"key": key, "train": True, "mask": mask, "probe": given["probe"]}
    return jnp.sum(da * run_forward(layer, given["params"], given["a_in"], **about)[0])


def was_run(row: Row) -> bool:
    return not np.isnan(row.difference)


def judged_jointly(name: str, rows: list[Row]) -> list[Row]:
    """Without a probe ``error`` shows only in what it feeds: where all of that fails, ``error`` is the one that is wrong."""
    rows = [dataclasses.replace(row, joint=True) for row in rows]
    ran = [row for row in rows if was_run(row)]
    if not ran or not all(row.verdict == "fail" for row in ran) or any("not defined" in row.hint for row in ran):
        return [Row(name, "error", "", "pass", joint=True), *rows]
    worst = max(ran, key=lambda row: row.difference)
    consequences = [dataclasses.replace(row, verdict="consequence") if was_run(row) else row for row in rows]
    hint = "everything that it feeds is wrong"
    return [dataclasses.replace(worst, equation="error", leaf="", hint=hint, example=None), *consequences]
