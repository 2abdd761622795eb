"""Every public name has an entry in the reference, and the tables that name functions name ones that exist."""

import inspect
import re
from pathlib import Path

import pytest

import fnnet as fn
from fnnet import plots

DOCS = Path(__file__).parent.parent / "docs"
ENTRIES = set(re.findall(r"^::: fnnet\.(\S+)", "\n".join(p.read_text() for p in DOCS.rglob("*.md")), re.M))
INDEX, WHICH = ((DOCS / name).read_text() for name in ("api/index.md", "which.md"))


@pytest.mark.parametrize("name", fn.__all__)
def test_a_public_name_is_in_the_index_and_has_an_entry(name):
    assert f"`{name}`" in INDEX
    value = isinstance(getattr(fn, name), fn.Activation | fn.Cost) or name in ("add", "concatenate")
    if value:
        assert (
            f"`{name}`" in (DOCS / "api/functions.md").read_text()
            or f"`fn.{name}`" in (DOCS / "api/network.md").read_text()
        )
    else:
        assert ENTRIES & {name, f"costs.{name}"}


@pytest.mark.parametrize("module", [fn.datasets, fn.dbn, fn.diagnostics, fn.initializers, fn.rbm, plots])
def test_a_module_is_shown_whole(module):
    """mkdocstrings shows what a module exports and documents; aliases of types are told where they are used."""
    assert module.__name__.removeprefix("fnnet.") in ENTRIES
    values = {name: getattr(module, name) for name in module.__all__}
    assert all(value.__doc__ for value in values.values() if inspect.isfunction(value) or inspect.isclass(value))


@pytest.mark.parametrize("page", [INDEX, WHICH], ids=["index", "which"])
def test_tables_name_what_exists(page):
    for path in re.findall(r"`fn\.([A-Za-z_0-9]+)", page):
        assert hasattr(fn, path), path
    for path in re.findall(r"fnnet\.plots\.(\w+)", page):
        assert path in plots.__all__
    if page is INDEX:
        names = {
            name for row in re.findall(r"^\| \[.*?\| (.*) \|$", page, re.M) for name in re.findall(r"`(\w+)`", row)
        }
        assert names == set(fn.__all__)


def test_the_citation_is_of_this_version():
    assert f"\nversion: {fn.__version__}\n" in (DOCS.parent / "CITATION.cff").read_text()
