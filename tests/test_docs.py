"""The documentation's code runs, and what it quotes from the library is still there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```$", re.S | re.M)


def blocks(page):
    return [(attributes, body) for attributes, body in BLOCK.findall(page.read_text())]


def is_excerpt(attributes, body):
    return "title=" in attributes or body.startswith("@jax.jit")


@pytest.mark.parametrize("page", [p for p in PAGES if any(not is_excerpt(*b) for b in blocks(p))], ids=lambda p: p.name)
def test_the_code_runs(page, tmp_path):
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(body for attributes, body in blocks(page) if not is_excerpt(attributes, body)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


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
