"""The audit on a mesh: arrays that lie on several devices, layers that speak of the mesh's axes, and the missing psum.

Equations are judged on one device, on whole arrays: `gathered` brings them there, in every process alike. A layer that calls
``jax.lax.psum(..., "data")`` is run as by `fnnet.data_parallel`, each part of the batch by itself and the gradients' means
averaged: by `in_parts`, which binds the axis by ``jax.vmap``. What the devices make of the composed gradient where the arrays
lie is one more row. Averaged over D devices a sum that each of them lacks is 1/D of the right one, and a sum that is made
twice is D times it.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..layers._composite import Composite
from ..layers._layer import Layer, Params, keys_of, run_forward
from .rules import parts_of
from .sides import Given

Axes = tuple[tuple[str, int], ...]
"""The axes of a mesh with more than one device, each with its size."""


def gathered(tree: Any) -> Any:
    """The tree with the arrays that lie on several devices on the default one."""
    return jax.tree.map(lambda a: jnp.asarray(_whole(a)) if _is_spread(a) else a, tree)


def on_host(tree: Any) -> Any:
    """`gathered`, but where copies of an array differ that should be the same, as after a psum that is missing under
    ``check_vma=False``, their mean over all devices. What lies on one device stays as it is, in its order (a map sorts)."""
    if not any(map(_is_spread, jax.tree.leaves(tree))):
        return tree
    return jax.tree.map(lambda a: _mean_copy(a) if _is_spread(a) and a.is_fully_replicated else gathered(a), tree)


def _mean_copy(a: Any) -> np.ndarray:
    copies = [np.asarray(shard.data) for shard in a.addressable_shards]
    one = copies[0]
    if len({copy.tobytes() for copy in copies}) > 1:
        one = np.mean(copies, axis=0, dtype=np.float64).astype(a.dtype)
    if a.is_fully_addressable:
        return one
    return np.mean(multihost_utils.process_allgather(one), axis=0, dtype=np.float64).astype(a.dtype)


def _whole(a: Any) -> Any:
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(_whole(jax.random.key_data(a))), impl=str(jax.random.key_impl(a)))
    if a.is_fully_addressable or a.is_fully_replicated:
        return np.asarray(a)
    return np.asarray(multihost_utils.process_allgather(a, tiled=True))


def placed_like(tree: Any, there: Any) -> Any:
    """The arrays of one device put where those of ``there`` lie that are on several."""

    def leaf(a: Any, old: Any) -> Any:
        if not _is_spread(old) or jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
            return a
        whole = np.asarray(a)
        return jax.make_array_from_callback(whole.shape, old.sharding, lambda index: whole[index])

    return jax.tree.map(leaf, tree, there)


def lying_like(tree: Any, there: Any) -> Any:
    """The same inside a compiled function, where it can be differentiated."""
    return jax.tree.map(lambda a, old: jax.device_put(a, old.sharding) if _is_spread(old) else a, tree, there)


def typed_like(u: Any, out: Any) -> Any:
    """A cotangent on the explicit mesh on which the output lies, or as it is."""
    sharding = jax.typeof(out).sharding
    return jax.sharding.reshard(u, sharding) if AxisType.Explicit in sharding.mesh.axis_types else u


def _is_spread(a: Any) -> bool:
    return isinstance(a, jax.Array) and not isinstance(a, Tracer) and len(a.sharding.device_set) > 1


def axes_of(tree: Any) -> Axes:
    """The axes of the meshes on which the arrays of a tree lie."""
    shardings = [a.sharding for a in jax.tree.leaves(tree) if _is_spread(a)]
    return _sized(s.mesh.shape for s in shardings if isinstance(s, NamedSharding))


def axes_within(program: Any) -> Axes:
    """The axes of the meshes that a program maps over."""

    def meshes(jaxpr: Any) -> Iterator[Any]:
        for equation in jaxpr.eqns:
            if equation.primitive.name == "shard_map":
                yield equation.params["mesh"].shape
            for part in parts_of(equation):
                yield from meshes(part)

    return _sized(meshes(program.jaxpr))


def _sized(shapes: Any) -> Axes:
    return tuple({name: n for shape in shapes for name, n in shape.items() if n > 1}.items())


def batch_axes(x: Any) -> Axes:
    """The axes over which the examples are divided."""
    if not _is_spread(x) or not isinstance(x.sharding, NamedSharding) or not x.sharding.spec:
        return ()
    names = x.sharding.spec[0] or ()
    names = names if isinstance(names, tuple) else (names,)
    return tuple((name, x.sharding.mesh.shape[name]) for name in names)


def numbers_of_devices(axes: Axes) -> dict[str, int]:
    """How many devices there are, in words; along each axis where there are several."""
    if len(axes) == 1:
        return {"the number of devices": axes[0][1]}
    along = {f"the number of devices along {name!r}": n for name, n in axes}
    return {**along, "the number of devices": math.prod(along.values())} if along else {}


class Lying(NamedTuple):
    """A network as the user has it, and where.

    Attributes:
        net: the network.
        there: its arrays.
        axes: of the mesh on which they lie, or to which its layers map.
        runs: whether ``value_and_grad`` runs on it there, on several devices.
        notes: what to say of it.
    """

    net: Layer
    there: Given
    axes: Axes
    runs: bool
    notes: list[str]


def on_one_device(by: str, net: Layer, there: Given) -> tuple[Layer, Given, Lying]:
    """The network and what it is audited on, on one device: with layers that name axes of a mesh run in parts.

    Raises:
        ValueError: for such a layer where the batch is not divided over these axes.
    """
    given, axes, over = gathered(there), axes_of(there), batch_axes(there.x)
    program, error = _both_ways(net, given)
    names_axes = _is_unbound(error)
    runs = bool(axes) and (not names_axes or net.independent)
    lying = Lying(net, there, axes or (axes_within(program) if program else ()), runs, [])
    if names_axes:
        parted = in_parts(net, over)
        _, error = _both_ways(parted, given)
        if _is_unbound(error):
            got = f"it divided over {', '.join(name for name, _ in over)}" if over else "it on one device"
            said = str(error).split(". ")[0]
            raise ValueError(
                f"{by}: expected x divided over the axis of a mesh that a layer names ({said}), got {got}; "
                f'give jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))'
            )
        parts = " × ".join(f"{n} parts over {name!r}" for name, n in over)
        lying.notes.append(f"Layers of your own run on {parts}, and the means of their gradients are averaged.")
        return parted, given, lying
    if error and over and _is_explicit(there.x) and _both_ways(placed := in_place(net, there.x), given)[0]:
        return placed, given, lying
    return net, given, lying


def _is_unbound(error: Exception | None) -> bool:
    return isinstance(error, NameError) and "unbound axis" in str(error)


def _both_ways(net: Layer, given: Given) -> tuple[Any, Exception | None]:
    """The program of a network, forward and back, and what stands against it."""

    def run(params: Params, x: Any) -> Any:
        a, cache = run_forward(net, params, x, key=given.key, train=True, mask=given.mask)
        errors = net.error(params, cache, a)
        return (
            net._propagated(params, cache, errors),
            net.gradients(params, cache, errors),
            net.backward(params, cache, a),
        )

    try:
        return jax.make_jaxpr(run)(given.params, given.x), None
    except Exception as error:  # whatever a wrong equation raises: the audit will say it
        return None, error


def _is_explicit(a: Any) -> bool:
    return AxisType.Explicit in a.sharding.mesh.axis_types


def in_parts(net: Layer, axes: Axes) -> Layer:
    """The network with its users' own layers run on each part of a batch that is divided over the axes, which are bound."""
    return _own_layers(net, lambda cls: _class_in_parts(cls, axes))


