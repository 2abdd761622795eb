"""Training by contrastive divergence: epochs as compiled scans, monitors, checkpoints.

Legend and parameters as in `fnnet.rbm`. Source: Hinton (2010), a practical guide.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from ..activations import wide_dtype
from ..batches import ONE, Layout, of_device, order, total
from ..checkpoints import fingerprint, keeping, resumed
from ..columns import by_epoch, by_field
from ..devices import WHOLE, Division
from ..divergence import Diverged
from ..given import Examples, whole
from ..layers._layer import as_array, check_key
from ..meshes import Devices, Shuffle, devices, filled
from ..optimizers import Optimizer, apply_updates, is_transformation, traceable, updated
from ..penalties import Penalty, check_penalty
from ..programs import for_each_structure
from ..progress import reporter
from ..training import fold_in, initial
from .contrast import Sparsity, difference, like
from .likelihood import pseudo_likelihood_of
from .machine import Params, Visible, check_data, check_given, free_energy, reconstruction_errors, sample_hidden
from .parts import check_numbered, key_of_part, share, summed

__all__ = ["History", "State", "fit"]

MONITORED = 5000
WORSE = 2.0


class State(NamedTuple):
    """All that a run needs to go on: give it to ``fit(..., resume=state)``, or to `fnnet.save` first.

    Attributes:
        params: the parameters after ``epoch`` epochs.
        optimizer: the optimiser's state.
        chains: hidden units of the persistent chains; None without any. On a mesh that divides them their axis 0 is cut.
        key: the run's key.
        epoch: how many epochs are done.
        records: the monitors so far, by name.
        fingerprint: as in `fnnet.TrainingState`.
    """

    params: Params
    optimizer: Any
    chains: Array | None
    key: Any
    epoch: Array
    records: dict[str, Any]
    fingerprint: Array | None = None


FINGERPRINT = "data", "validation data", "visible", "batch_size", "penalty", "sparsity"


class History(NamedTuple):
    """Monitors after each epoch, as arrays with one entry per epoch, over up to 5,000 examples drawn once by the key.

    Attributes:
        reconstruction_error: see the function of this name.
        pseudo_likelihood: the mean of `pseudo_likelihood` in nats; None for Gaussian visible units.
        free_energy_gap: mean F(validation) − mean F(training) in nats; it grows when the machine overfits. None without
            validation data.
        state: to continue from; see `State`.
    """

    reconstruction_error: np.ndarray
    pseudo_likelihood: np.ndarray | None
    free_energy_gap: np.ndarray | None
    state: State

    def __repr__(self) -> str:
        monitors = {name: getattr(self, name) for name in self._fields if name != "state"}
        try:
            return by_epoch(monitors)
        except TypeError:
            return by_field(self)


def fit(
    params: Params,
    data: Any,
    *,
    key: Any,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer,
    k: int | Callable[[int], int] = 1,
    persistent: bool = False,
    penalty: Penalty | None = None,
    sparsity: Sparsity | None = None,
    visible: Visible = "bernoulli",
    validation: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: State | str | os.PathLike[str] | None = None,
    mesh: Mesh | None = None,
    shuffle: Shuffle = "global",
    progress: bool = True,
) -> tuple[Params, History]:
    """Train by contrastive divergence and return (params, history); each epoch is one compiled scan.

    Ctrl-C returns what the finished epochs gave; so does SIGTERM where there is a ``checkpoint``.

    Args:
        params: from `init`.
        data: (m, n_v), from 0 to 1 for Bernoulli visible units, standardised for Gaussian ones.
        key: drives shuffling and sampling; the same key gives the same run.
        epochs: passes over the data in all, those of ``resume`` included.
        batch_size: examples in a mini-batch, and persistent chains.
        optimizer: as in `fnnet.fit`: ``fn.sgd(0.05, momentum=0.9)``, ``fn.adam``, any optax transformation of gradients
            alone: contrastive divergence has no cost.
        k: steps of Gibbs sampling, or a function of the epoch (0, 1, 2, ...) that gives them.
        persistent: whether the chains of one mini-batch go on in the next (PCD-k) or start from its data (CD-k).
        penalty: ``fn.L2`` (weight decay), ``fn.L1`` or your own; N is the size of the training set.
        sparsity: a target for the hidden units' activity.
        visible: "bernoulli" or "gaussian".
        validation: held-out data, for the free-energy gap.
        checkpoint: as in `fnnet.fit`.
        every: how many epochs lie between two checkpoints.
        resume: ``history.state`` of an earlier run with the same arguments, or a path, as in `fnnet.fit`; ``params`` and
            ``key`` are then taken from it, and the result is bit for bit that of one uninterrupted run. ``epochs``, ``k`` and
            the optimizer's numbers may differ, and the devices with shuffle="global".
        mesh: devices to train on, as in `fnnet.fit`: each takes its part of every mini-batch and of the chains, and one psum
            adds up their gradients (another one q_j, for ``sparsity``). Each draws the random numbers that its rows get on
            one device.
        shuffle: with a mesh, "global": the data lie on each device and the numbers are those of one device; or "block": the
            data are cut over the devices and stay where they are. Each device then shuffles its own part by
            ``fold_in(shuffle_key, device)``, as one device does that takes a mini-batch to be the devices' next
            batch_size / devices examples side by side.
        progress: as in `fnnet.fit`.

    Raises:
        ValueError: for bad input, naming what was expected, what came and the remedy; for a mesh without an axis "data" that
            has several axes, and for "block" where the devices do not divide the examples or ``batch_size``.
        fnnet.Diverged: when a parameter is no longer finite, or the machine models the data worse than one whose
            parameters are all 0, and twice as badly as it did before: in pseudo-likelihood, or in reconstruction error for
            Gaussian visible units.
    """
    on = devices("rbm.fit", mesh, shuffle, data)
    states = run(
        params, data, key=key, epochs=epochs, batch_size=batch_size, optimizer=optimizer, k=k, persistent=persistent,
        penalty=penalty, sparsity=sparsity, visible=visible, validation=validation, checkpoint=checkpoint, resume=resume,
        progress=progress, on=on, shuffle=shuffle,
    )  # fmt: skip
    states = states if on is None else _returned(on, states)
    state, every = next(states), whole("rbm.fit", "every", every)
    with contextlib.suppress(KeyboardInterrupt), keeping(checkpoint, every) as keep:
        for state in states:
            keep(state)
            if keep.stopped():
                break
    return state.params, history_of(state)


def run(
    params: Params, data: Any, *, key: Any, epochs: int, batch_size: int, optimizer: Optimizer, k: Any = 1,
    persistent: bool = False, penalty: Penalty | None = None, sparsity: Sparsity | None = None,
    visible: Visible = "bernoulli", validation: Any = None, checkpoint: str | os.PathLike[str] | None = None,
    resume: State | str | os.PathLike[str] | None = None, progress: bool = True, source: Any = None,
    on: Devices | None = None, shuffle: Shuffle = "global",
) -> Iterator[State]:  # fmt: skip
    """The states of a run of `fit`: the first one, then one after each epoch. ``source`` is what the data and the validation
    data were computed from, where they were; ``on`` are the devices, whose mesh is JAX's own meanwhile."""
    params = jax.tree.map(as_array, params)
    epochs, batch_size = whole("rbm.fit", "epochs", epochs, least=0), whole("rbm.fit", "batch_size", batch_size)
    layout = ONE
    if on is not None:
        params, key = on.copied((params, check_key(key)))
        layout, data, validation = _laid_out(on, shuffle, data, validation, batch_size)
    data = check_data("rbm.fit", "data", params, data, visible)
    validation = None if validation is None else check_data("rbm.fit", "validation", params, validation, visible)
    _check_run(key, optimizer, penalty, sparsity, resume)

    optimizer = traceable(optimizer)
    names = ["reconstruction_error", "pseudo_likelihood", "free_energy_gap"]
    absent = {"pseudo_likelihood": visible == "gaussian", "free_energy_gap": validation is None}
    records = {name: np.zeros(0, jnp.result_type(float)) for name in names if not absent.get(name)}
    bottom = source or (data, validation)
    own = fingerprint(
        dict(zip(FINGERPRINT, bottom, strict=False)), visible=visible, batch_size=layout.in_blocks(batch_size),
        penalty=penalty, sparsity=sparsity,
    )  # fmt: skip
    chains = _chains(jax.random.key(0) if key is None else key, params, data, batch_size) if persistent else None
    start = State(params, initial(optimizer, params), chains, key, jax.device_put(0), records, own)
    state = resumed("rbm.fit", resume, checkpoint, start, "sizes, optimizer, chains and monitors", FINGERPRINT)
    if on is not None:
        state = on.copied(state._replace(records={}))._replace(chains=on.spread(state.chains), records=state.records)
    check_given("rbm.fit", state.key)
    if on is not None:
        check_numbered("rbm.fit", state.key)
    data_key, validation_key, _, _, zero_key, proxy_key = _keys(state.key)
    watched = _some(data_key, data), None if validation is None else _some(validation_key, validation)
    epoch_of = functools.partial(
        _epoch, optimizer, penalty, sparsity, batch_size=batch_size, visible=visible, layout=layout
    )
    monitor = functools.partial(_monitor, visible=visible, over=layout.over)
    judge = "pseudo_likelihood" if visible == "bernoulli" else "reconstruction_error"
    of_zero, _ = jax.device_get(monitor(_zeros_like(state.params), zero_key, *watched))
    yield state

    with reporter(progress, epochs, int(state.epoch)) as report:
        while int(state.epoch) < epochs:
            steps = whole("rbm.fit", "k", k(int(state.epoch)) if callable(k) else k)
            epoch = jax.device_put(np.asarray(int(state.epoch) + 1, state.epoch.dtype))
            epoch_key, monitor_key = (fold_in(of_run, epoch) for of_run in (state.key, proxy_key))
            given = state.params, state.optimizer, state.chains
            params, opt_state, chains = epoch_of(*given, data, epoch_key, jax.device_put(steps))
            if on is not None and jax.process_count() > 1:
                chains = on.copied(chains)  # a process saves what it has
            measured, finite = jax.device_get(monitor(params, monitor_key, *watched))
            past = state.records[judge]
            if not len(past):
                past = jax.device_get(monitor(state.params, fold_in(proxy_key, jax.device_put(0)), *watched)[0][judge])
            with np.errstate(divide="ignore", invalid="ignore"):  # where a machine of zeros is right already
                ratio, best = float(measured[judge] / of_zero[judge]), float(np.min(past / of_zero[judge]))
            if not (finite and ratio <= max(1, WORSE * best)):
                raise _diverged(state, finite, ratio)
            records = {n: np.append(r, np.asarray(measured[n], r.dtype)) for n, r in state.records.items()}
            state = State(params, opt_state, chains, state.key, epoch, records, state.fingerprint)
            yield state
            report(int(state.epoch), {name: float(value) for name, value in measured.items()})


