"""Many networks trained at once: `fnnet.fit` over hyperparameters and seeds, by ``vmap``."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .costs import Cost
from .layers._layer import Layer, Params
from .network import check_net
from .optimizers import Optimizer, is_transformation, traceable
from .penalties import Penalty, check_penalty
from .training import _epoch, _examples, _monitor, _names_classes, check_data, check_integer, reporter

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
    progress: bool = True,
) -> Sweep:
    """Train a network for every optimizer, every penalty and every key, many at once.

    Run (i, j, k) is that of ``init_key, fit_key = jax.random.split(keys[k])`` and ``fit(net, cost, net.init(init_key, shape),
    data, key=fit_key, optimizer=optimizers[i], penalty=penalties[j], ...)``, up to rounding. A network that diverges does not
    stop the others.

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
        at_once: how many networks are trained beside each other, which bounds the memory.
        progress: as in `fnnet.fit`; epochs are counted over all groups of ``at_once``.

    Raises:
        ValueError: for bad input, naming what was expected, what came and the remedy.
    """
    check_net(net)
    check_data(data, "data")
    _check_keys(keys)
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1), ("at_once", at_once, 1)):
        check_integer("sweep", name, value, least)
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
    counts = len(optimizers), len(penalties), len(keys)
    runs = np.array(list(itertools.product(*map(range, counts))))

    shape = jnp.shape(data[0])[1:]
    example = net.init(keys[0], shape)
    train = _examples(net, cost, example, data, "data")
    held_out = None if validation is None else _examples(net, cost, example, validation, "validation")
    sets = {"": train if monitor_training else None, "validation_": held_out}
    sets = {name: part for name, part in sets.items() if part is not None}
    classes = tuple(_names_classes(net, example, part) for part in sets.values())
    epoch_of = functools.partial(
        _epochs, net, cost, grid, keys, train, sets, batch_size=int(batch_size), classes=classes
    )

    names = ["cost", *(f"{name}{kind}" for name in sets for kind in ("cost", "accuracy"))]
    at_once = min(at_once, len(runs))
    chunks = -(-len(runs) // at_once)
    all_params, all_records = [], []
    with reporter(progress, chunks * epochs, 0) as report:
        for c in range(chunks):
            # The last chunk is filled up with its last run, so that it needs no program of its own.
            real = min(at_once, len(runs) - c * at_once)
            own = jnp.asarray(runs[np.minimum(np.arange(c * at_once, (c + 1) * at_once), len(runs) - 1)])
            params, opt_state = _starts(net, grid, keys, own, shape=shape)
            alive, dtype = np.ones(len(own), bool), jnp.result_type(float)
            records = {name: np.zeros((len(own), epochs), dtype) for name in names}
            for epoch in range(epochs):
                params, opt_state, measured, finite = epoch_of(own, params, opt_state, epoch)
                alive &= np.asarray(finite)
                for name, value in measured.items():
                    records[name][:, epoch] = np.where(alive, value, np.nan)
                report(c * epochs + epoch + 1, {"networks": real, "diverged": int((~alive[:real]).sum())})
            all_params.append(params)
            all_records.append(records)

    def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
        whole = np.concatenate(parts)[: len(runs)]
        return whole.reshape(*counts, *whole.shape[1:])

    params = jax.tree.map(lambda *parts: jnp.asarray(joined([np.asarray(part) for part in parts])), *all_params)
    monitors = jax.tree.map(lambda *parts: joined(parts), *all_records)
    return Sweep(params, monitors["cost"], *(monitors.get(name) for name in Sweep._fields[2:]))


@functools.partial(jax.jit, static_argnames="shape")
def _starts(net: Layer, grid: Any, keys: Array, runs: Array, *, shape: tuple[int, ...]) -> tuple[Params, Any]:
    """Parameters and optimizer states of some runs."""

    def one(run: Array) -> tuple[Params, Any]:
        optimizer, _, (init_key, _) = _of_run(grid, keys, run)
        params = net.init(init_key, shape)
        return params, optimizer.init(params)

    return jax.vmap(one)(runs)


@functools.partial(jax.jit, static_argnames=("batch_size", "classes"))
def _epochs(net, cost, grid, keys, train, sets, runs, params, opt_states, epoch, *, batch_size, classes) -> tuple:
    """(parameters, optimizer states, monitors, whether all is finite) of some runs after an epoch."""

    def one(run: Array, params: Params, opt_state: Any) -> tuple:
        optimizer, penalty, (_, fit_key) = _of_run(grid, keys, run)
        settings = {"batch_size": batch_size, "gradient": None, "micro_batch": "auto", "window": None}
        key = jax.random.fold_in(fit_key, epoch)
        params, opt_state, costs, finite = _epoch(
            net, cost, optimizer, penalty, params, opt_state, train, key, **settings
        )
        measured = {"cost": jnp.mean(costs)}
        for (name, part), shows in zip(sets.items(), classes, strict=True):
            given = {"n_examples": train.x.shape[0], "classes": shows}
            measured[f"{name}cost"], measured[f"{name}accuracy"] = _monitor(net, cost, penalty, params, part, **given)
        return params, opt_state, measured, finite & jnp.isfinite(measured["cost"])

    return jax.vmap(one)(runs, params, opt_states)


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
    # JAX's asarray and stack keep the weak types of Python's numbers.
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *parts)


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
