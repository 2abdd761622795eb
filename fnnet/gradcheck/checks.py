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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..costs import Cost
from ..layers._layer import Layer, Params, run_forward
from ..network import check_batch, check_key
from ..penalties import Penalty, check_penalty
from .mistakes import Failure, explain, of_cost, of_function, of_layer, of_penalty
from .report import Report, Row
from .sides import (
    Given,
    Placed,
    Two,
    directions,
    is_float,
    isolated,
    leaf_at,
    normals,
    products,
    walk,
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
    in_float64,
    judge,
    largest,
    rounding,
)

SUBGRADIENTS = "both valid subgradients"


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
    x, y, key = check_batch(net, cost, params, x, y, key, mask, weights)
    given = Given(params, x, y, key, mask, weights)
    progress = _Progress()
    progress.step("the network")
    whole = Subject(functools.partial(whole_network, net, cost), [(given, *directions(net, given))], _dtype(params, x))
    (errors,), (gradients,) = whole.compared("errors"), whole.compared("gradients")
    places, rows = list(walk(net, params, key)), []
    for i, (placed, a_in, da) in enumerate(zip(places, whole.values[0]["inputs"], whole.values[0]["das"], strict=True)):
        progress.step(f"layer {placed.name} ({i + 1} of {len(places)})")
        chained = [side.of(lambda entries, i=i: entries[i]) for side in (errors, gradients)]
        rows = _layer_rows(placed, a_in, da, mask, whole.dtype, finite_differences, *chained) + rows
    about = functools.partial(of_cost, net, cost, given)
    of_the_cost = [name for name in ("output_error", "output_gradient") if name in whole]
    rows = [_row(f"cost {cost}", whole, equation, about=about) for equation in of_the_cost] + rows
    if penalty is not None:
        n = x.shape[0] if n_examples is None else n_examples
        rows += _penalty_rows(penalty, params, n, whole.dtype)
    return _report([*rows, *_product_rows(whole, "network")], whole.dtype)


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
    given = Given(params, x, key=key, mask=mask)
    whole = Subject(
        functools.partial(whole_network, layer, None), [(given, *directions(layer, given))], _dtype(params, x)
    )
    rows = []
    for placed, a_in in zip(walk(layer, params, key), whole.values[0]["inputs"], strict=True):
        rows = _layer_rows(placed, a_in, None, mask, whole.dtype, finite_differences) + rows
    return _report([*rows, *_product_rows(whole, "network")], whole.dtype)


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
    name = getattr(forward, "__name__", type(forward).__name__)
    if not any(is_float(leaf) for leaf in jax.tree.leaves(args)):
        raise ValueError(f"check_vjp: expected an argument of {name} with an array of floats, got none")
    both = jax.eval_shape(forward, *args)
    if not isinstance(both, tuple) or len(both) != 2:
        got = f"{len(both)} values" if isinstance(both, tuple) else type(both).__name__
        raise ValueError(f"check_vjp: expected {name}(*args) to return (out, residuals), got {got}")

    @jax.jit
    def run(args: tuple, cotangent: Any, tangents: tuple) -> dict[str, Two]:
        manual = backward(forward(*args)[1], cotangent)
        if not isinstance(manual, tuple) or len(manual) != len(args):
            got = f"a tuple of {len(manual)}" if isinstance(manual, tuple) else type(manual).__name__
            raise ValueError(f"check_vjp: expected a tuple of {len(args)} cotangents from backward, got {got}")
        leaves, treedef = jax.tree.flatten(args)
        places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

        def of_floats(floats: list[Array]) -> Any:
            new = dict(zip(places, floats, strict=True))
            return forward(*treedef.unflatten(new.get(i, leaf) for i, leaf in enumerate(leaves)))[0]

        floats, tangent = ([jax.tree.leaves(tree)[i] for i in places] for tree in (args, tangents))
        autodiff = jax.vjp(of_floats, floats)[1](cotangent)[0]
        by_path = dict(tree_leaves_with_path(manual))
        paths = [path for path, leaf in tree_leaves_with_path(args) if is_float(leaf)]
        by_hand = [by_path.get(path, jnp.zeros_like(g)) for path, g in zip(paths, autodiff, strict=True)]
        moved = jax.jvp(of_floats, (floats,), (tangent,))[1]
        names = [f"args{keystr(path)}" for path in paths]
        return {
            "backward": Two(dict(zip(names, by_hand, strict=True)), dict(zip(names, autodiff, strict=True))),
            "product": products(cotangent, moved, by_hand, tangent),
        }

    subject = Subject(run, [(args, normals(both[0], 0), normals(args, 1))], _dtype(args))
    return _report(_function_rows(name, "backward", subject, both[0]) + _product_rows(subject, name), subject.dtype)


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
    name = getattr(gradient, "__name__", type(gradient).__name__)
    if not jax.tree.leaves(params) or not all(map(is_float, jax.tree.leaves(params))):
        raise ValueError(
            "check_gradient: expected parameters of floats, got none or others; nothing can be differentiated"
        )
    shape = jax.eval_shape(value, params, *args)
    if getattr(shape, "shape", None) != ():
        raise ValueError(f"check_gradient: expected value(params, *args) to be a scalar, got {shape}")

    @jax.jit
    def run(params: Any, args: tuple) -> dict[str, Two]:
        return {"gradient": Two(gradient(params, *args), jax.grad(value)(params, *args))}

    subject = Subject(run, [(params, args)], _dtype(params))
    return _report(_function_rows(name, "gradient", subject, args), subject.dtype)


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