def in_place(net: Layer, x: Any) -> Layer:
    """The network with its users' own layers run, where they must, on examples that lie as those of x on an explicit mesh."""
    specs = PartitionSpec(x.sharding.spec[0]), PartitionSpec()
    rows, whole = (NamedSharding(x.sharding.mesh, spec) for spec in specs)
    return _own_layers(net, lambda cls: _class_in_place(cls, rows, whole))


def _own_layers(net: Layer, instead: Callable[[type], type]) -> Layer:
    """The network with other classes for the layers at the bottom that are no layers of this library."""
    if isinstance(net, Composite):
        return net.mapped(lambda layer: _own_layers(layer, instead))
    return net if type(net).__module__.startswith("fnnet.") else _of_class(net, instead(type(net)))


def _of_class(layer: Layer, cls: type) -> Any:
    twin = copy.copy(layer)
    object.__setattr__(twin, "__class__", cls)
    return twin


@functools.cache
def _class_in_parts(cls: type, axes: Axes) -> type:
    """Each part by itself: caches keep their parts apart, gradients are averaged."""
    sizes = tuple(n for _, n in axes)
    k = len(sizes)

    def cut(a: Any) -> Any:
        return a.reshape(*sizes, a.shape[0] // math.prod(sizes), *a.shape[1:])

    def on_each(f: Callable) -> Callable:
        for name, _ in reversed(axes):
            f = jax.vmap(f, axis_name=name)
        return f

    return _class(cls, cut, lambda a: a.reshape(-1, *a.shape[k + 1 :]), lambda a: a.mean(tuple(range(k))), on_each)


@functools.cache
def _class_in_place(cls: type, rows: NamedSharding, whole: NamedSharding) -> type:
    """Examples are divided for the methods that cannot do without, and what comes out of these is whole on every device."""

    def on_each(f: Callable) -> Callable:
        def run(*parts: Any) -> Any:
            try:
                return f(*parts)
            except Exception:  # such as shard_map raises for an array that does not lie where its specs say
                divided = jax.tree.map(lambda a: jax.sharding.reshard(a, rows), parts)
                return jax.tree.map(lambda a: jax.sharding.reshard(a, whole), f(*divided))

        return run

    same = lambda a: a  # noqa: E731
    return _class(cls, same, same, same, on_each)


def _class(cls: Any, cut: Callable, joined: Callable, averaged: Callable, on_each: Callable) -> Any:
    """A layer's class with its methods run by ``on_each``: arrays of examples are ``cut`` on the way in and ``joined`` on the
    way out, and gradients ``averaged``."""

    def forward(
        self: Any, params: Any, a_in: Any, *, key: Any = None, mask: Any = None, probe: Any = None, **about: Any
    ) -> Any:
        def run(a_in: Any, mask: Any, probe: Any, index: Any) -> Any:
            given = {"key": keys_of(key, index), "mask": mask, "probe": probe, **about}
            return run_forward(_of_class(self, cls), params, a_in, **given)

        examples = a_in, mask, probe, None if key is None else jnp.arange(a_in.shape[0])
        a_out, cache = on_each(run)(*jax.tree.map(cut, examples))
        return joined(a_out), cache

    def method(name: str, *put: Callable) -> Callable:
        def run(self: Any, params: Any, cache: Any, *given: Any) -> Any:
            own = functools.partial(getattr(_of_class(self, cls), name), params)
            found = on_each(own)(cache, *jax.tree.map(cut, given))
            return (
                found
                if found is None
                else tuple(map(jax.tree.map, put, found))
                if put[1:]
                else jax.tree.map(put[0], found)
            )

        return run

    puts = dict.fromkeys(("error", "propagate", "output", "output_error"), (joined,))
    puts |= {"gradients": (averaged,), "backward": (joined, averaged), "output_backward": (joined, averaged)}
    written = {name: method(name, *put) for name, put in puts.items() if getattr(cls, name) is not getattr(Layer, name)}
    keywords = property(lambda self: _of_class(self, cls)._keywords)
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_keywords": keywords}
    return jax.tree_util.register_static(type(cls.__name__, (cls,), {**about, "forward": forward, **written}))
