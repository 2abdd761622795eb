"""The documentation's code runs, and what it quotes from the library is still there."""

import gc
import multiprocessing
import os
import re
import runpy
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import pytest

from .cases import thorough

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/learn/*.md"))]
NOTEBOOKS = runpy.run_path(str(ROOT / ".ci" / "notebooks.py"))
BLOCK, is_excerpt = NOTEBOOKS["BLOCK"], NOTEBOOKS["is_excerpt"]


def blocks(page):
    return [(attributes, body) for attributes, body in BLOCK.findall(page.read_text())]


def code(page):
    """The page's script."""
    return "\n\n".join(body for attributes, body in blocks(page) if not is_excerpt(attributes, body))


def run(script):
    """One page in its own folder, with JAX's own settings, whatever the page before has changed."""
    jax.config.update("jax_enable_x64", False)
    os.chdir(script.parent)
    runpy.run_path(str(script))


def process():
    """One without the tests' settings, which keeps what it has compiled from page to page."""
    about = {"initializer": gc.set_threshold, "initargs": gc.get_threshold()}
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **about)


@pytest.fixture(scope="module")
def reader():
    with process() as started:
        yield started


README, *GUIDES = (page for page in PAGES if any(not is_excerpt(*block) for block in blocks(page)))


def run_in(started, page, folder):
    script = folder / "page.py"
    script.write_text(code(page))
    started.submit(run, script).result()


def test_the_readmes_code_runs(tmp_path, monkeypatch):
    """It trains for longer than it compiles: a little optimised it takes half the time."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=1")
    with process() as started:
        run_in(started, README, tmp_path)


@pytest.mark.parametrize("page", thorough(*GUIDES), ids=lambda p: p.name)
def test_the_code_runs(page, reader, tmp_path):
    run_in(reader, page, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_quotations_are_up_to_date(page):
    for attributes, body in blocks(page):
        if quoted := re.search(r'title="(fnnet|examples)/', attributes):
            source = " ".join(" ".join(path.read_text().split()) for path in ROOT.glob(f"{quoted[1]}/**/*.py"))
            assert " ".join(body.split()) in source, body


@pytest.mark.parametrize("page", GUIDES, ids=lambda p: p.name)
def test_a_notebook_is_the_pages_text_and_script(page):
    made = NOTEBOOKS["notebook"](page.read_text())
    scripts = [cell["source"] for cell in made["cells"] if cell["cell_type"] == "code"]
    assert "\n\n".join(scripts).split() == code(page).split()
    told = " ".join(cell["source"] for cell in made["cells"] if cell["cell_type"] == "markdown").split()
    assert len(told) > 0.9 * len(BLOCK.sub("", page.read_text()).split())
    assert len({cell["id"] for cell in made["cells"]}) == len(made["cells"])


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
