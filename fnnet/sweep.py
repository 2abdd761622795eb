"""Many networks trained at once: `fnnet.fit` over hyperparameters and seeds, by ``vmap``."""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from .checkpoints import fingerprint, keeping, resumed
from .columns import by_field, by_setting
from .costs import Cost
from .devices import MAKE_A_MESH, NETWORKS
from .epochs import epoch as epoch_program
from .epochs import monitor
from .given import called_as, check_data, check_net, examples, names_classes, whole
from .layers._layer import Layer, Params, as_array
from .optimizers import Optimizer, is_transformation, traceable
from .penalties import Penalty, check_penalty
from .programs import for_each_structure
from .progress import reporter

__all__ = ["Sweep", "sweep"]


class Sweep(NamedTuple):
    """What `sweep` returns. The first axes of every array are (optimizers, penalties, keys).

    Attributes:
        params: the parameters after the last epoch.
        cost: and the others: as in `fnnet.History`, with the epochs on the last axis; NaN from the epoch on in which a
            network diverged.
    """

    params: Params
    cost: np.ndarray
    accuracy: np.ndarray | None
    validation_cost: np.ndarray | None
    validation_accuracy: np.ndarray | None

    def __repr__(self) -> str:
        monitors = {name: getattr(self, name) for name in self._fields[1:] if getattr(self, name) is not None}
        return (
            by_setting(monitors) if all(np.ndim(a) == 4 and np.size(a) for a in monitors.values()) else by_field(self)
        )


class State(NamedTuple):
    """A sweep after ``epoch`` epochs, counted over its groups of ``at_once`` networks one after another.

    Attributes:
        done: the parameters of the groups that are trained; zeros for the others.
        params: those of the group at hand, or of the last one that was.
        optimizer: its optimisers' states.
        alive: which of its networks have not diverged.
        key: the sweep's keys.
        epoch: how many epochs are done.
        records: the monitors so far, by name, (networks, epochs).
        fingerprint: as in `fnnet.TrainingState`.
    """

    done: Params
    params: Params
    optimizer: Any
    alive: np.ndarray
    key: Array
    epoch: Array
    records: dict[str, np.ndarray]
    fingerprint: Array


FINGERPRINT = (
    "data", "validation data", "optimizers", "penalties", "keys", "network", "cost", "batch_size", "epochs", "at_once",
)  # fmt: skip


