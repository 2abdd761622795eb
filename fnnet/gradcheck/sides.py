"""Both sides of every comparison, as compiled functions: the hand-written equation, and autodiff of the forward pass.

Autodiff is ``jax.vjp`` of the plain forward pass: no hand-written rule takes part in it. Its δ of every layer comes from one
``jax.vjp`` over all probes.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import tree_leaves_with_path

from ..activations import at_least_float32
from ..backpropagation import backprop, value_and_grad
from ..costs import Cost
from ..layers._composite import add, bottom, by_layer, composites, concatenate, output_place, visited, walk
from ..layers._layer import Layer, Params, run_forward
from ..programs import program
from .points import drawing, on_device
from .rules import without_rules


class Two(NamedTuple):
    """A comparison."""

    manual: Any
    autodiff: Any


class Plain(NamedTuple):
    """What is differentiated: a layer's forward pass, with the bodies of the hand-written rules inside it in their places.

    Attributes:
        layer: the layer.
        rules: where the rules inside are written.
        trusted: where those are that are taken as they are; None where there is none to replace.
    """

    layer: Layer
    rules: tuple[str, ...] = ()
    trusted: tuple[str, ...] | None = None

    def of(self, f: Callable, kept: str | None = None) -> Callable:
        """f without rules, but the one at ``kept``."""
        if self.trusted is None:
            return f
        return without_rules(f, self.trusted if kept is None else (*self.trusted, kept))


class Given(NamedTuple):
    """What a network is audited on."""

    params: Params
    x: Array
    y: Any = None
    key: Any = None
    mask: Any = None
    weights: Any = None


QUICK = (("xla_backend_optimization_level", 0), ("xla_cpu_parallel_codegen_split_count", 1))
if jax.__version_info__ < (0, 11):  # later versions have nothing but fusion emitters
    QUICK += (("xla_cpu_use_fusion_emitters", False),)


def _quick() -> Any:
    return QUICK if jax.default_backend() == "cpu" else ()


def quickly(f: Callable) -> Callable:
    """``jax.jit`` for a program that runs once or twice: on CPU without optimisation and in one piece, in a quarter of the
    time."""
    return jax.jit(f, compiler_options=dict(_quick()) or None)


def compiled_once(*, fixed: int) -> Callable[[Callable], Callable]:
    """`program` with the first ``fixed`` arguments held, compiled as by `quickly`."""

    def decorate(f: Callable) -> Callable:
        @functools.wraps(f)
        def run(*args: Any) -> Any:
            if any(
                isinstance(leaf, Tracer) for leaf in jax.tree.leaves(args[fixed:])
            ):  # options are for whole programs
                return f(*args)
            return program(f, *args[:fixed], compiler_options=_quick())(*args[fixed:])

        return run

    return decorate


def is_float(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def is_inexact(a: Any) -> bool:
    """Whether it is an array of floats or of complex numbers."""
    return jnp.issubdtype(jnp.result_type(a), jnp.inexact)


def leaf_at(path: Any, tree: Any) -> Any:
    """The leaf at a key path, or None where the tree has another structure."""
    return dict(tree_leaves_with_path(tree)).get(path)


def normals(like: Any, seed: int, scale: float = 1.0) -> Any:
    """Standard normal numbers, ``scale`` times as large, in the shapes and dtypes of floats; zeros for other leaves."""

    def draw(leaf: Any, i: int) -> Array:
        shape, dtype = jnp.shape(leaf), jnp.result_type(leaf)
        if not is_float(leaf):
            return on_device(np.zeros(shape), dtype)
        return on_device(scale * drawing(seed, i).standard_normal(shape, np.float32), dtype)

    leaves, treedef = jax.tree.flatten(like)
    return treedef.unflatten(draw(leaf, i) for i, leaf in enumerate(leaves))


def traced(net: Layer, cost: Cost | None, given: Given) -> tuple[Any, Any]:
    """The program of the forward pass, cost included, and what its output looks like."""

    def forward(given: Given) -> tuple[Array, Any]:
        a, cache = run_forward(net, given.params, given.x, key=given.key, train=True, mask=given.mask)
        output = net.output(given.params, cache)
        return a, None if cost is None else cost(a, given.y, weights=given.weights, output=output)

    program, (a, _) = jax.make_jaxpr(forward, return_shape=True)(given)
    return program, a


@compiled_once(fixed=3)
def whole_network(plain: Plain, cost: Cost | None, linear: bool, given: Given, u: Array, v: Any) -> dict[str, Any]:
    """Of a network: every layer's input; the product of `products` where it has forward mode (``linear``). With a cost also
    every layer's ∂C/∂a_out by autodiff, and both sides of the errors, of the gradients as ``backprop`` and as
    ``value_and_grad`` give them, and of the cost's own derivative."""
    net, (params, x, y, key, mask, weights) = plain.layer, given
    m = x.shape[0]
    places = list(walk(net, params, key))

    def run(params: Params, moved: dict) -> tuple[Array, dict]:
        """The output and what each layer was seen to do; ``moved`` is added to its parameters, to z and to a_out."""
        seen = {}

        def visit(place: tuple, layer: Layer, p: Params, a: Array, **about: Any) -> tuple[Array, Any]:
            own, probe, tap = moved.get(place, (None, None, None))
            p = p if own is None else jax.tree.map(jnp.add, p, own)
            a_out, cache = run_forward(layer, p, a, **{**about, "probe": probe})
            seen[place] = (a, a_out, cache, None if "run" in about else layer.output(p, cache))
            return a_out if tap is None else a_out + tap, cache

        return visited(net, params, x, visit, key=key, train=True, mask=mask), seen

    a, seen = run(params, {})
    inputs, a_outs, caches, outputs = zip(*(seen[placed.place] for placed in places), strict=True)
    found: dict[str, Any] = {"inputs": list(inputs), "output": a, "branches": {}}
    for composite in composites(net, params):
        if getattr(composite.layer, "join", add) not in (add, concatenate):
            branches = range(len(composite.layer.layers))  # pyright: ignore[reportAttributeAccessIssue]
            found["branches"][composite.place] = tuple(seen[(*composite.place, i)][1] for i in branches)
    if linear and any(map(is_float, [x, *jax.tree.leaves(params)])):
        found["product"] = _product(plain, given, u, v)
    if cost is None:
        return found

    last = output_place(net)

    def summed_cost(params: Params, moved: dict) -> Array:
        a, seen = run(params, moved)
        return m * cost(a, y, weights=weights, output=None if last is None else seen[last][-1])

    about = {"key": key, "mask": mask, "weights": weights}
    _, errors, whole = backprop(net, cost, params, x, y, **about)
    errors = by_layer(net, errors)
    probed = ["probe" in placed.layer._keywords for placed in places]
    moved = {}
    for placed, yes, delta, output, a in zip(places, probed, errors, outputs, a_outs, strict=True):
        probe = jax.tree.map(jnp.zeros_like, _like(delta, output)) if yes else None
        own = jax.tree.map(jnp.zeros_like, placed.params)
        moved[placed.place] = own, probe, jnp.zeros_like(a) if is_float(a) else None
    value, pull_back = jax.vjp(plain.of(summed_cost), params, moved)
    d_params, d_moved = pull_back(jnp.ones_like(value))
    d_own, deltas, found["das"] = map(list, zip(*(d_moved[placed.place] for placed in places), strict=True))
    found["errors"] = Two([delta if yes else None for yes, delta in zip(probed, errors, strict=True)], deltas)
    of_layers = [placed.layer.gradients(placed.params, *of) for placed, *of in zip(places, caches, errors, strict=True)]
    mean = functools.partial(jax.tree.map, lambda g: (g / m).astype(g.dtype))
    found["gradients"] = Two(of_layers, mean(d_own))
    composed = value_and_grad(net, cost, micro_batch=None)(params, x, y, **about)[1]
    found |= {"backprop": Two(whole, mean(d_params)), "value_and_grad": Two(composed, mean(d_params))}
    return {**found, **cost_derivative(net, cost, given, plain)}


