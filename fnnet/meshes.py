"""Meshes of devices: which axis the examples are cut over, and how data come to lie on it."""

import math
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

__all__ = ["Devices", "Shuffle", "devices"]

Shuffle = Literal["global", "block"]
T = TypeVar("T")


class Devices(NamedTuple):
    """A mesh and the axis of it that is cut."""

    given: Mesh
    axis: Any

    @property
    def mesh(self) -> Mesh:
        """The mesh with Auto axes, whatever the given one's are."""
        return Mesh(self.given.devices, self.given.axis_names)

    @property
    def size(self) -> int:
        """How many devices the axis has."""
        names = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return math.prod(self.given.shape[name] for name in names)

    def copied(self, tree: T) -> T:
        """Every leaf whole on each device."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def cut(self, tree: T) -> T:
        """Every leaf's axis 0 cut over the devices."""
        return jax.device_put(tree, NamedSharding(self.mesh, P(self.axis)))

    def spread(self, tree: T) -> T:
        """Every leaf cut where the devices divide its axis 0, whole on each device elsewhere."""

        def place(a: Any) -> Array:
            is_cut = jnp.ndim(a) > 0 and a.shape[0] % self.size == 0
            return (self.cut if is_cut else self.copied)(a)

        return jax.tree.map(place, tree)

    def filled(self, a: Array) -> Array:
        """An array with 0 behind its last row, until the devices divide axis 0."""
        return jnp.pad(a, [(0, -len(a) % self.size), *[(0, 0)] * (a.ndim - 1)])

    def returned(self, tree: T) -> T:
        """Every array of this mesh on the one that was given."""
        if self.mesh == self.given:
            return tree
        return jax.tree.map(self._returned, tree)

    def _returned(self, leaf: Any) -> Any:
        if not isinstance(leaf, Array) or not isinstance(leaf.sharding, NamedSharding):
            return leaf
        return jax.device_put(leaf, NamedSharding(self.given, leaf.sharding.spec))


def devices(function: str, mesh: Any, shuffle: Any, *data: Any) -> Devices | None:
    """The devices of ``mesh=``, or of the mesh that the data's axis 0 is cut over; None without any.

    Raises:
        ValueError: for what is no mesh, a mesh of several axes without one called "data", or another shuffle.
    """
    if shuffle not in ("global", "block"):
        raise ValueError(f"{function}: expected shuffle='global' or 'block', got {shuffle!r}")
    if mesh is None:
        shardings = [getattr(a, "sharding", None) for a in data]
        cut = [s for s in shardings if isinstance(s, NamedSharding) and len(s.spec) and s.spec[0] is not None]
        return Devices(cut[0].mesh, cut[0].spec[0]) if cut else None  # pyright: ignore[reportArgumentType]
    if not isinstance(mesh, Mesh):
        raise ValueError(
            f"{function}: expected mesh= a jax.sharding.Mesh, got {type(mesh).__name__}; make one with "
            f"jax.make_mesh((jax.device_count(),), ('data',))"
        )
    if len(mesh.axis_names) > 1 and "data" not in mesh.axis_names:
        raise ValueError(
            f"{function}: expected a mesh with an axis 'data' to cut the examples over, got axes {mesh.axis_names}; name "
            f"one of them so: jax.make_mesh(shape, ('data', ...))"
        )
    return Devices(mesh, mesh.axis_names[0] if len(mesh.axis_names) == 1 else "data")