@called_as("sweep(net, cost, (x, y), keys=keys, epochs=30, batch_size=10, optimizers=[fn.sgd(0.5)])")
def sweep(
    net: Layer,
    cost: Cost,
    data: tuple[Any, ...],
    *,
    keys: Array,
    epochs: int,
    batch_size: int,
    optimizers: Sequence[Optimizer],
    penalties: Sequence[Penalty | None] | None = None,
    validation: tuple[Any, ...] | None = None,
    monitor_training: bool = True,
    at_once: int = 64,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Sweep:
    """Train a network for every optimizer, every penalty and every key, many at once.

    Run (i, j, k) is that of ``init_key, fit_key = jax.random.split(keys[k])`` and ``fit(net, cost, net.init(init_key, shape),
    data, key=fit_key, optimizer=optimizers[i], penalty=penalties[j], ...)``, up to rounding. A network that diverges does not
    stop the others. SIGTERM where there is a ``checkpoint`` saves and raises KeyboardInterrupt: half a sweep is none.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        data: (x, y), or (x, y, {"mask": ..., "weights": ...}).
        keys: PRNG keys (k,): the seeds; threefry keys, which are JAX's default.
        epochs: passes over the data.
        batch_size: examples in a mini-batch.
        optimizers: of one kind, with other numbers: ``[fn.sgd(0.025), fn.sgd(0.25)]``. optax keeps its numbers in functions:
            of its transformations only one at a time.
        penalties: of one kind, with other numbers: ``[fn.L2(0.0), fn.L2(5.0)]``; without any by default.
        validation: like ``data``; monitored after each epoch.
        monitor_training: as in `fnnet.fit`.
        at_once: how many networks are trained beside each other, which bounds the memory; with a mesh rounded up to a
            multiple of its devices.
        checkpoint: as in `fnnet.fit`.
        every: how many epochs lie between two checkpoints; they are counted over all groups of ``at_once``.
        resume: the path that was the ``checkpoint`` of an earlier sweep with the same arguments, epochs and numbers included;
            the result is bit for bit that of one uninterrupted sweep. The mesh may differ where
            it leaves ``at_once`` as it is.
        mesh: a ``jax.sharding.Mesh`` of this process's devices, among all of which the networks are divided; by default that
            on which the data are divided. Each device gets all the data and trains its networks as one device does; it sends
            the others nothing.
        progress: as in `fnnet.fit`; epochs are counted over all groups of ``at_once``.

    Raises:
        ValueError: for bad input, naming what was expected, what came and the remedy.
    """
    check_net(net)
    check_data(data, "data")
    _check_keys(keys)
    epochs, batch_size = whole("sweep", "epochs", epochs, least=0), whole("sweep", "batch_size", batch_size)
    at_once, every = whole("sweep", "at_once", at_once), whole("sweep", "every", every)
    penalties = [None] if penalties is None else penalties
    for name, parts in (("optimizers", optimizers), ("penalties", penalties)):
        if not isinstance(parts, list | tuple) or not parts:
            raise ValueError(f"sweep: expected {name} in a list of at least one, got {parts!r}")
    for optimizer in optimizers:
        if not is_transformation(optimizer):
            got = type(optimizer).__name__
            raise ValueError(f"sweep: expected optimizers with init and update, such as fn.sgd(0.5), got {got}")
    for penalty in penalties:
        check_penalty(penalty)
    grid = (
        _stacked(
            "optimizers", [traceable(o) for o in optimizers], "an optax transformation keeps its numbers in functions"
        ),
        _stacked("penalties", penalties, "for no penalty beside others give fn.L2(0.0)"),
    )
    mesh = _over_networks(mesh, data[0])
    if mesh is not None:
        whole_on_each = NamedSharding(mesh, P())
        grid, keys, data, validation = jax.device_put((grid, keys, tuple(data), validation), whole_on_each)
    with contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh):
        params, monitors = _swept(
            net, cost, grid, keys, data, validation, counts=(len(optimizers), len(penalties), len(keys)), epochs=epochs,
            batch_size=batch_size, monitor_training=monitor_training, at_once=at_once, checkpoint=checkpoint, every=every,
            resume=resume, mesh=mesh, progress=progress,
        )  # fmt: skip
    return Sweep(
        jax.tree.map(jax.device_put, params), monitors["cost"], *(monitors.get(name) for name in Sweep._fields[2:])
    )


