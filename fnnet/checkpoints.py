"""Checkpoints of long runs, and what a state must share with the run that goes on from it.

A run is a function of its arguments and its state: the randomness of epoch e is drawn from fold_in(key, e), so params,
optimizer state, key, e and the records so far are all that the epochs after it depend on. A run that is killed and resumed
is therefore the uninterrupted one, bit for bit.
"""

import contextlib
import os
import re
import signal
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .devices import any_process
from .programs import for_each_structure
from .saving import load, save

__all__ = ["Keeper", "fingerprint", "keeping", "resumed"]

KEPT = 3


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first; none where there is no folder."""
    files = [file for file in folder.glob("checkpoint-*.npz") if file.stem[11:].isdigit()]
    return sorted(files, key=_epoch_of)


def _epoch_of(file: Path) -> int:
    return int(file.stem[11:])


class Keeper:
    """Saves the states of a run: every so many epochs, and whatever is not saved yet when the run ends or is stopped.

    Attributes:
        stopped: whether the run is to stop, a function without arguments.
    """

    def __init__(self, folder: Path | None, every: int, stopped: Callable[[], bool]) -> None:
        self.folder = folder
        self.every = every
        self.stopped = stopped
        self._unsaved: Any = None

    def hold(self, state: Any) -> None:
        """Take a state inside an epoch: it is saved if the run ends there."""
        self._unsaved = state

    def __call__(self, state: Any) -> None:
        """Take the state after an epoch, ``state.epoch``."""
        self.hold(state)
        if self.folder is not None and (int(state.epoch) % self.every == 0 or self.stopped()):
            self.save()

    def save(self) -> None:
        """Save the last state, unless it is saved, and let go of all but the newest `KEPT`. The first process does."""
        if self.folder is None or self._unsaved is None or jax.process_index() > 0:
            return
        save(self.folder / f"checkpoint-{int(self._unsaved.epoch):08d}.npz", self._unsaved)
        self._unsaved = None
        for old in checkpoints(self.folder)[:-KEPT]:
            old.unlink(missing_ok=True)


@contextlib.contextmanager
def keeping(checkpoint: Any, every: int) -> Iterator[Keeper]:
    """A `Keeper` of the folder, of none for None, that is told by `stopping`. However the block is left, the last state is
    saved."""
    folder = None if checkpoint is None else as_folder(checkpoint)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with stopping(checkpoint is not None) as stopped:
        keeper = Keeper(folder, every, stopped)
        try:
            yield keeper
        finally:
            keeper.save()


@contextlib.contextmanager
def stopping(active: bool) -> Iterator[Callable[[], bool]]:
    """Whether a SIGTERM came, to any process, as a function. In the main thread it no longer ends the process meanwhile, so
    that a loop can end after the epoch at hand. The handler of before is put back at the end, and called where a signal
    came; where SIGTERM is ignored it stays so."""
    received: list[Any] = []
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if active and is_main else None
    if before in (None, signal.SIG_IGN):
        yield lambda: False
        return
    signal.signal(signal.SIGTERM, lambda *given: received.append(given))
    try:
        yield lambda: any_process(bool(received))
    finally:
        signal.signal(signal.SIGTERM, before)
        if received and callable(before):
            before(*received[0])


def is_path(value: Any) -> bool:
    """Whether it names a file or a folder."""
    return isinstance(value, str | os.PathLike)


def as_folder(value: Any) -> Path:
    """The path that a user gave, ~ included."""
    return Path(value).expanduser()


def check_checkpoint(function: str, checkpoint: Any) -> None:
    """Raise a ValueError unless it is None or names a folder, there or yet to be made."""
    if checkpoint is None:
        return
    if not is_path(checkpoint):
        got = type(checkpoint).__name__
        raise ValueError(f"{function}: expected checkpoint= the path of a folder, got {got}; such as 'runs/first'")
    if as_folder(checkpoint).exists() and not as_folder(checkpoint).is_dir():
        raise ValueError(
            f"{function}: expected checkpoint= a folder, got the file {checkpoint}; give a path of its own"
        )


def resumed(function: str, resume: Any, checkpoint: Any, start: Any, same: str, parts: tuple[str, ...]) -> Any:
    """The state to go on from: ``start``, ``resume`` itself, or the newest whole checkpoint of the path ``resume``.

    Args:
        function: whose run it is, for the messages.
        resume: None, a state like ``start``, or the path of a file or a folder. The folder that is ``checkpoint`` may be
            empty or missing still: the run then starts anew.
        checkpoint: the folder that the run saves to. It may hold no checkpoint that this run did not come by.
        start: the state before the first epoch.
        same: what shapes the state, for the message where the shapes differ.
        parts: the names of the fingerprint's entries.

    Raises:
        ValueError: for a state of another run, a path without a whole checkpoint, or a folder of another run.
    """
    check_checkpoint(function, checkpoint)
    any_process(False)  # until the process that saves is here, which then has saved
    state, folder = start, None if checkpoint is None else as_folder(checkpoint)
    if is_path(resume):
        is_own = folder is not None and folder.resolve() == as_folder(resume).resolve()
        if not is_own or checkpoints(as_folder(resume)):
            state = _same_run(function, _newest(function, as_folder(resume), start, same), start, same, parts)
        if is_own:
            return state
    elif resume is not None:
        if not isinstance(resume, type(start)):
            raise ValueError(f"{function}: expected resume=history.state or a path, got {type(resume).__name__}")
        state = _same_run(function, resume, start, same, parts)
    held = [] if folder is None else checkpoints(folder)
    if held and (resume is None or _epoch_of(held[-1]) > int(state.epoch)):
        raise ValueError(
            f"{function}: expected checkpoint= a folder without a run of its own, got {folder} with checkpoints up to epoch "
            f"{_epoch_of(held[-1])}; go on from them with resume= the same path, or give another folder"
        )
    return state


def _newest(function: str, path: Path, start: Any, same: str) -> Any:
    """The state in a file, or the newest whole one in a folder."""
    files = [path] if path.is_file() else checkpoints(path)
    whole = next((file for file in reversed(files) if _is_whole(file)), None)
    if whole is None:
        got = f"{len(files)} damaged" if files else "none"
        raise ValueError(
            f"{function}: expected a checkpoint to resume from in {path}, got {got}; give the folder that was checkpoint= of "
            f"the run, or no resume= to start anew"
        )
    if whole != files[-1]:
        warnings.warn(f"{function}: {files[-1]} is damaged, so the run goes on from {whole.name}", stacklevel=2)
    like = start._replace(key=jax.random.key(0)) if start.key is None else start
    try:
        with jax.transfer_guard("allow"):
            return _loaded(whole, like)
    except ValueError as error:
        raise ValueError(f"{function}: expected {whole} to hold a run with the same {same}: {error}") from error


def _loaded(file: Path, like: Any) -> Any:
    """The state in a file, also in one that was written before there were the fields that a state has by default."""
    older = like._replace(**dict.fromkeys(_by_default(like)))
    try:
        return load(file, like=like)
    except ValueError:
        if not _by_default(like):
            raise
        with contextlib.suppress(ValueError):
            return _completed(load(file, like=older), like)
        raise


def _by_default(state: Any) -> list[str]:
    return [name for name, value in state._field_defaults.items() if value is not None]


def _completed(state: Any, start: Any) -> Any:
    """The state with ``start``'s values in the fields that an older one lacks."""
    missing = [name for name in _by_default(start) if getattr(state, name) is None]
    return state._replace(**{name: getattr(start, name) for name in missing})