def _returned(on: Devices, states: Iterator[State]) -> Iterator[State]:
    """The states on the mesh that was given, each computed with the devices' own as JAX's."""
    while True:
        with jax.set_mesh(on.mesh):
            try:
                state = next(states)
            except StopIteration:
                return
            except Diverged as error:
                error.params, error.history = on.returned((error.params, error.history))
                raise
        yield on.returned(state)


def _laid_out(
    on: Devices, shuffle: Shuffle, data: Any, validation: Any, batch_size: int
) -> tuple[Layout, Array, Array | None]:
    """The layout, the data and the validation data so placed."""
    data, validation = as_array(data), as_array(validation)
    layout = Layout(on.over, on.cut or shuffle == "block", shuffle == "block", on.mesh)
    if not layout.cut or data.ndim == 0:
        return layout, on.copied(data), on.spread(validation)
    if not layout.block:
        return layout, *on.spread((data, validation))
    remedies = f"leave {len(data) % on.n} out", f"give {-(-batch_size // on.n) * on.n}"
    given = ("data of a number of examples", len(data)), ("batch_size=", batch_size)
    for (what, number), remedy in zip(given, remedies, strict=True):
        if number % on.n:
            raise ValueError(
                f"rbm.fit: expected {what} that the mesh's {on.n} devices divide for shuffle='block', got {number}; "
                f"{remedy}, or use shuffle='global'"
            )
    return layout, *on.spread((data, validation))


