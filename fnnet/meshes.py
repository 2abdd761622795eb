"""A run on a mesh of devices: which of its axes divides the examples, and how data come to lie on it."""

from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .devices import Division, division_of

__all__ = ["Devices", "Shuffle", "devices"]

Shuffle = Literal["global", "block"]
T = TypeVar("T")


class Devices(NamedTuple):
    """The devices of a run.

    Attributes:
        given: the user's mesh.
        over: how examples are divided over it, with axes of type Auto whatever the user's are: the compiler then sees to what
            stands outside of ``jax.shard_map``.
    """

    given: Mesh
    over: Division

    @property
    def n(self) -> int:
        """How many parts there are."""
        return self.over.n

    @property
    def mesh(self) -> Mesh:
        """The mesh of ``over``."""
        return self.over.mesh

    def copied(self, tree: T) -> T:
        """Every leaf whole on each device."""
        return jax.device_put(tree, NamedSharding(self.mesh, P()))

    def spread(self, tree: T) -> T:
        """Every leaf cut where the devices divide its axis 0, whole on each device elsewhere."""

        def place(a: Any) -> Array:
            is_cut = jnp.ndim(a) > 0 and a.shape[0] % self.n == 0
            return jax.device_put(a, NamedSharding(self.mesh, self.over.rows if is_cut else P()))

        return jax.tree.map(place, tree)

    def filled(self, a: Array) -> Array:
        """An array with 0 behind its last row, until the devices divide axis 0."""
        return jnp.pad(a, [(0, -len(a) % self.n), *[(0, 0)] * (a.ndim - 1)])

    def returned(self, tree: T) -> T:
        """Every array of this mesh on the one that was given."""
        return tree if self.mesh == self.given else jax.tree.map(self._returned, tree)

    def _returned(self, leaf: Any) -> Any:
        if not isinstance(leaf, Array) or not isinstance(leaf.sharding, NamedSharding):
            return leaf
        return jax.device_put(leaf, NamedSharding(self.given, leaf.sharding.spec))


def devices(function: str, mesh: Any, shuffle: Any, data: Any) -> Devices | None:
    """The devices of ``mesh=``, or of the mesh that divides the data's axis 0; None without any.

    Raises:
        ValueError: for what is no mesh, a mesh of several axes without one called "data", or another shuffle.
    """
    if shuffle not in ("global", "block"):
        raise ValueError(f"{function}: expected shuffle='global' or 'block', got {shuffle!r}")
    sharding, axis = getattr(data, "sharding", None), None
    if mesh is None and isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        axis, *_ = (*sharding.spec, None)
        mesh = sharding.mesh if axis is not None else None
    if mesh is None:
        return None
    over = division_of(function, mesh, axis)
    return Devices(mesh, Division(Mesh(mesh.devices, mesh.axis_names), over.axis))
