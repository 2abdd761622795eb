"""Both sides of every comparison, as compiled functions: the hand-written equation, and autodiff of the forward pass.

Autodiff is ``jax.vjp`` of the plain forward pass: no hand-written rule takes part in it. Its δ of every layer comes from one
``jax.vjp`` over all probes.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import keystr, tree_leaves_with_path

from ..activations import at_least_float32
from ..backpropagation import backprop, value_and_grad
from ..costs import Cost
from ..layers._composite import Network
from ..layers._layer import Layer, Params, keywords, run_forward, split_key
from ..programs import program


class Two(NamedTuple):
    """A comparison."""

    manual: Any
    autodiff: Any


class Given(NamedTuple):
    """What a network is audited on."""

    params: Params
    x: Array
    y: Any = None
    key: Any = None
    mask: Any = None
    weights: Any = None


class Placed(NamedTuple):
    """A layer in its place."""

    name: str
    layer: Layer
    params: Params
    key: Any


def compiled_once(*, fixed: int) -> Callable[[Callable], Callable]:
    """`program` with the first ``fixed`` arguments held, for one that runs once or twice: on CPU it is compiled without
    optimisation, in half the time."""

    def decorate(f: Callable) -> Callable:
        @functools.wraps(f)
        def run(*args: Any) -> Any:
            options = (("xla_backend_optimization_level", 0),) if jax.default_backend() == "cpu" else ()
            return program(f, *args[:fixed], compiler_options=options)(*args[fixed:])

        return run

    return decorate


def parts(net: Layer) -> tuple[Layer, ...] | None:
    """The layers of a network; None for another layer, and for a network with a forward pass of its own."""
    return net.layers if isinstance(net, Network) and type(net).forward is Network.forward else None


def walk(net: Layer, params: Params, key: Any, place: str = "") -> Iterator[Placed]:
    """The layers in order, those of nested networks in their place, each with its parameters and its key."""
    if (layers := parts(net)) is None:
        yield Placed(f"{place or 0} {type(net).__name__}", net, params, key)
        return
    for i, (part, p, k) in enumerate(zip(layers, params, split_key(key, len(layers)), strict=True)):
        yield from walk(part, p, k, f"{place}.{i}" if place else f"{i}")


def by_layer(net: Layer, tree: Any) -> list[Any]:
    """What a tuple with one entry per layer holds for each layer of `walk`."""
    if (layers := parts(net)) is None:
        return [tree]
    return [leaf for part, entry in zip(layers, tree, strict=True) for leaf in by_layer(part, entry)]


def is_float(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def leaf_at(path: Any, tree: Any) -> Any:
    """The leaf at a key path, or None where the tree has another structure."""
    return dict(tree_leaves_with_path(tree)).get(path)


def normals(like: Any, seed: int) -> Any:
    """Standard normal numbers in the shapes and dtypes of floats, zeros for other leaves."""

    def draw(leaf: Any, seed: int) -> Array:
        if not is_float(leaf):
            return jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf))
        return jnp.asarray(
            np.random.default_rng(seed).standard_normal(jnp.shape(leaf), np.float32), jnp.result_type(leaf)
        )

    leaves, treedef = jax.tree.flatten(like)
    return treedef.unflatten(draw(leaf, seed + i) for i, leaf in enumerate(leaves))


def directions(net: Layer, given: Given) -> tuple[Any, Any]:
    """A random cotangent of the output, and a random tangent of parameters and inputs."""
    run = functools.partial(run_forward, net, train=True)
    a = jax.eval_shape(lambda g: run(g.params, g.x, key=g.key, mask=g.mask)[0], given)
    return normals(a, 0), normals((given.params, given.x), 1)


@compiled_once(fixed=3)
def whole_network(net: Layer, cost: Cost | None, linear: bool, given: Given, u: Array, v: Any) -> dict[str, Any]:
    """Of a network: every layer's input; the product of `products` where it has forward mode (``linear``). With a cost also
    every layer's ∂C/∂a_out by autodiff, and both sides of the errors, of the gradients as ``backprop`` and as
    ``value_and_grad`` give them, and of the cost's own derivative."""
    params, x, y, key, mask, weights = given
    m = x.shape[0]

    def run(params: Params, probes: Sequence, taps: Sequence) -> tuple[Array, list[Any], list[Array]]:
        a, outputs, inputs = x, [], []
        for i, placed in enumerate(walk(net, params, key)):
            inputs.append(a)
            probe = probes[i] if probes else None
            a, cache = run_forward(placed.layer, placed.params, a, key=placed.key, train=True, mask=mask, probe=probe)
            outputs.append(placed.layer.output(placed.params, cache))
            a = a + taps[i] if taps and taps[i] is not None else a
        return a, outputs, inputs

    a_out, outputs, inputs = run(params, [], [])
    found: dict[str, Any] = {"inputs": inputs}
    if linear:
        found["product"] = _product(net, given, u, v)
    if cost is None:
        return found

    def summed_cost(params: Params, probes: Sequence, taps: Sequence) -> Array:
        a, outputs, _ = run(params, probes, taps)
        return m * cost(a, y, weights=weights, output=outputs[-1])

    about = {"key": key, "mask": mask, "weights": weights}
    errors, gradients = (by_layer(net, tree) for tree in backprop(net, cost, params, x, y, **about)[1:])
    probed = ["probe" in keywords(type(placed.layer)) for placed in walk(net, params, key)]
    like = [delta if output is None else output[1] for delta, output in zip(errors, outputs, strict=True)]
    probes = [jax.tree.map(jnp.zeros_like, delta) if yes else None for yes, delta in zip(probed, like, strict=True)]
    taps = [jnp.zeros_like(a) if is_float(a) else None for a in (*inputs[1:], a_out)]
    value, pull_back = jax.vjp(summed_cost, params, probes, taps)
    d_params, deltas, found["das"] = pull_back(jnp.ones_like(value))
    found["errors"] = Two([delta if yes else None for yes, delta in zip(probed, errors, strict=True)], deltas)
    d_params = jax.tree.map(lambda g: (g / m).astype(g.dtype), d_params)
    found["gradients"] = Two(gradients, by_layer(net, d_params))
    composed = value_and_grad(net, cost, micro_batch=None)(params, x, y, **about)[1]
    found["value_and_grad"] = Two(composed, d_params)
    return {**found, **cost_derivative(net, cost, given)}


