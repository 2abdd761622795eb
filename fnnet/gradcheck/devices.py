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
from jax.sharding import AxisType, NamedSharding

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
    """The tree with the arrays that lie on several devices as NumPy's."""
    return jax.tree.map(lambda a: _whole(a) if _is_spread(a) else a, tree)


def _whole(a: Any) -> Any:
    """Where copies that should be the same differ, as after a psum that is missing under ``check_vma=False``, their mean."""
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(jnp.asarray(_whole(jax.random.key_data(a))), impl=str(jax.random.key_impl(a)))
    if not a.is_fully_replicated:
        return np.asarray(a if a.is_fully_addressable else multihost_utils.process_allgather(a, tiled=True))
    copies = [np.asarray(shard.data) for shard in a.addressable_shards]
    if len({copy.tobytes() for copy in copies}) == 1:
        return copies[0]
    return np.mean(copies, axis=0, dtype=np.float64).astype(a.dtype)


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
        ValueError: for such a layer where the batch is not divided over a mesh.
    """
    given, axes = gathered(there), axes_of(there)
    unbound, within = named_axes(net, given)
    lying = Lying(net, there, axes or within, bool(axes) and (not unbound or net.independent), [])
    if not unbound:
        return net, given, lying
    if not (over := batch_axes(there.x)):
        raise ValueError(
            f"{by}: expected x divided over the axis of a mesh that a layer names ({unbound}), got it on one device; place it "
            f'with jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))'
        )
    parts = " × ".join(f"{n} parts over {name!r}" for name, n in over)
    lying.notes.append(f"Layers of your own run on {parts}, and the means of their gradients are averaged.")
    return in_parts(net, over), given, lying


def named_axes(net: Layer, given: Given) -> tuple[str, Axes]:
    """What JAX says of an axis that the network's layers name and that is not bound outside of ``shard_map``, "" for none;
    and the axes of the meshes that they map over themselves."""

    def both_ways(params: Params, x: Any) -> Any:
        a, cache = run_forward(net, params, x, key=given.key, train=True, mask=given.mask)
        errors = net.error(params, cache, a)
        return (
            net._propagated(params, cache, errors),
            net.gradients(params, cache, errors),
            net.backward(params, cache, a),
        )

    try:
        return "", axes_within(jax.make_jaxpr(both_ways)(given.params, given.x))
    except NameError as error:
        return str(error).split(". ")[0] if "unbound axis" in str(error) else "", ()
    except Exception:  # whatever a wrong equation raises: the audit will say it
        return "", ()


def in_parts(net: Layer, axes: Axes) -> Layer:
    """The network with its users' own layers run on each part of a batch that is divided over the axes."""
    if isinstance(net, Composite):
        return net.mapped(lambda layer: in_parts(layer, axes))
    if type(net).__module__.startswith("fnnet."):
        return net
    twin = copy.copy(net)
    object.__setattr__(twin, "__class__", _class_in_parts(type(net), axes))
    return twin


@functools.cache
def _class_in_parts(cls: Any, axes: Axes) -> Any:
    """A layer's class with its methods run on every part, the axes bound: arrays of examples go in and come out whole, caches
    keep their parts apart, and gradients are averaged."""
    sizes = tuple(n for _, n in axes)
    k = len(sizes)

    def cut(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.reshape(*sizes, a.shape[0] // math.prod(sizes), *a.shape[1:]), tree)

    def joined(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[k + 1 :]), tree)

    def averaged(tree: Any) -> Any:
        return jax.tree.map(lambda a: a.mean(tuple(range(k))), tree)

    def on_each(f: Callable, *parts: Any) -> Any:
        for name, _ in reversed(axes):
            f = jax.vmap(f, axis_name=name)
        return f(*parts)

    def own(layer: Any) -> Any:
        twin = copy.copy(layer)
        object.__setattr__(twin, "__class__", cls)
        return twin

    def forward(
        self: Any, params: Any, a_in: Any, *, key: Any = None, mask: Any = None, probe: Any = None, **about: Any
    ) -> Any:
        def of_part(a_in: Any, mask: Any, probe: Any, index: Any) -> Any:
            given = {"key": keys_of(key, index), "mask": mask, "probe": probe, **about}
            return run_forward(own(self), params, a_in, **given)

        a_out, cache = on_each(of_part, *cut((a_in, mask, probe, jnp.arange(a_in.shape[0]))))
        return joined(a_out), cache

    def method(name: str, put: Callable) -> Callable:
        def run(self: Any, params: Any, cache: Any, *given: Any) -> Any:
            return put(on_each(functools.partial(getattr(own(self), name), params), cache, *cut(given)))

        return run

    def both(found: Any) -> tuple[Any, Any]:
        return joined(found[0]), averaged(found[1])

    joining = dict.fromkeys(("error", "propagate", "output", "output_error"), joined)
    puts = {**joining, "gradients": averaged, "backward": both, "output_backward": both}
    written = {name: method(name, put) for name, put in puts.items() if getattr(cls, name) is not getattr(Layer, name)}
    keywords = property(lambda self: own(self)._keywords)
    about = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "_keywords": keywords}
    return jax.tree_util.register_static(type(cls.__name__, (cls,), {**about, "forward": forward, **written}))
