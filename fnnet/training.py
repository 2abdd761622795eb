"""Training by mini-batches: each epoch is one compiled scan, its shuffling and dropout drawn from one key.

Source: the notes, sections 3 (the algorithm) and 5.1 (overfitting, early stopping).
"""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .costs import Cost, accuracy
from .layers._layer import Layer, Params, run_forward, split_key
from .network import Network, check_batch, check_key, check_micro_batch, chunk_size, mean_over_chunks, value_and_grad
from .optimizers import Optimizer, apply_updates, is_transformation, traceable
from .penalties import Penalty, check_penalty

__all__ = ["Diverged", "EarlyStopping", "History", "TrainingState", "evaluate", "fit"]


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
        if not isinstance(self.patience, int) or self.patience < 1:
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
        records: the monitors so far, by name.
    """

    params: Params
    optimizer: Any
    key: Array
    epoch: Array
    best: Best | None
    records: dict[str, Any]


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
    """

    cost: np.ndarray
    accuracy: np.ndarray | None
    validation_cost: np.ndarray | None
    validation_accuracy: np.ndarray | None
    state: TrainingState


class Diverged(RuntimeError):
    """Training failed for good: the cost is no longer finite, or a Boltzmann machine models its data worse and worse.

    Attributes:
        epoch: the epoch in which it happened, from 1.
        params: the parameters at the end of the last good epoch.
        history: the monitors up to there.
        layer: the first layer whose values are not finite, such as "1 Dense(10, softmax)"; None for a Boltzmann machine.
        step: the mini-batch, from 1; None for a Boltzmann machine.
    """

    def __init__(
        self, message: str, epoch: int, params: Params, history: Any, layer: str | None = None, step: int | None = None
    ) -> None:
        self.epoch, self.params, self.history, self.layer, self.step = epoch, params, history, layer, step
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.epoch, self.params, self.history, self.layer, self.step), vars(self)


class Examples(NamedTuple):
    """A data set on the device; every leaf has the examples on axis 0."""

    x: Array
    y: Array
    extras: dict[str, Array]


