"""A hook of the docs' build: each page with code that runs is there as a notebook too, made of the page's own text and code.

What is quoted from the library (a block with a title, or a jitted function by itself) is text: it runs nowhere.
"""

import json
import re
from pathlib import Path

BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.S | re.M)
PICTURE = re.compile(r"!\[([^\]]*)\]\([^)]*\)")


def is_excerpt(attributes: str, body: str) -> bool:
    """Whether a block is quoted from the library, and no step of the page's script."""
    return "title=" in attributes or body.startswith("@jax.jit")


def notebook(text: str) -> dict | None:
    """The notebook of a page in Markdown; None for one without code of its own."""
    cells: list[tuple[str, str]] = [("markdown", "")]
    at = 0
    for block in BLOCK.finditer(text):
        cells[-1:] = [("markdown", cells[-1][1] + text[at : block.start()])]
        if is_excerpt(*block.groups()):
            cells[-1:] = [("markdown", cells[-1][1] + block[0])]
        else:
            cells += [("code", block[2]), ("markdown", "")]
        at = block.end()
    cells[-1:] = [("markdown", cells[-1][1] + text[at:])]
    if len(cells) == 1:
        return None
    return {
        "cells": [_cell(i, kind, source.strip("\n")) for i, (kind, source) in enumerate(cells) if source.strip()],
        "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _cell(i: int, kind: str, source: str) -> dict:
    if kind == "markdown":
        return {"cell_type": kind, "id": f"c{i}", "metadata": {}, "source": PICTURE.sub(r"(picture: \1)", source)}
    return {"cell_type": kind, "id": f"c{i}", "metadata": {}, "source": source, "outputs": [], "execution_count": None}


def on_page_markdown(markdown: str, *, page, config, **_) -> str:
    """A link to the notebook under the page's title."""
    made = notebook(markdown)
    if made is None or page.file.src_uri.startswith("api/"):
        return markdown
    name = Path(page.file.src_uri).stem + ".ipynb"
    page.meta["notebook"] = name, made
    link = f'<p class="notebook"><a href="{name}" download>This page as a notebook</a></p>\n'
    head, _, rest = markdown.partition("\n")
    return f"{head}\n\n{link}{rest}"


def on_post_page(output: str, *, page, config, **_) -> str:
    """Writes the notebook beside the page."""
    if "notebook" in page.meta:
        name, made = page.meta["notebook"]
        path = Path(config["site_dir"]) / Path(page.file.dest_uri).parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return output
