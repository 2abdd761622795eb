"""A batch divided among devices: each runs its own examples, and one sum over the devices adds up.

C = (1/m) Σ_x C_x, so that on D devices with m/D examples each ∂C/∂w = (1/D) Σ_d ∂C_d/∂w, C_d the cost of device d's
examples. Whatever the network, the devices send the cost and the gradients, once, and nothing else.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .forms import varying, varying_axes
from .layers._layer import ExampleKeys, Layer, LayerError, as_array, check_key, keys_of
from .programs import program

__all__ = [
    "NETWORKS",
    "WHOLE",
    "Division",
    "any_process",
    "batch_size",
    "check_agreed",
    "check_divides",
    "check_dividing",
    "check_everywhere",
    "check_mixing",
    "data_parallel",
    "divided",
    "division_of",
    "division_of_run",
    "everywhere",
    "is_whole",
    "mean",
    "replicated",
    "where_divided",
    "without_types",
]

WHOLE = PartitionSpec()

NETWORKS = "the networks of a sweep"
"""The axis over which `fnnet.sweep` divides networks, each with all of its batch."""


class Division(NamedTuple):
    """How a batch is divided: over which axis of which mesh. The axis may be a tuple of axes."""

    mesh: Any
    axis: Any

    @property
    def axes(self) -> tuple[str, ...]:
        """The axis, or each of several."""
        return self.axis if isinstance(self.axis, tuple) else (self.axis,)

    @property
    def n(self) -> int:
        """The number of parts."""
        return math.prod(self.mesh.shape[name] for name in self.axes)

    def own(self, size: int) -> jax.Array:
        """Inside ``shard_map``, the device's numbers where each has so many, one after the other."""
        return jax.lax.axis_index(self.axis) * size + jnp.arange(size, dtype=jnp.int32)

    @property
    def rows(self) -> PartitionSpec:
        """An array with its axis 0 divided."""
        return PartitionSpec(self.axis)


def data_parallel(gradient: Callable[..., tuple[Any, Any]], mesh: Mesh, axis: Any = None) -> Callable[..., Any]:
    """The function of a whole batch from a gradient function of one device's examples: (params, x, y, *, key, mask, ...) ->
    (C, ∂C/∂params), compiled, with the batch divided among the devices and one all-reduce of the means.

    C = (1/D) Σ_d C_d and ∂C/∂w = (1/D) Σ_d ∂C_d/∂w over the D devices of ``axis``. Each device gets the parameters whole, or
    cut over other axes of an automatic mesh, over which the compiler divides, and its part of everything that has the
    examples on axis 0, with the keys of those examples: masks of dropout are those of one device. `value_and_grad` needs no
    such wrapper for arrays that are divided already.

    Args:
        gradient: g(params, x, y, *, key, ...) -> (cost, gradients), means over its examples, such as
            ``fn.value_and_grad(net, cost)`` or ``jax.value_and_grad(fn.objective(net, cost))``, in which a penalty may
            be. With ``key=None`` it is called without a key, and so on. One that returns ((cost, state), gradients), as with
            ``carry=True``, has its states put together again, examples on axis 0.
        mesh: a ``jax.sharding.Mesh``, of axes of any type.
        axis: the name of the axis over which the batch is divided, or a tuple of names; the only one, or "data", by default.

    Raises:
        ValueError: for a mesh without the axis, and for a batch that the devices do not divide, or that is divided already
            inside ``shard_map``.
        LayerError: for a layer that mixes examples, such as `BatchNorm`.
    """
    if not callable(gradient):
        raise ValueError(f"data_parallel: expected a gradient function, got {type(gradient).__name__}")
    over = division_of("data_parallel", mesh, axis)
    run = program(_of_batch, gradient, over)

    def of_whole_batch(params: Any, x: Any, y: Any, *, key: Any = None, **given: Any) -> tuple[Any, Any]:
        x, y, given = jax.tree.map(as_array, (x, y, {name: a for name, a in given.items() if a is not None}))
        if again := sorted(varying_axes(x) & set(over.axes)):
            raise ValueError(
                f"data_parallel: expected the whole batch, got one device's part over {', '.join(again)}; fn.fit with mesh= "
                f"and jax.shard_map divide it already, so give them the gradient function itself"
            )
        check_divides("data_parallel", x.shape[0] if x.ndim else 0, over)
        return run(params, x, y, check_key(key), given)

    return of_whole_batch


