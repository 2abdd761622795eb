"""Manual against autodiff: every equation of every layer, and the network as a whole.

Each equation is checked by itself (*isolated*: fed with autodiff's δ and a random cotangent, so that an equation which is
right only for this cost, or only above the bottom of the network, does not pass) and in its place (*chained*: the
network's errors and gradients for this cost). An isolated failure is a cause; a chained one alone is a consequence.

Autodiff here is ``jax.vjp`` of the plain forward pass: no hand-written rule takes part in it. Its δ of every layer comes
from one ``jax.vjp`` over all probes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .costs import Cost
from .layers._layer import Layer, Params, keywords, run_forward, split_key
from .network import Network, backprop, check_batch
from .penalties import Penalty, check_penalty

__all__ = ["Report", "Row", "compare_gradients"]

TOLERANCE = {"float64": 1e-10, "float32": 64 * 2.0**-23, "float16": 16 * 2.0**-10, "bfloat16": 4 * 2.0**-7}


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        layer: the layer's place and name, such as "2 Dense" or "1.0 Conv"; "cost" or "penalty".
        equation: the method's name: error, propagate, gradients, backward; output_error or output_gradient of the cost.
        leaf: the leaf of the gradient, such as "['w']"; "" for an error.
        verdict: "pass"; "fail" (the equation itself is wrong); "consequence" (it is right, what it was fed is not);
            "vacuous" (the reference is 0 everywhere); "zero to rounding" (it is below 100 eps of the layer's largest
            gradient).
        difference: isolated, the largest |manual − autodiff| over the largest |autodiff|; NaN where not checked.
        chained: the same for the network's own error or gradient; NaN where there is none.
        manual_error: manual against autodiff in float64; NaN where float64 cannot be had.
        autodiff_error: autodiff against autodiff in float64.
        size: the largest |autodiff|.
        joint: whether error, propagate and gradients could only be judged together (a layer without ``probe``).
    """

    layer: str
    equation: str
    leaf: str
    verdict: str
    difference: float
    chained: float
    manual_error: float
    autodiff_error: float
    size: float
    joint: bool = False