def gradient_without_rules(net: Layer, cost: Cost | None, trusted: tuple[str, ...], given: Given) -> Any:
    """Autodiff of the plain forward pass: an error where there is none."""
    _, x, y, key, mask, weights = given

    def value(params: Params, moving: Any) -> Array:
        a, cache = run_forward(net, params, x if moving is None else moving, key=key, train=True, mask=mask)
        return jnp.sum(a) if cost is None else cost(a, y, weights=weights, output=net.output(params, cache))

    out, pull = jax.vjp(Plain(net, (), trusted).of(value), given.params, x if is_float(x) else None)
    return pull(jnp.ones_like(out))


def every_input(net: Layer, given: Given) -> dict[Any, Array]:
    """What every layer and every composite of a network is given, by its place, and the "output"."""
    inputs: dict[Any, Array] = {}

    def visit(place: tuple[int, ...], layer: Layer, params: Params, a_in: Array, **about: Any) -> Any:
        inputs[place] = a_in
        return run_forward(layer, params, a_in, **about)

    inputs["output"] = visited(net, given.params, given.x, visit, key=given.key, train=True, mask=given.mask)
    return inputs


@compiled_once(fixed=1)
def inputs_of(net: Layer, given: Given) -> dict[str, Any]:
    """`whole_network` without anything that runs backwards."""
    inputs = every_input(net, given)
    places = [placed.place for placed in walk(net, given.params)]
    return {"inputs": [inputs[place] for place in places], "output": inputs["output"], "branches": {}}