def _of_batch(gradient: Callable, over: Division, params: Any, x: Any, y: Any, key: Any, given: Any) -> tuple[Any, Any]:
    def of_part(params: Any, x: Any, y: Any, given: Any, key: Any) -> tuple[Any, Any]:
        about = given if key is None else {**given, "key": key}
        value, gradients = gradient(params, x, y, **about)
        value, state = value if isinstance(value, tuple) else (value, None)
        return (value, gradients), state

    (value, gradients), state = divided(of_part, over, params, (x, y, given), key)
    return value if state is None else (value, state), gradients


def divided(
    f: Callable, over: Division | None, params: Any, batch: Any, key: Any, *, first: bool = True
) -> tuple[Any, Any]:
    """(means, of examples) of ``f(params, *batch, key)`` over a batch; f returns these of a part of it.

    Args:
        f: its first result are means over its examples; its second has the examples on some axis.
        over: how the batch is divided; None for one device, where it is one part.
        params: a pytree that every device gets whole.
        batch: a tuple of pytrees with the examples on axis 0.
        key: None, a key or `ExampleKeys`.
        first: whether the second result has the examples on axis 0; else their axis is looked for.
    """
    if over is None:
        return f(params, *batch, key)
    n = jax.tree.leaves(batch)[0].shape[0] // over.n

    def of_device(params: Any, batch: Any, key: Any) -> tuple[Any, Any]:
        index = over.own(n)
        numbers = key.index[index] if isinstance(key, ExampleKeys) else index
        means, of_examples = f(varying(params, index), *batch, keys_of(key, numbers))
        return mean(means, over), of_examples

    specs = WHOLE, over.rows if first else _specs_of_examples(f, over, params, batch, key)
    of_axis = {"mesh": over.mesh, "axis_names": frozenset(over.axes)}
    run = jax.shard_map(of_device, **of_axis, in_specs=(WHOLE, over.rows, WHOLE), out_specs=specs)
    return run(_placed(params, WHOLE, over), _placed(batch, over.rows, over), _placed(key, WHOLE, over))


def _placed(tree: Any, spec: PartitionSpec, over: Division) -> Any:
    """The arrays as ``shard_map`` expects them on an explicit mesh; elsewhere it places them itself."""
    if not over.mesh.explicit_axes:
        return tree
    return jax.tree.map(lambda a: jax.sharding.reshard(a, NamedSharding(over.mesh, spec)), tree)


def _specs_of_examples(f: Callable, over: Division, params: Any, batch: Any, key: Any) -> Any:
    """Where f's second result has the examples: the axis whose length goes with theirs."""

    def shapes(parts: int) -> Any:
        sized = lambda a: jax.ShapeDtypeStruct((a.shape[0] // parts, *a.shape[1:]), a.dtype)  # noqa: E731
        given = jax.tree.map(sized, batch)
        index = jnp.arange(jax.tree.leaves(given)[0].shape[0])
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, key))
        of_examples = lambda both, given: f(both[0], *given, keys_of(both[1], index))[1]  # noqa: E731
        for name in over.axes:  # which f may name
            of_examples = jax.vmap(of_examples, None, axis_name=name, axis_size=over.mesh.shape[name])
        found = jax.eval_shape(of_examples, like, given)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[len(over.axes) :], a.dtype), found)

    def spec(whole: Any, part: Any) -> PartitionSpec:
        return PartitionSpec(*(over.axis if a != b else None for a, b in zip(whole.shape, part.shape, strict=True)))

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):  # shapes alone are on none
        whole, part = shapes(1), shapes(over.n)
    return jax.tree.map(spec, whole, part) if jax.tree.leaves(whole) else WHOLE


def mean(tree: Any, over: Division | None, factor: float = 1.0) -> Any:
    """factor (1/D) Σ_d over the devices, of all leaves together; the tree itself on one."""
    if over is None:
        return tree

    def share(a: Any) -> Any:  # before the sum, which may overflow
        a = a if jnp.issubdtype(a.dtype, jnp.inexact) else a.astype(jnp.result_type(float))
        return a * jnp.asarray(factor / over.n, a.dtype)

    shares = jax.tree.map(share, tree)
    return jax.lax.psum(varying(shares, jax.lax.axis_index(over.axis)), over.axis)


