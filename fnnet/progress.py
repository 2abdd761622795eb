"""What a long run says of itself on the way."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

__all__ = ["reporter"]


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
