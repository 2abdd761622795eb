"""The pictures of docs/learn still show what their code computes: by their numbers, not their pixels."""

import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from .cases import thorough

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
FIGURES = runpy.run_path(str(ROOT / "examples" / "figures.py"))["FIGURES"]
CHEAP = ["neuron", "dense", "descent", "saturation", "pooling"]
LONG = ["vanishing", "credit"]
TRAINED = [
    "overfitting",
    "features",
    "boltzmann",
]  # thousands of steps, and draws that hang by a rounding: mean and spread stay


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


@pytest.mark.parametrize("name", thorough(*TRAINED))
def test_trained_networks_still_look_alike(name):
    for now, then in both(name):
        assert now.shape == then.shape
        np.testing.assert_allclose([now.mean(), now.std()], [then.mean(), then.std()], atol=0.1 * then.std())


def test_every_figure_is_committed_for_both_schemes():
    assert {*CHEAP, *LONG, *TRAINED} == set(FIGURES)
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "learn").glob("*.md"))
    for name in FIGURES:
        for file in (f"{name}.json", f"{name}.svg", f"{name}-dark.svg"):
            assert (PICTURES / file).exists(), f"{file}: run python examples/figures.py {name}"
        assert f"pictures/{name}.svg#only-light" in pages
        assert f"pictures/{name}-dark.svg#only-dark" in pages