def _swept(
    net, cost, grid, keys, data, validation, *, counts, epochs, batch_size, monitor_training, at_once, checkpoint, every,
    resume, mesh, progress,
) -> tuple[Params, dict[str, np.ndarray]]:  # fmt: skip
    """The parameters and the monitors of all runs, with what is given on all devices of the mesh."""
    runs = np.array(list(itertools.product(*map(range, counts))))

    shape = jnp.shape(data[0])[1:]
    example = _example(net, keys, shape=shape)
    train = examples(net, cost, example, data, "data")
    held_out = None if validation is None else examples(net, cost, example, validation, "validation")
    sets = {"": train if monitor_training else None, "validation_": held_out}
    sets = {name: part for name, part in sets.items() if part is not None}
    classes = tuple(names_classes(net, example, part) for part in sets.values())
    starts_of = functools.partial(_starts, net, grid, keys, shape=shape, mesh=mesh)
    epoch_of = functools.partial(
        _epochs, net, cost, grid, keys, train, sets, batch_size=batch_size, classes=classes, mesh=mesh
    )

    names = ["cost", *(f"{name}{kind}" for name in sets for kind in ("cost", "accuracy"))]
    devices = 1 if mesh is None else mesh.size
    at_once = -(-min(at_once, len(runs)) // devices) * devices
    groups = -(-len(runs) // at_once)
    # The last group is filled up with its last run, so that it needs no program of its own.
    groups_of = runs[np.minimum(np.arange(groups * at_once), len(runs) - 1)].reshape(groups, at_once, 3)
    own = fingerprint(
        {"data": train, "validation data": held_out, "optimizers": grid[0], "penalties": grid[1], "keys": _key_data(keys)},
        net=net, cost=cost, batch_size=batch_size, epochs=epochs, at_once=at_once,
    )  # fmt: skip
    records = {name: np.full((groups * at_once, epochs), np.nan, jnp.result_type(float)) for name in names}
    params, opt_state = starts_of(jax.device_put(groups_of[0]))
    done = jax.tree.map(lambda leaf: np.zeros((groups * at_once, *leaf.shape[1:]), leaf.dtype), params)
    start = State(done, params, opt_state, np.ones(at_once, bool), keys, jax.device_put(0), records, own)
    state = resumed(
        "sweep", resume, checkpoint, start, "network, optimizers, monitors, epochs and at_once", FINGERPRINT
    )
    done, params, opt_state, alive, *_ = jax.tree.map(np.array, jax.device_get(state._replace(key=None)))
    records = jax.tree.map(np.array, jax.device_get(state.records))
    before = int(state.epoch)
    with keeping(checkpoint, every) as keep, reporter(progress, groups * epochs, before) as report:
        for group in range(max(before - 1, 0) // max(epochs, 1), groups):
            rows = slice(group * at_once, (group + 1) * at_once)
            real, of_group = min(at_once, len(runs) - rows.start), jax.device_put(groups_of[group])
            if group * epochs >= before and group:
                params, opt_state = starts_of(of_group)
                alive = np.ones(at_once, bool)
            for epoch in range(max(before - group * epochs, 0), epochs):
                params, opt_state, measured, finite = epoch_of(of_group, params, opt_state, jax.device_put(epoch))
                measured, finite = jax.device_get((measured, finite))
                alive = alive & finite
                for name, value in measured.items():
                    records[name][rows, epoch] = np.where(alive, value, np.nan)
                number = group * epochs + epoch + 1
                epochs_done = jax.device_put(np.asarray(number, state.epoch.dtype))
                keep(State(done, params, opt_state, alive, keys, epochs_done, records, own))
                report(number, {"networks": real, "diverged": int((~alive[:real]).sum())})
                if keep.stopped() and number < groups * epochs:
                    raise KeyboardInterrupt("sweep: stopped by SIGTERM; resume= the checkpoint's path goes on")
            jax.tree.map(lambda whole, part, rows=rows: whole.__setitem__(rows, part), done, jax.device_get(params))

    def shaped(leaf: np.ndarray) -> np.ndarray:
        return leaf[: len(runs)].reshape(*counts, *leaf.shape[1:])

    return jax.tree.map(shaped, (done, records))


def _over_networks(mesh: Any, x: Any) -> Mesh | None:
    """The devices of a mesh, by default of that on which the data are divided, in a row."""
    sharding = getattr(x, "sharding", None)
    if mesh is None and isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated:
        mesh = sharding.mesh
    if mesh is None:
        return None
    if not isinstance(mesh, Mesh):
        raise ValueError(f"sweep: expected mesh= a jax.sharding.Mesh, got {type(mesh).__name__}; such as {MAKE_A_MESH}")
    if mesh.is_multi_process:
        raise ValueError(
            "sweep: expected a mesh of this process's devices, got one of several processes; give each process its part of "
            "the keys, and jax.sharding.Mesh(jax.local_devices(), ('data',))"
        )
    return Mesh(mesh.devices.flatten(), (NETWORKS,))


_key_data = jax.jit(jax.random.key_data)


@for_each_structure
def _example(net: Layer, keys: Array, *, shape: tuple[int, ...]) -> Params:
    return net.init(keys[0], shape)


@for_each_structure
def _starts(
    net: Layer, grid: Any, keys: Array, runs: Array, *, shape: tuple[int, ...], mesh: Mesh | None = None
) -> tuple[Params, Any]:
    """Parameters and optimizer states of some runs."""

    def one(common: tuple[Any, Array], run: Array) -> tuple[Params, Any]:
        grid, keys = common
        optimizer, _, (init_key, _) = _of_run(grid, keys, run)
        params = net.init(init_key, shape)
        return params, optimizer.init(params)

    return _of_each(one, mesh, (grid, keys), runs)


def _of_each(one: Callable, mesh: Mesh | None, common: Any, *of_runs: Any) -> Any:
    """one(common, *of_run) for each run on axis 0 of ``of_runs``, each device with its own."""
    each = jax.vmap(one, (None, *[0] * len(of_runs)))
    if mesh is None:
        return each(common, *of_runs)
    specs = P(), *[P(NETWORKS)] * len(of_runs)
    return jax.shard_map(each, mesh=mesh, in_specs=specs, out_specs=P(NETWORKS))(common, *of_runs)


@for_each_structure
def _epochs(
    net, cost, grid, keys, train, sets, runs, params, opt_states, epoch, *, batch_size, classes, mesh=None
) -> tuple:
    """(parameters, optimizer states, monitors, whether all is finite) of some runs after an epoch."""

    def one(common: tuple, run: Array, params: Params, opt_state: Any) -> tuple:
        grid, keys, train, sets, epoch = common
        optimizer, penalty, (_, fit_key) = _of_run(grid, keys, run)
        settings = {"batch_size": batch_size, "gradient": None, "micro_batch": "auto", "window": None}
        key = jax.random.fold_in(fit_key, epoch)
        params, opt_state, costs, finite = epoch_program(
            net, cost, optimizer, penalty, params, opt_state, train, key, **settings
        )
        measured = {"cost": jnp.mean(costs)}
        for (name, part), shows in zip(sets.items(), classes, strict=True):
            values = monitor.__wrapped__(  # pyright: ignore[reportFunctionMemberAccess]
                net, cost, penalty, params, part, train.x.shape[0], classes=shows
            )
            measured[f"{name}cost"], measured[f"{name}accuracy"] = values
        return params, opt_state, measured, finite & jnp.isfinite(measured["cost"])

    return _of_each(one, mesh, (grid, keys, train, sets, epoch), runs, params, opt_states)


def _of_run(grid: tuple[Any, Any], keys: Array, run: Array) -> tuple[Any, Any, Array]:
    """The optimizer, the penalty and the two keys of a run (i, j, k)."""
    optimizer, penalty = (jax.tree.map(lambda leaf, i=i: leaf[run[i]], part) for i, part in enumerate(grid))
    return optimizer, penalty, jax.random.split(keys[run[2]])


def _stacked(name: str, parts: Sequence[Any], hint: str) -> Any:
    """Pytrees of one structure as one, with their numbers stacked."""
    structures = {jax.tree.structure(part) for part in parts}
    if len(structures) > 1:
        raise ValueError(
            f"sweep: expected {name} of one kind that differ in their numbers only, got {list(parts)}; sweep each kind by "
            f"itself ({hint})"
        )
    return jax.tree.map(lambda *leaves: _stack(tuple(map(as_array, leaves))), *parts)


_stack = jax.jit(jnp.stack)  # keeps the weak types of Python's numbers


def _check_keys(keys: Any) -> None:
    is_typed = hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)
    if not is_typed or keys.ndim != 1 or not len(keys):
        got = f"an array of {keys.dtype} and shape {keys.shape}" if hasattr(keys, "dtype") else f"{keys!r}"
        raise ValueError(
            f"sweep: expected keys of shape (k,), got {got}; make them with jax.random.split(jax.random.key(seed), k)"
        )
    if (impl := jax.random.key_impl(keys)) != "threefry2x32":
        raise ValueError(
            f"sweep: expected threefry keys, got keys of {impl}, which draw other numbers for many networks at once than for "
            f"one; make them with jax.random.split(jax.random.key(seed, impl='threefry2x32'), k)"
        )
