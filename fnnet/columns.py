"""Tables of text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["aligned", "by_epoch", "by_field"]

SHOWN = 12


def aligned(table: Sequence[Sequence[str]], right: int = 0) -> list[str]:
    """The lines of a table whose columns are as wide as their widest entry, the last ``right`` of them set to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    first = len(widths) - right

    def line(texts: Sequence[str]) -> str:
        pairs = enumerate(zip(texts, widths, strict=True))
        return "  ".join(text.ljust(n) if i < first else text.rjust(n) for i, (text, n) in pairs).rstrip()

    return [line(texts) for texts in table]


def by_epoch(monitors: Mapping[str, Any], *about: str) -> str:
    """A table of monitors, arrays with one entry per epoch or None: twelve epochs at most, the first and the last among
    them; below it how many there are, and what else is to be said."""
    shown = {name.replace("_", " "): values for name, values in monitors.items() if values is not None}
    n = len(next(iter(shown.values()), ()))
    epochs = np.linspace(0, n - 1, min(n, SHOWN)).round().astype(int)
    rows = [(f"{i + 1}", *(f"{values[i]:#.4g}" for values in shown.values())) for i in epochs]
    table = aligned([("epoch", *shown), *rows], right=1 + len(shown))
    return "\n".join([*table, ", ".join((f"{n} epoch{'s' * (n != 1)}", *about))])


def by_field(values: Any) -> str:
    """A NamedTuple as Python prints it: where its values are no numbers, as while JAX traces."""
    return f"{type(values).__name__}({', '.join(f'{name}={getattr(values, name)!r}' for name in values._fields)})"