_zeros_like = jax.jit(functools.partial(jax.tree.map, jnp.zeros_like))


@jax.jit
def _keys(key: Array) -> tuple[Array, ...]:
    """The keys of a run: for the monitored examples, those of the validation data, the chains and the examples they start
    from, and the monitors at zero and after the epochs."""
    return tuple(jax.random.split(jax.random.fold_in(key, 0), 6))


@functools.partial(jax.jit, static_argnums=3)
def _chains(key: Array, params: Params, data: Array, number: int) -> Array:
    _, _, chain_key, rows_key, *_ = _keys(key)
    return sample_hidden(params, chain_key, data[jax.random.randint(rows_key, (number,), 0, len(data))])


@for_each_structure
def _epoch(
    optimizer, penalty, sparsity, params, opt_state, chains, data, key, k, *, batch_size, visible, layout=ONE
):  # fmt: skip
    """(params, optimiser state, chains) after one shuffled pass."""
    passed = functools.partial(_passed, layout, batch_size=batch_size, visible=visible)
    if layout.over is None:
        return passed(optimizer, penalty, sparsity, params, opt_state, chains, data, key, k)
    rows, chains = layout.over.rows, None if chains is None else filled(layout.over, chains)
    specs = *[WHOLE] * 5, rows, rows if layout.cut else WHOLE, WHOLE, WHOLE
    on_mesh = jax.shard_map(passed, mesh=layout.over.mesh, in_specs=specs, out_specs=(WHOLE, WHOLE, rows))
    *carry, chains = on_mesh(optimizer, penalty, sparsity, params, opt_state, chains, data, key, k)
    return *carry, None if chains is None else chains[:batch_size]


