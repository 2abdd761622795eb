"""The examples do their work without matplotlib, and say what to install for the picture."""

import runpy
import sys
from pathlib import Path

import jax
import pytest

EXAMPLES = [
    p for p in sorted((Path(__file__).parent.parent / "examples").glob("*.py")) if "def picture(" in p.read_text()
]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_no_picture_without_matplotlib(path, monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(path.parent)
    picture = runpy.run_path(str(path))["picture"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    picture(*[tmp_path] * picture.__code__.co_argcount)
    assert capsys.readouterr().out == "no picture, since matplotlib is not installed: pip install 'fnnet[examples]'\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_the_quickstart_speaks_at_once_and_needs_no_matplotlib(monkeypatch, capsys, tmp_path):
    path = next(p for p in EXAMPLES if p.name == "quickstart.py")
    monkeypatch.syspath_prepend(path.parent)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(sys, "argv", [str(path), "--epochs", "1", "--examples", "50", "--output", str(tmp_path)])
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        runpy.run_path(str(path), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("importing JAX ...\n")
    assert "test accuracy" in said
    assert "no picture" in said