def _layer_rows(
    placed: Placed,
    a_in: Array,
    da_real: Array | None,
    mask: Any,
    dtype: str,
    finite: bool,
    errors: Compared | None = None,
    gradients: Compared | None = None,
) -> list[Row]:
    name, layer, params, key = placed
    a_out = jax.eval_shape(lambda p, a: run_forward(layer, p, a, key=key, train=True, mask=mask)[0], params, a_in)
    if not is_float(a_out):  # integers passed through: nothing to differentiate
        return [Row(name, "propagate", "", "vacuous")]
    das = [normals(a_out, 0)]
    if da_real is not None and np.isfinite(largest(da_real)) and largest(da_real) > 0:
        das.append(da_real)
    subject = Subject(functools.partial(isolated, layer), [(params, a_in, key, mask, da) for da in das], dtype, (0, 1))
    shown = subject.values[0]["gradients"]
    about = functools.partial(of_layer, layer, subject)
    third = functools.partial(_central_difference, layer, subject) if finite else None
    row = functools.partial(_row, name, subject, about=about, third=third)
    paths = [path for path, _ in tree_leaves_with_path(params)]
    scales = [largest(shown.autodiff), 0.0 if gradients is None else largest(gradients.autodiff)]

    rows = [row("error", chained=errors)] if "error" in subject else []
    rows.append(row("propagate") if "propagate" in subject else Row(name, "propagate", "", "vacuous"))
    if jax.tree.structure(shown.manual) != jax.tree.structure(params):
        hint = f"a pytree {jax.tree.structure(shown.manual)} where params is {jax.tree.structure(params)}"
        rows.append(Row(name, "gradients", "structure", "fail", float("inf"), hint=hint))
    for path in paths:
        chained = None if gradients is None else gradients.of(functools.partial(leaf_at, path))
        rows.append(row("gradients", keystr(path), path=path, chained=chained, scales=scales))
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
    return [dataclasses.replace(worst, equation="error", leaf=""), *consequences]


def _penalty_rows(penalty: Penalty, params: Params, n_examples: Any, dtype: str) -> list[Row]:
    """One row for all leaves, or one for each leaf that is wrong."""

    def run(params: Params, penalty: Any) -> dict[str, Two]:
        autodiff = jax.grad(lambda p: penalty.value(p, n_examples))(params)
        return {"gradient": Two(penalty.gradient(params, n_examples), autodiff)}

    subject = Subject(jax.jit(run), [(params, penalty)], dtype)
    name, about = f"penalty {type(penalty).__name__}", functools.partial(of_penalty, penalty, n_examples, params)
    rows = [
        _row(name, subject, "gradient", keystr(path), path=path, about=about)
        for path, _ in tree_leaves_with_path(params)
    ]
    wrong = [row for row in rows if row.verdict in ("fail", SUBGRADIENTS)]
    (compared,) = subject.compared("gradient")
    found = differences(compared)
    return wrong or [Row(name, "gradient", "", "pass" if found.size else "vacuous", *_fields(found))]


def _function_rows(name: str, equation: str, subject: Subject, batch: Any) -> list[Row]:
    """A row for each leaf of a single equation; the batch is on axis 0 of the first array of ``batch``."""
    m = next((jnp.shape(leaf)[0] for leaf in jax.tree.leaves(batch) if jnp.ndim(leaf)), 1)
    about = functools.partial(of_function, subject, m)
    paths = [path for path, _ in tree_leaves_with_path(subject.values[0][equation].autodiff)]
    names = [path[0].key if equation == "backward" else keystr(path) for path in paths]
    return [
        _row(name, subject, equation, leaf, path=path, about=about) for leaf, path in zip(names, paths, strict=True)
    ]