def division_of(function: str, mesh: Any, axis: Any = None) -> Division:
    """The division over an axis of a mesh, or a ValueError: the only axis, or "data", by default."""
    if not isinstance(mesh, Mesh | jax.sharding.AbstractMesh):
        got = type(mesh).__name__
        raise ValueError(f"{function}: expected mesh= a jax.sharding.Mesh, got {got}; such as {MAKE_A_MESH}")
    names = mesh.axis_names
    if axis is None:
        axis = names[0] if len(names) == 1 else "data"
    over = Division(mesh, axis)
    if missing := [name for name in over.axes if name not in names]:
        raise ValueError(
            f"{function}: expected a mesh with the axis {missing[0]!r}, got one with {names}; name the axis over which the "
            f"examples are divided, or make a mesh with it, {MAKE_A_MESH}"
        )
    return over


MAKE_A_MESH = 'jax.make_mesh((8,), ("data",))'


def division_of_run(function: str, mesh: Any, shuffle: Any, x: Any) -> tuple[Division | None, bool]:
    """(how a run divides its mini-batches, whether its data are divided so already), from ``mesh=``, or the mesh on which the
    data lie; None on one device.

    Raises:
        ValueError: for a shuffle that is neither "global" nor "block", blocks on one device, what `division_of` refuses, and
            data that only this process has where there are several and a mesh is given.
    """
    if shuffle not in ("global", "block"):
        raise ValueError(f"{function}: expected shuffle='global' or 'block', got {shuffle!r}")
    if mesh is not None:
        check_everywhere(function, x, mesh)
    sharding = x.sharding
    on, axis = (sharding.mesh, (*sharding.spec, None)[0]) if isinstance(sharding, NamedSharding) else (None, None)
    if mesh is None and (on is None or (on.size == 1 and shuffle == "global")):
        if shuffle == "block":
            raise ValueError(f"{function}: expected mesh= or divided data for shuffle='block', got one device")
        return None, False
    over = division_of(function, on, axis) if mesh is None else division_of(function, mesh)
    same_devices = isinstance(on, Mesh) and without_types(on) == without_types(over.mesh)
    return over, same_devices and axis == over.axis


def without_types(mesh: Mesh) -> Mesh:
    """The mesh with axes that the compiler sees to."""
    return Mesh(mesh.devices, mesh.axis_names)