def _passed(
    layout, optimizer, penalty, sparsity, params, opt_state, chains, data, key, k, *, batch_size, visible
):  # fmt: skip
    """`_epoch` of a device, with its part of each mini-batch and of the chains."""
    over, data, dtype = layout.over, Examples(data, None, {}), wide_dtype(params["w"].dtype)
    n, blocks = total(layout, data), over.n if layout.block else 1
    shuffle_key, step_key = jax.random.split(key)
    rows = order(layout, shuffle_key, n)

    def step(carry: tuple, batch: tuple[Array, Array]) -> tuple[tuple, None]:
        params, opt_state, chains = carry
        rows, i = batch
        (v, *_), *_ = of_device(layout, data, rows)
        count = len(rows) * blocks
        sampled = count if chains is None else batch_size
        shares = share(over, count, dtype), share(over, sampled, dtype)
        own_key = key_of_part(over, jax.random.fold_in(step_key, i), sampled)
        grads, _, h = difference(params, own_key, v, chains, k, visible, shares)
        if sparsity is not None:
            grads = jax.tree.map(jnp.add, grads, sparsity.of_part(params, v, over, shares[0]))
        grads = like(params, summed(over, grads))
        if penalty is not None:
            grads = jax.tree.map(jnp.add, grads, penalty.gradient(params, n))
        updates, opt_state = updated("rbm.fit", optimizer, grads, opt_state, params)
        return (apply_updates(params, updates), opt_state, None if chains is None else h), None

    size = batch_size // blocks
    full, rest = divmod(len(rows), size)
    batches = rows[: full * size].reshape(full, size), jnp.arange(full)
    carry, _ = jax.lax.scan(step, (params, opt_state, chains), batches)
    if rest:
        carry, _ = step(carry, (rows[full * size :], jnp.asarray(full)))
    return carry


