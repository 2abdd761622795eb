"""Tables of text."""

from collections.abc import Sequence

__all__ = ["aligned"]


def aligned(table: Sequence[Sequence[str]], right: int = 0) -> list[str]:
    """The lines of a table whose columns are as wide as their widest entry, the last ``right`` of them set to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    first = len(widths) - right

    def line(texts: Sequence[str]) -> str:
        pairs = enumerate(zip(texts, widths, strict=True))
        return "  ".join(text.ljust(n) if i < first else text.rjust(n) for i, (text, n) in pairs).rstrip()

    return [line(texts) for texts in table]
