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
from .mistakes import of_layer
from .report import Row
from .rows import judged
from .sides import compiled_once, is_float, isolated, leaf_at, normals, probe_for
from .verdicts import Compared, Subject, largest


class Chained(NamedTuple):
    """A layer's own error and gradients in its network, or those of all layers, and where they come from."""

    errors: Compared
    gradients: Compared
    subject: Subject

    def of(self, i: int) -> "Chained":
        return Chained(self.errors.of(lambda e: e[i]), self.gradients.of(lambda g: g[i]), self.subject)


def layer_rows(
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
        pairing = functools.partial(_pairing, layer)
        return Subject(functools.partial(isolated, layer), cases, dtype, forward, (5, 1, 0), pairing)

    subject = audited(probe_for(layer, params, a_in, key, mask, das[0]))
    unused = "error" in subject and largest(subject.values[0]["error"].autodiff) == 0
    if unused and largest(subject.values[0]["error"].manual) > 0 and largest(subject.values[0]["gradients"]) > 0:
        subject, chained = audited(None), None
    shown = subject.values[0]["gradients"]
    about = functools.partial(of_layer, layer, subject)
    row = functools.partial(judged, name, subject, about=about, finite=finite)
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
    alone = "error" in subject or (type(layer).error is Layer.error and sum(map(was_run, rows)) < 2)
    return rows if alone else judged_jointly(name, rows)


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
    if not ran or not all(row.verdict == "fail" for row in ran):
        return [Row(name, "error", "", "pass", joint=True), *rows]
    worst = max(ran, key=lambda row: row.difference)
    consequences = [dataclasses.replace(row, verdict="consequence") if was_run(row) else row for row in rows]
    hint = "everything that it feeds is wrong"
    return [dataclasses.replace(worst, equation="error", leaf="", hint=hint, example=None), *consequences]