def check_divides(function: str, m: int, over: Division, what: str = "a batch") -> None:
    """Raise a ValueError unless the devices divide m."""
    if m % over.n:
        whole = -(-m // over.n) * over.n
        raise ValueError(
            f"{function}: expected {what} that the {over.n} devices of {over.axis!r} divide, got {m} examples; give "
            f"{m // over.n * over.n or whole}, or fill up to {whole} with examples of weight 0, whose mean is over {whole}"
        )


def where_divided(net: Layer, params: Any, x: Any) -> Division | None:
    """How a batch is divided already, as far as it is known: of an array by its sharding, inside ``jit`` on an explicit
    mesh. None for a batch on one device, for a network that mixes examples or whose parameters are divided themselves, and
    inside ``jit`` on other meshes, where the compiler decides."""
    sharding = _known(x)
    if sharding is None or not net.independent:
        return None
    axis, *others = (*sharding.spec, None)
    if axis is None or any(name is not None for name in others) or not all(map(is_whole, jax.tree.leaves(params))):
        return None
    over = Division(sharding.mesh, axis)
    return over if over.n > 1 else None


def _known(a: Any) -> NamedSharding | None:
    """The sharding of an array on a mesh, where it is known and divided."""
    if not isinstance(a, jax.Array):
        return None
    if not isinstance(a, Tracer):
        sharding = a.sharding
        return sharding if isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated else None
    sharding = jax.typeof(a).sharding
    return sharding if sharding.mesh.explicit_axes and any(sharding.spec) else None


def is_whole(a: Any) -> bool:
    """Whether an array is not known to be divided."""
    return _known(a) is None


def check_everywhere(function: str, x: Any, mesh: Any) -> None:
    """Raise a ValueError for an array that only this process has, where there are several: each would run by itself."""
    if jax.process_count() > 1 and x.is_fully_addressable:
        spec = "P('data')" if mesh is None else f"P({division_of(function, mesh).axis!r})"
        raise ValueError(
            f"{function}: expected data that the {jax.process_count()} processes share, got an array that only this one has; "
            f"give each process its part: jax.make_array_from_process_local_data(NamedSharding(mesh, {spec}), x)"
        )


def check_dividing(function: str, net: Layer, params: Any, over: Division) -> None:
    """Raise an error where a batch cannot be divided: of a network that mixes examples, and for parameters that are divided
    themselves."""
    if not net.independent:
        raise _of_mixing(net, f"{over.n} devices to divide it among")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not is_whole(leaf):
            raise ValueError(
                f"{function}: expected parameters that each device has whole, got {jax.tree_util.keystr(path)} divided by "
                f"{leaf.sharding.spec}; put them on all devices, or write the loop with fn.value_and_grad under jax.jit"
            )


def replicated(function: str, tree: Any, mesh: Any) -> Any:
    """The tree with every device of the mesh holding all of it, but for what is divided already.

    Raises:
        ValueError: where another process gave other numbers.
    """
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, WHOLE)

    def of_leaf(leaf: Any) -> Any:
        if not is_whole(leaf):
            return leaf
        if jax.process_count() == 1 or not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            words = of_leaf(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
        return jax.device_put(np.asarray(leaf), sharding)  # which compares the processes' numbers

    try:
        return jax.tree.map(of_leaf, tree)
    except AssertionError:
        raise ValueError(
            f"{function}: expected the same parameters, key and state on every process, got others on one; draw them "
            f"from the same key"
        ) from None


def everywhere(tree: Any, mesh: Any) -> Any:
    """Numbers on all devices of a mesh of this process, put there explicitly, as ``jax.transfer_guard`` asks."""
    return tree if mesh is None or jax.process_count() > 1 else jax.device_put(tree, NamedSharding(mesh, WHOLE))


def any_process(value: bool) -> bool:
    """Whether it is so on one of the processes, all of which have to ask."""
    return value if jax.process_count() == 1 else bool(process_allgather(np.asarray(value)).any())


def check_agreed(function: str, parts: tuple[str, ...], own: Any) -> None:
    """Raise a ValueError where another process came with another value of one of the parts, numbers all of them."""
    if jax.process_count() == 1:
        return
    of_all = process_allgather(np.asarray(own))
    if differ := [name for name, values in zip(parts, of_all.T, strict=True) if (values != values[0]).any()]:
        raise ValueError(
            f"{function}: expected the {jax.process_count()} processes to come with the same arguments, got another "
            f"{', '.join(differ)} on one; run the same script on each, and let only the data be each one's own part"
        )


def batch_size(x: jax.Array) -> int:
    """m, also where each device has but a part of the batch, inside ``shard_map``."""
    return len(x) * math.prod(map(jax.lax.axis_size, _axes_of_parts(x)))


def _axes_of_parts(x: Any) -> frozenset[str]:
    """The axes over which devices have parts of a batch, inside ``shard_map``."""
    return varying_axes(x) - {NETWORKS} if isinstance(x, Tracer) else frozenset()


def check_mixing(net: Layer, x: Any) -> None:
    """Raise a LayerError where a layer mixes examples and each device has but a part of the batch, inside ``shard_map``."""
    axes = _axes_of_parts(x)  # first: there are hardly ever any, and a network asks each of its layers whether it mixes
    if axes and not net.independent:
        raise _of_mixing(net, f"one device's part over {', '.join(sorted(axes))}")


def _of_mixing(net: Layer, got: str) -> LayerError:
    remedy = (
        "normalise each example by itself (fn.LayerNorm, fn.GroupNorm), or leave the division to the compiler: fn.fit with "
        "shuffle='global', or fn.value_and_grad under jax.jit, on a mesh of axis_types=(AxisType.Auto,); a layer of your own "
        "that does not mix says independent = True in its class"
    )
    return LayerError(_mixing(net), "the whole batch, since it mixes examples", got, remedy)


def _mixing(net: Any) -> Any:
    """The first layer that mixes examples."""
    inner = (part for part in getattr(net, "layers", ()) if not getattr(part, "independent", False))
    return next((_mixing(part) for part in inner), net)
