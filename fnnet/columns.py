"""Tables of text."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["aligned", "by_epoch", "by_field", "by_setting"]

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
    return "\n".join([*table, ", ".join((_counted(n, "epoch"), *about))])


def by_setting(monitors: Mapping[str, Any]) -> str:
    """A table of a sweep's monitors, arrays (optimizers, penalties, keys, epochs): of the last epoch the mean and standard
    deviation over the keys that did not diverge, for twelve settings at most, those of the lowest cost."""
    last = {name.replace("_", " "): np.ma.masked_invalid(np.asarray(a)[..., -1]) for name, a in monitors.items()}
    judge = "validation cost" if "validation cost" in last else "cost"
    _, penalties, keys, epochs = np.shape(monitors["cost"])
    means = last[judge].mean(-1).filled(np.inf).ravel()
    chosen = np.sort(np.argsort(means, kind="stable")[:SHOWN])
    lost = np.ma.getmaskarray(last["cost"]).sum(-1)

    def cell(values: Any) -> str:
        known = values.compressed()
        spread = f" ± {known.std():.2g}" if keys > 1 and known.size else ""
        return f"{known.mean():#.4g}{spread}" if known.size else "diverged"

    places = [divmod(int(i), penalties) for i in chosen]
    rows = [(f"{i}", f"{j}", *(cell(a[i, j]) for a in last.values()), f"{lost[i, j]}") for i, j in places]
    table = [("optimizer", "penalty", *last, "diverged"), *rows]
    if not lost.any():
        table = [row[:-1] for row in table]
    about = [f"after {_counted(epochs, 'epoch')}, {_counted(keys, 'key')}"]
    about += [f"the {SHOWN} of {means.size} settings with the lowest {judge}"] * (means.size > SHOWN)
    return "\n".join([*aligned(table, right=len(table[0])), ", ".join(about)])


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"


def by_field(values: Any) -> str:
    """A NamedTuple as Python prints it: where its values are no numbers, as while JAX traces."""
    return f"{type(values).__name__}({', '.join(f'{name}={getattr(values, name)!r}' for name in values._fields)})"