def _product_rows(subject: Subject, name: str) -> list[Row]:
    """⟨u, J v⟩ = ⟨Jᵀu, v⟩: forward mode against the composed hand-written backward pass, by one number each."""
    if "product" not in subject:
        return []
    (compared,) = subject.compared("product")
    found = differences(
        Compared(*(side if side is None else jnp.stack([side, jnp.ones_like(side)]) for side in compared))
    )
    sharp, dtype = (found.difference, subject.dtype) if np.isnan(found.in_float64) else (found.in_float64, "float64")
    if sharp > TOLERANCE[dtype] and sharp > TOLERANCE[subject.inner]:
        verdict = "consequence"
    else:
        verdict = "pass" if found.difference <= TOLERANCE[subject.dtype] else "precision"
    return [Row(name, "backward", "⟨u, Jv⟩", verdict, *_fields(found))]


def _report(rows: list[Row], dtype: str) -> Report:
    """The rows in order. Consequences without a cause are those of a choice of subgradients or of the composition."""
    order = {"fail": 0, "consequence": 1}
    rows = sorted(rows, key=lambda row: order.get(row.verdict, 2))
    if rows and rows[0].verdict == "consequence":
        if any(row.verdict == SUBGRADIENTS for row in rows):
            rows = [dataclasses.replace(row, verdict=SUBGRADIENTS) if row.verdict in order else row for row in rows]
        else:
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
    chained: Compared | None = None,
    scales: Sequence[float] = (0.0, 0.0),
    about: Callable[..., Failure] | None = None,
    third: Callable[..., float] | None = None,
) -> Row:
    """The verdict on one leaf of an equation; ``scales`` are the layer's largest gradients, for "zero to rounding"."""
    source = source or equation
    compared = subject.compared(source, path)
    alone = [differences(one) for one in compared]
    whole = None if chained is None or chained.autodiff is None else differences(chained)
    verdicts = [judge(found, subject, scales[0]) for found in alone]
    case = verdicts.index("fail") if "fail" in verdicts else int(np.argmax([found.difference for found in alone]))
    found, verdict = alone[case], verdicts[case]
    row = Row(layer, equation, leaf, verdict, *_fields(found, NAN if whole is None else whole.difference))
    if third is not None:
        row = dataclasses.replace(row, finite_difference=third(source, path, case))
    if verdict == "fail":
        return _explained(row, subject, source, path, case, compared[case], found, about)
    if whole is not None and judge(whole, subject, scales[1]) == "fail":
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
    if (
        manual is None
        or jax.tree.structure(manual) != jax.tree.structure(reference)
        or isinstance(manual, tuple | dict | list)
    ):
        return dataclasses.replace(
            row, hint=f"{'nothing' if manual is None else 'another structure'} where an array belongs"
        )
    manual, reference = (np.asarray(side).astype(np.float64) for side in (manual, reference))
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


def _central_difference(layer: Layer, subject: Subject, source: str, path: Any, case: int) -> float:
    """The manual derivative along a random direction against (f(h) − f(−h)) / 2h of ⟨da_out, a_out⟩, in float64."""
    params, a_in, key, mask, da = in_float64(subject.cases[case])
    sides = subject.best(case)[source]
    manual, reference = (leaf_at(path, side) if path is not None else side for side in sides)
    if jax.tree.structure(manual) != jax.tree.structure(0) or jnp.shape(manual) != jnp.shape(reference):
        return NAN
    manual, reference = (np.asarray(side).astype(np.float64) for side in (manual, reference))
    noise = np.random.default_rng(0).standard_normal(reference.shape)
    v = noise / np.linalg.norm(noise) + reference / (np.linalg.norm(reference) or 1)
    if "error" in source:
        at: Any = {"probe": np.zeros_like(v)}
    elif path is None:
        at = {"a_in": a_in}
    else:
        at = {"leaf": leaf_at(path, params)}

    def f(h: float) -> float:
        moved = {name: value + h * v for name, value in at.items()}
        p = (
            jax.tree_util.tree_map_with_path(lambda q, w: moved["leaf"] if q == path else w, params)
            if "leaf" in at
            else params
        )
        given = {"key": key, "train": True, "mask": mask, "probe": moved.get("probe")}
        with jax.enable_x64(True):
            p, a = jax.tree.map(jnp.asarray, (p, moved.get("a_in", a_in)))
            return float(np.sum(np.asarray(run_forward(layer, p, a, **given)[0], np.float64) * da))

    h = 1e-5 * max(1.0, *(float(np.max(np.abs(value), initial=0)) for value in at.values())) / np.max(np.abs(v))
    measured = (f(h) - f(-h)) / (2 * h)
    ours = float(np.sum(manual * v)) * (a_in.shape[0] if path is not None else 1)
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
