"""Training by mini-batches: each epoch is one compiled scan, its shuffling and dropout drawn from one key.

Source: the notes, sections 3 (the algorithm) and 5.1 (overfitting, early stopping).
"""

import contextlib
import functools
import inspect
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from .batches import Layout, laid_out, layout_of_batches
from .checkpoints import fingerprint, keeping, resumed
from .chunks import check_micro_batch
from .columns import by_epoch, by_field
from .costs import Cost
from .devices import check_agreed, check_everywhere, everywhere, replicated
from .divergence import Diverged, diverged_at
from .epochs import batch_step as _batch_step
from .epochs import epoch, mini_batch, state_after
from .epochs import monitor as _monitor
from .given import Examples, called_as, examples, names_classes, whole
from .layers._layer import Layer, Params, as_array, check_key
from .optimizers import Optimizer, is_transformation, traceable
from .penalties import Penalty, check_penalty
from .programs import for_each_structure, placed
from .progress import reporter
from .streams import Stream, is_looked_at, n_of_batches, stepped

__all__ = ["EarlyStopping", "History", "TrainingState", "evaluate", "fit"]


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when a validation monitor has not improved for ``patience`` epochs, and keep the best epoch's parameters.

    Args:
        patience: how many epochs without improvement are borne.
        monitor: "validation_accuracy" or "validation_cost".

    Raises:
        ValueError: for a patience below 1 or another monitor.

    Source: the notes, section 5.1.
    """

    patience: int = 10
    monitor: Literal["validation_accuracy", "validation_cost"] = "validation_accuracy"

    def __post_init__(self) -> None:
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(f"EarlyStopping: expected a patience of at least 1 epoch, got {self.patience!r}")
        if self.monitor not in ("validation_accuracy", "validation_cost"):
            raise ValueError(
                f"EarlyStopping: expected monitor 'validation_accuracy' or 'validation_cost', got {self.monitor!r}"
            )


class Best(NamedTuple):
    """The best epoch so far: its number (from 1), its monitor and its parameters."""

    epoch: Array
    value: Array
    params: Params


class TrainingState(NamedTuple):
    """All that a run needs to go on: give it to ``fit(..., resume=state)``, or to `fnnet.save` first.

    Attributes:
        params: the parameters after ``epoch`` epochs.
        optimizer: the optimiser's state.
        key: the run's key.
        epoch: how many epochs are done.
        best: the best epoch, where early stopping keeps one.
        records: the monitors so far, by name; what ``watch`` gave is one of them.
        fingerprint: a checksum of each argument that makes the run what it is, so that another run is not taken for it;
            None is not looked at.
        step: how many mini-batches of the epoch after them are done: more than 0 where a run on batches from a function was
            stopped inside an epoch.
        costs: the sum of the costs of these.
    """

    params: Params
    optimizer: Any
    key: Array
    epoch: Array
    best: Best | None
    records: dict[str, Any]
    fingerprint: Array | None = None
    step: Any = 0
    costs: Any = 0.0


OF_DEVICES = ("params", "optimizer", "key", "best", "costs")
"""The parts of a state that an epoch works with."""

FINGERPRINT = (
    "data", "validation data", "network", "cost", "batch_size", "penalty", "gradient", "window",
    "early_stopping monitor",
)  # fmt: skip


class History(NamedTuple):
    """Monitors after each epoch, as arrays with one entry per epoch.

    Attributes:
        cost: the objective (penalty included) on the training data, in inference mode; the mean over the epoch's
            mini-batches, without the penalty, where ``monitor_training=False``.
        accuracy: share of right classes on the training data (NaN where the targets name no classes); None where
            ``monitor_training=False``.
        validation_cost: the same objective on the validation data, with the training set's N; None without any.
        validation_accuracy: share of right classes on the validation data; None without any.
        state: to continue from; see `TrainingState`.
        watched: what ``watch`` gave, its pytree with the epochs on a new first axis; None without it.
    """

    cost: np.ndarray
    accuracy: np.ndarray | None
    validation_cost: np.ndarray | None
    validation_accuracy: np.ndarray | None
    state: TrainingState
    watched: Any = None

    def __repr__(self) -> str:
        monitors = {name: getattr(self, name) for name in self._fields if name not in ("state", "watched")}
        try:
            step, best = int(self.state.step), 0 if self.state.best is None else int(self.state.best.epoch)
            about = {f"{step} mini-batches of the next": step, f"the best of them {best}": best}
            return by_epoch(monitors, *(text for text, holds in about.items() if holds))
        except (TypeError, AttributeError):
            return by_field(self)


@called_as("fit(net, cost, params, (x, y), key=key, epochs=30, batch_size=10, optimizer=fn.sgd(0.5))")
def fit(
    net: Layer,
    cost: Cost,
    params: Params,
    data: tuple[Any, ...] | Callable[[int], Any],
    *,
    key: Any,
    epochs: int,
    batch_size: int | None = None,
    optimizer: Optimizer,
    penalty: Penalty | None = None,
    n_examples: int | None = None,
    validation: tuple[Any, ...] | None = None,
    early_stopping: EarlyStopping | None = None,
    gradient: Callable[..., tuple[Array, Params]] | None = None,
    micro_batch: int | Literal["auto"] | None = "auto",
    window: int | None = None,
    monitor_training: bool = True,
    watch: Callable[[Params], Any] | None = None,
    mesh: Mesh | None = None,
    shuffle: Literal["global", "block"] = "global",
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: TrainingState | str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[Params, History]:
    """Train by mini-batches and return (params, history).

    Each epoch shuffles by key and is one compiled scan; a last mini-batch of fewer examples is run too. Ctrl-C returns
    what the finished epochs gave; so does SIGTERM where there is a ``checkpoint``.

    Data larger than memory are a function that gives mini-batches: each is one compiled step, the next ones are fetched and
    sent to the devices meanwhile, and both signals stop the run after the mini-batch at hand. The numbers are those of arrays
    where it gives their mini-batches; batches of another size compile once more.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: from ``net.init``.
        data: (x, y), or (x, y, {"mask": ..., "weights": ...}); or a function epoch (0, 1, 2, ...) -> an iterator of such
            mini-batches, the same ones whenever it is called, of NumPy arrays (memory maps too) or JAX's: a generator, or
            ``lambda epoch: loader`` for a loader of grain. With several processes each gives its part of every mini-batch, as
            NumPy arrays, or all give global arrays.
        key: drives shuffling and dropout; the same key gives the same run.
        epochs: passes over the data in all, those of ``resume`` included.
        batch_size: examples in a mini-batch. A function of batches makes them itself.
        optimizer: ``fn.sgd``, ``fn.adam`` or any optax transformation. One that asks for more gets it: ``value``, the
            mini-batch's objective, ``grad``, its gradient, ``value_fn`` and ``grad_fn``, both as functions of the parameters,
            and ``ggnvp``, the product with its Gauss-Newton matrix.
        penalty: ``fn.L2``, ``fn.L1`` or your own; N is the size of the training set.
        n_examples: N, for the penalty where the data are a function.
        validation: arrays like ``data``; monitored after each epoch.
        early_stopping: when to stop; ``params`` are then those of the best epoch.
        gradient: g(params, x, y, *, key, weights) -> (cost, gradients) used in place of `fnnet.value_and_grad`;
            it also gets ``mask`` where the data has one. The penalty is added to its gradients. On a mesh it gets a device's
            part of the mini-batch, with weights where the devices do not divide it.
        micro_batch: as in `fnnet.value_and_grad`.
        window: for long sequences (x and y with T on axis 1): each mini-batch is run ``window`` steps at a time, a step of
            the optimiser for each window, the recurrent layers' states carried on and the errors cut in between (truncated
            backpropagation through time). A ``gradient`` of your own then also gets ``state`` and returns
            ((cost, state), gradients).
        monitor_training: whether cost and accuracy are evaluated on the whole training data after each epoch, which costs
            a forward pass; otherwise, and where the data are a function, the cost is the mean over the epoch's mini-batches.
        watch: f(params) -> numbers or arrays, any pytree of them, recorded after each epoch: ``history.watched``. It is
            compiled, once, and brings its own data, as in
            ``watch=lambda params: fn.diagnostics.alignment(net, cost, params, x_val, y_val)``.
        mesh: a ``jax.sharding.Mesh`` over whose axis, its only one or "data", each mini-batch is divided; by default that
            on which the data lie. Every device gets the parameters and sends its part of the gradient, once a step. On
            several hosts the data are global arrays, such as of ``jax.make_array_from_process_local_data``.
        shuffle: "global": the mini-batches of one device, and so its numbers. Each device holds all the data, unless they are
            divided already: then each step sends the devices their examples. "block": each device holds, shuffles and takes
            examples of its own part, and no data move; ``batch_size`` and N must be multiples of the devices.
        checkpoint: a folder to save the state in after each ``every`` epochs and at the end, however that comes; the newest
            three are kept. Not one that holds another run's.
        every: how many epochs lie between two checkpoints.
        resume: ``history.state`` of an earlier run with the same arguments, or the path of a checkpoint or of a folder of
            them, whose newest whole one is taken; ``params`` and ``key`` are then taken from it, and the result is bit for
            bit that of one uninterrupted run (mini-batches of a function are skipped where they are done; whether they are
            the same ones is not looked at). Only ``epochs``, the optimizer's numbers, ``micro_batch`` and the patience of
            ``early_stopping`` may differ. ``checkpoint`` and ``resume`` the same path: it goes on where it stopped, or
            starts where nothing is saved yet.
        progress: a progress bar on a terminal (tqdm where it is installed), a line per epoch elsewhere.

    Raises:
        ValueError: for bad input, naming what was expected, what came and the remedy.
        Diverged: when the cost is not finite.
    """
    held_out = None if validation is None else examples(net, cost, params, validation, "validation")
    _check_run(key, optimizer, penalty, early_stopping, validation, resume, micro_batch, gradient, watch)
    epochs, every = whole("fit", "epochs", epochs, least=0), whole("fit", "every", every)
    about = {"gradient": gradient, "micro_batch": micro_batch, "window": window}
    numbers = jax.tree.map(placed, (traceable(optimizer), penalty))
    of_run = lambda layout: (net, cost, *everywhere(numbers, layout.mesh))  # noqa: E731
    train: Any = None
    epoch_of: Any = None
    step_of: Any = None
    stream: Any = None
    if callable(data):
        n, monitor_training, batch_size = n_of_batches(n_examples, penalty), False, None
        layout = layout_of_batches("fit", net, params, mesh, shuffle)
        check = functools.partial(_check_window, net, params, window=window, gradient=gradient)
        stream = Stream(data, net, cost, params, layout, check)
        step_of = functools.partial(_batch_step, *of_run(layout), n_examples=n, layout=layout, **about)
    else:
        train = examples(net, cost, params, data, "data")
        n, batch_size = _n_of_arrays(n_examples, train), whole("fit", "batch_size", batch_size)
        _check_window(net, params, train, window, gradient)
        check_everywhere("fit", train.x, mesh)
        layout, train = laid_out("fit", net, params, train, mesh, shuffle, batch_size)
        epoch_of = functools.partial(_epoch, *of_run(layout), batch_size=batch_size, layout=layout, **about)
    watching = None if watch is None else functools.partial(_watched, traceable(watch))
    n_examples = everywhere(jax.device_put(n), layout.mesh)

    def monitored(layout: Layout, data: Examples) -> tuple[bool, Callable[[Params], tuple[Array, Array]]]:
        about = {"classes": names_classes(net, params, data), "layout": layout}
        objective = net, cost, everywhere(numbers[1], layout.mesh)
        return about["classes"], lambda params: _monitor(*objective, params, data, n_examples, **about)

    def diverged(state: TrainingState, *about: Any) -> Diverged:
        return diverged_at(net, state, _result(state)[1], *about)

    of_training = monitored(layout, train)[1] if monitor_training else None
    names, of_held_out = False, None
    if held_out is not None:
        of_validation, held_out = laid_out("fit", net, params, held_out, layout.mesh, "global")
        names, of_held_out = monitored(of_validation, held_out)
    if early_stopping is not None and early_stopping.monitor == "validation_accuracy" and not names:
        raise ValueError(
            "fit: expected validation targets that name classes for EarlyStopping's monitor 'validation_accuracy', got "
            "other values; use EarlyStopping(monitor='validation_cost')"
        )

    own = fingerprint(
        {"data": train, "validation data": held_out},
        net=net, cost=cost, batch_size=batch_size and layout.in_blocks(batch_size),
        penalty=penalty if stream is None else (penalty, n),
        gradient=getattr(gradient, "__qualname__", type(gradient).__qualname__), window=window,
        monitor=early_stopping and early_stopping.monitor,
    )  # fmt: skip
    start = _start(params, optimizer, key, monitor_training, held_out is not None, early_stopping, watching, own)
    same = "network, optimizer, monitors, watch and early stopping"
    state = resumed("fit", resume, checkpoint, start, same, FINGERPRINT)
    _check_has_key(state.key)
    if stream is None and int(state.step):
        raise ValueError(
            f"fit: expected resume= a state between two epochs for data in arrays, got one after {int(state.step)} "
            f"mini-batches of an epoch; go on with the function that gave them"
        )
    about = [*jax.device_get(own), int(state.epoch), int(state.step), epochs, every]
    check_agreed("fit", (*FINGERPRINT, "resume", "resume", "epochs", "every"), np.asarray(about, np.uint32))
    state = state._replace(**replicated("fit", {name: getattr(state, name) for name in OF_DEVICES}, layout.mesh))
    with (
        contextlib.suppress(KeyboardInterrupt),
        keeping(checkpoint, every) as keep,
        reporter(progress, epochs, int(state.epoch)) as report,
    ):
        done, records = int(state.epoch), Records(state.records)
        while done < epochs and not _is_over(early_stopping, state) and not keep.stopped():
            number, costs, finite = everywhere(state.epoch, layout.mesh), None, True
            if stream is None:
                given = state.params, state.optimizer, train, state.key, number
                new_params, opt_state, costs, finite, following = epoch_of(*given)
                measured = {} if monitor_training else {"cost": _mean(costs)}
            else:
                epoch_key = fold_in(state.key, number)
                for state in stepped(stream, step_of, state, epoch_key, diverged):  # noqa: B020, Ctrl-C leaves the last
                    keep.hold(state)
                    if is_looked_at(state) and keep.stopped():
                        return _result(state)
                new_params, opt_state = state.params, state.optimizer
                measured = {"cost": jax.device_get(state.costs) / int(state.step)}
                following = jax.device_put(np.asarray(done + 1, state.epoch.dtype))
            if of_training is not None:
                measured |= zip(("cost", "accuracy"), of_training(new_params), strict=True)
            if of_held_out is not None:
                measured |= zip(("validation_cost", "validation_accuracy"), of_held_out(new_params), strict=True)
            *values, finite = jax.device_get((*measured.values(), finite))
            measured = dict(zip(measured, values, strict=True))  # a tree's dict would be sorted by name
            if not (finite and np.isfinite(measured["cost"])):
                raise _diverged(net, state, epoch_of, train, jax.device_get(costs), batch_size, layout)
            done += 1
            recorded = measured if watching is None else {**measured, "watched": jax.device_get(watching(new_params))}
            best = _better(early_stopping, state, measured, new_params, following)
            state = start._replace(
                params=new_params, optimizer=opt_state, key=state.key, epoch=following, best=best,
                records=records.with_one_more(recorded), fingerprint=state.fingerprint,
            )  # fmt: skip
            keep(state)
            report(done, {name: float(value) for name, value in measured.items()})
    return _result(state)


fold_in: Callable[..., Array] = jax.jit(jax.random.fold_in)
_mean = jax.jit(jnp.mean)


@for_each_structure
def _epoch(net, cost, optimizer, penalty, params, opt_state, data, key, number=0, **about) -> tuple[Any, ...]:
    """What `fnnet.epochs.epoch` gives for the epoch of this number, the first without one, with the key of it, and the number
    of the next."""
    of_epoch = net, cost, optimizer, penalty, params, opt_state, data, jax.random.fold_in(key, number)
    return *epoch(*of_epoch, **about), number + 1


@for_each_structure
def _watched(watch: Callable[[Params], Any], params: Params) -> Any:
    seen = watch(params)
    leaves = jax.tree.leaves(seen)
    if not leaves or not all(map(_is_recorded, leaves)):
        got = ", ".join(type(leaf).__name__ for leaf in leaves) or repr(seen)
        raise ValueError(f"fit: expected watch= to return numbers or arrays, got {got}; return what is to be recorded")
    return seen


def _is_recorded(leaf: Any) -> bool:
    is_array = isinstance(leaf, Array | np.ndarray | np.generic | int | float | complex)
    return is_array and not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.extended)


class Records:
    """The monitors of a run by name, in arrays with room for more epochs: one more takes as long after a thousand.

    Args:
        records: those so far, which are copied.
    """

    def __init__(self, records: Any) -> None:
        self.n: int = len(jax.tree.leaves(records)[0])
        self._room = jax.tree.map(np.array, records)

    def with_one_more(self, recorded: Any) -> Any:
        """All records, with the values after one more epoch; those given before stay as they are."""
        self.n += 1
        self._room = jax.tree.map(self._with, self._room, recorded)
        return jax.tree.map(lambda room: room[: self.n], self._room)

    def _with(self, room: np.ndarray, value: Any) -> np.ndarray:
        if len(room) < self.n:
            room = np.concatenate([room, np.empty_like(room, shape=(self.n, *room.shape[1:]))])
        room[self.n - 1] = value
        return room


@called_as("evaluate(net, cost, params, (x, y))")
def evaluate(
    net: Layer,
    cost: Cost,
    params: Params,
    data: tuple[Any, ...],
    *,
    penalty: Penalty | None = None,
    n_examples: Any = None,
    mesh: Mesh | None = None,
) -> tuple[float, float]:
    """(cost, accuracy) of a data set in inference mode, as ``fit`` monitors them.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: from ``net.init`` or ``fit``.
        data: (x, y), or (x, y, {"mask": ..., "weights": ...}).
        penalty: added to the cost.
        n_examples: N of the penalty; by default the number of examples in data.
        mesh: as in `fit`: each device evaluates its part of the data.

    Raises:
        ValueError: for bad input.
    """
    given = examples(net, cost, params, data, "data")
    n = given.x.shape[0] if n_examples is None else n_examples
    classes = names_classes(net, params, given)
    layout, given = laid_out("evaluate", net, params, given, mesh, "global")
    params = replicated("evaluate", params, layout.mesh)
    penalty, n = everywhere((penalty, jax.device_put(n)), layout.mesh)
    value, share = jax.device_get(_monitor(net, cost, penalty, params, given, n, classes=classes, layout=layout))
    return float(value), float(share)


def _check_window(net: Layer, params: Params, data: Examples, window: Any, gradient: Any) -> None:
    if window is None:
        return
    whole("fit", "window", window)
    if data.x.ndim < 2 or data.y.shape[1:2] != data.x.shape[1:2]:
        raise ValueError(
            f"fit: expected x and y with as many steps on axis 1 for window={window}, got {data.x.shape} and "
            f"{data.y.shape}; a window needs a target for each step"
        )
    one = jax.ShapeDtypeStruct((1, 1, *data.x.shape[2:]), data.x.dtype)
    if not jax.tree.leaves(state_after(net, params, one)):
        raise ValueError(
            f"fit: expected a network with a state to carry for window={window}, got {net!r}; add a recurrent layer or leave "
            f"window out"
        )
    taken = inspect.signature(gradient).parameters.values() if callable(gradient) else ()
    if taken and not any(p.name == "state" or p.kind is p.VAR_KEYWORD for p in taken):
        raise ValueError(
            f"fit: expected a gradient= that takes state= and returns ((cost, state), gradients) for window={window}, got "
            f"{getattr(gradient, '__qualname__', gradient)}; leave window out, or carry the state"
        )


def _check_run(key, optimizer, penalty, early_stopping, validation, resume, micro_batch, gradient, watch) -> None:
    check_micro_batch(micro_batch)
    check_penalty(penalty)
    check_key(key)
    if resume is None:
        _check_has_key(key)
    if not is_transformation(optimizer):
        got = type(optimizer).__name__
        raise ValueError(f"fit: expected an optimizer with init and update, such as fn.sgd(0.5), got {got}")
    if early_stopping is not None and not isinstance(early_stopping, EarlyStopping):
        raise ValueError(f"fit: expected early_stopping=fn.EarlyStopping(patience), got {early_stopping!r}")
    if early_stopping is not None and validation is None:
        raise ValueError("fit: expected validation=(x, y) with early_stopping, got none; hold some examples back")
    if gradient is not None and not (callable(gradient) and isinstance(gradient, Hashable)):
        raise ValueError(
            f"fit: expected gradient= a hashable function (params, x, y, *, key, weights) -> (cost, gradients), got "
            f"{type(gradient).__name__}"
        )
    if watch is not None and not (callable(watch) and isinstance(watch, Hashable)):
        raise ValueError(
            f"fit: expected watch= a hashable function params -> numbers or arrays, got {type(watch).__name__}"
        )


def _n_of_arrays(n_examples: Any, train: Examples) -> int:
    if n_examples is not None:
        raise ValueError(
            f"fit: expected n_examples= only with data from a function, got {n_examples!r} beside {len(train.x)} examples in "
            f"arrays; leave it out"
        )
    return len(train.x)


def _check_has_key(key: Any) -> None:
    if key is None:
        raise ValueError("fit: expected a key for shuffling and dropout, got None; make one with jax.random.key(seed)")


def _start(params, optimizer, key, monitor_training, validated, early_stopping, watching, own) -> TrainingState:
    names = ["cost", *["accuracy"] * monitor_training, *["validation_cost", "validation_accuracy"] * validated]
    params, dtype = jax.tree.map(as_array, params), jnp.result_type(float)
    zero = jax.device_put(0)
    best = Best(zero, jax.device_put(np.asarray(-np.inf, dtype)), params) if early_stopping else None
    records: dict[str, Any] = {name: np.zeros(0, dtype) for name in names}
    if watching is not None:
        records["watched"] = jax.tree.map(lambda a: np.zeros((0, *a.shape), a.dtype), jax.eval_shape(watching, params))
    costs = jax.device_put(np.zeros((), dtype))
    return TrainingState(params, initial(traceable(optimizer), params), key, zero, best, records, own, zero, costs)


@for_each_structure
def initial(optimizer: Any, params: Params) -> Any:
    """The optimiser's state, no leaf of it weakly typed: loaded from a file none is."""
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), optimizer.init(params))


