"""A file that is written beside the one whose place it takes: a failed or killed writer leaves the old one whole."""

import contextlib
import errno
import os
import platform
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["replacing"]

DAY = 86_400.0


@contextlib.contextmanager
def replacing(function: str, path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of the one at ``path`` when all is well and leaves no trace otherwise.

    ``~`` is the home folder, links are followed to their target, and an existing file's mode is kept. Any number of threads,
    processes and machines may write at once; one of them is the last.

    Raises:
        OSError: where the folder cannot be written, or what is at ``path`` is no file; ``function`` heads the message.
    """
    target = Path(os.path.realpath(os.path.expanduser(path)))
    if target.is_symlink():  # realpath gives up on links that lead in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if target.exists() and not target.is_file():
        raise OSError(
            f"{function}: expected the path of a file, got {path}, which is something else; give another path"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{function}: expected the folder {target.parent}, got none; create it first")
    with contextlib.ExitStack() as stack:
        part, file = _open_part(target.parent)
        try:
            with file:
                if fcntl is not None:  # a second descriptor holds the lock until the part is in its place
                    stack.callback(os.close, os.dup(file.fileno()))
                with contextlib.suppress(FileNotFoundError):
                    part.chmod(stat.S_IMODE(target.stat().st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    with contextlib.suppress(OSError):  # the file is safe; not every system can sync the folder's entry for it
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _open_part(folder: Path) -> tuple[Path, IO[bytes]]:
    """A new file, locked while it is written. First those go that nobody locks any more: their writers were killed.

    Not every network file system shares its locks, so a part of another machine must also be a day old.
    """
    own = f".fnnet-{platform.node()}-"
    if fcntl is not None:
        for left in folder.glob(".fnnet-*.part"):
            with contextlib.suppress(OSError):  # locked, or gone in the meantime
                if left.name.startswith(own) or time.time() - left.stat().st_mtime > DAY:
                    with open(left, "rb+") as file:
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        left.unlink()
    while True:
        part = folder / f"{own}{secrets.token_hex(8)}.part"
        file = open(part, "xb")  # noqa: SIM115, the caller closes it
        if fcntl is None:
            return part, file
        with contextlib.suppress(OSError):  # a file system without locks, where nobody removes parts either
            fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:  # else another took it for a left one before it was locked
            return part, file
        file.close()