@dataclass(frozen=True)
class Report:
    """What `compare_gradients` returns; printing it shows the table.

    Attributes:
        rows: failed causes first, then consequences, then the rest; each from the last layer to the first.
        dtype: of the parameters.
    """

    rows: tuple[Row, ...]
    dtype: str

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return not any(row.verdict in ("fail", "consequence") for row in self.rows)

    @property
    def first(self) -> str | None:
        """The first layer that disagrees, on the way back from the cost; None where all agree."""
        return None if self.ok else self.rows[0].layer

    def raise_if_failed(self) -> None:
        """For tests: ``fn.compare_gradients(...).raise_if_failed()``.

        Raises:
            AssertionError: that carries the table, unless `ok`.
        """
        if not self.ok:
            raise AssertionError(f"manual gradients disagree with autodiff\n{self}")

    def to_markdown(self) -> str:
        """The table in Markdown."""
        head, *lines = self._table()
        rules = tuple("---" for _ in head)
        return "\n".join(f"| {' | '.join(line)} |" for line in (head, rules, *lines))

    def _table(self) -> list[tuple[str, ...]]:
        """Its heads, then a line of texts for each row."""
        head = ("layer", "equation", "leaf", "verdict", "isolated", "chained", "manual", "autodiff")
        table: list[tuple[str, ...]] = [head]
        for r in self.rows:
            numbers = (r.difference, r.chained, r.manual_error, r.autodiff_error)
            texts = ("-" if np.isnan(number) else f"{number:.1e}" for number in numbers)
            table.append((r.layer, r.equation + " (joint)" * r.joint, r.leaf or "-", r.verdict, *texts))
        return table

    def __str__(self) -> str:
        table = self._table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = ["  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)).rstrip() for line in table]
        lines.insert(1, "-" * max(map(len, lines)))
        note = "isolated, chained: manual against autodiff; manual, autodiff: each against autodiff in float64"
        if self.ok:
            verdict = f"All {len(self.rows)} comparisons agree in {self.dtype}."
        else:
            row = self.rows[0]
            verdict = (
                f"The first to disagree, on the way back from the cost: layer {row.layer}, {row.equation} {row.leaf}"
            )
        return "\n".join([*lines, f"({note}; relative to the largest entry)", verdict.rstrip()])


class _Placed(NamedTuple):
    name: str
    layer: Layer
    params: Params
    key: Any


class _Given(NamedTuple):
    params: Params
    x: Array
    y: Array
    key: Any
    mask: Any
    weights: Any


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
) -> Report:
    """Compare the hand-written backpropagation with autodiff, equation by equation, and say which is wrong.

    The arguments are those of `fnnet.backprop`. The comparison runs in the parameters' dtype and, for the distance of
    each side from the truth, in float64.

    A row passes where manual and autodiff differ by at most 1e-10 (float64), 64 eps (float32), 16 eps (float16) or 4 eps
    (bfloat16) of the largest entry, where manual and float64 do, or where manual is within 4 times autodiff's own distance
    from float64 and that is rounding (at most a tenth).

    Raises:
        ValueError: for bad input, as `fnnet.backprop`.
    """
    check_penalty(penalty)
    x, y, key = check_batch(net, cost, params, x, y, key, mask, weights)
    given = _Given(params, x, y, key, mask, weights)
    dtype = str(jnp.result_type(*(jax.tree.leaves(params) or [x])))

    errors, gradients = backprop(net, cost, params, x, y, key=key, mask=mask, weights=weights)[1:]
    manual = list(zip(_leaves_of(net, errors), _leaves_of(net, gradients), strict=True))
    autodiff = _autodiff(net, cost, given, errors)
    exact = _in_float64(dtype, _autodiff, net, cost, given, errors) or [None] * len(manual)

    rows: list[Row] = []
    places = _walk(net, params, key, "")
    for placed, a_in, *chained in zip(places, _inputs(net, given), manual, autodiff, exact, strict=True):
        rows = _layer_rows(placed, a_in, mask, _Compared(*chained), dtype) + rows
    rows = _cost_rows(net, cost, given, dtype) + rows
    if penalty is not None:
        n = x.shape[0] if n_examples is None else n_examples
        compared = _Compared(penalty.gradient(params, n), jax.grad(lambda p: penalty.value(p, n))(params), None)
        rows.append(_row(f"penalty {type(penalty).__name__}", "gradient", "", dtype, compared))
    order = {"fail": 0, "consequence": 1}
    rows.sort(key=lambda row: order.get(row.verdict, 2))
    if rows[0].verdict == "consequence":  # of no equation that was checked by itself: the composition is at fault
        rows[0] = dataclasses.replace(rows[0], verdict="fail")
    return Report(tuple(rows), dtype)


class _Compared(NamedTuple):
    manual: Any
    autodiff: Any
    exact: Any

    def of(self, get: Callable[[Any], Any]) -> "_Compared":
        return _Compared(*(None if side is None else get(side) for side in self))


def _walk(net: Layer, params: Params, key: Any, place: str) -> Iterator[_Placed]:
    """The layers in order, those of nested networks in their place, each with its parameters and its key."""
    if not isinstance(net, Network):
        yield _Placed(f"{place or 0} {type(net).__name__}", net, params, key)
        return
    for i, (part, p, k) in enumerate(zip(net, params, split_key(key, len(net)), strict=True)):
        yield from _walk(part, p, k, f"{place}.{i}" if place else f"{i}")


def _leaves_of(net: Layer, tree: Any) -> list[Any]:
    """What a tuple with one entry per layer holds for each layer of `_walk`."""
    if not isinstance(net, Network):
        return [tree]
    return [leaf for part, entry in zip(net, tree, strict=True) for leaf in _leaves_of(part, entry)]