def _is_whole(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except Exception:  # whatever a damaged archive makes zipfile raise
        return False


def _same_run(function: str, resume: Any, start: Any, same: str, parts: tuple[str, ...]) -> Any:
    """The state to resume, or a ValueError where this run would start from one of another fingerprint or structure."""
    resume = _completed(resume, start)
    if resume.fingerprint is not None:
        there, here = (np.asarray(jax.device_get(state.fingerprint)) for state in (resume, start))
        if there.shape != here.shape or (there != here).any():
            other = parts if there.shape != here.shape else [parts[i] for i in np.flatnonzero(there != here)]
            raise ValueError(
                f"{function}: expected resume= a state of the same run, got one with another {', '.join(other)}; resume with "
                f"the same arguments, or start a new run from its params"
            )

    def about(state: Any) -> dict[str, Any]:
        state = state._replace(key=0, epoch=0, fingerprint=0)
        named = {jax.tree_util.keystr(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(state)}
        shape = lambda n, leaf: jnp.shape(leaf)[n.startswith(".records") :]  # noqa: E731
        return {n: (shape(n, leaf), str(jnp.result_type(leaf))) for n, leaf in named.items()}

    there, here = about(resume), about(start)
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise ValueError(
                f"{function}: expected resume= a state of a run with the same {same}, got one whose {name} is "
                f"{there.get(name)} where this run has {here.get(name)}; resume with the same arguments"
            )
    return resume


def fingerprint(arrays: dict[str, Any], **others: Any) -> Array:
    """A checksum of 32 bits for each argument of a run, in the order given: the same in every process.

    Args:
        arrays: pytrees of arrays by name: their bits, shapes and dtypes count.
        **others: anything else, of which the repr counts, without the addresses in it.
    """
    sums = jax.device_get(_checksums(arrays))
    texts = []
    for name, tree in arrays.items():
        leaves = zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(sums[name]), strict=True)
        texts.append([(jax.tree_util.keystr(p), str(a.dtype), a.shape, int(bits)) for (p, a), bits in leaves])
    texts += [re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)) for value in others.values()]
    return jax.device_put(np.array([zlib.crc32(str(text).encode()) for text in texts], np.uint32))


@for_each_structure
def _checksums(arrays: Any) -> Any:
    return jax.tree.map(checksum, arrays)


def checksum(a: Array) -> Array:
    """Σ_i mix(bits_i ⊕ mix(i)) mod 2³² over the entries, i their row-major number: sums of integers, so the same in any order
    and on any device. mix is MurmurHash3's finaliser."""
    if jnp.issubdtype(a.dtype, jnp.complexfloating):
        a = jnp.stack([a.real, a.imag], -1)
    if a.dtype == bool or (jnp.issubdtype(a.dtype, jnp.integer) and jnp.iinfo(a.dtype).bits < 8):
        a = a.astype(jnp.int8)
    if jnp.issubdtype(a.dtype, jnp.floating) and jnp.finfo(a.dtype).bits < 8:
        a = a.astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(a, jnp.uint32 if a.dtype.itemsize == 8 else f"uint{8 * a.dtype.itemsize}")
    number = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        number = number * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return jnp.sum(_mixed(bits.astype(jnp.uint32) ^ _mixed(number)), dtype=jnp.uint32)


def _mixed(h: Array) -> Array:
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> shift)) * jnp.uint32(factor)
    return h ^ (h >> 16)
