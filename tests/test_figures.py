"""The pictures of docs/ still show what their code computes: by their numbers, not their pixels."""

import json
import os
import re
import runpy
import struct
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from .cases import thorough

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
sys.path.append(str(ROOT / "examples"))
SCRIPT = runpy.run_path(str(ROOT / "examples" / "figures.py"))
FIGURES = SCRIPT["FIGURES"]
CHEAP = [
    "neuron", "dense", "descent", "saturation", "pooling", "equations", "rotation", "tied", "gated", "hidden", "swiglu",
    "huber", "sent", "ratios", "sizes",
]  # fmt: skip
LONG = ["vanishing", "credit", "reach", "growth", "decay", "inside"]
AUDITS = ["fault", "card"]  # differences at rounding are those of a machine
# Thousands of steps, and draws that hang by a rounding: mean and spread stay.
TRAINED = [
    "overfitting",
    "features",
    "boltzmann",
    "first",
    "rates",
    "resumed",
    "differences",
    "alignment",
    "private",
    "spectrum",
]
# Minutes; the latter on the text that FNNET_TEXT names.
SLOW = ["residual", "gpt"]
# Tables of links; the figures of what the others say are with the results, those of the notes' chapters under Learn.
WITHOUT = {"which.md", "measured.md", "notes.md"}
PAGES = {page: page.read_text() for folder in ("docs", "docs/learn") for page in (ROOT / folder).glob("*.md")}
SHOWN = re.compile(r"!\[([^\]]*)\]\((?:\.\./)?pictures/([^)]*)\)(?=\s*(.*))")


def both(name):
    """(computed now, committed), for each array of the figure."""
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        computed = {key: np.asarray(values, float) for key, values in FIGURES[name][0]().items()}
    committed = {key: np.array(values) for key, values in json.loads((PICTURES / f"{name}.json").read_text()).items()}
    assert computed.keys() == committed.keys()
    return [(computed[key], committed[key]) for key in committed]


@pytest.mark.parametrize("name", [*CHEAP, *thorough(*LONG)])
def test_the_numbers_are_still_those(name):
    for now, then in both(name):
        assert np.abs(now - then).max() < 0.01 * np.abs(then).max()


@pytest.mark.parametrize("name", thorough(*AUDITS))
def test_audits_still_say_so(name):
    for now, then in both(name):
        np.testing.assert_allclose(now, then, rtol=0.01, atol=1e-5)


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("name", [*thorough(*TRAINED), *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_trained_networks_still_look_alike(name):
    if name == "gpt" and "FNNET_TEXT" not in os.environ:
        pytest.skip("needs FNNET_TEXT")
    for now, then in both(name):
        assert now.shape == then.shape
        np.testing.assert_allclose([now.mean(), now.std()], [then.mean(), then.std()], atol=0.1 * then.std())


@pytest.mark.thorough
@pytest.mark.usefixtures("optimised")
def test_digits_still_lie_among_their_like_in_the_plane():
    """Where each lies hangs by the draws of the pretraining. By chance a tenth would have a neighbour of its class."""
    (now, then), (labels, _) = both("plane")
    assert now.shape == then.shape
    for codes in (now, then):
        apart = np.linalg.norm(codes[:, None] - codes, axis=-1)
        np.fill_diagonal(apart, np.inf)
        assert np.mean(labels[apart.argmin(axis=1)] == labels) > 0.3


@pytest.mark.parametrize("name", thorough(*FIGURES))
def test_it_is_drawn_from_its_numbers(name, tmp_path):
    SCRIPT["drawn"](name, json.loads((PICTURES / f"{name}.json").read_text()), tmp_path)
    assert len(list(tmp_path.iterdir())) == (1 if name == "card" else 2)


def test_a_text_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("FNNET_TEXT", raising=False)
    with pytest.raises(SystemExit, match=r"gpt needs a text: FNNET_TEXT=input\.txt"):
        SCRIPT["main"](["gpt"], tmp_path)


def test_a_package_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(
        SystemExit, match=r'decay needs optax; the extra "tests" brings it: pip install -e "\.\[tests\]"'
    ):
        SCRIPT["main"](["decay"], tmp_path)


def test_every_figure_is_committed_and_shown_for_both_schemes():
    assert {*CHEAP, *LONG, *AUDITS, *TRAINED, *SLOW, "plane"} == set(FIGURES)
    shown = {picture for text in PAGES.values() for _, picture, _ in SHOWN.findall(text)}
    for name in FIGURES:
        files = [f"{name}.png"] if name == "card" else [f"{name}.svg", f"{name}-dark.svg"]
        for file in [f"{name}.json", *files]:
            assert (PICTURES / file).exists(), f"{file}: run python examples/figures.py {name}"
            assert file.endswith("png") or (PICTURES / file).stat().st_size < (110 if "json" in file else 60) * 1000
        if name != "card":
            assert shown >= {f"{name}.svg#only-light", f"{name}-dark.svg#only-dark"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_page_has_a_picture_with_words_for_those_who_do_not_see_it(page):
    shown = SHOWN.findall(PAGES[page])
    assert bool(shown) == (page.name not in WITHOUT)
    for words, picture, after in shown:
        assert len(words.split()) > 5
        assert picture.endswith(("#only-light", "#only-dark", ".png", "branches.svg"))
        assert after.strip(), f"{picture}: a caption"


def test_the_card_has_the_size_that_is_promised():
    kind, width, height = struct.unpack(">12x4sII", (PICTURES / "card.png").read_bytes()[:24])
    theme = (ROOT / ".ci" / "theme" / "main.html").read_text()
    assert (kind, width, height) == (b"IHDR", 1200, 630)
    assert "pictures/card.png" in theme
    assert re.findall(r'og:image:(?:width|height)" content="(\d+)"', theme) == ["1200", "630"]