@functools.partial(jax.jit, static_argnums=0)
def _inputs(net: Layer, given: _Given) -> list[Array]:
    a, inputs = given.x, []
    for placed in _walk(net, given.params, given.key, ""):
        inputs.append(a)
        a, _ = run_forward(placed.layer, placed.params, a, key=placed.key, train=True, mask=given.mask)
    return inputs


def _in_float64(dtype: str, f: Callable, *args: Any) -> Any:
    """f with the floats of its arguments in float64; None where the comparison itself is in float64."""
    if dtype == "float64":
        return None

    def leaf(a: Any) -> Any:
        return jnp.asarray(np.asarray(a).astype(np.float64)) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a

    with jax.enable_x64(True):
        return f(*jax.tree.map(leaf, args))


def _probe(net: Layer, delta: Any) -> Any:
    """Zeros shaped like the errors, for the layers that take a probe; None for the others."""
    if isinstance(net, Network):
        return tuple(_probe(part, entry) for part, entry in zip(net, delta, strict=True))
    return jax.tree.map(jnp.zeros_like, delta) if "probe" in keywords(type(net)) else None


@functools.partial(jax.jit, static_argnums=(0, 1))
def _autodiff(net: Layer, cost: Cost, given: _Given, errors: Any) -> list[tuple[Any, Any]]:
    """(δ, ∂C/∂params) of each layer by one jax.vjp over all probes and parameters; δ is None without a probe."""
    m = given.x.shape[0]

    def summed_cost(params: Params, probe: Any) -> Array:
        a, cache = run_forward(net, params, given.x, key=given.key, train=True, mask=given.mask, probe=probe)
        return m * cost(a, given.y, weights=given.weights, output=net.output(params, cache))

    value, pull_back = jax.vjp(summed_cost, given.params, _probe(net, errors))
    gradients, deltas = pull_back(jnp.ones_like(value))
    gradients = jax.tree.map(lambda g: (g / m).astype(g.dtype), gradients)
    return list(zip(_leaves_of(net, deltas), _leaves_of(net, gradients), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _isolated(
    layer: Layer, params: Params, a_in: Array, key: Any, mask: Any, da_out: Array
) -> dict[str, tuple[Any, Any]]:
    """(manual, autodiff) of each equation, fed with da_out and autodiff's δ (its own where the layer has no probe)."""
    m, names = a_in.shape[0], keywords(type(layer))
    _, cache = run_forward(layer, params, a_in, key=key, train=True, mask=mask)
    delta = layer.error(params, cache, da_out)
    probe = jax.tree.map(jnp.zeros_like, delta) if "probe" in names else None
    differentiable = jnp.issubdtype(a_in.dtype, jnp.floating)

    def forward(params: Params, a: Any, probe: Any) -> Array:
        a = a if differentiable else a_in
        return run_forward(layer, params, a, key=key, train=True, mask=mask, probe=probe)[0]

    _, pull_back = jax.vjp(forward, params, a_in if differentiable else None, probe)
    d_params, da_in, d_probe = pull_back(da_out)
    d_params = jax.tree.map(lambda g: (g / m).astype(g.dtype), d_params)
    pairs = {"error": (delta, d_probe)} if probe is not None else {}
    fed = delta if probe is None else d_probe
    if differentiable and type(layer).propagate is not Layer.propagate:
        pairs["propagate"] = (layer.propagate(params, cache, fed), da_in)
    pairs["gradients"] = (layer.gradients(params, cache, fed), d_params)
    if type(layer).backward is not Layer.backward:
        da_manual, d_manual = layer.backward(params, cache, da_out)
        pairs["backward"] = ((da_manual if differentiable else None, d_manual), (da_in, d_params))
    if (output := layer.output(params, cache)) is not None:
        activation, z = output
        last = jax.vjp(activation, z)[1](da_out)[0]
        if type(layer).output_error is not Layer.output_error and probe is not None:
            pairs["output_error"] = (layer.output_error(params, cache, last), d_probe)
        if type(layer).output_backward is not Layer.output_backward:
            da_manual, d_manual = layer.output_backward(params, cache, last)
            pairs["output_backward"] = ((da_manual if differentiable else None, d_manual), (da_in, d_params))
    return pairs


def _layer_rows(placed: _Placed, a_in: Array, mask: Any, chained: _Compared, dtype: str) -> list[Row]:
    name, layer, params, key = placed
    a_out = jax.eval_shape(lambda: run_forward(layer, params, a_in, key=key, train=True, mask=mask)[0])
    if not jnp.issubdtype(a_out.dtype, jnp.floating):  # integers passed through: nothing to differentiate
        return []
    cotangent = np.random.default_rng(0).standard_normal(a_out.shape, np.float32)
    args = (layer, params, a_in, key, mask, jnp.asarray(cotangent, a_out.dtype))
    pairs, exact = _isolated(*args), _in_float64(dtype, _isolated, *args)
    isolated = {
        equation: _Compared(manual, autodiff, exact and exact[equation][1])
        for equation, (manual, autodiff) in pairs.items()
    }
    rows = []
    if "error" in isolated:
        rows.append(_row(name, "error", "", dtype, isolated["error"], chained.of(lambda side: side[0])))
    if "propagate" in isolated:
        rows.append(_row(name, "propagate", "", dtype, isolated["propagate"]))
    whole = chained.of(lambda side: side[1])
    scales = _largest(isolated["gradients"].autodiff), _largest(whole.autodiff)
    if jax.tree.structure(isolated["gradients"].manual) != jax.tree.structure(params):
        rows.append(_row(name, "gradients", "structure", dtype, _Compared(isolated["gradients"].manual, params, None)))
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        leaf = functools.partial(_leaf_at, path)
        rows.append(
            _row(
                name,
                "gradients",
                jax.tree_util.keystr(path),
                dtype,
                isolated["gradients"].of(leaf),
                whole.of(leaf),
                scales,
            )
        )
    for equation in ("backward", "output_error", "output_backward"):
        for part, side in _parts(isolated.get(equation)):
            rows.append(_row(name, equation, part, dtype, side))
    alone = "error" in isolated or (type(layer).error is Layer.error and len(rows) < 2)
    return rows if alone else _judged_jointly(name, rows)


def _parts(compared: _Compared | None) -> Iterator[tuple[str, _Compared]]:
    """A δ as it is; (da_in, gradients) one by one, since their scales differ."""
    if compared is None:
        return
    if not isinstance(compared.autodiff, tuple):
        yield "", compared
        return
    for i, part in enumerate(("da_in", "gradients")):
        if jax.tree.leaves(compared.autodiff[i]):
            yield part, compared.of(lambda side, i=i: side[i])


def _judged_jointly(name: str, rows: list[Row]) -> list[Row]:
    """Without a probe ``error`` shows only in what it feeds: where all of that fails, ``error`` is the one that is wrong."""
    rows = [dataclasses.replace(row, joint=True) for row in rows]
    if not rows or not all(row.verdict == "fail" for row in rows):
        unseen = float("nan")
        passed = Row(name, "error", "", "pass", unseen, unseen, unseen, unseen, unseen, joint=True)
        return [passed, *rows]
    worst = max(rows, key=lambda row: row.difference)
    return [
        dataclasses.replace(worst, equation="error", leaf=""),
        *(dataclasses.replace(row, verdict="consequence") for row in rows),
    ]


def _leaf_at(path: Any, tree: Any) -> Any:
    """The leaf at a key path, or None where the tree has another structure."""
    return dict(jax.tree_util.tree_leaves_with_path(tree)).get(path)


def _cost_rows(net: Layer, cost: Cost, given: _Given, dtype: str) -> list[Row]:
    """The cost's own derivative, with respect to z where it is matched to the last layer, else to a."""
    pairs = _cost_derivative(net, cost, given)
    exact = _in_float64(dtype, _cost_derivative, net, cost, given)
    return [
        _row(f"cost {cost}", equation, "", dtype, _Compared(manual, autodiff, exact and exact[equation][1]))
        for equation, (manual, autodiff) in pairs.items()
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _cost_derivative(net: Layer, cost: Cost, given: _Given) -> dict[str, tuple[Array, Array]]:
    params, x, y, key, mask, weights = given
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    output, m = net.output(params, cache), x.shape[0]
    if output is None or not cost.matches(output):
        autodiff = jax.grad(lambda a: m * cost(a, y, weights=weights))(a)
        return {"output_gradient": (cost.output_gradient(a, y, weights=weights), autodiff)}
    activation, z = output
    autodiff = jax.grad(lambda z: m * cost(activation(z), y, weights=weights, output=(activation, z)))(z)
    return {"output_error": (cost.output_error(z, y, weights=weights), autodiff)}


def _row(
    layer: str,
    equation: str,
    leaf: str,
    dtype: str,
    isolated: _Compared | None,
    chained: _Compared | None = None,
    scales: tuple[float, float] = (0.0, 0.0),
) -> Row:
    """The verdict on one comparison; ``scales`` are the layer's largest gradients, for "zero to rounding"."""
    rounding, nan = min(100 * float(jnp.finfo(dtype).eps), 0.01), float("nan")
    alone, whole = (None if pair is None else _differences(pair) for pair in (isolated, chained))
    floors = rounding * scales[0], rounding * scales[1]
    shown = alone or whole or _Differences(nan, nan, nan, 0.0)
    if alone is not None and _fails(alone, dtype, floors[0]):
        verdict = "fail"
    elif whole is not None and _fails(whole, dtype, floors[1]):
        verdict = "consequence"
    elif shown.size == 0:
        verdict = "vacuous"
    else:
        verdict = "zero to rounding" if shown.size < floors[0 if alone else 1] else "pass"
    difference, in_place = (nan if found is None else found.difference for found in (alone, whole))
    return Row(
        layer, equation, leaf, verdict, difference, in_place, shown.manual_error, shown.autodiff_error, shown.size
    )


class _Differences(NamedTuple):
    """Manual against autodiff, each against float64 (NaN without it), relative; autodiff's largest entry."""

    difference: float
    manual_error: float
    autodiff_error: float
    size: float


def _fails(found: _Differences, dtype: str, floor: float) -> bool:
    difference, manual_error, autodiff_error, size = found
    if 0 < size < floor and difference * size <= floor:
        return False
    is_rounding = manual_error <= 4 * autodiff_error and autodiff_error <= 0.1
    return not (difference <= TOLERANCE[dtype] or manual_error <= TOLERANCE[dtype] or is_rounding)


def _differences(compared: _Compared) -> _Differences:
    manual, autodiff, exact = compared
    size, nan = _largest(autodiff), float("nan")
    truth = nan if exact is None else _largest(exact)
    errors = (nan, nan) if exact is None else (_distance(manual, exact, truth), _distance(autodiff, exact, truth))
    return _Differences(_distance(manual, autodiff, size), *errors, size)


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(tree)]


def _largest(tree: Any) -> float:
    """The largest absolute entry; NaN where there is one."""
    return float(np.max([np.max(np.abs(a), initial=0) for a in _arrays(tree)], initial=0))


def _distance(ours: Any, reference: Any, size: float) -> float:
    """The largest difference over the largest entry of the reference; infinite for NaN or another structure or shape."""
    a, b = _arrays(ours), _arrays(reference)
    if [x.shape for x in a] != [x.shape for x in b]:
        return float("inf")
    with np.errstate(invalid="ignore"):
        gap = float(np.max([np.max(np.abs(x - y), initial=0) for x, y in zip(a, b, strict=True)], initial=0))
    if gap == 0 and np.isfinite(size):
        return 0.0
    return gap / size if 0 < size < np.inf and np.isfinite(gap) else float("inf")