def fit(
    net: Layer,
    cost: Cost,
    params: Params,
    data: tuple[Any, ...],
    *,
    key: Any,
    epochs: int,
    batch_size: int,
    optimizer: Optimizer,
    penalty: Penalty | None = None,
    validation: tuple[Any, ...] | None = None,
    early_stopping: EarlyStopping | None = None,
    gradient: Callable[..., tuple[Array, Params]] | None = None,
    micro_batch: int | Literal["auto"] | None = "auto",
    window: int | None = None,
    monitor_training: bool = True,
    resume: TrainingState | None = None,
    progress: bool = True,
) -> tuple[Params, History]:
    """Train by mini-batches and return (params, history).

    Each epoch shuffles by key and is one compiled scan; a last mini-batch of fewer examples is run too. Ctrl-C returns
    what the finished epochs gave.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: from ``net.init``.
        data: (x, y), or (x, y, {"mask": ..., "weights": ...}).
        key: drives shuffling and dropout; the same key gives the same run.
        epochs: passes over the data in all, those of ``resume`` included.
        batch_size: examples in a mini-batch.
        optimizer: ``fn.sgd``, ``fn.adam`` or any optax transformation.
        penalty: ``fn.L2``, ``fn.L1`` or your own; N is the size of the training set.
        validation: like ``data``; monitored after each epoch.
        early_stopping: when to stop; ``params`` are then those of the best epoch.
        gradient: g(params, x, y, *, key, weights) -> (cost, gradients) used in place of `fnnet.value_and_grad`;
            it also gets ``mask`` where the data has one. The penalty is added to its gradients.
        micro_batch: as in `fnnet.value_and_grad`.
        window: for long sequences (x and y with T on axis 1): each mini-batch is run ``window`` steps at a time, a step of
            the optimiser for each window, the recurrent layers' states carried on and the errors cut in between (truncated
            backpropagation through time). A ``gradient`` of your own then also gets ``state`` and returns
            ((cost, state), gradients).
        monitor_training: whether cost and accuracy are evaluated on the whole training data after each epoch, which costs
            a forward pass; otherwise the cost is the mean over the epoch's mini-batches.
        resume: ``history.state`` of an earlier run with the same arguments; ``params`` and ``key`` are then taken from it,
            and the result is bit for bit that of one uninterrupted run.
        progress: a progress bar on a terminal (tqdm where it is installed), a line per epoch elsewhere.

    Raises:
        ValueError: for bad input, naming what was expected, what came and the remedy.
        Diverged: when the cost is not finite.
    """
    train = _examples(net, cost, params, data, "data")
    _check_window(net, params, train, window)
    held_out = None if validation is None else _examples(net, cost, params, validation, "validation")
    _check_run(net, key, epochs, batch_size, optimizer, penalty, early_stopping, validation, resume, micro_batch)
    epoch_of = functools.partial(
        _epoch,
        net,
        cost,
        traceable(optimizer),
        penalty,
        batch_size=batch_size,
        gradient=gradient,
        micro_batch=micro_batch,
        window=window,
    )
    monitor = functools.partial(_monitor, net, cost, penalty, n_examples=train.x.shape[0])
    shows = (_names_classes(net, params, train), held_out is not None and _names_classes(net, params, held_out))

    if early_stopping is not None and early_stopping.monitor == "validation_accuracy" and not shows[1]:
        raise ValueError(
            "fit: expected validation targets that name classes for EarlyStopping's monitor 'validation_accuracy', got "
            "other values; use EarlyStopping(monitor='validation_cost')"
        )

    start = _start(params, optimizer, key, monitor_training, held_out is not None, early_stopping)
    state = start
    if resume is not None:
        state = same_run("fit", resume, start, "network, optimizer, monitors and early stopping")
    with reporter(progress, epochs, int(state.epoch)) as report, contextlib.suppress(KeyboardInterrupt):
        while int(state.epoch) < epochs and not _is_over(early_stopping, state):
            epoch_key = jax.random.fold_in(state.key, state.epoch)
            new_params, opt_state, costs, finite = epoch_of(state.params, state.optimizer, train, epoch_key)
            measured = {"cost": jnp.mean(costs)}
            if monitor_training:
                measured["cost"], measured["accuracy"] = monitor(new_params, train, classes=shows[0])
            if held_out is not None:
                names = ("validation_cost", "validation_accuracy")
                measured |= dict(zip(names, monitor(new_params, held_out, classes=shows[1]), strict=True))
            if not (finite and np.isfinite(measured["cost"])):
                raise _diverged(net, state, epoch_of, train, epoch_key, np.asarray(costs), batch_size)
            records = {n: np.append(r, np.asarray(measured[n], r.dtype)) for n, r in state.records.items()}
            best = _better(early_stopping, state, measured, new_params)
            state = TrainingState(new_params, opt_state, state.key, state.epoch + 1, best, records)
            report(int(state.epoch), {name: float(value) for name, value in measured.items()})
    return _result(state)


