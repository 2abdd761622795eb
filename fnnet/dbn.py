"""Deep belief networks: restricted Boltzmann machines trained one on top of the other, generation from the top down, and
unrolling into networks that backpropagation fine-tunes.

A stack is a tuple of parameters as in `fnnet.rbm`, {w, b, c} each, the bottom machine first; the hidden units of one are the
visible units of the next. ``visible`` is the kind of the bottom machine's visible units; all others are Bernoulli.

Sources: the notes' title "deep belief networks"; Hinton, Osindero and Teh (2006); Hinton and Salakhutdinov (2006).
"""

import contextlib
import os
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh

from . import rbm
from .activations import Activation, linear, sigmoid
from .checkpoints import as_folder, check_checkpoint, checkpoints, is_path, keeping, stopping
from .divergence import Diverged
from .given import whole
from .layers import Dense, Layer
from .layers._composite import Network
from .layers._layer import as_array
from .meshes import Devices, Shuffle, devices
from .rbm.machine import check_given, check_kind, check_machine
from .rbm.training import history_of, run

__all__ = ["generate", "pretrain", "to_autoencoder", "to_network", "up"]

Stack = tuple[rbm.Params, ...]


def pretrain(
    data: Any,
    sizes: Any,
    *,
    key: Array,
    epochs: int,
    visible: rbm.Visible = "bernoulli",
    validation: Any = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1,
    resume: tuple[rbm.History, ...] | str | os.PathLike[str] = (),
    mesh: Mesh | None = None,
    shuffle: Shuffle = "global",
    **training: Any,
) -> tuple[Stack, tuple[rbm.History, ...]]:
    """Train a stack greedily and return (stack, histories): the first machine on the data, each other one on the hidden
    probabilities p(h | v) of the one below.

    Ctrl-C returns what there is, the machine that was being trained included; so does SIGTERM where there is a
    ``checkpoint``. Further machines with other settings are trained on ``dbn.up(stack, data)`` and appended: stacks are
    tuples.

    Args:
        data: (m, n_v), as for `fnnet.rbm.fit`.
        sizes: the hidden units of each machine, the bottom one first.
        key: drives initialisation, shuffling and sampling.
        epochs: passes over the data for each machine.
        visible: the kind of the data's units.
        validation: held-out data, for the free-energy gap of each machine.
        checkpoint: as in `fnnet.fit`; each machine has a folder of its own in it, machine-0, machine-1, ...
        every: how many epochs lie between two checkpoints.
        resume: the histories of an interrupted call with the same arguments, or the path that was its ``checkpoint``. Its
            machines are taken over, the last one is trained to the end; the result is bit for bit that of one uninterrupted
            run. ``checkpoint`` and ``resume`` may be the same path, as in `fnnet.fit`.
        mesh: devices to train on, as in `fnnet.rbm.fit`.
        shuffle: as in `fnnet.rbm.fit`; what the units of one machine are for the next is computed on the device that has the
            example, where the devices divide the examples.
        **training: the other arguments of `fnnet.rbm.fit`: batch_size, optimizer, k, persistent, penalty, sparsity, progress.

    Raises:
        ValueError: for bad input, as `fnnet.rbm.fit`; for sizes that are not positive integers, or that differ from those
            of ``resume``.
        fnnet.Diverged: as `fnnet.rbm.fit`; ``.params`` and ``.history`` are then the stack and the histories so far.
    """
    sizes = tuple(sizes) if isinstance(sizes, tuple | list) else sizes
    if not isinstance(sizes, tuple) or not sizes:
        raise ValueError(
            f"dbn.pretrain: expected sizes, the hidden units of each machine such as (500, 500), got {sizes!r}"
        )
    check_checkpoint("dbn.pretrain", checkpoint)
    check_given("dbn.pretrain", key)
    whole("dbn.pretrain", "epochs", epochs, least=0)
    every = whole("dbn.pretrain", "every", every)
    given = _machines(resume, checkpoint, sizes)
    on = devices("dbn.pretrain", mesh, shuffle, data)
    source = as_array(data), as_array(validation)
    if on is not None:
        source, key = on.spread(source), on.copied(key)
    v, held_out = source
    histories: list[rbm.History] = []
    with (
        contextlib.nullcontext() if on is None else jax.set_mesh(on.mesh),
        contextlib.suppress(KeyboardInterrupt),
        stopping(checkpoint is not None) as stopped,
    ):
        for i, n_hidden in enumerate(sizes):
            if stopped():
                break
            if i:
                params = histories[i - 1].state.params
                v = rbm.hidden_probabilities(params, v)
                held_out = None if held_out is None else rbm.hidden_probabilities(params, held_out)
            init_key, fit_key = _keys(key, jax.device_put(i))
            kind = visible if i == 0 else "bernoulli"
            start = rbm.init(init_key, v.shape[-1], n_hidden, data=v if kind == "bernoulli" else None)
            own = None if checkpoint is None else as_folder(checkpoint) / f"machine-{i}"
            states = run(
                start, v, key=fit_key, epochs=epochs, visible=kind, validation=held_out, checkpoint=own, source=source,
                resume=given[i] if i < len(given) else None, on=on, shuffle=shuffle, **training,
            )  # fmt: skip
            histories.append(history_of(next(states)))
            if i < len(given) - 1:
                continue
            try:
                with keeping(own, every) as keep:
                    for state in states:
                        histories[i] = history_of(state)
                        keep(state)
                        if keep.stopped():
                            break
            except Diverged as error:
                reached = _result(histories, on)
                raise Diverged(f"dbn.pretrain: machine {i}: {error}", error.epoch, *reached) from error
    return _result(histories, on)