@for_each_structure
def _monitor(
    params: Params,
    key: Array,
    v: Array,
    validation: Array | None = None,
    *,
    visible: Visible,
    over: Division | None = None,
) -> tuple[dict[str, Array], Array]:
    """The monitors, and whether all parameters are finite."""
    m, n_v = v.shape
    # One unit is drawn for each example, so a few examples alone say little.
    many = max(1, MONITORED // m)
    units = jax.random.randint(key, (many * m,), 0, n_v).reshape(many, m).T if visible == "bernoulli" else None
    counts = m, m if validation is None else len(validation)
    measured = functools.partial(_measured, over, counts=counts, visible=visible)
    if over is not None:
        measured = jax.shard_map(measured, mesh=over.mesh, in_specs=(WHOLE, *[over.rows] * 3), out_specs=WHOLE)
        v, units, validation = jax.tree.map(functools.partial(filled, over), (v, units, validation))
    means = measured(params, v, units, validation)
    return means, jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _measured(over, params, v, units, validation, *, counts, visible) -> dict[str, Array]:
    """The monitors of a device's part, summed over the devices; units (m, any number) are those that are flipped."""

    def mean(of_examples: Array, count: int) -> Array:
        weights = share(over, count, of_examples.dtype)
        return jnp.mean(of_examples) if weights is None else weights @ of_examples

    means = {"reconstruction_error": mean(reconstruction_errors(params, v, visible=visible), counts[0])}
    if units is not None:
        of_each = jax.vmap(pseudo_likelihood_of, (None, None, 1))(params, v, units)
        means["pseudo_likelihood"] = mean(jnp.mean(of_each, axis=0), counts[0])
    if validation is not None:
        free = functools.partial(free_energy, params, visible=visible)
        means["free_energy_gap"] = mean(free(validation), counts[1]) - mean(free(v), counts[0])
    return summed(over, means)


def _diverged(state: State, finite: Any, ratio: float) -> Diverged:
    what = (
        f"it models the data {ratio:.3g} times worse than parameters of 0 do" if finite else "a parameter is not finite"
    )
    return Diverged(
        f"rbm.fit: training diverged in epoch {int(state.epoch) + 1}: {what}; lower the learning rate, or scale the data. "
        f".params and .history hold the last good epoch",
        int(state.epoch) + 1,
        state.params,
        history_of(state),
    )


def history_of(state: State) -> History:
    """The monitors up to a state, and the state."""
    monitors = jax.tree.map(np.asarray, {name: state.records.get(name) for name in History._fields if name != "state"})
    return History(**monitors, state=state)


def _some(key: Array, data: Array) -> Array:
    """All examples, or as many as are monitored, without replacement."""
    return data if len(data) <= MONITORED else _drawn(key, data, MONITORED)


@functools.partial(jax.jit, static_argnums=2)
def _drawn(key: Array, data: Array, number: int) -> Array:
    return data[jax.random.permutation(key, len(data))[:number]]


def _check_run(key, optimizer, penalty, sparsity, resume) -> None:
    check_penalty(penalty)
    check_key(key)
    if resume is None:
        check_given("rbm.fit", key)
    if not is_transformation(optimizer):
        got = type(optimizer).__name__
        raise ValueError(f"rbm.fit: expected an optimizer with init and update, such as fn.sgd(0.05), got {got}")
    if sparsity is not None and not isinstance(sparsity, Sparsity):
        raise ValueError(f"rbm.fit: expected sparsity=rbm.Sparsity(target, cost), got {sparsity!r}")