@functools.partial(jax.jit, static_argnames=("batch_size", "gradient", "micro_batch", "window", "steps"))
def _epoch(
    net,
    cost,
    optimizer,
    penalty,
    params,
    opt_state,
    data,
    key,
    *,
    batch_size,
    gradient,
    micro_batch,
    window,
    steps=None,
) -> tuple[Params, Any, Array, Array]:
    """(params, optimiser state, cost of each mini-batch, whether costs and parameters are finite) after one shuffled pass, or
    after its first ``steps`` steps."""
    n = data.x.shape[0]
    shuffle_key, step_key = jax.random.split(key)
    order = jax.random.permutation(shuffle_key, n)
    gradient = gradient or value_and_grad(net.in_loop(), cost, micro_batch=micro_batch, carry=window is not None)

    def updated(params: Params, opt_state: Any, grads: Params) -> tuple[Params, Any]:
        if penalty is not None:
            grads = jax.tree.map(jnp.add, grads, penalty.gradient(params, n))
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return apply_updates(params, updates), opt_state

    def step(carry: tuple[Params, Any], batch: tuple[Array, Array]) -> tuple[tuple[Params, Any], Array]:
        rows, i = batch
        x, y, extras = jax.tree.map(lambda a: a.at[rows].get(mode="promise_in_bounds", unique_indices=True), data)
        key, given = jax.random.fold_in(step_key, i), {"weights": None, **extras}
        if window is not None:
            return through_windows(carry, x, y, given, key, min(window, x.shape[1]))
        value, grads = gradient(carry[0], x, y, key=key, **given)
        return updated(*carry, grads), value

    def through_windows(carry: Any, x: Array, y: Array, given: dict[str, Any], key: Array, window: int) -> Any:
        """A mini-batch of sequences, window by window; its cost is the sum over the windows."""

        def part(a: Array, start: Any, size: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(a, start, size, 1) if a.ndim > 1 else a

        def one(carry: tuple, start: Any, size: int = window) -> tuple[tuple, Array]:
            params, opt_state, state = carry
            x_part, y_part, more = jax.tree.map(lambda a: part(a, start, size), (x, y, given))
            own = jax.random.fold_in(key, start)
            (value, state), grads = gradient(params, x_part, y_part, key=own, state=state, **more)
            return (*updated(params, opt_state, grads), state), value

        zero_state = jax.tree.map(jnp.zeros_like, _state_after(net, carry[0], part(x, 0, window)))
        full, rest = divmod(x.shape[1], window)
        (*carry, state), values = jax.lax.scan(one, (*carry, zero_state), window * jnp.arange(full))
        value = jnp.sum(values)
        if rest:
            (*carry, state), last = one((*carry, state), full * window, rest)
            value = value + last
        return tuple(carry), value

    full, rest = divmod(n, batch_size)
    steps = full + (rest > 0) if steps is None else steps
    full = min(full, steps)
    batches = order[: full * batch_size].reshape(full, batch_size), jnp.arange(full)
    carry, costs = jax.lax.scan(step, (params, opt_state), batches)
    if steps > full:
        carry, last = step(carry, (order[full * batch_size :], jnp.asarray(full)))
        costs = jnp.append(costs, last)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((carry[0], costs))]
    return *carry, costs, jnp.all(jnp.stack(finite))


@functools.partial(jax.jit, static_argnames="classes")
def _monitor(net, cost, penalty, params, data, *, n_examples, classes) -> tuple[Array, Array]:
    """(objective, accuracy) of a data set in inference mode, a chunk at a time."""

    def chunk(x, y, extras, key):
        a, cache = run_forward(net, params, x, mask=extras.get("mask"))
        weights = extras.get("weights")
        value = cost(a, y, weights=weights, output=net.output(params, cache))
        if not classes:
            return value, jnp.full((), jnp.nan), jnp.ones(())
        share = jnp.ones(()) if weights is None else jnp.mean(weights.astype(jnp.result_type(float)))
        hits = jnp.where(share > 0, accuracy(a, y, weights) * share, 0)
        return value, hits, share

    size = min(chunk_size(net, params, data.x, jax.random.key(0), data.extras.get("mask"), "auto"), 8192)
    value, hits, share = mean_over_chunks(chunk, tuple(data), None, size)
    if penalty is not None:
        value = value + penalty.value(params, n_examples).astype(value.dtype)
    return value, hits / share


def evaluate(
    net: Layer,
    cost: Cost,
    params: Params,
    data: tuple[Any, ...],
    *,
    penalty: Penalty | None = None,
    n_examples: Any = None,
) -> tuple[float, float]:
    """(cost, accuracy) of a data set in inference mode, as ``fit`` monitors them.

    Args:
        net: a network or a single layer.
        cost: one of fnnet's costs.
        params: from ``net.init`` or ``fit``.
        data: (x, y), or (x, y, {"mask": ..., "weights": ...}).
        penalty: added to the cost.
        n_examples: N of the penalty; by default the number of examples in data.

    Raises:
        ValueError: for bad input.
    """
    examples = _examples(net, cost, params, data, "data")
    n = examples.x.shape[0] if n_examples is None else n_examples
    classes = _names_classes(net, params, examples)
    value, share = _monitor(net, cost, penalty, params, examples, n_examples=n, classes=classes)
    return float(value), float(share)


def check_data(data: Any, name: str) -> None:
    """Raise a ValueError unless it has two or three entries."""
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        got = f"{len(data)} entries" if isinstance(data, tuple | list) else type(data).__name__
        raise ValueError(f"{name}: expected (x, y) or (x, y, {{'mask': ..., 'weights': ...}}), got {got}")


