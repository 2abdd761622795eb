"""The documentation's code runs, and what it quotes from the library is still there."""

import functools
import gc
import multiprocessing
import os
import re
import runpy
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import jax
import pytest

import fnnet as fn

from .cases import thorough

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
SMALLER = {r"\b(epochs|betas|chains)=\d{2,}": r"\1=3", r"\b\d+_000\b": "500", r"\(1, 2, 5, 10, 25\)": "(1, 2)"}
"""What the default run makes smaller: it sees that the code of the pages runs; their numbers are for the thorough run."""
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.S | re.M)


def blocks(page):
    return [(attributes, body) for attributes, body in BLOCK.findall(page.read_text())]


def is_excerpt(attributes, body):
    return "title=" in attributes or body.startswith("@jax.jit")


def code(page, whole):
    """The page's script."""
    script = "\n\n".join(body for attributes, body in blocks(page) if not is_excerpt(attributes, body))
    return script if whole else functools.reduce(lambda text, of: re.sub(*of, text), SMALLER.items(), script)


def run(script, images):
    """One page, with so many images, in its own folder and with JAX's own settings, whatever the page before has changed."""
    whole = fn.datasets.mnist_subset

    def part(**given):
        data = whole(**given)
        return type(data)(*((x[:images], y[:images]) for x, y in data))

    jax.config.update("jax_enable_x64", False)
    os.chdir(script.parent)
    with mock.patch.object(fn.datasets, "mnist_subset", part):
        runpy.run_path(str(script))


@pytest.fixture(scope="module")
def reader():
    """A process without the tests' settings, which keeps what it has compiled from page to page."""
    about = {"initializer": gc.set_threshold, "initargs": gc.get_threshold()}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **about) as process:
        yield process


RUN = [page for page in PAGES if any(not is_excerpt(*block) for block in blocks(page))]
LEARN = [page for page in RUN if "mnist_subset(" in page.read_text() or code(page, True) != code(page, False)]


@pytest.mark.parametrize(
    "given",
    [*((page, 200) for page in RUN), *thorough(*((page, None) for page in LEARN))],
    ids=lambda given: f"{given[0].name}{'' if given[1] else ' in full'}",
)
def test_the_code_runs(given, reader, tmp_path):
    page, images = given
    script = tmp_path / "page.py"
    script.write_text(code(page, images is None))
    reader.submit(run, script, images).result()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_quotations_are_up_to_date(page):
    source = " ".join(" ".join(path.read_text().split()) for path in ROOT.glob("fnnet/**/*.py"))
    for attributes, body in blocks(page):
        if 'title="fnnet/' in attributes:
            assert " ".join(body.split()) in source, body


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