def _result(histories: list[rbm.History], on: Devices | None) -> tuple[Stack, tuple[rbm.History, ...]]:
    """The stack and the histories, on the mesh that was given."""
    reached = tuple(histories) if on is None else on.returned(tuple(histories))
    return tuple(history.state.params for history in reached), reached


@jax.jit
def _keys(key: Array, machine: Array) -> tuple[Array, Array]:
    """The keys that a machine is initialised and trained with."""
    init_key, fit_key = jax.random.split(jax.random.fold_in(key, machine))
    return init_key, fit_key


def _machines(resume: Any, checkpoint: Any, sizes: tuple[int, ...]) -> list[Any]:
    """What each machine that is there already is resumed from: a state or a folder."""
    if not is_path(resume):
        _check_resume(resume, sizes)
        return [history.state for history in resume]
    folder, folders = as_folder(resume), []
    while checkpoints(folder / f"machine-{len(folders)}"):
        folders.append(folder / f"machine-{len(folders)}")
    if not folders and (checkpoint is None or as_folder(checkpoint).resolve() != folder.resolve()):
        raise ValueError(
            f"dbn.pretrain: expected a folder with machine-0, machine-1, ... to resume from, got {folder} without; give the "
            f"folder that was checkpoint= of the call"
        )
    if len(folders) > len(sizes):
        raise ValueError(
            f"dbn.pretrain: expected resume= a run with the sizes {sizes}, got {len(folders)} machines in {folder}; resume "
            f"with the same arguments"
        )
    return folders


def _check_resume(resume: Any, sizes: tuple[int, ...]) -> None:
    is_histories = isinstance(resume, tuple | list) and all(isinstance(history, rbm.History) for history in resume)
    if not is_histories or isinstance(resume, rbm.History):
        raise ValueError(
            f"dbn.pretrain: expected resume= the histories of an earlier call, got {type(resume).__name__}"
        )
    there = tuple(history.state.params["c"].shape[0] for history in resume)
    if there != sizes[: len(there)]:
        raise ValueError(
            f"dbn.pretrain: expected resume= a run with the sizes {sizes}, got machines of {there} hidden units; resume with "
            f"the same arguments"
        )


def up(stack: Stack, v: Array) -> Array:
    """p(h | v) of the top machine, each machine on the probabilities of the one below. Shapes (m, n_v) -> (m, n_h).

    Raises:
        ValueError: for machines that do not fit on each other, or v of another width.
    """
    check_stack(stack)
    for params in stack:
        v = rbm.hidden_probabilities(params, v)
    return v