def _like(delta: Any, output: Any) -> Any:
    """What a probe is shaped like: z where there is one to show and δ is an array too, else δ."""
    return delta if output is None or not hasattr(delta, "shape") else output[1]


def _product(plain: Plain, given: Given, u: Array, v: Any) -> Two:
    """`products` of a network's composed backward pass and its forward pass."""
    net, (params, x, _, key, mask, _) = plain.layer, given
    _, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    da_in, grads = net.backward(params, cache, u)
    moving = {"params": params, **({"x": x} if is_float(x) and da_in is not None else {})}
    by_hand = {"params": jax.tree.map(lambda g: x.shape[0] * g, grads), "x": da_in}

    def forward(moving: dict) -> Array:
        return run_forward(net, moving["params"], moving.get("x", x), key=key, train=True, mask=mask)[0]

    tangents = {name: v[i] for i, name in enumerate(("params", "x")) if name in moving}
    moved = jax.jvp(plain.of(forward), (moving,), (tangents,))[1] if jax.tree.leaves(moving) else jnp.zeros_like(u)
    return products(u, moved, {name: by_hand[name] for name in moving}, tangents)


def products(u: Any, moved: Any, pulled: Any, v: Any) -> Two:
    """⟨Jᵀu, v⟩ by hand and ⟨u, J v⟩ by forward mode, over ‖Jᵀu‖ ‖v‖ / √n, which is the size of such a product; NaN by hand
    for other shapes."""

    def wide(tree: Any) -> list[Array]:
        return [at_least_float32(leaf).ravel() for leaf in jax.tree.leaves(tree)]

    def inner(one: Any, other: Any) -> Array:
        return jnp.asarray(sum((jnp.sum(a * b) for a, b in zip(wide(one), wide(other), strict=True)), 0.0))

    if list(map(jnp.shape, jax.tree.leaves(pulled))) != list(map(jnp.shape, jax.tree.leaves(v))):
        return Two(jnp.asarray(jnp.nan), inner(u, moved))
    n = sum(leaf.size for leaf in jax.tree.leaves(v))
    size = jnp.sqrt(inner(pulled, pulled) * inner(v, v) / max(n, 1))
    size = jnp.where(size > 0, size, 1)
    return Two(inner(pulled, v) / size, inner(u, moved) / size)


def probe_for(layer: Layer, params: Params, a_in: Array, key: Any, mask: Any, da_out: Array) -> Any:
    """Zeros shaped as `_like` says; None for a layer without ``probe``, or with parts without."""
    if any("probe" not in part._keywords for part in (layer, *bottom(layer))):
        return None

    def like(params: Params, a_in: Array) -> Any:
        _, cache = run_forward(layer, params, a_in, key=key, train=True, mask=mask)
        return _like(layer.error(params, cache, da_out), layer.output(params, cache))

    return jax.tree.map(lambda s: on_device(np.zeros(s.shape), s.dtype), jax.eval_shape(like, params, a_in))


@compiled_once(fixed=2)
def isolated(
    layer: Layer, plain: Plain, params: Params, a_in: Array, key: Any, mask: Any, da_out: Array, probe: Any
) -> dict[str, Two]:
    """Each equation of a layer, fed with da_out and autodiff's δ, the derivative with respect to the probe (its own δ where
    the layer has none); and each rule inside it against its function."""
    _, cache = run_forward(layer, params, a_in, key=key, train=True, mask=mask)
    delta = layer.error(params, cache, da_out)
    given = params, a_in, key, mask, da_out, probe
    d_params, da_in, d_probe = right = pulled(plain, *given)
    d_params = jax.tree.map(lambda g: (g / a_in.shape[0]).astype(g.dtype), d_params)
    fed = delta if probe is None else d_probe
    sides = {} if probe is None else {"error": Two(delta, d_probe)}
    if da_in is not None and type(layer).propagate is not Layer.propagate:
        sides["propagate"] = Two(layer.propagate(params, cache, fed), da_in)
    if type(layer).gradients is not Layer.gradients or not jax.tree.leaves(params):
        sides["gradients"] = Two(layer.gradients(params, cache, fed), d_params)
    for source in plain.rules:
        sides[f"rule {source}"] = Two(pulled(plain, *given, kept=source), right)

    def composed(equation: str, da_manual: Any, d_manual: Any) -> dict[str, Two]:
        da_manual = da_manual if da_in is not None else None
        return {f"{equation} da_in": Two(da_manual, da_in), f"{equation} gradients": Two(d_manual, d_params)}

    if type(layer).backward is not Layer.backward:
        sides |= composed("backward", *layer.backward(params, cache, da_out))
    if (output := layer.output(params, cache)) is not None:
        activation, z = output
        last = jax.vjp(plain.of(activation), z)[1](da_out)[0]
        if type(layer).output_error is not Layer.output_error and probe is not None:
            sides["output_error"] = Two(layer.output_error(params, cache, last), d_probe)
        if type(layer).output_backward is not Layer.output_backward:
            sides |= composed("output_backward", *layer.output_backward(params, cache, last))
    return sides


