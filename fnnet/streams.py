"""Data larger than memory: mini-batches that a function gives one by one, on the devices ahead of the steps that take them.

JAX computes asynchronously: while a step runs, the next mini-batch is fetched and sent to the devices, and its step is put
behind the one that runs.
"""

import collections
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from .batches import Layout, placed
from .costs import Cost
from .devices import WHOLE
from .given import Examples, check_targets_of, entries, examples, whole
from .layers._layer import Layer, LayerError, Params

__all__ = ["Stream", "is_looked_at", "n_of_batches", "stepped"]

AHEAD = 2
"""How many mini-batches are on the devices before their steps."""


class Taken(NamedTuple):
    """A mini-batch on the devices: its number in the epoch, the examples, and how many of them count."""

    number: int
    batch: Examples
    size: int


class Stream:
    """The mini-batches of a run.

    Args:
        source: epoch (0, 1, 2, ...) -> an iterator of (x, y) or (x, y, {"mask": ..., "weights": ...}).
        net: and the cost and the parameters: what the mini-batches are checked against.
        layout: where they go.
        check: called with the first mini-batch, as arrays of JAX.
    """

    def __init__(
        self,
        source: Callable[[int], Any],
        net: Layer,
        cost: Cost,
        params: Params,
        layout: Layout,
        check: Callable[[Examples], None],
    ) -> None:
        self.source = source
        self.layout = layout
        self._about, self._check = (net, cost, params), check
        self._kind: Any = None
        self._sizes: set[Any] = set()

    def of_epoch(self, epoch: int, done: int) -> Iterator[Taken]:
        """The mini-batches of an epoch after the first ``done``, `AHEAD` of them on the devices.

        Raises:
            ValueError: for what is no iterator, one of no mini-batches or of fewer than are done, and mini-batches that do
                not suit the network, or the first one.
        """
        given = self.source(epoch)
        try:
            batches = iter(given)
        except TypeError:
            raise ValueError(
                f"fit: expected data(epoch) to return an iterator of batches (x, y), got {type(given).__name__}; such as a "
                f"generator, or a grain loader"
            ) from None
        skipped = sum(1 for _ in itertools.islice(batches, done))
        numbered = ((epoch, number, batch) for number, batch in enumerate(batches, done))
        ahead = collections.deque(itertools.starmap(self._placed, itertools.islice(numbered, AHEAD)))
        if skipped < done or not (done or ahead):
            wanted = f"the {done} batches that are done" if done else "at least one batch"
            raise ValueError(
                f"fit: expected data({epoch}) to give {wanted}, got {skipped}; an iterator is used up after one pass, so "
                f"make a new one for each epoch"
            )
        while ahead:
            yield ahead.popleft()
            ahead.extend(itertools.starmap(self._placed, itertools.islice(numbered, 1)))

    def whole(self, taken: Taken) -> Examples:
        """A mini-batch with all of its examples on every device, and no more."""
        mesh = self.layout.mesh
        batch = taken.batch if mesh is None else jax.device_put(taken.batch, NamedSharding(mesh, WHOLE))
        return jax.tree.map(lambda a: a[: taken.size], batch)

    def _placed(self, epoch: int, number: int, given: Any) -> Taken:
        try:
            return Taken(number, *placed(self.layout, self._checked(given)))
        except LayerError:
            raise
        except ValueError as error:
            raise ValueError(f"fit: batch {number + 1} of epoch {epoch + 1}: {error}") from error

    def _checked(self, given: Any) -> Examples:
        """The mini-batch, looked at in full where it is the first of its size: else all of it would go to a device twice."""
        x, y, extras = entries(given, "data")
        batch = jax.tree.map(_native, Examples(x, y, extras), is_leaf=lambda a: isinstance(a, list))
        kind = jax.tree.map(lambda a: f"{a.dtype} ({', '.join(('m', *map(str, a.shape[1:])))})", batch)
        if self._kind not in (None, kind):
            raise ValueError(f"expected {_text(self._kind)} as in the first batch, got {_text(kind)}")
        sizes = tuple(a.shape[:1] for a in jax.tree.leaves(batch))
        if sizes in self._sizes:
            check_targets_of(*self._about, batch)
            return batch
        found = examples(*self._about, (x, y, extras), "data")
        if self._kind is None:
            self._check(found)
        self._kind = kind
        self._sizes.add(sizes)
        return batch


def _native(a: Any) -> Any:
    """A JAX array as it is, anything else as a NumPy array in the machine's order of bytes."""
    if isinstance(a, Array):
        return a
    a = np.asarray(a)
    return a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))


def _text(kind: Examples) -> str:
    return ", ".join(f"{name} {text}" for name, text in {"x": kind.x, "y": kind.y, **kind.extras}.items())


def stepped(stream: Stream, step_of: Callable, state: Any, epoch_key: Array, diverged: Callable) -> Iterator[Any]:
    """The states of `fnnet.fit` after each mini-batch that is left of an epoch. A cost is waited for when the next step is on
    its way.

    Args:
        stream: the mini-batches.
        step_of: `batch_step` for this run.
        state: that before them.
        epoch_key: the key of the epoch.
        diverged: what is raised, of (the last good state, params, mini-batch, epoch_key, its number, its inputs).
    """
    good, last = state, None

    def check(is_good: Any) -> None:
        if last is not None and not jax.device_get(is_good):
            before, taken = last
            with jax.transfer_guard("allow"):
                batch = stream.whole(taken)
                raise diverged(good, before.params, batch, epoch_key, taken.number, batch.x)

    for taken in stream.of_epoch(int(state.epoch), int(state.step)):
        given = state.params, state.optimizer, state.costs, taken.batch, epoch_key, jax.device_put(taken.number)
        params, opt_state, costs = step_of(*given, count=taken.size)
        check(np.isfinite(jax.device_get(state.costs)))  # on the device it would wait for the step that now runs
        last = state, taken
        step = jax.device_put(np.asarray(taken.number + 1, state.epoch.dtype))
        state = state._replace(params=params, optimizer=opt_state, costs=costs, step=step)
        yield state
    check(_all_finite((state.costs, state.params)))


@jax.jit
def _all_finite(tree: Any) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))


def is_looked_at(state: Any) -> bool:
    """Whether a signal is looked for after a mini-batch: with several processes, which have to talk, after some."""
    return jax.process_count() == 1 or int(state.step) % 32 == 0


def n_of_batches(n_examples: Any, penalty: Any) -> int:
    """N of a run on batches from a function, or a ValueError where a penalty needs it."""
    if n_examples is None and penalty is not None:
        raise ValueError(
            "fit: expected n_examples=, the number N of training examples, for a penalty and data from a function, got none; "
            "give it, such as len(x)"
        )
    return 1 if n_examples is None else whole("fit", "n_examples", n_examples)