def generate(stack: Stack, key: Array, v: Array, *, k: int, visible: rbm.Visible = "bernoulli") -> Array:
    """Samples of the model: k steps of Gibbs sampling in the top machine from ``v``'s own representation there, then down
    through the others, hidden units drawn and the means of the bottom machine's visible units returned.

    Args:
        stack: from `pretrain`.
        key: drives the sampling.
        v: where the chains start, (m, n_v): data, or noise.
        k: steps of Gibbs sampling.
        visible: the kind of the bottom machine's visible units.

    Returns:
        (m, n_v).

    Raises:
        ValueError: for k < 1, machines that do not fit on each other, or v of another width.
    """
    check_stack(stack)
    *below, top = stack
    keys, k = tuple(jax.random.split(key, len(stack) + 1)), whole("dbn.generate", "k", k)
    h = up(tuple(below), v) if below else v
    if k > 1:
        h = rbm.gibbs(top, keys[0], h, k=k - 1, visible="bernoulli" if below else visible)
    h = rbm.sample_hidden(top, keys[1], h)
    for i in range(len(below), 0, -1):
        h = rbm.sample_visible(stack[i], keys[i + 1], h)
    return rbm.visible_means(stack[0], h, visible=visible)


def to_network(stack: Stack, key: Array, output: Layer) -> tuple[Network, tuple[Any, ...]]:
    """The stack as a classifier (net, params): a sigmoid layer for each machine with w and c for weights and biases,
    computing p(h | v) upwards, and an output layer whose parameters are drawn by key.

    Args:
        stack: from `pretrain`.
        key: for ``output.init``.
        output: the layer on top, such as ``fn.Dense(10, fn.softmax)``.

    Raises:
        ValueError: for machines that do not fit on each other.
    """
    layers, params = zip(*_encoder(stack, sigmoid), strict=True)
    top = stack[-1]["w"]
    last = jax.tree.map(lambda leaf: leaf.astype(top.dtype), output.init(key, (top.shape[0],)))
    return Network(*layers, output), (*params, last)


def to_autoencoder(
    stack: Stack, *, code: Activation = sigmoid, visible: rbm.Visible = "bernoulli"
) -> tuple[Network, tuple[Any, ...]]:
    """The stack unrolled (net, params): w and c of each machine upwards, then wᵀ and b of each downwards:
    ``net[:len(stack)]`` is the encoder, ``net[len(stack):]`` the decoder; their weights are their own from here on.

    Args:
        stack: from `pretrain`.
        code: the activation of the code layer, the top machine's hidden units. ``fn.linear`` gives codes without bounds, as
            in the paper, whose top machine has real hidden units.
        visible: "gaussian" makes the last layer linear, to be fine-tuned with ``fn.quadratic``; otherwise it is sigmoid, for
            ``fn.cross_entropy``.

    Raises:
        ValueError: for machines that do not fit on each other.
    """
    check_kind(visible)
    ups = _encoder(stack, code)
    downs = []
    for i in range(len(stack) - 1, -1, -1):
        bottom = linear if visible == "gaussian" and i == 0 else sigmoid
        downs.append((Dense(stack[i]["w"].shape[1], bottom), {"w": stack[i]["w"].T, "b": stack[i]["b"]}))
    layers, params = zip(*ups, *downs, strict=True)
    return Network(*layers), params


def _encoder(stack: Stack, top: Activation) -> list[tuple[Dense, dict[str, Array]]]:
    """A Dense layer and its parameters for each machine; the activation of the last one is ``top``."""
    check_stack(stack)
    last = len(stack) - 1
    return [
        (Dense(params["w"].shape[0], top if i == last else sigmoid), {"w": params["w"], "b": params["c"]})
        for i, params in enumerate(stack)
    ]


def check_stack(stack: Any) -> None:
    """Raise a ValueError unless it is a tuple of machines that fit on each other."""
    if not isinstance(stack, tuple | list) or not stack:
        got = "an empty one" if isinstance(stack, tuple | list) else type(stack).__name__
        raise ValueError(f"dbn: expected a stack, a tuple of at least one machine {{w, b, c}}, got {got}")
    for i, params in enumerate(stack):
        check_machine(params, f"dbn: machine {i}")
        if i and params["w"].shape[1] != stack[i - 1]["w"].shape[0]:
            raise ValueError(
                f"dbn: expected machine {i} with {stack[i - 1]['w'].shape[0]} visible units, the hidden units of machine "
                f"{i - 1}, got {params['w'].shape[1]}; train it on dbn.up of the machines below"
            )