def _better(early_stopping, state, measured, params, epoch) -> Best | None:
    if early_stopping is None:
        return state.best
    sign = 1 if early_stopping.monitor == "validation_accuracy" else -1
    value = np.asarray(sign * measured[early_stopping.monitor], state.best.value.dtype)
    if not value > jax.device_get(state.best.value):
        return state.best
    return Best(epoch, jax.device_put(value), params)


def _is_over(early_stopping, state) -> bool:
    return early_stopping is not None and int(state.epoch) - int(state.best.epoch) >= early_stopping.patience


def _result(state: TrainingState) -> tuple[Params, History]:
    monitors: dict[str, Any] = {name: None for name in History._fields if name != "state"}
    monitors |= jax.tree.map(np.asarray, state.records)
    kept = state.params if state.best is None or int(state.best.epoch) == 0 else state.best.params
    return kept, History(state=state, **monitors)


@jax.transfer_guard("allow")
def _diverged(net, state, epoch_of, train, costs, batch_size, layout) -> Diverged:
    """Run the epoch again up to the mini-batch that diverged, and look through its layers."""
    bad = np.flatnonzero(~np.isfinite(costs))
    step = int(bad[0]) if bad.size else len(costs)
    number = everywhere(state.epoch, layout.mesh)
    params, *_ = epoch_of(state.params, state.optimizer, train, state.key, number, steps=step)
    epoch_key = fold_in(state.key, number)
    at = min(step, len(costs) - 1)
    batch = mini_batch(train, epoch_key, batch_size=batch_size, step=at, layout=layout)
    return diverged_at(net, state, _result(state)[1], params, batch, epoch_key, at, train.x)
