"""How the examples read a text."""

import pydoc_data.topics
from pathlib import Path

import numpy as np


def read(text: str | None, characters: int | None = None) -> tuple[np.ndarray, list[str]]:
    """(tokens, alphabet) of a file, of the help texts that ship with Python for None, or of the first so many characters."""
    if text is None:
        whole = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    else:
        whole = Path(text).read_text(encoding="utf-8")
    whole = whole[:characters]
    alphabet = sorted(set(whole))
    number = {character: i for i, character in enumerate(alphabet)}
    return np.array([number[character] for character in whole], np.int32), alphabet