def _examples(net: Layer, cost: Cost, params: Params, data: Any, name: str) -> Examples:
    check_data(data, name)
    x, y, *rest = data
    given = rest[0] if rest else {}
    if not isinstance(given, dict):
        raise ValueError(
            f"{name}: expected (x, y, {{'mask': ..., 'weights': ...}}), got {type(given).__name__} for the third"
        )
    extras = {k: jnp.asarray(v) for k, v in given.items() if v is not None}
    if unknown := sorted(extras.keys() - {"mask", "weights"}):
        raise ValueError(f"{name}: expected the keys 'mask' and 'weights' beside x and y, got {unknown}")
    for extra, value in extras.items():
        if value.shape[:1] != jnp.shape(x)[:1]:
            raise ValueError(
                f"{name}: expected {extra} for {jnp.shape(x)[0] if jnp.ndim(x) else 0} examples, got shape {value.shape}"
            )
    x, y, *_ = check_batch(net, cost, params, x, y, None, given.get("mask"), given.get("weights"))
    return Examples(x, y, extras)


def _state_after(net: Layer, params: Params, x: Array) -> Any:
    """The shapes of the state after x, as zeros can be made from them."""
    return jax.eval_shape(lambda p, x: net.final_state(run_forward(net, p, x)[1]), params, x)


def _check_window(net: Layer, params: Params, data: Examples, window: Any) -> None:
    if window is None:
        return
    if not isinstance(window, int | np.integer) or window < 1:
        raise ValueError(f"fit: expected window to be an integer of at least 1 step, got {window!r}")
    if data.x.ndim < 2 or data.y.shape[1:2] != data.x.shape[1:2]:
        raise ValueError(
            f"fit: expected x and y with as many steps on axis 1 for window={window}, got {data.x.shape} and "
            f"{data.y.shape}; a window needs a target for each step"
        )
    if not jax.tree.leaves(_state_after(net, params, data.x[:1, :1])):
        raise ValueError(
            f"fit: expected a network with a state to carry for window={window}, got {net!r}; add a recurrent layer or leave "
            f"window out"
        )


def _check_run(
    net, key, epochs, batch_size, optimizer, penalty, early_stopping, validation, resume, micro_batch
) -> None:
    check_micro_batch(micro_batch)
    check_penalty(penalty)
    if check_key(key) is None and resume is None:
        raise ValueError("fit: expected a key for shuffling and dropout, got None; make one with jax.random.key(seed)")
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        check_integer("fit", name, value, least)
    if not is_transformation(optimizer):
        got = type(optimizer).__name__
        raise ValueError(f"fit: expected an optimizer with init and update, such as fn.sgd(0.5), got {got}")
    if early_stopping is not None and validation is None:
        raise ValueError("fit: expected validation=(x, y) with early_stopping, got none; hold some examples back")
    if resume is not None and not isinstance(resume, TrainingState):
        raise ValueError(f"fit: expected resume=history.state, got {type(resume).__name__}")


def check_integer(function: str, name: str, value: Any, least: int) -> None:
    """Raise a ValueError unless it is an integer of at least so much."""
    if not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{function}: expected {name} to be an integer of at least {least}, got {value!r}")


def _start(params, optimizer, key, monitor_training, validated, early_stopping) -> TrainingState:
    names = ["cost", *["accuracy"] * monitor_training, *["validation_cost", "validation_accuracy"] * validated]
    params = jax.tree.map(jnp.asarray, params)
    best = Best(jnp.asarray(0), jnp.full((), -jnp.inf), params) if early_stopping else None
    records = {name: np.zeros(0, jnp.result_type(float)) for name in names}
    return TrainingState(params, traceable(optimizer).init(params), key, jnp.asarray(0), best, records)


def same_run(function: str, resume: Any, start: Any, same: str) -> Any:
    """The state to resume, or a ValueError where this run would start from one of another structure."""

    def about(state: Any) -> dict[str, Any]:
        named = {
            jax.tree_util.keystr(p): leaf
            for p, leaf in jax.tree_util.tree_leaves_with_path(state._replace(key=0, epoch=0))
        }
        return {n: (() if "records" in n else jnp.shape(leaf), str(jnp.result_type(leaf))) for n, leaf in named.items()}

    there, here = about(resume), about(start)
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{function}: expected resume= a state of a run with the same {same}, got one whose {name} is "
                f"{there.get(name)} where this run has {here.get(name)}; resume with the same arguments"
            )
    return resume


def _better(early_stopping, state, measured, params) -> Best | None:
    if early_stopping is None:
        return state.best
    sign = 1 if early_stopping.monitor == "validation_accuracy" else -1
    value = sign * measured[early_stopping.monitor].astype(state.best.value.dtype)
    return Best(state.epoch + 1, value, params) if value > state.best.value else state.best