def _product(net: Layer, given: Given, u: Array, v: Any) -> Two:
    """`products` of a network's composed backward pass and its forward pass."""
    params, x, _, key, mask, _ = given
    _, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    da_in, grads = net.backward(params, cache, u)
    moving = {"params": params, **({"x": x} if is_float(x) and da_in is not None else {})}
    by_hand = {"params": jax.tree.map(lambda g: x.shape[0] * g, grads), "x": da_in}

    def forward(moving: dict) -> Array:
        return run_forward(net, moving["params"], moving.get("x", x), key=key, train=True, mask=mask)[0]

    tangents = {name: v[i] for i, name in enumerate(("params", "x")) if name in moving}
    moved = jax.jvp(forward, (moving,), (tangents,))[1] if jax.tree.leaves(moving) else jnp.zeros_like(u)
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
    """Zeros shaped like z where the layer has a z to show, else like its δ; None for a layer without ``probe``."""
    if "probe" not in keywords(type(layer)):
        return None

    def like(params: Params, a_in: Array) -> Any:
        _, cache = run_forward(layer, params, a_in, key=key, train=True, mask=mask)
        output = layer.output(params, cache)
        return layer.error(params, cache, da_out) if output is None else output[1]

    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(like, params, a_in))


@compiled_once(fixed=1)
def isolated(
    layer: Layer, params: Params, a_in: Array, key: Any, mask: Any, da_out: Array, probe: Any
) -> dict[str, Two]:
    """Each equation of a layer, fed with da_out and autodiff's δ, the derivative with respect to the probe (its own δ where
    the layer has none)."""
    _, cache = run_forward(layer, params, a_in, key=key, train=True, mask=mask)
    delta = layer.error(params, cache, da_out)
    d_params, da_in, d_probe = pulled(layer, params, a_in, key, mask, da_out, probe)
    d_params = jax.tree.map(lambda g: (g / a_in.shape[0]).astype(g.dtype), d_params)
    fed = delta if probe is None else d_probe
    sides = {} if probe is None else {"error": Two(delta, d_probe)}
    if da_in is not None and type(layer).propagate is not Layer.propagate:
        sides["propagate"] = Two(layer.propagate(params, cache, fed), da_in)
    sides["gradients"] = Two(layer.gradients(params, cache, fed), d_params)

    def composed(equation: str, da_manual: Any, d_manual: Any) -> dict[str, Two]:
        da_manual = da_manual if da_in is not None else None
        return {f"{equation} da_in": Two(da_manual, da_in), f"{equation} gradients": Two(d_manual, d_params)}

    if type(layer).backward is not Layer.backward:
        sides |= composed("backward", *layer.backward(params, cache, da_out))
    if (output := layer.output(params, cache)) is not None:
        activation, z = output
        last = jax.vjp(activation, z)[1](da_out)[0]
        if type(layer).output_error is not Layer.output_error and probe is not None:
            sides["output_error"] = Two(layer.output_error(params, cache, last), d_probe)
        if type(layer).output_backward is not Layer.output_backward:
            sides |= composed("output_backward", *layer.output_backward(params, cache, last))
    return sides


