"""What a long run says of itself on the way."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["reporter"]


@contextlib.contextmanager
def reporter(progress: bool, epochs: int, done: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A function that tells the monitors after an epoch: a progress bar on a terminal, a line elsewhere."""

    def texts(measured: dict[str, float], form: str) -> list[str]:
        return [f"{name.replace('_', ' ')} {value:{form}}" for name, value in measured.items() if value == value]

    started = time.perf_counter()

    def line(epoch: int, measured: dict[str, float]) -> None:
        seconds = time.perf_counter() - started
        columns = "  ".join(texts(measured, "<9.4g"))
        print(f"epoch {epoch:{len(str(epochs))}}/{epochs}: {columns} ({seconds:.1f} s)", file=sys.stderr, flush=True)

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
            bar.set_postfix_str(", ".join(texts(measured, ".4g")), refresh=False)
            bar.update()

        yield advance