def _is_over(early_stopping, state) -> bool:
    return early_stopping is not None and int(state.epoch) - int(state.best.epoch) >= early_stopping.patience


def _result(state: TrainingState) -> tuple[Params, History]:
    monitors: dict[str, Any] = {name: None for name in History._fields if name != "state"}
    monitors |= {name: np.asarray(values) for name, values in state.records.items()}
    kept = state.params if state.best is None or int(state.best.epoch) == 0 else state.best.params
    return kept, History(state=state, **monitors)


def _names_classes(net: Layer, params: Params, data: Examples) -> bool:
    """Whether the targets name classes: labels, rows that are distributions, or zeros and ones for a single output."""
    a = jax.eval_shape(lambda: run_forward(net, params, data.x, mask=data.extras.get("mask"))[0])
    y = data.y
    if y.shape != a.shape:
        return True
    if y.ndim == 1:
        return False
    if y.shape[-1] == 1:
        return bool(jnp.all((y == 0) | (y == 1)))
    return bool(jnp.all(y >= 0) & jnp.all(jnp.abs(jnp.sum(y, axis=-1) - 1) < 1e-3))


def _diverged(net, state, epoch_of, train, epoch_key, costs, batch_size) -> Diverged:
    """Run the epoch again up to the mini-batch that diverged, and look through its layers."""
    bad = np.flatnonzero(~np.isfinite(costs))
    step = int(bad[0]) if bad.size else len(costs)
    params, *_ = epoch_of(state.params, state.optimizer, train, epoch_key, steps=step)
    shuffle_key, step_key = jax.random.split(epoch_key)
    rows = jax.random.permutation(shuffle_key, train.x.shape[0])[step * batch_size : (step + 1) * batch_size]
    x, _, extras = jax.tree.map(lambda a: a[rows] if rows.size else a, train)
    key = jax.random.fold_in(step_key, step)
    layer = _first_not_finite(net, params, x, key, extras.get("mask"))
    epoch, step = int(state.epoch) + 1, min(step + 1, len(costs))
    message = (
        f"training diverged in epoch {epoch}, mini-batch {step}: the cost is not finite, first in {layer}; lower the "
        f"learning rate or scale the inputs. .params and .history hold the last good epoch"
    )
    return Diverged(message, epoch, state.params, _result(state)[1], layer, step)


def _first_not_finite(net: Layer, params: Params, x: Array, key: Any, mask: Any) -> str:
    if not _finite(x):
        return "the input data"

    def walk(net: Layer, params: Params, a: Array, key: Any, place: str) -> tuple[Array, str | None]:
        layers = (
            zip(net, params, split_key(key, len(net)), strict=True)
            if isinstance(net, Network)
            else [(net, params, key)]
        )
        for i, (part, p, k) in enumerate(layers):
            here = f"{place}{i}"
            if isinstance(part, Network):
                a, found = walk(part, p, a, k, f"{here}.")
            else:
                a, _ = run_forward(part, p, a, key=k, train=True, mask=mask)
                found = None if _finite((p, a)) else f"layer {here} {part!r}"
            if found:
                return a, found
        return a, None

    return walk(net, params, x, key, "")[1] or "the cost of the last layer"


def _finite(tree: Any) -> bool:
    return all(
        bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)
    )


@contextlib.contextmanager
def reporter(progress: bool, epochs: int, done: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function that tells the monitors after an epoch: a progress bar on a terminal, a line elsewhere."""

    def text(measured: dict[str, float]) -> str:
        return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in measured.items() if value == value)

    started = time.perf_counter()

    def line(epoch: int, measured: dict[str, float]) -> None:
        seconds = time.perf_counter() - started
        print(f"epoch {epoch}/{epochs}: {text(measured)} ({seconds:.1f} s)", file=sys.stderr, flush=True)

    if not progress:
        yield lambda epoch, measured: None
        return
    if not sys.stderr.isatty():
        yield line
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield line
        return
    with tqdm(total=epochs, initial=done, unit="epoch") as bar:

        def advance(epoch: int, measured: dict[str, float]) -> None:
            bar.set_postfix_str(text(measured), refresh=False)
            bar.update()

        yield advance