@compiled_once(fixed=2)
def split_error(join: Any, plain: Plain, branches: tuple[Array, ...], da_out: Array) -> dict[str, Two]:
    """How a join splits an error among its branches."""
    autodiff = jax.vjp(plain.of(join.value), *branches)[1](da_out)
    return {"split": Two(tuple(join.split(da_out, *branches)), autodiff)}


def pulled(
    plain: Plain | Layer,
    params: Params,
    a_in: Array,
    key: Any,
    mask: Any,
    da_out: Any,
    probe: Any = None,
    *,
    kept: str | None = None,
) -> tuple[Params, Array | None, Any]:
    """(∂/∂params, ∂/∂a_in, ∂/∂probe) of ⟨da_out, a_out⟩ by autodiff; None for the a_in of integers."""
    plain = Plain(plain) if isinstance(plain, Layer) else plain

    def forward(params: Params, a: Any, probe: Any) -> Array:
        given = {"key": key, "train": True, "mask": mask, "probe": probe}
        return run_forward(plain.layer, params, a_in if a is None else a, **given)[0]

    _, pull_back = jax.vjp(plain.of(forward, kept), params, a_in if is_float(a_in) else None, probe)
    return pull_back(da_out)


def cost_derivative(net: Layer, cost: Cost, given: Given, plain: Plain | None = None) -> dict[str, Two]:
    """The cost's own derivative, with respect to z where it is matched to the last layer, else to a."""
    params, x, y, key, mask, weights = given
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    output, m = net.output(params, cache), x.shape[0]
    delta, of = cost.delta(output, y, weights=weights), (plain or Plain(net)).of
    if output is None or delta is None:
        autodiff = jax.grad(of(lambda a: m * cost(a, y, weights=weights)))(a)
        return {"output_gradient": Two(cost.output_gradient(a, y, weights=weights), autodiff)}
    activation, z = output
    autodiff = jax.grad(of(lambda z: m * cost(activation(z), y, weights=weights, output=(activation, z))))(z)
    return {"output_error": Two(delta, autodiff)}


def activation_of(net: Layer, given: Given) -> Any:
    """The activation of the net's output, None where there is none."""
    found = []

    def forward(given: Given) -> None:
        _, cache = run_forward(net, given.params, given.x, key=given.key, train=True, mask=given.mask)
        output = net.output(given.params, cache)
        found.append(None if output is None else output[0])

    jax.eval_shape(forward, given)
    return found[0]


@compiled_once(fixed=2)
def two_forms(cost: Cost, activation: Any, z: Array, y: Any, weights: Any) -> dict[str, Two]:
    """C from z and from a = σ(z), at several z."""

    def forms(z: Array) -> tuple[Array, Array]:
        a = activation(z)
        return cost(a, y, weights=weights, output=(activation, z)), cost(a, y, weights=weights)

    of_each = [forms(one) for one in z]
    return {"terms": Two(*map(jnp.stack, zip(*of_each, strict=True)))}


def penalty_gradient() -> Callable[..., dict[str, Two]]:
    """(params, penalty, n_examples) -> a penalty's own gradient, in a program of this audit's own: JAX may take a pytree
    class among a program's arguments for one that was defined and dropped before."""

    def both(params: Params, penalty: Any, n_examples: Any) -> dict[str, Two]:
        autodiff = jax.grad(lambda p: penalty.value(p, n_examples))(params)
        return {"gradient": Two(penalty.gradient(params, n_examples), autodiff)}

    return quickly(both)