def pulled(
    layer: Layer, params: Params, a_in: Array, key: Any, mask: Any, da_out: Any, probe: Any = None
) -> tuple[Params, Array | None, Any]:
    """(∂/∂params, ∂/∂a_in, ∂/∂probe) of ⟨da_out, a_out⟩ by autodiff; None for the a_in of integers."""

    def forward(params: Params, a: Any, probe: Any) -> Array:
        given = {"key": key, "train": True, "mask": mask, "probe": probe}
        return run_forward(layer, params, a_in if a is None else a, **given)[0]

    _, pull_back = jax.vjp(forward, params, a_in if is_float(a_in) else None, probe)
    return pull_back(da_out)


def cost_derivative(net: Layer, cost: Cost, given: Given) -> dict[str, Two]:
    """The cost's own derivative, with respect to z where it is matched to the last layer, else to a."""
    params, x, y, key, mask, weights = given
    a, cache = run_forward(net, params, x, key=key, train=True, mask=mask)
    output, m = net.output(params, cache), x.shape[0]
    delta = cost.delta(output, y, weights=weights)
    if output is None or delta is None:
        autodiff = jax.grad(lambda a: m * cost(a, y, weights=weights))(a)
        return {"output_gradient": Two(cost.output_gradient(a, y, weights=weights), autodiff)}
    activation, z = output
    autodiff = jax.grad(lambda z: m * cost(activation(z), y, weights=weights, output=(activation, z)))(z)
    return {"output_error": Two(delta, autodiff)}


def penalty_gradient(params: Params, penalty: Any, n_examples: Any) -> dict[str, Two]:
    """A penalty's own gradient. Not compiled: JAX may take a pytree class for one that was defined and dropped before."""
    autodiff = jax.grad(lambda p: penalty.value(p, n_examples))(params)
    return {"gradient": Two(penalty.gradient(params, n_examples), autodiff)}


@compiled_once(fixed=2)
def function_gradient(value: Callable, gradient: Callable, params: Any, args: tuple) -> dict[str, Two]:
    """A hand-written gradient of a scalar function."""
    return {"gradient": Two(gradient(params, *args), jax.grad(value)(params, *args))}


@compiled_once(fixed=3)
def function_vjp(
    forward: Callable, backward: Callable, linear: bool, args: tuple, cotangent: Any, tangents: tuple
) -> dict[str, Two]:
    """A hand-written rule for a vector-Jacobian product, of the floats among arguments and outputs; with forward mode
    (``linear``) its product too."""
    out, residuals = forward(*args)
    given = jax.tree.map(lambda u, o: u if is_float(o) else np.zeros(o.shape, jax.dtypes.float0), cotangent, out)
    manual = backward(residuals, given)
    if not isinstance(manual, tuple) or len(manual) != len(args):
        got = f"a tuple of {len(manual)}" if isinstance(manual, tuple) else type(manual).__name__
        raise ValueError(f"check_vjp: expected a tuple of {len(args)} cotangents from backward, got {got}")
    leaves, treedef = jax.tree.flatten(args)
    places = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def of_floats(floats: list[Array]) -> list[Array]:
        new = dict(zip(places, floats, strict=True))
        out = forward(*treedef.unflatten(new.get(i, leaf) for i, leaf in enumerate(leaves)))[0]
        return [leaf for leaf in jax.tree.leaves(out) if is_float(leaf)]

    floats, tangent = ([jax.tree.leaves(tree)[i] for i in places] for tree in (args, tangents))
    u = [leaf for leaf in jax.tree.leaves(cotangent) if is_float(leaf)]
    autodiff = jax.vjp(of_floats, floats)[1](u)[0]
    paths = [path for path, leaf in tree_leaves_with_path(args) if is_float(leaf)]
    by_hand = [
        jnp.zeros_like(g) if manual[path[0].idx] is None else leaf_at(path, manual)
        for path, g in zip(paths, autodiff, strict=True)
    ]
    names = [f"args{keystr(path)}" for path in paths]
    sides = {"backward": Two(*(dict(zip(names, side, strict=True)) for side in (by_hand, autodiff)))}
    sides["given"] = Two(*({f"args{keystr(p)}": 0 for p, _ in tree_leaves_with_path(tree)} for tree in (manual, args)))
    if linear:
        sides["product"] = products(u, jax.jvp(of_floats, (floats,), (tangent,))[1], by_hand, tangent)
    return sides
