"""Deep belief networks: restricted Boltzmann machines trained one on top of the other, generation from the top down, and
unrolling into networks that backpropagation fine-tunes.

A stack is a tuple of parameters as in `fnnet.rbm`, {w, b, c} each, the bottom machine first; the hidden units of one are the
visible units of the next. ``visible`` is the kind of the bottom machine's visible units; all others are Bernoulli.

Sources: the notes' title "deep belief networks"; Hinton, Osindero and Teh (2006); Hinton and Salakhutdinov (2006).
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from . import rbm
from .activations import Activation, linear, sigmoid
from .layers import Dense, Layer
from .network import Network
from .training import Diverged

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
    resume: tuple[rbm.History, ...] = (),
    **training: Any,
) -> tuple[Stack, tuple[rbm.History, ...]]:
    """Train a stack greedily and return (stack, histories): the first machine on the data, each other one on the hidden
    probabilities p(h | v) of the one below.

    Ctrl-C returns what there is, the machine that was being trained included. Further machines with other settings are
    trained on ``dbn.up(stack, data)`` and appended: stacks are tuples.

    Args:
        data: (m, n_v), as for `fnnet.rbm.fit`.
        sizes: the hidden units of each machine, the bottom one first.
        key: drives initialisation, shuffling and sampling.
        epochs: passes over the data for each machine.
        visible: the kind of the data's units.
        validation: held-out data, for the free-energy gap of each machine.
        resume: the histories of an interrupted call with the same arguments. Its machines are taken over, the last one is
            trained to the end; the result is bit for bit that of one uninterrupted run.
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
    _check_resume(resume, sizes)
    rbm.check_given("dbn.pretrain", key)
    v, held_out = jnp.asarray(data), None if validation is None else jnp.asarray(validation)
    histories = list(resume)
    with contextlib.suppress(KeyboardInterrupt):
        for i, n_hidden in enumerate(sizes):
            if i:
                params = histories[i - 1].state.params
                v = rbm.hidden_probabilities(params, v)
                held_out = None if held_out is None else rbm.hidden_probabilities(params, held_out)
            if i >= len(histories) - 1 and not _is_done(histories[i:], epochs):
                init_key, fit_key = jax.random.split(jax.random.fold_in(key, i))
                kind = visible if i == 0 else "bernoulli"
                start = rbm.init(init_key, v.shape[-1], n_hidden, data=v if kind == "bernoulli" else None)
                state = histories[i].state if i < len(histories) else None
                states = rbm.training(
                    start, v, key=fit_key, epochs=epochs, visible=kind, validation=held_out, resume=state, **training
                )
                try:
                    for state in states:
                        histories[i:] = [rbm.history_of(state)]
                except Diverged as error:
                    params = tuple(history.state.params for history in histories)
                    raise Diverged(
                        f"dbn.pretrain: machine {i}: {error}", error.epoch, params, tuple(histories)
                    ) from error
    return tuple(history.state.params for history in histories), tuple(histories)


def _is_done(history: list[rbm.History], epochs: int) -> bool:
    return bool(history) and int(history[0].state.epoch) >= epochs


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
    keys, k = jax.random.split(key, len(stack) + 1), rbm.whole("dbn.generate", "k", k)
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
    rbm.check_kind(visible)
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
        rbm.check_machine(params, f"dbn: machine {i}")
        if i and params["w"].shape[1] != stack[i - 1]["w"].shape[0]:
            raise ValueError(
                f"dbn: expected machine {i} with {stack[i - 1]['w'].shape[0]} visible units, the hidden units of machine "
                f"{i - 1}, got {params['w'].shape[1]}; train it on dbn.up of the machines below"
            )
