"""A run on a mesh of devices: which of its axes divides the examples, and how data come to lie on it."""

from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .devices import Division, check_everywhere, division_of_run, replicated, without_types
from .layers._layer import as_array

__all__ = ["Devices", "Shuffle", "devices", "filled"]

Shuffle = Literal["global", "block"]
T = TypeVar("T")


class Devices(NamedTuple):
    """The devices of a run.

    Attributes:
        function: whose run it is, for the messages.
        given: the user's mesh.
        over: how examples are divided over it, with axes of type Auto whatever the user's are: the compiler then sees to what
            stands outside of ``jax.shard_map``.
        cut: whether the data are divided so already.
    """

    function: str
    given: Mesh
    over: Division
    cut: bool

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
        return jax.device_put(replicated(self.function, tree, self.mesh), NamedSharding(self.mesh, P()))

    def spread(self, tree: T) -> T:
        """Every leaf cut where the devices divide its axis 0, whole on each device elsewhere."""

        def place(a: Any) -> Array:
            is_cut = jnp.ndim(a) > 0 and a.shape[0] % self.n == 0
            return jax.device_put(a, NamedSharding(self.mesh, self.over.rows if is_cut else P()))

        return jax.tree.map(place, replicated(self.function, tree, self.mesh))

    def returned(self, tree: T) -> T:
        """Every array of this mesh on the one that was given."""
        return tree if self.mesh == self.given else jax.tree.map(self._returned, tree)

    def _returned(self, leaf: Any) -> Any:
        if not isinstance(leaf, Array) or not isinstance(leaf.sharding, NamedSharding):
            return leaf
        return jax.device_put(leaf, NamedSharding(self.given, leaf.sharding.spec))


def devices(function: str, mesh: Any, shuffle: Any, data: Any) -> Devices | None:
    """The devices of ``mesh=``, or of the mesh on which the data lie; None without any. Errors as of `division_of_run`."""
    data = as_array(data)
    check_everywhere(function, data, mesh)
    over, cut = division_of_run(function, mesh, shuffle, data)
    return None if over is None else Devices(function, over.mesh, Division(without_types(over.mesh), over.axis), cut)


def filled(over: Division, a: Array) -> Array:
    """An array with 0 behind its last row, until the devices divide axis 0."""
    return jnp.pad(a, [(0, -len(a) % over.n), *[(0, 0)] * (a.ndim - 1)])
